//! What a value in the register's place means for who asked. Pure.

use super::fault::{WitnessFault, excerpt};
use super::{Swapped, WitnessError};
use crate::replica::register::{Generation, Register};

/// The most bytes that are read where a register is expected, which has some 150.
pub(super) const REGISTER_BYTES_MAX: usize = 4096;

/// Reads a register that is written as [`Register::to_json`] writes it and not otherwise: storages
/// compare bytes.
pub(super) fn register(place: &str, bytes: &[u8]) -> Result<Register, WitnessFault> {
    let wrong = |reason: String| WitnessFault::NotARegister { place: place.to_owned(), reason };
    if bytes.len() > REGISTER_BYTES_MAX {
        return Err(wrong(format!("it has more than {REGISTER_BYTES_MAX} bytes")));
    }
    let register = Register::from_json(bytes).map_err(|error| wrong(format!("{error}, in `{}`", excerpt(bytes))))?;
    if register.to_json().as_bytes() != bytes {
        return Err(wrong(format!("it was not written by this program: `{}`", excerpt(bytes))));
    }
    if register.generation == Generation::NONE {
        return Err(wrong("generations begin with 1".to_owned()));
    }
    Ok(register)
}

/// Holds the caller to what [`Witness::swap`](super::Witness::swap) asks of it.
pub(super) fn check_step(expected: Option<&Register>, new: &Register) -> Result<(), WitnessError> {
    let before = expected.map_or(Generation::NONE, |register| register.generation);
    if before.next() == Some(new.generation) {
        Ok(())
    } else {
        Err(WitnessFault::WrongGeneration { expected: before, new: new.generation }.refused())
    }
}

/// What a swap came to that surely did not succeed by its last attempt, where `found` was read
/// behind that.
///
/// A value never comes back once it was replaced, for its nonce was drawn for it alone. So a value
/// that is not the expected one says that no attempt that is still on its way can succeed. The
/// expected value says nothing.
pub(super) fn settle(
    place: &str,
    expected: Option<&Register>,
    new: &Register,
    found: Option<Register>,
) -> Result<Swapped, WitnessError> {
    if found.as_ref() == Some(new) {
        Ok(Swapped::Won)
    } else if found.as_ref() == expected {
        Err(WitnessFault::StillExpected { place: place.to_owned() }.unknown())
    } else {
        Ok(Swapped::Other(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::register::{Holder, Incarnation, Nonce};

    fn at(generation: u64) -> Register {
        let nonce = Nonce(u128::from(generation) << 7);
        Register { generation: Generation(generation), holder: Holder::Solo(Incarnation(1)), nonce }
    }

    #[test]
    fn only_what_this_program_writes_is_a_register() {
        let json = at(3).to_json();
        assert_eq!(register("x", json.as_bytes()).unwrap(), at(3));
        let long = format!("{json}{}", " ".repeat(REGISTER_BYTES_MAX));
        for other in ["", "{}", &format!("{json}\n"), &json.replace(':', ": "), &at(0).to_json(), &long] {
            let error = register("the/place", other.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("the/place holds no register: "), "{error}");
            assert!(error.len() < 1000, "{error}");
        }
    }

    #[test]
    fn a_swap_is_to_the_next_generation() {
        assert!(check_step(None, &at(1)).is_ok());
        assert!(check_step(Some(&at(1)), &at(2)).is_ok());
        let last = at(u64::MAX);
        for (expected, new) in [(None, at(2)), (Some(at(1)), at(1)), (Some(at(1)), at(3)), (Some(last), at(0))] {
            assert!(matches!(check_step(expected.as_ref(), &new), Err(WitnessError::Refused(_))), "{expected:?} {new:?}");
        }
    }

    #[test]
    fn the_expected_value_is_never_a_lost_swap() {
        let new = at(2);
        assert_eq!(settle("x", Some(&at(1)), &new, Some(new)).unwrap(), Swapped::Won);
        assert_eq!(settle("x", Some(&at(1)), &new, Some(at(3))).unwrap(), Swapped::Other(Some(at(3))));
        assert_eq!(settle("x", Some(&at(1)), &new, None).unwrap(), Swapped::Other(None));
        for expected in [None, Some(at(1))] {
            let unknown = settle("x", expected.as_ref(), &new, expected);
            assert!(matches!(unknown, Err(WitnessError::Unknown(_))), "{unknown:?}");
        }
    }
}
