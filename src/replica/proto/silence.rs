//! How long the other end has said nothing, as far as this one could hear. Pure.

use std::time::Duration;

/// A time that counts only while this end looks at the clock. A host that stood still (a stopped
/// process, a processor that was taken away) has heard nothing meanwhile, and what was said waits
/// to be read: that is not the other end's silence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    since: Duration,
    looked_at: Duration,
}

impl Silence {
    /// It begins.
    pub(super) const fn begin(now: Duration) -> Self {
        Self { since: now, looked_at: now }
    }

    /// It is looked at, `every` so often if this end runs as it should. A look that comes twice as
    /// late counts as one that came in time.
    pub(super) fn look(&mut self, now: Duration, every: Duration) {
        let gap = now.saturating_sub(self.looked_at);
        if gap > every.saturating_mul(2) {
            self.since = self.since.saturating_add(gap.saturating_sub(every)).min(now);
        }
        self.looked_at = self.looked_at.max(now);
    }

    /// When it will have lasted for `limit`, if looks come in time.
    pub(super) const fn end(&self, limit: Duration) -> Duration {
        self.since.saturating_add(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn time_in_which_this_end_stood_still_does_not_count() {
        let mut silence = Silence::begin(ms(100));
        for now in [104, 108, 112] {
            silence.look(ms(now), ms(4));
        }
        assert_eq!(silence.end(ms(25)), ms(125), "looks in time change nothing");
        silence.look(ms(120), ms(4));
        assert_eq!(silence.end(ms(25)), ms(125), "nor does one that is a little late");
        silence.look(ms(5_120), ms(4));
        assert_eq!(silence.end(ms(25)), ms(125 + 5_000 - 4));
        for now in (5_124..5_144).step_by(4) {
            silence.look(ms(now), ms(4));
        }
        assert_eq!(silence.end(ms(25)), ms(5_121), "what is silent all the same is found");
        // A clock that went back.
        silence.look(ms(3), ms(4));
        assert_eq!(silence.end(ms(25)), ms(5_121));
    }
}
