//! Bad input to the command: each gives its exit code and a message that says what and where, and
//! changes nothing.

mod flips;
mod host;
pub(crate) mod linux;
mod options;
mod stores;
