//! Waits for a link's descriptor, or for the link's end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Waits until `link` is ready for `wanted` or has failed; whichever, the next call says. False
/// once `end` was asked for.
pub(super) fn wait(link: &impl AsFd, wanted: PollFlags, end: &OwnedFd) -> io::Result<bool> {
    let mut both = [PollFd::new(link, wanted), PollFd::new(end, PollFlags::IN)];
    loop {
        match poll(&mut both, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let [_, ended] = &both;
    Ok(ended.revents().is_empty())
}
