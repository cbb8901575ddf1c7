//! What a comparison has found so far.

use std::collections::BTreeMap;

use super::{Finding, Piece, Verdict};

/// Findings, one for each piece: of several for one piece, the worst, and of these the first.
#[derive(Default)]
pub(super) struct Findings(BTreeMap<Piece, Finding>);

impl Findings {
    /// Adds one, unless one that is as bad was found for its piece.
    pub(super) fn add(&mut self, finding: Finding) {
        let worse = self.0.get(&finding.piece).is_none_or(|other| other.verdict < finding.verdict);
        if worse {
            self.0.insert(finding.piece, finding);
        }
    }

    /// Says that a part is the same throughout, unless something of it was found.
    pub(super) fn same(&mut self, piece: Piece, of_part: impl Fn(&Piece) -> bool, captured: String, reason: &str) {
        if !self.0.keys().any(of_part) {
            let (host, reason) = (captured.clone(), reason.to_owned());
            self.add(Finding { piece, name: None, vcpu: None, captured, host, verdict: Verdict::Same, reason });
        }
    }

    /// All of them, by piece.
    pub(super) fn into_list(self) -> Vec<Finding> {
        self.0.into_values().collect()
    }
}
