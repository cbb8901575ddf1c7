//! The files of a Linux guest: read, and checked as far as files can be, before there is a machine.

use std::fs;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use serde::{Deserialize, Serialize};
use vm_memory::ByteValued;

use super::cpu_level::CpuLevel;
use super::error::LinuxError;
use super::layout::{COMMAND_LINE_ROOM, HIGH_BEGIN};
use crate::page::PAGE_SIZE_U64;
use crate::vmm::devices::DiskBase;
use crate::xxh3::xxh3_128;

/// Where a bzImage has its header.
const HEADER_AT: usize = 0x1f1;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The version of the boot protocol from which on a kernel says whether it can be entered in 64-bit
/// mode.
const PROTOCOL_64: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1;
/// The longest command line of a kernel that does not say: an ELF image.
const COMMAND_LINE_MAX: usize = 2047;
/// The highest address of an initrd's last byte for a kernel that does not say.
const INITRD_ADDRESS_MAX: u64 = 0x7fff_ffff;

/// A file by its content, as a chain's description has it. What is restored has it in memory: the
/// file is not needed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// Its size in bytes.
    pub bytes: u64,
    /// XXH3-128 of its content, in hexadecimal digits.
    pub xxh3: String,
}

impl FileId {
    fn of(content: &[u8]) -> Self {
        Self { bytes: content.len() as u64, xxh3: format!("{:032x}", xxh3_128(content)) }
    }
}

/// A file that was read.
#[derive(Clone)]
pub(in crate::vmm) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("path", &self.path).field("bytes", &self.content.len()).finish()
    }
}

impl Loaded {
    fn read(path: &Path) -> Result<Self, LinuxError> {
        let content = fs::read(path).map_err(|source| LinuxError::File { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), content })
    }

    pub(in crate::vmm) fn id(&self) -> FileId {
        FileId::of(&self.content)
    }
}

/// What kind of file a kernel is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// What distributions install as `vmlinuz`.
    BzImage(setup_header),
    /// A `vmlinux`.
    Elf,
}

/// A kernel, perhaps with an initrd, and its command line.
#[derive(Clone, Debug)]
pub struct Boot {
    pub(in crate::vmm) kernel: Loaded,
    pub(super) kind: Kind,
    pub(in crate::vmm) initrd: Option<Loaded>,
    pub(in crate::vmm) command_line: String,
    pub(in crate::vmm) cpu: CpuLevel,
    pub(in crate::vmm) disks: Vec<DiskBase>,
}

impl Boot {
    /// Reads the files, and checks that `kernel` is a bzImage that can be entered in 64-bit mode or
    /// an ELF image, and that the command line is one.
    ///
    /// # Errors
    /// [`LinuxError::File`], [`LinuxError::NoKernel`], [`LinuxError::CommandLine`].
    pub fn read(kernel: &Path, initrd: Option<&Path>, command_line: &str) -> Result<Self, LinuxError> {
        let kernel = Loaded::read(kernel)?;
        let kind = Kind::of(&kernel)?;
        let initrd = initrd.map(Loaded::read).transpose()?;
        let (found, most) = (command_line.len(), kind.command_line_max());
        if found > most || command_line.contains('\0') {
            return Err(LinuxError::CommandLine { found, most });
        }
        Ok(Self { kernel, kind, initrd, command_line: command_line.to_owned(), cpu: CpuLevel::Host, disks: Vec::new() })
    }

    /// Has the guest told of no more than a level of the processor.
    #[must_use]
    pub const fn with_cpu(mut self, cpu: CpuLevel) -> Self {
        self.cpu = cpu;
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn with_disk(mut self, base: DiskBase) -> Self {
        self.disks.push(base);
        self
    }

    /// Where the initrd goes, if there is one, behind a kernel that needs memory up to
    /// `kernel_end`, with memory from 0 to `low_end` (guest physical addresses).
    pub(super) fn initrd_address(&self, kernel_end: u64, low_end: u64, memory_bytes: u64) -> Result<Option<u64>, LinuxError> {
        if kernel_end > low_end {
            return Err(LinuxError::TooLittleMemory { found: memory_bytes, needed: kernel_end });
        }
        let Some(initrd) = &self.initrd else { return Ok(None) };
        let bytes = initrd.content.len() as u64;
        let end = low_end.min(self.kind.initrd_address_max() + 1);
        let first = kernel_end.next_multiple_of(PAGE_SIZE_U64);
        let room = end.saturating_sub(first);
        if bytes > room {
            return Err(LinuxError::InitrdTooLarge { path: initrd.path.clone(), bytes, room });
        }
        // As high as it may be: the kernel unpacks itself from below.
        Ok(Some((end - bytes) / PAGE_SIZE_U64 * PAGE_SIZE_U64))
    }

    /// Checks, as far as the files alone tell, that all of it fits into memory that has no gap from
    /// 0 to `low_end`.
    pub(super) fn check_fit(&self, low_end: u64, memory_bytes: u64) -> Result<(), LinuxError> {
        self.initrd_address(self.kind.end(self.kernel.content.len() as u64), low_end, memory_bytes).map(drop)
    }
}

impl Kind {
    fn of(kernel: &Loaded) -> Result<Self, LinuxError> {
        let not = |reason| Err(LinuxError::NoKernel { path: kernel.path.clone(), reason });
        if kernel.content.starts_with(b"\x7fELF") {
            return Ok(Self::Elf);
        }
        let Some(bytes) = kernel.content.get(HEADER_AT..HEADER_AT + size_of::<setup_header>()) else {
            return not("it is too short for one, and no ELF image");
        };
        let mut header = setup_header::default();
        header.as_mut_slice().copy_from_slice(bytes);
        let (magic, version, flags) = (header.header, header.version, header.xloadflags);
        if magic != HEADER_MAGIC {
            return not("it has neither the header of a bzImage nor that of an ELF image");
        }
        if version < PROTOCOL_64 || flags & XLF_KERNEL_64 == 0 {
            return not("it can't be entered in 64-bit mode");
        }
        Ok(Self::BzImage(header))
    }

    fn command_line_max(&self) -> usize {
        let most = match self {
            Self::BzImage(header) => usize::try_from(header.cmdline_size).unwrap_or(usize::MAX),
            Self::Elf => COMMAND_LINE_MAX,
        };
        most.min(COMMAND_LINE_ROOM - 1)
    }

    fn initrd_address_max(&self) -> u64 {
        match self {
            Self::BzImage(header) => u64::from(header.initrd_addr_max),
            Self::Elf => INITRD_ADDRESS_MAX,
        }
    }

    /// Where what the kernel needs to start in ends, if its file of `bytes` says so.
    pub(super) fn end(&self, bytes: u64) -> u64 {
        match self {
            // It unpacks itself to where it prefers to be, or to where it was put, and uses so much
            // from there on.
            Self::BzImage(header) => {
                let (preferred, size) = (header.pref_address, u64::from(header.init_size));
                HIGH_BEGIN.max(preferred).saturating_add(size).max(HIGH_BEGIN.saturating_add(bytes))
            }
            Self::Elf => HIGH_BEGIN,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// A bzImage that is nothing but its header.
    fn kernel(change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
        let mut header = setup_header {
            header: HEADER_MAGIC,
            version: 0x20f,
            xloadflags: 1,
            cmdline_size: 2047,
            initrd_addr_max: 0x7fff_ffff,
            pref_address: 16 << 20,
            init_size: 32 << 20,
            ..Default::default()
        };
        change(&mut header);
        let mut bytes = vec![0; 4096];
        bytes[HEADER_AT..HEADER_AT + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        bytes
    }

    fn read(content: &[u8], command_line: &str) -> Result<Boot, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, content).unwrap();
        Boot::read(&path, None, command_line).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(read(&kernel(|_| {}), "console=ttyS0").is_ok());
        for (content, reason) in [
            (vec![], "too short"),
            (b"#!/bin/sh\n".to_vec(), "too short"),
            (vec![0; 1 << 20], "neither the header"),
            (kernel(|header| header.header = 0), "neither the header"),
            (kernel(|header| header.version = 0x20b), "64-bit"),
            (kernel(|header| header.xloadflags = 2), "64-bit"),
        ] {
            let error = read(&content, "").unwrap_err();
            assert!(error.contains(reason) && error.contains("kernel"), "{error}");
        }
        let error = Boot::read(Path::new("/nonexistent"), None, "").unwrap_err();
        assert!(matches!(error, LinuxError::File { .. }), "{error}");
    }

    #[test]
    fn a_command_line_is_as_long_as_the_kernel_takes() {
        assert!(read(&kernel(|_| {}), &"x".repeat(2047)).is_ok());
        for line in ["x".repeat(2048), "a\0b".to_owned()] {
            assert!(read(&kernel(|_| {}), &line).unwrap_err().contains("at most 2047"));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        const MIB: u64 = 1 << 20;
        let mut boot = read(&kernel(|_| {}), "").unwrap();
        assert!(
            matches!(boot.check_fit(47 * MIB, 47 * MIB), Err(LinuxError::TooLittleMemory { needed, .. }) if needed == 48 * MIB)
        );
        boot.check_fit(48 * MIB, 48 * MIB).unwrap();
        boot.initrd = Some(Loaded { path: "initrd".into(), content: vec![1; 5000] });
        let error = boot.check_fit(48 * MIB + 4096, 48 * MIB + 4096).unwrap_err();
        assert!(matches!(error, LinuxError::InitrdTooLarge { bytes: 5000, room: 4096, .. }), "{error}");
        let end = boot.kind.end(4096);
        assert_eq!(boot.initrd_address(end, 64 * MIB, 64 * MIB).unwrap(), Some(64 * MIB - 8192));
        // Not above what the kernel reaches, however much memory there is.
        assert_eq!(boot.initrd_address(end, 3 << 30, 8 << 30).unwrap(), Some((2 << 30) - 8192));
    }
}
