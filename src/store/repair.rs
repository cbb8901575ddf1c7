//! What can be put right in a store without a guess: what nothing needs is removed, what can be
//! made anew as well, and a torn tail is cut off. A chain that is damaged is cut only
//! where somebody says so, and what is cut off is kept.
//!
//! A plan is made and shown before anything is changed, under the locks that keep it true. Its
//! steps are in an order in which the process may end behind any of them, and each is durable
//! before the next: what is left is a store in which the same repair goes on.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::error::StoreError;
use super::medium::{Place, WritableMedium};
use super::names::{BRANCHES, DESCRIPTION, LOCK, MAINTENANCE, MARK_DRAFT};
use super::verify::{
    BranchReport, DamageKind, Leftover, LeftoverKind, Progress, VerifyError, VerifyOptions, VerifyReport, check, open_directory,
    verify_on,
};
use crate::format::{ChainId, Mark, Synced};
use crate::page::EpochId;

/// What to repair beyond what needs no decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// The chain that [`truncate_after`](Self::truncate_after) is about; `main` by default.
    pub branch: Option<String>,
    /// Cut that chain behind this epoch, which must be the newest before the damage. What is cut
    /// off is moved to a directory `lost-NNN` in the store.
    pub truncate_after: Option<EpochId>,
}

/// One step of a repair. Files are named by their paths in the store's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
#[non_exhaustive]
pub enum RepairStep {
    /// Remove a file.
    Remove {
        /// The file.
        file: String,
        /// Why nothing is lost with it.
        why: &'static str,
    },
    /// Cut a file off.
    Truncate {
        /// The file.
        file: String,
        /// The length that is left, in bytes.
        offset: u64,
        /// Why nothing is lost with the rest.
        why: &'static str,
    },
    /// Make a directory.
    MakeDirectory {
        /// The directory.
        dir: String,
    },
    /// Copy the end of a file.
    Copy {
        /// The file.
        file: String,
        /// Where the end begins, in bytes.
        offset: u64,
        /// The copy.
        to: String,
    },
    /// End a segment behind its last epoch, as a compaction does.
    Close {
        /// The file.
        file: String,
        /// Where the epoch ends, in bytes.
        offset: u64,
        /// The epoch.
        epoch: EpochId,
        /// The chain's identifier.
        #[serde(skip)]
        chain: [u8; 16],
        /// The epoch's identity.
        #[serde(skip)]
        identity: u128,
    },
    /// Say anew which epoch is durable.
    Mark {
        /// The file that says it.
        file: String,
        /// The epoch.
        epoch: EpochId,
        /// The segment that it is in, which is synced first.
        #[serde(skip)]
        segment: String,
        /// The chain's identifier.
        #[serde(skip)]
        chain: [u8; 16],
        /// The epoch's identity.
        #[serde(skip)]
        identity: u128,
    },
    /// Move a file or a directory.
    Move {
        /// What to move.
        file: String,
        /// What it is called then.
        to: String,
    },
}

impl fmt::Display for RepairStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove { file, why } => write!(f, "remove {file}: {why}"),
            Self::Truncate { file, offset, why } => write!(f, "cut {file} off at offset {offset}: {why}"),
            Self::MakeDirectory { dir } => write!(f, "make the directory {dir}"),
            Self::Copy { file, offset, to } => write!(f, "copy what {file} has from offset {offset} on to {to}"),
            Self::Close { file, offset, epoch, .. } => {
                write!(f, "end {file} at offset {offset}, behind epoch {epoch}, which is its last")
            }
            Self::Mark { file, epoch, .. } => write!(f, "say in {file} that epoch {epoch} is the newest that is durable"),
            Self::Move { file, to } => write!(f, "move {file} to {to}"),
        }
    }
}

/// Why a store can't be repaired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The store can't be verified.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A chain of the store is in use, or a lock can't be taken.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain was to be cut behind another epoch than its newest sound one.
    #[error("a cut behind epoch {asked} was asked for, and {}", newest_text(branch, *newest))]
    NotNewest {
        /// The epoch that was asked for.
        asked: EpochId,
        /// The chain.
        branch: String,
        /// Its newest epoch before the damage.
        newest: Option<EpochId>,
    },
    /// The plan was made without locks: it may be true no more.
    #[error("the plan was made to be looked at only, without locks")]
    NotLocked,
    /// A step failed. Those before it are done.
    #[error("could not {step}")]
    Step {
        /// The step.
        step: RepairStep,
        /// The operating system's reason.
        source: io::Error,
    },
}

fn newest_text(branch: &str, newest: Option<EpochId>) -> String {
    match newest {
        Some(newest) => format!("the newest epoch of {branch:?} before the damage is {newest}"),
        None => format!("{branch:?} has no epoch before the damage"),
    }
}

/// What is to be done to a store, which stays locked until this is dropped.
pub struct RepairPlan {
    dir: PathBuf,
    steps: Vec<RepairStep>,
    report: VerifyReport,
    in_use: Vec<String>,
    remains: bool,
    /// The store's directory. What is locked is what is repaired, whatever happens to its path.
    root: Arc<dyn WritableMedium>,
    /// None where it was only looked.
    locks: Option<Vec<Place>>,
}

impl fmt::Debug for RepairPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, steps, in_use, .. } = self;
        f.debug_struct("RepairPlan").field("dir", dir).field("steps", steps).field("in_use", in_use).finish_non_exhaustive()
    }
}

impl RepairPlan {
    /// Locks the store in `dir`, verifies it, and says what to do. Nothing but locks is changed.
    ///
    /// # Errors
    /// A store in use, one that can't be verified at all, or a cut behind another epoch than the
    /// newest before the damage.
    pub fn new(dir: &Path, options: &RepairOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self, RepairError> {
        Self::new_on(dir, Arc::new(open_directory(dir)?), options, progress)
    }

    /// As [`new`](Self::new), on a medium that was opened as `dir`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(in crate::store) fn new_on(
        dir: &Path,
        root: Arc<dyn WritableMedium>,
        options: &RepairOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, RepairError> {
        // What is no store gets no lock files.
        check(root.clone(), dir)?;
        let mut locks = vec![lock(dir, &root, LOCK)?, lock(dir, &root, MAINTENANCE)?];
        let mut in_use = BTreeSet::new();
        for (name, branch) in branches(&root).map_err(StoreError::io("open", dir.join(BRANCHES)))? {
            match lock(&dir.join(BRANCHES).join(&name), &branch, LOCK) {
                Ok(lock) => locks.push(lock),
                Err(StoreError::InUse { .. }) => {
                    in_use.insert(name);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Self::of(dir, root, options, in_use, Some(locks), progress)
    }

    /// Says what [`new`](Self::new) would, without a lock and without a change: also while somebody
    /// writes to the store, and on one that can only be read. Of chains that somebody writes to
    /// nothing is planned; they are [in use](Self::in_use). Such a plan can't be applied.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn look(dir: &Path, options: &RepairOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self, RepairError> {
        let root: Arc<dyn WritableMedium> = Arc::new(open_directory(dir)?);
        check(root.clone(), dir)?;
        let chains = branches(&root).map_err(StoreError::io("list", dir.join(BRANCHES)))?;
        let chains = std::iter::once(("main".to_owned(), root.clone())).chain(chains);
        let in_use = chains.filter(|(_, directory)| directory.is_locked(LOCK)).map(|(name, _)| name).collect();
        Self::of(dir, root, options, in_use, None, progress)
    }

    fn of(
        dir: &Path,
        root: Arc<dyn WritableMedium>,
        options: &RepairOptions,
        in_use: BTreeSet<String>,
        locks: Option<Vec<Place>>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, RepairError> {
        // Audits judge what the guest had, which nothing here can bring back.
        let report = verify_on(root.clone(), dir, &VerifyOptions { audits: false, ..VerifyOptions::default() }, progress)?;
        let (taken, cut) = (BTreeSet::new(), BTreeSet::new());
        let mut plan = Planner { dir, root: &root, report: &report, in_use: &in_use, steps: Vec::new(), taken, cut };
        if let Some(asked) = options.truncate_after {
            plan.truncate(options.branch.as_deref().unwrap_or("main"), asked)?;
        }
        plan.tidy();
        let Planner { steps, cut, .. } = plan;
        let damaged = |found: &BranchReport| found.damaged > 0 && !cut.contains(&found.name);
        let of_no_chain = report.damage.iter().any(|damage| damage.kind == DamageKind::Description);
        let remains = report.branches.iter().any(damaged) || report.damage_omitted > 0 || of_no_chain;
        let in_use = in_use.into_iter().collect();
        Ok(Self { dir: dir.to_owned(), steps, report, in_use, remains, root, locks })
    }

    /// What is to be done, in this order.
    #[must_use]
    pub fn steps(&self) -> &[RepairStep] {
        &self.steps
    }

    /// What was found.
    #[must_use]
    pub const fn report(&self) -> &VerifyReport {
        &self.report
    }

    /// Branches that a writer is at work on: they are left as they are.
    #[must_use]
    pub fn in_use(&self) -> &[String] {
        &self.in_use
    }

    /// Whether damage is left when the steps are done, that only a cut takes away.
    #[must_use]
    pub const fn remains(&self) -> bool {
        self.remains
    }

    /// Does it.
    ///
    /// # Errors
    /// The first step that fails. Those before it are done and durable. A plan without locks.
    pub fn apply(&self) -> Result<(), RepairError> {
        if self.locks.is_none() {
            return Err(RepairError::NotLocked);
        }
        self.steps.iter().try_for_each(|step| self.apply_step(step))
    }

    pub(super) fn apply_step(&self, step: &RepairStep) -> Result<(), RepairError> {
        // A chain that was moved away by a step before is not looked for in its place.
        let moved =
            |place: &Place| self.steps.iter().take_while(|done| *done != step).any(|done| moves(done, &self.dir, place.dir()));
        self.locks.iter().flatten().filter(|place| !moved(place)).try_for_each(Place::check)?;
        take_step(&self.root, step).map_err(|source| RepairError::Step { step: step.clone(), source })
    }
}

/// Makes a plan of what was found.
struct Planner<'a> {
    dir: &'a Path,
    root: &'a Arc<dyn WritableMedium>,
    report: &'a VerifyReport,
    in_use: &'a BTreeSet<String>,
    steps: Vec<RepairStep>,
    /// Files that a step removes or moves.
    taken: BTreeSet<String>,
    /// The chains that are cut, or moved away.
    cut: BTreeSet<String>,
}

impl Planner<'_> {
    fn is_in_use(&self, branch: &str) -> bool {
        self.in_use.contains(branch)
    }

    /// The chain that `file` belongs to.
    fn chain_of(&self, file: &str) -> Option<&BranchReport> {
        let name = file.strip_prefix("branches/").and_then(|rest| rest.split('/').next()).unwrap_or("main");
        self.report.branches.iter().find(|found| found.name == name)
    }

    fn remove(&mut self, file: &str, why: &'static str) {
        if self.taken.insert(file.to_owned()) {
            self.steps.push(RepairStep::Remove { file: file.to_owned(), why });
        }
    }

    fn make(&mut self, dir: &str) {
        if self.taken.insert(dir.to_owned()) {
            self.steps.push(RepairStep::MakeDirectory { dir: dir.to_owned() });
        }
    }

    fn set_aside(&mut self, file: &str, lost: &str) {
        if self.taken.insert(file.to_owned()) {
            self.steps.push(RepairStep::Move { file: file.to_owned(), to: format!("{lost}/{file}") });
        }
    }

    /// Cuts a chain behind its newest sound epoch, if it goes on there.
    fn truncate(&mut self, branch: &str, asked: EpochId) -> Result<(), RepairError> {
        let report = self.report;
        let found = report
            .branches
            .iter()
            .find(|found| found.name == branch)
            .ok_or_else(|| VerifyError::NoBranch { name: branch.to_owned() })?;
        let end = match &found.newest_end {
            Some(end) if found.newest == Some(asked) => end,
            _ => {
                let (branch, newest) = (branch.to_owned(), found.newest);
                return Err(RepairError::NotNewest { asked, branch, newest });
            }
        };
        if found.damaged == 0 && found.torn_tail.is_none() {
            return Ok(());
        }
        // Branches of what is cut off, and branches of those.
        let mut gone: Vec<&str> = Vec::new();
        let begins = |gone: &[&str], other: &BranchReport| {
            let of = other.of.as_deref().unwrap_or_default();
            of == branch && other.begins_at.is_some_and(|epoch| epoch > asked) || gone.contains(&of)
        };
        while let Some(next) = report.branches.iter().find(|other| !gone.contains(&other.name.as_str()) && begins(&gone, other)) {
            gone.push(&next.name);
        }
        if let Some(name) = gone.iter().chain([&branch]).find(|name| self.is_in_use(name)) {
            let dir = self.dir.join(BRANCHES).join(name);
            return Err(StoreError::InUse { dir, holder: "it would be moved or cut".to_owned() }.into());
        }
        let lost = free_name(self.root).map_err(StoreError::io("list", self.dir))?;
        self.make(&lost);
        if !gone.is_empty() || branch != "main" {
            self.make(&format!("{lost}/branches"));
        }
        // A branch first: it is of no use without what it begins at.
        gone.iter().rev().for_each(|name| self.set_aside(&format!("branches/{name}"), &lost));
        if branch != "main" {
            self.make(&format!("{lost}/branches/{branch}"));
        }
        // Segments that a compacted one stands for would count again without it, and an index
        // proves what its segment held.
        let counts = |left: &&Leftover| matches!(left.kind, LeftoverKind::Replaced | LeftoverKind::Index);
        for left in report.leftovers.iter().filter(counts) {
            if self.chain_of(&left.file).is_some_and(|chain| chain.name == branch) {
                self.set_aside(&left.file, &lost);
            }
        }
        let (chain, identity) = (found.chain, end.identity);
        let file = found.mark.clone();
        if self.dir.join(&file).is_file() {
            self.steps.push(RepairStep::Copy { file: file.clone(), offset: 0, to: format!("{lost}/{file}") });
        }
        let mark = RepairStep::Mark { file, epoch: asked, segment: end.file.clone(), chain, identity };
        let at = found.files.iter().position(|file| file.segment == end.file).unwrap_or(0);
        let (kept, behind) = found.files.split_at((at + 1).min(found.files.len()));
        let file = kept.last().filter(|file| file.bytes > end.offset);
        if let Some(file) = file {
            let to = format!("{lost}/{}.from-{}", file.segment, end.offset);
            self.steps.push(RepairStep::Copy { file: file.segment.clone(), offset: end.offset, to });
        }
        // The last first, so that there is never a gap.
        for file in behind.iter().rev() {
            file.index.iter().for_each(|index| self.set_aside(index, &lost));
            self.set_aside(&file.segment, &lost);
        }
        if let Some(file) = file {
            file.index.iter().for_each(|index| self.remove(index, "its segment is cut off"));
            let why = "what follows is damaged, and was copied";
            self.steps.push(RepairStep::Truncate { file: file.segment.clone(), offset: end.offset, why });
        }
        // A compacted segment ends in a close frame, and is damaged without one.
        let (file, offset) = (end.file.clone(), end.offset);
        let close = RepairStep::Close { file, offset, epoch: asked, chain, identity };
        self.steps.extend(kept.last().filter(|file| file.compacted).map(|_| close));
        // The last: until then it says that something is lost, and the same cut goes on.
        self.steps.push(mark);
        self.cut.extend(gone.iter().chain([&branch]).map(|name| (*name).to_owned()));
        Ok(())
    }

    /// What needs no decision.
    fn tidy(&mut self) {
        let report = self.report;
        let moved: Vec<String> = self.taken.iter().map(|file| format!("{file}/")).collect();
        let is_free = |plan: &Self, file: &str| {
            let is_moved = moved.iter().any(|dir| file.starts_with(dir.as_str()));
            !is_moved && plan.chain_of(file).is_none_or(|chain| !plan.is_in_use(&chain.name))
        };
        // A reader walks the segment instead. Whoever can make an index anew may do so here.
        for damage in report.damage.iter().filter(|damage| damage.kind == DamageKind::Index) {
            let is_sound = self.chain_of(&damage.file).is_some_and(|chain| chain.damaged == 0);
            if is_sound && is_free(self, &damage.file) {
                self.remove(&damage.file, "an index that does not say what its segment does");
            }
        }
        for left in &report.leftovers {
            let is_sound = self.chain_of(&left.file).is_some_and(|chain| chain.damaged == 0);
            let why = match left.kind {
                LeftoverKind::Draft => "it was never finished",
                // Where something is lost, it may be what says so.
                LeftoverKind::Index if is_sound => "an index that fits no segment as it is",
                // Where what replaces it is damaged, it may be all that is left.
                LeftoverKind::Replaced if is_sound => "a compacted segment has its epochs",
                _ => continue,
            };
            if is_free(self, &left.file) {
                self.remove(&left.file, why);
            }
        }
        for found in &report.branches {
            let Some(tail) = found.torn_tail.as_ref().filter(|_| found.damaged == 0 && !self.cut.contains(&found.name)) else {
                continue;
            };
            if !is_free(self, &tail.file) {
                continue;
            }
            let at = found.files.iter().position(|file| file.segment == tail.file).unwrap_or(found.files.len());
            let why = "it was never said to be durable";
            for file in found.files.get(at + 1..).unwrap_or_default().iter().rev() {
                file.index.iter().for_each(|index| self.remove(index, "its segment was never said to be durable"));
                self.remove(&file.segment, why);
            }
            if let Some(index) = found.files.get(at).and_then(|file| file.index.as_ref()) {
                self.remove(index, "its segment is cut off");
            }
            if tail.offset == 0 {
                self.remove(&tail.file, why);
            } else {
                self.steps.push(RepairStep::Truncate { file: tail.file.clone(), offset: tail.offset, why });
            }
        }
    }
}

/// The branches, by name, where there are any.
fn branches(root: &Arc<dyn WritableMedium>) -> io::Result<Vec<(String, Arc<dyn WritableMedium>)>> {
    let place = match root.directory_to_write(BRANCHES) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut names = place.list()?;
    names.sort_unstable();
    let mut branches = Vec::new();
    for name in names {
        match place.directory_to_write(&name) {
            Ok(branch) if branch.list()?.iter().any(|name| name == DESCRIPTION) => branches.push((name, branch)),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(branches)
}

/// A name for a directory that is not there yet.
fn free_name(root: &Arc<dyn WritableMedium>) -> io::Result<String> {
    let taken = root.list()?;
    let mut names = (1u32..).map(|number| format!("lost-{number:03}"));
    Ok(names.find(|name| !taken.contains(name)).unwrap_or_default())
}

fn lock(dir: &Path, medium: &Arc<dyn WritableMedium>, name: &'static str) -> Result<Place, StoreError> {
    Place::lock(dir, medium, name, &format!("pid {}, which repairs the store\n", std::process::id()))
}

/// Whether a step moves the chain in `place` away.
fn moves(step: &RepairStep, dir: &Path, place: &Path) -> bool {
    matches!(step, RepairStep::Move { file, .. } if dir.join(file) == place)
}

/// The directory that a path in the store's directory leads to, and the name there.
fn parent_of<'a>(root: &Arc<dyn WritableMedium>, path: &'a str) -> io::Result<(Arc<dyn WritableMedium>, &'a str)> {
    let mut names = path.split('/');
    let name = names.next_back().unwrap_or_default();
    Ok((names.try_fold(root.clone(), |directory, name| directory.directory_to_write(name))?, name))
}

/// Bytes that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;

fn take_step(root: &Arc<dyn WritableMedium>, step: &RepairStep) -> io::Result<()> {
    match step {
        RepairStep::Remove { file, .. } => {
            let (directory, name) = parent_of(root, file)?;
            directory.remove(name)?;
            directory.sync()
        }
        RepairStep::Truncate { file, offset, .. } => {
            let (directory, name) = parent_of(root, file)?;
            let file = directory.open_to_write(name)?;
            file.set_len(*offset)?;
            file.sync()
        }
        RepairStep::MakeDirectory { dir } => {
            let (directory, name) = parent_of(root, dir)?;
            directory.create_directory(name)?;
            directory.sync()
        }
        RepairStep::Copy { file, offset, to } => {
            let (directory, name) = parent_of(root, file)?;
            let from = directory.open(name)?;
            let bytes = from.len()?.saturating_sub(*offset);
            let (directory, name) = parent_of(root, to)?;
            let copy = directory.create(name)?;
            let mut buffer = vec![0; usize::try_from(bytes.min(COPY_BYTES)).unwrap_or_default()];
            let mut copied = 0;
            while copied < bytes {
                let most = usize::try_from(bytes - copied).unwrap_or(usize::MAX).min(buffer.len());
                let part = buffer.get_mut(..most).unwrap_or_default();
                let read = from.read(offset + copied, part)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                copy.write(copied, &[part.get(..read).unwrap_or_default()])?;
                copied += read as u64;
            }
            copy.sync()?;
            directory.sync()
        }
        RepairStep::Close { file, offset, epoch, chain, identity } => {
            let frame = Synced { epoch: *epoch, identity: *identity }.close_frame(ChainId(*chain));
            let (directory, name) = parent_of(root, file)?;
            let file = directory.open_to_write(name)?;
            file.write(*offset, &[&frame])?;
            file.sync()
        }
        RepairStep::Mark { file, epoch, segment, chain, identity } => {
            let (held_by, segment) = parent_of(root, segment)?;
            held_by.sync_file(segment)?;
            let (directory, name) = parent_of(root, file)?;
            let bytes = Mark { epoch: *epoch, identity: *identity }.encode_whole(ChainId(*chain));
            match directory.remove(MARK_DRAFT) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let made = directory.create(MARK_DRAFT)?;
            made.write(0, &[&bytes])?;
            made.sync()?;
            directory.rename(MARK_DRAFT, name)?;
            directory.sync()
        }
        RepairStep::Move { file, to } => {
            let ((from, _), (directory, _)) = (parent_of(root, file)?, parent_of(root, to)?);
            root.move_below(file, to)?;
            // Where it is first: it must not be gone from both.
            directory.sync()?;
            from.sync()
        }
    }
}
