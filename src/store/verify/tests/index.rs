//! Indexes.

use proptest::prelude::*;

use super::compacted::long;
use super::*;

const PER_BLOCK: usize = 4088;

/// An index in parts: the first 216 bytes, then the entries of the four tables.
#[derive(Clone)]
pub(super) struct Tables {
    key: u64,
    pub(super) head: Vec<u8>,
    pub(super) tables: [Vec<Vec<u8>>; 4],
}

/// A frame's place, kind, epoch and payload.
pub(super) type FrameOf<'a> = (usize, u8, u64, &'a [u8]);

/// The frames of a segment.
pub(super) fn frames_of(segment: &[u8]) -> Vec<FrameOf<'_>> {
    let (mut at, mut frames) = (0, Vec::new());
    while let Some(header) = segment.get(at..at + 48) {
        let epoch = u64::from_le_bytes(header[8..16].try_into().unwrap());
        let length = usize::try_from(u32::from_le_bytes(header[20..24].try_into().unwrap())).unwrap();
        frames.push((at, header[4], epoch, &segment[at + 48..at + 48 + length]));
        at += 48 + length.next_multiple_of(8);
    }
    frames
}

impl Tables {
    /// The index of a segment.
    pub(super) fn of(segment: &[u8]) -> Self {
        let mut pages: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let (mut epochs, mut frames) = (Vec::<Vec<u8>>::new(), Vec::<Vec<u8>>::new());
        let (mut first, mut first_frame, mut state, mut last) = (None, 0u32, 0u64, (0u64, 0u128));
        for (at, kind, epoch, payload) in frames_of(segment) {
            let first_at = match kind {
                SEGMENT | CLOSE | DURABLE => continue,
                _ => *first.get_or_insert(at),
            };
            let gfns: Vec<u64> = match kind {
                PAGES => {
                    let base = u64::from_le_bytes(payload[8..16].try_into().unwrap());
                    let list = payload[16..].chunks(4).take(payload[1].into());
                    list.map(|gfn| base + u64::from(u32::from_le_bytes(gfn.try_into().unwrap()))).collect()
                }
                ZEROS => payload
                    .chunks(16)
                    .flat_map(|run| {
                        let [first, count] = [0, 8].map(|at| u64::from_le_bytes(run[at..at + 8].try_into().unwrap()));
                        first..first + count
                    })
                    .collect(),
                _ => Vec::new(),
            };
            match kind {
                STATE => state = at as u64,
                COMMIT => {
                    let mut entry: Vec<u8> =
                        [epoch, first_at as u64, state, at as u64].iter().flat_map(|field| field.to_le_bytes()).collect();
                    entry.extend(first_frame.to_le_bytes());
                    entry.extend(u32::from(payload[169] & 1).to_le_bytes());
                    epochs.push(entry);
                    let identity = payload.get(208..224).map(|field| u128::from_le_bytes(field.try_into().unwrap()));
                    last = (epoch, identity.unwrap_or_else(|| xxh3_128(&segment[at..at + 48 + payload.len()])));
                    first = None;
                    first_frame = u32::try_from(frames.len()).unwrap();
                }
                _ if !gfns.is_empty() => {
                    let number = u32::try_from(frames.len()).unwrap();
                    let mut entry = (at as u64).to_le_bytes().to_vec();
                    entry.extend(u32::try_from(epochs.len()).unwrap().to_le_bytes());
                    entry.extend([kind, u8::from(kind == PAGES && payload[0] == 2), 0, 0]);
                    frames.push(entry);
                    gfns.iter().for_each(|gfn| pages.entry(*gfn).or_default().push(number));
                }
                _ => {}
            }
        }
        let mut runs: Vec<(u64, u64, Vec<u32>)> = Vec::new();
        for (gfn, mentions) in pages {
            match runs.last_mut() {
                Some((first, count, of)) if *first + *count == gfn && *of == mentions => *count += 1,
                _ => runs.push((gfn, 1, mentions)),
            }
        }
        let mut mentions: Vec<Vec<u8>> = Vec::new();
        let runs: Vec<Vec<u8>> = runs
            .into_iter()
            .map(|(first, count, of)| {
                let entry = [first, count, mentions.len() as u64].iter().flat_map(|field| field.to_le_bytes()).collect();
                mentions.extend(of.iter().map(|frame| frame.to_le_bytes().to_vec()));
                entry
            })
            .collect();
        let mut tables = Self { key: xxh3_64(&segment[..48]), head: Vec::new(), tables: [epochs, frames, runs, mentions] };
        let mut head = vec![0xD7, 0x53, 0x57, 0x49, 2, 0, 0, 0];
        head.extend((segment.len() as u64).to_le_bytes());
        tables.tables.iter().for_each(|table| head.extend((table.len() as u64).to_le_bytes()));
        head.extend(&segment[48 + 40..48 + 48]);
        head.extend(last.0.to_le_bytes());
        head.extend(last.1.to_le_bytes());
        let base = tables.tables[0].iter().rposition(|epoch| epoch[36] == 1);
        head.extend(base.map_or(0, |base| base as u64 + 1).to_le_bytes());
        head.extend(&segment[..128]);
        tables.head = head;
        tables
    }

    /// The file, with checksums that are right.
    pub(super) fn sealed(&self) -> Vec<u8> {
        let mut contents = vec![self.head.clone()];
        for (table, bytes) in self.tables.iter().zip([40, 16, 24, 4]) {
            contents.extend(table.chunks(PER_BLOCK / bytes).map(|entries| entries.concat()));
        }
        let blocks = contents.into_iter().zip(0..).map(|(mut content, number)| {
            content.resize(PER_BLOCK, 0);
            let checksum = crate::xxh3::xxh3_64_with_seed(&content, self.key.wrapping_add(number));
            content.extend(checksum.to_le_bytes());
            content
        });
        blocks.collect::<Vec<_>>().concat()
    }

    /// Makes the counts in the first block right.
    fn recount(&mut self) {
        for (table, at) in self.tables.iter().zip([16, 24, 32, 40]) {
            self.head[at..at + 8].copy_from_slice(&(table.len() as u64).to_le_bytes());
        }
    }
}

/// Two segments of a chain, with an index each.
fn indexed() -> Writer {
    let mut writer = closed();
    writer.index();
    writer
}

/// The chain's report with another index of its first segment.
fn with(index: Vec<u8>) -> VerifyReport {
    let mut writer = indexed();
    writer.indexes.insert(0, Some(index));
    writer.verify()
}

/// That the index is what is wrong, and nothing else.
#[track_caller]
fn is_wrong(case: &str, report: &VerifyReport) {
    assert_eq!(kinds(report), [DamageKind::Index], "{case}: {report:#?}");
    assert_eq!(report.damage[0].file, "index-00000001", "{case}");
    assert_eq!((report.epochs, report.newest, report.audits_failed), (4, Some(EpochId(5)), 0), "{case}");
    assert!(!report.is_sound() && report.is_readable(), "{case}");
}

/// That the index is left over, and nothing is wrong.
#[track_caller]
fn is_left_over(case: &str, report: &VerifyReport) {
    assert!(report.is_sound(), "{case}: {report:#?}");
    let left: Vec<_> = report.leftovers.iter().map(|left| (left.file.as_str(), left.kind)).collect();
    assert_eq!(left, [("index-00000001", LeftoverKind::Index)], "{case}");
    assert_eq!((report.epochs, report.newest, report.indexes_checked), (4, Some(EpochId(5)), 1), "{case}");
}

#[test]
fn sound_indexes_are_compared() {
    for writer in [indexed(), {
        let mut writer = long();
        writer.index();
        writer
    }] {
        let report = writer.verify();
        assert!(report.is_sound(), "{report:#?}");
        let segments = writer.segments.len() as u64;
        assert_eq!((report.indexes_checked, report.indexes_unchecked, report.indexes_missing), (segments, 0, 0));
    }
    let mut empty = Writer::new();
    empty.index();
    assert_eq!((empty.verify().indexes_checked, empty.verify().damage), (1, vec![]));
}

#[test]
fn a_missing_index_is_counted_and_one_too_many_left_over() {
    let mut writer = long();
    writer.index();
    writer.indexes.remove(&1);
    writer.indexes.remove(&(writer.segments.len() - 1));
    let dir = writer.save();
    fs::write(dir.path().join("index-00000077"), "").unwrap();
    fs::write(dir.path().join("index-00000001.tmp"), "").unwrap();
    fs::write(dir.path().join("index-1"), "").unwrap();
    let report = run(dir.path());
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!(report.indexes_missing, 1, "the last segment may be appended to");
    let left: Vec<_> = report.leftovers.iter().map(|left| (left.file.as_str(), left.kind)).collect();
    assert_eq!(left, [("index-00000077", LeftoverKind::Index), ("index-00000001.tmp", LeftoverKind::Draft)]);
}

#[test]
fn no_flipped_byte_of_an_index_goes_unnoticed() {
    let sound = Tables::of(&closed().segments[0]).sealed();
    let writer = indexed();
    let dir = writer.save();
    let path = dir.path().join("index-00000001");
    for at in 0..sound.len() {
        // What is beyond the entries is alike: some of it will do.
        if sound[at] == 0 && at % 4096 < 4000 && at % 61 != 0 {
            continue;
        }
        let mut changed = sound.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, &changed).unwrap();
        let report = run(dir.path());
        is_left_over(&format!("byte {at}"), &report);
    }
    for length in [0, 1, 4095, 4096, sound.len() - 4096, sound.len() - 1] {
        is_left_over("cut", &with(sound[..length].to_vec()));
    }
    is_left_over("longer", &with([sound.as_slice(), &[0; 4096]].concat()));
    is_left_over("another's", &with(Tables::of(&closed().segments[1]).sealed()));
    is_left_over("empty", &with(Vec::new()));
    // One that lies, and is damaged behind that.
    let mut lies = Tables::of(&closed().segments[0]);
    lies.tables[0][0][0] ^= 1;
    is_wrong("a lie", &with(lies.sealed()));
    let mut lies = lies.sealed();
    *lies.last_mut().unwrap() ^= 1;
    is_left_over("a damaged lie", &with(lies));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    is_left_over("a directory", &run(dir.path()));
}

/// Every field of every table, with checksums that are right.
#[test]
fn no_field_of_an_index_may_say_something_else() {
    let sound = Tables::of(&closed().segments[0]);
    let values: [fn(u8) -> u8; 2] = [|byte| byte.wrapping_add(1), |_| 0xFF];
    for value in values {
        for at in 0..sound.head.len() {
            let mut tables = sound.clone();
            tables.head[at] = value(tables.head[at]);
            let (case, report) = (format!("head at {at}"), with(tables.sealed()));
            match at {
                _ if tables.head == sound.head => {}
                // Of another version, or of a segment of another length.
                0..16 => is_left_over(&case, &report),
                // Counts that the file is too short or too long for, or is not.
                16..48 if report.is_sound() => is_left_over(&case, &report),
                // It says of a later epoch that it was durable.
                56..64 if report.damage.len() > 1 => {
                    assert_eq!(kinds(&report), [DamageKind::Index, DamageKind::LostEpochs], "{case}: {report:#?}");
                }
                _ => is_wrong(&case, &report),
            }
        }
        for table in 0..4 {
            for entry in 0..sound.tables[table].len() {
                for at in 0..sound.tables[table][entry].len() {
                    let mut tables = sound.clone();
                    let byte = &mut tables.tables[table][entry][at];
                    *byte = value(*byte);
                    let report = with(tables.sealed());
                    is_wrong(&format!("table {table}, entry {entry}, byte {at}"), &report);
                }
            }
        }
    }
    let mut tables = sound.clone();
    tables.head.push(1);
    is_wrong("reserved", &with(tables.sealed()));
    let mut tables = sound;
    tables.tables[3].push(vec![0; 3]);
    tables.tables[3].last_mut().unwrap().push(1);
    is_wrong("behind the last entry", &with(tables.sealed()));
}

#[test]
fn entries_are_all_there_and_no_others() {
    let sound = Tables::of(&closed().segments[0]);
    for table in 0..4 {
        for entry in 0..sound.tables[table].len() {
            let mut tables = sound.clone();
            tables.tables[table].remove(entry);
            tables.recount();
            is_wrong(&format!("table {table} without {entry}"), &with(tables.sealed()));
            let mut tables = sound.clone();
            let again = tables.tables[table][entry].clone();
            tables.tables[table].insert(entry, again);
            tables.recount();
            is_wrong(&format!("table {table} with {entry} twice"), &with(tables.sealed()));
        }
    }
    // A frame that does not mention the run's pages, behind those that do.
    let last = sound.tables[1].len() - 1;
    let mut tables = sound.clone();
    let ends: Vec<_> = sound.tables[2].iter().skip(1).map(|run| usize::from(run[16])).collect();
    let run = ends.iter().position(|end| usize::from(sound.tables[3][end - 1][0]) < last).unwrap();
    tables.tables[3].insert(ends[run], u32::try_from(last).unwrap().to_le_bytes().to_vec());
    tables.tables[2][run + 1..].iter_mut().for_each(|run| run[16] += 1);
    tables.recount();
    is_wrong("one mention more", &with(tables.sealed()));
    // A run in two parts says the same.
    let mut tables = sound.clone();
    let at = sound.tables[2].iter().position(|run| run[8] > 1).unwrap();
    let from = usize::from(sound.tables[2][at][16]);
    let to = sound.tables[2].get(at + 1).map_or(sound.tables[3].len(), |next| next[16].into());
    let mut second = tables.tables[2][at].clone();
    tables.tables[2][at][8] -= 1;
    second[0] += tables.tables[2][at][8];
    second[8] = 1;
    second[16] = u8::try_from(to).unwrap();
    let again = tables.tables[3][from..to].to_vec();
    tables.tables[3].splice(to..to, again);
    tables.tables[2][at + 1..].iter_mut().for_each(|run| run[16] += u8::try_from(to - from).unwrap());
    tables.tables[2].insert(at + 1, second);
    tables.recount();
    assert!(with(tables.sealed()).is_sound());
}

/// Counts that no file has.
#[test]
fn hostile_counts_cost_nothing() {
    for at in [16, 24, 32, 40] {
        for value in [1 << 20, 1 << 26, (1 << 26) + 1, 1 << 32, 1 << 61, u64::MAX] {
            let mut tables = Tables::of(&closed().segments[0]);
            tables.head[at..at + 8].copy_from_slice(&value.to_le_bytes());
            is_left_over(&format!("{value} at {at}"), &with(tables.sealed()));
            tables.head[16..48].copy_from_slice(&[value.to_le_bytes(); 4].concat());
            is_left_over(&format!("{value} of all"), &with(tables.sealed()));
        }
    }
}

#[test]
fn an_index_says_nothing_about_damage() {
    let mut writer = indexed();
    let (segment, at) = writer.find(PAGES, 2, 0);
    let index = Tables::of(&writer.segments[0]).sealed();
    writer.indexes.insert(0, Some(index));
    writer.segments[segment][at + 70] ^= 1;
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::PayloadChecksum], "{report:#?}");
    assert_eq!((report.indexes_checked, report.indexes_unchecked), (1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever entries say, with right checksums.
    #[test]
    fn any_entries(changes in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..12)) {
        let sound = Tables::of(&closed().segments[0]);
        let mut tables = sound.clone();
        for (table, entry, at, value, action) in changes {
            let table = &mut tables.tables[table];
            if table.is_empty() { continue; }
            let entry = entry.index(table.len());
            match action {
                0 => { table.remove(entry); }
                1 => { let again = table[entry].clone(); table.push(again); }
                _ => { let at = at.index(table[entry].len()); table[entry][at] = value; }
            }
        }
        tables.recount();
        let report = with(tables.sealed());
        prop_assert_eq!(report.epochs, 4);
        prop_assert_eq!(report.is_sound(), tables.tables == sound.tables && tables.head == sound.head);
    }
}
