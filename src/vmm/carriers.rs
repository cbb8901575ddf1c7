//! The threads that carry packets between a machine's interfaces and the host's links.
//!
//! For each interface one receives and one sends. The one that receives puts packets into guest
//! memory itself, where no cut is under way: a guest that looks at its queue sees them without an
//! exit. The one that sends waits for released packets, and takes no lock of the cut.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::attention::Attention;
use super::links::{HEADER_BYTES, Link, LinkReceiver, LinkSender, NetBackend, Offloads};
use super::network::{Connected, Network, NetworkReport};
use super::nic::Nic;
use super::outputs::Outlet;
use super::shared::Shared;
use super::vsock_side::VsockSide;
use crate::lock::lock;

/// Room for a packet of the largest size.
const PACKET_BYTES_MAX: usize = HEADER_BYTES + 65_550;
/// How often a link that is gone is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long packets that may leave have to do so at the end of a run.
const LEAVING: Duration = Duration::from_secs(1);

/// The threads.
#[derive(Debug, Default)]
pub(super) struct Carriers {
    attention: Arc<Attention>,
    nics: Vec<Arc<Nic>>,
    console: Option<Arc<Outlet>>,
    vsock: Option<Arc<VsockSide>>,
    end: Option<Arc<OwnedFd>>,
    senders: Vec<JoinHandle<()>>,
    receivers: Vec<JoinHandle<()>>,
    attendant: Option<JoinHandle<()>>,
}

/// Where an interface's packets go now: nowhere while the link is gone.
type Sending = Arc<Mutex<Option<Box<dyn LinkSender>>>>;

impl Carriers {
    /// Starts the threads of `network`, of the machine that runs, of its console where that waits,
    /// and of its socket device.
    ///
    /// # Errors
    /// A thread can't be started.
    pub(super) fn start(
        shared: &Arc<Shared>,
        network: Network,
        console: Option<Arc<Outlet>>,
        vsock: Option<Arc<VsockSide>>,
        attention: Arc<Attention>,
    ) -> io::Result<Self> {
        let (nics, end) = (network.nics().to_vec(), Some(network.end.clone()));
        let mut carriers = Self { nics, end, console, vsock, attention, ..Self::default() };
        if let Some(outlet) = carriers.console.clone() {
            let thread = Builder::new().name("slackwater-out".to_owned()).spawn(move || print(&outlet));
            carriers.senders.push(thread?);
        }
        if network.connected.is_empty() && carriers.vsock.is_none() {
            return Ok(carriers);
        }
        let machine = shared.clone();
        carriers.attention.begin(move || machine.attend_beside());
        if let Some(vsock) = carriers.vsock.clone() {
            let attention = carriers.attention.clone();
            let thread = Builder::new().name("slackwater-vsock-tx".to_owned()).spawn(move || vsock.carry(&attention));
            carriers.senders.push(thread?);
        }
        for (Connected { nic, backend, link }, index) in network.connected.into_iter().zip(0_u32..) {
            let sending: Sending = Arc::new(Mutex::new(Some(link.sender)));
            let (attention, out, to) = (carriers.attention.clone(), nic.clone(), sending.clone());
            let thread = Builder::new().name(format!("slackwater-tx-{index}")).spawn(move || send(&out, &to, &attention));
            carriers.senders.push(thread?);
            let receiving = Receiving { nic, backend, end: network.end.clone(), sending, attention: carriers.attention.clone() };
            let thread = Builder::new().name(format!("slackwater-rx-{index}")).spawn(move || receiving.run(link.receiver));
            carriers.receivers.push(thread?);
        }
        let attention = carriers.attention.clone();
        let thread = Builder::new().name("slackwater-attend".to_owned()).spawn(move || attention.wait_on());
        carriers.attendant = Some(thread?);
        Ok(carriers)
    }

    /// The machine was halted: nobody looks after its devices any more.
    pub(super) fn end_input(&self) {
        self.attention.end();
        self.nics.iter().for_each(|nic| nic.inlet.end());
    }

    /// Lets what may leave go, for a moment, and ends the threads.
    pub(super) fn finish(mut self) -> Option<NetworkReport> {
        self.nics.iter().map(|nic| &nic.outlet).chain(&self.console).for_each(|outlet| outlet.end());
        self.vsock.iter().for_each(|vsock| vsock.outlet.end());
        let until = Instant::now() + LEAVING;
        while Instant::now() < until && self.senders.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(end) = &self.end {
            // It fails only where the counter is full: then the threads are awake.
            let _ = rustix::io::write(end, &1_u64.to_le_bytes());
        }
        let threads = self.senders.drain(..).chain(self.receivers.drain(..)).chain(self.attendant.take());
        for thread in threads {
            if thread.join().is_err() {
                tracing::warn!("a thread of a network device panicked");
            }
        }
        self.vsock.iter().for_each(|vsock| vsock.close());
        NetworkReport::of(&self.nics)
    }
}

/// Sends what may leave. While the link is gone it is lost, as on a cable that was pulled.
fn send(nic: &Nic, sending: &Sending, attention: &Attention) {
    let mut agreed = None;
    while let Some(packet) = nic.outlet.next() {
        let mut sending = lock(sending);
        if let Some(sender) = &mut *sending {
            let features = nic.features();
            if nic.has_offloads && agreed != Some(features) {
                if let Err(error) = sender.set_offloads(offloads(features)) {
                    tracing::warn!(%error, "the link does not take what the guest's driver agreed on");
                }
                agreed = Some(features);
            }
            match (sender.send(&packet.output), packet.waited) {
                (Ok(()), Some(waited)) => nic.count_sent(waited),
                (Ok(()), None) => {}
                (Err(error), _) => tracing::debug!(%error, "a packet is lost"),
            }
        } else {
            agreed = None;
        }
        drop(sending);
        nic.buffers.put(packet.output);
        if packet.was_full {
            attention.alarm.wake();
        }
    }
    nic.count_dropped(lock(sending).as_ref().map_or(0, |sender| sender.dropped()));
}

/// Prints what the guest wrote to its console.
fn print(outlet: &Outlet) {
    let mut stdout = io::stdout();
    while let Some(text) = outlet.next() {
        // A reader of it that went away is no reason to end.
        let _ = stdout.write_all(&text.output).and_then(|()| stdout.flush());
    }
}

/// What the guest's driver takes.
fn offloads(features: u64) -> Offloads {
    use virtio_bindings::virtio_net::{
        VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    };
    let has = |bit: u32| features & 1 << bit != 0;
    Offloads {
        checksum: has(VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(VIRTIO_NET_F_GUEST_ECN),
        ufo: false,
    }
}

/// The side of an interface that packets come in by.
struct Receiving {
    nic: Arc<Nic>,
    backend: NetBackend,
    end: Arc<OwnedFd>,
    sending: Sending,
    attention: Arc<Attention>,
}

impl Receiving {
    fn run(&self, receiver: Box<dyn LinkReceiver>) {
        let mut receiver = Some(receiver);
        while let Some(from) = receiver.take() {
            match self.receive(from) {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, backend = %self.backend, "the link is gone: it is tried again"),
            }
            *lock(&self.sending) = None;
            self.set_up(false);
            receiver = self.open_again();
            if receiver.is_some() {
                tracing::info!(backend = %self.backend, "the link is back");
                self.set_up(true);
            }
        }
    }

    /// Until the end was asked for.
    fn receive(&self, mut from: Box<dyn LinkReceiver>) -> io::Result<()> {
        let mut room = vec![0; PACKET_BYTES_MAX];
        let mut received = Ok(true);
        while received.as_ref().is_ok_and(|more| *more) {
            received = self.receive_one(&mut *from, &mut room);
        }
        self.nic.count_dropped(from.dropped());
        received.map(drop)
    }

    /// False once the end was asked for.
    fn receive_one(&self, from: &mut dyn LinkReceiver, room: &mut [u8]) -> io::Result<bool> {
        let Some(bytes) = from.receive(room)? else { return Ok(false) };
        let mut packet = self.nic.buffers.take();
        packet.extend_from_slice(room.get(..bytes).unwrap_or_default());
        let more = self.nic.inlet.push(packet);
        self.attention.attend();
        Ok(more)
    }

    /// The guest learns whether its link is there.
    fn set_up(&self, is_up: bool) {
        self.nic.inlet.set_up(is_up);
        self.attention.attend();
    }

    /// None once the end was asked for.
    fn open_again(&self) -> Option<Box<dyn LinkReceiver>> {
        while !self.ends_within(AGAIN) {
            if let Ok(Link { sender, receiver, .. }) = Link::open(&self.backend, &self.end) {
                *lock(&self.sending) = Some(sender);
                return Some(receiver);
            }
        }
        None
    }

    fn ends_within(&self, time: Duration) -> bool {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let mut ended = [PollFd::new(&*self.end, PollFlags::IN)];
        matches!(poll(&mut ended, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })), Ok(1..))
    }
}
