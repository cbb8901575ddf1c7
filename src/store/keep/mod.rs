//! What keeps a chain small and quick to open: indexes, compaction, rules of what is kept,
//! branches.

pub(in crate::store) mod branches;
pub(in crate::store) mod compaction;
mod compaction_steps;
pub(in crate::store) mod derived_file;
mod epoch_bytes;
mod expected_bytes;
pub(in crate::store) mod make_index;
pub(in crate::store) mod place_to_write;
pub(in crate::store) mod prune;
pub(in crate::store) mod retention;
mod rewrite;
pub(in crate::store) mod upkeep;
