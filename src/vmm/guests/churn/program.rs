//! The program's bytes, assembled from `churn.S`, and the constants that it shares with the host
//! side.

// UNSAFETY: the assembled program is reached through two symbols, which only `extern` statics can
// name.
#![expect(unsafe_code, reason = "the program lies between two symbols of the linker")]

use super::layout::{page_word, private_at};
use super::private::Code;
use crate::vmm::guests::ports;
use crate::vmm::guests::random::{GAMMA, MIX_FIRST, MIX_SECOND};

/// Words of content in a page.
pub(super) const BODY_WORDS: usize = page_word::SUM_FIRST - page_word::BODY;
/// Bit of the private page's flags: the own pages one after the other instead of drawn.
pub(super) const FLAG_SEQUENTIAL: u64 = 1;
/// Bit of the private page's flags: read the pace port after each pass.
pub(super) const FLAG_PACED: u64 = 2;
/// Entries of the draw table: the program chooses one by 16 random bits.
pub(super) const DRAW_ENTRIES: usize = 1 << 16;
/// Phrases of the dictionary.
pub(super) const PHRASES: usize = 1 << PHRASE_BITS;
/// Bytes in a phrase.
pub(super) const PHRASE_BYTES: usize = 1 << PHRASE_SHIFT;
/// Words (8 bytes) of the draw table and the dictionary, which follow each other.
pub(super) const TABLES_WORDS: usize = DRAW_ENTRIES + PHRASES * PHRASE_BYTES / 8;

const PHRASE_BITS: usize = 10;
const PHRASE_SHIFT: usize = 5;
/// Words of a page that content `words` changes.
const WORDS_CHANGED: usize = 8;

const _: () = {
    assert!(BODY_WORDS == 504, "the program writes content in rounds of 8 and of 24 words");
    assert!(page_word::SUM_FIRST == 51 * 10, "the program sums a page in rounds of 10 words");
    assert!(TABLES_WORDS.is_multiple_of(8), "the program sums the tables in rounds of 8 words");
    assert!(PHRASE_BYTES == 4 * 8, "the program copies a phrase as 4 words");
    assert!(PHRASE_BITS * 6 <= 64, "the program takes 6 phrases from one random number");
    assert!(private_at::SEEN + 64 * 8 <= 4096, "the private page is one page");
};

/// The two sums over words: the words added up, and that sum after each word added up. The second
/// gives each place a weight of its own, so words that changed places show; and both can be
/// corrected for one changed word without reading the others.
pub(super) fn sums(words: impl IntoIterator<Item = u64>) -> (u64, u64) {
    words.into_iter().fold((0, 0), |(first, second): (u64, u64), word| {
        let first = first.wrapping_add(word);
        (first, second.wrapping_add(first))
    })
}

core::arch::global_asm!(
    include_str!("churn.S"),
    vcpu = const private_at::VCPU,
    vcpus = const private_at::VCPUS,
    pages = const private_at::PAGES,
    own_pages = const private_at::OWN_PAGES,
    burst = const private_at::BURST,
    flags = const private_at::FLAGS,
    content = const private_at::CONTENT,
    counter = const private_at::COUNTER,
    private_first = const private_at::PRIVATE_FIRST,
    draw_table = const private_at::DRAW_TABLE,
    dictionary = const private_at::DICTIONARY,
    ledger = const private_at::LEDGER,
    working_set = const private_at::WORKING_SET,
    tables_sum_first = const private_at::TABLES_SUM_FIRST,
    tables_sum_second = const private_at::TABLES_SUM_SECOND,
    passes = const private_at::PASSES,
    writes = const private_at::WRITES,
    last_ticket = const private_at::LAST_TICKET,
    last_index = const private_at::LAST_INDEX,
    ledger_sum = const private_at::LEDGER_SUM,
    checks = const private_at::CHECKS,
    bad_code = const private_at::BAD_CODE,
    bad_index = const private_at::BAD_INDEX,
    bad_expected = const private_at::BAD_EXPECTED,
    bad_found = const private_at::BAD_FOUND,
    seen = const private_at::SEEN,
    page_index = const page_word::INDEX * 8,
    page_pass = const page_word::PASS * 8,
    page_pass_weight = const page_word::SUM_FIRST - page_word::PASS,
    page_ticket = const page_word::TICKET * 8,
    page_ticket_weight = const page_word::SUM_FIRST - page_word::TICKET,
    page_vcpu = const page_word::VCPU * 8,
    page_content = const page_word::CONTENT * 8,
    page_magic = const page_word::MAGIC * 8,
    page_magic_value = const u64::from_le_bytes(*b"churn 1\n"),
    page_body = const page_word::BODY * 8,
    page_sum_first = const page_word::SUM_FIRST * 8,
    page_sum_second = const page_word::SUM_SECOND * 8,
    body_words = const BODY_WORDS,
    body_bytes = const BODY_WORDS * 8,
    flag_sequential = const FLAG_SEQUENTIAL,
    flag_paced = const FLAG_PACED,
    content_text = const super::options::Content::Text.number(),
    content_random = const super::options::Content::Random.number(),
    content_zero = const super::options::Content::Zero.number(),
    content_words = const super::options::Content::Words.number(),
    words_changed = const WORDS_CHANGED,
    tables_words = const TABLES_WORDS,
    phrase_bits = const PHRASE_BITS,
    phrase_shift = const PHRASE_SHIFT,
    phrase_mask = const PHRASES - 1,
    dictionary_word_shift = const 64 - PHRASE_BITS - PHRASE_SHIFT + 3,
    gamma = const GAMMA,
    mix_first = const MIX_FIRST,
    mix_second = const MIX_SECOND,
    port_progress = const ports::PORT_PROGRESS,
    port_command = const ports::PORT_COMMAND,
    port_checked = const ports::PORT_CHECKED,
    port_inconsistent = const ports::PORT_INCONSISTENT,
    port_pace = const ports::PORT_PACE,
    command_check = const ports::COMMAND_CHECK,
    code_register = const Code::Register.number(),
    code_pass = const Code::Pass.number(),
    code_not_zero = const Code::NotZero.number(),
    code_checksum = const Code::Checksum.number(),
    code_ticket = const Code::Ticket.number(),
    code_index = const Code::Index.number(),
    code_above_last = const Code::AboveLast.number(),
    code_above_counter = const Code::AboveCounter.number(),
    code_above_counter_peer = const Code::PeerAboveCounter.number(),
    code_counter_back = const Code::CounterBack.number(),
    code_tables = const Code::Tables.number(),
    code_ledger_sum = const Code::LedgerSum.number(),
    code_last_write = const Code::LastWrite.number(),
    code_seen = const Code::Seen.number(),
    code_counter_low = const Code::CounterLow.number(),
    code_counter_high = const Code::CounterHigh.number(),
);

// SAFETY: both symbols are defined by the assembly above, as bytes of a read-only section; their
// types match it.
unsafe extern "C" {
    safe static slackwater_churn_start: u8;
    safe static slackwater_churn_end: u8;
}

/// The program: position independent, entered at its first byte.
pub(super) fn bytes() -> &'static [u8] {
    let start = &raw const slackwater_churn_start;
    let length = (&raw const slackwater_churn_end).addr() - start.addr();
    // SAFETY: the two symbols enclose `length` initialised bytes in one read-only section, which
    // live as long as the process and which nothing writes.
    unsafe { std::slice::from_raw_parts(start, length) }
}
