//! Compacted segments and rewritten epochs.

use super::changes::touched;
use super::*;

/// Bytes of the commit frame of a rewritten epoch.
const REWRITTEN: usize = 48 + 224;

/// How to break a rewritten epoch: by its number.
type TweakOf<'a> = &'a dyn Fn(u64, &mut Vec<(u8, Vec<u8>)>, &mut Vec<u8>);

impl Writer {
    /// The chain with its segments `from` to `to`, counted from 0, as one that has only the epochs
    /// of `keep`.
    pub(super) fn compacted(&self, from: usize, to: usize, keep: &[u64]) -> Self {
        self.compacted_with(from, to, keep, &|_, _, _| {})
    }

    fn compacted_with(&self, from: usize, to: usize, keep: &[u64], tweak: TweakOf<'_>) -> Self {
        let mut writer = self.clone();
        let numbers = (self.numbers[from].0, self.numbers[to].1);
        let header = &self.segments[from][48..128];
        let before =
            (u64::from_le_bytes(header[40..48].try_into().unwrap()), u128::from_le_bytes(header[24..40].try_into().unwrap()));
        let mut segment = self.segment_header(numbers.0, numbers.1, before);
        let of_these = |epoch: &u64| (from..=to).contains(&self.places[epoch].0);
        let mut last = before;
        let mut since = before.0;
        for epoch in self.places.keys().copied().filter(of_these) {
            if !keep.contains(&epoch) {
                continue;
            }
            let written = &self.written[&epoch];
            let parent = u64::from_le_bytes(written.commit[..8].try_into().unwrap());
            if parent == last.0 {
                let (segment_of, start, _, end) = self.places[&epoch];
                segment.extend(&self.segments[segment_of][start..end]);
            } else {
                let mentions: BTreeSet<u64> =
                    self.written.range(since + 1..=epoch).flat_map(|(_, written)| written.mentions.clone()).collect();
                segment.extend(self.rewritten(epoch, &mentions, last, tweak));
            }
            last = (epoch, written.identity);
            since = epoch;
        }
        let close = [last.0.to_le_bytes().to_vec(), last.1.to_le_bytes().to_vec()].concat();
        segment.extend(self.frame(CLOSE, last.0, 0, &close));
        writer.segments.splice(from..=to, [segment]);
        writer.numbers.splice(from..=to, [numbers]);
        writer.relist();
        writer
    }

    fn rewritten(&self, epoch: u64, mentions: &BTreeSet<u64>, parent: (u64, u128), tweak: TweakOf<'_>) -> Vec<u8> {
        let written = &self.written[&epoch];
        let base = parent.0 == 0;
        let (there, gone): (Vec<u64>, Vec<u64>) = mentions.iter().partition(|gfn| written.memory.contains_key(gfn));
        let pages: Vec<PageOf> = there.iter().map(|gfn| (*gfn, written.memory[gfn].clone())).collect();
        let blocks = pages.chunks(16).flat_map(|pages| {
            let near = pages.iter().filter(|page| page.0 < 1 << 19).cloned().collect::<Vec<_>>();
            let far = pages.iter().filter(|page| page.0 >= 1 << 19).cloned().collect::<Vec<_>>();
            [near, far].into_iter().filter(|pages| !pages.is_empty()).map(|pages| (PAGES, block(1, &pages)))
        });
        let mut payloads: Vec<(u8, Vec<u8>)> = blocks.collect();
        let (blocks, zero) = (payloads.len(), if base { 0 } else { gone.len() as u64 });
        if zero > 0 {
            payloads.push((ZEROS, zeros(&gone.iter().map(|gfn| (*gfn, 1)).collect::<Vec<_>>())));
        }
        payloads.push((STATE, written.state.clone()));
        let mut commit = written.commit.clone();
        commit[..8].copy_from_slice(&parent.0.to_le_bytes());
        commit[8..24].copy_from_slice(&parent.1.to_le_bytes());
        commit[120..152]
            .copy_from_slice(&[pages.len() as u64 + zero, zero, 0, pages.len() as u64].map(u64::to_le_bytes).concat());
        commit[169] |= 8 | u8::from(base);
        commit.extend(written.identity.to_le_bytes());
        commit[28..32].copy_from_slice(&u32::try_from(blocks).unwrap().to_le_bytes());
        let before = commit.clone();
        tweak(epoch, &mut payloads, &mut commit);
        let frames: Vec<Vec<u8>> =
            payloads.iter().zip(0..).map(|((kind, payload), sequence)| self.frame(*kind, epoch, sequence, payload)).collect();
        let headers: Vec<u8> = frames.iter().flat_map(|frame| frame[..48].to_vec()).collect();
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let mut put = |at: usize, bytes: &[u8]| {
            if commit.get(at..at + bytes.len()) == before.get(at..at + bytes.len()) {
                commit[at..at + bytes.len()].copy_from_slice(bytes);
            }
        };
        put(24, &u32::try_from(frames.len()).unwrap().to_le_bytes());
        put(32, &bytes.to_le_bytes());
        put(40, &xxh3_128(&headers).to_le_bytes());
        put(152, &(bytes + REWRITTEN as u64).to_le_bytes());
        let commit = self.frame(COMMIT, epoch, u32::try_from(frames.len()).unwrap(), &commit);
        [frames.concat(), commit].concat()
    }

    /// Finds anew where everything is.
    fn relist(&mut self) {
        self.frames.clear();
        self.places.clear();
        for (number, segment) in self.segments.iter().enumerate() {
            let mut start = None;
            for (at, kind, epoch, payload) in index::frames_of(segment) {
                self.frames.push((number, at, kind, epoch));
                if matches!(kind, SEGMENT | CLOSE | DURABLE) {
                    continue;
                }
                let first = *start.get_or_insert(at);
                if kind == COMMIT {
                    self.places.insert(epoch, (number, first, at, at + 48 + payload.len()));
                    start = None;
                }
            }
        }
    }
}

/// Four segments with three epochs each, with whole pages, changes and zero pages, all audited.
pub(super) fn long() -> Writer {
    let mut writer = Writer::new();
    let mut pages = many(0, 6, 3);
    writer.epoch(1, Plan { blocks: vec![(1, pages.clone()), (0, vec![page(0x10_0000, 9)])], flags: 1 | 4, ..Plan::default() });
    for epoch in 2..=12u64 {
        if epoch % 3 == 1 {
            writer.segment();
        }
        let seed = u8::try_from(epoch).unwrap();
        let (changed, whole) = (usize::from(seed) % 4, 20 + epoch % 3);
        pages[changed] = touched(&pages[changed], seed);
        let blocks = vec![(2, vec![pages[changed].clone()]), (1, vec![page(whole, seed), page(whole + 10, seed)])];
        let zeros = if epoch % 4 == 0 { vec![(20 + (epoch + 1) % 3, 1), (60, 3)] } else { Vec::new() };
        writer.epoch(epoch, Plan { blocks, zeros, ..audited() });
        writer.sync();
    }
    writer.close();
    writer
}

#[track_caller]
fn is_sound(writer: &Writer) -> VerifyReport {
    let report = writer.verify();
    assert!(report.is_sound() && report.torn_tail.is_none(), "{report:#?}");
    let epochs = writer.places.len() as u64;
    assert_eq!((report.epochs, report.audits_checked, report.audits_failed), (epochs, epochs, 0));
    report
}

#[test]
fn kept_epochs_are_what_they_were() {
    is_sound(&long());
    let all: Vec<u64> = (1..=12).collect();
    for (from, to, keep) in [
        (0, 1, all.as_slice()),
        (0, 1, &[6]),
        (0, 1, &[1, 6]),
        (0, 1, &[2, 3, 6]),
        (0, 1, &[1, 2, 4, 6]),
        (1, 2, &[9]),
        (1, 2, &[5, 8, 9]),
        (1, 2, &[4, 6, 7, 9]),
        (0, 3, &[12]),
        (0, 3, &[4, 8, 12]),
        (2, 2, &[8, 9]),
        (3, 3, &[12]),
    ] {
        let mut writer = long().compacted(from, to, keep);
        writer.index();
        let report = is_sound(&writer);
        assert_eq!((report.segments, report.indexes_checked), ((4 - (to - from)) as u64, (4 - (to - from)) as u64));
    }
    // And once more, of what was compacted.
    let twice = long().compacted(0, 1, &[3, 6]).compacted(1, 2, &[9, 12]);
    assert_eq!(twice.numbers, [(1, 2), (3, 4)]);
    is_sound(&twice);
}

#[test]
fn replaced_segments_are_left_over() {
    let (old, new) = (long(), long().compacted(0, 1, &[2, 6]).compacted(1, 2, &[9, 12]));
    let dir = old.save();
    new.save_to(dir.path());
    fs::write(dir.path().join("compact.tmp"), "half").unwrap();
    let report = run(dir.path());
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!((report.epochs, report.segments), (4, 2));
    let left: Vec<_> = report.leftovers.iter().map(|left| (left.file.as_str(), left.kind)).collect();
    let replaced = |name| (name, LeftoverKind::Replaced);
    let draft = ("compact.tmp", LeftoverKind::Draft);
    assert_eq!(
        left,
        [
            replaced("segment-00000001"),
            replaced("segment-00000002"),
            replaced("segment-00000003"),
            replaced("segment-00000004"),
            draft
        ]
    );
}

#[test]
fn numbers_belong_to_one_segment() {
    let (one, other) = (long().compacted(0, 1, &[2, 6]), long().compacted(1, 2, &[9]));
    let dir = one.save();
    fs::write(dir.path().join("segment-00000002-00000003"), &other.segments[1]).unwrap();
    let report = run(dir.path());
    assert_eq!(kinds(&report)[0], DamageKind::SegmentNumbers, "{report:#?}");
    assert_eq!(report.damage[0].file, "segment-00000002-00000003");
    // What is no name of a segment means nothing.
    let dir = one.save();
    for name in ["segment-00000003-00000003", "segment-00000004-00000003", "segment-3-4", "segment-00000000-00000009"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    assert!(run(dir.path()).is_sound());
}

#[test]
fn no_flipped_byte_of_a_compacted_segment_goes_unnoticed() {
    let writer = long().compacted(0, 1, &[2, 5, 6]);
    let dir = writer.save();
    let path = dir.path().join("segment-00000001-00000002");
    let sound = &writer.segments[0];
    for at in 0..sound.len() {
        let mut changed = sound.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, changed).unwrap();
        let report = run(dir.path());
        assert_eq!(report.damage.len(), 1, "{at}: {report:#?}");
        assert_eq!(report.damage[0].file, "segment-00000001-00000002", "{at}");
        assert!(report.damage[0].offset.abs_diff(at as u64) < 5000, "{at}: {report:#?}");
        let before = writer.places.values().filter(|place| place.0 == 0 && place.3 <= at).count();
        assert_eq!(report.epochs, before as u64, "{at}");
    }
}

#[test]
fn each_broken_promise_of_a_rewritten_epoch_is_named() {
    use DamageKind as K;
    type Breaks = Box<dyn Fn(&mut Vec<(u8, Vec<u8>)>, &mut Vec<u8>)>;
    let put = |at: usize, bytes: &'static [u8]| -> Breaks {
        Box::new(move |_, commit| commit[at..at + bytes.len()].copy_from_slice(bytes))
    };
    let changes = |payloads: &mut Vec<(u8, Vec<u8>)>, _: &mut Vec<u8>| {
        let (now, old) = (text_page(5), text_page(6));
        payloads.insert(1, (PAGES, block(2, &[(40, change(&old, &now))])));
    };
    // The epoch that is broken, and what then is first.
    let cases: Vec<(&str, u64, Breaks, K)> = vec![
        ("identity", 5, put(208, &[1, 2, 3]), K::Parent),
        ("parent", 5, put(0, &[4]), K::Parent),
        ("parent's identity", 5, put(8, &[4, 4]), K::Parent),
        ("base's parent", 2, put(0, &[1]), K::Parent),
        ("no flag", 5, put(169, &[4]), K::Flags),
        ("unknown flag", 5, put(169, &[28]), K::Flags),
        ("no identity", 5, Box::new(|_, commit| commit.truncate(208)), K::Flags),
        ("longer", 5, Box::new(|_, commit| commit.extend([0; 8])), K::Length),
        ("frames", 5, put(24, &[77]), K::Counts),
        ("blocks", 5, put(28, &[77]), K::Counts),
        ("bytes", 5, put(32, &[77]), K::Counts),
        ("hash", 5, put(40, &[77, 78]), K::FramesHash),
        ("pages", 5, put(120, &[77]), K::Counts),
        ("zero", 5, put(128, &[77]), K::Counts),
        ("stored", 5, put(144, &[77]), K::Counts),
        ("stored in a base", 2, put(144, &[77]), K::Counts),
        ("written", 5, put(152, &[77]), K::Counts),
        ("generation", 5, put(160, &[5]), K::Reserved),
        ("incarnation", 5, put(192, &[5]), K::Reserved),
        ("trigger", 5, put(168, &[9]), K::Flags),
        ("changes", 5, Box::new(changes), K::Changes),
    ];
    for (name, of, breaks, kind) in cases {
        let writer = long().compacted_with(0, 1, &[2, 5, 6], &|epoch, payloads, commit| {
            if epoch == of {
                breaks(payloads, commit);
            }
        });
        let report = writer.verify();
        assert!(kinds(&report).contains(&kind), "{name}: {report:#?}");
        assert_eq!(report.damage[0].file, "segment-00000001-00000002", "{name}: {report:#?}");
        assert!(report.epochs <= 2, "{name}: {report:#?}");
        assert_eq!(report.torn_tail, None, "{name}");
    }
    // An audit is of the guest's memory, whatever was rewritten.
    let missing = |epoch: u64, payloads: &mut Vec<(u8, Vec<u8>)>, commit: &mut Vec<u8>| {
        if epoch == 5 {
            payloads.retain(|(kind, _)| *kind != PAGES);
            commit[28] = 0;
            let zero = commit[128];
            commit[120] = zero;
            commit[144] = 0;
        }
    };
    let report = long().compacted_with(0, 1, &[2, 5, 6], &missing).verify();
    assert!(report.damage.iter().any(|damage| (damage.kind, damage.epoch) == (K::AuditMismatch, Some(5))), "{report:#?}");
}

#[test]
fn the_header_says_what_the_name_says() {
    for (offset, byte) in [(4, 2), (60, 2), (60, 0), (63, 1)] {
        let mut writer = long().compacted(0, 1, &[2, 6]);
        writer.segments[0][48 + offset] = byte;
        reseal(&mut writer.segments[0][..128]);
        let report = writer.verify();
        assert_eq!(kinds(&report), [DamageKind::SegmentHeader], "at {offset}: {report:#?}");
        assert_eq!((report.damage[0].offset, report.epochs), (48 + (offset as u64 & 60), 0));
    }
    // A segment under the name of another range.
    let writer = long().compacted(1, 2, &[9]);
    let dir = writer.save();
    fs::rename(dir.path().join("segment-00000002-00000003"), dir.path().join("segment-00000002")).unwrap();
    let report = run(dir.path());
    assert_eq!(kinds(&report)[0], DamageKind::SegmentHeader, "{report:#?}");
    assert_eq!(writer.segments[1].len() - writer.places[&9].2, REWRITTEN + 72);
}
