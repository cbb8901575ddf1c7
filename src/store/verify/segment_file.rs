//! Segment files, read in pieces.

use super::damage::{DamageKind, Fault};
use super::description::Description;
use super::frame::{HEADER_BYTES, HEADER_BYTES_U64, Header, Kind, SegmentHeader, Synced};
use super::listing::Segment;
use super::report::VerifyError;
use crate::xxh3::xxh3_64;

/// Bytes that one read asks for, where a frame does not need more.
const PIECE_BYTES: u64 = 1 << 20;

/// What stands at a place where a frame may begin.
#[derive(Debug)]
pub(super) enum Look {
    /// The end of the file.
    End,
    /// No frame.
    Fault(Fault),
    /// A frame whose header is intact. Its payload was not looked at.
    Frame(Header),
}

/// One segment, through a window of at most one frame's payload.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    segment: &'a Segment,
    description: &'a Description,
    bytes: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Bytes that one read asks for, where a frame does not need more.
    piece_bytes: u64,
    /// Bytes that were read, so that tests can bound them.
    #[cfg(test)]
    pub(super) bytes_read: u64,
}

impl<'a> Pieces<'a> {
    pub(super) fn open(segment: &'a Segment, description: &'a Description) -> Result<Self, VerifyError> {
        Ok(Self {
            segment,
            description,
            bytes: segment.bytes,
            window: Vec::new(),
            window_at: 0,
            piece_bytes: PIECE_BYTES,
            #[cfg(test)]
            bytes_read: 0,
        })
    }

    /// Where the file ends.
    pub(super) fn end(&self) -> u64 {
        self.bytes
    }

    /// `count` bytes from `at` on, or `None` where the file ends before. Nothing is allocated
    /// beyond the file's length.
    fn bytes(&mut self, at: u64, count: u64) -> Result<Option<&[u8]>, VerifyError> {
        let Some(end) = at.checked_add(count).filter(|end| *end <= self.bytes) else { return Ok(None) };
        if at < self.window_at || end > self.window_at + self.window.len() as u64 {
            let want = count.max(self.piece_bytes).min(self.bytes - at);
            let Ok(want) = usize::try_from(want) else { return Ok(None) };
            self.window.resize(want, 0);
            self.window_at = at;
            let got = self.fill()?;
            self.window.truncate(got);
            #[cfg(test)]
            {
                self.bytes_read += got as u64;
            }
            if got < want {
                // A writer has cut the file back: it ends here now.
                self.bytes = at + got as u64;
            }
        }
        let range = usize::try_from(at - self.window_at).ok().zip(usize::try_from(end - self.window_at).ok());
        Ok(range.and_then(|(from, to)| self.window.get(from..to)))
    }

    fn fill(&mut self) -> Result<usize, VerifyError> {
        let at = self.window_at;
        // Not kept: walks of branches lie within each other.
        let file = self.segment.open()?;
        file.read(at, &mut self.window).map_err(|source| self.failed(at, source))
    }

    fn failed(&self, offset: u64, source: std::io::Error) -> VerifyError {
        VerifyError::Io { path: self.segment.path.clone(), offset, source }
    }

    /// What stands at `at`.
    pub(super) fn look(&mut self, at: u64) -> Result<Look, VerifyError> {
        let chain = &self.description.chain;
        let Some(raw) = self.bytes(at, HEADER_BYTES_U64)? else {
            if at >= self.bytes {
                return Ok(Look::End);
            }
            let found = format!("{} to the end of the file", self.bytes - at);
            return Ok(Look::Fault(Fault::new(
                DamageKind::Truncated,
                at,
                format!("{HEADER_BYTES} bytes of frame header"),
                found,
            )));
        };
        let raw = raw.first_chunk().copied().unwrap_or([0; HEADER_BYTES]);
        Ok(Header::parse(&raw, at, chain).map_or_else(Look::Fault, Look::Frame))
    }

    /// What stands at `at`, with no more read than that.
    pub(super) fn glance(&self, at: u64) -> Result<Look, VerifyError> {
        let mut raw = [0; HEADER_BYTES];
        Ok(match self.read_at(at, &mut raw)? {
            HEADER_BYTES => Header::parse(&raw, at, &self.description.chain).map_or_else(Look::Fault, Look::Frame),
            0 if at >= self.bytes => Look::End,
            found => {
                let expected = format!("{HEADER_BYTES} bytes of frame header");
                Look::Fault(Fault::new(DamageKind::Truncated, at, expected, format!("{found} to the end of the file")))
            }
        })
    }

    /// Reads from `at` on until `buffer` is full or the file ends, and returns how many bytes.
    pub(super) fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, VerifyError> {
        let room = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        let file = self.segment.open()?;
        file.read(at, buffer.get_mut(..room).unwrap_or_default()).map_err(|source| self.failed(at, source))
    }

    /// The payload of the frame at `at`, with its checksum and padding checked.
    pub(super) fn payload(&mut self, at: u64, header: &Header) -> Result<Result<&[u8], Fault>, VerifyError> {
        if let Some(lengths) = header.kind.lengths().filter(|lengths| !lengths.contains(&header.length)) {
            let lengths: Vec<_> = lengths.iter().map(u32::to_string).collect();
            let expected = format!("{} bytes of payload in a frame of its kind", lengths.join(" or "));
            return Ok(Err(Fault::new(DamageKind::Length, at + 20, expected, header.length.to_string())));
        }
        let end = self.bytes;
        let Some(padded) = self.bytes(at + HEADER_BYTES_U64, u64::from(header.padded()))? else {
            let expected = format!("{} bytes of payload and padding", header.padded());
            let found = format!("{} to the end of the file", end.saturating_sub(at + HEADER_BYTES_U64));
            return Ok(Err(Fault::new(DamageKind::Truncated, at + HEADER_BYTES_U64, expected, found)));
        };
        let length = usize::try_from(header.length).unwrap_or(usize::MAX).min(padded.len());
        let (payload, padding) = padded.split_at(length);
        let found = xxh3_64(payload);
        if found != header.checksum {
            let expected = format!("{:016x}", header.checksum);
            return Ok(Err(Fault::new(DamageKind::PayloadChecksum, at + HEADER_BYTES_U64, expected, format!("{found:016x}"))));
        }
        if let Some(index) = padding.iter().position(|byte| *byte != 0) {
            let offset = at + HEADER_BYTES_U64 + (length + index) as u64;
            let found = padding.get(index).copied().unwrap_or_default();
            return Ok(Err(Fault::new(DamageKind::Padding, offset, "00", format!("{found:02x}"))));
        }
        Ok(Ok(payload))
    }

    /// As [`payload`](Self::payload), with no more read than that.
    pub(super) fn payload_only(&mut self, at: u64, header: &Header) -> Result<Result<&[u8], Fault>, VerifyError> {
        self.piece_bytes = 0;
        self.payload(at, header)
    }

    /// The first place at or behind `from` where a frame's header is intact.
    pub(super) fn next_intact(&mut self, from: u64) -> Result<Option<u64>, VerifyError> {
        let chain = &self.description.chain;
        let mut at = from.next_multiple_of(8);
        while at.checked_add(HEADER_BYTES_U64).is_some_and(|end| end <= self.bytes) {
            // What is in the window comes first: asking for a whole piece each time would read it
            // again for every place.
            let window = if at < self.window_at { 0 } else { (self.window_at + self.window.len() as u64).saturating_sub(at) };
            let count = if window < HEADER_BYTES_U64 { PIECE_BYTES } else { window }.min(self.bytes - at);
            let Some(piece) = self.bytes(at, count)? else { continue };
            for (raw, place) in piece.windows(HEADER_BYTES).step_by(8).zip((at..).step_by(8)) {
                // The cheap half of the test first: most places do not even have the magic.
                if raw.first() == Some(&0xD7)
                    && let Some(raw) = raw.first_chunk()
                    && Header::parse(raw, place, chain).is_ok()
                {
                    return Ok(Some(place));
                }
            }
            at += (count - HEADER_BYTES_U64) / 8 * 8 + 8;
        }
        Ok(None)
    }

    /// Whether the header of a frame stands at `at`. Leaves the window alone: `at` may be far
    /// ahead, and wrong.
    fn is_intact(&self, at: u64) -> Result<bool, VerifyError> {
        let mut raw = [0; HEADER_BYTES];
        if at.checked_add(HEADER_BYTES_U64).is_none_or(|end| end > self.bytes) {
            return Ok(false);
        }
        let read = self.segment.open()?.read(at, &mut raw).map_err(|source| self.failed(at, source))?;
        Ok(read == HEADER_BYTES && Header::parse(&raw, at, &self.description.chain).is_ok())
    }

    /// The newest epoch that an intact durable frame, close frame or segment header at or behind
    /// `from` calls durable.
    ///
    /// Steps from frame to frame where one follows the other, so that what a guest had in its
    /// memory is not taken for a frame.
    pub(super) fn durable(&mut self, from: u64) -> Result<u64, VerifyError> {
        let mut durable = 0;
        let mut at = from;
        while let Some(place) = self.next_intact(at)? {
            at = place + 8;
            let Look::Frame(header) = self.look(place)? else { continue };
            let claim: fn(&[u8]) -> u64 = match header.kind {
                Kind::Close | Kind::Durable => |payload| Synced::parse(payload).epoch,
                Kind::Segment => |payload| SegmentHeader::parse(payload).epoch,
                _ => |_| 0,
            };
            if matches!(header.kind, Kind::Durable | Kind::Close | Kind::Segment)
                && let Ok(payload) = self.payload(place, &header)?
            {
                durable = durable.max(claim(payload));
            }
            let end = place + header.bytes();
            if end == self.bytes || self.is_intact(end)? {
                at = end;
            }
        }
        Ok(durable)
    }
}

/// The newest epoch that any intact durable frame, close frame or segment header calls durable,
/// from `offset` of the first of `segments` on.
pub(super) fn durable(segments: &[Segment], offset: u64, description: &Description) -> Result<u64, VerifyError> {
    let mut durable = 0;
    let mut from = offset;
    for segment in segments {
        durable = durable.max(Pieces::open(segment, description)?.durable(from)?);
        from = 0;
    }
    Ok(durable)
}
