//! A message of the protocol as bytes.

use crate::page::EpochId;
use crate::replica::proto::{Body, EpochKey, Message};
use crate::replica::register::{Generation, Holder, Incarnation, Nonce, Register};

/// Bytes of a message: two incarnations, generation, holder (a kind and two incarnations), nonce,
/// body (a kind, an epoch and an identity). Little-endian; what a kind does not use is zero.
pub const WORD_BYTES: usize = 16 + 16 + 8 + 1 + 32 + 16 + 1 + 8 + 16;

const SOLO: u8 = 1;
const PAIRED: u8 = 2;
const BEAT: u8 = 1;
const HOLDS: u8 = 2;

/// The bytes of a message.
#[must_use]
pub fn encode_word(message: &Message) -> Vec<u8> {
    let Message { from, to, register, body } = message;
    let (kind, one, other) = match register.holder {
        Holder::Solo(solo) => (SOLO, solo.0, 0),
        Holder::Paired(primary, standby) => (PAIRED, primary.0, standby.0),
    };
    let (says, key) = match body {
        Body::Beat => (BEAT, EpochKey::default()),
        Body::Holds(key) => (HOLDS, *key),
    };
    let mut bytes = Vec::with_capacity(WORD_BYTES);
    bytes.extend(from.0.to_le_bytes());
    bytes.extend(to.0.to_le_bytes());
    bytes.extend(register.generation.0.to_le_bytes());
    bytes.push(kind);
    bytes.extend(one.to_le_bytes());
    bytes.extend(other.to_le_bytes());
    bytes.extend(register.nonce.0.to_le_bytes());
    bytes.push(says);
    bytes.extend(key.epoch.0.to_le_bytes());
    bytes.extend(key.identity.to_le_bytes());
    bytes
}

/// Reads what [`encode_word`] made; none for anything else.
#[must_use]
pub fn decode_word(bytes: &[u8]) -> Option<Message> {
    let mut fields = Fields(bytes);
    let (from, to) = (Incarnation(fields.u128()?), Incarnation(fields.u128()?));
    let generation = Generation(fields.u64()?);
    let (kind, one, other) = (fields.u8()?, fields.u128()?, fields.u128()?);
    let holder = match kind {
        SOLO if other == 0 => Holder::Solo(Incarnation(one)),
        PAIRED => Holder::Paired(Incarnation(one), Incarnation(other)),
        _ => return None,
    };
    let nonce = Nonce(fields.u128()?);
    let (says, key) = (fields.u8()?, EpochKey { epoch: EpochId(fields.u64()?), identity: fields.u128()? });
    let body = match says {
        BEAT if key == EpochKey::default() => Body::Beat,
        HOLDS => Body::Holds(key),
        _ => return None,
    };
    fields.0.is_empty().then_some(Message { from, to, register: Register { generation, holder, nonce }, body })
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_nothing_else_is_one() {
        let holders = [Holder::Solo(Incarnation(3)), Holder::Paired(Incarnation(3), Incarnation(4))];
        let bodies = [Body::Beat, Body::Holds(EpochKey { epoch: EpochId(9), identity: 10 })];
        for (holder, body) in holders.into_iter().flat_map(|holder| bodies.map(|body| (holder, body))) {
            let register = Register { generation: Generation(5), holder, nonce: Nonce(6) };
            let message = Message { from: Incarnation(1), to: Incarnation(2), register, body };
            let bytes = encode_word(&message);
            assert_eq!((bytes.len(), decode_word(&bytes)), (WORD_BYTES, Some(message)));
            assert_eq!(decode_word(&bytes[1..]), None);
            assert_eq!(decode_word(&[&bytes[..], &[0]].concat()), None);
            for at in [40, 89] {
                let mut bad = bytes.clone();
                bad[at] = 9;
                assert_eq!(decode_word(&bad), None, "{at}");
            }
        }
    }
}
