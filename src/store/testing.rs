//! A disk that loses power, fails and fills up, and a model of a guest whose epochs go to it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::bounds::Bounds;
use super::keep::compaction::{self, Keep, Scope};
use super::medium::{Displaced, FileId, HeldLock, Lock, Medium, MediumFile, Named, WritableFile, WritableMedium};
use super::verify::{VerifyOptions, VerifyReport, verify_on};
use super::{Chain, Compacted, NewChain, SegmentNumbers, StoreError, Writer, WriterOptions};
use crate::epoch::SinkError;
use crate::format::{
    BlockEncoder, CHANGED_WORDS_MAX, CHANGES_DEPTH_MAX, ChainId, ChangedWords, Commit, Compression, EpochWriter, IndexBytes,
    Line, MAIN_BRANCH, MemoryDigest, StateRecord, is_zero,
};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun, runs};
use crate::restore;

/// splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

/// The seeds of a test: so many, from `SLACKWATER_SEED` on; with `SLACKWATER_FULL` as many as the
/// second number says.
pub(crate) fn seeds(count: u64, full: u64) -> std::ops::Range<u64> {
    let first = std::env::var("SLACKWATER_SEED").map_or(0, |seed| seed.parse::<u64>().unwrap());
    first..first + if is_full() { full } else { count }
}

/// Whether a test does all that it can.
pub(crate) fn is_full() -> bool {
    std::env::var_os("SLACKWATER_FULL").is_some()
}

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// What was asked of a file since its last sync.
#[derive(Clone, Debug)]
enum FileOp {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl FileOp {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let offset = usize::try_from(*offset).unwrap();
                if bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                bytes[offset..offset + data.len()].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(usize::try_from(*len).unwrap(), 0),
        }
    }
}

#[derive(Clone, Debug)]
enum NameOp {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl NameOp {
    /// Whether it is of names in the directory that `prefix` stands for.
    fn is_in(&self, prefix: &str) -> bool {
        let (Self::Create(name, _) | Self::Remove(name) | Self::Rename(name, _)) = self;
        name.strip_prefix(prefix).is_some_and(|name| !name.contains('/'))
    }

    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What the system shows.
    live: Vec<u8>,
    /// What the medium holds for sure.
    durable: Vec<u8>,
    pending: Vec<FileOp>,
    /// Space was taken up to here, used or not.
    reserved: u64,
    /// What the system was asked to begin writing.
    begun: Vec<Range<u64>>,
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<NameOp>,
    /// Operations so far that change the medium.
    operations: u64,
    cut_at: Option<u64>,
    dead: bool,
    /// Where faults are drawn from: one operation in so many fails.
    faults: Option<(Random, u64)>,
    /// Bytes of all files together that fit.
    capacity: Option<u64>,
    /// No file may be longer.
    file_most: Option<u64>,
    /// Files that somebody has locked.
    held: BTreeSet<usize>,
    /// Files that are open now, and the most that were at a time.
    open: (u64, u64),
    /// So many may be open.
    open_most: Option<u64>,
    /// Where it is drawn from whether there is a descriptor: one opening in so many fails.
    opening_faults: Option<(Random, u64)>,
    /// What the names of files begin with in each directory that was opened: it stays the same
    /// directory when it is moved.
    directories: Vec<String>,
    /// What somebody does to the store, and at which operation.
    meddling: Option<(u64, Meddling)>,
    /// It was done.
    meddled: bool,
}

/// What survives a power cut of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Kept,
    Dropped,
    /// Any part, by seed.
    Torn(u64),
}

/// What somebody does to a store who does not ask its writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meddling {
    /// Moves it away.
    Move,
    /// Moves it away, and puts a copy in its place.
    Replace,
    /// Removes the lock of the chain in this directory of it.
    Unlock(String),
    /// Appends bytes to the last segment there, or takes as many away.
    Resize(String, i64),
    /// As a compaction does: as soon as there is a third segment, one takes the place of the first
    /// two. The writer's own may, so it goes on.
    Join,
}

/// Where the store is, and where it is moved to.
const STORE: &str = "store/";
const AWAY: &str = "away/";

/// A directory on a simulated disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    /// Which of the directories that were opened.
    directory: usize,
    /// What the names of files in it began with when it was opened.
    opened: String,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::open(&Arc::default(), STORE)
    }

    /// Opens what is in a place at present.
    fn open(state: &Arc<Mutex<State>>, place: &str) -> Self {
        let mut found = state.lock().unwrap();
        let directory = found.directories.iter().position(|prefix| prefix == place).unwrap_or_else(|| {
            found.directories.push(place.to_owned());
            found.directories.len() - 1
        });
        Self { state: state.clone(), directory, opened: place.to_owned() }
    }

    /// Has somebody at the store at an operation.
    pub(crate) fn meddling_at(self, operation: u64, what: Meddling) -> Self {
        self.state().meddling = Some((operation, what));
        self
    }

    /// Whether somebody was.
    pub(crate) fn is_meddled_with(&self) -> bool {
        self.state().meddled
    }

    /// Puts the store back that was moved away.
    pub(crate) fn put_back(&self) {
        let mut state = self.state();
        state.move_all(STORE, "gone/");
        state.move_all(AWAY, STORE);
    }

    /// The chain that was moved away.
    pub(crate) fn moved_chain(&self, branch: &str) -> Result<Chain, StoreError> {
        Chain::open_on(Path::new("disk"), &(Arc::new(Self::open(&self.state, AWAY)) as Arc<dyn Medium>), branch)
    }

    /// What the system was asked to begin writing, of all files.
    pub(crate) fn syncs_begun(&self) -> Vec<Range<u64>> {
        self.state().inodes.iter().flat_map(|inode| inode.begun.clone()).collect()
    }

    /// A disk that holds these files, durable.
    pub(crate) fn holding(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::new();
        {
            let mut state = disk.state();
            for (inode, (name, bytes)) in files.iter().enumerate() {
                state.inodes.push(Inode { live: bytes.clone(), durable: bytes.clone(), ..Inode::default() });
                let name = format!("{STORE}{name}");
                state.live.insert(name.clone(), inode);
                state.durable.insert(name, inode);
            }
        }
        disk
    }

    pub(crate) fn with_faults(self, seed: u64, one_in: u64) -> Self {
        self.state().faults = Some((Random(seed), one_in));
        self
    }

    pub(crate) fn without_faults(self) -> Self {
        self.state().faults = None;
        self
    }

    pub(crate) fn cutting_at(self, operation: u64) -> Self {
        self.state().cut_at = Some(operation);
        self
    }

    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes that no file may be longer than.
    pub(crate) fn set_file_most(&self, bytes: Option<u64>) {
        self.state().file_most = bytes;
    }

    /// Bytes of all files, and of what was taken ahead for them.
    pub(crate) fn used(&self) -> u64 {
        self.state().used()
    }

    /// How many files may be open from now on.
    pub(crate) fn set_open_most(&self, most: Option<u64>) {
        self.state().open_most = most;
    }

    /// One opening in so many finds that the process has no descriptor left.
    pub(crate) fn with_opening_faults(self, seed: u64, one_in: u64) -> Self {
        self.state().opening_faults = Some((Random(seed), one_in));
        self
    }

    /// The most files that were open at a time since the last call; and how many are now.
    pub(crate) fn take_open_most(&self) -> (u64, u64) {
        let mut state = self.state();
        let (now, most) = state.open;
        state.open.1 = now;
        (most, now)
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// What the system shows.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let files = state.live.iter().filter_map(|(name, inode)| Some((name.strip_prefix(STORE)?, inode)));
        files.map(|(name, inode)| (name.to_owned(), state.inodes[*inode].live.clone())).collect()
    }

    /// The disk after the power came back.
    pub(crate) fn after(&self, cut: Cut) -> Self {
        let state = self.state();
        let mut random = Random(if let Cut::Torn(seed) = cut { seed } else { 0 });
        let keep = |random: &mut Random| match cut {
            Cut::Kept => true,
            Cut::Dropped => false,
            Cut::Torn(_) => random.one_in(2),
        };
        let mut names = state.durable.clone();
        for op in &state.pending {
            if keep(&mut random) {
                op.apply(&mut names);
            }
        }
        let files = names.into_iter().filter_map(|(name, inode)| {
            let inode = &state.inodes[inode];
            let mut bytes = inode.durable.clone();
            for op in &inode.pending {
                match op {
                    FileOp::Write(offset, data) if matches!(cut, Cut::Torn(_)) && random.one_in(2) => {
                        // Any of its sectors.
                        for (sector, data) in (0u64..).zip(data.chunks(512)) {
                            if !random.one_in(8) {
                                FileOp::Write(offset + sector * 512, data.to_vec()).apply(&mut bytes);
                            }
                        }
                    }
                    op if keep(&mut random) => op.apply(&mut bytes),
                    _ => {}
                }
            }
            Some((name.strip_prefix(STORE)?.to_owned(), bytes))
        });
        Self::holding(&files.collect())
    }

    /// What `verify` says of what the system shows.
    pub(crate) fn verified(&self) -> VerifyReport {
        verify_on(self.to_read(), Path::new("disk"), &VerifyOptions::default(), &mut |_| {}).unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix())
    }

    /// What the names of files in this directory begin with.
    fn prefix(&self) -> String {
        self.state().directories[self.directory].clone()
    }

    /// A directory in this one.
    fn within(&self, name: &str) -> Self {
        let place = format!("{}{name}/", self.prefix());
        Self { opened: format!("{}{name}/", self.opened), ..Self::open(&self.state, &place) }
    }

    fn open_file(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        let mut state = self.state();
        let inode = state.live.get(&path).copied().ok_or(io::ErrorKind::NotFound)?;
        state.take_descriptor()?;
        Ok(DiskFile { disk: self.clone(), inode })
    }

    /// What is in the store's place.
    pub(crate) fn to_read(&self) -> Arc<dyn Medium> {
        Arc::new(Self::open(&self.state, STORE))
    }

    /// As [`to_read`](Self::to_read), for a writer.
    pub(crate) fn medium(&self) -> Arc<dyn WritableMedium> {
        Arc::new(Self::open(&self.state, STORE))
    }

    pub(crate) fn chain(&self) -> Result<Chain, StoreError> {
        Chain::open_on(Path::new("disk"), &self.to_read(), MAIN_BRANCH)
    }

    pub(crate) fn branch(&self, name: &str) -> Result<Chain, StoreError> {
        Chain::open_on(Path::new("disk"), &self.to_read(), name)
    }

    pub(crate) fn create_branch(
        &self,
        name: &str,
        of: &str,
        epoch: EpochId,
        options: WriterOptions,
    ) -> Result<Writer, StoreError> {
        Writer::create_branch_on(Path::new("disk"), &self.medium(), name, of, epoch, (options, Bounds::SMALL))
    }

    pub(crate) fn branch_writer(&self, name: &str, options: WriterOptions) -> Result<Writer, StoreError> {
        Writer::open_on(Path::new("disk"), self.medium(), name, (options, Bounds::SMALL)).map(|(writer, _)| writer)
    }

    pub(crate) fn writer(&self, options: WriterOptions) -> Result<Writer, StoreError> {
        Writer::open_on(Path::new("disk"), self.medium(), MAIN_BRANCH, (options, Bounds::SMALL)).map(|(writer, _)| writer)
    }

    pub(crate) fn create(&self, new: &NewChain, options: WriterOptions) -> Result<Writer, StoreError> {
        Writer::create_on(Path::new("disk"), self.medium(), new, (options, Bounds::SMALL))
    }

    pub(in crate::store) fn compact(&self, branch: &str, keep: Keep<'_>, scope: Scope) -> Result<Compacted, StoreError> {
        compaction::run((Path::new("disk"), &self.medium()), branch, keep, scope, (0, Bounds::SMALL), &mut |_, _| Ok(()))
            .map(|upkeep| upkeep.compacted)
    }
}

impl State {
    /// Counts an operation. `Err` where the power is off already; `Ok(true)` where it goes off
    /// during this one.
    fn step(&mut self) -> io::Result<bool> {
        self.step_of(false)
    }

    /// As [`step`](Self::step). Who changes a file's length just before it is written or cut leaves
    /// it with the length that it should have: nobody can tell.
    fn step_of(&mut self, is_write: bool) -> io::Result<bool> {
        if self.dead {
            return Err(io::Error::other("the power is off"));
        }
        let waits = |what: &Meddling| match what {
            Meddling::Resize(..) => is_write,
            Meddling::Join => !self.live.contains_key(&format!("{STORE}{}", SegmentNumbers::one(3).file_name())),
            _ => false,
        };
        if let Some((_, what)) = self.meddling.take_if(|(at, what)| *at <= self.operations && !waits(what)) {
            self.meddle(&what);
            self.meddled = true;
        }
        self.dead = self.cut_at == Some(self.operations);
        self.operations += 1;
        Ok(self.dead)
    }

    /// Moves everything that has names which begin so. Who has it open has it open there.
    fn move_all(&mut self, from: &str, to: &str) {
        let moved = |name: &str| name.strip_prefix(from).map_or_else(|| name.to_owned(), |rest| format!("{to}{rest}"));
        for names in [&mut self.live, &mut self.durable] {
            *names = std::mem::take(names).into_iter().map(|(name, inode)| (moved(&name), inode)).collect();
        }
        for op in &mut self.pending {
            match op {
                NameOp::Create(name, _) | NameOp::Remove(name) => *name = moved(name),
                NameOp::Rename(before, after) => (*before, *after) = (moved(before), moved(after)),
            }
        }
        self.directories.iter_mut().for_each(|prefix| *prefix = moved(prefix));
    }

    fn meddle(&mut self, what: &Meddling) {
        match what {
            Meddling::Move => self.move_all(STORE, AWAY),
            Meddling::Replace => {
                self.move_all(STORE, AWAY);
                for (name, inode) in self.live.clone() {
                    let Some(name) = name.strip_prefix(AWAY) else { continue };
                    let live = self.inodes[inode].live.clone();
                    let name = format!("{STORE}{name}");
                    self.live.insert(name.clone(), self.inodes.len());
                    self.durable.insert(name, self.inodes.len());
                    self.inodes.push(Inode { durable: live.clone(), live, ..Inode::default() });
                }
            }
            Meddling::Unlock(place) => {
                self.live.remove(&format!("{STORE}{place}lock"));
                self.durable.remove(&format!("{STORE}{place}lock"));
            }
            Meddling::Resize(place, bytes) => {
                let prefix = format!("{STORE}{place}segment-");
                let last = self.live.iter().rfind(|(name, _)| name.starts_with(&prefix)).map(|(_, inode)| *inode);
                let Some(inode) = last.map(|inode| &mut self.inodes[inode]) else { return };
                let op = FileOp::SetLen((inode.live.len() as u64).saturating_add_signed(*bytes));
                op.apply(&mut inode.live);
                inode.pending.push(op);
            }
            Meddling::Join => {
                let name = |numbers: SegmentNumbers| format!("{STORE}{}", numbers.file_name());
                let first = self.live.remove(&name(SegmentNumbers::one(1))).unwrap();
                self.live.remove(&name(SegmentNumbers::one(2))).unwrap();
                self.live.insert(name(SegmentNumbers { first: 1, last: 2 }), first);
            }
        }
    }

    fn fault(&mut self) -> bool {
        self.faults.as_mut().is_some_and(|(random, one_in)| random.one_in(*one_in))
    }

    /// Bytes of files that have a name, and what was taken ahead for them.
    fn used(&self) -> u64 {
        self.live.values().map(|inode| &self.inodes[*inode]).map(|inode| inode.reserved.max(inode.live.len() as u64)).sum()
    }

    fn room(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    fn take_descriptor(&mut self) -> io::Result<()> {
        let (now, most) = self.open;
        let full = self.open_most.is_some_and(|limit| now >= limit);
        if full || self.opening_faults.as_mut().is_some_and(|(random, one_in)| random.one_in(*one_in)) {
            return Err(rustix::io::Errno::MFILE.into());
        }
        self.open = (now + 1, most.max(now + 1));
        Ok(())
    }

    /// Takes an operation on names of files in a directory, wherever that is by then.
    fn name(&mut self, directory: usize, op: impl FnOnce(&str) -> NameOp) -> io::Result<()> {
        let cut = self.step()?;
        let op = op(&self.directories[directory]);
        op.apply(&mut self.live);
        self.pending.push(op);
        if cut { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }
}

impl Medium for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        let prefix = self.prefix();
        let state = self.state();
        let below = state.live.keys().filter_map(|name| name.strip_prefix(&prefix));
        let mut names: Vec<_> = below.map(|name| name.split('/').next().unwrap().to_owned()).collect();
        names.dedup();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn MediumFile>> {
        Ok(Box::new(self.open_file(name)?))
    }

    fn map(&self, name: &str) -> io::Result<Box<dyn IndexBytes>> {
        let path = self.path(name);
        let state = self.state();
        let inode = state.live.get(&path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(state.inodes[inode].live.clone()))
    }

    fn look(&self, name: &str) -> io::Result<Named> {
        let path = self.path(name);
        let state = self.state();
        let inode = state.live.get(&path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Named { is_file: true, bytes: state.inodes[inode].live.len() as u64 })
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        Ok(Arc::new(self.within(name)))
    }

    fn writable(&self) -> Option<&dyn WritableMedium> {
        Some(self)
    }
}

impl WritableMedium for Disk {
    fn open_to_write(&self, name: &str) -> io::Result<Box<dyn WritableFile>> {
        Ok(Box::new(self.open_file(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn WritableFile>> {
        let path = self.path(name);
        let mut state = self.state();
        if state.live.contains_key(&path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.take_descriptor()?;
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        let made = state.name(self.directory, |prefix| NameOp::Create(format!("{prefix}{name}"), inode));
        drop(state);
        let file = Box::new(DiskFile { disk: self.clone(), inode });
        made?;
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state().name(self.directory, |prefix| NameOp::Rename(format!("{prefix}{from}"), format!("{prefix}{to}")))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().name(self.directory, |prefix| NameOp::Remove(format!("{prefix}{name}")))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.step()? {
            return Err(io::Error::other("the power is off"));
        }
        let prefix = state.directories[self.directory].clone();
        let State { durable, pending, .. } = &mut *state;
        let (here, elsewhere): (Vec<_>, _) = std::mem::take(pending).into_iter().partition(|op| op.is_in(&prefix));
        *pending = elsewhere;
        here.into_iter().for_each(|op| op.apply(durable));
        Ok(())
    }

    fn sync_file(&self, name: &str) -> io::Result<()> {
        self.open_file(name)?.sync()
    }

    fn directory_to_write(&self, name: &str) -> io::Result<Arc<dyn WritableMedium>> {
        Ok(Arc::new(self.within(name)))
    }

    fn create_directory(&self, _: &str) -> io::Result<()> {
        // A directory is there as soon as there is a file in it.
        Ok(())
    }

    fn move_below(&self, from: &str, to: &str) -> io::Result<()> {
        let place = self.path(from);
        let is_below = |name: &&String| name.strip_prefix(&place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let below: Vec<_> = self.state().live.keys().filter(is_below).map(|name| name[place.len()..].to_owned()).collect();
        below.iter().try_for_each(|rest| self.rename(&format!("{from}{rest}"), &format!("{to}{rest}")))
    }

    fn room(&self) -> io::Result<u64> {
        Ok(self.state().room())
    }

    fn is_locked(&self, name: &str) -> bool {
        let (path, state) = (self.path(name), self.state());
        state.live.get(&path).is_some_and(|inode| state.held.contains(inode))
    }

    fn file_id(&self, name: &str) -> io::Result<Option<FileId>> {
        let path = self.path(name);
        Ok(self.state().live.get(&path).map(|inode| FileId { device: 0, inode: *inode as u64 }))
    }

    fn check_place(&self) -> Result<(), Displaced> {
        let (path, found) = (self.opened.clone().into(), self.prefix());
        if found == self.opened { Ok(()) } else { Err(Displaced { path, expected: "the directory".to_owned(), found }) }
    }

    fn lock(&self, name: &str, _: &str) -> io::Result<Lock> {
        let (path, mut state) = (self.path(name), self.state());
        let inode = state.live.get(&path).copied().unwrap_or_else(|| {
            let inode = state.inodes.len();
            state.inodes.push(Inode::default());
            // Whether the name survives a power cut makes no difference.
            state.live.insert(path.clone(), inode);
            state.durable.insert(path, inode);
            inode
        });
        let free = state.held.insert(inode);
        Ok(if free { Lock::Held(Box::new(HeldInode { disk: self.clone(), inode })) } else { Lock::Taken("somebody".to_owned()) })
    }
}

/// A lock that is given back when this is dropped.
#[derive(Debug)]
struct HeldInode {
    disk: Disk,
    inode: usize,
}

impl HeldLock for HeldInode {
    fn id(&self) -> io::Result<FileId> {
        Ok(FileId { device: 0, inode: self.inode as u64 })
    }
}

impl Drop for HeldInode {
    fn drop(&mut self) {
        self.disk.state().held.remove(&self.inode);
    }
}

#[derive(Debug)]
struct DiskFile {
    disk: Disk,
    inode: usize,
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        self.disk.state().open.0 -= 1;
    }
}

impl DiskFile {
    fn apply(&self, op: FileOp) -> io::Result<()> {
        let mut state = self.disk.state();
        let cut = state.step_of(true)?;
        let inode = &mut state.inodes[self.inode];
        op.apply(&mut inode.live);
        inode.pending.push(op);
        if cut { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }
}

impl MediumFile for DiskFile {
    fn id(&self) -> io::Result<FileId> {
        Ok(FileId { device: 0, inode: self.inode as u64 })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].live.len() as u64)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.state();
        let bytes = &state.inodes[self.inode].live;
        let from = bytes.len().min(usize::try_from(offset).unwrap());
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }
}

impl WritableFile for DiskFile {
    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut data = parts.concat();
        let (mut fault, room, file_most) = {
            let mut state = self.disk.state();
            let fault = state.fault();
            let inode = &state.inodes[self.inode];
            let has = inode.reserved.max(inode.live.len() as u64);
            (fault, state.room().saturating_add(has.saturating_sub(offset)), state.file_most)
        };
        if fault {
            let kept = self.disk.state().faults.as_mut().unwrap().0.below(data.len() as u64 + 1);
            data.truncate(usize::try_from(kept).unwrap());
        }
        let room = usize::try_from(room).unwrap();
        fault |= data.len() > room;
        data.truncate(room);
        if file_most.is_some_and(|most| offset + data.len() as u64 > most) {
            return Err(rustix::io::Errno::FBIG.into());
        }
        self.apply(FileOp::Write(offset, data))?;
        if fault { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.disk.state().fault() {
            return Err(io::Error::other("cannot cut"));
        }
        self.disk.state().inodes[self.inode].reserved = 0;
        self.apply(FileOp::SetLen(len))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.step()? {
            return Err(io::Error::other("the power is off"));
        }
        let fault = state.fault();
        let State { inodes, faults, .. } = &mut *state;
        let Inode { durable, pending, .. } = &mut inodes[self.inode];
        for op in pending.drain(..) {
            // After a failed sync the system keeps as clean what never reached the medium.
            if !fault || faults.as_mut().is_some_and(|(random, _)| random.one_in(2)) {
                op.apply(durable);
            }
        }
        if fault { Err(io::Error::other("input/output error")) } else { Ok(()) }
    }

    fn begin_sync(&self, bytes: Range<u64>) {
        self.disk.state().inodes[self.inode].begun.push(bytes);
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let room = state.room();
        let inode = &mut state.inodes[self.inode];
        let has = inode.reserved.max(inode.live.len() as u64);
        if (offset + len).saturating_sub(has) > room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inode.reserved = has.max(offset + len);
        Ok(())
    }

    fn forget_cached(&self) {
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        inode.live = inode.durable.clone();
        for op in &inode.pending {
            op.apply(&mut inode.live);
        }
    }
}

/// Frames of the model's memory: two runs, with a hole between them.
pub(crate) const MEMORY: [PageRun; 2] = [PageRun { first: Gfn(0), count: 20 }, PageRun { first: Gfn(1000), count: 20 }];

pub(crate) type Memory = BTreeMap<Gfn, Box<PageBytes>>;

pub(crate) fn new_chain() -> NewChain {
    NewChain { memory: MEMORY.to_vec(), device_runs: 0, vcpus: 1, machine: serde_json::json!({"model": true}) }
}

pub(crate) fn empty_memory() -> Memory {
    MEMORY.iter().flat_map(|run| run.first.0..run.first.0 + run.count).map(|gfn| (Gfn(gfn), Box::new([0; PAGE_SIZE]))).collect()
}

pub(crate) fn memory_digest(memory: &Memory) -> MemoryDigest {
    let mut digest = MemoryDigest::default();
    memory.iter().for_each(|(gfn, page)| digest.add_page(*gfn, page));
    digest
}

/// Writes some pages: zeros, text, noise.
pub(crate) fn run_guest(memory: &mut Memory, random: &mut Random, noise: bool) {
    let gfns: Vec<_> = memory.keys().copied().collect();
    for _ in 0..=random.below(10) {
        let page = memory.get_mut(&gfns[usize::try_from(random.below(gfns.len() as u64)).unwrap()]).unwrap();
        match random.below(4) {
            0 => page.fill(0),
            1 if noise => page.iter_mut().for_each(|byte| *byte = u8::try_from(random.next() & 255).unwrap()),
            _ => {
                let at = usize::try_from(random.below(PAGE_SIZE as u64 - 8)).unwrap();
                page[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
            }
        }
    }
}

pub(crate) fn state_of(epoch: EpochId) -> Vec<StateRecord> {
    vec![
        StateRecord { name: "vcpu.regs".to_owned(), index: 0, version: 1, data: epoch.0.to_le_bytes().to_vec() },
        StateRecord { name: "vm.clock".to_owned(), index: 0, version: 2, data: vec![7; usize::try_from(epoch.0 % 30).unwrap()] },
    ]
}

/// The frames of an epoch that turns `before` into `after`, in parts, and its commit. Some pages
/// are mentioned before with other content, as a base does that is copied while the guest runs.
/// `depths` has, for each page that is not zero, how many changes of it are behind each other.
pub(crate) fn epoch_frames(
    chain: ChainId,
    epoch: EpochId,
    (before, depths): (&Memory, &mut BTreeMap<Gfn, u8>),
    after: &Memory,
    encoder: &mut BlockEncoder,
    random: &mut Random,
) -> (Vec<Vec<u8>>, Commit) {
    let mut writer = EpochWriter::new(chain, epoch);
    let base = before.values().all(|page| is_zero(page));
    let changed: Vec<_> = after.iter().filter(|(gfn, page)| before[gfn] != **page).map(|(gfn, page)| (*gfn, &**page)).collect();
    let mut parts = vec![Vec::new()];
    let stale = [random.next().to_le_bytes()[0]; PAGE_SIZE];
    let repeated: Vec<_> = changed.iter().filter(|_| random.one_in(5)).map(|(gfn, _)| (*gfn, &stale)).collect();
    for block in repeated.chunks(16) {
        writer.pages(parts.last_mut().unwrap(), encoder, block).unwrap();
        depths.extend(block.iter().map(|(gfn, _)| (*gfn, 0)));
    }
    let (zero, rest): (Vec<_>, Vec<_>) = changed.iter().copied().partition(|(_, page)| is_zero(page));
    let zero_runs: Vec<_> = runs(zero.iter().map(|(gfn, _)| *gfn)).collect();
    writer.zeros(parts.last_mut().unwrap(), &zero_runs).unwrap();
    depths.retain(|gfn, _| !zero.iter().any(|(zero, _)| zero == gfn));
    let version = |gfn: &Gfn| if repeated.iter().any(|(found, _)| found == gfn) { &stale } else { &*before[gfn] };
    let changes = rest.iter().map(|(gfn, page)| (*gfn, *page, ChangedWords::between(version(gfn), page)));
    let (changes, rest): (Vec<_>, Vec<_>) = changes.partition(|(gfn, _, changed)| {
        let depth = depths.get(gfn).filter(|depth| **depth < CHANGES_DEPTH_MAX);
        depth.is_some() && (1..=CHANGED_WORDS_MAX).contains(&changed.count()) && !random.one_in(20)
    });
    for block in changes.chunks(16) {
        writer.changes(parts.last_mut().unwrap(), block).unwrap();
        block.iter().for_each(|(gfn, ..)| *depths.get_mut(gfn).unwrap() += 1);
    }
    let rest: Vec<_> = rest.into_iter().map(|(gfn, page, _)| (gfn, page)).collect();
    depths.extend(rest.iter().map(|(gfn, _)| (*gfn, 0)));
    let size = 1 + usize::try_from(random.below(16)).unwrap();
    for block in rest.chunks(size) {
        if random.one_in(3) {
            parts.push(Vec::new());
        }
        writer.pages(parts.last_mut().unwrap(), encoder, block).unwrap();
    }
    writer.state(parts.last_mut().unwrap(), &state_of(epoch)).unwrap();
    let commit = Commit {
        epoch,
        totals: writer.totals(),
        captured_pages: writer.totals().stored_pages + zero.len() as u64,
        zero_pages: zero.len() as u64,
        base,
        audit: Some(memory_digest(after)),
        ..Commit::default()
    };
    (parts, commit)
}

/// What a guest that is checkpointed to a sink was like, and what it was told.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) random: Random,
    pub(crate) memory: Memory,
    /// Every epoch that was offered: its parent and its memory.
    pub(crate) offered: BTreeMap<EpochId, (EpochId, Memory)>,
    /// For each of them, the depths of its pages.
    depths: BTreeMap<EpochId, BTreeMap<Gfn, u8>>,
    /// The newest epoch that was said to be durable.
    pub(crate) durable: EpochId,
    next: EpochId,
    aborts: bool,
    noise: bool,
    encoder: BlockEncoder,
}

impl Model {
    pub(crate) fn new(seed: u64, compression: Compression) -> Self {
        let offered = BTreeMap::from([(EpochId::NONE, (EpochId::NONE, empty_memory()))]);
        Self {
            random: Random(seed),
            memory: empty_memory(),
            offered,
            depths: BTreeMap::new(),
            durable: EpochId::NONE,
            next: EpochId(1),
            aborts: true,
            noise: true,
            encoder: BlockEncoder::new(compression),
        }
    }

    /// No epoch is given up on purpose, and pages compress well.
    pub(crate) const fn quiet(&mut self) {
        self.aborts = false;
        self.noise = false;
    }

    /// The guest goes on from what it was at `epoch`.
    pub(crate) fn continue_from(&mut self, epoch: EpochId) {
        self.memory = self.offered[&epoch].1.clone();
        self.next = epoch.next();
    }

    /// Epochs go on from this number.
    pub(crate) const fn skip_to(&mut self, next: EpochId) {
        self.next = next;
    }

    /// Cuts an epoch and offers it.
    pub(crate) fn epoch(&mut self, sink: &mut Writer) -> Result<(), SinkError> {
        run_guest(&mut self.memory, &mut self.random, self.noise);
        let (epoch, head) = (self.next, sink.head());
        let tip = head.epoch;
        self.next = EpochId(epoch.0 + 1 + u64::from(self.aborts && self.random.one_in(6)));
        let before = &self.offered[&tip].1;
        let mut depths = self.depths.get(&tip).cloned().unwrap_or_default();
        let before = (before, &mut depths);
        let (parts, commit) =
            epoch_frames(sink.description().chain, epoch, before, &self.memory, &mut self.encoder, &mut self.random);
        self.depths.insert(epoch, depths);
        self.offered.insert(epoch, (tip, self.memory.clone()));
        let (last, parts) = parts.split_last().unwrap();
        for part in parts {
            sink.append(epoch, part)?;
        }
        if self.aborts && self.random.one_in(10) {
            return sink.abort();
        }
        let complete = Line::behind(sink.description().chain, head).complete(commit);
        sink.complete(last, &complete)
    }

    pub(crate) fn sync(&mut self, sink: &mut Writer) -> Result<(), SinkError> {
        self.durable = sink.sync()?;
        Ok(())
    }

    /// Runs some epochs. Gives up where the sink cannot be opened again.
    pub(crate) fn run(&mut self, sink: &mut Writer, epochs: u64) {
        for _ in 0..epochs {
            let mut result = self.epoch(sink);
            if result.is_ok() && self.random.one_in(3) {
                result = self.sync(sink);
            }
            if let Err(SinkError::Latched(_)) = result {
                assert!(matches!(self.epoch(sink), Err(SinkError::Latched(_))), "a latched sink takes nothing");
                let Some(tip) = (0..3).find_map(|_| sink.reopen().ok()).map(|head| head.epoch) else { return };
                assert!(tip >= self.durable, "epoch {} was durable, and {tip} is the newest after reopening", self.durable);
                self.durable = tip;
            }
        }
    }

    /// Checks that every epoch of `chain` is one that was offered, whole and in its place, and that
    /// what was durable is there.
    pub(crate) fn check(&self, chain: &Chain) {
        assert_eq!(chain.damage(), [], "no crash leaves damage");
        assert!(chain.newest() >= self.durable, "epoch {} was durable, and {} is the newest", self.durable, chain.newest());
        for epoch in chain.epochs() {
            let epoch = epoch.unwrap();
            let commit = epoch.commit;
            let (parent, memory) = self.offered.get(&commit.epoch).expect("only what was offered exists");
            assert_eq!(commit.parent, *parent);
            let digest = restore::digest(chain, commit.epoch).expect("what exists restores");
            assert_eq!(digest.memory, memory_digest(memory), "epoch {}", commit.epoch);
            assert_eq!(chain.state(commit.epoch).unwrap(), state_of(commit.epoch));
        }
    }
}
