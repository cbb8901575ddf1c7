//! Charts as SVG whose colours are variables of the page's style, so that they are right in light
//! and in dark.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A chart could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("drawing a chart: {0}")]
pub struct PlotError(String);

/// For `map_err`.
fn failed(error: impl std::fmt::Display) -> PlotError {
    PlotError(error.to_string())
}

/// A colour of the page's style. The numbers stand for it until the chart is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Colour {
    /// The name of the variable.
    pub(super) name: &'static str,
    stand_in: RGBColor,
}

const fn colour(name: &'static str, number: u8) -> Colour {
    // No chart has any other colours than these, so that they can't be taken for others.
    Colour { name, stand_in: RGBColor(1, 2, number) }
}

pub(super) const INK: Colour = colour("ink", 1);
pub(super) const GRID: Colour = colour("grid", 2);
pub(super) const RING: Colour = colour("ring", 3);
pub(super) const RING_HOT: Colour = colour("ring-hot", 4);
pub(super) const BITMAP: Colour = colour("bitmap", 5);
pub(super) const CLEAR: Colour = colour("clear", 6);
pub(super) const FLOOR: Colour = colour("floor", 7);
pub(super) const KICK: Colour = colour("kick", 8);
pub(super) const STATE: Colour = colour("state", 9);
pub(super) const HARVEST: Colour = colour("harvest", 10);
pub(super) const COPY: Colour = colour("copy", 11);
pub(super) const RESET: Colour = colour("reset", 12);

const ALL: [Colour; 12] = [INK, GRID, RING, RING_HOT, BITMAP, CLEAR, FLOOR, KICK, STATE, HARVEST, COPY, RESET];

/// Puts variables in the place of their stand-ins.
fn themed(mut svg: String) -> String {
    for Colour { name, stand_in: RGBColor(red, green, blue) } in ALL {
        svg = svg.replace(&format!("\"#{red:02X}{green:02X}{blue:02X}\""), &format!("\"var(--{name})\""));
    }
    svg
}

/// An axis: its range, and the places that have a label.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    label: String,
    ticks: Vec<(f64, String)>,
    range: (f64, f64),
    log: bool,
}

impl Scale {
    /// A logarithmic axis over `values`, with these ticks.
    pub(super) fn log(label: &str, values: &[f64], ticks: Vec<(f64, String)>) -> Self {
        let positive = || values.iter().copied().filter(|value| *value > 0.0);
        let (low, high) = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
        let (low, high) = if low < high { (low / 1.25, high * 1.25) } else { (low.min(1e9) / 2.0, high.max(1.0) * 2.0) };
        let range = (low.max(1e-6).ln(), high.ln());
        let ticks = ticks.into_iter().map(|(at, text)| (at.max(1e-9).ln(), text));
        Self {
            label: label.to_owned(),
            ticks: ticks.filter(|(at, _)| (range.0..=range.1).contains(at)).collect(),
            range,
            log: true,
        }
    }

    /// A logarithmic axis with ticks at powers of ten, and between them where there are few.
    pub(super) fn decades(label: &str, values: &[f64], text: fn(f64) -> String) -> Self {
        let plain = Self::log(label, values, Vec::new());
        let decades = (plain.range.1 - plain.range.0) / std::f64::consts::LN_10;
        let steps: &[f64] = if decades < 1.2 {
            &[1.0, 2.0, 3.0, 5.0, 7.0]
        } else if decades < 2.5 {
            &[1.0, 3.0]
        } else {
            &[1.0]
        };
        let ticks = (-3..10).flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        Self::log(label, values, ticks.map(|at| (at, text(at))).collect())
    }

    /// A linear axis from 0 to a round number above `values`.
    pub(super) fn linear(label: &str, values: &[f64], text: fn(f64) -> String) -> Self {
        let most = values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f64::max).max(1e-3);
        let rough = most / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= rough).unwrap_or(rough);
        let count = (most / step).ceil().max(1.0);
        #[expect(clippy::cast_possible_truncation, reason = "a handful of ticks")]
        let ticks = (0..=count as i32).map(|tick| f64::from(tick) * step).map(|at| (at, text(at))).collect();
        Self { label: label.to_owned(), ticks, range: (0.0, count * step), log: false }
    }

    /// An axis of names, one unit each.
    pub(super) fn names(names: &[String]) -> Self {
        let ticks: Vec<(f64, String)> = (0i32..).map(f64::from).zip(names).map(|(at, name)| (at + 0.5, name.clone())).collect();
        #[expect(clippy::cast_precision_loss, reason = "a handful of names")]
        let count = names.len().max(1) as f64;
        Self { label: String::new(), ticks, range: (0.0, count), log: false }
    }

    fn at(&self, value: f64) -> f64 {
        if self.log { value.max(1e-9).ln() } else { value }
    }
}

/// Only the range: ticks are drawn by hand.
#[derive(Clone)]
struct Plain(std::ops::Range<f64>);

impl Ranged for Plain {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.0.start) / (self.0.end - self.0.start).max(1e-12);
        #[expect(clippy::cast_possible_truncation, reason = "pixels")]
        let offset = (share.clamp(-0.5, 1.5) * f64::from(limit.1 - limit.0)).round() as i32;
        limit.0 + offset
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        Vec::new()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for Plain {}

/// What a chart shows.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// A line through points, each with a dot.
    Line { colour: Colour, points: Vec<(f64, f64)>, dashed: bool },
    /// A rectangle from one corner to the other.
    Block { colour: Colour, from: (f64, f64), to: (f64, f64) },
    /// A line between two points, so many pixels wide.
    Stroke { colour: Colour, from: (f64, f64), to: (f64, f64), width: u32 },
    /// Words, above a point.
    Words { at: (f64, f64), text: String },
}

/// The width of a chart of which three stand side by side, in pixels.
pub(super) const WIDTH: u32 = 400;
const BOTTOM: i32 = 46;
const TOP: i32 = 16;
const RIGHT: i32 = 26;
/// The backend draws letters a quarter smaller.
const TEXT: f64 = 16.0;

/// A chart with its axes, so many pixels wide and high.
pub(super) fn chart(x: &Scale, y: &Scale, (width, height): (u32, u32), marks: &[Mark]) -> Result<String, PlotError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let letters = y.ticks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0);
        let left = i32::try_from(letters).unwrap_or(0) * 8 + if y.label.is_empty() { 14 } else { 30 };
        let (width, height) = (width.cast_signed(), height.cast_signed());
        let plane = (left..width - RIGHT, TOP..height - BOTTOM);
        let spec = Cartesian2d::<Plain, Plain>::new(
            Plain(x.range.0..x.range.1),
            Plain(y.range.0..y.range.1),
            // Pixels count from the top.
            (plane.0.clone(), plane.1.end..plane.1.start),
        );
        axes(&area, &spec, x, y, &plane)?;
        for mark in marks {
            draw(&area, &spec, x, y, mark)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(themed(svg))
}

type Area<'s> = DrawingArea<SVGBackend<'s>, plotters::coord::Shift>;
type Spec = Cartesian2d<Plain, Plain>;
type Plane = (std::ops::Range<i32>, std::ops::Range<i32>);

fn place(spec: &Spec, x: f64, y: f64) -> (i32, i32) {
    use plotters::coord::CoordTranslate;
    spec.translate(&(x, y))
}

fn style(anchor: (HPos, VPos), size: f64) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size).into_font()).color(&INK.stand_in).pos(Pos::new(anchor.0, anchor.1))
}

fn axes(area: &Area<'_>, spec: &Spec, x: &Scale, y: &Scale, plane: &Plane) -> Result<(), PlotError> {
    let thin = GRID.stand_in.stroke_width(1);
    for (at, text) in &y.ticks {
        let (_, pixel) = place(spec, x.range.0, *at);
        if !y.label.is_empty() {
            area.draw(&PathElement::new(vec![(plane.0.start, pixel), (plane.0.end, pixel)], thin)).map_err(failed)?;
        }
        area.draw(&Text::new(text.clone(), (plane.0.start - 6, pixel), style((HPos::Right, VPos::Center), TEXT)))
            .map_err(failed)?;
    }
    let mut free_from = i32::MIN;
    for (at, text) in &x.ticks {
        let (pixel, _) = place(spec, *at, y.range.0);
        if !x.label.is_empty() {
            area.draw(&PathElement::new(vec![(pixel, plane.1.start), (pixel, plane.1.end)], thin)).map_err(failed)?;
        }
        // A label that would run into the one before is left out; its line stays.
        let half = i32::try_from(text.chars().count()).unwrap_or(0) * 4;
        if pixel - half >= free_from {
            area.draw(&Text::new(text.clone(), (pixel, plane.1.end + 6), style((HPos::Center, VPos::Top), TEXT)))
                .map_err(failed)?;
            free_from = pixel + half + 6;
        }
    }
    let base = PathElement::new(vec![(plane.0.start, plane.1.end), (plane.0.end, plane.1.end)], INK.stand_in.stroke_width(1));
    area.draw(&base).map_err(failed)?;
    let middle = (plane.0.start.midpoint(plane.0.end), plane.1.end + BOTTOM - 4);
    area.draw(&Text::new(x.label.clone(), middle, style((HPos::Center, VPos::Bottom), TEXT))).map_err(failed)?;
    let turned = style((HPos::Center, VPos::Top), TEXT).transform(FontTransform::Rotate270);
    let middle = (2, plane.1.start.midpoint(plane.1.end));
    area.draw(&Text::new(y.label.clone(), middle, turned)).map_err(failed)
}

fn draw(area: &Area<'_>, spec: &Spec, x: &Scale, y: &Scale, mark: &Mark) -> Result<(), PlotError> {
    let to_pixel = |(at_x, at_y): (f64, f64)| place(spec, x.at(at_x), y.at(at_y));
    match mark {
        Mark::Line { colour, points, dashed } => {
            let points: Vec<_> = points.iter().copied().map(to_pixel).collect();
            for pair in points.windows(2) {
                line(area, *colour, pair, *dashed)?;
            }
            for point in points {
                let filled = ShapeStyle { color: colour.stand_in.to_rgba(), filled: true, stroke_width: 1 };
                area.draw(&Circle::new(point, 4, filled)).map_err(failed)?;
            }
            Ok(())
        }
        Mark::Block { colour, from, to } => {
            area.draw(&Rectangle::new([to_pixel(*from), to_pixel(*to)], colour.stand_in.filled())).map_err(failed)
        }
        Mark::Stroke { colour, from, to, width } => {
            let style = colour.stand_in.stroke_width(*width);
            area.draw(&PathElement::new(vec![to_pixel(*from), to_pixel(*to)], style)).map_err(failed)
        }
        Mark::Words { at, text } => {
            let (left, top) = to_pixel(*at);
            area.draw(&Text::new(text.clone(), (left, top - 3), style((HPos::Center, VPos::Bottom), TEXT))).map_err(failed)
        }
    }
}

/// A straight line between two points, or dashes of 6 pixels and gaps of 5.
fn line(area: &Area<'_>, colour: Colour, pair: &[(i32, i32)], dashed: bool) -> Result<(), PlotError> {
    let style = colour.stand_in.stroke_width(2);
    let [from, to] = pair else { return Ok(()) };
    if !dashed {
        return area.draw(&PathElement::new(vec![*from, *to], style)).map_err(failed);
    }
    let (width, height) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
    let length = width.hypot(height).max(1.0);
    #[expect(clippy::cast_possible_truncation, reason = "pixels")]
    let along = |done: f64| {
        let share = (done / length).min(1.0);
        (from.0 + (width * share).round() as i32, from.1 + (height * share).round() as i32)
    };
    let mut done = 0.0;
    while done < length {
        area.draw(&PathElement::new(vec![along(done), along(done + 6.0)], style)).map_err(failed)?;
        done += 11.0;
    }
    Ok(())
}
