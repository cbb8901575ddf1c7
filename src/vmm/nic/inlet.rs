//! Packets on their way to the guest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::lock::lock;

/// How much waits at most: what comes in while a cut holds the devices still, at full speed.
const PACKETS_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
struct State {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    ended: bool,
}

impl State {
    fn has_room(&self) -> bool {
        self.packets.len() < PACKETS_MAX && self.bytes < BYTES_MAX
    }
}

/// Packets that came in, oldest first. While it is full, nobody takes more from the link: a link
/// that can't wait drops them.
#[derive(Debug, Default)]
pub(in crate::vmm) struct Inlet {
    state: Mutex<State>,
    /// There is room again.
    changed: Condvar,
    is_up: AtomicBool,
}

impl Inlet {
    /// Whether the link is there.
    pub(in crate::vmm) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    pub(in crate::vmm) fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Release);
    }

    /// Whether a packet goes in at once.
    pub(in crate::vmm) fn has_room(&self) -> bool {
        lock(&self.state).has_room()
    }

    /// Puts a packet in, once there is room. False once the end was asked for.
    pub(in crate::vmm) fn push(&self, packet: Vec<u8>) -> bool {
        let mut state = lock(&self.state);
        while !state.ended && !state.has_room() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended {
            return false;
        }
        state.bytes += packet.len();
        state.packets.push_back(packet);
        true
    }

    /// Takes the oldest.
    pub(in crate::vmm) fn pop(&self) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        let packet = state.packets.pop_front()?;
        state.bytes -= packet.len();
        drop(state);
        self.changed.notify_one();
        Some(packet)
    }

    /// Nobody is there to take what is there.
    pub(in crate::vmm) fn clear(&self) {
        let mut state = lock(&self.state);
        (state.packets, state.bytes) = (VecDeque::new(), 0);
        drop(state);
        self.changed.notify_one();
    }

    /// There is to be no more.
    pub(in crate::vmm) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }
}
