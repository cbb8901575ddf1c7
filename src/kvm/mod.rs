//! The kernel's ABI and nothing else.
