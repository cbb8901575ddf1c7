//! The kernel's ABI and nothing else.

pub mod host;
pub mod xsave;
