//! Errors as a person sees them: the chain of causes, a hint, and an exit code.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use super::stderr;
use crate::bench::BenchError;
use crate::bench::advise::AdviseError;
use crate::epoch::EngineError;
use crate::format::MAIN_BRANCH;
use crate::kvm::host::HostError;
use crate::kvm::ring::RingError;
use crate::machine::StateError;
use crate::memory::MemoryError;
use crate::page::EpochId;
use crate::replica::proto::{Halted, WhyNot};
use crate::replica::record_file::RecordError;
use crate::replica::standby::serve::ServeError;
use crate::replica::wire::{TlsError, TlsInitError};
use crate::replica::witness::{WitnessError, WitnessFault};
use crate::restore::{DiffError, ExportError, RestoreError};
use crate::store::StoreError;
use crate::store::repair::RepairError;
use crate::store::verify::VerifyError;
use crate::vmm::VmmError;
use crate::vmm::boot::LinuxError;
use crate::vmm::devices::DiskBaseError;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const DAMAGE: u8 = 3;
const FENCED: u8 = 4;

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Witness(#[from] WitnessFault),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the witness at {witness} does not let this machine run: {why}")]
    NotOurs { witness: String, why: Box<Halted> },
    #[error("the witness at {witness} does not let the machine of {} run: {why}", store.display())]
    NotRun { store: PathBuf, witness: String, why: Box<WhyNot> },
    #[error("{} was part of a pair: only its witness can say whether its machine may run", store.display())]
    OfAPair { store: PathBuf },
    #[error("the witness at {witness} does not say who goes on")]
    NoAnswer {
        witness: String,
        #[source]
        source: WitnessError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Repair(RepairError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Bench(BenchError),
    #[error(transparent)]
    Advise(#[from] AdviseError),
    #[error("writing to standard output")]
    Output(#[source] io::Error),
    #[error("{step}")]
    System {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the state of epoch {epoch} can't be used")]
    State {
        epoch: EpochId,
        #[source]
        source: StateError,
    },
    #[error("the store {} is damaged", dir.display())]
    Damaged { dir: PathBuf },
    #[error("the store {} is damaged", dir.display())]
    Unsound { dir: PathBuf, hint: String },
    #[error("the store {} is damaged {}: {found}", dir.display(), behind(*newest))]
    DamagedBehind { dir: PathBuf, newest: EpochId, found: String },
    #[error("{}: the machine that it describes is not the one whose memory it lists", file.display())]
    MachineMismatch { file: PathBuf },
    #[error("{}: the machine that it describes can't be built", file.display())]
    Unbuildable {
        file: PathBuf,
        #[source]
        source: VmmError,
    },
    #[error("epoch {epoch} of the store {} can't run on this host{}", dir.display(), because(reasons))]
    CannotRun {
        dir: PathBuf,
        epoch: EpochId,
        reasons: Vec<String>,
        /// Whether the host's counter is all that is in the way.
        tsc_only: bool,
    },
    #[error("epoch {epoch} is not the newest of {branch}, which is {newest}: what came after it would be lost")]
    NotNewest { branch: String, epoch: EpochId, newest: EpochId },
    #[error("there is a branch {name}: it goes on from its own newest epoch, and not from {from}")]
    BranchExists { name: String, from: String },
    #[error("{what}")]
    Check { what: String },
    /// The run went on after storage had failed, as was asked for.
    #[error(transparent)]
    RanOn(VmmError),
    #[error("{} is a symbolic link to {}, which does not exist", link.display(), to.display())]
    DanglingLink { link: PathBuf, to: PathBuf },
    #[error("{} exists", path.display())]
    FileExists { path: PathBuf },
    #[error("{}: {step} failed", path.display())]
    File {
        path: PathBuf,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the export to {} failed", path.display())]
    Export {
        path: PathBuf,
        #[source]
        source: Box<ExportError>,
    },
    #[error(transparent)]
    Diff(DiffError),
    #[error(transparent)]
    TlsInit(#[from] TlsInitError),
    #[error("nothing answers at the control socket {}", socket.display())]
    Control {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the machine at {} refuses: {reason}", socket.display())]
    Refused { socket: PathBuf, reason: String },
}

impl From<BenchError> for CliError {
    /// What is not the harness's own keeps its exit code and its hint.
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Vmm(error) => Self::Vmm(error),
            BenchError::Host(error) => Self::Host(error),
            BenchError::Store(error) => Self::Store(error),
            error => Self::Bench(error),
        }
    }
}

impl From<RepairError> for CliError {
    /// What is not the repair's own keeps its exit code and its hint.
    fn from(error: RepairError) -> Self {
        match error {
            RepairError::Verify(error) => Self::Verify(error),
            RepairError::Store(error) => Self::Store(error),
            error => Self::Repair(error),
        }
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        Self::Vmm(error.into())
    }
}

impl CliError {
    /// Prints the error and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        if let Self::Output(error) = self {
            // Whoever read our output has gone away: nothing is wrong.
            if error.kind() == io::ErrorKind::BrokenPipe {
                return ExitCode::SUCCESS;
            }
        }
        let mut text = format!("error: {self}");
        let mut source = self.source();
        while let Some(error) = source {
            let cause = error.to_string();
            if !text.ends_with(&cause) {
                text.push_str(&format!("\n  because: {cause}"));
            }
            source = error.source();
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("\n\nhint: {hint}"));
        }
        stderr::note(text);
        ExitCode::from(self.code())
    }

    /// Whether a compaction took a file of the chain away that was being read.
    pub(super) fn is_replaced(&self) -> bool {
        match self {
            Self::Store(error) => error.is_replaced(),
            Self::Restore(error) => error.is_replaced(),
            Self::Vmm(VmmError::Restore(error)) => error.is_replaced(),
            _ => false,
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::NotNewest { .. } | Self::BranchExists { .. } => USAGE,
            Self::Repair(RepairError::NotNewest { .. }) | Self::TlsInit(TlsInitError::NoName { .. }) => USAGE,
            Self::Vmm(error) => match error {
                VmmError::Guest(_) | VmmError::Touch(_) | VmmError::Ledger(_) | VmmError::Budget(_) | VmmError::Vcpus { .. } => {
                    USAGE
                }
                VmmError::Ring(RingError::TooLarge { .. } | RingError::Size { .. }) => USAGE,
                VmmError::Memory(MemoryError::Empty | MemoryError::Range { .. }) => USAGE,
                VmmError::Linux(
                    LinuxError::NoKernel { .. }
                    | LinuxError::Load { .. }
                    | LinuxError::TooLittleMemory { .. }
                    | LinuxError::InitrdTooLarge { .. }
                    | LinuxError::CommandLine { .. }
                    | LinuxError::Disk(DiskBaseError::Size { .. } | DiskBaseError::TooMany { .. })
                    | LinuxError::Vcpus { .. },
                ) => USAGE,
                VmmError::Machine(_) => DAMAGE,
                VmmError::Fenced(why) if matches!(**why, Halted::Fenced(_)) => FENCED,
                VmmError::Restore(error) if error.is_damage() => DAMAGE,
                _ => FAILED,
            },
            Self::Store(error) if error.is_damage() => DAMAGE,
            Self::Store(error) if error.is_in_use() => FENCED,
            Self::NotOurs { .. } | Self::NotRun { .. } | Self::OfAPair { .. } => FENCED,
            Self::Restore(error) if error.is_damage() => DAMAGE,
            Self::Export { source, .. } if matches!(**source, ExportError::Audit { .. }) => DAMAGE,
            Self::Verify(VerifyError::Description { .. })
            | Self::State { .. }
            | Self::Damaged { .. }
            | Self::Unsound { .. }
            | Self::Unbuildable { .. }
            | Self::DamagedBehind { .. }
            | Self::MachineMismatch { .. } => DAMAGE,
            Self::NoAnswer { .. }
            | Self::Tls(_)
            | Self::Witness(_)
            | Self::Serve(_)
            | Self::Record(_)
            | Self::Bench(_)
            | Self::Advise(_)
            | Self::Restore(_)
            | Self::Store(_)
            | Self::Verify(_)
            | Self::Repair(_)
            | Self::Host(_)
            | Self::Output(_)
            | Self::System { .. }
            | Self::RanOn(_)
            | Self::DanglingLink { .. }
            | Self::FileExists { .. }
            | Self::File { .. }
            | Self::Export { .. }
            | Self::Diff(_)
            | Self::TlsInit(_)
            | Self::Control { .. }
            | Self::Refused { .. }
            | Self::CannotRun { .. }
            | Self::Check { .. } => FAILED,
        }
    }

    /// Whether the store is not what was opened.
    fn is_displaced(&self) -> bool {
        let mut causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| (*error).source());
        causes.any(|error| matches!(error.downcast_ref(), Some(StoreError::Displaced { .. })))
            || matches!(self, Self::Store(StoreError::Displaced { .. }))
    }

    pub(super) fn hint(&self) -> Option<String> {
        if let Self::Vmm(VmmError::Restore(error)) = self {
            let damage = "`slackwater verify` lists what is damaged; an epoch before it may be whole";
            return error.hint().or(error.is_damage().then_some(damage)).map(str::to_owned);
        }
        if self.is_displaced() {
            let hint = "somebody moved, replaced or unlocked the store while it was written. What was durable is in the directory that was opened, wherever that is now: `slackwater log` shows it, and once nobody else writes there, `slackwater restore --continue` goes on";
            return Some(hint.to_owned());
        }
        let hint = match self {
            Self::Host(error) | Self::Vmm(VmmError::Host(error)) => error.hint(),
            Self::Vmm(VmmError::Linux(LinuxError::Kvm(_))) => {
                "a KVM on a processor with VT-x or SVM runs one, also in a virtual machine with nested virtualization or under QEMU's emulation (scripts/nested.sh); the built-in guests run here"
            }
            Self::Vmm(VmmError::Linux(LinuxError::CpuLevel { .. })) => {
                "`--cpu x86-64-v2` is the lowest level, and `--cpu host` takes what there is; `slackwater host --json` lists that"
            }
            Self::Vmm(VmmError::Linux(LinuxError::Disk(DiskBaseError::Base { .. } | DiskBaseError::Changed { .. }))) => {
                "the checkpoints hold what the guest wrote; a restore needs the image that it wrote over, unchanged: `--disk FILE` says where a copy of it is"
            }
            Self::Store(StoreError::Exists { .. }) => {
                "`slackwater restore --continue` goes on from its newest epoch, if it has one; or name another directory"
            }
            Self::CannotRun { tsc_only: true, .. } => {
                "`--tsc host` goes on at this host's frequency: what the guest measures by its time stamp counter alone is then off, kvmclock is not"
            }
            Self::CannotRun { .. } => {
                "`slackwater restore --check` lists all that differs; a guest that was started with `checkpoint --cpu x86-64-v2` moves between more hosts"
            }
            Self::NotNewest { branch, .. } if branch != MAIN_BRANCH => {
                return Some(format!(
                    "`--branch {branch}` without `--epoch` goes on from its newest; another name makes a branch, from an epoch of this one with `--from {branch}`"
                ));
            }
            Self::NotNewest { epoch, .. } => {
                return Some(format!(
                    "`--epoch {epoch} --branch NAME` goes on from it as a new branch, beside what came after it"
                ));
            }
            Self::BranchExists { .. } => "another name makes a branch; `slackwater log --branches` lists those that there are",
            Self::Store(StoreError::NoBranch { .. }) => {
                "`slackwater log --branches` lists them, and `slackwater restore --epoch N --branch NAME` makes one"
            }
            Self::Store(StoreError::InUse { .. }) => {
                "one process at a time may write to a chain, and one compact, prune or branch it; `log`, `verify` and `restore` read it meanwhile"
            }
            Self::Vmm(VmmError::Ring(RingError::TooLarge { .. })) => "`slackwater host` prints what this machine's KVM takes",
            Self::Vmm(VmmError::Ring(RingError::Unsupported)) => "`--tracker bitmap` works on every KVM",
            Self::Vmm(VmmError::Engine(EngineError::Storage { .. })) => {
                "what was stored before can be restored; `--on-storage-error continue` keeps the guest running and tries again"
            }
            Self::Verify(VerifyError::NoBranch { .. }) => "`slackwater log --branches` lists them",
            Self::RanOn(_) => {
                "what was stored before can be restored; the guest ran on without checkpoints, and what came after the last one is lost"
            }
            Self::DamagedBehind { newest, .. } if newest.0 > 0 => {
                return Some(format!(
                    "`--epoch {newest}` asks for the newest epoch before the damage; `slackwater verify` lists what is damaged"
                ));
            }
            Self::Unsound { hint, .. } => hint,
            Self::FileExists { .. } => "`--force` replaces it",
            Self::TlsInit(TlsInitError::NotEmpty { .. }) => "it may be what two hosts know each other by; name another directory",
            Self::Damaged { .. } | Self::DamagedBehind { .. } => "`slackwater verify` lists what is damaged",
            Self::Restore(error) if error.is_damage() => {
                "`slackwater verify` lists what is damaged; an epoch before it may be whole"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn because(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("\n  because: {reason}")).collect()
}

fn behind(newest: EpochId) -> String {
    if newest == EpochId::NONE { "from its first epoch on".to_owned() } else { format!("behind epoch {newest}") }
}
