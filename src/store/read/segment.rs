//! A segment of a chain, for reading: where its epochs and pages are, and what they hold.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::frames::{self, Fault};
use super::pooled_files::PooledFile;
use super::walk::{self, Walked};
use crate::format::{
    Commit, Description, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind, Index, IndexError, IndexedEpoch, Mention,
    REWRITTEN_COMMIT_FRAME_BYTES,
};
use crate::page::EpochId;
use crate::store::damage::Damage;
use crate::store::epoch::Epoch;
use crate::store::error::StoreError;
use crate::store::medium::MediumFile;
use crate::store::names::SegmentNumbers;

/// A segment that was opened. Its file may be closed meanwhile: what a compaction puts in its place
/// is not taken for it.
#[derive(Debug)]
pub(crate) struct Segment {
    numbers: SegmentNumbers,
    path: PathBuf,
    file: PooledFile,
    bytes: u64,
    description: Arc<Description>,
    /// The index that is beside the segment.
    sealed: Option<Index>,
    /// What a walk found, where there is no such index or it does not answer.
    walked: OnceLock<Walked>,
    /// Epochs above this one do not belong to the chain that is read: it branches off here.
    until: EpochId,
}

/// Where a frame that mentions pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FramePlace {
    pub(crate) offset: u64,
    /// The frame ends here or before.
    pub(crate) end: u64,
    pub(crate) epoch: EpochId,
    pub(crate) mention: Mention,
}

impl Segment {
    pub(in crate::store) fn sealed(
        numbers: SegmentNumbers,
        path: PathBuf,
        file: PooledFile,
        bytes: u64,
        description: Arc<Description>,
        index: Index,
    ) -> Self {
        Self { numbers, path, file, bytes, description, sealed: Some(index), walked: OnceLock::new(), until: EpochId(u64::MAX) }
    }

    pub(in crate::store) fn walked(
        numbers: SegmentNumbers,
        path: PathBuf,
        file: PooledFile,
        bytes: u64,
        description: Arc<Description>,
        walked: Walked,
    ) -> Self {
        Self { numbers, path, file, bytes, description, sealed: None, walked: OnceLock::from(walked), until: EpochId(u64::MAX) }
    }

    /// Hides the epochs above `until`.
    pub(in crate::store) fn cut_off(&mut self, until: EpochId) {
        self.until = self.until.min(until);
    }

    pub(crate) const fn numbers(&self) -> SegmentNumbers {
        self.numbers
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The length of the file when it was opened.
    pub(in crate::store) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) const fn file(&self) -> &dyn MediumFile {
        &self.file
    }

    /// Keeps the file open, whatever takes its place, where the bound on open files leaves room for
    /// that.
    pub(in crate::store) fn hold(&self) -> Result<bool, StoreError> {
        self.file.hold().map_err(StoreError::io("open", &self.path))
    }

    /// The file need not stay open any more.
    pub(in crate::store) fn let_go(&self) {
        self.file.let_go();
    }

    /// Asks the index. Where the one beside the segment is not sound, the segment is walked once,
    /// and `look` asks what that gave; it may be called twice.
    pub(crate) fn look<T>(&self, look: impl Fn(&Index) -> Result<T, IndexError>) -> Result<T, StoreError> {
        loop {
            match look(self.index()?) {
                Ok(found) => return Ok(found),
                Err(error) => self.fall_back(error)?,
            }
        }
    }

    /// The index that is asked at present. An error of it goes to [`fall_back`](Self::fall_back).
    pub(crate) fn index(&self) -> Result<&Index, StoreError> {
        match (self.walked.get(), &self.sealed) {
            (Some(walked), _) => Ok(&walked.index),
            (None, Some(sealed)) => Ok(sealed),
            (None, None) => Err(StoreError::io("read", &self.path)(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// Walks the segment, where the index beside it was asked so far, so that what was asked can be
    /// asked again.
    ///
    /// # Errors
    /// A segment that was walked already, or cannot be.
    pub(crate) fn fall_back(&self, error: IndexError) -> Result<(), StoreError> {
        if self.walked.get().is_some() {
            return Err(match error {
                IndexError::Io(error) => StoreError::io("read", &self.path)(error),
                IndexError::Format(error) => self.damaged(EpochId::NONE, 0, &error),
            });
        }
        let index = self.path.with_file_name(self.numbers.index_name());
        tracing::warn!(index = %index.display(), %error, "the index is not sound: the segment is walked instead");
        let walked = walk::walk_one(&self.path, self.numbers, &self.file, self.bytes, &self.description)?;
        self.walked.get_or_init(|| walked);
        Ok(())
    }

    /// The first frame of the epochs from `from` to `to` whose list of pages could not be read.
    pub(crate) fn fault(&self, from: EpochId, to: EpochId) -> Option<&Damage> {
        let faults = self.walked.get().map(|walked| walked.faults.as_slice()).unwrap_or_default();
        faults.iter().find(|(epoch, _)| (from..=to).contains(epoch)).map(|(_, damage)| damage)
    }

    /// How many epochs there are.
    pub(crate) fn epochs(&self) -> Result<u64, StoreError> {
        self.look(|index| match index.last() <= self.until {
            true => Ok(index.epochs()),
            false => Ok(match index.find_epoch(self.until)? {
                Ok(number) => number + 1,
                Err(below) => below,
            }),
        })
    }

    /// The number of an epoch in the index, where the segment has it.
    pub(crate) fn find(&self, epoch: EpochId) -> Result<Option<u64>, StoreError> {
        if epoch > self.until {
            return Ok(None);
        }
        self.look(|index| Ok(index.find_epoch(epoch)?.ok()))
    }

    /// What the commit frame of the epoch with this number says.
    pub(crate) fn epoch(&self, number: u64) -> Result<Epoch, StoreError> {
        let indexed = self.look(|index| index.epoch(number))?;
        self.commit(&indexed)
    }

    fn commit(&self, indexed: &IndexedEpoch) -> Result<Epoch, StoreError> {
        let at = indexed.commit_offset;
        let mut buffer = Vec::new();
        let end = at.saturating_add(REWRITTEN_COMMIT_FRAME_BYTES as u64).min(self.bytes);
        let (header, payload) = self.frame(indexed.epoch, at, end, FrameKind::Commit, &mut buffer)?;
        let commit = Commit::decode(&header, payload).map_err(|error| self.damaged(indexed.epoch, at, &error))?;
        let frame = [&header.encode(self.description.chain)[..], payload].concat();
        let IndexedEpoch { offset, state_offset, commit_offset, .. } = *indexed;
        let (expected, found) = (commit_offset.saturating_sub(offset), commit.totals.frames_bytes);
        if expected != found {
            let error = FormatError::field("bytes of frames", FRAME_HEADER_BYTES + 32, expected, found);
            return Err(self.damaged(indexed.epoch, at, &error));
        }
        Ok(Epoch { identity: commit.identity(&frame), commit, segment: self.numbers, offset, state_offset, commit_offset })
    }

    /// Where the frame with this number of the index is.
    pub(crate) fn place(index: &Index, number: u64) -> Result<FramePlace, IndexError> {
        let frame = index.frame(number)?;
        let epoch = index.epoch(frame.epoch.into())?;
        let next = if number + 1 < index.frames() { index.frame(number + 1)?.offset } else { u64::MAX };
        Ok(FramePlace { offset: frame.offset, end: next.min(epoch.state_offset), epoch: epoch.epoch, mention: frame.mention })
    }

    /// The payload of a frame that mentions pages, checked.
    pub(crate) fn payload<'b>(&self, place: &FramePlace, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], StoreError> {
        let kind = if place.mention == Mention::Zeros { FrameKind::Zeros } else { FrameKind::Pages };
        let (_, payload) = self.frame(place.epoch, place.offset, place.end.min(self.bytes), kind, buffer)?;
        Ok(payload)
    }

    /// The payload of an epoch's state frame, checked.
    pub(crate) fn state<'b>(&self, epoch: &Epoch, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], StoreError> {
        let (number, at) = (epoch.commit.epoch, epoch.state_offset);
        let (_, payload) = self.frame(number, at, epoch.commit_offset, FrameKind::State, buffer)?;
        Ok(payload)
    }

    /// A frame of `epoch`, checked.
    fn frame<'b>(
        &self,
        epoch: EpochId,
        offset: u64,
        end: u64,
        kind: FrameKind,
        buffer: &'b mut Vec<u8>,
    ) -> Result<(FrameHeader, &'b [u8]), StoreError> {
        let (header, payload) =
            frames::read_frame(&self.file, offset, end, self.description.chain, buffer).map_err(|fault| match fault {
                Fault::Io(error) => StoreError::io("read", &self.path)(error),
                Fault::Format(error) => self.damaged(epoch, offset, &error),
            })?;
        let wrong = if header.kind != kind {
            Some(FormatError::field("kind", 4, kind.as_str(), header.kind.as_str()))
        } else if header.epoch != epoch {
            Some(FormatError::field("epoch", 8, epoch, header.epoch))
        } else {
            None
        };
        match wrong {
            Some(error) => Err(self.damaged(epoch, offset, &error)),
            None => Ok((header, payload)),
        }
    }

    /// Damage in the frame at `offset`.
    pub(crate) fn damaged(&self, epoch: EpochId, offset: u64, error: &FormatError) -> StoreError {
        StoreError::Damaged(Damage::new(&self.path, epoch, offset, error))
    }
}
