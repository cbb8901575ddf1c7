//! What is done for a chain while it is written: indexes of segments that are full, and compaction.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::retention::Retention;
use super::{compaction, make_index};
use crate::format::{CutTime, Description};
use crate::lock::lock;
use crate::page::EpochId;
use crate::store::bounds::Bounds;
use crate::store::error::{StoreError, causes};
use crate::store::medium::{Place, WritableMedium};
use crate::store::names::{Listed, SegmentNumbers};

/// How much the background gives way: about a tenth of a processor is left to it where others want
/// it all, so that a chain stays bounded.
const NICE: i32 = 10;

/// With so much room, or more, nobody has to think of it: half as much again as dropping takes.
pub(in crate::store) const fn enough_room(needs: u64) -> u64 {
    needs.saturating_add(needs / 2)
}

/// About what an index takes, and an eighth of its segment.
const INDEX_BYTES: u64 = 20 << 10;

/// How long, and how often, a writer that has to wait for room waits for others who compact the
/// store or make branches.
const OTHERS_LIMIT: Duration = Duration::from_secs(30);
const OTHERS_AGAIN: Duration = Duration::from_millis(5);

/// The store that a chain is part of.
#[derive(Clone, Debug)]
pub(in crate::store) struct Home {
    pub(in crate::store) root: PathBuf,
    pub(in crate::store) medium: Arc<dyn WritableMedium>,
    /// The chain's name in it.
    pub(in crate::store) branch: String,
    pub(in crate::store) bounds: Bounds,
}

/// Does what a chain needs besides being appended to. Nothing of it can lose anything: what fails
/// is logged, and is done by whoever opens the chain next.
#[derive(Debug)]
pub(in crate::store) struct Maintenance {
    work: Work,
    background: Option<(Sender<Task>, JoinHandle<()>)>,
}

#[derive(Clone, Debug)]
struct Work {
    dir: PathBuf,
    medium: Arc<dyn WritableMedium>,
    place: Arc<Place>,
    description: Arc<Description>,
    home: Home,
    retention: Retention,
    /// Nobody waits for a compaction to end.
    ending: Arc<AtomicBool>,
    /// How many read segments that must stay.
    readers: Arc<AtomicUsize>,
    needs: Arc<Mutex<Needs>>,
}

/// Bytes that dropping what is not kept takes at most.
#[derive(Debug, Default)]
struct Needs {
    /// Of the segments that were full when it was last looked at.
    looked_at: u64,
    /// Of each that is full since, about all of it and the index that it may not have yet: its
    /// number and its bytes.
    since: Vec<(u32, u64)>,
}

impl Needs {
    fn all(&self, spare_bytes: u64) -> u64 {
        self.since.iter().fold(self.looked_at, |sum, (_, bytes)| sum.saturating_add(*bytes)).saturating_add(spare_bytes)
    }
}

/// While this lives, the writer that gave it compacts nothing: what it puts in the place of
/// segments would take them from a reader that cannot begin again.
#[derive(Debug)]
pub struct KeptSegments {
    readers: Arc<AtomicUsize>,
}

impl Drop for KeptSegments {
    fn drop(&mut self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Task {
    /// Makes the index of a segment, after which a compaction may pay.
    Seal(SegmentNumbers),
    /// Makes the indexes of segments before this one that are missing or do not fit.
    SealBefore(SegmentNumbers),
    /// Drops whatever is not kept, and says when that is over.
    MakeRoom(SyncSender<()>),
}

impl Maintenance {
    pub(in crate::store) fn new(
        (dir, medium, place): (&Path, Arc<dyn WritableMedium>, Arc<Place>),
        description: Arc<Description>,
        home: Home,
        retention: Option<Retention>,
        needs: u64,
        background: bool,
    ) -> Self {
        let (dir, retention, ending) = (dir.to_owned(), retention.unwrap_or_default(), Arc::default());
        let needs = Arc::new(Mutex::new(Needs { looked_at: needs, since: Vec::new() }));
        let work = Work { dir, medium, place, description, home, retention, ending, readers: Arc::default(), needs };
        let background = background.then(|| {
            let (sender, tasks) = channel();
            let work = work.clone();
            let run = move || {
                // On Linux this is of the calling thread. The guest and what encodes its pages come
                // first.
                if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::debug!(%error, "maintenance runs at the usual priority");
                }
                while let Ok(task) = tasks.recv() {
                    let waiting: Vec<_> = std::iter::once(task).chain(tasks.try_iter()).collect();
                    work.run(&waiting);
                }
            };
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
            self.work.run(&[task]);
        }
    }

    /// Has the index of a segment made that gets no more epochs and has so many bytes.
    pub(in crate::store) fn seal(&self, numbers: SegmentNumbers, bytes: u64) {
        if !self.work.retention.is_empty() {
            let index_bytes = INDEX_BYTES.saturating_add(bytes / 8);
            self.work.needs().since.push((numbers.last, bytes.saturating_add(index_bytes)));
        }
        self.hand_over(Task::Seal(numbers));
    }

    /// Has indexes made of the segments before this one that have none, or one that does not fit.
    pub(in crate::store) fn seal_the_rest(&self, before: SegmentNumbers) {
        self.hand_over(Task::SealBefore(before));
    }

    /// Drops what is not kept, as far as there is room to do it, and waits until that is over.
    pub(in crate::store) fn make_room(&self) {
        let (over, is_over) = sync_channel(1);
        self.hand_over(Task::MakeRoom(over));
        // Where the thread is gone, nothing is made.
        let _ = is_over.recv();
    }

    /// Bytes that have to be free so that what is not kept can be dropped from the segments that
    /// are full.
    pub(in crate::store) fn needs(&self) -> u64 {
        self.work.needs().all(self.work.home.bounds.spare_bytes)
    }

    /// Nothing is compacted as long as this lives.
    pub(in crate::store) fn keep_segments(&self) -> KeptSegments {
        self.work.readers.fetch_add(1, Ordering::Relaxed);
        KeptSegments { readers: self.work.readers.clone() }
    }

    /// Waits for what was handed over, but gives a compaction up; what comes later is done at once.
    pub(in crate::store) fn finish(&mut self) {
        self.work.ending.store(true, Ordering::Relaxed);
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
    fn needs(&self) -> MutexGuard<'_, Needs> {
        lock(&self.needs)
    }

    /// One compaction does for all segments.
    fn run(&self, tasks: &[Task]) {
        tasks.iter().for_each(|task| self.index(task));
        let makes_room = tasks.iter().any(|task| matches!(task, Task::MakeRoom(_)));
        if makes_room || tasks.iter().any(|task| matches!(task, Task::Seal(_))) {
            self.compact(makes_room);
        }
        for task in tasks {
            if let Task::MakeRoom(over) = task {
                let _ = over.send(());
            }
        }
    }

    /// Whether there is not much more room than dropping takes: it is done early then, before a
    /// writer has to wait for it.
    fn is_short(&self) -> bool {
        let needs = self.needs().all(self.home.bounds.spare_bytes);
        self.medium.room().is_ok_and(|room| room < enough_room(needs))
    }

    fn index(&self, task: &Task) {
        match task {
            Task::MakeRoom(_) => {}
            Task::Seal(numbers) => self.seal(*numbers),
            Task::SealBefore(before) => {
                let names = match self.medium.list() {
                    Ok(names) => names,
                    Err(error) => return tracing::warn!(%error, "the directory cannot be listed"),
                };
                let live = Listed::new(&names).live.into_iter();
                live.filter(|numbers| numbers.last < before.first)
                    .filter(|numbers| !names.contains(&numbers.index_name()) || !self.has_index(*numbers))
                    .for_each(|numbers| self.seal(numbers));
            }
        }
    }

    /// Whether the index beside a segment is one of it, as far as its first block says. True where
    /// that cannot be told.
    fn has_index(&self, numbers: SegmentNumbers) -> bool {
        make_index::fits(self.medium.as_ref(), &self.description, numbers).unwrap_or(true)
    }

    fn seal(&self, numbers: SegmentNumbers) {
        let made =
            self.place.check().and_then(|()| make_index::make(&self.dir, self.medium.as_ref(), &self.description, numbers));
        match made {
            Ok(()) => {}
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                tracing::debug!(segment = %numbers, "the segment was compacted before it had an index");
            }
            Err(error) => tracing::warn!(segment = %numbers, error = causes(&error), "the segment stays without an index"),
        }
    }

    /// Drops what is not kept and puts segments together, where that pays; everything that is not
    /// kept where room is short.
    fn compact(&self, makes_room: bool) {
        let ending = || self.ending.load(Ordering::Relaxed);
        if ending() {
            return;
        }
        if self.readers.load(Ordering::Relaxed) > 0 {
            return tracing::debug!("segments are kept for a reader: the chain is compacted later");
        }
        let kept = |epochs: &[CutTime], pinned: &BTreeSet<EpochId>| self.retention.kept(epochs, pinned);
        let mut go_on = |_, _| match ending() {
            true => Err(StoreError::io("compact", &self.dir)(io::ErrorKind::Interrupted.into())),
            false => self.place.check(),
        };
        let Home { root, medium, branch, bounds } = &self.home;
        let drops = !self.retention.is_empty();
        let scope = if drops && (makes_room || self.is_short()) {
            compaction::Scope::WhatIsDropped
        } else {
            compaction::Scope::WhatPays { drops }
        };
        let mut run = || compaction::run((root, medium), branch, &kept, scope, (bounds.spare_bytes, *bounds), &mut go_on);
        let (mut done, since) = (run(), Instant::now());
        // Who compacts the store meanwhile makes room as well.
        while makes_room && matches!(done, Err(StoreError::InUse { .. })) && !ending() && since.elapsed() < OTHERS_LIMIT {
            std::thread::sleep(OTHERS_AGAIN);
            done = run();
        }
        match done {
            Ok(upkeep) => {
                let mut needs = self.needs();
                needs.looked_at = upkeep.needs;
                needs.since.retain(|(number, _)| *number > upkeep.last);
            }
            Err(StoreError::InUse { .. }) => {}
            Err(_) if ending() => {}
            // The writer says so.
            Err(StoreError::Room { needed, free, .. }) if makes_room => {
                tracing::debug!(needed, free, "there is no room to drop what is not kept");
            }
            Err(error) => tracing::warn!(error = causes(&error), "the chain could not be compacted"),
        }
    }
}
