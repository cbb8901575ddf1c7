//! What a chain is: `description.json`.

use serde::{Deserialize, Serialize};

use super::version::{FORMAT_VERSION, is_known};
use super::{ChainId, FormatError};
use crate::page::{EpochId, Gfn, PAGE_SIZE_U64, PageRun};
use crate::xxh3::xxh3_64;

/// The largest `description.json`, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 1 << 20;

/// One more than the highest gfn, and the most frames of all runs together.
const FRAMES_MAX: u64 = 1 << 40;

const RUNS_MAX: usize = 64;
const VCPUS_MAX: u32 = 4096;
const HASH_NAME: &str = "xxh3-64 ";

/// What a chain is, written once when it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The version of the format: [`FORMAT_VERSION`].
    pub format: u32,
    /// The chain's identifier.
    pub chain: ChainId,
    /// Bytes in a page: 4096.
    pub page_size: u64,
    /// When the chain was made, in nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// The name and version of the program that made it.
    pub created_by: String,
    /// The frames of guest memory: rising, disjoint, up to 64 runs and 2^40 frames below 2^40.
    pub memory: Vec<PageRun>,
    /// How many of the last runs are memory of devices, which the guest has at no address: less
    /// than all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub device_runs: usize,
    /// How many vCPUs: 1 to 4096.
    pub vcpus: u32,
    /// Whatever the VMM needs to build the machine again; opaque to the store.
    pub machine: serde_json::Value,
    /// Where it begins, for a branch of another chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch_of: Option<BranchPoint>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The name of the chain that is no branch.
pub const MAIN_BRANCH: &str = "main";

/// What [`is_branch_name`] takes, in words.
pub const BRANCH_NAMES: &str = "1 to 64 of a-z A-Z 0-9 . - _, first none of . and -, and not main";

/// Whether a branch may be called so.
#[must_use]
pub fn is_branch_name(name: &str) -> bool {
    let sound = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    sound && (1..=64).contains(&name.len()) && !name.starts_with(['.', '-']) && name != MAIN_BRANCH
}

/// An epoch of another chain that a branch begins at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchPoint {
    /// The name of the other chain: `main`, or that of a branch.
    pub branch: String,
    /// The epoch.
    pub epoch: EpochId,
    /// Its identity, as 32 hexadecimal digits.
    #[serde(with = "hex128")]
    pub identity: u128,
}

/// A 128-bit number as 32 hexadecimal digits.
mod hex128 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(&text, 16).ok().filter(|_| digits).ok_or_else(|| D::Error::custom("not 32 hexadecimal digits"))
    }
}

/// The field that is looked at before any other.
#[derive(Deserialize)]
struct Version {
    format: u64,
}

impl Description {
    /// The file's bytes.
    ///
    /// # Errors
    /// A limit that a field breaks; more than 1 MiB in all.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check().map_err(|(field, expected, found)| FormatError::Input { what: field, expected, found })?;
        let mut bytes =
            serde_json::to_vec(self).map_err(|error| FormatError::input("machine", "what JSON can say", error.to_string()))?;
        let hash = xxh3_64(&bytes);
        bytes.extend(format!("\n{HASH_NAME}{hash:016x}\n").into_bytes());
        if bytes.len() > DESCRIPTION_BYTES_MAX {
            return Err(FormatError::input("bytes of the description", format!("up to {DESCRIPTION_BYTES_MAX}"), bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads the file's bytes. The version is looked at first.
    ///
    /// # Errors
    /// [`FormatError::Version`] for another version; otherwise what is wrong, with its offset in
    /// the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > DESCRIPTION_BYTES_MAX {
            return Err(FormatError::field("bytes of the description", 0, format!("up to {DESCRIPTION_BYTES_MAX}"), bytes.len()));
        }
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (line, rest) = bytes.split_at(end);
        if let Ok(Version { format }) = serde_json::from_slice(line)
            && !is_known(format)
        {
            return Err(FormatError::Version { offset: 0, found: format });
        }
        let hash = format!("\n{HASH_NAME}{:016x}\n", xxh3_64(line));
        if rest != hash.as_bytes() {
            let found = String::from_utf8_lossy(rest.get(..rest.len().min(40)).unwrap_or_default()).into_owned();
            return Err(FormatError::field("second line", end, format!("{:?}", hash.trim()), format!("{:?}", found.trim())));
        }
        // A field that nobody knows is not looked into: as bytes it could be anything.
        let line =
            std::str::from_utf8(line).map_err(|error| FormatError::field("first line", error.valid_up_to(), "UTF-8", error))?;
        let description: Self = serde_json::from_str(line)
            .map_err(|error| FormatError::field("first line", error.column(), "the fields of a description", error))?;
        description.check().map_err(|(field, expected, found)| FormatError::Field { field, offset: 0, expected, found })?;
        Ok(description)
    }

    /// The frames of guest memory in all.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.memory.iter().fold(0, |sum, run| sum.saturating_add(run.count))
    }

    /// The runs of memory that are the guest's: all but those of devices.
    #[must_use]
    pub fn guest_memory(&self) -> &[PageRun] {
        self.memory.get(..self.memory.len().saturating_sub(self.device_runs)).unwrap_or_default()
    }

    /// The runs of memory that are of devices.
    #[must_use]
    pub fn device_memory(&self) -> &[PageRun] {
        self.memory.get(self.guest_memory().len()..).unwrap_or_default()
    }

    /// Whether every frame of `run` is one of guest memory.
    #[must_use]
    pub fn contains_run(&self, run: PageRun) -> bool {
        let Some(end) = run.end() else { return false };
        let mut at = run.first;
        let from = self.memory.partition_point(|own| own.first <= at).saturating_sub(1);
        for own in self.memory.iter().skip(from) {
            if !own.contains(at) {
                break;
            }
            match own.end() {
                Some(own_end) if own_end < end => at = own_end,
                _ => return true,
            }
        }
        run.count == 0
    }

    /// Whether `gfn` is a frame of guest memory.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        let from = self.memory.partition_point(|own| own.first <= gfn).saturating_sub(1);
        self.memory.get(from).is_some_and(|own| own.contains(gfn))
    }

    /// Field, what it may be, what it is.
    fn check(&self) -> Result<(), (&'static str, String, String)> {
        let wrong = |field, expected: &dyn ToString, found: &dyn ToString| Err((field, expected.to_string(), found.to_string()));
        if !is_known(self.format) {
            return wrong("format", &FORMAT_VERSION, &self.format);
        }
        if self.page_size != PAGE_SIZE_U64 {
            return wrong("page_size", &PAGE_SIZE_U64, &self.page_size);
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return wrong("vcpus", &format!("1 to {VCPUS_MAX}"), &self.vcpus);
        }
        if !(1..=RUNS_MAX).contains(&self.memory.len()) {
            return wrong("memory", &format!("1 to {RUNS_MAX} runs"), &self.memory.len());
        }
        if self.device_runs >= self.memory.len() {
            return wrong("device_runs", &format!("less than {}, all of `memory`", self.memory.len()), &self.device_runs);
        }
        if let Some(from) = &self.branch_of {
            if from.epoch == EpochId::NONE {
                return wrong("epoch of branch_of", &"at least 1", &0);
            }
            if from.branch != MAIN_BRANCH && !is_branch_name(&from.branch) {
                return wrong("branch of branch_of", &BRANCH_NAMES, &from.branch.escape_default());
            }
        }
        let mut least = Gfn(0);
        for run in &self.memory {
            if run.first < least {
                return wrong("memory", &format!("a run that begins at {least} or above"), &run.first);
            }
            // Disjoint runs below 2^40 hold no more than 2^40 frames.
            least = match run.end() {
                Some(end) if run.count > 0 && end.0 <= FRAMES_MAX => end,
                _ => {
                    return wrong("memory", &"runs of 1 frame or more, below 2^40", &format!("{} from {}", run.count, run.first));
                }
            };
        }
        Ok(())
    }
}
