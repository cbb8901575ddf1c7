//! What the first write to a protected page costs a guest, on the host at hand.

use std::path::Path;
use std::time::{Duration, Instant};

use super::guest::{Guest, LIMIT, PAGES};
use super::refused::Refused;
use super::stay_writable::RING_ENTRIES;
use crate::kvm::ring::RingSize;

/// The median of so many counts: something may come between.
const TIMES: u64 = 5;

/// Measures how long a guest is held up by the first write to a page after its reset: the fault,
/// and the entry in the ring.
///
/// Makes a VM as [`pages_stay_writable`](super::pages_stay_writable) does: about 15 ms, by the
/// faults (measured: 6 us each on one machine, 22 us on another). The vCPU runs on the calling
/// thread.
///
/// # Errors
/// [`Refused`] says what is missing.
pub fn fault_cost(kvm_path: &Path) -> Result<Duration, Refused> {
    let Guest { vcpu, rings, memory, .. } = &mut Guest::new(kvm_path, RingSize::new(RING_ENTRIES)?)?;
    vcpu.bounded(LIMIT, |vcpu| {
        let mut run = |value| {
            memory.order(value, 0..PAGES)?;
            let start = Instant::now();
            vcpu.run()?;
            Ok::<_, Refused>(start.elapsed())
        };
        let (mut protected, mut writable) = (Vec::new(), Vec::new());
        for time in 0..=TIMES {
            let first = run(2 * time + 1)?;
            // No page is protected until the reset.
            let again = run(2 * time + 2)?;
            if let Some(lost) = rings.harvest().reset()?.lost {
                return Err(Refused::Lost { round: time, lost });
            }
            // The first time the host has to find memory as well.
            if time > 0 {
                protected.push(first);
                writable.push(again);
            }
        }
        let pages = u32::try_from(PAGES).unwrap_or(u32::MAX);
        Ok(median(protected).saturating_sub(median(writable)) / pages)
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
