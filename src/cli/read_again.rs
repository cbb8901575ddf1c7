//! Reading a chain again from the beginning, where a compaction took a file away meanwhile.

use super::error::CliError;

/// How often, at most: each time a compaction has ended in between.
const TRIES_MAX: u32 = 16;

/// Opens a chain and reads, and again from the beginning where a file went.
pub(super) fn again<T>(mut read: impl FnMut() -> Result<T, CliError>) -> Result<T, CliError> {
    for _ in 1..TRIES_MAX {
        match read() {
            Err(error) if error.is_replaced() => tracing::debug!("{error}"),
            result => return result,
        }
    }
    read()
}
