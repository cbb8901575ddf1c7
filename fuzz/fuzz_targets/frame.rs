//! See `tests/fuzz/decoders/frame.rs`.
#![no_main]

slackwater_fuzz::target!("frame");
