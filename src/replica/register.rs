//! Which machine is the one that goes on: the register that a witness keeps. Pure.
//!
//! It is one value outside both hosts. Only a swap changes it: from the very value that the swapper
//! has seen to another one, whose generation is higher by one. So of all that start from one value
//! at most one wins.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which change of the register is the newest: each swap makes it one more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// Of a register that nobody has written.
    pub const NONE: Self = Self(0);

    /// That of the next swap; none behind the last number.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// 16 random bytes, written as 32 hexadecimal digits.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let is_written_so = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                let id = is_written_so.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
                id.map(Self).ok_or_else(|| "it has to be 32 digits of 0 to 9 and a to f".to_owned())
            }
        }
    };
}

random_id! {
    /// One life of a machine: of a process that runs it, or of one attempt to be its standby. It is
    /// drawn anew each time, so nobody can be taken for who was there before, on the same host or
    /// in the same process.
    Incarnation
}

random_id! {
    /// What tells a swap from every other: drawn for each, kept while it is repeated.
    Nonce
}

/// Who goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Holder {
    /// This one runs the machine.
    Solo(Incarnation),
    /// The first runs the machine. The other holds every epoch whose outputs have left, and may
    /// take its place.
    Paired(Incarnation, Incarnation),
}

impl Holder {
    /// Whether it names this one.
    #[must_use]
    pub fn names(self, who: Incarnation) -> bool {
        match self {
            Self::Solo(solo) => solo == who,
            Self::Paired(primary, standby) => primary == who || standby == who,
        }
    }

    /// Who runs the machine.
    #[must_use]
    pub const fn primary(self) -> Incarnation {
        match self {
            Self::Solo(primary) | Self::Paired(primary, _) => primary,
        }
    }
}

/// What the register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// How many swaps led to it.
    pub generation: Generation,
    /// Who goes on.
    pub holder: Holder,
    /// Of the swap that wrote it.
    pub nonce: Nonce,
}

impl Register {
    /// Its JSON, as every witness keeps it: one line without a line feed.
    ///
    /// ```text
    /// {"generation":2,"holder":{"paired":["<32 digits>","<32 digits>"]},"nonce":"<32 digits>"}
    /// ```
    #[must_use]
    pub fn to_json(&self) -> String {
        // Numbers and strings: nothing in it can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what [`to_json`](Self::to_json) made.
    ///
    /// # Errors
    /// Anything else.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_json_comes_back_and_nothing_else_is_taken() {
        let register = Register {
            generation: Generation(7),
            holder: Holder::Paired(Incarnation(1), Incarnation(u128::MAX)),
            nonce: Nonce(0xabc),
        };
        let json = register.to_json();
        assert_eq!(
            json,
            "{\"generation\":7,\"holder\":{\"paired\":[\"00000000000000000000000000000001\",\
             \"ffffffffffffffffffffffffffffffff\"]},\"nonce\":\"00000000000000000000000000000abc\"}"
        );
        assert_eq!(Register::from_json(json.as_bytes()).unwrap(), register);
        for (part, other) in
            [("7", "-7"), ("paired", "both"), ("abc", "ABC"), ("abc", "+bc"), ("}", ""), ("\"nonce", "\"x\":1,\"nonce")]
        {
            assert!(Register::from_json(json.replacen(part, other, 1).as_bytes()).is_err(), "{part} -> {other}");
        }
    }
}
