//! `slackwater demo --failover`: a machine whose process is killed, and whose clients go on.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::CliError;
use super::local_pair::{Place, Survivor, Unfinished, WAIT_LIMIT, check_place};
use super::output;
use super::protect::stop_on_signals;
use super::scratch_store::scratch;
use super::standby::FailoverUs;
use super::units::bytes_text;
use super::watched_clients::{Served, WatchedClients, wire};
use crate::clock::whole_us;
use crate::kvm::host::Host;
use crate::ledger::{LoadOptions, LoadReport, Verdict};
use crate::page::EpochId;
use crate::store::verify::{VerifyOptions, VerifyReport, verify};

const MACHINE: [&str; 4] = ["--guest", "ledger", "--memory", "16M"];
const CLIENTS: usize = 4;
/// Pages that each request has the guest write to.
const REQUEST_PAGES: u32 = 8;
/// How long the clients ask before the kill, and how long after it.
const ASKING: Duration = Duration::from_secs(1);
/// How often it is begun where this host is too busy for the times that a pair has by default.
const ATTEMPTS: u64 = 3;

/// The demo with two processes.
pub(super) struct Failover<'d> {
    pub(super) kvm: &'d Path,
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct FailoverReport {
    clients: usize,
    answered: u64,
    resent: u64,
    before: Served,
    after: Served,
    silence_us: u64,
    longest_silence_us: u64,
    longest_request_us: u64,
    epoch: EpochId,
    failover_us: FailoverUs,
    epochs: u64,
    bytes: u64,
    attempts: u64,
    ok: bool,
    elapsed_s: f64,
}

/// What is read of the last line of `standby --json`.
#[derive(Debug, Deserialize)]
struct Promoted {
    epoch: EpochId,
    failover_us: FailoverUs,
}

impl Failover<'_> {
    /// Plays it with stores in `dir`, or in a directory that is removed at the end.
    pub(super) fn run(&self, dir: Option<&Path>) -> Result<(), CliError> {
        let started = Instant::now();
        // What is in the way is said before anything is made.
        dir.map_or(Ok(()), check_place)?;
        Host::probe(self.kvm)?;
        let stop = stop_on_signals()?;
        self.say("A machine runs in one process. Another process, its standby, has a copy of its memory, and gets")?;
        self.say("each checkpoint. The guest is a ledger: it counts requests and keeps one hash over all of them,")?;
        self.say(format_args!(
            "and every answer says both. {CLIENTS} clients in this process ask it over its network device, and"
        ))?;
        self.say("would notice a machine that forgot anything that it had answered.\n")?;
        for attempt in 1..=ATTEMPTS {
            let scratch = scratch("slackwater-demo-")?;
            let stores = dir.unwrap_or(scratch.path());
            let place = Place { scratch: scratch.path(), stores, kvm: self.kvm, stop: &stop };
            match self.play(&place) {
                Ok(played) => return self.tell_end(played, attempt, started),
                Err(Unfinished::Failed(error)) => return Err(*error),
                Err(Unfinished::TooBusy) => {
                    self.say("   (This host is so busy that one process did not hear of the other for 25 ms, and took it for")?;
                    self.say("   dead before it was. That loses nothing, but the machine is not where this story has it.)\n")?;
                    place.clear();
                }
            }
        }
        let what = "this host is too busy: three times one process did not hear of the other for 25 ms, and took it for dead. Outside of the demo `--timeout` allows for more";
        Err(CliError::Check { what: what.to_owned() })
    }

    fn play(&self, place: &Place<'_>) -> Result<Played, Unfinished> {
        let begun = Instant::now();
        let wire = wire(&place.network())?;
        let pair = place.start(&MACHINE)?;
        let [first, second] = [pair.primary.id(), pair.standby.id()];
        let took_s = begun.elapsed().as_secs_f64();
        self.say(format_args!(
            "1. Process {first} runs the machine, process {second} is its standby. A register outside both, the"
        ))?;
        self.say(format_args!("   witness, names the two a pair. That took {took_s:.1} s."))?;

        let options = LoadOptions { clients: CLIENTS, pages: REQUEST_PAGES, give_up: Some(WAIT_LIMIT), ..LoadOptions::default() };
        let clients = WatchedClients::start(wire, options)?;
        wait_for_answer(place, &clients, 0)?;
        ask(place, &clients)?;
        let before = clients.served_after(0);
        let Served { answered, per_s, p50_us, p99_us } = before;
        self.say(format_args!(
            "2. The clients get {answered} answers, {per_s} a second. Half take less than {}, 99% less than",
            ms(p50_us)
        ))?;
        self.say(format_args!("   {}. No answer leaves before the standby has a checkpoint that knows of it.", ms(p99_us)))?;

        let mut survivor = pair.kill_primary(place)?;
        let at_kill = clients.answered();
        self.say(format_args!("3. Process {first} is killed by SIGKILL, with {CLIENTS} requests under way."))?;
        survivor.wait_for_takeover(place)?;
        // What the first process had answered, and was still on its way, came before that.
        let from_first = clients.answered();
        wait_for_answer(place, &clients, from_first)?;
        let silence_us = whole_us(clients.longest_silence_after(at_kill));
        self.say(format_args!(
            "4. Process {second} takes over, and the machine is on the network again. The clients notice that no"
        ))?;
        self.say(format_args!("   answer comes for {}, send their requests again, and go on.", ms(silence_us)))?;

        ask(place, &clients)?;
        let after = clients.served_after(from_first);
        let Survivor { mut standby, .. } = survivor;
        standby.check()?;
        let outcome = clients.finish()?;
        match &outcome.verdict {
            Verdict::Done | Verdict::Stopped => {}
            Verdict::GaveUp => return Err(check("the clients got no answer any more").into()),
            Verdict::Violation(violation) => {
                return Err(check(format!("the machine lost what it had answered: {violation}")).into());
            }
        }
        let Served { answered, per_s, p50_us, .. } = after;
        self.say(format_args!(
            "5. They get {answered} more answers, {per_s} a second. Half take less than {}: the machine has no",
            ms(p50_us)
        ))?;
        self.say("   standby now, so its answers wait for the disk instead.")?;

        let said = standby.end(WAIT_LIMIT)?;
        let unread = |error| check(format!("`slackwater standby --json` did not print what it should: {error}"));
        let promoted: Promoted = serde_json::from_str(&said).map_err(unread)?;
        let FailoverUs { detect, witness, apply, first_run, total } = promoted.failover_us;
        self.say(format_args!(
            "6. Process {second} ends, and reports: the machine ran again {} after the last word of the other",
            ms(total)
        ))?;
        self.say(format_args!(
            "   process. {} to be sure that it is dead, {} to ask the witness, {} to make the",
            ms(detect),
            ms(witness),
            ms(apply)
        ))?;
        self.say(format_args!("   machine ready, {} to start it.", ms(first_run)))?;
        let store = place.standby_store();
        let verified = verify(&store, &VerifyOptions::default(), &mut |_| {})?;
        if !verified.is_sound() {
            return Err(CliError::Damaged { dir: store }.into());
        }
        let (epochs, bytes) = (verified.epochs, bytes_text(verified.bytes));
        self.say(format_args!("7. Its store holds {epochs} checkpoints in {bytes}, from before the kill and from after it. An"))?;
        self.say("   independent reader checks every byte: all are whole.\n")?;
        Ok(Played { before, after, silence_us, clients: outcome.report, promoted, verified })
    }

    fn tell_end(&self, played: Played, attempts: u64, started: Instant) -> Result<(), CliError> {
        let Played {
            before,
            after,
            silence_us,
            clients: LoadReport { answered, resent, latency, longest_silence },
            promoted,
            verified,
        } = played;
        let elapsed_s = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        if self.json {
            return output::json(&FailoverReport {
                clients: CLIENTS,
                answered,
                resent,
                before,
                after,
                silence_us,
                longest_silence_us: whole_us(longest_silence),
                longest_request_us: latency.max_us,
                epoch: promoted.epoch,
                failover_us: promoted.failover_us,
                epochs: verified.epochs,
                bytes: verified.bytes,
                attempts,
                ok: true,
                elapsed_s,
            });
        }
        self.say(format_args!(
            "All {answered} answers fit together: the machine forgot nothing that it had told a client, and did"
        ))?;
        self.say(format_args!("nothing twice. That took {elapsed_s:.1} s."))
    }

    fn say(&self, text: impl std::fmt::Display) -> Result<(), CliError> {
        output::prose(self.json, text)
    }
}

/// What came of it.
struct Played {
    before: Served,
    after: Served,
    /// From the last answer of the process that was killed to the first of the other one.
    silence_us: u64,
    clients: LoadReport,
    promoted: Promoted,
    verified: VerifyReport,
}

/// Waits until the clients have more than so many answers.
fn wait_for_answer(place: &Place<'_>, clients: &WatchedClients, count: usize) -> Result<(), Unfinished> {
    place.wait_for("the clients got no answer", || Ok((clients.answered() > count).then_some(())))
}

/// Lets the clients ask for [`ASKING`].
fn ask(place: &Place<'_>, clients: &WatchedClients) -> Result<(), Unfinished> {
    let begun = Instant::now();
    place.wait_for("the clients went on", || Ok((clients.have_ended() || begun.elapsed() > ASKING).then_some(())))
}

fn check(what: impl Into<String>) -> CliError {
    CliError::Check { what: what.into() }
}

/// A time for people.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}
