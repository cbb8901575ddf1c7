//! What a store remembers of the witness, and whether it may be run again.

use std::fmt;

use super::broken::{Rule, is_broken};
use crate::replica::register::{Generation, Incarnation, Register};

/// What a store that is part of a pair has on disk, beside its chain.
///
/// It is written before its incarnation is named to the witness, and again whenever the rule of
/// release changes: in the new generation nothing is released before. So whatever was released, in
/// this generation or in one behind it of which the record says nothing yet, was released by
/// [`covers`](Self::covers).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Who had the store and may be named to the witness, the newest last. A process that died
    /// while its swap was under way may be named long after.
    pub names: Vec<Incarnation>,
    /// The newest generation whose rule is known.
    pub generation: Generation,
    /// Whether everything that was released is in the chain, durable: outputs waited for it.
    pub covers: bool,
}

/// Processes that are remembered which tried to open a store and died before they knew whether they
/// had.
const NAMES_MOST: usize = 64;

impl Record {
    /// Of a machine of which the witness knows nothing.
    #[must_use]
    pub fn new(me: Incarnation) -> Self {
        Self { names: vec![me], generation: Generation::NONE, covers: true }
    }

    /// Of a store whose next process is `me`.
    #[must_use]
    pub fn reopened(&self, me: Incarnation) -> Self {
        let skipped = (self.names.len() + 1).saturating_sub(NAMES_MOST);
        let names = self.names.iter().copied().skip(skipped).chain([me]).collect();
        Self { names, ..*self }
    }

    /// Of a store whose next process is `me`, and that is run although outputs may have left that
    /// it does not know: somebody accepts that, of what `register` says.
    #[must_use]
    pub fn with_loss_accepted(&self, me: Incarnation, register: Register) -> Self {
        Self { generation: register.generation, covers: true, ..self.reopened(me) }
    }

    fn is_named_in(&self, register: Register) -> bool {
        self.names.iter().any(|name| register.holder.names(*name))
    }
}

/// What may be done with a store that is to be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It may go on: by a swap from this value.
    GoOn(Option<Register>),
    /// It may not.
    No(WhyNot),
}

/// Why a store is not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// Another machine goes on.
    Superseded(Register),
    /// It was one of the pair, but outputs did not wait for its chain: some that have left may
    /// belong to epochs that it does not have. Only somebody who accepts that loss may run it, from
    /// this value.
    MayLose(Register),
    /// The witness shows less than this store has seen: it has forgotten something.
    WitnessForgot(Option<Register>),
}

/// Whether a store with this record may go on, where the register says this.
#[must_use]
pub fn may_open(record: Option<&Record>, register: Option<Register>) -> Opening {
    match (record, register) {
        (None, None) => Opening::GoOn(None),
        // A chain that was never part of a pair, and a machine of this name that goes on.
        (None, Some(register)) => Opening::No(WhyNot::Superseded(register)),
        (Some(record), None) if record.generation == Generation::NONE => Opening::GoOn(None),
        (Some(_), None) => Opening::No(WhyNot::WitnessForgot(None)),
        (Some(record), Some(register)) => {
            if register.generation < record.generation {
                Opening::No(WhyNot::WitnessForgot(Some(register)))
            } else if !record.is_named_in(register) {
                if is_broken(Rule::AskBeforeOpening) {
                    Opening::GoOn(Some(register))
                } else {
                    Opening::No(WhyNot::Superseded(register))
                }
            } else if record.covers || is_broken(Rule::OnlyACoveringStore) {
                Opening::GoOn(Some(register))
            } else {
                Opening::No(WhyNot::MayLose(register))
            }
        }
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded(register) => {
                write!(f, "another machine goes on, since generation {}", register.generation)
            }
            Self::MayLose(_) => f.write_str("outputs may have left that belong to epochs which it does not have"),
            Self::WitnessForgot(_) => f.write_str("the witness has forgotten what this store has seen"),
        }
    }
}
