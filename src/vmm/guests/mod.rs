//! The guests of the reference VMM: a stock Linux kernel ([`linux`]), and three small programs of
//! its own, [`churn`], [`touch`] and [`ledger`].

pub mod churn;
pub mod ledger;
pub mod linux;
pub mod touch;

mod flat;
mod guest;
mod options;
mod ports;
mod random;

pub use flat::{FlatError, FlatImage, Segment};
pub use guest::{GuestSpec, GuestSpecError};
pub use options::OptionsError;
pub use ports::{COMMAND_CHECK, GuestExit};
