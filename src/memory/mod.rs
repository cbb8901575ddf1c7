//! Guest memory and the page-aligned staging arena.
