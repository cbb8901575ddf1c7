//! What breaks, and what is done about it.

use std::time::Duration;

use super::event::{Event, What};
use super::host::{Host, Process, Store};
use super::run::Run;
use crate::replica::proto::{Opening, Record, WhyNot, may_open};
use crate::replica::register::{Holder, Incarnation, Register};

impl Run {
    /// Something breaks, or is whole again.
    pub(super) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let next = 1_000 + self.random.below(self.setting.fault_us * 2);
        if self.setting.only_stalls {
            let until = self.now + self.random.below(150_000);
            self.hosts.iter_mut().for_each(|host| host.frozen_until = until);
            // They hear each other between two of them.
            return self.push(until + 30_000 + next, What::Fault);
        }
        self.push(self.now + next, What::Fault);
        let host = usize::from(self.random.one_in(2));
        let chosen = self.random.below(13);
        self.note(|| format!("fault {chosen} at host {host}"));
        match chosen {
            0 | 1 => self.link_up[host] = !self.link_up[host],
            2 => self.link_up = [false; 2],
            3 | 4 => self.link_up = [true; 2],
            5 => self.noise = [0, 3, 10, 40][usize::try_from(self.random.below(4)).unwrap()],
            6 => self.witness.is_up = !self.witness.is_up,
            7 => self.witness.is_up = true,
            8 => self.hosts[host].frozen_until = self.now + self.random.below(150_000),
            9 => {
                // A clock never goes back.
                let now = self.clock(host);
                let percent = [50, 100, 100, 200][usize::try_from(self.random.below(4)).unwrap()];
                if Duration::from_micros(self.now * percent / 100) >= now {
                    self.hosts[host].clock_percent = percent;
                }
            }
            10 => {
                let disk_too = self.random.one_in(8);
                self.stop(host, disk_too);
            }
            11 => self.stop(host, false),
            _ => {
                let clock = self.clock(host);
                if let Process::Primary { machine, .. } = &mut self.hosts[host].process
                    && self.hosts[host].frozen_until <= self.now
                {
                    machine.hand_over(clock);
                    self.acts(host);
                }
            }
        }
    }

    /// The process of a host is killed. With `disk_too`, its disk is lost.
    pub(super) fn stop(&mut self, host: usize, disk_too: bool) {
        if !self.hosts[host].is_up() {
            return;
        }
        self.seen.restarts += 1;
        self.note(|| format!("host {host} is killed, its disk with it: {disk_too}"));
        self.hosts[host].pid += 1;
        self.hosts[host].process = Process::Down;
        if let Some(store) = &mut self.hosts[host].store {
            if disk_too {
                *store = Store::default();
            }
            let kept =
                store.durable + usize::try_from(self.random.below((store.epochs.len() - store.durable) as u64 + 1)).unwrap();
            store.epochs.truncate(kept);
            // Whoever opens it syncs what is there.
            store.durable = kept;
        }
        let after = 5_000 + self.random.below(200_000);
        self.later(host, after, Event::Start);
    }

    /// A process is started where one died.
    pub(super) fn restart(&mut self, host: usize) {
        let record =
            self.hosts[host].store.as_ref().filter(|store| !store.epochs.is_empty()).and_then(|store| store.record.clone());
        let Some(record) = record else { return self.idle(host) };
        if !self.witness.is_up {
            return self.later(host, 50_000, Event::Start);
        }
        match may_open(Some(&record), self.witness.value) {
            Opening::GoOn(register) => {
                // The other one may live. Whoever starts this one chooses.
                let was_standby =
                    matches!(register.map(|at| at.holder), Some(Holder::Paired(_, who)) if record.names.contains(&who));
                if was_standby && !self.healed && self.random.one_in(2) {
                    return self.later(host, 100_000, Event::Start);
                }
                let me = self.incarnation();
                self.reopen(host, me, register, record.reopened(me));
            }
            Opening::No(WhyNot::Superseded(_)) => self.idle(host),
            Opening::No(WhyNot::MayLose(_)) => {
                self.idle(host);
                self.hosts[host].process = Process::Stuck;
            }
            Opening::No(WhyNot::WitnessForgot(found)) => {
                self.world.break_off(|| format!("host {host}, {record:?}: the witness forgot, {found:?}"));
            }
        }
    }

    pub(super) fn reopen(&mut self, host: usize, me: Incarnation, register: Option<Register>, record: Record) {
        if let Some(store) = &mut self.hosts[host].store {
            store.record = Some(record.clone());
        }
        let head = self.hosts[host].store.as_ref().and_then(|store| store.epochs.last().copied());
        if let Some(head) = head {
            self.world.knows(me, head);
        }
        self.start_primary(host, me, (register, Some(record)));
    }

    /// All faults end.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.link_up = [true; 2];
        self.noise = 0;
        self.witness.is_up = true;
        // Who stands still thaws by itself.
        self.note(|| "all faults end".to_owned());
        self.push(self.now + 500_000, What::Operator);
    }

    /// Somebody looks, and finds that nothing goes on by itself.
    pub(super) fn operator(&mut self) {
        if self.hosts.iter().any(|host| matches!(host.process, Process::Primary { .. })) {
            return;
        }
        for host in 0..2 {
            let clock = self.clock(host);
            if let Process::Standby { machine, .. } = &mut self.hosts[host].process
                && machine.promote(clock)
            {
                self.seen.losses_accepted += 1;
                self.world.accept_loss();
                return self.acts(host);
            }
        }
        let refused = |host: &Host| {
            let store = host.store.as_ref().filter(|store| !store.epochs.is_empty())?;
            let record = store.record.clone()?;
            match may_open(Some(&record), self.witness.value) {
                Opening::No(why) => Some((record, why)),
                Opening::GoOn(_) => None,
            }
        };
        let refused: Vec<_> = self.hosts.iter().map(refused).collect();
        let named = refused.iter().position(|found| matches!(found, Some((_, WhyNot::MayLose(_)))));
        // The one that goes on is dead for good, and never had a store.
        let any = refused.iter().position(Option::is_some);
        let Some(host) = named.or(any).filter(|host| self.hosts[*host].is_up()) else { return };
        let (Some(Some((record, _))), Some(register)) = (refused.into_iter().nth(host), self.witness.value) else { return };
        self.seen.losses_accepted += 1;
        self.world.accept_loss();
        let me = self.incarnation();
        self.reopen(host, me, Some(register), record.with_loss_accepted(me, register));
    }
}
