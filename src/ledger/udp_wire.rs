//! A wire through the host's own network.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use super::client::{Received, Wire, WireError};
use super::protocol::ANSWER_BYTES;

/// A socket that is connected to a server.
#[derive(Debug)]
pub struct UdpWire {
    socket: UdpSocket,
}

impl UdpWire {
    /// A wire to the server at `server`.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn new(server: SocketAddrV4) -> Result<Self, WireError> {
        let of = |step| move |source| WireError { step, source };
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(of("making a UDP socket"))?;
        socket.connect(server).map_err(of("connecting a UDP socket"))?;
        Ok(Self { socket })
    }
}

/// Whether a datagram was lost: nobody listens there now, or the host has no room or no way.
fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::Interrupted
    ) || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl Wire for UdpWire {
    fn reach(&mut self) -> Result<bool, WireError> {
        Ok(true)
    }

    fn send(&mut self, datagram: &[u8]) -> Result<(), WireError> {
        match self.socket.send(datagram) {
            Err(error) if !is_loss(&error) => Err(WireError { step: "sending a datagram", source: error }),
            _ => Ok(()),
        }
    }

    fn receive(&mut self, wait: Duration) -> Result<Received, WireError> {
        // Zero would be for ever.
        let wait = wait.max(Duration::from_micros(1));
        self.socket.set_read_timeout(Some(wait)).map_err(|source| WireError { step: "setting a timeout", source })?;
        // One byte more than an answer, so that a longer datagram is none.
        let mut bytes = [0; ANSWER_BYTES + 1];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Ok(Received::Datagram(bytes.get(..length).unwrap_or_default().to_vec())),
            Err(error) if is_loss(&error) => Ok(Received::Nothing),
            Err(source) => Err(WireError { step: "receiving a datagram", source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::ledger::{Load, LoadOptions, Request, Server, Verdict, run};

    #[test]
    fn a_server_behind_a_socket_answers() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let serving = thread::spawn(move || {
            let mut server = Server::default();
            let mut bytes = [0; 2048];
            while server.tally().count < 200 {
                let (length, from) = socket.recv_from(&mut bytes).unwrap();
                if let Some(answer) = Request::decode(&bytes[..length]).ok().and_then(|request| server.take(&request)) {
                    socket.send_to(&answer.encode(), from).unwrap();
                }
            }
        });
        let mut wire = UdpWire::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).unwrap();
        let options = LoadOptions { clients: 3, requests: Some(200), ..LoadOptions::default() };
        let outcome = run(&mut Load::new(options).unwrap(), &mut wire, &|| false).unwrap();
        serving.join().unwrap();
        assert_eq!((outcome.verdict, outcome.report.answered), (Verdict::Done, 200));
        // Now nobody is there: what the kernel says to that is a loss.
        wire.send(b"x").unwrap();
        assert_eq!(wire.receive(Duration::from_millis(1)).unwrap(), Received::Nothing);
        wire.send(b"x").unwrap();
    }
}
