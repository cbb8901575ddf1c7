//! `description.json`: what the chain is.

use std::io::ErrorKind;

use serde::Deserialize;
use serde_json::Value;

use super::frame::FORMAT;
use super::place::Place;
use super::report::VerifyError;
use crate::page::{Gfn, PageRun};
use crate::xxh3::xxh3_64;

/// The name of the file.
pub(super) const NAME: &str = "description.json";
/// The name of the chain in the store's directory itself.
pub(super) const MAIN: &str = "main";
const BYTES_MAX: usize = 1 << 20;
const RUNS_MAX: usize = 64;
const FRAMES_MAX: u64 = 1 << 40;

/// What a reader needs of the description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    /// The chain's identifier.
    pub(super) chain: [u8; 16],
    /// The version of the format.
    pub(super) format: u32,
    /// Guest memory: rising, and neighbours joined.
    memory: Vec<PageRun>,
    /// How many of the runs, as they stand in the file, are of devices.
    device_runs: u64,
    vcpus: u64,
    machine: Value,
    /// Where the chain begins, if it is a branch.
    pub(super) branch_of: Option<BranchOf>,
}

/// The epoch that a branch begins at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BranchOf {
    /// The branch that the epoch is in, or `main`.
    pub(super) branch: String,
    pub(super) epoch: u64,
    pub(super) identity: u128,
}

impl Description {
    /// Why a chain with this description is no branch of one with `other`.
    pub(super) fn differs(&self, other: &Self) -> Option<&'static str> {
        [
            (self.chain == other.chain, "another identifier than the chain that it begins in"),
            (self.memory != other.memory || self.device_runs != other.device_runs, "the same memory"),
            (self.vcpus != other.vcpus, "the same number of vCPUs"),
            (self.machine != other.machine, "the same machine"),
        ]
        .into_iter()
        .find_map(|(differs, expected)| differs.then_some(expected))
    }

    /// Whether all of `run` is guest memory.
    pub(super) fn holds(&self, run: PageRun) -> bool {
        let behind = self.memory.partition_point(|memory| memory.first <= run.first);
        let memory = behind.checked_sub(1).and_then(|index| self.memory.get(index));
        memory.is_some_and(|memory| run.end().zip(memory.end()).is_some_and(|(end, memory_end)| end <= memory_end))
    }
}

#[derive(Deserialize)]
struct Fields {
    chain: String,
    page_size: u64,
    #[serde(rename = "created_unix_ns")]
    _created_unix_ns: u64,
    #[serde(rename = "created_by")]
    _created_by: String,
    memory: Vec<PageRun>,
    #[serde(default)]
    device_runs: u64,
    vcpus: u64,
    machine: Value,
}

#[derive(Deserialize)]
struct BranchFields {
    branch: String,
    epoch: u64,
    identity: String,
}

/// Reads the description of the chain in a directory.
pub(super) fn read(place: &Place) -> Result<Description, VerifyError> {
    let path = place.path().join(NAME);
    match place.look(NAME) {
        Ok(found) if found.is_file => {}
        Ok(_) => return Err(VerifyError::NotAFile { path }),
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(VerifyError::NoDescription { path }),
        Err(source) => return Err(VerifyError::Io { path, offset: 0, source }),
    }
    let read = place.head(NAME, BYTES_MAX + 1);
    let bytes = read.map_err(|source| VerifyError::Io { path: path.clone(), offset: 0, source })?;
    parse(&bytes).map_err(|problem| match problem {
        Problem::Version(found) => VerifyError::Version { path, found },
        Problem::Content(expected, found) => VerifyError::Description { path, expected, found },
    })
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Version(String),
    Content(String, String),
}

fn content(expected: impl Into<String>, found: impl Into<String>) -> Problem {
    Problem::Content(expected.into(), found.into())
}

pub(super) fn parse(bytes: &[u8]) -> Result<Description, Problem> {
    if bytes.len() > BYTES_MAX {
        return Err(content(format!("at most {BYTES_MAX} bytes"), "more"));
    }
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, rest) = bytes.split_at(split);
    let value: Value = serde_json::from_slice(line).map_err(|error| content("a JSON object in line 1", error.to_string()))?;
    // The version comes before the hash: another version may hash in another way.
    let format = match value.get("format") {
        Some(format) => match format.as_u64().and_then(|format| u32::try_from(format).ok()) {
            Some(FORMAT) => FORMAT,
            _ => return Err(Problem::Version(format.to_string())),
        },
        None => return Err(content("the field `format`", "none")),
    };
    let expected = format!("\nxxh3-64 {:016x}\n", xxh3_64(line));
    if rest != expected.as_bytes() {
        return Err(content(
            format!("`{}`, a line feed and nothing more in line 2", expected.trim()),
            format!("`{}`", String::from_utf8_lossy(rest.get(1..rest.len().min(64)).unwrap_or_default()).escape_debug()),
        ));
    }
    // Parsed again from the text, because a field that stands there twice shows only then.
    let fields: Fields =
        serde_json::from_slice(line).map_err(|error| content("the fields of a description", error.to_string()))?;
    if fields.page_size != 4096 {
        return Err(content("`page_size` 4096", fields.page_size.to_string()));
    }
    if !(1..=4096).contains(&fields.vcpus) {
        return Err(content("`vcpus` from 1 to 4096", fields.vcpus.to_string()));
    }
    let memory = memory(&fields.memory)?;
    if fields.device_runs >= fields.memory.len() as u64 {
        return Err(content(format!("`device_runs` below {}", fields.memory.len()), fields.device_runs.to_string()));
    }
    let branch_of = value.get("branch_of").filter(|value| !value.is_null()).map(branch_of).transpose()?;
    Ok(Description {
        chain: digits("chain", &fields.chain)?,
        format,
        memory,
        device_runs: fields.device_runs,
        vcpus: fields.vcpus,
        machine: fields.machine,
        branch_of,
    })
}

fn branch_of(value: &Value) -> Result<BranchOf, Problem> {
    let fields = BranchFields::deserialize(value).map_err(|error| content("`branch_of` with its fields", error.to_string()))?;
    if fields.branch != MAIN && !is_branch_name(&fields.branch) {
        return Err(content("`branch_of` with the name of a branch", format!("`{}`", fields.branch.escape_debug())));
    }
    if fields.epoch == 0 {
        return Err(content("`branch_of` with an epoch from 1 on", "0"));
    }
    // Digits are read as they stand: the highest comes first.
    let identity = u128::from_be_bytes(digits("identity", &fields.identity)?);
    Ok(BranchOf { branch: fields.branch, epoch: fields.epoch, identity })
}

/// Whether a branch may be called `name`.
pub(super) fn is_branch_name(name: &str) -> bool {
    let known = |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    (1..=64).contains(&name.len()) && !name.starts_with(['.', '-']) && name.bytes().all(known) && name != MAIN
}

/// The 16 bytes that the field `name` holds as hexadecimal digits.
fn digits(name: &str, text: &str) -> Result<[u8; 16], Problem> {
    let wrong = || content(format!("`{name}` of 32 hexadecimal digits in lower case"), format!("`{}`", text.escape_debug()));
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).filter(|_| !digit.is_ascii_uppercase()).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    let pairs: Vec<u8> = digits.chunks_exact(2).filter_map(|pair| Some(pair.first()? << 4 | pair.last()?)).collect();
    if digits.len() != 32 {
        return Err(wrong());
    }
    pairs.try_into().map_err(|_| wrong())
}

fn memory(runs: &[PageRun]) -> Result<Vec<PageRun>, Problem> {
    if !(1..=RUNS_MAX).contains(&runs.len()) {
        return Err(content(format!("1 to {RUNS_MAX} runs in `memory`"), runs.len().to_string()));
    }
    let mut joined: Vec<PageRun> = Vec::new();
    for run in runs {
        let text = || format!("{} frames from {:#x}", run.count, run.first.0);
        let end = run.end().filter(|end| run.count > 0 && end.0 <= FRAMES_MAX);
        let Some(Gfn(end)) = end else {
            return Err(content("runs in `memory` of at least one frame, below 2^40", text()));
        };
        match joined.last_mut() {
            Some(last) if last.first.0 + last.count > run.first.0 => {
                return Err(content("runs in `memory` that rise and are disjoint", text()));
            }
            Some(last) if last.first.0 + last.count == run.first.0 => last.count = end - last.first.0,
            _ => joined.push(*run),
        }
    }
    Ok(joined)
}
