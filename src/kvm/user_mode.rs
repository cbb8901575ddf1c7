//! What a vCPU needs to run a small program at full speed on every KVM: long mode at CPL 3 with
//! flat segments.
//!
//! PVM interprets code at CPL 0, thousands of times slower. Nothing here is written by running:
//! page tables have accessed and dirty set, the task state segment is busy.

use kvm_bindings::{kvm_segment, kvm_sregs};

use crate::page::PAGE_SIZE_U64;

/// The tables lie in the pages below this guest physical address (bytes) and from [`GDT`] on;
/// everything not returned by [`tables`] is zero.
pub(crate) const TABLES_END: u64 = 0x8000;

/// Where the descriptors are.
const GDT: u64 = 0x500;
const GDT_BYTES: u16 = 0x38;
const TSS: u64 = 0x1000;
/// Where the task state segment's I/O permission bitmap begins: right behind the segment's fields.
const IO_BITMAP: u16 = 0x68;
/// A bit for each of 65,536 ports, and the byte of ones that must follow.
pub(crate) const TSS_BYTES: u32 = IO_BITMAP as u32 + 8192 + 1;
const PML4: u64 = 0x5000;
const PDPT: u64 = 0x6000;
const PAGE_DIRECTORY: u64 = 0x7000;
const _: () = assert!(TSS + TSS_BYTES as u64 <= PML4 && PAGE_DIRECTORY + PAGE_SIZE_U64 == TABLES_END);

const CODE_SELECTOR: u16 = 0x1b;
const DATA_SELECTOR: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;
/// Code and data.
pub(crate) const SELECTORS: (u16, u16) = (CODE_SELECTOR, DATA_SELECTOR);

/// I/O privilege level 3 and the bit that is always set; no interrupts.
pub(crate) const RFLAGS: u64 = 0x3002;

/// Flags of an entry that names a table: present, writable, user, accessed, dirty.
pub(crate) const TABLE: u64 = 0x67;
/// Flags of an entry that is a page of 2 MiB.
pub(crate) const LARGE_PAGE: u64 = TABLE | 0x80;

/// Segment descriptors and the task state segment at `tss`, below 16 MiB, as (guest physical
/// address, bytes).
pub(crate) fn descriptors(tss: u64) -> [(u64, Vec<u8>); 3] {
    let limit = u64::from(TSS_BYTES - 1);
    let descriptors = [
        0x00af_fb00_0000_ffff,                                                    // 0x18: 64-bit code, DPL 3
        0x00cf_f300_0000_ffff,                                                    // 0x20: data, DPL 3
        0x0000_8b00_0000_0000 | limit & 0xffff | tss << 16 | (limit >> 16) << 48, // 0x28: busy TSS
        0,
    ];
    [
        (GDT + 0x18, words(&descriptors)),
        // PVM drops IOPL for code at CPL 3: the bitmap, of zeros, allows every port.
        (tss + 0x66, IO_BITMAP.to_le_bytes().to_vec()),
        (tss + u64::from(TSS_BYTES) - 1, vec![0xff]),
    ]
}

/// Tables as (guest physical address, bytes), with an identity map of the first `large_pages` pages
/// of 2 MiB, 512 at most.
pub(crate) fn tables(large_pages: u64) -> [(u64, Vec<u8>); 6] {
    const LARGE_PAGE_BYTES: u64 = 2 << 20;
    let leaves: Vec<_> = (0..large_pages.min(512)).map(|page| (page * LARGE_PAGE_BYTES) | LARGE_PAGE).collect();
    let [segments, io_bitmap, io_bitmap_end] = descriptors(TSS);
    [
        segments,
        io_bitmap,
        io_bitmap_end,
        (PML4, words(&[PDPT | TABLE])),
        (PDPT, words(&[PAGE_DIRECTORY | TABLE])),
        (PAGE_DIRECTORY, words(&leaves)),
    ]
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Special registers to go with [`tables`], from those that a new vCPU has.
#[must_use]
pub(crate) const fn sregs(sregs: kvm_sregs) -> kvm_sregs {
    sregs_for(sregs, TSS, PML4)
}

/// Special registers to go with [`descriptors`] and page tables whose root is at `pml4`, from those
/// that a new vCPU has.
#[must_use]
pub(crate) const fn sregs_for(mut sregs: kvm_sregs, tss: u64, pml4: u64) -> kvm_sregs {
    let data = segment(DATA_SELECTOR, 3, false);
    sregs.cs = segment(CODE_SELECTOR, 11, true);
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment { base: tss, limit: TSS_BYTES - 1, dpl: 0, s: 0, l: 0, g: 0, ..segment(TSS_SELECTOR, 11, true) };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = GDT_BYTES - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = pml4;
    sregs.cr4 = 0x20; // PAE
    sregs.cr0 = 0x8005_0033; // PG, AM, WP, NE, ET, MP, PE
    sregs.efer = 0x500; // LMA, LME
    sregs
}

/// A flat segment for CPL 3.
const fn segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: !code as u8,
        s: 1,
        l: code as u8,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
