//! A register in an object of a bucket, by the API of S3.
//!
//! The object's bytes are the register's JSON. A swap reads the object, holds it against the
//! expected value, and puts the new one on condition that it is still the same (`If-Match` with its
//! `ETag`), or that there is none (`If-None-Match: *`). The condition is part of what is signed. A
//! put that ends in a conflict or without an answer is resolved by reading again: whoever finds the
//! own nonce has won.
//!
//! Opening tries whether the bucket honours both conditions, with objects whose keys begin with the
//! register's and end with random digits: in order, and in a race of two. They are removed again. A
//! bucket that carries out a put whose condition does not hold is refused, for there both hosts
//! could win.
//!
//! # What is asked of the bucket
//! - Conditional puts, and reads that see every put that was answered. S3 has both.
//! - `s3:GetObject`, `s3:PutObject` and `s3:DeleteObject` on keys that begin with the register's.
//!   `s3:ListBucket` as well: without it, S3 does not say whether an object is missing.
//! - Nobody deletes the object: no rule of expiry, no copy of another bucket over it.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use rusty_s3::actions::S3Action;
use rusty_s3::{Bucket, Credentials, UrlStyle};

use super::answer::{check_step, register, settle};
use super::fault::{WitnessFault, chain};
use super::http::{Answer, Http, NoAnswer, is_refusal};
use super::{Swapped, Witness, WitnessError};
use crate::replica::draw;
use crate::replica::register::Register;

/// How long a signed request may be on its way; S3 takes whole seconds. It is also how late a put
/// can still be carried out.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// How long to wait before asking again: so long first, then twice as long each time.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Place {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The server, as a URL; none for AWS.
    pub endpoint: Option<String>,
    /// The region.
    pub region: String,
}

/// What requests are signed with.
#[derive(Clone)]
pub struct S3Credentials(Credentials);

impl std::fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("S3Credentials(..)")
    }
}

impl S3Credentials {
    /// A key with its secret; and a token, where they are for some time only.
    #[must_use]
    pub fn new(key: &str, secret: &str, token: Option<&str>) -> Self {
        Self(match token {
            None => Credentials::new(key, secret),
            Some(token) => Credentials::new_with_token(key, secret, token),
        })
    }

    /// Those in `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if it is set,
    /// `AWS_SESSION_TOKEN`.
    ///
    /// # Errors
    /// [`WitnessFault::NoCredentials`].
    pub fn from_env() -> Result<Self, WitnessFault> {
        let has = |variable| std::env::var(variable).is_ok_and(|value| !value.trim().is_empty());
        let variable = if has("AWS_ACCESS_KEY_ID") { "AWS_SECRET_ACCESS_KEY" } else { "AWS_ACCESS_KEY_ID" };
        Credentials::from_env().map(Self).ok_or(WitnessFault::NoCredentials { variable })
    }
}

impl S3Place {
    /// The bucket, as URLs are made of it. At an endpoint of one's own its name is part of the
    /// path; at AWS part of the host's name, where a certificate is for that.
    pub(super) fn bucket(&self) -> Result<Bucket, String> {
        let aws = || format!("https://s3.{}.amazonaws.com", self.region);
        let style = if self.endpoint.is_none() && !self.bucket.contains('.') { UrlStyle::VirtualHost } else { UrlStyle::Path };
        let endpoint = self.endpoint.clone().unwrap_or_else(aws);
        let url = endpoint.parse().map_err(|error| format!("`{endpoint}` is no URL: {error}"))?;
        Bucket::new(url, style, self.bucket.clone(), self.region.clone())
            .map_err(|error| format!("`{endpoint}` with the bucket `{}`: {error}", self.bucket))
    }
}

/// A register in an object.
#[derive(Debug)]
pub struct S3Witness {
    objects: Objects,
    key: String,
    limit: Duration,
}

/// The objects of a bucket.
#[derive(Debug)]
struct Objects {
    http: Http,
    bucket: Bucket,
    credentials: S3Credentials,
}

/// On what condition an object is put.
#[derive(Clone, Copy, Debug)]
enum Condition<'e> {
    /// There is none.
    Absent,
    /// It has this tag.
    Tag(&'e str),
}

impl<'e> Condition<'e> {
    /// As signed headers are written.
    const fn name(self) -> &'static str {
        match self {
            Self::Absent => "if-none-match",
            Self::Tag(_) => "if-match",
        }
    }

    const fn value(self) -> &'e str {
        match self {
            Self::Absent => "*",
            Self::Tag(tag) => tag,
        }
    }
}

/// What became of a put.
enum Put {
    Done,
    /// It was not carried out: its condition did not hold, or another put was there at the moment.
    Conflict(WitnessFault),
    /// It was refused.
    Refused(WitnessFault),
    /// It may have been carried out, or be carried out later.
    Unknown(WitnessFault),
}

impl S3Witness {
    /// Opens the register at `place`, and tries whether the bucket honours conditions. Every
    /// request of that ends within `limit`, and so does every call later.
    ///
    /// # Errors
    /// [`WitnessFault`]: no such bucket, nothing may be written there, it does not honour
    /// conditions.
    pub fn open(place: &S3Place, credentials: S3Credentials, limit: Duration) -> Result<Self, WitnessFault> {
        let bucket = place.bucket().map_err(|reason| WitnessFault::Answer { url: place.bucket.clone(), reason })?;
        let http = Http::new(bucket.base_url().scheme() == "https")?;
        let witness = Self { objects: Objects { http, bucket, credentials }, key: place.key.clone(), limit };
        witness.test()?;
        Ok(witness)
    }

    /// The same with another limit for calls.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Tries both conditions on keys that nobody else has.
    fn test(&self) -> Result<(), WitnessFault> {
        for is_race in [false, true] {
            let digits =
                draw::number().map_err(|source| WitnessFault::Start { what: "the test of the bucket".to_owned(), source })?;
            let key = format!("{}.slackwater-test.{digits:032x}", self.key);
            let tested = if is_race { self.race(&key) } else { self.try_in_order(&key) };
            let removed = self.objects.remove(&key, self.limit);
            tested?;
            if let Err(fault) = removed {
                tracing::warn!("an object of a test stays in the bucket: {}", chain(&fault));
            }
        }
        Ok(())
    }

    /// A condition that holds, and one that does not, one after the other.
    fn try_in_order(&self, key: &str) -> Result<(), WitnessFault> {
        let place = self.objects.place(key);
        let put = |condition, body: &str| self.objects.put(key, condition, body.as_bytes(), self.limit);
        let must = |put| match put {
            Put::Done => Ok(()),
            Put::Conflict(fault) | Put::Refused(fault) | Put::Unknown(fault) => Err(fault),
        };
        let must_not = |condition: &'static str, put| match put {
            Put::Done => Err(WitnessFault::IgnoresCondition { url: place.clone(), condition }),
            Put::Conflict(_) => Ok(()),
            Put::Refused(fault) | Put::Unknown(fault) => Err(fault),
        };
        must_not("If-Match", put(Condition::Tag("\"0123456789abcdef0123456789abcdef\""), "no object to match"))?;
        must(put(Condition::Absent, "the first"))?;
        must_not("If-None-Match", put(Condition::Absent, "no first any more"))?;
        let tag = self.tag(key)?;
        must(put(Condition::Tag(&tag), "the second"))?;
        must_not("If-Match", put(Condition::Tag(&tag), "behind the second"))
    }

    /// Two at a time, of which one at most may succeed. None may, too: a bucket is free to refuse
    /// both. No bytes come twice, for a tag may be made of the bytes.
    fn race(&self, key: &str) -> Result<(), WitnessFault> {
        let two = |condition: Condition<'_>| {
            scope(|scope| {
                let put = |which: &str| {
                    let body = format!("{} {which}", condition.name());
                    scope.spawn(move || self.objects.put(key, condition, body.as_bytes(), self.limit))
                };
                let both = [put("one"), put("other")];
                both.into_iter().filter_map(|put| put.join().ok()).filter(|put| matches!(put, Put::Done)).count()
            })
        };
        let url = self.objects.place(key);
        if two(Condition::Absent) > 1 {
            return Err(WitnessFault::IgnoresCondition { url, condition: "If-None-Match" });
        }
        let object = self.objects.get(key, self.limit).map_err(|none| none.fault)?;
        let Some(tag) = object.and_then(|object| object.tag) else { return Ok(()) };
        if two(Condition::Tag(&tag)) > 1 {
            return Err(WitnessFault::IgnoresCondition { url, condition: "If-Match" });
        }
        Ok(())
    }

    fn tag(&self, key: &str) -> Result<String, WitnessFault> {
        let object = self.objects.get(key, self.limit).map_err(|none| none.fault)?;
        object
            .and_then(|object| object.tag)
            .ok_or_else(|| WitnessFault::Answer { url: self.objects.place(key), reason: "an object without a tag".to_owned() })
    }

    /// The register and its tag. Asks again, until `deadline`, where something went wrong on the
    /// way; `in_doubt`, whether there is a put that may still be carried out.
    fn load(&self, deadline: Instant, in_doubt: bool) -> Result<Option<(Register, Option<String>)>, WitnessError> {
        let fail = |fault: WitnessFault| if in_doubt { fault.unknown() } else { fault.refused() };
        let mut pauses = Pauses::until(deadline);
        loop {
            match self.objects.get(&self.key, pauses.left()) {
                Ok(None) => return Ok(None),
                Ok(Some(object)) => {
                    let found = register(&self.objects.place(&self.key), &object.bytes).map_err(fail)?;
                    return Ok(Some((found, object.tag)));
                }
                Err(none) if none.refused => return Err(fail(none.fault)),
                Err(none) => {
                    if !pauses.pause() {
                        return Err(fail(none.fault));
                    }
                }
            }
        }
    }
}

impl Witness for S3Witness {
    fn read(&mut self) -> Result<Option<Register>, WitnessError> {
        Ok(self.load(Instant::now() + self.limit, false)?.map(|(register, _)| register))
    }

    fn swap(&mut self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError> {
        check_step(expected, new)?;
        let place = self.objects.place(&self.key);
        let mut pauses = Pauses::until(Instant::now() + self.limit);
        let mut in_doubt = false;
        loop {
            let (found, tag) = match self.load(pauses.deadline, in_doubt)? {
                None => (None, None),
                Some((register, tag)) => (Some(register), tag),
            };
            if found.as_ref() != expected {
                return settle(&place, expected, new, found);
            }
            let condition = match (&found, &tag) {
                (None, _) => Condition::Absent,
                (Some(_), Some(tag)) => Condition::Tag(tag),
                (Some(_), None) => {
                    let fault = WitnessFault::Answer { url: place, reason: "an object without a tag".to_owned() };
                    return Err(if in_doubt { fault.unknown() } else { fault.refused() });
                }
            };
            let fault = match self.objects.put(&self.key, condition, new.to_json().as_bytes(), pauses.left()) {
                Put::Done => return Ok(Swapped::Won),
                Put::Conflict(fault) => fault,
                Put::Refused(fault) => return Err(if in_doubt { fault.unknown() } else { fault.refused() }),
                Put::Unknown(fault) => {
                    in_doubt = true;
                    fault
                }
            };
            if !pauses.pause() {
                return Err(if in_doubt { fault.unknown() } else { fault.refused() });
            }
        }
    }
}

/// What was read.
struct Object {
    bytes: Vec<u8>,
    tag: Option<String>,
}

/// Why an object could not be read.
struct NotRead {
    /// The server refuses; to ask again is of no use.
    refused: bool,
    fault: WitnessFault,
}

impl Objects {
    /// What errors call an object: its URL, unsigned.
    fn place(&self, key: &str) -> String {
        self.bucket.object_url(key).into()
    }

    /// An object; none where there is none.
    fn get(&self, key: &str, limit: Duration) -> Result<Option<Object>, NotRead> {
        let place = self.place(key);
        let url = self.bucket.get_object(Some(&self.credentials.0), key).sign(SIGNED_FOR);
        let answer = self.http.send("GET", &place, url.as_str(), &[], None, limit);
        match answer {
            Ok(Answer { status: 200, body, etag }) => Ok(Some(Object { bytes: body, tag: etag })),
            // There are others: a bucket that is missing has no object either.
            Ok(answer) if answer.status == 404 && says(&answer.body, "<Code>NoSuchKey</Code>") => Ok(None),
            Ok(answer) => Err(NotRead { refused: is_refusal(answer.status), fault: answer.fault(&place) }),
            Err(NoAnswer { fault, .. }) => Err(NotRead { refused: false, fault }),
        }
    }

    fn put(&self, key: &str, condition: Condition<'_>, body: &[u8], limit: Duration) -> Put {
        let place = self.place(key);
        let mut action = self.bucket.put_object(Some(&self.credentials.0), key);
        action.headers_mut().insert(condition.name(), condition.value());
        let url = action.sign(SIGNED_FOR);
        let headers = [(condition.name(), condition.value())];
        match self.http.send("PUT", &place, url.as_str(), &headers, Some(body), limit) {
            Ok(answer) => match answer.status {
                200..=299 => Put::Done,
                409 | 412 => Put::Conflict(answer.fault(&place)),
                // An object that was to match is missing.
                404 if says(&answer.body, "<Code>NoSuchKey</Code>") => Put::Conflict(answer.fault(&place)),
                status if is_refusal(status) => Put::Refused(answer.fault(&place)),
                _ => Put::Unknown(answer.fault(&place)),
            },
            Err(none) if none.unsent => Put::Refused(none.fault),
            Err(none) => Put::Unknown(none.fault),
        }
    }

    fn remove(&self, key: &str, limit: Duration) -> Result<(), WitnessFault> {
        let place = self.place(key);
        let url = self.bucket.delete_object(Some(&self.credentials.0), key).sign(SIGNED_FOR);
        match self.http.send("DELETE", &place, url.as_str(), &[], None, limit) {
            Ok(answer) if matches!(answer.status, 200..=299 | 404) => Ok(()),
            Ok(answer) => Err(answer.fault(&place)),
            Err(none) => Err(none.fault),
        }
    }
}

fn says(body: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(body).contains(text)
}

/// Waits between attempts, each longer than the one before.
struct Pauses {
    deadline: Instant,
    next: Duration,
}

impl Pauses {
    const fn until(deadline: Instant) -> Self {
        Self { deadline, next: PAUSE_MIN }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether there is time for another attempt; then waits for it.
    fn pause(&mut self) -> bool {
        let left = self.left();
        if left <= self.next {
            return false;
        }
        sleep(self.next);
        self.next = (self.next * 2).min(PAUSE_MAX);
        true
    }
}
