//! The primary's connections to its standby.

use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

use super::node::Node;
use super::proto::Message;
use super::realtime::prefer_this_thread;
use super::register::{Incarnation, Nonce};
use super::wire::envelope::{ENVELOPE_BYTES_MAX, Kind, read_envelope, write_envelope};
use super::wire::hello::{Channel, Followed, Hello, WIRE_VERSION, Welcome, read_first, write_first};
use super::wire::word::{decode_word, encode_word};
use super::wire::{Shutdown, Tls, TlsError, TlsStream};
use crate::lock::lock;

/// Messages that wait for the connection. More are lost.
const WORDS_MOST: usize = 64;

/// Why there is no connection to a standby.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The address leads nowhere.
    #[error("connecting to the standby at {address}")]
    Connect {
        /// The address.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The other end is not who it should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The other end does not speak as expected.
    #[error("the standby at {address}")]
    Words {
        /// The address.
        address: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The standby refuses.
    #[error("the standby at {address} refuses: {reason}")]
    Refused {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// There is another one, or this machine is no primary that can have one.
    #[error("the machine takes no standby now")]
    Busy,
}

/// Connections to one standby. Dropping it ends them.
#[derive(Debug)]
pub struct Link {
    standby: Incarnation,
    epochs: Mutex<TlsStream>,
    ends: Vec<Shutdown>,
}

impl Link {
    /// Connects to the standby at `address` and attaches it to the machine of `node`. Each step
    /// ends within `limit`.
    ///
    /// # Errors
    /// [`LinkError`]; nothing was attached then.
    pub fn connect(
        node: &Arc<Node>,
        tls: &Tls,
        address: &str,
        (session, followed): (Nonce, Followed),
        limit: Duration,
    ) -> Result<Self, LinkError> {
        let words_failed = |source| LinkError::Words { address: address.to_owned(), source };
        let (Some(from), Some(register)) = (node.me(), node.register()) else { return Err(LinkError::Busy) };
        let hello = |channel, machine| Hello { version: WIRE_VERSION, channel, session, from, register, machine };
        let mut epochs = open(tls, address, limit)?;
        let (welcome, standby) = greet(&mut epochs, address, &hello(Channel::Epochs, Some(followed)), limit)?;
        if let Some(register) = welcome.register {
            tracing::debug!(?register, "the standby knows");
        }
        let mut words = open(tls, address, limit)?;
        greet(&mut words, address, &hello(Channel::Words, None), limit)?;
        let mut answers = open(tls, address, limit)?;
        greet(&mut answers, address, &hello(Channel::Answers, None), limit)?;
        let ends = [&epochs, &words, &answers].map(TlsStream::shutdown_handle).to_vec();
        let (send, sent) = sync_channel(WORDS_MOST);
        if !node.attach(standby, send) {
            return Err(LinkError::Busy);
        }
        let (of, end) = (node.clone(), ends.clone());
        let told = move || {
            if let Err(error) = hear(&mut answers, &|message| of.heard(message)) {
                tracing::debug!(%error, "the standby's messages ended");
            }
            // Nothing more is heard. The heartbeat decides what that means.
            end.iter().for_each(Shutdown::shutdown);
        };
        let link = Self { standby, epochs: Mutex::new(epochs), ends };
        Builder::new().name("slackwater-hear".to_owned()).spawn(told).map_err(words_failed)?;
        let says = move || say(&mut words, &sent);
        Builder::new().name("slackwater-say".to_owned()).spawn(says).map_err(words_failed)?;
        Ok(link)
    }

    /// Who it leads to.
    #[must_use]
    pub const fn standby(&self) -> Incarnation {
        self.standby
    }

    /// Sends frames of an epoch.
    ///
    /// # Errors
    /// The connection's. Nothing more can be sent then.
    pub fn part(&self, frames: &[u8]) -> io::Result<()> {
        let mut epochs = lock(&self.epochs);
        write_parts(&mut *epochs, frames)?;
        epochs.flush()
    }

    /// Sends the last frames of an epoch, and its commit frame.
    ///
    /// # Errors
    /// As [`part`](Self::part).
    pub fn complete(&self, frames: &[u8], commit: &[u8]) -> io::Result<()> {
        let mut epochs = lock(&self.epochs);
        if frames.len() + commit.len() <= ENVELOPE_BYTES_MAX {
            // The other end takes all of it in one go.
            write_envelope(&mut *epochs, Kind::Complete, &[frames, commit])?;
        } else {
            write_parts(&mut *epochs, frames)?;
            write_envelope(&mut *epochs, Kind::Complete, &[commit])?;
        }
        epochs.flush()
    }

    /// What was sent of the epoch in hand is to be forgotten.
    ///
    /// # Errors
    /// As [`part`](Self::part).
    pub fn abort(&self) -> io::Result<()> {
        let mut epochs = lock(&self.epochs);
        write_envelope(&mut *epochs, Kind::Abort, &[])?;
        epochs.flush()
    }

    /// Ends the connections: whoever reads or writes them comes back.
    pub fn end(&self) {
        self.ends.iter().for_each(Shutdown::shutdown);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end();
    }
}

fn write_parts(to: &mut impl Write, frames: &[u8]) -> io::Result<()> {
    frames.chunks(ENVELOPE_BYTES_MAX).try_for_each(|chunk| write_envelope(to, Kind::Part, &[chunk]))
}

fn open(tls: &Tls, address: &str, limit: Duration) -> Result<TlsStream, LinkError> {
    let failed = |source| LinkError::Connect { address: address.to_owned(), source };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for place in address.to_socket_addrs().map_err(failed)? {
        match TcpStream::connect_timeout(&place, limit) {
            Ok(stream) => return Ok(tls.connect(stream, limit)?),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn greet(stream: &mut TlsStream, address: &str, hello: &Hello, limit: Duration) -> Result<(Welcome, Incarnation), LinkError> {
    let mut exchange = || {
        stream.set_read_timeout(Some(limit))?;
        write_first(stream, hello)?;
        let welcome: Welcome = read_first(stream)?;
        stream.set_read_timeout(None)?;
        Ok(welcome)
    };
    let welcome = exchange().map_err(|source| LinkError::Words { address: address.to_owned(), source })?;
    let other = || format!("it speaks version {} of the protocol, and this is {WIRE_VERSION}", welcome.version);
    match welcome.standby.filter(|_| welcome.version == WIRE_VERSION) {
        Some(standby) => Ok((welcome, standby)),
        None => {
            let reason = welcome.refused.clone().unwrap_or_else(other);
            Err(LinkError::Refused { address: address.to_owned(), reason })
        }
    }
}

/// Writes messages until nobody has one any more, or the connection ends. Of those that wait, only
/// the ones that matter.
pub(super) fn say(to: &mut (impl Write + ?Sized), words: &Receiver<Message>) {
    prefer_this_thread();
    let mut next = None;
    while let Some(mut message) = next.take().or_else(|| words.recv().ok()) {
        while let Ok(later) = words.try_recv() {
            if !later.replaces(&message) {
                next = Some(later);
                break;
            }
            message = later;
        }
        if write_envelope(to, Kind::Word, &[&encode_word(&message)]).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
}

/// Reads messages until the connection ends.
pub(super) fn hear(from: &mut TlsStream, heard: &dyn Fn(&Message)) -> io::Result<()> {
    prefer_this_thread();
    let mut bytes = Vec::new();
    loop {
        let kind = read_envelope(from, &mut bytes)?;
        let message = decode_word(&bytes).filter(|_| kind == Kind::Word);
        let message = message.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no message: {kind:?}")))?;
        heard(&message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::EpochId;
    use crate::replica::proto::{Body, EpochKey};
    use crate::replica::register::{Generation, Holder, Register};

    #[test]
    fn of_messages_that_wait_only_those_are_written_that_say_more_than_a_later_one() {
        let register = |generation| Register {
            generation: Generation(generation),
            holder: Holder::Paired(Incarnation(1), Incarnation(2)),
            nonce: Nonce(generation.into()),
        };
        let message =
            |generation, body| Message { from: Incarnation(2), to: Incarnation(1), register: register(generation), body };
        let holds = |epoch| Body::Holds(EpochKey { epoch: EpochId(epoch), identity: epoch.into() });
        let all =
            [(1, Body::Beat), (1, holds(1)), (1, holds(2)), (1, Body::Beat), (1, Body::Beat), (2, Body::Beat), (2, holds(3))];
        let (send, words) = sync_channel(WORDS_MOST);
        all.into_iter().for_each(|(generation, body)| send.send(message(generation, body)).unwrap());
        drop(send);
        let mut wire = Vec::new();
        say(&mut wire, &words);
        let (mut from, mut bytes, mut said) = (&wire[..], Vec::new(), Vec::new());
        while read_envelope(&mut from, &mut bytes).is_ok() {
            said.push(decode_word(&bytes).unwrap());
        }
        assert_eq!(said, [(1, holds(2)), (1, Body::Beat), (2, holds(3))].map(|(generation, body)| message(generation, body)));
    }
}
