//! Which witness, as an operator writes it.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::Witness;
use super::etcd::EtcdWitness;
use super::exec::ExecWitness;
use super::fault::WitnessFault;
use super::file::FileWitness;
use super::manual::{ManualWitness, Permission};
use super::s3::{S3Credentials, S3Place, S3Witness};

/// The region of a bucket where none is given.
const REGION: &str = "us-east-1";

/// Which witness.
///
/// ```text
/// file:DIR/NAME                             file:/mnt/shared/web
/// etcd:HOST:PORT,HOST:PORT,.../NAME         etcd:10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/web
/// etcd+https:HOST:PORT,.../NAME             etcd+https:a.example:2379/web
/// s3:BUCKET/KEY[?endpoint=URL][&region=R]   s3:machines/web?region=eu-central-1
/// exec:PROGRAM[?name=NAME]                  exec:/usr/local/bin/witness?name=web
/// manual                                    a person decides
/// ```
///
/// NAME tells the machines of one storage apart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WitnessSpec {
    /// A directory that both hosts have; see [`file`](super::file).
    File {
        /// The directory.
        dir: PathBuf,
        /// The machine.
        name: String,
    },
    /// A cluster of etcd; see [`etcd`](super::etcd).
    Etcd {
        /// `HOST:PORT` of each.
        endpoints: Vec<String>,
        /// Whether by https.
        tls: bool,
        /// The machine.
        name: String,
    },
    /// An object in a bucket; see [`s3`](super::s3).
    S3(S3Place),
    /// A program; see [`exec`](super::exec).
    Exec {
        /// The program; one without a slash is looked for in `PATH`.
        program: PathBuf,
        /// The machine.
        name: Option<String>,
    },
    /// A person; see [`manual`](super::manual).
    Manual,
}

/// Why a text is no witness.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no witness: {reason}, such as `{example}`")]
pub struct WitnessSpecError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
    /// What would be right.
    pub example: &'static str,
}

const MANUAL: &str = "manual";
const FILE: &str = "file:/mnt/shared/web";
const ETCD: &str = "etcd:10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/web";
const S3: &str = "s3:machines/web?region=eu-central-1";
const EXEC: &str = "exec:/usr/local/bin/witness?name=web";

impl WitnessSpec {
    /// Opens it, for the machine of `store`. `limit` bounds every call later, and every request
    /// until then. `permission` says whether this host may decide, where there is no witness.
    ///
    /// `file` tries whether hard links can be made, `s3` whether the bucket honours conditional
    /// puts. `etcd` and `exec` ask nobody yet.
    ///
    /// # Errors
    /// [`WitnessFault`].
    pub fn open(&self, store: &Path, permission: &Permission, limit: Duration) -> Result<Box<dyn Witness>, WitnessFault> {
        Ok(match self {
            Self::File { dir, name } => Box::new(FileWitness::open(dir, name, limit)?),
            Self::Etcd { endpoints, tls, name } => Box::new(EtcdWitness::new(endpoints, *tls, name, limit)?),
            Self::S3(place) => Box::new(S3Witness::open(place, S3Credentials::from_env()?, limit)?),
            Self::Exec { program, name } => Box::new(ExecWitness::new(program, name.as_deref(), limit)),
            Self::Manual => Box::new(ManualWitness::open(store, permission.clone(), limit)?),
        })
    }
}

impl FromStr for WitnessSpec {
    type Err = WitnessSpecError;

    fn from_str(text: &str) -> Result<Self, WitnessSpecError> {
        if text == MANUAL {
            return Ok(Self::Manual);
        }
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let (parsed, example) = match kind {
            "file" => (file(rest), FILE),
            "etcd" | "etcd+https" => (etcd(rest, kind == "etcd+https"), ETCD),
            "s3" => (s3(rest), S3),
            "exec" => (exec(rest), EXEC),
            _ => (Err("it begins with file:, etcd:, etcd+https:, s3: or exec:, or is manual".to_owned()), FILE),
        };
        parsed.map_err(|reason| WitnessSpecError { text: text.to_owned(), reason, example })
    }
}

impl fmt::Display for WitnessSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { dir, name } => write!(f, "file:{}", dir.join(name).display()),
            Self::Etcd { endpoints, tls, name } => {
                write!(f, "etcd{}:{}/{name}", if *tls { "+https" } else { "" }, endpoints.join(","))
            }
            Self::S3(S3Place { bucket, key, endpoint, region }) => {
                write!(f, "s3:{bucket}/{key}?")?;
                if let Some(endpoint) = endpoint {
                    write!(f, "endpoint={endpoint}&")?;
                }
                write!(f, "region={region}")
            }
            Self::Manual => f.write_str(MANUAL),
            Self::Exec { program, name: None } => write!(f, "exec:{}", program.display()),
            Self::Exec { program, name: Some(name) } => write!(f, "exec:{}?name={name}", program.display()),
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    let is_sound = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        && (1..=64).contains(&text.len())
        && !text.starts_with(['.', '-']);
    let reason = || format!("the machine's name `{text}` has to be 1 to 64 of a-z A-Z 0-9 . - _, and first none of . and -");
    is_sound.then(|| text.to_owned()).ok_or_else(reason)
}

fn file(rest: &str) -> Result<WitnessSpec, String> {
    let (dir, last) = rest.rsplit_once('/').ok_or("a directory, a slash and the machine's name have to follow")?;
    let dir = if dir.is_empty() { "/" } else { dir };
    Ok(WitnessSpec::File { dir: dir.into(), name: name(last)? })
}

fn etcd(rest: &str, tls: bool) -> Result<WitnessSpec, String> {
    let (endpoints, last) = rest.split_once('/').ok_or("endpoints, a slash and the machine's name have to follow")?;
    let endpoints = endpoints.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
    Ok(WitnessSpec::Etcd { endpoints, tls, name: name(last)? })
}

fn endpoint(text: &str) -> Result<String, String> {
    let is_host = |host: &str| match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port != 0);
    let is_endpoint = text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port));
    is_endpoint.then(|| text.to_owned()).ok_or_else(|| format!("the endpoint `{text}` has to be HOST:PORT"))
}

fn s3(rest: &str) -> Result<WitnessSpec, String> {
    let (object, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, key) = object.split_once('/').ok_or("a bucket, a slash and a key have to follow")?;
    let is_bucket = bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if !is_bucket || bucket.is_empty() || bucket.starts_with('.') {
        return Err(format!("`{bucket}` can't be the name of a bucket"));
    }
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(|byte| byte.is_ascii_graphic());
    if !key.split('/').all(is_part) || key.len() > 900 {
        return Err(format!("the key `{key}` has to be up to 900 printable characters without a part that is empty, . or .."));
    }
    let (mut endpoint, mut region) = (None, None);
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (which, value) = option.split_once('=').filter(|(_, value)| !value.is_empty()).unwrap_or((option, ""));
        let into = match (which, value) {
            (_, "") => return Err(format!("`{option}` has to be endpoint=URL or region=REGION")),
            ("endpoint", _) => &mut endpoint,
            ("region", _) => &mut region,
            _ => return Err(format!("there is no option `{which}`: only endpoint and region")),
        };
        if into.replace(value.to_owned()).is_some() {
            return Err(format!("`{which}` is given twice"));
        }
    }
    let region = region.unwrap_or_else(|| REGION.to_owned());
    let place = S3Place { bucket: bucket.to_owned(), key: key.to_owned(), endpoint, region };
    place.bucket()?;
    Ok(WitnessSpec::S3(place))
}

fn exec(rest: &str) -> Result<WitnessSpec, String> {
    let (program, last) = match rest.rsplit_once("?name=") {
        Some((program, last)) => (program, Some(name(last)?)),
        None => (rest, None),
    };
    if program.is_empty() {
        return Err("a program has to follow".to_owned());
    }
    Ok(WitnessSpec::Exec { program: program.into(), name: last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_back() {
        for text in [
            FILE,
            "file:/web",
            "file:a/b.c",
            ETCD,
            "etcd+https:a.example:2379/web",
            "etcd:[::1]:1/x",
            S3,
            "s3:b/a/b?endpoint=http://127.0.0.1:9000&region=us-east-1",
            EXEC,
            "exec:witness",
            "exec:/a?b=c?name=x",
            MANUAL,
        ] {
            let spec: WitnessSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!("s3:b/k".parse::<WitnessSpec>().unwrap().to_string(), "s3:b/k?region=us-east-1");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, what) in [
            ("", "begins with"),
            ("zookeeper:a", "begins with"),
            ("file:", "a slash"),
            ("file:/mnt/", "the machine's name ``"),
            ("file:/mnt/.x", "the machine's name `.x`"),
            ("etcd:a:1", "a slash"),
            ("etcd:/web", "the endpoint ``"),
            ("etcd:a:1,b/web", "the endpoint `b`"),
            ("etcd:http://a:1/web", "the endpoint"),
            ("etcd:a:0/web", "the endpoint `a:0`"),
            ("etcd:a:70000/web", "the endpoint"),
            ("etcd:[::x]:1/web", "the endpoint"),
            ("etcd:a:1/web/x", "the machine's name `web/x`"),
            ("s3:b", "a slash"),
            ("s3:/k", "a bucket"),
            ("s3:b/", "the key"),
            ("s3:b/../k", "the key"),
            ("s3:b/a b", "the key"),
            ("s3:b/k?color=red", "no option `color`"),
            ("s3:b/k?region=", "has to be"),
            ("s3:b/k?region=a&region=b", "twice"),
            ("s3:b/k?endpoint=x", "`x`"),
            ("s3:b/k?endpoint=ftp://x", "ftp"),
            ("exec:", "a program"),
            ("exec:p?name=a/b", "the machine's name `a/b`"),
        ] {
            let error = text.parse::<WitnessSpec>().unwrap_err();
            assert!(error.reason.contains(what), "{text}: {error}");
            assert!(error.example.parse::<WitnessSpec>().is_ok(), "{text}: {error}");
        }
    }
}
