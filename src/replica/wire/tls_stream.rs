//! A connection whose handshake is done.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{self, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::Connection;

/// The most bytes of records that are made before they are sent: a few calls of the system for
/// 1 MiB, in memory that the cache has.
const OUTGOING_BYTES_MAX: usize = 256 << 10;

/// What is read from the socket at once. rustls asks for 4 KiB at a time.
const INCOMING_BYTES: usize = 128 << 10;

/// A connection that both ends have authenticated.
///
/// It blocks. Errors of a limit that [`TlsStream::set_read_timeout`] set are
/// [`io::ErrorKind::WouldBlock`], as those of a [`TcpStream`].
///
/// **The end**: a read gives 0 only if the other end called [`TlsStream::close`]. A connection that
/// ends without it is an error, [`io::ErrorKind::UnexpectedEof`]. A stream that is dropped ends
/// like that.
///
/// **Writes**: what a write took has been given to the socket when [`Write::flush`] returns, and
/// waits until then. Memory is bounded, whatever the length of a write: where too much waits, it is
/// sent before more is taken.
pub struct TlsStream {
    connection: Connection,
    incoming: BufReader<Socket>,
    peer: SocketAddr,
}

/// Ends a connection from any thread: reads and writes that block return at once, with an error.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<TcpStream>);

/// One descriptor, however many hold it.
#[derive(Debug)]
struct Socket(Arc<TcpStream>);

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

impl Shutdown {
    /// Ends the connection. It may have ended before.
    pub fn shutdown(&self) {
        // It fails only where there is no connection any more.
        let _ = self.0.shutdown(net::Shutdown::Both);
    }
}

impl TlsStream {
    /// One whose handshake is to be done.
    pub(super) fn new(socket: TcpStream, peer: SocketAddr, mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(OUTGOING_BYTES_MAX));
        let incoming = BufReader::with_capacity(INCOMING_BYTES, Socket(Arc::new(socket)));
        Self { connection, incoming, peer }
    }

    /// Does one step of the handshake, which may be a part of one: an error is what a read or write
    /// of the socket, or TLS, says. Whether the handshake is done.
    pub(super) fn step(&mut self) -> io::Result<bool> {
        if self.connection.wants_write() {
            self.send_some()?;
        } else if self.connection.is_handshaking() {
            self.receive()?;
        }
        Ok(!self.connection.is_handshaking() && !self.connection.wants_write())
    }

    /// As [`Read::read`], with one read of the socket at most: none if that brought nothing whole.
    pub(super) fn read_once(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self.connection.reader().read(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.receive()?;
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Takes data for sending without sending it: what [`TlsStream::step`] does.
    pub(super) fn queue(&mut self, data: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(data)
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.incoming.get_ref().0
    }

    /// The other end's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// What ends this connection from another thread.
    #[must_use]
    pub fn shutdown_handle(&self) -> Shutdown {
        Shutdown(Arc::clone(&self.incoming.get_ref().0))
    }

    /// The longest that a read waits for the socket; none for as long as it takes.
    ///
    /// # Errors
    /// As [`TcpStream::set_read_timeout`]'s: a limit of 0.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket().set_read_timeout(limit)
    }

    /// The longest that a write waits for the socket each time that it is full; none for as long as
    /// it takes.
    ///
    /// # Errors
    /// As [`TcpStream::set_write_timeout`]'s: a limit of 0.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket().set_write_timeout(limit)
    }

    /// Sends what was written, and says that nothing follows: the other end reads an end, and no
    /// error. It may not have read it when this returns.
    ///
    /// # Errors
    /// The socket's.
    pub fn close(mut self) -> io::Result<()> {
        self.flush()?;
        self.connection.send_close_notify();
        self.send()
    }

    /// Gives the socket some of the records that are made.
    fn send_some(&mut self) -> io::Result<()> {
        match self.connection.write_tls(&mut &*self.incoming.get_ref().0) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives the socket all records that are made.
    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.send_some()?;
        }
        Ok(())
    }

    /// Reads from the socket once, and decrypts. An end is seen at the next read of data, or is an
    /// error during the handshake.
    fn receive(&mut self) -> io::Result<()> {
        match self.connection.read_tls(&mut self.incoming) {
            Ok(0) if self.connection.is_handshaking() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Err(error) = self.connection.process_new_packets() {
            // It says to the other end what is wrong, if that can still be said.
            let _ = self.send();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if !self.connection.is_handshaking() {
            // The answer to new keys.
            self.send()?;
        }
        Ok(())
    }
}

impl Read for TlsStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(len) = self.read_once(buf)? {
                return Ok(len);
            }
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = self.connection.writer().write(buf)?;
        if len > 0 || buf.is_empty() {
            return Ok(len);
        }
        self.send()?;
        self.connection.writer().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // A `Shutdown` may hold the descriptor for longer than this. What was sent still arrives.
        self.shutdown_handle().shutdown();
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}
