//! Checks of what KVM does and does not promise, with a tiny guest, on the kernel at hand.

mod guest;
mod kernel;
mod plan;
mod reserve;
#[cfg(test)]
mod tests;

pub use kernel::runs_kernels;
pub use reserve::ring_reserve;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use self::guest::{Bounded, Guest, Memory, PAGES, SLOT};
use self::plan::{Plan, ROUNDS};
use super::host::HostError;
use super::memslot::MemslotError;
use super::ring::{DirtyPage, Harvest, Lost, Reset, RingError, RingSize, VmRings};
use crate::parked::Parked;

/// With the 576 entries that PML keeps free, 448 remain: more than the guest has pages to write.
const RING_ENTRIES: u32 = 1024;
/// All rounds take about 10 ms, and perhaps a second where everything is emulated.
const LIMIT: Duration = Duration::from_secs(10);
/// A host may take pages from a guest at any time; they are then listed once more, which costs nothing but time.
const ATTEMPTS: u32 = 3;

/// Evidence that on this kernel a reset acts on what its entries say: pages left out stay writable and are not listed, and are tracked again once an
/// entry names them ([`Harvest::reset_instead`]). Only [`pages_stay_writable`] gives it.
#[derive(Clone, Copy, Debug)]
pub struct PagesStayWritable(());

/// What the next write to a page had to do in a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PageState {
    /// Never written since its memslot was made: to be listed.
    Fresh,
    /// Named by the reset that followed its last listing: to be listed.
    Protected,
    /// Left out of a reset, and named by a later one in the place of another page: to be listed.
    Rearmed,
    /// Left out of all resets since its last listing: not to be listed.
    Writable,
}

impl fmt::Display for PageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "never written before",
            Self::Protected => "protected by the reset after it was listed",
            Self::Rearmed => "left out of a reset, and protected by a later one in the place of another page",
            Self::Writable => "left out of all resets since it was listed",
        })
    }
}

/// Why a check failed: something is missing, or this kernel does otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// KVM can't be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The rings: there are none, or a reset failed.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The guest's memory.
    #[error(transparent)]
    Memslot(#[from] MemslotError),
    /// The guest could not be made or run.
    #[error("{step}")]
    Setup {
        /// What was being done; the ioctl's name where it was one.
        step: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The guest left other than by the port that it writes to when it is done.
    #[error("the guest left with {exit}")]
    Exit {
        /// The exit, as kvm-ioctls calls it.
        exit: String,
    },
    /// Code at CPL 0 is interpreted: the same loop takes many times as long there as at CPL 3.
    #[error("a loop takes {at_cpl0:?} at CPL 0 and {at_cpl3:?} at CPL 3")]
    Interpreted {
        /// The least time at CPL 0.
        at_cpl0: Duration,
        /// The least time at CPL 3.
        at_cpl3: Duration,
    },
    /// A ring was never full, although more pages were written than it has entries.
    #[error("a ring of {entries} entries is never full")]
    NeverFull {
        /// The ring's entries.
        entries: u32,
    },
    /// The guest did not come to an end.
    #[error("the guest was not done after {} s", limit.as_secs_f64())]
    Time {
        /// The time that it had.
        limit: Duration,
    },
    /// A page that was written is not listed: writes would be missed.
    #[error(
        "round {round}: of {expected} pages that were written, {missing} are not listed, the first of them page {offset}: {state}"
    )]
    NotListed {
        /// The round, from 1 on.
        round: u64,
        /// The first such page's index in the memslot.
        offset: u64,
        /// What had become of it before.
        state: PageState,
        /// How many such pages there are in this round.
        missing: usize,
        /// How many pages were to be listed.
        expected: usize,
    },
    /// A page is listed that should not be: nothing would be missed, and nothing gained.
    #[error("round {round}: {extra} pages too many are listed, the first of them page {offset}: {state}")]
    Listed {
        /// The round, from 1 on.
        round: u64,
        /// The first such page's index in the memslot.
        offset: u64,
        /// What had become of it before. It was not written in this round, unless this is [`PageState::Writable`].
        state: PageState,
        /// How many such pages there are in this round.
        extra: usize,
    },
    /// The reset says that tracking was lost.
    #[error("round {round}")]
    Lost {
        /// The round, from 1 on.
        round: u64,
        /// How.
        #[source]
        lost: Lost,
    },
    /// A page does not hold what the guest was to write.
    #[error("round {round}: page {offset} holds {found} instead of {expected}")]
    Content {
        /// The round, from 1 on.
        round: u64,
        /// The page's index in the memslot.
        offset: u64,
        /// The round of its last write, 0 for none.
        expected: u64,
        /// The word that it begins with.
        found: u64,
    },
}

impl Refused {
    fn setup(step: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Setup { step, source: Box::new(source) }
    }
}

/// Checks on the KVM device at `kvm_path` that pages can stay writable over a reset, and be tracked again later.
///
/// Makes a VM with 2 MiB of memory, whose vCPU runs on the calling thread, and drops it again: about 15 ms (measured). It ends after 10 s of guest time whatever
/// KVM does, by a kick with [`default_signal`](super::kick::default_signal); only then is its handler installed. The thread must not block that signal.
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
fn check(
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
