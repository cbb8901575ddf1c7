//! A host that waits for a primary, follows it, and takes over.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::following::Following;
use super::image::Image;
use super::incoming::Incoming;
use super::inherited::Inherited;
use super::own_chain::{OnDurable, OwnChain};
use crate::epoch::{MarksRelay, Sink};
use crate::format::Description;
use crate::replica::draw;
use crate::replica::link::{hear, say};
use crate::replica::node::Node;
use crate::replica::node_status::Role;
use crate::replica::proto::{Halted, Message, Record, Standby, StandbyOptions, StandbyRole, Timing};
use crate::replica::realtime::{Preferred, prefer_this_thread};
use crate::replica::record_file::write_record;
use crate::replica::register::{Generation, Incarnation, Nonce, Register};
use crate::replica::wire::hello::{Channel, Followed, Hello, WIRE_VERSION, Welcome, read_first, write_first};
use crate::replica::wire::{Shutdown, Tls, TlsStream};
use crate::replica::wishes::Wish;
use crate::store::causes;

/// Messages that wait for the connection. More are lost.
const WORDS_MOST: usize = 64;
/// Connections whose first words have not come, at once.
const GREETED_MOST: usize = 16;
/// A connection's first words come within this time.
const GREETING: Duration = Duration::from_secs(2);

/// Why a host can't follow a machine.
pub type PlaceError = Box<dyn std::error::Error + Send + Sync>;

/// Makes what a host needs to follow the machine of this description.
pub type MakePlace<'p, I, S> = dyn FnMut(&Description) -> Result<Place<I, S>, PlaceError> + 'p;

/// What a host makes for a machine that it is to follow.
pub struct Place<I, S> {
    /// Its memory, all zeros.
    pub image: I,
    /// Its chain, empty, of the same identifier.
    pub chain: S,
    /// Where the chain is: for the record.
    pub store: PathBuf,
}

impl<I, S> std::fmt::Debug for Place<I, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("store", &self.store).finish_non_exhaustive()
    }
}

/// A standby that has the machine.
#[derive(Debug)]
pub struct Takeover<I, S> {
    /// Its memory and state.
    pub incoming: Incoming<I>,
    /// Its chain, with the same newest epoch.
    pub chain: Inherited<S>,
    /// What it followed.
    pub followed: Followed,
    /// When the last message of the primary came.
    pub heard_at: Instant,
    /// When it was found that the primary is silent, and the witness asked.
    pub asked_at: Instant,
    /// When the witness's answer was there.
    pub won_at: Instant,
    /// To be dropped when the guest runs: until then this thread goes before others.
    pub preferred: Preferred,
}

/// Why a standby ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address can't be listened at.
    #[error("listening for a primary")]
    Listen(#[source] io::Error),
    /// A thread can't be started.
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    /// The witness has forgotten something.
    #[error("{0}")]
    Witness(Box<Halted>),
    /// Its memory is not what it should be although it was to take over.
    #[error("the machine that was to be taken over is not whole")]
    Torn(#[source] Box<dyn std::error::Error + Send + Sync>),
}

enum Event {
    Came(Box<(Hello, TlsStream)>),
    Wish(Wish),
}

/// What follows one primary.
struct Session<I, S> {
    number: Nonce,
    me: Incarnation,
    followed: Followed,
    data: JoinHandle<(Incoming<I>, OwnChain<S>)>,
    /// What its chain tells.
    marks: MarksRelay,
    words: Option<Receiver<Message>>,
    ends: Vec<Shutdown>,
}

/// A host that listens.
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    events: Receiver<Event>,
    address: SocketAddr,
}

impl Server {
    /// Listens at `address`, with the certificates of `tls`, for the node that is to follow.
    ///
    /// # Errors
    /// [`ServeError::Listen`], [`ServeError::Thread`].
    pub fn listen(node: Arc<Node>, tls: Tls, address: &str) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(address).map_err(ServeError::Listen)?;
        let address = listener.local_addr().map_err(ServeError::Listen)?;
        let (events, told) = sync_channel(GREETED_MOST);
        let accepted = events.clone();
        let accepts = move || accept(&listener, &tls, &accepted);
        Builder::new().name("slackwater-accept".to_owned()).spawn(accepts).map_err(ServeError::Thread)?;
        let of = node.clone();
        let wishes = move || {
            prefer_this_thread();
            while !of.is_over() {
                let Some(wish) = of.wait(Duration::from_millis(200)) else { continue };
                // What is wanted of the primary that it is then is for somebody else.
                let is_last = wish == Wish::Run;
                if events.send(Event::Wish(wish)).is_err() || is_last {
                    break;
                }
            }
        };
        Builder::new().name("slackwater-wish".to_owned()).spawn(wishes).map_err(ServeError::Thread)?;
        Ok(Self { node, events: told, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Follows whatever primary comes, in memory and chain that `place` makes, until it has the
    /// machine: `None` where it was ended before.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve<I: Image + 'static, S: Sink + 'static>(
        &self,
        place: &mut MakePlace<'_, I, S>,
    ) -> Result<Option<Takeover<I, S>>, ServeError> {
        let mut session: Option<Session<I, S>> = None;
        while !self.node.is_over() {
            // What a takeover needs is done before all else on a busy host, and nothing more is.
            let preferred = Preferred::begin();
            let event = match self.events.recv_timeout(Duration::from_millis(100)) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            match event {
                Event::Came(came) => {
                    drop(preferred);
                    let (hello, stream) = *came;
                    if hello.channel == Channel::Epochs {
                        self.epochs(&mut session, hello, stream, place)?;
                    } else {
                        self.further(session.as_mut(), &hello, stream);
                    }
                }
                Event::Wish(Wish::Run) => {
                    let won_at = Instant::now();
                    let (heard_at, asked_at) = (self.node.heard_at(), self.node.asked_at());
                    let Some(session) = session.take() else { continue };
                    return self.take_over(session, (heard_at, asked_at, won_at), preferred).map(Some);
                }
                Event::Wish(Wish::Drop(_)) => {
                    drop(preferred);
                    if let Some(session) = session.take() {
                        tracing::info!("the primary goes on without this standby");
                        discard(session);
                    }
                    self.node.become_nobody();
                }
                Event::Wish(Wish::Halt(why)) => return Err(ServeError::Witness(Box::new(why))),
                Event::Wish(Wish::Park) => {}
            }
        }
        if let Some(session) = session {
            discard(session);
        }
        Ok(None)
    }

    /// A primary comes.
    fn epochs<I: Image + 'static, S: Sink + 'static>(
        &self,
        session: &mut Option<Session<I, S>>,
        hello: Hello,
        mut stream: TlsStream,
        place: &mut MakePlace<'_, I, S>,
    ) -> Result<(), ServeError> {
        let Hello { session: number, from, register, machine, .. } = hello;
        let known = self.node.register();
        if let Some(reason) = self.refuses(register, known) {
            refuse(&mut stream, reason, known);
            return Ok(());
        }
        let Some(followed) = machine else {
            refuse(&mut stream, "the first connection says what is to be followed".to_owned(), known);
            return Ok(());
        };
        if let Some(old) = session.take() {
            discard(old);
        }
        self.node.become_nobody();
        let Place { image, mut chain, store } = match place(&followed.description) {
            Ok(place) => place,
            Err(error) => {
                tracing::warn!(error = &*error as &dyn std::error::Error, "a primary is refused");
                refuse(&mut stream, causes(&*error), known);
                return Ok(());
            }
        };
        let me = Incarnation(draw::number().map_err(ServeError::Listen)?);
        let record = Record { names: vec![me], generation: register.generation, covers: false };
        if let Err(error) = write_record(&store, &record) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a primary is refused");
            refuse(&mut stream, causes(&error), known);
            return Ok(());
        }
        let marks = MarksRelay::default();
        chain.start(marks.marks());
        let Followed { holds_on_disk, pages_most, .. } = followed;
        let node = self.node.clone();
        let on_durable: Option<OnDurable> = holds_on_disk.then(|| {
            Box::new(move |key, parent| {
                let _ = node.holds(me, key, parent);
            }) as OnDurable
        });
        let own = OwnChain::start(chain, on_durable).map_err(ServeError::Thread)?;
        let (send, words) = sync_channel(WORDS_MOST);
        let timing = Timing::new(followed.heartbeat(), followed.timeout());
        let options = StandbyOptions { timing, has_chain: true, holds_on_disk };
        self.node.become_standby(Some(store), send, |now| {
            Standby::join(me, options, (from, register), Some(record), Box::new(draw::another), now)
        });
        let welcome = Welcome { version: WIRE_VERSION, standby: Some(me), refused: None, register: known };
        let greeted = stream.set_read_timeout(None).and_then(|()| write_first(&mut stream, &welcome));
        if let Err(error) = greeted {
            tracing::info!(%error, "a primary was gone before it was welcome");
        }
        let ends = vec![stream.shutdown_handle()];
        let incoming = Incoming::new(followed.description.chain, image, pages_most).keeping_frames();
        let node = self.node.clone();
        let follows = move || Following::new(incoming, own, (&node, me), holds_on_disk).run(stream);
        let data = Builder::new().name("slackwater-follow".to_owned()).spawn(follows).map_err(ServeError::Thread)?;
        tracing::info!(standby = %me, primary = %from, "following");
        *session = Some(Session { number, me, followed, data, marks, words: Some(words), ends });
        Ok(())
    }

    /// Why a primary that comes is not followed.
    fn refuses(&self, register: Register, known: Option<Register>) -> Option<String> {
        let generation = known.map_or(Generation::NONE, |known| known.generation);
        if register.generation < generation {
            return Some(format!("generation {} is over: {generation} goes on", register.generation));
        }
        match self.node.role() {
            Role::Nobody | Role::Standby(StandbyRole::Joining | StandbyRole::Stale) => None,
            _ if register.generation > generation => None,
            Role::Standby(_) | Role::Primary(_) => Some("it follows another primary, or runs a machine".to_owned()),
        }
    }

    /// A further connection of the primary that is followed.
    fn further<I, S>(&self, session: Option<&mut Session<I, S>>, hello: &Hello, mut stream: TlsStream) {
        let known = self.node.register();
        let Some(session) = session.filter(|session| session.number == hello.session) else {
            return refuse(&mut stream, "there is no such session".to_owned(), known);
        };
        let welcome = Welcome { version: WIRE_VERSION, standby: Some(session.me), refused: None, register: known };
        if stream.set_read_timeout(None).and_then(|()| write_first(&mut stream, &welcome)).is_err() {
            return;
        }
        session.ends.push(stream.shutdown_handle());
        let started = match (hello.channel, session.words.take()) {
            (Channel::Answers, Some(words)) => {
                Builder::new().name("slackwater-say".to_owned()).spawn(move || say(&mut stream, &words))
            }
            (_, words) => {
                session.words = words;
                let node = self.node.clone();
                Builder::new().name("slackwater-hear".to_owned()).spawn(move || {
                    if let Err(error) = hear(&mut stream, &|message| node.heard(message)) {
                        tracing::debug!(%error, "the primary's messages ended");
                    }
                })
            }
        };
        if let Err(error) = started {
            tracing::warn!(%error, "starting a thread");
        }
    }

    fn take_over<I: Image, S: Sink + 'static>(
        &self,
        session: Session<I, S>,
        (heard_at, asked_at, won_at): (Instant, Instant, Instant),
        preferred: Preferred,
    ) -> Result<Takeover<I, S>, ServeError> {
        let (followed, marks) = (session.followed.clone(), session.marks.clone());
        let (incoming, own) = end(session);
        tracing::debug!(took = ?won_at.elapsed(), "the stream has ended");
        let head = incoming.head().ok_or_else(|| ServeError::Torn("it has no whole epoch".into()))?;
        let chain = Inherited::begin(own, marks, (incoming.chain(), head)).map_err(ServeError::Thread)?;
        Ok(Takeover { incoming, chain, followed, heard_at, asked_at, won_at, preferred })
    }
}

/// Ends the connections, and waits for what was under way.
fn end<I, S>(session: Session<I, S>) -> (Incoming<I>, OwnChain<S>) {
    session.ends.iter().for_each(Shutdown::shutdown);
    session.data.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The same, and closes the chain, which is about to be set aside: nobody may work at it then.
fn discard<I, S: Sink + 'static>(session: Session<I, S>) {
    let (_, own) = end(session);
    if let Err(error) = own.finish() {
        tracing::info!(error = &error as &dyn std::error::Error, "closing a chain that is not needed any more");
    }
}

fn refuse(stream: &mut TlsStream, reason: String, register: Option<Register>) {
    let welcome = Welcome { version: WIRE_VERSION, standby: None, refused: Some(reason), register };
    if let Err(error) = write_first(stream, &welcome) {
        tracing::debug!(%error, "a connection that was refused is gone");
    }
}

/// Takes connections, each on a thread of its own until its first words are there.
fn accept(listener: &TcpListener, tls: &Tls, events: &SyncSender<Event>) {
    let (free, taken): (Sender<()>, Receiver<()>) = channel();
    for _ in 0..GREETED_MOST {
        let _ = free.send(());
    }
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "taking a connection");
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
        };
        if taken.recv().is_err() {
            break;
        }
        let (tls, events, free) = (tls.clone(), events.clone(), free.clone());
        let greets = move || {
            match greet(&tls, stream) {
                Ok((hello, stream)) => {
                    let _ = events.send(Event::Came(Box::new((hello, stream))));
                }
                Err(error) => tracing::warn!(error = &*error as &dyn std::error::Error, "a connection is refused"),
            }
            let _ = free.send(());
        };
        if let Err(error) = Builder::new().name("slackwater-greet".to_owned()).spawn(greets) {
            tracing::warn!(%error, "starting a thread");
        }
    }
}

fn greet(tls: &Tls, stream: TcpStream) -> Result<(Hello, TlsStream), Box<dyn std::error::Error + Send + Sync>> {
    let mut stream = tls.accept(stream, GREETING)?;
    stream.set_read_timeout(Some(GREETING))?;
    let hello: Hello = read_first(&mut stream)?;
    if hello.version != WIRE_VERSION {
        let reason = format!("this is version {WIRE_VERSION} of the protocol");
        refuse(&mut stream, reason.clone(), None);
        return Err(format!("{}, and the other end speaks version {}", reason, hello.version).into());
    }
    Ok((hello, stream))
}
