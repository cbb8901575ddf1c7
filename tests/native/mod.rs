//! Tests on real KVM.

mod audit;
mod bench;
mod bound;
mod branch;
mod capture_writes;
mod export;
mod flood;
pub(crate) mod follow;
mod full;
mod hosts;
mod kill;
mod lazy;
mod ledger;
mod limits;
mod linux;
mod linux_core;
mod linux_cpu;
mod linux_disk;
mod linux_report;
mod linux_restore;
mod linux_time;
mod outcome;
mod pace;
mod restore;
mod rollback;
mod touch;
mod upkeep;
