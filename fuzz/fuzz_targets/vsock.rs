//! See `tests/fuzz/decoders/vsock.rs`.
#![no_main]

slackwater_fuzz::target!("vsock");
