//! Stores for a moment.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::error::CliError;

/// A directory for a store that nobody keeps, and that nobody else can read or have made before.
/// Removed when it is dropped.
pub(super) fn scratch(prefix: &str) -> Result<TempDir, CliError> {
    let private = Permissions::from_mode(0o700);
    let made = tempfile::Builder::new().prefix(prefix).permissions(private).tempdir();
    made.map_err(|source| CliError::System { step: "making a directory for temporary files", source })
}
