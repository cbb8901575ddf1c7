//! Keeping a standby at a machine that runs: connect, attach, give it a base, and again when it is
//! lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::draw;
use super::follower::{Follower, LinkSlot};
use super::link::{Link, LinkError};
use super::node::Node;
use super::register::{Incarnation, Nonce};
use super::wire::Tls;
use super::wire::hello::Followed;
use crate::epoch::Sink;
use crate::format::ChainId;
use crate::lock::lock;

/// Why an engine does not do as asked.
pub type SeedError = Box<dyn std::error::Error + Send + Sync>;

/// What seeding needs of whoever runs an engine. Each call locks it for a moment.
pub trait Seeds: Send + Sync {
    /// Takes a sink more ([`Engine::attach`](crate::epoch::Engine::attach)).
    ///
    /// # Errors
    /// What the engine says.
    fn attach(&self, sink: Box<dyn Sink>) -> Result<usize, SeedError>;

    /// Has a sink join ([`Engine::join`](crate::epoch::Engine::join)). Returns false where another
    /// base is being copied.
    ///
    /// # Errors
    /// What the engine says.
    fn join(&self, sink: usize) -> Result<bool, SeedError>;

    /// Copies a part of a base ([`Engine::copy_base`](crate::epoch::Engine::copy_base)).
    ///
    /// # Errors
    /// What the engine says.
    fn copy_base(&self) -> Result<bool, SeedError>;

    /// Whether the guest is halted.
    fn is_over(&self) -> bool;
}

/// A standby that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where it listens.
    pub address: String,
    /// The certificates.
    pub tls: Tls,
    /// What it is to follow, and how.
    pub followed: Followed,
}

/// The thread that keeps a standby.
#[derive(Debug)]
pub struct Keeper {
    thread: JoinHandle<()>,
    ends: Arc<AtomicBool>,
    slot: LinkSlot,
}

/// A connection is tried again after this time.
const AGAIN: Duration = Duration::from_millis(250);
/// Steps of connecting end within this time.
const LIMIT: Duration = Duration::from_secs(2);
/// Until the engine is looked at again.
const LOOK: Duration = Duration::from_millis(2);

impl Keeper {
    /// Starts the thread, for the machine of `node` whose epochs `engine` makes.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub fn start(node: Arc<Node>, engine: Arc<dyn Seeds>, wanted: Wanted) -> io::Result<Self> {
        let (ends, slot) = (Arc::new(AtomicBool::new(false)), LinkSlot::default());
        let mut keeping = Keeping { node, engine, wanted, slot: slot.clone(), ends: ends.clone(), sink: None, refused: None };
        let thread = Builder::new().name("slackwater-seed".to_owned()).spawn(move || keeping.run())?;
        Ok(Self { thread, ends, slot })
    }

    /// Ends the connections with this one: it is no standby any more.
    pub fn drop_standby(&self, who: Incarnation) {
        if let Some(link) = lock(&self.slot).take_if(|link| link.standby() == who) {
            link.end();
        }
    }

    /// Ends the thread, and the connections.
    pub fn end(self) {
        self.ends.store(true, Ordering::Release);
        if let Some(link) = lock(&self.slot).take() {
            link.end();
        }
        if self.thread.join().is_err() {
            tracing::error!("the thread that keeps a standby panicked");
        }
    }
}

struct Keeping {
    node: Arc<Node>,
    engine: Arc<dyn Seeds>,
    wanted: Wanted,
    slot: LinkSlot,
    ends: Arc<AtomicBool>,
    /// The number of the sink that the standby is.
    sink: Option<usize>,
    /// What was said of the last try, so that it is said once.
    refused: Option<String>,
}

impl Keeping {
    fn is_over(&self) -> bool {
        self.ends.load(Ordering::Acquire) || self.engine.is_over() || self.node.is_over()
    }

    fn run(&mut self) {
        while !self.is_over() {
            if self.node.can_attach() {
                match self.connect() {
                    Ok(link) => {
                        self.refused = None;
                        if let Err(error) = self.seed(&link) {
                            tracing::warn!(error = &*error as &dyn std::error::Error, "giving a standby its base");
                            self.node.lost(link.standby());
                        }
                    }
                    Err(error) => {
                        let text = error.to_string();
                        if self.refused.as_ref() != Some(&text) {
                            tracing::warn!(error = &error as &dyn std::error::Error, "there is no standby");
                            self.refused = Some(text);
                        }
                    }
                }
            }
            self.pause(AGAIN);
        }
    }

    /// Waits, but not beyond the end.
    fn pause(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() && !self.is_over() {
            let step = left.min(Duration::from_millis(20));
            std::thread::sleep(step);
            left = left.saturating_sub(step);
        }
    }

    fn connect(&self) -> Result<Arc<Link>, LinkError> {
        let Wanted { address, tls, followed } = &self.wanted;
        let session = draw::number().map_err(|source| LinkError::Connect { address: address.clone(), source })?;
        Link::connect(&self.node, tls, address, (Nonce(session), followed.clone()), LIMIT).map(Arc::new)
    }

    /// Has the standby join over the link, and copies its base.
    fn seed(&mut self, link: &Arc<Link>) -> Result<(), SeedError> {
        *lock(&self.slot) = Some(link.clone());
        let sink = match self.sink {
            Some(sink) => sink,
            None => {
                let chain: ChainId = self.wanted.followed.description.chain;
                let follower = Follower::new(chain, self.node.clone(), self.slot.clone());
                *self.sink.insert(self.engine.attach(Box::new(follower))?)
            }
        };
        while !self.engine.join(sink)? {
            if self.is_over() {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        tracing::info!(standby = %link.standby(), "a standby gets its base");
        while !self.is_over() && self.node.has_standby(link.standby()) {
            if !self.engine.copy_base()? {
                break;
            }
            // The guest and its cuts have the engine in between.
            std::thread::yield_now();
        }
        Ok(())
    }
}
