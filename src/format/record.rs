//! One named piece of machine state as bytes.

/// A piece of machine state: what a chain stores and a restore must consume, whole.
///
/// `docs/format.md`, "State", fixes the limits: names are 1 to 64 bytes of `a-z 0-9 . - _`, data is
/// at most 16 MiB, and (`name`, `index`) is unique within an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRecord {
    /// What the data is, for example `vcpu.sregs`.
    pub name: String,
    /// The vCPU, or the instance of a device; 0 for pieces of the VM.
    pub index: u32,
    /// The version of the data's layout, at least 1.
    pub version: u16,
    /// The bytes, in the layout that name and version give.
    pub data: Vec<u8>,
}
