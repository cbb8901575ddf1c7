//! The open files of a chain: so many at a time and no more, however many segments there are.
//!
//! A file that is closed here is opened again when it is read again. What is opened must be what
//! was there before: the same file by device and inode, which begins with the same frame, for
//! inodes are used again.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::format::SEGMENT_HEADER_FRAME_BYTES;
use crate::lock::lock;
use crate::store::bounds::Bounds;
use crate::store::error::FileReplaced;
use crate::store::medium::{ChainAt, FileId, MediumFile};
use crate::store::shortage::lacks_descriptors;

/// Files that are open, and how many may be.
pub(in crate::store) struct Files {
    most: usize,
    bounds: Bounds,
    open: Mutex<Open>,
    /// How many indexes are mapped.
    maps: AtomicUsize,
}

#[derive(Default)]
struct Open {
    /// The number of the next file.
    next: u64,
    /// Files that are held by their numbers until they are let go.
    held: usize,
    /// The others, the one that was read last at the end.
    files: VecDeque<(u64, Arc<dyn MediumFile>)>,
}

/// A quarter of the files that this process may have open.
fn quarter_of_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit / 4).ok()).unwrap_or(usize::MAX)
}

impl Files {
    /// At most `most` files, and one at least. No more than a quarter of what the process may have
    /// open: it needs some for other things.
    pub(in crate::store) fn new(most: usize, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { most: most.min(quarter_of_limit()).max(1), bounds, open: Mutex::default(), maps: AtomicUsize::new(0) })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// Opens a file of a chain for reading.
    pub(in crate::store) fn read(self: &Arc<Self>, place: &ChainAt, name: &str) -> io::Result<PooledFile> {
        let file = self.with_room(|| place.open(name))?;
        let id = file.id()?;
        let mut header = vec![0; SEGMENT_HEADER_FRAME_BYTES];
        let read = file.read(0, &mut header)?;
        header.truncate(read);
        let number = {
            let mut open = self.open();
            open.next += 1;
            open.next
        };
        self.keep(number, file);
        let (files, place, name) = (self.clone(), place.clone(), name.to_owned());
        Ok(PooledFile { files, place, name, number, id, header, held: Mutex::new(None) })
    }

    /// Opens, and closes what is open here where the process may open no more.
    pub(in crate::store) fn with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if lacks_descriptors(&error) => {
                let closed = std::mem::take(&mut self.open().files);
                if closed.is_empty() {
                    return Err(error);
                }
                // Outside of the lock.
                drop(closed);
                open()
            }
            result => result,
        }
    }

    fn keep(&self, number: u64, file: Arc<dyn MediumFile>) {
        let mut closed = Vec::new();
        let mut open = self.open();
        open.files.push_back((number, file));
        let most = self.most.saturating_sub(open.held).max(1);
        while open.files.len() > most {
            closed.extend(open.files.pop_front());
        }
        drop(open);
    }

    fn find(&self, number: u64) -> Option<Arc<dyn MediumFile>> {
        let mut open = self.open();
        let at = open.files.iter().rposition(|(found, _)| *found == number)?;
        let (_, file) = open.files.remove(at)?;
        open.files.push_back((number, file.clone()));
        Some(file)
    }

    pub(super) const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Whether another index may be mapped; it counts from now on.
    pub(in crate::store) fn may_map(&self) -> bool {
        self.maps.fetch_add(1, Ordering::Relaxed) < self.bounds.maps
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("most", &self.most).finish_non_exhaustive()
    }
}

/// A file that is open while it is read, and closed when others need its place.
#[derive(Debug)]
pub(in crate::store) struct PooledFile {
    files: Arc<Files>,
    place: ChainAt,
    name: String,
    number: u64,
    id: FileId,
    /// Its first frame, or as much of it as there was.
    header: Vec<u8>,
    /// The file, where it stays open.
    held: Mutex<Option<Arc<dyn MediumFile>>>,
}

impl PooledFile {
    fn held(&self) -> MutexGuard<'_, Option<Arc<dyn MediumFile>>> {
        lock(&self.held)
    }

    fn file(&self) -> io::Result<Arc<dyn MediumFile>> {
        if let Some(file) = &*self.held() {
            return Ok(file.clone());
        }
        if let Some(file) = self.files.find(self.number) {
            return Ok(file);
        }
        let file = self.again()?;
        self.files.keep(self.number, file.clone());
        Ok(file)
    }

    /// Opens the file again, if it is still the same.
    fn again(&self) -> io::Result<Arc<dyn MediumFile>> {
        let file = match self.files.with_room(|| self.place.open(&self.name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(io::Error::other(FileReplaced)),
            file => file?,
        };
        let mut header = vec![0; self.header.len()];
        let is_same = file.id()? == self.id && file.read(0, &mut header)? == header.len() && header == self.header;
        if is_same { Ok(file) } else { Err(io::Error::other(FileReplaced)) }
    }

    /// Keeps the file open until [`let_go`](Self::let_go), where the bound leaves room for another
    /// that is not held.
    pub(in crate::store) fn hold(&self) -> io::Result<bool> {
        let mut held = self.held();
        if held.is_some() {
            return Ok(true);
        }
        {
            let mut open = self.files.open();
            if open.held + 1 >= self.files.most {
                return Ok(false);
            }
            open.held += 1;
        }
        let file = self.files.find(self.number).map_or_else(|| self.again(), Ok);
        match file {
            Ok(file) => {
                self.files.forget(self.number);
                *held = Some(file);
                Ok(true)
            }
            Err(error) => {
                self.files.open().held -= 1;
                Err(error)
            }
        }
    }

    /// The file may be closed.
    pub(in crate::store) fn let_go(&self) {
        if let Some(file) = self.held().take() {
            self.files.open().held -= 1;
            self.files.keep(self.number, file);
        }
    }
}

impl Files {
    fn forget(&self, number: u64) {
        let mut open = self.open();
        let closed = open.files.iter().position(|(found, _)| *found == number).and_then(|at| open.files.remove(at));
        drop(open);
        drop(closed);
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        self.let_go();
        self.files.forget(self.number);
    }
}

impl MediumFile for PooledFile {
    fn len(&self) -> io::Result<u64> {
        self.file()?.len()
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(self.id)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file()?.read(offset, buffer)
    }
}
