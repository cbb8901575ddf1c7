//! Answers that wait until everything before them is durable.

use crate::page::EpochId;

/// Which epoch has what an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Captured {
    /// None yet.
    No,
    /// The one of the cut in hand, whose number is still to come.
    InHand,
    /// This one.
    In(EpochId),
}

/// An answer that is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The request's first descriptor.
    pub(super) head: u16,
    /// The guest physical address of the byte that says how it went.
    pub(super) status: u64,
}

/// The answers of a device, oldest first.
#[derive(Debug, Default)]
pub(super) struct HeldAnswers(Vec<(Answer, Captured)>);

impl HeldAnswers {
    pub(super) fn push(&mut self, answer: Answer) {
        self.0.push((answer, Captured::No));
    }

    /// Those that were held when a checkpoint was taken that `epoch` is the number of, where it is
    /// known.
    pub(super) fn restored(answers: Vec<Answer>) -> Self {
        Self(answers.into_iter().map(|answer| (answer, Captured::InHand)).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Answer> + '_ {
        self.0.iter().map(|(answer, _)| *answer)
    }

    /// Whether one waits for an epoch to be taken.
    pub(super) fn want_epoch(&self) -> bool {
        self.0.iter().any(|(_, captured)| *captured == Captured::No)
    }

    /// A cut captures the machine.
    pub(super) fn note_capture(&mut self) {
        for (_, captured) in self.0.iter_mut().filter(|(_, captured)| *captured == Captured::No) {
            *captured = Captured::InHand;
        }
    }

    /// What was captured last is `epoch`. A cut that was given up never is: what it captured is
    /// part of the next.
    pub(super) fn note_taken(&mut self, epoch: EpochId) {
        for (_, captured) in self.0.iter_mut().filter(|(_, captured)| *captured == Captured::InHand) {
            *captured = Captured::In(epoch);
        }
    }

    /// Takes the answers that may be given now that epochs up to `durable` are durable.
    pub(super) fn take_durable(&mut self, durable: EpochId) -> Vec<Answer> {
        let is_durable = |captured: &Captured| matches!(captured, Captured::In(epoch) if *epoch <= durable);
        self.0.extract_if(.., |(_, captured)| is_durable(captured)).map(|(answer, _)| answer).collect()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_waits_for_the_epoch_that_has_it() {
        let answer = |head| Answer { head, status: 0 };
        let heads = |answers: Vec<Answer>| answers.iter().map(|answer| answer.head).collect::<Vec<_>>();
        let mut held = HeldAnswers::default();
        held.push(answer(1));
        assert!(held.want_epoch());
        held.note_capture();
        assert!(!held.want_epoch());
        // Comes while that epoch is on its way.
        held.push(answer(2));
        held.note_taken(EpochId(7));
        assert!(held.want_epoch());
        assert!(held.take_durable(EpochId(6)).is_empty());
        assert_eq!(heads(held.take_durable(EpochId(7))), [1]);
        // A cut that came to nothing.
        held.note_capture();
        held.push(answer(3));
        held.note_capture();
        held.note_taken(EpochId(8));
        assert!(held.take_durable(EpochId(7)).is_empty());
        assert_eq!(heads(held.take_durable(EpochId(9))), [2, 3]);
        assert_eq!(held.len(), 0);
        let mut held = HeldAnswers::restored(vec![answer(4)]);
        assert!(!held.want_epoch());
        held.note_taken(EpochId(3));
        assert_eq!(heads(held.take_durable(EpochId(3))), [4]);
    }
}
