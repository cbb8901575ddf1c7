//! The reference VMM.

pub mod churn;
