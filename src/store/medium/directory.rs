//! A directory of the file system, and everything in it relative to its descriptor.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, IoSlice, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::mapped_file::MappedFile;
use super::traits::{Displaced, FileId, HeldLock, Lock, Medium, MediumFile, Named, WritableFile, WritableMedium};
use super::writeback::begin_writeback;
use crate::format::IndexBytes;
use crate::store::error::StoreError;

/// Guest memory is for its owner alone, whatever the umask says.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIRECTORY_MODE: Mode = Mode::RWXU;

/// A directory of the file system, by its descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Directory(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    file: File,
    /// Where it was opened. Absolute, so that it means the same wherever the process goes.
    path: PathBuf,
    /// The directory that it was opened in, and its name there.
    within: Option<(Directory, String)>,
}

/// The most that is read of a lock's text.
const LOCK_TEXT_BYTES_MAX: u64 = 256;

/// How often a lock is taken again whose file was removed while it was taken.
const LOCK_TRIES: u32 = 8;

impl Directory {
    /// Opens the directory at `path`. Links to it are followed.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = std::path::absolute(path).and_then(|path| {
            let file = retry_on_intr(|| rustix::fs::open(&path, DIRECTORY_FLAGS, Mode::empty()))?;
            Ok(Self(Arc::new(Opened { file: file.into(), path, within: None })))
        });
        opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => match std::fs::read_link(path) {
                Ok(to) => StoreError::DanglingLink { link: path.to_owned(), to },
                Err(_) => StoreError::Missing { dir: path.to_owned() },
            },
            io::ErrorKind::NotADirectory => StoreError::NotADirectory { path: path.to_owned() },
            _ => StoreError::io("open", path)(error),
        })
    }

    /// Makes a directory and its name durable. One that exists is taken as it is, with the mode
    /// that its maker gave it.
    pub(crate) fn make(path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(DIRECTORY_MODE.bits()).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            result => result?,
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }

    /// The directory itself.
    pub(crate) fn file(&self) -> &File {
        &self.0.file
    }

    /// Opens a directory in this one, and no symbolic link.
    pub(crate) fn within(&self, name: &str) -> io::Result<Self> {
        let flags = DIRECTORY_FLAGS.union(OFlags::NOFOLLOW);
        match retry_on_intr(|| rustix::fs::openat(self.file(), name, flags, Mode::empty())) {
            Ok(file) => {
                let (path, within) = (self.0.path.join(name), Some((self.clone(), name.to_owned())));
                Ok(Self(Arc::new(Opened { file: file.into(), path, within })))
            }
            Err(Errno::NOTDIR) if self.is_link(name) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a symbolic link and must be a directory"))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_link(&self, name: &str) -> bool {
        let stat = rustix::fs::statat(self.file(), name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    }

    /// Opens a file without waiting for the other end of a pipe, and takes nothing but a regular
    /// one.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(retry_on_intr(|| rustix::fs::openat(self.file(), name, flags, FILE_MODE))?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
    }

    /// The directory that a path from this one leads to, and the name there.
    fn parent_of<'a>(&self, path: &'a str) -> io::Result<(Self, &'a str)> {
        let mut names = path.split('/');
        let name = names.next_back().unwrap_or_default();
        Ok((names.try_fold(self.clone(), |directory, name| directory.within(name))?, name))
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(id_of(&rustix::fs::fstat(self.file())?))
    }
}

fn id_of(stat: &Stat) -> FileId {
    FileId { device: stat.st_dev, inode: stat.st_ino }
}

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What was found, where there is anything.
fn seen(stat: rustix::io::Result<Stat>) -> io::Result<Option<FileId>> {
    match stat {
        Ok(stat) => Ok(Some(id_of(&stat))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Medium for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.file())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn MediumFile>> {
        Ok(Box::new(self.open_file(name, OFlags::RDONLY)?))
    }

    fn map(&self, name: &str) -> io::Result<Box<dyn IndexBytes>> {
        Ok(Box::new(MappedFile::new(&self.open_file(name, OFlags::RDONLY)?)?))
    }

    fn look(&self, name: &str) -> io::Result<Named> {
        let stat = rustix::fs::statat(self.file(), name, AtFlags::empty())?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(Named { is_file, bytes: u64::try_from(stat.st_size).unwrap_or_default() })
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        Ok(Arc::new(self.within(name)?))
    }

    fn writable(&self) -> Option<&dyn WritableMedium> {
        Some(self)
    }
}

impl WritableMedium for Directory {
    fn open_to_write(&self, name: &str) -> io::Result<Box<dyn WritableFile>> {
        Ok(Box::new(self.open_file(name, OFlags::RDWR)?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn WritableFile>> {
        Ok(Box::new(self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(self.file(), from, self.file(), to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.file(), name, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        self.file().sync_all()
    }

    fn sync_file(&self, name: &str) -> io::Result<()> {
        self.open_file(name, OFlags::RDONLY)?.sync_all()
    }

    fn directory_to_write(&self, name: &str) -> io::Result<Arc<dyn WritableMedium>> {
        Ok(Arc::new(self.within(name)?))
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(self.file(), name, DIRECTORY_MODE)?)
    }

    fn move_below(&self, from: &str, to: &str) -> io::Result<()> {
        let ((one, old), (other, new)) = (self.parent_of(from)?, self.parent_of(to)?);
        Ok(rustix::fs::renameat(one.file(), old, other.file(), new)?)
    }

    fn lock(&self, name: &str, text: &str) -> io::Result<Lock> {
        for _ in 0..LOCK_TRIES {
            let file = self.open_file(name, OFlags::RDWR | OFlags::CREATE)?;
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
            let mut held = HeldFile(file);
            if self.file_id(name)? == Some(held.id()?) {
                let HeldFile(file) = &mut held;
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(text.as_bytes())?;
                return Ok(Lock::Held(Box::new(held)));
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "its file is removed again and again"))
    }

    fn room(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(self.file())?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn is_locked(&self, name: &str) -> bool {
        // Takes the lock for a moment, shared with others who look.
        let Ok(lock) = self.open_file(name, OFlags::RDONLY) else { return false };
        let is_locked = matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock));
        // Closing it is not enough: see `HeldFile`.
        let _ = lock.unlock();
        is_locked
    }

    fn file_id(&self, name: &str) -> io::Result<Option<FileId>> {
        seen(rustix::fs::statat(self.file(), name, AtFlags::empty()))
    }

    fn check_place(&self) -> Result<(), Displaced> {
        let Opened { path, within, .. } = &*self.0;
        let found = match within {
            None => seen(rustix::fs::stat(path)),
            Some((directory, name)) => {
                directory.check_place()?;
                seen(rustix::fs::statat(directory.file(), name.as_str(), AtFlags::SYMLINK_NOFOLLOW))
            }
        };
        let displaced = |expected: String, found: String| Err(Displaced { path: path.clone(), expected, found });
        match (self.id(), found) {
            (Ok(id), Ok(Some(found))) if id == found => Ok(()),
            (Ok(id), Ok(Some(found))) => displaced(format!("the directory that was opened ({id})"), found.to_string()),
            (Ok(id), Ok(None)) => displaced(format!("the directory that was opened ({id})"), "no such directory".to_owned()),
            (Err(error), _) | (_, Err(error)) => displaced("the directory that was opened".to_owned(), error.to_string()),
        }
    }
}

/// A file that is locked until this is dropped. Closing it is not enough: a process that another
/// thread starts at this moment has it open as well, until it becomes another program.
#[derive(Debug)]
struct HeldFile(File);

impl HeldLock for HeldFile {
    fn id(&self) -> io::Result<FileId> {
        MediumFile::id(&self.0)
    }
}

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
        Ok(id_of(&rustix::fs::fstat(self)?))
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
}

impl WritableFile for File {
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

    fn begin_sync(&self, bytes: Range<u64>) {
        begin_writeback(self, bytes);
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(self, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn forget_cached(&self) {
        // Where the advice is not taken, reading gives what the system has: no worse than not
        // asking.
        let _ = rustix::fs::fadvise(self, 0, None, Advice::DontNeed);
    }
}
