//! Saved CPU, VM and device state: its types, capture and apply, and their order as data.

mod record;

pub use record::StateRecord;
