//! Guest memory as the place that a restore fills.

use super::{PageTarget, TargetError};
use crate::memory::GuestMemory;
use crate::page::{Gfn, PageBytes, PageRun};

/// Pages are put in place without being recorded as writes of the VMM: the chain has them.
impl PageTarget for GuestMemory {
    fn expect(&mut self, run: PageRun) {
        if run.count > 1 {
            self.provide(run);
        }
    }

    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        Ok(self.fill_page(gfn, page)?)
    }
}
