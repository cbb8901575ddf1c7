//! The engine: policy, the cut (park to run again), the pipeline behind it, and the report.

//mod sink;

//pub use sink::{Sink, SinkError};
