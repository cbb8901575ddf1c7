//! What an engine is told at start.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use super::release::Release;
use crate::format::Compression;
use crate::page::EpochId;

/// When an epoch is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The guest runs again only after the epoch is durable.
    Epoch,
    /// Epochs are durable at most this long after their cut.
    Group(Duration),
    /// Nothing is synced: what a power cut leaves is up to the system. A killed process loses only
    /// what was not appended.
    None,
}

impl Durability {
    /// What [`Durability::Group`] has unless told otherwise.
    pub const GROUP_DEFAULT: Duration = Duration::from_millis(10);
}

/// What to do when storage is behind: no staging is free, or a sync is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenBehind {
    /// Make the epoch longer, as long as the budget surely holds; then wait.
    #[default]
    Lengthen,
    /// The guest waits.
    Wait,
}

/// What to do when an epoch can't be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnStorageError {
    /// Stop the guest.
    #[default]
    Stop,
    /// Let the guest run on, and try again: the pages of failed epochs are part of the next one.
    Continue {
        /// How long to leave the storage alone after a failure.
        retry_after: Duration,
    },
}

/// Whether pages of an epoch are taken before it ends, beside the running guest
/// ([`Engine::round`](super::Engine::round)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Early {
    /// None: all are copied while the guest stands still.
    #[default]
    Off,
    /// Those of which it is likely that they are not written again in their epoch, so that the
    /// pause gains more than the guest loses. None before
    /// [`Engine::learn_fault_cost`](super::Engine::learn_fault_cost). Takes a byte a page of guest
    /// memory that is taken so.
    Auto,
    /// All that are listed, whenever a round is asked for.
    Always,
}

/// Called with the newest epoch that is released, on whichever thread found that out, one at a time
/// and rising: outputs held for it and for those before may go.
pub type OnRelease = Box<dyn FnMut(EpochId) + Send>;

/// How an engine works. Memory follows from `budget_pages` and `slots`, and is taken at start: two
/// times budget times slots (staging, and frames where pages do not compress; four times the budget
/// with `early`), and what `version_pages` and `rollback` say, besides 16 bytes a page of guest
/// memory for content hashes, 4 for the places of versions and a few bits a page for sets.
pub struct EngineOptions {
    /// The most pages in an epoch, at least 1: see [`RingPlan`](crate::track::RingPlan).
    pub budget_pages: usize,
    /// Pages of the budget that the VMM's own writes may take.
    pub share_pages: u64,
    /// Epochs (or parts of one) in flight between cut and append, at least 2.
    pub slots: usize,
    /// When an epoch is durable.
    pub durability: Durability,
    /// How pages are encoded.
    pub compression: Compression,
    /// The most pages of which the version last stored is kept in memory, so that only what changed
    /// of them is stored; 0 for none. Nothing is kept where the first sink keeps nothing, nor
    /// without compression.
    pub version_pages: usize,
    /// What to do when storage is behind.
    pub when_behind: WhenBehind,
    /// What to do when an epoch can't be stored.
    pub on_storage_error: OnStorageError,
    /// Keep the last cut in memory, so that [`Engine::rollback`](super::Engine::rollback) can go
    /// back to it. That takes a second copy of guest memory: as much as the guest has pages that
    /// are not zero, and at each cut the time to copy its pages once more, mostly while the guest
    /// runs.
    pub rollback: bool,
    /// Whether pages are taken before an epoch ends. Never with `rollback`.
    pub early: Early,
    /// Every so many epochs, a digest of all memory.
    pub audit_every: Option<NonZeroU64>,
    /// When an epoch is released. None: when it is durable in the first sink, or with durability
    /// `none` appended.
    pub release: Option<Release>,
    /// Called when epochs are released.
    pub on_release: Option<OnRelease>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            budget_pages: 4096,
            share_pages: 0,
            slots: 4,
            durability: Durability::Group(Durability::GROUP_DEFAULT),
            compression: Compression::default(),
            version_pages: 4096,
            when_behind: WhenBehind::default(),
            on_storage_error: OnStorageError::default(),
            rollback: false,
            early: Early::Off,
            audit_every: None,
            release: None,
            on_release: None,
        }
    }
}

impl fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineOptions")
            .field("budget_pages", &self.budget_pages)
            .field("share_pages", &self.share_pages)
            .field("slots", &self.slots)
            .field("durability", &self.durability)
            .field("compression", &self.compression)
            .field("version_pages", &self.version_pages)
            .field("when_behind", &self.when_behind)
            .field("on_storage_error", &self.on_storage_error)
            .field("rollback", &self.rollback)
            .field("early", &self.early)
            .field("audit_every", &self.audit_every)
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}
