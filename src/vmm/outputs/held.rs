//! Outputs in their order, and which of them may leave. Pure.
//!
//! Every output has a number, which counts up. A cut notes the number up to which it has captured
//! the outputs; once its epoch has a number too, both are a mark. An epoch that is released
//! releases all outputs up to its mark.

use std::collections::VecDeque;

use crate::page::EpochId;

/// Outputs, oldest first.
#[derive(Debug)]
pub(in crate::vmm) struct Held<T> {
    outputs: VecDeque<T>,
    /// The number of the oldest.
    first: u64,
    /// Outputs below this number are captured by a cut whose epoch has no number yet.
    in_hand: Option<u64>,
    /// Outputs below the number are in the epoch, or an earlier one. Both go up.
    marks: VecDeque<(EpochId, u64)>,
    /// Outputs below this number may leave.
    released: u64,
    /// The newest epoch that is released. It may be so before its number is told here.
    released_epoch: EpochId,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            outputs: VecDeque::new(),
            first: 0,
            in_hand: None,
            marks: VecDeque::new(),
            released: 0,
            released_epoch: EpochId::NONE,
        }
    }
}

impl<T> Held<T> {
    /// Those that were held when a checkpoint was taken, whose number the next
    /// [`note_taken`](Self::note_taken) tells.
    pub(in crate::vmm) fn restored(outputs: Vec<T>) -> Self {
        let mut held = Self { outputs: outputs.into(), ..Self::default() };
        held.note_capture();
        held
    }

    pub(in crate::vmm) fn push(&mut self, output: T) {
        self.outputs.push_back(output);
    }

    pub(in crate::vmm) fn len(&self) -> usize {
        self.outputs.len()
    }

    pub(in crate::vmm) fn iter(&self) -> impl Iterator<Item = &T> {
        self.outputs.iter()
    }

    /// The number of the next output.
    fn next(&self) -> u64 {
        self.first + self.outputs.len() as u64
    }

    /// Outputs below this number are in an epoch that has a number, or have left.
    fn taken(&self) -> u64 {
        self.marks.back().map_or(self.released, |(_, upto)| *upto)
    }

    /// The newest, where it waits for an epoch to be taken: it may still grow.
    pub(in crate::vmm) fn newest_mut(&mut self) -> Option<&mut T> {
        if self.want_epoch() { self.outputs.back_mut() } else { None }
    }

    /// Whether one waits for an epoch to be taken.
    pub(in crate::vmm) fn want_epoch(&self) -> bool {
        self.next() > self.in_hand.unwrap_or_else(|| self.taken())
    }

    /// A cut captures the machine.
    pub(in crate::vmm) fn note_capture(&mut self) {
        self.in_hand = Some(self.next());
    }

    /// What was captured last is `epoch`. A cut that was given up never is: what it captured is
    /// part of the next.
    pub(in crate::vmm) fn note_taken(&mut self, epoch: EpochId) {
        if let Some(upto) = self.in_hand.take().filter(|upto| *upto > self.taken()) {
            self.marks.push_back((epoch, upto));
            self.release(self.released_epoch);
        }
    }

    /// Epochs up to `epoch` are released.
    pub(in crate::vmm) fn release(&mut self, epoch: EpochId) {
        self.released_epoch = self.released_epoch.max(epoch);
        while let Some((_, upto)) = self.marks.front().filter(|(of, _)| *of <= self.released_epoch) {
            self.released = *upto;
            self.marks.pop_front();
        }
    }

    /// Takes the oldest output that may leave.
    pub(in crate::vmm) fn pop_released(&mut self) -> Option<T> {
        if self.first >= self.released {
            return None;
        }
        self.first += 1;
        self.outputs.pop_front()
    }

    /// The machine goes back to the epoch that was taken last: what it made since never was.
    /// Returns that.
    pub(in crate::vmm) fn roll_back(&mut self) -> impl Iterator<Item = T> {
        self.in_hand = None;
        let kept = self.taken().saturating_sub(self.first);
        let kept = usize::try_from(kept).map_or(self.outputs.len(), |kept| kept.min(self.outputs.len()));
        self.outputs.drain(kept..)
    }

    /// All outputs are gone: whoever made them was reset.
    pub(in crate::vmm) fn clear(&mut self) {
        *self = Self { released_epoch: self.released_epoch, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn released(held: &mut Held<u32>, epoch: u64) -> Vec<u32> {
        held.release(EpochId(epoch));
        std::iter::from_fn(|| held.pop_released()).collect()
    }

    #[test]
    fn an_output_waits_for_the_epoch_that_has_it() {
        let mut held = Held::default();
        held.push(1);
        assert!(held.want_epoch());
        held.note_capture();
        assert!(!held.want_epoch());
        // Comes while that epoch is on its way.
        held.push(2);
        held.note_taken(EpochId(7));
        assert!(held.want_epoch());
        assert!(released(&mut held, 6).is_empty());
        assert_eq!(released(&mut held, 7), [1]);
        // A cut that came to nothing.
        held.note_capture();
        held.push(3);
        held.note_capture();
        held.note_taken(EpochId(8));
        assert!(released(&mut held, 7).is_empty());
        assert_eq!(released(&mut held, 9), [2, 3]);
        assert_eq!(held.len(), 0);
    }

    #[test]
    fn what_was_held_at_a_checkpoint_is_in_its_epoch() {
        let mut held = Held::restored(vec![4]);
        assert!(!held.want_epoch());
        assert!(released(&mut held, 2).is_empty());
        held.note_taken(EpochId(3));
        assert_eq!(released(&mut held, 3), [4]);
    }

    #[test]
    fn an_epoch_may_be_released_before_its_number_is_told() {
        let mut held = Held::default();
        held.push(1);
        held.note_capture();
        assert!(released(&mut held, 5).is_empty());
        held.note_taken(EpochId(5));
        assert_eq!(held.pop_released(), Some(1));
    }

    #[test]
    fn only_what_no_cut_has_captured_grows() {
        let mut held = Held::default();
        assert!(held.newest_mut().is_none());
        held.push(1);
        assert_eq!(held.newest_mut(), Some(&mut 1));
        held.note_capture();
        assert!(held.newest_mut().is_none());
        held.push(2);
        held.note_taken(EpochId(1));
        assert_eq!(held.newest_mut(), Some(&mut 2));
    }

    #[test]
    fn a_rollback_takes_back_what_no_epoch_has() {
        let mut held = Held::default();
        held.push(1);
        held.note_capture();
        held.note_taken(EpochId(1));
        held.push(2);
        // Captured by a cut that was given up.
        held.note_capture();
        held.push(3);
        assert_eq!(held.roll_back().collect::<Vec<_>>(), [2, 3]);
        assert!(!held.want_epoch());
        held.push(4);
        held.note_capture();
        held.note_taken(EpochId(2));
        assert_eq!(released(&mut held, 1), [1]);
        assert_eq!(held.roll_back().count(), 0);
        assert_eq!(released(&mut held, 2), [4]);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        Capture,
        Taken,
        /// So many epochs after the oldest that is not released.
        Release(u64),
        RollBack,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Push),
            2 => Just(Step::Capture),
            2 => Just(Step::Taken),
            2 => (0_u64..4).prop_map(Step::Release),
            1 => Just(Step::RollBack),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: an output leaves once, in order, and only when the
        /// epoch that has it is released.
        #[test]
        fn nothing_leaves_before_its_epoch(steps in prop::collection::vec(step(), 0..200)) {
            let mut held = Held::default();
            // Each output that is held, with the epoch that has it, if one does by now.
            let mut model: Vec<(u32, Option<u64>)> = Vec::new();
            let (mut epoch, mut newest_released, mut next) = (0, 0, 0);
            let mut in_hand: Option<usize> = None;
            let captured = |model: &[(u32, Option<u64>)]| model.iter().filter(|(_, of)| of.is_some()).count();
            for step in steps {
                match step {
                    Step::Push => {
                        held.push(next);
                        model.push((next, None));
                        next += 1;
                    }
                    Step::Capture => {
                        held.note_capture();
                        in_hand = Some(model.len());
                    }
                    Step::Taken => {
                        epoch += 1;
                        held.note_taken(EpochId(epoch));
                        for (_, of) in model.iter_mut().take(in_hand.take().unwrap_or(0)) {
                            of.get_or_insert(epoch);
                        }
                    }
                    Step::Release(more) => {
                        newest_released = (newest_released + more).min(epoch);
                        let leave = model.iter().take_while(|(_, of)| of.is_some_and(|of| of <= newest_released)).count();
                        let expected: Vec<_> = model.drain(..leave).map(|(output, _)| output).collect();
                        in_hand = in_hand.map(|captured| captured.saturating_sub(leave));
                        prop_assert_eq!(released(&mut held, newest_released), expected);
                    }
                    Step::RollBack => {
                        let back: Vec<_> = held.roll_back().collect();
                        let expected: Vec<_> = model.drain(captured(&model)..).map(|(output, _)| output).collect();
                        in_hand = None;
                        prop_assert_eq!(back, expected);
                    }
                }
                prop_assert_eq!(held.len(), model.len());
                prop_assert_eq!(held.want_epoch(), model.len() > in_hand.unwrap_or_else(|| captured(&model)));
            }
        }
    }
}
