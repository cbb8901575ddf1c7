//! The clocks of a Linux guest and its generation id after a restore. Only where KVM runs kernels
//! and somebody gives one.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use slackwater::page::{EpochId, Gfn};
use slackwater::store::{Chain, PageReader};

use crate::native::linux::{Guest, OFTEN, at_prompt, boot, files_or_skip, restore};
use crate::support::{full, nested};

const TEST: &str = "native::linux_time::clocks_go_on_or_forward_and_each_restore_has_another_generation_id";
/// The guest's generation id: its frame, and where in it.
const GENERATION_ID: (Gfn, usize) = (Gfn(0xdf), 0x10);

/// The guest says again and again what its clocks show, how often it was told of another generation
/// id, and how many complaints about clocks and lock-ups its log has.
const SAY: &str = "(while true; do echo \"at $(date +%s) $(cut -d ' ' -f 1 /proc/uptime) $(cat /sys/class/rtc/rtc0/since_epoch) \
$(awk '/ACPI:Ged/{print $2+$3}' /proc/interrupts) $(dmesg | grep -cE 'lockup|stall|unstable|skew|warp|BUG:')\" end; sleep 0.2; done) &\n";

/// What the guest said, and between which times of the host, in seconds since 1970: however long a
/// line takes to be said and seen, it is from between them.
#[derive(Clone, Copy, Debug)]
struct Said {
    after_s: f64,
    seen_s: f64,
    /// The system's time, its uptime, the real-time clock.
    clocks_s: [f64; 3],
    events: u64,
    complaints: u64,
}

/// By so much a clock may seem off, in seconds: clocks have whole seconds, and an emulated
/// machine's own are not good. Small against the time that the machine is away.
fn noise_s() -> f64 {
    if nested() { 10.0 } else { 3.0 }
}

fn host_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Waits for the next line that the guest begins from now on.
fn next_said(guest: &mut Guest, what: &str) -> Said {
    let after_s = host_s();
    let lines = |console: &str| console.lines().filter(|line| line.trim_end().ends_with(" end")).count();
    let before = lines(&guest.console());
    // The one in hand was begun before.
    guest.wait_for(what, |console| (lines(console) > before + 1).then(|| said(console, after_s)).flatten())
}

/// The last whole line, which was begun after `after_s`.
fn said(console: &str, after_s: f64) -> Option<Said> {
    let line = console.lines().rev().find_map(|line| line.trim_end().strip_prefix("at ")?.strip_suffix(" end"))?;
    let [date, uptime, rtc, events, complaints] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let clocks_s = [date.parse().ok()?, uptime.parse().ok()?, rtc.parse().ok()?];
    Some(Said { after_s, seen_s: host_s(), clocks_s, events: events.parse().ok()?, complaints: complaints.parse().ok()? })
}

impl Said {
    /// By how much each clock is behind the host's, at least and at most.
    fn behind_s(self) -> [(f64, f64); 3] {
        self.clocks_s.map(|clock| (self.after_s - clock, self.seen_s - clock))
    }

    /// That since `before` each clock has fallen behind the host's by so many seconds.
    #[track_caller]
    fn fell_behind(self, before: Self, by_s: RangeInclusive<f64>) {
        for (before_s, after_s) in before.behind_s().into_iter().zip(self.behind_s()) {
            let (least_s, most_s) = (after_s.0 - before_s.1, after_s.1 - before_s.0);
            let agrees = least_s <= by_s.end() + noise_s() && by_s.start() - noise_s() <= most_s;
            assert!(agrees, "{least_s} to {most_s} s behind, not {by_s:?}: {before:?}, {self:?}");
        }
    }
}

/// What the guest says once it has seen the interrupt, and a few lines later, which is when a
/// watchdog would have complained.
fn after_restore(guest: &mut Guest) -> Said {
    guest.wait_for("word of another generation", |console| said(console, 0.0).filter(|said| said.events > 0));
    for _ in 0..2 {
        next_said(guest, "more lines");
    }
    next_said(guest, "the clocks")
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
    let Some(files) = files_or_skip(TEST) else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut guest =
        Guest::start(boot(&files, &store, "vmlinux", &format!("--memory 128M --vcpus 2 {OFTEN}")), dir.path(), "first");
    guest.wait_for("the shell", at_prompt);
    guest.enter(SAY);
    let first = next_said(&mut guest, "the clocks");
    assert_eq!(first.events, 0, "nothing was restored yet: {first:?}");
    let [date_s, _, rtc_s] = first.behind_s();
    let is_hosts = |(least, most): (f64, f64)| least < noise_s() && -noise_s() < most;
    assert!(is_hosts(date_s) && is_hosts(rtc_s), "not the host's time: {first:?}");
    // Until there is an epoch in which the guest has said this.
    let appended = |_: &str| Chain::open(&store).ok().filter(|chain| cut_s(chain, chain.newest()) > first.seen_s);
    let chain = guest.wait_for("an epoch", appended);
    let before = next_said(&mut guest, "the clocks again");
    drop(guest);
    let epoch = chain.newest();
    let cut_s = cut_s(&chain, epoch);
    let id = generation_id(chain, epoch);
    assert_ne!(id, [0; 16]);

    // Time goes by, less than makes the clocks of a kernel before 6.10 overflow (docs/kernel.md).
    let shifted = nested().then(|| ShiftedClock::by(900));
    while host_s() < cut_s + 15.0 {
        std::thread::sleep(Duration::from_millis(50));
    }

    let away_s = host_s() - cut_s;
    let mut guest = Guest::start(restore(&store, &format!("--epoch {epoch} --clock continue")), dir.path(), "continue");
    let now = after_restore(&mut guest);
    now.fell_behind(before, away_s..=host_s() - cut_s);
    assert_eq!((now.events, now.complaints), (1, before.complaints), "{}", guest.console());
    // The guest sets the clock, and reads it.
    guest.enter("date -u -s @1000000000 > /dev/null; hwclock -u -w; echo \"set: $(cat /sys/class/rtc/rtc0/since_epoch) $(hwclock -u -r).\"\n");
    let set = guest.wait_for("the clock that was set", |console| {
        console.lines().find_map(|line| Some(line.trim_end().strip_prefix("set: ")?.strip_suffix('.')?.to_owned()))
    });
    // However long that took.
    let since_s: u64 = set.split(' ').next().unwrap().parse().unwrap();
    assert!((1_000_000_000..1_000_003_600).contains(&since_s) && set.contains("Sep  9 ") && set.contains("2001"), "{set}");
    drop(guest);

    let away_s = host_s() - cut_s;
    let mut guest = Guest::start(
        restore(&store, &format!("--epoch {epoch} --clock host --branch host --interval 200ms")),
        dir.path(),
        "host",
    );
    let now = after_restore(&mut guest);
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
        let mut guest = Guest::start(restore(&store, &format!("--epoch {epoch} --clock host --lazy")), dir.path(), "behind");
        let now = after_restore(&mut guest);
        now.fell_behind(before, away_s..=host_s() - cut_s);
        assert_eq!((now.events, now.complaints), (1, before.complaints), "{}", guest.console());
        assert!(guest.messages().contains("behind the checkpoint"), "{}", guest.messages());
    }
}
