//! See `tests/fuzz/decoders/net_frames.rs`.
#![no_main]

slackwater_fuzz::target!("net_frames");
