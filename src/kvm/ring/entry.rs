//! The protocol of one ring, without the kernel: who may touch an entry when.
//!
//! An entry goes round through three states, told by its flags: 0 (the kernel's to fill), dirty
//! (user space's to take), harvested (the kernel's to reset). The flags are read with acquire, so
//! that slot and offset are those that the kernel wrote before it; they are stored with release, so
//! that the kernel sees whatever user space did to the entry before it. Entries are taken strictly
//! in order.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// `KVM_DIRTY_GFN_F_DIRTY`, include/uapi/linux/kvm.h.
const DIRTY: u32 = 1;
/// `KVM_DIRTY_GFN_F_RESET`, include/uapi/linux/kvm.h.
const HARVESTED: u32 = 2;

/// What the protocol needs of an entry. The model checker's entries implement it too.
pub(super) trait Entry {
    fn load_flags_acquire(&self) -> u32;
    fn store_flags_release(&self, flags: u32);
    fn slot(&self) -> u32;
    fn offset(&self) -> u64;
    /// Changes what the kernel will act on at the reset. For an entry that was taken and not given
    /// back.
    fn rewrite(&self, slot: u32, offset: u64);
}

/// `struct kvm_dirty_gfn`. The kernel writes it while we read.
#[repr(C)]
#[derive(Debug)]
pub(super) struct DirtyGfn {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

const _: () = assert!(size_of::<DirtyGfn>() == size_of::<kvm_bindings::kvm_dirty_gfn>());
const _: () = assert!(align_of::<DirtyGfn>() == align_of::<kvm_bindings::kvm_dirty_gfn>());

impl Entry for DirtyGfn {
    fn load_flags_acquire(&self) -> u32 {
        self.flags.load(Ordering::Acquire)
    }

    fn store_flags_release(&self, flags: u32) {
        self.flags.store(flags, Ordering::Release);
    }

    fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    fn rewrite(&self, slot: u32, offset: u64) {
        self.slot.store(slot, Ordering::Relaxed);
        self.offset.store(offset, Ordering::Relaxed);
    }
}

/// Exactly "dirty": an entry that was given back and not yet reset carries the other bit.
fn is_listed(entry: &impl Entry) -> bool {
    entry.load_flags_acquire() & (DIRTY | HARVESTED) == DIRTY
}

/// Where user space is in a ring.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// Index of the next entry to take.
    next: usize,
}

impl Cursor {
    /// Reads up to `most` entries that are dirty, in order, as (slot, offset). Returns how many: at
    /// most as many as the ring has, even if the kernel goes on filling. They stay the user's until
    /// [`give_back`](Self::give_back): read twice, they are the same and perhaps more.
    pub(super) fn read<E: Entry>(&self, entries: &[E], most: usize, mut take: impl FnMut(u32, u64)) -> usize {
        let mut read = 0;
        for entry in self.in_order(entries).take(most) {
            if !is_listed(entry) {
                break;
            }
            take(entry.slot(), entry.offset());
            read += 1;
        }
        read
    }

    /// All entries, from the next one to take.
    fn in_order<'e, E: Entry>(&self, entries: &'e [E]) -> impl Iterator<Item = &'e E> {
        let (before, from_next) = entries.split_at(self.next.min(entries.len()));
        from_next.iter().chain(before)
    }

    /// The entry that is so many behind the next one to take.
    fn at<'e, E: Entry>(&self, entries: &'e [E], behind: usize) -> Option<&'e E> {
        entries.get((self.next + behind).checked_rem(entries.len())?)
    }

    /// How many entries there are to read, while the kernel may list more. It looks at few of them:
    /// entries are filled in order, so those that are listed come before all others.
    pub(super) fn listed<E: Entry>(&self, entries: &[E]) -> usize {
        let (mut listed, mut unknown) = (0, entries.len());
        while listed < unknown {
            let middle = listed + (unknown - listed) / 2;
            if self.at(entries, middle).is_some_and(is_listed) { listed = middle + 1 } else { unknown = middle }
        }
        listed
    }

    /// Whether there is an entry to read. Those that were given back do not count.
    pub(super) fn lists_any<E: Entry>(&self, entries: &[E]) -> bool {
        self.at(entries, 0).is_some_and(is_listed)
    }

    /// Whether every entry is to be read, or was to be before the newest `given_back` of them were
    /// given back: then the kernel may have gone round and overwritten some. While it lists more
    /// this holds for all that was read and given back. What the kernel has overwritten before it
    /// was given back, it wrote behind the last entry, and x86 shows stores in order. What it
    /// overwrites later is not harvested, and shows in the count of the reset.
    pub(super) fn is_full<E: Entry>(&self, entries: &[E], given_back: usize) -> bool {
        // The entry in front of the oldest one, filled last.
        fence(Ordering::SeqCst);
        let last = entries.len().checked_sub(given_back + 1);
        last.and_then(|last| self.at(entries, last)).is_some_and(is_listed)
    }

    /// Marks `count` entries, which were read, as harvested, in order: the kernel will protect what
    /// they say, which is `say` from now on.
    pub(super) fn give_back<E: Entry>(&mut self, entries: &[E], count: usize, mut say: impl FnMut() -> (u32, u64)) {
        for _ in 0..count {
            let Some(entry) = entries.get(self.next) else { break };
            let (slot, offset) = say();
            entry.rewrite(slot, offset);
            entry.store_flags_release(HARVESTED);
            self.next = if self.next + 1 == entries.len() { 0 } else { self.next + 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32 as LoomU32, AtomicU64 as LoomU64};

    use super::*;

    struct LoomEntry {
        flags: LoomU32,
        slot: LoomU32,
        offset: LoomU64,
        /// Stands for what user space reads because an entry told it to: the kernel's writes before
        /// the release must be visible.
        page: loom::cell::UnsafeCell<u64>,
    }

    impl LoomEntry {
        fn new() -> Self {
            Self { flags: LoomU32::new(0), slot: LoomU32::new(0), offset: LoomU64::new(0), page: loom::cell::UnsafeCell::new(0) }
        }
    }

    impl Entry for LoomEntry {
        fn load_flags_acquire(&self) -> u32 {
            self.flags.load(Ordering::Acquire)
        }

        fn store_flags_release(&self, flags: u32) {
            self.flags.store(flags, Ordering::Release);
        }

        fn slot(&self) -> u32 {
            self.slot.load(Ordering::Relaxed)
        }

        fn offset(&self) -> u64 {
            // The read is a race unless flags ordered it behind the kernel's write.
            #[expect(unsafe_code, reason = "loom checks the access")]
            // SAFETY: loom reports any concurrent write as a failure of the model.
            let page = self.page.with(|page| unsafe { *page });
            let offset = self.offset.load(Ordering::Relaxed);
            assert_eq!(page, offset, "an entry was read before the kernel had finished it");
            offset
        }

        fn rewrite(&self, slot: u32, offset: u64) {
            self.slot.store(slot, Ordering::Relaxed);
            self.offset.store(offset, Ordering::Relaxed);
        }
    }

    /// The kernel's side, as virt/kvm/dirty_ring.c does it.
    struct FakeKernel {
        dirty: usize,
        reset: usize,
    }

    impl FakeKernel {
        /// `kvm_dirty_ring_push`: fills an entry that is free, then marks it dirty with release.
        fn push(&mut self, entries: &[LoomEntry], value: u64) {
            let entry = &entries[self.dirty % entries.len()];
            #[expect(unsafe_code, reason = "loom checks the access")]
            // SAFETY: loom reports any concurrent access as a failure of the model.
            entry.page.with_mut(|page| unsafe { *page = value });
            entry.slot.store(7, Ordering::Relaxed);
            entry.offset.store(value, Ordering::Relaxed);
            entry.flags.store(DIRTY, Ordering::Release);
            self.dirty += 1;
        }

        /// `kvm_dirty_ring_reset`: takes back what was harvested, in order.
        fn reset(&mut self, entries: &[LoomEntry]) -> Vec<u64> {
            let mut back = Vec::new();
            while self.reset < self.dirty {
                let entry = &entries[self.reset % entries.len()];
                if entry.flags.load(Ordering::Acquire) & HARVESTED == 0 {
                    break;
                }
                back.push(entry.offset.load(Ordering::Relaxed));
                entry.flags.store(0, Ordering::Relaxed);
                self.reset += 1;
            }
            back
        }
    }

    /// Every interleaving of a kernel that pushes and resets with a harvest that runs beside it:
    /// nothing is read half-written, nothing is skipped, repeated or out of order, and the kernel
    /// gets back exactly what was taken.
    #[test]
    fn loom_harvest_beside_a_producing_kernel() {
        loom::model(|| harvest_beside_a_kernel(usize::MAX));
    }

    /// The same, and the first harvest leaves entries, as a round does.
    #[test]
    fn loom_harvest_of_a_part_beside_a_producing_kernel() {
        loom::model(|| harvest_beside_a_kernel(1));
    }

    fn harvest_beside_a_kernel(most: usize) {
        let entries: Arc<Vec<LoomEntry>> = Arc::new((0..2).map(|_| LoomEntry::new()).collect());
        let kernel = {
            let entries = entries.clone();
            loom::thread::spawn(move || {
                let mut kernel = FakeKernel { dirty: 0, reset: 0 };
                let mut back = VecDeque::new();
                for value in 1..=3 {
                    // A full ring leaves the guest instead of pushing; here: tries a reset once
                    // and gives up.
                    if kernel.dirty - kernel.reset == entries.len() {
                        back.extend(kernel.reset(&entries));
                    }
                    if kernel.dirty - kernel.reset < entries.len() {
                        kernel.push(&entries, value);
                    }
                }
                (kernel, back)
            })
        };
        let mut cursor = Cursor::default();
        let mut taken = Vec::new();
        let mut said = Vec::new();
        let mut harvest = |most| {
            let before = taken.len();
            let count = cursor.read(&entries, most, |slot, offset| {
                assert_eq!(slot, 7);
                taken.push(offset);
            });
            assert_eq!(count, taken.len() - before);
            // Given back in another order, as something else.
            let mut turned = taken[before..].iter().rev().map(|value| value + 100);
            cursor.give_back(&entries, count, || {
                said.extend(turned.next());
                (9, said[said.len() - 1])
            });
        };
        harvest(most);
        let (mut kernel, mut back) = kernel.join().expect("the kernel's thread ends");
        harvest(usize::MAX);
        back.extend(kernel.reset(&entries));
        assert_eq!(taken, (1..=kernel.dirty as u64).collect::<Vec<_>>());
        assert_eq!(back, said);
    }

    #[test]
    fn entries_are_counted_and_a_full_ring_is_seen_before_and_after() {
        for (next, listed) in (0..8).flat_map(|next| (0..=8).map(move |listed| (next, listed))) {
            let is_dirty = |place: usize| (place + 8 - next) % 8 < listed;
            let entries: Vec<DirtyGfn> = (0..8)
                .map(|place| DirtyGfn {
                    // Those that are not listed may be harvested and not reset.
                    flags: AtomicU32::new(if is_dirty(place) { DIRTY } else { HARVESTED }),
                    slot: AtomicU32::new(0),
                    offset: AtomicU64::new(0),
                })
                .collect();
            for given_back in 0..=listed.min(7) {
                let mut cursor = Cursor { next };
                assert_eq!(cursor.listed(&entries), listed);
                assert_eq!(cursor.read(&entries, given_back, |_, _| ()), given_back);
                assert_eq!(cursor.is_full(&entries, 0), listed == 8);
                cursor.give_back(&entries, given_back, || (0, 0));
                assert_eq!(cursor.listed(&entries), listed - given_back);
                assert_eq!(cursor.is_full(&entries, given_back), listed == 8);
                // As they were.
                for place in (0..8).filter(|place| is_dirty(*place)) {
                    entries[place].store_flags_release(DIRTY);
                }
            }
        }
    }

    #[test]
    fn a_full_ring_is_taken_once() {
        let entries: Vec<DirtyGfn> = (0..4)
            .map(|i| DirtyGfn { flags: AtomicU32::new(DIRTY), slot: AtomicU32::new(0), offset: AtomicU64::new(i) })
            .collect();
        let mut cursor = Cursor { next: 3 };
        for _ in 0..2 {
            let mut taken = Vec::new();
            assert_eq!(cursor.read(&entries, usize::MAX, |_, offset| taken.push(offset)), 4);
            assert_eq!(taken, [3, 0, 1, 2]);
        }
        let mut say = 10;
        cursor.give_back(&entries, 4, || {
            say += 1;
            (say, u64::from(say))
        });
        assert_eq!(cursor.read(&entries, usize::MAX, |_, _| panic!("nothing is left")), 0);
        assert!(entries.iter().all(|entry| entry.load_flags_acquire() == HARVESTED));
        assert_eq!(
            entries.iter().map(|entry| (entry.slot(), entry.offset())).collect::<Vec<_>>(),
            [(12, 12), (13, 13), (14, 14), (11, 11)]
        );
    }
}
