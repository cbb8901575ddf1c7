//! What keeps the register of who goes on: every witness by the same test, and each one's failures.

mod conformance;
mod etcd;
mod exec;
mod file;
mod http_server;
mod memory;
mod s3;
pub(crate) mod servers;
