//! Envelopes: what goes over a connection, one behind the other. A kind, a length, and so many
//! bytes.

use std::io::{self, Read, Write};

/// Bytes of an envelope's head: the length (4 bytes), the kind, and three that are zero.
const HEAD_BYTES: usize = 8;

/// The most bytes in an envelope. Frames are cut where they are longer.
pub const ENVELOPE_BYTES_MAX: usize = 1 << 20;

/// What an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first one of a connection, either way: JSON.
    Hello,
    /// A message of the protocol.
    Word,
    /// Frames of an epoch.
    Part,
    /// The last frames of an epoch, with its commit frame at the end.
    Complete,
    /// What came of the epoch in hand is to be forgotten.
    Abort,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Word => 2,
            Self::Part => 3,
            Self::Complete => 4,
            Self::Abort => 5,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Word,
            3 => Self::Part,
            4 => Self::Complete,
            5 => Self::Abort,
            _ => return None,
        })
    }
}

/// Writes one envelope, of `parts` one behind the other. It is on its way once `to` is flushed.
///
/// # Errors
/// The connection's; more than [`ENVELOPE_BYTES_MAX`].
pub fn write_envelope(to: &mut (impl Write + ?Sized), kind: Kind, parts: &[&[u8]]) -> io::Result<()> {
    let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= ENVELOPE_BYTES_MAX);
    let length = length.ok_or_else(|| invalid(format!("an envelope of {bytes} bytes")))?;
    let mut head = [0; HEAD_BYTES];
    let fields = length.to_le_bytes().into_iter().chain([kind.number()]);
    head.iter_mut().zip(fields).for_each(|(to, byte)| *to = byte);
    if bytes <= 1024 {
        // One record of TLS.
        return to.write_all(&[&head[..], &parts.concat()].concat());
    }
    to.write_all(&head)?;
    parts.iter().try_for_each(|part| to.write_all(part))
}

/// Reads one envelope into `bytes`, whose content is replaced.
///
/// # Errors
/// The connection's, and its end; a head that is none; more than [`ENVELOPE_BYTES_MAX`].
pub fn read_envelope(from: &mut (impl Read + ?Sized), bytes: &mut Vec<u8>) -> io::Result<Kind> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head)?;
    let [a, b, c, d, kind, rest @ ..] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = Kind::from_number(kind).filter(|_| rest == [0; 3] && length <= ENVELOPE_BYTES_MAX);
    let kind = kind.ok_or_else(|| invalid(format!("no head of an envelope: {head:02x?}")))?;
    bytes.resize(length, 0);
    from.read_exact(bytes)?;
    Ok(kind)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut wire = Vec::new();
        let (short, long) = (vec![7; 1000], vec![9; ENVELOPE_BYTES_MAX]);
        write_envelope(&mut wire, Kind::Part, &[&short]).unwrap();
        write_envelope(&mut wire, Kind::Complete, &[&long[..9], &long[9..]]).unwrap();
        write_envelope(&mut wire, Kind::Abort, &[]).unwrap();
        assert!(write_envelope(&mut wire, Kind::Part, &[&long, &[0]]).is_err());
        let (mut from, mut bytes) = (&wire[..], Vec::new());
        assert_eq!((read_envelope(&mut from, &mut bytes).unwrap(), &bytes), (Kind::Part, &short));
        assert_eq!((read_envelope(&mut from, &mut bytes).unwrap(), &bytes), (Kind::Complete, &long));
        assert_eq!((read_envelope(&mut from, &mut bytes).unwrap(), bytes.len()), (Kind::Abort, 0));
        assert_eq!(read_envelope(&mut from, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        for (at, value) in [(4, 0), (4, 6), (5, 1), (7, 1), (3, 1)] {
            let mut bad = wire.clone();
            bad[at] = value;
            assert!(read_envelope(&mut &bad[..], &mut bytes).is_err(), "{at}: {value}");
        }
    }
}
