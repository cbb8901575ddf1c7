//! Numbers that nobody else draws.

use std::io;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

/// 16 random bytes, as a number.
///
/// # Errors
/// A kernel that gives none.
pub(crate) fn number() -> io::Result<u128> {
    let mut bytes = [0; 16];
    retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    Ok(u128::from_le_bytes(bytes))
}

/// The same for a state machine, whose host has drawn numbers before.
///
/// # Panics
/// Where the kernel gives none any more: a number that somebody else may have must not be used.
pub(crate) fn another() -> u128 {
    number().unwrap_or_else(|error| unreachable!("getrandom without flags waits until it can: {error}"))
}
