//! The way from one host to the other.

use super::event::{Event, What};
use super::host::{Process, Store};
use super::run::Run;
use super::setting::TIMING;
use crate::replica::proto::{Body, EpochKey, Message, Record, Standby, StandbyOptions, StandbyRole};
use crate::replica::register::{Generation, Incarnation, Register};

impl Run {
    /// A primary without a standby asks the other host for one.
    pub(super) fn greet(&mut self, host: usize) {
        let number = self.random.next();
        let greets = self.random.one_in(15);
        let Process::Primary { machine, hello, .. } = &mut self.hosts[host].process else { return };
        if let Some(register) = machine.register().filter(|_| greets && machine.can_attach()) {
            *hello = Some(number);
            let who = machine.me();
            self.send(host, Event::Hello { from: host, who, register, stream: number });
        }
    }

    /// A primary comes and wants a standby.
    pub(super) fn hello(&mut self, host: usize, from: usize, (who, register): (Incarnation, Register), stream: u64) {
        match &self.hosts[host].process {
            Process::Primary { machine, .. } => {
                // It is told who goes on.
                if let Some(known) = machine.register().filter(|known| known.generation > register.generation) {
                    let message = Message { from: machine.me(), to: who, register: known, body: Body::Beat };
                    self.send(host, Event::Message(message));
                }
                return;
            }
            Process::Standby { machine, .. } => {
                // Its own primary has dropped it, or there is a newer one.
                let known = machine.register().map_or(Generation::NONE, |known| known.generation);
                let is_joining = machine.role() == StandbyRole::Joining;
                if register.generation < known || (register.generation == known && !is_joining) {
                    return;
                }
            }
            Process::Idle | Process::Stuck => {}
            Process::Down => return,
        }
        let me = self.incarnation();
        let has_chain = self.hosts[host].store.is_some();
        let record = Record { names: vec![me], generation: register.generation, covers: false };
        if has_chain {
            // What was there is set aside.
            self.hosts[host].store = Some(Store { record: Some(record.clone()), ..Store::default() });
        }
        let options = StandbyOptions { timing: TIMING, has_chain, holds_on_disk: self.setting.holds_on_disk && has_chain };
        self.hosts[host].pid += 1;
        let (draw, clock) = (self.draw(), self.clock(host));
        let machine = Standby::join(me, options, (who, register), has_chain.then_some(record), draw, clock);
        self.note(|| format!("host {host} joins {who} as {me}"));
        self.hosts[host].process = Process::Standby { machine: Box::new(machine), stream };
        self.later(host, 0, Event::Tick);
        debug_assert_ne!(host, from);
        self.send(host, Event::Welcome { who: me, stream });
    }

    /// An epoch goes to the other host, behind those before it.
    pub(super) fn stream(&mut self, host: usize, number: u64, key: EpochKey, parent: Option<EpochKey>) {
        let other = 1 - host;
        let delay = 50 + self.random.below(3_000);
        let is_lost = !self.link_up[host] || (self.noise > 0 && self.random.one_in(self.noise * 20));
        let told_in = 100 + self.random.below(100_000);
        let now = self.now;
        let Process::Primary { stream: Some((_, stream)), .. } = &mut self.hosts[host].process else { return };
        if is_lost {
            stream.is_broken = true;
            // Whoever sends finds out in the end; the other one may not.
            self.later(host, told_in, Event::StreamEnded(number));
            if self.random.one_in(2) {
                self.later(other, told_in / 2, Event::StreamEnded(number));
            }
            return;
        }
        stream.arrives = (now + delay).max(stream.arrives + 1);
        let after = stream.arrives - now;
        self.later(other, after, Event::Epoch { stream: number, key, parent });
    }

    pub(super) fn receives(&mut self, host: usize, number: u64, key: EpochKey, parent: Option<EpochKey>) {
        let (clock, durable_in) = (self.clock(host), self.sync(host));
        let on_disk = self.setting.holds_on_disk && self.hosts[host].store.is_some();
        if let Some(store) = &mut self.hosts[host].store {
            if parent != store.epochs.last().copied() {
                return;
            }
            store.append(key);
        }
        if on_disk {
            return self.later(host, durable_in, Event::HeldOnDisk { stream: number, key });
        }
        if let Process::Standby { machine, .. } = &mut self.hosts[host].process {
            machine.holds(key, parent, clock);
        }
        if self.hosts[host].store.is_some() {
            self.later(host, durable_in, Event::Durable(key));
        }
    }

    /// To the other host, if the link lets it.
    pub(super) fn send(&mut self, host: usize, event: Event) {
        if !self.link_up[host] || (self.noise > 0 && self.random.one_in(self.noise)) {
            return;
        }
        let after = 50 + self.random.below(if self.noise > 0 { 8_000 } else { 500 });
        if let (true, Event::Message(message)) = (self.noise > 0 && self.random.one_in(self.noise), &event) {
            let (again, after) = (Event::Message(*message), self.random.below(60_000));
            self.later(1 - host, after, again);
        }
        // It is for whoever is there when it comes.
        self.push(self.now + after, What::At(1 - host, self.hosts[1 - host].pid, event));
    }
}
