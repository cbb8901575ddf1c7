//! `slackwater export`: an epoch as a file that other tools read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::draft::{Draft, Readers};
use super::error::CliError;
use super::output;
use super::read_again::again;
use super::saved_machine::machine_of;
use super::stderr;
use super::units::{branch, bytes_text, epoch};
use crate::format::MAIN_BRANCH;
use crate::page::{EpochId, PAGE_SIZE_U64};
use crate::restore::{ExportError, ExportFormat, Exported, export};
use crate::store::Chain;
use crate::vmm::VmmError;
use crate::vmm::devices::{DiskImageError, write_disk_image};

/// Write the memory of an epoch to a file, as it is or as an ELF core with the registers; or a disk
/// of its machine.
///
/// The file is sparse: pages of zeros take no space. Only its owner may read it. It has its name
/// when all of it is on the disk; an export that is killed leaves nothing.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The branch [default: main, which is the chain itself].
    #[arg(long, value_name = "NAME", value_parser = branch, default_value = MAIN_BRANCH, hide_default_value = true)]
    branch: String,
    /// The epoch [default: the newest].
    #[arg(long, value_name = "N", value_parser = epoch)]
    epoch: Option<EpochId>,
    /// What to write.
    #[arg(long, value_enum)]
    format: Format,
    /// With `--format disk`: which disk [default: 0, the first].
    #[arg(long, value_name = "N")]
    disk: Option<usize>,
    /// With `--format disk`: where its base image is, if it is not where it was.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// The file to make.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    /// Guest memory: the offset in the file is the guest physical address.
    Raw,
    /// A core for crash, drgn, makedumpfile, gdb and readelf, as QEMU's `dump-guest-memory` writes
    /// it: memory and the registers of every vCPU, and what a Linux guest says about itself
    /// (VMCOREINFO). Addresses are physical; crash and drgn walk the guest's page tables
    /// themselves.
    ElfCore,
    /// A disk of a Linux guest: its base image with what the guest wrote, as a raw image.
    Disk,
}

#[derive(Debug, Serialize)]
struct ExportReport {
    epoch: EpochId,
    format: Format,
    file: String,
    file_bytes: u64,
    pages: u64,
    /// The digest of the epoch's memory, that of its disks included, as `digest --json` has it.
    memory: String,
}

impl Export {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.check_options()?;
        let (chain, epoch) = again(|| {
            let chain = Chain::open_branch(&self.store, &self.branch)?;
            if let (None, Some(damage)) = (self.epoch, chain.damage().first()) {
                let (dir, newest) = (self.store.clone(), chain.newest());
                return Err(CliError::DamagedBehind { dir, newest, found: damage.to_string() });
            }
            let epoch = chain.epoch(self.epoch.unwrap_or(chain.newest()))?.commit.epoch;
            Ok((chain, epoch))
        })?;
        self.check_place()?;
        let exported = self.write(&chain, epoch)?;
        self.print(&exported)
    }

    fn check_options(&self) -> Result<(), CliError> {
        let given = [("--disk", self.disk.is_some()), ("--image", self.image.is_some())];
        match given.into_iter().find(|(_, given)| *given && self.format != Format::Disk) {
            Some((option, _)) => Err(CliError::Usage(format!("`{option}` goes with `--format disk`"))),
            None => Ok(()),
        }
    }

    /// Refuses early what would be refused in the end.
    fn check_place(&mut self) -> Result<(), CliError> {
        match fs::symlink_metadata(&self.out) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.check_outside(),
            Err(source) => return Err(self.failed("looking for it", source)),
            Ok(_) => {}
        }
        // What can't be replaced at all is not said to be there only.
        if self.out.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(CliError::Usage(format!("{} is no regular file, and is not replaced", self.out.display())));
        }
        if !self.force {
            return Err(CliError::FileExists { path: self.out.clone() });
        }
        // What a link leads to is replaced, and not the link.
        let file = self.out.canonicalize().map_err(|source| match fs::read_link(&self.out) {
            Ok(to) if source.kind() == io::ErrorKind::NotFound => CliError::DanglingLink { link: self.out.clone(), to },
            _ => self.failed("following it", source),
        })?;
        self.out = file;
        self.check_outside()
    }

    /// Whatever is in a store is the chain's, with `--force`, too.
    fn check_outside(&self) -> Result<(), CliError> {
        let dir = self.out.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let is_within = dir.canonicalize().is_ok_and(|dir| self.store.canonicalize().is_ok_and(|store| dir.starts_with(store)));
        if is_within { Err(CliError::Usage(format!("{} is in the store itself", self.out.display()))) } else { Ok(()) }
    }

    fn write(&self, chain: &Chain, epoch: EpochId) -> Result<Exported, CliError> {
        let draft = Draft::new(&self.out, Readers::Owner)?;
        remove_on_signals(draft.name())?;
        let bar = stderr::bar("exporting");
        let mut progress = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let mut opened = None;
        let exported = again(|| {
            let chain = opened.as_ref().unwrap_or(chain);
            let exported = match self.format {
                Format::Raw => export(chain, epoch, ExportFormat::Raw, draft.file(), &mut progress),
                Format::ElfCore => export(chain, epoch, ExportFormat::ElfCore, draft.file(), &mut progress),
                Format::Disk => self.write_disk(chain, epoch, draft.file(), &mut progress)?,
            };
            let exported = exported.map_err(|error| match error {
                ExportError::Restore(error) => CliError::Restore(error),
                ExportError::State { epoch, source } => CliError::State { epoch, source },
                source => CliError::Export { path: self.out.clone(), source: Box::new(source) },
            });
            if exported.as_ref().is_err_and(CliError::is_replaced) {
                draft.file().set_len(0).map_err(|source| self.failed("emptying it", source))?;
                opened = Some(Chain::open_branch(&self.store, &self.branch)?);
            }
            exported
        })?;
        draft.finish(self.force)?;
        bar.finish_and_clear();
        Ok(exported)
    }

    fn write_disk(
        &self,
        chain: &Chain,
        epoch: EpochId,
        file: &fs::File,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Result<Exported, ExportError>, CliError> {
        let machine = machine_of(chain.dir(), chain.description())?;
        let (disks, regions) = (machine.disks(), machine.device_regions());
        let number = self.disk.unwrap_or_default();
        let Some((base, run)) = disks.get(number).zip(regions.get(number)) else {
            return Err(CliError::Usage(match disks.len() {
                0 => "the machine has no disks".to_owned(),
                count => format!("`--disk {number}`: the machine has {count} disks, numbered from 0"),
            }));
        };
        match write_disk_image(chain, epoch, (base, *run), self.image.as_deref(), file, progress) {
            Ok(exported) => Ok(Ok(exported)),
            Err(DiskImageError::Export(error)) => Ok(Err(error)),
            Err(DiskImageError::Base(error)) => Err(VmmError::from(error).into()),
        }
    }

    fn failed(&self, step: &'static str, source: io::Error) -> CliError {
        CliError::File { path: self.out.clone(), step, source }
    }

    fn print(&self, exported: &Exported) -> Result<(), CliError> {
        let Exported { epoch, file_bytes, pages, memory, .. } = *exported;
        let file = self.out.display().to_string();
        if self.json {
            let memory = memory.to_string();
            return output::json(&ExportReport { epoch, format: self.format, file, file_bytes, pages, memory });
        }
        output::line(format_args!(
            "epoch {epoch}: {pages} pages that are not zeros ({}) in {file}, {} with holes",
            bytes_text(pages.saturating_mul(PAGE_SIZE_U64)),
            bytes_text(file_bytes),
        ))
    }
}

/// A file that is not finished does not outlive a process that is asked to end.
fn remove_on_signals(name: Option<&Path>) -> Result<(), CliError> {
    let name = name.map(Path::to_owned);
    let handler = move || {
        if let Some(name) = &name {
            // The file may have its own name already.
            let _ = fs::remove_file(name);
        }
        stderr::note("error: interrupted");
        std::process::exit(1);
    };
    ctrlc::set_handler(handler).map_err(|error| CliError::Usage(format!("signal handler: {error}")))
}
