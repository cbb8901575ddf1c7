//! Both ends, the witness and the network under a seed: loss, delay, reordering, duplication,
//! one-way cuts, stopped hosts, clocks that run at half and at double speed, kills with and without
//! the disk, answers of the witness that are lost, and swaps that are carried out long after.
//!
//! `world` has what is true of the whole and what nobody inside it knows: who descends from whom,
//! what was released, what the register really says. Its checks are the rules. `host` is one
//! machine with its disk, `register` the witness, `run` the order of events.

mod event;
mod faults;
mod host;
mod network;
mod register;
mod run;
mod setting;
mod tests;
mod witness;
mod world;
