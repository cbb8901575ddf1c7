//! Network interfaces: what lies between a machine's virtio-net devices and the host's links.

mod buffers;
mod delays;
mod inlet;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::links::Mac;
use super::outputs::{Bounds, Outlet};
use buffers::Buffers;
pub(in crate::vmm) use delays::Delays;
pub use delays::OutputDelay;

pub(super) use inlet::Inlet;

/// What waits of one interface until its epoch is released.
const BOUNDS: Bounds = Bounds { packets: 4096, bytes: 16 << 20 };

/// A network interface of a machine: the device is on one side of it, the threads of its link on
/// the other.
#[derive(Debug)]
pub(in crate::vmm) struct Nic {
    pub(in crate::vmm) mac: Mac,
    /// The link's, where it is known.
    pub(in crate::vmm) mtu: Option<u16>,
    /// The link computes checksums and cuts segments.
    pub(in crate::vmm) has_offloads: bool,
    pub(in crate::vmm) inlet: Inlet,
    pub(in crate::vmm) outlet: Arc<Outlet>,
    /// Of packets in both directions.
    pub(in crate::vmm) buffers: Buffers,
    /// The features that the driver has accepted.
    features: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    delays: Delays,
}

impl Nic {
    /// `holds`: packets wait until their epoch is released.
    pub(in crate::vmm) fn new(mac: Mac, mtu: Option<u16>, has_offloads: bool, holds: bool) -> Self {
        Self {
            mac,
            mtu,
            has_offloads,
            inlet: Inlet::default(),
            outlet: Arc::new(Outlet::new(BOUNDS, holds)),
            buffers: Buffers::default(),
            features: AtomicU64::new(0),
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            delays: Delays::new(),
        }
    }

    /// The driver has accepted these features.
    pub(in crate::vmm) fn agree(&self, features: u64) {
        self.features.store(features, Ordering::Release);
    }

    pub(in crate::vmm) fn features(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }

    /// The guest was given a packet, or could not be given one.
    pub(in crate::vmm) fn count_received(&self, given: bool) {
        let count = if given { &self.received } else { &self.dropped };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// So many packets were dropped by the link.
    pub(in crate::vmm) fn count_dropped(&self, packets: u64) {
        self.dropped.fetch_add(packets, Ordering::Relaxed);
    }

    /// Packets that the guest was given, and those that it could not be given
    /// or that the link dropped.
    pub(in crate::vmm) fn received(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }

    /// A packet of the guest has left, so long after the guest sent it.
    pub(in crate::vmm) fn count_sent(&self, waited: Duration) {
        self.delays.record(waited);
    }

    pub(in crate::vmm) const fn delays(&self) -> &Delays {
        &self.delays
    }
}
