//! Drawings: lines, bars, intervals and heat maps as SVG.
//!
//! Text stays text, in the fonts of whoever reads it. Everything is drawn in the `color` of its group (`currentColor`), which is that for a
//! light background; the group's class is how a style sheet changes it in the dark. Every drawing is as wide as a phone, so that its text can
//! be read there. A place is where a value stands on its axis; lengths are those of the drawing, from its upper left corner.

use maud::{Markup, Render, html};

use crate::axis::{Axis, Scale, number};
use crate::ink::{GRID, Ink, Marker, Shades, TEXT, heat};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 290.0;
/// Height of the text.
const FONT: f64 = 12.5;
/// Room above and beside what is drawn.
const MARGIN: f64 = 6.0;
/// Room at the right, where the last name of the horizontal axis reaches over its end.
const RIGHT: f64 = 16.0;
/// Room for the names and the label of the horizontal axis.
const BELOW: f64 = 40.0;
/// Room for the names and the label of the vertical axis.
const BESIDE: f64 = 58.0;
/// Length of the mark at a named value.
const TICK: f64 = 4.0;
/// How far below its middle a line of text stands.
const BASELINE: &str = "0.35em";

/// A drawing. Rendered it stands in a page, whose style sheet it follows.
#[derive(Clone, Debug)]
pub struct Drawing {
    title: String,
    description: String,
    height: f64,
    body: Markup,
}

impl Drawing {
    /// As a file of its own, with the rules that a page would have for it.
    pub fn standalone(&self, style: &str) -> String {
        html! {
            svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" viewBox=(self.view()) font-size=(FONT)
                font-family="system-ui, sans-serif" {
                style { (style) }
                (self.content())
            }
        }
        .into_string()
            + "\n"
    }

    fn view(&self) -> String {
        format!("0 0 {WIDTH} {}", self.height)
    }

    /// `title` and `desc` are for those who cannot see it.
    fn content(&self) -> Markup {
        html! { title { (self.title) } desc { (self.description) } (self.body) }
    }
}

impl Render for Drawing {
    fn render(&self) -> Markup {
        html! { svg class="plot" role="img" viewBox=(self.view()) font-size=(FONT) { (self.content()) } }
    }
}

/// What a drawing shows, in words.
#[derive(Clone, Debug)]
pub struct Words {
    /// Its title.
    pub title: String,
    /// What is to be seen.
    pub description: String,
}

/// A group of everything that has one colour for each background.
fn in_shades(shades: &Shades, body: &Markup) -> Markup {
    html! { g class=(shades.class) color=(shades.light) { (body) } }
}

/// A group of everything that is drawn in an ink.
fn in_ink(ink: &Ink, body: &Markup) -> Markup {
    html! { g class=[ink.class()] color=(ink.light()) { (body) } }
}

/// A length with a tenth of a pixel, which is finer than it is seen.
fn px(length: f64) -> String {
    let text = format!("{length:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_string()
}

/// Points as `x,y x,y`.
fn px_points(points: impl IntoIterator<Item = [f64; 2]>) -> String {
    let points = points.into_iter().map(|[x, y]| format!("{},{}", px(x), px(y)));
    points.collect::<Vec<_>>().join(" ")
}

fn segment([x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) -> Markup {
    html! { line x1=(px(x1)) y1=(px(y1)) x2=(px(x2)) y2=(px(y2)) stroke="currentColor" {} }
}

/// A rectangle between two corners.
fn rectangle([x1, y1]: [f64; 2], [x2, y2]: [f64; 2], paint: &Paint) -> Markup {
    let (x, y) = (x1.min(x2), y1.min(y2));
    let (width, height) = ((x2 - x1).abs(), (y2 - y1).abs());
    html! {
        rect x=(px(x)) y=(px(y)) width=(px(width)) height=(px(height)) fill=(paint.fill) fill-opacity=[paint.opacity]
            stroke=[paint.outline] stroke-width=[paint.outline.map(|_| 2)] stroke-dasharray=[paint.dash] {}
    }
}

/// How a rectangle is filled and outlined.
struct Paint {
    fill: String,
    opacity: Option<f64>,
    outline: Option<&'static str>,
    dash: Option<&'static str>,
}

impl Paint {
    fn filled(fill: impl Into<String>) -> Self {
        Self {
            fill: fill.into(),
            opacity: None,
            outline: None,
            dash: None,
        }
    }
}

/// The rectangle within the axes, with the scale of each.
struct Chart {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

impl Chart {
    /// The chart of a drawing of some height; `beside` is the room for the names of the vertical axis.
    fn new(height: f64, beside: f64, x: Scale, y: Scale) -> Self {
        Self {
            left: MARGIN + beside,
            top: MARGIN,
            right: WIDTH - RIGHT,
            bottom: height - MARGIN - BELOW,
            x,
            y,
        }
    }

    fn across(&self, place: f64) -> f64 {
        self.x.between(place, self.left, self.right)
    }

    fn up(&self, place: f64) -> f64 {
        self.y.between(place, self.bottom, self.top)
    }

    fn at(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [self.across(x), self.up(y)]
    }

    /// Lines behind the drawing, at the named values.
    fn grid(&self, has_columns: bool) -> Markup {
        let columns = self.x.ticks.iter().filter(|_| has_columns);
        in_shades(
            &GRID,
            &html! {
                g shape-rendering="crispEdges" {
                    @for (place, _) in columns { (segment([self.across(*place), self.bottom], [self.across(*place), self.top])) }
                    @for (place, _) in &self.y.ticks { (segment([self.left, self.up(*place)], [self.right, self.up(*place)])) }
                }
            },
        )
    }

    /// Axes with the named values and their labels.
    fn axes(&self, x_label: &str, y_label: &str) -> Markup {
        let Self {
            left,
            top,
            right,
            bottom,
            ..
        } = *self;
        let corner = [left, bottom];
        let middle = f64::midpoint(top, bottom);
        in_shades(
            &TEXT,
            &html! {
                g shape-rendering="crispEdges" {
                    (segment(corner, [right, bottom]))
                    (segment(corner, [left, top]))
                    @for (place, _) in &self.x.ticks { (segment([self.across(*place), bottom], [self.across(*place), bottom + TICK])) }
                    @for (place, _) in &self.y.ticks { (segment([left - TICK, self.up(*place)], [left, self.up(*place)])) }
                }
                g fill="currentColor" text-anchor="middle" {
                    @for (place, name) in &self.x.ticks { text x=(px(self.across(*place))) y=(px(bottom + TICK + FONT)) { (name) } }
                    text x=(px(f64::midpoint(left, right))) y=(px(bottom + BELOW - 4.0)) { (x_label) }
                    @if !y_label.is_empty() {
                        text transform=(format!("translate({},{}) rotate(-90)", px(FONT + 2.0), px(middle))) { (y_label) }
                    }
                }
                g fill="currentColor" text-anchor="end" {
                    @for (place, name) in &self.y.ticks {
                        text x=(px(left - TICK - 3.0)) y=(px(self.up(*place))) dy=(BASELINE) { (name) }
                    }
                }
            },
        )
    }
}

/// A line, and what lies around it.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its look.
    pub ink: Ink,
    /// Points; those without a place are passed over.
    pub points: Vec<(f64, f64)>,
    /// At each x the lowest and the highest value of a band around it; none if empty.
    pub band: Vec<(f64, f64, f64)>,
}

impl Line {
    /// Without points.
    pub fn new(ink: Ink) -> Self {
        Self {
            ink,
            points: Vec::new(),
            band: Vec::new(),
        }
    }

    /// What of it lies at `x` and after.
    pub fn after(&self, x: f64) -> Self {
        Self {
            ink: self.ink,
            points: self.points.iter().copied().filter(|point| point.0 >= x).collect(),
            band: self.band.iter().copied().filter(|band| band.0 >= x).collect(),
        }
    }
}

/// Lines over a common x.
pub fn lines(words: Words, x: &Axis, y: &Axis, lines: &[Line]) -> Drawing {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let bands = lines.iter().flat_map(|line| line.band.iter());
    let values = points()
        .map(|point| point.1)
        .chain(bands.flat_map(|band| [band.1, band.2]));
    let chart = Chart::new(HEIGHT, BESIDE, x.scale(points().map(|point| point.0)), y.scale(values));
    let at = |at: f64, value: f64| Some(chart.at([x.place(at)?, y.place(value)?]));
    let band = |line: &Line| {
        let lower = line.band.iter().filter_map(|band| at(band.0, band.1));
        let upper = line.band.iter().rev().filter_map(|band| at(band.0, band.2));
        lower.chain(upper).collect::<Vec<_>>()
    };
    let body = html! {
        (chart.grid(true))
        @for line in lines {
            @let outline = band(line);
            @if outline.len() > 2 {
                (in_ink(&line.ink, &html! { polygon points=(px_points(outline)) fill="currentColor" fill-opacity="0.16" {} }))
            }
        }
        (chart.axes(&x.label, &y.label))
        @for line in lines {
            @let points: Vec<[f64; 2]> = line.points.iter().filter_map(|point| at(point.0, point.1)).collect();
            (in_ink(&line.ink, &html! {
                polyline points=(px_points(points.iter().copied())) fill="none" stroke="currentColor" stroke-width="2"
                    stroke-linejoin="round" stroke-dasharray=[line.ink.dash] {}
                @for point in &points { (marker(line.ink.marker, *point)) }
            }))
        }
    };
    drawing(words, HEIGHT, body)
}

fn drawing(words: Words, height: f64, body: Markup) -> Drawing {
    let Words { title, description } = words;
    Drawing {
        title,
        description,
        height,
        body,
    }
}

fn marker(marker: Marker, [x, y]: [f64; 2]) -> Markup {
    match marker {
        Marker::None => html! {},
        Marker::Circle => html! { circle cx=(px(x)) cy=(px(y)) r="3.3" fill="currentColor" {} },
        Marker::Square => rectangle([x - 3.0, y - 3.0], [x + 3.0, y + 3.0], &Paint::filled("currentColor")),
        Marker::Triangle => {
            let corners = [[x, y - 4.4], [x + 4.2, y + 3.0], [x - 4.2, y + 3.0]];
            html! { polygon points=(px_points(corners)) fill="currentColor" {} }
        }
    }
}

/// A bar for each layer.
pub fn bars(words: Words, y: &Axis, ink: Ink, values: &[f64]) -> Drawing {
    let count = values.len() as f64;
    let x = Scale {
        ends: [-0.5, count - 0.5],
        ticks: whole_ticks(values.len()).map(|index| (index, number(index))).collect(),
    };
    let chart = Chart::new(HEIGHT, BESIDE, x, y.scale(values.iter().copied().chain([0.0])));
    // As lines do, bars of a gated scheme show it by their dashes.
    let paint = Paint {
        fill: "currentColor".into(),
        opacity: ink.dash.map(|_| 0.35),
        outline: Some("currentColor"),
        dash: ink.dash,
    };
    let finite = values.iter().enumerate().filter(|(_, value)| value.is_finite());
    let bars = html! {
        @for (index, value) in finite {
            @let index = index as f64;
            (rectangle(chart.at([index - 0.38, 0.0]), chart.at([index + 0.38, *value]), &paint))
        }
    };
    let zero = segment(chart.at([-0.5, 0.0]), chart.at([count - 0.5, 0.0]));
    let body = html! {
        (chart.grid(false))
        (in_ink(&ink, &bars))
        (chart.axes("layer", &y.label))
        (in_shades(&TEXT, &zero))
    };
    drawing(words, HEIGHT, body)
}

/// Numbers of things that are counted from 0, as many as have room.
fn whole_ticks(count: usize) -> impl Iterator<Item = f64> {
    (0..count).step_by(count.div_ceil(13).max(1)).map(|index| index as f64)
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
pub fn intervals(words: Words, x: &Axis, rows: &[Interval]) -> Drawing {
    let count = rows.len() as f64;
    let height = 70.0 + 34.0 * count;
    let values = rows
        .iter()
        .flat_map(|row| row.ends.into_iter().flatten().chain([row.mean]));
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let names = Scale {
        ends: [count - 0.5, -0.5],
        ticks: rows
            .iter()
            .enumerate()
            .map(|(row, of)| (row as f64, of.name.clone()))
            .collect(),
    };
    let beside = (7.2 * longest as f64 + 14.0).min(210.0);
    let chart = Chart::new(height, beside, x.scale(values.chain([0.0])), names);
    let zero = segment(chart.at([0.0, -0.5]), chart.at([0.0, count - 0.5]));
    let row = |index: usize, row: &Interval| {
        let index = index as f64;
        let [x, y] = chart.at([row.mean, index]);
        // A bar and not a line, whose dashes would look like gaps.
        let bar = row.ends.map(|[low, high]| {
            let corners = [chart.at([low, index - 0.06]), chart.at([high, index + 0.06])];
            rectangle(corners[0], corners[1], &Paint::filled("currentColor"))
        });
        html! { @if let Some(bar) = bar { (bar) } circle cx=(px(x)) cy=(px(y)) r="5" fill="currentColor" {} }
    };
    let body = html! {
        (chart.grid(true))
        (chart.axes(&x.label, ""))
        (in_shades(&TEXT, &html! { g shape-rendering="crispEdges" { (zero) } }))
        @for (index, interval) in rows.iter().enumerate() { (in_ink(&interval.ink, &row(index, interval))) }
    };
    drawing(words, height, body)
}

/// Angular distances `[n − 1][i]` as coloured cells, 0 to `largest`, with the scale beside them.
pub fn heat_map(words: Words, rows: &[Vec<f64>], largest: f64) -> Drawing {
    let height = HEIGHT + 30.0;
    let count = rows.len();
    let named = |first: f64| Scale {
        ends: [0.0, count as f64],
        ticks: whole_ticks(count)
            .map(|index| (index + 0.5, number(index + first)))
            .collect(),
    };
    let mut chart = Chart::new(height, 46.0, named(0.0), named(1.0));
    chart.right = WIDTH - 80.0;
    let share = |value: f64| if largest > 0.0 { value / largest } else { 0.0 };
    let cells = rows.iter().enumerate().flat_map(|(n, row)| {
        let cells = row.iter().enumerate().filter(|(_, value)| value.is_finite());
        cells.map(move |(i, value)| ([i as f64, n as f64], *value))
    });
    let body = html! {
        g shape-rendering="crispEdges" {
            @for ([i, n], value) in cells {
                (rectangle(chart.at([i, n]), chart.at([i + 1.0, n + 1.0]), &Paint::filled(heat(share(value)).to_string())))
            }
        }
        (chart.axes("layer i", "layers on, n"))
        (colour_scale(&chart, largest))
    };
    drawing(words, height, body)
}

/// The colours of a heat map beside it, with the values that they stand for.
fn colour_scale(chart: &Chart, largest: f64) -> Markup {
    const STEPS: usize = 40;
    let (left, right) = (chart.right + 16.0, chart.right + 34.0);
    let ticks = Axis::linear("").from_to(0.0, largest).scale(std::iter::empty()).ticks;
    let scale = Scale {
        ends: [0.0, largest.max(1e-9)],
        ticks: ticks.into_iter().filter(|(tick, _)| *tick <= largest * 1.001).collect(),
    };
    let up = |place: f64| scale.between(place, chart.bottom, chart.top);
    let part = |step: usize| up(step as f64 / STEPS as f64 * scale.ends[1]);
    let named = html! {
        g shape-rendering="crispEdges" {
            @for (place, _) in &scale.ticks { (segment([right, up(*place)], [right + TICK, up(*place)])) }
        }
        g fill="currentColor" {
            @for (place, name) in &scale.ticks { text x=(px(right + TICK + 3.0)) y=(px(up(*place))) dy=(BASELINE) { (name) } }
        }
    };
    html! {
        g shape-rendering="crispEdges" {
            @for step in 0..STEPS {
                @let colour = heat((step as f64 + 0.5) / STEPS as f64);
                (rectangle([left, part(step)], [right, part(step + 1)], &Paint::filled(colour.to_string())))
            }
        }
        (in_shades(&TEXT, &named))
    }
}

/// A piece of line with its marker, for a legend.
pub fn swatch(ink: &Ink) -> Markup {
    let line = html! {
        line x1="1" y1="6" x2="35" y2="6" stroke="currentColor" stroke-width="2" stroke-dasharray=[ink.dash] {}
        (marker(ink.marker, [18.0, 6.0]))
    };
    html! { svg class="plot swatch" viewBox="0 0 36 12" aria-hidden="true" { (in_ink(ink, &line)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        Words {
            title: "a < b".into(),
            description: "d".into(),
        }
    }

    #[test]
    fn what_has_no_place_is_passed_over_and_nothing_is_an_empty_frame() {
        let ink = Ink::of_moment(0);
        let (x, y) = (Axis::linear("x"), Axis::logarithmic("y"));
        let line = Line {
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.0), (3.0, 10.0)],
            ..Line::new(ink)
        };
        let drawn = lines(words(), &x, &y, &[line]).render().into_string();
        let triangles = drawn.matches("<polygon").count();
        assert_eq!(triangles, 2, "two of four points are on a logarithmic axis");
        assert!(drawn.contains("<title>a &lt; b</title>"), "{drawn}");
        assert!(
            drawn.contains(&ink.light().to_string()) && drawn.contains("stroke-dasharray=\"2 2\""),
            "{drawn}"
        );
        let empty = [
            lines(words(), &x, &y, &[]),
            bars(words(), &x, ink, &[f64::NAN]),
            heat_map(words(), &[vec![f64::NAN]], 0.0),
            intervals(words(), &x, &[]),
        ];
        for drawing in empty {
            let drawn = drawing.render().into_string();
            assert!(drawn.starts_with("<svg") && !drawn.contains("NaN"), "{drawn}");
        }
    }

    /// The frame of `lines` is 340 wide and 238 high, from (64, 6); a margin of 4 % is on each side but at 0.
    #[test]
    fn points_stand_where_their_values_are() {
        let line = Line {
            points: vec![(0.0, 0.0), (10.0, 5.0)],
            ..Line::new(Ink::of_moment(2))
        };
        let drawn = lines(words(), &Axis::linear("x"), &Axis::linear("y"), &[line])
            .render()
            .into_string();
        let end = [64.0 + 340.0 / 1.04, 244.0 - 238.0 / 1.04];
        let expected = format!("points=\"64,244 {:.1},{:.1}\"", end[0], end[1]);
        assert!(drawn.contains(&expected), "{expected} in {drawn}");
    }
}
