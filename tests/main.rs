//! One integration binary: linked once. Tests whose path contains `native` need `/dev/kvm`.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::allow_attributes, reason = "a test fails by panicking")]

mod bad_input;
mod branches;
mod dist;
mod engine;
mod export;
mod fixtures;
mod fuzz;
mod house;
mod ledger;
mod limits;
mod native;
mod place;
mod support;
mod tls_init;
mod witness;
