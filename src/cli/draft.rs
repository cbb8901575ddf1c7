//! A file that has its name only when all of it is there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};

use super::error::CliError;
use crate::xxh3::xxh3_64;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Its owner alone, whatever the umask.
    Owner,
    /// As the umask says.
    Umask,
}

impl Readers {
    const fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Umask => 0o666,
        }
    }
}

/// A file in the making. It has no name where the file system can make such files, and so does not
/// outlive this process, however that ends. Elsewhere it has one beside the file to be made;
/// whoever makes the same file next removes it.
///
/// A draft is locked as long as its process lives: by that a left one is told from another's.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    out: PathBuf,
    dir: PathBuf,
    name: Option<PathBuf>,
}

/// How often another name is tried.
const TRIES: u32 = 16;

impl Draft {
    /// Begins the file that is to be `out`, and removes drafts of it that were left.
    pub(super) fn new(out: &Path, readers: Readers) -> Result<Self, CliError> {
        let dir = match out.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        remove_left(dir, out);
        let failed = |source| CliError::File { path: out.to_owned(), step: "making a file beside it", source };
        let (file, name) = match nameless(dir, readers).map_err(failed)? {
            Some(file) => (file, None),
            None => named(dir, out, readers).map(|(file, name)| (file, Some(name))).map_err(failed)?,
        };
        let draft = Self { file, out: out.to_owned(), dir: dir.to_owned(), name };
        if readers == Readers::Owner {
            let private = fs::Permissions::from_mode(readers.mode());
            draft.file.set_permissions(private).map_err(|source| draft.failed("making it private", source))?;
        }
        Ok(draft)
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// The name that it has meanwhile.
    pub(super) fn name(&self) -> Option<&Path> {
        self.name.as_deref()
    }

    /// Makes it durable and gives it its name. With `replace`, whatever has the name goes.
    pub(super) fn finish(mut self, replace: bool) -> Result<(), CliError> {
        self.file.sync_all().map_err(|source| self.failed("syncing it", source))?;
        let named = self.give_name(replace);
        named.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists if !replace => CliError::FileExists { path: self.out.clone() },
            _ => self.failed("giving it its name", source),
        })?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| self.failed("syncing its directory", source))
    }

    fn give_name(&mut self, replace: bool) -> io::Result<()> {
        if self.name.is_none() && !replace {
            return link(&self.file, &self.out);
        }
        let draft = match self.name.clone() {
            Some(draft) => draft,
            // A link replaces nothing, a rename does.
            None => {
                let draft = free_name(&self.dir, &self.out, |draft| link(&self.file, draft))?.1;
                self.name.insert(draft).clone()
            }
        };
        if replace {
            fs::rename(&draft, &self.out)?;
        } else {
            match rustix::fs::renameat_with(CWD, &draft, CWD, &self.out, RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    fs::hard_link(&draft, &self.out)?;
                    fs::remove_file(&draft)?;
                }
                renamed => renamed?,
            }
        }
        self.name = None;
        Ok(())
    }

    fn failed(&self, step: &'static str, source: io::Error) -> CliError {
        CliError::File { path: self.out.clone(), step, source }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Whoever makes the file next removes it.
            let _ = fs::remove_file(name);
        }
    }
}

/// Writes all of a file, or nothing under its name. What is no regular file, as a terminal or a
/// pipe, is written to.
pub(super) fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let failed = |source| CliError::File { path: path.to_owned(), step: "writing it", source };
    let Some(target) = target(path)? else { return fs::write(path, text).map_err(failed) };
    let draft = Draft::new(&target, Readers::Umask)?;
    io::Write::write_all(&mut draft.file(), text.as_bytes()).map_err(failed)?;
    draft.finish(true)
}

/// Whether [`write`] will find a place for the file, as far as that can be known before.
pub(super) fn try_place(path: &Path) -> Result<(), CliError> {
    match target(path)? {
        Some(target) => Draft::new(&target, Readers::Umask).map(drop),
        None if path.is_dir() => Err(CliError::Usage(format!("{} is a directory", path.display()))),
        None => Ok(()),
    }
}

/// The regular file that is to be made or replaced; none for what is another kind of file.
fn target(path: &Path) -> Result<Option<PathBuf>, CliError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            let file = fs::canonicalize(path);
            file.map(Some).map_err(|source| CliError::File { path: path.to_owned(), step: "following it", source })
        }
        Ok(_) => Ok(None),
        Err(_) => match fs::read_link(path) {
            Ok(to) => Err(CliError::DanglingLink { link: path.to_owned(), to }),
            Err(_) => Ok(Some(path.to_owned())),
        },
    }
}

/// A locked file without a name; none where there can't be one that gets a name later.
fn nameless(dir: &Path, readers: Readers) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = match rustix::fs::open(dir, flags, Mode::from_raw_mode(readers.mode())) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Its name is given through this one.
    let is_there = fs::metadata(in_proc(&file)).is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
    Ok((is_there && file.try_lock().is_ok()).then_some(file))
}

fn in_proc(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn link(file: &File, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, in_proc(file), CWD, to, AtFlags::SYMLINK_FOLLOW)?)
}

/// A locked file with a name of a draft.
fn named(dir: &Path, out: &Path, readers: Readers) -> io::Result<(File, PathBuf)> {
    let make = |name: &Path| {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(readers.mode()).open(name)?;
        // Where there are no locks, nobody removes it either.
        let _ = file.try_lock();
        // Somebody who cleans up may have been here before the lock.
        let is_there = fs::metadata(name).is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
        if is_there { Ok(file) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    };
    free_name(dir, out, make)
}

/// Tries names until one is free.
fn free_name<T>(dir: &Path, out: &Path, mut make: impl FnMut(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    let mut last = io::ErrorKind::AlreadyExists.into();
    for _ in 0..TRIES {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let name = dir.join(format!("{}{}-{now}{DRAFT_END}", beginning(out), std::process::id()));
        match make(&name) {
            Ok(made) => return Ok((made, name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

const DRAFT_END: &str = ".partial";

/// How the names of all drafts of a file begin. Its own name may be as long as names can be.
fn beginning(out: &Path) -> String {
    let name = out.file_name().unwrap_or_default();
    format!(".slackwater-{:016x}-", xxh3_64(name.as_encoded_bytes()))
}

/// Removes drafts of processes that have ended. What can't be removed is left.
fn remove_left(dir: &Path, out: &Path) {
    let beginning = beginning(out);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(&beginning) && name.ends_with(DRAFT_END)) {
            continue;
        }
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or_default();
        let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(entry.path()) else { continue };
        if file.metadata().is_ok_and(|found| found.is_file()) && file.try_lock().is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// With a name meanwhile, as on a file system that has no files without one.
    fn with_name(out: &Path) -> Draft {
        let dir = out.parent().unwrap().to_owned();
        let (file, name) = named(&dir, out, Readers::Owner).unwrap();
        Draft { file, out: out.to_owned(), dir, name: Some(name) }
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        for make in [with_name, |out: &Path| Draft::new(out, Readers::Owner).unwrap()] {
            for replace in [false, true, true] {
                let draft = make(&out);
                draft.file().write_all(b"whole").unwrap();
                draft.finish(replace).unwrap();
                assert_eq!((names(dir.path()), fs::read(&out).unwrap()), (vec!["out".to_owned()], b"whole".to_vec()));
                assert_eq!(out.metadata().unwrap().mode() & 0o777, 0o600);
            }
            assert!(matches!(make(&out).finish(false), Err(CliError::FileExists { .. })));
            assert_eq!(names(dir.path()), ["out"]);
            drop(make(&dir.path().join("other")));
            assert_eq!(names(dir.path()), ["out"]);
            fs::remove_file(&out).unwrap();
        }
    }

    #[test]
    fn drafts_of_the_dead_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let [out, other] = ["out", "other"].map(|name| dir.path().join(name));
        let living = with_name(&out);
        // What a killed process leaves: nobody holds its lock.
        let left = |out: &Path| {
            let mut draft = with_name(out);
            draft.name.take().unwrap()
        };
        let (dead, of_other) = (left(&out), left(&other));
        let mine = dir.path().join(".slackwater-mine.partial");
        fs::write(&mine, "").unwrap();
        let draft = Draft::new(&out, Readers::Owner).unwrap();
        assert!(!dead.exists() && of_other.exists() && mine.exists() && living.name().unwrap().exists());
        draft.finish(false).unwrap();
        drop(living);
        drop(Draft::new(&other, Readers::Owner).unwrap());
        assert_eq!(names(dir.path()), [".slackwater-mine.partial", "out"]);
    }

    #[test]
    fn text_goes_through_links_and_to_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, longest] = ["file".to_owned(), "link".to_owned(), "n".repeat(255)].map(|name| dir.path().join(name));
        std::os::unix::fs::symlink("file", &link).unwrap();
        fs::write(&file, "before").unwrap();
        write(&link, "now").unwrap();
        write(&longest, "long").unwrap();
        write(Path::new("/dev/null"), "gone").unwrap();
        assert!(link.is_symlink() && fs::read(&file).unwrap() == b"now" && fs::read(&longest).unwrap() == b"long");
        assert_eq!(names(dir.path()).len(), 3);
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("nothing", &dangling).unwrap();
        assert!(matches!(write(&dangling, "text"), Err(CliError::DanglingLink { .. })));
    }
}
