//! Rules of the house: imports go only up, comments and lists are complete.
