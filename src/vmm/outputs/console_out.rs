//! The console's output, where it waits for its epoch.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::outlet::{Bounds, Outlet};

/// What waits at most. A serial port has nothing to tell its guest with that it is to wait: what
/// comes more is lost, as on a line that is not listened to.
const BOUNDS: Bounds = Bounds { packets: usize::MAX, bytes: 4 << 20 };

/// Writes to an outlet.
#[derive(Debug)]
pub(in crate::vmm) struct ConsoleOut {
    outlet: Arc<Outlet>,
    overran: AtomicBool,
}

impl ConsoleOut {
    /// An outlet for a console.
    pub(in crate::vmm) fn outlet() -> Arc<Outlet> {
        Arc::new(Outlet::new(BOUNDS, true))
    }

    pub(in crate::vmm) const fn new(outlet: Arc<Outlet>) -> Self {
        Self { outlet, overran: AtomicBool::new(false) }
    }
}

impl Write for ConsoleOut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.outlet.append(bytes) < bytes.len() && !self.overran.swap(true, Ordering::Relaxed) {
            tracing::warn!(bytes = BOUNDS.bytes, "the guest writes more to its console than may wait: some of it is lost");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
