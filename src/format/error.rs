//! What can be wrong with bytes, or with what is to become bytes.

use super::FORMAT_VERSION;

/// Why bytes are not what `docs/format.md` says, or why something cannot be written as it says.
///
/// Offsets are in bytes from the beginning of the frame (of the file, for a description); a store
/// adds the file and where the frame begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A field does not hold what it must.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// The field, as `docs/format.md` names it.
        field: &'static str,
        /// Where the field begins.
        offset: u64,
        /// What a sound field would hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The bytes end before the field does.
    #[error("{field}: expected {needed} more bytes, found {found}")]
    Short {
        /// The field, as `docs/format.md` names it.
        field: &'static str,
        /// Where the field begins.
        offset: u64,
        /// Bytes that the field needs.
        needed: u64,
        /// Bytes that are left.
        found: u64,
    },
    /// A checksum does not match what it covers.
    #[error("{field}: expected {expected:016x}, found {found:016x}")]
    Checksum {
        /// What the checksum covers.
        field: &'static str,
        /// Where the checksum stands.
        offset: u64,
        /// The checksum that is stored.
        expected: u64,
        /// The checksum of the bytes that are there.
        found: u64,
    },
    /// The format's version is one that this reader does not know.
    #[error("format version: expected {}, found {found}", FORMAT_VERSION)]
    Version {
        /// Where the version stands.
        offset: u64,
        /// The version that is stored.
        found: u64,
    },
    /// What is to be written breaks a limit or an order of the format.
    #[error("{what}: the format takes {expected}, not {found}")]
    Input {
        /// What was to be written.
        what: &'static str,
        /// What the format takes.
        expected: String,
        /// What was given.
        found: String,
    },
}

impl FormatError {
    #[expect(clippy::needless_pass_by_value, reason = "callers pass numbers and texts as they have them")]
    pub(crate) fn field(field: &'static str, offset: usize, expected: impl ToString, found: impl ToString) -> Self {
        Self::Field { field, offset: offset as u64, expected: expected.to_string(), found: found.to_string() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers pass numbers and texts as they have them")]
    pub(crate) fn input(what: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Input { what, expected: expected.to_string(), found: found.to_string() }
    }

    /// Where in the frame the fault is, in bytes; 0 for what was to be written.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        match self {
            Self::Field { offset, .. }
            | Self::Short { offset, .. }
            | Self::Checksum { offset, .. }
            | Self::Version { offset, .. } => *offset,
            Self::Input { .. } => 0,
        }
    }

    /// What would be sound, with the name of the field.
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Self::Field { field, expected, .. } => format!("{field} {expected}"),
            Self::Short { field, needed, .. } => format!("{needed} bytes of {field}"),
            Self::Checksum { field, expected, .. } => format!("{field} {expected:016x}"),
            Self::Version { .. } => format!("format version {}", FORMAT_VERSION),
            Self::Input { what, expected, .. } => format!("{what} {expected}"),
        }
    }

    /// What was found instead.
    #[must_use]
    pub fn found(&self) -> String {
        match self {
            Self::Field { found, .. } | Self::Input { found, .. } => found.clone(),
            Self::Short { found, .. } => format!("{found} bytes"),
            Self::Checksum { found, .. } => format!("{found:016x}"),
            Self::Version { found, .. } => found.to_string(),
        }
    }
}
