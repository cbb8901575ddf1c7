//! Where a store is: who may read it, and whether who writes it stays with it.

mod private;
mod stays;
