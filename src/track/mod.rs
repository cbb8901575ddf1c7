//! Which pages were written: one trait, three trackers.
