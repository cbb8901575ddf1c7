//! Where things are in guest memory, and in the pages that the program and the host share.

/// Guest physical address of the ticket counter, a `u64` in a page of its own.
pub const COUNTER_ADDRESS: u64 = 0x6_0000;

/// Guest physical address of the private page of `vcpu`, below [`VCPUS_MAX`](super::VCPUS_MAX).
/// [`PrivatePage::parse`](super::PrivatePage::parse) reads it.
#[must_use]
pub const fn private_page_address(vcpu: u32) -> u64 {
    // Widening; `From` is not const.
    0x7_0000 + 0x1000 * vcpu as u64
}

/// Offsets in a vCPU's private page, in bytes. Every field is a `u64` but `SEEN`, which is 64 of
/// them.
pub(super) mod private_at {
    pub(crate) const VCPU: usize = 0x00;
    pub(crate) const VCPUS: usize = 0x08;
    pub(crate) const PAGES: usize = 0x10;
    pub(crate) const OWN_PAGES: usize = 0x18;
    pub(crate) const BURST: usize = 0x20;
    pub(crate) const FLAGS: usize = 0x28;
    pub(crate) const CONTENT: usize = 0x30;
    pub(crate) const COUNTER: usize = 0x38;
    pub(crate) const PRIVATE_FIRST: usize = 0x40;
    pub(crate) const DRAW_TABLE: usize = 0x48;
    pub(crate) const DICTIONARY: usize = 0x50;
    pub(crate) const LEDGER: usize = 0x58;
    pub(crate) const WORKING_SET: usize = 0x60;
    pub(crate) const TABLES_SUM_FIRST: usize = 0x68;
    pub(crate) const TABLES_SUM_SECOND: usize = 0x70;
    pub(crate) const PASSES: usize = 0x100;
    pub(crate) const WRITES: usize = 0x108;
    pub(crate) const LAST_TICKET: usize = 0x110;
    pub(crate) const LAST_INDEX: usize = 0x118;
    pub(crate) const LEDGER_SUM: usize = 0x120;
    pub(crate) const CHECKS: usize = 0x128;
    pub(crate) const BAD_CODE: usize = 0x140;
    pub(crate) const BAD_INDEX: usize = 0x148;
    pub(crate) const BAD_EXPECTED: usize = 0x150;
    pub(crate) const BAD_FOUND: usize = 0x158;
    pub(crate) const SEEN: usize = 0x200;
}

/// Words of a working-set page, by their number: the header, then [`BODY_WORDS`] of content, then
/// the two sums.
pub(super) mod page_word {
    pub(crate) const INDEX: usize = 0;
    pub(crate) const PASS: usize = 1;
    pub(crate) const TICKET: usize = 2;
    pub(crate) const VCPU: usize = 3;
    pub(crate) const CONTENT: usize = 4;
    pub(crate) const MAGIC: usize = 5;
    pub(crate) const BODY: usize = 6;
    pub(crate) const SUM_FIRST: usize = 510;
    pub(crate) const SUM_SECOND: usize = 511;
}
