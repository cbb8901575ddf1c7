//! The segment files that are open while a store is verified: so many and no more.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::place::Place;
use crate::lock::lock;
use crate::store::medium::{FileId, MediumFile};
use crate::store::shortage::lacks_descriptors;

/// Bytes at the beginning of a segment that tell it from another that got its inode: the header of
/// the first frame with most of what it says.
const HEAD_BYTES: usize = 128;

/// What a file is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    id: FileId,
    head: Vec<u8>,
}

impl Known {
    pub(super) fn of(file: &dyn MediumFile) -> io::Result<Self> {
        let mut head = vec![0; HEAD_BYTES];
        let read = file.read(0, &mut head)?;
        head.truncate(read);
        Ok(Self { id: file.id()?, head })
    }

    /// Whether `file` is still the one, whatever was appended to it.
    fn is_of(&self, file: &dyn MediumFile) -> io::Result<bool> {
        let found = Self::of(file)?;
        Ok(found.id == self.id && found.head.starts_with(&self.head))
    }
}

/// Files by the numbers that they were given.
#[derive(Debug)]
pub(super) struct OpenFiles {
    most: usize,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    next: usize,
    /// From the listing on, so that a compaction takes nothing away: half of what there may be.
    held: Vec<(usize, Arc<dyn MediumFile>)>,
    /// Those read last, the newest at the end.
    recent: VecDeque<(usize, Arc<dyn MediumFile>)>,
}

impl OpenFiles {
    pub(super) fn new(most: usize) -> Arc<Self> {
        // The process needs some for other things.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let quarter = limit.and_then(|limit| usize::try_from(limit / 4).ok()).unwrap_or(usize::MAX);
        Arc::new(Self { most: most.min(quarter).max(1), files: Mutex::default() })
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        lock(&self.files)
    }

    /// Opens a file; where the process may open no more, those that are open here are closed first.
    pub(super) fn open(&self, place: &Place, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        match place.file(name) {
            Err(error) if lacks_descriptors(&error) => {
                let mut files = self.files();
                files.held.clear();
                files.recent.clear();
                drop(files);
                place.file(name)
            }
            opened => opened,
        }
    }

    /// Takes a file that was listed, and gives it a number.
    pub(super) fn listed(&self, file: Arc<dyn MediumFile>) -> usize {
        let mut files = self.files();
        let number = files.next;
        files.next += 1;
        if files.held.len() < self.most / 2 {
            files.held.push((number, file));
        }
        number
    }

    /// The file of that number, called `name`; nothing where another is there now.
    pub(super) fn get(&self, number: usize, place: &Place, name: &str, known: &Known) -> io::Result<Option<Arc<dyn MediumFile>>> {
        let mut files = self.files();
        let held = files.held.binary_search_by_key(&number, |(number, _)| *number).ok();
        if let Some((_, file)) = held.and_then(|at| files.held.get(at)) {
            return Ok(Some(Arc::clone(file)));
        }
        let recent = files.recent.iter().position(|(found, _)| *found == number).and_then(|at| files.recent.remove(at));
        let file = match recent {
            Some((_, file)) => file,
            None => {
                drop(files);
                let opened = match self.open(place, name) {
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                    opened => opened?,
                };
                if !known.is_of(opened.as_ref())? {
                    return Ok(None);
                }
                files = self.files();
                opened
            }
        };
        files.recent.push_back((number, Arc::clone(&file)));
        while files.recent.len() > self.most - files.held.len().min(self.most - 1) {
            files.recent.pop_front();
        }
        Ok(Some(file))
    }
}
