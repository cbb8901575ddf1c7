//! The sinks of a primary: its chain, of which the node is told, and the standby.

use std::sync::{Arc, Mutex};

use super::link::Link;
use super::node::Node;
use crate::epoch::{Marks, Sink, SinkError, SinkStart};
use crate::format::{ChainId, Complete, Head};
use crate::lock::lock;
use crate::page::EpochId;

/// A sink whose epochs a node is told of.
#[derive(Debug)]
pub struct Watched<S> {
    sink: S,
    node: Arc<Node>,
}

impl<S: Sink> Watched<S> {
    /// `sink`, with `node` told of each epoch that is complete there.
    pub const fn new(sink: S, node: Arc<Node>) -> Self {
        Self { sink, node }
    }
}

impl<S: Sink> Sink for Watched<S> {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.sink.start(marks)
    }

    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        self.sink.append(epoch, frames)
    }

    fn begin_sync(&mut self) {
        self.sink.begin_sync();
    }

    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        self.sink.complete(frames, epoch)?;
        // Before it can be durable.
        self.node.completed(epoch.head().into());
        Ok(())
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        self.sink.abort()
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.sink.sync()
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        self.sink.reopen()
    }

    fn close(&mut self, sync: bool) -> Result<(), SinkError> {
        self.sink.close(sync)
    }
}

/// Where the link of the standby is, for whoever makes it and for the sink.
pub type LinkSlot = Arc<Mutex<Option<Arc<Link>>>>;

/// The sink that a standby is. It has nothing until it joins, each time that there is a link.
#[derive(Debug)]
pub struct Follower {
    chain: ChainId,
    node: Arc<Node>,
    slot: LinkSlot,
    /// The link that the epochs go over.
    link: Option<Arc<Link>>,
}

impl Follower {
    /// For epochs of `chain`, over the link that is in `slot` when it joins.
    #[must_use]
    pub const fn new(chain: ChainId, node: Arc<Node>, slot: LinkSlot) -> Self {
        Self { chain, node, slot, link: None }
    }

    /// Nothing more goes over the link.
    fn lose(&mut self, error: std::io::Error) -> SinkError {
        if let Some(link) = self.link.take() {
            link.end();
            self.node.lost(link.standby());
        }
        SinkError::Latched(error.into())
    }

    fn over(&mut self, send: impl FnOnce(&Link) -> std::io::Result<()>) -> Result<(), SinkError> {
        let sent = match &self.link {
            Some(link) => send(link),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        sent.map_err(|error| self.lose(error))
    }
}

impl Sink for Follower {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.node.set_marks(marks);
        SinkStart { chain: self.chain, head: Head::default(), durable: None, keeps: true }
    }

    fn append(&mut self, _epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        self.over(|link| link.part(frames))
    }

    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        // Before the standby can say that it holds it.
        self.node.completed(epoch.head().into());
        self.over(|link| link.complete(frames, &epoch.frame))
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        self.over(Link::abort)
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        // The standby says by itself what it holds.
        Ok(())
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        self.link = lock(&self.slot).clone();
        match &self.link {
            // It begins with a base.
            Some(_) => Ok(Head::default()),
            None => Err(SinkError::Latched(Box::new(std::io::Error::from(std::io::ErrorKind::NotConnected)))),
        }
    }

    fn close(&mut self, _sync: bool) -> Result<(), SinkError> {
        self.link = None;
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(link) = lock(&self.slot).take() {
            link.end();
        }
    }
}
