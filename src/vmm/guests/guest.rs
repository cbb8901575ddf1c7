//! The guests: which there are, and what the VMM needs of each.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::churn::{Inconsistency, PrivatePage, private_page_address};
use super::flat::FlatImage;
use super::options::{OptionsError, as_text};
use super::{churn, ledger, linux, touch};
use crate::kvm::probe::{Refused, runs_kernels};
use crate::page::PageBytes;
use crate::vmm::boot::LinuxError;
use crate::vmm::devices::DiskBase;
use crate::vmm::error::VmmError;

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestSpec {
    /// The built-in guest that rewrites pages and checks them.
    Churn(#[serde(with = "as_text")] churn::Options),
    /// The built-in guest that writes to listed pages, for measuring. It checks nothing, and so is
    /// always well.
    Touch(#[serde(with = "as_text")] touch::Options),
    /// The built-in guest that serves requests over a network. It checks nothing: its clients do.
    Ledger(#[serde(with = "as_text")] ledger::Options),
    /// A stock Linux kernel. It checks nothing either.
    Linux(linux::Options),
}

/// Why a text names no guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestSpecError {
    /// Another name.
    #[error("there is no guest `{found}`: expected `churn`, `touch` or `ledger`, or one with options as in `churn:pages=16M`")]
    Name {
        /// The name before the colon.
        found: String,
    },
    /// Its options.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl GuestSpec {
    /// The time of which each begins at most one pass; zero for no pacing.
    #[must_use]
    pub const fn every(&self) -> Duration {
        match self {
            Self::Churn(options) => options.every(),
            Self::Touch(options) => options.every(),
            Self::Ledger(options) => options.every(),
            Self::Linux(_) => Duration::ZERO,
        }
    }

    /// Whether the guest can check itself when it is asked to.
    #[must_use]
    pub const fn checks_itself(&self) -> bool {
        matches!(self, Self::Churn(_))
    }

    /// The disks of a Linux guest.
    pub(in crate::vmm) fn disks(&self) -> &[DiskBase] {
        match self {
            Self::Linux(options) => &options.disks,
            Self::Churn(_) | Self::Touch(_) | Self::Ledger(_) => &[],
        }
    }

    /// The fewest and the most network devices that it can have.
    pub(in crate::vmm) const fn nets(&self) -> (usize, usize) {
        match self {
            Self::Churn(_) | Self::Touch(_) => (0, 0),
            Self::Ledger(_) => (1, 1),
            Self::Linux(_) => (0, usize::MAX),
        }
    }

    /// Passes of all vCPUs since the guest was first started, and the first thing that it found
    /// wrong. `page` reads the page at a guest physical address.
    pub(in crate::vmm) fn read_pages(&self, vcpus: u32, page: impl Fn(u64) -> Option<PageBytes>) -> (u64, Option<Inconsistency>) {
        match self {
            Self::Churn(_) => {
                let pages = (0..vcpus).filter_map(|vcpu| Some(PrivatePage::parse(vcpu, &page(private_page_address(vcpu))?)));
                pages.fold((0, None), |(passes, found), private| (passes + private.passes, found.or(private.inconsistency)))
            }
            Self::Touch(options) => {
                let control = page(touch::control_address(options));
                (control.map_or(0, |control| touch::passes(&control, vcpus)), None)
            }
            // A request is its pass.
            Self::Ledger(_) => (page(ledger::state_address()).map_or(0, |state| ledger::requests(&state)), None),
            Self::Linux(_) => (0, None),
        }
    }

    /// Whether the guest fits a machine, and the KVM whose device is `kvm_path` can run it.
    pub(in crate::vmm) fn check(&self, memory_bytes: u64, vcpus: u32, kvm_path: &Path) -> Result<(), VmmError> {
        self.fits(memory_bytes, vcpus)?;
        match self {
            Self::Linux(_) => runs_kernels(kvm_path).map_err(|refused| match refused {
                Refused::Host(error) => error.into(),
                refused => LinuxError::Kvm(refused).into(),
            }),
            Self::Churn(_) | Self::Touch(_) | Self::Ledger(_) => Ok(()),
        }
    }

    /// Whether the guest fits a machine.
    pub(in crate::vmm) fn fits(&self, memory_bytes: u64, vcpus: u32) -> Result<(), VmmError> {
        match self {
            Self::Linux(options) => Ok(options.check(vcpus)?),
            Self::Churn(_) | Self::Touch(_) | Self::Ledger(_) => self.image(memory_bytes, vcpus).map(drop),
        }
    }

    /// The built-in guest for a machine.
    pub(in crate::vmm) fn image(&self, memory_bytes: u64, vcpus: u32) -> Result<FlatImage, VmmError> {
        Ok(match self {
            Self::Churn(options) => churn::Image::build(options, memory_bytes, vcpus)?.into_flat(),
            Self::Touch(options) => touch::Image::build(options, memory_bytes, vcpus)?.into_flat(),
            Self::Ledger(options) => ledger::build(options, memory_bytes, vcpus)?,
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
            "ledger" => Ok(Self::Ledger(text.parse()?)),
            found => Err(GuestSpecError::Name { found: found.to_owned() }),
        }
    }
}

impl fmt::Display for GuestSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Churn(options) => options.fmt(f),
            Self::Touch(options) => options.fmt(f),
            Self::Ledger(options) => options.fmt(f),
            Self::Linux(_) => f.write_str("linux"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_guest_is_named_before_the_colon() {
        for text in ["churn", "churn:pages=16", "touch", "touch:pages=60,cut=0", "ledger", "ledger:pages=60,port=9"] {
            assert_eq!(text.parse::<GuestSpec>().map(|guest| guest.to_string()), Ok(text.to_owned()));
        }
        let message =
            "there is no guest `linux`: expected `churn`, `touch` or `ledger`, or one with options as in `churn:pages=16M`";
        assert_eq!("linux:pages=1".parse::<GuestSpec>().map_err(|error| error.to_string()), Err(message.to_owned()));
        assert!(matches!(
            "touch:hot=1".parse::<GuestSpec>(),
            Err(GuestSpecError::Options(OptionsError::Key { guest: "touch", .. }))
        ));
    }

    #[test]
    fn a_built_in_guest_is_its_text_in_json() {
        for (text, json) in [
            ("touch:pages=60", r#"{"touch":"touch:pages=60"}"#),
            ("ledger:ip=10.0.0.1", r#"{"ledger":"ledger:ip=10.0.0.1"}"#),
            ("churn:pattern=hotcold,hot=3,every=50ms", r#"{"churn":"churn:pattern=hotcold,hot=3,every=50ms"}"#),
        ] {
            let guest: GuestSpec = text.parse().unwrap();
            assert_eq!(serde_json::to_string(&guest).unwrap(), json);
            assert_eq!(serde_json::from_str::<GuestSpec>(json).unwrap(), guest);
        }
        let error = serde_json::from_str::<GuestSpec>(r#"{"churn":"churn:hot=1"}"#).unwrap_err().to_string();
        assert!(error.contains("option `hot` of `churn` needs `pattern=hotcold`, the pattern is uniform"), "{error}");
    }
}
