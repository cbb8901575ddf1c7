//! The file operations that a store is made of, so that something else than a directory can be
//! underneath: a disk that fails on purpose, or, for those who only read, object storage.
//!
//! They are parted in two. [`Medium`] and [`MediumFile`] are what readers need: objects that are
//! listed and read. [`WritableMedium`] and [`WritableFile`] add what only a writer needs: it makes,
//! appends to, renames, removes, locks and syncs.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::format::IndexBytes;

/// A directory, for reading. Names are of files in it. It stays the directory that was opened,
/// whatever happens to its path.
pub(crate) trait Medium: Send + Sync + fmt::Debug {
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a regular file that exists.
    fn open(&self, name: &str) -> io::Result<Box<dyn MediumFile>>;
    /// Opens a file that nobody writes any more, to be read in place.
    fn map(&self, name: &str) -> io::Result<Box<dyn IndexBytes>>;
    /// What has the name at present, without opening it.
    fn look(&self, name: &str) -> io::Result<Named>;
    /// Opens a directory in this one. A symbolic link is none.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>>;
    /// The same directory for a writer, where this medium has writers at all.
    fn writable(&self) -> Option<&dyn WritableMedium> {
        None
    }
}

/// A file of a [`Medium`].
pub(crate) trait MediumFile: Send + Sync + fmt::Debug {
    fn len(&self) -> io::Result<u64>;
    /// What tells the file from every other one for as long as it is open.
    fn id(&self) -> io::Result<FileId>;
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

/// A directory that is written to.
pub(crate) trait WritableMedium: Medium {
    /// Opens a regular file that exists, for reading and writing.
    fn open_to_write(&self, name: &str) -> io::Result<Box<dyn WritableFile>>;
    /// Makes a file that must not exist.
    fn create(&self, name: &str) -> io::Result<Box<dyn WritableFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names created, renamed and removed durable.
    fn sync(&self) -> io::Result<()>;
    /// Makes the content of a file that exists durable.
    fn sync_file(&self, name: &str) -> io::Result<()>;
    /// Opens a directory in this one. A symbolic link is none.
    fn directory_to_write(&self, name: &str) -> io::Result<Arc<dyn WritableMedium>>;
    /// Makes a directory in this one that must not exist.
    fn create_directory(&self, name: &str) -> io::Result<()>;
    /// Makes a directory in this one. One that exists is taken as it is.
    fn make_directory(&self, name: &str) -> io::Result<()> {
        match self.create_directory(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }
    /// Moves a file or a directory to another place below this directory. Both places are paths
    /// from here on, in which no symbolic link is followed.
    fn move_below(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes the lock and writes `text` into it, or says what its holder wrote.
    fn lock(&self, name: &str, text: &str) -> io::Result<Lock>;
    /// Whether somebody holds the lock. Makes no file.
    fn is_locked(&self, name: &str) -> bool;
    /// Bytes that this process may still write to the disk, as far as the system tells: a quota may
    /// be less.
    fn room(&self) -> io::Result<u64>;
    /// Which file has the name at present.
    fn file_id(&self, name: &str) -> io::Result<Option<FileId>>;
    /// Whether whoever looks for this directory where it was opened still comes to it.
    fn check_place(&self) -> Result<(), Displaced>;
}

/// A file of a [`WritableMedium`].
pub(crate) trait WritableFile: MediumFile {
    /// Writes all of `parts`, one behind the other, with one call where the system allows. After an
    /// error any part may be there.
    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    fn sync(&self) -> io::Result<()>;
    /// Has the system begin to write these bytes to the medium, and does not wait for it. Advice:
    /// nothing is durable by it.
    fn begin_sync(&self, bytes: Range<u64>);
    /// Takes space without changing the length. `Unsupported` where that is not possible.
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Asks for later reads to come from the medium and not from what the system keeps of it.
    /// Advice: nothing depends on it that checksums do not check.
    fn forget_cached(&self);
}

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Whether it is a regular file.
    pub(crate) is_file: bool,
    pub(crate) bytes: u64,
}

/// What came of taking a lock.
pub(crate) enum Lock {
    /// Held until dropped.
    Held(Box<dyn HeldLock>),
    /// Somebody else holds it, and wrote this.
    Taken(String),
}

/// A lock that is held until this is dropped.
pub(crate) trait HeldLock: Send + Sync + fmt::Debug {
    /// Which file is locked.
    fn id(&self) -> io::Result<FileId>;
}

/// What tells a file or directory from every other one for as long as somebody has it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode } = *self;
        write!(f, "inode {inode} of device {}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    }
}

/// A directory is not where it was opened.
#[derive(Debug)]
pub(crate) struct Displaced {
    pub(crate) path: PathBuf,
    pub(crate) expected: String,
    pub(crate) found: String,
}
