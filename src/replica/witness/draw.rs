//! Names that nobody else has.

use std::io;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

/// 32 hexadecimal digits, drawn at random.
pub(super) fn digits() -> io::Result<String> {
    let mut bytes = [0; 16];
    retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}
