//! The frames of one epoch, in sequence.

use std::fmt;

use super::StateRecord;
use super::changes::{ChangedWords, encode_changes};
use super::state::{encode_state, pack_state};
use super::{BlockEncoder, ChainId, EpochTotals, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind, ZERO_RUNS_MAX};
use crate::page::{EpochId, Gfn, PageBytes, PageRun};
use crate::xxh3::Xxh3;

/// Makes the frames of one epoch, in sequence: pages and zeros in any number and order, then the
/// state. The commit frame is the sink's to make, of [`totals`](Self::totals).
///
/// Frames are appended to a buffer of the caller's, which may be taken away and emptied between
/// calls.
pub struct EpochWriter {
    chain: ChainId,
    epoch: EpochId,
    totals: EpochTotals,
    headers: Xxh3,
    ended: bool,
}

impl EpochWriter {
    /// A writer for `epoch` of `chain`.
    #[must_use]
    pub fn new(chain: ChainId, epoch: EpochId) -> Self {
        Self { chain, epoch, totals: EpochTotals::default(), headers: Xxh3::new(), ended: false }
    }

    /// The epoch.
    #[must_use]
    pub const fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// Appends a pages frame with the 1 to 16 pages of `block`, whose gfns rise. A page may have
    /// been mentioned before in this epoch: the last mention counts.
    ///
    /// # Errors
    /// A block that [`BlockEncoder::encode`] does not take; a frame behind the state. Nothing is
    /// appended then.
    pub fn pages(
        &mut self,
        out: &mut Vec<u8>,
        encoder: &mut BlockEncoder,
        block: &[(Gfn, &PageBytes)],
    ) -> Result<(), FormatError> {
        self.frame(out, FrameKind::Pages, |out| encoder.encode(out, block))?;
        self.totals.blocks += 1;
        self.totals.stored_pages += block.len() as u64;
        Ok(())
    }

    /// Appends a pages frame with what changed of 1 to 16 pages, whose gfns rise: for each the page
    /// as it is now, and the words that differ from its version before, 1 to
    /// [`CHANGED_WORDS_MAX`](super::CHANGED_WORDS_MAX). The version before is what the frames
    /// before this one say, in this epoch and in those before; at most
    /// [`CHANGES_DEPTH_MAX`](super::CHANGES_DEPTH_MAX) changes of a page may follow each other.
    ///
    /// # Errors
    /// A number of pages, gfns or a number of words out of these bounds; a frame behind the state.
    /// Nothing is appended then.
    pub fn changes(&mut self, out: &mut Vec<u8>, block: &[(Gfn, &PageBytes, ChangedWords)]) -> Result<(), FormatError> {
        self.frame(out, FrameKind::Pages, |out| encode_changes(out, block))?;
        self.totals.blocks += 1;
        self.totals.stored_pages += block.len() as u64;
        Ok(())
    }

    /// Appends zeros frames with `runs`, which rise and are disjoint: as many as their number
    /// takes.
    ///
    /// # Errors
    /// Runs that are empty or out of order; a frame behind the state. Whole frames before the fault
    /// may have been appended: the epoch is then to be given up.
    pub fn zeros(&mut self, out: &mut Vec<u8>, runs: &[PageRun]) -> Result<(), FormatError> {
        for part in runs.chunks(ZERO_RUNS_MAX) {
            self.frame(out, FrameKind::Zeros, |out| {
                let mut least = Gfn(0);
                for run in part {
                    let end = run.end().filter(|_| run.count > 0 && run.first >= least);
                    least = end.ok_or_else(|| {
                        FormatError::input("runs of zeros", "rising, disjoint runs of 1 frame or more", format!("{run:?}"))
                    })?;
                    out.extend_from_slice(&run.first.0.to_le_bytes());
                    out.extend_from_slice(&run.count.to_le_bytes());
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Appends the state frame, which every epoch has once, behind all its pages. The records are
    /// packed where that makes them smaller.
    ///
    /// # Errors
    /// A record that breaks a limit of [`StateRecord`]; more than 64 MiB in all; a second state.
    /// Nothing is appended then.
    pub fn state(&mut self, out: &mut Vec<u8>, records: &[StateRecord]) -> Result<(), FormatError> {
        self.frame(out, FrameKind::State, |out| {
            let begin = out.len();
            encode_state(out, records)?;
            pack_state(out, begin);
            Ok(())
        })?;
        self.ended = true;
        Ok(())
    }

    /// Appends a pages frame whose payload is that of another frame, with so many pages in it.
    ///
    /// # Errors
    /// A frame behind the state. Nothing is appended then.
    pub(crate) fn block_again(&mut self, out: &mut Vec<u8>, payload: &[u8], pages: usize) -> Result<(), FormatError> {
        self.frame(out, FrameKind::Pages, |out| {
            out.extend_from_slice(payload);
            Ok(())
        })?;
        self.totals.blocks += 1;
        self.totals.stored_pages += pages as u64;
        Ok(())
    }

    /// As [`state`](Self::state), with the payload of another state frame.
    ///
    /// # Errors
    /// A second state. Nothing is appended then.
    pub(crate) fn state_again(&mut self, out: &mut Vec<u8>, payload: &[u8]) -> Result<(), FormatError> {
        self.frame(out, FrameKind::State, |out| {
            out.extend_from_slice(payload);
            Ok(())
        })?;
        self.ended = true;
        Ok(())
    }

    /// What the frames so far come to.
    #[must_use]
    pub fn totals(&self) -> EpochTotals {
        EpochTotals { frames_hash: self.headers.digest128(), ..self.totals }
    }

    /// Appends a frame whose payload `fill` appends. The header's place is kept and filled in
    /// behind it.
    fn frame(
        &mut self,
        out: &mut Vec<u8>,
        kind: FrameKind,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let begin = out.len();
        let result = self.frame_at(out, begin, kind, fill);
        if result.is_err() {
            out.truncate(begin);
        }
        result
    }

    fn frame_at(
        &mut self,
        out: &mut Vec<u8>,
        begin: usize,
        kind: FrameKind,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        if self.ended {
            return Err(FormatError::input("frames of an epoch", "nothing behind the state", kind.as_str()));
        }
        // The commit frame's sequence is the number of frames before it.
        let frames = self
            .totals
            .frames
            .checked_add(1)
            .ok_or_else(|| FormatError::input("frames of an epoch", "fewer than 2^32", "more"))?;
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        fill(out)?;
        let payload = out.get(begin + FRAME_HEADER_BYTES..).unwrap_or_default();
        let header = FrameHeader::of(kind, self.epoch, self.totals.frames, payload)?;
        let padded = payload.len().next_multiple_of(8);
        let bytes = header.encode(self.chain);
        out.resize(begin + FRAME_HEADER_BYTES + padded, 0);
        if let Some(place) = out.get_mut(begin..begin + FRAME_HEADER_BYTES) {
            place.copy_from_slice(&bytes);
        }
        self.headers.update(&bytes);
        self.totals.frames = frames;
        self.totals.frames_bytes += header.frame_bytes();
        Ok(())
    }
}

impl fmt::Debug for EpochWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochWriter")
            .field("chain", &self.chain)
            .field("epoch", &self.epoch)
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}
