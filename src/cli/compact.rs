//! `slackwater compact`: fewer and larger segments.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::error::CliError;
use super::output;
use super::stderr;
use super::units::{branch, bytes_text};
use crate::format::MAIN_BRANCH;
use crate::store::{self, Compacted, Retention};

/// Merge the segments of a chain, and drop no epoch.
///
/// A chain that is written or read meanwhile goes on: the segment that is appended to stays as it
/// is.
#[derive(Debug, Args)]
pub(super) struct Compact {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The branch [default: main, which is the chain itself].
    #[arg(long, value_name = "NAME", value_parser = branch, default_value = MAIN_BRANCH, hide_default_value = true)]
    branch: String,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Compact {
    pub(super) fn run(self) -> Result<(), CliError> {
        run(&self.store, &self.branch, None, self.json)
    }
}

/// Compacts, with rules where epochs are to be dropped, and says what came of it.
pub(super) fn run(dir: &std::path::Path, branch: &str, keep: Option<&Retention>, json: bool) -> Result<(), CliError> {
    let bar = stderr::bar(if keep.is_some() { "pruning" } else { "compacting" });
    let compacted = store::compact(dir, branch, keep, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let Compacted { segments, epochs, bytes, .. } = compacted;
    let ((segments_before, segments_after), (epochs_before, epochs_after)) = (segments, epochs);
    let (bytes_before, bytes_after) = bytes;
    if json {
        return output::json(&json!({
            "segments_before": segments_before,
            "segments_after": segments_after,
            "epochs_before": epochs_before,
            "epochs_after": epochs_after,
            "bytes_before": bytes_before,
            "bytes_after": bytes_after,
        }));
    }
    output::line(format_args!("epochs        {epochs_before} before, {epochs_after} now"))?;
    output::line(format_args!("segments      {segments_before} before, {segments_after} now"))?;
    output::line(format_args!("bytes         {} before, {} now", bytes_text(bytes_before), bytes_text(bytes_after)))
}
