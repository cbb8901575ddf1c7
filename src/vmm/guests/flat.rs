//! A flat 64-bit machine for the built-in guests: descriptors, an identity map, and the first
//! special registers.
//!
//! - `0x500`: descriptor table: user code, user data, task state segment
//! - `0x1000`: the program
//! - `0x4000` to `0x6fff`: task state segment and an I/O bitmap that allows every port
//! - `0x9000`, `0xa000`, `0x10000` on: page tables: an identity map of pages of 2 MiB; accessed and
//!   dirty are set from the start

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs};

use crate::kvm::user_mode::{self, LARGE_PAGE as LARGE_PAGE_ENTRY, TABLE, TSS_BYTES};
use crate::page::{PAGE_SIZE, PAGE_SIZE_U64};

/// Where the local APIC's spurious interrupt vector register has its bit 8: enabled by software.
const LAPIC_ENABLED_BYTE: usize = 0xf1;
/// Where the program is put and entered.
const CODE: u64 = 0x1000;
/// Room for the program.
pub(super) const CODE_BYTES_MAX: usize = 0x3000;
const TSS: u64 = 0x4000;
pub(super) const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
pub(super) const PAGE_DIRECTORIES: u64 = 0x1_0000;
/// Where the local APIC and the kernel's own slots lie: guests keep out, whether or not the VMM has
/// memory there.
pub(super) const HOLE: std::ops::Range<u64> = 0xc000_0000..0x1_0000_0000;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The most vCPUs that a guest runs on.
pub const VCPUS_MAX: u32 = 64;
/// The least guest memory in bytes.
pub const MEMORY_MIN: u64 = 4 * MIB;
/// The most guest memory in bytes: so much the page tables have room for.
pub const MEMORY_MAX: u64 = 64 * GIB;
/// The unit of the identity map.
pub(super) const LARGE_PAGE: u64 = 2 * MIB;
/// Bytes of an entry of a page table.
const ENTRY_BYTES: u64 = 8;
/// Everything here lies below.
pub(super) const END: u64 = PAGE_DIRECTORIES + (MEMORY_MAX / GIB + 1) * PAGE_SIZE_U64;

const _: () = {
    assert!(CODE + CODE_BYTES_MAX as u64 == TSS && TSS + TSS_BYTES as u64 <= 0x7000);
};

/// Why a built-in guest is not made for a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlatError {
    /// A number of vCPUs.
    #[error("`{guest}` runs on 1 to {VCPUS_MAX} vcpus, not on {found}")]
    Vcpus {
        /// The guest.
        guest: &'static str,
        /// The vCPUs asked for.
        found: u32,
    },
    /// A size of memory.
    #[error("`{guest}` takes {MEMORY_MIN} to {MEMORY_MAX} bytes of memory in whole pages of {PAGE_SIZE}, not {found}")]
    Memory {
        /// The guest.
        guest: &'static str,
        /// The bytes asked for.
        found: u64,
    },
}

/// Whether `guest` is made for a machine.
///
/// # Errors
/// [`FlatError`].
pub(super) fn check(guest: &'static str, memory_bytes: u64, vcpus: u32) -> Result<(), FlatError> {
    if !(1..=VCPUS_MAX).contains(&vcpus) {
        return Err(FlatError::Vcpus { guest, found: vcpus });
    }
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory_bytes) || !memory_bytes.is_multiple_of(PAGE_SIZE_U64) {
        return Err(FlatError::Memory { guest, found: memory_bytes });
    }
    Ok(())
}

/// A built-in guest as the loader puts it into memory that is otherwise zero, and its vCPUs' first
/// registers.
#[derive(Clone, Debug)]
pub struct FlatImage {
    segments: Vec<Segment>,
    regs: Vec<kvm_regs>,
}

impl FlatImage {
    /// The guest with a vCPU for each of `regs`.
    pub(super) fn new(segments: Segments, regs: Vec<kvm_regs>) -> Self {
        Self { segments: segments.sorted(), regs }
    }

    /// What the loader writes, in ascending order of addresses and without overlap. Everything else
    /// is zero.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// How many vCPUs the guest is made for.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        u32::try_from(self.regs.len()).unwrap_or(u32::MAX)
    }

    /// A vCPU's first special registers, from those that a new vCPU has: `KVM_GET_SREGS`, this,
    /// `KVM_SET_SREGS`. The same for each vCPU.
    #[must_use]
    pub const fn initial_sregs(&self, sregs: kvm_sregs) -> kvm_sregs {
        user_mode::sregs_for(sregs, TSS, PML4)
    }

    /// The first registers of `vcpu`, or `None` where the guest has no such vCPU.
    #[must_use]
    pub fn initial_regs(&self, vcpu: u32) -> Option<kvm_regs> {
        usize::try_from(vcpu).ok().and_then(|vcpu| self.regs.get(vcpu)).copied()
    }

    /// The local APIC of each vCPU, made of the one at reset: enabled, as firmware leaves it. No
    /// guest uses it.
    #[must_use]
    pub fn initial_lapic(&self, mut lapic: kvm_lapic_state) -> kvm_lapic_state {
        if let Some(byte) = lapic.regs.get_mut(LAPIC_ENABLED_BYTE) {
            *byte |= 1;
        }
        lapic
    }

    /// Every vCPU runs from the start: nobody sends a start-up interrupt.
    #[must_use]
    pub const fn initial_mp_state(&self) -> kvm_mp_state {
        kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }
    }
}

/// The first registers of each vCPU, but for those that its program asks for: at the program's
/// first byte, IOPL 3, no interrupts.
pub(super) fn initial_regs() -> kvm_regs {
    kvm_regs { rip: CODE, rflags: user_mode::RFLAGS, ..kvm_regs::default() }
}

/// Bytes of guest memory that are not zero at the start.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Guest physical address of the first byte.
    pub address: u64,
    /// The bytes. No part of them that covers a page of guest memory is all zero.
    pub bytes: Vec<u8>,
}

/// A guest's memory in the making: what is not zero of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    /// The machine for `memory_bytes` of memory, with `program` where it is entered. The guest may
    /// not write below `read_only_end`, a multiple of [`LARGE_PAGE`].
    pub(super) fn flat(program: &[u8], memory_bytes: u64, read_only_end: u64) -> Self {
        let mut segments = Self::default();
        for (address, bytes) in user_mode::descriptors(TSS) {
            segments.put(address, &bytes);
        }
        segments.put(CODE, program);
        segments.put_page_tables(memory_bytes, read_only_end);
        segments
    }

    /// In ascending order of addresses.
    fn sorted(mut self) -> Vec<Segment> {
        self.0.sort_by_key(|segment| segment.address);
        self.0
    }

    /// Adds `bytes` at `address`, but for pages of guest memory of which they would write only
    /// zeros.
    pub(super) fn put(&mut self, address: u64, bytes: &[u8]) {
        debug_assert!(address.is_multiple_of(PAGE_SIZE_U64) || bytes.len() < PAGE_SIZE);
        let mut at = address;
        let mut open = false;
        for page in bytes.chunks(PAGE_SIZE) {
            let zero = page.iter().all(|byte| *byte == 0);
            match self.0.last_mut() {
                Some(last) if open && !zero => last.bytes.extend_from_slice(page),
                _ if !zero => self.0.push(Segment { address: at, bytes: page.to_vec() }),
                _ => {}
            }
            open = !zero;
            at += page.len() as u64;
        }
    }

    /// Lets the guest reach registers of a device at `address`, which lies in the hole.
    pub(super) fn map_registers(&mut self, address: u64, memory_bytes: u64) {
        debug_assert!(HOLE.contains(&address));
        // With memory behind the hole, all of the hole is mapped.
        if memory_bytes > HOLE.start {
            return;
        }
        let directory = address / GIB;
        let table = PAGE_DIRECTORIES + directory * PAGE_SIZE_U64;
        self.put(PDPT + directory * ENTRY_BYTES, &(table | TABLE).to_le_bytes());
        let leaf = address / LARGE_PAGE * LARGE_PAGE;
        self.put(table + leaf % GIB / LARGE_PAGE * ENTRY_BYTES, &(leaf | LARGE_PAGE_ENTRY).to_le_bytes());
    }

    /// An identity map of pages of 2 MiB, for user code. Accessed and dirty are set, so that no one
    /// writes to the tables.
    fn put_page_tables(&mut self, memory_bytes: u64, read_only_end: u64) {
        const WRITABLE: u64 = 2;
        // A VMM with a hole below 4 GiB has its last GiB beyond the memory's size.
        let end = if memory_bytes > HOLE.start { memory_bytes + (HOLE.end - HOLE.start) } else { memory_bytes };
        let directories = end.div_ceil(GIB);
        self.put(PML4, &(PDPT | TABLE).to_le_bytes());
        let pdpt: Vec<u8> =
            (0..directories).flat_map(|gib| ((PAGE_DIRECTORIES + gib * PAGE_SIZE_U64) | TABLE).to_le_bytes()).collect();
        self.put(PDPT, &pdpt);
        let leaf = |address| address | if address < read_only_end { LARGE_PAGE_ENTRY & !WRITABLE } else { LARGE_PAGE_ENTRY };
        let leaves: Vec<u8> = (0..end.div_ceil(LARGE_PAGE)).flat_map(|page| leaf(page * LARGE_PAGE).to_le_bytes()).collect();
        self.put(PAGE_DIRECTORIES, &leaves);
    }
}
