//! The figures of the page, each made of one or more charts.

use super::svg::{
    BITMAP, CLEAR, COPY, Colour, FLOOR, HARVEST, INK, KICK, Mark, PlotError, RESET, RING, RING_HOT, STATE, Scale, WIDTH, chart,
};
use crate::bench::endtoend::RateRow;
use crate::bench::outputs::{AnswerTimes, OutputLink, OutputRow};
use crate::bench::prose::{self, bytes, time};
use crate::bench::results::{PAUSE_QUANTILES, Row};
use crate::bench::session::Results;
use crate::bench::streaming::StreamRow;
use crate::bench::summary::Summary;
use crate::bench::workload::Axis;

const SIZE: (u32, u32) = (WIDTH, 270);
/// As wide as two charts and the space between them.
const WIDE: u32 = 2 * WIDTH + 40;

/// A figure: what it shows, its charts with a line above each, and the meaning of its colours.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) title: &'static str,
    pub(super) text: &'static str,
    pub(super) charts: Vec<(String, String)>,
    pub(super) legend: Vec<(Colour, &'static str)>,
    /// Its charts are twice as wide as others.
    pub(super) wide: bool,
}

/// All figures for which there are rows.
pub(super) fn figures(results: &Results, summary: &Summary) -> Result<Vec<Figure>, PlotError> {
    let rows: Vec<&Row> = results.cuts().collect();
    let rates: Vec<&RateRow> = results.rates().collect();
    let streams: Vec<&StreamRow> = results.streams().collect();
    let outputs: Vec<&OutputRow> = results.outputs().filter(|row| row.link == OutputLink::Unix).collect();
    let figures = [
        rounds(&streams, &rows)?,
        over_memory(&rows)?,
        over_pages(&rows)?,
        phases(&rows)?,
        pauses(&rows)?,
        budgets(summary)?,
        slowdown(&rates)?,
        waiting(&outputs)?,
    ];
    Ok(figures.into_iter().filter(|figure| !figure.charts.is_empty()).collect())
}

fn colour_of(tracker: &str) -> Colour {
    match tracker {
        "ring" => RING,
        "ring+hot" => RING_HOT,
        "bitmap" => BITMAP,
        "bitmap+clear" => CLEAR,
        _ => FLOOR,
    }
}

const TRACKERS: [&str; 4] = ["ring", "ring+hot", "bitmap", "bitmap+clear"];

/// The trackers that rows have, with their colours.
fn tracker_legend<'r>(rows: impl Iterator<Item = &'r str>) -> Vec<(Colour, &'static str)> {
    let rows: Vec<&str> = rows.collect();
    let there = TRACKERS.into_iter().filter(|tracker| rows.contains(tracker));
    there.map(|tracker| (colour_of(tracker), tracker)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "for a plot")]
const fn number(count: u64) -> f64 {
    count as f64
}

/// A number of things that a scale has as a fraction.
fn count(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a label")]
    let whole = value.round() as u64;
    if value < 1.0 { format!("{value}") } else { prose::count(whole) }
}

fn percent(value: f64) -> String {
    format!("{value}%")
}

/// The different values of something, in ascending order.
fn different<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values.dedup();
    values
}

/// Costs over one number, with a line for each tracker.
fn cost_lines(rows: &[&Row], x: fn(&Row) -> u64, y: fn(&Row) -> f64) -> Vec<Mark> {
    TRACKERS
        .into_iter()
        .filter_map(|tracker| {
            let of = rows.iter().filter(|row| row.tracker == tracker);
            let mut points: Vec<(f64, f64)> = of.map(|row| (number(x(row)), y(row))).collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            (!points.is_empty()).then(|| Mark::Line { colour: colour_of(tracker), points, dashed: tracker == "bitmap+clear" })
        })
        .collect()
}

fn on<'r>(rows: &[&'r Row], axis: Axis) -> Vec<&'r Row> {
    rows.iter().copied().filter(|row| row.axes.contains(&axis.as_str())).collect()
}

/// The ways that runs with rounds are compared with, each with its name and colour.
const WAYS: [(&str, &str, &str, Colour); 3] = [
    ("ring", "auto", "ring, with rounds", RING_HOT),
    ("ring", "off", "ring, without", RING),
    ("bitmap+clear", "off", "bitmap+clear", CLEAR),
];

fn rounds(streams: &[&StreamRow], rows: &[&Row]) -> Result<Figure, PlotError> {
    let streams: Vec<&StreamRow> = streams.iter().copied().filter(|row| row.interval_us.is_none()).collect();
    let pages: Vec<u64> = different(streams.iter().map(|row| row.dirty_pages));
    let values: Vec<f64> = pages.iter().map(|pages| number(*pages)).collect();
    let x = Scale::log(
        "pages written in an epoch",
        &values,
        pages.iter().map(|pages| (number(*pages), count(number(*pages)))).collect(),
    );
    let lines = |of: &dyn Fn(&StreamRow) -> f64| -> Vec<Mark> {
        let ways = WAYS.into_iter().map(|(tracker, early, _, colour)| {
            let rows = streams.iter().filter(|row| (row.tracker, row.early) == (tracker, early));
            let mut points: Vec<(f64, f64)> = rows.map(|row| (number(row.dirty_pages), of(row))).collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            Mark::Line { colour, points, dashed: tracker != "ring" }
        });
        ways.collect()
    };
    let mut charts = Vec::new();
    if pages.len() > 1 {
        let on_axis = on(rows, Axis::Pages);
        let within = |row: &&&Row| row.tracker == "ring" && row.memory_bytes == 4 << 30 && row.dirty_pages >= 60;
        let mut floor: Vec<(f64, f64)> =
            on_axis.iter().filter(within).map(|row| (number(row.dirty_pages), row.floor_copy_us)).collect();
        floor.sort_by(|one, other| one.0.total_cmp(&other.0));
        let pauses = streams.iter().map(|row| row.pause_us.p50).chain(floor.iter().map(|(_, us)| *us)).collect::<Vec<_>>();
        let mut marks = lines(&|row| row.pause_us.p50);
        if !floor.is_empty() {
            marks.push(Mark::Line { colour: FLOOR, points: floor, dashed: true });
        }
        charts.push(("Median pause".to_owned(), chart(&x, &Scale::decades("pause", &pauses, time), SIZE, &marks)?));
        let durable: Vec<f64> = streams.iter().map(|row| row.durable_after_us.p50.max(1.0)).collect();
        let marks = lines(&|row| row.durable_after_us.p50.max(1.0));
        charts.push((
            "From the cut until the epoch is durable, median".to_owned(),
            chart(&x, &Scale::decades("time", &durable, time), SIZE, &marks)?,
        ));
    }
    Ok(Figure {
        wide: false,
        title: "Pause over pages, with rounds and without",
        text: "The whole engine with a chain on disk. The guest writes so many pages in 4 GiB, one after the other, and asks for a cut. With rounds, pages are taken while it writes, and the cut                copies what is left. The floor is nothing but the copy of so many pages, as on the axis of pages.",
        charts,
        legend: WAYS.iter().map(|(.., name, colour)| (*colour, *name)).chain([(FLOOR, "plain copy")]).collect(),
    })
}

fn over_memory(rows: &[&Row]) -> Result<Figure, PlotError> {
    let rows = on(rows, Axis::Memory);
    let costs: Vec<f64> = rows.iter().map(|row| row.tracking_us).collect();
    let y = Scale::decades("harvest + reset", &costs, time);
    let memory: Vec<u64> = different(rows.iter().map(|row| row.memory_bytes));
    let values: Vec<f64> = memory.iter().map(|bytes| number(*bytes)).collect();
    let x = Scale::log("guest memory", &values, memory.iter().map(|memory| (number(*memory), bytes(*memory))).collect());
    let kinds = different(rows.iter().map(|row| (row.dirty_pages, row.pattern.as_str())));
    let charts = kinds.into_iter().map(|(pages, pattern)| {
        let of: Vec<&Row> =
            rows.iter().copied().filter(|row| (row.dirty_pages, row.pattern.as_str()) == (pages, pattern)).collect();
        let marks = cost_lines(&of, |row| row.memory_bytes, |row| row.tracking_us);
        Ok((format!("{} dirty pages, {pattern}", count(number(pages))), chart(&x, &y, SIZE, &marks)?))
    });
    Ok(Figure {
        wide: false,
        title: "Cost of tracking over guest memory",
        text: "What finding the dirty pages and protecting them again takes while the guest stands still. The ring follows what the guest did, the bitmap also what the guest has. \
               Sequential pages lie side by side, uniform ones anywhere in memory.",
        charts: if memory.len() > 1 { charts.collect::<Result<_, PlotError>>()? } else { Vec::new() },
        legend: tracker_legend(rows.iter().map(|row| row.tracker)),
    })
}

fn over_pages(rows: &[&Row]) -> Result<Figure, PlotError> {
    let rows = on(rows, Axis::Pages);
    let costs: Vec<f64> = rows.iter().map(|row| row.tracking_us).collect();
    let y = Scale::decades("harvest + reset", &costs, time);
    let pages: Vec<u64> = different(rows.iter().map(|row| row.dirty_pages));
    let values: Vec<f64> = pages.iter().map(|pages| number(*pages)).collect();
    let x = Scale::log(
        "dirty pages in an epoch",
        &values,
        pages.iter().map(|pages| (number(*pages), count(number(*pages)))).collect(),
    );
    let charts = different(rows.iter().map(|row| row.memory_bytes)).into_iter().map(|memory| {
        let of: Vec<&Row> = rows.iter().copied().filter(|row| row.memory_bytes == memory).collect();
        let marks = cost_lines(&of, |row| row.dirty_pages, |row| row.tracking_us);
        Ok((format!("{} of guest memory", bytes(memory)), chart(&x, &y, SIZE, &marks)?))
    });
    Ok(Figure {
        wide: false,
        title: "Cost of tracking over dirty pages",
        text: "The same cost with more and more dirty pages, anywhere in memory. Where the lines cross, the bitmap begins to be the cheaper one.",
        charts: if pages.len() > 1 { charts.collect::<Result<_, PlotError>>()? } else { Vec::new() },
        legend: tracker_legend(rows.iter().map(|row| row.tracker)),
    })
}

type Phase = (Colour, &'static str, fn(&Row) -> f64);

const PHASES: [Phase; 5] = [
    (KICK, "kick", |row| row.kick_us),
    (STATE, "state", |row| row.state_us),
    (HARVEST, "harvest", |row| row.harvest_us),
    (RESET, "reset", |row| row.reset_us),
    (COPY, "copy", |row| row.copy_us),
];

/// The rows of one point: as many charts show as the reader can compare.
fn showcases<'r>(rows: &[&'r Row]) -> Vec<(String, Vec<&'r Row>)> {
    const PAGES: [u64; 3] = [60, 512, 4000];
    let memory = rows.iter().map(|row| row.memory_bytes).filter(|memory| *memory == 4 << 30).max();
    let Some(memory) = memory.or_else(|| rows.iter().map(|row| row.memory_bytes).max()) else { return Vec::new() };
    let plain = |row: &&&Row| row.trigger == "request" && row.memory_bytes == memory && row.pattern == "uniform";
    let of = |pages: u64, vcpus: u32| -> Vec<&Row> {
        rows.iter().filter(plain).copied().filter(|row| row.dirty_pages == pages && row.vcpus == vcpus).collect()
    };
    let charts = PAGES.into_iter().flat_map(|pages| [1, 2].map(|vcpus| (pages, vcpus)));
    charts
        .map(|(pages, vcpus)| {
            let plural = if vcpus == 1 { "" } else { "s" };
            (format!("{} pages, {} memory, {vcpus} vCPU{plural}", count(number(pages)), bytes(memory)), of(pages, vcpus))
        })
        .filter(|(_, rows)| !rows.is_empty())
        .collect()
}

fn phases(rows: &[&Row]) -> Result<Figure, PlotError> {
    let charts = showcases(rows).into_iter().map(|(title, rows)| {
        let mut names: Vec<String> = rows.iter().map(|row| row.tracker.replace('+', "\n+")).collect();
        names.push("floor".to_owned());
        let x = Scale::names(&names);
        let total = |row: &&Row| PHASES.iter().map(|(.., phase)| phase(row)).sum::<f64>();
        let floor = rows.iter().map(|row| row.floor_copy_us).fold(0.0, f64::max);
        let y = Scale::linear("pause", &rows.iter().map(total).chain([floor]).map(|most| most * 1.08).collect::<Vec<_>>(), time);
        let mut marks = Vec::new();
        let places = || (0i32..).map(f64::from);
        for (at, row) in places().zip(&rows) {
            let mut bottom = 0.0;
            for (colour, _, phase) in PHASES {
                let top = bottom + phase(row);
                marks.push(Mark::Block { colour, from: (at + 0.2, bottom), to: (at + 0.8, top) });
                bottom = top;
            }
            marks.push(Mark::Words { at: (at + 0.5, bottom), text: time(bottom) });
        }
        if let Some(at) = places().nth(rows.len()) {
            marks.push(Mark::Block { colour: FLOOR, from: (at + 0.2, 0.0), to: (at + 0.8, floor) });
            marks.push(Mark::Words { at: (at + 0.5, floor), text: time(floor) });
        }
        Ok((title, chart(&x, &y, SIZE, &marks)?))
    });
    Ok(Figure {
        wide: false,
        title: "Where a pause goes, beside its floor",
        text: "The medians of the phases of a cut, one on the other. The floor is nothing but the copy of the same pages by one core, measured in the same run.",
        charts: charts.collect::<Result<_, PlotError>>()?,
        legend: PHASES.iter().map(|(colour, name, _)| (*colour, *name)).chain([(FLOOR, "plain copy")]).collect(),
    })
}

fn pauses(rows: &[&Row]) -> Result<Figure, PlotError> {
    let shown = showcases(rows);
    let flat: Vec<(String, &Row)> = shown
        .iter()
        .flat_map(|(_, rows)| rows)
        .map(|row| {
            let vcpus = if row.vcpus == 1 { "" } else { ", 2 vCPUs" };
            (format!("{} pages{vcpus}: {}", count(number(row.dirty_pages)), row.tracker), *row)
        })
        .collect();
    let values: Vec<f64> = flat.iter().flat_map(|(_, row)| row.pause_quantiles_us.iter().copied()).collect();
    let x = Scale::decades("pause", &values, time);
    let names: Vec<String> = flat.iter().rev().map(|(name, _)| name.clone()).collect();
    let y = Scale::names(&names);
    let mut marks = Vec::new();
    for (line, (_, row)) in (0i32..).map(f64::from).zip(flat.iter().rev()) {
        let at = |hundredth: u8| {
            let place = PAUSE_QUANTILES.iter().position(|quantile| *quantile == hundredth);
            place.and_then(|place| row.pause_quantiles_us.get(place)).copied().unwrap_or_default()
        };
        let (colour, middle) = (colour_of(row.tracker), line + 0.5);
        for (from, to, width) in [(0, 100, 1), (10, 90, 5), (25, 75, 11)] {
            marks.push(Mark::Stroke { colour, from: (at(from), middle), to: (at(to), middle), width });
        }
        marks.push(Mark::Stroke { colour: INK, from: (at(50), line + 0.2), to: (at(50), line + 0.8), width: 2 });
    }
    let height = 70 + 24 * u32::try_from(flat.len()).unwrap_or(0);
    let charts = if flat.is_empty() { Vec::new() } else { vec![(String::new(), chart(&x, &y, (WIDE, height), &marks)?)] };
    Ok(Figure {
        wide: true,
        title: "How pauses are distributed",
        text: "Thin: from the shortest to the longest. Thicker: eight of ten. Thickest: half of all. The stroke across is the median.",
        charts,
        legend: tracker_legend(flat.iter().map(|(_, row)| row.tracker)),
    })
}

fn budgets(summary: &Summary) -> Result<Figure, PlotError> {
    let costs = &summary.budgets;
    let entries: Vec<f64> = costs.iter().map(|cost| f64::from(cost.ring_entries)).collect();
    let x = Scale::log("entries of the ring", &entries, entries.iter().map(|entries| (*entries, count(*entries))).collect());
    let line = |colour, of: &dyn Fn(&crate::bench::summary::BudgetCost) -> f64| {
        let points = costs.iter().map(|cost| (f64::from(cost.ring_entries), of(cost))).collect();
        Mark::Line { colour, points, dashed: false }
    };
    let by_page: Vec<f64> = costs.iter().flat_map(|cost| [cost.pause_us_per_page, cost.cycle_us_per_page]).collect();
    let pause: Vec<f64> = costs.iter().map(|cost| cost.pause_us).collect();
    let mut charts = Vec::new();
    if costs.len() > 1 {
        let y = Scale::linear("by page", &by_page, time);
        let marks = [line(RING, &|cost| cost.cycle_us_per_page), line(RESET, &|cost| cost.pause_us_per_page)];
        charts.push(("Cost of a page".to_owned(), chart(&x, &y, SIZE, &marks)?));
        let y = Scale::decades("median pause", &pause, time);
        charts.push(("Length of a pause".to_owned(), chart(&x, &y, SIZE, &[line(RESET, &|cost| cost.pause_us)])?));
    }
    Ok(Figure {
        wide: false,
        title: "What a budget costs",
        text: "A guest that writes to ever new pages, and is cut when its ring is full. A larger ring spreads what each cut costs over more pages, and makes each pause longer.",
        charts,
        legend: vec![(RING, "run and pause"), (RESET, "pause")],
    })
}

fn slowdown(rates: &[&RateRow]) -> Result<Figure, PlotError> {
    let paced: Vec<&RateRow> = rates.iter().copied().filter(|row| row.burst_us.is_some()).collect();
    let reached = |row: &RateRow| row.durable_per_s.max(1.0);
    let values: Vec<f64> = paced.iter().map(|row| reached(row)).collect();
    let x = Scale::decades("durable checkpoints a second", &values, count);
    let worst: Vec<f64> = paced.iter().map(|row| row.slowdown_percent).collect();
    let y = Scale::linear("slowdown of the guest", &worst, percent);
    let marks = TRACKERS.into_iter().filter_map(|tracker| {
        let of = paced.iter().filter(|row| row.tracker == tracker);
        let mut points: Vec<(f64, f64)> = of.map(|row| (reached(row), row.slowdown_percent.max(0.0))).collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        (!points.is_empty()).then(|| Mark::Line { colour: colour_of(tracker), points, dashed: tracker == "bitmap+clear" })
    });
    let marks: Vec<Mark> = marks.collect();
    let charts = if paced.len() > 1 { vec![(String::new(), chart(&x, &y, (WIDE, 300), &marks)?)] } else { Vec::new() };
    Ok(Figure {
        wide: true,
        title: "Slowdown over the rate of checkpoints",
        text: "The whole engine with a chain on disk. The guest writes 2,000 pages at the beginning of each 50 ms and rests then; its slowdown is how much more of that period its work takes. \
               The last point of a line is as many checkpoints as there could be.",
        charts,
        legend: tracker_legend(paced.iter().map(|row| row.tracker)),
    })
}

/// When outputs are released, each with its meaning and colour.
const RELEASES: [(&str, &str, Colour); 3] = [
    ("none", "in the chain (none)", RING),
    ("group", "durable, in groups (group)", BITMAP),
    ("epoch", "durable, each epoch (epoch)", CLEAR),
];

type Quantile = (&'static str, fn(&AnswerTimes) -> f64);

const QUANTILES: [Quantile; 3] =
    [("median", |times| times.p50), ("95 of 100 are below", |times| times.p95), ("99 of 100 are below", |times| times.p99)];

/// Less than this is drawn as this.
const LEAST_ADDED_US: f64 = 10.0;

/// What held outputs add to the time of an answer, by a quantile of both.
fn waiting(rows: &[&OutputRow]) -> Result<Figure, PlotError> {
    // Where one is as good as the other, it is a matter of luck which is ahead.
    let least = |us: f64| us.max(LEAST_ADDED_US);
    let added = |row: &OutputRow, of: fn(&AnswerTimes) -> f64| least(of(&row.held_us) - of(&row.free_us));
    let floor = |row: &OutputRow| least(row.floor_us - row.free_us.p50);
    let pages: Vec<u64> = different(rows.iter().map(|row| u64::from(row.request_pages)));
    let values: Vec<f64> = pages.iter().map(|pages| number(*pages)).collect();
    let ticks = pages.iter().map(|pages| (number(*pages), count(number(*pages)))).collect();
    let x = Scale::log("pages that a request dirties", &values, ticks);
    let all = rows.iter().flat_map(|row| QUANTILES.map(|(_, of)| added(row, of)).into_iter().chain([floor(row)]));
    let y = Scale::decades("added to an answer", &all.collect::<Vec<_>>(), time);
    let mut charts = Vec::new();
    for clients in different(rows.iter().map(|row| row.clients)) {
        let of_clients: Vec<&OutputRow> = rows.iter().copied().filter(|row| row.clients == clients).collect();
        let line = |colour, dashed, of: &[&OutputRow], y: &dyn Fn(&OutputRow) -> f64| {
            let mut points: Vec<(f64, f64)> = of.iter().map(|row| (f64::from(row.request_pages), y(row))).collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            (!points.is_empty()).then_some(Mark::Line { colour, points, dashed })
        };
        let of_release =
            |release: &str| -> Vec<&OutputRow> { of_clients.iter().copied().filter(|row| row.durability == release).collect() };
        // The pauses that the floor has are much the same in all modes.
        let (first, ..) = RELEASES[0];
        for (name, of) in QUANTILES {
            let lines = RELEASES
                .into_iter()
                .filter_map(|(release, _, colour)| line(colour, false, &of_release(release), &|row| added(row, of)));
            let marks: Vec<Mark> = line(FLOOR, true, &of_release(first), &floor).into_iter().chain(lines).collect();
            let plural = if clients == 1 { "" } else { "s" };
            charts.push((format!("{clients} request{plural} under way, {name}"), chart(&x, &y, SIZE, &marks)?));
        }
    }
    let there = |release: &str| rows.iter().any(|row| row.durability == release);
    let legend = RELEASES.iter().filter(|(release, ..)| there(release)).map(|(_, name, colour)| (*colour, *name));
    Ok(Figure {
        wide: false,
        title: "What it costs that outputs wait",
        text: "Requests to a guest that dirties so many pages for each, over a Unix socket. The time of an answer with outputs held, less that with outputs free. \
               The floor is the delay that is asked for and the pause of a cut. What is less than 10 µs is drawn as that.",
        charts,
        legend: legend.chain([(FLOOR, "delay and pause")]).collect(),
    })
}
