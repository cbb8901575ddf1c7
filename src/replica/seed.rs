//! Keeping a standby at a machine that runs: connect, attach, give it a base, and again when it is
//! lost.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
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
use crate::store::causes;

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

/// What a standby is given.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The certificates.
    pub tls: Tls,
    /// What it is to follow, and how.
    pub followed: Followed,
}

/// Where a standby is wanted, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aim {
    /// Where one is wanted.
    pub wanted: Option<String>,
    /// Where the one listens that was attached last.
    pub attached: Option<String>,
    /// Why there is none where one is wanted.
    pub refused: Option<String>,
}

/// The thread that keeps a standby.
#[derive(Debug)]
pub struct Keeper {
    thread: JoinHandle<()>,
    ends: Arc<AtomicBool>,
    slot: LinkSlot,
    node: Arc<Node>,
    aim: Arc<Mutex<Aim>>,
}

/// A connection is tried again after this time.
const AGAIN: Duration = Duration::from_millis(250);
/// Steps of connecting end within this time.
const LIMIT: Duration = Duration::from_secs(2);
/// Until the engine is looked at again.
const LOOK: Duration = Duration::from_millis(2);

impl Keeper {
    /// Starts the thread, for the machine of `node` whose epochs `engine` makes, and whose standby
    /// listens at `address`; none until [`aim_at`](Self::aim_at) says where.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub fn start(node: Arc<Node>, engine: Arc<dyn Seeds>, wanted: Wanted, address: Option<String>) -> io::Result<Self> {
        let (ends, slot) = (Arc::new(AtomicBool::new(false)), LinkSlot::default());
        let aim = Arc::new(Mutex::new(Aim { wanted: address, ..Aim::default() }));
        let (of, at) = (node.clone(), aim.clone());
        let mut keeping = Keeping { node: of, engine, wanted, slot: slot.clone(), ends: ends.clone(), aim: at, sink: None };
        let thread = Builder::new().name("slackwater-seed".to_owned()).spawn(move || keeping.run())?;
        Ok(Self { thread, ends, slot, node, aim })
    }

    /// A standby is wanted at `address`, and not where one was wanted before; none: it has to go.
    pub fn aim_at(&self, address: Option<String>) {
        let mut aim = lock(&self.aim);
        if aim.wanted == address {
            return;
        }
        *aim = Aim { wanted: address, attached: aim.attached.clone(), refused: None };
        let goes = aim.attached != aim.wanted;
        drop(aim);
        if let Some(standby) = lock(&self.slot).as_ref().map(|link| link.standby()).filter(|_| goes) {
            self.node.lost(standby);
        }
    }

    /// Where a standby is wanted, and what came of it.
    #[must_use]
    pub fn aim(&self) -> Aim {
        lock(&self.aim).clone()
    }

    /// Ends the connections with this one: it is no standby any more.
    pub fn drop_standby(&self, who: Incarnation) {
        let mut slot = lock(&self.slot);
        if let Some(link) = slot.take_if(|link| link.standby() == who) {
            link.end();
            // Before the next one can be in the slot.
            self.node.sink_is_gone();
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
    aim: Arc<Mutex<Aim>>,
}

impl Keeping {
    fn is_over(&self) -> bool {
        self.ends.load(Ordering::Acquire) || self.engine.is_over() || self.node.is_over()
    }

    fn run(&mut self) {
        while !self.is_over() {
            let wanted = lock(&self.aim).wanted.clone();
            if let Some(address) = wanted.filter(|_| self.node.can_attach()) {
                match self.connect(&address) {
                    Ok(link) => {
                        self.tried(&address, None);
                        if let Err(error) = self.seed(&link) {
                            tracing::warn!(error = &*error as &dyn std::error::Error, "giving a standby its base");
                            self.node.lost(link.standby());
                        }
                    }
                    Err(error) => {
                        if self.tried(&address, Some(causes(&error))) {
                            tracing::warn!(error = &error as &dyn std::error::Error, "there is no standby");
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

    /// Notes what came of a try at `address`. Returns whether that is new.
    fn tried(&self, address: &str, refused: Option<String>) -> bool {
        let mut aim = lock(&self.aim);
        if aim.wanted.as_deref() != Some(address) {
            return false;
        }
        if refused.is_none() {
            aim.attached = Some(address.to_owned());
        }
        let is_new = aim.refused != refused;
        aim.refused = refused;
        is_new
    }

    fn connect(&self, address: &str) -> Result<Arc<Link>, LinkError> {
        let Wanted { tls, followed } = &self.wanted;
        let session = draw::number().map_err(|source| LinkError::Connect { address: address.to_owned(), source })?;
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
            // What is left of the base of one that is gone.
            self.engine.copy_base()?;
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
