//! Reading a chain. Needs of a medium only that it gives what was written.

pub(crate) mod assembly;
pub(crate) mod blocks;
pub(in crate::store) mod chain;
pub(in crate::store) mod covered_pages;
pub(in crate::store) mod description;
pub(in crate::store) mod frames;
pub(in crate::store) mod mark;
pub(crate) mod newest;
pub(in crate::store) mod pooled_files;
pub(in crate::store) mod scan;
pub(in crate::store) mod segment;
pub(in crate::store) mod single_pages;
pub(crate) mod view;
pub(in crate::store) mod walk;

pub use chain::{Chain, ReadOptions};
pub(in crate::store) use description::{place_of, read_description};
pub(crate) use segment::Segment;
