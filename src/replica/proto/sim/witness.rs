//! Calls to the witness: they may be lost on either way, and carried out long after.

use super::event::{Event, What};
use super::host::Process;
use super::register::Call;
use super::run::Run;
use super::setting::Time;
use crate::replica::proto::Answer;
use crate::replica::register::Holder;

impl Run {
    /// A call to the witness: it may be lost on either way, and carried out long after its caller
    /// gave up.
    pub(super) fn ask(&mut self, host: usize, call: Call) {
        let pid = self.hosts[host].pid;
        let me = match &self.hosts[host].process {
            Process::Primary { machine, .. } => machine.me(),
            Process::Standby { machine, .. } => machine.me(),
            _ => return,
        };
        let gives_up = 30_000;
        let (there, back) = (100 + self.random.below(3_000), 100 + self.random.below(3_000));
        let fate = self.random.below(if self.noise > 0 || !self.witness.is_up { 8 } else { 1_000 });
        let on_its_way = |run: &mut Self, after: Time, is_awaited: bool| {
            if let Call::Swap(expected, new) = call {
                run.witness.under_way.push((me, expected, new));
            }
            run.push(run.now + after, What::Call { host, pid, call, is_awaited });
        };
        match fate {
            // Nobody listens.
            0 => self.later(host, there, Event::Answer(Answer::Refused)),
            // Lost on the way there.
            1 => self.later(host, gives_up, Event::Answer(Answer::Unknown)),
            // The answer is lost.
            2 => {
                on_its_way(self, there, false);
                self.later(host, gives_up, Event::Answer(Answer::Unknown));
            }
            // It is carried out when its caller has given it up, or is gone.
            3 => {
                self.seen.late_swaps += 1;
                let late = self.random.below(400_000);
                on_its_way(self, gives_up + late, false);
                self.later(host, gives_up, Event::Answer(Answer::Unknown));
            }
            _ if !self.witness.is_up => self.later(host, there, Event::Answer(Answer::Refused)),
            _ => on_its_way(self, there + back / 2, true),
        }
    }

    pub(super) fn call(&mut self, host: usize, pid: u64, call: Call, is_awaited: bool) {
        let answer = match call {
            Call::Read => Answer::Register(self.witness.value),
            Call::Swap(expected, new) => {
                if let Some(at) = self.witness.under_way.iter().position(|(_, _, at)| *at == new) {
                    self.witness.under_way.swap_remove(at);
                }
                let before = self.witness.value;
                let won = self.witness.swap(expected, new);
                if before != self.witness.value {
                    self.seen.pairs += u64::from(matches!(new.holder, Holder::Paired(..)));
                    self.note(|| format!("the register has {new:?}"));
                }
                if won { Answer::Won } else { Answer::Register(self.witness.value) }
            }
        };
        if is_awaited {
            let back = 100 + self.random.below(2_000);
            self.push(self.now + back, What::At(host, pid, Event::Answer(answer)));
        }
    }
}
