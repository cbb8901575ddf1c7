//! From how much on a store does something in another way. Tests make these numbers small, so that
//! small stores show it.

/// The numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Fewer blocks are read before threads are started that read ahead.
    pub(crate) read_ahead_blocks: usize,
    /// Indexes that one chain has mapped at a time. A process may have 65,530 mappings where nobody
    /// says otherwise, and needs some for other things.
    pub(crate) maps: usize,
    /// Pages whose newest version is a change, and which a compaction or a restore puts together at
    /// once: 64 MiB.
    pub(crate) changed_pages: usize,
    /// What a compaction beside a writer leaves free. The writer looks at the room each time it has
    /// appended half of that.
    pub(crate) spare_bytes: u64,
    /// A step of a compaction that frees less is not worth it.
    pub(crate) freed_bytes_least: u64,
    /// For what a compacted segment and its index have besides pages.
    pub(crate) slack_bytes: u64,
    /// A segment for whose successor there was no descriptor grows by so much before another is
    /// tried.
    pub(crate) rotate_again_bytes: u64,
}

impl Bounds {
    /// As they are for users.
    pub(crate) const USUAL: Self = Self {
        read_ahead_blocks: 64,
        maps: 8192,
        changed_pages: 16_384,
        spare_bytes: 2 << 20,
        freed_bytes_least: 64 << 10,
        slack_bytes: 32 << 10,
        rotate_again_bytes: 1 << 20,
    };

    /// For small stores.
    #[cfg(test)]
    pub(crate) const SMALL: Self = Self {
        read_ahead_blocks: 3,
        maps: 8,
        changed_pages: 5,
        spare_bytes: 16 << 10,
        freed_bytes_least: 1,
        slack_bytes: 4096,
        rotate_again_bytes: 4096,
    };
}
