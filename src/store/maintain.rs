//! What is done for a chain while it is written: indexes of segments that are full.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::medium::Medium;
use super::names::Listed;
use super::{SegmentNumbers, causes, seal};
use crate::format::Identity;

/// Does what a chain needs besides being appended to. Nothing of it can lose anything: what fails is logged, and is done by whoever opens
/// the chain next.
#[derive(Debug)]
pub(super) struct Maintenance {
    work: Work,
    background: Option<(Sender<Task>, JoinHandle<()>)>,
}

#[derive(Clone, Debug)]
struct Work {
    dir: PathBuf,
    medium: Arc<dyn Medium>,
    identity: Arc<Identity>,
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Seal(SegmentNumbers),
    SealBefore(SegmentNumbers),
}

impl Maintenance {
    pub(super) fn new(dir: &Path, medium: Arc<dyn Medium>, identity: Arc<Identity>, background: bool) -> Self {
        let work = Work { dir: dir.to_owned(), medium, identity };
        let background = background.then(|| {
            let (sender, tasks) = channel();
            let work = work.clone();
            let run = move || tasks.into_iter().for_each(|task| work.run(task));
            Some((sender, std::thread::Builder::new().name("maintain".to_owned()).spawn(run).ok()?))
        });
        Self { work, background: background.flatten() }
    }

    fn hand_over(&self, task: Task) {
        let left = match &self.background {
            Some((sender, _)) => sender.send(task).err().map(|error| error.0),
            None => Some(task),
        };
        if let Some(task) = left {
            self.work.run(task);
        }
    }

    /// Has the index of a segment made that gets no more epochs.
    pub(super) fn seal(&self, numbers: SegmentNumbers) {
        self.hand_over(Task::Seal(numbers));
    }

    /// Has indexes made of the segments before this one that have none.
    pub(super) fn seal_the_rest(&self, before: SegmentNumbers) {
        self.hand_over(Task::SealBefore(before));
    }

    /// Waits for what was handed over; what comes later is done at once.
    pub(super) fn finish(&mut self) {
        if let Some((sender, thread)) = self.background.take() {
            drop(sender);
            if thread.join().is_err() {
                tracing::error!("the thread that maintains the chain panicked");
            }
        }
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Work {
    fn run(&self, task: Task) {
        match task {
            Task::Seal(numbers) => self.seal(numbers),
            Task::SealBefore(before) => {
                let names = match self.medium.list() {
                    Ok(names) => names,
                    Err(error) => return tracing::warn!(%error, "the directory cannot be listed"),
                };
                let live = Listed::new(&names, self.identity.format).live.into_iter();
                live.filter(|numbers| numbers.last < before.first && !names.contains(&numbers.index_name()))
                    .for_each(|numbers| self.seal(numbers));
            }
        }
    }

    fn seal(&self, numbers: SegmentNumbers) {
        if let Err(error) = seal::seal(&self.dir, self.medium.as_ref(), &self.identity, numbers) {
            tracing::warn!(segment = %numbers, error = causes(&error), "the segment stays without an index");
        }
    }
}
