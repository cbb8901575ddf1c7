//! What can go wrong with a witness.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::WitnessError;
use crate::replica::register::Generation;

/// Why a witness could not be opened, or gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessFault {
    /// What is kept in the register's place is something else.
    #[error("{place} holds no register: {reason}")]
    NotARegister {
        /// The file, the key or the program.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A swap was to a generation that does not follow.
    #[error("a swap from generation {expected} is to the next one, not to {new}")]
    WrongGeneration {
        /// That of the expected value.
        expected: Generation,
        /// That of the new one.
        new: Generation,
    },
    /// A swap did not succeed, and the register still has the value that was expected.
    #[error("{place} still has the value that was expected, after a swap that did not succeed")]
    StillExpected {
        /// The file, the key or the program.
        place: String,
    },
    /// A file could not be read, written or linked.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no witness, and nobody has said that this host is to go on.
    #[error("there is no witness: a person has to say that this host goes on (`slackwater promote`)")]
    NotPromoted,
    /// The file system makes no hard links, so that of two writers both could win.
    #[error("the file system of {} makes no hard links, which this witness needs", dir.display())]
    NoHardLinks {
        /// The directory.
        dir: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// The path of the directory leads to another one than at first.
    #[error("{} is not the directory that it was: was it unmounted?", dir.display())]
    Displaced {
        /// The directory.
        dir: PathBuf,
    },
    /// There was no answer within the limit.
    #[error("{place} gave no answer within {limit:?}")]
    TooLate {
        /// The file, the program or the server.
        place: String,
        /// The limit.
        limit: Duration,
    },
    /// A call that got no answer still goes on.
    #[error("{place} has not ended an earlier call yet")]
    Busy {
        /// The file.
        place: String,
    },
    /// A thread or a program could not be started.
    #[error("cannot start {what}")]
    Start {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A program did not do what the protocol says.
    #[error("{program} {ended}{}", said(stderr))]
    Program {
        /// The program.
        program: String,
        /// How it ended.
        ended: String,
        /// What it said on standard error; its beginning.
        stderr: String,
    },
    /// A server could not be reached, or the connection failed.
    #[error("{url}: the request failed")]
    Request {
        /// Of the server, without what signs the request.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// A server answered with an error.
    #[error("{url}: status {status}{}", said(body))]
    Status {
        /// Of the server, without what signs the request.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// The beginning of the answer.
        body: String,
    },
    /// An answer cannot be understood.
    #[error("{url}: the answer cannot be understood: {reason}")]
    Answer {
        /// Of the server.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two endpoints are of different clusters.
    #[error("{url} belongs to cluster {found}, and an endpoint asked before it to {known}")]
    OtherCluster {
        /// The endpoint.
        url: String,
        /// The id of its cluster.
        found: String,
        /// The id of the cluster that answered first.
        known: String,
    },
    /// No endpoint gave an answer.
    #[error("no endpoint gave an answer: {}", attempts.join("; "))]
    Endpoints {
        /// What each came to, the last time that it was tried.
        attempts: Vec<String>,
    },
    /// A bucket carries out a put whose condition does not hold, so that of two writers both could
    /// win.
    #[error("{url}: the bucket does not honour {condition}, which this witness needs")]
    IgnoresCondition {
        /// The object of the test.
        url: String,
        /// The header.
        condition: &'static str,
    },
    /// A variable of the environment is not set.
    #[error("{variable} is not set: an S3 witness takes its credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
    NoCredentials {
        /// The variable.
        variable: &'static str,
    },
    /// The certificates that servers are checked by cannot be read.
    #[error("no root certificates to check a server by: {reason}")]
    NoCertificates {
        /// Why.
        reason: String,
    },
}

impl WitnessFault {
    /// Of a request that surely was not and will not be carried out.
    pub(super) fn refused(self) -> WitnessError {
        WitnessError::Refused(Box::new(self))
    }

    /// Of a request that may have been carried out.
    pub(super) fn unknown(self) -> WitnessError {
        WitnessError::Unknown(Box::new(self))
    }
}

/// `text` behind a colon, if there is any.
fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// The most characters of a foreign text in an error.
const EXCERPT_CHARS_MAX: usize = 300;

/// The beginning of what something said, on one line, without what a terminal would obey.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..4 * EXCERPT_CHARS_MAX).unwrap_or(bytes));
    let printable = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(EXCERPT_CHARS_MAX).collect()
}

/// An error and its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some errors say what their cause says.
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
