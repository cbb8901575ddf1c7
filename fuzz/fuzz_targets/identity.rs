//! See `tests/fuzz/decoders/identity.rs`.
#![no_main]

slackwater_fuzz::target!("identity");
