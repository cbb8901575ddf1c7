//! Why a checkpoint can't be restored.

use std::error::Error;
use std::io;

#[cfg(feature = "kvm")]
use crate::memory::MemoryError;
use crate::page::{EpochId, Gfn};
use crate::store::StoreError;

/// Why a target did not take a page.
pub type TargetError = Box<dyn Error + Send + Sync>;

/// Why a checkpoint could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The chain does not give what is needed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A page that is wanted on demand can't be read.
    #[error("page {gfn} of epoch {epoch} can't be read")]
    Page {
        /// The epoch that is restored.
        epoch: EpochId,
        /// The page.
        gfn: Gfn,
        /// Why.
        source: StoreError,
    },
    /// Pages can't be brought as they are touched.
    #[cfg(feature = "kvm")]
    #[error("memory can't be filled on demand")]
    OnDemand(#[source] MemoryError),
    /// A thread that brings pages could not be started, or ended.
    #[error("{step}")]
    Thread {
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The target did not take a page.
    #[error("page {gfn} of epoch {epoch} could not be put into memory")]
    Target {
        /// The epoch that is restored.
        epoch: EpochId,
        /// The page.
        gfn: Gfn,
        /// The target's reason.
        source: TargetError,
    },
}

impl RestoreError {
    /// What to do about it where the host lacks something, in a sentence without a final stop.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            #[cfg(feature = "kvm")]
            Self::OnDemand(MemoryError::Userfault(error)) => Some(error.hint()),
            _ => None,
        }
    }

    /// The error of a target whose errors are `E`, as such, and not as one of a page.
    pub(crate) fn of_target<E: Error + From<Self> + 'static>(self) -> E {
        match self {
            Self::Target { epoch, gfn, source } => match source.downcast() {
                Ok(error) => *error,
                Err(source) => Self::Target { epoch, gfn, source }.into(),
            },
            error => error.into(),
        }
    }

    /// Whether a compaction took a file away that was being read: with the chain opened again, it
    /// may do.
    #[must_use]
    pub const fn is_replaced(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Page { source: error, .. } if error.is_replaced())
    }

    /// Whether something that should be sound is damaged.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Page { source: error, .. } if error.is_damage())
    }
}
