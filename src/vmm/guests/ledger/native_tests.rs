//! The guest on the KVM at hand, with a network device that the test serves by hand.
//!
//! A whole VMM is not needed for that: bare kvm-ioctls and one slot of memory. With pacing a vCPU
//! that finds nothing to do leaves the guest, and the test goes on.

#![expect(unsafe_code, reason = "a memory slot")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::Ipv4Addr;

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::layout::{AREA, OWN_PAGES, QUEUE_SIZE};
use super::*;
use crate::kvm::test_guest::kvm_or_skip;
use crate::ledger::frames::{self, Endpoint, Frame, Host, Mac};
use crate::ledger::{Accepted, Answer, CLIENTS_MAX, Checker, Request, Server, Tally};
use crate::page::{PAGE_SIZE, PAGE_SIZE_U64};
use crate::store::testing::{Random, seeds};
use crate::vmm::devices::VIRTIO;

const MEMORY: usize = 8 << 20;
const OPTIONS: &str = "ledger:pages=16,every=1ms";
const HEADER_BYTES: usize = 12;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// More exits than anything here needs.
const EXITS_MAX: usize = 100_000;

const CLIENT: Endpoint = Endpoint { host: Host { mac: Mac([2, 0, 0, 0, 0, 1]), ip: Ipv4Addr::new(10, 77, 0, 1) }, port: 7078 };
const GUEST: Endpoint =
    Endpoint { host: Host { mac: Mac([2, 0x11, 0x22, 0x33, 0x44, 0x55]), ip: Ipv4Addr::new(10, 77, 0, 2) }, port: 7077 };

#[derive(Clone, Default)]
struct TestQueue {
    size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
    ready: bool,
    next_available: u16,
    next_used: u16,
    notified: usize,
}

/// A virtio-net device that does what the test says.
#[derive(Clone)]
struct TestDevice {
    status: u32,
    features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: usize,
    queues: [TestQueue; 2],
    /// What it offers: more than the guest may accept.
    features: u64,
    kind: u32,
    /// Whether it gives transmit buffers back at once.
    gives_back: bool,
    /// Numbers of transmit buffers that it has not given back.
    kept: Vec<u16>,
    sent: Vec<Vec<u8>>,
}

impl TestDevice {
    fn new() -> Self {
        Self {
            status: 0xff,
            features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: Default::default(),
            features: 1 << 32 | 1 << 34 | 0xffff,
            kind: 1,
            gives_back: true,
            kept: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at @ 0..6) = offset.checked_sub(0x100) {
            assert_eq!(data.len(), 1, "bytes are read as bytes");
            data[0] = GUEST.host.mac.0[usize::try_from(at).unwrap()];
            return;
        }
        let value = match offset {
            0 => u32::from_le_bytes(*b"virt"),
            4 => 2,
            8 => self.kind,
            0x10 => u32::try_from(self.features >> (32 * self.features_select) & 0xffff_ffff).unwrap(),
            0x34 => u32::from(QUEUE_SIZE),
            0x70 => self.status,
            _ => panic!("register {offset:#x} was read"),
        };
        data.copy_from_slice(&value.to_le_bytes());
    }

    fn write(&mut self, memory: &GuestMemoryMmap<()>, offset: u64, data: &[u8]) {
        let value = u32::from_le_bytes(data.try_into().unwrap());
        let queue = &mut self.queues[self.queue_select];
        match offset {
            0x14 => self.features_select = value,
            0x20 => self.driver_features |= u64::from(value) << (32 * self.driver_features_select),
            0x24 => self.driver_features_select = value,
            0x30 => self.queue_select = usize::try_from(value).unwrap(),
            0x38 => queue.size = value,
            0x44 => queue.ready = value == 1,
            0x50 => {
                assert_eq!(self.status, 0xf, "nothing is to be said before the device runs");
                let which = usize::try_from(value).unwrap();
                self.queues[which].notified += 1;
                if which == TRANSMIT {
                    self.transmit(memory);
                }
            }
            0x70 => self.status = value,
            0x80 => queue.descriptors = u64::from(value),
            0x90 => queue.available = u64::from(value),
            0xa0 => queue.used = u64::from(value),
            0x84 | 0x94 | 0xa4 => assert_eq!(value, 0),
            _ => panic!("register {offset:#x} was written"),
        }
    }

    /// The next buffer of a queue: its number, its address, its bytes.
    fn next(&mut self, memory: &GuestMemoryMmap<()>, which: usize) -> Option<(u16, GuestAddress, usize)> {
        let queue = &mut self.queues[which];
        assert!(queue.ready && queue.size == u32::from(QUEUE_SIZE));
        let word = |at: u64| memory.read_obj::<u16>(GuestAddress(at)).unwrap();
        if queue.next_available == word(queue.available + 2) {
            return None;
        }
        let number = word(queue.available + 4 + u64::from(queue.next_available % QUEUE_SIZE) * 2);
        queue.next_available = queue.next_available.wrapping_add(1);
        let descriptor = queue.descriptors + u64::from(number) * 16;
        let address: u64 = memory.read_obj(GuestAddress(descriptor)).unwrap();
        let bytes: u32 = memory.read_obj(GuestAddress(descriptor + 8)).unwrap();
        assert_eq!(word(descriptor + 12), if which == RECEIVE { 2 } else { 0 });
        Some((number, GuestAddress(address), usize::try_from(bytes).unwrap()))
    }

    fn give_back(&mut self, memory: &GuestMemoryMmap<()>, which: usize, number: u16, bytes: usize) {
        let queue = &mut self.queues[which];
        let at = queue.used + 4 + u64::from(queue.next_used % QUEUE_SIZE) * 8;
        memory.write_obj(u32::from(number), GuestAddress(at)).unwrap();
        memory.write_obj(u32::try_from(bytes).unwrap(), GuestAddress(at + 4)).unwrap();
        queue.next_used = queue.next_used.wrapping_add(1);
        memory.write_obj(queue.next_used, GuestAddress(queue.used + 2)).unwrap();
    }

    fn transmit(&mut self, memory: &GuestMemoryMmap<()>) {
        while let Some((number, address, bytes)) = self.next(memory, TRANSMIT) {
            let mut frame = vec![0; bytes];
            memory.read_slice(&mut frame, address).unwrap();
            assert_eq!(frame[..HEADER_BYTES], [0; HEADER_BYTES], "nothing is asked of the device");
            self.sent.push(frame.split_off(HEADER_BYTES));
            if self.gives_back {
                self.give_back(memory, TRANSMIT, number, 0);
            } else {
                self.kept.push(number);
            }
        }
    }

    /// Puts a frame into the next receive buffer; false where there is none.
    fn receive(&mut self, memory: &GuestMemoryMmap<()>, frame: &[u8]) -> bool {
        let Some((number, address, bytes)) = self.next(memory, RECEIVE) else { return false };
        assert!(bytes >= HEADER_BYTES + frame.len());
        let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        // Behind a frame lies what the buffer had before.
        memory.write_slice(&[&header, frame, &[0xee; 8]].concat(), address).unwrap();
        self.give_back(memory, RECEIVE, number, HEADER_BYTES + frame.len());
        true
    }
}

/// All of a machine between two exits.
struct Snapshot {
    memory: Vec<u8>,
    registers: (kvm_regs, kvm_sregs),
    device: TestDevice,
}

struct Machine {
    vcpus: Vec<VcpuFd>,
    memory: GuestMemoryMmap<()>,
    device: TestDevice,
    _vm: VmFd,
}

impl Machine {
    /// A machine before its first instruction.
    fn new(vcpus: u32, device: TestDevice) -> Self {
        let image = build(&OPTIONS.parse().unwrap(), MEMORY as u64, vcpus).unwrap();
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap().addr() as u64,
        };
        // SAFETY: the region is the whole of `memory`, a mapping that lives as long as the VM: both
        // are fields of the machine.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        vm.create_irq_chip().unwrap();
        for segment in image.segments() {
            memory.write_slice(&segment.bytes, GuestAddress(segment.address)).unwrap();
        }
        let vcpus = (0..vcpus)
            .map(|index| {
                let vcpu = vm.create_vcpu(u64::from(index)).unwrap();
                vcpu.set_sregs(&image.initial_sregs(vcpu.get_sregs().unwrap())).unwrap();
                vcpu.set_regs(&image.initial_regs(index).unwrap()).unwrap();
                vcpu.set_mp_state(image.initial_mp_state()).unwrap();
                vcpu
            })
            .collect();
        Self { vcpus, memory, device, _vm: vm }
    }

    /// A machine that waits for requests, or `None`, said loudly, where there is no KVM.
    fn serving(test: &str) -> Option<Self> {
        kvm_or_skip(&format!("ledger::native_tests::{test}")).then(|| {
            let mut machine = Self::new(1, TestDevice::new());
            machine.run(0);
            machine
        })
    }

    /// Runs a vCPU until it finds nothing to do.
    fn run(&mut self, vcpu: usize) {
        for _ in 0..EXITS_MAX {
            match self.vcpus[vcpu].run().unwrap() {
                VcpuExit::IoIn(PORT_PACE, data) => {
                    data.fill(0);
                    return;
                }
                VcpuExit::MmioRead(address, data) => self.device.read(address - VIRTIO, data),
                VcpuExit::MmioWrite(address, data) => self.device.write(&self.memory, address - VIRTIO, data),
                exit => panic!("unexpected exit {exit:?}"),
            }
        }
        panic!("{EXITS_MAX} exits, and still at work");
    }

    /// What the guest sends when it gets these frames.
    fn exchange(&mut self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        for frame in frames {
            assert!(self.device.receive(&self.memory, frame), "no receive buffer is left");
        }
        self.run(0);
        std::mem::take(&mut self.device.sent)
    }

    /// The guest's answers to a request.
    fn ask(&mut self, request: &Request) -> Option<Answer> {
        let sent = self.exchange(&[framed(request)]);
        assert!(sent.len() <= 1);
        sent.first().map(|frame| answer_in(frame))
    }

    fn word(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn tally(&self) -> Tally {
        let mut page = [0; PAGE_SIZE];
        self.memory.read_slice(&mut page, GuestAddress(state_address())).unwrap();
        Tally { count: requests(&page), hash: self.word(state_address() + 8) }
    }

    /// Completes the access that the vCPU left for, so that its registers are those after it.
    fn snapshot(&mut self) -> Snapshot {
        let vcpu = &mut self.vcpus[0];
        vcpu.set_kvm_immediate_exit(1);
        assert_eq!(vcpu.run().err().map(|error| error.errno()), Some(libc::EINTR));
        vcpu.set_kvm_immediate_exit(0);
        let mut memory = vec![0; MEMORY];
        self.memory.read_slice(&mut memory, GuestAddress(0)).unwrap();
        Snapshot { memory, registers: (vcpu.get_regs().unwrap(), vcpu.get_sregs().unwrap()), device: self.device.clone() }
    }

    fn restored(snapshot: &Snapshot) -> Self {
        let machine = Self::new(1, snapshot.device.clone());
        machine.memory.write_slice(&snapshot.memory, GuestAddress(0)).unwrap();
        machine.vcpus[0].set_sregs(&snapshot.registers.1).unwrap();
        machine.vcpus[0].set_regs(&snapshot.registers.0).unwrap();
        machine
    }
}

fn framed(request: &Request) -> Vec<u8> {
    frames::udp(CLIENT, GUEST, &request.encode()).unwrap()
}

fn answer_in(frame: &[u8]) -> Answer {
    match frames::parse(frame) {
        Ok(Frame::Udp { from: GUEST, to: CLIENT, payload }) => Answer::decode(payload).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn request(client: u64, number: u64, pages: u32, payload_bytes: usize) -> Request {
    let payload = (0..payload_bytes).map(|at| (at as u64 * 7).wrapping_add(client ^ number).to_le_bytes()[0] | 1).collect();
    Request::new(client, number, pages, payload).unwrap()
}

#[test]
fn it_accepts_what_it_needs_and_answers_arp() {
    let Some(mut machine) = Machine::serving("it_accepts_what_it_needs_and_answers_arp") else { return };
    assert_eq!((machine.device.status, machine.device.driver_features), (0xf, 1 << 32 | 1 << 5));
    assert!(machine.device.queues.iter().all(|queue| queue.ready && queue.size == 64));
    assert!(machine.device.queues[RECEIVE].notified > 0, "the device is told of the receive buffers");
    for queue in &machine.device.queues {
        assert_eq!(machine.memory.read_obj::<u16>(GuestAddress(queue.available)).unwrap(), 1, "no interrupts");
    }
    let sent = machine.exchange(&[
        frames::arp_request(CLIENT.host, GUEST.host.ip),
        frames::arp_request(CLIENT.host, Ipv4Addr::new(10, 77, 0, 3)),
        frames::arp_reply(CLIENT.host, GUEST.host),
    ]);
    assert_eq!(sent, [frames::arp_reply(GUEST.host, CLIENT.host)]);
}

#[test]
fn a_device_that_is_not_one_to_serve_is_left_alone() {
    if !kvm_or_skip("ledger::native_tests::a_device_that_is_not_one_to_serve_is_left_alone") {
        return;
    }
    let mut machine = Machine::new(1, TestDevice { kind: 4, ..TestDevice::new() });
    machine.run(0);
    assert_eq!((machine.device.status, machine.device.queues[RECEIVE].notified), (0xff, 0));
    // One without an address of its own.
    let mut machine = Machine::new(1, TestDevice { features: 1 << 32, ..TestDevice::new() });
    machine.run(0);
    assert_eq!((machine.device.status, machine.device.driver_features), (0xf, 1 << 32));
    let sent = machine.exchange(&[frames::arp_request(CLIENT.host, GUEST.host.ip)]);
    let Ok(Frame::ArpReply { from }) = frames::parse(&sent[0]) else { panic!("{sent:?}") };
    assert_eq!(from.mac.to_string(), "02:73:6c:6b:77:02");
}

#[test]
fn requests_are_answered_as_the_rules_say() {
    let Some(mut machine) = Machine::serving("requests_are_answered_as_the_rules_say") else { return };
    let (mut server, mut checker) = (Server::default(), Checker::default());
    let lengths = (0..=17).chain([1023, 1024]);
    for (number, bytes) in (1..).zip(lengths) {
        for client in [u64::MAX, 5] {
            let request = request(client, number, 1, bytes);
            checker.ask(request.clone());
            let answer = machine.ask(&request).unwrap();
            assert_eq!(Some(answer), server.take(&request), "{bytes} bytes");
            assert_eq!(checker.check(&answer), Ok(Accepted::New));
            assert_eq!(machine.ask(&request), Some(answer), "the same again");
        }
    }
    assert_eq!(machine.tally(), server.tally());
    for (client, number) in [(5, 19), (5, 22), (5, 0), (6, 0), (6, 2)] {
        assert_eq!(machine.ask(&request(client, number, 1, 8)), None, "{client} {number}");
    }
    for client in 100..100 + CLIENTS_MAX as u64 {
        let request = request(client, 1, 0, 8);
        assert_eq!(machine.ask(&request), server.take(&request), "{client}");
    }
    assert_eq!(machine.tally(), server.tally());
    assert_eq!(machine.tally().count, 2 * 20 + 62);
}

#[test]
fn a_request_dirties_as_many_pages_as_it_asks_for() {
    let Some(mut machine) = Machine::serving("a_request_dirties_as_many_pages_as_it_asks_for") else { return };
    let words = |machine: &Machine| (0..17).map(|page| machine.word(AREA + page * PAGE_SIZE_U64)).collect::<Vec<_>>();
    let mut expected = vec![0; 17];
    let mut next = 0;
    for (number, pages) in (1..).zip([3, 0, 12, 5, 16, 1, 17, 65_536]) {
        machine.ask(&request(1, number, pages, 0)).unwrap();
        for _ in 0..pages.min(16) {
            expected[next] = number;
            next = (next + 1) % 16;
        }
        assert_eq!(words(&machine), expected, "request {number} for {pages} pages");
        machine.ask(&request(1, number, pages, 0)).unwrap();
        assert_eq!(words(&machine), expected, "nothing for the same again");
    }
}

/// Frames that are broken in any way, against what the host's side makes of them.
#[test]
fn broken_frames_are_ignored() {
    let Some(mut machine) = Machine::serving("broken_frames_are_ignored") else { return };
    for seed in seeds(1, 20) {
        let mut random = Random(seed);
        let (mut taken, mut ignored) = (machine.tally().count, 0);
        let client = seed << 32 | 1;
        let mut number = 1;
        for _ in 0..3000 {
            let bytes = usize::try_from(random.below(40)).unwrap();
            let mut frame = framed(&request(client, number, 1, bytes));
            // The guest checks no checksum of UDP.
            frame[40..42].fill(0);
            for _ in 0..random.below(3) {
                let at = usize::try_from(random.below(90)).unwrap() % frame.len();
                frame[at] ^= random.next().to_le_bytes()[0];
            }
            frame[40..42].fill(0);
            match random.below(8) {
                0 => frame.truncate(usize::try_from(random.below(90)).unwrap()),
                1 => frame.resize(frame.len() + 20, 0xee),
                _ => {}
            }
            let is_whole = match frames::parse(&frame) {
                Ok(Frame::Udp { to, payload, .. }) if to.host.ip == GUEST.host.ip && to.port == GUEST.port => {
                    Request::decode(payload).ok().filter(|request| request.client() == client && request.number() == number)
                }
                _ => None,
            };
            let is_next = is_whole.is_some();
            machine.exchange(&[frame.clone()]);
            let count = machine.tally().count;
            // Another client's first request is one to be taken as well: that is rare, and told by
            // its client.
            if is_next {
                assert_eq!(count, taken + 1, "SLACKWATER_SEED={seed}: a whole request was not taken: {frame:02x?}");
                number += 1;
            } else if count != taken {
                let other = matches!(frames::parse(&frame), Ok(Frame::Udp { payload, .. }) if Request::decode(payload).is_ok());
                assert!(other, "SLACKWATER_SEED={seed}: a broken request was taken: {frame:02x?}");
            } else {
                ignored += 1;
            }
            taken = count;
        }
        assert!(number > 500 && ignored > 500, "SLACKWATER_SEED={seed}: {number} whole, {ignored} ignored");
    }
}

#[test]
fn a_device_that_keeps_buffers_slows_requests_down_and_loses_none() {
    let Some(mut machine) = Machine::serving("a_device_that_keeps_buffers_slows_requests_down_and_loses_none") else { return };
    machine.device.gives_back = false;
    let all: Vec<_> = (1..=100).map(|number| framed(&request(1, number, 1, 8))).collect();
    let first = machine.exchange(&all[..60]);
    assert_eq!(first.len(), 60);
    let second = machine.exchange(&all[60..]);
    assert_eq!((second.len(), machine.tally().count), (4, 64), "no transmit buffer is left");
    machine.device.gives_back = true;
    // In any order.
    let mut kept = std::mem::take(&mut machine.device.kept);
    kept.reverse();
    for number in kept {
        machine.device.give_back(&machine.memory, TRANSMIT, number, 0);
    }
    let third = machine.exchange(&[]);
    assert_eq!((third.len(), machine.tally().count), (36, 100));
    let numbers: Vec<u64> = [first, second, third].concat().iter().map(|frame| answer_in(frame).number).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<_>>());
}

#[test]
fn the_device_is_told_where_it_waits_for_that() {
    let Some(mut machine) = Machine::serving("the_device_is_told_where_it_waits_for_that") else { return };
    let told = |machine: &Machine| machine.device.queues.clone().map(|queue| queue.notified);
    let [receive, transmit] = told(&machine);
    machine.ask(&request(1, 1, 1, 8)).unwrap();
    assert_eq!(told(&machine), [receive + 1, transmit + 1]);
    // Many at once are told of at once.
    let many: Vec<_> = (2..=33).map(|number| framed(&request(1, number, 1, 8))).collect();
    assert_eq!(machine.exchange(&many).len(), 32);
    let [_, now] = told(&machine);
    assert!(now - transmit <= 4, "{now} {transmit}");
    // A device that looks by itself.
    let before = told(&machine);
    for queue in &machine.device.queues {
        machine.memory.write_obj(1_u16, GuestAddress(queue.used)).unwrap();
    }
    assert_eq!(machine.exchange(&[framed(&request(1, 34, 1, 8))]).len(), 0);
    assert_eq!((told(&machine), machine.tally().count), (before, 34));
    machine.device.transmit(&machine.memory);
    assert_eq!(answer_in(&machine.device.sent[0]).number, 34);
}

#[test]
fn a_restored_machine_goes_on() {
    let Some(mut machine) = Machine::serving("a_restored_machine_goes_on") else { return };
    let mut checker = Checker::default();
    let mut ask = |machine: &mut Machine, number: u64| {
        let request = request(1, number, 2, 9);
        checker.ask(request.clone());
        checker.check(&machine.ask(&request).unwrap())
    };
    for number in 1..=70 {
        assert_eq!(ask(&mut machine, number), Ok(Accepted::New));
    }
    let snapshot = machine.snapshot();
    drop(machine);
    let mut machine = Machine::restored(&snapshot);
    for number in 71..=140 {
        assert_eq!(ask(&mut machine, number), Ok(Accepted::New), "{number}");
    }
    // And from the same snapshot once more, behind what was answered: the client is not answered
    // any more, and another one sees it.
    let mut machine = Machine::restored(&snapshot);
    assert_eq!(machine.ask(&request(1, 141, 2, 9)), None);
    let other = request(2, 1, 0, 0);
    checker.ask(other.clone());
    let found = checker.check(&machine.ask(&other).unwrap()).unwrap_err();
    assert_eq!(found.kind(), "fork");
}

#[test]
fn other_vcpus_dirty_pages_of_their_own() {
    if !kvm_or_skip("ledger::native_tests::other_vcpus_dirty_pages_of_their_own") {
        return;
    }
    let mut machine = Machine::new(3, TestDevice::new());
    machine.run(0);
    for times in 1..=3 {
        for vcpu in [1, 2] {
            machine.run(vcpu);
            assert_eq!(machine.word(OWN_PAGES + vcpu as u64 * PAGE_SIZE_U64), times);
        }
    }
    assert!(machine.ask(&request(1, 1, 1, 8)).is_some());
    assert_eq!(machine.word(OWN_PAGES), 0);
}
