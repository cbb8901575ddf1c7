//! Bad input to the command: each with a message that names what and where, and the exit code of the design.
