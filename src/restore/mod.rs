//! From a chain back to a machine.
