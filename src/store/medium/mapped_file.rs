//! Files that are read in place.
#![expect(unsafe_code, reason = "mapping a file")]

use std::fs::File;
use std::io;

use memmap2::{Advice, Mmap};

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(super) struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps all of a file that nobody writes any more. Nothing is read yet.
    ///
    /// # Errors
    /// What `mmap` says; a file without bytes.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
        }
        // SAFETY: files that are read in place are written under another name, synced, renamed, and
        // never written again, so their bytes stay as they are. Who uses them checks every number
        // at each use: bytes that somebody changed all the same give other answers, and no access
        // outside of the mapping.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self { map })
    }

    /// Reads a part of the file into memory, so that a medium that cannot give it is an error here
    /// and not a signal (`SIGBUS`) at the first access. `MADV_POPULATE_READ`, Linux 5.14; kernels
    /// before it do not tell.
    ///
    /// # Errors
    /// A part that cannot be read, or that lies outside of the file.
    pub(super) fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        match self.map.advise_range(Advice::PopulateRead, offset, len) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_read_in_place_and_a_missing_part_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(MappedFile::new(&file).is_err());
        file.write_all(&[7; 3 * 4096]).unwrap();
        let map = MappedFile::new(&file).unwrap();
        map.populate(0, 3 * 4096).unwrap();
        assert_eq!(map.as_ref(), [7; 3 * 4096]);
        // What was cut off a file cannot be read any more, as what a medium does not give.
        file.set_len(4096).unwrap();
        map.populate(0, 4096).unwrap();
        assert!(map.populate(4096, 4096).is_err());
    }
}
