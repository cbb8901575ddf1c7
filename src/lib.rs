//! Slackwater checkpoints KVM virtual machines, driven by KVM's dirty ring.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking"))]

mod clock;
mod lock;

mod xxh3;

pub mod page;

pub mod parked;

#[cfg(feature = "kvm")]
pub mod kvm;

#[cfg(feature = "kvm")]
pub mod memory;

#[cfg(feature = "kvm")]
pub mod machine;

#[cfg(feature = "kvm")]
pub mod track;

pub mod format;

pub mod epoch;

pub mod store;

pub mod restore;

#[cfg(feature = "vmm")]
pub mod vmm;

#[cfg(feature = "bench")]
pub mod bench;

#[cfg(feature = "cli")]
pub mod cli;
