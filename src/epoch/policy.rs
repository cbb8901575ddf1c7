//! What to do at a trigger. Pure: no clock, no locks.

use super::options::WhenBehind;

/// What is known at a trigger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// A slot is free, and no sync is later than the durability mode allows.
    pub(super) storage_keeps_up: bool,
    /// A failure was recent: storage is to be left alone.
    pub(super) storage_rests: bool,
    /// A base is being copied beside the running guest.
    pub(super) base_in_progress: bool,
    /// Somebody waits for this very epoch.
    pub(super) must_cut: bool,
    /// What [`WhenBehind`] says.
    pub(super) when_behind: WhenBehind,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Take an epoch.
    Cut,
    /// Take only the list of pages, so that rings are free and the epoch goes on.
    Drain,
    /// Take only the list, and if the budget might not hold another full ring, wait for storage and
    /// take the epoch.
    DrainOrWait,
    /// Wait for storage, then take an epoch.
    WaitAndCut,
}

/// The rule.
pub(super) const fn decide(situation: &Situation) -> Action {
    let Situation { storage_keeps_up, storage_rests, base_in_progress, must_cut, when_behind } = *situation;
    if must_cut {
        return if storage_keeps_up { Action::Cut } else { Action::WaitAndCut };
    }
    if storage_rests || base_in_progress {
        return Action::Drain;
    }
    match (storage_keeps_up, when_behind) {
        (true, _) => Action::Cut,
        (false, WhenBehind::Lengthen) => Action::DrainOrWait,
        (false, WhenBehind::Wait) => Action::WaitAndCut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_situation_has_the_action_that_loses_nothing() {
        let mut seen = Vec::new();
        for bits in 0..32 {
            let bit = |place: u32| bits >> place & 1 != 0;
            let situation = Situation {
                storage_keeps_up: bit(0),
                storage_rests: bit(1),
                base_in_progress: bit(2),
                must_cut: bit(3),
                when_behind: if bit(4) { WhenBehind::Wait } else { WhenBehind::Lengthen },
            };
            let action = decide(&situation);
            match action {
                Action::Cut => assert!(situation.storage_keeps_up),
                Action::WaitAndCut => assert!(!situation.storage_keeps_up),
                Action::Drain => assert!(!situation.must_cut && (situation.storage_rests || situation.base_in_progress)),
                Action::DrainOrWait => assert!(!situation.storage_keeps_up && !situation.must_cut),
            }
            seen.push(action);
        }
        for action in [Action::Cut, Action::Drain, Action::DrainOrWait, Action::WaitAndCut] {
            assert!(seen.contains(&action), "{action:?} never happens");
        }
    }
}
