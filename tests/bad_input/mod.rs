//! Bad input to the command: each gives its exit code and a message that says what and where, and changes nothing.

mod flips;
mod host;
mod options;
mod stores;
