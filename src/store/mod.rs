//! A chain of checkpoints in a directory.
