//! A socket device as text: `cid=N,path=PATH`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::listener::PATH_BYTES_MAX;

/// The first address that a guest can have; those below have a meaning.
const CID_MIN: u32 = 3;
/// The last one; the one behind it means any.
const CID_MAX: u32 = u32::MAX - 1;

/// Why a text is no socket device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VsockSpecError {
    /// It has another form.
    #[error("`{text}` is not `cid=N,path=PATH`")]
    Form {
        /// The text.
        text: String,
    },
    /// An address that a guest can't have.
    #[error("`cid={value}` is not allowed: {CID_MIN} to {CID_MAX}")]
    Cid {
        /// The value.
        value: String,
    },
    /// A path that a socket can't have.
    #[error("`path={value}` is not allowed: 1 to {PATH_BYTES_MAX} bytes, none of them zero")]
    Path {
        /// The value.
        value: String,
    },
}

/// What a guest's socket device is. Made from text; [`Display`](fmt::Display) gives the same text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VsockSpec {
    cid: u32,
    path: String,
}

impl VsockSpec {
    /// The guest's address: 3 to 2^32 - 2.
    #[must_use]
    pub const fn cid(&self) -> u32 {
        self.cid
    }

    /// Where host programs connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    /// The path, to be kept.
    #[must_use]
    pub fn into_path(self) -> PathBuf {
        self.path.into()
    }
}

impl FromStr for VsockSpec {
    type Err = VsockSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let values = text.strip_prefix("cid=").and_then(|text| text.split_once(",path="));
        let Some((cid, path)) = values else { return Err(VsockSpecError::Form { text: text.to_owned() }) };
        let number = cid.parse().ok().filter(|cid| (CID_MIN..=CID_MAX).contains(cid));
        let Some(number) = number else { return Err(VsockSpecError::Cid { value: cid.to_owned() }) };
        if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains('\0') {
            return Err(VsockSpecError::Path { value: path.to_owned() });
        }
        Ok(Self { cid: number, path: path.to_owned() })
    }
}

impl TryFrom<String> for VsockSpec {
    type Error = VsockSpecError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VsockSpec> for String {
    fn from(spec: VsockSpec) -> Self {
        spec.to_string()
    }
}

impl fmt::Display for VsockSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cid={},path={}", self.cid, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_its_text() {
        for (text, cid, path) in
            [("cid=3,path=/run/guest.sock", 3, "/run/guest.sock"), ("cid=4294967294,path=a,path=b", CID_MAX, "a,path=b")]
        {
            let spec: VsockSpec = text.parse().unwrap();
            assert_eq!((spec.cid(), spec.path(), spec.to_string().as_str()), (cid, Path::new(path), text));
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<VsockSpec>(&json).unwrap(), spec);
        }
        assert!(serde_json::from_str::<VsockSpec>("\"cid=2,path=x\"").is_err());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| text.parse::<VsockSpec>().unwrap_err();
        for text in ["", "3", "cid=3", "path=x", "path=x,cid=3", "cid=3,path", " cid=3,path=x", "CID=3,path=x"] {
            assert_eq!(error(text), VsockSpecError::Form { text: text.to_owned() });
        }
        for value in ["", "2", "0", "-1", "x", "4294967295", "4294967296", "3 "] {
            assert_eq!(error(&format!("cid={value},path=x")), VsockSpecError::Cid { value: value.to_owned() });
        }
        let long = "x".repeat(PATH_BYTES_MAX + 1);
        for value in ["", "a\0b", &long] {
            assert_eq!(error(&format!("cid=3,path={value}")), VsockSpecError::Path { value: value.to_owned() });
        }
        assert!(format!("cid=3,path={}", &long[1..]).parse::<VsockSpec>().is_ok());
    }
}
