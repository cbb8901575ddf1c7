//! `slackwater export` and `slackwater diff` on chains whose content is known.

mod diff;
pub(crate) mod files;
mod killed;
pub(crate) mod linux;
mod refusals;
mod tools;
