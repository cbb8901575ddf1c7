//! The head of an ELF core of a machine: what comes before its memory. Laid out as QEMU's
//! `dump-guest-memory` does (`dump/dump.c`, `target/i386/arch_dump.c`), because gdb, crash and
//! others know that form.
//!
//! For each vCPU, which debuggers see as a thread with the number of the vCPU plus 1, there are the
//! notes `NT_PRSTATUS` and `NT_FPREGSET`, with the layouts of Linux's `struct elf_prstatus` and of
//! FXSAVE, and a note `QEMU` with segments and control registers, by which crash tells the dump of
//! a virtual machine from others. Extended state (AVX and above) is left out: where in it things
//! are depends on the processor.
//!
//! Where a Linux guest's memory has a VMCOREINFO note, it stands behind them, as QEMU writes one
//! that the guest has shown to its `vmcoreinfo` device: with the guest's own text. `phys_base` and
//! the offset of KASLR are in it, and makedumpfile and drgn take them from there.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_segment};

use super::vmcoreinfo;
use crate::machine::{MachineState, VcpuState};
use crate::page::{Gfn, PAGE_SIZE_U64, PageRun};

const FILE_HEADER_BYTES: u16 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Readable, writable, executable.
const PF_RWX: u32 = 7;
const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
/// What a VMCOREINFO note is longer than its text, at most: header, name, and what aligns the end.
const VMCOREINFO_NOTE_BYTES_MAX: u64 = 28;
/// The only type of a `QEMU` note.
const QEMU_CPU_STATE: u32 = 0;
/// The version of the layout in a `QEMU` note.
const QEMU_CPU_STATE_VERSION: u32 = 1;
/// `struct elf_prstatus`.
const PRSTATUS_BYTES: usize = 336;
/// What FXSAVE writes, and XSAVE at its beginning.
const FXSAVE_BYTES: usize = 512;
const MSR_KERNEL_GS_BASE: u32 = 0xC000_0102;

/// Where low memory of a PC ends. Tools take a core without any physical address above 0 for one
/// without physical addresses (drgn does), so memory that is one run from 0 on is two segments.
const LOW_MEMORY_PAGES: u64 = 0xa_0000 / PAGE_SIZE_U64;

/// What comes before memory, whole pages. The runs of memory follow, one behind the other.
#[derive(Debug)]
pub(super) struct Head {
    notes: Bytes,
    loads: Vec<PageRun>,
}

impl Head {
    pub(super) fn new(memory: &[PageRun], machine: &MachineState) -> Self {
        let mut loads = memory.to_vec();
        loads.truncate(usize::from(u16::MAX) - 2);
        if let [run] = loads[..]
            && run.first.0 == 0
            && run.count > 1
        {
            let low = if run.count > LOW_MEMORY_PAGES { LOW_MEMORY_PAGES } else { run.count / 2 };
            loads = vec![PageRun { first: run.first, count: low }, PageRun { first: Gfn(low), count: run.count - low }];
        }
        Self { notes: notes(machine), loads }
    }

    fn headers(&self) -> u16 {
        u16::try_from(1 + self.loads.len()).unwrap_or(u16::MAX)
    }

    fn notes_at(&self) -> u64 {
        u64::from(FILE_HEADER_BYTES) + u64::from(self.headers()) * u64::from(PROGRAM_HEADER_BYTES)
    }

    /// Its length. There is always room for a VMCOREINFO note, which is found only as memory goes
    /// by.
    pub(super) fn bytes(&self) -> u64 {
        let room = VMCOREINFO_NOTE_BYTES_MAX + vmcoreinfo::TEXT_BYTES_MAX as u64;
        (self.notes_at() + self.notes.0.len() as u64 + room).next_multiple_of(PAGE_SIZE_U64)
    }

    /// The head itself.
    ///
    /// Virtual addresses are set to the physical ones: no page tables are walked.
    pub(super) fn write(mut self, vmcoreinfo: Option<&[u8]>) -> Vec<u8> {
        let (notes_at, mut offset, headers) = (self.notes_at(), self.bytes(), self.headers());
        if let Some(text) = vmcoreinfo {
            self.notes.note(vmcoreinfo::NAME, vmcoreinfo::TYPE, text);
        }
        let notes = self.notes.0;
        let mut head = Bytes::default();
        // 64-bit, little-endian, version 1, System V.
        head.bytes(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        head.u16s([ET_CORE, EM_X86_64]);
        head.u32(1);
        // No entry point; program headers; no section headers; no flags.
        head.u64s([0, FILE_HEADER_BYTES.into(), 0]);
        head.u32(0);
        head.u16s([FILE_HEADER_BYTES, PROGRAM_HEADER_BYTES, headers, 0, 0, 0]);
        head.program_header(PT_NOTE, 0, notes_at, 0, notes.len() as u64);
        let begin = offset;
        for run in self.loads {
            let bytes = run.count.saturating_mul(PAGE_SIZE_U64);
            head.program_header(PT_LOAD, PF_RWX, offset, run.first.address().unwrap_or(u64::MAX), bytes);
            offset = offset.saturating_add(bytes);
        }
        head.bytes(&notes);
        head.0.resize(usize::try_from(begin).unwrap_or(head.0.len()).max(head.0.len()), 0);
        head.0
    }
}

fn notes(machine: &MachineState) -> Bytes {
    let mut notes = Bytes::default();
    for vcpu in &machine.vcpus {
        // What follows the status of a thread belongs to that thread.
        notes.note(b"CORE\0", NT_PRSTATUS, &status(vcpu));
        notes.note(b"CORE\0", NT_FPREGSET, &floating_point(vcpu));
    }
    for vcpu in &machine.vcpus {
        notes.note(b"QEMU\0", QEMU_CPU_STATE, &cpu_state(vcpu));
    }
    notes
}

/// `struct elf_prstatus`: no signal, no times, the registers in the order of `struct
/// user_regs_struct`.
fn status(vcpu: &VcpuState) -> Vec<u8> {
    let (regs, sregs) = (&vcpu.regs, &vcpu.sregs);
    let mut status = Bytes(vec![0; 32]);
    status.u32(vcpu.index.saturating_add(1));
    status.0.resize(112, 0);
    status.u64s([regs.r15, regs.r14, regs.r13, regs.r12, regs.rbp, regs.rbx, regs.r11, regs.r10]);
    // Not in a system call: a debugger must not try to restart one.
    let original_rax = u64::MAX;
    status.u64s([regs.r9, regs.r8, regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi, original_rax]);
    status.u64s([regs.rip, sregs.cs.selector.into(), regs.rflags, regs.rsp, sregs.ss.selector.into()]);
    status.u64s([sregs.fs.base, sregs.gs.base]);
    status.u64s([sregs.ds.selector, sregs.es.selector, sregs.fs.selector, sregs.gs.selector].map(u64::from));
    // There are floating point registers.
    status.u32(1);
    status.0.resize(PRSTATUS_BYTES, 0);
    status.0
}

fn floating_point(vcpu: &VcpuState) -> Vec<u8> {
    match (vcpu.xsave.get(..FXSAVE_BYTES), &vcpu.fpu) {
        (Some(legacy), _) => legacy.to_vec(),
        (None, Some(fpu)) => fxsave(fpu),
        (None, None) => vec![0; FXSAVE_BYTES],
    }
}

fn fxsave(fpu: &kvm_fpu) -> Vec<u8> {
    let mut out = Bytes::default();
    out.u16s([fpu.fcw, fpu.fsw, fpu.ftwx.into(), fpu.last_opcode]);
    out.u64s([fpu.last_ip, fpu.last_dp]);
    out.u32(fpu.mxcsr);
    // Which bits of MXCSR there are is not known: 0 stands for the default.
    out.u32(0);
    out.bytes(fpu.fpr.as_flattened());
    out.bytes(fpu.xmm.as_flattened());
    out.0.resize(FXSAVE_BYTES, 0);
    out.0
}

/// QEMU's `struct QEMUCPUState`.
fn cpu_state(vcpu: &VcpuState) -> Vec<u8> {
    let (regs, sregs) = (&vcpu.regs, &vcpu.sregs);
    let mut state = Bytes::default();
    state.u32(QEMU_CPU_STATE_VERSION);
    state.u32(0);
    state.u64s([regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rbp]);
    state.u64s([regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15]);
    state.u64s([regs.rip, regs.rflags]);
    for segment in [&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss, &sregs.ldt, &sregs.tr] {
        state.segment(segment.selector, segment.limit, descriptor_flags(segment), segment.base);
    }
    for kvm_dtable { base, limit, .. } in [sregs.gdt, sregs.idt] {
        state.segment(0, limit.into(), 0, base);
    }
    state.u64s([sregs.cr0, 0, sregs.cr2, sregs.cr3, sregs.cr4]);
    // Behind the fields of version 1: present where the size says so.
    let msrs = vcpu.msrs.as_ref().map_or(&[][..], |msrs| msrs.as_slice());
    state.u64s([msrs.iter().find(|msr| msr.index == MSR_KERNEL_GS_BASE).map_or(0, |msr| msr.data)]);
    let size = u32::try_from(state.0.len()).unwrap_or(u32::MAX);
    if let Some(field) = state.0.get_mut(4..8) {
        field.copy_from_slice(&size.to_le_bytes());
    }
    state.0
}

/// The attributes of a segment where they are in the upper half of its descriptor; 0 for one that
/// is not usable.
fn descriptor_flags(segment: &kvm_segment) -> u32 {
    if segment.unusable != 0 {
        return 0;
    }
    let fields = [
        (segment.type_ & 0xf, 8),
        (segment.s & 1, 12),
        (segment.dpl & 3, 13),
        (segment.present & 1, 15),
        (segment.avl & 1, 20),
        (segment.l & 1, 21),
        (segment.db & 1, 22),
        (segment.g & 1, 23),
    ];
    fields.iter().fold(0, |flags, (value, shift)| flags | u32::from(*value) << shift)
}

/// Little-endian fields, one behind the other.
#[derive(Debug, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u16s<const N: usize>(&mut self, values: [u16; N]) {
        values.iter().for_each(|value| self.bytes(&value.to_le_bytes()));
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64s<const N: usize>(&mut self, values: [u64; N]) {
        values.iter().for_each(|value| self.bytes(&value.to_le_bytes()));
    }

    fn segment(&mut self, selector: u16, limit: u32, flags: u32, base: u64) {
        [selector.into(), limit, flags, 0].into_iter().for_each(|field| self.u32(field));
        self.u64s([base]);
    }

    /// Without an alignment, as QEMU has it: by this, too, crash tells what made a core.
    fn program_header(&mut self, kind: u32, flags: u32, offset: u64, address: u64, bytes: u64) {
        self.u32(kind);
        self.u32(flags);
        self.u64s([offset, address, address, bytes, bytes, 0]);
    }

    /// `name` ends in a zero byte.
    fn note(&mut self, name: &[u8], kind: u32, data: &[u8]) {
        for length in [name.len(), data.len()] {
            self.u32(u32::try_from(length).unwrap_or(u32::MAX));
        }
        self.u32(kind);
        for part in [name, data] {
            self.bytes(part);
            self.0.resize(self.0.len().next_multiple_of(4), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};
    use object::LittleEndian as Le;
    use object::elf::FileHeader64;
    use object::read::elf::{FileHeader, ProgramHeader};

    use super::*;
    use crate::page::PAGE_SIZE;

    fn head(memory: &[PageRun], machine: &MachineState) -> Vec<u8> {
        Head::new(memory, machine).write(None)
    }

    fn segment(number: u16) -> kvm_segment {
        kvm_segment {
            base: u64::from(number) << 20 | 7,
            limit: u32::from(number) + 100,
            selector: number * 8,
            type_: 0xb,
            present: 1,
            dpl: 3,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        }
    }

    fn vcpu(index: u32) -> VcpuState {
        let at = |number: u64| u64::from(index + 1) << 56 | number;
        let regs = kvm_regs {
            rax: at(1),
            rbx: at(2),
            rcx: at(3),
            rdx: at(4),
            rsi: at(5),
            rdi: at(6),
            rsp: at(7),
            rbp: at(8),
            r8: at(9),
            r9: at(10),
            r10: at(11),
            r11: at(12),
            r12: at(13),
            r13: at(14),
            r14: at(15),
            r15: at(16),
            rip: at(17),
            rflags: at(18),
        };
        let mut sregs = kvm_sregs { cs: segment(1), ds: segment(2), es: segment(3), fs: segment(4), ..Default::default() };
        (sregs.gs, sregs.ss, sregs.tr, sregs.ldt) = (segment(5), segment(6), segment(7), segment(8));
        sregs.ldt.unusable = 1;
        (sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit) = (91, 92, 93, 94);
        (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (80, 82, 83, 84);
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        VcpuState {
            regs,
            sregs,
            xsave: (0..4096u16).map(|byte| byte.to_le_bytes()[0] ^ 0x5a).collect(),
            msrs: Some(Msrs::from_entries(&[msr(0x10, 1), msr(MSR_KERNEL_GS_BASE, 0x4b67)]).unwrap()),
            ..VcpuState::new(index)
        }
    }

    struct Found<'a> {
        name: Vec<u8>,
        kind: u32,
        data: &'a [u8],
    }

    fn read(core: &[u8]) -> (Vec<[u64; 5]>, Vec<Found<'_>>) {
        let header = FileHeader64::<Le>::parse(core).unwrap();
        assert_eq!((header.e_type(Le).0, header.e_machine(Le).0), (ET_CORE, EM_X86_64));
        let (mut loads, mut notes) = (Vec::new(), Vec::new());
        for segment in header.program_headers(Le, core).unwrap() {
            if let Some(mut found) = segment.notes(Le, core).unwrap() {
                assert!(loads.is_empty(), "notes come first");
                while let Some(note) = found.next().unwrap() {
                    notes.push(Found { name: note.name().to_vec(), kind: note.n_type(Le).0, data: note.desc() });
                }
            } else {
                let header = segment;
                assert_eq!(header.p_type(Le).0, PT_LOAD);
                loads.push([
                    header.p_offset(Le),
                    header.p_vaddr(Le),
                    header.p_paddr(Le),
                    header.p_filesz(Le),
                    header.p_memsz(Le),
                ]);
            }
        }
        (loads, notes)
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn segments_are_the_runs_of_memory() {
        let run = |first, count| PageRun { first: Gfn(first), count };
        let memory = [run(0, 160), run(256, 0x8_0000), run(1 << 20, 1 << 22)];
        let core = head(&memory, &MachineState { vcpus: vec![vcpu(0)], ..Default::default() });
        let (loads, _) = read(&core);
        let mut offset = core.len() as u64;
        assert_eq!((offset % 4096, loads.len()), (0, 3));
        for (run, load) in memory.iter().zip(loads) {
            let (address, bytes) = (run.first.0 * 4096, run.count * 4096);
            assert_eq!(load, [offset, address, address, bytes, bytes]);
            offset += bytes;
        }
        // The most that a description has.
        let memory: Vec<_> = (0..64).map(|number| run(number << 30, 1)).collect();
        assert_eq!(read(&head(&memory, &MachineState::default())).0.len(), 64);
    }

    /// A tool that finds no physical address but 0 takes a core for one without physical addresses.
    #[test]
    fn some_segment_begins_above_address_0() {
        let run = |first, count| PageRun { first: Gfn(first), count };
        let split = |memory: &[PageRun]| {
            let core = head(memory, &MachineState::default());
            let (loads, _) = read(&core);
            let mut offset = core.len() as u64;
            for load in &loads {
                assert_eq!((load[0], load[1], load[3]), (offset, load[2], load[4]));
                offset += load[3];
            }
            loads.iter().map(|load| (load[2], load[3])).collect::<Vec<_>>()
        };
        assert_eq!(split(&[run(0, 0x1_0000)]), [(0, 0xa_0000), (0xa_0000, 0xff6_0000)]);
        assert_eq!(split(&[run(0, 161)]), [(0, 0xa_0000), (0xa_0000, 4096)]);
        assert_eq!(split(&[run(0, 160)]), [(0, 0x5_0000), (0x5_0000, 0x5_0000)]);
        assert_eq!(split(&[run(0, 3)]), [(0, 4096), (4096, 8192)]);
        // Nothing is to be split of these.
        assert_eq!(split(&[run(0, 1)]), [(0, 4096)]);
        assert_eq!(split(&[run(1, 1024)]), [(4096, 4 << 20)]);
        assert_eq!(split(&[run(0, 1024), run(4096, 1)]), [(0, 4 << 20), (16 << 20, 4096)]);
    }

    #[test]
    fn what_a_linux_guest_says_is_the_last_note() {
        let machine = MachineState { vcpus: vec![vcpu(0)], ..Default::default() };
        let memory = [PageRun { first: Gfn(0), count: 4 }];
        let without = head(&memory, &machine);
        for bytes in [1, 2, 3, 4, vmcoreinfo::TEXT_BYTES_MAX] {
            let text = vec![b'x'; bytes];
            let core = Head::new(&memory, &machine).write(Some(&text));
            assert_eq!((core.len(), core.len() % PAGE_SIZE), (without.len(), 0));
            let (loads, notes) = read(&core);
            assert_eq!(loads, read(&without).0);
            let last = &notes[3];
            assert_eq!((notes.len(), last.name.as_slice(), last.kind, last.data), (4, &b"VMCOREINFO"[..], 0, text.as_slice()));
        }
    }

    #[test]
    fn notes_hold_the_registers_of_each_vcpu() {
        let machine = MachineState { vcpus: vec![vcpu(0), vcpu(1)], ..Default::default() };
        let core = head(&[PageRun { first: Gfn(0), count: 1 }], &machine);
        let (_, notes) = read(&core);
        let kinds: Vec<_> = notes.iter().map(|note| (note.name.as_slice(), note.kind, note.data.len())).collect();
        let vcpu: [(&[u8], _, _); 2] = [(b"CORE", 1, 336), (b"CORE", 2, 512)];
        assert_eq!(kinds, [&vcpu[..], &vcpu[..], &[(&b"QEMU"[..], 0, 440); 2]].concat());
        for (index, vcpu) in machine.vcpus.iter().enumerate() {
            let [status, floating] = [0, 1].map(|note| notes[index * 2 + note].data);
            assert_eq!(u32_at(status, 32) as usize, index + 1);
            // Offsets in `struct user_regs_struct`, of sys/user.h.
            let at = |register: usize| u64_at(status, 112 + register * 8);
            let regs = &vcpu.regs;
            let expected = [
                (0, regs.r15),
                (1, regs.r14),
                (2, regs.r13),
                (3, regs.r12),
                (4, regs.rbp),
                (5, regs.rbx),
                (6, regs.r11),
                (7, regs.r10),
                (8, regs.r9),
                (9, regs.r8),
                (10, regs.rax),
                (11, regs.rcx),
                (12, regs.rdx),
                (13, regs.rsi),
                (14, regs.rdi),
                (15, u64::MAX),
                (16, regs.rip),
                (17, 8),
                (18, regs.rflags),
                (19, regs.rsp),
                (20, 48),
                (21, 4 << 20 | 7),
                (22, 5 << 20 | 7),
                (23, 16),
                (24, 24),
                (25, 32),
                (26, 40),
            ];
            for (register, value) in expected {
                assert_eq!(at(register), value, "register {register}");
            }
            assert_eq!(u32_at(status, 328), 1);
            assert_eq!(floating, &vcpu.xsave[..512]);

            let state = notes[4 + index].data;
            assert_eq!((u32_at(state, 0), u32_at(state, 4)), (1, 440));
            assert_eq!((u64_at(state, 8), u64_at(state, 16), u64_at(state, 64)), (regs.rax, regs.rbx, regs.rbp));
            assert_eq!((u64_at(state, 56), u64_at(state, 136), u64_at(state, 144)), (regs.rsp, regs.rip, regs.rflags));
            let segment = |place: usize| {
                let at = 152 + place * 24;
                (u32_at(state, at), u32_at(state, at + 4), u32_at(state, at + 8), u64_at(state, at + 16))
            };
            assert_eq!(segment(0), (8, 101, 0xa0_fb00, 1 << 20 | 7));
            assert_eq!(segment(5), (48, 106, 0xa0_fb00, 6 << 20 | 7));
            assert_eq!(segment(6), (64, 108, 0, 8 << 20 | 7));
            assert_eq!((segment(8), segment(9)), ((0, 92, 0, 91), (0, 94, 0, 93)));
            assert_eq!([392, 400, 408, 416, 424, 432].map(|at| u64_at(state, at)), [80, 0, 82, 83, 84, 0x4b67]);
        }
    }

    #[test]
    fn a_host_without_xsave() {
        let mut fpu = kvm_fpu { fcw: 0x37f, ftwx: 0x81, mxcsr: 0x1f80, last_ip: 5, ..Default::default() };
        (fpu.fpr[7][9], fpu.xmm[15][15]) = (70, 150);
        let state = VcpuState { fpu: Some(fpu), ..VcpuState::new(0) };
        let core = head(&[PageRun { first: Gfn(0), count: 1 }], &MachineState { vcpus: vec![state], ..Default::default() });
        let (_, notes) = read(&core);
        assert_eq!(notes.len(), 3);
        let area = notes[1].data;
        assert_eq!((area.len(), &area[..6], area[8], u32_at(area, 24)), (512, &[0x7f, 3, 0, 0, 0x81, 0][..], 5, 0x1f80));
        assert_eq!((area[32 + 7 * 16 + 9], area[160 + 15 * 16 + 15]), (70, 150));
    }
}
