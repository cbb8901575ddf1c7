//! The open files of a chain: so many at a time and no more, however many segments there are.
//!
//! A file that is closed here is opened again when it is read again. What is opened must be what
//! was there before: the same file by device and inode, which begins with the same frame, for
//! inodes are used again.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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
    /// A file is in use no more, or there is one to close.
    freed: Condvar,
    /// How many indexes are mapped.
    maps: AtomicUsize,
}

#[derive(Default)]
struct Open {
    /// The number of the next file.
    next: u64,
    /// Files that are held by their numbers until they are let go.
    held: usize,
    /// Files that are being opened, or read at this moment: each is there to be closed before long.
    in_use: usize,
    /// How often one of these came to its end.
    closed: u64,
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
        Arc::new(Self {
            most: most.min(quarter_of_limit()).max(1),
            bounds,
            open: Mutex::default(),
            freed: Condvar::new(),
            maps: AtomicUsize::new(0),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// Opens a file of a chain for reading.
    pub(in crate::store) fn read(self: &Arc<Self>, place: &ChainAt, name: &str) -> io::Result<PooledFile> {
        let (_in_use, file) = self.use_with_room(|| place.open(name))?;
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
        self.use_with_room(open).map(|(_, opened)| opened)
    }

    /// As [`with_room`](Self::with_room), of something that is closed or kept before long. Where
    /// the process may open no more and nothing is there to close, it waits for what other threads
    /// use: they may have taken what was closed here.
    fn use_with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<(InUse<'_>, T)> {
        loop {
            let (in_use, closed_before) = self.begin_use();
            let error = match open() {
                Err(error) if lacks_descriptors(&error) => error,
                result => return Ok((in_use, result?)),
            };
            // Nothing was opened: this is no sign of room for the others.
            std::mem::forget(in_use);
            let mut open = self.open();
            open.in_use -= 1;
            self.freed.notify_all();
            let is_short = |open: &Open| open.files.is_empty() && open.closed == closed_before;
            if is_short(&open) && open.in_use == 0 {
                return Err(error);
            }
            let waits = |open: &mut Open| is_short(open) && open.in_use > 0;
            open = self.freed.wait_while(open, waits).unwrap_or_else(PoisonError::into_inner);
            let closed = std::mem::take(&mut open.files);
            self.close(open, closed);
        }
    }

    /// Something is in use from now on. Says how many were closed before.
    fn begin_use(&self) -> (InUse<'_>, u64) {
        let mut open = self.open();
        open.in_use += 1;
        (InUse(self), open.closed)
    }

    /// Closes files, outside of the lock. Until then they are in use.
    fn close<T>(&self, mut open: MutexGuard<'_, Open>, closed: T) {
        open.in_use += 1;
        drop(open);
        let _in_use = InUse(self);
        drop(closed);
    }

    fn keep(&self, number: u64, file: Arc<dyn MediumFile>) {
        let mut closed = Vec::new();
        let mut open = self.open();
        open.files.push_back((number, file));
        let most = self.most.saturating_sub(open.held).max(1);
        while open.files.len() > most {
            closed.extend(open.files.pop_front());
        }
        self.close(open, closed);
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

/// A file is in use as long as this lives.
struct InUse<'f>(&'f Files);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut open = self.0.open();
        open.in_use -= 1;
        open.closed += 1;
        drop(open);
        self.0.freed.notify_all();
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

    /// Has `look` look at the file, open.
    fn with_file<T>(&self, look: impl FnOnce(&dyn MediumFile) -> io::Result<T>) -> io::Result<T> {
        if let Some(file) = self.held().clone() {
            return look(&*file);
        }
        // Dropped behind the file, which is closed then if others needed its place.
        let (in_use, _) = self.files.begin_use();
        let (_in_use, file) = match self.files.find(self.number) {
            Some(file) => (in_use, file),
            None => {
                // Who waits for room uses nothing.
                drop(in_use);
                let (in_use, file) = self.again()?;
                self.files.keep(self.number, file.clone());
                (in_use, file)
            }
        };
        look(&*file)
    }

    /// Opens the file again, if it is still the same.
    fn again(&self) -> io::Result<(InUse<'_>, Arc<dyn MediumFile>)> {
        let (in_use, file) = match self.files.use_with_room(|| self.place.open(&self.name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(io::Error::other(FileReplaced)),
            file => file?,
        };
        let mut header = vec![0; self.header.len()];
        let is_same = file.id()? == self.id && file.read(0, &mut header)? == header.len() && header == self.header;
        if is_same { Ok((in_use, file)) } else { Err(io::Error::other(FileReplaced)) }
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
        let file = self.files.find(self.number).map_or_else(|| Ok(self.again()?.1), Ok);
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
        self.close(open, closed);
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
        self.with_file(|file| file.len())
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(self.id)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with_file(|file| file.read(offset, buffer))
    }
}
