//! Saved clocks, put forward by time that passed while the machine was not there.

use kvm_bindings::KVM_CLOCK_REALTIME;

use super::spec::TSC;
use super::state::{VcpuState, VmState};

impl VmState {
    /// When the clock was read, in nanoseconds since 1970 by the host's real-time clock, where the
    /// kernel said so (`KVM_CLOCK_REALTIME`): from 5.16 on, and where the host itself goes by its
    /// time stamp counter.
    #[must_use]
    pub fn clock_read_unix_ns(&self) -> Option<u64> {
        self.clock.filter(|clock| clock.flags & KVM_CLOCK_REALTIME != 0).map(|clock| clock.realtime)
    }

    /// Puts kvmclock forward by `ns`, up to the largest time it has.
    pub fn advance_clock(&mut self, ns: u64) {
        if let Some(clock) = &mut self.clock {
            clock.clock = clock.clock.saturating_add(ns);
        }
    }
}

impl VcpuState {
    /// Puts the time stamp counter forward by `ns`, by its own frequency; with a frequency that
    /// nobody knows it stays. Deadlines stay as they are, as times of the counter: what was due
    /// meanwhile is due at once. `IA32_TSC_ADJUST` stays too: it keeps what the guest added to the
    /// counter, not time.
    pub fn advance_counter(&mut self, ns: u64) {
        let ticks = counter_ticks(ns, self.tsc_khz.unwrap_or_default());
        for msr in self.msrs.iter_mut().flat_map(|msrs| msrs.as_mut_slice()).filter(|msr| msr.index == TSC) {
            // As the counter itself, which begins again at zero.
            msr.data = msr.data.wrapping_add(ticks);
        }
    }
}

/// How far a counter of `khz` thousand ticks a second goes in `ns` nanoseconds, modulo 2^64.
fn counter_ticks(ns: u64, khz: u32) -> u64 {
    let ticks = u128::from(ns) * u128::from(khz) / 1_000_000;
    u64::try_from(ticks & u128::from(u64::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use kvm_bindings::{Msrs, kvm_clock_data, kvm_msr_entry};

    use super::*;
    use crate::machine::spec::TSC_DEADLINE;

    #[test]
    fn ticks_follow_the_frequency_and_never_overflow() {
        assert_eq!(counter_ticks(0, 3_000_000), 0);
        assert_eq!(counter_ticks(1_000_000_000, 0), 0);
        assert_eq!(counter_ticks(1_000_000_000, 2_893_201), 2_893_201_000);
        assert_eq!(counter_ticks(999, 1_000), 0, "less than a tick");
        // A century at 5 GHz, to the tick.
        assert_eq!(counter_ticks(3_155_760_000_000_000_000, 5_000_000), 15_778_800_000_000_000_000);
        let most = u128::from(u64::MAX) * u128::from(u32::MAX) / 1_000_000 % (1 << 64);
        assert_eq!(u128::from(counter_ticks(u64::MAX, u32::MAX)), most);
    }

    #[test]
    fn a_counter_goes_forward_and_deadlines_stay() {
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let saved = [msr(TSC, u64::MAX - 5), msr(0x3b, 7), msr(TSC_DEADLINE, 9)];
        let mut vcpu = VcpuState { tsc_khz: Some(2_000_000), ..VcpuState::new(0) };
        // Before the first capture there is nothing to put forward.
        vcpu.advance_counter(1);
        vcpu.msrs = Some(Msrs::from_entries(&saved).unwrap());
        vcpu.advance_counter(0);
        assert_eq!(vcpu.msrs.as_ref().unwrap().as_slice(), saved);
        vcpu.advance_counter(5);
        assert_eq!(vcpu.msrs.as_ref().unwrap().as_slice(), [msr(TSC, 4), saved[1], saved[2]]);
        vcpu.tsc_khz = None;
        vcpu.advance_counter(5);
        assert_eq!(vcpu.msrs.as_ref().unwrap().as_slice(), [msr(TSC, 4), saved[1], saved[2]]);
    }

    #[test]
    fn kvmclock_goes_forward_and_says_when_it_was_read() {
        let mut state = VmState::default();
        state.advance_clock(1);
        assert_eq!((state.clock, state.clock_read_unix_ns()), (None, None));
        state.clock = Some(kvm_clock_data { clock: 5, realtime: 77, ..Default::default() });
        assert_eq!(state.clock_read_unix_ns(), None, "without the flag it is no time");
        state.advance_clock(10);
        state.clock.as_mut().unwrap().flags = KVM_CLOCK_REALTIME;
        assert_eq!((state.clock.map(|clock| clock.clock), state.clock_read_unix_ns()), (Some(15), Some(77)));
        state.advance_clock(u64::MAX);
        assert_eq!(state.clock.map(|clock| clock.clock), Some(u64::MAX));
    }
}
