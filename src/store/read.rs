//! A chain, for reading.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::medium::{Directory, Medium, MediumFile};
use super::scan::{self, Fault, Scan};
use super::{Damage, Epoch, IDENTITY, StoreError, TornTail, segment_name};
use crate::format::{
    FORMAT_WITH_CHANGES, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind, IDENTITY_BYTES_MAX, Identity, decode_state,
    is_packed,
};
use crate::machine::StateRecord;
use crate::page::EpochId;

/// A chain of checkpoints, as it was when it was opened. Takes no lock: a writer may append meanwhile.
///
/// Opening reads the headers of all frames, and the payloads only of epochs that nothing proves to have been durable.
#[derive(Debug)]
pub struct Chain {
    dir: PathBuf,
    medium: Arc<dyn Medium>,
    identity: Identity,
    scan: Scan,
}

impl Chain {
    /// Opens the chain in `dir`. A torn tail and damage are no errors: see [`tail`](Self::tail) and [`damage`](Self::damage).
    ///
    /// # Errors
    /// Nothing at `dir`, something that is no directory, a directory without a chain, another version, an unsound identity, what the
    /// operating system refuses.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        check_dir(dir)?;
        Self::open_on(dir, Arc::new(Directory::new(dir)))
    }

    pub(super) fn open_on(dir: &Path, medium: Arc<dyn Medium>) -> Result<Self, StoreError> {
        let identity = read_identity(dir, medium.as_ref())?;
        let mut scan = scan::scan(dir, medium.as_ref(), &identity)?;
        if scan.damage.is_some() {
            // A writer that undid an epoch and wrote another in its place, while this walk was between the two, looks like damage.
            // Real damage is still there.
            scan = scan::scan(dir, medium.as_ref(), &identity)?;
        }
        Ok(Self { dir: dir.to_owned(), medium, identity, scan })
    }

    /// What the chain in `dir` is, without opening it: enough to build its machine meanwhile.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn identity_in(dir: impl AsRef<Path>) -> Result<Identity, StoreError> {
        let dir = dir.as_ref();
        check_dir(dir)?;
        read_identity(dir, &Directory::new(dir))
    }

    /// A file beside the segments that the chain does not need; nothing if it is longer than `most` bytes.
    pub(crate) fn read_beside(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let file = self.medium.open(name, false)?;
        let len = file.len()?;
        let mut bytes = vec![0; usize::try_from(if len > most { 0 } else { len }).unwrap_or_default()];
        let read = file.read(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Makes or replaces such a file: whoever reads it meanwhile sees the old or the new one. Of several who do so at a time one wins, or none.
    pub(crate) fn replace_beside(&self, name: &str, draft: &str, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.medium.remove(draft)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        self.medium.create(draft)?.write(0, &[bytes])?;
        self.medium.rename(draft, name)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the chain is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The epochs that exist, oldest first; with damage, those before it.
    #[must_use]
    pub fn epochs(&self) -> &[Epoch] {
        &self.scan.epochs
    }

    /// The newest epoch, or none.
    #[must_use]
    pub fn newest(&self) -> EpochId {
        self.scan.newest()
    }

    /// The newest epoch that the chain itself proves to have been durable, or none. Newer ones that exist were whole when read.
    #[must_use]
    pub const fn durable(&self) -> EpochId {
        self.scan.durable
    }

    /// How many segments there are.
    #[must_use]
    pub const fn segments(&self) -> usize {
        self.scan.segments.len()
    }

    /// Whether the writer ended in order behind the newest epoch.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.scan.closed
    }

    /// What is behind the newest epoch and was never committed.
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
    /// [`StoreError::Damaged`] for an epoch that damage hides, [`StoreError::NoEpoch`] for one that does not exist.
    pub fn epoch(&self, epoch: EpochId) -> Result<&Epoch, StoreError> {
        let index = self.index(epoch)?;
        self.epochs().get(index).ok_or(StoreError::NoEpoch { epoch, newest: self.newest() })
    }

    pub(crate) fn index(&self, epoch: EpochId) -> Result<usize, StoreError> {
        self.epochs().binary_search_by_key(&epoch, |epoch| epoch.commit.epoch).map_err(|_| match &self.scan.damage {
            Some(damage) if epoch > self.newest() => StoreError::Damaged(damage.clone()),
            _ => StoreError::NoEpoch { epoch, newest: self.newest() },
        })
    }

    /// The state records of an epoch.
    ///
    /// # Errors
    /// As [`epoch`](Self::epoch); damage of the state; what the operating system refuses.
    pub fn state(&self, epoch: EpochId) -> Result<Vec<StateRecord>, StoreError> {
        let epoch = *self.epoch(epoch)?;
        let mut buffer = Vec::new();
        let mut reader = SegmentReader::new(self);
        let payload = reader.state_payload(&epoch, &mut buffer)?;
        let decoded = decode_state(payload);
        decoded.map_err(|error| reader.damaged(epoch.commit.epoch, epoch.segment, epoch.state_offset, &error))
    }
}

/// Where a frame is, and its header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameAt {
    pub(crate) offset: u64,
    pub(crate) header: FrameHeader,
}

/// Reads frames of a chain; keeps the segment in hand open.
#[derive(Debug)]
pub(crate) struct SegmentReader<'a> {
    chain: &'a Chain,
    open: Option<(u32, Box<dyn MediumFile>)>,
}

impl<'a> SegmentReader<'a> {
    pub(crate) const fn new(chain: &'a Chain) -> Self {
        Self { chain, open: None }
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.chain.dir.join(segment_name(segment))
    }

    fn file(&mut self, segment: u32) -> Result<&dyn MediumFile, StoreError> {
        let file = match self.open.take() {
            Some((number, file)) if number == segment => file,
            _ => {
                let file = self.chain.medium.open(&segment_name(segment), false);
                file.map_err(StoreError::io("open", self.path(segment)))?
            }
        };
        Ok(self.open.insert((segment, file)).1.as_ref())
    }

    pub(crate) fn damaged(&self, epoch: EpochId, segment: u32, offset: u64, error: &FormatError) -> StoreError {
        let (expected, found) = (error.expected(), error.found());
        StoreError::Damaged(Damage { file: self.path(segment), offset: offset + error.offset(), epoch, expected, found })
    }

    fn refuse(&self, epoch: &Epoch, offset: u64, fault: Fault) -> StoreError {
        match fault {
            Fault::Io(error) => StoreError::io("read", self.path(epoch.segment))(error),
            Fault::Format(error) => self.damaged(epoch.commit.epoch, epoch.segment, offset, &error),
        }
    }

    /// The frames of `epoch` before its commit frame, in sequence.
    pub(crate) fn frames(&mut self, epoch: &Epoch, frames: &mut Vec<FrameAt>) -> Result<(), StoreError> {
        frames.clear();
        let chain = self.chain.identity.chain;
        let mut offset = epoch.offset;
        while offset < epoch.commit_offset {
            let header = scan::read_header(self.file(epoch.segment)?, offset, epoch.commit_offset, chain);
            let header = header.map_err(|fault| self.refuse(epoch, offset, fault))?;
            frames.push(FrameAt { offset, header });
            offset += header.frame_bytes();
        }
        Ok(())
    }

    /// The first bytes of a frame's payload, unchecked: as many as `buffer` takes and the payload has.
    pub(crate) fn payload_prefix<'b>(
        &mut self,
        epoch: &Epoch,
        frame: &FrameAt,
        buffer: &'b mut [u8],
    ) -> Result<&'b [u8], StoreError> {
        let most = usize::try_from(frame.header.length).unwrap_or(usize::MAX).min(buffer.len());
        let room = buffer.get_mut(..most).unwrap_or_default();
        let read = self.file(epoch.segment)?.read(frame.offset + FRAME_HEADER_BYTES as u64, room);
        let read = read.map_err(StoreError::io("read", self.path(epoch.segment)))?;
        Ok(room.get(..read).unwrap_or_default())
    }

    /// The payload of a frame whose header was read before, checked.
    pub(crate) fn payload<'b>(
        &mut self,
        epoch: &Epoch,
        frame: &FrameAt,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], StoreError> {
        let payload = scan::read_payload(self.file(epoch.segment)?, frame.offset, &frame.header, buffer);
        payload.map_err(|fault| self.refuse(epoch, frame.offset, fault))
    }

    /// The payload of an epoch's state frame, checked.
    pub(crate) fn state_payload<'b>(&mut self, epoch: &Epoch, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], StoreError> {
        let offset = epoch.state_offset;
        let chain = self.chain.identity.chain;
        let header = scan::read_header(self.file(epoch.segment)?, offset, epoch.commit_offset, chain);
        let header = header.map_err(|fault| self.refuse(epoch, offset, fault))?;
        if header.kind != FrameKind::State || header.epoch != epoch.commit.epoch {
            let error = FormatError::field("kind", 4, "the epoch's state", header.kind.as_str());
            return Err(self.damaged(epoch.commit.epoch, epoch.segment, offset, &error));
        }
        let format = self.chain.identity.format;
        let payload = scan::read_payload(self.file(epoch.segment)?, offset, &header, buffer);
        let payload = payload.map_err(|fault| self.refuse(epoch, offset, fault))?;
        if is_packed(payload) && format < FORMAT_WITH_CHANGES {
            let error = FormatError::field("reserved", FRAME_HEADER_BYTES + 4, "0 in a chain of format 1", "other bytes");
            return Err(self.damaged(epoch.commit.epoch, epoch.segment, offset, &error));
        }
        Ok(payload)
    }
}

/// Checks that `dir` is a directory.
pub(super) fn check_dir(dir: &Path) -> Result<(), StoreError> {
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(StoreError::NotADirectory { path: dir.to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(StoreError::Missing { dir: dir.to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            Err(StoreError::NotADirectory { path: dir.to_owned() })
        }
        Err(error) => Err(StoreError::io("open", dir)(error)),
    }
}

pub(super) fn read_identity(dir: &Path, medium: &dyn Medium) -> Result<Identity, StoreError> {
    let names = medium.list().map_err(StoreError::io("list", dir))?;
    if names.is_empty() {
        return Err(StoreError::Empty { dir: dir.to_owned() });
    }
    if !names.iter().any(|name| name == IDENTITY) {
        return Err(StoreError::NotAStore { dir: dir.to_owned() });
    }
    let path = dir.join(IDENTITY);
    let file = medium.open(IDENTITY, false).map_err(StoreError::io("open", &path))?;
    // One byte more than there may be, so that a file that is too long shows.
    let room = file.len().map_err(StoreError::io("read", &path))?.min(IDENTITY_BYTES_MAX as u64 + 1);
    let mut bytes = vec![0; usize::try_from(room).unwrap_or_default()];
    let read = file.read(0, &mut bytes).map_err(StoreError::io("read", &path))?;
    bytes.truncate(read);
    Identity::parse(&bytes).map_err(|error| match error {
        FormatError::Version { found, .. } => StoreError::Version { file: path, found },
        source => StoreError::Identity { file: path, source },
    })
}
