use super::listing::Store;
use super::report::*;
use crate::page::EpochId;
pub(super) fn verify(_store: &Store, _chain: usize, _epoch: EpochId, _options: &VerifyOptions, _progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport, VerifyError> { Ok(VerifyReport::default()) }
