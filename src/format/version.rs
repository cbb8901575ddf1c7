//! The version of the format.

/// The version of the format that chains have. Every other one is refused.
pub const FORMAT_VERSION: u32 = 1;

/// Whether this code knows a version of the format.
pub(super) fn is_known(version: impl Into<u64>) -> bool {
    version.into() == u64::from(FORMAT_VERSION)
}
