//! Tests on real KVM.

mod audit;
mod bench;
mod bound;
pub(crate) mod follow;
mod full;
mod kill;
mod lazy;
mod pace;
mod restore;
mod touch;
