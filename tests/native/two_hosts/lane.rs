//! A pair of real machines on two hosts, clients behind a switch, and a witness of three nodes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use slackwater::ledger::{LoadOptions, Verdict};
use slackwater::replica::register::{Holder, Incarnation, Register};
use slackwater::replica::wire::tls_init;
use slackwater::replica::witness::Witness;
use slackwater::replica::witness::etcd::EtcdWitness;
use slackwater::replica::witness::file::FileWitness;

use super::taps::{Line, Taps};
use crate::native::ledger::{Clients, Net};
use crate::support::command::{Running, run, slackwater};
use crate::support::netns::{TAP, TwoHosts, WITNESS, link_address};
use crate::support::patience;
use crate::witness::servers::Cluster;

/// Nothing that a machine does takes longer.
const LIMIT: Duration = Duration::from_secs(60);
/// A machine may outlive a whole test.
const LIFE: Duration = Duration::from_secs(1800);
/// Where a standby listens.
const PORT: u16 = 7001;

pub(super) const GOES_ON: &str = "the machine goes on here";
pub(super) const LEDGER: &str = "--guest ledger --memory 16M";

/// What runs at a host.
pub(super) struct Machine {
    pub(super) running: Running,
    /// It was started as one that runs the guest.
    is_first: bool,
}

impl Machine {
    /// Whether it runs the guest, as far as it knows.
    fn is_primary(&self) -> bool {
        self.is_first || self.running.messages(GOES_ON) > 0
    }
}

/// The pair, and everything around it.
pub(super) struct Lane {
    // In this order they end.
    clients: Option<Clients>,
    pub(super) machines: [Option<Machine>; 2],
    taps: Taps,
    cluster: Cluster,
    pub(super) net: TwoHosts,
    pub(super) dir: tempfile::TempDir,
    options: String,
    /// Of heartbeats.
    timing: &'static str,
    /// The witness is a directory that both hosts have, and not the cluster.
    has_directory: bool,
    /// Who was the last pair.
    pair: Option<Holder>,
    /// From the primary's last word to the standby's first instruction, as that says.
    pub(super) failovers: Vec<Duration>,
    /// From the last new answer of the one to the first of the other.
    pub(super) silences: Vec<Duration>,
}

impl Lane {
    /// Makes the hosts, and starts the witness. Where that can't be, says loudly that `test` is
    /// skipped.
    pub(super) fn start(test: &str, options: &str) -> Option<Self> {
        let net = TwoHosts::make_or_skip(test)?;
        let cluster = net.switch.within(|| Cluster::start_at(test, WITNESS))?;
        let dir = tempfile::tempdir().unwrap();
        tls_init(&dir.path().join("tls")).unwrap();
        Some(Self {
            clients: None,
            machines: [None, None],
            taps: Taps::listen(&net),
            cluster,
            net,
            dir,
            options: options.to_owned(),
            timing: "--timeout 300ms --heartbeat 20ms",
            has_directory: false,
            pair: None,
            failovers: Vec::new(),
            silences: Vec::new(),
        })
    }

    /// The same, with clients, and the two as a pair.
    pub(super) fn start_paired(test: &str, options: &str, clients: usize) -> Option<(Self, u64)> {
        let mut lane = Self::start(test, options)?;
        let generation = lane.begin(LEDGER);
        lane.ask(clients);
        Some((lane, generation))
    }

    /// With the heartbeats that everybody has who chooses none.
    pub(super) const fn at_default_times(mut self) -> Self {
        self.timing = "";
        self
    }

    /// With a directory as the witness.
    pub(super) fn with_directory(mut self) -> Self {
        std::fs::create_dir(self.dir.path().join("witness")).unwrap();
        self.has_directory = true;
        self
    }

    /// Starts a guest as a pair. Returns the generation.
    pub(super) fn begin(&mut self, guest: &str) -> u64 {
        self.standby(1);
        self.primary(0, guest);
        self.settle(0)
    }

    /// Has clients ask, without end.
    pub(super) fn ask(&mut self, clients: usize) {
        self.ask_as(1, clients);
    }

    /// The same as others than before, who ask no more: from the id `first_client` on.
    pub(super) fn ask_as(&mut self, first_client: u64, clients: usize) {
        self.start_clients(LoadOptions { clients, first_client, pages: 8, ..LoadOptions::default() });
    }

    /// Has the guest write to so many pages, one after the other.
    pub(super) fn touch(&mut self, pages: u64) {
        const AT_ONCE: u32 = 2000;
        self.start_clients(LoadOptions { clients: 1, pages: AT_ONCE, ..LoadOptions::default() });
        self.is_served(pages / u64::from(AT_ONCE));
    }

    fn start_clients(&mut self, options: LoadOptions) {
        self.clients.take().map(Clients::finish);
        self.clients = Some(self.net.switch.within(|| Clients::start(Net::Tap(TAP), options)));
    }

    /// That clients are served: so many answers more.
    #[track_caller]
    pub(super) fn is_served(&self, answers: u64) {
        assert!(self.clients.as_ref().unwrap().wait_for(answers), "the clients ended");
    }

    pub(super) fn store(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("host-{host}/store"))
    }

    pub(super) fn witness(&self) -> String {
        if self.has_directory {
            return format!("file:{}/witness/vm", self.dir.path().display());
        }
        format!("etcd:{}/vm", self.cluster.endpoints.join(","))
    }

    /// What every machine at a host is given.
    fn common(&self, host: usize) -> String {
        let (dir, other, tls) = (self.dir.path().display(), link_address(1 - host), ["one", "two"][host]);
        std::fs::create_dir_all(self.store(host).parent().unwrap()).unwrap();
        format!(
            "--store {} --witness {} --tls {dir}/tls/{tls} --standby {other}:{PORT} {} --interval 10ms {} --json",
            self.store(host).display(),
            self.witness(),
            self.timing,
            self.options
        )
    }

    /// Starts the command at a host.
    pub(super) fn command(&self, host: usize, line: &str) -> Running {
        self.net.hosts[host].within(|| {
            let mut command = slackwater(line.split_whitespace());
            command.env("SLACKWATER_LOG", "info");
            Running::start_within(&mut command, LIFE)
        })
    }

    fn put(&mut self, host: usize, running: Running, is_first: bool) {
        let before = self.machines[host].replace(Machine { running, is_first });
        assert!(before.is_none(), "two machines at host {host}");
    }

    pub(super) fn primary(&mut self, host: usize, guest: &str) {
        let line = format!("checkpoint {} {guest} --net tap={TAP}", self.common(host));
        self.put(host, self.command(host, &line), true);
    }

    pub(super) fn standby(&mut self, host: usize) {
        let running = self.command(host, &self.standby_line(host));
        self.put_standby(host, running);
    }

    pub(super) fn standby_line(&self, host: usize) -> String {
        format!("standby --listen {}:{PORT} {}", link_address(host), self.common(host))
    }

    pub(super) fn put_standby(&mut self, host: usize, mut running: Running) {
        running.wait_for_message("listening");
        self.put(host, running, false);
    }

    /// Has the store of a host go on.
    fn revive(&mut self, host: usize) {
        let line = format!("restore --continue {}", self.common(host));
        self.put(host, self.command(host, &line), true);
    }

    #[track_caller]
    pub(super) fn machine(&mut self, host: usize) -> &mut Running {
        &mut self.machines[host].as_mut().unwrap().running
    }

    #[track_caller]
    pub(super) fn take(&mut self, host: usize) -> Running {
        let Machine { running, is_first } = self.machines[host].take().unwrap();
        if !is_first && running.messages(GOES_ON) > 0 {
            let line = running.last_message(GOES_ON);
            let took = line.split_once(" after ").and_then(|(_, took)| took.split_once(" ms: ")).unwrap().0;
            self.failovers.push(Duration::from_secs_f64(took.parse::<f64>().unwrap() / 1e3));
        }
        running
    }

    /// Which host's machine runs the guest, as far as it knows; none while two think so, or nobody.
    fn only_primary(&self) -> Option<usize> {
        let is = [0, 1].map(|host| self.machines[host].as_ref().is_some_and(Machine::is_primary));
        (is[0] != is[1]).then_some(usize::from(is[1]))
    }

    /// The same, when there is one.
    #[track_caller]
    pub(super) fn wait_for_primary(&mut self) -> usize {
        self.until("nobody runs the guest alone", |lane| {
            lane.gather();
            lane.only_primary()
        })
    }

    /// Takes away machines that found that another one goes on. Nothing else ends by itself.
    fn gather(&mut self) {
        for host in [0, 1] {
            if self.machines[host].as_mut().is_some_and(|machine| machine.running.has_ended()) {
                self.take(host).wait().expect(4).says(&["another machine goes on"]);
            }
        }
    }

    /// What the witness says, if it answers.
    pub(super) fn register(&self) -> Option<Register> {
        if self.has_directory {
            let dir = self.dir.path().join("witness");
            return FileWitness::open(&dir, "vm", Duration::from_secs(2)).unwrap().read().ok().flatten();
        }
        let endpoints = &self.cluster.endpoints;
        self.net.switch.within(|| EtcdWitness::new(endpoints, false, "vm", Duration::from_secs(2)).unwrap().read().ok().flatten())
    }

    #[track_caller]
    pub(super) fn until<T>(&mut self, missing: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if begun.elapsed() > patience(LIMIT) {
                panic!("{missing} in {:?}; the witness says {:?}", begun.elapsed(), self.register());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a register of a newer generation.
    #[track_caller]
    pub(super) fn wait_for_newer(&mut self, than: u64) -> Register {
        self.until("the witness is not asked for anything", |lane| {
            lane.register().filter(|register| register.generation.0 > than)
        })
    }

    /// Waits until exactly one goes on and the other follows it, by a register newer than `than`.
    /// What has ended comes back as a standby; the store of a machine that was alone and died goes
    /// on.
    #[track_caller]
    pub(super) fn settle(&mut self, than: u64) -> u64 {
        self.until("no pair", |lane| {
            lane.gather();
            let register = lane.register()?;
            match (lane.only_primary(), register.holder) {
                (Some(primary), _) if lane.machines[1 - primary].is_none() => lane.standby(1 - primary),
                (Some(_), Holder::Paired(..)) if register.generation.0 > than => {
                    lane.pair = Some(register.holder);
                    return Some(register.generation.0);
                }
                _ => {}
            }
            None
        })
    }

    /// Both are dead, and the machine at `host` was alone, and is to be again.
    pub(super) fn goes_on_from_its_store(&mut self, host: usize) {
        assert_eq!(self.register().map(|register| register.holder), Some(Holder::Solo(self.was_primary())));
        self.revive(host);
    }

    /// The primary of the last pair.
    pub(super) fn was_primary(&self) -> Incarnation {
        self.pair.unwrap().primary()
    }

    /// Waits for answers of a host, so many more than `than`.
    #[track_caller]
    pub(super) fn wait_for_answers(&mut self, host: usize, than: u64, more: u64) {
        self.until("the guest does not answer there", |lane| (lane.answered(host) >= than + more).then_some(()));
    }

    /// Whether what both taps saw is one history; else why not.
    pub(super) fn is_one(&self) -> Result<usize, String> {
        self.taps.look(Line::one)
    }

    pub(super) fn answered(&self, host: usize) -> u64 {
        self.taps.look(|line| line.answered[host])
    }

    /// Waits until the other machine goes on, and answers what was never answered before. Notes how
    /// long nobody did.
    #[track_caller]
    pub(super) fn wait_for_takeover(&mut self, from: usize) {
        let to = 1 - from;
        self.machine(to).wait_for_message(GOES_ON);
        let last = self.taps.look(|line| line.newest_at(from));
        let first = self.until("nothing new is answered", |lane| {
            let at = lane.taps.look(|line| line.newest_at(to))?;
            (Some(at) > last).then_some(at)
        });
        self.silences.extend(last.map(|last| first.saturating_duration_since(last)));
    }

    /// Kills all nodes of the witness.
    pub(super) fn stop_witness(&mut self) {
        (0..3).for_each(|node| self.cluster.kill(node));
    }

    /// Starts them again, with all they knew.
    pub(super) fn start_witness(&mut self) {
        let Self { net, cluster, .. } = self;
        net.switch.within(|| (0..3).for_each(|node| cluster.run(node).unwrap()));
    }

    /// Kills the node that leads.
    pub(super) fn kill_leader(&mut self) -> usize {
        let Self { net, cluster, .. } = self;
        net.switch.within(|| {
            let leader = cluster.leader();
            cluster.kill(leader);
            leader
        })
    }

    pub(super) fn start_node(&mut self, node: usize) {
        let Self { net, cluster, .. } = self;
        net.switch.within(|| cluster.run(node).unwrap());
    }

    /// Ends everything in order, and checks what clients, taps and stores say.
    pub(super) fn finish(mut self) {
        self.is_served(20);
        let outcome = self.clients.take().unwrap().finish();
        assert_eq!(outcome.verdict, Verdict::Stopped, "{outcome:?}");
        let primary = self.wait_for_primary();
        for host in [primary, 1 - primary] {
            if self.machines[host].is_some() {
                let running = self.take(host);
                running.signal(libc::SIGTERM);
                running.wait().expect(0);
            }
        }
        let (counts, answered) = (self.is_one().unwrap(), [0, 1].map(|host| self.answered(host)));
        println!("{} of {} counts are in {answered:?} answers", counts, self.taps.look(Line::count));
        for host in [0, 1] {
            let store = self.store(host);
            if store.exists() {
                let report = run(&format!("verify --store {} --json", store.display())).expect(0).json();
                assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
            }
        }
        println!("the clients: {:?}", outcome.report);
        tell("from the primary's last word to the standby's first instruction", self.failovers);
        tell("from the last answer of one host to the first of the other", self.silences);
    }
}

/// Says how long something took. Nothing depends on it.
fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1));
    if let (Some(half), Some(most), Some(max)) = (at(50), at(99), times.last()) {
        println!("{what}: {} times, p50 {half:.1?}, p99 {most:.1?}, max {max:.1?}", times.len());
    }
}
