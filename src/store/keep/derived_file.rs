//! Files of a chain that are derived and that it does not need: kept for the next time.

use std::io;

use crate::store::read::Chain;

/// Makes or replaces such a file of a chain: whoever reads it meanwhile sees the old or the new
/// one. Of several who do so at a time one wins, or none.
///
/// # Errors
/// What the operating system refuses; `Unsupported` where the chain's medium can only be read.
pub(crate) fn replace_derived(chain: &Chain, name: &str, draft: &str, bytes: &[u8]) -> io::Result<()> {
    let medium = chain.medium().writable().ok_or(io::ErrorKind::Unsupported)?;
    if let Err(error) = medium.remove(draft)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    medium.create(draft)?.write(0, &[bytes])?;
    medium.rename(draft, name)
}
