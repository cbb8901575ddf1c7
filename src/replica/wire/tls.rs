//! TLS 1.3 with certificates of one CA on both sides.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConnection, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Connection, PeerIncompatible, RootCertStore, ServerConfig, version,
};

use super::names::{CA_FILE, CERT_FILE, KEY_FILE, NAME};
use super::tls_error::{TlsError, time};
use super::tls_stream::TlsStream;

/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the end that accepts says when it has verified the other one. In TLS 1.3 the end that
/// connects is done with the handshake before that, and could not tell that it is refused.
const VERIFIED: u8 = b'V';

/// This host's certificate, and the CA that the other end's has to be signed by.
///
/// Both ends verify each other's certificate: that the CA has signed it, for this purpose, and that
/// it holds now. The end that connects also verifies that it has the DNS name `slackwater`, which
/// every certificate has. Host names and addresses are not verified: who has a certificate of this
/// CA, with its key, is one of the two hosts. So the CA must sign for nobody else. There is TLS 1.3
/// only, and no session is resumed.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` of `dir`. `ca.pem` may have several certificates:
    /// each of them may have signed the other end's.
    ///
    /// # Errors
    /// A file that can't be read or has not what it should; a key that others may read, or of
    /// another certificate; a certificate that the other end would refuse.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let (ca_file, cert_file, key_file) = (dir.join(CA_FILE), dir.join(CERT_FILE), dir.join(KEY_FILE));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&ca_file)? {
            roots.add(certificate).map_err(|error| unusable(&ca_file, error))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&cert_file)?;
        let key = key(&key_file)?;

        let servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let servers = servers.build().map_err(|error| unusable(&ca_file, error))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let clients = clients.build().map_err(|error| unusable(&ca_file, error))?;
        verify_own(&chain, &*servers, &*clients).map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => own(error, &cert_file, &ca_file),
            error => unusable(&cert_file, error),
        })?;
        let (client, server) = configs(&provider, servers, clients, chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch { key: key_file, certificate: cert_file },
            error => unusable(&key_file, error),
        })?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// Does the handshake on a connection that this host has made. When it returns, both ends have
    /// verified each other. The socket blocks without a limit then, and sends small messages at
    /// once.
    ///
    /// # Errors
    /// The other end refuses this one or is refused, does not speak TLS 1.3, or is not done within
    /// `limit`, which is for all; the connection ended.
    pub fn connect(&self, stream: TcpStream, limit: Duration) -> Result<TlsStream, TlsError> {
        let deadline = Deadline::new(limit);
        let peer = prepare(&stream)?;
        let protocol = |error: rustls::Error| TlsError::Protocol { peer, source: Box::new(error) };
        let name = ServerName::try_from(NAME).map_err(|error| TlsError::Protocol { peer, source: Box::new(error) })?;
        let connection = ClientConnection::new(Arc::clone(&self.client), name).map_err(protocol)?;
        let mut tls = TlsStream::new(stream, peer, Connection::Client(connection));
        handshake(&mut tls, &deadline).map_err(|error| refusal(error, peer, limit))?;
        verified(&mut tls, &deadline).map_err(|error| refusal(error, peer, limit))?;
        settle(tls)
    }

    /// Does the handshake on a connection that the other end has made. What holds then is as for
    /// [`Tls::connect`].
    ///
    /// # Errors
    /// As of [`Tls::connect`].
    pub fn accept(&self, stream: TcpStream, limit: Duration) -> Result<TlsStream, TlsError> {
        let deadline = Deadline::new(limit);
        let peer = prepare(&stream)?;
        let connection = ServerConnection::new(Arc::clone(&self.server));
        let connection = connection.map_err(|error| TlsError::Protocol { peer, source: Box::new(error) })?;
        let mut tls = TlsStream::new(stream, peer, Connection::Server(connection));
        let done = handshake(&mut tls, &deadline).and_then(|()| {
            tls.queue(&[VERIFIED])?;
            handshake(&mut tls, &deadline)
        });
        done.map_err(|error| refusal(error, peer, limit))?;
        settle(tls)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn read(file: &Path, mut open: &File) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    open.by_ref().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

fn open(file: &Path) -> Result<File, TlsError> {
    File::open(file).map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

fn no_pem(file: &Path, what: &'static str, error: pem::Error) -> TlsError {
    let file = file.to_owned();
    match error {
        pem::Error::NoItemsFound => TlsError::Missing { file, what },
        error => TlsError::Pem { file, source: Box::new(error) },
    }
}

fn unusable(file: &Path, source: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Unusable { file: file.to_owned(), source: Box::new(source) }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(file, &open(file)?)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(no_pem(file, "certificate", pem::Error::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(error) => Err(no_pem(file, "certificate", error)),
    }
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let open = open(file)?;
    // Of the file that is open, which is the one that is read.
    let metadata = open.metadata().map_err(|source| TlsError::Read { file: file.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsError::KeyIsOpen { file: file.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&read(file, &open)?).map_err(|error| no_pem(file, "key", error))
}

/// What the other end will check, so that this end learns of it first.
fn verify_own(
    chain: &[CertificateDer<'static>],
    servers: &dyn ServerCertVerifier,
    clients: &dyn ClientCertVerifier,
) -> Result<(), rustls::Error> {
    let Some((own, others)) = chain.split_first() else { return Err(rustls::Error::NoCertificatesPresented) };
    let name = ServerName::try_from(NAME).map_err(|error| rustls::Error::General(error.to_string()))?;
    let now = UnixTime::now();
    servers.verify_server_cert(own, others, &name, &[], now)?;
    clients.verify_client_cert(own, others, now)?;
    Ok(())
}

/// What is wrong with this host's certificate.
fn own(error: CertificateError, certificate: &Path, ca: &Path) -> TlsError {
    let file = certificate.to_owned();
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            TlsError::NotOfCa { certificate: file, ca: ca.to_owned() }
        }
        CertificateError::ExpiredContext { not_after, .. } => TlsError::Expired { file, since: time(not_after.as_secs()) },
        CertificateError::NotValidYetContext { not_before, .. } => TlsError::NotYet { file, from: time(not_before.as_secs()) },
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => TlsError::OtherName { file },
        error => TlsError::Unusable { file, source: Box::new(rustls::Error::InvalidCertificate(error)) },
    }
}

fn configs(
    provider: &Arc<CryptoProvider>,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
    let versions = &[&version::TLS13];
    let mut client = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)?
        .with_webpki_verifier(servers)
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.resumption = Resumption::disabled();
    client.enable_early_data = false;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.max_early_data_size = 0;
    Ok((client, server))
}

/// Until when a handshake has to be done.
#[derive(Debug)]
struct Deadline {
    start: Instant,
    limit: Duration,
}

impl Deadline {
    fn new(limit: Duration) -> Self {
        Self { start: Instant::now(), limit }
    }

    /// Lets the next read and write of the socket wait for as long as is left.
    fn set(&self, socket: &TcpStream) -> io::Result<()> {
        let left = self.limit.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        socket.set_write_timeout(Some(left))
    }
}

fn prepare(stream: &TcpStream) -> Result<SocketAddr, TlsError> {
    let failed = |action| move |source| TlsError::Socket { action, source };
    stream.set_nonblocking(false).map_err(failed("set the mode"))?;
    stream.set_nodelay(true).map_err(failed("set TCP_NODELAY"))?;
    stream.peer_addr().map_err(failed("find the other end"))
}

fn settle(tls: TlsStream) -> Result<TlsStream, TlsError> {
    let set = tls.set_read_timeout(None).and_then(|()| tls.set_write_timeout(None));
    set.map_err(|source| TlsError::Socket { action: "take back the limit", source })?;
    Ok(tls)
}

/// Repeats a step until it gives something, each with the time that is left.
fn repeat<T>(
    tls: &mut TlsStream,
    deadline: &Deadline,
    mut step: impl FnMut(&mut TlsStream) -> io::Result<Option<T>>,
) -> io::Result<T> {
    loop {
        deadline.set(tls.socket())?;
        match step(tls) {
            Ok(Some(done)) => return Ok(done),
            Ok(None) => {}
            // The socket's clock is coarser: the deadline says whether the time is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn handshake(tls: &mut TlsStream, deadline: &Deadline) -> io::Result<()> {
    repeat(tls, deadline, |tls| Ok(tls.step()?.then_some(())))
}

/// Waits until the other end has verified this one.
fn verified(tls: &mut TlsStream, deadline: &Deadline) -> io::Result<()> {
    let mut said = [0];
    match repeat(tls, deadline, |tls| tls.read_once(&mut said))? {
        1 if said == [VERIFIED] => Ok(()),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it did not say that it has verified this end")),
    }
}

/// Why a handshake was not done.
fn refusal(error: io::Error, peer: SocketAddr, limit: Duration) -> TlsError {
    let protocol = |source| TlsError::Protocol { peer, source };
    let tls = match error.kind() {
        io::ErrorKind::TimedOut => return TlsError::TooLate { peer, limit },
        io::ErrorKind::InvalidData => match error.downcast::<rustls::Error>() {
            Ok(tls) => tls,
            Err(error) => return protocol(error.into()),
        },
        _ => return TlsError::Ended { peer, source: error },
    };
    match tls {
        rustls::Error::NoCertificatesPresented => TlsError::PeerGaveNone { peer },
        rustls::Error::InvalidCertificate(error) => of_peer(error, peer),
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::ProtocolVersion => TlsError::OtherVersion { peer },
            alert => match certificate_alert(alert) {
                Some(why) => TlsError::Refused { peer, why: why.to_owned() },
                None => protocol(rustls::Error::AlertReceived(alert).into()),
            },
        },
        rustls::Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => TlsError::OtherVersion { peer },
        error => protocol(error.into()),
    }
}

/// What is wrong with the other end's certificate.
fn of_peer(error: CertificateError, peer: SocketAddr) -> TlsError {
    match error {
        // Of a CA with the same name and another key it is the signature that does not fit.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsError::PeerNotOfCa { peer },
        CertificateError::ExpiredContext { not_after, .. } => TlsError::PeerExpired { peer, since: time(not_after.as_secs()) },
        CertificateError::NotValidYetContext { not_before, .. } => {
            TlsError::PeerNotYet { peer, from: time(not_before.as_secs()) }
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => TlsError::PeerOtherName { peer },
        error => TlsError::PeerUnusable { peer, source: Box::new(rustls::Error::InvalidCertificate(error)) },
    }
}

/// What an alert says of a certificate.
const fn certificate_alert(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::UnknownCA => "it is not signed by the other end's CA",
        // Of a CA with the same name and another key.
        AlertDescription::DecryptError => "its signature is not by the other end's CA",
        AlertDescription::CertificateExpired => "it has expired, or does not hold yet",
        AlertDescription::CertificateRequired => "none was given",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => "it can't be used",
        _ => return None,
    })
}
