//! The screen of a terminal as SVG.
//!
//! Lines, blocks and braille dots, of which dashboards are made, are drawn as shapes, so that they join whatever font a reader has; letters
//! stay text, each run of one colour stretched to the cells that it takes. Lengths are in pixels.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use maud::{Markup, html};
use vt100::{Cell, Color, Screen};

/// Width and height of a cell.
const CELL: [f64; 2] = [8.4, 18.0];
/// Height of the letters, and how far below the top of a cell they stand.
const FONT: f64 = 14.0;
const BASELINE: f64 = 13.4;
/// Room around the screen, and the bar above it.
const MARGIN: f64 = 14.0;
const BAR: f64 = 34.0;

const FAMILY: &str = "ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', 'Liberation Mono', monospace";
const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d5d9e0";
const FRAME: &str = "#6b7280";
/// The sixteen colours of a terminal.
const PALETTE: [&str; 16] = [
    "#3a3f4b", "#f2777a", "#8fcf7e", "#f5c26b", "#6cb2f7", "#d59bf6", "#63cfd6", "#d5d9e0", "#6b7280", "#ff8f8f",
    "#a9e39a", "#ffd68a", "#8ec5ff", "#e3b5ff", "#86e3e8", "#ffffff",
];

/// A screen with a bar above it that has a title.
pub(crate) fn drawing(screen: &Screen, title: &str) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let [width, height] = [
        2.0 * MARGIN + f64::from(columns) * CELL[0],
        BAR + MARGIN + f64::from(rows) * CELL[1],
    ];
    let mut shapes = Shapes::default();
    let mut texts = Vec::new();
    for row in 0..rows {
        let cells: Vec<&Cell> = (0..columns).filter_map(|column| screen.cell(row, column)).collect();
        for (column, cell) in cells.iter().enumerate() {
            shapes.add([column as f64 * CELL[0], f64::from(row) * CELL[1]], cell);
        }
        texts.extend(Text::of_row(row, &cells));
    }
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {width:.0} {height:.0}")) width=(format!("{width:.0}")) role="img" {
            title { "Terminal: " (title) }
            rect width="100%" height="100%" rx="9" fill=(BACKGROUND) {}
            @for (index, colour) in ["#f2777a", "#f5c26b", "#8fcf7e"].iter().enumerate() {
                circle cx=(20 + 20 * index) cy="18" r="6" fill=(colour) {}
            }
            g font-family=(FAMILY) font-size=(FONT) {
                text x="50%" y="22" text-anchor="middle" fill=(PALETTE[8]) { (title) }
                g transform=(format!("translate({MARGIN} {BAR})")) { (shapes.markup()) @for text in &texts { (text.markup()) } }
            }
        }
    }
    .into_string()
        + "\n"
}

/// Colours of what a cell shows and of what is behind it; none is the background of the screen.
fn colours(cell: &Cell) -> (String, Option<String>) {
    let named = |colour: Color| match colour {
        Color::Default => None,
        Color::Idx(index) => Some(indexed(index)),
        Color::Rgb(red, green, blue) => Some(format!("#{red:02x}{green:02x}{blue:02x}")),
    };
    let (front, behind) = (named(cell.fgcolor()), named(cell.bgcolor()));
    if cell.inverse() {
        let front = front.unwrap_or_else(|| FOREGROUND.into());
        return (behind.unwrap_or_else(|| BACKGROUND.into()), Some(front));
    }
    let default = if cell.dim() { PALETTE[8] } else { FOREGROUND };
    (front.unwrap_or_else(|| default.into()), behind)
}

/// A colour of the 256: the palette, a cube of six levels each of red, green and blue, and a ramp of greys.
fn indexed(index: u8) -> String {
    match index {
        0..16 => PALETTE[usize::from(index)].into(),
        16..232 => {
            let level = |part: u8| if part == 0 { 0 } else { 55 + 40 * part };
            let cube = index - 16;
            let [red, green, blue] = [cube / 36, cube / 6 % 6, cube % 6].map(level);
            format!("#{red:02x}{green:02x}{blue:02x}")
        }
        232.. => {
            let grey = 8 + 10 * (index - 232);
            format!("#{grey:02x}{grey:02x}{grey:02x}")
        }
    }
}

/// Which way the lines of a character go from the middle of its cell: up, right, down, left.
fn arms(character: char) -> Option<[bool; 4]> {
    let arms = match character {
        '─' | '━' => "rl",
        '│' | '┃' => "ud",
        '┌' | '╭' => "rd",
        '┐' | '╮' => "ld",
        '└' | '╰' => "ur",
        '┘' | '╯' => "ul",
        '├' => "urd",
        '┤' => "uld",
        '┬' => "rld",
        '┴' => "url",
        '┼' => "urld",
        _ => return None,
    };
    Some(['u', 'r', 'd', 'l'].map(|arm| arms.contains(arm)))
}

/// The part of its cell that a block fills: left, top, width, height, as shares.
fn block(character: char) -> Option<[f64; 4]> {
    let code = u32::from(character);
    let eighths = |count: u32| f64::from(count) / 8.0;
    match code {
        // Lower eighths, the whole cell the last.
        0x2581..=0x2588 => Some([0.0, 1.0 - eighths(code - 0x2580), 1.0, eighths(code - 0x2580)]),
        // Left seven eighths to one.
        0x2589..=0x258f => Some([0.0, 0.0, eighths(0x2590 - code), 1.0]),
        0x2580 => Some([0.0, 0.0, 1.0, 0.5]),
        0x2590 => Some([0.5, 0.0, 0.5, 1.0]),
        _ => None,
    }
}

/// Column and row of the dots of a braille character, of two columns and four rows.
fn dots(character: char) -> Option<impl Iterator<Item = [u8; 2]>> {
    const PLACES: [[u8; 2]; 8] = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 3], [1, 3]];
    let bits = u32::from(character).checked_sub(0x2800).filter(|bits| *bits < 256)?;
    Some(
        (0..8)
            .filter(move |bit| bits >> bit & 1 == 1)
            .map(|bit: usize| PLACES[bit]),
    )
}

/// The character of a cell, if it has exactly one.
fn character(cell: &Cell) -> Option<char> {
    let mut characters = cell.contents().chars();
    characters.next().filter(|_| characters.next().is_none())
}

/// Whether a cell is drawn as a shape.
fn is_shape(cell: &Cell) -> bool {
    character(cell)
        .is_some_and(|character| arms(character).is_some() || block(character).is_some() || dots(character).is_some())
}

/// Paths by their colour.
#[derive(Default)]
struct Shapes {
    filled: BTreeMap<String, String>,
    lines: BTreeMap<String, String>,
    dots: BTreeMap<String, String>,
}

impl Shapes {
    /// What a cell has of shapes, at its upper left corner.
    fn add(&mut self, [x, y]: [f64; 2], cell: &Cell) {
        let (front, behind) = colours(cell);
        if let Some(behind) = behind {
            rectangle(self.filled.entry(behind).or_default(), [x, y], [0.0, 0.0, 1.0, 1.0]);
        }
        let Some(character) = character(cell) else { return };
        if let Some(part) = block(character) {
            rectangle(self.filled.entry(front).or_default(), [x, y], part);
        } else if let Some(arms) = arms(character) {
            // Frames step back behind what they frame.
            let front = if front == FOREGROUND { FRAME.into() } else { front };
            let path = self.lines.entry(front).or_default();
            let [width, height] = CELL;
            let ends = [
                [0.0, -height / 2.0],
                [width / 2.0, 0.0],
                [0.0, height / 2.0],
                [-width / 2.0, 0.0],
            ];
            for [dx, dy] in arms.into_iter().zip(ends).filter_map(|(has, end)| has.then_some(end)) {
                // Writing to a String cannot fail.
                let _ = write!(path, "M{:.1} {:.1}l{dx:.1} {dy:.1}", x + width / 2.0, y + height / 2.0);
            }
        } else if let Some(dots) = dots(character) {
            let path = self.dots.entry(front).or_default();
            for [column, row] in dots {
                let at = [
                    x + CELL[0] * (f64::from(column) + 0.5) / 2.0,
                    y + CELL[1] * (f64::from(row) + 0.5) / 4.0,
                ];
                let _ = write!(path, "M{:.1} {:.1}h0", at[0], at[1]);
            }
        }
    }

    fn markup(&self) -> Markup {
        html! {
            @for (colour, path) in &self.filled { path fill=(colour) shape-rendering="crispEdges" d=(path) {} }
            @for (colour, path) in &self.lines { path stroke=(colour) fill="none" stroke-width="1.2" stroke-linecap="square" d=(path) {} }
            @for (colour, path) in &self.dots { path stroke=(colour) fill="none" stroke-width="2.6" stroke-linecap="round" d=(path) {} }
        }
    }
}

fn rectangle(path: &mut String, [x, y]: [f64; 2], [left, top, width, height]: [f64; 4]) {
    let (x, y) = (x + left * CELL[0], y + top * CELL[1]);
    let (width, height) = (width * CELL[0], height * CELL[1]);
    let _ = write!(path, "M{x:.1} {y:.1}h{width:.1}v{height:.1}h-{width:.1}z");
}

/// Letters of one colour beside each other.
struct Text {
    row: u16,
    column: usize,
    cells: usize,
    text: String,
    colour: String,
    is_bold: bool,
}

impl Text {
    /// The words of a row; those of one look are together where a single space parts them.
    fn of_row(row: u16, cells: &[&Cell]) -> Vec<Self> {
        let mut texts: Vec<Self> = Vec::new();
        for (column, cell) in cells.iter().enumerate() {
            let is_blank = cell.contents().trim().is_empty();
            if is_blank || is_shape(cell) || cell.is_wide_continuation() {
                continue;
            }
            let (colour, _) = colours(cell);
            let cells = if cell.is_wide() { 2 } else { 1 };
            let before = texts
                .last_mut()
                .filter(|text| text.colour == colour && text.is_bold == cell.bold());
            let gap = before.as_ref().map(|text| column - (text.column + text.cells));
            match (before, gap) {
                (Some(text), Some(gap @ 0..=1)) => {
                    text.text.push_str(&" ".repeat(gap));
                    text.text.push_str(cell.contents());
                    text.cells += gap + cells;
                }
                _ => texts.push(Self {
                    row,
                    column,
                    cells,
                    text: cell.contents().into(),
                    colour,
                    is_bold: cell.bold(),
                }),
            }
        }
        texts
    }

    fn markup(&self) -> Markup {
        let (x, y) = (self.column as f64 * CELL[0], f64::from(self.row) * CELL[1] + BASELINE);
        let width = self.cells as f64 * CELL[0];
        html! {
            text x=(format!("{x:.1}")) y=(format!("{y:.1}")) fill=(self.colour) textLength=(format!("{width:.1}"))
                lengthAdjust="spacingAndGlyphs" font-weight=[self.is_bold.then_some("bold")] { (self.text) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(written: &str) -> String {
        let mut terminal = vt100::Parser::new(2.try_into().unwrap(), 20.try_into().unwrap(), 0);
        terminal.process(written.as_bytes());
        drawing(terminal.screen(), "a < b")
    }

    #[test]
    fn letters_are_text_in_their_colours() {
        let drawn = drawn("\x1b[31mone two\x1b[0m  \x1b[1mthree\x1b[0m\x1b[7m<\x1b[0m");
        for expected in [
            ">one two</text>".to_string(),
            format!("fill=\"{}\" textLength=\"58.8\"", PALETTE[1]),
            "font-weight=\"bold\">three<".into(),
            format!("fill=\"{BACKGROUND}\" textLength=\"8.4\""),
            format!("path fill=\"{FOREGROUND}\""),
            "a &lt; b".into(),
        ] {
            assert!(drawn.contains(&expected), "{expected} in {drawn}");
        }
    }

    #[test]
    fn frames_blocks_and_dots_are_shapes() {
        let drawn = drawn("┌─█⠁");
        // Right and down from the middle of the first cell, to both sides from that of the second.
        assert!(
            drawn.contains("d=\"M4.2 9.0l4.2 0.0M4.2 9.0l0.0 9.0M12.6 9.0l4.2 0.0M12.6 9.0l-4.2 0.0\""),
            "{drawn}"
        );
        assert!(drawn.contains("d=\"M16.8 0.0h8.4v18.0h-8.4z\""), "{drawn}");
        assert!(
            drawn.contains("d=\"M27.3 2.2h0\"") || drawn.contains("d=\"M27.3 2.3h0\""),
            "{drawn}"
        );
        assert!(!drawn.contains("┌") && !drawn.contains("⠁"));
    }

    #[test]
    fn colours_of_the_cube_and_the_ramp() {
        assert_eq!(indexed(16), "#000000");
        assert_eq!(indexed(231), "#ffffff");
        assert_eq!(indexed(196), "#ff0000");
        assert_eq!(indexed(255), "#eeeeee");
    }
}
