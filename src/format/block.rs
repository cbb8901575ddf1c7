//! Blocks of up to 16 pages: the payload of a pages frame.

use std::fmt;
use std::str::FromStr;

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use super::fields::Fields;
use super::frame::PAGES_BYTES_MAX;
use super::{FRAME_HEADER_BYTES, FormatError};
use crate::page::{Gfn, PAGE_SIZE, PageBytes};
use crate::xxh3::xxh3_64;

/// The most pages in a block.
pub const BLOCK_PAGES: usize = 16;

/// Bytes of a block before its data, at most: what [`BlockList::parse`] needs of a payload.
pub const BLOCK_LIST_BYTES_MAX: usize = LIST_BYTES + 4 * BLOCK_PAGES;

/// The largest payload of a pages frame, in bytes.
pub const BLOCK_PAYLOAD_BYTES_MAX: usize = BLOCK_LIST_BYTES_MAX + BLOCK_PAGES * PAGE_SIZE;
const _: () = assert!(BLOCK_PAYLOAD_BYTES_MAX == PAGES_BYTES_MAX as usize);

/// Bytes before the gfns' differences.
const LIST_BYTES: usize = 16;

/// Where the list's checksum begins to look: behind itself.
const LIST_CHECKED_FROM: usize = 8;

/// How a block's data holds its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockEncoding {
    Raw,
    Zstd,
    Changes,
}

impl BlockEncoding {
    const fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::Changes => 2,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Raw,
            1 => Self::Zstd,
            2 => Self::Changes,
            _ => return None,
        })
    }
}

/// Room for the pages of a block.
pub type BlockPages = [PageBytes; BLOCK_PAGES];

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Pages are stored as they are.
    None,
    /// zstd.
    Zstd {
        /// zstd's level: [`Compression::LEVELS`], of which 0 is zstd's own default.
        level: i32,
    },
}

impl Compression {
    /// The levels of zstd that are taken.
    pub const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: 1 }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = FormatError;

    /// Takes `none`, `zstd` and `zstd:LEVEL`.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let level = match text.split_once(':') {
            None if text == "none" => return Ok(Self::None),
            None if text == "zstd" => return Ok(Self::default()),
            Some(("zstd", level)) => level.parse().ok().filter(|level| Self::LEVELS.contains(level)),
            _ => None,
        };
        let expected =
            || format!("none, zstd or zstd:LEVEL with a level from {} to {}", Self::LEVELS.start(), Self::LEVELS.end());
        level
            .map(|level| Self::Zstd { level })
            .ok_or_else(|| FormatError::input("compression", expected(), format!("{text:.40?}")))
    }
}

/// Makes the payloads of pages frames. Holds what the compressor needs, so that encoding allocates
/// nothing.
pub struct BlockEncoder {
    compression: Compression,
    zstd: Option<CCtx<'static>>,
    pages: Vec<u8>,
    /// What zstd writes to, so that nothing has to be zeroed for it.
    compressed: Vec<u8>,
}

impl BlockEncoder {
    /// An encoder. A level out of [`Compression::LEVELS`] is brought into them.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        let compression = match compression {
            Compression::Zstd { level } => {
                Compression::Zstd { level: level.clamp(*Compression::LEVELS.start(), *Compression::LEVELS.end()) }
            }
            Compression::None => Compression::None,
        };
        // Without a context, which only a lack of memory causes, pages are stored raw.
        let zstd = match compression {
            Compression::None => None,
            Compression::Zstd { level } => CCtx::try_create().and_then(|mut context| {
                context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
                Some(context)
            }),
        };
        let compressed = vec![0; if zstd.is_some() { BLOCK_PAGES * PAGE_SIZE } else { 0 }];
        Self { compression, zstd, pages: Vec::with_capacity(compressed.len()), compressed }
    }

    /// How this encoder compresses.
    #[must_use]
    pub const fn compression(&self) -> Compression {
        self.compression
    }

    /// Appends the payload of a pages frame to `out`. Writes nothing where it fails.
    ///
    /// # Errors
    /// Not 1 to 16 pages, gfns that do not rise or lie 2^32 or more apart.
    pub fn encode(&mut self, out: &mut Vec<u8>, block: &[(Gfn, &PageBytes)]) -> Result<(), FormatError> {
        let begin = out.len();
        encode_list(out, BlockEncoding::Raw, block.iter().map(|(gfn, _)| *gfn))?;
        if let Some(zstd) = &mut self.zstd {
            self.pages.clear();
            for (_, page) in block {
                self.pages.extend_from_slice(*page);
            }
            // What does not become smaller does not fit, and is stored raw. So is what zstd failed
            // on for any other reason.
            let room = self.compressed.get_mut(..self.pages.len() - 1).unwrap_or_default();
            let used = zstd.compress2(room, &self.pages).ok();
            if let Some(compressed) = used.and_then(|used| self.compressed.get(..used)) {
                out.extend_from_slice(compressed);
                if let Some(encoding) = out.get_mut(begin) {
                    *encoding = BlockEncoding::Zstd.number();
                }
                return Ok(());
            }
            out.extend_from_slice(&self.pages);
            return Ok(());
        }
        for (_, page) in block {
            out.extend_from_slice(*page);
        }
        Ok(())
    }
}

impl fmt::Debug for BlockEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockEncoder").field("compression", &self.compression).finish_non_exhaustive()
    }
}

/// Appends what stands before a block's data. Writes nothing where it fails.
pub(super) fn encode_list(
    out: &mut Vec<u8>,
    encoding: BlockEncoding,
    gfns: impl ExactSizeIterator<Item = Gfn>,
) -> Result<(), FormatError> {
    let begin = out.len();
    let pages = gfns.len();
    let count = u8::try_from(pages).ok().filter(|_| (1..=BLOCK_PAGES).contains(&pages));
    let count = count.ok_or_else(|| FormatError::input("pages of a block", format!("1 to {BLOCK_PAGES}"), pages))?;
    out.extend([encoding.number(), count, 0, 0, 0, 0, 0, 0]);
    let (mut first, mut before) = (Gfn(0), None);
    for gfn in gfns {
        if before.is_none() {
            first = gfn;
            out.extend(first.0.to_le_bytes());
        }
        let more = gfn.0.checked_sub(first.0).and_then(|more| u32::try_from(more).ok()).filter(|_| before < Some(gfn));
        let Some(more) = more else {
            out.truncate(begin);
            return Err(FormatError::input("gfns of a block", "rising numbers within 2^32", gfn));
        };
        out.extend(more.to_le_bytes());
        before = Some(gfn);
    }
    let checksum = list_checksum(out.get(begin..).unwrap_or_default());
    if let Some(place) = out.get_mut(begin + 4..begin + LIST_CHECKED_FROM) {
        place.copy_from_slice(&checksum.to_le_bytes());
    }
    Ok(())
}

/// The low half of xxh3-64 of a block's list, from its first gfn on.
fn list_checksum(list: &[u8]) -> u32 {
    let hash = xxh3_64(list.get(LIST_CHECKED_FROM..).unwrap_or_default());
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or_default()
}

/// Which pages a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockList {
    gfns: [Gfn; BLOCK_PAGES],
    count: usize,
    encoding: BlockEncoding,
}

impl BlockList {
    /// Reads the list at the beginning of a payload. `prefix` may end behind the list, whose own
    /// checksum is checked: [`BLOCK_LIST_BYTES_MAX`] bytes, or the whole payload, are always
    /// enough.
    ///
    /// # Errors
    /// An encoding that there is not, a count out of range, gfns that do not rise, a wrong
    /// checksum.
    pub fn parse(prefix: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(prefix, FRAME_HEADER_BYTES);
        let number = fields.u8("encoding")?;
        let encoding = BlockEncoding::from_number(number)
            .ok_or_else(|| FormatError::field("encoding", FRAME_HEADER_BYTES, "0 to 2", number))?;
        let number = fields.u8("number of pages")?;
        let count = usize::from(number);
        if !(1..=BLOCK_PAGES).contains(&count) {
            return Err(FormatError::field("number of pages", FRAME_HEADER_BYTES + 1, format!("1 to {BLOCK_PAGES}"), number));
        }
        fields.zeros("reserved", 2)?;
        let at = fields.offset();
        let expected = fields.u32("list checksum")?;
        let first = fields.u64("first gfn")?;
        let mut gfns = [Gfn(0); BLOCK_PAGES];
        let mut before = None;
        for place in gfns.iter_mut().take(count) {
            let at = fields.offset();
            let more = fields.u32("gfn")?;
            let gfn = first.checked_add(more.into()).map(Gfn);
            let gfn = gfn.filter(|gfn| if before.is_none() { more == 0 } else { before < Some(*gfn) });
            *place = gfn.ok_or_else(|| FormatError::field("gfn", at, "rising numbers from 0", more))?;
            before = gfn;
        }
        let list = prefix.get(..prefix.len() - fields.rest().len()).unwrap_or_default();
        let found = list_checksum(list);
        if found != expected {
            return Err(FormatError::Checksum {
                field: "list checksum",
                offset: at as u64,
                expected: expected.into(),
                found: found.into(),
            });
        }
        Ok(Self { gfns, count, encoding })
    }

    /// The pages, rising.
    #[must_use]
    pub fn gfns(&self) -> &[Gfn] {
        self.gfns.get(..self.count).unwrap_or_default()
    }

    /// Whether the block holds changes, to be taken apart by
    /// [`decode_changes`](super::decode_changes), and not whole pages.
    #[must_use]
    pub const fn is_changes(&self) -> bool {
        matches!(self.encoding, BlockEncoding::Changes)
    }

    /// Bytes of the payload before the data.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        LIST_BYTES + 4 * self.count
    }
}

/// Takes the payloads of pages frames apart. Memory is bounded: a block's pages, and what zstd's
/// decoder needs for them.
pub struct BlockDecoder {
    zstd: Option<DCtx<'static>>,
}

impl BlockDecoder {
    /// A decoder.
    #[must_use]
    pub fn new() -> Self {
        Self { zstd: DCtx::try_create() }
    }

    /// Decodes a payload with whole pages into the first pages of `pages`, in the list's order.
    /// Pages behind them are left as they are.
    ///
    /// # Errors
    /// As [`BlockList::parse`]; a block of changes; data of another size than the list says; data
    /// that zstd does not take. `pages` may then hold anything.
    pub fn decode(&mut self, payload: &[u8], pages: &mut BlockPages) -> Result<BlockList, FormatError> {
        let list = BlockList::parse(payload)?;
        let data = payload.get(list.bytes()..).unwrap_or_default();
        let at = FRAME_HEADER_BYTES + list.bytes();
        let raw_bytes = list.count * PAGE_SIZE;
        let room = pages.as_flattened_mut().get_mut(..raw_bytes).unwrap_or_default();
        if list.is_changes() {
            return Err(FormatError::field("encoding", FRAME_HEADER_BYTES, "0 or 1", list.encoding.number()));
        }
        if list.encoding == BlockEncoding::Raw {
            if data.len() != raw_bytes {
                return Err(FormatError::field("bytes of pages", at, raw_bytes, data.len()));
            }
            room.copy_from_slice(data);
            return Ok(list);
        }
        let stated = zstd_safe::get_frame_content_size(data).ok().flatten();
        if stated != Some(raw_bytes as u64) {
            let found = stated.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string());
            return Err(FormatError::field("content size of zstd data", at, raw_bytes, found));
        }
        let frame = zstd_safe::find_frame_compressed_size(data).map_err(|code| zstd_failed(at, code))?;
        if frame != data.len() {
            return Err(FormatError::field("bytes of zstd data", at, data.len(), frame));
        }
        if let Some(dictionary) = zstd_safe::get_dict_id_from_frame(data) {
            return Err(FormatError::field("dictionary of zstd data", at, "none", dictionary));
        }
        let zstd = self.zstd.as_mut().ok_or_else(|| FormatError::input("zstd data", "memory for a decoder", "none"))?;
        let found = zstd.decompress(room, data).map_err(|code| zstd_failed(at, code))?;
        if found != raw_bytes {
            return Err(FormatError::field("bytes of pages", at, raw_bytes, found));
        }
        Ok(list)
    }
}

fn zstd_failed(at: usize, code: usize) -> FormatError {
    FormatError::field("zstd data", at, "one sound zstd frame", zstd_safe::get_error_name(code))
}

impl Default for BlockDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BlockDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDecoder").finish_non_exhaustive()
    }
}
