//! What a ring lists.

/// An entry of a ring: page `offset` of memslot `slot` was written, or is about to be. The kernel's
/// word, unchecked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirtyPage {
    /// Address space (upper half) and number of the memslot.
    pub slot: u32,
    /// The page's index in the slot.
    pub offset: u64,
}
