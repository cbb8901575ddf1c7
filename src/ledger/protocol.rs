//! Requests and answers: their bytes, and the hash that the answers tell. All numbers are
//! little-endian.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most bytes of a request's payload.
pub const PAYLOAD_BYTES_MAX: usize = 1024;
/// The most pages that a request may ask for.
pub const REQUEST_PAGES_MAX: u32 = 1 << 16;
/// The most clients that a server knows. It answers no others, and forgets none.
pub const CLIENTS_MAX: usize = 64;
/// Bytes of a request before its payload.
pub const REQUEST_HEADER_BYTES: usize = size_of::<RequestHeader>();
/// Bytes of an answer.
pub const ANSWER_BYTES: usize = size_of::<AnswerBytes>();

/// The first bytes of a request and of an answer.
pub(crate) const REQUEST_MAGIC: u64 = u64::from_le_bytes(*b"ledger?1");
pub(crate) const ANSWER_MAGIC: u64 = u64::from_le_bytes(*b"ledger!1");
/// What the hash is multiplied by for each word.
pub(crate) const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Why bytes are not a request or an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Another length than it has to be.
    #[error("{what} of {found} bytes: {needed} were expected")]
    Length {
        /// What it would be.
        what: &'static str,
        /// The bytes that there are.
        found: usize,
        /// The bytes that there should be.
        needed: usize,
    },
    /// Other first bytes.
    #[error("{what} begins with {found:#018x} and not with {expected:#018x}")]
    Magic {
        /// What it would be.
        what: &'static str,
        /// The first word.
        found: u64,
        /// The word that was expected.
        expected: u64,
    },
    /// More payload than there may be.
    #[error("a payload of {found} bytes: {PAYLOAD_BYTES_MAX} are the most")]
    Payload {
        /// Its bytes.
        found: usize,
    },
    /// More pages than there may be.
    #[error("a request for {found} pages: {REQUEST_PAGES_MAX} are the most")]
    Pages {
        /// The pages asked for.
        found: u32,
    },
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestHeader {
    magic: U64,
    client: U64,
    number: U64,
    pages: U32,
    payload_bytes: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AnswerBytes {
    magic: U64,
    client: U64,
    number: U64,
    count_before: U64,
    hash_before: U64,
    count_after: U64,
    hash_after: U64,
}

/// Offsets in a request, in bytes, for the program in assembly.
pub(crate) mod request_at {
    use super::RequestHeader;

    /// From here on to its end a request is hashed.
    pub(crate) const CLIENT: usize = std::mem::offset_of!(RequestHeader, client);
    pub(crate) const NUMBER: usize = std::mem::offset_of!(RequestHeader, number);
    pub(crate) const PAGES: usize = std::mem::offset_of!(RequestHeader, pages);
    pub(crate) const PAYLOAD_BYTES: usize = std::mem::offset_of!(RequestHeader, payload_bytes);
}

/// A request, within its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    client: u64,
    number: u64,
    pages: u32,
    payload: Vec<u8>,
}

impl Request {
    /// The request `number` of `client`, which has the server write to `pages` of its pages.
    ///
    /// # Errors
    /// [`ProtocolError::Payload`] and [`ProtocolError::Pages`].
    pub fn new(client: u64, number: u64, pages: u32, payload: Vec<u8>) -> Result<Self, ProtocolError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(ProtocolError::Payload { found: payload.len() });
        }
        if pages > REQUEST_PAGES_MAX {
            return Err(ProtocolError::Pages { found: pages });
        }
        Ok(Self { client, number, pages, payload })
    }

    /// Who asks.
    #[must_use]
    pub const fn client(&self) -> u64 {
        self.client
    }

    /// Which of the client's requests it is, from 1.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// How many of its pages the server is to write to.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    fn header(&self) -> RequestHeader {
        RequestHeader {
            magic: REQUEST_MAGIC.into(),
            client: self.client.into(),
            number: self.number.into(),
            pages: self.pages.into(),
            // At most PAYLOAD_BYTES_MAX.
            payload_bytes: u32::try_from(self.payload.len()).unwrap_or_default().into(),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [self.header().as_bytes(), &self.payload].concat()
    }

    /// The request of these bytes.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        const WHAT: &str = "a request";
        let short = ProtocolError::Length { what: WHAT, found: bytes.len(), needed: REQUEST_HEADER_BYTES };
        let Ok((header, payload)) = RequestHeader::read_from_prefix(bytes) else { return Err(short) };
        check_magic(WHAT, header.magic, REQUEST_MAGIC)?;
        let named = usize::try_from(header.payload_bytes.get()).unwrap_or(usize::MAX);
        if named > PAYLOAD_BYTES_MAX {
            return Err(ProtocolError::Payload { found: named });
        }
        if named != payload.len() {
            let needed = REQUEST_HEADER_BYTES + named;
            return Err(ProtocolError::Length { what: WHAT, found: bytes.len(), needed });
        }
        Self::new(header.client.get(), header.number.get(), header.pages.get(), payload.to_vec())
    }

    /// The hash after this request, from the one before it: over everything of the request but its
    /// magic, padded with zeros to whole words.
    #[must_use]
    pub fn extend(&self, hash: u64) -> u64 {
        let header = self.header();
        let words = header.as_bytes().get(request_at::CLIENT..).unwrap_or_default().chunks(8);
        words.chain(self.payload.chunks(8)).fold(hash, |hash, bytes| {
            let mut word = [0; 8];
            word.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
            mix(hash, u64::from_le_bytes(word))
        })
    }
}

const fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(HASH_FACTOR);
    hash ^ hash >> 32
}

fn check_magic(what: &'static str, found: U64, expected: u64) -> Result<(), ProtocolError> {
    let found = found.get();
    if found == expected { Ok(()) } else { Err(ProtocolError::Magic { what, found, expected }) }
}

/// An answer: the server has taken the request, and what it did to its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who asked.
    pub client: u64,
    /// Which of the client's requests it answers.
    pub number: u64,
    /// The state that the request was taken in.
    pub before: Tally,
    /// The state after it.
    pub after: Tally,
}

/// The state of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tally {
    /// Requests of all clients that were taken.
    pub count: u64,
    /// The hash over all of them, in the order in which they were taken.
    pub hash: u64,
}

impl Answer {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bytes = AnswerBytes {
            magic: ANSWER_MAGIC.into(),
            client: self.client.into(),
            number: self.number.into(),
            count_before: self.before.count.into(),
            hash_before: self.before.hash.into(),
            count_after: self.after.count.into(),
            hash_after: self.after.hash.into(),
        };
        bytes.as_bytes().to_vec()
    }

    /// The answer of these bytes.
    ///
    /// # Errors
    /// [`ProtocolError::Length`] and [`ProtocolError::Magic`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        const WHAT: &str = "an answer";
        let other = ProtocolError::Length { what: WHAT, found: bytes.len(), needed: ANSWER_BYTES };
        let Ok(answer) = AnswerBytes::read_from_bytes(bytes) else { return Err(other) };
        check_magic(WHAT, answer.magic, ANSWER_MAGIC)?;
        Ok(Self {
            client: answer.client.get(),
            number: answer.number.get(),
            before: Tally { count: answer.count_before.get(), hash: answer.hash_before.get() },
            after: Tally { count: answer.count_after.get(), hash: answer.hash_after.get() },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(payload: &[u8]) -> Request {
        Request::new(7, 3, 2, payload.to_vec()).unwrap()
    }

    #[test]
    fn every_bit_of_a_request_counts() {
        let whole = request(b"ledger and payload").extend(1);
        let others = [
            request(b"ledger and payloae").extend(1),
            request(b"ledger and payload\0").extend(1),
            request(b"ledger and payload").extend(2),
            Request::new(6, 3, 2, b"ledger and payload".to_vec()).unwrap().extend(1),
            Request::new(7, 4, 2, b"ledger and payload".to_vec()).unwrap().extend(1),
            Request::new(7, 3, 1, b"ledger and payload".to_vec()).unwrap().extend(1),
        ];
        assert!(others.iter().all(|other| *other != whole), "{whole:x}: {others:x?}");
        // What it is, so that nobody changes it alone.
        let first = [7, 3, 2_u64].iter().fold(1, |hash, word| mix(hash, *word));
        assert_eq!(request(b"").extend(1), first);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        assert_eq!(Request::new(1, 1, 0, vec![0; 1025]), Err(ProtocolError::Payload { found: 1025 }));
        assert_eq!(Request::new(1, 1, 65_537, vec![]), Err(ProtocolError::Pages { found: 65_537 }));
        let bytes = request(b"abc").encode();
        for cut in 0..bytes.len() {
            assert!(matches!(Request::decode(&bytes[..cut]), Err(ProtocolError::Length { .. })), "{cut}");
        }
        let mut long = bytes.clone();
        long.push(0);
        assert!(matches!(Request::decode(&long), Err(ProtocolError::Length { found: 36, needed: 35, .. })));
        let mut other = bytes.clone();
        other[0] ^= 1;
        assert!(matches!(Request::decode(&other), Err(ProtocolError::Magic { .. })));
        let mut huge = bytes;
        huge[28..32].fill(0xff);
        assert!(matches!(Request::decode(&huge), Err(ProtocolError::Payload { .. })));
        assert!(Answer::decode(&[0; ANSWER_BYTES]).is_err() && Answer::decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn bytes_and_back(numbers in any::<[u64; 6]>(), pages in 0..=REQUEST_PAGES_MAX, payload in prop::collection::vec(any::<u8>(), 0..1025)) {
            let [client, number, count_before, hash_before, count_after, hash_after] = numbers;
            let request = Request::new(client, number, pages, payload).unwrap();
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
            let (before, after) = (Tally { count: count_before, hash: hash_before }, Tally { count: count_after, hash: hash_after });
            let answer = Answer { client, number, before, after };
            prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }

        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let with_magic = [&REQUEST_MAGIC.to_le_bytes()[..], &bytes].concat();
            for bytes in [bytes, with_magic] {
                if let Ok(request) = Request::decode(&bytes) {
                    prop_assert_eq!(request.encode(), bytes);
                }
            }
        }
    }
}
