//! See `tests/fuzz/decoders/state.rs`.
#![no_main]

slackwater_fuzz::target!("state");
