//! What a chain holds: which epochs exist, and where it ends. Follows `docs/format.md`, "Reading,
//! and what a crash can leave".

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frames::{Fault, read_header, read_payload};
use super::mark;
use super::pooled_files::{Files, PooledFile};
use super::segment::Segment;
use super::walk::{At, Content, Walk};
use crate::format::{ChainId, Description, IndexProof, Mark};
use crate::page::EpochId;
use crate::store::damage::{Damage, TornTail};
use crate::store::epoch::Epoch;
use crate::store::error::StoreError;
use crate::store::medium::{ChainAt, Medium, MediumFile};
use crate::store::names::{Listed, SegmentNumbers};

/// What a walk found.
#[derive(Debug)]
pub(in crate::store) struct Scan {
    /// The segments that hold what exists.
    pub(in crate::store) segments: Vec<Segment>,
    /// The newest epoch that exists, or the one that the chain begins at.
    pub(in crate::store) newest: EpochId,
    /// Its identity.
    pub(in crate::store) newest_hash: u128,
    /// *D*: the newest epoch that something in the chain says was durable.
    pub(in crate::store) durable: EpochId,
    pub(in crate::store) tail: Option<TornTail>,
    pub(in crate::store) damage: Option<Damage>,
    /// Every file that counts, and its length in bytes, in order.
    pub(in crate::store) files: Vec<(SegmentNumbers, u64)>,
    /// Where the sound part ends; none where not even the first segment's header is sound.
    pub(in crate::store) end: Option<(SegmentNumbers, u64)>,
    /// Whether the sound part ends in a close frame.
    pub(in crate::store) closed: bool,
}

/// Reads what the chain in `dir` holds, which begins behind the epoch `from` of this identity. A
/// segment with a sound index is taken at its word; the others are walked. What is read stays open
/// in `files`, by its place.
pub(in crate::store) fn scan(
    dir: &Path,
    medium: &dyn Medium,
    description: &Arc<Description>,
    from: (EpochId, u128),
    (files, place): (&Arc<Files>, &ChainAt),
) -> Result<Scan, StoreError> {
    // Before anything else: what a writer does meanwhile only adds to what it says.
    let mark = mark::read(dir, medium, description, files)?;
    let names = medium.list().map_err(StoreError::io("list", dir))?;
    let mut walk = Walk::new(description, from);
    walk.files = Some(files);
    let mut segments: Vec<Read> = Vec::new();
    for numbers in Listed::new(&names).live {
        let path = dir.join(numbers.file_name());
        let file = files.read(place, &numbers.file_name()).map_err(StoreError::io("open", &path))?;
        let bytes = file.len().map_err(StoreError::io("read", &path))?;
        let content = walk.segment(&At { numbers, path: &path, file: &file, bytes }, Some(medium))?;
        segments.push(Read { numbers, path, file, bytes, content });
    }
    let sealed = segments.iter().filter(|read| matches!(read.content, Content::Sealed(_))).map(|read| read.numbers);
    let sealed: BTreeSet<_> = sealed.collect();
    let mut proofs = Vec::new();
    for numbers in Listed::indexes(&names).filter(|numbers| !sealed.contains(numbers)) {
        proofs.extend(proof(dir, medium, description, numbers, files)?);
    }
    let unknown = match mark {
        mark::Found::Whole(mark) => {
            proofs.push(mark);
            None
        }
        mark::Found::Damaged(damage) => Some(damage),
    };
    decide(walk, dir, segments, &proofs, unknown)
}

/// What the index with these numbers proves of its segment, which it need not fit any more.
fn proof(
    dir: &Path,
    medium: &dyn Medium,
    description: &Description,
    numbers: SegmentNumbers,
    files: &Files,
) -> Result<Option<Mark>, StoreError> {
    let name = numbers.index_name();
    let mut bytes = vec![0; IndexProof::BYTES];
    match files.with_room(|| medium.open(&name)).and_then(|file| file.read(0, &mut bytes)) {
        Ok(read) => bytes.truncate(read),
        // A compaction has removed it, or it is no file.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => return Ok(None),
        Err(error) => return Err(StoreError::io("read", dir.join(name))(error)),
    }
    let IndexProof { chain, first, last, epoch, identity: hash } = match IndexProof::parse(&bytes) {
        Ok(proof) => proof,
        Err(_) => return Ok(None),
    };
    let is_ours = chain == description.chain && SegmentNumbers { first, last } == numbers && epoch != EpochId::NONE;
    Ok(is_ours.then_some(Mark { epoch, identity: hash }))
}

/// A segment that was read.
struct Read {
    numbers: SegmentNumbers,
    path: PathBuf,
    file: PooledFile,
    bytes: u64,
    content: Content,
}

/// Checks the payloads of what was not proven durable, and says what the first fault means.
/// `proofs` are of epochs that were durable; `unknown` is why that is not known, where it must be.
fn decide(mut walk: Walk<'_>, dir: &Path, read: Vec<Read>, proofs: &[Mark], unknown: Option<Damage>) -> Result<Scan, StoreError> {
    proofs.iter().for_each(|proof| walk.proven(proof.epoch));
    let from = walk.epochs.partition_point(|epoch| epoch.commit.epoch <= walk.durable);
    for (index, epoch) in walk.epochs.iter().enumerate().skip(from) {
        let Some(segment) = read.iter().find(|read| read.numbers == epoch.segment) else { continue };
        match check_payloads(&segment.file, epoch, walk.chain, &mut walk.buffer) {
            Ok(()) => {}
            Err((_, Fault::Io(error))) => return Err(StoreError::io("read", &segment.path)(error)),
            Err((offset, Fault::Format(error))) => {
                walk.broken = Some(Damage::new(&segment.path, epoch.commit.epoch, offset, &error));
                walk.broken_compacted = epoch.segment.is_compacted();
                walk.end = Some((epoch.segment, epoch.offset));
                walk.closed = false;
                walk.epochs.truncate(index);
                // What is sealed is proven, and so comes before what is not.
                let last = walk.epochs.last().map(|epoch| (epoch.commit.epoch, epoch.identity));
                (walk.newest, walk.newest_hash) = last.filter(|last| last.0 > walk.before.0).unwrap_or(walk.before);
                break;
            }
        }
    }
    let files: Vec<_> = read.iter().map(|read| (read.numbers, read.bytes)).collect();
    let mut segments = Vec::new();
    for Read { numbers, path, file, bytes, content } in read {
        let segment = match content {
            Content::Sealed(index) => Segment::sealed(numbers, path, file, bytes, walk.description.clone(), index),
            Content::Walked(pending) => {
                let epochs = || walk.epochs.iter().filter(|epoch| epoch.segment == numbers);
                let last = epochs().next_back().map_or((EpochId::NONE, 0), |epoch| (epoch.commit.epoch, epoch.identity));
                let walked = pending.finish(epochs().count(), last, bytes).map_err(StoreError::Input)?;
                Segment::walked(numbers, path, file, bytes, walk.description.clone(), walked)
            }
            Content::None => continue,
        };
        segments.push(segment);
    }
    let Walk { newest, newest_hash, durable, end, closed, broken, broken_compacted, .. } = walk;
    let mut scan = Scan { segments, newest, newest_hash, durable, tail: None, damage: None, files, end, closed };
    scan.compare(proofs)?;
    if scan.damage.is_some() {
        return Ok(scan);
    }
    let is_lost = durable > newest;
    scan.damage = match broken {
        Some(broken) if is_lost || broken_compacted => Some(broken),
        Some(broken) if unknown.is_none() => {
            scan.tail = Some(scan.tail(dir, broken));
            None
        }
        None if is_lost => Some(scan.lost(dir)),
        _ => unknown.map(|damage| Damage { epoch: newest, ..damage }),
    };
    Ok(scan)
}

impl Scan {
    /// Where the first thing behind the sound part is, or would be: its file, and the offset.
    fn behind(&self) -> (SegmentNumbers, u64) {
        let last = self.end.map_or(0, |(numbers, _)| numbers.last);
        // Where the sound part ends with a segment, the next file comes.
        match self.end {
            Some((numbers, offset)) if !self.files.contains(&(numbers, offset)) => (numbers, offset),
            _ => {
                let behind = self.files.iter().map(|(numbers, _)| *numbers).find(|numbers| numbers.first > last);
                (behind.unwrap_or(SegmentNumbers::one(last.saturating_add(1))), 0)
            }
        }
    }

    fn tail(&self, dir: &Path, reason: Damage) -> TornTail {
        let (last, end_offset) = self.end.map_or((0, 0), |(numbers, offset)| (numbers.last, offset));
        let behind = self.files.iter().filter(|(numbers, _)| numbers.last >= last).map(|(_, bytes)| *bytes);
        let bytes = behind.fold(0, u64::saturating_add).saturating_sub(end_offset);
        let (file, offset) = self.behind();
        TornTail { file: dir.join(file.file_name()), offset, bytes, reason }
    }

    /// What was durable is not there, and nothing that is there says where it was.
    fn lost(&self, dir: &Path) -> Damage {
        let (file, offset) = self.behind();
        let found = if self.newest == EpochId::NONE { "none".to_owned() } else { format!("epochs up to {}", self.newest) };
        let expected = format!("epochs up to {}, which were durable", self.durable);
        Damage { file: dir.join(file.file_name()), offset, epoch: self.newest.next(), expected, found }
    }

    /// Compares what is said to have been durable with what is there. An epoch of another identity
    /// is of another line, and hides what comes from it on.
    fn compare(&mut self, proofs: &[Mark]) -> Result<(), StoreError> {
        let mut proofs: Vec<_> = proofs.iter().filter(|proof| proof.epoch <= self.newest).collect();
        proofs.sort_unstable_by_key(|proof| proof.epoch);
        for proof in proofs {
            if (proof.epoch, proof.identity) == (self.newest, self.newest_hash) {
                continue;
            }
            for segment in self.segments.iter().rev() {
                if segment.look(|index| Ok(index.previous()))? >= proof.epoch {
                    continue;
                }
                let epoch = match segment.find(proof.epoch)?.map(|number| segment.epoch(number)) {
                    Some(Ok(epoch)) if epoch.identity != proof.identity => epoch,
                    // One that cannot be read says so to whoever asks for it.
                    Some(Err(error)) if !error.is_damage() => return Err(error),
                    None if segment.epochs()? == 0 => continue,
                    _ => break,
                };
                let expected = format!("the epoch of identity {:032x}, which was durable", proof.identity);
                let (found, offset) = (format!("{:032x}", epoch.identity), epoch.commit_offset);
                let damage = Damage { file: segment.path().to_owned(), offset, epoch: proof.epoch, expected, found };
                (self.newest, self.newest_hash) = (epoch.commit.parent, epoch.commit.parent_hash);
                self.closed = false;
                let newest = self.newest;
                self.segments.iter_mut().for_each(|segment| segment.cut_off(newest));
                self.damage = Some(damage);
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Checks the payload of every frame of `epoch`; a fault comes with the frame's offset.
fn check_payloads(file: &dyn MediumFile, epoch: &Epoch, chain: ChainId, buffer: &mut Vec<u8>) -> Result<(), (u64, Fault)> {
    let mut offset = epoch.offset;
    while offset < epoch.commit_offset {
        let at = |fault| (offset, fault);
        let header = read_header(file, offset, epoch.commit_offset, chain).map_err(at)?;
        read_payload(file, offset, &header, buffer).map_err(at)?;
        offset += header.frame_bytes();
    }
    Ok(())
}
