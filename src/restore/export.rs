//! An epoch as one file that other tools read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::eager_fill::PageTarget;
#[cfg(feature = "kvm")]
use super::elf_core::Head;
use super::error::{RestoreError, TargetError};
use super::plan::Plan;
#[cfg(feature = "kvm")]
use super::vmcoreinfo::Search;
use crate::format::MemoryDigest;
#[cfg(feature = "kvm")]
use crate::machine::{MachineState, StateError};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageBytes, PageRun};
use crate::store::Chain;

/// What a file made by [`export`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportFormat {
    /// Guest memory as it is. The offset in the file is the guest physical address; what lies
    /// between runs of memory is zeros.
    Raw,
    /// An ELF core for x86-64 with segments for the runs of memory and the registers of each vCPU,
    /// in the form of QEMU's `dump-guest-memory`, and the VMCOREINFO note of a Linux guest: for
    /// crash, drgn, makedumpfile, gdb and readelf. The segments' virtual addresses are their
    /// physical ones, for no page tables are walked. crash walks them by itself; gdb takes every
    /// address for a physical one.
    #[cfg(feature = "kvm")]
    ElfCore,
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// The epoch.
    pub epoch: EpochId,
    /// The length of the file in bytes, holes included.
    pub file_bytes: u64,
    /// Pages written: those that are not zero. The others are holes.
    pub pages: u64,
    /// The digest of the epoch's memory, that of devices included.
    pub memory: MemoryDigest,
}

/// Why an epoch could not be exported. What the file holds then is worth nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The chain does not give what is needed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The epoch's state is none that a core can show, or is not whole.
    #[cfg(feature = "kvm")]
    #[error("the state of epoch {epoch} can't be used")]
    State {
        /// The epoch.
        epoch: EpochId,
        /// What is wrong with it.
        source: StateError,
    },
    /// The digest of all memory that was taken while the guest stood still is not that of the epoch
    /// in the chain.
    #[error("the audit of epoch {epoch} differs: expected memory {expected}, found {found}")]
    Audit {
        /// The epoch.
        epoch: EpochId,
        /// The digest in the chain.
        expected: MemoryDigest,
        /// The digest of what would be exported.
        found: MemoryDigest,
    },
    /// The file can't be written.
    #[error("writing {bytes} bytes at offset {offset} failed")]
    Write {
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        bytes: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// What was written to the file can't be read again.
    #[error("reading {bytes} bytes at offset {offset} failed")]
    Read {
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        bytes: u64,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Writes the guest's memory, and where the format has it state, of `epoch` to `file`, which must
/// be empty and, for a core, open for reading, too. Pages of zeros become holes. Nothing is synced.
/// `progress` is called with the number of pages done and in all.
///
/// # Errors
/// An epoch that the chain does not hold; damage; state that is not that of a machine, for a core;
/// an audit that differs; whatever keeps the file from being written.
pub fn export(
    chain: &Chain,
    epoch: EpochId,
    format: ExportFormat,
    file: &File,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Exported, ExportError> {
    let plan = Plan::new(chain, epoch)?;
    let description = chain.description();
    let mut image = Image {
        file,
        places: Vec::new(),
        waiting: Vec::new(),
        waiting_at: 0,
        devices: description.device_memory(),
        pages: 0,
        memory: MemoryDigest::default(),
        #[cfg(feature = "kvm")]
        search: None,
    };
    let mut end = 0;
    #[cfg(feature = "kvm")]
    let mut head = None;
    match format {
        ExportFormat::Raw => {
            for run in description.guest_memory() {
                let at = run.first.address().unwrap_or(u64::MAX);
                image.places.push((*run, at));
                end = at.saturating_add(run.count.saturating_mul(PAGE_SIZE_U64));
            }
        }
        #[cfg(feature = "kvm")]
        ExportFormat::ElfCore => {
            let machine = MachineState::from_records(plan.state(), description.vcpus);
            let machine = machine.map_err(|source| ExportError::State { epoch, source })?;
            let made = head.insert(Head::new(description.guest_memory(), &machine));
            image.search = Some(Search::default());
            end = made.bytes();
            for run in description.guest_memory() {
                image.places.push((*run, end));
                end = end.saturating_add(run.count.saturating_mul(PAGE_SIZE_U64));
            }
        }
    }
    // First of all, so that a file system that can't have such a file says so at once.
    file.set_len(end).map_err(|source| ExportError::Write { offset: 0, bytes: end, source })?;
    plan.fill(&mut image, progress).map_err(RestoreError::of_target::<ExportError>)?;
    image.flush()?;
    // Last, with what was found in memory.
    #[cfg(feature = "kvm")]
    if let (Some(head), Some(search)) = (head, image.search.take()) {
        let vmcoreinfo = search.text(|address, buffer| image.read(address, buffer))?;
        image.waiting = head.write(vmcoreinfo.as_deref());
        image.waiting_at = 0;
        image.flush()?;
    }
    match chain.epoch(epoch).map_err(RestoreError::from)?.commit.audit {
        Some(expected) if expected != image.memory => Err(ExportError::Audit { epoch, expected, found: image.memory }),
        _ => Ok(Exported { epoch, file_bytes: end, pages: image.pages, memory: image.memory }),
    }
}

/// How many bytes are written at once, where they lie behind each other.
const WRITE_BYTES: usize = 64 * PAGE_SIZE;

/// A file in the making.
struct Image<'a> {
    file: &'a File,
    /// The runs of memory, and where each begins in the file.
    places: Vec<(PageRun, u64)>,
    /// What is to be written next.
    waiting: Vec<u8>,
    waiting_at: u64,
    /// Memory that is part of the epoch, and of its digest, and is not in the file.
    devices: &'a [PageRun],
    pages: u64,
    memory: MemoryDigest,
    /// Looks for what a Linux guest says about itself.
    #[cfg(feature = "kvm")]
    search: Option<Search>,
}

impl Image<'_> {
    fn flush(&mut self) -> Result<(), ExportError> {
        let written = self.file.write_all_at(&self.waiting, self.waiting_at);
        let (offset, bytes) = (self.waiting_at, self.waiting.len() as u64);
        written.map_err(|source| ExportError::Write { offset, bytes, source })?;
        self.waiting.clear();
        Ok(())
    }

    /// Reads what was written of guest memory from `address` on, as far as there is memory.
    #[cfg(feature = "kvm")]
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, ExportError> {
        let gfn = Gfn::containing(address);
        let Some((run, begin)) = self.places.iter().find(|(run, _)| run.contains(gfn)) else { return Ok(0) };
        let at = address - run.first.0 * PAGE_SIZE_U64;
        let there = run.count.saturating_mul(PAGE_SIZE_U64) - at;
        let bytes = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        let Some(room) = buffer.get_mut(..bytes) else { return Ok(0) };
        let offset = begin.saturating_add(at);
        let read = self.file.read_exact_at(room, offset);
        read.map_err(|source| ExportError::Read { offset, bytes: bytes as u64, source })?;
        Ok(bytes)
    }
}

impl PageTarget for Image<'_> {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        let next = self.places.partition_point(|(run, _)| run.first <= gfn);
        let place = next.checked_sub(1).and_then(|place| self.places.get(place)).filter(|(run, _)| run.contains(gfn));
        if place.is_none() && self.devices.iter().any(|run| run.contains(gfn)) {
            self.memory.add_page(gfn, page);
            return Ok(());
        }
        let (run, begin) = place.ok_or("no page of guest memory")?;
        let at = begin.saturating_add((gfn.0 - run.first.0).saturating_mul(PAGE_SIZE_U64));
        if at != self.waiting_at + self.waiting.len() as u64 || self.waiting.len() >= WRITE_BYTES {
            self.flush()?;
            self.waiting_at = at;
        }
        self.waiting.extend_from_slice(page);
        self.memory.add_page(gfn, page);
        #[cfg(feature = "kvm")]
        if let Some(search) = &mut self.search {
            search.look_at(gfn, page);
        }
        self.pages += 1;
        Ok(())
    }
}
