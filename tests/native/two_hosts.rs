//! A pair on two hosts, each with a network of its own: real links that are cut, real taps that the
//! guest moves between, a witness of three nodes, and whatever comes out of both taps.
#![expect(unsafe_code, reason = "mounts a disk")]

mod lane;
mod taps;

use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use slackwater::ledger::{Answer, Tally};
use slackwater::replica::register::{Holder, Register};
use slackwater::replica::wire::tls_init;

use crate::support::netns::{TwoHosts, checked, link_address};
use crate::support::{Random, full, kvm_or_skip, nested};
use lane::{GOES_ON, LEDGER, Lane};
use taps::Line;

const OPTIONS: &str = "--ack memory --durability group:20";

/// What happens to a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    PrimaryKilled,
    StandbyKilled,
    /// For longer than the timeout.
    PrimaryFrozen,
    StandbyFrozen,
    /// One of them, for less or little more than the timeout: nobody knows what comes of it.
    Hiccup,
    LinkCut,
    /// What the one sends does not get to the other.
    PrimaryUnheard,
    StandbyUnheard,
    /// From the other and from the witness, but not from the clients.
    PrimaryCutOff,
    StandbyCutOff,
    /// The standby, and some time later the primary, which was alone then.
    BothKilled,
}

impl Event {
    const ALL: [Self; 11] = [
        Self::PrimaryKilled,
        Self::StandbyKilled,
        Self::PrimaryFrozen,
        Self::StandbyFrozen,
        Self::Hiccup,
        Self::LinkCut,
        Self::PrimaryUnheard,
        Self::StandbyUnheard,
        Self::PrimaryCutOff,
        Self::StandbyCutOff,
        Self::BothKilled,
    ];

    /// Has it happen to a pair of this generation, and waits until it has had its effect.
    fn happen(self, lane: &mut Lane, generation: u64, random: &mut Random) {
        let primary = lane.wait_for_primary();
        let standby = 1 - primary;
        let frozen = |lane: &mut Lane, host: usize| {
            lane.machine(host).signal(libc::SIGSTOP);
            lane.wait_for_newer(generation);
        };
        let thaws = |lane: &mut Lane, host: usize| lane.machine(host).signal(libc::SIGCONT);
        match self {
            Self::PrimaryKilled => {
                lane.take(primary).kill();
                lane.wait_for_takeover(primary);
            }
            Self::StandbyKilled => {
                lane.take(standby).kill();
                lane.wait_for_newer(generation);
            }
            Self::PrimaryFrozen => {
                frozen(lane, primary);
                lane.wait_for_takeover(primary);
                thaws(lane, primary);
            }
            Self::StandbyFrozen => {
                frozen(lane, standby);
                lane.is_served(5);
                thaws(lane, standby);
            }
            Self::Hiccup => {
                let host = if random.below(2) == 0 { primary } else { standby };
                lane.machine(host).signal(libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(random.below(500)));
                thaws(lane, host);
            }
            Self::LinkCut => {
                lane.net.cut_from(primary);
                lane.net.cut_from(standby);
                lane.wait_for_newer(generation);
            }
            Self::PrimaryUnheard | Self::StandbyUnheard => {
                lane.net.cut_from(if self == Self::PrimaryUnheard { primary } else { standby });
                lane.wait_for_newer(generation);
            }
            Self::PrimaryCutOff | Self::StandbyCutOff => {
                let host = if self == Self::PrimaryCutOff { primary } else { standby };
                lane.net.cut_from_witness(host);
                lane.net.cut_from(primary);
                lane.net.cut_from(standby);
                lane.wait_for_newer(generation);
                if self == Self::PrimaryCutOff {
                    lane.wait_for_takeover(primary);
                    // It runs, is asked for its address, and does not know anything.
                    lane.is_served(20);
                    assert!(!lane.machine(primary).has_ended(), "nobody has told it");
                }
            }
            Self::BothKilled => {
                lane.take(standby).kill();
                lane.wait_for_newer(generation);
                // What was answered since then has its chain.
                lane.is_served(20);
                lane.take(primary).kill();
                lane.goes_on_from_its_store(primary);
            }
        }
        lane.net.heal();
    }
}

fn one_of(events: &[Event], random: &mut Random) -> Event {
    events[usize::try_from(random.below(events.len() as u64)).unwrap()]
}

/// Each event once, in an order that is drawn, and then as many as are drawn: 50 in all, and in the
/// full numbers 500.
fn events(random: &mut Random) -> Vec<Event> {
    let mut events = Event::ALL.to_vec();
    for end in (1..events.len()).rev() {
        events.swap(end, usize::try_from(random.below(end as u64 + 1)).unwrap());
    }
    if nested() {
        events.truncate(3);
    } else {
        events.extend((0..if full() { 489 } else { 39 }).map(|_| one_of(&Event::ALL, random)));
    }
    events
}

#[test]
fn whatever_happens_clients_and_taps_see_one_history() {
    const TEST: &str = "native::two_hosts::whatever_happens_clients_and_taps_see_one_history";
    if !kvm_or_skip(TEST) {
        return;
    }
    let mut random = Random::seeded(TEST, 53);
    let Some((mut lane, mut generation)) = Lane::start_paired(TEST, OPTIONS, 4) else { return };
    for event in events(&mut random) {
        lane.is_served(1 + random.below(60));
        // Somewhere in a request: this is no wait for anything.
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        let begun = Instant::now();
        println!("{event:?} in generation {generation}");
        event.happen(&mut lane, generation, &mut random);
        // A hiccup may have had no effect.
        let than = if event == Event::Hiccup { generation - 1 } else { generation };
        generation = lane.settle(than);
        println!("  a pair again after {:?}, in generation {generation}", begun.elapsed());
    }
    lane.finish();
}

/// The test above can fail: machines whose packets leave at once are caught at the taps.
#[test]
fn with_outputs_that_do_not_wait_the_taps_see_two_histories() {
    const TEST: &str = "native::two_hosts::with_outputs_that_do_not_wait_the_taps_see_two_histories";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some((mut lane, mut generation)) = Lane::start_paired(TEST, &format!("{OPTIONS} --outputs free"), 2) else { return };
    for kill in 1..=20 {
        lane.is_served(20);
        let primary = lane.wait_for_primary();
        lane.take(primary).kill();
        lane.machine(1 - primary).wait_for_message(GOES_ON);
        // Those who were told more than the guest knows may never get an answer again.
        lane.ask_as(100 * kill, 2);
        lane.is_served(20);
        if let Err(found) = lane.is_one() {
            return println!("after {kill} kills: {found}");
        }
        generation = lane.settle(generation);
    }
    panic!("nothing was found");
}

/// A machine is taken over again and again, with the times that everybody has who chooses none; in
/// the full numbers, one with 2 GiB of touched memory. On a host that is too busy for them one may
/// be taken for dead that lives: then the pair is made anew, which is part of the game.
fn is_taken_over(test: &str, events: &[Event], rounds: u64, with: impl FnOnce(Lane) -> Lane) {
    if !kvm_or_skip(test) {
        return;
    }
    let Some(lane) = Lane::start(test, OPTIONS) else { return };
    let mut lane = with(lane.at_default_times());
    let mut random = Random::seeded(test, 71);
    let pages = if full() { 524_288 } else { 4000 };
    let mut generation = lane.begin(&format!("--guest ledger:pages={pages} --memory {}", (pages << 12) + (64 << 20)));
    lane.touch(pages);
    lane.ask_as(2, 1);
    for round in 0..rounds {
        // In whose pages many are new each time.
        lane.is_served(20 + random.below(60));
        let event = one_of(events, &mut random);
        println!("{round}: {event:?} in generation {generation}");
        generation = lane.settle(generation - 1);
        event.happen(&mut lane, generation, &mut random);
        generation = lane.settle(generation);
    }
    lane.finish();
}

#[test]
fn a_machine_is_taken_over_many_times_with_etcd() {
    const TEST: &str = "native::two_hosts::a_machine_is_taken_over_many_times_with_etcd";
    is_taken_over(TEST, &[Event::PrimaryKilled], if full() { 200 } else { 20 }, |lane| lane);
}

#[test]
fn a_machine_is_taken_over_many_times_with_a_directory() {
    const TEST: &str = "native::two_hosts::a_machine_is_taken_over_many_times_with_a_directory";
    is_taken_over(TEST, &[Event::PrimaryKilled], if full() { 200 } else { 5 }, Lane::with_directory);
}

#[test]
fn a_link_is_cut_many_times() {
    const TEST: &str = "native::two_hosts::a_link_is_cut_many_times";
    let cuts = [Event::LinkCut, Event::PrimaryUnheard, Event::StandbyUnheard];
    is_taken_over(TEST, &cuts, if full() { 100 } else { 5 }, |lane| lane);
}

fn holder(register: Option<Register>) -> Holder {
    register.unwrap().holder
}

/// Without a witness the pair goes on, and nobody takes over; when it is back, somebody does.
#[test]
fn a_witness_that_is_down_stops_only_a_takeover() {
    const TEST: &str = "native::two_hosts::a_witness_that_is_down_stops_only_a_takeover";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some((mut lane, generation)) = Lane::start_paired(TEST, OPTIONS, 4) else { return };
    let before = holder(lane.register());
    lane.stop_witness();
    assert_eq!(lane.register(), None, "the witness is down");
    let answered = lane.answered(0);
    lane.wait_for_answers(0, answered, 200);
    lane.take(0).kill();
    // It asks, again and again, and says so once.
    lane.machine(1).wait_for_message("asking the witness");
    assert_eq!((lane.machine(1).messages(GOES_ON), lane.answered(1)), (0, 0));
    lane.start_witness();
    lane.wait_for_takeover(0);
    let Holder::Paired(_, standby) = before else { panic!("{before:?}") };
    let register = lane.wait_for_newer(generation);
    assert_eq!((register.generation.0, register.holder), (generation + 1, Holder::Solo(standby)));
    lane.settle(generation);
    lane.finish();
}

#[test]
fn a_leader_of_the_witness_may_die_with_the_primary() {
    const TEST: &str = "native::two_hosts::a_leader_of_the_witness_may_die_with_the_primary";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some((mut lane, mut generation)) = Lane::start_paired(TEST, OPTIONS, 4) else { return };
    for host in [0, 1] {
        lane.is_served(20);
        let leader = lane.kill_leader();
        lane.take(host).kill();
        lane.wait_for_takeover(host);
        lane.start_node(leader);
        generation = lane.settle(generation);
    }
    lane.finish();
}

/// A standby whose disk is full is none: the primary goes on by its own chain, and has another one
/// when there is room.
#[test]
fn a_standby_whose_disk_is_full_costs_nothing() {
    const TEST: &str = "native::two_hosts::a_standby_whose_disk_is_full_costs_nothing";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some(mut lane) = Lane::start(TEST, OPTIONS) else { return };
    lane.ask(4);
    // A disk that only the standby sees, and that goes with it.
    let (line, place) = (lane.standby_line(1), lane.store(1).parent().unwrap().to_owned());
    let running = std::thread::scope(|scope| {
        let starts = scope.spawn(|| {
            small_disk(&place).unwrap();
            lane.command(1, &line)
        });
        starts.join().unwrap()
    });
    lane.put_standby(1, running);
    lane.primary(0, LEDGER);
    let generation = lane.settle(0);
    let register = lane.wait_for_newer(generation);
    assert_eq!(register.holder, Holder::Solo(lane.was_primary()));
    lane.machine(0).wait_for_message("No space left on device");
    lane.is_served(50);
    lane.take(1).kill();
    let generation = lane.settle(register.generation.0);
    lane.is_served(20);
    lane.take(0).kill();
    lane.wait_for_takeover(0);
    lane.settle(generation);
    lane.finish();
}

/// Mounts an empty disk of few megabytes at `place`, for this thread and the processes that it
/// starts.
fn small_disk(place: &Path) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    let none = std::ptr::null();
    // SAFETY: takes a number, and changes what this thread sees.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    // SAFETY: strings that end, or none.
    checked(unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) })?;
    // SAFETY: strings that end.
    checked(unsafe { libc::mount(c"none".as_ptr(), place.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=6m".as_ptr().cast()) })?;
    Ok(())
}

/// A standby that dies while it gets its base was never one of a pair.
#[test]
fn a_standby_that_dies_while_it_is_seeded_costs_nothing() {
    const TEST: &str = "native::two_hosts::a_standby_that_dies_while_it_is_seeded_costs_nothing";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some(mut lane) = Lane::start(TEST, OPTIONS) else { return };
    lane.ask(4);
    lane.standby(1);
    lane.primary(0, "--guest ledger:pages=60000 --memory 256M");
    let (mut tries, mut caught) = (0, 0);
    while caught < 3 {
        tries += 1;
        assert!(tries < 50, "it is always seeded before it is killed");
        lane.machine(0).wait_for_messages("a standby gets its base", tries);
        lane.take(1).kill();
        let register = lane.register().unwrap();
        lane.is_served(20);
        // Nobody has asked for anything, and nobody will, for somebody who is gone.
        caught += usize::from(matches!(register.holder, Holder::Solo(_)) && lane.register() == Some(register));
        lane.standby(1);
    }
    println!("killed {caught} times while it was seeded, of {tries}");
    let generation = lane.settle(0);
    lane.is_served(20);
    lane.take(0).kill();
    lane.wait_for_takeover(0);
    lane.settle(generation);
    lane.finish();
}

/// Whose certificate the other one can't trust is no standby, and both are told why.
#[test]
fn certificates_that_do_not_hold_make_no_pair() {
    const TEST: &str = "native::two_hosts::certificates_that_do_not_hold_make_no_pair";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some(mut lane) = Lane::start(TEST, OPTIONS) else { return };
    lane.ask(4);
    lane.primary(0, LEDGER);
    let (tls, good) = (lane.dir.path().join("tls/two"), lane.dir.path().join("tls/good"));
    std::fs::rename(&tls, &good).unwrap();
    // Of another CA, which this host trusts: only the other one does not.
    tls_init(&lane.dir.path().join("other")).unwrap();
    std::fs::rename(lane.dir.path().join("other/two"), &tls).unwrap();
    lane.standby(1);
    lane.machine(1).wait_for_message("refuses the certificate of this host: it is not signed by the other end's CA");
    lane.machine(0).wait_for_message("is not signed by this host's CA");
    lane.is_served(20);
    assert!(matches!(holder(lane.register()), Holder::Solo(_)));
    let standby = lane.take(1);
    standby.signal(libc::SIGTERM);
    standby.wait().expect(0);
    // One that has expired. Its own host says so, and does not start.
    expired(&tls);
    let line = lane.standby_line(1);
    lane.command(1, &line).wait().refused(1, &["cert.pem expired on 2020-02-29"]);
    lane.is_served(20);
    assert_eq!(lane.register().unwrap().generation.0, 1, "nobody was one of a pair");
    std::fs::remove_dir_all(&tls).unwrap();
    std::fs::rename(&good, &tls).unwrap();
    let generation = lane.settle(0);
    lane.take(0).kill();
    lane.wait_for_takeover(0);
    lane.settle(generation);
    lane.finish();
}

/// Puts a certificate that has expired into a host's directory, of a CA that it trusts.
fn expired(dir: &Path) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(["slackwater".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = date_time_ymd(2020, 2, 29);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    for (file, text) in [("ca.pem", ca), ("cert.pem", certificate), ("key.pem", key.serialize_pem())] {
        // The key keeps its mode.
        std::fs::write(dir.join(file), text).unwrap();
    }
}

/// Whoever comes with the name of a machine that runs is refused, with a standby of its own or
/// without, and the pair that is there knows nothing of it.
#[test]
fn a_second_pair_of_one_name_is_refused() {
    const TEST: &str = "native::two_hosts::a_second_pair_of_one_name_is_refused";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some((mut lane, generation)) = Lane::start_paired(TEST, OPTIONS, 4) else { return };
    let before = lane.register();
    let (place, witness) = (lane.dir.path().display().to_string(), lane.witness());
    let second = |host: usize, rest: &str| {
        let tls = ["one", "two"][host];
        lane.command(host, &format!("{rest} --store {place}/second-{host} --witness {witness} --tls {place}/tls/{tls} --json"))
    };
    let listen = format!("{}:7002", link_address(1));
    let mut standby = second(1, &format!("standby --listen {listen}"));
    standby.wait_for_message("listening");
    second(0, &format!("checkpoint --guest touch:pages=16 --memory 16M --standby {listen}")).wait().expect(4);
    // And a standby whose primary has one already stays without.
    standby.signal(libc::SIGTERM);
    let report = standby.wait().expect(0).json();
    assert_eq!(report["role"], "stopped", "{report}");
    assert_eq!(lane.register(), before);
    lane.is_served(20);
    lane.take(0).kill();
    lane.wait_for_takeover(0);
    lane.settle(generation);
    lane.finish();
}

/// Each cut loses what it says, and only that.
#[test]
fn a_link_is_cut_one_way_and_both_and_healed() {
    const TEST: &str = "native::two_hosts::a_link_is_cut_one_way_and_both_and_healed";
    if !kvm_or_skip(TEST) {
        return;
    }
    let Some(net) = TwoHosts::make_or_skip(TEST) else { return };
    let sockets = [0, 1].map(|host| net.hosts[host].within(|| UdpSocket::bind((link_address(host), 7)).unwrap()));
    let mut sent = 0_u8;
    let mut arrives = |from: usize| {
        sent += 1;
        sockets[from].send_to(&[sent], (link_address(1 - from), 7)).unwrap();
        // It is there when the call is over: both ends are of one kernel.
        let mut bytes = [0];
        sockets[1 - from].set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let came = sockets[1 - from].recv(&mut bytes).is_ok();
        assert!(!came || bytes == [sent], "what was sent before a cut does not come behind it");
        came
    };
    assert_eq!([0, 1].map(&mut arrives), [true, true]);
    for host in [0, 1] {
        net.cut_from(host);
        assert_eq!([arrives(host), arrives(1 - host)], [false, true]);
        net.cut_from(1 - host);
        assert_eq!([0, 1].map(&mut arrives), [false, false]);
        net.heal();
        assert_eq!([0, 1].map(&mut arrives), [true, true]);
    }
    net.cut_from_witness(0);
    assert_eq!([0, 1].map(&mut arrives), [true, true]);
}

/// What taps see of two histories is found, whoever told it first.
#[test]
fn a_fork_on_the_taps_is_found() {
    let tally = |count: u64, hash: u64| Tally { count, hash };
    let answer = |number: u64, before: Tally, after: Tally| Answer { client: 1, number, before, after };
    let first = answer(1, tally(0, 0), tally(1, 10));
    let is_one = |others: &[(usize, Answer)]| {
        let mut line = Line::default();
        line.note(0, first, Instant::now());
        others.iter().for_each(|(host, answer)| line.note(*host, *answer, Instant::now()));
        line.one().is_ok()
    };
    let second = answer(2, tally(1, 10), tally(2, 20));
    assert!(is_one(&[(0, second), (1, first), (1, second)]), "told again");
    assert!(!is_one(&[(1, answer(2, tally(1, 11), tally(2, 20)))]), "from another past");
    assert!(!is_one(&[(1, second), (0, answer(3, tally(1, 10), tally(2, 21)))]), "to another future");
    assert!(!is_one(&[(1, answer(1, tally(1, 10), tally(2, 20)))]), "taken twice");
}
