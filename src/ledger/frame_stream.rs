//! Ethernet frames on a stream: each behind its length, four bytes in network order.

/// The most bytes of a frame: a segment of 64 KiB with its headers.
pub const FRAME_BYTES_MAX: usize = 0x1_0100;

const LENGTH_BYTES: usize = 4;

/// A length that no frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {found} bytes: there are 1 to {FRAME_BYTES_MAX}")]
pub struct FrameLengthError {
    /// The length.
    pub found: u32,
}

/// A frame as it goes over a stream. `None` for more than [`FRAME_BYTES_MAX`], and for nothing.
#[must_use]
pub fn on_stream(frame: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(frame.len()).ok().filter(|_| (1..=FRAME_BYTES_MAX).contains(&frame.len()))?;
    Some([&length.to_be_bytes(), frame].concat())
}

/// What came over a stream and is not taken yet: at most what is pushed at once, and a part of a
/// frame before it.
#[derive(Debug, Default)]
pub struct FrameStream {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    at: usize,
}

impl FrameStream {
    /// Adds what came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// [`FrameLengthError`]: nothing that follows can be read.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameLengthError> {
        let Some(rest) = self.bytes.get(self.at..) else { return Ok(None) };
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let found = u32::from_be_bytes(*length);
        let length = usize::try_from(found).unwrap_or(usize::MAX);
        if !(1..=FRAME_BYTES_MAX).contains(&length) {
            return Err(FrameLengthError { found });
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        self.at += LENGTH_BYTES + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_however_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> = [1, 60, 1514, FRAME_BYTES_MAX].iter().map(|bytes| vec![7; *bytes]).collect();
        let all: Vec<u8> = frames.iter().flat_map(|frame| on_stream(frame).unwrap()).collect();
        for piece in [1, 3, 4, 1000, all.len()] {
            let mut stream = FrameStream::default();
            let mut found = Vec::new();
            for bytes in all.chunks(piece) {
                stream.push(bytes);
                while let Some(frame) = stream.next_frame().unwrap() {
                    found.push(frame.to_vec());
                }
                assert!(stream.bytes.len() <= piece + 4 + FRAME_BYTES_MAX);
            }
            assert!(found == frames, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused() {
        for found in [0, u32::try_from(FRAME_BYTES_MAX).unwrap() + 1, u32::MAX] {
            let mut stream = FrameStream::default();
            stream.push(&found.to_be_bytes());
            assert_eq!(stream.next_frame(), Err(FrameLengthError { found }));
        }
        assert_eq!((on_stream(&[]), on_stream(&vec![0; FRAME_BYTES_MAX + 1])), (None, None));
    }
}
