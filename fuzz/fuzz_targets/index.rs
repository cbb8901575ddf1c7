//! See `tests/fuzz/decoders/index.rs`.
#![no_main]

slackwater_fuzz::target!("index");
