//! The swaps of one end: what it knows of the register, and what it asks for until that is decided.

use std::fmt;
use std::time::Duration;

use super::action::{Action, Answer};
use super::broken::{Rule, is_broken};
use crate::replica::register::{Generation, Holder, Nonce, Register};

/// Draws a number that nobody else draws.
pub(super) type Draw = Box<dyn FnMut() -> u128 + Send>;

/// A swap that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    expected: Option<Register>,
    new: Register,
    /// A call is out.
    is_out: bool,
    /// An earlier call, of this swap or of one from the same value, may be carried out later.
    is_uncertain: bool,
    again_at: Duration,
}

/// What a register that somebody told of says to one that knows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learnt {
    /// Nothing.
    Nothing,
    /// It is a newer one.
    Newer(Register),
    /// The witness has forgotten something.
    Forgot {
        /// What was seen.
        seen: Register,
        /// What it says.
        found: Option<Register>,
    },
}

/// See the module.
pub(super) struct Swaps {
    known: Option<Register>,
    asked: Option<Asked>,
    /// The register is being read. What was known when that was asked.
    reading: Option<Option<Register>>,
    read_at: Duration,
    retry: Duration,
    draw: Draw,
}

impl Swaps {
    pub(super) const fn new(known: Option<Register>, retry: Duration, draw: Draw) -> Self {
        Self { known, asked: None, reading: None, read_at: Duration::ZERO, retry, draw }
    }

    /// The newest register that is known to have been in the witness.
    pub(super) const fn known(&self) -> Option<Register> {
        self.known
    }

    pub(super) fn generation(&self) -> Generation {
        self.known.map_or(Generation::NONE, |register| register.generation)
    }

    /// Whether a swap from what is known may have been carried out, or may be later.
    pub(super) fn is_open(&self) -> bool {
        self.asked.is_some_and(|asked| asked.expected == self.known && (asked.is_out || asked.is_uncertain))
    }

    /// The register is to have this holder. Returns what to ask now; nothing while a call is out or
    /// it is too early to ask again.
    pub(super) fn want(&mut self, holder: Holder, now: Duration) -> Option<Action> {
        if self.reading.is_some() {
            return None;
        }
        let asked = match self.asked {
            Some(asked) if asked.is_out || (now < asked.again_at && asked.new.holder == holder) => return None,
            // The same swap, with its nonce: it can be carried out once at most.
            Some(asked) if asked.expected == self.known && asked.new.holder == holder => asked,
            other => {
                // Another one from the same value: at most one of the two is carried out.
                let is_uncertain = other.is_some_and(|old| old.is_uncertain && old.expected == self.known);
                let generation = self.generation().next()?;
                let new = Register { generation, holder, nonce: Nonce((self.draw)()) };
                Asked { expected: self.known, new, is_out: false, is_uncertain, again_at: now }
            }
        };
        let Asked { expected, new, .. } = asked;
        self.asked = Some(Asked { is_out: true, ..asked });
        Some(Action::Swap { expected, new })
    }

    /// The register is to be read. Returns what to ask now; nothing while a call is out
    /// or it is too early to ask again.
    pub(super) fn read(&mut self, now: Duration) -> Option<Action> {
        let is_out = self.reading.is_some() || self.asked.is_some_and(|asked| asked.is_out);
        (!is_out && now >= self.read_at).then(|| {
            self.reading = Some(self.known);
            Action::Read
        })
    }

    /// The witness answered the call that is out.
    pub(super) fn answered(&mut self, answer: Answer, now: Duration) -> Learnt {
        if let Some(knowing) = self.reading.take() {
            self.read_at = now.saturating_add(self.retry);
            return match answer {
                Answer::Register(found) => self.learn(found, knowing),
                Answer::Won | Answer::Refused | Answer::Unknown => Learnt::Nothing,
            };
        }
        let Some(asked) = self.asked.as_mut().filter(|asked| asked.is_out) else { return Learnt::Nothing };
        asked.is_out = false;
        asked.again_at = now.saturating_add(self.retry);
        let Asked { expected, new, .. } = *asked;
        match answer {
            Answer::Won => self.learn(Some(new), expected),
            Answer::Register(found) if found != expected => self.learn(found, expected),
            Answer::Refused => Learnt::Nothing,
            // The value that was expected is no answer: the swap may still be carried out.
            Answer::Register(_) | Answer::Unknown => {
                asked.is_uncertain = true;
                if is_broken(Rule::UnknownIsRepeated) {
                    self.asked = None;
                }
                Learnt::Nothing
            }
        }
    }

    /// Somebody says that the register has this, or has had it.
    pub(super) fn told(&mut self, register: Register) -> Learnt {
        self.learn(Some(register), None)
    }

    /// The register has this, or has had it since `knowing` was known.
    fn learn(&mut self, found: Option<Register>, knowing: Option<Register>) -> Learnt {
        let generation = |register: Option<Register>| register.map_or(Generation::NONE, |register| register.generation);
        match self.known {
            Some(known) if generation(found) < generation(knowing) => Learnt::Forgot { seen: known, found },
            Some(known) if generation(found) == known.generation && found != Some(known) => Learnt::Forgot { seen: known, found },
            _ => match found.filter(|_| generation(found) > self.generation()) {
                None => Learnt::Nothing,
                Some(found) => {
                    self.known = Some(found);
                    Learnt::Newer(found)
                }
            },
        }
    }
}

impl fmt::Debug for Swaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swaps").field("known", &self.known).field("asked", &self.asked).finish_non_exhaustive()
    }
}
