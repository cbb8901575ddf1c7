//! The file operations that a chain is made of, so that tests can put a disk underneath that fails on purpose.

use std::any::Any;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::format::IndexBytes;
use crate::memory::MappedFile;

/// A directory. Names are of files in it.
pub(crate) trait Medium: Send + Sync + fmt::Debug {
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a regular file that exists.
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn MediumFile>>;
    /// Opens a file that nobody writes any more, to be read in place.
    fn map(&self, name: &str) -> io::Result<Box<dyn IndexBytes>>;
    /// Makes a file that must not exist.
    fn create(&self, name: &str) -> io::Result<Box<dyn MediumFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names created, renamed and removed durable.
    fn sync(&self) -> io::Result<()>;
    /// A directory in this one, which need not exist.
    fn directory(&self, name: &str) -> Arc<dyn Medium>;
    /// Makes a directory in this one. One that exists is taken as it is.
    fn make_directory(&self, name: &str) -> io::Result<()>;
    /// Takes the lock and writes `text` into it, or says what its holder wrote.
    fn lock(&self, name: &str, text: &str) -> io::Result<Lock>;
}

/// A file of a [`Medium`].
pub(crate) trait MediumFile: Send + Sync + fmt::Debug {
    fn len(&self) -> io::Result<u64>;
    /// What tells the file from every other one for as long as it is open.
    fn id(&self) -> io::Result<FileId>;
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `parts`, one behind the other, with one call where the system allows. After an error any part may be there.
    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    fn sync(&self) -> io::Result<()>;
    /// Takes space for bytes behind the end of the file, without a change of its length.
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Asks for later reads to come from the medium and not from what the system keeps of it. Advice: nothing depends on it that
    /// checksums do not check.
    fn forget_cached(&self);
}

/// What came of taking a lock.
pub(crate) enum Lock {
    /// Held until dropped.
    Held(Box<dyn Any + Send + Sync>),
    /// Somebody else holds it, and wrote this.
    Taken(String),
}

/// What tells a file or directory from every other one for as long as somebody has it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A directory of the file system.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// The directory, once it was synced: it needs no descriptor of its own each time.
    opened: OnceLock<File>,
}

/// The most that is read of a lock's text.
const LOCK_TEXT_BYTES_MAX: u64 = 256;

impl Directory {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), opened: OnceLock::new() }
    }

    /// Makes a directory and its name durable. One that exists is taken as it is.
    pub(crate) fn make(path: &Path) -> io::Result<()> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            result => result?,
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }

    /// Opens without waiting for the other end of a pipe, and takes nothing but a regular file.
    fn open_with(&self, name: &str, options: &mut OpenOptions) -> io::Result<File> {
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC).bits()).unwrap_or_default();
        let file = options.custom_flags(flags).open(self.path.join(name))?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
    }
}

impl Medium for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn MediumFile>> {
        Ok(Box::new(self.open_with(name, OpenOptions::new().read(true).write(write))?))
    }

    fn map(&self, name: &str) -> io::Result<Box<dyn IndexBytes>> {
        Ok(Box::new(MappedFile::new(&self.open_with(name, OpenOptions::new().read(true))?)?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn MediumFile>> {
        Ok(Box::new(self.open_with(name, OpenOptions::new().read(true).write(true).create_new(true))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        let directory = match self.opened.get() {
            Some(directory) => directory,
            None => {
                let opened = File::open(&self.path)?;
                self.opened.get_or_init(|| opened)
            }
        };
        directory.sync_all()
    }

    fn directory(&self, name: &str) -> Arc<dyn Medium> {
        Arc::new(Self::new(&self.path.join(name)))
    }

    fn make_directory(&self, name: &str) -> io::Result<()> {
        Self::make(&self.path.join(name))
    }

    fn lock(&self, name: &str, text: &str) -> io::Result<Lock> {
        let mut file = self.open_with(name, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = Vec::new();
                file.take(LOCK_TEXT_BYTES_MAX).read_to_end(&mut holder)?;
                let holder = String::from_utf8_lossy(&holder);
                return Ok(Lock::Taken(holder.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        Ok(Lock::Held(Box::new(HeldFile(file))))
    }
}

/// A file that is locked until this is dropped. Closing it is not enough: a process that another thread starts at this moment has it open as well, until
/// it becomes another program.
struct HeldFile(File);

impl Drop for HeldFile {
    fn drop(&mut self) {
        // What is left of it goes when the last one closes it.
        let _ = self.0.unlock();
    }
}

impl IndexBytes for MappedFile {
    fn ready(&self, offset: usize, len: usize) -> io::Result<()> {
        self.populate(offset, len)
    }
}

impl MediumFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn id(&self) -> io::Result<FileId> {
        let found = self.metadata()?;
        Ok(FileId { device: found.dev(), inode: found.ino() })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.read_at(room, offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write(&self, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut parts = parts.as_mut_slice();
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match rustix::io::pwritev(self, parts, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut parts, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(self, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn forget_cached(&self) {
        // Where the advice is not taken, reading gives what the system has: no worse than not asking.
        let _ = rustix::fs::fadvise(self, 0, None, Advice::DontNeed);
    }
}
