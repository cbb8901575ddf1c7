//! What stands in pages, zeros and state frames. No I/O.

use std::borrow::Cow;
use std::collections::HashSet;

use zstd::bulk::Decompressor;
use zstd::zstd_safe;

use super::damage::{DamageKind, Fault};
use super::description::Description;
use super::frame::{hex, le, u16_at, u32_at, u64_at};
use crate::page::{Gfn, PAGE_SIZE, PageRun};
use crate::xxh3::{xxh3_64, xxh3_128};

const BLOCK_PAGES_MAX: usize = 16;
/// The most bytes that a block has before its data.
pub(super) const LIST_BYTES_MAX: usize = 16 + 4 * BLOCK_PAGES_MAX;
const ZERO_RUNS_MAX: usize = 65_536;
const CHANGED_WORDS_MAX: u32 = 256;
const PACKED_BYTES_MAX: u32 = (64 << 20) - 8;
const RECORDS_MAX: u32 = 65_536;
const NAME_BYTES_MAX: u16 = 64;
const DATA_BYTES_MAX: u32 = 16 << 20;

/// Decodes pages frames, with one buffer of 64 KiB for all.
#[derive(Default)]
pub(super) struct Blocks {
    decompressor: Decompressor<'static>,
    pages: Vec<u8>,
    gfns: Vec<Gfn>,
}

impl Blocks {
    /// The pages of the payload `block`, which stands at `offset` of its file and holds whole
    /// pages.
    pub(super) fn decode<'a>(
        &'a mut self,
        block: &'a [u8],
        offset: u64,
        description: &Description,
    ) -> Result<impl Iterator<Item = (Gfn, &'a [u8])> + use<'a>, Fault> {
        let data = list(block, offset, description, &mut self.gfns)?;
        let data_at = block.len() - data.len();
        let wrong = |kind, at: usize, expected: String, found: String| Fault::new(kind, offset + at as u64, expected, found);
        let bytes = self.gfns.len() * PAGE_SIZE;
        let [encoding] = le(block, 0);
        let pages = match encoding {
            0 if data.len() == bytes => data,
            0 => return Err(wrong(DamageKind::Block, data_at, format!("{bytes} bytes"), format!("{} bytes", data.len()))),
            1 => {
                decompress(&mut self.decompressor, &mut self.pages, data, bytes)
                    .map_err(|(expected, found)| wrong(DamageKind::Zstd, data_at, expected, found))?;
                &self.pages
            }
            _ => return Err(wrong(DamageKind::Block, 0, "encoding 0 or 1".to_owned(), encoding.to_string())),
        };
        Ok(self.gfns.iter().copied().zip(pages.chunks_exact(PAGE_SIZE)))
    }
}

/// Reads the list of pages of the payload `block`, which stands at `offset` of its file, and
/// returns what is behind it.
pub(super) fn list<'a>(block: &'a [u8], offset: u64, description: &Description, gfns: &mut Vec<Gfn>) -> Result<&'a [u8], Fault> {
    let wrong = |kind, at: usize, expected: String, found: String| Fault::new(kind, offset + at as u64, expected, found);
    gfns.clear();
    let [_, count] = le(block, 0);
    let count = usize::from(count);
    let data_at = 16 + 4 * count;
    let Some(data) = block.get(data_at..).filter(|_| (1..=BLOCK_PAGES_MAX).contains(&count)) else {
        let expected = format!("a block of 1 to {BLOCK_PAGES_MAX} pages with their gfns");
        return Err(wrong(DamageKind::Block, 1, expected, format!("{count} pages in {} bytes", block.len())));
    };
    let reserved = le::<2>(block, 2);
    if reserved != [0; 2] {
        return Err(wrong(DamageKind::Reserved, 2, "0000".to_owned(), hex(&reserved)));
    }
    let first = u64_at(block, 8);
    let mut before = None;
    for index in 0..count {
        let at = 16 + 4 * index;
        let less_first = u32_at(block, at);
        if before.map_or(less_first != 0, |before| less_first <= before) {
            let expected = before.map_or_else(|| "0".to_owned(), |before| format!("more than {before}"));
            return Err(wrong(DamageKind::Block, at, expected, less_first.to_string()));
        }
        before = Some(less_first);
        let gfn = first.checked_add(less_first.into()).map(Gfn);
        match gfn.filter(|gfn| description.holds(PageRun { first: *gfn, count: 1 })) {
            Some(gfn) => gfns.push(gfn),
            None => {
                let found = format!("{first:#x} + {less_first:#x}");
                return Err(wrong(DamageKind::GfnOutOfMemory, at, "a gfn in the machine's memory".to_owned(), found));
            }
        }
    }
    let [list @ .., _, _, _, _] = xxh3_64(block.get(8..data_at).unwrap_or_default()).to_le_bytes();
    let list_checksum = le::<4>(block, 4);
    if list != list_checksum {
        return Err(wrong(DamageKind::ListChecksum, 4, hex(&list), hex(&list_checksum)));
    }
    Ok(data)
}

/// What changed of one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) gfn: Gfn,
    /// Where it begins in its file.
    pub(super) offset: u64,
    checksum: u64,
    bits: &'a [u8],
    words: &'a [u8],
}

impl Change<'_> {
    /// Puts the words in their places, and checks what comes of it.
    pub(super) fn apply(&self, page: &mut [u8]) -> Result<(), Fault> {
        let mut words = self.words.chunks_exact(8);
        for (index, word) in page.chunks_exact_mut(8).enumerate() {
            let changed = self.bits.get(index / 8).is_some_and(|byte| byte & 1 << (index % 8) != 0);
            if let Some(new) = changed.then(|| words.next()).flatten() {
                word.copy_from_slice(new);
            }
        }
        let found = xxh3_64(page);
        if found != self.checksum {
            let expected = format!("a page {} that hashes to {:016x}", self.gfn, self.checksum);
            return Err(Fault::new(DamageKind::Changes, self.offset, expected, format!("{found:016x}")));
        }
        Ok(())
    }
}

/// The changes that the payload `block`, which stands at `offset` of its file, holds.
pub(super) fn changes<'a>(block: &'a [u8], offset: u64, description: &Description) -> Result<Vec<Change<'a>>, Fault> {
    let mut gfns = Vec::new();
    let mut rest = list(block, offset, description, &mut gfns)?;
    let mut changes = Vec::with_capacity(gfns.len());
    for gfn in gfns {
        let offset = offset + (block.len() - rest.len()) as u64;
        let Some((head, behind)) = rest.split_at_checked(72) else {
            let found = format!("{} bytes", rest.len());
            return Err(Fault::new(DamageKind::Changes, offset, "a checksum and 512 bits", found));
        };
        let (checksum, bits) = (u64_at(head, 0), head.get(8..).unwrap_or_default());
        let count: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        if !(1..=CHANGED_WORDS_MAX).contains(&count) {
            let expected = format!("1 to {CHANGED_WORDS_MAX} words that changed");
            return Err(Fault::new(DamageKind::Changes, offset + 8, expected, count.to_string()));
        }
        let bytes = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(8);
        let Some((words, behind)) = behind.split_at_checked(bytes) else {
            let found = format!("{} bytes", behind.len());
            return Err(Fault::new(DamageKind::Changes, offset + 72, format!("{bytes} bytes of words"), found));
        };
        changes.push(Change { gfn, offset, checksum, bits, words });
        rest = behind;
    }
    if !rest.is_empty() {
        let offset = offset + (block.len() - rest.len()) as u64;
        return Err(Fault::new(DamageKind::Changes, offset, "the end of the payload", format!("{} more bytes", rest.len())));
    }
    Ok(changes)
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").finish_non_exhaustive()
    }
}

/// Decompresses `data` to `bytes` bytes in `pages`, or says what was expected and what was found.
fn decompress(
    decompressor: &mut Decompressor<'static>,
    pages: &mut Vec<u8>,
    data: &[u8],
    bytes: usize,
) -> Result<(), (String, String)> {
    if data.len() >= bytes {
        return Err((format!("fewer than {bytes} bytes: raw otherwise"), format!("{} bytes", data.len())));
    }
    let stated = zstd_safe::get_frame_content_size(data).map_err(|_| ("a zstd frame".to_owned(), "none".to_owned()))?;
    if stated != Some(bytes as u64) {
        let found = stated.map_or_else(|| "no content size".to_owned(), |stated| stated.to_string());
        return Err((format!("a zstd frame that states {bytes} bytes of content"), found));
    }
    if let Some(dictionary) = zstd_safe::get_dict_id_from_frame(data) {
        return Err(("no dictionary".to_owned(), format!("dictionary {dictionary}")));
    }
    match zstd_safe::find_frame_compressed_size(data) {
        Ok(size) if size == data.len() => {}
        Ok(size) => return Err((format!("one zstd frame of {} bytes", data.len()), format!("one of {size} bytes"))),
        Err(code) => return Err(("a whole zstd frame".to_owned(), zstd_safe::get_error_name(code).to_owned())),
    }
    pages.clear();
    pages.reserve(bytes);
    match decompressor.decompress_to_buffer(data, pages) {
        Ok(got) if got == bytes => Ok(()),
        Ok(got) => Err((format!("{bytes} bytes"), format!("{got} bytes"))),
        Err(error) => Err((format!("{bytes} bytes"), error.to_string())),
    }
}

/// The runs of the payload `list`, which stands at `offset` of its file.
pub(super) fn zero_runs(list: &[u8], offset: u64, description: &Description) -> Result<Vec<PageRun>, Fault> {
    let (entries, rest) = list.as_chunks::<16>();
    if !rest.is_empty() || !(1..=ZERO_RUNS_MAX).contains(&entries.len()) {
        let expected = format!("1 to {ZERO_RUNS_MAX} entries of 16 bytes");
        return Err(Fault::new(DamageKind::Zeros, offset, expected, format!("{} bytes", list.len())));
    }
    let mut runs: Vec<PageRun> = Vec::with_capacity(entries.len());
    for (entry, at) in entries.iter().zip((offset..).step_by(16)) {
        let run = PageRun { first: Gfn(u64_at(entry, 0)), count: u64_at(entry, 8) };
        if run.count == 0 {
            return Err(Fault::new(DamageKind::Zeros, at + 8, "at least 1 page", "0"));
        }
        if !description.holds(run) {
            let found = format!("{} pages from {:#x}", run.count, run.first.0);
            return Err(Fault::new(DamageKind::GfnOutOfMemory, at, "pages in the machine's memory", found));
        }
        if let Some(end) = runs.last().and_then(|before| before.end()).filter(|end| *end > run.first) {
            return Err(Fault::new(DamageKind::Zeros, at, format!("a gfn from {end} on"), run.first.to_string()));
        }
        runs.push(run);
    }
    Ok(runs)
}

/// Checks the state records of the payload `list`, which stands at `offset` of its file. Faults in
/// packed records are where they would be unpacked. Returns the hash of the list with its records
/// unpacked.
pub(super) fn check_state(list: &[u8], offset: u64) -> Result<u128, Fault> {
    let plain: Cow<'_, [u8]> = match u32_at(list, 4) {
        0 => list.into(),
        bytes => unpack(list, bytes, offset)?.into(),
    };
    check_records(&plain, offset).map(|()| xxh3_128(&plain))
}

/// The payload `list` with its `bytes` of records unpacked.
fn unpack(list: &[u8], bytes: u32, offset: u64) -> Result<Vec<u8>, Fault> {
    let wrong = |at, expected: &str, found: String| Err(Fault::new(DamageKind::StateRecords, offset + at, expected, found));
    if !bytes.is_multiple_of(8) || bytes > PACKED_BYTES_MAX {
        return wrong(4, "a multiple of 8, at most 64 MiB less 8", bytes.to_string());
    }
    let words = usize::try_from(bytes / 8).unwrap_or(usize::MAX);
    let Some((bits, mut rest)) = list.get(8..).and_then(|rest| rest.split_at_checked(words.div_ceil(64) * 8)) else {
        return wrong(8, "a bit for each word", format!("{} bytes", list.len()));
    };
    let mut plain = list.get(..4).unwrap_or_default().to_vec();
    plain.extend([0; 4]);
    for (index, byte) in bits.iter().enumerate() {
        for bit in 0..8 {
            let (is_set, is_word) = (byte & 1 << bit != 0, index * 8 + bit < words);
            match (is_set, is_word, rest.split_at_checked(8)) {
                (true, true, Some((word, behind))) => {
                    plain.extend(word);
                    rest = behind;
                }
                (false, true, _) => plain.extend([0; 8]),
                (false, false, _) => {}
                (true, true, None) => return wrong(8, "a word for each bit", "fewer".to_owned()),
                (true, false, _) => return wrong(8 + index as u64, "no bit behind the last word", format!("{byte:02x}")),
            }
        }
    }
    if rest.is_empty() { Ok(plain) } else { wrong(8, "a word for each bit", format!("{} more bytes", rest.len())) }
}

fn check_records(list: &[u8], offset: u64) -> Result<(), Fault> {
    let wrong = |at: usize, expected: String, found: String| {
        Err(Fault::new(DamageKind::StateRecords, offset + at as u64, expected, found))
    };
    let count = u32_at(list, 0);
    if list.len() < 8 || count > RECORDS_MAX {
        return wrong(0, format!("a list of up to {RECORDS_MAX} records"), format!("{count} records in {} bytes", list.len()));
    }
    if u32_at(list, 4) != 0 {
        return wrong(4, "0".to_owned(), u32_at(list, 4).to_string());
    }
    let mut seen: HashSet<(&[u8], u32)> = HashSet::new();
    let mut at: usize = 8;
    for number in 0..count {
        let record = list.get(at..).filter(|record| record.len() >= 16);
        let Some(record) = record else {
            return wrong(at, format!("{count} records"), format!("{number}, and {} bytes", list.len().saturating_sub(at)));
        };
        let (name_bytes, version, index) = (u16_at(record, 0), u16_at(record, 2), u32_at(record, 4));
        let (data_bytes, reserved) = (u32_at(record, 8), u32_at(record, 12));
        if !(1..=NAME_BYTES_MAX).contains(&name_bytes) {
            return wrong(at, format!("1 to {NAME_BYTES_MAX} bytes of name"), name_bytes.to_string());
        }
        if version == 0 {
            return wrong(at + 2, "a version from 1 on".to_owned(), "0".to_owned());
        }
        if data_bytes > DATA_BYTES_MAX {
            return wrong(at + 8, format!("at most {DATA_BYTES_MAX} bytes of data"), data_bytes.to_string());
        }
        if reserved != 0 {
            return wrong(at + 12, "0".to_owned(), reserved.to_string());
        }
        let name_end = 16 + usize::from(name_bytes);
        let data_end = name_end + usize::try_from(data_bytes).unwrap_or(usize::MAX - name_end);
        let end = data_end.next_multiple_of(8);
        let (Some(name), Some(padding)) = (record.get(16..name_end), record.get(data_end..end)) else {
            return wrong(at, format!("{end} bytes of record"), format!("{} to the end of the payload", record.len()));
        };
        if let Some(byte) = name.iter().find(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
            return wrong(at + 16, "a name of `a-z 0-9 . - _`".to_owned(), format!("byte {byte:02x}"));
        }
        if padding.iter().any(|byte| *byte != 0) {
            return wrong(at + data_end, "zeros up to a multiple of 8".to_owned(), hex(padding));
        }
        if !seen.insert((name, index)) {
            let found = format!("{} {index} twice", String::from_utf8_lossy(name));
            return wrong(at, "records with different names or indexes".to_owned(), found);
        }
        at += end;
    }
    if at != list.len() {
        return wrong(at, format!("the end of the payload after {count} records"), format!("{} more bytes", list.len() - at));
    }
    Ok(())
}
