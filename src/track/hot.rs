//! The hot set: pages that are written in nearly every epoch are left writable, and taken into
//! every epoch without being listed.
//!
//! Protecting a page costs the guest a fault at its next write, many times what copying the page
//! costs. So a page that will be written anyway is cheaper to copy unconditionally.
//!
//! # Why nothing is missed
//! A member is part of every collection, so whatever is written to it is captured. It enters in a
//! collection that lists it, and leaves in a collection that still takes it and protects it again:
//! there is no write in between that is neither listed nor taken.
//!
//! # Who is a member
//! A page enters when it was listed in [`ENTER_AFTER`] collections with gaps of at most one. It is
//! stale when its content, looked at once in [`LOOK_EVERY`] collections, is what it was at the last
//! look, or what it was put back to since. There are never more members than the set was made for:
//! the budget counts them.
//!
//! # How stale pages leave
//! The kernel protects what the entries say that it gets back, so a page can leave by an entry that
//! is to spare: that of a page that was listed and stays writable. There are such entries when
//! pages enter. When too many stale pages wait for one, a page is unmapped from the guest instead:
//! its next access faults, and is listed if it is a write. That may unmap neighbours (2 MiB on
//! PVM), whose faults are listed as well and leave entries to spare.

use crate::kvm::ring::DirtyPage;
use crate::page::Gfn;

/// Listings, each at most two collections after the one before, after which a page enters.
pub const ENTER_AFTER: u32 = 4;
/// Collections in which each member is looked at once.
pub const LOOK_EVERY: usize = 64;
/// So many stale pages may wait for entries to spare, or an eighth of all.
const STALE_MOST: usize = 16;
/// If most members are listed in so many collections in a row, the kernel does not leave them
/// writable, and there is nothing to gain.
const LISTED_MOST: u32 = 16;

/// A page's past, in a word: member or not, listings counted, the collection of the last one.
#[derive(Clone, Copy, Default, Debug)]
struct Past(u32);

impl Past {
    const MEMBER: u32 = 1 << 31;
    const COUNT_SHIFT: u32 = 24;
    const COUNT_MAX: u32 = 0x7f;
    const COLLECTION: u32 = (1 << Self::COUNT_SHIFT) - 1;

    const fn is_member(self) -> bool {
        self.0 & Self::MEMBER != 0
    }

    /// Listings in a row, this one in `collection` included. Being listed twice in one counts once.
    const fn listed(&mut self, collection: u32) -> u32 {
        let collection = collection & Self::COLLECTION;
        let count = (self.0 >> Self::COUNT_SHIFT) & Self::COUNT_MAX;
        let count = match collection.wrapping_sub(self.0) & Self::COLLECTION {
            0 => count,
            1 | 2 if count < Self::COUNT_MAX => count + 1,
            1 | 2 => count,
            _ => 1,
        };
        self.0 = count << Self::COUNT_SHIFT | collection;
        count
    }
}

/// One page of the set.
#[derive(Clone, Copy, Debug)]
struct Member {
    gfn: Gfn,
    page: DirtyPage,
    /// A hash of its content at the last look.
    content: Option<u64>,
    /// The content did not change between the last two looks.
    stale: bool,
}

/// What is to be done with a page that was listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Listed {
    Protect,
    LeaveWritable,
}

/// The pages that are left writable.
#[derive(Debug)]
pub struct HotSet {
    members: Vec<Member>,
    most: usize,
    /// 4 bytes a frame, taken from the host as they are touched.
    past: Vec<u32>,
    collection: u32,
    /// Where the next look begins.
    next: usize,
    stale: usize,
    listed_members: usize,
    /// Collections in a row in which most members were listed.
    listed_most: u32,
    /// Nothing is gained here: no page enters any more.
    given_up: bool,
}

impl HotSet {
    /// An empty set for the frames below `frames`, of at most `most` pages.
    ///
    /// # Panics
    /// When `frames` does not fit in `usize`, which on 64-bit hosts is never.
    #[must_use]
    pub fn new(frames: u64, most: usize) -> Self {
        let frames = usize::try_from(frames).expect("frames fit in the address space");
        Self {
            members: Vec::with_capacity(most),
            most,
            past: vec![0; frames],
            // Far from the zero of pages that were never listed.
            collection: 1 << 8,
            next: 0,
            stale: 0,
            listed_members: 0,
            listed_most: 0,
            given_up: false,
        }
    }

    /// The most pages that the set can have.
    #[must_use]
    pub const fn most(&self) -> usize {
        self.most
    }

    /// How many pages it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The pages.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.members.iter().map(|member| member.gfn)
    }

    /// A collection is over, and with it the epoch: what is listed from now on is in the next one.
    pub(super) const fn end(&mut self) {
        self.collection = self.collection.wrapping_add(1);
        self.listed_members = 0;
    }

    /// The kernel lists `gfn`, which is `page`.
    pub(super) fn listed(&mut self, gfn: Gfn, page: DirtyPage) -> Listed {
        let Some(word) = usize::try_from(gfn.0).ok().and_then(|index| self.past.get_mut(index)) else { return Listed::Protect };
        let mut past = Past(*word);
        if past.is_member() {
            self.listed_members += 1;
            return Listed::LeaveWritable;
        }
        let listings = past.listed(self.collection);
        *word = past.0;
        if listings < ENTER_AFTER || self.members.len() >= self.most || self.given_up {
            return Listed::Protect;
        }
        *word |= Past::MEMBER;
        self.members.push(Member { gfn, page, content: None, stale: false });
        Listed::LeaveWritable
    }

    /// Looks at some members, after all listings of the collection; `content` is a hash of a
    /// member's page. Stale pages leave: up to `room` of them, which are put into `protect` and
    /// must be protected by the collection's reset; if too many are left, the one that is returned,
    /// which must be unmapped now.
    pub(super) fn look(
        &mut self,
        room: usize,
        mut content: impl FnMut(Gfn) -> Option<u64>,
        protect: &mut Vec<DirtyPage>,
    ) -> Option<Gfn> {
        let listed_most = !self.members.is_empty() && self.listed_members * 2 > self.members.len();
        self.listed_most = if listed_most { self.listed_most + 1 } else { 0 };
        if self.listed_most >= LISTED_MOST && !self.given_up {
            self.given_up = true;
            self.members.iter_mut().for_each(|member| member.stale = true);
            self.stale = self.members.len();
        }
        for _ in 0..self.looks() {
            if self.next >= self.members.len() {
                self.next = 0;
            }
            let Some(member) = self.members.get_mut(self.next) else { break };
            let seen = content(member.gfn);
            let stale = seen.is_some() && seen == member.content;
            self.stale = self.stale + usize::from(stale) - usize::from(member.stale);
            (member.stale, member.content) = (stale, seen);
            self.next += 1;
        }
        let begin = protect.len();
        if room > 0 && self.stale > 0 {
            let Self { members, stale, past, .. } = self;
            members.retain(|member| {
                let leaves = member.stale && protect.len() - begin < room;
                if leaves {
                    *stale -= 1;
                    forget(past, member.gfn);
                    protect.push(member.page);
                }
                !leaves
            });
        }
        if self.stale <= STALE_MOST.max(self.members.len() / 8) {
            return None;
        }
        let index = self.members.iter().position(|member| member.stale)?;
        let member = self.members.swap_remove(index);
        self.stale -= 1;
        forget(&mut self.past, member.gfn);
        Some(member.gfn)
    }

    /// How many members a collection looks at.
    const fn looks(&self) -> usize {
        if self.given_up { 0 } else { self.members.len().div_ceil(LOOK_EVERY) }
    }

    /// The pages were put back to what they were, and `content` is a hash of what they are now: a
    /// page that is the same at the next look was not written since. What they were at the last
    /// look tells nothing: a guest that does the same again and again leaves the same in them.
    pub(super) fn put_back(&mut self, mut content: impl FnMut(Gfn) -> Option<u64>) {
        let next = if self.next < self.members.len() { self.next } else { 0 };
        let looks = self.looks();
        let (first, rest) = self.members.split_at_mut(next);
        for member in rest.iter_mut().chain(first).take(looks) {
            member.content = content(member.gfn);
        }
    }

    /// Everything is protected: no page is a member any more.
    pub(super) fn clear(&mut self) {
        for member in self.members.drain(..) {
            forget(&mut self.past, member.gfn);
        }
        self.stale = 0;
    }
}

/// `gfn` is no member any more.
fn forget(past: &mut [u32], gfn: Gfn) {
    if let Some(past) = usize::try_from(gfn.0).ok().and_then(|index| past.get_mut(index)) {
        *past = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const FRAMES: u64 = 4096;

    fn page(gfn: u64) -> DirtyPage {
        DirtyPage { slot: 0, offset: gfn }
    }

    /// A guest, and a kernel that lists writes to protected pages.
    struct Model {
        hot: HotSet,
        protected: BTreeSet<u64>,
        content: BTreeMap<u64, u64>,
        entries: usize,
        /// Pages that are unmapped together.
        neighbours: u64,
        unmapped: usize,
    }

    impl Model {
        fn new(most: usize, neighbours: u64) -> Self {
            let protected = (0..FRAMES).collect();
            Self { hot: HotSet::new(FRAMES, most), protected, content: BTreeMap::new(), entries: 0, neighbours, unmapped: 0 }
        }

        /// The guest writes `pages` (with the same content as before where `same`), and they are
        /// collected: returns whether every page that was written was taken.
        fn epoch(&mut self, pages: impl IntoIterator<Item = u64>, same: bool) -> bool {
            let written: BTreeSet<u64> = pages.into_iter().collect();
            let mut listed = Vec::new();
            for gfn in &written {
                *self.content.entry(*gfn).or_default() += u64::from(!same);
                if self.protected.remove(gfn) {
                    listed.push(*gfn);
                }
            }
            self.entries = listed.len();
            let mut protect = Vec::new();
            for gfn in &listed {
                if self.hot.listed(Gfn(*gfn), page(*gfn)) == Listed::Protect {
                    protect.push(page(*gfn));
                }
            }
            let taken: BTreeSet<u64> = listed.iter().copied().chain(self.hot.iter().map(|gfn| gfn.0)).collect();
            let room = listed.len() - protect.len();
            let content = &self.content;
            let unmapped = self.hot.look(room, |gfn| content.get(&gfn.0).copied(), &mut protect);
            self.hot.end();
            assert!(protect.len() <= listed.len(), "there are entries for all pages");
            self.protected.extend(protect.iter().map(|page| page.offset));
            self.unmapped += usize::from(unmapped.is_some());
            if let Some(gfn) = unmapped {
                let first = gfn.0 / self.neighbours * self.neighbours;
                self.protected.extend(first..first + self.neighbours);
            }
            assert!(self.hot.len() <= self.hot.most());
            let members: BTreeSet<u64> = self.hot.iter().map(|gfn| gfn.0).collect();
            assert!((0..FRAMES).all(|gfn| members.contains(&gfn) || self.protected.contains(&gfn)), "all others are protected");
            written.is_subset(&taken)
        }
    }

    #[test]
    fn pages_of_every_epoch_enter_and_are_silent() {
        let mut model = Model::new(500, 1);
        for epoch in 0..100 {
            assert!(model.epoch((0..300).chain([1000 + epoch]), false));
            assert_eq!(model.entries, if epoch < 4 { 301 } else { 1 }, "epoch {epoch}");
        }
        assert_eq!(model.hot.len(), 300);
    }

    #[test]
    fn pages_that_rest_leave_and_are_listed_again() {
        for neighbours in [1, 512] {
            let mut model = Model::new(500, neighbours);
            (0..10).for_each(|_| assert!(model.epoch(0..300, false)));
            assert_eq!(model.hot.len(), 300);
            // The others go on.
            for epoch in 0..1000 {
                assert!(model.epoch((200..300).chain([1000 + epoch % 2000]), false));
            }
            let members: BTreeSet<u64> = model.hot.iter().map(|gfn| gfn.0).collect();
            let stale = members.iter().filter(|gfn| !(200..300).contains(*gfn)).count();
            assert!(members.len() - stale == 100 && stale <= STALE_MOST, "{members:?}");
            assert!(neighbours == 1 || model.unmapped < 20, "{} unmapped", model.unmapped);
            assert!(model.epoch(0..300, false));
            assert!(model.entries >= 200 - STALE_MOST);
        }
    }

    #[test]
    fn writing_the_same_is_no_reason_to_stay() {
        let mut model = Model::new(100, 1);
        (0..10).for_each(|_| assert!(model.epoch(0..50, false)));
        assert_eq!(model.hot.len(), 50);
        for epoch in 0..300 {
            assert!(model.epoch((0..50).chain([1000 + epoch]), true));
        }
        assert!(model.unmapped > 0);
        assert!(model.epoch(0..50, false));
    }

    #[test]
    fn there_are_never_more_than_fit_and_the_first_come_stay() {
        let mut model = Model::new(64, 1);
        for _ in 0..200 {
            assert!(model.epoch(0..1000, false));
        }
        assert_eq!(model.hot.len(), 64);
    }

    #[test]
    fn pages_that_come_now_and_then_do_not_enter() {
        let mut model = Model::new(500, 1);
        for epoch in 0..300_u64 {
            assert!(model.epoch((0..300).filter(|gfn| gfn % 3 == epoch % 3), false));
        }
        assert!(model.hot.is_empty());
    }

    #[test]
    fn random_guests_miss_nothing() {
        let mut seed = 11_u64;
        println!("seed {seed}");
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 33
        };
        for most in [0, 1, 30, 400] {
            let mut model = Model::new(most, if most == 30 { 1 } else { 512 });
            for epoch in 0..600 {
                let (first, count) = (random() % 500, random() % 60);
                let cold: Vec<_> = (0..random() % 40).map(|_| random() % FRAMES).collect();
                assert!(model.epoch((first..first + count).chain(0..100).chain(cold), epoch % 7 == 0), "epoch {epoch}");
                if epoch % 211 == 210 {
                    model.protected.extend(0..FRAMES);
                    model.hot.clear();
                }
            }
        }
    }

    #[test]
    fn a_kernel_that_protects_members_is_given_up_on() {
        let mut hot = HotSet::new(FRAMES, 100);
        for epoch in 0..200 {
            let mut protect = Vec::new();
            // It lists them whatever it was told.
            let listed: Vec<_> = (0..50).filter(|gfn| hot.listed(Gfn(*gfn), page(*gfn)) == Listed::LeaveWritable).collect();
            let unmapped = hot.look(listed.len(), |gfn| Some(gfn.0 + epoch), &mut protect);
            hot.end();
            assert_eq!(unmapped, None);
        }
        assert!(hot.is_empty() && hot.given_up);
    }
}
