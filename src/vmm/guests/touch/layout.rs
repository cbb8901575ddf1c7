//! Where things are in the pages that the program and the host share.

use crate::page::PageBytes;

/// Offsets in what a vCPU is told, in bytes. Every field is a `u64`.
pub(super) mod told_at {
    /// The vCPU's number.
    pub(crate) const VCPU: usize = 0x00;
    pub(crate) const VCPUS: usize = 0x08;
    /// Address of the vCPU's part of the first pass's list.
    pub(crate) const LIST: usize = 0x10;
    /// Pages of the vCPU's part.
    pub(crate) const COUNT: usize = 0x18;
    /// Bytes from one pass's list to the next.
    pub(crate) const STRIDE: usize = 0x20;
    /// Lists.
    pub(crate) const LISTS: usize = 0x28;
    /// Words written to a page.
    pub(crate) const WORDS: usize = 0x30;
    /// Passes from one cut to the next, 0 for none.
    pub(crate) const CUT: usize = 0x38;
    /// 1 where a period is to be waited for after each pass.
    pub(crate) const PACED: usize = 0x40;
    /// Address of the control page.
    pub(crate) const CONTROL: usize = 0x48;
    /// Address of the vCPU's number of passes in the control page.
    pub(crate) const PASSES: usize = 0x50;
    /// Bytes of all that.
    pub(crate) const END: usize = 0x58;
}

/// Offsets in the control page, in bytes. Every field is a `u64`.
pub(super) mod control_at {
    /// The newest number that was taken for a page write.
    pub(crate) const COUNTER: usize = 0x00;
    /// vCPUs that have come to the barrier, over all passes.
    pub(crate) const ARRIVED: usize = 0x40;
    /// The newest pass whose barrier is open.
    pub(crate) const OPEN: usize = 0x80;
    /// Passes of each vCPU.
    pub(crate) const PASSES: usize = 0x100;
}

const _: () = assert!(control_at::PASSES + 64 * 8 <= 4096, "the control page is one page");

/// Passes of all vCPUs together, from the control page.
#[must_use]
pub fn passes(control: &PageBytes, vcpus: u32) -> u64 {
    let words = control.as_chunks().0.iter().skip(control_at::PASSES / 8);
    words.take(usize::try_from(vcpus).unwrap_or(usize::MAX)).map(|word| u64::from_le_bytes(*word)).sum()
}
