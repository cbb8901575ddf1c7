//! Bytes on disk and on the wire. No I/O.
