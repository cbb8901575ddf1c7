//! A Linux guest that serves clients over a bridge, while one primary after the other is killed: a
//! connection that is open goes on at the standby.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::native::failover::{Pair, until};
use crate::native::linux::{Guest, OFTEN, all_is_sound, files_or_skip};
use crate::native::linux_disk::COMPLAINTS;
use crate::native::linux_net::{Counter, Redis, Told, on_a_bridge, serve, wait_for_ping};
use crate::support::command::{number, slackwater};
use crate::support::{Random, full, skip};

/// What a machine at a host is given besides where its guest comes from. The two hosts have each
/// of the rules by which outputs leave.
fn options(pair: &Pair, host: usize) -> String {
    let ack = ["memory", "disk"][host];
    format!("{} --ack {ack} --outputs held --durability epoch --audit 20 {OFTEN}", pair.parts(host))
}

/// A standby with nothing of what was there before.
fn follow(pair: &Pair, host: usize, tap: &str, name: &str) -> Guest {
    let (store, port) = (pair.store(host), pair.ports[host]);
    if store.exists() {
        // Memory is all the room that the nested lane has.
        fs::remove_dir_all(&store).unwrap();
    }
    let line =
        format!("standby --listen 127.0.0.1:{port} --store {} --net tap={tap} {} --json", store.display(), options(pair, host));
    let mut standby = Guest::start(slackwater(line.split_whitespace()), pair.dir.path(), name);
    standby.wait_for_message("listening");
    standby
}

/// Kills the primary of a pair that is newer than `than`, anywhere in a request of a client, and
/// returns the pair's generation.
fn kill_in_a_pair(
    pair: &Pair,
    than: u64,
    mut running: Guest,
    following: &mut Guest,
    counter: &Counter,
    random: &mut Random,
) -> u64 {
    let mut generation = than;
    loop {
        generation = running.wait_for("a pair", |_| {
            assert!(!following.has_ended(), "the standby ended: {}", following.messages());
            pair.paired(generation)
        });
        counter.wait_for(&mut running, 1 + random.below(20));
        // This is no wait for anything.
        thread::sleep(Duration::from_millis(random.below(300)));
        // One that stands still asks the witness for nothing: if the two are a pair now, they are
        // when it dies. A standby that was too slow for once is given up, and comes back.
        running.signal(libc::SIGSTOP);
        until("it does not stand still", || running.is_frozen().then_some(()));
        if pair.paired(generation - 1) == Some(generation) {
            let console = running.kill();
            assert!(!console.contains("WRONG"), "{console}");
            return generation;
        }
        running.signal(libc::SIGCONT);
    }
}

/// It fails where outputs do not wait: the guest at the standby is behind what it has acknowledged,
/// and the connection stands still for ever.
#[test]
fn a_connection_goes_on_at_the_standby() {
    const TEST: &str = "native::linux_failover::a_connection_goes_on_at_the_standby";
    let Some(files) = files_or_skip(TEST) else { return };
    on_a_bridge(TEST, |taps| {
        let mut random = Random::seeded(TEST, 61);
        let pair = Pair::new("");
        let Some(mut running) = serve(&files, &pair.store(0), pair.dir.path(), taps[0], &options(&pair, 0)) else {
            return skip(TEST, "the guest has no Redis");
        };
        wait_for_ping(&mut running);
        let (counter, mut told) = (Counter::start(), Told::default());
        let (mut generation, mut host) = (0, 0);
        for round in 0..if full() { 10 } else { 1 } {
            host = 1 - host;
            let mut following = follow(&pair, host, taps[host], &format!("round{round}"));
            told.ask();
            generation = kill_in_a_pair(&pair, generation, running, &mut following, &counter, &mut random);
            following.wait_for_message("the machine goes on here");
            running = following;
            counter.wait_for(&mut running, 2);
            told.ask();
        }
        let last = counter.finish();
        let now = Redis::connect().unwrap().increment("open").unwrap();
        assert_eq!(now, last + 1, "{now} was told after {last}");
        running.enter(&format!("dmesg | grep -E '{COMPLAINTS}'; echo \"complaints: $(dmesg | grep -cE '{COMPLAINTS}')\"\n"));
        running.wait_for("the kernel's opinion", |console| console.contains("complaints: 0\r").then_some(()));
        assert!(!running.console().contains("WRONG"), "{}", running.console());
        running.signal(libc::SIGTERM);
        let report = running.end();
        assert_eq!(report["role"], "promoted", "{report}");
        println!("{last} answers; the last failover took {} us", number(&report, "/failover_us/total"));
        all_is_sound(&pair.store(host));
    });
}
