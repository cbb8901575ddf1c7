//! See `tests/fuzz/decoders/net_device.rs`.
#![no_main]

slackwater_fuzz::target!("net_device");
