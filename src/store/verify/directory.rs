//! The directories of a store, by one descriptor: what is listed is what is opened, whatever happens to the path meanwhile.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::report::VerifyError;

/// The store's directory, or one below it.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    /// The store's. A store may have more branches than a process may have files open.
    file: Arc<File>,
    /// What names in this directory begin with in the store's.
    prefix: String,
    path: PathBuf,
}

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) is_file: bool,
    pub(super) bytes: u64,
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, VerifyError> {
        let opened = rustix::fs::open(path, FLAGS | OFlags::DIRECTORY, Mode::empty());
        opened.map(|file| Self::of(File::from(file), path)).map_err(|error| refused(path, error.into()))
    }

    /// A directory that somebody has open.
    pub(super) fn of(file: File, path: &Path) -> Self {
        Self { file: Arc::new(file), prefix: String::new(), path: path.to_owned() }
    }

    /// A directory in this one. A symbolic link is none, and is refused and not passed over: what it leads to may be needed.
    pub(super) fn within(&self, name: &str) -> Result<Self, VerifyError> {
        let (prefix, path) = (format!("{}{name}/", self.prefix), self.path.join(name));
        let stat = rustix::fs::statat(&*self.file, format!("{}{name}", self.prefix), AtFlags::SYMLINK_NOFOLLOW);
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => Ok(Self { file: self.file.clone(), prefix, path }),
            Ok(FileType::Symlink) => {
                let source = io::Error::new(ErrorKind::InvalidInput, "it is a symbolic link and must be a directory");
                Err(VerifyError::Io { path, offset: 0, source })
            }
            Ok(_) => Err(VerifyError::NotADirectory { path }),
            Err(error) => Err(refused(&path, error.into())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> Result<Vec<OsString>, VerifyError> {
        let io = |error: rustix::io::Errno| refused(&self.path, error.into());
        let mut names = Vec::new();
        // A descriptor of its own, whose place in the listing nobody else moves.
        let name = format!("{}.", self.prefix);
        let own = rustix::fs::openat(&*self.file, name, FLAGS | OFlags::DIRECTORY, Mode::empty()).map_err(io)?;
        for entry in Dir::new(own).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn look(&self, name: &str) -> io::Result<Named> {
        let stat = rustix::fs::statat(&*self.file, format!("{}{name}", self.prefix), AtFlags::empty())?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(Named { is_file, bytes: u64::try_from(stat.st_size).unwrap_or_default() })
    }

    /// Opens a file for reading, without waiting for the other end of a pipe.
    pub(super) fn file(&self, name: &str) -> io::Result<File> {
        Ok(rustix::fs::openat(&*self.file, format!("{}{name}", self.prefix), FLAGS, Mode::empty())?.into())
    }
}

fn refused(path: &Path, source: io::Error) -> VerifyError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound => match std::fs::read_link(&path) {
            Ok(to) => VerifyError::DanglingLink { link: path, to },
            Err(_) => VerifyError::NoDirectory { path },
        },
        ErrorKind::NotADirectory => VerifyError::NotADirectory { path },
        _ => VerifyError::Io { path, offset: 0, source },
    }
}
