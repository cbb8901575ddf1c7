//! The clocks of a Linux guest and its generation id after a restore. Only where KVM runs kernels and somebody gives one: in the nested lane.

use std::fs::{self, File};
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use slackwater::page::{EpochId, Gfn};
use slackwater::store::{Chain, PageReader};

use crate::support::command::slackwater;
use crate::support::{full, kvm_or_skip, nested, skip};

const TEST: &str = "native::linux_time::clocks_go_on_or_forward_and_each_restore_has_another_generation_id";
/// The folder with a guest's `vmlinuz` and `initrd`.
const FILES: &str = "SLACKWATER_LINUX";
/// Even under emulation nothing that a test waits for takes longer.
const LIMIT: Duration = Duration::from_secs(240);
/// The guest's generation id: its frame, and where in it.
const GENERATION_ID: (Gfn, usize) = (Gfn(0xdf), 0x10);

/// The guest says again and again what its clocks show, how often it was told of another generation id, and how many complaints about clocks and lock-ups its log has.
const SAY: &str = "(while true; do echo \"at $(date +%s) $(cut -d ' ' -f 1 /proc/uptime) $(cat /sys/class/rtc/rtc0/since_epoch) \
$(awk '/ACPI:Ged/{print $2+$3}' /proc/interrupts) $(dmesg | grep -cE 'lockup|stall|unstable|skew|warp|BUG:')\" end; sleep 0.2; done) &\n";

/// What the guest said, and when it was seen, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Said {
    seen_s: f64,
    /// The system's time, its uptime, the real-time clock.
    clocks_s: [f64; 3],
    events: u64,
    complaints: u64,
}

/// By so much a clock may seem off, in seconds: clocks have whole seconds, a line takes the guest a while, and it is seen some time later. Small against the time that
/// the machine is away.
fn noise_s() -> f64 {
    if nested() { 30.0 } else { 4.0 }
}

fn host_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The last whole line.
fn said(console: &str) -> Option<Said> {
    let line = console.lines().rev().find_map(|line| line.trim_end().strip_prefix("at ")?.strip_suffix(" end"))?;
    let [date, uptime, rtc, events, complaints] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let clocks_s = [date.parse().ok()?, uptime.parse().ok()?, rtc.parse().ok()?];
    Some(Said { seen_s: host_s(), clocks_s, events: events.parse().ok()?, complaints: complaints.parse().ok()? })
}

impl Said {
    /// By how much each clock is behind the host's.
    fn behind_s(self) -> [f64; 3] {
        self.clocks_s.map(|clock| self.seen_s - clock)
    }

    /// That since `before` each clock has fallen behind the host's by so many seconds.
    #[track_caller]
    fn fell_behind(self, before: Self, by_s: RangeInclusive<f64>) {
        for (before_s, after_s) in before.behind_s().into_iter().zip(self.behind_s()) {
            let fell_s = after_s - before_s;
            let allowed = by_s.start() - noise_s()..=by_s.end() + noise_s();
            assert!(allowed.contains(&fell_s), "{fell_s} s behind, not {by_s:?}: {before:?}, {self:?}");
        }
    }
}

/// The command with a guest on its standard input and output.
struct Guest {
    child: Child,
    input: ChildStdin,
    console: PathBuf,
    messages: PathBuf,
}

impl Guest {
    fn start(mut command: Command, dir: &Path, name: &str) -> Self {
        let (console, messages) = (dir.join(format!("{name}.console")), dir.join(format!("{name}.messages")));
        command.stdin(Stdio::piped()).stdout(File::create(&console).unwrap()).stderr(File::create(&messages).unwrap());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        Self { child, input, console, messages }
    }

    fn restored(store: &Path, epoch: EpochId, options: &[&str], name: &str) -> Self {
        let mut command = slackwater(["restore", "--json", "--epoch", &epoch.to_string(), "--store"]);
        command.arg(store).args(options);
        Self::start(command, store.parent().unwrap(), name)
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned()
    }

    fn messages(&self) -> String {
        fs::read_to_string(&self.messages).unwrap()
    }

    /// Waits until the console has what `find` looks for.
    fn wait_for<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        // The nested lane takes a machine that says nothing for one that hangs.
        const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
        let begun = Instant::now();
        let mut said = begun;
        loop {
            // Asked first: what is on the console when it has ended is all that will be.
            let ended = self.child.try_wait().unwrap();
            let console = self.console();
            if let Some(found) = find(&console) {
                let _ = writeln!(std::io::stderr(), "native::linux_time: {what} after {:?}", begun.elapsed());
                return found;
            }
            let tail = || console.get(console.len().saturating_sub(3000)..).unwrap_or(&console).to_owned();
            assert!(ended.is_none(), "ended ({ended:?}) before {what}: {}\n{}", tail(), self.messages());
            assert!(begun.elapsed() < LIMIT, "no {what} within {LIMIT:?}: {}\n{}", tail(), self.messages());
            if said.elapsed() > SIGN_OF_LIFE {
                said = Instant::now();
                let _ = writeln!(std::io::stderr(), "native::linux_time: waiting for {what}: {:?}", tail().lines().last());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn enter(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// What the guest says once it has seen the interrupt, and a few lines later, which is when a watchdog would have complained.
    fn after_restore(&mut self) -> Said {
        self.wait_for("word of another generation", |console| said(console).filter(|said| said.events > 0));
        let lines = |console: &str| console.lines().filter(|line| line.trim_end().ends_with(" end")).count();
        let before = lines(&self.console());
        self.wait_for("more lines", |console| (lines(console) > before + 3).then(|| said(console)).flatten())
    }

    /// Waits for its own end, and returns what the command says last.
    fn end(mut self) -> serde_json::Value {
        self.wait_for("the report", |console| console.contains("\"epoch\":").then_some(()));
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.messages());
        let console = self.console();
        // The guest may have left its last line open.
        let report = console.rfind("{\"epoch\":").map(|at| &console[at..]);
        serde_json::from_str(report.unwrap_or_default()).unwrap_or_else(|error| panic!("{error}: {console}"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The emulated machine's clock, put forward or back, until this is dropped.
struct ShiftedClock(i64);

impl ShiftedClock {
    fn by(seconds: i64) -> Self {
        shift(seconds);
        Self(seconds)
    }
}

impl Drop for ShiftedClock {
    fn drop(&mut self) {
        shift(-self.0);
    }
}

fn shift(seconds: i64) {
    assert!(nested(), "the clock of a machine that others use stays as it is");
    let now = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + seconds, ..now }).unwrap();
}

/// When an epoch was cut, in seconds since 1970.
fn cut_s(chain: &Chain, epoch: EpochId) -> f64 {
    Duration::from_nanos(chain.epoch(epoch).unwrap().commit.time_unix_ns).as_secs_f64()
}

fn generation_id(chain: Chain, epoch: EpochId) -> [u8; 16] {
    let (frame, offset) = GENERATION_ID;
    let mut id = [0; 16];
    let mut pages = PageReader::new(Arc::new(chain), epoch).unwrap();
    pages
        .read(frame, &mut |gfn, page| {
            if gfn == frame {
                id.copy_from_slice(&page[offset..offset + 16]);
            }
        })
        .unwrap();
    id
}

#[test]
fn clocks_go_on_or_forward_and_each_restore_has_another_generation_id() {
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some(files) = std::env::var_os(FILES).map(PathBuf::from) else {
        return skip(TEST, &format!("no Linux guest is given by {FILES}"));
    };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut command =
        slackwater(["checkpoint", "--memory=256M", "--vcpus=2", "--cmdline=console=ttyS0 quiet panic=-1", "--interval=200ms"]);
    command.arg("--kernel").arg(files.join("vmlinuz")).arg("--initrd").arg(files.join("initrd")).arg("--store").arg(&store);
    let mut guest = Guest::start(command, dir.path(), "first");
    guest.wait_for("the shell", |console| console.trim_end_matches("\u{1b}[6n").ends_with("# ").then_some(()));
    guest.enter(SAY);
    let first = guest.wait_for("the clocks", said);
    assert_eq!(first.events, 0, "nothing was restored yet: {first:?}");
    let [date_s, _, rtc_s] = first.behind_s();
    assert!(date_s.abs() < noise_s() && rtc_s.abs() < noise_s(), "not the host's time: {first:?}");
    // Until there is an epoch in which the guest has said this.
    let committed = |_: &str| Chain::open(&store).ok().filter(|chain| cut_s(chain, chain.newest()) > first.seen_s);
    let chain = guest.wait_for("an epoch", committed);
    let before = guest.wait_for("the clocks again", said);
    drop(guest);
    let epoch = chain.newest();
    let cut_s = cut_s(&chain, epoch);
    let id = generation_id(chain, epoch);
    assert_ne!(id, [0; 16]);

    // Time goes by.
    let shifted = nested().then(|| ShiftedClock::by(3600));
    while host_s() < cut_s + 15.0 {
        std::thread::sleep(Duration::from_millis(50));
    }

    let away_s = host_s() - cut_s;
    let mut guest = Guest::restored(&store, epoch, &["--clock=continue"], "continue");
    let now = guest.after_restore();
    now.fell_behind(before, away_s..=host_s() - cut_s);
    assert_eq!((now.events, now.complaints), (1, before.complaints), "{}", guest.console());
    // The guest sets the clock, and reads it.
    guest.enter("date -u -s @1000000000 > /dev/null; hwclock -u -w; echo \"set: $(cat /sys/class/rtc/rtc0/since_epoch) $(hwclock -u -r).\"\n");
    let set = guest.wait_for("the clock that was set", |console| {
        console.lines().find_map(|line| Some(line.trim_end().strip_prefix("set: ")?.strip_suffix('.')?.to_owned()))
    });
    assert!(set.starts_with("100000000") && set.contains("Sep  9 01:46:4") && set.contains("2001"), "{set}");
    drop(guest);

    let away_s = host_s() - cut_s;
    let mut guest = Guest::restored(&store, epoch, &["--clock=host", "--branch=host", "--interval=200ms"], "host");
    let now = guest.after_restore();
    now.fell_behind(before, 0.0..=0.0);
    assert_eq!((now.events, now.complaints), (1, before.complaints), "{}", guest.console());
    guest.enter("poweroff -f\n");
    let report = guest.end();
    assert_eq!(report["clock"], "host", "{report}");
    let forward_s = report["clock_forward_us"].as_f64().unwrap() / 1e6;
    assert!((away_s..=host_s() - cut_s).contains(&forward_s), "{forward_s} s: {report}");
    let branch = Chain::open_branch(&store, "host").unwrap();
    let last = branch.newest();
    assert!(last > epoch);
    assert!(![[0; 16], id].contains(&generation_id(branch, last)), "the id is the one before");
    drop(shifted);

    if nested() && full() {
        // The host's clock is behind the checkpoint: no time passed, and memory comes on demand.
        let _shifted = ShiftedClock::by(-600);
        let away_s = host_s() - cut_s;
        let mut guest = Guest::restored(&store, epoch, &["--clock=host", "--lazy"], "behind");
        let now = guest.after_restore();
        now.fell_behind(before, away_s..=host_s() - cut_s);
        assert_eq!((now.events, now.complaints), (1, before.complaints), "{}", guest.console());
        assert!(guest.messages().contains("behind the checkpoint"), "{}", guest.messages());
    }
}
