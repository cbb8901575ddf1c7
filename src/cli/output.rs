//! What goes to standard output.

use std::fmt::Display;
use std::io::Write;

use serde::Serialize;

use super::error::CliError;

/// Prints a line of data.
pub(super) fn line(text: impl Display) -> Result<(), CliError> {
    writeln!(std::io::stdout(), "{text}").map_err(CliError::Output)
}

/// Prints a line for people, unless what is printed is JSON.
pub(super) fn prose(json: bool, text: impl Display) -> Result<(), CliError> {
    if json { Ok(()) } else { line(text) }
}

/// For verbs that have more to do or to tell than what they print: whoever read it may have gone
/// away, and everything else goes on.
pub(super) fn unless_gone(printed: Result<(), CliError>) -> Result<(), CliError> {
    match printed {
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|error| CliError::Output(error.into()))?;
    line(text)
}
