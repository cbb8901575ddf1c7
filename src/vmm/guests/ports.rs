//! The ports of the built-in guests. All are 32 bits wide.

/// Written by `churn` after each pass: the low 32 bits of the number of passes.
pub const PORT_PROGRESS: u16 = 0x10;
/// Read by `churn` after each pass: orders, as [`COMMAND_CHECK`].
pub const PORT_COMMAND: u16 = 0x11;
/// Written by `churn` after a whole check that found nothing: the number of pages checked.
pub const PORT_CHECKED: u16 = 0x12;
/// Written by `churn` at the first inconsistency: the number of its [`Code`](super::churn::Code).
pub const PORT_INCONSISTENT: u16 = 0x13;
/// Read before a pass, with pacing: the VMM answers when the period begins.
pub const PORT_PACE: u16 = 0x14;
/// Written by vCPU 0 of `touch` when a cut is due: the low 32 bits of the number of passes.
pub const PORT_CUT: u16 = 0x15;

/// Bit of [`PORT_COMMAND`]: check everything, now. A vCPU checks its own pages, so each must be
/// asked.
pub const COMMAND_CHECK: u32 = 1;

/// What an access to a port means. The value that is written or expected is a little-endian `u32`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GuestExit {
    /// Written: a pass is complete. The low 32 bits of the number of passes.
    Progress,
    /// To be answered: orders, 0 or [`COMMAND_CHECK`].
    Command,
    /// Written: the whole check is complete and found nothing. The number of pages checked.
    Checked,
    /// Written: the vCPU found an inconsistency, and will do nothing more. The number of its
    /// [`Code`](super::churn::Code).
    Inconsistent,
    /// To be answered with any value when the period begins.
    Pace,
    /// Written: a cut is due.
    Cut,
}

impl GuestExit {
    /// The meaning of an access to `port`, or `None` where no guest does such a thing.
    #[must_use]
    pub const fn decode(port: u16, is_in: bool) -> Option<Self> {
        match (port, is_in) {
            (PORT_PROGRESS, false) => Some(Self::Progress),
            (PORT_COMMAND, true) => Some(Self::Command),
            (PORT_CHECKED, false) => Some(Self::Checked),
            (PORT_INCONSISTENT, false) => Some(Self::Inconsistent),
            (PORT_PACE, true) => Some(Self::Pace),
            (PORT_CUT, false) => Some(Self::Cut),
            _ => None,
        }
    }
}
