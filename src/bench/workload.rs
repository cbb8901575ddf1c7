//! What is measured: axes as data.

use std::time::Duration;

use crate::kvm::ring::{RingError, RingSize};
use crate::track::HotPages;
use crate::vmm::Tracking;
use crate::vmm::guests::touch::Pattern;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Entries that a ring has at least besides the pages of an epoch: what the kernel keeps free where
/// the processor logs pages itself (576), and a few.
const RING_SPARE: u64 = 640;
const RING_LEAST: u64 = 1024;
/// Room in the hot set besides the pages of a pass: those that the guest writes anyway.
const HOT_SPARE: u64 = 16;

/// What a measurement varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Guest memory.
    Memory,
    /// Dirty pages of an epoch.
    Pages,
    /// Which pages they are.
    Pattern,
    /// vCPUs.
    Vcpus,
    /// The size of the ring, which ends epochs.
    Budget,
    /// Checkpoints a second, of the whole engine with a chain on disk.
    Rate,
    /// Rounds, or none: the whole engine again.
    Early,
    /// The choice of the hot set, against the best.
    Hot,
    /// Outputs that wait, or do not: the whole engine with a network.
    Outputs,
    /// A standby, or none: two processes of the command.
    Standby,
    /// A machine that goes to another host.
    Migrate,
}

impl Axis {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 11] = [
        Self::Memory,
        Self::Pages,
        Self::Pattern,
        Self::Vcpus,
        Self::Budget,
        Self::Rate,
        Self::Early,
        Self::Hot,
        Self::Outputs,
        Self::Standby,
        Self::Migrate,
    ];

    /// Those that are measured if nothing else is said: the others take two processes, and a host
    /// that has time for both.
    pub const DEFAULT: [Self; 9] =
        [Self::Memory, Self::Pages, Self::Pattern, Self::Vcpus, Self::Budget, Self::Rate, Self::Early, Self::Hot, Self::Outputs];

    /// The name on the command line and in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pages => "pages",
            Self::Pattern => "pattern",
            Self::Vcpus => "vcpus",
            Self::Budget => "budget",
            Self::Rate => "rate",
            Self::Early => "early",
            Self::Hot => "hot",
            Self::Outputs => "outputs",
            Self::Standby => "standby",
            Self::Migrate => "migrate",
        }
    }
}

/// A way to track writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrackerKind {
    /// The dirty ring.
    Ring,
    /// The dirty ring, and pages that are written often stay writable.
    RingHot,
    /// The bitmap: reading protects again.
    Bitmap,
    /// The bitmap with manual protect: reading and protecting are two steps.
    BitmapClear,
}

impl TrackerKind {
    /// All of them. What is compared is listed here and nowhere else.
    pub const ALL: [Self; 4] = [Self::Ring, Self::RingHot, Self::Bitmap, Self::BitmapClear];

    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::RingHot => "ring+hot",
            Self::Bitmap => "bitmap",
            Self::BitmapClear => "bitmap+clear",
        }
    }

    /// The budget of an engine for `point`.
    #[must_use]
    pub fn budget_pages(self, point: &Point) -> u64 {
        let hot = if self == Self::RingHot { point.pages + HOT_SPARE } else { 0 };
        point.budget_pages() + hot
    }

    /// How a machine for `point` is built.
    ///
    /// # Errors
    /// The point's ring is no ring.
    pub fn tracking(self, point: &Point) -> Result<Tracking, RingError> {
        Ok(self.tracking_with(self.budget_pages(point), Some(point.ring()?), false))
    }

    /// How a machine with such a budget is built, with rings of that size or what fits, and with
    /// room for rounds or without.
    pub(super) fn tracking_with(self, budget: u64, ring: Option<RingSize>, early: bool) -> Tracking {
        let ring = |hot| Tracking::Ring { budget, ring, hot, early };
        match self {
            Self::Ring => ring(HotPages::Off),
            Self::RingHot => ring(HotPages::Auto),
            Self::Bitmap => Tracking::Bitmap { manual_protect: false },
            Self::BitmapClear => Tracking::Bitmap { manual_protect: true },
        }
    }
}

/// One point of the space that is measured: a machine and what its guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The axes that it lies on.
    pub axes: Vec<Axis>,
    /// Guest memory in bytes, sparse.
    pub memory_bytes: u64,
    /// Pages of a pass of the guest.
    pub pages: u64,
    /// Which pages they are.
    pub pattern: Pattern,
    /// vCPUs.
    pub vcpus: u32,
    /// Entries of each ring, where full rings end the epochs and not the guest after each pass.
    pub full_ring: Option<u32>,
    /// Lists that the guest goes through; as many as it has by itself where nobody says.
    pub lists: Option<u64>,
}

impl Point {
    /// Where all axes meet.
    fn middle(axis: Axis) -> Self {
        Self {
            axes: vec![axis],
            memory_bytes: 4 * GIB,
            pages: 512,
            pattern: Pattern::Uniform,
            vcpus: 1,
            full_ring: None,
            lists: None,
        }
    }

    /// The size of each vCPU's ring: what full rings are asked for, or enough for all pages.
    ///
    /// # Errors
    /// What was asked for is no ring.
    pub fn ring(&self) -> Result<RingSize, RingError> {
        let enough = (self.pages + RING_SPARE).max(RING_LEAST).next_power_of_two();
        RingSize::new(self.full_ring.unwrap_or_else(|| u32::try_from(enough).unwrap_or(u32::MAX)))
    }

    /// The budget that goes with it: what all rings hold.
    #[must_use]
    pub fn budget_pages(&self) -> u64 {
        let entries = self.ring().map_or(RING_LEAST, |ring| u64::from(ring.entries()));
        (entries * u64::from(self.vcpus)).max(self.pages + 1)
    }

    /// The guest's options: with a cut every so many passes, or 0 for none.
    #[must_use]
    pub fn guest(&self, cut: u64) -> String {
        let lists = self.lists.map_or(String::new(), |lists| format!(",lists={lists}"));
        format!("touch:pages={},pattern={},cut={cut}{lists}", self.pages, self.pattern)
    }

    /// The trackers that make sense there: nothing but a ring is ever full.
    #[must_use]
    pub fn trackers(&self) -> &'static [TrackerKind] {
        if self.full_ring.is_some() { &[TrackerKind::Ring] } else { &TrackerKind::ALL }
    }

    fn is_same_place(&self, other: &Self) -> bool {
        Self { axes: Vec::new(), ..self.clone() } == Self { axes: Vec::new(), ..other.clone() }
    }
}

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The whole grid, under 15 minutes.
    Full,
    /// Enough to see who wins where, under a minute.
    Quick,
    /// A moment, for tests.
    Tiny,
}

impl Extent {
    /// How long the turns at one point go on.
    #[must_use]
    pub const fn time_at_a_point(self) -> Duration {
        match self {
            Self::Full => Duration::from_millis(4000),
            Self::Quick => Duration::from_millis(900),
            Self::Tiny => Duration::ZERO,
        }
    }

    /// Rounds of turns at one point, however long they take.
    #[must_use]
    pub const fn rounds_least(self) -> u32 {
        match self {
            Self::Full | Self::Quick => 3,
            Self::Tiny => 1,
        }
    }
}

/// Where it is measured what a fault costs.
pub(super) fn fault_point() -> Point {
    Point { memory_bytes: 64 * MIB, pages: 250, ..Point::middle(Axis::Pages) }
}

/// The points on `axes`, each once.
#[must_use]
pub fn points(extent: Extent, axes: &[Axis]) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    for point in axes.iter().flat_map(|axis| axis_points(extent, *axis)) {
        match points.iter_mut().find(|other| other.is_same_place(&point)) {
            Some(other) => other.axes.extend(point.axes),
            None => points.push(point),
        }
    }
    points
}

fn axis_points(extent: Extent, axis: Axis) -> Vec<Point> {
    let middle = Point::middle(axis);
    let at = |memory_bytes, pages| Point { memory_bytes, pages, ..middle.clone() };
    match (axis, extent) {
        (Axis::Rate | Axis::Early | Axis::Hot | Axis::Outputs | Axis::Standby | Axis::Migrate, _) => Vec::new(),
        (Axis::Memory, Extent::Tiny) => vec![at(64 * MIB, 60)],
        (_, Extent::Tiny) => Vec::new(),
        (Axis::Memory, Extent::Full) => [(60, Pattern::Sequential), (60, Pattern::Uniform), (512, Pattern::Uniform)]
            .into_iter()
            .flat_map(|(pages, pattern)| {
                [256 * MIB, GIB, 4 * GIB, 16 * GIB, 60 * GIB].map(|memory| Point { pattern, ..at(memory, pages) })
            })
            .collect(),
        (Axis::Memory, Extent::Quick) => [(60, Pattern::Sequential), (60, Pattern::Uniform), (512, Pattern::Uniform)]
            .into_iter()
            .flat_map(|(pages, pattern)| [256 * MIB, 4 * GIB, 60 * GIB].map(|memory| Point { pattern, ..at(memory, pages) }))
            .collect(),
        (Axis::Pages, Extent::Full) => [256 * MIB, 4 * GIB]
            .into_iter()
            .flat_map(|memory| [16, 60, 250, 512, 1000, 4000, 16_000, 64_000].map(|pages| at(memory, pages)))
            .collect(),
        (Axis::Pages, Extent::Quick) => {
            [256 * MIB, 4 * GIB].into_iter().flat_map(|memory| [60, 512, 4000].map(|pages| at(memory, pages))).collect()
        }
        (Axis::Pattern, Extent::Full) => Pattern::ALL.map(|(_, pattern)| Point { pattern, ..middle.clone() }).to_vec(),
        (Axis::Pattern, Extent::Quick) => {
            [Pattern::Uniform, Pattern::Same].map(|pattern| Point { pattern, ..middle.clone() }).to_vec()
        }
        (Axis::Vcpus, Extent::Full) => {
            [60, 512, 4000].into_iter().flat_map(|pages| [1, 2].map(|vcpus| Point { vcpus, pages, ..middle.clone() })).collect()
        }
        (Axis::Vcpus, Extent::Quick) => [1, 2].map(|vcpus| Point { vcpus, pages: 60, ..middle.clone() }).to_vec(),
        (Axis::Budget, Extent::Full) => {
            [256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536].map(|ring| full_ring(&middle, ring)).to_vec()
        }
        (Axis::Budget, Extent::Quick) => [1024, 4096].map(|ring| full_ring(&middle, ring)).to_vec(),
    }
}

/// A guest that fills a ring of any size with pages of which none comes twice: its lists have more
/// than a ring.
fn full_ring(middle: &Point, entries: u32) -> Point {
    Point { pages: 1 << 16, full_ring: Some(entries), ..middle.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::guests::touch;

    #[test]
    fn every_point_is_a_guest_and_comes_once() {
        for extent in [Extent::Full, Extent::Quick, Extent::Tiny] {
            let points = points(extent, &Axis::ALL);
            for (index, point) in points.iter().enumerate() {
                assert!(points[index + 1..].iter().all(|other| !other.is_same_place(point)), "{point:?} comes twice");
                let options = point.guest(1).parse().unwrap();
                let image = touch::Image::build(&options, point.memory_bytes, point.vcpus).unwrap();
                assert_eq!(image.pass(0).len() as u64, point.pages);
                assert!(point.budget_pages() > point.pages || point.full_ring.is_some(), "{point:?}");
                let ring = point.ring().unwrap().entries();
                assert!(point.full_ring.is_some() || u64::from(ring) >= point.pages + RING_SPARE, "{point:?}");
                for tracker in point.trackers() {
                    tracker.tracking(point).unwrap();
                }
            }
        }
    }

    #[test]
    fn what_must_be_shown_is_on_the_grid() {
        let has = |extent, axis, memory_bytes, pages, vcpus| {
            let points = points(extent, &Axis::ALL);
            points.iter().any(|point| {
                point.axes.contains(&axis) && (point.memory_bytes, point.pages, point.vcpus) == (memory_bytes, pages, vcpus)
            })
        };
        for extent in [Extent::Full, Extent::Quick] {
            for memory in [256 * MIB, 4 * GIB, 60 * GIB] {
                assert!(has(extent, Axis::Memory, memory, 60, 1));
            }
            assert!(has(extent, Axis::Pages, 4 * GIB, 60, 1) && has(extent, Axis::Pages, 4 * GIB, 4000, 1));
            assert!(has(extent, Axis::Vcpus, 4 * GIB, 60, 2));
        }
        assert!(has(Extent::Full, Axis::Pages, 256 * MIB, 64_000, 1) && has(Extent::Full, Axis::Vcpus, 4 * GIB, 4000, 2));
        let only = points(Extent::Full, &[Axis::Vcpus]);
        assert!(only.iter().all(|point| point.axes == [Axis::Vcpus]) && only.len() == 6);
    }
}
