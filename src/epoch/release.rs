//! How far epochs have come in each sink, and when what came out of the guest may leave. Pure, but
//! for a rule that somebody else keeps.

use std::fmt;
use std::sync::Arc;

use crate::page::EpochId;

/// How far the epochs have come that one sink was given. Each covers all epochs before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// The newest that it has whole.
    pub appended: EpochId,
    /// The newest that survives a power cut there.
    pub durable: EpochId,
    /// The newest that another host holds.
    pub acknowledged: EpochId,
}

/// Where an epoch must have come. The number is the sink's: 0 is the one that the engine was
/// started with, the others count up as they are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To [`Reached::appended`] of the sink.
    Appended(usize),
    /// To [`Reached::durable`] of the sink.
    Durable(usize),
    /// To [`Reached::acknowledged`] of the sink.
    Acknowledged(usize),
}

/// A rule of release that changes: who may go on decides it.
pub trait ReleaseRule: Send + Sync + fmt::Debug {
    /// The newest epoch that is released, now that the sinks have come so far. It is asked whenever
    /// a mark moves, one call at a time, and may say less than before: what was released stays so.
    /// It must not tell any [`Marks`](super::Marks).
    fn newest(&self, reached: &[Reached]) -> EpochId;
}

/// When an epoch is released: when what came out of the guest in it may leave.
#[derive(Clone, Debug)]
pub enum Release {
    /// When it has come to all of these. Nothing is released by none.
    All(Vec<Need>),
    /// When it has come to one of them.
    Any(Vec<Need>),
    /// When this says so.
    By(Arc<dyn ReleaseRule>),
}

impl Release {
    /// The newest epoch that is released. `reached` has an entry for each sink; one that there is
    /// not has nothing.
    #[must_use]
    pub fn newest(&self, reached: &[Reached]) -> EpochId {
        let of = |sink: usize| reached.get(sink).copied().unwrap_or_default();
        let come = |need: &Need| match *need {
            Need::Appended(sink) => of(sink).appended,
            Need::Durable(sink) => of(sink).durable,
            Need::Acknowledged(sink) => of(sink).acknowledged,
        };
        match self {
            Self::All(needs) => needs.iter().map(come).min(),
            Self::Any(needs) => needs.iter().map(come).max(),
            Self::By(rule) => Some(rule.newest(reached)),
        }
        .unwrap_or(EpochId::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_and_any_of_the_marks() {
        let reached = |appended, durable, acknowledged| Reached {
            appended: EpochId(appended),
            durable: EpochId(durable),
            acknowledged: EpochId(acknowledged),
        };
        let both = [reached(9, 7, 0), reached(8, 3, 6)];
        let (disk, standby) = (Need::Durable(0), Need::Acknowledged(1));
        assert_eq!(Release::All(vec![Need::Appended(0)]).newest(&both), EpochId(9));
        assert_eq!(Release::All(vec![disk, standby]).newest(&both), EpochId(6));
        assert_eq!(Release::Any(vec![disk, standby]).newest(&both), EpochId(7));
        assert_eq!(Release::All(vec![Need::Durable(1)]).newest(&both[..1]), EpochId::NONE, "no such sink");
        assert_eq!(Release::All(Vec::new()).newest(&both), EpochId::NONE);
    }
}
