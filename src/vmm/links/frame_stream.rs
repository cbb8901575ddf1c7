//! Frames in a stream of bytes: four bytes with a frame's length, the highest first, and the frame
//! behind them, as passt and the backend `stream` of QEMU have it. No I/O.

use std::ops::Range;

/// Bytes of a length.
const PREFIX_BYTES: usize = 4;
/// The shortest frame is an Ethernet header.
pub(super) const FRAME_BYTES_MIN: usize = 14;
/// The longest is one that leaves segmentation to its receiver, with room for VLAN tags. Nobody is
/// asked to send such, and both sides know them.
pub(super) const FRAME_BYTES_MAX: usize = 65_550;
/// As many as the longest frame and its length, so that there is always room for the rest of a
/// frame; and enough for many short frames at once.
const BUFFER_BYTES: usize = 128 << 10;
const _: () = assert!(BUFFER_BYTES >= PREFIX_BYTES + FRAME_BYTES_MAX);

/// A stream can't be followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {found} bytes at offset {offset} of the stream: a frame has {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX}")]
pub(super) struct FrameError {
    /// Where the frame begins, with its length, from the stream's begin on.
    pub(super) offset: u64,
    /// The length that it is said to have.
    pub(super) found: u32,
}

/// What is sent in front of a frame of so many bytes. None for a frame that there can't be.
pub(super) fn prefix(frame_bytes: usize) -> Option<[u8; PREFIX_BYTES]> {
    let is_allowed = (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes);
    is_allowed.then_some(frame_bytes).and_then(|bytes| u32::try_from(bytes).ok()).map(u32::to_be_bytes)
}

/// Finds frames in a stream that comes in pieces of any size. It holds a buffer of one size,
/// whatever the stream says.
#[derive(Debug)]
pub(super) struct FrameDecoder {
    buffer: Box<[u8]>,
    /// What came and is not yet given away.
    held: Range<usize>,
    /// Where `held` begins in the stream.
    offset: u64,
}

impl FrameDecoder {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES].into(), held: 0..0, offset: 0 }
    }

    /// Where the stream's next bytes are to be put. There is room whenever `next_frame` has found
    /// that no frame is whole.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.held.is_empty() {
            self.held = 0..0;
        }
        // What is left of a frame moves only when the frame may have no room behind it.
        if self.buffer.len() - self.held.start < PREFIX_BYTES + FRAME_BYTES_MAX {
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        self.buffer.get_mut(self.held.end..).unwrap_or_default()
    }

    /// So many bytes were put at the begin of the room.
    pub(super) fn came(&mut self, count: usize) {
        self.held.end = (self.held.end + count).min(self.buffer.len());
    }

    /// The next frame, if all of it came.
    ///
    /// # Errors
    /// [`FrameError`], and from then on always.
    pub(super) fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let held = self.buffer.get(self.held.clone()).unwrap_or_default();
        let Some((prefix, behind)) = held.split_first_chunk() else { return Ok(None) };
        let found = u32::from_be_bytes(*prefix);
        let bytes = usize::try_from(found).unwrap_or(usize::MAX);
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&bytes) {
            return Err(FrameError { offset: self.offset, found });
        }
        let frame = behind.get(..bytes);
        if frame.is_some() {
            self.held.start += PREFIX_BYTES + bytes;
            self.offset += PREFIX_BYTES as u64 + u64::from(found);
        }
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    /// Gives the stream to a decoder in pieces of these sizes, over and over. Returns its frames,
    /// and the error that it ends with.
    fn decoded(stream: &[u8], pieces: &[usize]) -> (Vec<Vec<u8>>, Option<FrameError>) {
        let mut decoder = FrameDecoder::new();
        let (mut frames, mut left) = (Vec::new(), stream);
        let mut pieces = pieces.iter().copied().cycle();
        loop {
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(decoder.next_frame(), Err(error), "an error stays");
                        return (frames, Some(error));
                    }
                }
            }
            if left.is_empty() {
                return (frames, None);
            }
            let room = decoder.room();
            assert!(!room.is_empty());
            let count = pieces.next().unwrap().clamp(1, left.len()).min(room.len());
            let (piece, rest) = left.split_at(count);
            room[..count].copy_from_slice(piece);
            decoder.came(count);
            left = rest;
        }
    }

    fn encoded(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|frame| [&prefix(frame.len()).unwrap()[..], frame].concat()).collect()
    }

    fn frame(bytes: usize, salt: u8) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from(at % 251).unwrap() ^ salt).collect()
    }

    #[test]
    fn lengths_are_big_endian_and_have_bounds() {
        assert_eq!(prefix(0x1234), Some([0, 0, 0x12, 0x34]));
        assert_eq!(prefix(65_550), Some([0, 1, 0, 14]));
        assert_eq!([0, 13, 65_551, usize::MAX].map(prefix), [None; 4]);
        let frames = [frame(14, 1), frame(65_550, 2), frame(14, 3), frame(65_550, 4), frame(65_550, 5)];
        for pieces in [&[1][..], &[usize::MAX], &[65_553, 3], &[4, 14]] {
            assert_eq!(decoded(&encoded(&frames), pieces), (frames.to_vec(), None), "{pieces:?}");
        }
    }

    #[test]
    fn a_length_that_can_not_be_ends_the_stream_where_it_stands() {
        for found in [0, 13, 65_551, 1 << 24, u32::MAX] {
            let good = encoded(&[frame(60, 1), frame(1514, 2)]);
            let stream = [&good[..], &found.to_be_bytes(), &[0; 200]].concat();
            let error = FrameError { offset: good.len() as u64, found };
            for pieces in [&[1][..], &[usize::MAX], &[7, 1000]] {
                assert_eq!(decoded(&stream, pieces), (vec![frame(60, 1), frame(1514, 2)], Some(error)));
            }
        }
        let error = FrameError { offset: 7, found: 3 };
        assert_eq!(error.to_string(), "a frame of 3 bytes at offset 7 of the stream: a frame has 14 to 65550");
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_frames(
            frames in prop::collection::vec((14_usize..3000, any::<u8>()), 0..60),
            large in prop::option::of((0_usize..60, 60_000_usize..=65_550)),
            pieces in prop::collection::vec(prop_oneof![1_usize..20, 1_usize..5000, 1_usize..200_000], 1..40),
        ) {
            let mut frames: Vec<_> = frames.into_iter().map(|(bytes, salt)| frame(bytes, salt)).collect();
            if let Some((at, bytes)) = large {
                frames.insert(at.min(frames.len()), frame(bytes, 9));
            }
            let stream = encoded(&frames);
            prop_assert!(decoded(&stream, &pieces) == (frames, None));
        }

        #[test]
        fn a_stream_of_anything_gives_sound_frames_until_it_ends(
            frames in prop::collection::vec((14_usize..200, any::<u8>()), 0..6),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            tail in prop::collection::vec(any::<u8>(), 0..100),
            pieces in prop::collection::vec(1_usize..300, 1..10),
        ) {
            let frames: Vec<_> = frames.into_iter().map(|(bytes, salt)| frame(bytes, salt)).collect();
            let mut stream = [encoded(&frames), tail].concat();
            for (at, byte) in flips {
                if !stream.is_empty() {
                    let at = at.index(stream.len());
                    stream[at] = byte;
                }
            }
            let (found, error) = decoded(&stream, &pieces);
            // What was found is what the stream says, up to the error or to a frame that is not
            // whole.
            let again = encoded(&found);
            prop_assert!(stream.starts_with(&again));
            let rest = &stream[again.len()..];
            let next = rest.first_chunk().map(|prefix| u32::from_be_bytes(*prefix));
            match error {
                Some(error) => {
                    prop_assert_eq!((error.offset, Some(error.found)), (again.len() as u64, next));
                    prop_assert!(!(14..=65_550).contains(&error.found));
                }
                None => prop_assert!(next.is_none_or(|bytes| (14..=65_550).contains(&bytes) && rest.len() < 4 + bytes as usize)),
            }
        }
    }
}
