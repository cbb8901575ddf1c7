//! The wire between the two hosts: connections on which both ends are authenticated by
//! certificates, envelopes on them, first words and messages.
//!
//! `docs/fault-tolerance.md` says what is in the directory of certificates.

pub mod envelope;
pub mod hello;
mod names;
mod tls;
mod tls_error;
mod tls_init;
mod tls_stream;
pub mod word;

#[cfg(test)]
mod tests;

pub use tls::Tls;
pub use tls_error::TlsError;
pub use tls_init::{Made, TlsInitError, tls_init};
pub use tls_stream::{Shutdown, TlsStream};
