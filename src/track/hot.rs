//! The hot set: pages that are written often are left writable, and taken into every epoch without
//! being listed.
//!
//! Protecting a page costs the guest a fault at its next write, many times what copying the page
//! costs. So a page that is written in enough epochs is cheaper to copy in each.
//!
//! # Why nothing is missed
//! A member is part of every collection, so whatever is written to it is captured. It enters in a
//! collection that lists it, and leaves in a collection that still takes it and protects it again:
//! there is no write in between that is neither listed nor taken.
//!
//! # Who is a member
//! A fault is worth so many copies ([`HotSet::set_worth`], measured). A page is cheaper to copy
//! when it faults more often than once in so many collections.
//!
//! - How often a page that is no member faults is counted, and what is old fades. It enters at a
//!   little more than that.
//! - A member does not fault. Its content is looked at once in so many collections, and compared
//!   with what it was then, or with what it was put back to since. It leaves when it was the same
//!   twice in a row, or nearly. One that changes at each look is looked at four times less often.
//! - There are never more members than the set was made for: the budget counts them. While others
//!   would enter and can't, a place costs more: a fault is taken to be worth less, until the colder
//!   members leave.
//!
//! So a guest pays at most 1.25 times as much as with the best choice of members for pages that are
//! written at random, whatever the chance; a test has it, looks counted as two copies each.
//!
//! # How pages leave
//! The kernel protects what the entries say that it gets back, so a page can leave by an entry that
//! is to spare: that of a page that was listed and stays writable. There are such entries when
//! pages enter. When too many pages wait for one, a page is unmapped from the guest instead: its
//! next access faults, and is listed if it is a write. That may unmap neighbours (2 MiB on PVM),
//! whose faults are listed as well and leave entries to spare.

use crate::kvm::ring::DirtyPage;
use crate::page::Gfn;

/// What a fault is worth until it is measured, in copies.
const WORTH_AT_FIRST: u32 = 8;
/// With less, looks cost more than is gained.
const WORTH_LEAST: u32 = 4;
/// A member is looked at once in so many collections at the most: looks are part of the pause.
const DISTANCE_LEAST: u32 = 8;
/// More is not worth its while: a page is forgotten before it is written again.
const WORTH_MOST: u32 = 256;
/// What faults of a page are counted over: so many times as long as between looks.
const MEMORY: u32 = 5;
/// A page enters at so many hundredths of the faults at which it is cheaper to copy.
const ENTER_PERCENT: u32 = 130;
/// So much of that a page is taken to have had when it is listed for the first time: hot pages are
/// most of what is listed at the start.
const AT_FIRST_PERCENT: u32 = 60;
/// So many pages may wait for entries to spare, or an eighth of all.
const LEAVING_MOST: usize = 16;
/// If most members are listed in so many collections in a row, the kernel does not leave them
/// writable, and there is nothing to gain.
const LISTED_MOST: u32 = 16;

/// A member's score: at nothing it leaves.
const SCORE_AT_FIRST: i32 = 2 * SCORE_CHANGED;
const SCORE_MOST: i32 = 3 * SCORE_CHANGED;
const SCORE_CHANGED: i32 = 1024;
const SCORE_SAME: i32 = -SCORE_CHANGED * 3 / 2;
/// A member with the highest score is looked at so many times less often, and leaves when it is the
/// same once.
const SELDOM: u32 = 4;

/// A page's past, in a word: member or not, faults in a collection, the collection of the last one.
#[derive(Clone, Copy, Default, Debug)]
struct Past(u32);

impl Past {
    const MEMBER: u32 = 1 << 31;
    const FAULTS_SHIFT: u32 = 18;
    const FAULTS_MAX: u32 = (1 << 13) - 1;
    /// One fault in each collection.
    const ONE: u32 = 1 << 12;
    const COLLECTION: u32 = (1 << Self::FAULTS_SHIFT) - 1;
    /// Of a page that was a member: next to no fault.
    const RESTS: u32 = 1 << Self::FAULTS_SHIFT;

    const fn is_member(self) -> bool {
        self.0 & Self::MEMBER != 0
    }

    /// One fault more, in `collection`. Returns how many there are in a collection, in parts of
    /// [`ONE`](Self::ONE). A page that was listed long ago may be taken for one that was listed a
    /// moment ago: that costs little.
    fn listed(&mut self, collection: u32, worth: &Worth) -> u32 {
        let collection = collection & Self::COLLECTION;
        let gap = collection.wrapping_sub(self.0) & Self::COLLECTION;
        let before = (self.0 >> Self::FAULTS_SHIFT) & Self::FAULTS_MAX;
        // Of a page that never was listed it is not known that it rests.
        let left = if self.0 == 0 { worth.at_first } else { (worth.left(gap) * before) >> 16 };
        let faults = (left + worth.fault).min(Self::FAULTS_MAX);
        self.0 = faults << Self::FAULTS_SHIFT | collection;
        faults
    }
}

/// What follows from a fault being worth so many copies.
#[derive(Debug)]
struct Worth {
    copies: u32,
    /// What one fault adds to those of a page in a collection.
    fault: u32,
    /// With so many a page enters.
    enter: u32,
    /// What a page is taken to have had when it is listed for the first time.
    at_first: u32,
    /// What is left of a page's faults after so many collections, in parts of 65,536.
    left: Vec<u16>,
}

impl Worth {
    fn new(copies: u32) -> Self {
        let memory = copies.max(DISTANCE_LEAST) * MEMORY;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 65,535")]
        let left = (0..6 * memory).map(|gap| (65_535.0 * (-f64::from(gap) / f64::from(memory)).exp()) as u16).collect();
        let enter = Past::ONE * ENTER_PERCENT / 100 / copies;
        Self { copies, fault: Past::ONE / memory, enter, at_first: enter * AT_FIRST_PERCENT / 100, left }
    }

    fn left(&self, gap: u32) -> u32 {
        usize::try_from(gap).ok().and_then(|gap| self.left.get(gap)).map_or(0, |left| u32::from(*left))
    }

    /// In so many collections each member is looked at once.
    fn distance(&self) -> u32 {
        self.copies.max(DISTANCE_LEAST)
    }
}

/// One page of the set.
#[derive(Clone, Copy, Debug)]
struct Member {
    gfn: Gfn,
    page: DirtyPage,
    /// A hash of its content at the last look, or since.
    content: Option<u64>,
    /// It was put back after the last look: `content` is what it was then.
    put_back: bool,
    /// The collection of the last look.
    looked: u32,
    score: i32,
}

impl Member {
    /// It changed at each of the last looks.
    const fn is_proven(&self) -> bool {
        self.score == SCORE_MOST
    }

    /// Whether it is to be looked at, in the collection `now`. One that has taken the place of one
    /// that left may have been looked at a moment ago.
    const fn is_due(&self, distance: u32, now: u32) -> bool {
        let (times, early) = (if self.is_proven() { SELDOM } else { 1 }, distance / 2);
        self.content.is_none() || now.wrapping_sub(self.looked) >= times * distance - early
    }
}

/// The pages that are left writable.
#[derive(Debug)]
pub struct HotSet {
    members: Vec<Member>,
    /// Those that are to leave as soon as they can.
    leaving: Vec<Member>,
    most: usize,
    /// 4 bytes a frame, taken from the host as they are touched.
    past: Vec<u32>,
    collection: u32,
    /// What a fault is worth, as measured, and with what places cost now.
    measured: u32,
    worth: Worth,
    /// Pages that would have entered, since the price of places was looked at last.
    refused: usize,
    /// Where the next look begins.
    next: usize,
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
            leaving: Vec::with_capacity(most),
            most,
            past: vec![0; frames],
            collection: 0,
            measured: WORTH_AT_FIRST,
            worth: Worth::new(WORTH_AT_FIRST),
            refused: 0,
            next: 0,
            listed_members: 0,
            listed_most: 0,
            given_up: false,
        }
    }

    /// From now on a fault is worth so many copies of a page. From 4 to 256 are told apart.
    pub fn set_worth(&mut self, copies: u32) {
        self.measured = copies.clamp(WORTH_LEAST, WORTH_MOST);
        self.worth = Worth::new(self.measured);
    }

    /// The most pages that the set can have.
    #[must_use]
    pub const fn most(&self) -> usize {
        self.most
    }

    /// How many pages it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.members.len() + self.leaving.len()
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pages.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.members.iter().chain(&self.leaving).map(|member| member.gfn)
    }

    /// A collection is over, and with it the epoch: what is listed from now on is in the next one.
    pub(super) fn end(&mut self) {
        self.collection = self.collection.wrapping_add(1);
        self.listed_members = 0;
        if self.collection.is_multiple_of(self.worth.copies) {
            self.set_price();
        }
    }

    /// Looks whether places are dear.
    fn set_price(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        let copies = self.worth.copies;
        if refused > LEAVING_MOST.max(self.most / 8) && copies > WORTH_LEAST {
            self.worth = Worth::new((copies / 2).max(WORTH_LEAST));
        } else if copies < self.measured && self.members.len() < self.most / 8 * 7 {
            self.worth = Worth::new((copies * 2).min(self.measured));
        }
    }

    /// The kernel lists `gfn`, which is `page`. Returns what its entry is to protect: the page; or
    /// none, for the page stays writable; or one that leaves, in whose place the page stays so.
    pub(super) fn listed(&mut self, gfn: Gfn, page: DirtyPage) -> Option<DirtyPage> {
        let Some(word) = usize::try_from(gfn.0).ok().and_then(|index| self.past.get_mut(index)) else { return Some(page) };
        let mut past = Past(*word);
        if past.is_member() {
            self.listed_members += 1;
            return None;
        }
        let faults = past.listed(self.collection, &self.worth);
        *word = past.0;
        if faults < self.worth.enter || self.given_up {
            return Some(page);
        }
        let mut instead = None;
        if self.len() >= self.most {
            let Some(leaves) = self.leaving.pop() else {
                self.refused += 1;
                return Some(page);
            };
            self.forget(leaves.gfn);
            instead = Some(leaves.page);
        }
        if let Some(word) = usize::try_from(gfn.0).ok().and_then(|index| self.past.get_mut(index)) {
            *word |= Past::MEMBER;
        }
        let looked = self.collection;
        self.members.push(Member { gfn, page, content: None, put_back: false, looked, score: SCORE_AT_FIRST });
        instead
    }

    /// Looks at some members, after all listings of the collection; `content` is a hash of a
    /// member's page. Pages leave: up to `room` of them, which are put into `protect` and must be
    /// protected by the collection's reset; if too many are left, the one that is returned, which
    /// must be unmapped now.
    pub(super) fn look(
        &mut self,
        room: usize,
        mut content: impl FnMut(Gfn) -> Option<u64>,
        protect: &mut Vec<DirtyPage>,
    ) -> Option<Gfn> {
        let listed_most = !self.is_empty() && self.listed_members * 2 > self.len();
        self.listed_most = if listed_most { self.listed_most + 1 } else { 0 };
        if self.listed_most >= LISTED_MOST && !self.given_up {
            self.given_up = true;
            self.leaving.append(&mut self.members);
        }
        for _ in 0..self.looks() {
            if self.next >= self.members.len() {
                self.next = 0;
            }
            self.look_at_next(&mut content);
        }
        for _ in 0..room {
            let Some(leaves) = self.leaving.pop() else { break };
            self.forget(leaves.gfn);
            protect.push(leaves.page);
        }
        if self.leaving.len() <= LEAVING_MOST.max(self.len() / 8) {
            return None;
        }
        let leaves = self.leaving.pop()?;
        self.forget(leaves.gfn);
        Some(leaves.gfn)
    }

    fn look_at_next(&mut self, content: &mut impl FnMut(Gfn) -> Option<u64>) {
        let (copies, distance, now) = (self.worth.copies, self.worth.distance(), self.collection);
        let Some(member) = self.members.get_mut(self.next) else { return };
        if !member.is_due(distance, now) {
            self.next += 1;
            return;
        }
        let seen = content(member.gfn);
        if member.content.is_some() {
            let same = seen == member.content;
            member.score = match (same, member.put_back) {
                (false, _) => (member.score + SCORE_CHANGED).min(SCORE_MOST),
                // Since it was put back there was one collection, not as many as between two looks.
                (true, true) => member.score + SCORE_SAME / i32::try_from(copies).unwrap_or(i32::MAX),
                (true, false) if member.is_proven() => 0,
                (true, false) => member.score + SCORE_SAME,
            };
        }
        (member.content, member.put_back, member.looked) = (seen, false, now);
        if member.score > 0 {
            self.next += 1;
        } else {
            let leaves = self.members.swap_remove(self.next);
            self.leaving.push(leaves);
        }
    }

    /// How many members a collection looks at.
    fn looks(&self) -> usize {
        self.members.len().div_ceil(usize::try_from(self.worth.distance()).unwrap_or(usize::MAX))
    }

    /// The pages were put back to what they were, and `content` is a hash of what they are now: a
    /// page that is the same at the next look was not written since. What they were at the last
    /// look tells nothing: a guest that does the same again and again leaves the same in them.
    pub(super) fn put_back(&mut self, mut content: impl FnMut(Gfn) -> Option<u64>) {
        let next = if self.next < self.members.len() { self.next } else { 0 };
        let looks = self.looks();
        let (first, rest) = self.members.split_at_mut(next);
        let (distance, now) = (self.worth.distance(), self.collection);
        for member in rest.iter_mut().chain(first).take(looks).filter(|member| member.is_due(distance, now)) {
            (member.content, member.put_back) = (content(member.gfn), true);
        }
    }

    /// Everything is protected: no page is a member any more.
    pub(super) fn clear(&mut self) {
        while let Some(leaves) = self.members.pop().or_else(|| self.leaving.pop()) {
            self.forget(leaves.gfn);
        }
    }

    /// `gfn` is no member any more, because it rests.
    fn forget(&mut self, gfn: Gfn) {
        if let Some(past) = usize::try_from(gfn.0).ok().and_then(|gfn| self.past.get_mut(gfn)) {
            *past = Past::RESTS;
        }
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
        /// Contents looked at in the last collection.
        looks: u64,
    }

    impl Model {
        fn new(most: usize, neighbours: u64) -> Self {
            let protected = (0..FRAMES).collect();
            Self {
                hot: HotSet::new(FRAMES, most),
                protected,
                content: BTreeMap::new(),
                entries: 0,
                neighbours,
                unmapped: 0,
                looks: 0,
            }
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
            let mut taken: BTreeSet<u64> = listed.iter().copied().chain(self.hot.iter().map(|gfn| gfn.0)).collect();
            let bound = listed.len() + self.hot.len();
            let mut protect = Vec::new();
            for gfn in &listed {
                protect.extend(self.hot.listed(Gfn(*gfn), page(*gfn)));
                assert!(self.hot.len() <= self.hot.most());
            }
            taken.extend(self.hot.iter().map(|gfn| gfn.0));
            assert!(taken.len() <= bound, "what enters was listed");
            let room = listed.len() - protect.len();
            self.looks = 0;
            let Self { content, looks, .. } = self;
            let look = |gfn: Gfn| {
                *looks += 1;
                content.get(&gfn.0).copied()
            };
            let unmapped = self.hot.look(room, look, &mut protect);
            self.hot.end();
            assert!(protect.len() <= listed.len(), "there are entries for all pages");
            self.protected.extend(protect.iter().map(|page| page.offset));
            self.unmapped += usize::from(unmapped.is_some());
            if let Some(gfn) = unmapped {
                let first = gfn.0 / self.neighbours * self.neighbours;
                self.protected.extend(first..first + self.neighbours);
            }
            let members: BTreeSet<u64> = self.hot.iter().map(|gfn| gfn.0).collect();
            let known = members.union(&self.protected).count() as u64;
            assert_eq!(known, FRAMES, "all others are protected");
            written.is_subset(&taken)
        }
    }

    fn random(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed;
        println!("seed {seed}");
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        }
    }

    #[test]
    fn pages_of_every_epoch_enter_and_are_silent() {
        for worth in [1, 20, 70, 10_000] {
            let mut model = Model::new(500, 1);
            model.hot.set_worth(worth);
            for epoch in 0..100 {
                assert!(model.epoch((0..300).chain([1000 + epoch]), false));
                // By the first few it may be chance.
                assert!(epoch >= 3 || model.entries == 301, "epoch {epoch}, worth {worth}");
                assert!(epoch < 10 || model.entries == 1, "epoch {epoch}, worth {worth}");
            }
            assert_eq!(model.hot.len(), 300);
        }
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
            let rest = members.iter().filter(|gfn| !(200..300).contains(*gfn)).count();
            assert!(members.len() - rest == 100 && rest <= LEAVING_MOST, "{members:?}");
            assert!(neighbours == 1 || model.unmapped < 20, "{} unmapped", model.unmapped);
            assert!(model.epoch(0..300, false));
            assert!(model.entries >= 200 - LEAVING_MOST);
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
    fn there_are_never_more_than_fit() {
        let mut model = Model::new(64, 1);
        model.hot.set_worth(20);
        for _ in 0..200 {
            assert!(model.epoch(0..1000, false));
        }
        assert_eq!(model.hot.len(), 64);
    }

    #[test]
    fn the_hottest_have_the_places() {
        let mut model = Model::new(64, 1);
        model.hot.set_worth(64);
        let mut random = random(5);
        // The lukewarm come first: once in sixteen epochs is reason enough while there is room.
        for _ in 0..200 {
            assert!(model.epoch((0..200).filter(|_| random().is_multiple_of(16)), false));
        }
        assert_eq!(model.hot.len(), 64);
        for _ in 0..2000 {
            assert!(model.epoch((0..200).filter(|_| random().is_multiple_of(16)).chain(1000..1050), false));
        }
        let hottest = model.hot.iter().filter(|gfn| gfn.0 >= 1000).count();
        assert!(hottest == 50, "{hottest} of 50 in {}", model.hot.len());
        // They rest: places are cheap again.
        for _ in 0..2000 {
            assert!(model.epoch((0..50).filter(|_| random().is_multiple_of(16)), false));
        }
        assert!(model.hot.len() > 45 && model.hot.worth.copies == 64, "{} of {}", model.hot.len(), model.hot.worth.copies);
    }

    /// What the faults and the copies of so many pages come to, in copies, for each epoch and page,
    /// with looks; and what the better of the two comes to.
    fn cost(worth: u32, percent: u64, put_back: bool) -> (f64, f64) {
        const PAGES: u64 = 64;
        const EPOCHS: u64 = 4000;
        let mut model = Model::new(500, 1);
        model.hot.set_worth(worth);
        let mut random = random(percent);
        let (mut cost, mut faults) = (0, 0);
        for epoch in 0..EPOCHS {
            let written: Vec<_> = (0..PAGES).filter(|_| random() % 10_000 < percent * 100 / u64::from(worth)).collect();
            faults += written.len() as u64;
            // And one that is written for the first time: its entry is to spare at no time.
            assert!(model.epoch(written.iter().copied().chain([PAGES + epoch]), false));
            cost += (model.entries as u64 - 1) * u64::from(worth) + model.hot.len() as u64 + 2 * model.looks;
            if put_back {
                written.iter().for_each(|gfn| _ = model.content.insert(*gfn, 0));
                (0..PAGES).for_each(|gfn| _ = model.content.entry(gfn).or_default());
                let content = &model.content;
                model.hot.put_back(|gfn| content.get(&gfn.0).copied());
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of a test")]
        let each = |cost: u64| cost as f64 / (PAGES * EPOCHS) as f64;
        (each(cost), each((faults * u64::from(worth)).min(PAGES * EPOCHS)))
    }

    #[test]
    fn whatever_the_chance_the_choice_is_nearly_the_best() {
        for worth in [8, 16, 20, 70] {
            // In percent of the chance at which a fault costs as much as copying.
            for percent in [10, 40, 70, 100, 130, 200, 400, 1500] {
                let (cost, best) = cost(worth, percent, false);
                assert!(cost < 1.25 * best, "worth {worth}, {percent}%: {cost:.3}, best {best:.3}");
            }
        }
    }

    #[test]
    fn put_back_again_and_again_the_choice_is_good() {
        for percent in [10, 40, 100, 200, 400, 1500] {
            let (cost, best) = cost(20, percent, true);
            assert!(cost < 1.4 * best, "{percent}%: {cost:.3}, best {best:.3}");
        }
    }

    #[test]
    fn pages_that_come_now_and_then_do_not_enter() {
        let mut model = Model::new(500, 1);
        model.hot.set_worth(30);
        for epoch in 0..600_u64 {
            assert!(model.epoch((0..300).filter(|gfn| gfn % 60 == epoch % 60), false));
        }
        assert!(model.hot.is_empty());
    }

    #[test]
    fn random_guests_miss_nothing() {
        let mut random = random(11);
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
            let listed: Vec<_> = (0..50).filter(|gfn| hot.listed(Gfn(*gfn), page(*gfn)).is_none()).collect();
            let unmapped = hot.look(listed.len(), |gfn| Some(gfn.0 + epoch), &mut protect);
            hot.end();
            assert_eq!(unmapped, None);
        }
        assert!(hot.is_empty() && hot.given_up);
    }
}
