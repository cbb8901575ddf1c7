//! The engine on a simulated tracker: no KVM, no clock, no disk.
