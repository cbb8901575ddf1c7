//! The end that runs the guest.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::action::{Action, Answer, Halted};
use super::broken::{Rule, is_broken};
use super::epoch_key::EpochKey;
use super::line::{Line, Place};
use super::message::{Body, Message};
use super::options::{PrimaryOptions, Timing, WhenLost};
use super::record::Record;
use super::silence::Silence;
use super::standby::Promotion;
use super::swaps::{Learnt, Swaps};
use crate::page::EpochId;
use crate::replica::register::{Holder, Incarnation, Register};

/// Where a primary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest does not run: the witness is asked first.
    Opening,
    /// Alone. What is durable is released.
    Solo,
    /// Outputs wait until the standby holds all that was released.
    Covering,
    /// The witness is asked to make the pair. Outputs wait.
    Pairing,
    /// What the standby holds is released.
    Paired,
    /// The standby is lost: the witness is asked to leave this one alone. As long as the register
    /// has the pair, what the standby holds is released.
    Suspect,
    /// Alone again. Outputs wait until the chain has all that was released.
    Settling,
    /// The guest is parked, and the standby is to have the machine.
    Handing(Handing),
    /// Halted.
    Over,
}

/// How far a machine is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handing {
    /// The last epoch is not complete.
    Parking,
    /// The standby does not hold it.
    Sending(Place),
    /// The witness is asked.
    Asking,
}

/// What an operator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrimaryRole {
    /// It waits for the witness, and its guest does not run.
    Opening,
    /// It runs alone.
    Solo,
    /// It runs alone, and a standby is being made.
    Seeding,
    /// A standby may take its place.
    Paired,
    /// It has lost its standby, and the witness has not yet left it alone.
    Suspect,
    /// It gives its machine to the standby.
    Handing,
    /// It is halted.
    Fenced,
}

/// The standby, as the primary sees it.
#[derive(Clone, Copy, Debug)]
struct Peer {
    who: Incarnation,
    silence: Silence,
    /// The newest epoch that it holds, as it has said in the generation of now.
    holds: Option<Place>,
    /// The newest that it has ever said.
    newest: Option<EpochKey>,
    /// How long it has not come further although there is more.
    behind: Silence,
    /// It gets no more epochs.
    is_cut_off: bool,
}

/// The primary's state machine.
///
/// Outputs of an epoch may leave when [`released`](Self::released) is that epoch or a later one of
/// its line. It is asked after each call.
pub struct Primary {
    me: Incarnation,
    options: PrimaryOptions,
    swaps: Swaps,
    phase: Phase,
    line: Line,
    peer: Option<Peer>,
    /// What the store has on disk, and what was asked to be recorded last.
    recorded: Option<Record>,
    recording: Option<Record>,
    runs: bool,
    beat_at: Duration,
    poll_at: Duration,
    actions: VecDeque<Action>,
}

impl Primary {
    /// One that wants to run the machine, by a swap from `expected`: what
    /// [`may_open`](super::may_open) allows. `head` is the newest epoch of its chain. `record` is
    /// what the store has on disk, with this incarnation in it already; a machine without a chain
    /// has none. `draw` draws numbers that nobody else draws.
    #[must_use]
    pub fn open(
        me: Incarnation,
        options: PrimaryOptions,
        (expected, record): (Option<Register>, Option<Record>),
        head: Option<EpochKey>,
        draw: Box<dyn FnMut() -> u128 + Send>,
        now: Duration,
    ) -> Self {
        let mut primary = Self::new(me, options, Swaps::new(expected, options.timing.retry, draw), Phase::Opening, head);
        primary.recorded = record;
        primary.poll_at = now.saturating_add(options.timing.poll);
        primary.drive(now);
        primary
    }

    /// The standby that was promoted. Its guest runs from `head`: the newest epoch that it has
    /// whole, at or behind the one of the promotion.
    #[must_use]
    pub fn promoted(promotion: Promotion, options: PrimaryOptions, head: EpochKey, now: Duration) -> Self {
        let Promotion { me, swaps, head: _, recorded } = promotion;
        let mut primary = Self::new(me, options, swaps, Phase::Settling, Some(head));
        primary.recorded = recorded;
        primary.runs = true;
        primary.poll_at = now.saturating_add(options.timing.poll);
        primary.drive(now);
        primary
    }

    fn new(me: Incarnation, options: PrimaryOptions, swaps: Swaps, phase: Phase, head: Option<EpochKey>) -> Self {
        Self {
            me,
            options,
            swaps,
            phase,
            line: Line::behind(head),
            peer: None,
            recorded: None,
            recording: None,
            runs: false,
            beat_at: Duration::ZERO,
            poll_at: Duration::ZERO,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The newest epoch whose outputs may leave; none before any may.
    #[must_use]
    pub const fn released(&self) -> Option<EpochKey> {
        self.line.released_key()
    }

    /// This incarnation.
    #[must_use]
    pub const fn me(&self) -> Incarnation {
        self.me
    }

    /// The newest register that is known.
    #[must_use]
    pub const fn register(&self) -> Option<Register> {
        self.swaps.known()
    }

    /// The standby that there is, or that is being made.
    #[must_use]
    pub fn standby(&self) -> Option<Incarnation> {
        self.peer.map(|peer| peer.who)
    }

    /// The newest epoch that the standby has said to hold.
    #[must_use]
    pub fn held(&self) -> Option<EpochKey> {
        self.peer.and_then(|peer| peer.newest)
    }

    /// The newest epoch that is complete.
    #[must_use]
    pub fn newest(&self) -> Option<EpochKey> {
        self.line.newest_key()
    }

    /// How many epochs the standby of the pair does not hold yet; none where there is none.
    #[must_use]
    pub fn lag_epochs(&self) -> Option<u64> {
        let peer = self.peer.filter(|_| self.is_paired())?;
        Some(self.line.behind_of(peer.holds))
    }

    /// What an operator sees.
    #[must_use]
    pub const fn role(&self) -> PrimaryRole {
        match self.phase {
            Phase::Opening => PrimaryRole::Opening,
            Phase::Solo | Phase::Settling if self.peer.is_none() => PrimaryRole::Solo,
            Phase::Solo | Phase::Settling | Phase::Covering | Phase::Pairing => PrimaryRole::Seeding,
            Phase::Paired => PrimaryRole::Paired,
            Phase::Suspect => PrimaryRole::Suspect,
            Phase::Handing(_) => PrimaryRole::Handing,
            Phase::Over => PrimaryRole::Fenced,
        }
    }

    /// Whether a standby can be attached now: alone, with none.
    #[must_use]
    pub const fn can_attach(&self) -> bool {
        matches!(self.phase, Phase::Solo) && self.peer.is_none()
    }

    /// Epochs go to this one from now on, a base first. Returns false where none can be attached.
    pub fn attach(&mut self, who: Incarnation, now: Duration) -> bool {
        let can = self.can_attach() && who != self.me;
        if can {
            self.peer = Some(Peer {
                who,
                silence: Silence::begin(now),
                holds: None,
                newest: None,
                behind: Silence::begin(now),
                is_cut_off: false,
            });
            self.beat_at = now;
            self.drive(now);
        }
        can
    }

    /// The standby gets no more epochs: its connection ended, it was too slow, or its sink left.
    pub fn lost(&mut self, who: Incarnation, now: Duration) {
        if let Some(peer) = self.peer.as_mut().filter(|peer| peer.who == who) {
            peer.is_cut_off = true;
            self.suspect();
            self.drive(now);
        }
    }

    /// Gives the machine to the standby. Returns false where there is none that could have it.
    pub fn hand_over(&mut self, now: Duration) -> bool {
        let can = self.phase == Phase::Paired && self.peer.is_some_and(|peer| !peer.is_cut_off);
        if can {
            self.phase = Phase::Handing(Handing::Parking);
            self.actions.push_back(Action::Park);
            self.drive(now);
        }
        can
    }

    /// The guest is parked, and `last` is the last epoch.
    pub fn parked(&mut self, last: EpochKey, now: Duration) {
        if self.phase == Phase::Handing(Handing::Parking)
            && let Some(place) = self.line.find(last)
        {
            self.phase = Phase::Handing(Handing::Sending(place));
            self.drive(now);
        }
    }

    /// An epoch is complete, the next one of this machine. It may be told again. Where storage
    /// failed, its number may be one that was there before: those epochs do not exist any more.
    pub fn completed(&mut self, key: EpochKey, now: Duration) {
        if let Some(peer) = self.peer.as_mut().filter(|peer| peer.holds >= Some(self.line.newest())) {
            peer.behind = Silence::begin(now);
        }
        self.line.completed(key);
        self.drive(now);
    }

    /// The chain has this epoch durable, and all before it.
    pub fn durable(&mut self, epoch: EpochId, now: Duration) {
        self.line.made_durable(epoch);
        self.drive(now);
    }

    /// This record is durable.
    pub fn recorded(&mut self, record: Record, now: Duration) {
        self.recording = self.recording.take().filter(|recording| *recording != record);
        self.recorded = Some(record);
        self.drive(now);
    }

    /// The witness answered.
    pub fn answered(&mut self, answer: Answer, now: Duration) {
        let learnt = self.swaps.answered(answer, now);
        self.learnt(learnt, now);
        self.drive(now);
    }

    /// A message came.
    pub fn heard(&mut self, message: &Message, now: Duration) {
        if message.to != self.me || self.phase == Phase::Over {
            return;
        }
        let learnt = self.swaps.told(message.register);
        self.learnt(learnt, now);
        let is_old = message.register.generation < self.swaps.generation() && !is_broken(Rule::NoOldGeneration);
        let (line, is_paired) = (&self.line, self.is_paired());
        if let Some(peer) = self.peer.as_mut().filter(|peer| peer.who == message.from && !is_old) {
            peer.silence = Silence::begin(now);
            if let Body::Holds(key) = message.body {
                let place = if is_broken(Rule::HoldsByIdentity) { line.find_number(key) } else { line.find(key) };
                if place > peer.holds {
                    (peer.holds, peer.newest, peer.behind) = (place, Some(key), Silence::begin(now));
                }
            }
            // It lives, and the witness was surely not asked for anything.
            if self.phase == Phase::Suspect && is_paired && !peer.is_cut_off && !self.swaps.is_open() {
                self.phase = Phase::Paired;
            }
        }
        self.drive(now);
    }

    /// Time has passed. Call it often enough: at [`due`](Self::due).
    pub fn tick(&mut self, now: Duration) {
        let Timing { heartbeat, timeout, behind, .. } = self.options.timing;
        let newest = self.line.newest();
        // What is being seeded holds nothing yet.
        let is_expected = !matches!(self.phase, Phase::Solo | Phase::Settling);
        if let Some(peer) = &mut self.peer {
            peer.silence.look(now, heartbeat);
            peer.behind.look(now, heartbeat);
            let is_behind = is_expected && peer.holds < Some(newest) && now > peer.behind.end(behind);
            peer.is_cut_off |= is_behind;
            let patience = if is_expected { timeout } else { behind.max(timeout) };
            if is_behind || now > peer.silence.end(patience) {
                self.suspect();
            }
        }
        self.drive(now);
    }

    /// When to call [`tick`](Self::tick) at the latest.
    #[must_use]
    pub fn due(&self, now: Duration) -> Duration {
        let beat = if self.peer.is_some() { self.beat_at } else { self.poll_at };
        beat.min(self.poll_at).min(now.saturating_add(self.options.timing.retry))
    }

    /// Whether the register has the pair of this one and its peer.
    fn is_paired(&self) -> bool {
        let holder = self.swaps.known().map(|register| register.holder);
        self.peer.is_some_and(|peer| holder == Some(Holder::Paired(self.me, peer.who)))
    }

    /// The standby does not answer, or can't follow.
    fn suspect(&mut self) {
        match self.phase {
            // It was never named to the witness.
            Phase::Solo | Phase::Settling | Phase::Covering => self.drop_peer(),
            Phase::Pairing if !self.swaps.is_open() || is_broken(Rule::GivenUpBySwap) => self.drop_peer(),
            Phase::Paired if self.options.when_lost == WhenLost::Stop => {
                self.drop_peer();
                self.halt(Halted::StandbyLost);
            }
            Phase::Pairing | Phase::Paired | Phase::Handing(_) => self.phase = Phase::Suspect,
            Phase::Opening | Phase::Suspect | Phase::Over => {}
        }
    }

    fn drop_peer(&mut self) {
        if let Some(peer) = self.peer.take() {
            self.actions.push_back(Action::Drop(peer.who));
        }
        if matches!(self.phase, Phase::Covering | Phase::Pairing) {
            self.phase = Phase::Solo;
        }
    }

    fn halt(&mut self, why: Halted) {
        self.phase = Phase::Over;
        self.runs = false;
        self.actions.push_back(Action::Halt(why));
    }

    /// What the register says decides.
    fn learnt(&mut self, learnt: Learnt, now: Duration) {
        let register = match learnt {
            Learnt::Nothing => return,
            _ if self.phase == Phase::Over => return,
            Learnt::Forgot { seen, found } => return self.halt(Halted::WitnessForgot { seen, found }),
            Learnt::Newer(register) => register,
        };
        if let Some(peer) = &mut self.peer {
            // In the new generation it has said nothing yet.
            (peer.holds, peer.behind) = (None, Silence::begin(now));
        }
        self.beat_at = Duration::ZERO;
        match register.holder {
            Holder::Solo(who) if who == self.me => match self.phase {
                Phase::Opening => self.phase = Phase::Solo,
                Phase::Suspect => {
                    self.drop_peer();
                    self.phase = Phase::Settling;
                }
                Phase::Solo | Phase::Covering | Phase::Pairing | Phase::Paired | Phase::Settling | Phase::Handing(_) => {}
                Phase::Over => {}
            },
            Holder::Paired(who, standby) if who == self.me => {
                let is_peer = self.peer.is_some_and(|peer| peer.who == standby);
                self.phase = if is_peer && self.phase == Phase::Pairing { Phase::Paired } else { Phase::Suspect };
            }
            Holder::Solo(who) if matches!(self.phase, Phase::Handing(_)) && self.standby() == Some(who) => {
                // It goes on at once where it hears so, and when it asks the witness otherwise.
                self.say(Body::Beat);
                self.halt(Halted::HandedOver(register));
            }
            Holder::Solo(_) | Holder::Paired(..) if is_broken(Rule::LoserHalts) => {}
            Holder::Solo(_) | Holder::Paired(..) => self.halt(Halted::Fenced(register)),
        }
    }

    /// Does what is due.
    fn drive(&mut self, now: Duration) {
        if self.phase == Phase::Over {
            return;
        }
        let peer = self.peer.map(|peer| peer.who);
        match (self.phase, peer) {
            (Phase::Covering, _) if self.covers() => self.phase = Phase::Pairing,
            (Phase::Solo, Some(_)) if self.peer.is_some_and(|peer| peer.holds.is_some()) => {
                self.phase = Phase::Covering;
                return self.drive(now);
            }
            (Phase::Handing(Handing::Sending(last)), _) if self.peer.and_then(|peer| peer.holds) >= Some(last) => {
                self.phase = Phase::Handing(Handing::Asking);
            }
            (Phase::Settling, _) if self.has_settled() => self.phase = Phase::Solo,
            _ => {}
        }
        let wanted = match (self.phase, peer) {
            (Phase::Opening | Phase::Suspect, _) => Some(Holder::Solo(self.me)),
            (Phase::Pairing, Some(peer)) => Some(Holder::Paired(self.me, peer)),
            (Phase::Handing(Handing::Asking), Some(peer)) => Some(Holder::Solo(peer)),
            _ => None,
        };
        if let Some(holder) = wanted {
            let asks = self.swaps.want(holder, now);
            self.actions.extend(asks);
        } else if now >= self.poll_at {
            let reads = self.swaps.read(now);
            self.actions.extend(reads);
            self.poll_at = now.saturating_add(self.options.timing.poll);
        }
        self.record();
        self.run();
        self.release();
        if peer.is_some() && now >= self.beat_at {
            self.say(Body::Beat);
            self.beat_at = now.saturating_add(self.options.timing.heartbeat);
        }
    }

    /// Whether the standby holds all that was ever released.
    fn covers(&self) -> bool {
        let holds = self.peer.and_then(|peer| peer.holds);
        holds.is_some_and(|holds| holds >= self.line.released() || is_broken(Rule::CoveredBeforePairing))
    }

    /// Whether the chain has all that was ever released, durable.
    fn has_settled(&self) -> bool {
        !self.options.has_chain || self.line.durable() >= self.line.released() || is_broken(Rule::SettledBeforeSolo)
    }

    /// What the store has to say before something is released now; none where it has to say
    /// nothing.
    fn rule_of_release(&self) -> Option<Record> {
        let covers = match self.phase {
            Phase::Solo => true,
            Phase::Covering | Phase::Pairing if is_broken(Rule::HeldWhilePairing) => true,
            Phase::Paired | Phase::Handing(_) => self.options.waits_for_chain,
            Phase::Suspect if self.is_paired() => self.options.waits_for_chain,
            _ => return None,
        };
        self.options.has_chain.then_some(Record { names: vec![self.me], generation: self.swaps.generation(), covers })
    }

    fn record(&mut self) {
        let wanted = self.rule_of_release().filter(|wanted| self.recorded.as_ref() != Some(wanted));
        if let Some(record) = wanted.filter(|wanted| self.recording.as_ref() != Some(wanted)) {
            self.recording = Some(record.clone());
            self.actions.push_back(Action::Record(record));
        }
    }

    /// The guest may run where nobody else may.
    fn run(&mut self) {
        let may = match self.phase {
            Phase::Opening | Phase::Over | Phase::Handing(_) => false,
            Phase::Solo | Phase::Covering | Phase::Pairing | Phase::Paired | Phase::Settling => true,
            // It was to be handed over, and may be given away yet.
            Phase::Suspect => self.runs || is_broken(Rule::ParkedUntilKnown),
        };
        if may && !self.runs {
            self.actions.push_back(Action::Run);
        }
        // A guest that is parked to be handed over runs again only when that was given up.
        self.runs = may;
    }

    /// Releases what may be.
    fn release(&mut self) {
        if self.recorded != self.rule_of_release() && self.options.has_chain && !is_broken(Rule::RecordedBeforeRelease) {
            return;
        }
        let durable = || if is_broken(Rule::SoloIsDurable) { self.line.newest() } else { self.line.durable() };
        let alone = self.options.has_chain.then(durable);
        let place = match self.phase {
            Phase::Solo => alone,
            Phase::Covering | Phase::Pairing if is_broken(Rule::HeldWhilePairing) => alone,
            Phase::Paired | Phase::Suspect | Phase::Handing(_) if self.is_paired() => {
                let held = self.peer.and_then(|peer| peer.holds);
                let held = if is_broken(Rule::ReleaseWhenHeld) { Some(self.line.newest()) } else { held };
                held.map(|held| if self.options.waits_for_chain { held.min(self.line.durable()) } else { held })
            }
            _ => None,
        };
        if let Some(place) = place {
            self.line.release(place);
        }
    }

    fn say(&mut self, body: Body) {
        if let (Some(peer), Some(register)) = (self.peer, self.swaps.known()) {
            self.actions.push_back(Action::Send(Message { from: self.me, to: peer.who, register, body }));
        }
    }
}

impl fmt::Debug for Primary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, swaps, phase, peer, line, recorded, .. } = self;
        f.debug_struct("Primary")
            .field("me", me)
            .field("phase", phase)
            .field("swaps", swaps)
            .field("peer", peer)
            .field("released", &line.released_key())
            .field("recorded", recorded)
            .finish_non_exhaustive()
    }
}
