//! Epochs as they come: whole ones are in the image, and nothing else is.

use std::collections::BTreeMap;

use super::image::{Image, ImageError};
use super::incoming::{Incoming, IncomingError};
use crate::format::{BlockEncoder, ChainId, ChangedWords, Commit, Complete, Compression, EpochWriter, Line, StateRecord};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun};
use crate::replica::proto::EpochKey;
use crate::store::testing::Random;

pub(super) const CHAIN: ChainId = ChainId([7; 16]);
const PAGES: u64 = 64;

#[derive(Debug, Default)]
pub(super) struct Pages(BTreeMap<Gfn, PageBytes>);

impl Image for Pages {
    fn runs(&self) -> Vec<PageRun> {
        vec![PageRun { first: Gfn(0), count: PAGES }]
    }

    fn read(&self, gfn: Gfn, into: &mut PageBytes) -> Result<(), ImageError> {
        *into = self.0.get(&gfn).copied().unwrap_or([0; PAGE_SIZE]);
        Ok(())
    }

    fn write(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), ImageError> {
        self.0.insert(gfn, *page);
        Ok(())
    }
}

/// A guest's memory, and the epochs that say how it changed.
pub(super) struct Guest {
    pages: BTreeMap<Gfn, PageBytes>,
    line: Line,
    random: Random,
}

/// An epoch: its bytes, and the memory at its end.
pub(super) struct Made {
    pub(super) bytes: Vec<u8>,
    pub(super) complete: Complete,
    pages: BTreeMap<Gfn, PageBytes>,
}

impl Guest {
    pub(super) fn new(seed: u64) -> Self {
        Self { pages: BTreeMap::new(), line: Line::behind(CHAIN, crate::format::Head::default()), random: Random(seed) }
    }

    /// The next epoch: whole pages, changed words, zeros, some pages twice.
    pub(super) fn epoch(&mut self) -> Made {
        let epoch = self.line.head().epoch.next();
        let (mut writer, mut bytes) = (EpochWriter::new(CHAIN, epoch), Vec::new());
        let mut encoder = BlockEncoder::new(Compression::default());
        for _ in 0..1 + self.random.below(3) {
            let mut gfns: Vec<_> = (0..1 + self.random.below(16)).map(|_| Gfn(self.random.below(PAGES))).collect();
            gfns.sort_unstable();
            gfns.dedup();
            let is_whole = epoch == EpochId(1) || self.random.one_in(2);
            let mut before = Vec::new();
            for gfn in &gfns {
                let page = self.pages.entry(*gfn).or_insert([0; PAGE_SIZE]);
                before.push(*page);
                let words = if is_whole { 512 } else { 1 + self.random.below(20) };
                for _ in 0..words {
                    let at = usize::try_from(self.random.below(512)).unwrap() * 8;
                    page[at..at + 8].copy_from_slice(&self.random.next().to_le_bytes());
                }
            }
            let now: Vec<_> = gfns.iter().map(|gfn| self.pages[gfn]).collect();
            if is_whole {
                let block: Vec<_> = gfns.iter().copied().zip(&now).collect();
                writer.pages(&mut bytes, &mut encoder, &block).unwrap();
            } else {
                let changed = before.iter().zip(&now).map(|(before, now)| ChangedWords::between(before, now));
                let block: Vec<_> = gfns.iter().zip(&now).zip(changed).map(|((gfn, now), words)| (*gfn, now, words)).collect();
                writer.changes(&mut bytes, &block).unwrap();
            }
        }
        let zero = Gfn(self.random.below(PAGES));
        self.pages.insert(zero, [0; PAGE_SIZE]);
        writer.zeros(&mut bytes, &[PageRun { first: zero, count: 1 }]).unwrap();
        let state = StateRecord { name: "vcpu".to_owned(), index: 0, version: 1, data: epoch.0.to_le_bytes().to_vec() };
        writer.state(&mut bytes, &[state]).unwrap();
        let commit = Commit { epoch, totals: writer.totals(), ..Commit::default() };
        let complete = self.line.complete(commit);
        bytes.extend_from_slice(&complete.frame);
        Made { bytes, complete, pages: self.pages.clone() }
    }
}

/// Both have the same, where a page that is not there is zeros.
fn same(image: &Pages, pages: &BTreeMap<Gfn, PageBytes>) -> bool {
    (0..PAGES).map(Gfn).all(|gfn| {
        let zero = [0; PAGE_SIZE];
        image.0.get(&gfn).unwrap_or(&zero) == pages.get(&gfn).unwrap_or(&zero)
    })
}

pub(super) fn key(made: &Made) -> EpochKey {
    EpochKey { epoch: made.complete.commit.epoch, identity: made.complete.identity }
}

#[test]
fn whole_epochs_are_in_the_image_however_they_are_cut() {
    for seed in 0..40 {
        let (mut guest, mut random) = (Guest::new(seed), Random(seed + 1000));
        let mut incoming = Incoming::new(CHAIN, Pages::default(), 2 * PAGES).keeping_frames();
        let mut before = None;
        for _ in 0..20 {
            let made = guest.epoch();
            let (mut rest, mut held, mut frames) = (&made.bytes[..], None, Vec::new());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(1 + usize::try_from(random.below(3000)).unwrap()));
                assert_eq!(held, None);
                held = incoming.take(now).unwrap();
                frames.extend(incoming.take_frames());
                rest = later;
            }
            let held = held.expect("the commit frame is the last");
            assert_eq!((held.key, held.parent), (key(&made), before), "seed {seed}");
            assert_eq!(Complete::new(CHAIN, held.commit), made.complete);
            assert_eq!([&frames[..], &made.complete.frame].concat(), made.bytes, "a chain gets the same bytes");
            assert!(same(incoming.image(), &made.pages), "seed {seed}, epoch {}", held.key);
            assert_eq!(incoming.state()[0].data, held.key.epoch.0.to_le_bytes());
            before = Some(held.key);
        }
    }
}

#[test]
fn what_is_not_whole_leaves_the_image_as_it_was() {
    let mut guest = Guest::new(3);
    let (base, next, behind) = (guest.epoch(), guest.epoch(), guest.epoch());
    let begun = || {
        let mut incoming = Incoming::new(CHAIN, Pages::default(), 2 * PAGES);
        incoming.take(&base.bytes).unwrap().unwrap();
        incoming
    };
    // A part, and then nothing; and the same again, whole.
    let mut incoming = begun();
    assert_eq!(incoming.take(&next.bytes[..next.bytes.len() - 1]).unwrap(), None);
    assert!(same(incoming.image(), &base.pages));
    incoming.abort();
    assert_eq!(incoming.take(&next.bytes).unwrap().unwrap().key, key(&next));
    // One that does not follow.
    let mut incoming = begun();
    // Its changes may not even fit what is there.
    let error = incoming.take(&behind.bytes).unwrap_err();
    assert!(matches!(error, IncomingError::Order { .. } | IncomingError::Frame { .. }), "{error}");
    assert!(same(incoming.image(), &base.pages) && incoming.head().unwrap().epoch == EpochId(1));
    // The same one again, and something behind a commit frame.
    assert!(begun().take(&base.bytes).is_err());
    assert!(begun().take(&[&next.bytes[..], &[0]].concat()).is_err());
    // More pages than an epoch may have.
    let mut small = Incoming::new(CHAIN, Pages::default(), 1);
    small.take(&base.bytes).unwrap().unwrap();
    assert!(matches!(small.take(&next.bytes).unwrap_err(), IncomingError::Pages { most: 1, .. }));
    // Any byte that is another.
    let mut random = Random(5);
    for _ in 0..400 {
        let at = usize::try_from(random.below(next.bytes.len() as u64)).unwrap();
        let mut bytes = next.bytes.clone();
        bytes[at] ^= 1 << random.below(8);
        let mut incoming = begun();
        // A length that is another may have it wait for more.
        assert_eq!(incoming.take(&bytes).unwrap_or(None), None, "byte {at}");
        assert!(same(incoming.image(), &base.pages), "byte {at}");
    }
}

#[test]
fn a_page_that_is_no_memory_is_refused_before_anything_is_put() {
    let mut guest = Guest::new(9);
    let base = guest.epoch();
    let mut incoming = Incoming::new(CHAIN, Pages::default(), 2 * PAGES);
    incoming.take(&base.bytes).unwrap().unwrap();
    for zeros in [true, false] {
        let (mut writer, mut bytes) = (EpochWriter::new(CHAIN, EpochId(2)), Vec::new());
        let page = [1; PAGE_SIZE];
        writer.pages(&mut bytes, &mut BlockEncoder::new(Compression::default()), &[(Gfn(0), &page)]).unwrap();
        if zeros {
            writer.zeros(&mut bytes, &[PageRun { first: Gfn(PAGES - 1), count: 2 }]).unwrap();
        } else {
            writer.pages(&mut bytes, &mut BlockEncoder::new(Compression::default()), &[(Gfn(PAGES), &page)]).unwrap();
        }
        assert!(matches!(incoming.take(&bytes).unwrap_err(), IncomingError::Image { .. }));
        assert!(same(incoming.image(), &base.pages));
        incoming.abort();
    }
}
