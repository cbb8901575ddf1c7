//! Tests on real KVM.
