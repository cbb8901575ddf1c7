//! What can be put right in a store without a guess: what nothing needs is removed, what can be made anew as well, and what was never
//! committed is cut off. A chain that is damaged is cut only where somebody says so, and what is cut off is kept.
//!
//! A plan is made and shown before anything is changed, under the locks that keep it true. Its steps are in an order in which the process may end behind any of
//! them, and each is durable before the next: what is left is a store in which the same repair goes on.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::StoreError;
use super::medium::{Directory, Lock, Medium};
use super::names::{BRANCHES, IDENTITY, LOCK, MAINTENANCE};
use super::verify::{BranchReport, DamageKind, LeftoverKind, Progress, VerifyError, VerifyOptions, VerifyReport, check, verify};
use crate::page::EpochId;

/// What to repair beyond what needs no decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// The chain that [`truncate_after`](Self::truncate_after) is about; `main` by default.
    pub branch: Option<String>,
    /// Cut that chain behind this epoch, which must be the newest before the damage. What is cut off is moved to a directory `lost-NNN` in the store.
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
    /// None where it was only looked.
    locks: Option<Vec<Box<dyn Any + Send + Sync>>>,
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
    /// A store in use, one that can't be verified at all, or a cut behind another epoch than the newest before the damage.
    pub fn new(dir: &Path, options: &RepairOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self, RepairError> {
        // What is no store gets no lock files.
        check(dir)?;
        let mut locks = vec![lock(dir, LOCK)?, lock(dir, MAINTENANCE)?];
        let mut in_use = BTreeSet::new();
        for name in branches(dir) {
            match lock(&dir.join(BRANCHES).join(&name), LOCK) {
                Ok(lock) => locks.push(lock),
                Err(StoreError::InUse { .. }) => {
                    in_use.insert(name);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Self::of(dir, options, in_use, Some(locks), progress)
    }

    /// Says what [`new`](Self::new) would, without a lock and without a change: also while somebody writes to the store, and on one that can only be read. Of chains that
    /// somebody writes to nothing is planned; they are [in use](Self::in_use). Such a plan can't be applied.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn look(dir: &Path, options: &RepairOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self, RepairError> {
        check(dir)?;
        let chains = branches(dir).into_iter().map(|name| (dir.join(BRANCHES).join(&name), name));
        let chains = std::iter::once((dir.to_owned(), "main".to_owned())).chain(chains);
        let in_use = chains.filter(|(dir, _)| is_locked(dir)).map(|(_, name)| name).collect();
        Self::of(dir, options, in_use, None, progress)
    }

    fn of(
        dir: &Path,
        options: &RepairOptions,
        in_use: BTreeSet<String>,
        locks: Option<Vec<Box<dyn Any + Send + Sync>>>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, RepairError> {
        // Audits judge what the guest had, which nothing here can bring back.
        let report = verify(dir, &VerifyOptions { audits: false, ..VerifyOptions::default() }, progress)?;
        let mut plan =
            Planner { dir, report: &report, in_use: &in_use, steps: Vec::new(), taken: BTreeSet::new(), cut: BTreeSet::new() };
        if let Some(asked) = options.truncate_after {
            plan.truncate(options.branch.as_deref().unwrap_or("main"), asked)?;
        }
        plan.tidy();
        let Planner { steps, cut, .. } = plan;
        let damaged = |found: &BranchReport| found.damaged > 0 && !cut.contains(&found.name);
        let of_no_chain = report.damage.iter().any(|damage| damage.kind == DamageKind::Identity);
        let remains = report.branches.iter().any(damaged) || report.damage_omitted > 0 || of_no_chain;
        let in_use = in_use.into_iter().collect();
        Ok(Self { dir: dir.to_owned(), steps, report, in_use, remains, locks })
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
        take_step(&self.dir, step).map_err(|source| RepairError::Step { step: step.clone(), source })
    }
}

/// Makes a plan of what was found.
struct Planner<'a> {
    dir: &'a Path,
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
        let lost = free_name(self.dir);
        self.make(&lost);
        if !gone.is_empty() || branch != "main" {
            self.make(&format!("{lost}/branches"));
        }
        // A branch first: it is of no use without what it begins at.
        gone.iter().rev().for_each(|name| self.set_aside(&format!("branches/{name}"), &lost));
        if branch != "main" {
            self.make(&format!("{lost}/branches/{branch}"));
        }
        // Segments that a compacted one stands for would count again without it.
        for left in report.leftovers.iter().filter(|left| left.kind == LeftoverKind::Replaced) {
            if self.chain_of(&left.file).is_some_and(|chain| chain.name == branch) {
                self.set_aside(&left.file, &lost);
            }
        }
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
            if is_free(self, &damage.file) {
                self.remove(&damage.file, "an index that does not say what its segment does");
            }
        }
        for left in &report.leftovers {
            let is_sound = self.chain_of(&left.file).is_some_and(|chain| chain.damaged == 0);
            let why = match left.kind {
                LeftoverKind::Draft => "it was never finished",
                LeftoverKind::Index => "the index of a segment that is not there",
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
            let why = "it was never committed";
            for file in found.files.get(at + 1..).unwrap_or_default().iter().rev() {
                file.index.iter().for_each(|index| self.remove(index, "its segment was never committed"));
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

/// The names of branches, where there are any.
fn branches(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir.join(BRANCHES)).into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .filter(|entry| entry.path().join(IDENTITY).is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// A name for a directory that is not there yet.
fn free_name(dir: &Path) -> String {
    let mut names = (1u32..).map(|number| format!("lost-{number:03}"));
    names.find(|name| fs::symlink_metadata(dir.join(name)).is_err()).unwrap_or_default()
}

fn lock(dir: &Path, name: &str) -> Result<Box<dyn Any + Send + Sync>, StoreError> {
    let text = format!("pid {}, which repairs the store\n", std::process::id());
    match Directory::new(dir).lock(name, &text).map_err(StoreError::io("lock", dir.join(name)))? {
        Lock::Held(lock) => Ok(lock),
        Lock::Taken(holder) => Err(StoreError::InUse { dir: dir.to_owned(), holder }),
    }
}

/// Whether somebody writes to the chain in `dir`. Takes the lock for a moment, shared with others who look; makes no file.
fn is_locked(dir: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(dir.join(LOCK)) else { return false };
    let lock = if found.is_file() { File::open(dir.join(LOCK)) } else { return false };
    lock.is_ok_and(|lock| {
        let is_locked = matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock));
        // Closing it is not enough: see the lock that a writer takes.
        let _ = lock.unlock();
        is_locked
    })
}

fn take_step(dir: &Path, step: &RepairStep) -> io::Result<()> {
    match step {
        RepairStep::Remove { file, .. } => {
            fs::remove_file(dir.join(file))?;
            sync_parent(&dir.join(file))
        }
        RepairStep::Truncate { file, offset, .. } => {
            let file = File::options().write(true).open(dir.join(file))?;
            file.set_len(*offset)?;
            file.sync_all()
        }
        RepairStep::MakeDirectory { dir: made } => {
            fs::create_dir(dir.join(made))?;
            sync_parent(&dir.join(made))
        }
        RepairStep::Copy { file, offset, to } => {
            let mut from = File::open(dir.join(file))?;
            let bytes = from.metadata()?.len().saturating_sub(*offset);
            from.seek(SeekFrom::Start(*offset))?;
            let mut copy = File::create_new(dir.join(to))?;
            if io::copy(&mut from.take(bytes), &mut copy)? != bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            copy.sync_all()?;
            sync_parent(&dir.join(to))
        }
        RepairStep::Move { file, to } => {
            fs::rename(dir.join(file), dir.join(to))?;
            // Where it is first: it must not be gone from both.
            sync_parent(&dir.join(to))?;
            sync_parent(&dir.join(file))
        }
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
