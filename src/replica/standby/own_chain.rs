//! A standby's own chain: a thread that appends what comes, beside the memory.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::epoch::{Sink, SinkError};
use crate::format::Complete;
use crate::page::EpochId;
use crate::replica::proto::EpochKey;

/// What waits for the disk. When it is full, the stream waits, and so does the primary in the end.
const ORDERS_MOST: usize = 64;

/// Epochs are synced together, at most so long after they came.
const GROUP: Duration = Duration::from_millis(5);

/// Where no acknowledgement waits for the disk, what comes is taken together, so often. To wake for
/// each epoch would take processors from those who acknowledge it.
const TOGETHER: Duration = Duration::from_millis(1);

enum Order {
    Frames(EpochId, Vec<u8>),
    Complete(Vec<u8>, Box<Complete>, Option<EpochKey>),
    Abort,
}

/// Called with each epoch that the chain has durable, and the one that it follows.
pub type OnDurable = Box<dyn Fn(EpochKey, Option<EpochKey>) + Send>;

/// The thread, and the way to it.
#[derive(Debug)]
pub struct OwnChain<S> {
    orders: SyncSender<Order>,
    thread: JoinHandle<Result<S, SinkError>>,
}

impl<S: Sink + 'static> OwnChain<S> {
    /// Starts the thread, which has `sink`. With `on_durable` it syncs whenever nothing else is to
    /// be done, and tells.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub fn start(sink: S, on_durable: Option<OnDurable>) -> std::io::Result<Self> {
        let (orders, told) = sync_channel(ORDERS_MOST);
        let thread =
            Builder::new().name("slackwater-chain".to_owned()).spawn(move || append(sink, &told, on_durable.as_deref()))?;
        Ok(Self { orders, thread })
    }

    /// Frames of the epoch in hand. Returns false where the chain takes nothing more.
    #[must_use]
    pub fn frames(&self, epoch: EpochId, frames: Vec<u8>) -> bool {
        frames.is_empty() || self.orders.send(Order::Frames(epoch, frames)).is_ok()
    }

    /// The last frames of an epoch, and its end. As [`frames`](Self::frames).
    #[must_use]
    pub fn complete(&self, frames: Vec<u8>, complete: Complete, parent: Option<EpochKey>) -> bool {
        self.orders.send(Order::Complete(frames, Box::new(complete), parent)).is_ok()
    }

    /// The epoch in hand is none.
    #[must_use]
    pub fn abort(&self) -> bool {
        self.orders.send(Order::Abort).is_ok()
    }

    /// Waits until all is appended, and gives the chain back.
    ///
    /// # Errors
    /// Why it took nothing more.
    pub fn finish(self) -> Result<S, SinkError> {
        drop(self.orders);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn append<S: Sink>(
    mut sink: S,
    orders: &Receiver<Order>,
    on_durable: Option<&(dyn Fn(EpochKey, Option<EpochKey>) + Send)>,
) -> Result<S, SinkError> {
    let mut unsynced: Vec<(EpochKey, Option<EpochKey>)> = Vec::new();
    let mut since: Option<Instant> = None;
    let (group, together) = if on_durable.is_some() { (Duration::ZERO, Duration::ZERO) } else { (GROUP, TOGETHER) };
    loop {
        let order = match orders.try_recv() {
            Ok(order) => Ok(order),
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {
                std::thread::sleep(together);
                match since {
                    None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(since) => orders.recv_timeout(group.saturating_sub(since.elapsed())),
                }
            }
        };
        match order {
            Ok(Order::Frames(epoch, frames)) => sink.append(epoch, &frames)?,
            Ok(Order::Complete(frames, complete, parent)) => {
                sink.complete(&frames, &complete)?;
                unsynced.push((complete.head().into(), parent));
                since.get_or_insert_with(Instant::now);
            }
            Ok(Order::Abort) => sink.abort()?,
            Err(RecvTimeoutError::Timeout) => {
                sink.sync()?;
                since = None;
                if let Some(on_durable) = on_durable {
                    unsynced.iter().for_each(|(key, parent)| on_durable(*key, *parent));
                }
                unsynced.clear();
            }
            Err(RecvTimeoutError::Disconnected) => {
                sink.abort()?;
                return Ok(sink);
            }
        }
    }
}
