//! Opens the link that a network device is connected to.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::link::{Link, LinkError};
use super::net_spec::NetBackend;
use super::{tap, unix_link};

impl Link {
    /// Opens the link. Its end is asked for by a write to the eventfd `end`, which nobody may read.
    ///
    /// # Errors
    /// [`LinkError`].
    pub(in crate::vmm) fn open(backend: &NetBackend, end: &Arc<OwnedFd>) -> Result<Self, LinkError> {
        match backend {
            NetBackend::Tap { name } => tap::open(name, end),
            NetBackend::Unix { path } => unix_link::open(path, end),
        }
    }
}
