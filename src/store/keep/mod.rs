//! What keeps a chain small and quick to open: indexes, compaction, rules of what is kept,
//! branches.

pub(in crate::store) mod beside;
pub(in crate::store) mod branches;
pub(in crate::store) mod compaction;
mod expected;
pub(in crate::store) mod place_to_write;
pub(in crate::store) mod prune;
pub(in crate::store) mod retention;
mod rewrite;
pub(in crate::store) mod seal;
mod sizes;
mod steps;
pub(in crate::store) mod upkeep;
