//! Writing to the medium that nobody waits for.
#![expect(unsafe_code, reason = "a system call that no crate has")]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the system begin to write these bytes of a file. It may wait while the device's queue is
/// full, and for nothing else. What it says is not looked at: the sync that comes finds the same
/// error, for the file system keeps it for that.
pub(super) fn begin_writeback(file: &File, bytes: Range<u64>) {
    let (Ok(offset), Ok(len)) = (i64::try_from(bytes.start), i64::try_from(bytes.end.saturating_sub(bytes.start))) else {
        return;
    };
    // A length of 0 means all of the file.
    if len > 0 {
        // SAFETY: it takes numbers, and changes no memory of this process.
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}
