//! The engine on a simulated tracker: no KVM, no clock, and but for the audits no disk.
//!
//! The oracle of all tests is [`World::oracle`](harness::World::oracle): each epoch of the chain,
//! decoded, is the guest's memory and state at that epoch's cut.

mod behind;
mod changes;
mod durability;
mod failures;
mod harness;
mod model;
mod rollback;
mod rounds;
mod sinks;
mod starts;
mod tracking;
mod triggers;
mod writes;
