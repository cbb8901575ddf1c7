//! The register outside both hosts: a [`Witness`] keeps it. A lock that expires is no witness, for
//! its holder may be stopped just when it does.

mod answer;
mod bounded;
pub mod etcd;
pub mod exec;
mod fault;
pub mod file;
mod http;
pub mod manual;
pub mod s3;
mod spec;

use std::fmt;

pub use fault::WitnessFault;
pub use spec::{WitnessSpec, WitnessSpecError};

use super::register::Register;

/// What a swap that was answered came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It was carried out, by this call or by one before.
    Won,
    /// It was not: the register has another value than was expected; none where nobody has written
    /// it.
    Other(Option<Register>),
}

/// Why a witness gave no answer.
#[derive(Debug)]
pub enum WitnessError {
    /// The request surely was not and will not be carried out.
    Refused(Box<dyn std::error::Error + Send + Sync>),
    /// It may have been carried out, or be carried out later.
    Unknown(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for WitnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(_) => "the witness could not be asked",
            Self::Unknown(_) => "the witness gave no answer",
        })
    }
}

impl std::error::Error for WitnessError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let (Self::Refused(source) | Self::Unknown(source)) = self;
        Some(source.as_ref())
    }
}

/// Keeps one [`Register`]. Every call ends within a time that was chosen when it was made.
///
/// What is asked of whatever stands behind it: a value that was read or won stays until a swap
/// replaces it, through crashes and power cuts; all see swaps in one order. Nothing can make up for
/// one that forgets.
pub trait Witness: Send {
    /// What the register says; none where nobody has written it.
    ///
    /// # Errors
    /// [`WitnessError`]; a value that is no register is [`WitnessError::Refused`].
    fn read(&mut self) -> Result<Option<Register>, WitnessError>;

    /// Writes `new` where the register has `expected` now. `new` is of the generation behind that
    /// of `expected`, which the caller promises.
    ///
    /// It may be repeated with the same values: a swap that was carried out and whose answer was
    /// lost is [`Swapped::Won`] for as long as its value stays.
    ///
    /// # Errors
    /// [`WitnessError`].
    fn swap(&mut self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError>;
}
