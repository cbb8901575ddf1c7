//! Certificates for a first try: a CA, and one for each of two hosts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::names::{CA_FILE, CERT_FILE, KEY_FILE, NAME};
use crate::replica::draw;

/// The key of the CA.
const CA_KEY_FILE: &str = "ca-key.pem";

/// The hosts, and the directories of theirs.
const HOSTS: [&str; 2] = ["one", "two"];

const DAY: Duration = Duration::from_secs(86_400);

/// Certificates hold from one day before they are made: clocks differ.
const BEFORE: Duration = DAY;

/// 10 years.
const CA_HOLDS: Duration = DAY.saturating_mul(3_652);

/// 2 years.
const HOLDS: Duration = DAY.saturating_mul(730);

/// About the year 9900: years of a certificate have four digits.
const NOW_MAX: Duration = Duration::from_secs(250_000_000_000);

/// What [`tls_init`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Made {
    /// The directories in it that the two hosts get.
    pub hosts: [&'static str; 2],
    /// The file in it with the key of the CA.
    pub ca_key: &'static str,
    /// When the certificate of the CA expires.
    pub ca_expires: SystemTime,
    /// When those of the two hosts do.
    pub expires: SystemTime,
}

/// Why no certificates were made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsInitError {
    /// There is something where they should be.
    #[error("{} is there and not empty: nothing was changed", path.display())]
    NotEmpty {
        /// The directory or file.
        path: PathBuf,
    },
    /// The path of the directory does not end in a name.
    #[error("{} names no directory that can be made", dir.display())]
    NoName {
        /// The directory.
        dir: PathBuf,
    },
    /// A file or directory could not be made.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The clock shows a time before 1970, or one that is far from now.
    #[error("the clock of this host is wrong: no certificate can hold from now on")]
    Clock,
    /// Keys or certificates could not be made.
    #[error("cannot make a certificate")]
    Certificate {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<rcgen::Error> for TlsInitError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate { source: Box::new(error) }
    }
}

/// Makes a CA and the certificates of two hosts, `one` and `two`, in a directory that is not there
/// or empty: all of it, or nothing.
///
/// ```text
/// DIR/ca.pem DIR/ca-key.pem      the CA; its key is needed for further certificates only
/// DIR/one/{ca,cert,key}.pem      what the first host gets
/// DIR/two/{ca,cert,key}.pem      what the second host gets
/// ```
///
/// # Errors
/// The directory is there and not empty, or something in it could not be made.
pub fn tls_init(dir: &Path) -> Result<Made, TlsInitError> {
    let Some(name) = dir.file_name() else { return Err(TlsInitError::NoName { dir: dir.to_owned() }) };
    check_free(dir)?;
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.new", digits(dir)?));
    let new = parent.join(hidden);
    make_dir(&new)?;
    let made = fill(&new, dir).and_then(|made| {
        // It takes the place of an empty directory, and of nothing else.
        fs::rename(&new, dir).map_err(|source| match source.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                TlsInitError::NotEmpty { path: dir.to_owned() }
            }
            _ => failed("make", dir)(source),
        })?;
        Ok(made)
    });
    if made.is_err() {
        // It is under a name that nobody looks for; the error is the one that counts.
        let _ = fs::remove_dir_all(&new);
    } else {
        sync_dir(parent)?;
    }
    made
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TlsInitError {
    move |source| TlsInitError::Io { action, path: path.to_owned(), source }
}

fn check_free(dir: &Path) -> Result<(), TlsInitError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(TlsInitError::NotEmpty { path: dir.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(TlsInitError::NotEmpty { path: dir.to_owned() }),
        Err(error) => Err(failed("read", dir)(error)),
    }
}

/// Makes all files in `new`, and syncs them.
fn fill(new: &Path, dir: &Path) -> Result<Made, TlsInitError> {
    let now = SystemTime::now();
    // Two CAs with one name could not be told apart by it.
    let id = digits(dir)?;
    let (mut params, ca_expires) = params(&format!("slackwater CA {id}"), now, CA_HOLDS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?.pem();
    write(&new.join(CA_FILE), &ca, 0o644)?;
    write(&new.join(CA_KEY_FILE), &ca_key.serialize_pem(), 0o600)?;
    let issuer = Issuer::new(params, ca_key);
    let mut expires = now;
    for host in HOSTS {
        let host_dir = new.join(host);
        make_dir(&host_dir)?;
        expires = fill_host(&host_dir, host, &ca, &issuer, now)?;
    }
    sync_dir(new)?;
    Ok(Made { hosts: HOSTS, ca_key: CA_KEY_FILE, ca_expires, expires })
}

fn fill_host(
    dir: &Path,
    host: &str,
    ca: &str,
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<SystemTime, TlsInitError> {
    let (mut params, expires) = params(&format!("slackwater {host}"), now, HOLDS)?;
    params.subject_alt_names = CertificateParams::new([NAME.to_owned()])?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Each host connects and accepts.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    write(&dir.join(CA_FILE), ca, 0o644)?;
    write(&dir.join(CERT_FILE), &params.signed_by(&key, issuer)?.pem(), 0o644)?;
    write(&dir.join(KEY_FILE), &key.serialize_pem(), 0o600)?;
    sync_dir(dir)?;
    Ok(expires)
}

/// What all certificates have, and when this one expires.
fn params(name: &str, now: SystemTime, holds: Duration) -> Result<(CertificateParams, SystemTime), TlsInitError> {
    let since = now.duration_since(UNIX_EPOCH).map_err(|_| TlsInitError::Clock)?;
    // In a certificate there are whole seconds.
    let since = Duration::from_secs(since.as_secs());
    if since > NOW_MAX {
        return Err(TlsInitError::Clock);
    }
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1) + since.saturating_sub(BEFORE);
    params.not_after = date_time_ymd(1970, 1, 1) + since + holds;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok((params, UNIX_EPOCH + since + holds))
}

/// 16 hexadecimal digits, drawn at random.
fn digits(dir: &Path) -> Result<String, TlsInitError> {
    let number = draw::number().map_err(failed("draw a name for", dir))?;
    Ok(format!("{:016x}", number >> 64))
}

fn make_dir(dir: &Path) -> Result<(), TlsInitError> {
    DirBuilder::new().mode(0o700).create(dir).map_err(failed("make", dir))
}

fn write(file: &Path, text: &str, mode: u32) -> Result<(), TlsInitError> {
    let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let written = open.and_then(|mut open| {
        open.write_all(text.as_bytes())?;
        open.sync_all()
    });
    written.map_err(failed("write", file))
}

fn sync_dir(dir: &Path) -> Result<(), TlsInitError> {
    File::open(dir).and_then(|open| open.sync_all()).map_err(failed("sync", dir))
}
