//! What the sockets' thread is to do. What comes for one connection is put together, so that there
//! is never more than its credit allows, however many outputs it was.

use std::collections::BTreeMap;

use super::output::{ConnectionId, Output, OutputKind};

/// What is to be done for one connection, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Todo {
    pub(super) connect: Option<u32>,
    pub(super) accept: Option<u32>,
    pub(super) bytes: Vec<u8>,
    pub(super) no_more_sent: bool,
    pub(super) no_more_received: bool,
    pub(super) close: bool,
}

/// What the thread takes at once.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The thread ends.
    pub(super) ends: bool,
    /// All connections that there are end first.
    pub(super) resets: bool,
    pub(super) todo: BTreeMap<ConnectionId, Todo>,
}

impl Inbox {
    pub(super) fn add(&mut self, output: Output) {
        let todo = self.todo.entry(output.id).or_default();
        match output.kind {
            OutputKind::Connect { port } => todo.connect = Some(port),
            OutputKind::Accept { host_port } => todo.accept = Some(host_port),
            OutputKind::Bytes(bytes) if todo.bytes.is_empty() => todo.bytes = bytes,
            OutputKind::Bytes(bytes) => todo.bytes.extend(bytes),
            OutputKind::NoMoreSent => todo.no_more_sent = true,
            OutputKind::NoMoreReceived => todo.no_more_received = true,
            OutputKind::Close => todo.close = true,
        }
    }

    /// Everything up to now is of connections that are no more.
    pub(super) fn reset(&mut self) {
        self.resets = true;
        self.todo.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_for_a_connection_is_put_together() {
        let mut inbox = Inbox::default();
        let mut add = |id, kind| inbox.add(Output { id: ConnectionId(id), kind });
        add(1, OutputKind::Connect { port: 5 });
        for _ in 0..3 {
            add(1, OutputKind::Bytes(b"ab".to_vec()));
            add(2, OutputKind::Bytes(b"x".to_vec()));
        }
        add(1, OutputKind::NoMoreSent);
        add(2, OutputKind::Close);
        let one = Todo { connect: Some(5), bytes: b"ababab".to_vec(), no_more_sent: true, ..Todo::default() };
        let two = Todo { bytes: b"xxx".to_vec(), close: true, ..Todo::default() };
        assert_eq!(inbox.todo.iter().map(|(id, todo)| (id.0, todo)).collect::<Vec<_>>(), [(1, &one), (2, &two)]);
        inbox.reset();
        assert!(inbox.todo.is_empty() && inbox.resets);
    }
}
