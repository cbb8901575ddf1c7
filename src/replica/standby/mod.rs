//! The host that follows.

mod following;
pub mod image;
pub mod incoming;
#[cfg(test)]
mod incoming_tests;
pub mod inherited;
pub mod own_chain;
pub mod serve;
