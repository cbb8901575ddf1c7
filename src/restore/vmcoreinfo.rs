//! What a Linux guest says about itself for tools that read its memory: VMCOREINFO, some lines of
//! text. The kernel keeps it twice: as text in a page of its own, and as an ELF note with that
//! text, which its crash kernel would take over (`kernel/vmcore_info.c`, before Linux 6.9
//! `kernel/crash_core.c`).
//!
//! The guest's memory may hold anything. What is taken is short text in lines and nothing else.

use crate::page::{Gfn, PAGE_SIZE, PageBytes};

/// The name of the note, with its zero byte.
pub(super) const NAME: &[u8] = b"VMCOREINFO\0";
/// The type of the note.
pub(super) const TYPE: u32 = 0;
/// The most bytes that the text may have: the kernel has a page for it.
pub(super) const TEXT_BYTES_MAX: usize = PAGE_SIZE;

/// The note's header, and its name up to the next multiple of four.
const HEAD_BYTES: usize = 24;
/// The first line begins so.
const BEGINNING: &[u8] = b"OSRELEASE=";
/// Linux maps its image at this address plus what it calls `phys_base`.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// How many places are looked at. A guest may have as many as it likes.
const PLACES_MAX: usize = 64;
/// From `init_uts_ns` on, the release is within so many bytes.
const RELEASE_WITHIN: usize = 1024;

/// A place in guest memory where the text may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// A page of nothing but text is what is left where there is no note.
    is_bare: bool,
    /// The address of the text.
    address: u64,
    /// The most bytes it has: a note says how many.
    bytes: usize,
}

/// Finds the text, as pages go by.
#[derive(Debug, Default)]
pub(super) struct Search {
    notes: Vec<Place>,
    bare: Vec<Place>,
}

impl Search {
    /// Looks at a page.
    pub(super) fn look_at(&mut self, gfn: Gfn, page: &PageBytes) {
        let Some(base) = gfn.address() else { return };
        if page.starts_with(BEGINNING) && self.bare.len() < PLACES_MAX {
            self.bare.push(Place { is_bare: true, address: base, bytes: TEXT_BYTES_MAX });
        }
        for at in (0..=PAGE_SIZE - HEAD_BYTES).step_by(4) {
            // One comparison says no nearly always.
            if page.get(at).is_none_or(|byte| usize::from(*byte) != NAME.len()) || self.notes.len() >= PLACES_MAX {
                continue;
            }
            if let Some(bytes) = page.get(at..at + HEAD_BYTES).and_then(text_bytes) {
                self.notes.push(Place { is_bare: false, address: base + (at + HEAD_BYTES) as u64, bytes });
            }
        }
    }

    /// The text, where there is one. `read` gives guest memory from an address on, as many bytes as
    /// there are up to the length of the buffer.
    ///
    /// Where there are several, as after a `kexec` or in a file that the guest has cached, it is
    /// one that fits this memory: the kernel's release is where the text says. Then a note is taken
    /// before bare text, and the lowest address.
    ///
    /// # Errors
    /// What `read` says.
    pub(super) fn text<E>(self, mut read: impl FnMut(u64, &mut [u8]) -> Result<usize, E>) -> Result<Option<Vec<u8>>, E> {
        let Self { notes: mut places, bare } = self;
        places.extend(bare);
        places.sort_unstable();
        let mut second_best = None;
        for place in places {
            let mut text = vec![0; place.bytes];
            let there = read(place.address, &mut text)?;
            text.truncate(there);
            if place.is_bare {
                let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
                if text.drain(end..).any(|byte| byte != 0) {
                    continue;
                }
            } else if there < place.bytes {
                continue;
            }
            if !is_sound(&text) {
                continue;
            }
            if fits(&text, &mut read)? {
                return Ok(Some(text));
            }
            second_best.get_or_insert(text);
        }
        Ok(second_best)
    }
}

/// How long the text behind this head of a note is, if it is one.
fn text_bytes(head: &[u8]) -> Option<usize> {
    let word = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let is_note = word(0)? as usize == NAME.len() && word(8)? == TYPE && head.get(12..)?.starts_with(NAME);
    let bytes = usize::try_from(word(4)?).ok()?;
    (is_note && (1..=TEXT_BYTES_MAX).contains(&bytes)).then_some(bytes)
}

/// Lines of `KEY=VALUE` and all of them whole, of a kernel whose pages are as large as ours.
fn is_sound(text: &[u8]) -> bool {
    let Some(lines) = text.strip_suffix(b"\n") else { return false };
    let mut lines = lines.split(|byte| *byte == b'\n');
    text.starts_with(BEGINNING)
        && lines.clone().any(|line| line == b"PAGESIZE=4096")
        && lines.all(|line| {
            let is_text = line.iter().all(|byte| (b' '..=b'~').contains(byte));
            is_text && line.iter().position(|byte| *byte == b'=').is_some_and(|at| at > 0)
        })
}

/// The value of a line.
fn value<'a>(text: &'a [u8], key: &str) -> Option<&'a str> {
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b"="));
    std::str::from_utf8(line?).ok()
}

/// Whether the kernel that the text is about is in this memory: where the text says that
/// `init_uts_ns` is, the kernel's release is near.
fn fits<E>(text: &[u8], read: &mut impl FnMut(u64, &mut [u8]) -> Result<usize, E>) -> Result<bool, E> {
    let names = value(text, "SYMBOL(init_uts_ns)").and_then(|value| u64::from_str_radix(value, 16).ok());
    let base = value(text, "NUMBER(phys_base)").and_then(|value| value.parse::<i64>().ok());
    let (Some(names), Some(base), Some(release)) = (names, base, value(text, "OSRELEASE")) else { return Ok(false) };
    let Some(address) = names.checked_sub(IMAGE).and_then(|at| at.checked_add_signed(base)) else { return Ok(false) };
    let mut near = [0; RELEASE_WITHIN];
    let there = read(address, &mut near)?;
    let near = near.get(..there).unwrap_or_default();
    // As a string of C.
    let release = [release.as_bytes(), b"\0"].concat();
    Ok(near.windows(release.len()).any(|window| window == release))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;
    use crate::page::PAGE_SIZE_U64;

    const RELEASE: &str = "6.1.0-56-cloud-amd64";
    const PHYS_BASE: i64 = -0x40_0000;

    fn text(names: u64) -> Vec<u8> {
        let names = IMAGE + 0x40_0000 + names;
        format!(
            "OSRELEASE={RELEASE}\nBUILD-ID=12ab\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={names:x}\nNUMBER(phys_base)={PHYS_BASE}\n"
        )
        .into_bytes()
    }

    fn note(text: &[u8]) -> Vec<u8> {
        let words = [11, u32::try_from(text.len()).unwrap(), 0].map(u32::to_le_bytes);
        [words.as_flattened(), b"VMCOREINFO\0\0", text].concat()
    }

    /// Memory with these bytes at these addresses, up to `end`; what is found in it.
    fn find_within(end: u64, places: &[(u64, &[u8])]) -> Option<Vec<u8>> {
        let mut pages: BTreeMap<u64, Box<PageBytes>> = BTreeMap::new();
        for (address, bytes) in places {
            for (at, byte) in (*address..).zip(*bytes) {
                pages.entry(at / PAGE_SIZE_U64).or_insert_with(|| Box::new([0; PAGE_SIZE]))[(at % PAGE_SIZE_U64) as usize] =
                    *byte;
            }
        }
        let mut search = Search::default();
        // In the order of a chain, which may be any.
        pages.iter().rev().for_each(|(gfn, page)| search.look_at(Gfn(*gfn), page));
        let read = |address: u64, buffer: &mut [u8]| -> Result<usize, Infallible> {
            let there = buffer.len().min(usize::try_from(end.saturating_sub(address)).unwrap());
            for (at, byte) in (address..).zip(&mut buffer[..there]) {
                *byte = pages.get(&(at / PAGE_SIZE_U64)).map_or(0, |page| page[(at % PAGE_SIZE_U64) as usize]);
            }
            Ok(there)
        };
        search.text(read).unwrap()
    }

    fn find(places: &[(u64, &[u8])]) -> Option<Vec<u8>> {
        find_within(1 << 30, places)
    }

    #[test]
    fn a_note_at_any_place_that_is_aligned() {
        for at in [0x1000, 0x1004, 0x1f80, 0x1fe8] {
            assert_eq!(find(&[(at, &note(&text(0)))]), Some(text(0)), "{at:#x}");
        }
        for at in [0x1001, 0x1002, 0x1fec] {
            assert_eq!(find(&[(at, &note(&text(0)))]), None, "{at:#x}");
        }
    }

    #[test]
    fn a_page_of_text_where_there_is_no_note() {
        assert_eq!(find(&[(0x5000, &text(0))]), Some(text(0)));
        // Not all of the page is text, or not all of the text in the page.
        assert_eq!(find(&[(0x5000, &text(0)), (0x5f00, b"x")]), None);
        assert_eq!(find(&[(0x5010, &text(0))]), None);
        let full = [&text(0)[..], &[b'K', b'=', b'v', b'\n'].repeat(1000)].concat();
        assert_eq!(find(&[(0x5000, &full[..PAGE_SIZE - 2])]), None);
    }

    #[test]
    fn of_several_the_one_that_fits_this_memory() {
        let (stale, true_text) = (text(0x7000), text(0x9100));
        let names = [b"Linux\0".as_slice(), RELEASE.as_bytes(), b"\0#1 SMP\0"].concat();
        let places: [(u64, &[u8]); 3] = [(0x1000, &note(&stale)), (0x3000, &note(&true_text)), (0x9100, &names)];
        assert_eq!(find(&places), Some(true_text.clone()));
        // Also where the only note does not fit, and bare text does.
        assert_eq!(find(&[(0x1000, &note(&stale)), (0x3000, &true_text), (0x9100, &names)]), Some(true_text.clone()));
        // None fits: a note, and the first.
        assert_eq!(find(&[(0x1000, &stale), (0x3000, &note(&true_text)), (0x5000, &note(&stale))]), Some(true_text));
        // More of the release is another one.
        let longer = format!("{RELEASE}-dbg\0");
        let places: [(u64, &[u8]); 3] = [(0x1000, &note(&stale)), (0x3000, &note(&text(0x9100))), (0x9100, longer.as_bytes())];
        assert_eq!(find(&places), Some(stale));
    }

    /// Whatever a guest has in its memory, what is taken is whole lines of text.
    #[test]
    fn what_is_no_text_is_left_out() {
        let sound = text(0);
        let with = |bytes: &[u8]| [&sound[..], bytes].concat();
        for bad in [
            with(b"no equals sign\n"),
            with(b"=no key\n"),
            with(b"KEY=cut off"),
            with(b"KEY=\x1b[31m\n"),
            with(b"KEY=\xff\n"),
            with(b"KEY=nul\0\n"),
            with(b"\n"),
            sound[4..].to_vec(),
            b"OSRELEASE=6.1.0\nPAGESIZE=16384\n".to_vec(),
            b"OSRELEASE=6.1.0\n".to_vec(),
            b"OSRELEASE=".to_vec(),
            with(&b"KEY=value\n".repeat(410)),
        ] {
            assert_eq!(find(&[(0x1000, &note(&bad))]), None, "{}", String::from_utf8_lossy(&bad));
        }
        for (at, value) in [(0, 10), (0, 12), (8, 1), (12, b'v'), (22, b'x'), (7, 0x80), (5, 0x20)] {
            let mut bad = note(&sound);
            bad[at] = value;
            assert_eq!(find(&[(0x1000, &bad)]), None, "{at} {value}");
        }
        // Memory ends within the text.
        assert_eq!(find_within(0x2000, &[(0x1fd0, &note(&sound))]), None);
        // Addresses that are nowhere.
        for line in ["SYMBOL(init_uts_ns)=ffffffffffffffff", "SYMBOL(init_uts_ns)=0", "SYMBOL(init_uts_ns)=x"] {
            for base in [i64::MIN, i64::MAX, 0] {
                let text = format!("OSRELEASE=6\nPAGESIZE=4096\n{line}\nNUMBER(phys_base)={base}\n").into_bytes();
                assert_eq!(find(&[(0x1000, &note(&text))]), Some(text));
            }
        }
    }

    /// What is kept of places does not follow how many there are.
    #[test]
    fn decoys_are_bounded() {
        let mut search = Search::default();
        let mut page = [0; PAGE_SIZE];
        let decoy = note(&[0]);
        for at in (0..PAGE_SIZE - decoy.len()).step_by(28) {
            page[at..at + decoy.len()].copy_from_slice(&decoy);
        }
        let bare: PageBytes = std::array::from_fn(|at| BEGINNING.get(at).copied().unwrap_or_default());
        for gfn in 0..1000 {
            search.look_at(Gfn(gfn), &page);
            search.look_at(Gfn(gfn), &bare);
        }
        assert_eq!((search.notes.len(), search.bare.len()), (PLACES_MAX, PLACES_MAX));
    }
}
