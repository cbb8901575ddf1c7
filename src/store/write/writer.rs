//! The one writer of a chain. Follows `docs/format.md`, "Writing".

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::active::Active;
use super::mark_file::MarkFile;
use super::options::{NewChain, Recovered, WriterOptions};
use super::recovery::{OPEN_FILES, Opened, begins_at, make_segment, recover, told_durable};
use crate::clock::unix_ns;
use crate::epoch::{Marks, Sink, SinkError, SinkStart};
use crate::format::{
    BranchPoint, ChainId, ClockJump, Complete, CutTime, Description, FORMAT_VERSION, Head, MAIN_BRANCH, Mark,
    SEGMENT_HEADER_FRAME_BYTES, SEGMENTS_MAX, Synced,
};
use crate::page::{EpochId, PAGE_SIZE_U64};
use crate::store::bounds::Bounds;
use crate::store::error::{StoreError, causes};
use crate::store::keep::place_to_write::place_to_write;
use crate::store::keep::upkeep::{Home, KeptSegments, Maintenance, enough_room};
use crate::store::medium::{self, Directory, Medium, MediumFile, Place, WritableMedium, take_lock};
use crate::store::names::{BRANCHES, DESCRIPTION, DESCRIPTION_DRAFT, LOCK, Listed, MAINTENANCE, MARK, SegmentNumbers};
use crate::store::read::chain::BRANCHES_DEPTH_MAX;
use crate::store::read::{Chain, ReadOptions, place_of, read_description};

/// The one writer of a chain. See [`Sink`] for how epochs are appended.
pub struct Writer {
    dir: PathBuf,
    medium: Arc<dyn WritableMedium>,
    options: WriterOptions,
    description: Arc<Description>,
    segment: Active,
    head: Head,
    durable: EpochId,
    /// What the segment's header or a frame in it says to have been durable.
    told_durable: EpochId,
    /// Where the engine is told how far the chain is durable.
    marks: Marks,
    /// The epoch in hand: some of its frames may lie behind `segment.end`.
    pending: Option<EpochId>,
    /// Whether the chain ends in a close frame.
    closed: bool,
    /// Why nothing is taken any more.
    latched: Option<String>,
    /// How many bytes the segment may have since, where nobody but this writer changed it.
    latched_bytes: RangeInclusive<u64>,
    /// Space is not taken ahead where the file system cannot.
    preallocates: bool,
    maintenance: Maintenance,
    /// Where it is said which epoch is durable, if the chain's format has that.
    mark: MarkFile,
    /// About how many bytes a base of the chain has: where epochs are dropped, segments are no
    /// longer than a part of that.
    image_bytes: u64,
    /// That the clock was set was said.
    told_jump: bool,
    /// Nothing was appended yet.
    untouched: bool,
    /// A file that is open so that its descriptor can be had for the next segment.
    spare: Option<Box<dyn MediumFile>>,
    /// No new segment is begun for its own sake before the last one is this long: there was no
    /// descriptor for one.
    rotate_from: u64,
    room: Room,
    place: Arc<Place>,
    bounds: Bounds,
}

/// What the writer knows of the room on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// There was enough, and so many bytes were appended since.
    Enough(u64),
    /// There is not much more than dropping takes: no space is taken ahead.
    Little,
    /// Something was refused for want of room, whatever the system says of how much there is.
    Refused,
}

impl Writer {
    /// Whether [`create`](Self::create) may make a chain in `dir`: nothing is there, or a directory
    /// that is empty. Changes nothing.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn check_place(dir: impl AsRef<Path>) -> Result<(), StoreError> {
        let dir = dir.as_ref();
        let directory = match Directory::open(dir) {
            Ok(directory) => directory,
            Err(StoreError::Missing { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        check_free(dir, &directory.list().map_err(StoreError::io("list", dir))?)
    }

    /// Makes a chain in `dir`, which is made if need be and must be empty.
    ///
    /// # Errors
    /// A path that is no directory or not empty, another writer, a limit of the format, what the
    /// operating system refuses.
    pub fn create(dir: impl AsRef<Path>, new: &NewChain, options: WriterOptions) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        Directory::make(dir).map_err(StoreError::io("make", dir))?;
        Self::create_on(dir, open(dir)?, new, (options, Bounds::USUAL))
    }

    /// Makes a chain in `dir` for the epochs of another store's: with its description, and so its
    /// identifier. As [`create`](Self::create) in all else.
    ///
    /// # Errors
    /// As [`create`](Self::create); the description of a branch.
    pub fn create_for(dir: impl AsRef<Path>, description: &Description, options: WriterOptions) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        if let Some(point) = &description.branch_of {
            return Err(StoreError::BranchName { name: point.branch.clone() });
        }
        Directory::make(dir).map_err(StoreError::io("make", dir))?;
        let medium = open(dir)?;
        check_free(dir, &medium.list().map_err(StoreError::io("list", dir))?)?;
        let bounds = Bounds::USUAL;
        let home = Home { root: dir.to_owned(), medium: medium.clone(), branch: MAIN_BRANCH.to_owned(), bounds };
        Self::begin_chain(dir, medium, description.clone(), options, home)
    }

    pub(in crate::store) fn create_on(
        dir: &Path,
        medium: Arc<dyn WritableMedium>,
        new: &NewChain,
        (options, bounds): (WriterOptions, Bounds),
    ) -> Result<Self, StoreError> {
        check_free(dir, &medium.list().map_err(StoreError::io("list", dir))?)?;
        let description = Description {
            format: FORMAT_VERSION,
            chain: random_chain(dir)?,
            page_size: PAGE_SIZE_U64,
            created_unix_ns: unix_ns(),
            created_by: CREATED_BY.to_owned(),
            memory: new.memory.clone(),
            device_runs: new.device_runs,
            vcpus: new.vcpus,
            machine: new.machine.clone(),
            branch_of: None,
        };
        let home = Home { root: dir.to_owned(), medium: medium.clone(), branch: MAIN_BRANCH.to_owned(), bounds };
        Self::begin_chain(dir, medium, description, options, home)
    }

    /// Makes the branch `name` of the chain in `dir`, which begins at `epoch` of the chain `of`:
    /// `main`, or another branch.
    ///
    /// # Errors
    /// A name that no branch can have, or one has; an epoch that there is not; somebody who
    /// compacts the chain or makes a branch; what the operating system refuses.
    pub fn create_branch(
        dir: impl AsRef<Path>,
        name: &str,
        of: &str,
        epoch: EpochId,
        options: WriterOptions,
    ) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        Self::create_branch_on(dir, &open(dir)?, name, of, epoch, (options, Bounds::USUAL))
    }

    pub(in crate::store) fn create_branch_on(
        root: &Path,
        medium: &Arc<dyn WritableMedium>,
        name: &str,
        of: &str,
        epoch: EpochId,
        (options, bounds): (WriterOptions, Bounds),
    ) -> Result<Self, StoreError> {
        if name == MAIN_BRANCH || !crate::format::is_branch_name(name) {
            return Err(StoreError::BranchName { name: name.to_owned() });
        }
        // Before the lock, so that a directory without a chain is left as it is.
        place_of(root, medium.as_ref(), of)?;
        // Nobody drops the epoch while the branch is made.
        let maintenance = take_lock(root, medium, MAINTENANCE)?;
        let files = ReadOptions { bounds, ..ReadOptions::open_files(OPEN_FILES) };
        let to_read: Arc<dyn Medium> = medium.clone();
        let mut trunk = Chain::open_on_with(root, &to_read, of, files)?;
        let mut of = of.to_owned();
        // The chain that holds the epoch itself is the one that keeps it.
        while let Some(point) = trunk.description().branch_of.clone().filter(|point| epoch <= point.epoch) {
            trunk = Chain::open_on_with(root, &to_read, &point.branch, files)?;
            of = point.branch;
        }
        if trunk.depth() >= BRANCHES_DEPTH_MAX {
            return Err(StoreError::BranchDepth { name: name.to_owned(), most: BRANCHES_DEPTH_MAX });
        }
        let begin = trunk.epoch(epoch)?;
        // It was read from what the system keeps in memory.
        let (_, holder) = place_to_write(root, medium, &of)?;
        let source = trunk.segment(trunk.locate(epoch)?.0)?;
        let file = begin.segment.file_name();
        let synced = trunk.with_room(|| holder.sync_file(&file)).and_then(|()| holder.file_id(&file));
        let found = synced.map_err(StoreError::io("sync", source.path()))?;
        if found != source.file().id().ok() {
            return Err(StoreError::Replaced { path: source.path().to_owned() });
        }
        maintenance.check()?;
        let dir = root.join(BRANCHES).join(name);
        let make = || {
            medium.make_directory(BRANCHES)?;
            medium.sync()?;
            let branches = medium.directory_to_write(BRANCHES)?;
            branches.make_directory(name)?;
            branches.sync()?;
            let own = branches.directory_to_write(name)?;
            Ok((own.list()?, own))
        };
        let (listed, own) = make().map_err(StoreError::io("make", &dir))?;
        check_free(&dir, &listed)?;
        let description = Description {
            format: FORMAT_VERSION,
            chain: random_chain(&dir)?,
            created_unix_ns: unix_ns(),
            created_by: CREATED_BY.to_owned(),
            branch_of: Some(BranchPoint { branch: of, epoch, identity: begin.identity }),
            ..trunk.description().clone()
        };
        // Its files are not needed any more.
        drop(trunk);
        let home = Home { root: root.to_owned(), medium: medium.clone(), branch: name.to_owned(), bounds };
        Self::begin_chain(&dir, own, description, options, home)
    }

    fn begin_chain(
        dir: &Path,
        medium: Arc<dyn WritableMedium>,
        description: Description,
        options: WriterOptions,
        home: Home,
    ) -> Result<Self, StoreError> {
        let bytes = description.encode().map_err(StoreError::Input)?;
        let place = take_lock(dir, &medium, LOCK)?;
        // Another writer may have been quicker.
        let names = medium.list().map_err(StoreError::io("list", dir))?;
        check_free(dir, &names)?;

        if names.iter().any(|name| name == DESCRIPTION_DRAFT) {
            medium.remove(DESCRIPTION_DRAFT).map_err(StoreError::io("remove", dir.join(DESCRIPTION_DRAFT)))?;
        }
        let from = begins_at(&description);
        // A chain has a mark from its first moment on.
        let mark = MarkFile::create(dir, medium.as_ref(), description.chain, Mark { epoch: from.0, identity: from.1 })?;
        let write = || {
            let draft = medium.create(DESCRIPTION_DRAFT)?;
            draft.write(0, &[&bytes])?;
            draft.sync()?;
            medium.rename(DESCRIPTION_DRAFT, DESCRIPTION)?;
            medium.sync()
        };
        write().map_err(StoreError::io("write", dir.join(DESCRIPTION)))?;
        let description = Arc::new(description);
        let segment = make_segment(dir, medium.as_ref(), &description, 1, from)?;
        let recovered = Recovered { tip: from.0, epochs: 0, torn: None, closed: false };
        let head = Head { epoch: from.0, identity: from.1, cut: None };
        let opened = Opened { segment, mark, head, image_bytes: 0, full_bytes: 0, recovered };
        Ok(Self::new((dir, medium, home), description, opened, options, place).0)
    }

    fn new(
        (dir, medium, home): (&Path, Arc<dyn WritableMedium>, Home),
        description: Arc<Description>,
        opened: Opened,
        options: WriterOptions,
        place: Place,
    ) -> (Self, Recovered) {
        let Opened { segment, mark, head, image_bytes, full_bytes, recovered } = opened;
        let WriterOptions { retention, background, .. } = options;
        let place = Arc::new(place);
        let at = (dir, medium.clone(), place.clone());
        let bounds = home.bounds;
        let maintenance = Maintenance::new(at, description.clone(), home, retention, full_bytes, background);
        let told_durable = told_durable(&segment, &recovered);
        let mut writer = Self {
            dir: dir.to_owned(),
            medium,
            options,
            description,
            segment,
            head,
            durable: head.epoch,
            told_durable,
            marks: Marks::nowhere(),
            pending: None,
            closed: recovered.closed,
            latched: None,
            latched_bytes: 0..=0,
            preallocates: options.preallocate_bytes > 0,
            maintenance,
            mark,
            image_bytes,
            told_jump: false,
            untouched: true,
            spare: None,
            rotate_from: 0,
            room: Room::Little,
            place,
            bounds,
        };
        writer.take_spare();
        (writer, recovered)
    }

    /// Opens the chain in `dir` to go on with it: cuts off a torn tail, and makes every epoch that
    /// is there durable.
    ///
    /// # Errors
    /// As [`Chain::open`](crate::store::Chain::open); another writer; damage, after which nothing
    /// was changed.
    pub fn open(dir: impl AsRef<Path>, options: WriterOptions) -> Result<(Self, Recovered), StoreError> {
        Self::open_branch(dir, MAIN_BRANCH, options)
    }

    /// Opens a branch of the chain in `dir` to go on with it, or the chain itself by its name
    /// `main`.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`Chain::open_branch`](crate::store::Chain::open_branch).
    pub fn open_branch(dir: impl AsRef<Path>, branch: &str, options: WriterOptions) -> Result<(Self, Recovered), StoreError> {
        let dir = dir.as_ref();
        Self::open_on(dir, open(dir)?, branch, (options, Bounds::USUAL))
    }

    pub(in crate::store) fn open_on(
        root: &Path,
        medium: Arc<dyn WritableMedium>,
        branch: &str,
        (options, bounds): (WriterOptions, Bounds),
    ) -> Result<(Self, Recovered), StoreError> {
        let (dir, own) = place_to_write(root, &medium, branch)?;
        let home = Home { root: root.to_owned(), medium, branch: branch.to_owned(), bounds };
        let medium = own;
        // Before the lock, so that a directory without a chain is left without a lock file.
        read_description(&dir, medium.as_ref())?;
        let place = take_lock(&dir, &medium, LOCK)?;
        let description = Arc::new(read_description(&dir, medium.as_ref())?);
        let opened = recover(&dir, &medium, &description, (EpochId::NONE, bounds))?;
        place.check()?;
        Ok(Self::new((&dir, medium, home), description, opened, options, place))
    }

    /// What the chain is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The newest epoch that is known to be durable, or none.
    #[must_use]
    pub const fn durable(&self) -> EpochId {
        self.durable
    }

    /// As long as what this returns lives, the writer compacts nothing, and drops no epoch. For a
    /// restore on demand that goes on with this writer and whose segments do not all stay open.
    #[must_use]
    pub fn keep_segments(&self) -> KeptSegments {
        self.maintenance.keep_segments()
    }

    fn path(&self) -> PathBuf {
        self.dir.join(self.segment.numbers.file_name())
    }

    /// Whether what is written is what everybody finds who looks for the chain, and has as many
    /// bytes as it should.
    fn check_writes(&self, bytes: RangeInclusive<u64>) -> Result<(), StoreError> {
        self.place.check()?;
        self.place.check_file(&self.segment.numbers.file_name(), self.segment.file.as_ref(), bytes)
    }

    /// Takes nothing more where it is not.
    fn stay(&mut self) -> Result<(), SinkError> {
        let at = self.segment.at;
        self.check_writes(at..=at).map_err(|error| self.latch_with(error, at..=at))
    }

    /// Takes nothing more. What the segment has behind what was synced is unknown.
    fn latch(&mut self, error: StoreError) -> SinkError {
        let Active { synced, at, .. } = self.segment;
        self.latch_with(error, synced..=at)
    }

    fn latch_with(&mut self, error: StoreError, bytes: RangeInclusive<u64>) -> SinkError {
        self.latched_bytes = bytes;
        self.latched = Some(causes(&error));
        self.pending = None;
        SinkError::Latched(error.into())
    }

    /// Says once that the clock was set.
    fn tell_jump(&mut self, cut: &CutTime) {
        let jump = self.head.cut.and_then(|newest| ClockJump::between(&newest, cut));
        if let Some(ClockJump { epoch, by_ns }) = jump.filter(|_| !self.told_jump) {
            self.told_jump = true;
            let by_s = by_ns / 1_000_000_000;
            tracing::warn!(%epoch, by_s, "the clock was set: how old epochs are is counted without it");
        }
    }

    fn check_latch(&self) -> Result<(), SinkError> {
        match &self.latched {
            None => Ok(()),
            Some(cause) => Err(SinkError::Latched(StoreError::Latched { cause: cause.clone() }.into())),
        }
    }

    /// Begins `epoch`, or goes on with it.
    fn begin(&mut self, epoch: EpochId) -> Result<(), SinkError> {
        self.check_latch()?;
        self.stay()?;
        match self.pending {
            Some(pending) if pending == epoch => return Ok(()),
            Some(before) => return self.reject(StoreError::Order { epoch, before }),
            None if epoch <= self.head.epoch => return self.reject(StoreError::Order { epoch, before: self.head.epoch }),
            None => {}
        }
        self.make_room()?;
        let Active { end, mentions, epochs, sealed, full, base_bytes, .. } = self.segment;
        let WriterOptions { segment_bytes, segment_mentions, .. } = self.options;
        let segment_bytes = match self.options.retention {
            // What is to be dropped must not wait in segments that are large beside what is kept.
            Some(_) => segment_bytes.min((self.image_bytes / 4).max(SEGMENT_BYTES_MIN)),
            None => segment_bytes,
        };
        let is_full = full
            || end.saturating_sub(base_bytes) >= segment_bytes
            || mentions >= segment_mentions
            || epochs >= segment_mentions / 8;
        if sealed || is_full && end > SEGMENT_HEADER_FRAME_BYTES as u64 && end >= self.rotate_from {
            self.rotate()?;
        }
        if std::mem::take(&mut self.untouched) {
            // Not before: who opens a chain and appends nothing changes nothing that is sound.
            self.maintenance.seal_the_rest(self.segment.numbers);
        }
        // From here on, what is written is undone with the epoch.
        self.pending = Some(epoch);
        self.tell_durable()?;
        self.segment.epoch_at = self.segment.at;
        Ok(())
    }

    /// Says in the chain what was made durable since that was said last.
    fn tell_durable(&mut self) -> Result<(), SinkError> {
        let Head { epoch, identity, .. } = self.head;
        if self.durable < epoch || self.told_durable >= epoch {
            return Ok(());
        }
        self.write(&[&Synced { epoch, identity }.durable_frame(self.description.chain)])
    }

    /// Whether epochs are dropped while the chain is written.
    fn drops(&self) -> bool {
        self.options.retention.is_some_and(|retention| !retention.is_empty())
    }

    /// Leaves dropping the room that it takes. Between epochs only.
    fn make_room(&mut self) -> Result<(), SinkError> {
        if !self.drops() {
            return Ok(());
        }
        if matches!(self.room, Room::Enough(appended) if appended < self.bounds.spare_bytes / 2) {
            return Ok(());
        }
        // Where the system does not tell, an append shows.
        let room = |writer: &Self| writer.medium.room().unwrap_or(u64::MAX);
        let Active { at, reserved, end, .. } = self.segment;
        // The last segment will be full, too.
        let needs = |writer: &Self| writer.maintenance.needs().saturating_add(end);
        let was_refused = std::mem::replace(&mut self.room, Room::Little) == Room::Refused;
        if !was_refused && room(self).saturating_add(reserved.saturating_sub(at)) >= enough_room(needs(self)) {
            self.room = Room::Enough(0);
            return Ok(());
        }
        self.release_space();
        if !was_refused && room(self) >= needs(self) {
            return Ok(());
        }
        tracing::debug!(room = room(self), needs = needs(self), "there is little room: what is not kept is dropped first");
        self.maintenance.make_room();
        let (needed, free) = (needs(self), room(self));
        if free < needed { self.reject(StoreError::Room { dir: self.dir.clone(), needed, free }) } else { Ok(()) }
    }

    /// Goes on in a new segment. Between epochs only.
    fn rotate(&mut self) -> Result<(), SinkError> {
        let number = self.segment.numbers.last + 1;
        if number > SEGMENTS_MAX {
            return self.reject(StoreError::Segments { found: self.segment.numbers.last });
        }
        self.release_space();
        self.sync_segment()?;
        self.mark_firmly();
        let tip = (self.head.epoch, self.head.identity);
        let make = || make_segment(&self.dir, self.medium.as_ref(), &self.description, number, tip);
        let made = match make() {
            Err(error) if error.lacks_descriptors() && self.spare.take().is_some() => make(),
            made => made,
        };
        match made {
            Ok(segment) => {
                self.take_spare();
                self.rotate_from = 0;
                // The one that is left is not looked at again, and what is written next goes into
                // the other.
                let at = self.segment.at;
                if let Err(error) = self.check_writes(at..=at)
                    && !self.is_replaced()
                {
                    return Err(self.latch_with(error, at..=at));
                }
                let full = std::mem::replace(&mut self.segment, segment);
                self.closed = false;
                self.told_durable = self.head.epoch;
                if !full.sealed {
                    self.maintenance.seal(full.numbers, full.end);
                }
                self.stay()
            }
            Err(error) => {
                // A file that is only part of a segment must not stay: the segment before it may
                // yet grow.
                let gone = match self.medium.remove(&SegmentNumbers::one(number).file_name()) {
                    Ok(()) => self.medium.sync(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                };
                match gone {
                    // One that is longer than it should be is as good.
                    Ok(()) if error.lacks_descriptors() && !self.segment.sealed => {
                        tracing::warn!(error = causes(&error), "the segment goes on: there is no descriptor for the next");
                        self.rotate_from = self.segment.end.saturating_add(self.bounds.rotate_again_bytes);
                        Ok(())
                    }
                    Ok(()) => self.reject(error),
                    Err(_) => Err(self.latch(error)),
                }
            }
        }
    }

    /// Whether a compaction put another segment in the place of the one that is left, which is as
    /// it was: it may, once there is a next one.
    fn is_replaced(&self) -> bool {
        let Active { numbers, at, .. } = self.segment;
        let covers = |names: Vec<String>| {
            let live = Listed::new(&names).live;
            !names.contains(&numbers.file_name()) && live.iter().any(|other| other.cover(numbers))
        };
        self.place.check().is_ok() && self.segment.file.len().is_ok_and(|len| len == at) && self.medium.list().is_ok_and(covers)
    }

    /// Opens a file whose descriptor the next segment can have. Without one it is as before.
    fn take_spare(&mut self) {
        if self.spare.is_none() {
            self.spare = self.medium.open(DESCRIPTION).ok();
        }
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<(), SinkError> {
        let bytes = parts.iter().fold(0, |sum: u64, part| sum + part.len() as u64);
        self.preallocate(self.segment.at + bytes);
        match self.segment.file.write(self.segment.at, parts) {
            Ok(()) => {
                self.segment.at += bytes;
                if let Room::Enough(appended) = &mut self.room {
                    *appended += bytes;
                }
                Ok(())
            }
            Err(error) => {
                // Whatever was written behind `at` has to go, also where nothing else was.
                self.segment.at += bytes;
                self.segment.full |= error.kind() == io::ErrorKind::FileTooLarge;
                let error = StoreError::io("append to", self.path())(error);
                self.reject(error)
            }
        }
    }

    /// Takes space up to `end` and a step further. Where there is none, the append itself shows
    /// what still fits.
    fn preallocate(&mut self, end: u64) {
        let is_short = self.drops() && !matches!(self.room, Room::Enough(_));
        if !self.preallocates || is_short || end <= self.segment.reserved {
            return;
        }
        let most = self.medium.room().map_or(u64::MAX, |room| room / ROOM_PER_STEP);
        let len = (end - self.segment.reserved).max(self.options.preallocate_bytes.min(most));
        match self.segment.file.preallocate(self.segment.reserved, len) {
            Ok(()) => self.segment.reserved += len,
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {
                self.preallocates = false
            }
            // Some of it may have been taken.
            Err(_) => {
                self.segment.reserved += len;
                self.release_space();
            }
        }
    }

    /// Gives space back that was taken ahead and not used. Nothing depends on it.
    fn release_space(&mut self) {
        let Active { at, reserved, .. } = self.segment;
        if reserved > at && self.check_writes(at..=at).is_ok() && self.segment.file.set_len(at).is_ok() {
            self.segment.reserved = at;
        }
    }

    /// Undoes the epoch in hand and says why.
    fn reject(&mut self, error: StoreError) -> Result<(), SinkError> {
        if error.lacks_room() && !self.segment.full {
            self.room = Room::Refused;
        }
        let Active { end, at, .. } = self.segment;
        if let Err(displaced) = self.check_writes(end..=at) {
            return Err(self.latch_with(displaced, end..=at));
        }
        match self.undo() {
            Ok(()) => Err(SinkError::Rejected(error.into())),
            Err(_) => Err(self.latch(error)),
        }
    }

    /// Cuts the segment back to the end of the last whole epoch.
    fn undo(&mut self) -> io::Result<()> {
        self.pending = None;
        if self.segment.at > self.segment.end {
            self.segment.file.set_len(self.segment.end)?;
            self.segment.at = self.segment.end;
            self.segment.sync_begun = self.segment.sync_begun.min(self.segment.end);
            self.segment.reserved = self.segment.end;
        }
        Ok(())
    }

    /// Says what is durable so that it survives a power cut.
    fn mark_firmly(&mut self) {
        let Head { epoch, identity, .. } = self.head;
        if self.durable == epoch {
            let said = Mark { epoch, identity };
            self.mark.firmly_durable(said);
        }
    }

    fn sync_segment(&mut self) -> Result<EpochId, SinkError> {
        let Head { epoch: tip, identity, .. } = self.head;
        match self.segment.file.sync() {
            Ok(()) => {
                // What was synced is durable for those who will look for it, and not somewhere
                // else.
                self.stay()?;
                self.segment.synced = self.segment.at;
                self.segment.sync_begun = self.segment.at;
                let said = Mark { epoch: tip, identity };
                self.mark.durable(said);
                // Somebody may have come in between.
                self.stay()?;
                self.durable = tip;
                Ok(tip)
            }
            Err(error) => {
                let error = StoreError::io("sync", self.path())(error);
                Err(self.latch(error))
            }
        }
    }
}

impl Writer {
    /// The newest epoch that was appended whole.
    #[must_use]
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Takes some of the frames of `epoch`, which is above the head's.
    ///
    /// # Errors
    /// As [`Sink::append`].
    pub fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        self.begin(epoch)?;
        self.write(&[frames])
    }

    /// As [`Sink::begin_sync`], once there is enough of it.
    pub fn begin_sync(&mut self) {
        let Active { at, sync_begun, .. } = self.segment;
        if self.latched.is_none() && at.saturating_sub(sync_begun) >= SYNC_BEGINS_BYTES {
            self.segment.file.begin_sync(sync_begun..at);
            self.segment.sync_begun = at;
        }
    }

    /// Takes the last frames of an epoch and its commit frame.
    ///
    /// # Errors
    /// As [`Sink::complete`].
    pub fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        let commit = &epoch.commit;
        self.begin(commit.epoch)?;
        let found = self.segment.at - self.segment.epoch_at + frames.len() as u64;
        let expected = commit.totals.frames_bytes;
        if found != expected {
            return self.reject(StoreError::Frames { epoch: commit.epoch, expected, found });
        }
        let (parent, head) = ((commit.parent, commit.parent_hash), (self.head.epoch, self.head.identity));
        if parent != head {
            return self.reject(StoreError::Parent { epoch: commit.epoch, expected: head, found: parent });
        }
        self.write(&[frames, &epoch.frame])?;
        self.segment.end = self.segment.at;
        self.pending = None;
        self.closed = false;
        self.tell_jump(&CutTime::from(commit));
        if self.durable == self.head.epoch {
            self.told_durable = self.durable;
        }
        self.head = epoch.head();
        self.segment.mentions += commit.totals.stored_pages + commit.zero_pages;
        self.segment.epochs += 1;
        if commit.base && self.options.retention.is_some() {
            self.segment.base_bytes += commit.bytes_written;
            self.image_bytes = commit.bytes_written;
        }
        Ok(())
    }

    /// Undoes the `append` calls since the last whole epoch.
    ///
    /// # Errors
    /// As [`Sink::abort`].
    pub fn abort(&mut self) -> Result<(), SinkError> {
        self.check_latch()?;
        self.stay()?;
        self.undo().map_err(|error| {
            let error = StoreError::io("cut back", self.path())(error);
            self.latch(error)
        })
    }

    /// Makes every appended epoch durable and returns the newest.
    ///
    /// # Errors
    /// As [`Sink::sync`].
    pub fn sync(&mut self) -> Result<EpochId, SinkError> {
        self.check_latch()?;
        if self.durable == self.head.epoch {
            return self.stay().map(|()| self.durable);
        }
        self.sync_segment()
    }

    /// Opens the chain again after [`SinkError::Latched`], reading back what is there, and makes it
    /// durable.
    ///
    /// # Errors
    /// As [`Sink::reopen`].
    pub fn reopen(&mut self) -> Result<Head, SinkError> {
        if self.latched.is_none() {
            let Active { synced, at, .. } = self.segment;
            self.latched_bytes = synced..=at;
        }
        // Until this succeeds, nothing is known.
        self.latched.get_or_insert_with(|| "the chain could not be opened again".to_owned());
        let failed = |error: StoreError| SinkError::Latched(error.into());
        // What somebody else did to the chain may be undone. Then, and only then, it goes on.
        self.check_writes(self.latched_bytes.clone()).map_err(failed)?;
        let Active { synced, at, .. } = self.segment;
        self.latched_bytes = synced..=at;
        let opened = recover(&self.dir, &self.medium, &self.description, (self.durable, self.bounds)).map_err(failed)?;
        let Opened { segment, mark, head, recovered, .. } = opened;
        self.told_durable = told_durable(&segment, &recovered);
        self.segment = segment;
        self.mark = mark;
        let at = self.segment.at;
        self.check_writes(at..=at).map_err(failed)?;
        self.head = head;
        self.durable = head.epoch;
        self.closed = recovered.closed;
        self.pending = None;
        self.latched = None;
        Ok(head)
    }

    /// Syncs and ends the chain in order, and returns the newest durable epoch. With `sync` false
    /// nothing is synced and nothing claims to be durable.
    ///
    /// # Errors
    /// As [`Sink::close`].
    pub fn close(&mut self, sync: bool) -> Result<EpochId, SinkError> {
        self.abort()?;
        if sync {
            self.sync()?;
            let Head { epoch, identity, .. } = self.head;
            if epoch != EpochId::NONE && !self.closed {
                // A chain without it is as sound: where there is no room for it, it is left out.
                match self.write(&[&Synced { epoch, identity }.close_frame(self.description.chain)]) {
                    Ok(()) => {
                        self.segment.end = self.segment.at;
                        self.closed = true;
                        self.told_durable = epoch;
                        self.sync_segment()?;
                    }
                    Err(SinkError::Rejected(error)) => tracing::warn!(error = %error, "the chain ends without a close frame"),
                    Err(error) => return Err(error),
                }
            }
        }
        self.mark_firmly();
        self.release_space();
        if self.closed && !self.segment.sealed && self.segment.end >= SEALED_AT_CLOSE_BYTES {
            self.segment.sealed = true;
            self.maintenance.seal(self.segment.numbers, self.segment.end);
        }
        self.maintenance.finish();
        Ok(self.durable)
    }
}

impl Sink for Writer {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.marks = marks;
        SinkStart { chain: self.description.chain, head: self.head, durable: Some(self.durable), keeps: true }
    }

    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        Self::append(self, epoch, frames)
    }

    fn begin_sync(&mut self) {
        Self::begin_sync(self);
    }

    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        Self::complete(self, frames, epoch)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        Self::abort(self)
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        let durable = Self::sync(self)?;
        self.marks.durable(durable);
        Ok(())
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        Self::reopen(self)
    }

    fn close(&mut self, sync: bool) -> Result<(), SinkError> {
        let durable = Self::close(self, sync)?;
        if sync {
            self.marks.durable(durable);
        }
        Ok(())
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("dir", &self.dir)
            .field("segment", &self.segment)
            .field("head", &self.head)
            .field("durable", &self.durable)
            .field("latched", &self.latched)
            .finish_non_exhaustive()
    }
}

/// Of the room on the disk, at most one part in so many is taken ahead at a time.
const ROOM_PER_STEP: u64 = 8;

/// A segment that is shorter when the chain is closed gets no index and may grow later: it is
/// walked as quickly.
const SEALED_AT_CLOSE_BYTES: u64 = 1 << 20;

/// Where epochs are dropped, segments are at least this long.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// The system is asked to begin writing parts of an epoch once they come to so much: less would be
/// more calls than the sync saves.
const SYNC_BEGINS_BYTES: u64 = 1 << 20;

const CREATED_BY: &str = concat!("slackwater ", env!("CARGO_PKG_VERSION"));

/// Opens the directory of a store that is to be written.
fn open(dir: &Path) -> Result<Arc<dyn WritableMedium>, StoreError> {
    let directory = Directory::open(dir)?;
    medium::warn(directory.file(), dir);
    Ok(Arc::new(directory))
}

fn random_chain(dir: &Path) -> Result<ChainId, StoreError> {
    let mut chain = ChainId::default();
    rustix::rand::getrandom(&mut chain.0, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| StoreError::io("draw a random identifier for", dir)(error.into()))?;
    Ok(chain)
}

/// Refuses a directory that holds anything but what a chain that was never finished leaves.
fn check_free(dir: &Path, names: &[String]) -> Result<(), StoreError> {
    if names.iter().any(|name| name == DESCRIPTION) {
        return Err(StoreError::Exists { dir: dir.to_owned() });
    }
    match names.iter().find(|name| ![LOCK, MARK, DESCRIPTION_DRAFT].contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(StoreError::NotEmpty { dir: dir.to_owned(), name: name.clone() }),
    }
}
