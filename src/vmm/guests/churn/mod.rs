//! The built-in guest `churn`: it rewrites pages all the time and notices when memory or registers
//! are not of one instant.
//!
//! A 64-bit program of a few hundred instructions (`churn.S`) that runs at CPL 3, so natively on
//! every KVM. It has no operating system, no stack, no interrupts, and needs no CPUID. The VMM puts
//! an [`Image`] into memory that is otherwise zero, gives each vCPU the registers that the image
//! says, and answers its ports ([`GuestExit`]).
//!
//! # Guest physical memory
//!
//! - `0x500`: descriptor table: user code, user data, task state segment
//! - `0x1000`: the program
//! - `0x4000` to `0x6fff`: task state segment and an I/O bitmap that allows every port
//! - `0x9000`, `0xa000`, `0x10000` on: page tables: an identity map of pages of 2 MiB; accessed and
//!   dirty are set from the start
//! - `0x60000`: the ticket counter, which all vCPUs share
//! - `0x70000 + 0x1000 v`: the private page of vCPU `v`: parameters, statistics, its first
//!   inconsistency
//! - `0x100000`: draw table: 65,536 entries of a first page and a number of pages (two u32)
//! - `0x180000`: dictionary: 1,024 phrases of 32 bytes
//! - `0x200000`: ledger: a u64 for each page of the working set, the last ticket written to it; bit
//!   63: as an all-zero page
//! - behind it, in whole pages: the working set; from 4 GiB on where it would reach beyond 3 GiB
//!
//! Page `i` of the working set belongs to vCPU `i % vcpus`: it alone writes and checks it, and its
//! entry of the ledger. So vCPUs share pages of the ledger, and are neighbours in every block of
//! the working set.
//!
//! A page is 512 words of 8 bytes: its index, the passes completed, the ticket, the vCPU, the
//! content's number, a magic number, 504 words of content, and two sums over the 510 words before
//! them. The header comes first and the sums last: a page that is half of one version and half of
//! another has the wrong sums.
//!
//! # Ports
//! All are 32 bits wide.
//!
//! - `0x10` out: a pass is complete; the low half of the number of passes
//! - `0x11` in: orders: bit 0 asks for the whole check, now. Read after each pass
//! - `0x12` out: the whole check is complete and found nothing; the number of pages checked
//! - `0x13` out: an inconsistency, as its [`Code`]'s number; the rest is in the private page. Then
//!   the vCPU reads `0x11` for ever
//! - `0x14` in: with pacing only: read before each pass but the first; the VMM answers when the
//!   period begins. The value means nothing
//!
//! # A pass
//! `burst` page writes, then the ports. A page write, in this order:
//! 1. compare the register of the last ticket with the private page;
//! 2. choose a page; check it: what it holds is what the ledger says;
//! 3. take a ticket: add one to the counter, atomically;
//! 4. write the page: header, content, sums;
//! 5. enter the ticket in the ledger, add the difference to the sum of its ledger entries in the
//!    private page;
//! 6. put index and ticket into the private page as the last ones, the ticket into the register,
//!    add one to the number of writes.
//!
//! # Why a correct restore never alarms
//! A restore to one instant puts each vCPU's registers and all of memory back as they were between
//! two instructions of each vCPU. The guest goes on as if it had not been stopped, so it can only
//! find what it could have found without being stopped. What remains is to show that it finds
//! nothing then.
//! - Checks of what only this vCPU writes (its pages, its entries of the ledger, its private page,
//!   its registers) run at places in its program where all steps of all its page writes are
//!   complete. No other vCPU changes anything of it.
//! - A ticket below or equal to the counter stays so: the counter only rises, and a ticket is put
//!   anywhere only after it was taken. The counter is always read after the ticket that it is
//!   compared with, and the processor keeps loads in order.
//! - A vCPU's last ticket only rises, so a later load of it never gives less than an earlier one.
//! - The counter is the number of tickets taken. A vCPU counts a write after it took the ticket and
//!   before it takes the next: at each instant its number of writes is the number of tickets it
//!   took, or one less. Let `W` be the sum of writes as read, one vCPU after the other. Every vCPU
//!   had taken at least what it had counted, and took no ticket back, so a counter that is read
//!   *after* `W` is at least `W`. And a counter read *before* is at most `W + vcpus`: each vCPU had
//!   taken at most one ticket more than it had counted then, and it has counted no less since.
//! - A vCPU that stopped in `in` or `out` has its access completed by the VMM before its registers
//!   are read, and never sees it again.
//!
//! # What each check catches
//! The chain of proof: a private page vouches for its ledger entries (their sum), the ledger for
//! the pages (the ticket), each page for itself (the sums); the register vouches for the private
//! page; the vCPUs vouch for each other and for the counter.
//!
//! What is wrong, and what it is found as:
//!
//! - a page is torn or damaged: [`Code::Checksum`], [`Code::NotZero`]
//! - a page is lost (zero), older or newer than the ledger: [`Code::Ticket`], [`Code::NotZero`]
//! - a page is in another's place: [`Code::Ticket`], [`Code::Index`]
//! - a page of the ledger is older or newer: [`Code::Ticket`] or [`Code::NotZero`] for the pages
//!   written since; else [`Code::LedgerSum`]
//! - a page *and* its page of the ledger are older, and nothing else: [`Code::LedgerSum`],
//!   [`Code::LastWrite`]
//! - a private page is older or newer than the vCPU's registers: [`Code::Register`], [`Code::Pass`]
//! - all of memory is of another instant than the registers: [`Code::Register`]
//! - registers and private page of a vCPU are older than its pages: [`Code::AboveLast`],
//!   [`Code::LedgerSum`], [`Code::LastWrite`]
//! - everything of one vCPU is older than another's: [`Code::Seen`] once it was seen,
//!   [`Code::CounterHigh`]
//! - the counter is older: [`Code::AboveCounter`], [`Code::PeerAboveCounter`],
//!   [`Code::CounterBack`], [`Code::CounterLow`]
//! - the counter is newer: [`Code::CounterHigh`]
//! - draw table or dictionary are damaged: [`Code::Tables`]
//!
//! Register, page and counter are checked before each write; other vCPUs and the number of passes
//! after each pass; everything else, and pages that are not due to be written, by the whole check.
//! A mixture of two instants between which the parts in question were not written is no mixture.
//! Not seen: a counter that is too high by at most `vcpus`, one vCPU's whole state older by at most
//! as many writes that no other vCPU saw, and bytes that neither the program nor its data use (an
//! audit covers those).

mod image;
mod layout;
mod options;
mod private;
mod program;

#[cfg(test)]
mod native_tests;

pub use image::{ChurnError, Image};
pub use layout::{COUNTER_ADDRESS, private_page_address};
pub use options::{Content, Options, Pattern};
pub use private::{Code, Inconsistency, PrivatePage};

pub use super::flat::{MEMORY_MAX, MEMORY_MIN, Segment, VCPUS_MAX};
pub use super::options::OptionsError;
pub use super::ports::{COMMAND_CHECK, GuestExit, PORT_CHECKED, PORT_COMMAND, PORT_INCONSISTENT, PORT_PACE, PORT_PROGRESS};
