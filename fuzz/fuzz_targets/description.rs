//! See `tests/fuzz/decoders/description.rs`.
#![no_main]

slackwater_fuzz::target!("description");
