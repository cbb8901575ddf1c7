//! Slackwater checkpoints KVM virtual machines, driven by KVM's dirty ring.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking"))]

pub mod page;

pub mod parked;

pub mod kvm;

pub mod memory;

pub mod machine;

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
