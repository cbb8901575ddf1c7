//! The program's bytes, assembled from `touch.S`, and the offsets that it shares with the host side.

// UNSAFETY: the assembled program is reached through two symbols, which only `extern` statics can name.
#![expect(unsafe_code, reason = "the program lies between two symbols of the linker")]

/// Offsets in what a vCPU is told, in bytes. Every field is a `u64`.
pub(super) mod told_at {
    /// The vCPU's number.
    pub(crate) const VCPU: usize = 0x00;
    pub(crate) const VCPUS: usize = 0x08;
    /// Address of the vCPU's part of the first pass's list.
    pub(crate) const LIST: usize = 0x10;
    /// Pages of the vCPU's part.
    pub(crate) const COUNT: usize = 0x18;
    /// Bytes from one pass's list to the next.
    pub(crate) const STRIDE: usize = 0x20;
    /// Lists.
    pub(crate) const LISTS: usize = 0x28;
    /// Words written to a page.
    pub(crate) const WORDS: usize = 0x30;
    /// Passes from one cut to the next, 0 for none.
    pub(crate) const CUT: usize = 0x38;
    /// 1 where a period is to be waited for after each pass.
    pub(crate) const PACED: usize = 0x40;
    /// Address of the control page.
    pub(crate) const CONTROL: usize = 0x48;
    /// Address of the vCPU's number of passes in the control page.
    pub(crate) const PASSES: usize = 0x50;
    /// Bytes of all that.
    pub(crate) const END: usize = 0x58;
}

/// Offsets in the control page, in bytes. Every field is a `u64`.
pub(super) mod control_at {
    /// The newest number that was taken for a page write.
    pub(crate) const COUNTER: usize = 0x00;
    /// vCPUs that have come to the barrier, over all passes.
    pub(crate) const ARRIVED: usize = 0x40;
    /// The newest pass whose barrier is open.
    pub(crate) const OPEN: usize = 0x80;
    /// Passes of each vCPU.
    pub(crate) const PASSES: usize = 0x100;
}

const _: () = assert!(control_at::PASSES + 64 * 8 <= 4096, "the control page is one page");

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
    port_cut = const super::PORT_CUT,
    port_pace = const super::PORT_PACE,
);

// SAFETY: both symbols are defined by the assembly above, as bytes of a read-only section; their types match it.
unsafe extern "C" {
    safe static slackwater_touch_start: u8;
    safe static slackwater_touch_end: u8;
}

/// The program: position independent, entered at its first byte.
pub(super) fn bytes() -> &'static [u8] {
    let start = &raw const slackwater_touch_start;
    let length = (&raw const slackwater_touch_end).addr() - start.addr();
    // SAFETY: the two symbols enclose `length` initialised bytes in one read-only section, which live as long as the process and which
    // nothing writes.
    unsafe { std::slice::from_raw_parts(start, length) }
}
