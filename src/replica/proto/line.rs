//! The epochs of a running machine in the order in which they were cut, and how far each mark has
//! come among them.

use std::collections::VecDeque;

use super::epoch_key::EpochKey;
use crate::page::EpochId;

/// Epochs that are remembered. An engine has far fewer in flight.
const EPOCHS_MOST: usize = 1 << 16;

/// A place in the line. It rises with every epoch that is cut, also where storage failed and
/// numbers come again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Numbers and places rise.
    epochs: VecDeque<(Place, EpochKey)>,
    newest: Place,
    durable: Place,
    released: Place,
    released_key: Option<EpochKey>,
}

impl Line {
    /// One that goes on behind `head`, all of which may have been released.
    pub(super) fn behind(head: Option<EpochKey>) -> Self {
        let mut line = Self::default();
        if let Some(head) = head {
            line.completed(head);
            line.release(line.newest);
        }
        line
    }

    /// The next epoch is complete. What was said of it before changes nothing. Epochs of its number
    /// and above do not exist any more: what they had comes again in it, and later.
    pub(super) fn completed(&mut self, key: EpochKey) {
        if self.find(key).is_some() {
            return;
        }
        while self.epochs.back().is_some_and(|(_, at)| at.epoch >= key.epoch) {
            self.epochs.pop_back();
        }
        self.newest = Place(self.newest.0.saturating_add(1));
        self.epochs.push_back((self.newest, key));
        if self.epochs.len() > EPOCHS_MOST {
            self.epochs.pop_front();
        }
    }

    /// Where this very epoch is; none for one of another line, or a forgotten one.
    pub(super) fn find(&self, key: EpochKey) -> Option<Place> {
        self.up_to(key.epoch).filter(|(_, at)| *at == key).map(|(place, _)| place)
    }

    /// As [`find`](Self::find), by number alone.
    pub(super) fn find_number(&self, key: EpochKey) -> Option<Place> {
        self.up_to(key.epoch).filter(|(_, at)| at.epoch == key.epoch).map(|(place, _)| place)
    }

    /// The chain has all up to this number durable.
    pub(super) fn made_durable(&mut self, epoch: EpochId) {
        if let Some((place, _)) = self.up_to(epoch) {
            self.durable = self.durable.max(place);
        }
    }

    pub(super) fn release(&mut self, place: Place) {
        if place > self.released {
            self.released = place;
            let found = self.epochs.binary_search_by_key(&place, |(at, _)| *at);
            self.released_key = found.ok().and_then(|at| self.epochs.get(at)).map(|(_, key)| *key);
        }
    }

    /// The newest one whose number is not above this one.
    fn up_to(&self, epoch: EpochId) -> Option<(Place, EpochKey)> {
        let behind = self.epochs.partition_point(|(_, at)| at.epoch <= epoch);
        behind.checked_sub(1).and_then(|at| self.epochs.get(at)).copied()
    }

    pub(super) const fn newest(&self) -> Place {
        self.newest
    }

    pub(super) fn newest_key(&self) -> Option<EpochKey> {
        self.epochs.back().map(|(_, key)| *key)
    }

    /// How many epochs lie behind `place`.
    pub(super) fn behind_of(&self, place: Option<Place>) -> u64 {
        self.newest.0.saturating_sub(place.unwrap_or_default().0)
    }

    pub(super) const fn durable(&self) -> Place {
        self.durable
    }

    pub(super) const fn released(&self) -> Place {
        self.released
    }

    pub(super) const fn released_key(&self) -> Option<EpochKey> {
        self.released_key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(epoch: u64, identity: u128) -> EpochKey {
        EpochKey { epoch: EpochId(epoch), identity }
    }

    #[test]
    fn an_epoch_is_found_by_its_identity_and_places_rise_also_where_numbers_come_again() {
        let mut line = Line::behind(Some(key(4, 40)));
        line.completed(key(5, 50));
        line.completed(key(6, 60));
        line.completed(key(5, 50));
        assert_eq!(line.find(key(5, 51)), None, "another epoch 5");
        line.made_durable(EpochId(5));
        let before = line.newest();
        line.completed(key(6, 61));
        assert_eq!(line.find(key(6, 60)), None);
        assert!(line.find(key(6, 61)).unwrap() > before);
        line.release(line.durable());
        assert_eq!(line.released_key(), Some(key(5, 50)));
    }

    #[test]
    fn it_does_not_grow() {
        let mut line = Line::default();
        for epoch in 1..=EPOCHS_MOST as u64 + 10 {
            line.completed(key(epoch, u128::from(epoch)));
        }
        assert_eq!((line.epochs.len(), line.find(key(10, 10)), line.find(key(11, 11))), (EPOCHS_MOST, None, Some(Place(11))));
    }
}
