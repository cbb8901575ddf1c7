//! A disk of an epoch as a file of its own: the base, and over it what the guest wrote.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::disk::{BLOCKS_OF_A_MAP_FRAME, DiskBase, DiskBaseError, each_piece};
use crate::format::MemoryDigest;
use crate::page::{EpochId, Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageBytes, PageRun};
use crate::restore::{ExportError, Exported, PageTarget, Plan, RestoreError, TargetError};
use crate::store::Chain;

/// Why a disk could not be written to a file. What the file holds then is worth nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskImageError {
    /// The base image.
    #[error(transparent)]
    Base(#[from] DiskBaseError),
    /// The chain, or the file.
    #[error(transparent)]
    Export(#[from] ExportError),
}

impl From<RestoreError> for DiskImageError {
    fn from(error: RestoreError) -> Self {
        Self::Export(error.into())
    }
}

/// Writes the disk over `base`, whose frames are `run` and whose image is at `image` if it is not
/// where it was, as it was at `epoch`, to `file`, which must be empty. Holes of the base stay
/// holes. Nothing is synced. `progress` is called with the number of the epoch's pages done and in
/// all.
///
/// # Errors
/// [`DiskImageError`]: among others an epoch that the chain does not hold, damage, another base, an
/// audit that differs.
pub fn write_disk_image(
    chain: &Chain,
    epoch: EpochId,
    (base, run): (&DiskBase, PageRun),
    image: Option<&Path>,
    file: &File,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Exported, DiskImageError> {
    let plan = Plan::new(chain, epoch)?;
    let source = base.open(image)?;
    let failed = |source| ExportError::Write { offset: 0, bytes: base.bytes, source };
    file.set_len(base.bytes).map_err(failed)?;
    each_piece(&source, base.bytes, |at, piece| file.write_all_at(piece, at)).map_err(failed)?;
    let blocks = base.blocks();
    let map_bytes = usize::try_from(blocks.div_ceil(BLOCKS_OF_A_MAP_FRAME)).unwrap_or_default() * PAGE_SIZE;
    let mut disk = Blocks {
        file,
        bytes: base.bytes,
        first: run.first,
        blocks,
        written: vec![0; map_bytes],
        seen: vec![0; map_bytes],
        memory: MemoryDigest::default(),
    };
    plan.fill(&mut disk, progress).map_err(RestoreError::of_target::<ExportError>)?;
    let mut pages = 0;
    for block in 0..blocks {
        if bit(&disk.written, block) {
            pages += 1;
            if !bit(&disk.seen, block) {
                disk.write(block, &[0; PAGE_SIZE])?;
            }
        }
    }
    match chain.epoch(epoch).map_err(RestoreError::from)?.commit.audit {
        Some(expected) if expected != disk.memory => Err(ExportError::Audit { epoch, expected, found: disk.memory }.into()),
        _ => Ok(Exported { epoch, file_bytes: base.bytes, pages, memory: disk.memory }),
    }
}

/// A disk in the making.
struct Blocks<'f> {
    file: &'f File,
    bytes: u64,
    first: Gfn,
    blocks: u64,
    /// A bit for each block that the guest wrote, as the disk's memory has them.
    written: Vec<u8>,
    /// And for each that came. Those that the guest wrote and that did not come are zeros.
    seen: Vec<u8>,
    memory: MemoryDigest,
}

impl Blocks<'_> {
    fn write(&self, block: u64, page: &PageBytes) -> Result<(), ExportError> {
        let offset = block * PAGE_SIZE_U64;
        let bytes = (self.bytes - offset).min(PAGE_SIZE_U64);
        let part = page.get(..usize::try_from(bytes).unwrap_or(PAGE_SIZE)).unwrap_or(page);
        self.file.write_all_at(part, offset).map_err(|source: io::Error| ExportError::Write { offset, bytes, source })
    }
}

impl PageTarget for Blocks<'_> {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        self.memory.add_page(gfn, page);
        let Some(frame) = gfn.0.checked_sub(self.first.0) else { return Ok(()) };
        if frame < self.blocks {
            self.write(frame, page)?;
            set(&mut self.seen, frame);
        } else if let Ok(at) = usize::try_from((frame - self.blocks).saturating_mul(PAGE_SIZE_U64)) {
            // Frames of disks behind this one have no place.
            let place = self.written.get_mut(at..).unwrap_or_default();
            place.iter_mut().zip(page).for_each(|(place, byte)| *place = *byte);
        }
        Ok(())
    }
}

fn bit(bits: &[u8], block: u64) -> bool {
    usize::try_from(block / 8).ok().and_then(|at| bits.get(at)).is_some_and(|byte| byte >> (block % 8) & 1 != 0)
}

fn set(bits: &mut [u8], block: u64) {
    if let Some(byte) = usize::try_from(block / 8).ok().and_then(|at| bits.get_mut(at)) {
        *byte |= 1 << (block % 8);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use super::*;
    use crate::epoch::{Engine, EngineOptions, Guest, GuestError, Start};
    use crate::format::Trigger;
    use crate::machine::MachineState;
    use crate::memory::GuestMemory;
    use crate::parked::Parked;
    use crate::store::{NewChain, Writer, WriterOptions};
    use crate::track::{SimulatedMemory, SimulatedTracker};
    use crate::vmm::devices::disk::{Disk, device_regions};

    /// A machine that does nothing by itself.
    struct Still;

    impl Guest for Still {
        type State = MachineState;

        fn park(&mut self) -> Result<(), GuestError> {
            Ok(())
        }

        fn capture(&mut self, _parked: &Parked<'_>, into: &mut MachineState) -> Result<(), GuestError> {
            *into = MachineState::default();
            Ok(())
        }

        fn resume(&mut self) {}

        fn halt(&mut self) {}
    }

    fn text(bytes: usize, salt: usize) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from((at / 100 + salt) % 251).unwrap()).collect()
    }

    #[test]
    fn a_disk_of_each_epoch_is_its_base_with_what_was_written_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // The last block is not whole.
        let mut model = text((1 << 20) + 512, 0);
        fs::write(path("base"), &model).unwrap();
        let base = DiskBase::read(&path("base")).unwrap();
        let other = DiskBase::read(&path("base")).unwrap();
        let guest = [PageRun { first: Gfn(0), count: 8 }];
        let regions = device_regions(&guest, &[base.clone(), other]);
        let memory = GuestMemory::with_devices(&guest, &regions, 64).unwrap();
        let disk = Disk::open(&base, None, memory.clone(), regions[0]).unwrap();
        let behind = Disk::open(&base, None, memory.clone(), regions[1]).unwrap();
        let new = NewChain {
            memory: guest.iter().chain(&regions).copied().collect(),
            device_runs: 2,
            vcpus: 1,
            machine: serde_json::Value::Null,
        };
        let writer = Writer::create(path("store"), &new, WriterOptions::default()).unwrap();
        let tracker = SimulatedTracker::new(SimulatedMemory::new(16, 256, 64));
        let options = EngineOptions { budget_pages: 1024, audit_every: std::num::NonZeroU64::new(1), ..EngineOptions::default() };
        let mut engine = Engine::new(memory, Box::new(tracker), Box::new(writer), Start::Fresh, options).unwrap();
        let mut models = Vec::new();
        let last = model.len() - 512;
        // Text; zeros over text; in part, at the end; nothing; text over zeros.
        for (offset, bytes) in
            [(4096, text(8192, 9)), (12288, vec![0; 8192]), (last, text(512, 3)), (0, vec![]), (12288, text(512, 7))]
        {
            disk.write(offset as u64, &bytes).unwrap();
            behind.write(0, &text(4096, offset)).unwrap();
            model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            engine.cut(&mut Still, Trigger::Request).unwrap();
            models.push(model.clone());
        }
        assert!(engine.finish().error.is_none());

        let chain = Chain::open(path("store")).unwrap();
        for (model, epoch) in models.iter().zip(1..) {
            let name = path(&format!("disk{epoch}"));
            let file = File::create_new(&name).unwrap();
            write_disk_image(&chain, EpochId(epoch), (&base, regions[0]), None, &file, &mut |_, _| {}).unwrap();
            assert!(fs::read(&name).unwrap() == *model, "epoch {epoch}");
            // A machine that is restored reads the same.
            let mut memory = GuestMemory::with_devices(&guest, &regions, 64).unwrap();
            Plan::new(&chain, EpochId(epoch)).unwrap().fill(&mut memory, &mut |_, _| {}).unwrap();
            let mut read = vec![0; model.len()];
            Disk::open(&base, None, memory, regions[0]).unwrap().read(0, &mut read).unwrap();
            assert!(read == *model, "epoch {epoch}");
        }
    }
}
