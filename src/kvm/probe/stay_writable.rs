//! Whether pages can stay writable over a reset, on the kernel at hand.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::guest::{self, Bounded, Guest, LIMIT, Memory, PAGES, SLOT};
use super::plan::{self, Plan, ROUNDS};
use super::refused::Refused;
use crate::kvm::ring::{DirtyPage, Harvest, Reset, RingError, RingSize, VmRings};
use crate::parked::Parked;

/// With the 576 entries that PML keeps free, 448 remain: more than the guest has pages to write.
pub(super) const RING_ENTRIES: u32 = 1024;
/// A host may take pages from a guest at any time. They are then listed once more, which costs
/// nothing but time.
const ATTEMPTS: u32 = 3;

/// Evidence that on this kernel a reset acts on what its entries say: pages left out stay writable
/// and are not listed, and are tracked again once an entry names them
/// ([`Harvest::reset_instead`]). Only [`pages_stay_writable`] gives it.
#[derive(Clone, Copy, Debug)]
pub struct PagesStayWritable(());

/// Checks on the KVM device at `kvm_path` that pages can stay writable over a reset, and be tracked
/// again later.
///
/// Makes a VM with 2 MiB of memory, whose vCPU runs on the calling thread, and drops it again:
/// about 15 ms (measured). It ends after 10 s of guest time whatever KVM does, by a kick with
/// [`default_signal`](crate::kvm::kick::default_signal); only then is its handler installed. The
/// thread must not block that signal.
///
/// # Errors
/// [`Refused`] says what is missing, or what was expected and found.
pub fn pages_stay_writable(kvm_path: &Path) -> Result<PagesStayWritable, Refused> {
    let ring = RingSize::new(RING_ENTRIES)?;
    let mut attempts = 1;
    loop {
        let mut guest = Guest::new(kvm_path, ring)?;
        match check(&mut guest, LIMIT, |harvest, named| harvest.reset_instead(named)) {
            Err(Refused::Listed { .. }) if attempts < ATTEMPTS => attempts += 1,
            outcome => return outcome,
        }
    }
}

/// All rounds, on a new guest. `reset` is [`Harvest::reset_instead`].
pub(super) fn check(
    guest: &mut Guest,
    limit: Duration,
    mut reset: impl for<'r> FnMut(Harvest<'r>, &[DirtyPage]) -> Result<Reset<'r>, RingError>,
) -> Result<PagesStayWritable, Refused> {
    let Guest { vcpu, rings, memory, .. } = guest;
    vcpu.bounded(limit, |vcpu| {
        let mut plan = Plan::new();
        for round in 1..=ROUNDS {
            check_round(round, &mut plan, vcpu, rings, memory, &mut reset)?;
        }
        Ok(PagesStayWritable(()))
    })
}

fn check_round(
    round: u64,
    plan: &mut Plan,
    vcpu: &mut Bounded<'_>,
    rings: &mut VmRings,
    memory: &Memory,
    reset: &mut impl for<'r> FnMut(Harvest<'r>, &[DirtyPage]) -> Result<Reset<'r>, RingError>,
) -> Result<(), Refused> {
    let expected = plan.write(round);
    memory.order(round, plan::written(round))?;
    vcpu.run()?;
    let harvest = rings.harvest();
    // What is left of the exit writes no memory.
    let mut parked = ();
    let listed: BTreeSet<_> = harvest
        .while_parked(&Parked::vouch(&mut parked))
        .iter()
        .filter_map(|page| if page.slot == SLOT { guest::page(page.offset) } else { None })
        .collect();
    let mut missing = expected.difference(&listed);
    if let Some(page) = missing.next() {
        return Err(Refused::NotListed {
            round,
            offset: guest::offset(*page),
            state: plan.state(*page),
            missing: missing.count() + 1,
            expected: expected.len(),
        });
    }
    let mut extra = listed.difference(&expected);
    if let Some(page) = extra.next() {
        let (offset, state) = (guest::offset(*page), plan.state(*page));
        return Err(Refused::Listed { round, offset, state, extra: extra.count() + 1 });
    }
    let named = plan.protect(round, &expected);
    let named: Vec<_> = named.into_iter().map(|page| DirtyPage { slot: SLOT, offset: guest::offset(page) }).collect();
    if let Some(lost) = reset(harvest, &named)?.lost {
        return Err(Refused::Lost { round, lost });
    }
    for page in 0..PAGES {
        let (expected, found) = (plan.content(page), memory.word(page)?);
        if found != expected {
            return Err(Refused::Content { round, offset: guest::offset(page), expected, found });
        }
    }
    Ok(())
}
