//! A disk: a base image that is never written, and over it the blocks that the guest wrote, which
//! are memory of a device and so in every checkpoint.
//!
//! The first frames of a disk's memory are its blocks, a page each, as they were written last; the
//! frames behind them hold a bit for each block that was. Everything else is the base's. A restored
//! machine needs the same base: a chain knows it by its size and content.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{GuestMemory, MemoryError};
use crate::page::{Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageRun};
use crate::xxh3::Xxh3;

/// Bytes of a sector, in which a disk is addressed.
pub(super) const SECTOR_BYTES: u64 = 512;
/// The largest disk: 1 TiB. Every block costs a frame's share of the engine's tables.
const BYTES_MAX: u64 = 1 << 40;
/// Disks' memory begins above all guest physical addresses that a guest may have memory at, at a
/// multiple of this.
const ALIGNMENT_FRAMES: u64 = 1 << 18;
pub(super) const BLOCKS_OF_A_MAP_FRAME: u64 = PAGE_SIZE_U64 * 8;
/// Holes in a base are found in pieces of this size, and pieces of zeros do not count.
const PIECE_BYTES: usize = 64 << 10;

/// Where a file was when its content was hashed. As long as it is there, unchanged, it need not be
/// hashed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    device: u64,
    inode: u64,
    /// The time of the last change, of content or else: nobody can set it.
    changed_s: i64,
    changed_ns: i64,
}

/// Why a disk's base image can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskBaseError {
    /// A file that can't be read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that can't be a base image.
    #[error("{} has {found} bytes: a disk's image has whole sectors of 512 bytes, and 1 to {most} bytes", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The largest size in bytes.
        most: u64,
    },
    /// A base image that a restored machine needs can't be read.
    #[error("the base image of a disk, {}", path.display())]
    Base {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A base image is not the one that the guest began with.
    #[error("{} is not the disk's base image any more: expected XXH3 {expected}, found {found}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Of the base image, in hexadecimal digits.
        expected: String,
        /// What it is.
        found: String,
    },
    /// More disks and network devices than there is room for.
    #[error("{found} disks and network devices: a machine has at most {most}")]
    TooMany {
        /// Asked for.
        found: usize,
        /// The most.
        most: usize,
    },
}

/// A disk's base image, as a chain's description has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskBase {
    /// Where it was.
    pub path: PathBuf,
    /// Its size in bytes: whole sectors of 512.
    pub bytes: u64,
    /// XXH3-128 over its pieces of 64 KiB that are not all zeros, each after its offset as eight
    /// bytes (the lowest first); in hexadecimal digits.
    pub xxh3: String,
    seen: Seen,
}

impl DiskBase {
    /// Reads all of the image, to know it again.
    ///
    /// # Errors
    /// [`DiskBaseError::File`], [`DiskBaseError::Size`].
    pub fn read(path: &Path) -> Result<Self, DiskBaseError> {
        let failed = |source| DiskBaseError::File { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(failed)?;
        let file = open(path).map_err(failed)?;
        // What changes from here on shows in the time of the last change.
        let (bytes, seen) = looked_at(&file).map_err(failed)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) || bytes > BYTES_MAX {
            return Err(DiskBaseError::Size { path: absolute, found: bytes, most: BYTES_MAX });
        }
        let xxh3 = hash(&file, bytes).map_err(failed)?;
        Ok(Self { path: absolute, bytes, xxh3, seen })
    }

    /// Opens the image at `path`, or where it was, and checks that it is the same: that nobody
    /// changed it where it was, or else by its content.
    pub(super) fn open(&self, path: Option<&Path>) -> Result<File, DiskBaseError> {
        let path = path.unwrap_or(&self.path);
        let failed = |source| DiskBaseError::Base { path: path.to_owned(), source };
        let file = open(path).map_err(failed)?;
        let (bytes, seen) = looked_at(&file).map_err(failed)?;
        let changed = |found| DiskBaseError::Changed { path: path.to_owned(), expected: self.xxh3.clone(), found };
        if bytes != self.bytes {
            return Err(changed(format!("{bytes} bytes in place of {}", self.bytes)));
        }
        if seen != self.seen {
            let found = hash(&file, bytes).map_err(failed)?;
            if found != self.xxh3 {
                return Err(changed(found));
            }
        }
        Ok(file)
    }

    /// Whether a description that came from a store can be that of a disk.
    pub(super) fn check(&self) -> Result<(), DiskBaseError> {
        if self.bytes == 0 || !self.bytes.is_multiple_of(SECTOR_BYTES) || self.bytes > BYTES_MAX {
            return Err(DiskBaseError::Size { path: self.path.clone(), found: self.bytes, most: BYTES_MAX });
        }
        Ok(())
    }

    pub(super) const fn blocks(&self) -> u64 {
        self.bytes.div_ceil(PAGE_SIZE_U64)
    }

    const fn frames(&self) -> u64 {
        self.blocks() + self.blocks().div_ceil(BLOCKS_OF_A_MAP_FRAME)
    }
}

/// Which frames the disks have, beside a guest whose memory is in `guest`.
pub(in crate::vmm) fn device_regions(guest: &[PageRun], disks: &[DiskBase]) -> Vec<PageRun> {
    // Sizes may come from a store: what is too large is refused later.
    let aligned = |frame: u64| frame.saturating_add(ALIGNMENT_FRAMES - 1) / ALIGNMENT_FRAMES * ALIGNMENT_FRAMES;
    let end = guest.last().and_then(|run| run.end()).map_or(0, |end| end.0);
    let mut first = aligned(end.max(4 * ALIGNMENT_FRAMES));
    let place = |disk: &DiskBase| {
        let run = PageRun { first: Gfn(first), count: disk.frames() };
        first = aligned(first.saturating_add(run.count));
        run
    };
    disks.iter().map(place).collect()
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let is_file = file.metadata()?.file_type().is_file();
    if is_file { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
}

fn looked_at(file: &File) -> io::Result<(u64, Seen)> {
    let found = file.metadata()?;
    let seen = Seen { device: found.dev(), inode: found.ino(), changed_s: found.ctime(), changed_ns: found.ctime_nsec() };
    Ok((found.len(), seen))
}

fn hash(file: &File, bytes: u64) -> io::Result<String> {
    let mut hasher = Xxh3::new();
    each_piece(file, bytes, |at, piece| {
        hasher.update(&at.to_le_bytes());
        hasher.update(piece);
        Ok(())
    })?;
    Ok(format!("{:032x}", hasher.digest128()))
}

/// Reads the pieces of a file that are not all zeros, each with its offset.
pub(super) fn each_piece(file: &File, bytes: u64, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < bytes {
        // A file system without holes says that all is data.
        at = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data / PIECE_BYTES as u64 * PIECE_BYTES as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => at,
        };
        let there = usize::try_from(bytes - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let read = piece.get_mut(..there).unwrap_or_default();
        file.read_exact_at(read, at)?;
        if read.iter().any(|byte| *byte != 0) {
            each(at, read)?;
        }
        at += PIECE_BYTES as u64;
    }
    Ok(())
}

/// Why a disk can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// The base can't be read. The guest is told.
    #[error("reading {bytes} bytes of {} at offset {offset}", path.display())]
    Base {
        path: PathBuf,
        offset: u64,
        bytes: usize,
        #[source]
        source: io::Error,
    },
    /// The disk's memory did not come, or is none.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Access(#[from] GuestMemoryError),
}

/// A disk in use.
#[derive(Debug)]
pub(super) struct Disk {
    base: File,
    path: PathBuf,
    bytes: u64,
    memory: GuestMemory,
    /// The guest physical address, if it were one, of the first block.
    blocks: u64,
    /// And of the bits.
    map: u64,
}

impl Disk {
    /// Opens `base`, at `path` if it is not where it was; its frames are `run` of `memory`.
    pub(super) fn open(base: &DiskBase, path: Option<&Path>, memory: GuestMemory, run: PageRun) -> Result<Self, DiskBaseError> {
        let file = base.open(path)?;
        let blocks = run.first.0 * PAGE_SIZE_U64;
        let map = blocks + base.blocks() * PAGE_SIZE_U64;
        Ok(Self { base: file, path: path.unwrap_or(&base.path).to_owned(), bytes: base.bytes, memory, blocks, map })
    }

    /// Its size in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Pages that writing `bytes` bytes writes at most.
    pub(super) const fn pages_written(bytes: u64) -> u64 {
        // Blocks, the first and the last perhaps in part; and bits, whose frame may end in between.
        bytes / PAGE_SIZE_U64 + 2 + 2
    }

    fn map_byte(&self, block: u64) -> Result<(GuestAddress, u8), DiskError> {
        let address = self.map + block / 8;
        self.memory.bring_range(address, 1)?;
        Ok((GuestAddress(address), 1 << (block % 8)))
    }

    fn is_written(&self, block: u64) -> Result<bool, DiskError> {
        let (address, bit) = self.map_byte(block)?;
        Ok(self.memory.device_ram().read_obj::<u8>(address)? & bit != 0)
    }

    fn note_written(&self, block: u64) -> Result<(), DiskError> {
        let (address, bit) = self.map_byte(block)?;
        let byte = self.memory.device_ram().read_obj::<u8>(address)?;
        if byte & bit == 0 {
            self.memory.device_ram().write_obj(byte | bit, address)?;
        }
        Ok(())
    }

    /// Reads `into.len()` bytes at `offset`, which lie within the disk.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let mut base_is_read = false;
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let (block, within) = (at / PAGE_SIZE_U64, at % PAGE_SIZE_U64);
            let count = (into.len() - done).min(PAGE_SIZE - usize::try_from(within).unwrap_or_default());
            if self.is_written(block)? {
                let address = self.blocks + at;
                self.memory.bring_range(address, count as u64)?;
                let piece = into.get_mut(done..done + count).unwrap_or_default();
                self.memory.device_ram().read_slice(piece, GuestAddress(address))?;
            } else if !base_is_read {
                // All of it at once: what was written since comes over it.
                self.read_base(at, into.get_mut(done..).unwrap_or_default())?;
                base_is_read = true;
            }
            done += count;
        }
        Ok(())
    }

    fn read_base(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let bytes = into.len();
        let read = self.base.read_exact_at(into, offset);
        read.map_err(|source| DiskError::Base { path: self.path.clone(), offset, bytes, source })
    }

    /// Writes `from` at `offset`; it lies within the disk. After an error of the base nothing of
    /// the block in hand is written.
    pub(super) fn write(&self, offset: u64, from: &[u8]) -> Result<(), DiskError> {
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let (block, within) = (at / PAGE_SIZE_U64, at % PAGE_SIZE_U64);
            let count = (from.len() - done).min(PAGE_SIZE - usize::try_from(within).unwrap_or_default());
            let begin = self.blocks + block * PAGE_SIZE_U64;
            self.memory.bring_range(begin, PAGE_SIZE_U64)?;
            if count < PAGE_SIZE && !self.is_written(block)? {
                let mut whole = [0; PAGE_SIZE];
                // The last block of a disk may be less than a page.
                let there = (self.bytes - block * PAGE_SIZE_U64).min(PAGE_SIZE_U64);
                let there = usize::try_from(there).unwrap_or(PAGE_SIZE);
                self.read_base(block * PAGE_SIZE_U64, whole.get_mut(..there).unwrap_or_default())?;
                self.memory.device_ram().write_slice(&whole, GuestAddress(begin))?;
            }
            let piece = from.get(done..done + count).unwrap_or_default();
            self.memory.device_ram().write_slice(piece, GuestAddress(begin + within))?;
            self.note_written(block)?;
            done += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::parked::Parked;

    fn disk(base: &[u8]) -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        fs::write(&path, base).unwrap();
        let base = DiskBase::read(&path).unwrap();
        let guest = [PageRun { first: Gfn(0), count: 4 }];
        let regions = device_regions(&guest, std::slice::from_ref(&base));
        let memory = GuestMemory::with_devices(&guest, &regions, 64).unwrap();
        let disk = Disk::open(&base, None, memory, regions[0]).unwrap();
        (dir, disk)
    }

    fn base(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from(at / 7 % 251).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn a_disk_is_what_was_written_over_its_base(
            sectors in 1_usize..80,
            steps in prop::collection::vec((any::<bool>(), 0_usize..80, 0_usize..40, any::<u8>()), 0..30),
        ) {
            let mut model = base(sectors * 512);
            let (dir, disk) = disk(&model);
            for (is_write, sector, count, byte) in steps {
                let from = sector.min(sectors) * 512;
                let to = (from + count * 512).min(model.len());
                if is_write {
                    let data: Vec<_> = (from..to).map(|at| byte.wrapping_add(u8::try_from(at % 256).unwrap())).collect();
                    disk.write(from as u64, &data).unwrap();
                    model[from..to].copy_from_slice(&data);
                }
                let mut read = vec![0; to - from];
                disk.read(from as u64, &mut read).unwrap();
                prop_assert!(read == model[from..to]);
            }
            let mut whole = vec![0; model.len()];
            disk.read(0, &mut whole).unwrap();
            prop_assert!(whole == model);
            prop_assert!(fs::read(dir.path().join("base")).unwrap() == base(sectors * 512), "the base was written");
        }
    }

    #[test]
    fn what_is_written_is_in_the_next_epoch() {
        let (_dir, disk) = disk(&base(1 << 20));
        let taken = || {
            let mut pages = Vec::new();
            disk.memory.written().take(&Parked::vouch(&mut ()), |gfn| pages.push(gfn.0));
            pages.sort_unstable();
            pages
        };
        disk.read(0, &mut [0; 8192]).unwrap();
        assert!(taken().is_empty());
        let first = 4 * ALIGNMENT_FRAMES;
        disk.write(5 * 4096 - 512, &[1; 1024]).unwrap();
        assert_eq!(taken(), [first + 4, first + 5, first + 256]);
        // The bits are there already.
        disk.write(4 * 4096, &[1; 512]).unwrap();
        assert_eq!(taken(), [first + 4]);
        assert!(Disk::pages_written(1024) >= 3);
    }

    #[test]
    fn a_base_is_known_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let content = base(300 << 10);
        fs::write(path("base"), &content).unwrap();
        let known = DiskBase::read(&path("base")).unwrap();
        known.open(None).unwrap();
        fs::write(path("copy"), &content).unwrap();
        known.open(Some(&path("copy"))).unwrap();
        // A byte, in place.
        let mut other = content.clone();
        other[200 << 10] ^= 1;
        fs::write(path("base"), &other).unwrap();
        let error = known.open(None).unwrap_err();
        assert!(matches!(&error, DiskBaseError::Changed { found, .. } if found.len() == 32), "{error}");
        fs::write(path("longer"), [&content[..], &[0; 512]].concat()).unwrap();
        let error = known.open(Some(&path("longer"))).unwrap_err();
        assert!(error.to_string().contains("307712 bytes in place of 307200"), "{error}");
        assert!(matches!(known.open(Some(&path("none"))), Err(DiskBaseError::Base { .. })));
        assert!(matches!(DiskBase::read(dir.path()), Err(DiskBaseError::File { .. })));
        for bytes in [0, 511, 1000] {
            fs::write(path("odd"), vec![1; bytes]).unwrap();
            assert!(matches!(DiskBase::read(&path("odd")), Err(DiskBaseError::Size { found, .. }) if found == bytes as u64));
        }
    }

    #[test]
    fn holes_and_zeros_are_the_same_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut content = vec![0; 1 << 20];
        content[600_000] = 7;
        fs::write(path("full"), &content).unwrap();
        let sparse = File::create(path("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(&[7], 600_000).unwrap();
        let hash = |name| DiskBase::read(&path(name)).unwrap().xxh3;
        assert_eq!(hash("full"), hash("sparse"));
        sparse.write_all_at(&[7], 600_000 - (64 << 10)).unwrap();
        assert_ne!(hash("full"), hash("sparse"));
    }

    #[test]
    fn disks_lie_above_the_guests_memory() {
        let base = |bytes| DiskBase {
            path: PathBuf::new(),
            bytes,
            xxh3: String::new(),
            seen: Seen { device: 0, inode: 0, changed_s: 0, changed_ns: 0 },
        };
        let run = |first, count| PageRun { first: Gfn(first), count };
        let disks = [base(512), base(1 << 30), base(4096)];
        assert_eq!(
            device_regions(&[run(0, 16)], &disks),
            [run(1 << 20, 2), run((1 << 20) + (1 << 18), (1 << 18) + 8), run((1 << 20) + (3 << 18), 2)]
        );
        assert_eq!(device_regions(&[run(0, 16), run(1 << 20, 1)], &disks)[0].first, Gfn((1 << 20) + (1 << 18)));
        assert!(device_regions(&[run(0, 16)], &[]).is_empty());
        base(BYTES_MAX).check().unwrap();
        base(BYTES_MAX + 512).check().unwrap_err();
    }
}
