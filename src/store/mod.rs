//! A chain of checkpoints in a directory.

pub mod verify;
