//! A slot on its way to the sinks.

use std::sync::Arc;

use super::shared::Shared;
use super::slot::Slot;

/// A slot on its way to the sinks. Free again when the last of them is done with it.
pub(super) struct Encoded<C> {
    /// Taken out when this is dropped, and not before.
    slot: Option<Slot<C>>,
    shared: Arc<Shared<C>>,
}

impl<C> Encoded<C> {
    pub(super) fn new(slot: Slot<C>, shared: Arc<Shared<C>>) -> Arc<Self> {
        Arc::new(Self { slot: Some(slot), shared })
    }

    pub(super) fn slot(&self) -> Option<&Slot<C>> {
        self.slot.as_ref()
    }
}

impl<C> Drop for Encoded<C> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.shared.free(slot);
        }
    }
}
