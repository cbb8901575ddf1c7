//! What is true of the whole, and the rules that it is checked by.

use std::collections::HashMap;

use crate::page::EpochId;
use crate::replica::proto::EpochKey;
use crate::replica::register::{Generation, Holder, Incarnation, Register};
use crate::store::testing::Random;

/// What went wrong, in words.
pub(super) type Broken = String;

/// What nobody inside knows.
#[derive(Debug, Default)]
pub(super) struct World {
    /// The instant of the guest that each epoch follows, and how many there were before.
    parents: HashMap<u128, (Option<EpochKey>, u64)>,
    /// The newest epoch of which an output has left.
    released: Option<EpochKey>,
    pub(super) releases: u64,
    /// Who released something in each generation.
    released_by: HashMap<Generation, Incarnation>,
    /// What each said that it holds, newest, in each generation.
    said: HashMap<(Incarnation, Generation), EpochKey>,
    /// What each has released, newest.
    left: HashMap<Incarnation, EpochKey>,
    /// Where the newest run began, and in which generation.
    began: Option<(Generation, EpochKey)>,
    pub(super) broken: Option<Broken>,
}

impl World {
    pub(super) fn break_off(&mut self, what: impl FnOnce() -> Broken) {
        self.broken.get_or_insert_with(what);
    }

    /// A new instant of a guest behind `parent`, as an epoch whose chain has `number` next.
    pub(super) fn cut(&mut self, random: &mut Random, parent: Option<EpochKey>, number: u64) -> EpochKey {
        let key = EpochKey { epoch: EpochId(number), identity: u128::from(random.next()) };
        let depth = parent.map_or(0, |parent| self.depth(parent) + 1);
        self.parents.insert(key.identity, (parent, depth));
        key
    }

    fn depth(&self, key: EpochKey) -> u64 {
        self.parents.get(&key.identity).map_or(0, |(_, depth)| *depth)
    }

    /// Whether a guest that was at `older` came to `newer`.
    fn led_to(&self, older: EpochKey, newer: EpochKey) -> bool {
        let (least, mut at) = (self.depth(older), newer);
        while self.depth(at) > least {
            let Some((Some(parent), _)) = self.parents.get(&at.identity) else { return false };
            at = *parent;
        }
        at == older
    }

    /// A guest begins to run from `head`: nothing that has left is behind it.
    pub(super) fn begins(&mut self, who: Incarnation, generation: Generation, head: Option<EpochKey>) {
        let Some(released) = self.released else { return };
        if head.is_none_or(|head| !self.led_to(released, head)) {
            self.break_off(|| format!("{who} runs from {head:?} in generation {generation}, but {released} has left"));
        }
        if let Some(head) = head {
            self.began = Some((generation, head));
        }
    }

    /// Outputs of `key` leave. `durable` says whether the machine's own chain has it.
    pub(super) fn releases(&mut self, who: Incarnation, register: Register, key: EpochKey, is_durable: bool) {
        self.releases += 1;
        let generation = register.generation;
        let by = *self.released_by.entry(generation).or_insert(who);
        if by != who {
            self.break_off(|| format!("{who} and {by} both emit in generation {generation}"));
        }
        match register.holder {
            Holder::Paired(primary, standby) if primary == who => {
                let said = self.said.get(&(standby, generation)).copied();
                if said.is_none_or(|said| !self.led_to(key, said)) {
                    self.break_off(|| format!("{key} left in generation {generation}, in which the standby said {said:?}"));
                }
            }
            Holder::Solo(solo) if solo == who => {
                if !is_durable {
                    self.break_off(|| format!("{key} left, and is not durable at {who}, which is alone"));
                }
            }
            _ => self.break_off(|| format!("{who} emits under {register:?}")),
        }
        // A machine that does not know yet that it was superseded says what its successor has, too.
        if let Some((newest, head)) = self.began.filter(|(newest, _)| *newest > generation)
            && !self.led_to(key, head)
        {
            self.break_off(|| format!("{key} left in generation {generation}; generation {newest} began at {head}"));
        }
        match self.released {
            Some(released) if self.led_to(key, released) => {}
            Some(released) if !self.led_to(released, key) => {
                self.break_off(|| format!("{key} left after {released}, which did not lead to it"));
            }
            _ => self.released = Some(key),
        }
    }

    /// Whether `who` had not released this before.
    pub(super) fn is_new(&mut self, who: Incarnation, key: EpochKey) -> bool {
        self.left.insert(who, key) != Some(key)
    }

    /// What `who` begins with has left before.
    pub(super) fn knows(&mut self, who: Incarnation, key: EpochKey) {
        self.left.insert(who, key);
    }

    pub(super) fn says(&mut self, who: Incarnation, generation: Generation, holds: EpochKey) {
        self.said.insert((who, generation), holds);
    }

    /// Somebody accepts that outputs are forgotten.
    pub(super) fn accept_loss(&mut self) {
        self.released = None;
        self.began = None;
    }
}
