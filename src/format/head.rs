//! The end of a chain, and how an epoch that follows it becomes complete.

use super::own_time::OwnTime;
use super::{COMMIT_FRAME_BYTES, ChainId, Commit, CutTime};
use crate::page::EpochId;

/// The newest epoch of a chain, as the next one needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The epoch, or none. A branch without an epoch of its own has the one that it begins behind.
    pub epoch: EpochId,
    /// Its identity, or 0.
    pub identity: u128,
    /// When it was cut; none where the chain has no epoch of its own.
    pub cut: Option<CutTime>,
}

/// The end of an epoch. Its bytes never change: whoever appends the epoch's frames and this one
/// holds the same epoch, by its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complete {
    /// What the commit frame says.
    pub commit: Commit,
    /// The epoch's identity, which the next epoch names as its parent's.
    pub identity: u128,
    /// The commit frame.
    pub frame: Vec<u8>,
}

impl Complete {
    /// `commit` as it is, for `chain`.
    #[must_use]
    pub fn new(chain: ChainId, commit: Commit) -> Self {
        let frame = commit.encode_frame(chain);
        Self { commit, identity: commit.identity(&frame), frame }
    }

    /// The head of a chain that this epoch was appended to.
    #[must_use]
    pub fn head(&self) -> Head {
        let Self { commit, identity, .. } = self;
        Head { epoch: commit.epoch, identity: *identity, cut: Some(CutTime::from(commit)) }
    }
}

/// Completes epochs that follow each other.
#[derive(Clone, Debug)]
pub struct Line {
    chain: ChainId,
    head: Head,
    own_time: OwnTime,
}

impl Line {
    /// Behind `head` of `chain`.
    #[must_use]
    pub const fn behind(chain: ChainId, head: Head) -> Self {
        Self { chain, head, own_time: OwnTime::behind(head.cut) }
    }

    /// What the next epoch follows.
    #[must_use]
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Goes on behind `head`: what was completed behind it does not exist.
    pub const fn go_back(&mut self, head: Head) {
        self.head = head;
        self.own_time.reopened(head.cut);
    }

    /// Completes the epoch that `commit` tells of, which the next one follows. `parent`,
    /// `parent_hash`, `base` and `bytes_written` of `commit` are filled in. `own_ns` is the
    /// engine's time or 0 when it comes, and the chain's own when it leaves.
    #[must_use]
    pub fn complete(&mut self, commit: Commit) -> Complete {
        let told = self.own_time.of(commit.epoch, commit.own_ns, commit.time_unix_ns);
        let complete = Complete::new(
            self.chain,
            Commit {
                parent: self.head.epoch,
                parent_hash: self.head.identity,
                own_ns: told.0.own_ns,
                base: self.head.epoch == EpochId::NONE,
                bytes_written: commit.totals.frames_bytes + COMMIT_FRAME_BYTES as u64,
                ..commit
            },
        );
        self.own_time.appended(told);
        self.head = complete.head();
        complete
    }
}
