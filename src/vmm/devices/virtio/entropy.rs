//! The entropy device: random bytes from the host.

use std::io::Write;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::transport::Transport;
use super::virtio_device::{ANSWERS_PAGES, Handled, Request, VirtioDevice};
use crate::memory::MemoryError;
use crate::vmm::devices::parts::Entry;
use crate::vmm::devices::random;
use crate::vmm::devices::record::RecordName;

pub(in crate::vmm::devices) const ENTRY: Entry = Entry {
    name: "entropy",
    is_virtio: true,
    pages: ANSWERS_PAGES,
    make: |parts, virtio| Box::new(Transport::new(Box::new(Entropy), RecordName::only("entropy", 1), parts, virtio)),
};

/// The most bytes of an answer. A driver asks again for more.
const ANSWER_BYTES_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Entropy;

impl VirtioDevice for Entropy {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn request_bytes_max(&self) -> u64 {
        64 << 10
    }

    fn pages_written(&self, _readable_bytes: u64) -> u64 {
        0
    }

    fn handle(&mut self, _queue: usize, mut request: Request<'_>, _features: u64) -> Result<Handled, MemoryError> {
        let mut bytes = vec![0; request.writable.available_bytes().min(ANSWER_BYTES_MAX)];
        if random::fill(&mut bytes).is_err() {
            return Ok(Handled::Answered(0));
        }
        // There is room: it fails at nothing.
        let written = request.writable.write_all(&bytes);
        Ok(Handled::Answered(written.map_or(0, |()| u32::try_from(bytes.len()).unwrap_or_default())))
    }
}
