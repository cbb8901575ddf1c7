//! Why the host's side of a socket device can't be used.

use std::io;
use std::path::PathBuf;

/// Why there can be no sockets at a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VsockError {
    /// The path does not fit into the address of a socket.
    #[error("{} has {bytes} bytes: the path of a guest's sockets has at most {most}", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        bytes: usize,
        /// The most.
        most: usize,
    },
    /// Somebody listens there.
    #[error("{} is in use: another program listens on it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something that is no socket.
    #[error("{} is there and is no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path may not be used.
    #[error("no permission for a socket at {}", path.display())]
    Permission {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The system refused a step.
    #[error("{step}: {}", path.display())]
    System {
        /// What was asked.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
