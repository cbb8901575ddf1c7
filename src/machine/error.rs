//! Why state could not be captured, applied, encoded or decoded.

/// Why state could not be captured, applied or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The kernel refused a call.
    #[error("{ioctl} for {piece}{} failed", of_vcpu(*.vcpu))]
    Ioctl {
        /// The call's name in the kernel's API.
        ioctl: &'static str,
        /// The piece of state, as records name it.
        piece: &'static str,
        /// The vCPU, or `None` for pieces of the VM.
        vcpu: Option<u32>,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A piece has another size than this host's or this version's.
    #[error("{piece} has {found} bytes instead of {expected}")]
    Size {
        /// The piece of state, as records name it.
        piece: &'static str,
        /// Bytes as they should be.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The kernel stopped at one of the model-specific registers.
    #[error("model-specific register {index:#x} of vCPU {vcpu} could not be {action}")]
    Msr {
        /// The vCPU.
        vcpu: u32,
        /// The register.
        index: u32,
        /// `read` or `written`.
        action: &'static str,
    },
    /// The guest or the state uses something that is not captured, or that this VM does not have.
    #[error("{piece}{} is not supported here: {reason}", of_vcpu(*.vcpu))]
    Unsupported {
        /// The piece of state: as records name it, or as [`NOT_CAPTURED`](super::NOT_CAPTURED)
        /// does.
        piece: &'static str,
        /// The vCPU, or `None` for pieces of the VM.
        vcpu: Option<u32>,
        /// Why.
        reason: &'static str,
    },
    /// A record that this version doesn't know. State is used whole or not at all.
    #[error("unknown state record {name} {index} of version {version}")]
    UnknownRecord {
        /// The record's name.
        name: String,
        /// The record's index.
        index: u32,
        /// The record's version.
        version: u16,
    },
    /// A piece that must be there is not.
    #[error("{piece}{} is missing", of_vcpu(*.vcpu))]
    Missing {
        /// The piece of state, as records name it.
        piece: &'static str,
        /// The vCPU, or `None` for pieces of the VM.
        vcpu: Option<u32>,
    },
    /// A record that must be there is not.
    #[error("state record {name} {index} is missing")]
    MissingRecord {
        /// The record's name.
        name: String,
        /// The record's index.
        index: u32,
    },
    /// Two records with one name and index.
    #[error("state record {name} {index} is there twice")]
    Duplicate {
        /// The records' name.
        name: String,
        /// The records' index.
        index: u32,
    },
    /// A record whose bytes can't be what its name says.
    #[error("state record {name} {index}, byte {offset}: expected {expected}")]
    Malformed {
        /// The record's name.
        name: String,
        /// The record's index.
        index: u32,
        /// Where in the record's data, in bytes.
        offset: usize,
        /// What should have been there.
        expected: &'static str,
    },
}

fn of_vcpu(vcpu: Option<u32>) -> String {
    vcpu.map(|vcpu| format!(" of vCPU {vcpu}")).unwrap_or_default()
}

/// What came of the call `ioctl`, for `piece` of vCPU `vcpu`, or of the VM.
pub(super) fn failed(ioctl: &'static str, piece: &'static str, vcpu: Option<u32>) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |error| StateError::Ioctl { ioctl, piece, vcpu, source: error.into() }
}
