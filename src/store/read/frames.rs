//! Reading the frames of a segment's file.

use std::io;

use crate::format::{ChainId, FRAME_HEADER_BYTES, FRAME_MAGIC, FormatError, FrameHeader};
use crate::store::medium::MediumFile;

/// Why a frame could not be read.
#[derive(Debug)]
pub(in crate::store) enum Fault {
    Io(io::Error),
    Format(FormatError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FormatError> for Fault {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// A part of a file that is kept, so that small frames behind each other are read together.
pub(in crate::store) struct Window<'a> {
    file: &'a dyn MediumFile,
    base: u64,
    bytes: Vec<u8>,
    len: usize,
}

/// Bytes of a window. Reading it costs about as much as asking for a few bytes.
const WINDOW_BYTES: usize = 16 << 10;

impl<'a> Window<'a> {
    pub(in crate::store) fn new(file: &'a dyn MediumFile) -> Self {
        Self { file, base: 0, bytes: vec![0; WINDOW_BYTES], len: 0 }
    }

    /// Up to `len` bytes at `offset`: fewer at the end of the file. `len` is at most
    /// [`WINDOW_BYTES`].
    pub(in crate::store) fn at(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let within = offset.checked_sub(self.base).and_then(|from| usize::try_from(from).ok());
        let from = match within.filter(|from| from.saturating_add(len) <= self.len) {
            Some(from) => from,
            None => {
                self.len = 0;
                self.base = offset;
                self.len = self.file.read(offset, &mut self.bytes)?;
                0
            }
        };
        Ok(self.bytes.get(from..from.saturating_add(len).min(self.len)).unwrap_or_default())
    }

    /// The header of the frame at `offset` of a file that ends at `end`, in which the whole frame
    /// must lie.
    pub(in crate::store) fn header(&mut self, offset: u64, end: u64, chain: ChainId) -> Result<FrameHeader, Fault> {
        let room = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(FRAME_HEADER_BYTES);
        header_within(self.at(offset, room)?, offset, end, chain).map_err(Fault::Format)
    }
}

/// Reads the header of one frame, as [`Window::header`].
pub(in crate::store) fn read_header(file: &dyn MediumFile, offset: u64, end: u64, chain: ChainId) -> Result<FrameHeader, Fault> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    let room = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(FRAME_HEADER_BYTES);
    let read = file.read(offset, bytes.get_mut(..room).unwrap_or_default())?;
    header_within(bytes.get(..read).unwrap_or_default(), offset, end, chain).map_err(Fault::Format)
}

/// Parses a header at the beginning of `bytes`, which are at `offset` of a file that ends at `end`.
pub(in crate::store) fn header_within(bytes: &[u8], offset: u64, end: u64, chain: ChainId) -> Result<FrameHeader, FormatError> {
    let header = FrameHeader::parse(bytes, chain)?;
    let found = end.saturating_sub(offset);
    if header.frame_bytes() > found {
        return Err(FormatError::Short { field: "frame", offset: 0, needed: header.frame_bytes(), found });
    }
    Ok(header)
}

/// Reads and checks the payload of the frame at `offset`. The caller knows that the frame lies
/// within the file, which bounds what is allocated here.
pub(in crate::store) fn read_payload<'a>(
    file: &dyn MediumFile,
    offset: u64,
    header: &FrameHeader,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], Fault> {
    let body_bytes = usize::try_from(header.padded_bytes()).unwrap_or(usize::MAX);
    if buffer.len() < body_bytes {
        buffer.resize(body_bytes, 0);
    }
    let body = buffer.get_mut(..body_bytes).unwrap_or_default();
    let read = file.read(offset + FRAME_HEADER_BYTES as u64, body)?;
    Ok(header.check_body(body.get(..read).unwrap_or_default())?)
}

/// Reads and checks a whole frame at `offset` that ends at `end` or before: header and payload in
/// one go where `end` is near.
pub(in crate::store) fn read_frame<'a>(
    file: &dyn MediumFile,
    offset: u64,
    end: u64,
    chain: ChainId,
    buffer: &'a mut Vec<u8>,
) -> Result<(FrameHeader, &'a [u8]), Fault> {
    let room = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(FRAME_AT_ONCE_BYTES);
    if buffer.len() < room {
        buffer.resize(room, 0);
    }
    let read = file.read(offset, buffer.get_mut(..room).unwrap_or_default())?;
    let header = header_within(buffer.get(..read.min(room)).unwrap_or_default(), offset, end, chain)?;
    let whole = FRAME_HEADER_BYTES.saturating_add(usize::try_from(header.padded_bytes()).unwrap_or(usize::MAX));
    if whole > read {
        return Ok((header, read_payload(file, offset, &header, buffer)?));
    }
    let body = buffer.get(FRAME_HEADER_BYTES..whole).unwrap_or_default();
    Ok((header, header.check_body(body)?))
}

/// The most bytes that are read before a frame's header was seen.
const FRAME_AT_ONCE_BYTES: usize = 68 << 10;

/// Finds the next sound header at or behind `from`, a multiple of 8. Looks at every place once.
pub(in crate::store) fn find_header(file: &dyn MediumFile, from: u64, end: u64, chain: ChainId) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; 256 << 10];
    let mut base = from;
    loop {
        let read = file.read(base, &mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        let mut at = 0;
        while let Some(place) = bytes.get(at..at + FRAME_HEADER_BYTES) {
            let offset = base + at as u64;
            if place.starts_with(&FRAME_MAGIC) && header_within(place, offset, end, chain).is_ok() {
                return Ok(Some(offset));
            }
            at += 8;
        }
        if at == 0 {
            return Ok(None);
        }
        base += at as u64;
    }
}
