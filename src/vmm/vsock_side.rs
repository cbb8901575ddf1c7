//! What lies between a machine's socket device and the sockets of the host.

use std::sync::{Arc, Mutex, Weak};

use super::attention::Attention;
use super::outputs::{Bounds, Outlet, Output as Leaves};
use super::vsock::{ConnectionId, Connections, HostEvents, HostSockets, Output, VsockError, VsockSpec};
use crate::lock::lock;

/// What waits until its epoch is released: more than all connections have credit for.
const BOUNDS: Bounds = Bounds { packets: 64 << 10, bytes: 32 << 20 };
/// The ports of the host's side begin here, at another one in each process.
const HOST_PORTS: u32 = 1 << 30;

impl Leaves for Output {
    fn bytes(&self) -> usize {
        self.payload_bytes()
    }
}

/// The device is on one side of it, the sockets' thread on the other.
#[derive(Debug)]
pub(super) struct VsockSide {
    pub(super) spec: VsockSpec,
    pub(super) connections: Mutex<Connections>,
    pub(super) outlet: Arc<Outlet<Output>>,
    sockets: Mutex<Option<HostSockets>>,
}

impl VsockSide {
    /// `holds`: what leaves waits until its epoch is released.
    pub(super) fn new(spec: VsockSpec, random: u32, holds: bool) -> Self {
        let first_port = HOST_PORTS | random & (HOST_PORTS - 1);
        let connections = Mutex::new(Connections::new(spec.cid(), first_port));
        Self { spec, connections, outlet: Arc::new(Outlet::new(BOUNDS, holds)), sockets: Mutex::new(None) }
    }

    /// Listens, for a machine that is looked after by `attention`.
    ///
    /// # Errors
    /// [`VsockError`].
    pub(super) fn listen(self: &Arc<Self>, attention: &Arc<Attention>) -> Result<(), VsockError> {
        let events = Events { side: Arc::downgrade(self), attention: attention.clone() };
        *lock(&self.sockets) = Some(HostSockets::start(self.spec.path(), Arc::new(events))?);
        Ok(())
    }

    /// Gives the sockets what may leave, until the end was asked for.
    pub(super) fn carry(&self, attention: &Attention) {
        while let Some(released) = self.outlet.next() {
            if let Some(sockets) = &*lock(&self.sockets) {
                sockets.give([released.output]);
            }
            if released.was_full {
                attention.alarm.wake();
            }
        }
    }

    /// The guest took something: there may be room for more.
    pub(super) fn note_room(&self) {
        lock(&self.sockets).iter().for_each(HostSockets::note_room);
    }

    /// The machine is another one.
    pub(super) fn reset(&self) {
        lock(&self.connections).reset_all();
        self.outlet.roll_back();
        lock(&self.sockets).iter().for_each(HostSockets::reset);
    }

    /// Closes the sockets, and waits for their thread.
    pub(super) fn close(&self) {
        let sockets = lock(&self.sockets).take();
        drop(sockets);
    }
}

/// What the sockets tell.
#[derive(Debug)]
struct Events {
    side: Weak<VsockSide>,
    attention: Arc<Attention>,
}

impl Events {
    /// Changes the connections, and lets the guest have what comes of it.
    fn tell<R: Default>(&self, change: impl FnOnce(&mut Connections) -> R) -> R {
        let changed = self.side.upgrade().map(|side| change(&mut lock(&side.connections)));
        self.attention.attend();
        changed.unwrap_or_default()
    }
}

impl HostEvents for Events {
    fn host_opens(&self, guest_port: u32) -> Option<ConnectionId> {
        self.tell(|connections| connections.host_opens(guest_port).ok())
    }

    fn accepted(&self, id: ConnectionId) -> bool {
        self.tell(|connections| connections.accepted(id))
    }

    fn host_room(&self, id: ConnectionId) -> usize {
        self.side.upgrade().map_or(0, |side| lock(&side.connections).host_room(id))
    }

    fn host_bytes(&self, id: ConnectionId, bytes: &[u8]) {
        self.tell(|connections| {
            connections.host_bytes(id, bytes);
        });
    }

    fn host_sends_no_more(&self, id: ConnectionId) {
        self.tell(|connections| connections.host_sends_no_more(id));
    }

    fn host_receives_no_more(&self, id: ConnectionId) {
        self.tell(|connections| connections.host_receives_no_more(id));
    }

    fn delivered(&self, id: ConnectionId, bytes: usize) {
        self.tell(|connections| connections.delivered(id, bytes));
    }

    fn host_gone(&self, id: ConnectionId) {
        self.tell(|connections| connections.host_gone(id));
    }
}
