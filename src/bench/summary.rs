//! What the rows come to: ratios that can be checked, and paragraphs in words.

use serde::Serialize;

/// Costs that differ by less than this factor are called even.
const EVEN: f64 = 1.15;

/// Ring against bitmap at one point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Duel {
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Dirty pages.
    pub dirty_pages: u64,
    /// Which pages they are.
    pub pattern: String,
    /// vCPUs.
    pub vcpus: u32,
    /// Harvest and reset of the ring in microseconds.
    pub ring_us: f64,
    /// The same of the better of both bitmaps.
    pub bitmap_us: f64,
    /// How many times as much the bitmap costs.
    pub bitmap_over_ring: f64,
}

/// How the ring's cost varies with guest memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flatness {
    /// Dirty pages.
    pub dirty_pages: u64,
    /// Which pages they are.
    pub pattern: String,
    /// The least and the most memory in bytes.
    pub memory_bytes: (u64, u64),
    /// The least and the most cost in microseconds.
    pub ring_us: (f64, f64),
    /// The most by the least.
    pub max_over_min: f64,
}

/// A pause and its floor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AboveFloor {
    /// The way of tracking.
    pub tracker: &'static str,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Dirty pages.
    pub dirty_pages: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// The median pause in microseconds.
    pub pause_us: f64,
    /// The copy alone.
    pub floor_us: f64,
    /// The difference.
    pub above_us: f64,
}

/// What a budget costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BudgetCost {
    /// Entries of the ring.
    pub ring_entries: u32,
    /// The median pause in microseconds.
    pub pause_us: f64,
    /// Pause by page captured.
    pub pause_us_per_page: f64,
    /// Everything by page captured: the guest's run, with a fault for each page, and the pause.
    pub cycle_us_per_page: f64,
}

/// A hot working set that is in every epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hot {
    /// The way of tracking.
    pub tracker: &'static str,
    /// Pages.
    pub dirty_pages: u64,
    /// Cuts a second.
    pub cuts_per_s: f64,
}

/// What the rows come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Ring against bitmap, wherever both were measured.
    pub duels: Vec<Duel>,
    /// How flat the ring is over guest memory: the widest range first, and there the fewest pages.
    pub flatness: Vec<Flatness>,
    /// The duels at the largest memory.
    pub largest_memory: Vec<Duel>,
    /// Pauses and their floors.
    pub above_floor: Vec<AboveFloor>,
    /// What the first write to a page in an epoch costs the guest, in microseconds: the median over
    /// all rows of rings.
    pub fault_us_per_page: Option<f64>,
    /// Budgets.
    pub budgets: Vec<BudgetCost>,
    /// The smallest ring that is hardly worse than the best.
    pub best_ring_entries: Option<u32>,
    /// The same pages in every epoch.
    pub hot: Vec<Hot>,
    /// The most durable epochs a second.
    pub durable_per_s: Option<f64>,
    /// All that in words.
    pub words: Vec<Words>,
}

/// A paragraph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Words {
    /// What it is about.
    pub about: &'static str,
    /// Its sentences.
    pub text: String,
}

/// Who wins a duel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Winner {
    Ring,
    Bitmap,
    Even,
}

impl Duel {
    pub(super) fn winner(&self) -> Winner {
        match self.bitmap_over_ring {
            over if over > EVEN => Winner::Ring,
            over if over > 0.0 && over < 1.0 / EVEN => Winner::Bitmap,
            _ => Winner::Even,
        }
    }
}
