//! The guest as the loader puts it into memory, and its vCPUs' first registers.

use kvm_bindings::kvm_regs;

use super::layout::{COUNTER_ADDRESS, private_at, private_page_address};
use super::options::{Options, Pattern};
use super::program::{self, DRAW_ENTRIES, PHRASE_BYTES, PHRASES};
use crate::page::PAGE_SIZE_U64;
use crate::vmm::guests::flat::{self, FlatError, FlatImage, HOLE, MEMORY_MAX, MEMORY_MIN, Segments};
use crate::vmm::guests::random::random;

const DRAW_TABLE: u64 = 0x10_0000;
const DICTIONARY: u64 = DRAW_TABLE + DRAW_ENTRIES as u64 * 8;
const LEDGER: u64 = 0x20_0000;

const MIB: u64 = 1 << 20;

const _: () = {
    assert!(flat::END <= COUNTER_ADDRESS);
    assert!(DICTIONARY + (PHRASES * PHRASE_BYTES) as u64 <= LEDGER);
};

/// Why there is no such guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChurnError {
    /// The guest is not made for the machine.
    #[error(transparent)]
    Machine(#[from] FlatError),
    /// Not a page for each vCPU.
    #[error("`churn` needs a page for each vcpu: {vcpus} vcpus, pages={pages}")]
    Pages {
        /// The vCPUs asked for.
        vcpus: u32,
        /// The pages of the working set.
        pages: u64,
    },
    /// The working set and what belongs to it do not fit.
    #[error("`churn` with pages={pages} needs at least {}M of memory, {found} bytes are too little", needed / MIB)]
    TooSmall {
        /// The pages of the working set.
        pages: u64,
        /// The bytes asked for.
        found: u64,
        /// The least bytes that are enough, in whole MiB.
        needed: u64,
    },
    /// No such working set fits in any memory that the guest is made for.
    #[error("`churn` with pages={pages} does not fit in any memory: {largest} pages do")]
    TooLarge {
        /// The pages of the working set.
        pages: u64,
        /// The most pages that fit in [`MEMORY_MAX`].
        largest: u64,
    },
}

/// The guest for one size of memory and number of vCPUs, ready to be put into memory that is
/// otherwise zero.
///
/// Guest physical memory begins at 0. Between 3 GiB and 4 GiB there may be memory or a hole: the
/// guest uses nothing there.
#[derive(Clone, Debug)]
pub struct Image {
    flat: FlatImage,
    working_set: u64,
    pages: u64,
}

impl Image {
    /// Makes the guest that `options` ask for, for `memory_bytes` (4 MiB to 64 GiB, in whole pages)
    /// and `vcpus` (1 to 64).
    ///
    /// # Errors
    /// Each variant of [`ChurnError`], which names the bound that does not hold.
    pub fn build(options: &Options, memory_bytes: u64, vcpus: u32) -> Result<Self, ChurnError> {
        flat::check("churn", memory_bytes, vcpus)?;
        let pages = options.pages();
        if pages < u64::from(vcpus) {
            return Err(ChurnError::Pages { vcpus, pages });
        }
        let (working_set, end) = working_set(pages);
        if end > MEMORY_MAX {
            return Err(ChurnError::TooLarge { pages, largest: pages_max() });
        }
        if end > memory_bytes {
            return Err(ChurnError::TooSmall { pages, found: memory_bytes, needed: memory_for(end) });
        }
        let mut segments = Segments::flat(program::bytes(), memory_bytes, 0);
        put_tables_and_private_pages(&mut segments, options, working_set, vcpus);
        let regs = (0..vcpus).map(|vcpu| kvm_regs {
            rbx: private_page_address(vcpu),
            r14: random(options.seed() ^ (u64::from(vcpu) << 56)).0,
            ..flat::initial_regs()
        });
        Ok(Self { flat: FlatImage::new(segments, regs.collect()), working_set, pages })
    }

    /// What the loader writes, and the vCPUs' first registers.
    #[must_use]
    pub const fn flat(&self) -> &FlatImage {
        &self.flat
    }

    /// The same.
    #[must_use]
    pub fn into_flat(self) -> FlatImage {
        self.flat
    }

    /// Guest physical addresses of the working set: page `i` of it belongs to vCPU `i % vcpus`.
    #[must_use]
    pub const fn working_set(&self) -> std::ops::Range<u64> {
        self.working_set..self.working_set + self.pages * PAGE_SIZE_U64
    }

    /// Guest physical addresses of the ledger, a `u64` for each page of the working set.
    #[must_use]
    pub const fn ledger(&self) -> std::ops::Range<u64> {
        LEDGER..LEDGER + self.pages * 8
    }
}

fn put_tables_and_private_pages(image: &mut Segments, options: &Options, working_set: u64, vcpu_count: u32) {
    let (vcpus, pages) = (u64::from(vcpu_count), options.pages());
    let mut tables = draw_table(options, vcpus);
    tables.extend(dictionary(options.seed()));
    let words = tables.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    let (sum_first, sum_second) = program::sums(words);
    let sequential = if options.pattern() == Pattern::Sequential { program::FLAG_SEQUENTIAL } else { 0 };
    let paced = if options.every().is_zero() { 0 } else { program::FLAG_PACED };
    for vcpu in 0..vcpu_count {
        let fields = [
            (private_at::VCPU, u64::from(vcpu)),
            (private_at::VCPUS, vcpus),
            (private_at::PAGES, pages),
            (private_at::OWN_PAGES, (pages - u64::from(vcpu)).div_ceil(vcpus)),
            (private_at::BURST, options.burst(vcpu_count)),
            (private_at::FLAGS, sequential | paced),
            (private_at::CONTENT, options.content().number()),
            (private_at::COUNTER, COUNTER_ADDRESS),
            (private_at::PRIVATE_FIRST, private_page_address(0)),
            (private_at::DRAW_TABLE, DRAW_TABLE),
            (private_at::DICTIONARY, DICTIONARY),
            (private_at::LEDGER, LEDGER),
            (private_at::WORKING_SET, working_set),
            (private_at::TABLES_SUM_FIRST, sum_first),
            (private_at::TABLES_SUM_SECOND, sum_second),
        ];
        let mut bytes = [0; private_at::PASSES];
        for (at, value) in fields {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        image.put(private_page_address(vcpu), &bytes);
    }
    image.put(DRAW_TABLE, &tables);
}

/// Where a working set of `pages` begins and ends: behind the ledger, or above the hole where it
/// would reach into it.
fn working_set(pages: u64) -> (u64, u64) {
    let behind = (LEDGER + pages * 8).next_multiple_of(PAGE_SIZE_U64);
    let bytes = pages * PAGE_SIZE_U64;
    let start = if behind + bytes > HOLE.start { HOLE.end } else { behind };
    (start, start + bytes)
}

fn memory_for(end: u64) -> u64 {
    end.next_multiple_of(MIB).max(MEMORY_MIN)
}

const fn pages_max() -> u64 {
    (MEMORY_MAX - HOLE.end) / PAGE_SIZE_U64
}

/// The draw table, as bytes: entries of a first page (u32) and a number of pages (u32), in pages of
/// one vCPU. A page write draws an entry and one of its pages, each as likely as the others.
fn draw_table(options: &Options, vcpus: u64) -> Vec<u8> {
    // At most 2^24, the most pages there are.
    let pages = u32::try_from(options.pages().div_ceil(vcpus)).unwrap_or(u32::MAX);
    let all = vec![(0, pages); DRAW_ENTRIES];
    let entries = match options.pattern() {
        Pattern::Sequential | Pattern::Uniform => all,
        Pattern::HotCold => {
            let hot = u32::try_from(options.hot().div_ceil(vcpus)).unwrap_or(u32::MAX).min(pages);
            let cold = pages - hot;
            let hot_entries = if cold == 0 { DRAW_ENTRIES } else { DRAW_ENTRIES * 9 / 10 };
            let mut entries = vec![(0, hot); hot_entries];
            entries.resize(DRAW_ENTRIES, (hot, cold));
            entries
        }
        Pattern::Zipf => zipf(pages),
    };
    entries.iter().flat_map(|(base, span)| (u64::from(*span) << 32 | u64::from(*base)).to_le_bytes()).collect()
}

/// Cuts the ranks of a Zipf distribution into entries of equal weight. A rank that weighs more than
/// an entry has several.
fn zipf(pages: u32) -> Vec<(u32, u32)> {
    let weight = |rank: u32| 1.0 / f64::from(rank + 1);
    let total: f64 = (0..pages).map(weight).sum();
    let step = total / f64::from(1u32 << 16);
    let mut rank = 0;
    let mut through = weight(0);
    let mut firsts: Vec<u32> = (0..1u32 << 16)
        .map(|entry| {
            while through <= step * f64::from(entry) && rank + 1 < pages {
                rank += 1;
                through += weight(rank);
            }
            rank
        })
        .collect();
    firsts.push(pages);
    firsts.windows(2).map(|pair| (pair[0], (pair[1] - pair[0]).max(1))).collect()
}

/// Phrases of plain words, each [`PHRASE_BYTES`] long.
fn dictionary(seed: u64) -> Vec<u8> {
    const WORDS: [&str; 64] = [
        "the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "with", "as", "be", "at", "by", "this", "from",
        "or", "have", "not", "are", "but", "had", "they", "which", "one", "you", "were", "all", "her", "she", "there", "would",
        "their", "we", "him", "been", "has", "when", "who", "will", "no", "more", "if", "out", "water", "harbour", "tide",
        "current", "vessel", "between", "morning", "evening", "nothing", "channel", "weather", "captain", "letter", "against",
        "thought", "another", "country", "beneath",
    ];
    let mut bytes = Vec::with_capacity(PHRASES * PHRASE_BYTES);
    let mut state = seed;
    while bytes.len() < PHRASES * PHRASE_BYTES {
        let (value, next) = random(state);
        state = next;
        bytes.extend_from_slice(WORDS[usize::from(value.to_le_bytes()[7]) % WORDS.len()].as_bytes());
        bytes.push(b' ');
    }
    bytes.truncate(PHRASES * PHRASE_BYTES);
    bytes
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::vmm::guests::churn::options::Content;
    use crate::vmm::guests::flat::Segment;

    const GIB: u64 = 1 << 30;

    fn options(text: &str) -> Options {
        text.parse().unwrap()
    }

    fn error(text: &str, memory_bytes: u64, vcpus: u32) -> String {
        Image::build(&options(text), memory_bytes, vcpus).unwrap_err().to_string()
    }

    #[test]
    fn bounds_are_checked_and_named() {
        assert_eq!(error("churn", 64 * MIB, 0), "`churn` runs on 1 to 64 vcpus, not on 0");
        assert_eq!(error("churn", 64 * MIB, 65), "`churn` runs on 1 to 64 vcpus, not on 65");
        for memory in [0, 4 * MIB - 4096, 4 * MIB + 1, 64 * GIB + 4096, u64::MAX] {
            let message = format!("`churn` takes 4194304 to 68719476736 bytes of memory in whole pages of 4096, not {memory}");
            assert_eq!(error("churn:pages=1", memory, 1), message);
        }
        assert_eq!(error("churn:pages=3", 64 * MIB, 4), "`churn` needs a page for each vcpu: 4 vcpus, pages=3");
        let message = "`churn` with pages=4096 needs at least 19M of memory, 18874368 bytes are too little";
        assert_eq!(error("churn", 18 * MIB, 1), message);
        let message = "`churn` with pages=16777216 does not fit in any memory: 15728640 pages do";
        assert_eq!(error("churn:pages=64G", 64 * GIB, 1), message);
    }

    #[test]
    fn the_smallest_memory_named_is_enough() {
        for pages in [1, 511, 512, 4096, 700_000, 785_000, 786_000, 1 << 20, pages_max()] {
            let options = options(&format!("churn:pages={pages}"));
            let needed = memory_for(working_set(pages).1);
            let image = Image::build(&options, needed, 1).unwrap();
            let (set, ledger) = (image.working_set(), image.ledger());
            assert!(ledger.end <= set.start && set.end <= needed, "{pages}");
            assert!(set.end <= HOLE.start || set.start >= HOLE.end, "{pages}");
            if needed > MEMORY_MIN {
                let found = needed - MIB;
                assert_eq!(Image::build(&options, found, 1).unwrap_err(), ChurnError::TooSmall { pages, found, needed });
            }
        }
    }

    #[test]
    fn nothing_that_is_zero_is_written_and_nothing_twice() {
        for (text, memory, vcpus) in
            [("churn", 32 * MIB, 1), ("churn:pattern=zipf", 3 * GIB, 64), ("churn:pattern=hotcold,pages=8M", 64 * GIB, 2)]
        {
            let image = Image::build(&options(text), memory, vcpus).unwrap();
            let mut end = 0;
            for Segment { address, bytes } in image.flat().segments() {
                assert!(*address >= end, "{text}: {address:#x} overlaps or is out of order");
                end = address + bytes.len() as u64;
                assert!(end <= LEDGER, "{text}: {address:#x}");
                let mut at = *address;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let here = usize::try_from(PAGE_SIZE_U64 - at % PAGE_SIZE_U64).unwrap().min(rest.len());
                    assert!(rest[..here].iter().any(|byte| *byte != 0), "{text}: zeros at {at:#x}");
                    at += here as u64;
                    rest = &rest[here..];
                }
            }
        }
        // The program stays below the task state segment.
        assert!(program::bytes().len() < flat::CODE_BYTES_MAX, "{}", program::bytes().len());
    }

    #[test]
    fn page_tables_reach_to_the_end_of_memory() {
        for (memory, leaves) in [(4 * MIB, 2), (5 * MIB, 3), (3 * GIB, 1536), (4 * GIB, 2560), (64 * GIB, 65 * 512)] {
            let image = Image::build(&options("churn:pages=1"), memory, 1).unwrap();
            let tables = image.flat().segments().iter().find(|segment| segment.address == flat::PAGE_DIRECTORIES).unwrap();
            assert_eq!(tables.bytes.len(), leaves * 8);
        }
    }

    /// Shares of the draws by page, from the table alone.
    fn shares(text: &str, vcpus: u64) -> Vec<f64> {
        let options = options(text);
        let mut shares = vec![0.0; usize::try_from(options.pages().div_ceil(vcpus)).unwrap()];
        for entry in draw_table(&options, vcpus).as_chunks::<8>().0 {
            let base = u32::from_le_bytes(*entry.first_chunk().unwrap()) as usize;
            let span = u32::from_le_bytes(*entry.last_chunk().unwrap());
            for share in &mut shares[base..base + span as usize] {
                *share += 1.0 / f64::from(span) / 65536.0;
            }
        }
        shares
    }

    #[test]
    fn patterns_weigh_pages_as_they_say() {
        for share in shares("churn:pages=1000", 3) {
            assert!((share * 334.0 - 1.0).abs() < 1e-9);
        }
        for pages in [1u32, 2, 10, 1000, 300_000] {
            let shares = shares(&format!("churn:pattern=zipf,pages={pages}"), 1);
            let total: f64 = (0..pages).map(|rank| 1.0 / f64::from(rank + 1)).sum();
            for (rank, share) in shares.iter().enumerate() {
                assert!(*share > 0.0, "{pages}: rank {rank} is never drawn");
                let wanted = 1.0 / f64::from(u32::try_from(rank).unwrap() + 1) / total;
                assert!((share - wanted).abs() <= 1.0 / 65536.0, "{pages}: rank {rank}: {share}, not {wanted}");
            }
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
        let shares = shares("churn:pattern=hotcold,pages=1000", 2);
        assert!((shares[..50].iter().sum::<f64>() - 0.9).abs() < 1e-3, "nine of ten writes hit the hot pages");
        assert!(shares.iter().all(|share| *share > 0.0));
    }

    #[test]
    fn options_without_a_table_of_their_own_are_stored_for_each_vcpu() {
        let image = Image::build(&options("churn:pages=10,burst=3,every=1ms,content=words"), 4 * MIB, 3).unwrap();
        for (vcpu, own) in [(0, 4), (1, 3), (2, 3)] {
            let page = image.flat().segments().iter().find(|segment| segment.address == private_page_address(vcpu)).unwrap();
            let word = |at: usize| u64::from_le_bytes(*page.bytes[at..].first_chunk().unwrap());
            assert_eq!((word(private_at::VCPU), word(private_at::OWN_PAGES), word(private_at::BURST)), (u64::from(vcpu), own, 3));
            assert_eq!((word(private_at::FLAGS), word(private_at::CONTENT)), (program::FLAG_PACED, Content::Words.number()));
        }
        assert!(image.flat().initial_regs(3).is_none());
        let states: Vec<_> = (0..3).map(|vcpu| image.flat().initial_regs(vcpu).unwrap().r14).collect();
        assert!(states[0] != states[1] && states[1] != states[2], "each vcpu has random numbers of its own");
    }
}
