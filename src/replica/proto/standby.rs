//! The end that follows, and takes over.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::action::{Action, Answer, Halted};
use super::broken::{Rule, is_broken};
use super::epoch_key::EpochKey;
use super::message::{Body, Message};
use super::options::{StandbyOptions, Timing};
use super::record::Record;
use super::silence::Silence;
use super::swaps::{Learnt, Swaps};
use crate::replica::register::{Holder, Incarnation, Register};

/// Where a standby is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is not named to the witness, as far as it knows.
    Joining,
    /// It is one of the pair, and says what it holds.
    Hot,
    /// It asks for the machine, and says nothing.
    Promoting,
    /// It has the machine.
    Promoted,
    /// It is no standby any more.
    Stale,
}

/// What an operator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandbyRole {
    /// It is not yet one of the pair.
    Joining,
    /// It may take over.
    Hot,
    /// It asks the witness for the machine.
    Promoting,
    /// It has the machine.
    Promoted,
    /// It was dropped. It may join again, as another incarnation.
    Stale,
}

/// The standby's state machine: one incarnation, from joining until it is promoted or dropped.
pub struct Standby {
    me: Incarnation,
    primary: Incarnation,
    options: StandbyOptions,
    swaps: Swaps,
    phase: Phase,
    newest: Option<EpochKey>,
    /// Somebody wants it to take over, whoever may live.
    is_forced: bool,
    recorded: Option<Record>,
    recording: Option<Record>,
    silence: Silence,
    beat_at: Duration,
    actions: VecDeque<Action>,
}

/// What a standby that was promoted hands to the [`Primary`](super::Primary) that it becomes.
#[derive(Debug)]
pub struct Promotion {
    pub(super) me: Incarnation,
    pub(super) swaps: Swaps,
    pub(super) head: EpochKey,
    pub(super) recorded: Option<Record>,
}

impl Promotion {
    /// The epoch to run from: the newest that it has whole.
    #[must_use]
    pub const fn head(&self) -> EpochKey {
        self.head
    }

    /// What the register says.
    #[must_use]
    pub const fn register(&self) -> Option<Register> {
        self.swaps.known()
    }
}

impl Standby {
    /// One that joins `primary`, which said what the register has. `record` is what the store has
    /// on disk, with this incarnation in it already; a standby without a chain has none. `draw`
    /// draws numbers that nobody else draws.
    #[must_use]
    pub fn join(
        me: Incarnation,
        options: StandbyOptions,
        (primary, register): (Incarnation, Register),
        record: Option<Record>,
        draw: Box<dyn FnMut() -> u128 + Send>,
        now: Duration,
    ) -> Self {
        Self {
            me,
            primary,
            options,
            swaps: Swaps::new(Some(register), options.timing.retry, draw),
            phase: Phase::Joining,
            newest: None,
            is_forced: false,
            recorded: record,
            recording: None,
            silence: Silence::begin(now),
            beat_at: now,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// This incarnation.
    #[must_use]
    pub const fn me(&self) -> Incarnation {
        self.me
    }

    /// The primary that it follows.
    #[must_use]
    pub const fn primary(&self) -> Incarnation {
        self.primary
    }

    /// The newest register that is known.
    #[must_use]
    pub const fn register(&self) -> Option<Register> {
        self.swaps.known()
    }

    /// The newest epoch that it has whole.
    #[must_use]
    pub const fn newest(&self) -> Option<EpochKey> {
        self.newest
    }

    /// What an operator sees.
    #[must_use]
    pub const fn role(&self) -> StandbyRole {
        match self.phase {
            Phase::Joining => StandbyRole::Joining,
            Phase::Hot => StandbyRole::Hot,
            Phase::Promoting => StandbyRole::Promoting,
            Phase::Promoted => StandbyRole::Promoted,
            Phase::Stale => StandbyRole::Stale,
        }
    }

    /// It holds an epoch whole: in memory, or durable in its chain, as was chosen. The first one is
    /// a base, every other names the one before it. Returns false, and nothing is held, where the
    /// epoch does not follow: the stream is to end then.
    pub fn holds(&mut self, key: EpochKey, parent: Option<EpochKey>, now: Duration) -> bool {
        let follows = parent == self.newest && !matches!(self.phase, Phase::Promoted | Phase::Stale);
        if follows {
            self.newest = Some(key);
            self.say_held();
            self.drive(now);
        }
        follows
    }

    /// This record is durable.
    pub fn recorded(&mut self, record: Record, now: Duration) {
        self.recording = self.recording.take().filter(|recording| *recording != record);
        self.recorded = Some(record);
        self.say_held();
        self.drive(now);
    }

    /// The witness answered.
    pub fn answered(&mut self, answer: Answer, now: Duration) {
        let learnt = self.swaps.answered(answer, now);
        self.learnt(learnt);
        self.drive(now);
    }

    /// A message came.
    pub fn heard(&mut self, message: &Message, now: Duration) {
        if message.to != self.me {
            return;
        }
        let learnt = self.swaps.told(message.register);
        self.learnt(learnt);
        let is_old = message.register.generation < self.swaps.generation() && !is_broken(Rule::NoOldGeneration);
        if message.from == self.primary && !is_old {
            self.silence = Silence::begin(now);
            // It lives, and the witness was surely not asked for anything.
            if self.phase == Phase::Promoting && !self.is_forced && !self.swaps.is_open() {
                self.phase = Phase::Hot;
                self.say_held();
            }
        }
        self.drive(now);
    }

    /// Time has passed. Call it often enough: at [`due`](Self::due).
    pub fn tick(&mut self, now: Duration) {
        self.silence.look(now, self.options.timing.heartbeat);
        if now > self.silence.end(self.patience()) {
            match self.phase {
                Phase::Hot => self.phase = Phase::Promoting,
                Phase::Joining if is_broken(Rule::OnlyHotPromotes) && self.newest.is_some() => self.phase = Phase::Promoting,
                // The pair may have been made, and the word of it lost: this may be all that is
                // left of the machine.
                Phase::Joining if self.newest.is_some() => {
                    let reads = self.swaps.read(now);
                    self.actions.extend(reads);
                }
                Phase::Joining => self.leave(),
                Phase::Promoting | Phase::Promoted | Phase::Stale => {}
            }
        }
        self.drive(now);
    }

    /// How long the primary may say nothing.
    fn patience(&self) -> Duration {
        let Timing { timeout, behind, .. } = self.options.timing;
        if self.phase == Phase::Joining && self.newest.is_none() { behind.max(timeout) } else { timeout }
    }

    /// When to call [`tick`](Self::tick) at the latest.
    #[must_use]
    pub fn due(&self, now: Duration) -> Duration {
        self.beat_at.min(self.silence.end(self.patience())).max(now.saturating_add(Duration::from_micros(100)))
    }

    /// The stream of epochs ended: nothing more comes. A standby that is one of the pair stays so,
    /// for it may have to take over; one that joins is dropped.
    pub fn lost(&mut self, now: Duration) {
        if self.phase == Phase::Joining && self.newest.is_none() {
            self.leave();
        }
        self.drive(now);
    }

    /// Somebody wants it to take over now, and accepts that outputs may have left that it does not
    /// know, and vouches that nobody else runs the machine. The witness is asked all the same.
    /// Returns false where it has no whole epoch.
    pub fn promote(&mut self, now: Duration) -> bool {
        let can = self.newest.is_some() && matches!(self.phase, Phase::Joining | Phase::Hot | Phase::Promoting);
        if can {
            self.phase = Phase::Promoting;
            self.is_forced = true;
            self.drive(now);
        }
        can
    }

    /// What the machine goes on with, where it was promoted.
    #[must_use]
    pub fn promotion(self) -> Option<Promotion> {
        let Self { me, swaps, phase, newest, recorded, .. } = self;
        let head = newest.filter(|_| phase == Phase::Promoted)?;
        Some(Promotion { me, swaps, head, recorded })
    }

    fn leave(&mut self) {
        self.phase = Phase::Stale;
        self.actions.push_back(Action::Drop(self.primary));
    }

    /// What the register says decides.
    fn learnt(&mut self, learnt: Learnt) {
        if matches!(self.phase, Phase::Promoted | Phase::Stale) {
            return;
        }
        match learnt {
            Learnt::Nothing => {}
            Learnt::Forgot { seen, found } => {
                self.phase = Phase::Stale;
                self.actions.push_back(Action::Halt(Halted::WitnessForgot { seen, found }));
            }
            Learnt::Newer(register) => self.learnt_newer(register),
        }
    }

    fn learnt_newer(&mut self, register: Register) {
        let is_whole = self.newest.is_some();
        match (register.holder, self.phase) {
            (Holder::Solo(who), _) if who == self.me && is_whole => {
                self.phase = Phase::Promoted;
                self.actions.push_back(Action::Run);
            }
            // The pair is made anew.
            (Holder::Paired(primary, standby), _) if (primary, standby) == (self.primary, self.me) && is_whole => {
                if self.phase == Phase::Joining || self.phase == Phase::Promoting {
                    self.phase = Phase::Hot;
                }
                self.say_held();
            }
            // A pair with this one would have come next.
            _ => self.leave(),
        }
    }

    /// Does what is due.
    fn drive(&mut self, now: Duration) {
        match self.phase {
            Phase::Promoting => {
                let asks = self.swaps.want(Holder::Solo(self.me), now);
                self.actions.extend(asks);
                if is_broken(Rule::SilentBeforeSwap) {
                    self.say_held();
                }
            }
            Phase::Joining | Phase::Hot => {
                self.record();
                if now >= self.beat_at {
                    self.beat_at = now.saturating_add(self.options.timing.heartbeat);
                    if !self.say_held() {
                        self.say(Body::Beat);
                    }
                }
            }
            Phase::Promoted | Phase::Stale => {}
        }
    }

    /// What its store has to say before it says that it holds anything; none where it has to say
    /// nothing.
    fn rule_of_release(&self) -> Option<Record> {
        let is_hot = self.phase == Phase::Hot && self.options.has_chain;
        let covers = self.options.holds_on_disk;
        is_hot.then_some(Record { names: vec![self.me], generation: self.swaps.generation(), covers })
    }

    fn record(&mut self) {
        let wanted = self.rule_of_release().filter(|wanted| self.recorded.as_ref() != Some(wanted));
        if let Some(record) = wanted.filter(|wanted| self.recording.as_ref() != Some(wanted)) {
            self.recording = Some(record.clone());
            self.actions.push_back(Action::Record(record));
        }
    }

    /// Says what it holds, where it may. Returns whether it did.
    fn say_held(&mut self) -> bool {
        let may = match self.phase {
            Phase::Joining => true,
            Phase::Hot => {
                let rule = self.rule_of_release();
                rule.is_none() || self.recorded == rule || is_broken(Rule::RecordedBeforeRelease)
            }
            Phase::Promoting => is_broken(Rule::SilentBeforeSwap),
            Phase::Promoted | Phase::Stale => false,
        };
        match self.newest.filter(|_| may) {
            Some(newest) => {
                self.say(Body::Holds(newest));
                true
            }
            None => false,
        }
    }

    fn say(&mut self, body: Body) {
        if let Some(register) = self.swaps.known() {
            self.actions.push_back(Action::Send(Message { from: self.me, to: self.primary, register, body }));
        }
    }
}

impl fmt::Debug for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, swaps, phase, newest, recorded, .. } = self;
        f.debug_struct("Standby")
            .field("me", me)
            .field("phase", phase)
            .field("swaps", swaps)
            .field("newest", newest)
            .field("recorded", recorded)
            .finish_non_exhaustive()
    }
}
