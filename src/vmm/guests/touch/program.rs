//! The program's bytes, assembled from `touch.S`, which the linker has between two symbols.

// UNSAFETY: the assembled program is reached through two symbols, which only `extern` statics can
// name.
#![expect(unsafe_code, reason = "the program lies between two symbols of the linker")]

use super::layout::{control_at, told_at};
use crate::vmm::guests::ports;

core::arch::global_asm!(
    include_str!("touch.S"),
    vcpu = const told_at::VCPU,
    vcpus = const told_at::VCPUS,
    list = const told_at::LIST,
    count = const told_at::COUNT,
    stride = const told_at::STRIDE,
    lists = const told_at::LISTS,
    words = const told_at::WORDS,
    cut = const told_at::CUT,
    paced = const told_at::PACED,
    control = const told_at::CONTROL,
    passes = const told_at::PASSES,
    counter = const control_at::COUNTER,
    arrived = const control_at::ARRIVED,
    open = const control_at::OPEN,
    port_cut = const ports::PORT_CUT,
    port_pace = const ports::PORT_PACE,
);

// SAFETY: both symbols are defined by the assembly above, as bytes of a read-only section; their
// types match it.
unsafe extern "C" {
    safe static slackwater_touch_start: u8;
    safe static slackwater_touch_end: u8;
}

/// The program: position independent, entered at its first byte.
pub(super) fn bytes() -> &'static [u8] {
    let start = &raw const slackwater_touch_start;
    let length = (&raw const slackwater_touch_end).addr() - start.addr();
    // SAFETY: the two symbols enclose `length` initialised bytes in one read-only section, which
    // live as long as the process and which nothing writes.
    unsafe { std::slice::from_raw_parts(start, length) }
}
