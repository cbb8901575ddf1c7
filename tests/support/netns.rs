//! Two hosts, each with a network of its own, and what is between them.
//!
//! ```text
//!   host 0                      switch                       host 1
//!   guest0 ─ guests ─ trunk ──── guests ──── trunk ─ guests ─ guest0    of the guest
//!                      mgmt ───── mgmt ────── mgmt                      to the witness
//!                      pair ───────────────── pair                      of the pair
//! ```
//!
//! `guests` is a bridge, with clients at the switch's. The networks have no names: they are open
//! files, and go with the last process in them. Whatever becomes of a test, nothing stays, and no
//! two tests meet.
#![expect(unsafe_code, reason = "threads enter networks")]

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use super::skip;

/// The tap of each host that a guest is connected to.
pub(crate) const TAP: &str = "guest0";

/// Where the switch is for clients of the guest, and for the hosts.
const CLIENTS: &str = "10.77.0.1/24";
pub(crate) const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);

/// Nobody's.
const NOBODY: &str = "02:00:00:00:00:ff";

/// A network: interfaces, addresses, routes.
#[derive(Debug)]
pub(crate) struct Network(File);

impl Network {
    fn new() -> io::Result<Self> {
        let make = || {
            // SAFETY: the call takes a number, and changes what this thread sees.
            checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
            File::open("/proc/thread-self/ns/net").map(Self)
        };
        thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `what` in this network, which the processes and threads that it starts are in, too.
    pub(crate) fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            // SAFETY: the call takes numbers, and changes what this thread sees.
            checked(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) }).unwrap();
            what()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| {
            // As the test has it.
            std::panic::resume_unwind(panic)
        })
    }

    /// What `ip` takes for its name.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs lines of `ip`.
    fn ip(&self, lines: &[String]) -> io::Result<()> {
        self.within(|| lines.iter().try_for_each(|line| ip(line)))
    }
}

fn ip(line: &str) -> io::Result<()> {
    let run = Command::new("ip").args(line.split_whitespace()).output()?;
    let said = String::from_utf8_lossy(&run.stderr);
    if run.status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {line}: {}", said.trim()))) }
}

/// Whether this system makes networks, and everything that is needed in them.
fn try_out() -> io::Result<()> {
    let kinds = ["link add one type bridge", "link add two type veth peer name three", "tuntap add four mode tap vnet_hdr"];
    Network::new()?.ip(&kinds.map(str::to_owned))
}

/// The hosts and the switch.
#[derive(Debug)]
pub(crate) struct TwoHosts {
    pub(crate) hosts: [Network; 2],
    pub(crate) switch: Network,
}

impl TwoHosts {
    /// Makes them. Where that can't be, says loudly that `test` is skipped.
    pub(crate) fn make_or_skip(test: &str) -> Option<Self> {
        if let Err(error) = try_out() {
            skip(test, &format!("no networks of its own can be made: {error}"));
            return None;
        }
        Some(Self::make().unwrap())
    }

    fn make() -> io::Result<Self> {
        let made = Self { hosts: [Network::new()?, Network::new()?], switch: Network::new()? };
        let Self { hosts, switch } = &made;
        let up = |names: &[&str]| names.iter().map(|name| format!("link set {name} up")).collect::<Vec<_>>();
        for (bridge, address) in [("guests", CLIENTS.to_owned()), ("mgmt", format!("{WITNESS}/24"))] {
            switch.ip(&[format!("link add {bridge} type bridge"), format!("address add {address} dev {bridge}")])?;
        }
        switch.ip(&up(&["lo", "guests", "mgmt"]))?;
        for (host, network) in hosts.iter().enumerate() {
            for (bridge, name) in [("guests", "trunk"), ("mgmt", "mgmt")] {
                let port = format!("{bridge}{host}");
                switch.ip(&[
                    format!("link add {port} type veth peer name {name} netns {}", network.path()),
                    format!("link set {port} master {bridge} up"),
                ])?;
            }
            let place = format!("address add 10.79.0.{}/24 dev mgmt", host + 2);
            network.ip(&["link add guests type bridge".to_owned(), place])?;
            network.ip(&[format!("tuntap add {TAP} mode tap vnet_hdr"), format!("link set {TAP} master guests")])?;
            network.ip(&["link set trunk master guests".to_owned()])?;
            network.ip(&up(&["lo", "guests", "trunk", "mgmt", TAP]))?;
        }
        let (one, two) = (link_mac(0), link_mac(1));
        let peer = hosts[1].path();
        hosts[0].ip(&[format!("link add name pair address {one} type veth peer name pair address {two} netns {peer}")])?;
        for (host, network) in hosts.iter().enumerate() {
            network.ip(&[format!("address add {}/24 dev pair", link_address(host)), "link set dev pair up".to_owned()])?;
            made.heal_from(host)?;
        }
        Ok(made)
    }

    /// Loses everything that `host` sends over the link of the pair. Neither end is told: the host
    /// addresses its frames to somebody who is not there.
    pub(crate) fn cut_from(&self, host: usize) {
        self.neighbour(host, NOBODY).unwrap();
    }

    /// Takes that back.
    fn heal_from(&self, host: usize) -> io::Result<()> {
        self.neighbour(host, &link_mac(1 - host))
    }

    fn neighbour(&self, host: usize, mac: &str) -> io::Result<()> {
        let other = link_address(1 - host);
        self.hosts[host].ip(&[format!("neighbour replace {other} lladdr {mac} dev pair nud permanent")])
    }

    /// Cuts a host off from the witness.
    pub(crate) fn cut_from_witness(&self, host: usize) {
        self.switch.ip(&[format!("link set mgmt{host} down")]).unwrap();
    }

    /// Takes all cuts back.
    pub(crate) fn heal(&self) {
        for host in [0, 1] {
            self.heal_from(host).unwrap();
            self.switch.ip(&[format!("link set mgmt{host} up")]).unwrap();
        }
    }
}

/// A host's address on the link of the pair.
pub(crate) fn link_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, u8::try_from(host).unwrap() + 1)
}

fn link_mac(host: usize) -> String {
    format!("02:00:00:00:78:{host:02x}")
}

pub(crate) fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
