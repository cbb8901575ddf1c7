//! A register in a directory that both hosts have: shared storage, such as NFS.
//!
//! # Format
//! Each value is a file of its own, which is never changed and never removed: `NAME.` and its
//! generation as 20 digits, with the register's JSON and nothing else in it. The highest number is
//! the value. So the register cannot go back as long as no file is removed.
//!
//! ```text
//! web.00000000000000000001      {"generation":1,"holder":{"solo":"..."},"nonce":"..."}
//! web.00000000000000000002      {"generation":2,"holder":{"paired":["...","..."]},"nonce":"..."}
//! .web.<32 digits>.new          being written; removed a day after its writer died
//! ```
//!
//! A swap writes a file under a name that nobody else has, syncs it, and makes a hard link to it
//! with the name of the next generation. The file system lets one such link succeed. There is no
//! lock: whoever dies in between leaves a file that is not the value and holds nobody up.
//!
//! # What is asked of the storage
//! - A hard link to a name that exists fails, whichever host asks: NFS and cluster file systems.
//!   Synchronized folders and object storage behind FUSE do not give that.
//! - What was synced stays. The directory is synced before a value is given to anybody.
//! - A host sees what another one did. A late view makes a swap fail that would not have to; it
//!   makes none succeed. On NFS mount with `actimeo=0`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::answer::{REGISTER_BYTES_MAX, check_step, register, settle};
use super::bounded::{Bounded, Undone};
use super::fault::WitnessFault;
use super::{Swapped, Witness, WitnessError};
use crate::replica::draw;
use crate::replica::register::{Generation, Register};

/// Digits of a generation in a name, so that names sort: as many as 2^64 has.
const DIGITS: usize = 20;

/// How much older than a new file one is that a crash left behind. Whoever was stopped for longer
/// and goes on finds its file gone, and has not swapped.
const LEFT_BEHIND_S: i64 = 86_400;

/// The most numbers that are tried behind the highest that was listed.
const LOOKS_MAX: u32 = 10_000;

/// A register in a directory.
#[derive(Debug)]
pub struct FileWitness {
    place: Arc<Place>,
    bounded: Bounded,
}

/// The directory, and the name in it.
#[derive(Debug)]
struct Place {
    dir: File,
    path: PathBuf,
    name: String,
}

impl FileWitness {
    /// Opens the register `name` in the directory `dir`, and tries whether hard links can be made
    /// there. Every call ends within `limit`.
    ///
    /// # Errors
    /// [`WitnessFault`]: no such directory, no hard links, nothing may be written there, or it
    /// takes longer than `limit`.
    pub fn open(dir: &Path, name: &str, limit: Duration) -> Result<Self, WitnessFault> {
        let mut bounded = Bounded::new(limit);
        let (dir, name) = (dir.to_owned(), name.to_owned());
        let opened = bounded.run(&dir.join(&name).display().to_string(), move || Place::open(&dir, name));
        match opened {
            Ok(place) => Ok(Self { place: Arc::new(place?), bounded }),
            Err(Undone::NotBegun(fault) | Undone::NotEnded(fault)) => Err(fault),
        }
    }

    fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Place) -> Result<T, WitnessError> + Send + 'static,
    ) -> Result<T, WitnessError> {
        let place = self.place.clone();
        match self.bounded.run(&self.place.path.join(&self.place.name).display(), move || work(&place)) {
            Ok(result) => result,
            Err(Undone::NotBegun(fault)) => Err(fault.refused()),
            Err(Undone::NotEnded(fault)) => Err(fault.unknown()),
        }
    }

    /// Writes `new` where the register has `own`, of whatever generation that is.
    pub(super) fn follow(&mut self, own: Option<Register>, new: &Register) -> Result<Swapped, WitnessError> {
        let new = *new;
        self.run(move |place| place.swap(own.as_ref(), &new))
    }
}

impl Witness for FileWitness {
    fn read(&mut self) -> Result<Option<Register>, WitnessError> {
        self.run(|place| place.newest().map_err(WitnessFault::refused))
    }

    fn swap(&mut self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError> {
        check_step(expected, new)?;
        let (expected, new) = (expected.copied(), *new);
        self.run(move |place| place.swap(expected.as_ref(), &new))
    }
}

impl Place {
    fn open(path: &Path, name: String) -> Result<Self, WitnessFault> {
        let failed = |source| WitnessFault::Io { action: "open the directory", path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = retry_on_intr(|| rustix::fs::open(&absolute, flags, Mode::empty())).map_err(|errno| failed(errno.into()))?;
        let place = Self { dir: dir.into(), path: absolute, name };
        place.try_links()?;
        Ok(place)
    }

    /// Makes a link between two names that nobody else has; and while there is a file as old as
    /// now, removes what crashes have left.
    fn try_links(&self) -> Result<(), WitnessFault> {
        let file = Temporary::write(self, b"")?;
        let other = self.temporary_name()?;
        match rustix::fs::linkat(&self.dir, &file.name, &self.dir, &other, AtFlags::empty()) {
            Ok(()) => drop(Temporary { place: self, name: other }),
            Err(errno) => return Err(self.no_link(errno)),
        }
        let now_s = self.written_s(&file.name);
        for name in self.list()?.into_iter().filter(|name| self.is_temporary(name)) {
            if let (Some(now_s), Some(then_s)) = (now_s, self.written_s(&name))
                && now_s.saturating_sub(then_s) > LEFT_BEHIND_S
            {
                drop(Temporary { place: self, name });
            }
        }
        Ok(())
    }

    /// When a file was written last, by the clock of the storage.
    fn written_s(&self, name: &str) -> Option<i64> {
        rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_mtime)
    }

    fn failed(&self, action: &'static str, name: &str, source: impl Into<io::Error>) -> WitnessFault {
        WitnessFault::Io { action, path: self.path.join(name), source: source.into() }
    }

    fn no_link(&self, errno: Errno) -> WitnessFault {
        match errno {
            Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK => {
                WitnessFault::NoHardLinks { dir: self.path.clone(), source: errno.into() }
            }
            errno => self.failed("make a hard link in", "", errno),
        }
    }

    fn list(&self) -> Result<Vec<String>, WitnessFault> {
        let read = || -> io::Result<_> {
            let entries = Dir::read_from(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            entries.collect()
        };
        read().map_err(|source| self.failed("list", "", source))
    }

    fn numbered(&self, generation: Generation) -> String {
        format!("{}.{:0DIGITS$}", self.name, generation.0)
    }

    /// The generation that a name stands for.
    fn number(&self, name: &str) -> Option<Generation> {
        let digits = name.strip_prefix(&self.name)?.strip_prefix('.')?;
        let is_number = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten().map(Generation)
    }

    fn temporary_name(&self) -> Result<String, WitnessFault> {
        let digits = draw::number().map_err(|source| self.failed("draw a name for a file in", "", source))?;
        Ok(format!(".{}.{digits:032x}.new", self.name))
    }

    fn is_temporary(&self, name: &str) -> bool {
        let digits =
            name.strip_prefix('.').and_then(|rest| rest.strip_prefix(&self.name)?.strip_prefix('.')?.strip_suffix(".new"));
        digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    /// What the file of a generation says; none where there is no such file.
    fn load(&self, generation: Generation) -> Result<Option<Register>, WitnessFault> {
        let name = self.numbered(generation);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match retry_on_intr(|| rustix::fs::openat(&self.dir, &name, flags, Mode::empty())) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.failed("open", &name, errno)),
        };
        let mut bytes = Vec::new();
        let mut read = || {
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            (&file).take(REGISTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)
        };
        read().map_err(|source| self.failed("read", &name, source))?;
        let place = self.path.join(&name).display().to_string();
        let found = register(&place, &bytes)?;
        if found.generation != generation {
            let reason = format!("it is of generation {}", found.generation);
            return Err(WitnessFault::NotARegister { place, reason });
        }
        Ok(Some(found))
    }

    /// The value. It stays: the directory is synced first, for who made it may not have come to
    /// that.
    fn newest(&self) -> Result<Option<Register>, WitnessFault> {
        self.check_path()?;
        let listed = self.list()?.iter().filter_map(|name| self.number(name)).max();
        let mut newest = match listed {
            None => None,
            Some(generation) => Some(self.load(generation)?.ok_or_else(|| {
                let gone = io::Error::new(io::ErrorKind::NotFound, "it was listed and is gone");
                self.failed("read", &self.numbered(generation), gone)
            })?),
        };
        // A list may be older than what a name leads to.
        let mut at = listed.unwrap_or(Generation::NONE);
        for _ in 0..LOOKS_MAX {
            let Some(next) = at.next() else { break };
            let Some(found) = self.load(next)? else { break };
            (newest, at) = (Some(found), next);
        }
        if newest.is_some() {
            self.sync()?;
        }
        Ok(newest)
    }

    /// Whether the path still leads to this directory. An empty one that shows below a mount that
    /// is gone would be a register that nobody has written.
    fn check_path(&self) -> Result<(), WitnessFault> {
        let path = rustix::fs::stat(&self.path).map_err(|errno| self.failed("look at", "", errno))?;
        let own = rustix::fs::fstat(&self.dir).map_err(|errno| self.failed("look at", "", errno))?;
        let is_same = (path.st_dev, path.st_ino) == (own.st_dev, own.st_ino);
        if is_same { Ok(()) } else { Err(WitnessFault::Displaced { dir: self.path.clone() }) }
    }

    fn sync(&self) -> Result<(), WitnessFault> {
        self.dir.sync_all().map_err(|source| self.failed("sync", "", source))
    }

    fn swap(&self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError> {
        let place = self.path.join(self.numbered(new.generation)).display().to_string();
        let newest = self.newest().map_err(WitnessFault::refused)?;
        if newest.as_ref() != expected {
            return settle(&place, expected, new, newest);
        }
        let file = Temporary::write(self, new.to_json().as_bytes()).map_err(WitnessFault::refused)?;
        let name = self.numbered(new.generation);
        let linked = rustix::fs::linkat(&self.dir, &file.name, &self.dir, &name, AtFlags::empty());
        // From here on it may have been carried out, whatever the link said: over a network an
        // answer gets lost and the request is made again.
        let newest = self.newest().map_err(WitnessFault::unknown)?;
        match linked {
            Err(errno) if newest.as_ref() == expected => Err(match (errno, self.no_link(errno)) {
                (_, fault @ WitnessFault::NoHardLinks { .. }) => fault.refused(),
                (Errno::ACCESS | Errno::ROFS | Errno::NOSPC | Errno::DQUOT, fault) => fault.refused(),
                (_, fault) => fault.unknown(),
            }),
            _ => settle(&place, expected, new, newest),
        }
    }
}

/// A file that has a name for itself, until this is dropped.
#[derive(Debug)]
struct Temporary<'p> {
    place: &'p Place,
    name: String,
}

impl<'p> Temporary<'p> {
    /// Writes and syncs it.
    fn write(place: &'p Place, bytes: &[u8]) -> Result<Self, WitnessFault> {
        let name = place.temporary_name()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = retry_on_intr(|| rustix::fs::openat(&place.dir, &name, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|errno| place.failed("make a file in", "", errno))?;
        let own = Self { place, name };
        let mut file = File::from(file);
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|source| place.failed("write", &own.name, source))?;
        Ok(own)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // What stays is removed by whoever opens the register a day later.
        let _ = rustix::fs::unlinkat(&self.place.dir, &self.name, AtFlags::empty());
    }
}
