//! The guest as the loader puts it into memory, its lists, and its vCPUs' first registers.

use kvm_bindings::kvm_regs;

use super::layout::{control_at, told_at};
use super::lists::lists;
use super::options::Options;
use super::program;
use crate::page::{Gfn, PAGE_SIZE_U64};
use crate::vmm::guests::flat::{self, FlatError, FlatImage, HOLE, Segments, VCPUS_MAX};

const TOLD: u64 = 0x7_0000;
const LISTS: u64 = 0x10_0000;
/// Bytes of a frame number in a list.
const ENTRY_BYTES: u64 = 4;

const _: () = {
    assert!(flat::END <= TOLD);
    assert!(TOLD + VCPUS_MAX as u64 * PAGE_SIZE_U64 <= LISTS);
};

/// Why there is no such guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TouchError {
    /// The guest is not made for the machine.
    #[error(transparent)]
    Machine(#[from] FlatError),
    /// The pages of a pass and the lists do not fit.
    #[error("`touch` with pages={pages} and {lists} lists has room for {places} pages in {found} bytes of memory")]
    TooSmall {
        /// The pages of a pass.
        pages: u64,
        /// The lists.
        lists: u64,
        /// Pages left in memory besides the program and its lists.
        places: u64,
        /// Bytes of memory.
        found: u64,
    },
}

/// The guest for one size of memory and number of vCPUs, ready to be put into memory that is
/// otherwise zero.
#[derive(Clone, Debug)]
pub struct Image {
    flat: FlatImage,
    lists: Vec<Vec<Gfn>>,
}

impl Image {
    /// Makes the guest that `options` ask for, for `memory_bytes` (4 MiB to 64 GiB, in whole pages)
    /// and `vcpus` (1 to 64).
    ///
    /// # Errors
    /// Each variant of [`TouchError`], which names the bound that does not hold.
    pub fn build(options: &Options, memory_bytes: u64, vcpus: u32) -> Result<Self, TouchError> {
        flat::check("touch", memory_bytes, vcpus)?;
        let (pages, list_count) = (options.pages(), options.lists());
        let control = control_address(options);
        let first = control / PAGE_SIZE_U64 + 1;
        let places = (memory_bytes / PAGE_SIZE_U64).saturating_sub(first);
        if first * PAGE_SIZE_U64 > HOLE.start || places < pages {
            return Err(TouchError::TooSmall { pages, lists: list_count, places, found: memory_bytes });
        }
        // Places are pages behind the control page, but for the hole.
        let hole = (HOLE.end - HOLE.start) / PAGE_SIZE_U64;
        let frame =
            |place: u64| Gfn(if (first + place) * PAGE_SIZE_U64 < HOLE.start { first + place } else { first + place + hole });
        let lists: Vec<Vec<Gfn>> = lists(options, places).iter().map(|list| list.iter().copied().map(frame).collect()).collect();
        let mut segments = Segments::flat(program::bytes(), memory_bytes, control);
        for vcpu in 0..vcpus {
            segments.put(TOLD + u64::from(vcpu) * PAGE_SIZE_U64, &told(options, vcpu, vcpus));
        }
        // 64 GiB and the hole have less than 2^32 frames.
        let entries = lists.iter().flatten().flat_map(|gfn| u32::try_from(gfn.0).unwrap_or(0).to_le_bytes());
        segments.put(LISTS, &entries.collect::<Vec<u8>>());
        let regs = (0..vcpus).map(|vcpu| kvm_regs { rbx: TOLD + u64::from(vcpu) * PAGE_SIZE_U64, ..flat::initial_regs() });
        Ok(Self { flat: FlatImage::new(segments, regs.collect()), lists })
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

    /// The pages of the pass `pass`, counted from 0, in the order in which they are written where
    /// there is one vCPU. Each vCPU writes a part of them. The control page is written besides.
    #[must_use]
    pub fn pass(&self, pass: u64) -> &[Gfn] {
        let lists = self.lists.len() as u64;
        usize::try_from(pass % lists.max(1)).ok().and_then(|list| self.lists.get(list)).map_or(&[], Vec::as_slice)
    }
}

/// Guest physical address of the control page. What lies below is read only for the guest: KVM
/// lists a page that is read first as written, where it could be.
#[must_use]
pub fn control_address(options: &Options) -> u64 {
    (LISTS + options.lists() * options.pages() * ENTRY_BYTES).next_multiple_of(flat::LARGE_PAGE)
}

/// What `vcpu` is told.
fn told(options: &Options, vcpu: u32, vcpus: u32) -> [u8; told_at::END] {
    let (pages, control) = (options.pages(), control_address(options));
    let (vcpu, vcpus) = (u64::from(vcpu), u64::from(vcpus));
    let (begin, end) = (pages * vcpu / vcpus, pages * (vcpu + 1) / vcpus);
    let fields = [
        (told_at::VCPU, vcpu),
        (told_at::VCPUS, vcpus),
        (told_at::LIST, LISTS + begin * ENTRY_BYTES),
        (told_at::COUNT, end - begin),
        (told_at::STRIDE, pages * ENTRY_BYTES),
        (told_at::LISTS, options.lists()),
        (told_at::WORDS, options.words()),
        (told_at::CUT, options.cut()),
        (told_at::PACED, u64::from(!options.every().is_zero())),
        (told_at::CONTROL, control),
        (told_at::PASSES, control + control_at::PASSES as u64 + vcpu * 8),
    ];
    let mut bytes = [0; told_at::END];
    for (at, value) in fields {
        if let Some(field) = bytes.get_mut(at..at + 8) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::vmm::guests::flat::MEMORY_MAX;

    const MIB: u64 = 1 << 20;

    fn error(text: &str, memory_bytes: u64, vcpus: u32) -> String {
        Image::build(&text.parse().unwrap(), memory_bytes, vcpus).unwrap_err().to_string()
    }

    #[test]
    fn bounds_are_checked_and_named() {
        assert_eq!(error("touch", 64 * MIB, 0), "`touch` runs on 1 to 64 vcpus, not on 0");
        assert_eq!(error("touch", 64 * MIB, 65), "`touch` runs on 1 to 64 vcpus, not on 65");
        for memory in [0, 4 * MIB - 4096, 4 * MIB + 1, MEMORY_MAX + 4096, u64::MAX] {
            assert!(error("touch", memory, 1).ends_with(&format!("in whole pages of 4096, not {memory}")));
        }
        let message = "`touch` with pages=512 and 16 lists has room for 511 pages in 4194304 bytes of memory";
        assert_eq!(error("touch", 4 * MIB, 1), message);
        Image::build(&"touch:pages=64000".parse().unwrap(), 256 * MIB, 1).unwrap();
    }

    #[test]
    fn lists_stay_in_memory_and_out_of_the_hole() {
        for (text, memory) in [
            ("touch:pages=64000", 256 * MIB),
            ("touch:pages=4000", MEMORY_MAX),
            ("touch:pages=4000,pattern=sequential,lists=1024", 4 << 30),
            ("touch:pages=512,pattern=hotcold", (3 << 30) + 4096),
        ] {
            let options = text.parse().unwrap();
            let image = Image::build(&options, memory, 2).unwrap();
            let loaded = image.flat().segments().last().map_or(0, |last| last.address + last.bytes.len() as u64);
            let end = if memory > HOLE.start { memory + (HOLE.end - HOLE.start) } else { memory };
            for address in (0..1024).flat_map(|pass| image.pass(pass)).map(|gfn| gfn.address().unwrap()) {
                assert!(
                    address > control_address(&options) && address >= loaded && address < end && !HOLE.contains(&address),
                    "{text}: {address:#x}"
                );
            }
            assert_eq!(image.pass(0), image.pass(1024 * 16), "{text}");
        }
    }

    #[test]
    fn vcpus_share_the_pages_of_a_pass() {
        for (pages, vcpus) in [(512, 1), (513, 2), (3, 4), (1, 64)] {
            let options: Options = format!("touch:pages={pages}").parse().unwrap();
            let parts: Vec<(u64, u64)> = (0..vcpus)
                .map(|vcpu| {
                    let told = told(&options, vcpu, vcpus);
                    let word = |at: usize| u64::from_le_bytes(*told[at..].first_chunk().unwrap());
                    ((word(told_at::LIST) - LISTS) / ENTRY_BYTES, word(told_at::COUNT))
                })
                .collect();
            let mut next = 0;
            for (begin, count) in parts {
                assert_eq!(begin, next);
                next += count;
            }
            assert_eq!(next, pages);
        }
        assert!(program::bytes().len() < flat::CODE_BYTES_MAX);
    }
}
