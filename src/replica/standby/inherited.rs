//! The chain of a standby that was promoted: it is made whole and durable beside the guest, which
//! does not wait for it.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::own_chain::OwnChain;
use crate::epoch::{Marks, MarksRelay, Sink, SinkError, SinkStart};
use crate::format::{ChainId, Complete, Head};
use crate::page::EpochId;

/// Why the chain takes nothing: it is told each time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the chain of the standby could not be made whole")]
struct NotWhole(#[source] Arc<SinkError>);

impl From<NotWhole> for SinkError {
    fn from(error: NotWhole) -> Self {
        Self::Latched(error.into())
    }
}

type Settled<S> = Result<S, NotWhole>;

/// The chain of a standby, as the sink of the machine that it is now. Where it could not be made
/// whole, it is latched for good.
#[derive(Debug)]
pub struct Inherited<S> {
    chain: ChainId,
    head: Head,
    marks: MarksRelay,
    /// What came last is being appended and synced.
    settling: Option<JoinHandle<Settled<S>>>,
    /// What came of it.
    settled: Settled<S>,
}

impl<S: Sink + 'static> Inherited<S> {
    /// Begins to make the chain whole, whose newest epoch is to be `head`, and which tells `marks`.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub(super) fn begin(own: OwnChain<S>, marks: MarksRelay, (chain, head): (ChainId, Head)) -> io::Result<Self> {
        let settles = move || {
            let mut sink = own.finish().map_err(NotWhole::new)?;
            sink.sync().map_err(NotWhole::new)?;
            Ok(sink)
        };
        let settling = Builder::new().name("slackwater-settle".to_owned()).spawn(settles)?;
        // Unless the thread says otherwise.
        let settled = Err(NotWhole::new(SinkError::Latched("its thread panicked".into())));
        Ok(Self { chain, head, marks, settling: Some(settling), settled })
    }

    /// The chain, once it is whole.
    fn whole(&mut self) -> Result<&mut S, SinkError> {
        if let Some(Ok(settled)) = self.settling.take().map(JoinHandle::join) {
            self.settled = settled;
        }
        self.settled.as_mut().map_err(|error| error.clone().into())
    }
}

impl NotWhole {
    fn new(error: SinkError) -> Self {
        Self(Arc::new(error))
    }
}

impl<S: Sink + 'static> Sink for Inherited<S> {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.marks.lead_to(marks);
        // The engine has it synced, which tells how far it is then.
        SinkStart { chain: self.chain, head: self.head, durable: Some(EpochId::NONE), keeps: true }
    }

    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        self.whole()?.append(epoch, frames)
    }

    fn begin_sync(&mut self) {
        if let Ok(sink) = self.whole() {
            sink.begin_sync();
        }
    }

    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        self.whole()?.complete(frames, epoch)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        self.whole()?.abort()
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.whole()?.sync()
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        self.whole()?.reopen()
    }

    fn close(&mut self, sync: bool) -> Result<(), SinkError> {
        self.whole()?.close(sync)
    }
}
