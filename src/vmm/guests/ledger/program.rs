//! The program's bytes, assembled from `ledger.S`, which the linker has between two symbols.

// UNSAFETY: the assembled program is reached through two symbols, which only `extern` statics can
// name.
#![expect(unsafe_code, reason = "the program lies between two symbols of the linker")]

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;

use super::layout::{
    AREA, CLIENTS, QUEUE_SIZE, RECEIVE_BUFFER_SHIFT, RECEIVE_BUFFERS, RECEIVE_QUEUE, STATE, TRANSMIT_BUFFER_SHIFT,
    TRANSMIT_BUFFERS, TRANSMIT_QUEUE, client_at, queue_at, state_at, told_at,
};
use crate::ledger::{
    ANSWER_BYTES, ANSWER_MAGIC, CLIENTS_MAX, HASH_FACTOR, PAYLOAD_BYTES_MAX, REQUEST_HEADER_BYTES, REQUEST_MAGIC,
    REQUEST_PAGES_MAX, request_at,
};
use crate::vmm::devices::VIRTIO;
use crate::vmm::guests::ports;

/// Bytes of `virtio_net_hdr_v1`, which comes before every frame.
const HEADER_BYTES: usize = 12;
/// Bytes of an Ethernet frame with ARP.
const ARP_FRAME_BYTES: usize = 42;
const DRIVER: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
/// Bytes of an IPv4 packet with an answer, and of its datagram.
const ANSWER_IP_BYTES: usize = 20 + ANSWER_UDP_BYTES;
const ANSWER_UDP_BYTES: usize = 8 + ANSWER_BYTES;
const PROTOCOL_UDP: u8 = 17;

/// Two bytes and a length as they lie in a frame, in the word that the program stores.
const fn with_length(first: [u8; 2], length: usize) -> u32 {
    let [.., high, low] = length.to_be_bytes();
    u32::from_le_bytes([first[0], first[1], high, low])
}

/// A length and two zeros, the same.
const fn length_first(length: usize) -> u32 {
    with_length([0; 2], length) >> 16
}

const _: () = {
    assert!(client_at::HASH_AFTER + 8 + 8 == ANSWER_BYTES, "the program copies 6 words of a client's place");
    assert!(ANSWER_IP_BYTES <= 0xffff);
    assert!(HEADER_BYTES + 42 + ANSWER_BYTES <= 1 << TRANSMIT_BUFFER_SHIFT);
    assert!(HEADER_BYTES + 42 + REQUEST_HEADER_BYTES + PAYLOAD_BYTES_MAX + 8 <= 1 << RECEIVE_BUFFER_SHIFT);
    assert!((REQUEST_HEADER_BYTES - request_at::CLIENT).is_multiple_of(8), "the program hashes words");
};

core::arch::global_asm!(
    include_str!("ledger.S"),
    vcpu = const told_at::VCPU,
    pages = const told_at::PAGES,
    ip = const told_at::IP,
    port = const told_at::PORT,
    paced = const told_at::PACED,
    own_page = const told_at::OWN_PAGE,
    state = const STATE,
    clients = const CLIENTS,
    receive_queue = const RECEIVE_QUEUE,
    transmit_queue = const TRANSMIT_QUEUE,
    transmit_buffers = const TRANSMIT_BUFFERS,
    transmit_buffer_shift = const TRANSMIT_BUFFER_SHIFT,
    receive_buffers = const RECEIVE_BUFFERS,
    receive_buffer_shift = const RECEIVE_BUFFER_SHIFT,
    receive_buffer_bytes = const 1 << RECEIVE_BUFFER_SHIFT,
    area = const AREA,
    count = const state_at::COUNT,
    hash = const state_at::HASH,
    next_page = const state_at::NEXT_PAGE,
    received = const state_at::RECEIVED,
    sent = const state_at::SENT,
    receive_told = const state_at::RECEIVE_TOLD,
    transmit_told = const state_at::TRANSMIT_TOLD,
    free_count = const state_at::FREE_COUNT,
    mac = const state_at::MAC,
    free = const state_at::FREE,
    client_id = const client_at::ID,
    client_number = const client_at::NUMBER,
    client_count_before = const client_at::COUNT_BEFORE,
    client_hash_before = const client_at::HASH_BEFORE,
    client_count_after = const client_at::COUNT_AFTER,
    client_hash_after = const client_at::HASH_AFTER,
    client_bytes = const client_at::BYTES,
    clients_max = const CLIENTS_MAX,
    queue_size = const QUEUE_SIZE,
    descriptor_bytes = const queue_at::DESCRIPTOR_BYTES,
    available = const queue_at::AVAILABLE,
    available_index = const queue_at::AVAILABLE_INDEX,
    available_ring = const queue_at::AVAILABLE_RING,
    used = const queue_at::USED,
    used_index = const queue_at::USED_INDEX,
    used_ring = const queue_at::USED_RING,
    no_notify = const VRING_USED_F_NO_NOTIFY,
    told_at_once = const 16,
    idle_polls = const 256,
    other_pauses = const 1 << 16,
    device = const VIRTIO,
    magic = const VIRTIO_MMIO_MAGIC_VALUE,
    magic_value = const u32::from_le_bytes(*b"virt"),
    version = const VIRTIO_MMIO_VERSION,
    version_value = const 2,
    device_id = const VIRTIO_MMIO_DEVICE_ID,
    device_id_net = const VIRTIO_ID_NET,
    status = const VIRTIO_MMIO_STATUS,
    acknowledge = const VIRTIO_CONFIG_S_ACKNOWLEDGE,
    driver = const DRIVER,
    features_ok = const FEATURES_OK,
    driver_ok = const FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK,
    failed = const VIRTIO_CONFIG_S_FAILED,
    device_features_select = const VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    device_features = const VIRTIO_MMIO_DEVICE_FEATURES,
    driver_features_select = const VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    driver_features = const VIRTIO_MMIO_DRIVER_FEATURES,
    feature_mac = const 1 << VIRTIO_NET_F_MAC,
    feature_version_1_high = const 1 << (VIRTIO_F_VERSION_1 - 32),
    queue_select = const VIRTIO_MMIO_QUEUE_SEL,
    queue_size_max = const VIRTIO_MMIO_QUEUE_NUM_MAX,
    queue_size_register = const VIRTIO_MMIO_QUEUE_NUM,
    queue_descriptors_low = const VIRTIO_MMIO_QUEUE_DESC_LOW,
    queue_descriptors_high = const VIRTIO_MMIO_QUEUE_DESC_HIGH,
    queue_available_low = const VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    queue_available_high = const VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    queue_used_low = const VIRTIO_MMIO_QUEUE_USED_LOW,
    queue_used_high = const VIRTIO_MMIO_QUEUE_USED_HIGH,
    queue_ready = const VIRTIO_MMIO_QUEUE_READY,
    queue_notify = const VIRTIO_MMIO_QUEUE_NOTIFY,
    config = const VIRTIO_MMIO_CONFIG,
    header = const HEADER_BYTES,
    arp_frame_bytes = const ARP_FRAME_BYTES,
    type_arp = const u16::from_le_bytes([0x08, 0x06]),
    type_ipv4 = const u16::from_le_bytes([0x08, 0x00]),
    // Ethernet addresses for IPv4 addresses, of 6 and 4 bytes: the question, and the answer.
    arp_request = const u64::from_le_bytes([0, 1, 8, 0, 6, 4, 0, 1]),
    arp_reply = const u64::from_le_bytes([0, 1, 8, 0, 6, 4, 0, 2]),
    // More fragments to come, or a place behind the first.
    fragment = const u16::from_le_bytes([0x3f, 0xff]),
    protocol_udp = const PROTOCOL_UDP,
    // No options and the length; not to be fragmented; 64 hops.
    ipv4_first = const with_length([0x45, 0], ANSWER_IP_BYTES),
    ipv4_second = const u32::from_le_bytes([0, 0, 0x40, 0]),
    ipv4_third = const u32::from_le_bytes([64, PROTOCOL_UDP, 0, 0]),
    udp_length = const length_first(ANSWER_UDP_BYTES),
    request_magic = const REQUEST_MAGIC,
    request_client = const request_at::CLIENT,
    request_number = const request_at::NUMBER,
    request_pages = const request_at::PAGES,
    request_pages_max = const REQUEST_PAGES_MAX,
    request_payload_bytes = const request_at::PAYLOAD_BYTES,
    request_header_bytes = const REQUEST_HEADER_BYTES,
    payload_bytes_max = const PAYLOAD_BYTES_MAX,
    answer_magic = const ANSWER_MAGIC,
    answer_bytes = const ANSWER_BYTES,
    hash_factor = const HASH_FACTOR,
    port_pace = const ports::PORT_PACE,
);

// SAFETY: both symbols are defined by the assembly above, as bytes of a read-only section; their
// types match it.
unsafe extern "C" {
    safe static slackwater_ledger_start: u8;
    safe static slackwater_ledger_end: u8;
}

/// The program: position independent, entered at its first byte.
pub(super) fn bytes() -> &'static [u8] {
    let start = &raw const slackwater_ledger_start;
    let length = (&raw const slackwater_ledger_end).addr() - start.addr();
    // SAFETY: the two symbols enclose `length` initialised bytes in one read-only section, which
    // live as long as the process and which nothing writes.
    unsafe { std::slice::from_raw_parts(start, length) }
}
