//! What leaves the guest through its sockets, and waits until its epoch is released.

/// A connection, as the host's side knows it. No two of a machine have the same, whatever comes
/// between them: an output that waited can't reach a later connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(super) u64);

/// Something that the guest did and that the host may see once the epoch is released. Those of a
/// connection are given to its socket in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Of which connection.
    pub id: ConnectionId,
    /// What.
    pub kind: OutputKind,
}

/// What an [`Output`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputKind {
    /// The guest asks for a connection to this port.
    Connect {
        /// The port, which names a socket of the host.
        port: u32,
    },
    /// The guest accepts a connection that the host asked for.
    Accept {
        /// The port that the host's side has.
        host_port: u32,
    },
    /// Bytes for the host.
    Bytes(Vec<u8>),
    /// The guest will not send any more.
    NoMoreSent,
    /// The guest will not receive any more.
    NoMoreReceived,
    /// The guest closed or reset the connection. What it sent before is still for the host.
    Close,
}

impl Output {
    /// Bytes of payload, for the bound of whoever holds it.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match &self.kind {
            OutputKind::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
    }
}
