//! The memory that a standby keeps.

use crate::page::{Gfn, PageBytes, PageRun};

/// What can't be done with it: a frame that there is not.
pub type ImageError = Box<dyn std::error::Error + Send + Sync>;

/// The memory of a machine that does not run yet. It begins as zeros.
pub trait Image: Send {
    /// All pages, as runs that rise and are disjoint.
    fn runs(&self) -> Vec<PageRun>;

    /// Reads one page.
    ///
    /// # Errors
    /// A frame that there is not.
    fn read(&self, gfn: Gfn, into: &mut PageBytes) -> Result<(), ImageError>;

    /// Writes one page.
    ///
    /// # Errors
    /// A frame that there is not.
    fn write(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), ImageError>;
}

#[cfg(feature = "kvm")]
impl Image for crate::memory::GuestMemory {
    fn runs(&self) -> Vec<PageRun> {
        Self::runs(self).collect()
    }

    fn read(&self, gfn: Gfn, into: &mut PageBytes) -> Result<(), ImageError> {
        Ok(self.read_page(gfn, into)?)
    }

    fn write(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), ImageError> {
        Ok(self.fill_page(gfn, page)?)
    }
}
