//! The order of events.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::event::{Entry, Event, What};
use super::host::{Host, Process, Store, Stream};
use super::register::{Call, Witness};
use super::setting::{FAULTY, HEALED, Seen, Setting, TICK, TIMING, Time};
use super::world::World;
use crate::replica::proto::{Action, Body, EpochKey, Halted, Message, Primary, PrimaryOptions, PrimaryRole, Record, WhenLost};
use crate::replica::register::{Generation, Holder, Incarnation, Register};
use crate::store::testing::Random;

pub(super) struct Run {
    pub(super) random: Random,
    pub(super) setting: Setting,
    pub(super) now: Time,
    pub(super) order: u64,
    pub(super) queue: BinaryHeap<Reverse<Entry>>,
    pub(super) hosts: [Host; 2],
    pub(super) witness: Witness,
    pub(super) world: World,
    /// Whether messages from host 0 to 1, and from 1 to 0, arrive.
    pub(super) link_up: [bool; 2],
    /// One in so many messages is lost or comes twice; 0: none.
    pub(super) noise: u64,
    pub(super) healed: bool,
    pub(super) released_at: Time,
    pub(super) seen: Seen,
    pub(super) log: Option<Vec<String>>,
}

impl Run {
    /// Runs a seed. What went wrong, or what happened.
    pub(super) fn of(seed: u64, log: bool) -> (Result<Seen, String>, Vec<String>) {
        Self::with(seed, false, log)
    }

    /// The same with no other fault than that both hosts stand still at times, at once.
    pub(super) fn of_stalls(seed: u64) -> Result<Seen, String> {
        Self::with(seed, true, false).0
    }

    fn with(seed: u64, only_stalls: bool, log: bool) -> (Result<Seen, String>, Vec<String>) {
        let mut random = Random(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) + 1);
        let setting = Setting {
            waits_for_chain: random.one_in(3),
            holds_on_disk: random.one_in(2),
            when_lost: if random.one_in(4) { WhenLost::Stop } else { WhenLost::Solo },
            fault_us: [20_000, 60_000, 200_000][usize::try_from(random.below(3)).unwrap()],
            sync_us: if random.one_in(3) { 60_000 } else { 4_000 },
            only_stalls,
        };
        let mut host = |always: bool| Host {
            process: Process::Down,
            pid: 0,
            store: (always || !random.one_in(3)).then(Store::default),
            frozen_until: 0,
            synced_at: 0,
            recorded_at: 0,
            clock_percent: 100,
        };
        let hosts = [host(true), host(false)];
        let mut run = Self {
            random,
            setting,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            hosts,
            witness: Witness { is_up: true, ..Witness::default() },
            world: World::default(),
            link_up: [true; 2],
            noise: 0,
            healed: false,
            released_at: 0,
            seen: Seen::default(),
            log: log.then(Vec::new),
        };
        run.begin();
        let result = run.go();
        (result, run.log.unwrap_or_default())
    }

    pub(super) fn begin(&mut self) {
        let me = self.incarnation();
        let record = Record::new(me);
        if let Some(store) = &mut self.hosts[0].store {
            store.record = Some(record.clone());
        }
        self.start_primary(0, me, (None, Some(record)));
        self.hosts[1].process = Process::Idle;
        self.hosts[1].pid = 1;
        let first = 50_000 + self.random.below(100_000);
        self.push(first, What::Fault);
        self.push(FAULTY, What::Heal);
    }

    pub(super) fn go(&mut self) -> Result<Seen, String> {
        while let Some(Reverse(Entry(at, _, what))) = self.queue.pop() {
            if at > FAULTY + HEALED {
                break;
            }
            self.now = at;
            match what {
                What::At(host, pid, event) => self.at(host, pid, event),
                What::Call { host, pid, call, is_awaited } => self.call(host, pid, call, is_awaited),
                What::Fault => self.fault(),
                What::Heal => self.heal(),
                What::Operator => self.operator(),
            }
            if let Some(broken) = self.world.broken.take() {
                return Err(broken);
            }
        }
        self.end()
    }

    /// Progress came back: outputs leave, and two hosts that are up are a pair.
    pub(super) fn end(&mut self) -> Result<Seen, String> {
        self.seen.releases = self.world.releases;
        let alone = self.hosts.iter().all(|host| matches!(host.process, Process::Idle));
        let machines = self.hosts.iter().filter(|host| matches!(host.process, Process::Primary { .. })).count();
        let has_a_machine = self.hosts.iter().any(|host| host.store.as_ref().is_some_and(|store| !store.epochs.is_empty()));
        // The disk of the one that went on was lost, and there was no other.
        if alone && !has_a_machine {
            self.seen.gone += 1;
            return Ok(self.seen);
        }
        if machines != 1 {
            return Err(format!("{machines} machines at the end: {:?}", self.witness.value));
        }
        for host in &self.hosts {
            if let Process::Primary { machine, .. } = &host.process
                && machine.role() != PrimaryRole::Paired
            {
                return Err(format!("no pair at the end: {machine:?}, {:?}", self.witness.value));
            }
        }
        if self.released_at + 200_000 < FAULTY + HEALED {
            return Err(format!("nothing has left since {} us", self.released_at));
        }
        Ok(self.seen)
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            let line = what().replace(&"0".repeat(16), "");
            if log.last().is_none_or(|last| !last.ends_with(&line)) {
                log.push(format!("{now}: {line}"));
            }
        }
    }

    pub(super) fn push(&mut self, at: Time, what: What) {
        self.order += 1;
        self.queue.push(Reverse(Entry(at.max(self.now), self.order, what)));
    }

    pub(super) fn later(&mut self, host: usize, after: Time, event: Event) {
        let pid = self.hosts[host].pid;
        self.push(self.now + after, What::At(host, pid, event));
    }

    pub(super) fn incarnation(&mut self) -> Incarnation {
        Incarnation(u128::from(self.random.next()))
    }

    pub(super) fn draw(&mut self) -> Box<dyn FnMut() -> u128 + Send> {
        let mut random = Random(self.random.next());
        Box::new(move || u128::from(random.next()))
    }

    /// What the clock of a host says.
    pub(super) fn clock(&self, host: usize) -> Duration {
        Duration::from_micros(self.now * self.hosts[host].clock_percent / 100)
    }

    pub(super) fn start_primary(&mut self, host: usize, me: Incarnation, from: (Option<Register>, Option<Record>)) {
        let head = self.hosts[host].store.as_ref().and_then(|store| store.epochs.last().copied());
        let has_chain = self.hosts[host].store.is_some();
        self.hosts[host].pid += 1;
        let (draw, clock) = (self.draw(), self.clock(host));
        self.note(|| format!("host {host} opens as {me} at {head:?} from {from:?}"));
        let mut machine = Primary::open(me, self.primary_options(has_chain), from, head, draw, clock);
        if let Some(head) = head {
            machine.durable(head.epoch, clock);
        }
        self.hosts[host].process =
            Process::Primary { machine: Box::new(machine), runs: false, has_run: false, guest: head, stream: None, hello: None };
        self.later(host, 0, Event::Tick);
        self.acts(host);
    }

    pub(super) fn primary_options(&self, has_chain: bool) -> PrimaryOptions {
        let Setting { waits_for_chain, when_lost, .. } = self.setting;
        PrimaryOptions { timing: TIMING, has_chain, waits_for_chain: waits_for_chain && has_chain, when_lost }
    }

    /// Something happens at a host.
    pub(super) fn at(&mut self, host: usize, pid: u64, event: Event) {
        if self.hosts[host].pid != pid {
            return;
        }
        let thaws = self.hosts[host].frozen_until;
        if thaws > self.now {
            // In the order in which they came.
            return self.push(thaws, What::At(host, pid, event));
        }
        let clock = self.clock(host);
        match (&mut self.hosts[host].process, event) {
            (_, Event::Start) => self.restart(host),
            (Process::Primary { machine, .. }, Event::Tick) => {
                machine.tick(clock);
                self.greet(host);
                self.later(host, TICK, Event::Tick);
            }
            (Process::Standby { machine, .. }, Event::Tick) => {
                machine.tick(clock);
                self.later(host, TICK, Event::Tick);
            }
            (Process::Primary { runs, .. }, Event::Cut) if *runs => {
                self.cut(host);
                let after = 1_000 + self.random.below(4_000);
                self.later(host, after, Event::Cut);
            }
            (Process::Primary { .. }, Event::Parked) => {
                let last = self.cut(host);
                if let Process::Primary { machine, runs, .. } = &mut self.hosts[host].process {
                    *runs = false;
                    machine.parked(last, clock);
                }
            }
            (process, Event::Durable(key)) => {
                let is_there = self.hosts[host].store.as_mut().is_some_and(|store| store.make_durable(key));
                if let (true, Process::Primary { machine, .. }) = (is_there, process) {
                    machine.durable(key.epoch, clock);
                }
            }
            (process, Event::Recorded(record)) => {
                if let Some(store) = &mut self.hosts[host].store {
                    store.record = Some(record.clone());
                }
                match process {
                    Process::Primary { machine, .. } => machine.recorded(record, clock),
                    Process::Standby { machine, .. } => machine.recorded(record, clock),
                    _ => {}
                }
            }
            (Process::Primary { machine, .. }, Event::Answer(answer)) => machine.answered(answer, clock),
            (Process::Standby { machine, .. }, Event::Answer(answer)) => machine.answered(answer, clock),
            (Process::Primary { machine, .. }, Event::Message(message)) => machine.heard(&message, clock),
            (Process::Standby { machine, .. }, Event::Message(message)) => machine.heard(&message, clock),
            (_, Event::Hello { from, who, register, stream }) => self.hello(host, from, (who, register), stream),
            (Process::Primary { machine, stream, hello, .. }, Event::Welcome { who, stream: number })
                if *hello == Some(number) =>
            {
                *hello = None;
                if machine.attach(who, clock) {
                    let base_in = 1 + self.random.below(12);
                    *stream = Some((who, Stream { number, has_base: false, base_in, sent: None, arrives: 0, is_broken: false }));
                }
            }
            (Process::Primary { machine, stream, .. }, Event::StreamEnded(number)) => {
                if let Some((who, _)) = stream.filter(|(_, stream)| stream.number == number) {
                    machine.lost(who, clock);
                }
            }
            (Process::Standby { machine, stream }, Event::StreamEnded(number)) if *stream == number => machine.lost(clock),
            (Process::Standby { stream, .. }, Event::Epoch { stream: number, key, parent }) if *stream == number => {
                self.receives(host, number, key, parent);
            }
            (Process::Standby { machine, stream }, Event::HeldOnDisk { stream: number, key }) => {
                let store = self.hosts[host].store.as_mut().filter(|_| *stream == number);
                if let Some(store) = store
                    && store.make_durable(key)
                {
                    // A sync makes all durable that came before.
                    for (key, parent) in store.durable_behind(machine.newest()) {
                        machine.holds(key, parent, clock);
                    }
                }
            }
            _ => {}
        }
        self.acts(host);
    }

    /// The guest's instant becomes an epoch.
    pub(super) fn cut(&mut self, host: usize) -> EpochKey {
        let Process::Primary { guest, .. } = &self.hosts[host].process else { unreachable!() };
        let guest = *guest;
        let clock = self.clock(host);
        // Where nobody else has them, epochs whose storage fails come again, and so do their
        // numbers.
        let fails = self.random.one_in(50);
        let Process::Primary { stream, .. } = &self.hosts[host].process else { unreachable!() };
        let before = match &mut self.hosts[host].store {
            None => guest,
            Some(store) => {
                if fails && stream.is_none_or(|(_, stream)| stream.is_broken) && store.durable > 0 {
                    store.epochs.truncate(store.durable);
                }
                store.epochs.last().copied()
            }
        };
        let key = self.world.cut(&mut self.random, guest, before.map_or(1, |before| before.epoch.0 + 1));
        if let Some(store) = &mut self.hosts[host].store {
            store.append(key);
        }
        let durable_in = self.sync(host);
        let Process::Primary { machine, guest, stream, .. } = &mut self.hosts[host].process else { unreachable!() };
        *guest = Some(key);
        machine.completed(key, clock);
        let mut sent = None;
        if let Some((_, stream)) = stream.as_mut().filter(|(who, stream)| !stream.is_broken && machine.standby() == Some(*who)) {
            if !stream.has_base && stream.base_in > 0 {
                stream.base_in -= 1;
            } else {
                stream.has_base = true;
                sent = Some((stream.number, stream.sent.replace(key)));
            }
        }
        if self.hosts[host].store.is_some() {
            self.later(host, durable_in, Event::Durable(key));
        }
        if let Some((number, parent)) = sent {
            self.stream(host, number, key, parent);
        }
        key
    }

    /// In how long what was appended now is durable: behind all before it.
    pub(super) fn sync(&mut self, host: usize) -> Time {
        let takes = 200 + self.random.below(self.setting.sync_us);
        let host = &mut self.hosts[host];
        host.synced_at = host.synced_at.max(self.now + takes);
        host.synced_at - self.now
    }

    /// Does what the machine of a host wants, and looks at what it released.
    pub(super) fn acts(&mut self, host: usize) {
        loop {
            let action = match &mut self.hosts[host].process {
                Process::Primary { machine, .. } => machine.action(),
                Process::Standby { machine, .. } => machine.action(),
                _ => None,
            };
            self.look(host);
            let Some(action) = action else { return };
            self.act(host, action);
        }
    }

    pub(super) fn look(&mut self, host: usize) {
        let Process::Primary { machine, .. } = &self.hosts[host].process else { return };
        let (Some(released), Some(register)) = (machine.released(), machine.register()) else { return };
        let me = machine.me();
        let is_new = self.world.is_new(me, released);
        if is_new {
            let is_durable = self.hosts[host].store.as_ref().is_some_and(|store| store.is_durable(released));
            self.world.releases(me, register, released, is_durable);
            self.released_at = self.now;
        }
    }

    pub(super) fn act(&mut self, host: usize, action: Action) {
        let beat = matches!(action, Action::Send(Message { body: Body::Beat, .. }));
        if !beat {
            self.note(|| format!("host {host}: {action:?}"));
        }
        match action {
            Action::Swap { expected, new } => self.ask(host, Call::Swap(expected, new)),
            Action::Read => self.ask(host, Call::Read),
            Action::Record(record) => {
                let takes = 100 + self.random.below(self.setting.sync_us);
                // In their order.
                let at = self.hosts[host].recorded_at.max(self.now + takes);
                self.hosts[host].recorded_at = at;
                self.later(host, at - self.now, Event::Recorded(record));
            }
            Action::Send(message) => {
                if let Body::Holds(key) = message.body {
                    self.world.says(message.from, message.register.generation, key);
                    if self.witness.under_way.iter().any(|(who, ..)| *who == message.from) {
                        self.world
                            .break_off(|| format!("{} says that it holds {key}, and has asked for the machine", message.from));
                    }
                }
                self.send(host, Event::Message(message));
            }
            Action::Run => self.run(host),
            Action::Park => {
                let after = self.random.below(2_000);
                self.later(host, after, Event::Parked);
            }
            Action::Drop(_) => match &mut self.hosts[host].process {
                Process::Primary { stream, .. } => *stream = None,
                _ => self.idle(host),
            },
            Action::Halt(why) => {
                if matches!(why, Halted::WitnessForgot { .. }) {
                    self.world.break_off(|| format!("host {host} says that the witness forgot: {why:?}"));
                }
                if matches!(why, Halted::HandedOver(_)) {
                    self.seen.migrations += 1;
                }
                // Its process ends, and is started again.
                self.stop(host, false);
            }
        }
    }

    pub(super) fn idle(&mut self, host: usize) {
        self.hosts[host].pid += 1;
        self.hosts[host].process = Process::Idle;
    }

    pub(super) fn run(&mut self, host: usize) {
        let (clock, has_chain) = (self.clock(host), self.hosts[host].store.is_some());
        let options = self.primary_options(has_chain);
        match std::mem::replace(&mut self.hosts[host].process, Process::Down) {
            Process::Standby { machine, .. } => {
                let me = machine.me();
                let promotion = machine.promotion().expect("it runs because it was promoted");
                let (head, generation) = (promotion.head(), promotion.register().map_or(Generation::NONE, |at| at.generation));
                self.seen.failovers += 1;
                self.world.begins(me, generation, Some(head));
                // It is the same process: what it asked for is still answered.
                let mut machine = Primary::promoted(promotion, options, head, clock);
                if self.hosts[host].store.as_ref().is_some_and(|store| store.is_durable(head)) {
                    machine.durable(head.epoch, clock);
                } else if has_chain {
                    self.later(host, 1_000, Event::Durable(head));
                }
                self.world.knows(me, head);
                let machine = Box::new(machine);
                self.hosts[host].process =
                    Process::Primary { machine, runs: true, has_run: true, guest: Some(head), stream: None, hello: None };
            }
            Process::Primary { machine, guest, stream, hello, has_run, runs: _ } => {
                let generation = machine.register().map_or(Generation::NONE, |register| register.generation);
                let me = machine.me();
                let may_be_given_away = self.witness.under_way.iter().any(|(_, expected, new)| {
                    *expected == self.witness.value
                        && !matches!(new.holder, Holder::Solo(who) if who == me)
                        && new.holder.primary() != me
                });
                if may_be_given_away && machine.role() == PrimaryRole::Suspect {
                    self.world.break_off(|| format!("{me} runs, and may have given its machine away"));
                }
                // One that was parked goes on where it was.
                if !has_run {
                    self.world.begins(me, generation, guest);
                }
                self.hosts[host].process = Process::Primary { machine, guest, stream, hello, runs: true, has_run: true };
            }
            other => self.hosts[host].process = other,
        }
        self.later(host, 500, Event::Cut);
    }
}
