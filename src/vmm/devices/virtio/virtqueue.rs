//! One queue of a device: its three parts in guest memory, and how far it is.

use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::virtio_device::{QUEUE_SIZE, QueueUse};
use crate::machine::StateError;
use crate::memory::{GuestMemory, GuestRam, MemoryError};
use crate::vmm::devices::record::Fields;

/// Bytes of a descriptor; of the available ring besides its entries, and of an entry; of the used
/// ring.
const DESCRIPTOR_BYTES: u64 = 16;
const AVAILABLE_BYTES: (u64, u64) = (6, 2);
const USED_BYTES: (u64, u64) = (6, 8);
/// Where the entries of the used ring begin, and where its index is.
const USED_ENTRIES: u64 = 4;
const USED_INDEX: u64 = 2;
/// A used ring of this size lies in at most so many pages.
pub(super) const USED_PAGES: u64 = 2;
/// The flag of the available ring by which a driver asks for no interrupts.
const NO_INTERRUPT: u16 = 1;

pub(super) type Chain<'m> = DescriptorChain<&'m GuestRam>;

#[derive(Debug)]
pub(super) struct Virtqueue {
    pub(super) queue: Queue,
    pub(super) purpose: QueueUse,
}

impl Virtqueue {
    pub(super) fn new(purpose: QueueUse) -> Self {
        Self { queue: Queue::new(QUEUE_SIZE).expect("a power of two up to 32768"), purpose }
    }

    /// Brings its pages.
    pub(super) fn bring(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        let entries = u64::from(self.queue.size());
        let of = |(fixed, each)| fixed + entries * each;
        memory.bring_range(self.queue.desc_table(), entries * DESCRIPTOR_BYTES)?;
        memory.bring_range(self.queue.avail_ring(), of(AVAILABLE_BYTES))?;
        memory.bring_range(self.queue.used_ring(), of(USED_BYTES))
    }

    /// The next request, which counts as taken.
    pub(super) fn take<'m>(&mut self, ram: &'m GuestRam) -> Result<Option<Chain<'m>>, QueueError> {
        Ok(self.queue.iter(ram)?.next())
    }

    /// How many the driver has ever added, modulo 2^16.
    pub(super) fn offered(&self, ram: &GuestRam) -> Result<u16, QueueError> {
        self.queue.avail_idx(ram, Ordering::Acquire).map(|index| index.0)
    }

    /// So many of the requests that were taken last were not.
    pub(super) fn put_back(&mut self, count: usize) {
        (0..count).for_each(|_| self.queue.go_to_previous_position());
    }

    /// Gives answers back, all at once: a driver that looks meanwhile sees all of them or none.
    pub(super) fn publish(&mut self, ram: &GuestRam, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let mut index = self.queue.next_used();
        let size = self.queue.size().max(1);
        let failed = |_| QueueError::FindMemoryRegion;
        for (head, bytes) in used {
            let at = self.queue.used_ring() + USED_ENTRIES + u64::from(index % size) * USED_BYTES.1;
            ram.write_obj(u64::from(*head) | u64::from(*bytes) << 32, GuestAddress(at)).map_err(failed)?;
            index = index.wrapping_add(1);
        }
        ram.store(index.to_le(), GuestAddress(self.queue.used_ring() + USED_INDEX), Ordering::Release).map_err(failed)?;
        self.queue.set_next_used(index);
        Ok(())
    }

    /// Whether its driver asks for interrupts.
    pub(super) fn wants_interrupts(&self, ram: &GuestRam) -> bool {
        // What was used is in memory before this is read: a driver that allows interrupts looks at
        // the used ring afterwards.
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags = ram.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Acquire);
        flags.map_or(true, |flags| u16::from_le(flags) & NO_INTERRUPT == 0)
    }

    pub(super) fn save(&self, data: &mut Vec<u8>) {
        let QueueState { next_avail, next_used, size, ready, desc_table, avail_ring, used_ring, .. } = self.queue.state();
        for field in [size, next_avail, next_used, u16::from(ready)] {
            data.extend(field.to_le_bytes());
        }
        for field in [desc_table, avail_ring, used_ring] {
            data.extend(field.to_le_bytes());
        }
    }

    pub(super) fn restored(purpose: QueueUse, fields: &mut Fields<'_>) -> Result<Self, StateError> {
        let [size, next_avail, next_used] = [fields.u16()?, fields.u16()?, fields.u16()?];
        let ready = fields.wide_flag()?;
        let [desc_table, avail_ring, used_ring] = [fields.u64()?, fields.u64()?, fields.u64()?];
        let state = QueueState {
            max_size: QUEUE_SIZE,
            next_avail,
            next_used,
            event_idx_enabled: false,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        };
        let queue = Queue::try_from(state).map_err(|_| fields.malformed("a queue that there can be"))?;
        Ok(Self { queue, purpose })
    }
}
