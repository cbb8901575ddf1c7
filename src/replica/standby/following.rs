//! The stream of epochs of one primary: into memory, to the node, to the standby's own chain.

use std::io;

use super::image::Image;
use super::incoming::{Incoming, IncomingError};
use super::own_chain::OwnChain;
use crate::epoch::Sink;
use crate::format::Complete;
use crate::replica::node::Node;
use crate::replica::proto::EpochKey;
use crate::replica::register::Incarnation;
use crate::replica::wire::TlsStream;
use crate::replica::wire::envelope::{Kind, read_envelope};

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamEnd {
    #[error("the connection ended")]
    Connection(#[source] io::Error),
    #[error("what came is no epoch")]
    Incoming(#[source] IncomingError),
    #[error("{0:?} in a stream of epochs")]
    Kind(Kind),
    #[error("the chain takes nothing more")]
    Chain,
    #[error("epoch {0} does not follow")]
    Order(EpochKey),
}

/// Where the epochs go.
pub(super) struct Following<'n, I, S> {
    incoming: Incoming<I>,
    own: OwnChain<S>,
    node: &'n Node,
    me: Incarnation,
    /// The chain says what is held, and not the memory.
    holds_on_disk: bool,
}

impl<'n, I: Image, S: Sink + 'static> Following<'n, I, S> {
    pub(super) const fn new(
        incoming: Incoming<I>,
        own: OwnChain<S>,
        (node, me): (&'n Node, Incarnation),
        holds_on_disk: bool,
    ) -> Self {
        Self { incoming, own, node, me, holds_on_disk }
    }

    /// Takes epochs until the stream ends. Memory and chain end with the same one, unless the chain
    /// takes nothing more.
    pub(super) fn run(mut self, mut stream: TlsStream) -> (Incoming<I>, OwnChain<S>) {
        let mut bytes = Vec::new();
        let ended = loop {
            let came = read_envelope(&mut stream, &mut bytes).map_err(StreamEnd::Connection);
            if let Err(ended) = came.and_then(|kind| self.take(kind, &bytes)) {
                break ended;
            }
        };
        tracing::info!(error = &ended as &dyn std::error::Error, "the stream of epochs ended");
        self.incoming.abort();
        self.node.stream_ended(self.me);
        (self.incoming, self.own)
    }

    fn take(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), StreamEnd> {
        let Self { incoming, own, node, me, holds_on_disk } = self;
        match kind {
            Kind::Part | Kind::Complete => {}
            Kind::Abort => {
                incoming.abort();
                return if own.abort() { Ok(()) } else { Err(StreamEnd::Chain) };
            }
            Kind::Hello | Kind::Word => return Err(StreamEnd::Kind(kind)),
        }
        let held = incoming.take(bytes).map_err(StreamEnd::Incoming)?;
        let frames = incoming.take_frames();
        let Some(held) = held else {
            return if own.frames(incoming.epoch_in_hand(), frames) { Ok(()) } else { Err(StreamEnd::Chain) };
        };
        let follows = *holds_on_disk || node.holds(*me, held.key, held.parent);
        // Whether or not somebody counts on it: the memory has it, so the chain gets it, too. A
        // standby that was promoted meanwhile goes on from both.
        let complete = Complete::new(incoming.chain(), held.commit);
        let is_taken = own.complete(frames, complete, held.parent);
        match (follows, is_taken) {
            (true, true) => Ok(()),
            (false, _) => Err(StreamEnd::Order(held.key)),
            (true, false) => Err(StreamEnd::Chain),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::super::incoming_tests::{CHAIN, Guest, Made, Pages, key};
    use super::*;
    use crate::epoch::{Marks, SinkError, SinkStart};
    use crate::format::Head;
    use crate::lock::lock;
    use crate::page::EpochId;
    use crate::replica::proto::{Body, Message, Standby, StandbyOptions, Timing};
    use crate::replica::register::{Generation, Holder, Nonce, Register};
    use crate::replica::wishes::Wish;
    use crate::replica::witness::{Swapped, Witness, WitnessError};

    /// Epochs that were completed.
    #[derive(Clone, Default)]
    struct Chain(Arc<Mutex<Vec<EpochId>>>);

    impl Sink for Chain {
        fn start(&mut self, _marks: Marks) -> SinkStart {
            SinkStart { chain: CHAIN, head: Head::default(), durable: Some(EpochId::NONE), keeps: true }
        }

        fn append(&mut self, _epoch: EpochId, _frames: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }

        fn complete(&mut self, _frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
            lock(&self.0).push(epoch.head().epoch);
            Ok(())
        }

        fn abort(&mut self) -> Result<(), SinkError> {
            Ok(())
        }

        fn sync(&mut self) -> Result<(), SinkError> {
            Ok(())
        }

        fn reopen(&mut self) -> Result<Head, SinkError> {
            Ok(Head::default())
        }

        fn close(&mut self, _sync: bool) -> Result<(), SinkError> {
            Ok(())
        }
    }

    /// Grants every swap.
    struct Grants;

    impl Witness for Grants {
        fn read(&mut self) -> Result<Option<Register>, WitnessError> {
            Ok(None)
        }

        fn swap(&mut self, _expected: Option<&Register>, _new: &Register) -> Result<Swapped, WitnessError> {
            Ok(Swapped::Won)
        }
    }

    #[test]
    fn an_epoch_that_came_when_the_standby_was_promoted_is_in_memory_and_in_the_chain() {
        const PRIMARY: Incarnation = Incarnation(1);
        const ME: Incarnation = Incarnation(2);
        let register =
            |generation, holder| Register { generation: Generation(generation), holder, nonce: Nonce(generation.into()) };
        let node = Node::start(Box::new(Grants)).unwrap();
        let (words, _said) = sync_channel(64);
        let timing = Timing::new(Duration::from_millis(100), Duration::from_secs(60));
        let options = StandbyOptions { timing, has_chain: false, holds_on_disk: false };
        let alone = register(1, Holder::Solo(PRIMARY));
        node.become_standby(None, words, |now| Standby::join(ME, options, (PRIMARY, alone), None, Box::new(|| 7), now));
        let chain = Chain::default();
        let own = OwnChain::start(chain.clone(), None).unwrap();
        let incoming = Incoming::new(CHAIN, Pages::default(), u64::MAX).keeping_frames();
        let mut following = Following::new(incoming, own, (&node, ME), false);
        let mut guest = Guest::new(5);
        let (base, last): (Made, Made) = (guest.epoch(), guest.epoch());
        following.take(Kind::Complete, &base.bytes).unwrap();
        let paired = register(2, Holder::Paired(PRIMARY, ME));
        node.heard(&Message { from: PRIMARY, to: ME, register: paired, body: Body::Beat });
        assert!(node.promote());
        assert_eq!(node.wait(Duration::from_secs(60)), Some(Wish::Run));
        // It was on its way.
        let ended = following.take(Kind::Complete, &last.bytes).unwrap_err();
        assert!(matches!(ended, StreamEnd::Order(_)), "{ended}");
        assert_eq!(following.incoming.head().map(EpochKey::from), Some(key(&last)));
        following.own.finish().unwrap();
        assert_eq!(*lock(&chain.0), [key(&base).epoch, key(&last).epoch]);
    }
}
