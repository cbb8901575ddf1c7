//! The guest as the loader puts it into memory, and its vCPUs' first registers.

use kvm_bindings::kvm_regs;
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_WRITE};

use super::layout::{
    AREA, CLIENTS, OWN_PAGES, QUEUE_SIZE, RECEIVE_BUFFER_SHIFT, RECEIVE_BUFFERS, RECEIVE_QUEUE, STATE, TRANSMIT_BUFFER_SHIFT,
    TRANSMIT_BUFFERS, TRANSMIT_QUEUE, client_at, queue_at, state_at, told_at,
};
use super::options::{Options, PAGES_MAX};
use super::program;
use crate::ledger::CLIENTS_MAX;
use crate::page::PAGE_SIZE_U64;
use crate::vmm::devices::VIRTIO;
use crate::vmm::guests::flat::{self, FlatError, FlatImage, HOLE, Segments, VCPUS_MAX};

const TOLD: u64 = 0x7_0000;
/// Bytes of a descriptor, and of an entry of an available ring.
const DESCRIPTOR_BYTES: usize = 16;
const AVAILABLE_ENTRY_BYTES: usize = 2;
/// For a device without an address of its own: one of those that everybody may choose.
const MAC: [u8; 6] = [0x02, b's', b'l', b'k', b'w', 0x02];

const MIB: u64 = 1 << 20;

const _: () = {
    assert!(flat::END <= TOLD && TOLD + VCPUS_MAX as u64 * PAGE_SIZE_U64 <= STATE && STATE.is_multiple_of(flat::LARGE_PAGE));
    assert!(CLIENTS + (CLIENTS_MAX * client_at::BYTES) as u64 <= RECEIVE_QUEUE);
    assert!(queue_at::USED_RING + QUEUE_SIZE as usize * 8 <= 4096, "a queue is one page");
    assert!(TRANSMIT_BUFFERS + ((QUEUE_SIZE as u64) << TRANSMIT_BUFFER_SHIFT) <= OWN_PAGES);
    assert!(OWN_PAGES + VCPUS_MAX as u64 * PAGE_SIZE_U64 <= RECEIVE_BUFFERS);
    assert!(RECEIVE_BUFFERS + ((QUEUE_SIZE as u64) << RECEIVE_BUFFER_SHIFT) <= AREA);
    assert!(AREA + PAGES_MAX * PAGE_SIZE_U64 <= HOLE.start);
    assert!(HOLE.start <= VIRTIO && VIRTIO < HOLE.end);
};

/// Why there is no such guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The guest is not made for the machine.
    #[error(transparent)]
    Machine(#[from] FlatError),
    /// The pages that requests dirty do not fit.
    #[error("`ledger` with pages={pages} needs at least {}M of memory, {found} bytes are too little", needed / MIB)]
    TooSmall {
        /// The pages that requests dirty.
        pages: u64,
        /// The bytes asked for.
        found: u64,
        /// The least bytes that are enough, in whole MiB.
        needed: u64,
    },
}

/// Makes the guest that `options` ask for, for `memory_bytes` (4 MiB to 64 GiB, in whole pages)
/// and `vcpus` (1 to 64).
///
/// # Errors
/// Each variant of [`LedgerError`], which names the bound that does not hold.
pub fn build(options: &Options, memory_bytes: u64, vcpus: u32) -> Result<FlatImage, LedgerError> {
    flat::check("ledger", memory_bytes, vcpus)?;
    let end = AREA + options.pages() * PAGE_SIZE_U64;
    if end > memory_bytes {
        let needed = end.next_multiple_of(MIB).max(flat::MEMORY_MIN);
        return Err(LedgerError::TooSmall { pages: options.pages(), found: memory_bytes, needed });
    }
    let mut segments = Segments::flat(program::bytes(), memory_bytes, STATE);
    segments.map_registers(VIRTIO, memory_bytes);
    for vcpu in 0..vcpus {
        segments.put(TOLD + u64::from(vcpu) * PAGE_SIZE_U64, &told(options, vcpu));
    }
    segments.put(STATE, &state());
    segments.put(RECEIVE_QUEUE, &queue(RECEIVE_BUFFERS, RECEIVE_BUFFER_SHIFT, Side::Receive));
    segments.put(TRANSMIT_QUEUE, &queue(TRANSMIT_BUFFERS, TRANSMIT_BUFFER_SHIFT, Side::Transmit));
    let regs = (0..vcpus).map(|vcpu| kvm_regs { rbx: TOLD + u64::from(vcpu) * PAGE_SIZE_U64, ..flat::initial_regs() });
    Ok(FlatImage::new(segments, regs.collect()))
}

/// Guest physical address of the page with the guest's state. What lies below is read only for the
/// guest.
#[must_use]
pub const fn state_address() -> u64 {
    STATE
}

/// Puts `value` at `at`; there is room.
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(at..at + N) {
        field.copy_from_slice(&value);
    }
}

/// What `vcpu` is told.
fn told(options: &Options, vcpu: u32) -> [u8; told_at::END] {
    let fields = [
        (told_at::VCPU, u64::from(vcpu)),
        (told_at::PAGES, options.pages()),
        (told_at::IP, u64::from(u32::from_le_bytes(options.ip().octets()))),
        (told_at::PORT, u64::from(options.port().swap_bytes())),
        (told_at::PACED, u64::from(!options.every().is_zero())),
        (told_at::OWN_PAGE, OWN_PAGES + u64::from(vcpu) * PAGE_SIZE_U64),
    ];
    let mut bytes = [0; told_at::END];
    fields.into_iter().for_each(|(at, value)| put(&mut bytes, at, value.to_le_bytes()));
    bytes
}

/// The state before the first request: all transmit buffers are free.
fn state() -> [u8; state_at::END] {
    let mut bytes = [0; state_at::END];
    put(&mut bytes, state_at::FREE_COUNT, u32::from(QUEUE_SIZE).to_le_bytes());
    put(&mut bytes, state_at::MAC, MAC);
    for buffer in 0..QUEUE_SIZE {
        put(&mut bytes, state_at::FREE + usize::from(buffer), [buffer.to_le_bytes()[0]]);
    }
    bytes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The device has all buffers, and writes to them.
    Receive,
    /// It has none yet.
    Transmit,
}

/// A queue before the first frame, but for its used ring, which is zero.
fn queue(buffers: u64, shift: u32, side: Side) -> Vec<u8> {
    let end = queue_at::AVAILABLE_RING + usize::from(QUEUE_SIZE) * AVAILABLE_ENTRY_BYTES;
    let mut bytes = vec![0; end];
    let low = |number: u32| number.to_le_bytes().first_chunk().copied().unwrap_or([0; 2]);
    for buffer in 0..QUEUE_SIZE {
        let at = usize::from(buffer) * DESCRIPTOR_BYTES;
        put(&mut bytes, at, (buffers + (u64::from(buffer) << shift)).to_le_bytes());
        if side == Side::Receive {
            put(&mut bytes, at + queue_at::DESCRIPTOR_BYTES, (1_u32 << shift).to_le_bytes());
            put(&mut bytes, at + queue_at::DESCRIPTOR_BYTES + 4, low(VRING_DESC_F_WRITE));
            put(&mut bytes, queue_at::AVAILABLE_RING + usize::from(buffer) * AVAILABLE_ENTRY_BYTES, buffer.to_le_bytes());
        }
    }
    put(&mut bytes, queue_at::AVAILABLE, low(VRING_AVAIL_F_NO_INTERRUPT));
    let given = if side == Side::Receive { QUEUE_SIZE } else { 0 };
    put(&mut bytes, queue_at::AVAILABLE_INDEX, given.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::vmm::guests::flat::MEMORY_MAX;

    fn error(text: &str, memory_bytes: u64, vcpus: u32) -> String {
        build(&text.parse().unwrap(), memory_bytes, vcpus).unwrap_err().to_string()
    }

    #[test]
    fn bounds_are_checked_and_named() {
        assert_eq!(error("ledger", 64 * MIB, 65), "`ledger` runs on 1 to 64 vcpus, not on 65");
        assert!(error("ledger", MEMORY_MAX + 4096, 1).ends_with("in whole pages of 4096, not 68719480832"));
        let message = "`ledger` with pages=1024 needs at least 7M of memory, 6291456 bytes are too little";
        assert_eq!(error("ledger", 6 * MIB, 1), message);
        build(&"ledger".parse().unwrap(), 7 * MIB, 64).unwrap();
        build(&"ledger:pages=1".parse().unwrap(), 4 * MIB, 1).unwrap();
        let most: Options = format!("ledger:pages={PAGES_MAX}").parse().unwrap();
        build(&most, 3 << 30, 1).unwrap();
        assert!(program::bytes().len() < flat::CODE_BYTES_MAX);
    }

    /// The page directory's entry for the registers, from the root on.
    fn registers_entry(memory_bytes: u64) -> u64 {
        let image = build(&"ledger:pages=1".parse().unwrap(), memory_bytes, 1).unwrap();
        let mut end = 0;
        for segment in image.segments() {
            assert!(segment.address >= end, "{:#x} overlaps or is out of order", segment.address);
            end = segment.address + segment.bytes.len() as u64;
        }
        let word = |address: u64| {
            let holds =
                |segment: &&flat::Segment| (segment.address..segment.address + segment.bytes.len() as u64).contains(&address);
            let segment = image.segments().iter().find(holds).unwrap();
            let at = usize::try_from(address - segment.address).unwrap();
            u64::from_le_bytes(*segment.bytes[at..].first_chunk().unwrap())
        };
        let below = |entry: u64, shift: u32| word((entry & !0xfff) + ((VIRTIO >> shift & 511) * 8));
        below(below(below(flat::PML4, 39), 30), 21)
    }

    #[test]
    fn the_registers_are_mapped_whatever_the_memory() {
        for memory in [4 * MIB, 1 << 30, (3 << 30) - 4096, 3 << 30, (3 << 30) + 4096, 8 << 30] {
            assert_eq!(registers_entry(memory), VIRTIO | 0xe7, "{memory:#x}");
        }
    }
}
