//! A chain, for reading.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::description::{place_of, read_description};
use super::pooled_files::Files;
use super::scan::{self, Scan};
use super::segment::Segment;
use crate::format::StateRecord;
use crate::format::{Description, FormatError, MAIN_BRANCH, decode_state};
use crate::page::EpochId;
use crate::store::bounds::Bounds;
use crate::store::damage::{Damage, TornTail};
use crate::store::epoch::Epoch;
use crate::store::error::StoreError;
use crate::store::medium::{ChainAt, Directory, Medium};
use crate::store::names::DESCRIPTION;

/// How a chain is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// Files that are open at a time, at most, however many segments the chain has and whatever it
    /// branches off; never more than a quarter of what the process may have open. At least 1; 64 by
    /// default.
    pub open_files: usize,
    pub(crate) bounds: Bounds,
}

impl ReadOptions {
    /// So many open files at most, and all else as by default.
    #[must_use]
    pub const fn open_files(open_files: usize) -> Self {
        Self { open_files, bounds: Bounds::USUAL }
    }
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self::open_files(64)
    }
}

/// A chain of checkpoints, as it was when it was opened. Takes no lock: a writer may append
/// meanwhile, and a compaction may put other files in place of those that are read here. What is
/// read after that, and is not open at that moment, is [`StoreError::Replaced`]: opening the chain
/// again finds what is there now.
///
/// The files of segments are open while they are read, [`ReadOptions::open_files`] at a time.
/// Indexes are mapped, which takes no descriptor; from 8192 segments on they are read into memory.
///
/// Opening looks at the index of every sealed segment, reads the headers of all frames of a segment
/// that has none, and the payloads only of epochs that nothing proves to have been durable.
#[derive(Debug)]
pub struct Chain {
    dir: PathBuf,
    medium: Arc<dyn Medium>,
    description: Arc<Description>,
    /// For a branch, the segments of what it branches off come first.
    segments: Vec<Segment>,
    /// How many of them are not the chain's own.
    borrowed: usize,
    /// How many branches are behind each other, this one included; 0 for the chain itself.
    depth: u32,
    scan: Scan,
    files: Arc<Files>,
}

impl Chain {
    /// Opens the chain in `dir`, and no branch of it. A torn tail and damage are no errors: see
    /// [`tail`](Self::tail) and [`damage`](Self::damage).
    ///
    /// # Errors
    /// Nothing at `dir`, something that is no directory, a directory without a chain, another
    /// version, an unsound description, what the operating system refuses.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_branch(dir, MAIN_BRANCH)
    }

    /// Opens a branch of the chain in `dir`, or the chain itself by its name `main`. A branch holds
    /// the epochs of what it branches off, up to the one that it begins at.
    ///
    /// # Errors
    /// As [`open`](Self::open); no such branch; a branch whose beginning is gone or damaged.
    pub fn open_branch(dir: impl AsRef<Path>, branch: &str) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        Self::open_with(dir, branch, ReadOptions::default())
    }

    /// As [`open_branch`](Self::open_branch), with options.
    ///
    /// # Errors
    /// As [`open_branch`](Self::open_branch).
    pub fn open_with(dir: impl AsRef<Path>, branch: &str, options: ReadOptions) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        let medium: Arc<dyn Medium> = Arc::new(Directory::open(dir)?);
        Self::open_on_with(dir, &medium, branch, options)
    }

    #[cfg(test)]
    pub(in crate::store) fn open_on(dir: &Path, medium: &Arc<dyn Medium>, branch: &str) -> Result<Self, StoreError> {
        Self::open_on_with(dir, medium, branch, ReadOptions { bounds: Bounds::SMALL, ..ReadOptions::default() })
    }

    /// `dir` and `medium` are of the whole store.
    pub(in crate::store) fn open_on_with(
        dir: &Path,
        medium: &Arc<dyn Medium>,
        branch: &str,
        options: ReadOptions,
    ) -> Result<Self, StoreError> {
        let read = || {
            let files = Files::new(options.open_files, options.bounds);
            again(|| Self::read(dir, medium, branch, BRANCHES_DEPTH_MAX, &files))
        };
        let mut chain = read()?;
        if chain.scan.damage.is_some() {
            // A writer that undid an epoch and wrote another in its place, while this walk was
            // between the two, looks like damage. Real damage is still there.
            chain = read()?;
        }
        Ok(chain)
    }

    fn read(
        root: &Path,
        root_medium: &Arc<dyn Medium>,
        branch: &str,
        depth_most: u32,
        files: &Arc<Files>,
    ) -> Result<Self, StoreError> {
        let (dir, medium) = place_of(root, root_medium.as_ref(), branch)?;
        let medium = medium.unwrap_or_else(|| root_medium.clone());
        let description = Arc::new(read_description(&dir, medium.as_ref())?);
        let (mut segments, from, depth) = match &description.branch_of {
            None => (Vec::new(), (EpochId::NONE, 0), 0),
            Some(point) => {
                let lost = |expected: String, found: String| {
                    StoreError::Damaged(Damage { file: dir.join(DESCRIPTION), offset: 0, epoch: point.epoch, expected, found })
                };
                let left = depth_most.checked_sub(1);
                let left = left
                    .ok_or_else(|| lost(format!("up to {BRANCHES_DEPTH_MAX} branches behind each other"), "more".to_owned()))?;
                let trunk = Self::read(root, root_medium, &point.branch, left, files)?;
                let begin = trunk.epoch(point.epoch).map_err(|error| match error {
                    // It was durable when the branch was made, and nothing that is kept drops it.
                    StoreError::NoEpoch { .. } => lost(
                        format!("epoch {} in {:?}, at which the branch begins", point.epoch, point.branch),
                        "none".to_owned(),
                    ),
                    error => error,
                })?;
                if begin.identity != point.identity {
                    return Err(lost(
                        format!("epoch {} with identity {:032x}", point.epoch, point.identity),
                        format!("{:032x}", begin.identity),
                    ));
                }
                let (last, _) = trunk.locate(point.epoch)?;
                let mut segments = trunk.segments;
                segments.truncate(last + 1);
                segments.iter_mut().for_each(|segment| segment.cut_off(point.epoch));
                (segments, (point.epoch, point.identity), trunk.depth + 1)
            }
        };
        let mut tries = 0;
        let place = ChainAt { root: root_medium.clone(), branch: Some(branch.to_owned()).filter(|name| name != MAIN_BRANCH) };
        let mut scan = loop {
            match scan::scan(&dir, medium.as_ref(), &description, from, (files, &place)) {
                // A compaction may put another file in the place of one that was listed.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && tries < LIST_AGAIN_MAX => {
                    tries += 1
                }
                result => break result?,
            }
        };
        let borrowed = segments.len();
        segments.append(&mut scan.segments);
        Ok(Self { dir, medium, description, segments, borrowed, depth, scan, files: files.clone() })
    }

    /// What a chain of the store in `dir` is, `main` or a branch, without opening it: enough to
    /// build its machine meanwhile.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn description_in(dir: impl AsRef<Path>, branch: &str) -> Result<Description, StoreError> {
        let dir = dir.as_ref();
        let medium = Directory::open(dir)?;
        let (dir, own) = place_of(dir, &medium, branch)?;
        read_description(&dir, own.as_deref().unwrap_or(&medium))
    }

    /// A file that is derived and that the chain does not need; nothing if it is longer than `most`
    /// bytes.
    pub(crate) fn read_derived(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let file = self.medium.open(name)?;
        let len = file.len()?;
        let mut bytes = vec![0; usize::try_from(if len > most { 0 } else { len }).unwrap_or_default()];
        let read = file.read(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        self.files.bounds()
    }

    /// What the chain is read from; of a branch, its own directory.
    pub(in crate::store) fn medium(&self) -> &dyn Medium {
        self.medium.as_ref()
    }

    /// The directory of the chain; of a branch, its own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the chain is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The epochs that exist, oldest first; with damage, those before it. Each one's commit frame
    /// is read when it comes.
    pub fn epochs(&self) -> impl Iterator<Item = Result<Epoch, StoreError>> + '_ {
        self.segments.iter().flat_map(|segment| {
            let (count, failed) = match segment.epochs() {
                Ok(count) => (count, None),
                Err(error) => (0, Some(Err(error))),
            };
            (0..count).map(|number| segment.epoch(number)).chain(failed)
        })
    }

    /// How many epochs exist.
    ///
    /// # Errors
    /// An index that cannot be read, and neither can its segment.
    pub fn epochs_len(&self) -> Result<u64, StoreError> {
        self.segments.iter().try_fold(0, |sum, segment| Ok(sum + segment.epochs()?))
    }

    /// The newest epoch, or none.
    #[must_use]
    pub const fn newest(&self) -> EpochId {
        self.scan.newest
    }

    /// The newest epoch that the chain itself proves to have been durable, or none. Newer ones that
    /// exist were whole when read.
    #[must_use]
    pub const fn durable(&self) -> EpochId {
        self.scan.durable
    }

    /// How many segments there are; of a branch, its own.
    #[must_use]
    pub const fn segments(&self) -> usize {
        self.scan.files.len()
    }

    /// Whether the writer ended in order behind the newest epoch.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.scan.closed
    }

    /// What stands behind the newest epoch and was never said to be durable.
    #[must_use]
    pub const fn tail(&self) -> Option<&TornTail> {
        self.scan.tail.as_ref()
    }

    /// What was durable and is not sound any more: nothing behind it can be given.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        self.scan.damage.as_slice()
    }

    /// The epoch with this number.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for an epoch that damage hides, [`StoreError::NoEpoch`] for one that
    /// does not exist; what the operating system refuses.
    pub fn epoch(&self, epoch: EpochId) -> Result<Epoch, StoreError> {
        let (segment, number) = self.locate(epoch)?;
        self.segment(segment)?.epoch(number)
    }

    /// The segment that an epoch is in, and its number there.
    pub(crate) fn locate(&self, epoch: EpochId) -> Result<(usize, u64), StoreError> {
        // Those that begin after the epoch cannot hold it; one without epochs never does.
        for (index, segment) in self.segments.iter().enumerate().rev() {
            let begins = segment.look(|index| Ok(index.previous()))?;
            if begins < epoch {
                match segment.find(epoch)? {
                    Some(number) => return Ok((index, number)),
                    None if segment.epochs()? > 0 => {
                        // Only what ended a walk early hides epochs.
                        let behind = segment.look(|index| Ok(index.last().next()))?;
                        let hidden = segment.fault(behind, epoch).map(|damage| StoreError::Damaged(damage.clone()));
                        return Err(hidden.unwrap_or_else(|| self.no_epoch(epoch)));
                    }
                    None => {}
                }
            }
        }
        Err(self.no_epoch(epoch))
    }

    fn no_epoch(&self, epoch: EpochId) -> StoreError {
        match &self.scan.damage {
            Some(damage) if epoch > self.newest() => StoreError::Damaged(damage.clone()),
            _ if (epoch, self.newest()) == (EpochId::NONE, EpochId::NONE) => StoreError::NoEpochs { dir: self.dir.clone() },
            _ => StoreError::NoEpoch { epoch, newest: self.newest() },
        }
    }

    /// The segments that hold what exists, oldest first.
    pub(crate) fn all_segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment with this number among [`all_segments`](Self::all_segments).
    pub(crate) fn segment(&self, number: usize) -> Result<&Segment, StoreError> {
        self.segments.get(number).ok_or_else(|| StoreError::io("read", &self.dir)(io::ErrorKind::NotFound.into()))
    }

    /// How many branches are behind each other, this one included; 0 for the chain itself.
    pub(in crate::store) const fn depth(&self) -> u32 {
        self.depth
    }

    /// Those of [`all_segments`](Self::all_segments) that are the chain's own.
    pub(in crate::store) fn own(&self) -> &[Segment] {
        self.segments.get(self.borrowed..).unwrap_or_default()
    }

    /// Which of [`all_segments`](Self::all_segments) are the chain's own.
    pub(in crate::store) fn own_segments(&self) -> std::ops::Range<usize> {
        self.borrowed..self.segments.len()
    }

    /// Keeps the files of these of [`all_segments`](Self::all_segments) open, whatever a compaction
    /// does, until they are [let go](Self::let_go). Says whether the bound on open files leaves
    /// room for all.
    pub(crate) fn hold(&self, segments: impl Iterator<Item = usize>) -> Result<bool, StoreError> {
        for number in segments {
            if !self.segment(number)?.hold()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens something else, for which files of the chain are closed where the process may open no
    /// more.
    pub(in crate::store) fn with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        self.files.with_room(open)
    }

    /// No file need stay open any more.
    pub(crate) fn let_go(&self) {
        self.segments.iter().for_each(Segment::let_go);
    }

    /// The state records of an epoch.
    ///
    /// # Errors
    /// As [`epoch`](Self::epoch); damage of the state; what the operating system refuses.
    pub fn state(&self, epoch: EpochId) -> Result<Vec<StateRecord>, StoreError> {
        self.state_payload(epoch, decode_state)
    }

    /// What `decode` makes of the payload of an epoch's state frame.
    pub(crate) fn state_payload<T>(
        &self,
        epoch: EpochId,
        decode: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<T, StoreError> {
        let (segment, number) = self.locate(epoch)?;
        let segment = self.segment(segment)?;
        let found = segment.epoch(number)?;
        let mut buffer = Vec::new();
        decode(segment.state(&found, &mut buffer)?).map_err(|error| segment.damaged(epoch, found.state_offset, &error))
    }
}

/// The most branches behind each other, the last one included.
pub(in crate::store) const BRANCHES_DEPTH_MAX: u32 = 64;

/// How often a directory is listed again because a file was replaced.
const LIST_AGAIN_MAX: u32 = 16;

/// Reads, and again from the beginning where a file was taken away meanwhile, up to a bound.
pub(in crate::store) fn again<T>(mut read: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 0..LIST_AGAIN_MAX {
        match read() {
            Err(StoreError::Replaced { path }) => tracing::debug!(path = %path.display(), "the chain is read again"),
            result => return result,
        }
    }
    read()
}
