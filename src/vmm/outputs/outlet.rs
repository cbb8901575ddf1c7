//! A place where packets leave the machine, and all such places together.
//!
//! An outlet has a lock of its own, which is held for moments: while a packet is put in or taken
//! out, and never while one is sent. So neither a cut nor the thread of a sink waits for the world.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::held::Held;
use crate::lock::lock;
use crate::page::EpochId;

/// How much waits at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vmm) struct Bounds {
    /// Packets.
    pub(in crate::vmm) packets: usize,
    /// Bytes of all packets together. One that is larger by itself goes in where nothing waits.
    pub(in crate::vmm) bytes: usize,
}

/// What leaves.
pub(in crate::vmm) trait Output: Debug + Send {
    /// Its bytes, for the bound.
    fn bytes(&self) -> usize;
}

impl Output for Vec<u8> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// An output, and when the guest sent it.
#[derive(Debug)]
struct Packet<T> {
    output: T,
    sent_at: Instant,
}

#[derive(Debug)]
struct State<T> {
    held: Held<Packet<T>>,
    /// Of all that is held.
    bytes: usize,
    /// What the VMM itself says. It belongs to no epoch, and goes first.
    own: VecDeque<T>,
    ended: bool,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self { held: Held::default(), bytes: 0, own: VecDeque::new(), ended: false }
    }
}

/// Outputs on their way out by one link: packets, if nothing else is said.
#[derive(Debug)]
pub(in crate::vmm) struct Outlet<T = Vec<u8>> {
    bounds: Bounds,
    /// Outputs wait for their epoch. Otherwise they go at once.
    holds: bool,
    state: Mutex<State<T>>,
    changed: Condvar,
}

/// An output that may leave.
#[derive(Debug)]
pub(in crate::vmm) struct Released<T> {
    pub(in crate::vmm) output: T,
    /// How long ago the guest sent it; none where the VMM did.
    pub(in crate::vmm) waited: Option<Duration>,
    /// There was no room for another before this one was taken: who left off may go on.
    pub(in crate::vmm) was_full: bool,
}

/// What is told that epochs are released.
trait Releases: Debug + Send + Sync {
    fn release(&self, epoch: EpochId);
}

impl<T: Output> Releases for Outlet<T> {
    fn release(&self, epoch: EpochId) {
        lock(&self.state).held.release(epoch);
        self.changed.notify_one();
    }
}

impl<T: Output> Outlet<T> {
    pub(in crate::vmm) fn new(bounds: Bounds, holds: bool) -> Self {
        Self { bounds, holds, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Whether another packet goes in.
    pub(in crate::vmm) fn has_room(&self) -> bool {
        self.room(&lock(&self.state))
    }

    fn room(&self, state: &State<T>) -> bool {
        state.held.len() < self.bounds.packets && (state.bytes < self.bounds.bytes || state.held.len() == 0)
    }

    /// Puts an output in, of a guest that [had room](Self::has_room).
    pub(in crate::vmm) fn push(&self, output: T) {
        let mut state = lock(&self.state);
        state.bytes += output.bytes();
        state.held.push(Packet { output, sent_at: Instant::now() });
        if !self.holds {
            state.held.note_capture();
            state.held.note_taken(EpochId::NONE);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Puts in what the VMM itself says.
    pub(in crate::vmm) fn push_own(&self, output: T) {
        let mut state = lock(&self.state);
        if state.own.len() < self.bounds.packets {
            state.own.push_back(output);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether a packet waits for an epoch to be taken.
    pub(in crate::vmm) fn wants_epoch(&self) -> bool {
        lock(&self.state).held.want_epoch()
    }

    /// See [`Held::note_capture`].
    pub(in crate::vmm) fn note_capture(&self) {
        lock(&self.state).held.note_capture();
    }

    /// See [`Held::note_taken`].
    pub(in crate::vmm) fn note_taken(&self, epoch: EpochId) {
        lock(&self.state).held.note_taken(epoch);
        self.changed.notify_one();
    }

    /// See [`Held::roll_back`].
    pub(in crate::vmm) fn roll_back(&self) {
        let mut state = lock(&self.state);
        let State { held, bytes, .. } = &mut *state;
        held.roll_back().for_each(|packet| *bytes -= packet.output.bytes());
    }

    /// Waits for an output that may leave. None once the end was asked for, and none is left that
    /// may.
    pub(in crate::vmm) fn next(&self) -> Option<Released<T>> {
        let mut state = lock(&self.state);
        loop {
            let next = self.take(&mut state);
            if next.is_some() || state.ended {
                return next;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next output that may leave, if there is one now.
    pub(in crate::vmm) fn next_now(&self) -> Option<Released<T>> {
        self.take(&mut lock(&self.state))
    }

    fn take(&self, state: &mut State<T>) -> Option<Released<T>> {
        if let Some(output) = state.own.pop_front() {
            return Some(Released { output, waited: None, was_full: false });
        }
        let was_full = !self.room(state);
        let Packet { output, sent_at } = state.held.pop_released()?;
        state.bytes -= output.bytes();
        Some(Released { output, waited: Some(sent_at.elapsed()), was_full })
    }

    /// Outputs of the guest that are here, and their bytes.
    pub(in crate::vmm) fn waiting(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.held.len(), state.bytes)
    }

    /// There will be no more packets, and no more releases.
    pub(in crate::vmm) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }
}

impl Outlet {
    /// Puts bytes of a stream in: behind those that came before, where these belong to the same
    /// epoch. Returns how many there was room for.
    pub(in crate::vmm) fn append(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.state);
        let room = self.bounds.bytes.saturating_sub(state.bytes);
        let taken = bytes.get(..room).unwrap_or(bytes);
        let State { held, bytes: all, .. } = &mut *state;
        match held.newest_mut() {
            Some(newest) => newest.output.extend_from_slice(taken),
            None if self.holds => held.push(Packet { output: taken.to_vec(), sent_at: Instant::now() }),
            None => {
                drop(state);
                self.push(taken.to_vec());
                return taken.len();
            }
        }
        *all += taken.len();
        taken.len()
    }
}

/// The outlets of a machine.
#[derive(Clone, Debug, Default)]
pub(in crate::vmm) struct Outputs(Vec<Arc<dyn Releases>>);

impl Outputs {
    /// These, and that one.
    pub(in crate::vmm) fn with<T: Output + 'static>(mut self, outlet: Arc<Outlet<T>>) -> Self {
        self.0.push(outlet);
        self
    }

    /// Epochs up to `epoch` are released.
    pub(in crate::vmm) fn release(&self, epoch: EpochId) {
        self.0.iter().for_each(|outlet| outlet.release(epoch));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const BOUNDS: Bounds = Bounds { packets: 3, bytes: 100 };

    #[test]
    fn a_full_outlet_has_room_again_once_packets_left() {
        let outlet = Outlet::new(BOUNDS, true);
        outlet.push(vec![1; 500]);
        assert!(!outlet.has_room(), "by bytes");
        outlet.note_capture();
        outlet.note_taken(EpochId(1));
        outlet.release(EpochId(1));
        let released = outlet.next().unwrap();
        assert_eq!((released.output.len(), released.was_full), (500, true));
        (0..3).for_each(|n| outlet.push(vec![n; 10]));
        assert!(!outlet.has_room() && outlet.wants_epoch(), "by packets");
        outlet.roll_back();
        assert!(outlet.has_room() && !outlet.wants_epoch());
        outlet.end();
        assert!(outlet.next().is_none());
    }

    #[test]
    fn who_waits_for_a_packet_gets_it_when_its_epoch_is_released() {
        let outlet = Arc::new(Outlet::new(BOUNDS, true));
        let outputs = Outputs::default().with(outlet.clone());
        let sender = outlet.clone();
        let sent =
            std::thread::spawn(move || std::iter::from_fn(|| sender.next()).map(|packet| packet.output).collect::<Vec<_>>());
        outlet.push(vec![1]);
        outlet.note_capture();
        outlet.push(vec![2]);
        outlet.note_taken(EpochId(5));
        outputs.release(EpochId(4));
        outputs.release(EpochId(5));
        outlet.push_own(vec![9]);
        outlet.end();
        let sent = sent.join().unwrap();
        assert!(sent == [vec![1], vec![9]] || sent == [vec![9], vec![1]], "{sent:?}");
    }

    #[test]
    fn a_stream_is_cut_where_epochs_are() {
        let outlet = Outlet::new(Bounds { packets: usize::MAX, bytes: 10 }, true);
        assert_eq!((outlet.append(b"ab"), outlet.append(b"cd")), (2, 2));
        outlet.note_capture();
        assert_eq!(outlet.append(b"ef"), 2);
        outlet.note_taken(EpochId(1));
        assert_eq!(outlet.append(b"ghijkl"), 4, "there is no room for more");
        outlet.release(EpochId(1));
        assert_eq!(outlet.next().unwrap().output, b"abcd");
        outlet.note_capture();
        outlet.note_taken(EpochId(2));
        outlet.release(EpochId(2));
        assert_eq!(outlet.next().unwrap().output, b"efghij");
    }

    #[test]
    fn one_that_does_not_hold_lets_packets_go_at_once() {
        let outlet = Outlet::new(BOUNDS, false);
        outlet.push(vec![1]);
        assert!(!outlet.wants_epoch());
        assert_eq!(outlet.next().unwrap().output, [1]);
    }
}
