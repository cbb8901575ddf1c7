//! Guest memory as the place that a restore fills.

use super::{PageTarget, TargetError};
use crate::memory::GuestMemory;
use crate::page::{Gfn, PageBytes};

/// Pages are put in place without being recorded as writes of the VMM: the chain has them.
impl PageTarget for GuestMemory {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        Ok(self.fill_page(gfn, page)?)
    }
}
