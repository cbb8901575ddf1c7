//! The one writer of a chain, and what it finds when it opens one.

mod active;
mod mark_file;
mod options;
mod recovery;
mod writer;

pub use options::{NewChain, Recovered, WriterOptions};
pub use writer::Writer;
