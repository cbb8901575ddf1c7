//! The options of a run under checkpoints, and what it came to.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::control::Control;
use super::error::CliError;
use super::keep::KeepArgs;
use super::pair::{PairArgs, Paired};
use super::units::{at_least_one, bytes_text, time_above_zero};
use super::{output, units};
use crate::epoch::{
    Durability, Early, Engine, EngineError, EngineOptions, OnStorageError, PhasesReport, Release, Report, Sink, Start, Triggers,
    WhenBehind,
};
use crate::format::Compression;
use crate::kvm::ring::RingSize;
use crate::page::PAGE_SIZE_U64;
use crate::replica::follower::Watched;
use crate::replica::node::Node;
use crate::store::WriterOptions;
use crate::track::HotPages;
use crate::vmm::devices::GuestEnd;
use crate::vmm::{GuestReport, Limits, NetworkReport, Outcome, Protection, Stop, Tracking, Vm, VmmError};

/// When an epoch ends at the latest, unless told otherwise. The hot set fills no ring, nor does a
/// guest whose working set is smaller than the rings.
const INTERVAL: Duration = Duration::from_millis(50);

/// When an epoch ends at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interval {
    /// Only when a ring is full.
    Off,
    /// After this time.
    Time(Duration),
}

fn interval(text: &str) -> Result<Interval, String> {
    if text == "off" { Ok(Interval::Off) } else { time_above_zero(text).map(Interval::Time) }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OutputsName {
    /// They wait: a machine that goes on from a checkpoint has said nothing that it does not know.
    Held,
    /// They leave at once.
    Free,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TrackerName {
    /// The dirty ring: an epoch ends when it is full.
    Ring,
    /// The dirty bitmap: an epoch ends by the interval.
    Bitmap,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenBehindName {
    /// Longer epochs, as long as the budget holds.
    Lengthen,
    /// The guest waits.
    Wait,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnStorageErrorName {
    /// Stop the guest.
    Stop,
    /// Keep it running and try again.
    Continue,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EarlyName {
    /// As far as it shortens pauses by more than it slows the guest down.
    Auto,
    /// All pages are copied while the guest stands still.
    Off,
    /// Whatever it costs the guest: for tests of this.
    Always,
}

/// How to take checkpoints.
#[derive(Debug, Args)]
pub(super) struct ProtectArgs {
    /// The most pages in an epoch.
    #[arg(long, value_name = "PAGES", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(..=1 << 28))]
    budget: u64,
    /// End an epoch after this time at the latest, or `off`: only a full ring ends it [default:
    /// 50ms].
    #[arg(long, value_name = "TIME", value_parser = interval)]
    interval: Option<Interval>,
    /// How to track writes.
    #[arg(long, value_enum, default_value_t = TrackerName::Ring)]
    tracker: TrackerName,
    /// Entries of each vCPU's ring, a power of two [default: the most that fit in the budget].
    #[arg(long, value_name = "ENTRIES")]
    ring: Option<u32>,
    /// Pages that are written often may stay writable and are taken into every epoch:
    /// `auto`, `off`, or the most of them. They are part of the budget, do not fill rings, and so
    /// need an interval; `auto` is `off` where there is none, and where this kernel can't.
    #[arg(long, value_name = "PAGES", default_value = "auto", value_parser = hot)]
    hot: HotPages,
    /// Whether pages are taken before an epoch ends, beside the running guest.
    #[arg(long, value_enum, default_value_t = EarlyName::Auto)]
    early: EarlyName,
    /// When an epoch is durable: `epoch` (the guest waits for it), `group[:MS]` (at most that much
    /// later), `none`.
    #[arg(long, value_name = "MODE", default_value = "group:10", value_parser = durability)]
    durability: Durability,
    /// How to store pages: `zstd[:LEVEL]` or `none`.
    #[arg(long, value_name = "CODEC", default_value = "zstd:1")]
    compression: Compression,
    /// A digest of all memory with every Nth epoch.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    audit: Option<NonZeroU64>,
    /// Epochs in flight between guest and storage. Memory: two budgets each.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=256))]
    in_flight: u16,
    /// Memory for earlier versions of pages: what changed is stored against them. With 0 every page
    /// is stored whole.
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = units::size)]
    version_memory: u64,
    /// What to do when storage is slower than the guest.
    #[arg(long, value_enum, default_value_t = WhenBehindName::Lengthen)]
    when_behind: WhenBehindName,
    /// What to do when an epoch can't be stored.
    #[arg(long, value_enum, default_value_t = OnStorageErrorName::Stop)]
    on_storage_error: OnStorageErrorName,
    /// Whether packets wait until the epoch that has them is released: durable, or in the chain
    /// with `--durability none`; in a pair when the standby holds it [default: free, in a pair
    /// held].
    #[arg(long, value_enum)]
    outputs: Option<OutputsName>,
    #[command(flatten)]
    pub(super) pair: PairArgs,
    /// Whether a Linux guest's console output waits as packets do. If it does not, a terminal may
    /// show again after a restore what it has shown before.
    #[arg(long, value_enum, default_value_t = OutputsName::Free)]
    console: OutputsName,
    /// What waits for its epoch has it end after this time at the latest.
    #[arg(long, value_name = "TIME", default_value = "200us", value_parser = time_above_zero)]
    output_delay: Duration,
    /// A Unix socket, made here, at which the machine can be asked and told (`slackwater status`).
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    #[command(flatten)]
    keep: KeepArgs,
    /// End after this time.
    #[arg(long = "for", value_name = "TIME", value_parser = units::time)]
    time: Option<Duration>,
    /// End after so many epochs.
    #[arg(long, value_name = "N", conflicts_with = "time", value_parser = at_least_one)]
    epochs: Option<NonZeroU64>,
}

fn hot(text: &str) -> Result<HotPages, String> {
    match text {
        "auto" => Ok(HotPages::Auto),
        "off" | "0" => Ok(HotPages::Off),
        pages => pages.parse().map(HotPages::Pages).map_err(|_| "`auto`, `off` or a number of pages".to_owned()),
    }
}

fn durability(text: &str) -> Result<Durability, String> {
    let window = |text: &str| match text.parse::<u64>() {
        Ok(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        Ok(_) => Err("a group window is at least 1 ms".to_owned()),
        Err(_) => time_above_zero(text),
    };
    match text.split_once(':') {
        None if text == "epoch" => Ok(Durability::Epoch),
        None if text == "none" => Ok(Durability::None),
        None if text == "group" => Ok(Durability::Group(Durability::GROUP_DEFAULT)),
        Some(("group", ms)) => Ok(Durability::Group(window(ms)?)),
        _ => Err("`epoch`, `group`, `group:MS` or `none`".to_owned()),
    }
}

impl ProtectArgs {
    /// Whether writes are tracked by dirty rings.
    pub(super) const fn uses_ring(&self) -> bool {
        matches!(self.tracker, TrackerName::Ring)
    }

    /// When an epoch ends at the latest.
    const fn interval(&self) -> Option<Duration> {
        match self.interval {
            None => Some(INTERVAL),
            Some(Interval::Time(time)) => Some(time),
            Some(Interval::Off) => None,
        }
    }

    /// Whether what leaves the machine waits for its epoch.
    pub(super) fn holds_outputs(&self) -> bool {
        self.outputs.map_or(self.pair.is_given(), |outputs| matches!(outputs, OutputsName::Held))
    }

    /// Whether the console's output does.
    pub(super) const fn holds_console(&self) -> bool {
        matches!(self.console, OutputsName::Held)
    }

    /// Whether pages are taken before an epoch ends.
    const fn early(&self) -> Early {
        match self.early {
            _ if !self.uses_ring() => Early::Off,
            EarlyName::Auto => Early::Auto,
            EarlyName::Off => Early::Off,
            EarlyName::Always => Early::Always,
        }
    }

    /// How a machine is to be built for it.
    pub(super) fn tracking(&self) -> Result<Tracking, CliError> {
        if self.pair.is_given() && self.durability == Durability::None {
            return Err(CliError::Usage(
                "`--durability none` does not go with `--witness`: a machine that has no standby says what its chain has durable"
                    .to_owned(),
            ));
        }
        Ok(match self.tracker {
            TrackerName::Ring => {
                let ring = self.ring.map(RingSize::new).transpose();
                let hot = match (self.hot, self.interval()) {
                    (HotPages::Pages(pages), None) => {
                        return Err(CliError::Usage(format!(
                            "`--hot {pages}` needs an interval: pages of the hot set do not fill rings"
                        )));
                    }
                    (_, None) => HotPages::Off,
                    (hot, Some(_)) => hot,
                };
                Tracking::Ring {
                    budget: self.budget,
                    ring: ring.map_err(|error| CliError::Vmm(error.into()))?,
                    hot,
                    early: self.early() != Early::Off,
                }
            }
            TrackerName::Bitmap if self.interval().is_none() => {
                return Err(CliError::Usage("`--tracker bitmap` needs an interval: nothing else ends its epochs".to_owned()));
            }
            TrackerName::Bitmap if self.ring.is_some() => {
                return Err(CliError::Usage("`--ring` goes with `--tracker ring`".to_owned()));
            }
            TrackerName::Bitmap if matches!(self.hot, HotPages::Pages(_)) => {
                return Err(CliError::Usage("`--hot` goes with `--tracker ring`".to_owned()));
            }
            TrackerName::Bitmap if self.budget == 0 => {
                return Err(CliError::Usage("`--budget 0`: the smallest that works with `--tracker bitmap` is 1".to_owned()));
            }
            TrackerName::Bitmap => Tracking::Bitmap { manual_protect: true },
        })
    }

    /// How the chain is written.
    pub(super) fn writer_options(&self) -> WriterOptions {
        WriterOptions { retention: self.keep.retention(), ..WriterOptions::default() }
    }

    /// The engine for `vm`, which gives its epochs to `writer`; `node` decides what is released,
    /// where there is one.
    pub(super) fn protect(
        &self,
        vm: &mut Vm,
        writer: impl Sink + 'static,
        start: Start,
        node: Option<&Arc<Node>>,
    ) -> Result<Protection, CliError> {
        let share_pages = vm.share_pages();
        // With `none` no answer promises anything, and nobody waits for it.
        let holds_answers = self.durability != Durability::None;
        let holding = vm.devices().map(|devices| devices.hold_until_released(holds_answers, self.output_delay));
        let on_release = holding.transpose().map_err(|source| CliError::System { step: "starting a thread", source })?;
        let options = EngineOptions {
            budget_pages: usize::try_from(self.budget).unwrap_or(usize::MAX),
            share_pages,
            slots: self.in_flight.into(),
            durability: self.durability,
            compression: self.compression,
            when_behind: match self.when_behind {
                WhenBehindName::Lengthen => WhenBehind::Lengthen,
                WhenBehindName::Wait => WhenBehind::Wait,
            },
            on_storage_error: match self.on_storage_error {
                OnStorageErrorName::Stop => OnStorageError::Stop,
                OnStorageErrorName::Continue => OnStorageError::Continue { retry_after: Duration::from_millis(200) },
            },
            early: self.early(),
            audit_every: self.audit,
            on_release,
            release: node.map(|node| Release::By(node.clone())),
            // More than the guest has pages would never be used.
            version_pages: usize::try_from(self.version_memory.min(vm.spec().memory_bytes) / PAGE_SIZE_U64).unwrap_or_default(),
            ..EngineOptions::default()
        };
        let tracker = vm.take_tracker().ok_or_else(|| CliError::Usage("the machine has no tracker".to_owned()))?;
        let interval = self.interval();
        let sink: Box<dyn Sink> = match node {
            Some(node) => Box::new(Watched::new(writer, node.clone())),
            None => Box::new(writer),
        };
        let engine = Engine::new(vm.memory().clone(), tracker, sink, start, options)?;
        Ok(Protection { engine, interval, base_first: start == Start::Fresh, share_pages })
    }

    /// The control socket, where one is wanted.
    pub(super) fn control(&self, paired: Option<&Paired>, stop: &Stop) -> Result<Option<Control>, CliError> {
        let pair = || paired.map(|paired| (paired.node.clone(), paired.permission.clone()));
        self.control.as_deref().map(|socket| Control::start(socket, pair(), stop.clone())).transpose()
    }

    /// An option that was given and says nothing where no checkpoints are taken.
    pub(super) fn needs_epochs(&self) -> Option<&'static str> {
        let given = [("--interval", self.interval.is_some()), ("--audit", self.audit.is_some()), ("--ring", self.ring.is_some())];
        given.into_iter().find_map(|(option, given)| given.then_some(option))
    }

    /// The error that ended a run, for people who gave these options.
    pub(super) fn explain(&self, error: VmmError) -> CliError {
        match (self.on_storage_error, error) {
            (OnStorageErrorName::Continue, error @ VmmError::Engine(EngineError::Storage { .. })) => CliError::RanOn(error),
            (_, error) => error.into(),
        }
    }

    /// Pages that an epoch mentions at most, a base apart.
    pub(super) const fn mentions_most(&self) -> u64 {
        self.budget.saturating_mul(2)
    }

    /// When the run ends by itself.
    pub(super) fn limits(&self) -> Limits {
        Limits { time: self.time, epochs: self.epochs.map(NonZeroU64::get) }
    }
}

/// Ends the run on the signals that ask a program to end.
pub(super) fn stop_on_signals() -> Result<Stop, CliError> {
    let stop = Stop::default();
    let asked = stop.clone();
    ctrlc::set_handler(move || asked.ask()).map_err(|error| CliError::Usage(format!("signal handler: {error}")))?;
    Ok(stop)
}

/// The last line of `checkpoint --json`.
#[derive(Debug, Serialize)]
pub(super) struct RunReport {
    #[serde(flatten)]
    pub(super) engine: Report,
    pub(super) guest: GuestReport,
    /// What went over the network, where the machine has network devices.
    #[serde(flatten)]
    pub(super) network: Option<NetworkReport>,
    /// How a Linux guest ended its own run, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guest_end: Option<GuestEnd>,
    pub(super) elapsed_s: f64,
    /// Whether epochs were to be durable at all.
    #[serde(skip)]
    pub(super) syncs: bool,
}

impl RunReport {
    pub(super) fn new(outcome: &Outcome, options: &ProtectArgs) -> Option<Self> {
        let elapsed_s = (outcome.elapsed.as_secs_f64() * 1e6).round() / 1e6;
        Some(Self {
            engine: outcome.report.clone()?,
            guest: outcome.guest,
            network: outcome.network,
            guest_end: outcome.end,
            elapsed_s,
            syncs: options.durability != Durability::None,
        })
    }

    /// The same for people.
    pub(super) fn print(&self) -> Result<(), CliError> {
        let Report { epochs, failed_epochs, pages, pause_us, phases_us, triggers, .. } = &self.engine;
        let Triggers { ring_full, interval, request, r#final } = triggers;
        let PhasesReport { kick, state, harvest, copy, reset } = phases_us;
        output::line(format_args!("{epochs} epochs in {:.2} s{}, {}", self.elapsed_s, self.rate(), self.durable()))?;
        if *failed_epochs > 0 {
            output::line(format_args!("  NOT STORED    {failed_epochs} epochs"))?;
        }
        output::line(format_args!(
            "  ended by      ring full {ring_full}, interval {interval}, request {request}, final {final}"
        ))?;
        let budget = self.engine.budget_pages;
        output::line(match self.engine.max_epoch_pages {
            0 => format!("  pages         {pages} (budget {budget})"),
            most => format!("  pages         {pages}, at most {most} in an epoch (budget {budget})"),
        })?;
        let Report { early_pages, early_rounds, repeated_pages, durable_after_us, .. } = self.engine;
        if early_pages > 0 {
            output::line(format_args!(
                "  early         {early_pages} beside the guest, in {early_rounds} rounds; {repeated_pages} written again"
            ))?;
        }
        output::line(format_args!("  stored        {}", self.stored()))?;
        // Of a base alone no pause is counted.
        if pause_us.max > 0.0 {
            output::line(format_args!(
                "  pause         p50 {} us, p99 {} us, max {} us",
                pause_us.p50, pause_us.p99, pause_us.max
            ))?;
            output::line(format_args!(
                "  of which      kick {kick}, state {state}, harvest {harvest}, copy {copy}, reset {reset} us"
            ))?;
        }
        if durable_after_us.max > 0.0 {
            output::line(format_args!(
                "  durable       p50 {} us after the cut, p99 {} us",
                durable_after_us.p50, durable_after_us.p99
            ))?;
        }
        if let Some(NetworkReport { sent_packets, received_packets, output_delay_us, .. }) = self.network {
            output::line(format_args!("  network       {received_packets} packets came, {sent_packets} left"))?;
            if sent_packets > 0 {
                output::line(format_args!(
                    "  they waited   p50 {} us, p95 {} us, p99 {} us",
                    output_delay_us.p50, output_delay_us.p95, output_delay_us.p99
                ))?;
            }
        }
        if self.engine.tracking_lost > 0 {
            output::line(format_args!("  tracking      LOST {} times; all memory was compared", self.engine.tracking_lost))?;
        }
        match self.guest_end {
            Some(GuestEnd::Poweroff) => output::line("  guest         switched itself off"),
            Some(GuestEnd::Reset) => output::line("  guest         reset itself"),
            None => output::line(format_args!("  guest         {}", self.guest())),
        }
    }

    /// Of a run so short that a rate says nothing, none.
    #[expect(clippy::cast_precision_loss, reason = "for people, to three digits")]
    fn rate(&self) -> String {
        if self.elapsed_s < 0.1 {
            return String::new();
        }
        format!(" ({:.0} a second)", self.engine.epochs as f64 / self.elapsed_s)
    }

    fn durable(&self) -> String {
        match self.engine.durable_epochs {
            0 if !self.syncs => "none synced, as `--durability none` says".to_owned(),
            durable => format!("{durable} durable"),
        }
    }

    /// A ratio says something where all that was captured was stored.
    #[expect(clippy::cast_precision_loss, reason = "for people, to three digits")]
    fn stored(&self) -> String {
        let Report { bytes_raw, bytes_written, failed_epochs, .. } = self.engine;
        let (written, raw) = (bytes_text(bytes_written), bytes_text(bytes_raw));
        match (bytes_written, failed_epochs) {
            (0, _) => format!("nothing; {raw} were captured"),
            (_, 0) if bytes_raw > 0 => format!("{written} of {raw} ({:.1} to 1)", bytes_raw as f64 / bytes_written as f64),
            _ => format!("{written}; {raw} were captured"),
        }
    }

    fn guest(&self) -> String {
        let GuestReport { passes, checks_itself, ok, .. } = self.guest;
        match (ok, checks_itself, passes) {
            (false, ..) => format!("{passes} passes, AN INCONSISTENCY"),
            (true, true, 0) => "no pass yet, so that nothing was checked".to_owned(),
            (true, true, _) => format!("{passes} passes, no inconsistency"),
            (true, false, 0) => "does not check itself".to_owned(),
            (true, false, _) => format!("{passes} passes; it does not check itself"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::EpochId;

    fn report(engine: Report, guest: GuestReport, syncs: bool) -> RunReport {
        RunReport { engine, guest, network: None, guest_end: None, elapsed_s: 1.0, syncs }
    }

    const CHURN: GuestReport = GuestReport { passes: 7, checks: 0, checks_itself: true, ok: true };

    #[test]
    fn a_ratio_is_told_where_it_says_something() {
        let stored = |bytes_raw, bytes_written, failed_epochs| {
            report(Report { bytes_raw, bytes_written, failed_epochs, ..Report::default() }, CHURN, true).stored()
        };
        assert_eq!(stored(16_515_072, 4_128_768, 0), "3.9 MiB of 15.8 MiB (4.0 to 1)");
        assert_eq!(stored(16_515_072, 0, 1), "nothing; 15.8 MiB were captured");
        assert_eq!(stored(16_515_072, 0, 0), "nothing; 15.8 MiB were captured");
        assert_eq!(stored(16_515_072, 1024, 3), "1.0 KiB; 15.8 MiB were captured");
        assert_eq!(stored(0, 1024, 0), "1.0 KiB; 0 B were captured");
    }

    #[derive(Debug, clap::Parser)]
    struct Options {
        #[command(flatten)]
        protect: ProtectArgs,
    }

    /// Nobody is told to give an option that was given.
    #[test]
    fn what_to_do_about_storage_depends_on_what_was_asked_for() {
        let hint = |options: &[&str], newest| {
            let Options { protect } = clap::Parser::parse_from([&["test"], options].concat());
            let error = protect.explain(EngineError::Storage { newest: EpochId(newest), source: "full".into() }.into());
            (error.to_string(), error.hint().unwrap_or_default())
        };
        let (error, stopped) = hint(&[], 3);
        assert_eq!(error, "epochs behind 3 could not be stored");
        assert!(stopped.contains("--on-storage-error continue"), "{stopped}");
        let (error, ran_on) = hint(&["--on-storage-error", "continue"], 0);
        assert_eq!(error, "the first epoch could not be stored");
        assert!(ran_on.contains("ran on") && !ran_on.contains("--on-storage-error"), "{ran_on}");
    }

    #[test]
    fn a_rate_is_told_of_a_run_that_has_one() {
        let rate =
            |epochs, elapsed_s| RunReport { elapsed_s, ..report(Report { epochs, ..Report::default() }, CHURN, true) }.rate();
        assert_eq!((rate(1, 0.000_002), rate(100, 2.0)), (String::new(), " (50 a second)".to_owned()));
    }

    #[test]
    fn what_was_not_to_be_synced_is_not_called_lost() {
        let durable = |durable_epochs, syncs| report(Report { durable_epochs, ..Report::default() }, CHURN, syncs).durable();
        assert_eq!(durable(0, false), "none synced, as `--durability none` says");
        assert_eq!((durable(0, true), durable(5, true)), ("0 durable".to_owned(), "5 durable".to_owned()));
    }

    #[test]
    fn a_guest_that_checked_nothing_is_not_called_well() {
        let guest = |guest| report(Report::default(), guest, true).guest();
        assert_eq!(guest(CHURN), "7 passes, no inconsistency");
        assert_eq!(guest(GuestReport { ok: false, ..CHURN }), "7 passes, AN INCONSISTENCY");
        assert_eq!(guest(GuestReport { passes: 0, ..CHURN }), "no pass yet, so that nothing was checked");
        let other = GuestReport { checks_itself: false, ..CHURN };
        assert_eq!(guest(other), "7 passes; it does not check itself");
        assert_eq!(guest(GuestReport { passes: 0, ..other }), "does not check itself");
    }
}
