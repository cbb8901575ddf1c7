//! The network of a machine: its interfaces, and the links that they are connected to.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;

use super::error::{VmmError, system};
use super::links::{Link, Mac, NetBackend, NetSpec};
use super::nic::{Delays, Nic, OutputDelay};
use super::outputs::Outputs;

/// An interface, and its link.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) nic: Arc<Nic>,
    pub(super) backend: NetBackend,
    pub(super) link: Link,
}

/// All of a machine's.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) connected: Vec<Connected>,
    nics: Vec<Arc<Nic>>,
    /// Is written to for the links' end.
    pub(super) end: Arc<OwnedFd>,
}

/// What went over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct NetworkReport {
    /// Packets of the guest that left.
    pub sent_packets: u64,
    /// Packets that the guest was given.
    pub received_packets: u64,
    /// Packets that no buffer of the guest's driver had room for, or that a link does not take.
    pub dropped_packets: u64,
    /// From the guest's sending a packet to its leaving, in microseconds.
    pub output_delay_us: OutputDelay,
}

impl Network {
    /// Opens the links of `nets`, each of which has an address afterwards. `holds`: what leaves
    /// waits until its epoch is released.
    ///
    /// # Errors
    /// [`VmmError::Link`], [`VmmError::System`].
    pub(super) fn open(nets: &mut [NetSpec], holds: bool) -> Result<Self, VmmError> {
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from).map_err(system("eventfd"))?);
        let mut connected = Vec::with_capacity(nets.len());
        for net in nets {
            let link = Link::open(&net.backend, &end)?;
            let mac = match net.mac {
                Some(mac) => mac,
                None => *net.mac.insert(Mac::random().map_err(system("getrandom"))?),
            };
            let nic = Arc::new(Nic::new(mac, net.mtu.or(link.mtu), link.has_offloads, holds));
            nic.inlet.set_up(true);
            connected.push(Connected { nic, backend: net.backend.clone(), link });
        }
        let nics = connected.iter().map(|it| it.nic.clone()).collect();
        Ok(Self { connected, nics, end })
    }

    pub(super) fn nics(&self) -> &[Arc<Nic>] {
        &self.nics
    }

    /// Where packets leave.
    pub(super) fn outputs(&self) -> Outputs {
        self.nics.iter().fold(Outputs::default(), |outputs, nic| outputs.with(nic.outlet.clone()))
    }
}

impl NetworkReport {
    /// None of a machine without interfaces.
    pub(super) fn of(nics: &[Arc<Nic>]) -> Option<Self> {
        let (sent_packets, output_delay_us) = Delays::of(nics.iter().map(|nic| nic.delays()));
        let (received_packets, dropped_packets) =
            nics.iter().map(|nic| nic.received()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (!nics.is_empty()).then_some(Self { sent_packets, received_packets, dropped_packets, output_delay_us })
    }
}
