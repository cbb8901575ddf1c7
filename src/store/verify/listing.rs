//! What is in a store's directory: chains, their segments and indexes, and files that are left
//! over.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use super::damage::{Damage, DamageKind, Fault};
use super::description::{self, Description, MAIN};
use super::frame::FORMAT;
use super::mark::{self, Proof};
use super::names::{Numbers, in_directory};
use super::open_files::{Known, OpenFiles};
use super::place::Place;
use super::report::{Leftover, LeftoverKind, VerifyError};
use crate::store::medium::MediumFile;
use crate::store::names::BRANCHES;

/// How often a directory is listed where files in it go as fast as they are opened.
const LISTINGS_MAX: u32 = 10;

/// A segment file as it was when the chain was listed.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) numbers: Numbers,
    /// Its path in the store's directory.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Where it is.
    pub(super) place: Place,
    /// Bytes. What a writer appends later is not looked at.
    pub(super) bytes: u64,
    /// Why it is not one of its chain's segments.
    pub(super) stray: Option<String>,
    /// The path of its index in the store's directory, where it has one.
    pub(super) index: Option<String>,
    number: usize,
    known: Known,
    files: Arc<OpenFiles>,
}

impl Segment {
    /// The file that was there when the chain was listed.
    pub(super) fn open(&self) -> Result<Arc<dyn MediumFile>, VerifyError> {
        match self.files.get(self.number, &self.place, in_directory(&self.name), &self.known) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(VerifyError::Replaced { path: self.path.clone() }),
            Err(source) => Err(VerifyError::Io { path: self.path.clone(), offset: 0, source }),
        }
    }
}

impl Segment {
    /// Opens a file beside the segment.
    pub(super) fn open_beside(&self, name: &str) -> std::io::Result<Arc<dyn MediumFile>> {
        self.files.open(&self.place, name)
    }
}

/// A chain: the one in the store's directory, or a branch.
#[derive(Debug)]
pub(super) struct Chain {
    /// Its name.
    pub(super) name: String,
    /// What its files' names in the store's directory begin with.
    pub(super) prefix: String,
    pub(super) description: Description,
    /// What its mark and its indexes say to have been durable.
    pub(super) proofs: Vec<Proof>,
    /// What is wrong with its mark: then anything may have been durable.
    pub(super) mark_fault: Option<Fault>,
    /// Which of the store's segments are the chain's.
    pub(super) segments: std::ops::Range<usize>,
}

impl Chain {
    /// The epoch that it begins at, if it is a branch.
    pub(super) fn begins_at(&self) -> Option<u64> {
        self.description.branch_of.as_ref().map(|of| of.epoch)
    }

    /// The newest epoch that is known to have been durable, segments aside; 0 for none.
    pub(super) fn proven(&self) -> u64 {
        self.proofs.iter().map(|proof| proof.epoch).max().unwrap_or(0)
    }

    /// As [`proven`](Self::proven), or the highest that there is where that is not known.
    pub(super) fn may_be_durable(&self) -> u64 {
        if self.mark_fault.is_some() { u64::MAX } else { self.proven() }
    }

    /// The path of its mark in the store's directory.
    pub(super) fn mark_name(&self) -> String {
        format!("{}{}", self.prefix, mark::NAME)
    }

    /// The name of a segment with only this number.
    pub(super) fn segment_name(&self, number: u32) -> String {
        format!("{}{}", self.prefix, Numbers { first: number, last: number }.name("segment-"))
    }

    /// The path of its description in the store's directory.
    pub(super) fn description_name(&self) -> String {
        format!("{}{}", self.prefix, description::NAME)
    }
}

/// All that there is to verify.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) dir: PathBuf,
    /// `main`, then the branches by name.
    pub(super) chains: Vec<Chain>,
    pub(super) segments: Vec<Segment>,
    pub(super) leftovers: Vec<Leftover>,
    /// Branches that can't be read at all.
    pub(super) damage: Vec<Damage>,
    files: Arc<OpenFiles>,
    /// Pages whose content is kept while others are looked at, at most.
    pub(super) pages_kept: usize,
}

/// [`Store::pages_kept`] where nobody says otherwise: 256 MiB, sixteen times what a writer keeps.
pub(super) const PAGES_KEPT: usize = 65_536;

impl Store {
    /// Lists the store in a directory. No more than `open_files` of its segments are open at a
    /// time.
    pub(super) fn list(place: &Place, open_files: usize) -> Result<Self, VerifyError> {
        let dir = place.path();
        let description = description::read(place)?;
        if let Some(of) = &description.branch_of {
            return Err(VerifyError::Branch { path: dir.to_owned(), branch: of.branch.clone() });
        }
        let mut store = Self {
            dir: dir.to_owned(),
            chains: Vec::new(),
            segments: Vec::new(),
            leftovers: Vec::new(),
            damage: Vec::new(),
            files: OpenFiles::new(open_files),
            pages_kept: PAGES_KEPT,
        };
        store.add(MAIN, String::new(), place, description)?;
        for name in branch_names(place)? {
            let prefix = format!("{BRANCHES}/{name}/");
            let read = place.branch(&name).and_then(|place| Ok((description::read(&place)?, place)));
            let damaged = match read {
                Ok((description, place)) if description.branch_of.is_some() => {
                    store.add(&name, prefix, &place, description)?;
                    continue;
                }
                Ok(_) => Fault::new(DamageKind::Description, 0, "the field `branch_of`", "none"),
                Err(VerifyError::NoDescription { .. }) => {
                    store.leftovers.push(Leftover { file: format!("{BRANCHES}/{name}"), kind: LeftoverKind::Branch, bytes: 0 });
                    continue;
                }
                // Gone since it was listed, or something else than a branch.
                Err(VerifyError::NoDirectory { .. } | VerifyError::NotADirectory { .. }) => continue,
                Err(VerifyError::Description { expected, found, .. }) => Fault::new(DamageKind::Description, 0, expected, found),
                Err(VerifyError::Version { found, .. }) => {
                    Fault::new(DamageKind::Description, 0, format!("format {FORMAT}"), format!("format {found}"))
                }
                Err(VerifyError::NotAFile { .. }) => Fault::new(DamageKind::Description, 0, "a regular file", "something else"),
                Err(error) => return Err(error),
            };
            store.damage.push(damaged.at(format!("{prefix}{}", description::NAME), None));
        }
        Ok(store)
    }

    /// The chain called `name`.
    pub(super) fn chain(&self, name: &str) -> Option<usize> {
        self.chains.iter().position(|chain| chain.name == name)
    }

    /// The chain called `name`, the one that it begins in, and so on, as far as they are there.
    pub(super) fn path_to(&self, name: &str) -> Result<Vec<usize>, VerifyError> {
        let prefix = format!("{BRANCHES}/{name}/");
        if let Some(damage) = self.damage.iter().find(|damage| damage.file.starts_with(&prefix)) {
            let Damage { expected, found, .. } = damage.clone();
            return Err(VerifyError::Description { path: self.dir.join(&damage.file), expected, found });
        }
        let mut path = vec![self.chain(name).ok_or_else(|| VerifyError::NoBranch { name: name.to_owned() })?];
        while let Some(next) = path.last().and_then(|last| self.chains.get(*last)).and_then(|chain| {
            let of = chain.description.branch_of.as_ref()?;
            self.chain(&of.branch).filter(|next| !path.contains(next))
        }) {
            path.push(next);
        }
        Ok(path)
    }

    /// The segments of `chain`, and the number of the first of them.
    pub(super) fn segments_of(&self, chain: usize) -> (&[Segment], usize) {
        let range = self.chains.get(chain).map_or(0..0, |chain| chain.segments.clone());
        let first = range.start;
        (self.segments.get(range).unwrap_or_default(), first)
    }

    /// Lists the chain in the directory that `prefix` names.
    fn add(&mut self, name: &str, prefix: String, place: &Place, description: Description) -> Result<(), VerifyError> {
        // Before the listing: what a writer does meanwhile only adds to what it says.
        let (mark, mark_fault) = match mark::read(place, &description)? {
            Ok(proof) => (Some(proof), None),
            Err(fault) => (None, Some(fault)),
        };
        let mut listings = 0;
        let (segments, leftovers) = loop {
            listings += 1;
            match segments(place, &prefix, &self.files) {
                // A listing shows a file and not another that is older, or one that is gone by the
                // time it is opened.
                Err(VerifyError::Replaced { .. }) if listings < LISTINGS_MAX => {}
                Ok((segments, _)) if !is_gapless(&segments) && listings == 1 => {}
                found => break found?,
            }
        };
        let mut proofs = Vec::from_iter(mark);
        let left = leftovers.iter().filter(|left| left.kind == LeftoverKind::Index).map(|left| &left.file);
        for name in segments.iter().filter_map(|segment| segment.index.as_ref()).chain(left) {
            let numbers = name.rsplit('/').next().and_then(|name| Numbers::parse(name, "index-"));
            if let Some(numbers) = numbers {
                proofs.extend(mark::of_index(place, name, numbers, &description)?);
            }
        }
        let first = self.segments.len();
        self.segments.extend(segments);
        self.leftovers.extend(leftovers);
        let segments = first..self.segments.len();
        self.chains.push(Chain { name: name.to_owned(), prefix, description, proofs, mark_fault, segments });
        Ok(())
    }
}

/// The names that a branch may have, in order.
fn branch_names(store: &Place) -> Result<BTreeSet<String>, VerifyError> {
    Ok(store.names_of_branches()?.into_iter().filter(|name| description::is_branch_name(name)).collect())
}

fn is_gapless(segments: &[Segment]) -> bool {
    let mut next = 1;
    segments.iter().all(|segment| {
        let follows = segment.numbers.first == next;
        next = segment.numbers.last.saturating_add(1);
        follows
    })
}

/// The segments in a directory, in order, with their lengths; and what is left over.
fn segments(place: &Place, prefix: &str, files: &Arc<OpenFiles>) -> Result<(Vec<Segment>, Vec<Leftover>), VerifyError> {
    let names = place.names()?;
    let (mut found, mut indexes, mut drafts) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for name in &names {
        if let Some(numbers) = Numbers::parse(name, "segment-") {
            found.push(numbers);
        } else if let Some(numbers) = Numbers::parse(name, "index-") {
            indexes.insert(numbers);
        } else if is_draft(name) {
            drafts.insert(name.to_owned());
        }
    }
    // One that another replaces comes behind it.
    found.sort_unstable_by_key(|numbers| (numbers.first, std::cmp::Reverse(numbers.last)));
    let (mut segments, mut leftovers) = (Vec::new(), Vec::new());
    let mut covered: Option<Numbers> = None;
    for numbers in found {
        let name = numbers.name("segment-");
        let path = place.path().join(&name);
        let replaced = covered.filter(|covered| numbers.last <= covered.last);
        let mut stray = None;
        if replaced.is_some() {
            let bytes = place.look(&name).map_or(0, |found| found.bytes);
            leftovers.push(Leftover { file: format!("{prefix}{name}"), kind: LeftoverKind::Replaced, bytes });
            continue;
        } else {
            if let Some(other) = covered.filter(|covered| numbers.first <= covered.last) {
                stray = Some(format!("numbers that {} has as well", other.name("segment-")));
            }
            covered = Some(numbers);
        }
        let index = indexes.remove(&numbers).then(|| format!("{prefix}{}", numbers.name("index-")));
        match place.look(&name) {
            Ok(found) if found.is_file => {}
            Ok(_) => return Err(VerifyError::NotAFile { path }),
            // A writer has just removed it with a torn tail, or a compaction has replaced it.
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(VerifyError::Replaced { path }),
            Err(source) => return Err(VerifyError::Io { path, offset: 0, source }),
        }
        let io = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => VerifyError::Replaced { path: path.clone() },
            _ => VerifyError::Io { path: path.clone(), offset: 0, source },
        };
        let file = files.open(place, &name).map_err(io)?;
        let bytes = file.len().map_err(io)?;
        let known = Known::of(file.as_ref()).map_err(io)?;
        let (number, files) = (files.listed(file), Arc::clone(files));
        let (name, place) = (format!("{prefix}{name}"), place.clone());
        segments.push(Segment { numbers, name, path, place, bytes, stray, index, number, known, files });
    }
    let mut left = |name: String, kind| {
        let bytes = place.look(&name).map_or(0, |found| found.bytes);
        leftovers.push(Leftover { file: format!("{prefix}{name}"), kind, bytes });
    };
    indexes.into_iter().for_each(|numbers| left(numbers.name("index-"), LeftoverKind::Index));
    drafts.into_iter().for_each(|name| left(name, LeftoverKind::Draft));
    Ok((segments, leftovers))
}

/// Whether `name` is that of a file that is made under it and renamed when it is whole.
fn is_draft(name: &str) -> bool {
    let index = |name: &str| name.strip_suffix(".tmp").and_then(|name| Numbers::parse(name, "index-")).is_some();
    matches!(name, "description.tmp" | "compact.tmp" | "durable.tmp") || index(name)
}
