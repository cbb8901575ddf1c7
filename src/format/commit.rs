//! The frame that ends an epoch.

use super::fields::Fields;
use super::segment::{GENERATION_NEUTRAL, INCARNATION_NEUTRAL, frame_in_epoch};
use super::{ChainId, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind, MemoryDigest, hash_bytes};
use crate::page::EpochId;

/// Bytes of a commit frame.
pub const COMMIT_FRAME_BYTES: usize = FRAME_HEADER_BYTES + 208;

/// Bytes of the commit frame of an epoch that a compaction wrote anew.
pub const REWRITTEN_COMMIT_FRAME_BYTES: usize = COMMIT_FRAME_BYTES + 16;

/// The chain's own time is told in units of so many nanoseconds.
pub const OWN_TIME_UNIT_NS: u64 = 16_000;

/// The field has 48 bits: enough until 2112.
const OWN_TIME_MAX: u64 = (1 << 48) - 1;

const FLAG_BASE: u8 = 1;
const FLAG_RECOVERY: u8 = 2;
const FLAG_AUDITED: u8 = 4;
const FLAG_REWRITTEN: u8 = 8;

/// Why an epoch was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Trigger {
    /// A dirty ring was full, or the share of the budget that the VMM's own writes have.
    RingFull,
    /// The interval was over.
    Interval,
    /// Somebody asked.
    #[default]
    Request,
    /// The last epoch, before the engine ends.
    Final,
}

impl Trigger {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::Interval => "interval",
            Self::Request => "request",
            Self::Final => "final",
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::RingFull => 1,
            Self::Interval => 2,
            Self::Request => 3,
            Self::Final => 4,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::RingFull,
            2 => Self::Interval,
            3 => Self::Request,
            4 => Self::Final,
            _ => return None,
        })
    }
}

/// How long each phase of a cut took, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Phases {
    /// From the first kick to the last vCPU parked.
    pub kick_ns: u64,
    /// Capturing state.
    pub state_ns: u64,
    /// Reading the rings.
    pub harvest_ns: u64,
    /// Copying pages to staging.
    pub copy_ns: u64,
    /// Resetting the rings.
    pub reset_ns: u64,
    /// Waiting for staging or storage, by policy.
    pub stall_ns: u64,
}

impl Phases {
    /// How long the guest stood still for the cut itself, which is without the stall.
    #[must_use]
    pub const fn pause_ns(&self) -> u64 {
        let Self { kick_ns, state_ns, harvest_ns, copy_ns, reset_ns, stall_ns: _ } = *self;
        kick_ns.saturating_add(state_ns).saturating_add(harvest_ns).saturating_add(copy_ns).saturating_add(reset_ns)
    }
}

/// What the frames of an epoch before its commit frame come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EpochTotals {
    /// How many frames.
    pub frames: u32,
    /// How many of them are pages frames.
    pub blocks: u32,
    /// Their bytes, padding included.
    pub frames_bytes: u64,
    /// xxh3-128 of their headers, one after the other.
    pub frames_hash: u128,
    /// Pages in pages frames, repeats counted each time.
    pub stored_pages: u64,
}

/// What a commit frame says of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Commit {
    /// The epoch, at least 1.
    pub epoch: EpochId,
    /// The epoch that this one changes, or none.
    pub parent: EpochId,
    /// The parent's identity, or 0.
    pub parent_hash: u128,
    /// The frames before this one.
    pub totals: EpochTotals,
    /// When the epoch was cut, in nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// The same by the chain's own time, which does not jump where the clock does and never goes
    /// back; a multiple of [`OWN_TIME_UNIT_NS`] when it is read. 0 where the writer told none: see
    /// [`own_time_ns`](Self::own_time_ns).
    pub own_ns: u64,
    /// How long the guest ran since the cut before, in nanoseconds.
    pub run_ns: u64,
    /// The phases of the cut.
    pub phases: Phases,
    /// Pages captured, each once.
    pub captured_pages: u64,
    /// Of these, pages of zeros.
    pub zero_pages: u64,
    /// Of these, unchanged and therefore not stored.
    pub unchanged_pages: u64,
    /// Bytes written for the epoch, this frame included.
    pub bytes_written: u64,
    /// Why the epoch was cut.
    pub trigger: Trigger,
    /// Whether the epoch mentions every page that is not zero, so that a reader needs nothing
    /// older.
    pub base: bool,
    /// Whether tracking was lost and memory was compared.
    pub recovery: bool,
    /// The digest of all guest memory, where the epoch was audited.
    pub audit: Option<MemoryDigest>,
    /// The identity that the epoch had, where a compaction wrote its frames anew.
    pub rewritten: Option<u128>,
}

impl Commit {
    /// The chain's own time of the cut. Only differences count: where the clock was wrong when the
    /// chain was begun, so is this.
    #[must_use]
    pub const fn own_time_ns(&self) -> u64 {
        if self.own_ns == 0 { self.time_unix_ns } else { self.own_ns }
    }

    /// The same epoch, of this identity, with other frames, for a chain in which it follows
    /// `behind`: an epoch and its identity. `totals` and `zero_pages` are those of the frames that
    /// it has now.
    #[must_use]
    pub fn rewritten(&self, identity: u128, behind: (EpochId, u128), totals: EpochTotals, zero_pages: u64, base: bool) -> Self {
        Self {
            parent: behind.0,
            parent_hash: behind.1,
            totals,
            captured_pages: totals.stored_pages + zero_pages,
            zero_pages,
            unchanged_pages: 0,
            bytes_written: totals.frames_bytes + REWRITTEN_COMMIT_FRAME_BYTES as u64,
            base,
            rewritten: Some(identity),
            ..*self
        }
    }

    /// The whole frame: [`COMMIT_FRAME_BYTES`], or [`REWRITTEN_COMMIT_FRAME_BYTES`] of an epoch
    /// that was written anew.
    #[must_use]
    pub fn encode_frame(&self, chain: ChainId) -> Vec<u8> {
        let mut payload = Vec::with_capacity(COMMIT_FRAME_BYTES);
        payload.extend(self.parent.0.to_le_bytes());
        payload.extend(self.parent_hash.to_le_bytes());
        payload.extend(self.totals.frames.to_le_bytes());
        payload.extend(self.totals.blocks.to_le_bytes());
        payload.extend(self.totals.frames_bytes.to_le_bytes());
        payload.extend(self.totals.frames_hash.to_le_bytes());
        let Phases { kick_ns, state_ns, harvest_ns, copy_ns, reset_ns, stall_ns } = self.phases;
        let numbers = [
            self.time_unix_ns,
            self.run_ns,
            kick_ns,
            state_ns,
            harvest_ns,
            copy_ns,
            reset_ns,
            stall_ns,
            self.captured_pages,
            self.zero_pages,
            self.unchanged_pages,
            self.totals.stored_pages,
            self.bytes_written,
            GENERATION_NEUTRAL,
        ];
        payload.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.base, FLAG_BASE)
            | flag(self.recovery, FLAG_RECOVERY)
            | flag(self.audit.is_some(), FLAG_AUDITED)
            | flag(self.rewritten.is_some(), FLAG_REWRITTEN);
        payload.extend([self.trigger.number(), flags]);
        let own_time = (self.own_ns / OWN_TIME_UNIT_NS).min(OWN_TIME_MAX).to_le_bytes();
        payload.extend(own_time.iter().take(6));
        payload.extend(self.audit.unwrap_or_default().0.to_le_bytes());
        payload.extend(INCARNATION_NEUTRAL.to_le_bytes());
        payload.extend(self.rewritten.iter().flat_map(|identity| identity.to_le_bytes()));
        frame_in_epoch(FrameKind::Commit, self.epoch, self.totals.frames, chain, &payload)
    }

    /// The epoch's identity, which the next epoch carries as parent hash. `frame`: the bytes of
    /// this commit's frame, header and payload.
    #[must_use]
    pub fn identity(&self, frame: &[u8]) -> u128 {
        self.rewritten.unwrap_or_else(|| hash_bytes(frame))
    }

    /// Reads a payload whose checksum was checked.
    ///
    /// # Errors
    /// A parent that is not older, a parent of none with a hash, a count that is not the header's
    /// sequence, a trigger or flag that there is not, a digest without its flag, a generation or
    /// incarnation that is not neutral.
    pub fn decode(header: &FrameHeader, payload: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(payload, FRAME_HEADER_BYTES);
        let at = fields.offset();
        let parent = EpochId(fields.u64("parent")?);
        if parent >= header.epoch {
            return Err(FormatError::field("parent", at, format!("below {}", header.epoch), parent));
        }
        let at = fields.offset();
        let parent_hash = fields.u128("parent hash")?;
        if parent == EpochId::NONE && parent_hash != 0 {
            return Err(FormatError::field("parent hash", at, 0, format!("{parent_hash:032x}")));
        }
        let at = fields.offset();
        let frames = fields.u32("frames")?;
        if frames != header.sequence {
            return Err(FormatError::field("frames", at, header.sequence, frames));
        }
        let blocks = fields.u32("blocks")?;
        let frames_bytes = fields.u64("bytes of frames")?;
        let frames_hash = fields.u128("hash of headers")?;
        let time_unix_ns = fields.u64("time")?;
        let run_ns = fields.u64("time that the guest ran")?;
        let phases = Phases {
            kick_ns: fields.u64("kick")?,
            state_ns: fields.u64("state")?,
            harvest_ns: fields.u64("harvest")?,
            copy_ns: fields.u64("copy")?,
            reset_ns: fields.u64("reset")?,
            stall_ns: fields.u64("stall")?,
        };
        let captured_pages = fields.u64("pages captured")?;
        let zero_pages = fields.u64("zero pages")?;
        let unchanged_pages = fields.u64("unchanged pages")?;
        let stored_pages = fields.u64("stored pages")?;
        let bytes_written = fields.u64("bytes written")?;
        fields.zeros("generation", 8)?;
        let at = fields.offset();
        let trigger = fields.u8("trigger")?;
        let trigger = Trigger::from_number(trigger).ok_or_else(|| FormatError::field("trigger", at, "1 to 4", trigger))?;
        let at = fields.offset();
        let flags = fields.u8("flags")?;
        if flags & !(FLAG_BASE | FLAG_RECOVERY | FLAG_AUDITED | FLAG_REWRITTEN) != 0 {
            return Err(FormatError::field("flags", at, "no more than 15", flags));
        }
        let mut own_time = [0; 8];
        own_time.iter_mut().zip(fields.bytes("own time", 6)?).for_each(|(to, from)| *to = *from);
        let own_ns = u64::from_le_bytes(own_time) * OWN_TIME_UNIT_NS;
        let at = fields.offset();
        let audit = fields.u128("audit digest")?;
        if flags & FLAG_AUDITED == 0 && audit != 0 {
            return Err(FormatError::field("audit digest", at, 0, format!("{audit:032x}")));
        }
        fields.zeros("incarnation", 16)?;
        let rewritten = if flags & FLAG_REWRITTEN == 0 { None } else { Some(fields.u128("identity")?) };
        fields.end("commit")?;
        Ok(Self {
            epoch: header.epoch,
            parent,
            parent_hash,
            totals: EpochTotals { frames, blocks, frames_bytes, frames_hash, stored_pages },
            time_unix_ns,
            own_ns,
            run_ns,
            phases,
            captured_pages,
            zero_pages,
            unchanged_pages,
            bytes_written,
            trigger,
            base: flags & FLAG_BASE != 0,
            recovery: flags & FLAG_RECOVERY != 0,
            audit: (flags & FLAG_AUDITED != 0).then_some(MemoryDigest(audit)),
            rewritten,
        })
    }
}
