//! The header of a packet between driver and device: virtio 1.2, section 5.10.6.

/// Bytes of a header. The payload stands behind it.
pub const HEADER_BYTES: usize = 44;
/// The largest payload of a packet to the guest, in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 64 << 10;
/// The address of the host.
pub const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type of socket that there is.
pub const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will not receive any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will not send any more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Why bytes are no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Too few bytes for a header.
    #[error("a packet of {found} bytes: its header has {HEADER_BYTES}")]
    Short {
        /// Bytes that there are.
        found: usize,
    },
    /// Another number of bytes than the header says.
    #[error("a packet with {found} bytes of payload: its header says {named}")]
    Length {
        /// What the header says.
        named: u32,
        /// Bytes that there are.
        found: usize,
    },
    /// An operation that there is not.
    #[error("a packet with operation {found}: there are 1 to 7")]
    Op {
        /// Its number.
        found: u16,
    },
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses a connection, or ends it at once.
    Reset,
    /// The sender will not receive or not send any more, as the flags say.
    Shutdown,
    /// Bytes.
    Data,
    /// How much room the sender has.
    CreditUpdate,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest,
}

impl Op {
    /// The number in the header.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// A packet's header, as it came: whoever takes it checks every field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub src_cid: u64,
    /// The receiver's address.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub length: u32,
    /// The type of socket.
    pub kind: u16,
    /// The number of the operation: [`Header::op`].
    pub op: u16,
    /// Of [`Op::Shutdown`]: [`SHUTDOWN_RECEIVE`], [`SHUTDOWN_SEND`].
    pub flags: u32,
    /// Bytes that the sender has room for on this connection, taken or not.
    pub buf_alloc: u32,
    /// Bytes of this connection that the sender has taken out of that room, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header from the front of `bytes`.
    ///
    /// # Errors
    /// [`PacketError::Short`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PacketError> {
        let mut fields = Fields(bytes);
        let mut read = || {
            Some(Self {
                src_cid: u64::from_le_bytes(fields.next()?),
                dst_cid: u64::from_le_bytes(fields.next()?),
                src_port: u32::from_le_bytes(fields.next()?),
                dst_port: u32::from_le_bytes(fields.next()?),
                length: u32::from_le_bytes(fields.next()?),
                kind: u16::from_le_bytes(fields.next()?),
                op: u16::from_le_bytes(fields.next()?),
                flags: u32::from_le_bytes(fields.next()?),
                buf_alloc: u32::from_le_bytes(fields.next()?),
                fwd_cnt: u32::from_le_bytes(fields.next()?),
            })
        };
        read().ok_or(PacketError::Short { found: bytes.len() })
    }

    /// The bytes in front of the payload.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// What the packet is for.
    ///
    /// # Errors
    /// [`PacketError::Op`].
    pub const fn op(&self) -> Result<Op, PacketError> {
        Ok(match self.op {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Reset,
            4 => Op::Shutdown,
            5 => Op::Data,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            found => return Err(PacketError::Op { found }),
        })
    }

    /// Whether the header says how many bytes the payload has.
    ///
    /// # Errors
    /// [`PacketError::Length`].
    pub fn check_length(&self, payload: &[u8]) -> Result<(), PacketError> {
        if u32::try_from(payload.len()) == Ok(self.length) {
            Ok(())
        } else {
            Err(PacketError::Length { named: self.length, found: payload.len() })
        }
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (field, behind) = self.0.split_first_chunk()?;
        self.0 = behind;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_fields_where_the_specification_has_them() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: HOST_CID,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            length: 0x3132_3334,
            kind: TYPE_STREAM,
            op: Op::Data.number(),
            flags: SHUTDOWN_SEND,
            buf_alloc: 0x4142_4344,
            fwd_cnt: 0x5152_5354,
        };
        let bytes = [
            8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32,
            0x31, 1, 0, 5, 0, 2, 0, 0, 0, 0x44, 0x43, 0x42, 0x41, 0x54, 0x53, 0x52, 0x51,
        ];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(Header::decode(&[&bytes[..], b"payload"].concat()), Ok(header));
        for short in 0..HEADER_BYTES {
            assert_eq!(Header::decode(&bytes[..short]), Err(PacketError::Short { found: short }));
        }
    }

    #[test]
    fn operations_have_their_numbers_and_others_are_refused() {
        for op in 0..=u16::MAX {
            match (Header { op, ..Header::default() }).op() {
                Ok(known) => assert!((1..=7).contains(&op) && known.number() == op),
                Err(error) => assert!(!(1..=7).contains(&op) && error == PacketError::Op { found: op }),
            }
        }
    }

    #[test]
    fn a_length_is_that_of_the_payload() {
        let header = Header { length: 3, ..Header::default() };
        assert_eq!(header.check_length(b"abc"), Ok(()));
        for found in [&b""[..], b"ab", b"abcd"] {
            assert_eq!(header.check_length(found), Err(PacketError::Length { named: 3, found: found.len() }));
        }
    }
}
