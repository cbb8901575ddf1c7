//! The whole thing on real KVM.
