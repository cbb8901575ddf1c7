//! Machine state: the payload of a state frame, as records and as the machine that they hold. An
//! input is the number of vCPUs (1 byte) and the payload.

use std::path::Path;

use slackwater::format::StateRecord;
use slackwater::format::{ChainId, EpochWriter, FRAME_HEADER_BYTES, decode_state, unpack_state};
use slackwater::machine::{MachineState, VcpuPiece, VmPiece};
use slackwater::page::EpochId;

use super::frames::{STATE, cut, u32_at};
use super::{Bytes, Random, fixtures};

pub(super) fn check(data: &[u8]) {
    let Some((vcpus, payload)) = data.split_first() else { return };
    let Ok(records) = decode_state(payload) else { return };
    let vcpus = u32::from(*vcpus % 9);
    let Ok(machine) = MachineState::from_records(&records, vcpus) else { return };
    assert_eq!(machine.vcpus.len(), vcpus as usize);
    // Every record is used, to the last byte.
    let sorted = |mut records: Vec<StateRecord>| {
        records.sort_by(|one, other| (&one.name, one.index).cmp(&(&other.name, other.index)));
        records
    };
    let again = machine.to_records();
    assert_eq!(sorted(again.clone()), sorted(records));
    // They go through a chain.
    let mut frame = Vec::new();
    EpochWriter::new(ChainId::default(), EpochId(1)).state(&mut frame, &again).unwrap();
    assert_eq!(sorted(decode_state(&encoded(&again)).unwrap()), sorted(again));
}

/// The payload of these records.
fn encoded(records: &[StateRecord]) -> Vec<u8> {
    let mut frame = Vec::new();
    if EpochWriter::new(ChainId::default(), EpochId(1)).state(&mut frame, records).is_err() {
        return vec![0; 8];
    }
    let length = u32_at(&frame, 20) as usize;
    frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length].to_vec()
}

/// Names of records: those of every piece, of a device, and of a device without a name.
fn names() -> Vec<&'static str> {
    let vcpu = VcpuPiece::ALL.iter().map(|piece| piece.name());
    vcpu.chain(VmPiece::ALL.iter().map(|piece| piece.name())).chain(["device.serial", "device."]).collect()
}

/// State of a few small records, packed or not.
pub(super) fn payload(random: &mut Random) -> Vec<u8> {
    let records = (0..random.below(4) as u32).map(|index| StateRecord {
        name: random.pick(&names()).to_string(),
        index,
        version: 1,
        data: (0..random.below(40)).map(|at| if at % 3 == 0 { random.next().to_le_bytes()[0] } else { 0 }).collect(),
    });
    let records: Vec<_> = records.collect();
    let payload = encoded(&records);
    if random.one_in(2) { unpack_state(&payload).map(|plain| plain.to_vec()).unwrap_or(payload) } else { payload }
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    let Some((vcpus, payload)) = data.split_first() else { return bytes(data) };
    let (mut vcpus, Ok(mut records)) = (*vcpus, decode_state(payload)) else { return bytes(data) };
    if random.one_in(8) {
        return bytes(data);
    }
    for _ in 0..=random.below(2) {
        let at = random.below(records.len());
        match random.below(8) {
            0 => vcpus = random.below(10).to_le_bytes()[0],
            1 => records.push(StateRecord { name: random.pick(&names()).to_string(), index: 0, version: 1, data: Vec::new() }),
            _ if records.is_empty() => {}
            2 => drop(records.remove(at)),
            3 => records[at].index = u32_at(&random.number().to_le_bytes(), 0),
            4 => records[at].name = random.pick(&names()).to_string(),
            5 => {
                let length = records[at].data.len();
                let length = *random.pick(&[length + 1, length.saturating_sub(1), 416, 512, 520, 1024, 4096, 8, 16, 40]);
                records[at].data.resize(length, 0);
            }
            6 => records[at].version = random.below(3) as u16,
            _ => bytes(&mut records[at].data),
        }
    }
    let payload = encoded(&records);
    let payload = if random.one_in(2) { unpack_state(&payload).map(|plain| plain.to_vec()).unwrap_or(payload) } else { payload };
    *data = [vec![vcpus], payload].concat();
}

pub(super) fn seeds(checkpoints: &Path) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for files in fixtures(checkpoints) {
        for (_, bytes) in files.iter().filter(|(name, _)| name.starts_with("segment-")) {
            for mut piece in cut(bytes) {
                let Some(frame) = piece.frame().filter(|frame| frame.kind() == STATE) else { continue };
                let Ok(records) = decode_state(&frame.payload) else { continue };
                // Two vCPUs' state is large: one of them is as good to begin with.
                let one: Vec<_> =
                    records.iter().filter(|record| !record.name.starts_with("vcpu.") || record.index == 0).cloned().collect();
                seeds.extend([[&[2], &frame.payload[..]].concat(), [vec![1], encoded(&one)].concat()]);
            }
        }
    }
    seeds.sort();
    seeds.dedup();
    // The golden chains' machines, and as many again of the others.
    seeds.sort_by_key(|seed| std::cmp::Reverse(seed.len()));
    seeds.truncate(24);
    seeds
}
