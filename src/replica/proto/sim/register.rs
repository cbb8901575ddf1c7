//! The witness: what it has, and the calls that are on their way to it.

use crate::replica::register::{Incarnation, Register};

/// A call of a host's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Read,
    Swap(Option<Register>, Register),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Witness {
    pub(super) value: Option<Register>,
    pub(super) is_up: bool,
    /// Swaps that may be carried out yet, and who asked for them.
    pub(super) under_way: Vec<(Incarnation, Option<Register>, Register)>,
}

impl Witness {
    /// Carries out a swap. Returns whether its value is there now, and what is there.
    pub(super) fn swap(&mut self, expected: Option<Register>, new: Register) -> bool {
        if self.value == expected {
            self.value = Some(new);
        }
        self.value == Some(new)
    }
}
