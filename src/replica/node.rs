//! One host of a pair: the state machine that it is now, and the threads that do what it wants.
//!
//! Whoever has something to tell locks the machine, tells it, and sees to it that what it wants
//! then is done: calls to the witness and records on disk on threads of their own, messages by the
//! thread that writes to the other host, all else by whoever waits for [`Node::wait`]. Nothing
//! waits while the machine is locked. A thread that holds the lock runs with the priority of who
//! waits for it: heartbeats wait for no thread that a busy host keeps from running.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};
use std::{fmt, io};

use priority_inheriting_lock::{PriorityInheritingLock, PriorityInheritingLockGuard};

use super::follow_times::FollowTimes;
use super::node_status::{NodeStatus, Role};
use super::proto::{Action, Answer, EpochKey, Message, Primary, PrimaryOptions, PrimaryRole, Record, Standby};
use super::realtime::{is_preferred, prefer_this_thread};
use super::record_file::write_record;
use super::register::{Incarnation, Register};
use super::wishes::{Wish, Wishes};
use super::witness::{Swapped, Witness, WitnessError};
use crate::epoch::{Marks, Reached, ReleaseRule, SinkError};
use crate::page::EpochId;
use crate::store::causes;

/// What a host is.
#[derive(Debug)]
enum Machine {
    Nobody,
    Primary(Box<Primary>),
    Standby(Box<Standby>),
}

impl Machine {
    const fn role(&self) -> Role {
        match self {
            Self::Nobody => Role::Nobody,
            Self::Primary(primary) => Role::Primary(primary.role()),
            Self::Standby(standby) => Role::Standby(standby.role()),
        }
    }

    const fn me(&self) -> Option<Incarnation> {
        match self {
            Self::Nobody => None,
            Self::Primary(primary) => Some(primary.me()),
            Self::Standby(standby) => Some(standby.me()),
        }
    }

    /// The standby of a primary, the primary of a standby.
    fn other(&self) -> Option<Incarnation> {
        match self {
            Self::Nobody => None,
            Self::Primary(primary) => primary.standby(),
            Self::Standby(standby) => Some(standby.primary()),
        }
    }

    const fn register(&self) -> Option<Register> {
        match self {
            Self::Nobody => None,
            Self::Primary(primary) => primary.register(),
            Self::Standby(standby) => standby.register(),
        }
    }

    fn newest(&self) -> Option<EpochKey> {
        match self {
            Self::Nobody => None,
            Self::Primary(primary) => primary.newest(),
            Self::Standby(standby) => standby.newest(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Read,
    Swap(Option<Register>, Register),
}

struct Inner {
    machine: Machine,
    /// To the other host.
    words: Option<SyncSender<Message>>,
    /// Where the engine is told that something was released.
    marks: Option<Marks>,
    /// Where the store's record is.
    store: Option<PathBuf>,
    released: EpochId,
    /// The newest epoch that a standby has said to hold.
    held: EpochId,
    /// When the last message came from the other host.
    heard_at: Instant,
    /// The guest stays parked behind this epoch.
    parked_behind: Option<EpochId>,
    follow: FollowTimes,
    /// How long the newest call to the witness that was answered took.
    witness_took: Option<Duration>,
    /// When the witness was asked for a swap first, since then.
    asked_at: Option<Instant>,
}

/// See the module.
pub struct Node {
    inner: PriorityInheritingLock<Inner>,
    wishes: Wishes,
    begun: Instant,
    calls: Sender<Call>,
    records: Sender<(PathBuf, Record)>,
}

impl Node {
    /// A node that is nobody yet, with the witness that it asks. Its threads start. They end when
    /// it is dropped, but for a call to the witness that is under way.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub fn start(witness: Box<dyn Witness>) -> std::io::Result<Arc<Self>> {
        let (calls, asked) = channel();
        let (records, recorded) = channel();
        let inner = Inner {
            machine: Machine::Nobody,
            words: None,
            marks: None,
            store: None,
            released: EpochId::NONE,
            held: EpochId::NONE,
            heard_at: Instant::now(),
            parked_behind: None,
            follow: FollowTimes::default(),
            witness_took: None,
            asked_at: None,
        };
        let begun = Instant::now();
        let node = Arc::new(Self { inner: PriorityInheritingLock::new(inner), wishes: Wishes::default(), begun, calls, records });
        let weak = || Arc::downgrade(&node);
        let of = weak();
        let asks = move || ask(witness, &asked, &|answer, took| of.upgrade().is_some_and(|node| node.answered(answer, took)));
        Builder::new().name("slackwater-ask".to_owned()).spawn(asks)?;
        let of = weak();
        let writes = move || write_records(&recorded, &|record| of.upgrade().is_some_and(|node| node.recorded(record)));
        Builder::new().name("slackwater-record".to_owned()).spawn(writes)?;
        let of = weak();
        let ticks = move || {
            prefer_this_thread();
            while let Some(node) = of.upgrade() {
                let Some(pause) = node.tick() else { break };
                drop(node);
                std::thread::sleep(pause);
            }
        };
        Builder::new().name("slackwater-beat".to_owned()).spawn(ticks)?;
        Ok(node)
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn lock(&self) -> PriorityInheritingLockGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Tells the machine something, and does what it wants then.
    fn step<T>(&self, tell: impl FnOnce(&mut Inner, Duration) -> T) -> T {
        self.step_and(true, tell).0
    }

    /// The same, and the newest epoch that is released then. `tells_marks` is false on a thread
    /// that asks for the rule of release.
    fn step_and<T>(&self, tells_marks: bool, tell: impl FnOnce(&mut Inner, Duration) -> T) -> (T, EpochId) {
        let mut inner = self.lock();
        let told = tell(&mut inner, self.now());
        let before = (inner.released, inner.held);
        self.act(&mut inner);
        let (released, held) = (inner.released, inner.held);
        let marks = inner.marks.clone().filter(|_| tells_marks && (released, held) != before);
        drop(inner);
        if let Some(marks) = marks {
            // It has the engine ask what is released.
            marks.acknowledged(held);
        }
        (told, released)
    }

    fn act(&self, inner: &mut Inner) {
        loop {
            let action = match &mut inner.machine {
                Machine::Nobody => None,
                Machine::Primary(primary) => primary.action(),
                Machine::Standby(standby) => standby.action(),
            };
            let Some(action) = action else { break };
            match action {
                Action::Swap { expected, new } => {
                    // It is asked again and again, until it answers.
                    let silence = inner.heard_at.elapsed();
                    match inner.asked_at {
                        None => tracing::info!(?expected, ?new, ?silence, "the witness is asked"),
                        Some(_) => tracing::debug!(?expected, ?new, "the witness is asked again"),
                    }
                    inner.asked_at.get_or_insert_with(Instant::now);
                    // Its thread is there as long as the node.
                    let _ = self.calls.send(Call::Swap(expected, new));
                }
                Action::Read => {
                    let _ = self.calls.send(Call::Read);
                }
                Action::Record(record) => {
                    if let Some(store) = &inner.store {
                        let _ = self.records.send((store.clone(), record));
                    }
                }
                Action::Send(message) => {
                    if let Some(words) = &inner.words
                        // A message may be lost.
                        && let Err(TrySendError::Disconnected(_)) = words.try_send(message)
                    {
                        inner.words = None;
                    }
                }
                Action::Run => self.wishes.push(Wish::Run),
                Action::Park => self.wishes.push(Wish::Park),
                Action::Drop(who) => {
                    inner.words = None;
                    self.wishes.push(Wish::Drop(who));
                }
                Action::Halt(why) => self.wishes.push(Wish::Halt(why)),
            }
        }
        if let Machine::Primary(primary) = &inner.machine {
            let released = primary.released().map_or(EpochId::NONE, |key| key.epoch);
            inner.released = inner.released.max(released);
            inner.held = primary.held().map_or(inner.held, |key| key.epoch);
            inner.follow.held(inner.held, self.now());
        }
    }

    /// Makes this host a primary, which `make` makes at the time that it is given. Its store's
    /// records go to `store`.
    pub fn become_primary(&self, store: Option<PathBuf>, make: impl FnOnce(Duration) -> Primary) {
        self.step(|inner, now| {
            inner.store = store;
            inner.machine = Machine::Primary(Box::new(make(now)));
        });
    }

    /// Makes this host a standby, whose messages go to `words`.
    pub fn become_standby(&self, store: Option<PathBuf>, words: SyncSender<Message>, make: impl FnOnce(Duration) -> Standby) {
        self.step(|inner, now| {
            inner.store = store;
            inner.words = Some(words);
            self.wishes.clear();
            inner.heard_at = Instant::now();
            inner.machine = Machine::Standby(Box::new(make(now)));
        });
    }

    /// Makes a standby that was promoted the primary, from the epoch `head`: the newest that it has
    /// whole, which may be one behind the last that it said to hold. Returns whether it was
    /// promoted.
    pub fn promoted(&self, options: PrimaryOptions, head: EpochKey) -> bool {
        self.step(|inner, now| {
            let standby = match std::mem::replace(&mut inner.machine, Machine::Nobody) {
                Machine::Standby(standby) => standby,
                other => {
                    inner.machine = other;
                    return false;
                }
            };
            let Some(promotion) = standby.promotion() else { return false };
            inner.words = None;
            inner.released = head.epoch;
            inner.machine = Machine::Primary(Box::new(Primary::promoted(promotion, options, head, now)));
            true
        })
    }

    /// This host is nobody again.
    pub fn become_nobody(&self) {
        self.step(|inner, _| {
            inner.machine = Machine::Nobody;
            inner.words = None;
            self.wishes.clear();
        });
    }

    /// A standby was connected to, and its messages go to `words`. Returns whether it can be
    /// attached.
    pub fn attach(&self, who: Incarnation, words: SyncSender<Message>) -> bool {
        self.step(|inner, now| {
            let Machine::Primary(primary) = &mut inner.machine else { return false };
            if !primary.attach(who, now) {
                return false;
            }
            inner.words = Some(words);
            inner.heard_at = Instant::now();
            inner.follow.begin(inner.held);
            true
        })
    }

    /// Whether a standby can be attached now.
    #[must_use]
    pub fn can_attach(&self) -> bool {
        matches!(&self.lock().machine, Machine::Primary(primary) if primary.can_attach())
    }

    /// Whether this one is the standby, or is to be.
    #[must_use]
    pub fn has_standby(&self, who: Incarnation) -> bool {
        matches!(&self.lock().machine, Machine::Primary(primary) if primary.standby() == Some(who))
    }

    /// The machine is to end in order: the standby is not to take its place. Returns whether the
    /// witness has said so within `limit`.
    pub fn retire(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let now = match &self.lock().machine {
                Machine::Primary(primary) => Some((primary.standby(), primary.role())),
                _ => None,
            };
            match now {
                Some((Some(standby), _)) => self.lost(standby),
                None | Some((None, PrimaryRole::Solo | PrimaryRole::Fenced)) => return true,
                Some((None, _)) => {}
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Begins to give the machine to its standby: [`Wish::Park`] comes first. Returns false where
    /// there is none that could have it.
    pub fn hand_over(&self) -> bool {
        self.step(|inner, now| match &mut inner.machine {
            Machine::Primary(primary) => {
                inner.parked_behind = None;
                primary.hand_over(now)
            }
            _ => false,
        })
    }

    /// The guest was parked, and `last` is its last epoch, complete or not.
    pub fn parked(&self, last: EpochId) {
        self.step(|inner, now| {
            inner.parked_behind = Some(last);
            inner.tell_parked(now);
        });
    }

    /// Somebody wants the standby to take over: see
    /// [`Standby::promote`](super::proto::Standby::promote). Returns false where this is no standby
    /// that could.
    pub fn promote(&self) -> bool {
        self.step(|inner, now| match &mut inner.machine {
            Machine::Standby(standby) => {
                inner.asked_at.get_or_insert_with(Instant::now);
                standby.promote(now)
            }
            _ => false,
        })
    }

    /// What an operator sees.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let inner = self.lock();
        let machine = &inner.machine;
        let other = machine.other();
        let lag_epochs = if let Machine::Primary(primary) = machine { primary.lag_epochs() } else { None };
        NodeStatus {
            role: machine.role(),
            me: machine.me(),
            other,
            register: machine.register(),
            newest: machine.newest().map_or(EpochId::NONE, |key| key.epoch),
            held: inner.held,
            released: inner.released,
            lag_epochs,
            follow: inner.follow.median(),
            witness: inner.witness_took,
            silence: other.map(|_| inner.heard_at.elapsed()),
            is_realtime: is_preferred(),
        }
    }

    /// The standby gets no more epochs.
    pub fn lost(&self, who: Incarnation) {
        self.step(|inner, now| {
            if let Machine::Primary(primary) = &mut inner.machine {
                primary.lost(who, now);
            }
        });
    }

    /// The stream of epochs to this standby ended.
    pub fn stream_ended(&self, me: Incarnation) {
        self.step(|inner, now| match &mut inner.machine {
            Machine::Standby(standby) if standby.me() == me => standby.lost(now),
            _ => {}
        });
    }

    /// An epoch of this host's machine is complete.
    pub fn completed(&self, key: EpochKey) {
        self.step(|inner, now| {
            if let Machine::Primary(primary) = &mut inner.machine {
                primary.completed(key, now);
                inner.follow.completed(key.epoch, now);
                inner.tell_parked(now);
            }
        });
    }

    /// The standby `me` holds an epoch whole. Returns false where it does not follow.
    pub fn holds(&self, me: Incarnation, key: EpochKey, parent: Option<EpochKey>) -> bool {
        self.step(|inner, now| match &mut inner.machine {
            Machine::Standby(standby) if standby.me() == me => standby.holds(key, parent, now),
            _ => false,
        })
    }

    /// A message came from the other host.
    pub fn heard(&self, message: &Message) {
        self.step(|inner, now| {
            inner.heard_at = Instant::now();
            inner.asked_at = None;
            match &mut inner.machine {
                Machine::Nobody => {}
                Machine::Primary(primary) => primary.heard(message, now),
                Machine::Standby(standby) => standby.heard(message, now),
            }
        });
    }

    /// The engine's sink has no connection any more. It would notice with its next epoch; nobody
    /// says when there is one.
    pub(super) fn sink_is_gone(&self) {
        let marks = self.lock().marks.clone();
        if let Some(marks) = marks {
            marks.failed(SinkError::Latched(io::Error::from(io::ErrorKind::NotConnected).into()));
        }
    }

    /// Where the engine is told that something was released.
    pub fn set_marks(&self, marks: Marks) {
        self.lock().marks = Some(marks);
    }

    fn answered(&self, answer: Answer, took: Duration) -> bool {
        self.step(|inner, now| {
            if !matches!(answer, Answer::Refused | Answer::Unknown) {
                inner.witness_took = Some(took);
            }
            match &mut inner.machine {
                Machine::Nobody => {}
                Machine::Primary(primary) => primary.answered(answer, now),
                Machine::Standby(standby) => standby.answered(answer, now),
            }
        });
        true
    }

    fn recorded(&self, record: Record) -> bool {
        self.step(|inner, now| match &mut inner.machine {
            Machine::Nobody => {}
            Machine::Primary(primary) => primary.recorded(record, now),
            Machine::Standby(standby) => standby.recorded(record, now),
        });
        true
    }

    /// Returns until when nothing is due; none when it is over.
    fn tick(&self) -> Option<Duration> {
        if self.is_over() {
            return None;
        }
        self.step(|inner, now| {
            let due = match &mut inner.machine {
                Machine::Nobody => now + IDLE,
                Machine::Primary(primary) => {
                    primary.tick(now);
                    primary.due(now)
                }
                Machine::Standby(standby) => {
                    standby.tick(now);
                    standby.due(now)
                }
            };
            Some(due.saturating_sub(now).clamp(TICK_LEAST, IDLE))
        })
    }

    /// What the node wants next; none within `limit`.
    pub fn wait(&self, limit: Duration) -> Option<Wish> {
        self.wishes.wait(limit)
    }

    /// Ends what waits, and the threads.
    pub fn end(&self) {
        self.wishes.end();
    }

    /// Whether it was ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.wishes.is_over()
    }

    /// What the host is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.lock().machine.role()
    }

    /// This incarnation, where it is anybody.
    #[must_use]
    pub fn me(&self) -> Option<Incarnation> {
        self.lock().machine.me()
    }

    /// The newest register that is known.
    #[must_use]
    pub fn register(&self) -> Option<Register> {
        self.lock().machine.register()
    }

    /// When the witness was asked for a swap first, since the other host was heard.
    #[must_use]
    pub fn asked_at(&self) -> Instant {
        self.lock().asked_at.unwrap_or_else(Instant::now)
    }

    /// When the last message came from the other host.
    #[must_use]
    pub fn heard_at(&self) -> Instant {
        self.lock().heard_at
    }
}

impl Inner {
    /// Tells the primary of its last epoch once that is complete.
    fn tell_parked(&mut self, now: Duration) {
        let Machine::Primary(primary) = &mut self.machine else { return };
        if let Some(last) = primary.newest().filter(|newest| Some(newest.epoch) == self.parked_behind) {
            self.parked_behind = None;
            primary.parked(last, now);
        }
    }
}

/// Nothing is looked at more often.
const TICK_LEAST: Duration = Duration::from_micros(200);
/// A node that is nobody looks so often.
const IDLE: Duration = Duration::from_millis(20);

impl ReleaseRule for Node {
    fn newest(&self, reached: &[Reached]) -> EpochId {
        let durable = reached.first().map_or(EpochId::NONE, |reached| reached.durable);
        let tell = |inner: &mut Inner, now| {
            if let Machine::Primary(primary) = &mut inner.machine {
                primary.durable(durable, now);
            }
        };
        self.step_and(false, tell).1
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("machine", &self.lock().machine).finish_non_exhaustive()
    }
}

/// Asks the witness, one call after the other, until nobody asks any more.
fn ask(mut witness: Box<dyn Witness>, calls: &Receiver<Call>, answered: &dyn Fn(Answer, Duration) -> bool) {
    prefer_this_thread();
    let mut said = None;
    while let Ok(call) = calls.recv() {
        let begun = Instant::now();
        let answer = match call {
            Call::Read => witness.read().map(Answer::Register),
            Call::Swap(expected, new) => witness.swap(expected.as_ref(), &new).map(|swapped| match swapped {
                Swapped::Won => Answer::Won,
                Swapped::Other(register) => Answer::Register(register),
            }),
        };
        let answer = answer.unwrap_or_else(|error| {
            // It is asked again and again.
            let text = causes(&error);
            if said.as_ref() != Some(&text) {
                tracing::warn!(error = &error as &dyn std::error::Error, "asking the witness");
                said = Some(text);
            }
            match error {
                WitnessError::Refused(_) => Answer::Refused,
                WitnessError::Unknown(_) => Answer::Unknown,
            }
        });
        if !answered(answer, begun.elapsed()) {
            break;
        }
    }
}

/// Writes records in their order. One that can't be written is tried again: nothing is released
/// before.
fn write_records(records: &Receiver<(PathBuf, Record)>, recorded: &dyn Fn(Record) -> bool) {
    while let Ok((store, record)) = records.recv() {
        while let Err(error) = write_record(&store, &record) {
            tracing::warn!(error = &error as &dyn std::error::Error, "recording who goes on: outputs wait");
            std::thread::sleep(RETRY);
        }
        if !recorded(record) {
            break;
        }
    }
}

const RETRY: Duration = Duration::from_millis(200);
