//! A guest that writes one word into any of its pages.
#![expect(unsafe_code, reason = "gives memory to KVM")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{io, thread};

use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::refused::Refused;
use crate::kvm::kick::{self, Kick};
use crate::kvm::memslot::{self, Memslot};
use crate::kvm::ring::{EXIT_RING_FULL, RingSize, VmRings};
use crate::kvm::{VmHandle, host, user_mode};
use crate::page::{Gfn, PAGE_SIZE_U64};

/// The most time of a check. All rounds of one take about 10 ms, and perhaps a second where
/// everything is emulated.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// Pages that the guest may be told to write.
pub(super) const PAGES: usize = 256;
/// Frames of guest memory: 2 MiB, the pages to write last.
const FRAMES: usize = 512;
const FIRST: u64 = (FRAMES - PAGES) as u64;
pub(super) const SLOT: u32 = 0;

/// What to write, and then where: addresses up to a zero.
const ORDERS: u64 = user_mode::TABLES_END;
pub(super) const PROGRAM: u64 = ORDERS + PAGE_SIZE_U64;
/// Where no guest has memory; KVM asks for it on Intel.
pub(super) const TSS_ADDRESS: usize = 0xfffb_d000;
const DONE_PORT: u16 = 0x10;
/// Fetches its orders from [`ORDERS`], which is in rbp, so that no registers have to be set while
/// an `out` is unfinished.
const CODE: [u8; 29] = [
    0x48, 0x8b, 0x45, 0x00, // start: mov rax, [rbp]
    0x48, 0x8d, 0x75, 0x08, // lea rsi, [rbp + 8]
    0x48, 0x8b, 0x3e, // next: mov rdi, [rsi]
    0x48, 0x85, 0xff, // test rdi, rdi
    0x74, 0x09, // jz done
    0x48, 0x89, 0x07, // mov [rdi], rax
    0x48, 0x83, 0xc6, 0x08, // add rsi, 8
    0xeb, 0xef, // jmp next
    0xe6, 0x10, // done: out 0x10, al
    0xeb, 0xe3, // jmp start
];
const _: () = assert!((PAGES as u64 + 2) * 8 <= PAGE_SIZE_U64 && PROGRAM + PAGE_SIZE_U64 <= FIRST * PAGE_SIZE_U64);

/// The page's index in the memslot.
pub(super) const fn offset(page: usize) -> u64 {
    FIRST + page as u64
}

/// The page at an index in the memslot, where it is one of those to write.
pub(super) fn page(offset: u64) -> Option<usize> {
    usize::try_from(offset.checked_sub(FIRST)?).ok().filter(|page| *page < PAGES)
}

/// A VM of one vCPU and one memslot.
pub(super) struct Guest {
    pub(super) vcpu: Vcpu,
    pub(super) rings: VmRings,
    _vm: VmFd,
    // Last: the memslot is on it.
    pub(super) memory: Memory,
}

#[derive(Clone)]
pub(super) struct Memory {
    map: GuestMemoryMmap,
    frames: u64,
}

pub(super) struct Vcpu {
    fd: VcpuFd,
    kick: Kick,
    time_is_up: AtomicBool,
}

impl Guest {
    pub(super) fn new(kvm_path: &Path, ring: RingSize) -> Result<Self, Refused> {
        let kvm = host::open(kvm_path)?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
        let handle = || VmHandle::duplicate(&vm).map_err(io_failed("duplicating the VM's descriptor"));
        let mut rings = VmRings::enable(handle()?, ring)?;
        let memory = Memory::new()?;
        memory.give_to(&handle()?, true)?;
        let fd = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        rings.map(&fd)?;
        let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        fd.set_sregs(&user_mode::sregs(sregs)).map_err(failed("KVM_SET_SREGS"))?;
        let regs = kvm_regs { rip: PROGRAM, rbp: ORDERS, rflags: user_mode::RFLAGS, ..kvm_regs::default() };
        fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
        Ok(Self { vcpu: Vcpu::new(fd)?, rings, _vm: vm, memory })
    }
}

impl Memory {
    pub(super) fn new() -> Result<Self, Refused> {
        let memory = Self::with_frames(FRAMES as u64)?;
        memory.put(PROGRAM, &CODE)?;
        Ok(memory)
    }

    /// With page tables for all of it, and no program.
    pub(super) fn with_frames(frames: u64) -> Result<Self, Refused> {
        let bytes = usize::try_from(frames * PAGE_SIZE_U64).unwrap_or(usize::MAX);
        let ranges = [(GuestAddress(0), bytes)];
        let map = GuestMemoryMmap::from_ranges(&ranges).map_err(|error| Refused::setup("mapping guest memory", error))?;
        let memory = Self { map, frames };
        for (address, bytes) in user_mode::tables(frames.div_ceil(512)) {
            memory.put(address, &bytes)?;
        }
        Ok(memory)
    }

    /// Makes it the memory of `vm`, which is dropped before it.
    pub(super) fn give_to(&self, vm: &VmHandle, log_dirty: bool) -> Result<(), Refused> {
        let slot = Memslot { id: 0, first: Gfn(0), pages: self.frames, host_address: self.host_address()? };
        // SAFETY: `self` maps that many pages readable and writable and is dropped after the VM; it
        // is accessed through `vm-memory`, which makes no references into it.
        Ok(unsafe { memslot::set(vm, &slot, log_dirty) }?)
    }

    fn host_address(&self) -> Result<u64, Refused> {
        let address =
            self.map.get_host_address(GuestAddress(0)).map_err(|error| Refused::setup("mapping guest memory", error))?;
        Ok(address as u64)
    }

    pub(super) fn put(&self, address: u64, bytes: &[u8]) -> Result<(), Refused> {
        self.map.write_slice(bytes, GuestAddress(address)).map_err(|error| Refused::setup("writing guest memory", error))
    }

    /// Has the guest write `value` into `pages` when it runs next.
    pub(super) fn order(&self, value: u64, pages: impl Iterator<Item = usize>) -> Result<(), Refused> {
        let addresses = pages.map(|page| offset(page) * PAGE_SIZE_U64);
        let words = std::iter::once(value).chain(addresses).chain([0]);
        self.put(ORDERS, &words.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
    }

    /// The word that the guest has written into a page.
    pub(super) fn word(&self, page: usize) -> Result<u64, Refused> {
        let address = GuestAddress(offset(page) * PAGE_SIZE_U64);
        let word = self.map.read_obj(address).map_err(|error| Refused::setup("reading guest memory", error))?;
        Ok(u64::from_le(word))
    }
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd) -> Result<Self, Refused> {
        let kick = Kick::new(&fd, kick::default_signal()).map_err(io_failed("mapping kvm_run"))?;
        Ok(Self { fd, kick, time_is_up: AtomicBool::new(false) })
    }

    /// Does `work`, which runs the vCPU on this thread, and sees to it that the guest leaves after
    /// `limit`.
    pub(super) fn bounded<T>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Bounded<'_>) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let Self { fd, kick, time_is_up } = self;
        let (kick, time_is_up) = (&*kick, &*time_is_up);
        kick.bind_to_this_thread();
        let (done, wait) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let watch = move || {
                if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    time_is_up.store(true, Ordering::SeqCst);
                    // Only now: a process that never waits this long keeps its own handler. Without
                    // a handler the signal would end it.
                    if kick::install_handler(kick::default_signal()).is_ok() {
                        kick.kick();
                    }
                }
            };
            thread::Builder::new().spawn_scoped(scope, watch).map_err(io_failed("starting a thread"))?;
            let outcome = work(&mut Bounded { fd, time_is_up, limit });
            drop(done);
            outcome
        })
    }
}

/// How a guest left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// It has done what it was to do.
    Done,
    /// Its ring is full.
    RingFull,
}

/// A vCPU whose time is limited.
pub(super) struct Bounded<'v> {
    fd: &'v mut VcpuFd,
    time_is_up: &'v AtomicBool,
    limit: Duration,
}

impl Bounded<'_> {
    /// Runs the guest until it has carried out its orders.
    pub(super) fn run(&mut self) -> Result<(), Refused> {
        match self.leave()? {
            Left::Done => Ok(()),
            Left::RingFull => Err(Refused::Exit { exit: "a full ring".to_owned() }),
        }
    }

    /// Runs the guest until it leaves.
    pub(super) fn leave(&mut self) -> Result<Left, Refused> {
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(DONE_PORT, _)) => return Ok(Left::Done),
                Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => return Ok(Left::RingFull),
                Ok(exit) => return Err(Refused::Exit { exit: format!("{exit:?}") }),
                // Once the time is up, `immediate_exit` stays set.
                Err(error) if error.errno() == libc::EINTR => {
                    if self.time_is_up.load(Ordering::SeqCst) {
                        return Err(Refused::Time { limit: self.limit });
                    }
                }
                Err(error) => return Err(failed("KVM_RUN")(error)),
            }
        }
    }
}

pub(super) fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Refused {
    move |error| Refused::setup(step, io::Error::from(error))
}

pub(super) fn io_failed(step: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| Refused::setup(step, error)
}
