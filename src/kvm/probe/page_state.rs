//! What is known of a page in a check.

use std::fmt;

/// What the next write to a page had to do in a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PageState {
    /// Never written since its memslot was made: to be listed.
    Fresh,
    /// Named by the reset that followed its last listing: to be listed.
    Protected,
    /// Left out of a reset, and named by a later one in the place of another page: to be listed.
    Rearmed,
    /// Left out of all resets since its last listing: not to be listed.
    Writable,
}

impl fmt::Display for PageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "never written before",
            Self::Protected => "protected by the reset after it was listed",
            Self::Rearmed => "left out of a reset, and protected by a later one in the place of another page",
            Self::Writable => "left out of all resets since it was listed",
        })
    }
}
