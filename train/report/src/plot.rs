//! Drawings: lines, bars, intervals and heat maps as SVG, by plotters.
//!
//! Text stays text, in the fonts of whoever reads it. What is not of an arm's ink is drawn in [`INK`] and [`GRID`], for which a page's style
//! sheet has other colours in the dark. Every drawing is as wide as a phone, so that its text can be read there.

use std::fmt::Display;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;

use crate::ink::{Ink, Marker, heat, hex};

/// Colour of text and axes.
pub const INK: RGBColor = RGBColor(0x22, 0x25, 0x29);
/// Colour of the lines behind.
pub const GRID: RGBColor = RGBColor(0xDA, 0xDD, 0xE1);

const WIDTH: u32 = 420;
const HEIGHT: u32 = 290;
/// plotters divides by 1.24 what an SVG is to say.
const FONT: f64 = 12.5 * 1.24;
const FAMILY: &str = "sans-serif";

/// What went wrong in a drawing.
#[derive(Debug, thiserror::Error)]
#[error("a figure cannot be drawn: {0}")]
pub struct PlotError(String);

fn failed(error: impl Display) -> PlotError {
    PlotError(error.to_string())
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it measures, with the unit.
    pub label: String,
    /// Whether it is logarithmic; values of 0 and less have no place on one.
    pub log: bool,
    /// Smallest and largest value, where several drawings share them.
    pub range: Option<(f64, f64)>,
}

impl Axis {
    /// A linear one.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.into(),
            log: false,
            range: None,
        }
    }

    /// A logarithmic one.
    pub fn log(label: &str) -> Self {
        Self {
            log: true,
            ..Self::linear(label)
        }
    }

    /// With a range.
    pub fn with_range(self, range: Option<(f64, f64)>) -> Self {
        Self { range, ..self }
    }

    fn place(&self, value: f64) -> Option<f64> {
        let place = if self.log { value.log10() } else { value };
        place.is_finite().then_some(place)
    }

    /// Ends, as places, and the values that are named.
    fn ends_and_ticks(&self, values: impl Iterator<Item = f64>) -> ([f64; 2], Vec<f64>) {
        let given = self.range.map(|(low, high)| [low, high]).into_iter().flatten();
        let places = given.chain(values).filter_map(|value| self.place(value));
        let (low, high) = places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| {
            (low.min(place), high.max(place))
        });
        let (low, high) = match high - low {
            width if width > 0.0 => (low, high),
            _ if low.is_finite() => (low - 0.5, high + 0.5),
            _ => (0.0, 1.0),
        };
        let margin = 0.04 * (high - low);
        let start = if !self.log && low == 0.0 { 0.0 } else { low - margin };
        let ends = [start, high + margin];
        (ends, if self.log { log_ticks(ends) } else { linear_ticks(ends) })
    }

    fn name(&self, place: f64) -> String {
        number(if self.log { 10f64.powf(place) } else { place })
    }
}

/// A scale from one end to the other with values that are named: plotters chooses its own for those it has.
struct Scale {
    ends: [f64; 2],
    ticks: Vec<f64>,
}

impl Scale {
    fn new(from: f64, to: f64, ticks: Vec<f64>) -> Self {
        Self {
            ends: [from, to],
            ticks,
        }
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let [from, to] = self.ends;
        limit.0 + ((value - from) / (to - from) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.ends[0]..self.ends[1]
    }
}

/// Round values, about five.
fn linear_ticks([low, high]: [f64; 2]) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough);
    // An end that is a round value is one, whatever rounding made of it.
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

/// Powers of ten, and 2 and 5 times those where there are few; round values where there are next to none.
fn log_ticks(ends: [f64; 2]) -> Vec<f64> {
    let [low, high] = ends;
    let of = |factors: &[f64]| -> Vec<f64> {
        let powers = low.floor() as i32..=high.ceil() as i32;
        let values = powers.flat_map(|power| factors.iter().map(move |factor| f64::from(power) + factor.log10()));
        values.filter(|place| (low..=high).contains(place)).collect()
    };
    let (tens, fives) = (of(&[1.0]), of(&[1.0, 2.0, 5.0]));
    match (tens.len(), fives.len()) {
        (0..=2, 0..=2) => linear_ticks(ends.map(|place| 10f64.powf(place)))
            .into_iter()
            .map(f64::log10)
            .collect(),
        (0..=3, _) => fives,
        (count, _) => tens.into_iter().step_by(count.div_ceil(7)).collect(),
    }
}

/// A number as short as it can be read.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if !value.is_finite() => return "–".into(),
        0.0 => "0".into(),
        _ if size >= 1e9 => format!("{:.2}", value / 1e9),
        _ if size >= 1e6 => format!("{:.2}", value / 1e6),
        _ if size >= 1e4 => format!("{:.1}", value / 1e3),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ if size >= 1e-3 => format!("{value:.4}"),
        _ => return format!("{value:.0e}").replace('-', "−"),
    };
    let short = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    let unit = match size {
        _ if size >= 1e9 => "B",
        _ if size >= 1e6 => "M",
        _ if size >= 1e4 => "k",
        _ => "",
    };
    format!("{short}{unit}").replace('-', "−")
}

/// A line, and what lies around it.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its look.
    pub ink: Ink,
    /// Its colour, if it is not its ink's.
    pub colour: Option<RGBColor>,
    /// Points; those without a place are passed over.
    pub points: Vec<(f64, f64)>,
    /// At each x the lowest and the highest value of a band around it; none if empty.
    pub band: Vec<(f64, f64, f64)>,
}

impl Line {
    /// What of it lies at `x` and after.
    pub fn after(&self, x: f64) -> Self {
        Self {
            points: self.points.iter().copied().filter(|point| point.0 >= x).collect(),
            band: self.band.iter().copied().filter(|band| band.0 >= x).collect(),
            ..self.clone()
        }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws something of some height within the frame of a figure. `title` and `description` are for those who cannot see it.
fn framed(
    title: &str,
    description: &str,
    height: u32,
    draw: impl FnOnce(&Area<'_>) -> Result<(), PlotError>,
) -> Result<String, PlotError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    let escaped = |text: &str| maud::html! { (text) }.into_string();
    Ok(format!(
        "<svg class=\"plot\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\"><title>{}</title><desc>{}</desc>{svg}</svg>",
        escaped(title),
        escaped(description),
    ))
}

fn text<'a>(colour: &'a RGBColor) -> TextStyle<'a> {
    (FAMILY, FONT).into_font().color(colour)
}

/// Axes and lines behind as every drawing but a heat map has them.
fn plain<'m, 'a, 'b, D: DrawingBackend>(
    mesh: &'m mut MeshStyle<'a, 'b, Scale, Scale, D>,
) -> &'m mut MeshStyle<'a, 'b, Scale, Scale, D> {
    mesh.axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(text(&INK))
        .axis_desc_style(text(&INK))
}

/// Lines over a common x.
///
/// # Errors
/// If plotters cannot draw them.
pub fn lines(title: &str, description: &str, x: &Axis, y: &Axis, lines: &[Line]) -> Result<String, PlotError> {
    framed(title, description, HEIGHT, |area| {
        let points = || lines.iter().flat_map(|line| line.points.iter());
        let bands = || lines.iter().flat_map(|line| line.band.iter());
        let ([left, right], x_ticks) = x.ends_and_ticks(points().map(|point| point.0));
        let seen = points().map(|point| point.1);
        let seen = seen.chain(bands().flat_map(|band| [band.1, band.2]));
        let ([bottom, top], y_ticks) = y.ends_and_ticks(seen);
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(40)
            .y_label_area_size(58)
            .build_cartesian_2d(Scale::new(left, right, x_ticks), Scale::new(bottom, top, y_ticks))
            .map_err(failed)?;
        plain(&mut chart.configure_mesh())
            .x_desc(x.label.as_str())
            .y_desc(y.label.as_str())
            .x_label_formatter(&|place| x.name(*place))
            .y_label_formatter(&|place| y.name(*place))
            .draw()
            .map_err(failed)?;
        let place = |(at, value): &(f64, f64)| Some((x.place(*at)?, y.place(*value)?));
        for line in lines {
            let colour = line.colour.unwrap_or(line.ink.colour());
            let edge =
                |end: fn(&(f64, f64, f64)) -> f64| line.band.iter().filter_map(move |band| place(&(band.0, end(band))));
            let mut outline: Vec<_> = edge(|band| band.1).collect();
            let upper: Vec<_> = edge(|band| band.2).collect();
            outline.extend(upper.into_iter().rev());
            if outline.len() > 2 {
                chart
                    .draw_series([Polygon::new(outline, colour.mix(0.16).filled())])
                    .map_err(failed)?;
            }
        }
        for line in lines {
            let colour = line.colour.unwrap_or(line.ink.colour());
            let points: Vec<_> = line.points.iter().filter_map(place).collect();
            chart
                .draw_series([PathElement::new(points.clone(), colour.stroke_width(2))])
                .map_err(failed)?;
            let points = points.into_iter();
            let drawn = match line.ink.marker {
                Marker::None => continue,
                Marker::Circle => chart.draw_series(points.map(|at| Circle::new(at, 3, colour.filled()))),
                Marker::Triangle => chart.draw_series(points.map(|at| TriangleMarker::new(at, 4, colour.filled()))),
                Marker::Square => chart.draw_series(
                    points.map(|at| EmptyElement::at(at) + Rectangle::new([(-3, -3), (3, 3)], colour.filled())),
                ),
            };
            drawn.map_err(failed)?;
        }
        Ok(())
    })
}

/// A bar for each layer.
///
/// # Errors
/// If plotters cannot draw them.
pub fn bars(title: &str, description: &str, y: &Axis, ink: Ink, values: &[f64]) -> Result<String, PlotError> {
    framed(title, description, HEIGHT, |area| {
        let ([bottom, top], ticks) = y.ends_and_ticks(values.iter().copied().chain([0.0]));
        let count = values.len();
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(40)
            .y_label_area_size(58)
            .build_cartesian_2d(
                Scale::new(-0.5, count as f64 - 0.5, whole_ticks(count)),
                Scale::new(bottom, top, ticks),
            )
            .map_err(failed)?;
        plain(&mut chart.configure_mesh())
            .disable_x_mesh()
            .x_desc("layer")
            .y_desc(y.label.as_str())
            .x_label_formatter(&|place| number(*place))
            .y_label_formatter(&|place| y.name(*place))
            .draw()
            .map_err(failed)?;
        let corners = |(index, value): (usize, &f64)| {
            let corners = [(index as f64 - 0.38, 0.0), (index as f64 + 0.38, *value)];
            value.is_finite().then_some(corners)
        };
        // As lines do, bars of a gated scheme show it by their dashes.
        let strength = if ink.is_dashed() { 0.35 } else { 1.0 };
        for corners in values.iter().enumerate().filter_map(corners) {
            let fill = Rectangle::new(corners, ink.colour().mix(strength).filled());
            let outline = Rectangle::new(corners, ink.colour().stroke_width(2));
            chart.draw_series([fill, outline]).map_err(failed)?;
        }
        let zero = [(-0.5, 0.0), (count as f64 - 0.5, 0.0)];
        chart.draw_series([PathElement::new(zero, INK)]).map_err(failed)?;
        Ok(())
    })
}

/// Numbers of things that are counted from 0, as many as have room.
fn whole_ticks(count: usize) -> Vec<f64> {
    (0..count)
        .step_by(count.div_ceil(13).max(1))
        .map(|index| index as f64)
        .collect()
}

/// A mean and the ends of its interval, if it has one.
#[derive(Clone, Debug)]
pub struct Interval {
    /// What it is of.
    pub name: String,
    /// Its look.
    pub ink: Ink,
    /// Mean.
    pub mean: f64,
    /// Ends.
    pub ends: Option<[f64; 2]>,
}

/// Intervals below each other, on both sides of 0.
///
/// # Errors
/// If plotters cannot draw them.
pub fn intervals(title: &str, description: &str, x: &Axis, rows: &[Interval]) -> Result<String, PlotError> {
    let count = rows.len();
    framed(title, description, 70 + 34 * count as u32, |area| {
        let ends = rows
            .iter()
            .flat_map(|row| row.ends.into_iter().flatten().chain([row.mean]));
        let ([left, right], ticks) = x.ends_and_ticks(ends.chain([0.0]));
        let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(40)
            .y_label_area_size((7.2 * longest as f64 + 14.0).min(210.0) as u32)
            .build_cartesian_2d(
                Scale::new(left, right, ticks),
                Scale::new(count as f64 - 0.5, -0.5, (0..count).map(|row| row as f64).collect()),
            )
            .map_err(failed)?;
        plain(&mut chart.configure_mesh())
            .x_desc(x.label.as_str())
            .x_label_formatter(&|place| x.name(*place))
            .y_label_formatter(&|row| rows.get(*row as usize).map_or(String::new(), |row| row.name.clone()))
            .draw()
            .map_err(failed)?;
        let zero = [(0.0, -0.5), (0.0, count as f64 - 0.5)];
        chart.draw_series([PathElement::new(zero, INK)]).map_err(failed)?;
        for (index, row) in rows.iter().enumerate() {
            let (at, colour) = (index as f64, row.ink.colour());
            if let Some([low, high]) = row.ends {
                // A bar and not a line, whose dashes would look like gaps.
                let bar = Rectangle::new([(low, at - 0.06), (high, at + 0.06)], colour.filled());
                chart.draw_series([bar]).map_err(failed)?;
            }
            chart
                .draw_series([Circle::new((row.mean, at), 5, colour.filled())])
                .map_err(failed)?;
        }
        Ok(())
    })
}

/// Angular distances `[n − 1][i]` as coloured cells, 0 to `largest`, with the scale beside them.
///
/// # Errors
/// If plotters cannot draw them.
pub fn heat_map(title: &str, description: &str, rows: &[Vec<f64>], largest: f64) -> Result<String, PlotError> {
    let count = rows.len();
    framed(title, description, HEIGHT + 30, |area| {
        let (map, scale) = area.split_horizontally(WIDTH - 74);
        let ticks: Vec<f64> = whole_ticks(count).into_iter().map(|tick| tick + 0.5).collect();
        let mut chart = ChartBuilder::on(&map)
            .margin(6)
            .x_label_area_size(40)
            .y_label_area_size(46)
            .build_cartesian_2d(
                Scale::new(0.0, count as f64, ticks.clone()),
                Scale::new(0.0, count as f64, ticks),
            )
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(INK)
            .label_style(text(&INK))
            .axis_desc_style(text(&INK))
            .x_desc("layer i")
            .y_desc("layers on, n")
            .x_label_formatter(&|place| number((place - 0.5).round()))
            .y_label_formatter(&|place| number((place + 0.5).round()))
            .draw()
            .map_err(failed)?;
        let share = |value: f64| if largest > 0.0 { value / largest } else { 0.0 };
        let cells = rows.iter().enumerate().flat_map(|(n, row)| {
            let cell = move |(i, value): (usize, &f64)| {
                let corners = [(i as f64, n as f64), (i as f64 + 1.0, n as f64 + 1.0)];
                value
                    .is_finite()
                    .then(|| Rectangle::new(corners, heat(share(*value)).filled()))
            };
            row.iter().enumerate().filter_map(cell)
        });
        chart.draw_series(cells).map_err(failed)?;

        let axis = Axis::linear("").with_range(Some((0.0, largest)));
        let (_, ticks) = axis.ends_and_ticks(std::iter::empty());
        let ticks = ticks.into_iter().filter(|tick| *tick <= largest * 1.001).collect();
        let mut bar = ChartBuilder::on(&scale)
            .margin_top(6)
            .margin_bottom(46)
            .margin_right(6)
            .right_y_label_area_size(40)
            .build_cartesian_2d(0.0..1.0, Scale::new(0.0, largest.max(1e-9), ticks))
            .map_err(failed)?;
        bar.configure_mesh()
            .disable_mesh()
            .disable_x_axis()
            .axis_style(INK)
            .label_style(text(&INK))
            .y_label_formatter(&|place| number(*place))
            .draw()
            .map_err(failed)?;
        const STEPS: usize = 40;
        let part = |step: usize| step as f64 / STEPS as f64 * largest;
        let cells = (0..STEPS).map(|step| {
            let colour = heat((step as f64 + 0.5) / STEPS as f64);
            Rectangle::new([(0.0, part(step)), (1.0, part(step + 1))], colour.filled())
        });
        bar.draw_series(cells).map_err(failed)?;
        Ok(())
    })
}

/// A piece of line with its marker, for a legend.
pub fn swatch(ink: Ink, colour: Option<RGBColor>) -> String {
    let colour = hex(colour.unwrap_or(ink.colour()));
    let marker = match ink.marker {
        Marker::None => String::new(),
        Marker::Circle => format!("<circle cx=\"18\" cy=\"6\" r=\"3.5\" fill=\"{colour}\"/>"),
        Marker::Square => format!("<rect x=\"14.5\" y=\"2.5\" width=\"7\" height=\"7\" fill=\"{colour}\"/>"),
        Marker::Triangle => format!("<polygon points=\"18,1.5 22.5,9.5 13.5,9.5\" fill=\"{colour}\"/>"),
    };
    format!(
        "<svg class=\"plot swatch\" viewBox=\"0 0 36 12\" aria-hidden=\"true\">\
         <line x1=\"1\" y1=\"6\" x2=\"35\" y2=\"6\" stroke=\"{colour}\" stroke-width=\"2\"/>{marker}</svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (1_234_567.0, "1.23M"),
            (20_000.0, "20k"),
            (400.0, "400"),
            (2.5, "2.5"),
            (-0.25, "−0.25"),
            (0.0001, "1e−4"),
            (100.0, "100"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(linear_ticks([0.0, 10.0]), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let values = |ends: [f64; 2]| -> Vec<String> {
            log_ticks(ends.map(f64::log10))
                .into_iter()
                .map(|place| number(10f64.powf(place)))
                .collect()
        };
        assert_eq!(values([90.0, 5000.0]), ["100", "200", "500", "1000", "2000", "5000"]);
        assert_eq!(values([1.0, 1e6]).len(), 7);
        assert_eq!(values([70.0, 80.0]), ["70", "72", "74", "76", "78", "80"]);
    }

    #[test]
    fn what_has_no_place_is_passed_over_and_nothing_is_an_empty_frame() {
        let ink = Ink::of_moment(0);
        let (x, y) = (Axis::linear("x"), Axis::log("y"));
        let line = Line {
            ink,
            colour: None,
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.0), (3.0, 10.0)],
            band: Vec::new(),
        };
        let drawn = lines("a < b", "d", &x, &y, &[line]).unwrap();
        let triangles = drawn.matches("<polygon").count();
        assert_eq!(triangles, 2, "two of four points are on a logarithmic axis");
        assert!(
            drawn.contains("<title>a &lt; b</title>") && drawn.contains(&hex(ink.colour())),
            "{drawn}"
        );
        assert!(lines("", "", &x, &y, &[]).unwrap().contains("<svg"));
        assert!(bars("", "", &x, ink, &[f64::NAN]).is_ok());
        assert!(heat_map("", "", &[vec![f64::NAN]], 0.0).is_ok());
        assert!(intervals("", "", &x, &[]).is_ok());
    }
}
