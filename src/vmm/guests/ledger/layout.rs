//! Where things are in guest memory, and in the pages that the program and the host share.

use crate::page::PageBytes;

/// Guest physical address of the state.
pub(super) const STATE: u64 = 0x20_0000;
/// Of the table of clients.
pub(super) const CLIENTS: u64 = 0x20_1000;
/// Of the queues, a page each.
pub(super) const RECEIVE_QUEUE: u64 = 0x20_2000;
pub(super) const TRANSMIT_QUEUE: u64 = 0x20_3000;
/// Of the transmit buffers.
pub(super) const TRANSMIT_BUFFERS: u64 = 0x20_4000;
/// Of a page for each vCPU but the first.
pub(super) const OWN_PAGES: u64 = 0x21_0000;
/// Of the receive buffers.
pub(super) const RECEIVE_BUFFERS: u64 = 0x26_0000;
/// Of the pages that requests dirty.
pub(super) const AREA: u64 = 0x28_0000;

/// Entries of each queue, and buffers of each.
pub(super) const QUEUE_SIZE: u16 = 64;
pub(super) const RECEIVE_BUFFER_SHIFT: u32 = 11;
pub(super) const TRANSMIT_BUFFER_SHIFT: u32 = 8;

/// Offsets in what a vCPU is told, in bytes. Every field is a `u64`.
pub(super) mod told_at {
    /// The vCPU's number.
    pub(crate) const VCPU: usize = 0x00;
    /// Pages that requests dirty.
    pub(crate) const PAGES: usize = 0x08;
    /// Its IPv4 address, in network order.
    pub(crate) const IP: usize = 0x10;
    /// Its UDP port, in network order.
    pub(crate) const PORT: usize = 0x18;
    /// 1 where a period is to be waited for while there is nothing to do.
    pub(crate) const PACED: usize = 0x20;
    /// Address of the vCPU's own page.
    pub(crate) const OWN_PAGE: usize = 0x28;
    /// Bytes of all that.
    pub(crate) const END: usize = 0x30;
}

/// Offsets in the state, in bytes.
pub(super) mod state_at {
    use super::QUEUE_SIZE;

    /// Requests taken, a `u64`.
    pub(crate) const COUNT: usize = 0x00;
    /// The hash over them, a `u64`.
    pub(crate) const HASH: usize = 0x08;
    /// The page of the area that is dirtied next, a `u64`.
    pub(crate) const NEXT_PAGE: usize = 0x10;
    /// Entries of the used rings that were looked at, a `u32` each.
    pub(crate) const RECEIVED: usize = 0x18;
    pub(crate) const SENT: usize = 0x1c;
    /// The available rings' indexes that the device was told of, a `u16` each.
    pub(crate) const RECEIVE_TOLD: usize = 0x20;
    pub(crate) const TRANSMIT_TOLD: usize = 0x22;
    /// How many transmit buffers are free, a `u32`.
    pub(crate) const FREE_COUNT: usize = 0x24;
    /// The Ethernet address and two zeros.
    pub(crate) const MAC: usize = 0x28;
    /// The numbers of the free transmit buffers, a byte each.
    pub(crate) const FREE: usize = 0x40;
    /// Bytes of all that. Widening; `From` is not const.
    pub(crate) const END: usize = FREE + QUEUE_SIZE as usize;
}

/// Offsets in a client's place of the table, in bytes. They lie as in an answer behind its magic.
pub(super) mod client_at {
    pub(crate) const ID: usize = 0x00;
    pub(crate) const NUMBER: usize = 0x08;
    pub(crate) const COUNT_BEFORE: usize = 0x10;
    pub(crate) const HASH_BEFORE: usize = 0x18;
    pub(crate) const COUNT_AFTER: usize = 0x20;
    pub(crate) const HASH_AFTER: usize = 0x28;
    /// Bytes from one place to the next.
    pub(crate) const BYTES: usize = 0x40;
}

/// Offsets in a queue's page, in bytes: the descriptors come first.
pub(super) mod queue_at {
    /// Where a descriptor has its length.
    pub(crate) const DESCRIPTOR_BYTES: usize = 0x08;
    pub(crate) const AVAILABLE: usize = 0x400;
    pub(crate) const AVAILABLE_INDEX: usize = AVAILABLE + 2;
    pub(crate) const AVAILABLE_RING: usize = AVAILABLE + 4;
    pub(crate) const USED: usize = 0x800;
    pub(crate) const USED_INDEX: usize = USED + 2;
    pub(crate) const USED_RING: usize = USED + 4;
}

/// Requests taken since the guest was first started, from the page of its state.
#[must_use]
pub fn requests(state: &PageBytes) -> u64 {
    state.as_chunks().0.get(state_at::COUNT / 8).map_or(0, |word| u64::from_le_bytes(*word))
}
