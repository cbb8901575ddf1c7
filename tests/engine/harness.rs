//! A guest, a chain and trackers for tests of the engine: all in memory, with faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use slackwater::epoch::{CapturedState, Cut, Durability, Engine, EngineError, EngineOptions, Finished, Guest, GuestError};
use slackwater::epoch::{Collected, Settled, Tracker, TrackerError};
use slackwater::epoch::{Marks, RollbackGuest, RolledBack, Sink, SinkError, SinkStart, Start};
use slackwater::format::{
    BLOCK_PAGES, BlockDecoder, BlockPages, CHANGES_DEPTH_MAX, ChainId, Commit, Complete, Compression, FRAME_HEADER_BYTES,
    FormatError, FrameHeader, FrameKind, Head, MemoryDigest, StateRecord, Trigger, decode_changes, decode_state, decode_zeros,
};
use slackwater::memory::GuestMemory;
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageBytes, PageRun, PageSet};
use slackwater::parked::Parked;
use slackwater::track::{SimulatedMemory, SimulatedTracker};
use vm_memory::{Bytes, GuestAddress};

/// Two regions with a hole between them.
pub(crate) const REGIONS: [PageRun; 2] = [PageRun { first: Gfn(0), count: 64 }, PageRun { first: Gfn(80), count: 32 }];
pub(crate) const PAGES: usize = 96;
const FRAMES: usize = 112;
/// Entries of the ring; the vCPU leaves the guest with [`RING_SOFT`].
pub(crate) const RING: usize = 16;
pub(crate) const RING_SOFT: usize = 12;
/// What the VMM may write between two cuts.
pub(crate) const SHARE: usize = 4;
pub(crate) const BUDGET: usize = 24;
/// Far longer than any test: nothing happens because of it.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(1_000_000);

/// How long a test waits for what must come, before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The `index`th page of memory.
pub(crate) fn gfn(index: usize) -> Gfn {
    let index = (index % PAGES) as u64;
    Gfn(if index < 64 { index } else { index + 16 })
}

fn place(gfn: Gfn) -> Option<usize> {
    match gfn.0 {
        0..64 => Some(gfn.0 as usize * PAGE_SIZE),
        80..112 => Some((gfn.0 - 16) as usize * PAGE_SIZE),
        _ => None,
    }
}

/// All of memory, page after page.
pub(crate) type Image = Arc<Vec<u8>>;

pub(crate) fn snapshot(memory: &GuestMemory) -> Image {
    let mut image = vec![0; PAGES * PAGE_SIZE];
    for index in 0..PAGES {
        let at = place(gfn(index)).unwrap();
        let page: &mut PageBytes = (&mut image[at..at + PAGE_SIZE]).try_into().unwrap();
        memory.read_page(gfn(index), page).unwrap();
    }
    Arc::new(image)
}

/// One page of it.
pub(crate) fn page_of(image: &Image, gfn: Gfn) -> PageBytes {
    let at = place(gfn).unwrap();
    image[at..at + PAGE_SIZE].try_into().unwrap()
}

/// What an audit of it says.
pub(crate) fn digest_of(image: &Image) -> MemoryDigest {
    let mut digest = MemoryDigest::default();
    (0..PAGES).map(gfn).for_each(|gfn| digest.add_page(gfn, &page_of(image, gfn)));
    digest
}

/// Ends the process if a test hangs.
#[derive(Debug)]
pub(crate) struct Watchdog(#[expect(dead_code, reason = "dropped when the test is done")] Sender<()>);

impl Watchdog {
    pub(crate) fn start() -> Self {
        let (done, waits) = channel();
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if waits.recv_timeout(Duration::from_secs(300)) == Err(RecvTimeoutError::Timeout) {
                // Not captured, as a print would be.
                let _ = writeln!(std::io::stderr(), "{test} hangs");
                std::process::abort();
            }
        });
        Self(done)
    }
}

/// What happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Park,
    Capture,
    /// Put back to the capture with this number.
    Restore(u64),
    Resume,
    Halt,
    Append(u64),
    Appended(u64),
    /// A sync returned without error; the newest epoch.
    Synced(u64),
    Reopen(u64),
    /// `on_release`.
    Released(u64),
    /// The test let the sink go on.
    Opened,
    /// A cut returned.
    Returned,
}

/// A log that all sides write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    pub(crate) fn push(&self, event: Event) {
        lock(&self.0).push(event);
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        lock(&self.0).clone()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        lock(&self.0).iter().filter(|event| wanted(event)).count()
    }

    /// Where the first such event is.
    #[track_caller]
    pub(crate) fn at(&self, event: Event) -> usize {
        let all = self.all();
        all.iter().position(|found| *found == event).unwrap_or_else(|| panic!("no {event:?} in {all:?}"))
    }

    pub(crate) fn released(&self) -> Vec<u64> {
        self.all().iter().filter_map(|event| if let Event::Released(epoch) = event { Some(*epoch) } else { None }).collect()
    }
}

/// A moment at which a VMM may write guest memory. The first two are its right in a cut, the others
/// are of a guest that runs, or of somebody who was not quiesced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Park,
    Capture,
    /// Behind the capture, when the tracker is asked whether there was more.
    WroteMore,
    /// A collection begins: its log of the VMM's writes was taken.
    Begin,
    /// A round takes entries.
    Round,
    /// Pages were copied.
    Settle,
    /// `on_release`; with [`Durability::Epoch`] everything is parked then.
    OnRelease,
    Resume,
    /// State becomes records, behind the guest's back.
    Records,
    /// State is put back.
    Restore,
}

/// What the VMM will write, and when. Clones are the same plan.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    memory: GuestMemory,
    planned: Arc<Mutex<Vec<(Moment, Gfn, PageBytes)>>>,
    /// State was captured in the cut in hand.
    captured: Arc<AtomicBool>,
}

impl Writes {
    fn new(memory: &GuestMemory) -> Self {
        Self { memory: memory.clone(), planned: Arc::default(), captured: Arc::default() }
    }

    pub(crate) fn plan(&self, moment: Moment, gfn: Gfn, page: PageBytes) {
        lock(&self.planned).push((moment, gfn, page));
    }

    pub(crate) fn clear(&self) {
        lock(&self.planned).clear();
    }

    /// Whether all was written.
    pub(crate) fn are_done(&self) -> bool {
        lock(&self.planned).is_empty()
    }

    pub(crate) fn at(&self, moment: Moment) {
        match moment {
            Moment::Park => self.captured.store(false, Ordering::Relaxed),
            Moment::Capture => self.captured.store(true, Ordering::Relaxed),
            // The tracker is asked before the capture as well.
            Moment::WroteMore if !self.captured.load(Ordering::Relaxed) => return,
            _ => {}
        }
        lock(&self.planned).retain(|(when, gfn, page)| {
            if *when == moment {
                self.memory.ram().write_slice(page, GuestAddress(gfn.0 * PAGE_SIZE_U64)).unwrap();
            }
            *when != moment
        });
    }
}

/// The guest's state: the number of the capture, by which an epoch's snapshot is found again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counter {
    pub(crate) value: u64,
    /// A record that no chain takes.
    pub(crate) unsound: bool,
    writes: Option<Writes>,
}

impl CapturedState for Counter {
    fn records(&self) -> Vec<StateRecord> {
        if let Some(writes) = &self.writes {
            writes.at(Moment::Records);
        }
        let name = if self.unsound { "Not A Name" } else { "counter" };
        vec![StateRecord { name: name.into(), index: 0, version: 1, data: self.value.to_le_bytes().to_vec() }]
    }
}

/// A guest whose vCPU is the test.
#[derive(Debug)]
pub(crate) struct TestGuest {
    pub(crate) memory: GuestMemory,
    pub(crate) simulated: SimulatedMemory,
    pub(crate) snapshots: BTreeMap<u64, Image>,
    pub(crate) parked: bool,
    pub(crate) halted: bool,
    pub(crate) fail_next_park: bool,
    pub(crate) fail_next_capture: bool,
    /// Reading the state writes these pages, with this content.
    pub(crate) capture_writes: Vec<(Gfn, PageBytes)>,
    /// What the VMM writes by itself.
    pub(crate) writes: Writes,
    pub(crate) fail_next_restore: bool,
    pub(crate) unsound_state: bool,
    events: Events,
}

impl Guest for TestGuest {
    type State = Counter;

    fn park(&mut self) -> Result<(), GuestError> {
        assert!(!self.parked && !self.halted, "parked twice, or after a halt");
        self.writes.at(Moment::Park);
        if std::mem::take(&mut self.fail_next_park) {
            return Err("no park".into());
        }
        self.parked = true;
        self.events.push(Event::Park);
        Ok(())
    }

    fn capture(&mut self, _parked: &Parked<'_>, into: &mut Counter) -> Result<(), GuestError> {
        assert!(self.parked, "captured while running");
        for (gfn, page) in self.capture_writes.drain(..) {
            self.memory.fill_page(gfn, &page).unwrap();
            let _ = self.simulated.write(gfn);
        }
        self.writes.at(Moment::Capture);
        if std::mem::take(&mut self.fail_next_capture) {
            into.value = u64::MAX;
            return Err("no capture".into());
        }
        let value = self.snapshots.len() as u64 + 1;
        self.snapshots.insert(value, snapshot(&self.memory));
        *into = Counter { value, unsound: self.unsound_state, writes: Some(self.writes.clone()) };
        self.events.push(Event::Capture);
        Ok(())
    }

    fn resume(&mut self) {
        assert!(std::mem::replace(&mut self.parked, false), "resumed without a park");
        assert!(!self.halted, "resumed after a halt");
        self.writes.at(Moment::Resume);
        self.events.push(Event::Resume);
    }

    fn halt(&mut self) {
        self.parked = false;
        self.halted = true;
        self.events.push(Event::Halt);
    }
}

impl RollbackGuest for TestGuest {
    fn restore(&mut self, _parked: &Parked<'_>, state: &Counter) -> Result<(), GuestError> {
        assert!(self.parked, "put back while running");
        if std::mem::take(&mut self.fail_next_restore) {
            return Err("no restore".into());
        }
        assert!(self.memory.written().is_empty(), "what the VMM wrote since the cut is still recorded");
        assert!(self.snapshots.get(&state.value) == Some(&snapshot(&self.memory)), "memory is not what it was at the cut");
        self.writes.at(Moment::Restore);
        self.events.push(Event::Restore(state.value));
        Ok(())
    }
}

/// What an operation of the chain does instead of succeeding. A failing sync always latches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Reject,
    /// What was not synced is gone after a reopen, but for the first so many epochs.
    Latch {
        survivors: usize,
    },
    /// Everything is there after a reopen, the epoch whose commit failed too.
    LatchKept,
}

/// An epoch that the chain holds.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) commit: Commit,
    /// How it ends, and the bytes before that.
    pub(crate) end: Complete,
    pub(crate) frames: Vec<u8>,
    pub(crate) counter: u64,
    pub(crate) image: Image,
    /// How many changes of each page that is not zero are behind each other.
    pub(crate) depths: BTreeMap<Gfn, u8>,
    /// Pages frames and zeros frames: what it says of pages.
    pub(crate) mentions: Vec<Gfn>,
    pub(crate) life: usize,
}

#[derive(Debug, Default)]
struct DiskState {
    stored: Vec<Stored>,
    durable: usize,
    open: Option<(EpochId, Vec<u8>)>,
    /// An epoch whose commit failed and that a reopen finds.
    doubtful: Option<Stored>,
    latched: bool,
    survivors: usize,
    /// Operations so far: append, commit, sync.
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    fail_reopens: u32,
    space: Option<usize>,
    shut: bool,
    shut_at: Option<u64>,
    blocked: bool,
    closed: bool,
    /// Pages of each append and commit call.
    part_pages: Vec<usize>,
    violations: Vec<String>,
    life: usize,
    marks: Option<Marks>,
    syncs_later: bool,
    /// How often a sync was said to come.
    syncs_begun: u64,
    /// The engine may not have heard yet that it is latched.
    told_failure: bool,
}

/// A chain in memory. Clones are the same chain.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    state: Arc<(Mutex<DiskState>, Condvar)>,
    events: Events,
}

const CHAIN: ChainId = ChainId(*b"a chain of tests");

impl Disk {
    fn new(events: Events) -> Self {
        Self { state: Arc::default(), events }
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        lock(&self.state.0)
    }

    /// The next operations wait until [`open`](Self::open).
    pub(crate) fn shut(&self) {
        self.lock().shut = true;
    }

    /// Shuts just before the operation with this number.
    pub(crate) fn shut_at(&self, operation: u64) {
        self.lock().shut_at = Some(operation);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.lock().shut
    }

    pub(crate) fn open(&self) {
        self.events.push(Event::Opened);
        self.lock().shut = false;
        self.state.1.notify_all();
    }

    /// Waits until an operation waits.
    pub(crate) fn wait_blocked(&self) {
        self.wait_while("no operation waits", |state| !state.blocked);
    }

    /// Waits until so many operations were begun.
    pub(crate) fn wait_operations(&self, operations: u64) {
        self.wait_while("too few operations", |state| state.operations < operations);
    }

    #[track_caller]
    fn wait_while(&self, what: &str, mut condition: impl FnMut(&DiskState) -> bool) {
        let (_state, waited) = self.state.1.wait_timeout_while(self.lock(), PATIENCE, |state| condition(state)).unwrap();
        assert!(!waited.timed_out(), "{what}");
    }

    pub(crate) fn fail_at(&self, operation: u64, fault: Fault) {
        self.lock().faults.insert(operation, fault);
    }

    /// The `more`th operation from now on fails.
    pub(crate) fn fail_in(&self, more: u64, fault: Fault) {
        let mut state = self.lock();
        let operation = state.operations + more;
        state.faults.insert(operation, fault);
    }

    /// Nothing fails any more.
    pub(crate) fn mend(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.fail_reopens = 0;
    }

    pub(crate) fn fail_reopens(&self, count: u32) {
        self.lock().fail_reopens = count;
    }

    pub(crate) fn set_space(&self, bytes: Option<usize>) {
        self.lock().space = bytes;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub(crate) fn stored(&self) -> Vec<Stored> {
        self.lock().stored.clone()
    }

    pub(crate) fn last(&self) -> Stored {
        self.lock().stored.last().expect("an epoch").clone()
    }

    pub(crate) fn tip(&self) -> EpochId {
        tip(&self.lock().stored)
    }

    /// The newest durable epoch.
    pub(crate) fn durable(&self) -> EpochId {
        let state = self.lock();
        tip(&state.stored[..state.durable])
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn syncs_begun(&self) -> u64 {
        self.lock().syncs_begun
    }

    pub(crate) fn part_pages(&self) -> Vec<usize> {
        self.lock().part_pages.clone()
    }

    /// The process is killed: what was appended stays, but for what a failed sync lost.
    pub(crate) fn crash(&self) {
        let mut state = self.lock();
        if state.latched {
            let left = state.durable.saturating_add(state.survivors).min(state.stored.len());
            state.stored.truncate(left);
        }
        state.durable = state.stored.len();
        state.open = None;
        state.doubtful = None;
        state.latched = false;
        state.faults.clear();
        state.fail_reopens = 0;
        state.space = None;
        state.shut = false;
        state.shut_at = None;
        state.life += 1;
    }

    /// Another host holds `epoch`.
    pub(crate) fn acknowledge(&self, epoch: EpochId) {
        let marks = self.lock().marks.clone();
        marks.expect("an engine has the sink").acknowledged(epoch);
    }

    /// A sync returns before it is done. What was asked for is durable when
    /// [`sync_now`](Self::sync_now) says so.
    pub(crate) fn sync_later(&self) {
        self.lock().syncs_later = true;
    }

    /// What was appended by now is durable, and told so from this thread.
    pub(crate) fn sync_now(&self) {
        let mut state = self.lock();
        state.durable = state.stored.len();
        let (newest, marks) = (tip(&state.stored), state.marks.clone());
        drop(state);
        marks.expect("an engine has the sink").durable(newest);
    }

    /// A sync that was begun fails, and that is told from this thread.
    pub(crate) fn fail_sync(&self, survivors: usize) {
        let mut state = self.lock();
        let error = state.fail(Fault::Latch { survivors }, None);
        state.told_failure = true;
        let marks = state.marks.clone();
        drop(state);
        marks.expect("an engine has the sink").failed(error);
    }

    pub(crate) fn sink(&self) -> Box<dyn Sink> {
        Box::new(DiskSink { disk: self.clone(), marks: Marks::nowhere() })
    }
}

fn tip(stored: &[Stored]) -> EpochId {
    stored.last().map_or(EpochId::NONE, |last| last.commit.epoch)
}

fn head(stored: &[Stored]) -> Head {
    stored.last().map_or_else(Head::default, |last| last.end.head())
}

#[derive(Debug)]
struct DiskSink {
    disk: Disk,
    marks: Marks,
}

impl DiskSink {
    /// An operation begins: waits at the gate, and says how it is to fail.
    fn begin(&self) -> Result<(MutexGuard<'_, DiskState>, Option<Fault>), SinkError> {
        let (_, changed) = &*self.disk.state;
        let mut state = self.disk.lock();
        if state.shut_at == Some(state.operations) {
            state.shut_at = None;
            state.shut = true;
        }
        state.blocked = state.shut;
        changed.notify_all();
        let (mut state, waited) = changed.wait_timeout_while(state, PATIENCE, |state| state.shut).unwrap();
        if waited.timed_out() {
            // The test has failed, and drops its engine.
            state.shut = false;
            state.violations.push("nobody opened the sink".into());
        }
        state.blocked = false;
        let operation = state.operations;
        state.operations += 1;
        changed.notify_all();
        if state.latched {
            if !state.told_failure {
                state.violations.push(format!("operation {operation} came while latched"));
            }
            return Err(SinkError::Latched("latched".into()));
        }
        let fault = state.faults.remove(&operation);
        Ok((state, fault))
    }
}

impl DiskState {
    fn take_space(&mut self, bytes: usize) -> Option<Fault> {
        let Some(space) = &mut self.space else { return None };
        match space.checked_sub(bytes) {
            Some(left) => {
                *space = left;
                None
            }
            None => Some(Fault::Reject),
        }
    }

    fn drop_open(&mut self) {
        if let (Some((_, frames)), Some(space)) = (self.open.take(), &mut self.space) {
            *space += frames.len();
        }
    }

    fn fail(&mut self, fault: Fault, whole: Option<Stored>) -> SinkError {
        self.drop_open();
        match fault {
            Fault::Reject => return SinkError::Rejected("rejected by the test".into()),
            Fault::Latch { survivors } => self.survivors = survivors,
            Fault::LatchKept => {
                self.survivors = usize::MAX;
                self.doubtful = whole;
            }
        }
        self.latched = true;
        SinkError::Latched("latched by the test".into())
    }

    /// The epoch goes on with these frames.
    fn extend(&mut self, epoch: EpochId, frames: &[u8]) {
        if epoch <= tip(&self.stored) {
            self.violations.push(format!("epoch {epoch} is not above the tip"));
        }
        match &mut self.open {
            Some((open, before)) if *open == epoch => before.extend_from_slice(frames),
            Some((open, _)) => self.violations.push(format!("epoch {epoch} comes within {open}")),
            None => self.open = Some((epoch, frames.to_vec())),
        }
    }

    /// Decodes the epoch on top of the one before.
    fn decode(&self, frames: &[u8], end: &Complete) -> Result<Stored, String> {
        let commit = end.commit;
        let before = head(&self.stored);
        if (commit.parent, commit.parent_hash) != (before.epoch, before.identity) {
            return Err(format!("epoch {} follows {}, and {} is the newest", commit.epoch, commit.parent, before.epoch));
        }
        // A base of a sink that joined says nothing of what it does not mention.
        let leans = self.stored.last().filter(|_| !commit.base);
        let wrong = |what: &str| format!("epoch {}: {what}", commit.epoch);
        let mut image = leans.map_or_else(|| vec![0; PAGES * PAGE_SIZE], |last| last.image.to_vec());
        let mut depths = leans.map_or_else(BTreeMap::new, |last| last.depths.clone());
        let mut counter = None;
        let mut mentions = Vec::new();
        let mut sequence = 0;
        let (mut blocks, mut stored_pages, mut zero_pages) = (0, 0, 0);
        walk(frames, |header, payload| {
            if header.epoch != commit.epoch || header.sequence != sequence {
                return Err(wrong("frames out of order"));
            }
            sequence += 1;
            match header.kind {
                FrameKind::Pages => {
                    let mut pages: Box<BlockPages> = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
                    let said = |error: FormatError| wrong(&error.to_string());
                    let list = if payload[0] == 2 {
                        let (list, changes) = decode_changes(payload).map_err(said)?;
                        for ((gfn, change), page) in list.gfns().iter().zip(changes).zip(pages.iter_mut()) {
                            let at = place(*gfn).ok_or_else(|| wrong("a page outside of memory"))?;
                            page.copy_from_slice(&image[at..at + PAGE_SIZE]);
                            change.apply(page).map_err(said)?;
                            let depth = depths.get_mut(gfn).ok_or_else(|| wrong("a change of a page that is zero"))?;
                            *depth += 1;
                            if *depth > CHANGES_DEPTH_MAX {
                                return Err(wrong("too many changes behind each other"));
                            }
                        }
                        list
                    } else {
                        let list = BlockDecoder::new().decode(payload, &mut pages).map_err(said)?;
                        depths.extend(list.gfns().iter().map(|gfn| (*gfn, 0)));
                        list
                    };
                    for (gfn, page) in list.gfns().iter().zip(pages.iter()) {
                        let at = place(*gfn).ok_or_else(|| wrong("a page outside of memory"))?;
                        image[at..at + PAGE_SIZE].copy_from_slice(page);
                        mentions.push(*gfn);
                        stored_pages += 1;
                    }
                    blocks += 1;
                }
                FrameKind::Zeros => {
                    for run in decode_zeros(payload).map_err(|error| error.to_string())? {
                        for frame in run.first.0..run.first.0 + run.count {
                            let at = place(Gfn(frame)).ok_or_else(|| wrong("zeros outside of memory"))?;
                            image[at..at + PAGE_SIZE].fill(0);
                            depths.remove(&Gfn(frame));
                            mentions.push(Gfn(frame));
                            zero_pages += 1;
                        }
                    }
                }
                FrameKind::State => {
                    let records = decode_state(payload).map_err(|error| error.to_string())?;
                    let data: [u8; 8] = records[0].data.as_slice().try_into().map_err(|_| wrong("another state"))?;
                    counter = Some(u64::from_le_bytes(data));
                }
                _ => return Err(wrong("a frame that is not the engine's")),
            }
            Ok(())
        })?;
        let totals = commit.totals;
        if (totals.frames, totals.blocks, totals.frames_bytes) != (sequence, blocks, frames.len() as u64) {
            return Err(wrong("totals of other frames"));
        }
        if (totals.stored_pages, commit.zero_pages) != (stored_pages, zero_pages) {
            return Err(wrong("counts of other pages"));
        }
        // Each page counts once, however often it was taken.
        let distinct = mentions.iter().collect::<BTreeSet<_>>().len() as u64;
        let taken = stored_pages + zero_pages + commit.unchanged_pages;
        if !(distinct..=taken).contains(&commit.captured_pages) {
            return Err(format!("{}: {commit:?}", wrong("counts that do not add up")));
        }
        if commit.base != (self.stored.is_empty() || commit.rewritten.is_some()) {
            return Err(wrong("the base flag"));
        }
        let counter = counter.ok_or_else(|| wrong("no state"))?;
        let (end, frames) = (end.clone(), frames.to_vec());
        Ok(Stored { commit, end, frames, counter, image: Arc::new(image), depths, mentions, life: self.life })
    }
}

/// Calls `each` with every frame.
fn walk(mut frames: &[u8], mut each: impl FnMut(&FrameHeader, &[u8]) -> Result<(), String>) -> Result<(), String> {
    while !frames.is_empty() {
        let header = FrameHeader::parse(frames, CHAIN).map_err(|error| error.to_string())?;
        let (frame, rest) = frames.split_at(header.frame_bytes() as usize);
        each(&header, header.check_body(&frame[FRAME_HEADER_BYTES..]).map_err(|error| error.to_string())?)?;
        frames = rest;
    }
    Ok(())
}

/// How many pages the frames of one call mention.
fn pages_in(frames: &[u8]) -> usize {
    let mut pages = 0;
    let walked = walk(frames, |header, payload| {
        pages += match header.kind {
            FrameKind::Pages => payload[1].into(),
            FrameKind::Zeros => decode_zeros(payload).unwrap().iter().map(|run| run.count as usize).sum(),
            _ => 0,
        };
        Ok(())
    });
    walked.map(|()| pages).unwrap_or_default()
}

impl Sink for DiskSink {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.disk.lock().marks = Some(marks.clone());
        self.marks = marks;
        let head = head(&self.disk.lock().stored);
        SinkStart { chain: CHAIN, head, durable: Some(head.epoch), keeps: true }
    }

    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        let (mut state, fault) = self.begin()?;
        state.part_pages.push(pages_in(frames));
        if let Some(fault) = fault.or_else(|| state.take_space(frames.len())) {
            return Err(state.fail(fault, None));
        }
        state.extend(epoch, frames);
        self.disk.events.push(Event::Append(epoch.0));
        Ok(())
    }

    fn begin_sync(&mut self) {
        self.disk.lock().syncs_begun += 1;
    }

    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        let (mut state, fault) = self.begin()?;
        state.part_pages.push(pages_in(frames));
        let fault = fault.or_else(|| state.take_space(frames.len()));
        let open = state.open.clone();
        state.extend(epoch.commit.epoch, frames);
        let whole = state.open.clone().map_or_else(Vec::new, |(_, frames)| frames);
        let decoded = state.decode(&whole, epoch);
        if let Some(fault) = fault {
            state.open = open;
            return Err(state.fail(fault, decoded.ok()));
        }
        state.open = None;
        match decoded {
            Ok(stored) => state.stored.push(stored),
            Err(violation) => state.violations.push(violation),
        }
        self.disk.events.push(Event::Appended(epoch.commit.epoch.0));
        Ok(())
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        self.disk.lock().drop_open();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        let (mut state, fault) = self.begin()?;
        match fault {
            None if state.syncs_later => Ok(()),
            None => {
                state.durable = state.stored.len();
                let newest = tip(&state.stored);
                self.disk.events.push(Event::Synced(newest.0));
                drop(state);
                self.marks.durable(newest);
                Ok(())
            }
            Some(Fault::Reject) => Err(state.fail(Fault::Latch { survivors: 0 }, None)),
            Some(fault) => Err(state.fail(fault, None)),
        }
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        let mut state = self.disk.lock();
        if state.fail_reopens > 0 {
            state.fail_reopens -= 1;
            return Err(SinkError::Latched("the reopen fails".into()));
        }
        if state.latched {
            let left = state.durable.saturating_add(state.survivors).min(state.stored.len());
            state.stored.truncate(left);
        }
        if let Some(doubtful) = state.doubtful.take() {
            state.stored.push(doubtful);
        }
        state.open = None;
        (state.latched, state.told_failure) = (false, false);
        state.durable = state.stored.len();
        let newest = head(&state.stored);
        self.disk.events.push(Event::Reopen(newest.epoch.0));
        Ok(newest)
    }

    fn close(&mut self, sync: bool) -> Result<(), SinkError> {
        self.abort()?;
        if sync {
            self.sync()?;
        }
        self.disk.lock().closed = true;
        Ok(())
    }
}

/// What a tracker gets wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lies {
    /// Never says that writes were lost.
    pub(crate) hides_lost: bool,
    /// Says that writes were lost only when the collection is settled.
    pub(crate) late: bool,
    /// Can't tell whether something was written since a collection began.
    pub(crate) cannot_tell: bool,
    /// Never lists this page.
    pub(crate) drops: Option<Gfn>,
    /// Can't begin anew.
    pub(crate) cannot_rearm: bool,
    /// Protects what a round took only with what the next one, or a cut, takes: after its copy.
    pub(crate) resets_late: bool,
}

/// A simulated tracker that may lie.
#[derive(Debug)]
pub(crate) struct LyingTracker {
    inner: SimulatedTracker,
    lies: Lies,
    simulated: SimulatedMemory,
    /// What is to be said when the collection is settled.
    unsaid: Option<TrackerError>,
    /// What the VMM writes beside the tracker.
    writes: Writes,
}

impl Tracker for LyingTracker {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn bound(&self) -> Option<u64> {
        self.inner.bound()
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let mut listed = PageSet::new(into.frames(), RING);
        let mut collected = self.inner.collect(parked, &mut listed)?;
        for gfn in listed.iter().filter(|gfn| Some(*gfn) != self.lies.drops) {
            into.insert(gfn);
        }
        if self.lies.hides_lost {
            collected.lost = None;
        }
        Ok(collected)
    }

    fn begin(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        self.writes.at(Moment::Begin);
        let mut collected = self.collect(parked, into)?;
        if self.lies.late {
            self.unsaid = collected.lost.take();
        }
        Ok(collected)
    }

    fn listed(&self) -> Option<u64> {
        self.inner.listed()
    }

    fn round(&mut self, most: usize, into: &mut PageSet) -> Result<Option<Collected>, TrackerError> {
        self.writes.at(Moment::Round);
        if !self.lies.resets_late {
            return self.inner.round(most, into);
        }
        let unprotected = self.simulated.writable();
        let collected = self.inner.round(most, into);
        self.simulated.set_writable(unprotected);
        collected
    }

    fn wrote_more(&self, parked: &Parked<'_>) -> Option<bool> {
        self.writes.at(Moment::WroteMore);
        self.inner.wrote_more(parked).filter(|_| !self.lies.cannot_tell)
    }

    fn settle(&mut self, _parked: &Parked<'_>) -> Result<Settled, TrackerError> {
        self.writes.at(Moment::Settle);
        Ok(Settled { lost: self.unsaid.take(), ..Settled::default() })
    }

    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError> {
        if self.lies.cannot_rearm {
            return Err("tracking is gone for good".into());
        }
        self.inner.rearm(parked)
    }
}

/// A guest and its chain.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) memory: GuestMemory,
    pub(crate) simulated: SimulatedMemory,
    pub(crate) guest: TestGuest,
    pub(crate) disk: Disk,
    pub(crate) events: Events,
    pub(crate) lies: Lies,
    stamp: u64,
    _watchdog: Watchdog,
}

/// The options of most tests: nothing is synced before the end, nothing waits.
pub(crate) fn options() -> EngineOptions {
    EngineOptions {
        budget_pages: BUDGET,
        share_pages: SHARE as u64,
        slots: 4,
        durability: Durability::Group(FOR_EVER),
        compression: Compression::None,
        ..EngineOptions::default()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let events = Events::default();
        let disk = Disk::new(events.clone());
        Self::with(disk, events, BTreeMap::new(), 0)
    }

    fn with(disk: Disk, events: Events, snapshots: BTreeMap<u64, Image>, stamp: u64) -> Self {
        let memory = GuestMemory::anonymous(&REGIONS, SHARE).unwrap();
        let simulated = SimulatedMemory::new(FRAMES, RING, RING - RING_SOFT);
        let guest = TestGuest {
            memory: memory.clone(),
            simulated: simulated.clone(),
            snapshots,
            parked: false,
            halted: false,
            fail_next_park: false,
            fail_next_capture: false,
            capture_writes: Vec::new(),
            writes: Writes::new(&memory),
            fail_next_restore: false,
            unsound_state: false,
            events: events.clone(),
        };
        Self { memory, simulated, guest, disk, events, lies: Lies::default(), stamp, _watchdog: Watchdog::start() }
    }

    /// Crashes, and restores the newest epoch into new memory.
    pub(crate) fn restored(self) -> Self {
        self.disk.crash();
        let events = Events::default();
        let disk = Disk { events: events.clone(), ..self.disk };
        let world = Self::with(disk, events, self.guest.snapshots, self.stamp);
        if let Some(last) = world.disk.stored().last() {
            for index in 0..PAGES {
                let at = place(gfn(index)).unwrap();
                world.memory.fill_page(gfn(index), last.image[at..at + PAGE_SIZE].try_into().unwrap()).unwrap();
            }
        }
        world
    }

    pub(crate) fn try_engine(&self, start: Start, options: EngineOptions) -> Result<Engine<Counter>, EngineError> {
        self.try_engine_with(self.disk.sink(), start, options)
    }

    /// One whose first sink is this.
    pub(crate) fn engine_with(&self, sink: Box<dyn Sink>, start: Start, options: EngineOptions) -> Engine<Counter> {
        self.try_engine_with(sink, start, options).unwrap()
    }

    fn try_engine_with(
        &self,
        sink: Box<dyn Sink>,
        start: Start,
        mut options: EngineOptions,
    ) -> Result<Engine<Counter>, EngineError> {
        let events = self.events.clone();
        let writes = self.guest.writes.clone();
        options.on_release.get_or_insert_with(|| {
            Box::new(move |epoch| {
                writes.at(Moment::OnRelease);
                events.push(Event::Released(epoch.0));
            })
        });
        Engine::new(self.memory.clone(), self.tracker(), sink, start, options)
    }

    pub(crate) fn tracker(&self) -> Box<dyn Tracker> {
        let (inner, writes) = (SimulatedTracker::new(self.simulated.clone()), self.guest.writes.clone());
        Box::new(LyingTracker { inner, lies: self.lies, simulated: self.simulated.clone(), unsaid: None, writes })
    }

    pub(crate) fn engine(&self, start: Start, options: EngineOptions) -> Engine<Counter> {
        self.try_engine(start, options).unwrap()
    }

    /// A content that no page has had.
    pub(crate) fn fresh_page(&mut self) -> PageBytes {
        self.stamp += 1;
        let mut page = [self.stamp as u8 | 1; PAGE_SIZE];
        page[..8].copy_from_slice(&self.stamp.to_le_bytes());
        page
    }

    /// The guest writes new content. Returns whether its ring is full.
    pub(crate) fn write(&mut self, gfn: Gfn) -> bool {
        let page = self.fresh_page();
        self.write_page(gfn, &page)
    }

    pub(crate) fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> bool {
        self.memory.fill_page(gfn, page).unwrap();
        self.simulated.write(gfn)
    }

    /// The guest writes several pages, without looking whether its ring is full.
    pub(crate) fn write_all(&mut self, gfns: impl IntoIterator<Item = usize>) {
        for index in gfns {
            let _ = self.write(gfn(index));
        }
    }

    /// The VMM writes new content.
    pub(crate) fn vmm_write(&mut self, gfn: Gfn) {
        let page = self.fresh_page();
        self.vmm_write_page(gfn, &page);
    }

    pub(crate) fn vmm_write_page(&mut self, gfn: Gfn, page: &PageBytes) {
        self.memory.ram().write_slice(page, GuestAddress(gfn.0 * PAGE_SIZE_U64)).unwrap();
    }

    /// The VMM will write new content, at this moment of a cut.
    pub(crate) fn plan(&mut self, moment: Moment, gfn: Gfn) {
        let page = self.fresh_page();
        self.guest.writes.plan(moment, gfn, page);
    }

    /// Content that was there before there was an engine, and that nobody recorded.
    pub(crate) fn fill(&mut self, gfns: impl IntoIterator<Item = usize>) {
        for index in gfns {
            let page = self.fresh_page();
            self.memory.fill_page(gfn(index), &page).unwrap();
        }
    }

    pub(crate) fn cut(&mut self, engine: &mut Engine<Counter>, trigger: Trigger) -> Result<Cut, EngineError> {
        let cut = engine.cut(&mut self.guest, trigger);
        assert!(!self.guest.parked, "left parked after {cut:?}");
        match &cut {
            Ok(_) | Err(EngineError::Guest { .. }) => assert!(!self.guest.halted, "halted after {cut:?}"),
            Err(_) => assert!(self.guest.halted, "not halted after {cut:?}"),
        }
        cut
    }

    pub(crate) fn rollback(&mut self, engine: &mut Engine<Counter>) -> Result<RolledBack, EngineError> {
        let rolled_back = engine.rollback(&mut self.guest);
        assert!(!self.guest.parked, "left parked after {rolled_back:?}");
        match &rolled_back {
            Ok(_) | Err(EngineError::Guest { .. } | EngineError::NoRollback | EngineError::NoCut) => {
                assert!(!self.guest.halted, "halted after {rolled_back:?}");
            }
            Err(_) => assert!(self.guest.halted, "not halted after {rolled_back:?}"),
        }
        if rolled_back.is_ok() {
            let newest = *self.guest.snapshots.last_key_value().expect("a cut").0;
            // The writer's thread may have come between.
            let of_guest = self.events.all().into_iter().filter(|event| matches!(event, Event::Restore(_) | Event::Resume));
            let of_guest: Vec<_> = of_guest.collect();
            assert_eq!(of_guest.last_chunk(), Some(&[Event::Restore(newest), Event::Resume]));
        }
        rolled_back
    }

    /// A cut that takes an epoch; its number.
    #[track_caller]
    pub(crate) fn take(&mut self, engine: &mut Engine<Counter>, trigger: Trigger) -> u64 {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.cut(engine, trigger) {
                Ok(Cut::Taken { epoch, .. }) => return epoch.0,
                // An interval gives way to storage that is behind.
                Ok(Cut::Skipped) if trigger == Trigger::Interval && Instant::now() < until => std::thread::yield_now(),
                other => panic!("no epoch was taken: {other:?}"),
            }
        }
    }

    /// Waits until every epoch that was cut is in the chain or has failed.
    pub(crate) fn settle(&self, engine: &Engine<Counter>, captures_before: usize) {
        let captures = (self.guest.snapshots.len() - captures_before) as u64;
        wait_until("an epoch is neither stored nor failed", || {
            let report = engine.report();
            report.epochs + report.failed_epochs == captures
        });
    }

    /// Another chain of the same guest, whose events are nobody's.
    pub(crate) fn other_disk(&self) -> Disk {
        Disk::new(Events::default())
    }

    /// The oracle: every epoch in the chain is what the guest was at its cut, byte for byte; the
    /// counts add up.
    pub(crate) fn oracle(&self) -> Result<(), String> {
        self.oracle_of(&self.disk)
    }

    /// The oracle, asked of one chain of several.
    pub(crate) fn oracle_of(&self, disk: &Disk) -> Result<(), String> {
        let state = disk.lock();
        if let Some(violation) = state.violations.first() {
            return Err(violation.clone());
        }
        for Stored { commit, counter, image, .. } in &state.stored {
            let epoch = commit.epoch;
            if commit.audit.is_some_and(|audit| audit != digest_of(image)) {
                return Err(format!("epoch {epoch} is not what its audit says"));
            }
            let expected = self.guest.snapshots.get(counter).ok_or_else(|| format!("epoch {epoch} has an unknown state"))?;
            let differ: BTreeSet<_> = (0..PAGES)
                .filter(|index| {
                    let at = place(gfn(*index)).unwrap();
                    image[at..at + PAGE_SIZE] != expected[at..at + PAGE_SIZE]
                })
                .map(gfn)
                .collect();
            if !differ.is_empty() {
                return Err(format!("epoch {epoch} is not what the guest was: {differ:?} differ"));
            }
        }
        if !state.stored.windows(2).all(|pair| pair[0].counter < pair[1].counter && pair[0].commit.epoch < pair[1].commit.epoch) {
            return Err("epochs are out of order".into());
        }
        Ok(())
    }

    /// The oracle, and the report's counts of a run that began when `before` captures had been
    /// made.
    #[track_caller]
    pub(crate) fn check(&self, finished: &Finished, captures_before: usize) {
        self.oracle().unwrap();
        let report = &finished.report;
        let state = self.disk.lock();
        let mine = |stored: &[Stored]| stored.iter().filter(|stored| stored.life == state.life).count() as u64;
        assert_eq!(report.epochs, mine(&state.stored), "epochs in the chain");
        assert_eq!(report.durable_epochs, mine(&state.stored[..state.durable]), "durable epochs");
        let captures = (self.guest.snapshots.len() - captures_before) as u64;
        assert_eq!(report.epochs + report.failed_epochs, captures, "every cut is stored or failed: {report:?}");
        assert!(report.max_epoch_pages <= report.budget_pages || report.over_budget_epochs > 0, "{report:?}");
        let released = self.events.released();
        assert!(released.is_sorted_by(|a, b| a < b), "released out of order or twice: {released:?}");
    }

    /// Ends a run whose end is in order, and checks it.
    #[track_caller]
    pub(crate) fn finish(&self, engine: Engine<Counter>) -> Finished {
        let finished = engine.finish();
        assert!(finished.error.is_none(), "{:?}", finished.error);
        self.check(&finished, 0);
        let newest = self.guest.snapshots.last_key_value().map(|(counter, _)| *counter);
        assert_eq!(self.disk.stored().last().map(|last| last.counter), newest, "the last cut is in the chain");
        finished
    }
}

/// Waits for another thread's work.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The errors, one behind the other.
pub(crate) fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
