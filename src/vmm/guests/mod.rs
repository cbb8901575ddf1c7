//! The guests of the reference VMM: a stock Linux kernel ([`linux`]), and two small programs of its
//! own, [`churn`] and [`touch`].

pub mod churn;
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
