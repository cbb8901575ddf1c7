//! A machine without KVM: memory that the bench writes, and state of the size that a real vCPU's
//! has.

use slackwater::epoch::{Guest, GuestError, RollbackGuest};
use slackwater::machine::{DeviceState, MachineState};
use slackwater::memory::GuestMemory;
use slackwater::page::{Gfn, PAGE_SIZE, PageBytes, PageRun};
use slackwater::parked::Parked;
use slackwater::track::SimulatedMemory;

use crate::content::{Content, Pages};

/// Bytes of the records of a machine with one vCPU, as KVM gives them on a host with AVX-512: most
/// of them XSAVE, LAPIC and CPUID.
const STATE_BYTES: usize = 10 << 10;

/// A guest whose vCPU is the bench.
#[derive(Debug)]
pub(crate) struct SimulatedGuest {
    pub(crate) memory: GuestMemory,
    pub(crate) ring: SimulatedMemory,
    pages: Vec<Box<PageBytes>>,
    content: Pages,
    captures: u64,
}

impl SimulatedGuest {
    /// A guest with `pages` pages of [`Content::Words`].
    pub(crate) fn new(pages: usize) -> Self {
        let memory = GuestMemory::anonymous(&[PageRun { first: Gfn(0), count: pages as u64 }], 0).expect("memory");
        let ring = SimulatedMemory::new(pages, 2 * pages, 0);
        let mut content = Pages::new();
        let mut guest = Self { memory, ring, pages: content.pages(Content::Words, pages), content, captures: 0 };
        guest.write(0..pages, |_, _| {});
        guest
    }

    /// Changes a few words in each of these pages.
    pub(crate) fn change_words(&mut self, pages: std::ops::Range<usize>) {
        self.write(pages, Pages::change_words);
    }

    /// Writes what is there already.
    pub(crate) fn touch(&mut self, pages: std::ops::Range<usize>) {
        self.write(pages, |_, _| {});
    }

    /// Writes other content of the same kind.
    pub(crate) fn replace(&mut self, pages: std::ops::Range<usize>) {
        self.write(pages, |content, page| *page = *content.page(Content::Words));
    }

    /// Makes pages zero.
    pub(crate) fn zero(&mut self, pages: std::ops::Range<usize>) {
        self.write(pages, |_, page| *page = [0; PAGE_SIZE]);
    }

    fn write(&mut self, pages: std::ops::Range<usize>, change: impl Fn(&mut Pages, &mut PageBytes)) {
        for (index, page) in (0..).zip(&mut self.pages).skip(pages.start).take(pages.len()) {
            change(&mut self.content, page);
            self.memory.fill_page(Gfn(index), page).expect("a page of the memory");
            assert!(!self.ring.write(Gfn(index)), "the ring is twice as long as memory");
        }
    }
}

impl Guest for SimulatedGuest {
    type State = MachineState;

    fn park(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Little of a vCPU's state changes between two cuts.
    fn capture(&mut self, _parked: &Parked<'_>, into: &mut MachineState) -> Result<(), GuestError> {
        self.captures += 1;
        if into.devices.is_empty() {
            let mut data = vec![0; STATE_BYTES];
            for (place, byte) in data.iter_mut().zip(0u8..=255) {
                *place = byte;
            }
            into.devices.push(DeviceState { name: "bench".into(), index: 0, version: 1, data });
        }
        let place = into.devices.first_mut().and_then(|device| device.data.get_mut(512..520));
        place.ok_or("no state")?.copy_from_slice(&self.captures.to_le_bytes());
        Ok(())
    }

    fn resume(&mut self) {}

    fn halt(&mut self) {}
}

impl RollbackGuest for SimulatedGuest {
    fn restore(&mut self, _parked: &Parked<'_>, _state: &MachineState) -> Result<(), GuestError> {
        Ok(())
    }
}
