//! A driver of a socket device, with programs of the host at its sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::queue_driver::QueueDriver;
use super::virtio_device::QUEUE_SIZE;
use super::vsock::Vsock;
use crate::lock::lock;
use crate::machine::DeviceState;
use crate::page::EpochId;
use crate::vmm::attention::Attention;
use crate::vmm::devices::device::Device;
use crate::vmm::devices::record::{Fields, RecordName};
use crate::vmm::outputs::Outputs;
use crate::vmm::vsock::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM};
use crate::vmm::vsock_side::VsockSide;

const RECORD: RecordName = RecordName::only("vsock", 1);
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const CID: u64 = 7;
const LIMIT: Duration = Duration::from_secs(30);

struct Driver {
    queues: QueueDriver,
    side: Arc<VsockSide>,
    outputs: Outputs,
    dir: tempfile::TempDir,
    carrier: Option<JoinHandle<()>>,
    epoch: u64,
}

impl Driver {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spec = format!("cid={CID},path={}", dir.path().join("vsock").display()).parse().unwrap();
        let side = Arc::new(VsockSide::new(spec, 5, true));
        let attention = Arc::new(Attention::default());
        side.listen(&attention).unwrap();
        let (carried, outputs) = (side.clone(), Outputs::default().with(side.outlet.clone()));
        let carrier = Some(std::thread::spawn(move || carried.carry(&attention)));
        let queues = QueueDriver::new(Box::new(Vsock::new(side.clone())), RECORD, 1 << VIRTIO_F_VERSION_1);
        let mut driver = Self { queues, side, outputs, dir, carrier, epoch: 0 };
        (0..QUEUE_SIZE).for_each(|slot| driver.queues.add(RX, slot, &[(0x20000 + u64::from(slot) * 2048, 2048, true)]));
        driver
    }

    /// The next packet for the guest, if there is one now.
    fn next_now(&mut self) -> Option<(Header, Vec<u8>)> {
        self.queues.work();
        let (slot, bytes) = self.queues.used(RX)?;
        let address = 0x20000 + u64::from(slot) * 2048;
        let bytes = self.queues.read(address, usize::try_from(bytes).unwrap());
        self.queues.add(RX, u16::try_from(slot).unwrap(), &[(address, 2048, true)]);
        Some((Header::decode(&bytes).unwrap(), bytes[HEADER_BYTES..].to_vec()))
    }

    /// The next packet for the guest.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let begun = Instant::now();
        loop {
            if let Some(found) = self.next_now() {
                return found;
            }
            assert!(begun.elapsed() < LIMIT, "no packet");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until so many connections are known, whoever asked for them.
    fn wait_for_connections(&self, count: usize) {
        let begun = Instant::now();
        while lock(&self.side.connections).len() < count {
            assert!(begun.elapsed() < LIMIT, "no connection");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Goes back to `saved`, and on from there.
    fn go_back(&mut self, saved: &DeviceState) {
        self.queues.device.restore(Fields::of(saved, RECORD).unwrap()).unwrap();
        self.queues.device.resume().unwrap();
    }

    fn connect(&self) -> UnixStream {
        let mut host = UnixStream::connect(self.dir.path().join("vsock")).unwrap();
        host.set_read_timeout(Some(LIMIT)).unwrap();
        host.write_all(b"CONNECT 5000\n").unwrap();
        host
    }

    fn send(&mut self, op: Op, (guest, host): (u32, u32), payload: &[u8]) {
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            length: u32::try_from(payload.len()).unwrap(),
            kind: TYPE_STREAM,
            op: op.number(),
            buf_alloc: 4096,
            ..Header::default()
        };
        let packet = [&header.encode()[..], payload].concat();
        self.queues.write(0x60000, &packet);
        self.queues.add(TX, 0, &[(0x60000, u32::try_from(packet.len()).unwrap(), false)]);
        self.queues.work();
        assert!(self.queues.used(TX).is_some());
    }

    fn cut(&mut self) {
        self.epoch += 1;
        self.queues.device.note_capture();
        self.queues.device.note_taken(EpochId(self.epoch));
    }

    fn release(&self) {
        self.outputs.release(EpochId(self.epoch));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.side.outlet.end();
        self.carrier.take().unwrap().join().unwrap();
        self.side.close();
    }
}

/// That nothing comes, as far as it would have by now: something sent later through the same thread
/// came.
fn is_silent(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let silent = (&mut &*stream).read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    silent
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn what_the_guest_says_reaches_the_host_when_its_epoch_is_released() {
    let mut driver = Driver::new();
    let mut host = driver.connect();
    let (request, _) = driver.next();
    assert_eq!((request.op(), request.dst_port, request.dst_cid), (Ok(Op::Request), 5000, CID));
    let ports = (5000, request.src_port);
    driver.send(Op::Response, ports, b"");
    assert!(driver.queues.device.wants_epoch());
    driver.cut();
    driver.send(Op::Data, ports, b"later");
    assert!(is_silent(&host));
    driver.release();
    assert_eq!(line(&mut host), format!("OK {}\n", request.src_port));
    assert!(is_silent(&host), "it is of the next epoch");
    // Input does not wait.
    host.write_all(b"hello").unwrap();
    let (data, payload) = driver.next();
    assert_eq!((data.op(), payload.as_slice()), (Ok(Op::Data), &b"hello"[..]));
    driver.cut();
    driver.release();
    let mut later = [0; 5];
    host.read_exact(&mut later).unwrap();
    assert_eq!(&later, b"later");
}

#[test]
fn a_restore_resets_all_connections_and_the_driver_is_told() {
    let mut driver = Driver::new();
    let listener = UnixListener::bind(driver.dir.path().join("vsock_80")).unwrap();
    driver.send(Op::Request, (1000, 80), b"");
    driver.cut();
    driver.release();
    let (mut host, _) = listener.accept().unwrap();
    host.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(driver.next().0.op(), Ok(Op::Response));
    driver.queues.add(EVENT, 0, &[(0x70000, 4, true)]);
    driver.queues.write(0x70000, &[0xff; 4]);
    driver.queues.work();
    assert_eq!(driver.queues.used(EVENT), None, "it is told of nothing else");
    let saved = RECORD.with(driver.queues.device.save());
    // What was said since then never was.
    driver.send(Op::Data, (1000, 80), b"never");
    driver.go_back(&saved);
    driver.queues.work();
    assert_eq!(driver.queues.used(EVENT), Some((0, 4)));
    assert_eq!(driver.queues.read(0x70000, 4), [0; 4]);
    driver.cut();
    driver.release();
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    // A packet of a connection that is gone.
    driver.send(Op::Data, (1000, 80), b"x");
    driver.queues.add(EVENT, 0, &[(0x70000, 4, true)]);
    assert_eq!(driver.next().0.op(), Ok(Op::Reset));
}

/// A driver ends all that it has when it takes the event, so nothing new is among that.
#[test]
fn connections_of_after_a_restore_wait_until_the_driver_has_taken_the_event() {
    let mut driver = Driver::new();
    let listener = UnixListener::bind(driver.dir.path().join("vsock_80")).unwrap();
    let saved = RECORD.with(driver.queues.device.save());
    driver.go_back(&saved);
    // Both sides ask at once.
    let _host = driver.connect();
    driver.wait_for_connections(1);
    driver.send(Op::Request, (1000, 80), b"");
    driver.cut();
    driver.release();
    let _guests = listener.accept().unwrap();
    driver.wait_for_connections(2);
    assert_eq!(driver.next_now(), None, "the event waits for a buffer");
    for slot in 0..2_u16 {
        driver.queues.add(EVENT, slot, &[(0x70000 + 16 * u64::from(slot), 4, true)]);
    }
    assert_eq!(driver.next_now(), None);
    assert_eq!((driver.queues.used(EVENT), driver.queues.used(EVENT)), (Some((0, 4)), None), "it is told once");
    assert_eq!(driver.next_now(), None, "it is told, and has not said that it knows");
    // One that goes on before the driver does tells it again.
    let told = RECORD.with(driver.queues.device.save());
    driver.queues.add(EVENT, 0, &[(0x70000, 4, true)]);
    let (first, _) = driver.next_now().unwrap();
    let second = driver.next().0;
    let mut found = [first, second].map(|header| (header.op().unwrap(), header.dst_port));
    found.sort_by_key(|(_, port)| *port);
    assert_eq!(found, [(Op::Response, 1000), (Op::Request, 5000)]);
    assert_eq!(driver.queues.used(EVENT), None);
    driver.go_back(&told);
    driver.queues.work();
    assert!(driver.queues.used(EVENT).is_some());
    // A driver that begins anew has no connections, and is told of none.
    driver.go_back(&told);
    driver.queues.put(VIRTIO_MMIO_STATUS, 0);
    driver.queues.set_up(1 << VIRTIO_F_VERSION_1);
    assert_eq!(RECORD.with(driver.queues.device.save()).data.last(), Some(&0));
}

#[test]
fn an_answer_that_a_packet_asks_for_comes_with_it() {
    let mut driver = Driver::new();
    driver.send(Op::Data, (1000, 80), b"x");
    let (slot, _) = driver.queues.used(RX).unwrap();
    let address = 0x20000 + u64::from(slot) * 2048;
    assert_eq!(Header::decode(&driver.queues.read(address, HEADER_BYTES)).unwrap().op(), Ok(Op::Reset));
}
