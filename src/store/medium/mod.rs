//! What a store is kept in: files in directories, for those who read and for the one who writes.

mod chain_at;
mod directory;
mod lock_holder;
mod mapped_file;
mod mounts;
mod place;
mod traits;
mod writeback;

pub(in crate::store) use chain_at::ChainAt;
pub(in crate::store) use directory::Directory;
pub(in crate::store) use lock_holder::take_lock;
pub(in crate::store) use mounts::warn;
pub(in crate::store) use place::Place;
#[cfg(test)]
pub(in crate::store) use traits::{Displaced, HeldLock, Lock};
pub(in crate::store) use traits::{FileId, Medium, MediumFile, Named, WritableFile, WritableMedium};
