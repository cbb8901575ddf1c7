//! The protocol of one ring, without the kernel: who may touch an entry when.
//!
//! An entry goes round through three states, told by its flags: 0 (the kernel's to fill), dirty (user space's to take), harvested (the
//! kernel's to reset). The flags are read with acquire, so that slot and offset are those that the kernel wrote before it; they are stored with
//! release, so that the kernel sees whatever user space did to the entry before it. Entries are taken strictly in order.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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
}

/// Where user space is in a ring.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// Index of the next entry to take.
    next: usize,
}

impl Cursor {
    /// Takes every entry that is dirty, in order, and hands it on as (slot, offset). Returns how many: at most as many as the ring has,
    /// even if the kernel goes on filling.
    pub(super) fn harvest<E: Entry>(&mut self, entries: &[E], mut take: impl FnMut(u32, u64)) -> usize {
        let mut taken = 0;
        while taken < entries.len() {
            let Some(entry) = entries.get(self.next) else { break };
            // Exactly "dirty": an entry that was harvested and not yet reset carries the other bit.
            if entry.load_flags_acquire() & (DIRTY | HARVESTED) != DIRTY {
                break;
            }
            take(entry.slot(), entry.offset());
            entry.store_flags_release(HARVESTED);
            self.next = if self.next + 1 == entries.len() { 0 } else { self.next + 1 };
            taken += 1;
        }
        taken
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
        /// Stands for what user space reads because an entry told it to: the kernel's writes before the release must be visible.
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

    /// Every interleaving of a kernel that pushes and resets with a harvest that runs beside it: nothing is read half-written, nothing is skipped, repeated or out of
    /// order, and the kernel gets back exactly what was taken.
    #[test]
    fn loom_harvest_beside_a_producing_kernel() {
        loom::model(|| {
            let entries: Arc<Vec<LoomEntry>> = Arc::new((0..2).map(|_| LoomEntry::new()).collect());
            let kernel = {
                let entries = entries.clone();
                loom::thread::spawn(move || {
                    let mut kernel = FakeKernel { dirty: 0, reset: 0 };
                    let mut back = VecDeque::new();
                    for value in 1..=3 {
                        // A full ring leaves the guest instead of pushing; here: tries a reset once and gives up.
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
            let mut count = cursor.harvest(&entries, |slot, offset| {
                assert_eq!(slot, 7);
                taken.push(offset);
            });
            let (mut kernel, mut back) = kernel.join().expect("the kernel's thread ends");
            count += cursor.harvest(&entries, |_, offset| taken.push(offset));
            back.extend(kernel.reset(&entries));
            assert_eq!(count, taken.len());
            assert_eq!(taken, (1..=kernel.dirty as u64).collect::<Vec<_>>());
            assert_eq!(back, taken);
        });
    }

    #[test]
    fn a_full_ring_is_taken_once() {
        let entries: Vec<DirtyGfn> = (0..4)
            .map(|i| DirtyGfn { flags: AtomicU32::new(DIRTY), slot: AtomicU32::new(0), offset: AtomicU64::new(i) })
            .collect();
        let mut cursor = Cursor::default();
        let mut taken = Vec::new();
        assert_eq!(cursor.harvest(&entries, |_, offset| taken.push(offset)), 4);
        assert_eq!(taken, [0, 1, 2, 3]);
        assert_eq!(cursor.harvest(&entries, |_, _| panic!("nothing is left")), 0);
        assert!(entries.iter().all(|entry| entry.load_flags_acquire() == HARVESTED));
    }
}
