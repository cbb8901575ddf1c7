//! One epoch while it is read: what was counted in it, and whether its commit frame agrees.

use super::damage::{DamageKind, Fault};
use super::frame::{Commit, HEADER_BYTES_U64, Header, Kind};
use crate::xxh3::Xxh3;

/// An epoch whose commit frame has not come yet.
pub(super) struct Open {
    pub(super) epoch: u64,
    /// Where its first frame begins.
    pub(super) start: u64,
    /// The position of the next frame.
    pub(super) next: Option<u32>,
    /// Some of its frames are missing or not readable: counts and hashes say nothing.
    pub(super) gap: bool,
    /// Some of its pages are not known.
    pub(super) spoiled: bool,
    pub(super) blocks: u32,
    pub(super) bytes: u64,
    pub(super) headers: Xxh3,
    pub(super) stored: u64,
    pub(super) zero: u64,
    /// Pages stored that the epoch did not have before, or had as zeros since.
    pub(super) distinct: u64,
    pub(super) states: u64,
    /// What is wrong in frames that are intact. It counts only if the epoch exists.
    pub(super) findings: Vec<Fault>,
    pub(super) findings_omitted: u64,
    /// Where a change stands whose page no frame of the epoch had before: a base may not have one.
    pub(super) leans_at: Option<u64>,
    /// Where its first change stands: a rewritten epoch has none.
    pub(super) changes_at: Option<u64>,
    /// The commit frame whose memory the digest showed before this epoch.
    pub(super) memory_before: Option<u128>,
}

impl Open {
    pub(super) fn new(epoch: u64, start: u64, gap: bool, memory_before: Option<u128>) -> Self {
        Self {
            epoch,
            start,
            next: Some(0),
            gap,
            spoiled: false,
            blocks: 0,
            bytes: 0,
            headers: Xxh3::new(),
            stored: 0,
            zero: 0,
            distinct: 0,
            states: 0,
            findings: Vec::new(),
            findings_omitted: 0,
            leans_at: None,
            changes_at: None,
            memory_before,
        }
    }

    /// Takes note of a frame's header.
    pub(super) fn count(&mut self, header: &Header) {
        self.next = header.sequence.checked_add(1);
        self.bytes = self.bytes.saturating_add(header.bytes());
        self.headers.update(&header.raw);
        self.blocks = self.blocks.saturating_add(u32::from(header.kind == Kind::Pages));
        self.states = self.states.saturating_add(u64::from(header.kind == Kind::State));
    }

    /// Keeps what is wrong in an intact frame until it is known whether the epoch exists; at most
    /// `max` of it.
    pub(super) fn note(&mut self, fault: Fault, max: usize) {
        if self.findings.len() < max {
            self.findings.push(fault);
        } else {
            self.findings_omitted = self.findings_omitted.saturating_add(1);
        }
    }

    /// Why the epoch, which `commit` in the frame at `at` ends, does not exist. `parent` is what it
    /// must name, where that is known.
    pub(super) fn contradictions(&self, at: u64, header: &Header, commit: &Commit, parent: Option<(u64, u128)>) -> Vec<Fault> {
        let mut faults = Vec::new();
        let payload = at + HEADER_BYTES_U64;
        let mut check = |kind, offset, name: &str, expected: String, found: String| {
            if expected != found {
                faults.push(Fault::new(kind, payload + offset, format!("{name} {expected}"), found));
            }
        };
        check(DamageKind::Counts, 24, "frames", header.sequence.to_string(), commit.frames.to_string());
        if !self.gap {
            check(DamageKind::Counts, 28, "blocks", self.blocks.to_string(), commit.blocks.to_string());
            check(DamageKind::Counts, 32, "bytes", self.bytes.to_string(), commit.bytes.to_string());
            let frames_hash = self.headers.digest128();
            check(DamageKind::FramesHash, 40, "hash", format!("{frames_hash:032x}"), format!("{:032x}", commit.frames_hash));
        }
        if let Some((epoch, hash)) = parent {
            let text = |epoch: u64, hash: u128| format!("{epoch}, hash {hash:032x}");
            check(DamageKind::Parent, 0, "parent", text(epoch, hash), text(commit.parent, commit.parent_hash));
        }
        let has = |there: bool| if there { "an identity" } else { "no identity" }.to_owned();
        let (rewritten, there) = (commit.has(Commit::REWRITTEN), commit.identity.is_some());
        check(DamageKind::Flags, 169, "by the flags,", has(rewritten), has(there));
        faults
    }

    /// What a commit frame says that may not be said, or that is not so, in an epoch that exists
    /// all the same.
    pub(super) fn breaches(&self, at: u64, commit: &Commit) -> Vec<Fault> {
        let mut faults = Vec::new();
        let payload = at + HEADER_BYTES_U64;
        let mut check = |holds: bool, kind, offset: u64, expected: String, found: String| {
            if !holds {
                faults.push(Fault::new(kind, payload + offset, expected, found));
            }
        };
        let Commit { pages, zero, unchanged, stored, bytes_written, trigger, flags, .. } = *commit;
        check((1..=4).contains(&trigger), DamageKind::Flags, 168, "a trigger from 1 to 4".to_owned(), trigger.to_string());
        let rewritten = commit.has(Commit::REWRITTEN);
        let known = Commit::BASE | Commit::RECOVERY | Commit::AUDITED | Commit::REWRITTEN;
        check(flags & !known == 0, DamageKind::Flags, 169, format!("flags of {known}"), flags.to_string());
        let audited = commit.has(Commit::AUDITED) || commit.audit == 0;
        if let Some(at) = self.leans_at.filter(|_| commit.has(Commit::BASE)) {
            let expected = "a page that the base had before";
            faults.push(Fault::new(DamageKind::Changes, at, expected, "a change of one that it did not have"));
        }
        if let Some(at) = self.changes_at.filter(|_| rewritten) {
            faults.push(Fault::new(DamageKind::Changes, at, "whole pages in an epoch that was rewritten", "a change"));
        }
        let mut check = |holds: bool, kind, offset: u64, expected: String, found: String| {
            if !holds {
                faults.push(Fault::new(kind, payload + offset, expected, found));
            }
        };
        check(audited, DamageKind::Flags, 176, "no digest without audit".to_owned(), format!("{:032x}", commit.audit));
        let neutral = "0: no machine has another yet";
        let Commit { generation, incarnation, .. } = *commit;
        check(generation == 0, DamageKind::Reserved, 160, neutral.to_owned(), generation.to_string());
        check(incarnation == 0, DamageKind::Reserved, 192, neutral.to_owned(), format!("{incarnation:032x}"));
        let written = commit.bytes.saturating_add(commit.frame_bytes());
        check(bytes_written == written, DamageKind::Counts, 152, format!("{written} bytes written"), bytes_written.to_string());
        if self.gap {
            return faults;
        }
        check(
            self.states == 1,
            DamageKind::Kind,
            0,
            "one state frame before the commit frame".to_owned(),
            self.states.to_string(),
        );
        if self.spoiled {
            return faults;
        }
        check(stored == self.stored, DamageKind::Counts, 144, format!("{} pages stored", self.stored), stored.to_string());
        // A base or a recovery is streamed in parts and may meet a page again, or leave out that a
        // page is zero.
        if rewritten || !commit.has(Commit::BASE) && !commit.has(Commit::RECOVERY) {
            check(zero == self.zero, DamageKind::Counts, 128, format!("{} zero pages", self.zero), zero.to_string());
            // An epoch that is taken in rounds meets pages again as well, and counts them once.
            let most = zero.saturating_add(unchanged).saturating_add(stored);
            let least = if rewritten { most } else { self.distinct.saturating_sub(zero) };
            let expected = format!("{least} to {most} pages: {zero} zero, {unchanged} unchanged, {stored} stored");
            check((least..=most).contains(&pages), DamageKind::Counts, 120, expected, pages.to_string());
        }
        faults
    }
}
