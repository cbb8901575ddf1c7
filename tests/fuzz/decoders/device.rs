//! A virtio device under a driver that does anything: whatever it writes to registers, rings and
//! buffers, and whatever the host does meanwhile, the machine goes on, the device writes no more
//! pages than there is room for, and its record is one that it takes back.
//!
//! An input is a byte that says how the driver begins, and steps, each of a byte and what it takes.

use slackwater::vmm::devices::{Left, LoneDevice};

use super::{Bytes, Random};

/// Registers, as virtio has them.
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const STATUS: u64 = 0x70;
const QUEUE_PARTS: [u64; 3] = [0x80, 0x90, 0xa0];
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
/// The driver has agreed, and the device does not need a reset.
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 0x40;
/// Bytes that may wait to leave before they do: an input may allocate only so much.
const WAITING_BYTES: usize = 256 << 10;
/// Steps with content have so many bytes of it at the most.
const CONTENT_BYTES: usize = 255;

/// Kinds of steps.
const WRITE_REGISTER: u8 = 0;
const READ_REGISTER: u8 = 1;
const WRITE_MEMORY: u8 = 2;
const REQUEST: u8 = 3;
const WORK: u8 = 4;
const CUT: u8 = 5;
const RELEASE: u8 = 6;
const GO_BACK: u8 = 7;
const OTHER_RECORD: u8 = 8;
const RESUME: u8 = 9;
const HOST: u8 = 10;
const KINDS: u8 = 11;

/// Bytes of a buffer of a request: its address, its length, and how it is described.
const BUFFER_BYTES: usize = 9;
const BUFFERS_MAX: usize = 5;
/// Bytes of what the host does.
const HOST_BYTES: usize = 6;

/// What differs between devices.
pub(super) struct Kind {
    /// Makes one, as the first byte says.
    pub(super) make: fn(u8) -> LoneDevice,
    /// What its driver agrees on, and how many queues it has.
    pub(super) features: fn(u8) -> u64,
    pub(super) queues: u64,
    /// The host does something.
    pub(super) host: fn(&mut LoneDevice, &[u8; HOST_BYTES], &[u8]),
    /// Something left.
    pub(super) left: fn(&mut LoneDevice, &Left),
}

/// Where the parts of a queue are that the driver sets up: descriptors, available and used ring.
pub(super) const fn parts(queue: u64) -> [u64; 3] {
    let at = 0x1000 + queue * 0x3000;
    [at, at + 0x1000, at + 0x2000]
}

/// The first byte of a step, what it takes, and what is behind it.
fn cut(data: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (first, rest) = data.split_first()?;
    let content = |at: usize| rest.get(at).map(|bytes| at + 1 + usize::from(*bytes));
    let length = match first % KINDS {
        WRITE_REGISTER => 5,
        READ_REGISTER => 2,
        WRITE_MEMORY => content(4)?,
        REQUEST => rest.get(2).map(|count| 3 + usize::from(*count) % (BUFFERS_MAX + 1) * BUFFER_BYTES)?,
        WORK => 3,
        OTHER_RECORD => 4,
        HOST => content(HOST_BYTES)?,
        _ => 0,
    };
    let (step, behind) = rest.split_at_checked(length)?;
    Some((*first, step, behind))
}

fn put(device: &mut LoneDevice, register: u64, value: u64) {
    device.write(register, &value.to_le_bytes()[..4]).unwrap();
}

fn get(device: &mut LoneDevice, register: u64) -> u32 {
    let mut bytes = [0; 4];
    device.read(register, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// What a driver does that keeps to the rules.
fn set_up(device: &mut LoneDevice, kind: &Kind, features: u64) {
    for (select, half) in [features & 0xffff_ffff, features >> 32].into_iter().enumerate() {
        put(device, DRIVER_FEATURES_SEL, select as u64);
        put(device, DRIVER_FEATURES, half);
    }
    put(device, STATUS, 11);
    for queue in 0..kind.queues {
        put(device, QUEUE_SEL, queue);
        put(device, QUEUE_NUM, LoneDevice::QUEUE_SIZE.into());
        for (register, address) in QUEUE_PARTS.into_iter().zip(parts(queue)) {
            put(device, register, address);
        }
        put(device, QUEUE_READY, 1);
    }
    put(device, STATUS, 15);
    assert_eq!(get(device, STATUS), 15, "features that the device offers");
}

/// Adds a request to a queue where the driver has set it up.
fn request(device: &mut LoneDevice, queue: u64, first: u8, buffers: &[u8]) {
    let [descriptors, available, _] = parts(queue);
    let size = u64::from(LoneDevice::QUEUE_SIZE);
    let first = u64::from(first) % size;
    let count = buffers.len() / BUFFER_BYTES;
    for (at, buffer) in buffers.chunks_exact(BUFFER_BYTES).enumerate() {
        let (address, rest) = buffer.split_first_chunk::<4>().unwrap();
        let (length, how) = rest.split_first_chunk::<4>().unwrap();
        let index = first + at as u64;
        // The bits of virtio: there is a next one, the device writes it, it is a table of others.
        let flags = u16::from(at + 1 < count) | u16::from(how[0] & 6);
        let descriptor = [
            &u64::from(u32::from_le_bytes(*address)).to_le_bytes()[..],
            length,
            &flags.to_le_bytes(),
            &(index as u16 + 1).to_le_bytes(),
        ];
        device.write_memory(descriptors + index % size * 16, &descriptor.concat());
    }
    let added = u16::from_le_bytes(device.read_memory(available + 2));
    device.write_memory(available + 4 + u64::from(added) % size * 2, &(first as u16).to_le_bytes());
    device.write_memory(available + 2, &added.wrapping_add(1).to_le_bytes());
    put(device, QUEUE_NOTIFY, queue);
}

fn work(device: &mut LoneDevice, room: u64, leave_off: u32) {
    let stopped = get(device, STATUS) & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK;
    let worked = device.work(room, leave_off).unwrap();
    assert!(worked.pages <= room, "{} pages were written where there is room for {room}", worked.pages);
    assert!(!stopped || worked.pages == 0, "a device wrote that its driver does not run");
    let stuck = worked.needs_room && worked.pages == 0 && room >= LoneDevice::REQUEST_PAGES_MAX;
    assert!(!stuck, "a request that never has room");
    if leave_off > 100_000 {
        assert!(worked.is_idle || worked.needs_room);
    }
}

fn let_leave(device: &mut LoneDevice, kind: &Kind) {
    while let Some(left) = device.leave() {
        (kind.left)(device, &left);
    }
}

/// A record that the device gives is one that it takes, and then gives again.
fn go_back(device: &mut LoneDevice) {
    let saved = device.save();
    device.restore(saved.clone()).unwrap();
    assert_eq!(device.save(), saved);
}

/// A record that is changed is refused, and changes nothing, or is one that the device gives again.
fn other_record(device: &mut LoneDevice, step: &[u8]) {
    let [at, other, less, more] = step else { return };
    let before = device.save();
    let mut record = before.clone();
    record.truncate(record.len() - usize::from(*less) % 4);
    record.extend(std::iter::repeat_n(7, usize::from(*more) % 4));
    let at = usize::from(*at) % record.len().max(1);
    record.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= other);
    match device.restore(record.clone()) {
        Ok(()) => assert_eq!(device.save(), record),
        Err(_) => assert_eq!(device.save(), before),
    }
}

pub(super) fn check(data: &[u8], kind: &Kind) {
    let Some((how, mut rest)) = data.split_first() else { return };
    let mut device = (kind.make)(*how);
    if how & 1 == 0 {
        set_up(&mut device, kind, (kind.features)(*how));
    }
    while let Some((first, step, behind)) = cut(rest) {
        rest = behind;
        let number = |at: usize| step.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
        match first % KINDS {
            WRITE_REGISTER => put(&mut device, u64::from(step[0]) * 4, number(1).into()),
            READ_REGISTER => device.read(u64::from(step[0]) * 2, &mut [0; 8][..1 << (step[1] % 4)]),
            WRITE_MEMORY => device.write_memory(number(0).into(), &step[5..]),
            REQUEST => request(&mut device, u64::from(step[0]) % kind.queues, step[1], &step[3..]),
            WORK => work(&mut device, u64::from(step[0]) * 4 + 2, if step[2] == 0 { u32::MAX } else { step[1].into() }),
            CUT => device.cut(),
            RELEASE => {
                device.release();
                let_leave(&mut device, kind);
            }
            GO_BACK => go_back(&mut device),
            OTHER_RECORD => other_record(&mut device, step),
            RESUME => device.resume().unwrap(),
            _ => (kind.host)(&mut device, step[..HOST_BYTES].try_into().unwrap(), &step[HOST_BYTES + 1..]),
        }
        let is_set = get(&mut device, INTERRUPT_STATUS) != 0;
        assert_eq!(device.is_interrupting(), is_set, "the line is as the register says");
        if device.waiting().1 > WAITING_BYTES {
            device.cut();
            device.release();
            let_leave(&mut device, kind);
        }
    }
    go_back(&mut device);
    device.cut();
    device.release();
    let_leave(&mut device, kind);
    assert_eq!(device.waiting(), (0, 0), "what was captured and released has left");
}

pub(super) fn host_step(step: [u8; HOST_BYTES], content: &[u8]) -> Vec<u8> {
    let content = &content[..content.len().min(CONTENT_BYTES)];
    [&[HOST][..], &step, &[content.len() as u8], content].concat()
}

pub(super) fn memory_step(address: u32, content: &[u8]) -> Vec<u8> {
    let content = &content[..content.len().min(CONTENT_BYTES)];
    [&[WRITE_MEMORY][..], &address.to_le_bytes(), &[content.len() as u8], content].concat()
}

/// A request of (address, bytes, the device writes it).
pub(super) fn request_step(queue: u8, first: u8, buffers: &[(u32, u32, bool)]) -> Vec<u8> {
    let one = |(address, length, writes): &(u32, u32, bool)| {
        [&address.to_le_bytes()[..], &length.to_le_bytes(), &[u8::from(*writes) << 1]].concat()
    };
    [&[REQUEST, queue, first, buffers.len() as u8][..], &buffers.iter().flat_map(one).collect::<Vec<_>>()].concat()
}

/// A request whose one buffer is a table of `count` descriptors, each of a byte that the device
/// writes, in a page of its own. No driver may do so that was not offered tables.
pub(super) fn table_steps(queue: u8, first: u8, count: u32, is_loop: bool) -> Vec<u8> {
    const TABLE: u32 = 0x30000;
    let descriptors = (0..if is_loop { 1 } else { count }).flat_map(|at| {
        let (flags, next) = (2 | u16::from(at + 1 < count), if is_loop { 0 } else { at as u16 + 1 });
        let address = u64::from(0x40000 + at * 0x1000);
        [&address.to_le_bytes()[..], &1_u32.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    });
    let descriptors: Vec<u8> = descriptors.collect();
    let parts = descriptors.chunks(240).zip(0_u32..).flat_map(|(part, at)| memory_step(TABLE + at * 240, part));
    let mut request = request_step(queue, first, &[(TABLE, count * 16, true)]);
    let how = request.len() - 1;
    request[how] |= 4;
    parts.chain(request).collect()
}

/// With room for little more than a request may need.
pub(super) fn narrow_work_step() -> Vec<u8> {
    vec![WORK, 64, 0, 0]
}

pub(super) fn work_step() -> Vec<u8> {
    vec![WORK, 255, 0, 0]
}

pub(super) fn plain_steps() -> [Vec<u8>; 5] {
    [CUT, RELEASE, GO_BACK, RESUME, HOST].map(|kind| if kind == HOST { work_step() } else { vec![kind] })
}

fn likely(random: &mut Random, likely_of_kind: fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    let byte = |random: &mut Random| random.next().to_le_bytes()[0];
    let address = |random: &mut Random| *random.pick(&[0x20000, 0x21ffe, 0x1000, 0x4000, 0x1f_ffff, 0x20_0000, u32::MAX]);
    let length = |random: &mut Random| *random.pick(&[0, 1, 10, 12, 26, 44, 72, 2048, 4097, 65_535, 65_563, u32::MAX]);
    match random.below(9) {
        0 => work_step(),
        1 => random.pick(&plain_steps()).clone(),
        2 => {
            let register = *random.pick(&[QUEUE_SEL, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY, 0x64, STATUS, 0x80, 0x90, 0xa0]);
            let value = *random.pick(&[0, 1, 2, 8, 11, 15, 64, 65, 0x1000, u32::MAX]);
            [&[WRITE_REGISTER, (register / 4) as u8][..], &value.to_le_bytes()].concat()
        }
        3 => vec![WORK, byte(random) % 80, byte(random) % 8, 1],
        4 => vec![OTHER_RECORD, byte(random), 1 << random.below(8), 0, 0],
        5 => {
            // A word of a ring or of the descriptors.
            let [descriptors, available, used] = parts(random.below(3) as u64);
            let at = *random.pick(&[descriptors + 8, descriptors + 12, available, available + 2, available + 4, used + 2]);
            memory_step(at as u32 + 16 * random.below(3) as u32, &(random.number() as u16).to_le_bytes())
        }
        6 => {
            let count = random.below(BUFFERS_MAX + 1);
            let buffers: Vec<_> = (0..count).map(|_| (address(random), length(random), random.one_in(2))).collect();
            request_step(byte(random), byte(random) % 8, &buffers)
        }
        7 => {
            let steps = table_steps(byte(random), byte(random) % 8, random.below(500) as u32, random.one_in(2));
            [steps, narrow_work_step()].concat()
        }
        _ => likely_of_kind(random),
    }
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>, likely_of_kind: fn(&mut Random) -> Vec<u8>) {
    if random.one_in(6) {
        return bytes(data);
    }
    let mut steps = Vec::new();
    let how = data.first().copied().unwrap_or_default();
    let mut rest = data.get(1..).unwrap_or_default();
    while let Some((_, _, behind)) = cut(rest) {
        steps.push(rest[..rest.len() - behind.len()].to_vec());
        rest = behind;
    }
    let at = random.below(steps.len() + 1);
    match random.below(6) {
        0 if at < steps.len() => drop(steps.remove(at)),
        1 if at < steps.len() => steps.insert(at, steps[at].clone()),
        2 if at < steps.len() => bytes(&mut steps[at]),
        // As often as a queue has places.
        3 if at < steps.len() && steps[at].len() < 64 => {
            let step = steps[at].clone();
            let times = random.below(80);
            steps.splice(at..at, std::iter::repeat_n(step, times));
        }
        _ => steps.insert(at, likely(random, likely_of_kind)),
    }
    let how = if random.one_in(30) { random.next().to_le_bytes()[0] } else { how };
    *data = [&[how][..], &steps.concat()].concat();
}
