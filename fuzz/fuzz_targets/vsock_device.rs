//! See `tests/fuzz/decoders/vsock_device.rs`.
#![no_main]

slackwater_fuzz::target!("vsock_device");
