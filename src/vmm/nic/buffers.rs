//! Memory of packets, used again.

use std::sync::Mutex;

use crate::lock::lock;

/// So many are kept, of packets of usual sizes.
const KEPT: usize = 512;
const BYTES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(in crate::vmm) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer.
    pub(in crate::vmm) fn take(&self) -> Vec<u8> {
        lock(&self.0).pop().unwrap_or_default()
    }

    /// Takes one back.
    pub(in crate::vmm) fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = lock(&self.0);
        if kept.len() < KEPT && buffer.capacity() <= BYTES_MAX {
            kept.push(buffer);
        }
    }
}
