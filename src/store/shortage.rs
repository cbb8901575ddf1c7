//! What the system is short of when it refuses: errors that pass once there is more of it.

use std::io;

use rustix::io::Errno;

/// Whether this process, or the system, has as many files open as it may.
pub(super) fn lacks_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].into_iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether there is no room for what is to be written: on the disk, in a quota, or in a file that
/// may be no longer.
pub(super) fn lacks_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        let of = |errno: Errno| io::Error::from(errno);
        assert!(lacks_descriptors(&of(Errno::MFILE)) && lacks_descriptors(&of(Errno::NFILE)));
        assert!([Errno::NOSPC, Errno::DQUOT, Errno::FBIG].into_iter().all(|errno| lacks_room(&of(errno))));
        assert!(!lacks_room(&of(Errno::ROFS)) && !lacks_room(&of(Errno::MFILE)));
        assert!(!lacks_descriptors(&of(Errno::IO)) && !lacks_descriptors(&io::ErrorKind::NotFound.into()));
    }
}
