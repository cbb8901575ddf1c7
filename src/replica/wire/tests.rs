//! Two ends in one process, and ends that do not do what they should.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion, version};
use tempfile::TempDir;

use super::*;

/// Longer than any handshake here takes, on whatever machine.
const LONG: Duration = Duration::from_secs(60);

/// What ends a handshake that nobody does.
const SHORT: Duration = Duration::from_millis(300);

/// A CA whose certificates may be wrong.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// A directory with a certificate that `change` made different.
    fn host_with(&self, change: impl FnOnce(&mut CertificateParams)) -> TempDir {
        let mut params = CertificateParams::new(["slackwater".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), &self.pem).unwrap();
        fs::write(dir.path().join("cert.pem"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.path().join("key.pem"), Permissions::from_mode(0o600)).unwrap();
        dir
    }

    fn host(&self) -> TempDir {
        self.host_with(|_| {})
    }

    fn tls(&self) -> Tls {
        Tls::load(self.host().path()).unwrap()
    }
}

fn expired(params: &mut CertificateParams) {
    params.not_after = date_time_ymd(2020, 2, 29);
}

fn when_expired() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_582_934_400)
}

/// Both ends of a connection.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (connected, listener.accept().unwrap().0)
}

type Outcome = Result<TlsStream, TlsError>;

/// What comes of it for the end that connects and for the one that accepts.
fn meet(connects: &Tls, accepts: &Tls) -> (Outcome, Outcome) {
    let (connected, accepted) = connection();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| accepts.accept(accepted, LONG));
        (connects.connect(connected, LONG), accepting.join().unwrap())
    })
}

fn pair_as_made() -> (TlsStream, TlsStream) {
    let ca = Ca::new("CA");
    let (connected, accepted) = meet(&ca.tls(), &ca.tls());
    (connected.unwrap(), accepted.unwrap())
}

/// One on which nothing waits for ever, whatever goes wrong.
fn pair() -> (TlsStream, TlsStream) {
    let (one, two) = pair_as_made();
    for stream in [&one, &two] {
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
    }
    (one, two)
}

fn chain(dir: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(dir.join("cert.pem")).unwrap().map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap())
}

fn roots(dir: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    Arc::new(roots)
}

/// A client that verifies the other end, and else does what it likes.
fn client(dir: &Path, version: &'static SupportedProtocolVersion, has_certificate: bool) -> ClientConnection {
    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots(dir));
    let config = if has_certificate {
        let (chain, key) = chain(dir);
        config.with_client_auth_cert(chain, key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    ClientConnection::new(config.into(), ServerName::try_from("slackwater").unwrap()).unwrap()
}

fn server(dir: &Path, version: &'static SupportedProtocolVersion) -> ServerConnection {
    let (chain, key) = chain(dir);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots(dir), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    ServerConnection::new(config.into()).unwrap()
}

/// What an end that accepts makes of `client`, and what that reads.
fn accept_from(tls: &Tls, mut client: ClientConnection) -> (Outcome, ClientConnection, io::Result<usize>) {
    let (mut connected, accepted) = connection();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| tls.accept(accepted, LONG));
        let read = rustls::Stream::new(&mut client, &mut connected).read(&mut [0]);
        (accepting.join().unwrap(), client, read)
    })
}

/// What an end that connects makes of `server`.
fn connect_to(tls: &Tls, mut server: ServerConnection) -> Outcome {
    let (connected, mut accepted) = connection();
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = rustls::Stream::new(&mut server, &mut accepted).read(&mut [0]);
        });
        tls.connect(connected, LONG)
    })
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251).to_le_bytes()[0]).collect()
}

/// Waits until a thread of this process sleeps.
fn until_asleep(thread: rustix::thread::Pid) {
    let stat = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    let start = Instant::now();
    while start.elapsed() < LONG {
        let stat = fs::read_to_string(&stat).unwrap();
        if stat.rsplit(") ").next().unwrap().starts_with('S') {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("the thread does not come to rest");
}

const SIZES: [usize; 13] = [1, 2, 100, 4_095, 4_096, 16_383, 16_384, 16_385, 65_537, 262_144, 262_145, 1 << 20, (3 << 20) + 7];

#[test]
fn what_one_end_writes_the_other_reads_both_ways_and_in_all_sizes() {
    for turn in [false, true] {
        let (mut writer, mut reader) = pair();
        if turn {
            (writer, reader) = (reader, writer);
        }
        let written = thread::spawn(move || {
            for size in SIZES {
                writer.write_all(&bytes(size)).unwrap();
                writer.flush().unwrap();
            }
            writer.close().unwrap();
        });
        for size in SIZES {
            let mut read = vec![0; size];
            reader.read_exact(&mut read).unwrap();
            assert!(read == bytes(size), "{size} bytes");
        }
        assert_eq!(reader.read(&mut [0; 16]).unwrap(), 0, "the end was said");
        assert_eq!(reader.read(&mut [0; 16]).unwrap(), 0, "and stays");
        written.join().unwrap();
    }
}

#[test]
fn a_hello_goes_both_ways() {
    let (mut one, mut two) = pair();
    one.write_all(b"hello").unwrap();
    one.flush().unwrap();
    let mut said = [0; 5];
    two.read_exact(&mut said).unwrap();
    two.write_all(&said).unwrap();
    two.flush().unwrap();
    one.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
}

#[test]
fn a_socket_has_no_limit_after_the_handshake_and_waits_for_nothing() {
    let (one, two) = pair_as_made();
    for stream in [&one, &two] {
        let socket = stream.socket();
        assert_eq!(socket.read_timeout().unwrap(), None);
        assert_eq!(socket.write_timeout().unwrap(), None);
        assert!(socket.nodelay().unwrap());
        assert_eq!(stream.peer_addr(), socket.peer_addr().unwrap());
    }
}

#[test]
fn a_limit_of_reads_is_one() {
    let (mut one, mut two) = pair();
    one.set_read_timeout(Some(SHORT)).unwrap();
    assert_eq!(one.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // The stream is as it was.
    two.write_all(b"!").unwrap();
    two.flush().unwrap();
    one.set_read_timeout(Some(LONG)).unwrap();
    one.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_write_limit_that_passed_loses_and_doubles_nothing() {
    let (mut writer, mut reader) = pair();
    writer.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let all = bytes(64 << 20);
    let mut taken = 0;
    let stopped = loop {
        match writer.write(&all[taken..]) {
            Ok(len) => taken += len,
            Err(error) => break error,
        }
    };
    assert_eq!(stopped.kind(), io::ErrorKind::WouldBlock);
    writer.set_write_timeout(Some(LONG)).unwrap();
    let reading = thread::spawn(move || {
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        read
    });
    writer.close().unwrap();
    assert!(reading.join().unwrap() == all[..taken]);
}

#[test]
fn an_end_of_another_ca_is_refused_by_the_one_that_connects() {
    // One has the other's name, and another key.
    for name in ["CA", "another CA"] {
        let (connected, accepted) = meet(&Ca::new("CA").tls(), &Ca::new(name).tls());
        assert!(matches!(connected, Err(TlsError::PeerNotOfCa { .. })), "{connected:?}");
        assert!(matches!(accepted, Err(TlsError::Refused { .. })), "{accepted:?}");
    }
}

#[test]
fn an_end_of_another_ca_is_refused_by_the_one_that_accepts() {
    for name in ["CA", "another CA"] {
        let (own, other) = (Ca::new("CA"), Ca::new(name));
        // It accepts certificates of both.
        let dir = other.host();
        fs::write(dir.path().join("ca.pem"), format!("{}{}", own.pem, other.pem)).unwrap();
        let both = Tls::load(dir.path()).unwrap();
        let (connected, accepted) = meet(&both, &own.tls());
        assert!(matches!(accepted, Err(TlsError::PeerNotOfCa { .. })), "{accepted:?}");
        // It would not know this if the end that accepts said nothing.
        assert!(matches!(connected, Err(TlsError::Refused { .. })), "{connected:?}");
        let (connected, accepted) = meet(&both, &both);
        assert!(connected.is_ok() && accepted.is_ok());
    }
}

#[test]
fn who_gives_no_certificate_is_refused() {
    let ca = Ca::new("CA");
    let (accepted, _, read) = accept_from(&ca.tls(), client(ca.host().path(), &version::TLS13, false));
    assert!(matches!(accepted, Err(TlsError::PeerGaveNone { .. })), "{accepted:?}");
    assert!(read.is_err());
}

#[test]
fn an_expired_certificate_is_refused_by_both() {
    let ca = Ca::new("CA");
    let dir = ca.host_with(expired);
    let (accepted, ..) = accept_from(&ca.tls(), client(dir.path(), &version::TLS13, true));
    assert!(matches!(accepted, Err(TlsError::PeerExpired { since, .. }) if since == when_expired()), "{accepted:?}");
    let connected = connect_to(&ca.tls(), server(dir.path(), &version::TLS13));
    assert!(matches!(connected, Err(TlsError::PeerExpired { since, .. }) if since == when_expired()), "{connected:?}");
}

#[test]
fn a_certificate_of_another_name_or_another_time_is_refused() {
    let ca = Ca::new("CA");
    let dir = ca.host_with(|params| params.subject_alt_names.clear());
    let connected = connect_to(&ca.tls(), server(dir.path(), &version::TLS13));
    assert!(matches!(connected, Err(TlsError::PeerOtherName { .. })), "{connected:?}");
    let dir = ca.host_with(|params| params.not_before = date_time_ymd(3000, 1, 1));
    let connected = connect_to(&ca.tls(), server(dir.path(), &version::TLS13));
    assert!(matches!(connected, Err(TlsError::PeerNotYet { .. })), "{connected:?}");
    let dir = ca.host_with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let (accepted, ..) = accept_from(&ca.tls(), client(dir.path(), &version::TLS13, true));
    assert!(matches!(accepted, Err(TlsError::PeerUnusable { .. })), "{accepted:?}");
}

#[test]
fn another_version_is_refused_by_both() {
    let ca = Ca::new("CA");
    let (accepted, ..) = accept_from(&ca.tls(), client(ca.host().path(), &version::TLS12, true));
    assert!(matches!(accepted, Err(TlsError::OtherVersion { .. })), "{accepted:?}");
    let connected = connect_to(&ca.tls(), server(ca.host().path(), &version::TLS12));
    assert!(matches!(connected, Err(TlsError::OtherVersion { .. })), "{connected:?}");
}

#[test]
fn nothing_is_given_to_resume_a_connection_with() {
    let ca = Ca::new("CA");
    let (accepted, client, read) = accept_from(&ca.tls(), client(ca.host().path(), &version::TLS13, true));
    assert!(accepted.is_ok(), "{accepted:?}");
    assert_eq!(read.unwrap(), 1);
    assert_eq!(client.tls13_tickets_received(), 0);
}

#[test]
fn plain_text_is_refused_by_both() {
    let tls = Ca::new("CA").tls();
    let (mut connected, accepted) = connection();
    connected.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let accepted = tls.accept(accepted, LONG);
    assert!(matches!(accepted, Err(TlsError::Protocol { .. })), "{accepted:?}");
    let (connected, mut accepted) = connection();
    accepted.write_all(b"220 welcome\r\n").unwrap();
    let connected = tls.connect(connected, LONG);
    assert!(matches!(connected, Err(TlsError::Protocol { .. })), "{connected:?}");
}

#[test]
fn an_end_that_leaves_during_the_handshake_is_said_to_have() {
    let tls = Ca::new("CA").tls();
    let (connected, accepted) = connection();
    drop(connected);
    let accepted = tls.accept(accepted, LONG);
    assert!(matches!(accepted, Err(TlsError::Ended { .. })), "{accepted:?}");
    let (connected, accepted) = connection();
    drop(accepted);
    let connected = tls.connect(connected, LONG);
    assert!(matches!(connected, Err(TlsError::Ended { .. })), "{connected:?}");
}

#[test]
fn an_end_that_says_nothing_is_waited_for_until_the_limit() {
    let tls = Ca::new("CA").tls();
    for accepts in [false, true] {
        let (one, _silent) = connection();
        let start = Instant::now();
        let outcome = if accepts { tls.accept(one, SHORT) } else { tls.connect(one, SHORT) };
        assert!(matches!(outcome, Err(TlsError::TooLate { limit: SHORT, .. })), "{outcome:?}");
        assert!(start.elapsed() >= SHORT && start.elapsed() < LONG);
    }
}

#[test]
fn an_end_that_does_not_verify_this_one_is_waited_for_until_the_limit() {
    let ca = Ca::new("CA");
    // It does its part of the handshake and says no more.
    let mut silent = server(ca.host().path(), &version::TLS13);
    let (connected, mut accepted) = connection();
    let silent = thread::spawn(move || {
        let _ = rustls::Stream::new(&mut silent, &mut accepted).read(&mut [0]);
    });
    let connected = ca.tls().connect(connected, Duration::from_secs(2));
    // It has sent tickets, which are no word of it.
    assert!(matches!(connected, Err(TlsError::TooLate { .. })), "{connected:?}");
    silent.join().unwrap();
}

#[test]
fn the_limit_is_for_all_and_not_for_each_byte() {
    let tls = Ca::new("CA").tls();
    for accepts in [false, true] {
        let (one, mut slow) = connection();
        let trickle = thread::spawn(move || {
            // The beginning of a record that is long enough to go on for half a minute.
            let record = [0x16, 3, 3, 8, 0].into_iter().chain(std::iter::once(if accepts { 1 } else { 2 }));
            for byte in record.chain([0, 7, 0xfc, 3, 3]).chain(std::iter::repeat(0)).take(1_000) {
                if slow.write_all(&[byte]).is_err() {
                    return true;
                }
                thread::sleep(SHORT / 10);
            }
            false
        });
        let outcome = if accepts { tls.accept(one, SHORT) } else { tls.connect(one, SHORT) };
        assert!(matches!(outcome, Err(TlsError::TooLate { .. })), "{outcome:?}");
        assert!(trickle.join().unwrap(), "the bytes ended before the limit did");
    }
}

#[test]
fn a_stream_that_is_cut_off_is_no_end() {
    for flushed in [0, 1, 100_000] {
        let (mut writer, mut reader) = pair();
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            (reader.read_to_end(&mut read), read.len())
        });
        writer.write_all(&bytes(flushed)).unwrap();
        writer.flush().unwrap();
        // Somebody else may still have the descriptor.
        let _held = writer.shutdown_handle();
        drop(writer);
        let (outcome, len) = reading.join().unwrap();
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(len, flushed);
    }
}

#[test]
fn another_thread_ends_a_read_that_waits() {
    let (mut one, _two) = pair();
    let handle = one.shutdown_handle();
    let (say, hear) = mpsc::channel();
    let reading = thread::spawn(move || {
        say.send(rustix::thread::gettid()).unwrap();
        one.read(&mut [0])
    });
    until_asleep(hear.recv().unwrap());
    handle.shutdown();
    assert_eq!(reading.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    handle.shutdown();
}

#[test]
fn another_thread_ends_a_write_that_waits() {
    let (mut one, _two) = pair();
    let handle = one.shutdown_handle();
    let (say, hear) = mpsc::channel();
    let writing = thread::spawn(move || {
        say.send(rustix::thread::gettid()).unwrap();
        let piece = bytes(1 << 20);
        loop {
            if let Err(error) = one.write_all(&piece) {
                return error.kind();
            }
        }
    });
    until_asleep(hear.recv().unwrap());
    handle.shutdown();
    assert_eq!(writing.join().unwrap(), io::ErrorKind::BrokenPipe);
}

/// `file` of `dir` is written anew.
fn put(dir: &TempDir, file: &str, text: &str) -> PathBuf {
    let path = dir.path().join(file);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn files_that_are_not_there_or_empty_are_named() {
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        let dir = Ca::new("CA").host();
        let path = put(&dir, name, "\n");
        assert!(matches!(Tls::load(dir.path()), Err(TlsError::Missing { file, .. }) if file == path), "{name}");
        put(&dir, name, "-----BEGIN CERTIFICATE-----\nAAAA\n");
        assert!(matches!(Tls::load(dir.path()), Err(TlsError::Pem { file, .. }) if file == path), "{name}");
        put(&dir, name, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let expected = |error: &TlsError| match error {
            TlsError::Unusable { file, .. } => name != "key.pem" && *file == path,
            TlsError::Missing { file, .. } => name == "key.pem" && *file == path,
            _ => false,
        };
        assert!(Tls::load(dir.path()).is_err_and(|error| expected(&error)), "{name}");
        fs::remove_file(&path).unwrap();
        assert!(matches!(Tls::load(dir.path()), Err(TlsError::Read { file, .. }) if file == path), "{name}");
    }
}

#[test]
fn a_key_that_others_may_read_is_refused_by_its_name() {
    for mode in [0o640, 0o604, 0o601, 0o610, 0o620] {
        let dir = Ca::new("CA").host();
        let key = dir.path().join("key.pem");
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let error = Tls::load(dir.path()).unwrap_err();
        assert!(matches!(&error, TlsError::KeyIsOpen { file, mode: found } if *file == key && *found == mode), "{error:?}");
        assert!(error.to_string().contains(key.to_str().unwrap()), "{error}");
        fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
        Tls::load(dir.path()).unwrap();
    }
}

#[test]
fn a_certificate_that_the_other_end_would_refuse_is_refused_at_home() {
    let ca = Ca::new("CA");
    let dir = ca.host_with(expired);
    let error = Tls::load(dir.path()).unwrap_err();
    assert!(matches!(error, TlsError::Expired { since, .. } if since == when_expired()), "{error:?}");
    assert!(error.to_string().ends_with("cert.pem expired on 2020-02-29 00:00:00 UTC"), "{error}");

    let dir = ca.host_with(|params| params.not_before = date_time_ymd(3000, 1, 1));
    assert!(matches!(Tls::load(dir.path()), Err(TlsError::NotYet { .. })));
    let dir = ca.host_with(|params| params.subject_alt_names.clear());
    assert!(matches!(Tls::load(dir.path()), Err(TlsError::OtherName { .. })));
    // It could connect and not accept, or accept and not connect.
    for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        let dir = ca.host_with(|params| params.extended_key_usages = vec![usage]);
        assert!(matches!(Tls::load(dir.path()), Err(TlsError::Unusable { .. })));
    }
    for name in ["CA", "another CA"] {
        let dir = ca.host();
        put(&dir, "ca.pem", &Ca::new(name).pem);
        assert!(matches!(Tls::load(dir.path()), Err(TlsError::NotOfCa { .. })));
    }
    let dir = ca.host();
    put(&dir, "key.pem", &KeyPair::generate().unwrap().serialize_pem());
    assert!(matches!(Tls::load(dir.path()), Err(TlsError::KeyMismatch { .. })));
}

/// All files under `dir`: path, mode, content.
fn listing(dir: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let (mut found, mut ahead) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(path) = ahead.pop() {
        let metadata = fs::metadata(&path).unwrap();
        let content = if metadata.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
        found.push((name, metadata.permissions().mode() & 0o7777, content));
    }
    found.sort();
    found
}

#[test]
fn what_is_made_for_a_first_try_connects() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("tls");
    let before = SystemTime::now();
    let made = tls_init(&dir).unwrap();
    let is_near = |time: SystemTime, days: u64| {
        let holds = time.duration_since(before - Duration::from_secs(1)).unwrap();
        holds.as_secs().abs_diff(days * 86_400) < 3_600
    };
    assert!(is_near(made.ca_expires, 3_652) && is_near(made.expires, 730), "{made:?}");
    let (one, two) = (Tls::load(&dir.join("one")).unwrap(), Tls::load(&dir.join("two")).unwrap());
    for (connects, accepts) in [(&one, &two), (&two, &one)] {
        let (connected, accepted) = meet(connects, accepts);
        assert!(connected.is_ok() && accepted.is_ok());
    }
    let names: Vec<_> = listing(&dir).into_iter().map(|(name, mode, _)| (name, mode)).collect();
    let expected = [
        ("", 0o700),
        ("ca-key.pem", 0o600),
        ("ca.pem", 0o644),
        ("one", 0o700),
        ("one/ca.pem", 0o644),
        ("one/cert.pem", 0o644),
        ("one/key.pem", 0o600),
        ("two", 0o700),
        ("two/ca.pem", 0o644),
        ("two/cert.pem", 0o644),
        ("two/key.pem", 0o600),
    ];
    assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
}

#[test]
fn two_first_tries_do_not_meet() {
    let place = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        tls_init(&place.path().join(name)).unwrap();
        Tls::load(&place.path().join(name).join("one")).unwrap()
    });
    let (connected, accepted) = meet(&a, &b);
    assert!(matches!(connected, Err(TlsError::PeerNotOfCa { .. })), "{connected:?}");
    assert!(matches!(accepted, Err(TlsError::Refused { .. })), "{accepted:?}");
}

#[test]
fn what_is_there_stays() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("tls");
    // One that is empty is taken.
    fs::create_dir(&dir).unwrap();
    tls_init(&dir).unwrap();
    fs::write(place.path().join("file"), "text").unwrap();
    let before = listing(place.path());
    assert!(matches!(tls_init(&dir), Err(TlsInitError::NotEmpty { path }) if path == dir));
    assert!(matches!(tls_init(&place.path().join("file")), Err(TlsInitError::NotEmpty { .. })));
    assert!(matches!(tls_init(&place.path().join("none/tls")), Err(TlsInitError::Io { .. })));
    assert!(matches!(tls_init(Path::new("/")), Err(TlsInitError::NoName { .. })));
    assert!(listing(place.path()) == before, "nothing was changed or left behind");
}
