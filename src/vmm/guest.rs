//! The built-in guests: which there are, and what the VMM needs of each.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use kvm_bindings::{kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs};
use serde::{Deserialize, Serialize};

use super::error::VmmError;
use super::flat::{self, Segment};
use super::linux::{self, LinuxError};
use super::{churn, touch};
use crate::kvm::probe::{Refused, runs_kernels};

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestSpec {
    /// The built-in guest that rewrites pages and checks them.
    Churn(churn::Options),
    /// The built-in guest that writes to listed pages, for measuring. It checks nothing, and so is always well.
    Touch(touch::Options),
    /// A stock Linux kernel. It checks nothing either.
    Linux(linux::Options),
}

/// Why a text names no guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestSpecError {
    /// Another name.
    #[error("there is no guest `{found}`: expected `churn` or `touch`, or one with options as in `churn:pages=16M`")]
    Name {
        /// The name before the colon.
        found: String,
    },
    /// Options of `churn`.
    #[error(transparent)]
    Churn(#[from] churn::OptionsError),
    /// Options of `touch`.
    #[error(transparent)]
    Touch(#[from] touch::OptionsError),
}

impl GuestSpec {
    /// The time of which each begins at most one pass; zero for no pacing.
    #[must_use]
    pub const fn every(&self) -> Duration {
        match self {
            Self::Churn(options) => options.every(),
            Self::Touch(options) => options.every(),
            Self::Linux(_) => Duration::ZERO,
        }
    }

    /// Whether the guest can check itself when it is asked to.
    #[must_use]
    pub const fn checks_itself(&self) -> bool {
        matches!(self, Self::Churn(_))
    }

    /// Whether the guest fits a machine, and the KVM whose device is `kvm_path` can run it.
    pub(super) fn check(&self, memory_bytes: u64, vcpus: u32, kvm_path: &Path) -> Result<(), VmmError> {
        self.fits(memory_bytes, vcpus)?;
        match self {
            Self::Linux(_) => runs_kernels(kvm_path).map_err(|refused| match refused {
                Refused::Host(error) => error.into(),
                refused => LinuxError::Kvm(refused).into(),
            }),
            Self::Churn(_) | Self::Touch(_) => Ok(()),
        }
    }

    /// Whether the guest fits a machine.
    pub(super) fn fits(&self, memory_bytes: u64, vcpus: u32) -> Result<(), VmmError> {
        match self {
            Self::Linux(options) => Ok(options.check(vcpus)?),
            Self::Churn(_) | Self::Touch(_) => self.image(memory_bytes, vcpus).map(drop),
        }
    }

    /// The built-in guest for a machine.
    pub(super) fn image(&self, memory_bytes: u64, vcpus: u32) -> Result<Image, VmmError> {
        Ok(match self {
            Self::Churn(options) => Image::Churn(churn::Image::build(options, memory_bytes, vcpus)?),
            Self::Touch(options) => Image::Touch(touch::Image::build(options, memory_bytes, vcpus)?),
            Self::Linux(_) => return Err(LinuxError::NotBuiltIn.into()),
        })
    }
}

impl FromStr for GuestSpec {
    type Err = GuestSpecError;

    fn from_str(text: &str) -> Result<Self, GuestSpecError> {
        match text.split(':').next().unwrap_or_default() {
            "churn" => Ok(Self::Churn(text.parse()?)),
            "touch" => Ok(Self::Touch(text.parse()?)),
            found => Err(GuestSpecError::Name { found: found.to_owned() }),
        }
    }
}

impl fmt::Display for GuestSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Churn(options) => options.fmt(f),
            Self::Touch(options) => options.fmt(f),
            Self::Linux(_) => f.write_str("linux"),
        }
    }
}

/// A guest, ready to be loaded.
pub(super) enum Image {
    Churn(churn::Image),
    Touch(touch::Image),
}

impl Image {
    pub(super) fn segments(&self) -> &[Segment] {
        match self {
            Self::Churn(image) => image.segments(),
            Self::Touch(image) => image.segments(),
        }
    }

    pub(super) fn initial_regs(&self, vcpu: u32) -> Option<kvm_regs> {
        match self {
            Self::Churn(image) => image.initial_regs(vcpu),
            Self::Touch(image) => image.initial_regs(vcpu),
        }
    }

    /// The same for all of them.
    pub(super) const fn initial_sregs(sregs: kvm_sregs) -> kvm_sregs {
        flat::initial_sregs(sregs)
    }

    /// The same for all of them.
    pub(super) fn initial_lapic(lapic: kvm_lapic_state) -> kvm_lapic_state {
        flat::initial_lapic(lapic)
    }

    /// The same for all of them.
    pub(super) const fn initial_mp_state() -> kvm_mp_state {
        flat::initial_mp_state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_named_before_the_colon() {
        for text in ["churn", "churn:pages=16", "touch", "touch:pages=60,cut=0"] {
            assert_eq!(text.parse::<GuestSpec>().map(|guest| guest.to_string()), Ok(text.to_owned()));
        }
        let message = "there is no guest `linux`: expected `churn` or `touch`, or one with options as in `churn:pages=16M`";
        assert_eq!("linux:pages=1".parse::<GuestSpec>().map_err(|error| error.to_string()), Err(message.to_owned()));
        assert!(matches!("touch:hot=1".parse::<GuestSpec>(), Err(GuestSpecError::Touch(_))));
        let json = serde_json::to_string(&"touch:pages=60".parse::<GuestSpec>().unwrap()).unwrap();
        assert_eq!(json, r#"{"touch":"touch:pages=60"}"#);
    }
}
