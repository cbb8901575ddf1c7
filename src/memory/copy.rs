//! Copying pages out of guest memory.
#![expect(unsafe_code, reason = "stores that go around the caches, through raw pointers")]

use core::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_load_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128};

use crate::page::PAGE_SIZE;

const LINE: usize = 64;
const WORD: usize = size_of::<__m128i>();

/// Copies a page with stores that go around the caches, and asks for the lines of the page at
/// `next` meanwhile.
///
/// What is copied in a cut is read next by another thread, much later: going around the caches
/// spares them, and spares taking lines back from the processor that encoded from that place before
/// (measured: a fifth to a half less time). The copy is visible to other threads only after
/// [`streamed`].
///
/// # Safety
/// `from` is valid for reads and `to` for writes of a page, and both are page-aligned; they do not
/// overlap. Nobody else accesses `to` meanwhile. The guest may write `from`: whatever bytes are
/// read are copied. `next` may be any address: asking for a line never faults.
pub(super) unsafe fn stream_page(from: *const u8, to: *mut u8, next: *const u8) {
    for line in (0..PAGE_SIZE).step_by(LINE) {
        // SAFETY: asking for a line is a hint, which no address makes fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast()) };
        for word in (line..line + LINE).step_by(WORD) {
            let (from, to) = (from.wrapping_add(word), to.wrapping_add(word));
            // SAFETY: `word` lies within the page, which the caller says is valid and aligned.
            let bytes = unsafe { _mm_load_si128(from.cast()) };
            // SAFETY: as above.
            unsafe { _mm_stream_si128(to.cast(), bytes) };
        }
    }
}

/// Comes after [`stream_page`] and before anything that tells another thread of the copies.
pub(super) fn streamed() {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _mm_sfence() };
}
