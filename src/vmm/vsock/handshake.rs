//! The line with which a host program asks for a connection: `CONNECT PORT` and a line feed.

/// The longest line. The longest that is right has 19 bytes.
pub(super) const LINE_BYTES_MAX: usize = 32;

/// What the bytes so far ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The line has no end yet.
    Unfinished,
    /// For a connection to this port of the guest.
    Port(u32),
    /// For nothing that there is.
    Nothing,
}

/// A line, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    line: Vec<u8>,
}

impl Handshake {
    /// Takes bytes up to the end of the line: how many, and what they ask for.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Asked) {
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len().min(room), |end| end + 1);
        self.line.extend(bytes.iter().take(taken));
        let asked = match self.line.strip_suffix(b"\n") {
            Some(line) => parse(line).map_or(Asked::Nothing, Asked::Port),
            None if self.line.len() < LINE_BYTES_MAX => Asked::Unfinished,
            None => Asked::Nothing,
        };
        (taken, asked)
    }
}

/// The port of a line without its end.
fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_come_in_any_parts_and_what_is_behind_it_is_left() {
        let text = b"CONNECT 4294967295\nhello";
        for at in 0..19 {
            let mut handshake = Handshake::default();
            assert_eq!(handshake.take(&text[..at]), (at, Asked::Unfinished));
            assert_eq!(handshake.take(&text[at..]), (19 - at, Asked::Port(u32::MAX)));
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["\n", "CONNECT\n", "CONNECT \n", "CONNECT 4294967296\n", "CONNECT -1\n", "CONNECT +1\n", "CONNECT 1 \n"] {
            assert_eq!(Handshake::default().take(line.as_bytes()), (line.len(), Asked::Nothing), "{line:?}");
        }
        for line in ["connect 1\n", "CONNECT 0x1\n", "CONNECT 1\r\n", "GET / HTTP/1.0\n", "CONNECT \u{661}\n"] {
            assert_eq!(Handshake::default().take(line.as_bytes()).1, Asked::Nothing, "{line:?}");
        }
        // A line without an end is not kept.
        assert_eq!(Handshake::default().take(&[b'0'; 1 << 20]), (LINE_BYTES_MAX, Asked::Nothing));
        let mut handshake = Handshake::default();
        for _ in 1..LINE_BYTES_MAX {
            assert_eq!(handshake.take(b"0"), (1, Asked::Unfinished));
        }
        assert_eq!(handshake.take(b"0"), (1, Asked::Nothing));
        assert_eq!(handshake.take(b"0"), (0, Asked::Nothing));
    }
}
