//! What a vCPU of the guest writes down about itself, read back by the host.

use std::fmt;

use super::layout::private_at;
use crate::page::PageBytes;

/// Which check of the guest failed. [`super`] says what each of them catches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Code {
    /// The last ticket in the vCPU's register is not the one in its private page.
    Register,
    /// The number of completed passes in the vCPU's register is not the one in its private page.
    Pass,
    /// A page that was never written, or last written as zeros, holds something. Found: all its
    /// words, ORed.
    NotZero,
    /// The sums over a page are not the ones stored in it: the page is torn or damaged. Expected:
    /// the one stored in it.
    Checksum,
    /// A sound page carries another ticket than the ledger: one of the two is of another instant.
    /// Expected: the ledger's.
    Ticket,
    /// A sound page carries another page's index: it is in the wrong place.
    Index,
    /// A page, and the ledger with it, carries a ticket above its vCPU's last one. Expected: at
    /// most.
    AboveLast,
    /// A page, and the ledger with it, carries a ticket above the shared counter. Expected: at
    /// most.
    AboveCounter,
    /// A vCPU's last ticket is above the shared counter. Expected: at most.
    PeerAboveCounter,
    /// The counter gave out a ticket that is not above the vCPU's last one. Expected: above.
    CounterBack,
    /// The draw table or the dictionary, which nobody writes, changed. Expected and found: the
    /// first sum.
    Tables,
    /// The vCPU's ledger entries do not add up to the sum in its private page.
    LedgerSum,
    /// The page that the vCPU wrote last does not carry its last ticket. Found: the ledger's.
    LastWrite,
    /// A vCPU's last ticket is below the one that this vCPU has seen before. The index is that
    /// vCPU's number. Expected: at least.
    Seen,
    /// The shared counter is below the page writes of all vCPUs. Expected: at least.
    CounterLow,
    /// The shared counter is above the page writes of all vCPUs and one for each. Expected: at
    /// most.
    CounterHigh,
    /// A code that the program does not have: the private page is damaged.
    Unknown(u64),
}

impl Code {
    const KNOWN: [Self; 16] = [
        Self::Register,
        Self::Pass,
        Self::NotZero,
        Self::Checksum,
        Self::Ticket,
        Self::Index,
        Self::AboveLast,
        Self::AboveCounter,
        Self::PeerAboveCounter,
        Self::CounterBack,
        Self::Tables,
        Self::LedgerSum,
        Self::LastWrite,
        Self::Seen,
        Self::CounterLow,
        Self::CounterHigh,
    ];

    /// The number that the guest stores and writes to [`super::PORT_INCONSISTENT`]; never 0.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Register => 1,
            Self::Pass => 2,
            Self::NotZero => 3,
            Self::Checksum => 4,
            Self::Ticket => 5,
            Self::Index => 6,
            Self::AboveLast => 7,
            Self::AboveCounter => 8,
            Self::PeerAboveCounter => 9,
            Self::CounterBack => 10,
            Self::Tables => 11,
            Self::LedgerSum => 12,
            Self::LastWrite => 13,
            Self::Seen => 14,
            Self::CounterLow => 15,
            Self::CounterHigh => 16,
            Self::Unknown(number) => number,
        }
    }

    fn from_number(number: u64) -> Self {
        Self::KNOWN.into_iter().find(|code| code.number() == number).unwrap_or(Self::Unknown(number))
    }
}

/// The first thing that a vCPU found wrong. It stops there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Inconsistency {
    /// The vCPU that found it.
    pub vcpu: u32,
    /// Which check failed.
    pub code: Code,
    /// The page, as its index in the working set; [`Code`] says where it is something else.
    pub index: u64,
    /// What should have been there, or the bound that should have held.
    pub expected: u64,
    /// What was there.
    pub found: u64,
}

impl fmt::Display for Inconsistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpu, code, index, expected, found } = self;
        write!(f, "vcpu {vcpu}: ")?;
        match code {
            Code::Register => write!(f, "its register holds last ticket {expected}, its private page {found}"),
            Code::Pass => write!(f, "its register holds {expected} passes, its private page {found}"),
            Code::NotZero => write!(f, "page {index} should be all zero, its words ORed are {found:#x}"),
            Code::Checksum => {
                write!(f, "page {index} is torn or damaged: it carries sum {expected:#x}, its words give {found:#x}")
            }
            Code::Ticket => write!(f, "page {index} carries ticket {found}, the ledger says {expected}"),
            Code::Index => write!(f, "page {index} holds page {found}"),
            Code::AboveLast => write!(f, "page {index} carries ticket {found}, above the vcpu's last ticket {expected}"),
            Code::AboveCounter => write!(f, "page {index} carries ticket {found}, above the shared counter {expected}"),
            Code::PeerAboveCounter => write!(f, "a vcpu's last ticket is {found}, above the shared counter {expected}"),
            Code::CounterBack => write!(f, "the shared counter gave out ticket {found} after {expected}"),
            Code::Tables => write!(f, "the tables that nobody writes have sum {found:#x}, not {expected:#x}"),
            Code::LedgerSum => write!(f, "its ledger entries add up to {found:#x}, not {expected:#x}"),
            Code::LastWrite => write!(f, "page {index} should carry its last ticket {expected}, the ledger says {found}"),
            Code::Seen => write!(f, "vcpu {index} has last ticket {found}, after {expected} was seen"),
            Code::CounterLow => write!(f, "the shared counter is {found}, below the {expected} page writes of all vcpus"),
            Code::CounterHigh => {
                write!(f, "the shared counter is {found}, above {expected}, the page writes of all vcpus and one for each")
            }
            Code::Unknown(number) => {
                write!(f, "unknown inconsistency {number}: page {index}, expected {expected:#x}, found {found:#x}")
            }
        }
    }
}

/// One vCPU's statistics, from its private page at [`super::private_page_address`].
///
/// Exact while the vCPU is outside the guest. While it runs, single fields are sound and the set of
/// them may be of different instants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrivatePage {
    /// The vCPU.
    pub vcpu: u32,
    /// Passes that are complete.
    pub passes: u64,
    /// Page writes that are complete.
    pub writes: u64,
    /// The ticket of the last page write; 0 before the first.
    pub last_ticket: u64,
    /// The page of the last page write, as its index in the working set.
    pub last_index: u64,
    /// Whole checks that are complete, all with nothing found.
    pub checks: u64,
    /// What the vCPU found wrong, if it did.
    pub inconsistency: Option<Inconsistency>,
}

impl PrivatePage {
    /// Reads the private page of `vcpu`. Every content has a meaning, so this cannot fail.
    #[must_use]
    pub fn parse(vcpu: u32, page: &PageBytes) -> Self {
        let word = |at: usize| page.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let code = word(private_at::BAD_CODE);
        Self {
            vcpu,
            passes: word(private_at::PASSES),
            writes: word(private_at::WRITES),
            last_ticket: word(private_at::LAST_TICKET),
            last_index: word(private_at::LAST_INDEX),
            checks: word(private_at::CHECKS),
            inconsistency: (code != 0).then(|| Inconsistency {
                vcpu,
                code: Code::from_number(code),
                index: word(private_at::BAD_INDEX),
                expected: word(private_at::BAD_EXPECTED),
                found: word(private_at::BAD_FOUND),
            }),
        }
    }
}
