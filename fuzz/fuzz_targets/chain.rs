//! See `tests/fuzz/decoders/chain.rs`.
#![no_main]

slackwater_fuzz::target!("chain");
