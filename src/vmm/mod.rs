//! The reference VMM.
