//! How an arm looks, the same in every figure: a colour and a marker for its normalisation scheme, a dash for its gate.
//!
//! The colours are those of Okabe and Ito, which readers with any kind of colour vision tell apart; related schemes share one and differ in
//! their marker, and dashes and markers tell apart in print what colour does on a screen. A drawing names the colour for a light background
//! and its class, by which the style sheet of a page gives it the colour for a dark one.

use std::fmt::{self, Display};

use gpas_model::{NormScheme, Scheme};

/// Red, green and blue; written as `#0072B0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rgb(pub u8, pub u8, pub u8);

impl Display for Rgb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(red, green, blue) = self;
        write!(f, "#{red:02X}{green:02X}{blue:02X}")
    }
}

/// A colour that differs on a light and on a dark background.
#[derive(Debug, PartialEq, Eq)]
pub struct Shades {
    /// Class of everything that is drawn in it.
    pub class: &'static str,
    /// On a light background.
    pub light: Rgb,
    /// On a dark background.
    pub dark: Rgb,
}

const fn shades(class: &'static str, light: Rgb, dark: Rgb) -> Shades {
    Shades { class, light, dark }
}

/// Text and axes.
pub static TEXT: Shades = shades("text", Rgb(0x22, 0x25, 0x29), Rgb(0xE4, 0xE7, 0xEA));
/// The lines behind a drawing.
pub static GRID: Shades = shades("grid", Rgb(0xDA, 0xDD, 0xE1), Rgb(0x3A, 0x40, 0x47));

static BLUE: Shades = shades("blue", Rgb(0x00, 0x72, 0xB0), Rgb(0x5A, 0xB0, 0xE8));
static VERMILION: Shades = shades("vermilion", Rgb(0xD5, 0x5E, 0x00), Rgb(0xFF, 0x8A, 0x3D));
static GREEN: Shades = shades("green", Rgb(0x00, 0x8A, 0x68), Rgb(0x2E, 0xC9, 0xA0));
static ORANGE: Shades = shades("orange", Rgb(0xC7, 0x86, 0x00), Rgb(0xF2, 0xB5, 0x33));
static PURPLE: Shades = shades("purple", Rgb(0xB8, 0x5F, 0x90), Rgb(0xE0, 0x93, 0xBE));
static SKY: Shades = shades("sky", Rgb(0x3C, 0x9C, 0xD0), Rgb(0x8F, 0xD0, 0xF5));
static OLIVE: Shades = shades("olive", Rgb(0x8A, 0x7D, 0x00), Rgb(0xF0, 0xE4, 0x42));
static GREY: Shades = shades("grey", Rgb(0x66, 0x66, 0x60), Rgb(0xB5, 0xB5, 0xB0));

/// Every colour that a style sheet changes in the dark.
static CHANGED_IN_THE_DARK: [&Shades; 10] = [
    &TEXT, &GRID, &BLUE, &VERMILION, &GREEN, &ORANGE, &PURPLE, &SKY, &OLIVE, &GREY,
];

/// The rules by which a style sheet gives drawings their colours for a dark background.
pub fn dark_rules() -> String {
    let rule = |shades: &&Shades| format!(".plot .{}{{color:{}}}", shades.class, shades.dark);
    CHANGED_IN_THE_DARK.iter().map(rule).collect()
}

/// Lengths of stroke and gap; none is a solid line. Even places are of schemes without a gate.
const DASHES: [Option<&str>; 8] = [
    None,
    Some("7 4"),
    Some("12 3 2 3"),
    Some("4 3"),
    Some("2 2"),
    Some("9 3 2 3 2 3"),
    Some("14 4"),
    Some("1 3"),
];

/// What stands at the points of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// Nothing.
    None,
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle.
    Triangle,
}

/// What a line is drawn in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colour {
    /// A colour with a shade for each background.
    Shades(&'static Shades),
    /// The same on every background.
    Fixed(Rgb),
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ink {
    colour: Colour,
    /// Lengths of its strokes and gaps, as SVG writes them; none is a solid line.
    pub dash: Option<&'static str>,
    /// What stands at its points.
    pub marker: Marker,
}

/// Colours and markers by the names of schemes.
static LOOKS: [(&str, &Shades, Marker); 14] = [
    ("pre", &BLUE, Marker::Circle),
    ("scale_pre", &BLUE, Marker::Square),
    ("sandwich", &VERMILION, Marker::Circle),
    ("peri", &VERMILION, Marker::Square),
    ("lns", &GREEN, Marker::Circle),
    ("lns_fixed", &GREEN, Marker::Square),
    ("post", &ORANGE, Marker::Circle),
    ("post_pre", &SKY, Marker::Circle),
    ("scale_post_pre", &SKY, Marker::Square),
    ("deeppost", &PURPLE, Marker::Circle),
    ("keel", &PURPLE, Marker::Square),
    ("prores", &OLIVE, Marker::Circle),
    ("layerscale", &GREY, Marker::Circle),
    ("rezero", &GREY, Marker::Square),
];

/// Colour and marker of a scheme. One that has been given no look gets a triangle in a colour that follows from its place among the schemes.
fn look(norm: NormScheme) -> (&'static Shades, Marker) {
    if let Some((_, shades, marker)) = LOOKS.into_iter().find(|(name, ..)| *name == norm.name()) {
        return (shades, marker);
    }
    let colours = [&BLUE, &VERMILION, &GREEN, &ORANGE, &SKY, &PURPLE, &OLIVE, &GREY];
    let place = NormScheme::all().position(|known| known == norm).unwrap_or(0);
    (colours[place % colours.len()], Marker::Triangle)
}

impl Ink {
    /// The look of a scheme; `variant` is 0, or the number of the arm among those of the scheme in which other keys are varied.
    pub fn of(scheme: Scheme, variant: usize) -> Self {
        let (shades, marker) = look(scheme.norm);
        let dash = DASHES[(2 * variant + usize::from(scheme.gpas)) % DASHES.len()];
        let colour = Colour::Shades(shades);
        Self { colour, dash, marker }
    }

    /// The look of one of three moments of a run, the last one solid.
    pub fn of_moment(index: usize) -> Self {
        let (shades, dash, marker) = match index {
            0 => (&SKY, DASHES[4], Marker::Triangle),
            1 => (&ORANGE, DASHES[1], Marker::Square),
            _ => (&BLUE, None, Marker::Circle),
        };
        let colour = Colour::Shades(shades);
        Self { colour, dash, marker }
    }

    /// The look of one of many things in an order, the first at 0 and the last at 1.
    pub fn of_place(fraction: f64) -> Self {
        Self {
            colour: Colour::Fixed(ramp(fraction)),
            dash: None,
            marker: Marker::None,
        }
    }

    /// Without markers, for lines of many points.
    pub fn without_marker(self) -> Self {
        Self {
            marker: Marker::None,
            ..self
        }
    }

    /// The colour on a light background.
    pub fn light(&self) -> Rgb {
        match self.colour {
            Colour::Shades(shades) => shades.light,
            Colour::Fixed(colour) => colour,
        }
    }

    /// The class by which a style sheet finds what is drawn in this ink; none if the colour is the same on every background.
    pub fn class(&self) -> Option<&'static str> {
        match self.colour {
            Colour::Shades(shades) => Some(shades.class),
            Colour::Fixed(_) => None,
        }
    }
}

/// A colour between the first and the last, in order, of things of which there are many: blue to orange, both legible on light and dark.
fn ramp(fraction: f64) -> Rgb {
    let stops = [Rgb(0x2F, 0x7F, 0xC4), Rgb(0xA0, 0x8A, 0x8A), Rgb(0xE0, 0x8A, 0x10)];
    between(&stops, fraction)
}

/// The colour of a value in a heat map, from 0 to 1: viridis, whose lightness rises evenly.
pub fn heat(fraction: f64) -> Rgb {
    let stops = [
        Rgb(0x44, 0x01, 0x54),
        Rgb(0x3B, 0x52, 0x8B),
        Rgb(0x21, 0x91, 0x8C),
        Rgb(0x5E, 0xC9, 0x62),
        Rgb(0xFD, 0xE7, 0x25),
    ];
    between(&stops, fraction)
}

fn between(stops: &[Rgb], fraction: f64) -> Rgb {
    let last = stops.len() - 1;
    let place = fraction.clamp(0.0, 1.0) * last as f64;
    let index = (place as usize).min(last - 1);
    let part = place - index as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    let (a, b) = (stops[index], stops[index + 1]);
    Rgb(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_scheme_has_a_look_of_its_own_and_its_gate_a_dash() {
        let mut looks = BTreeSet::new();
        for scheme in Scheme::all() {
            let ink = Ink::of(scheme, 0);
            assert!(
                looks.insert(format!("{}{:?}{:?}", ink.light(), ink.dash, ink.marker)),
                "{scheme}"
            );
            assert_eq!(ink.dash.is_none(), !scheme.gpas);
            let ungated = Ink::of(Scheme { gpas: false, ..scheme }, 0);
            assert_eq!((ink.colour, ink.marker), (ungated.colour, ungated.marker));
        }
        let varied: BTreeSet<_> = (0..4).map(|variant| Ink::of(Scheme::default(), variant).dash).collect();
        assert_eq!(varied.len(), 4);
    }

    /// Contrast of at least 3 to 1 with the page, as WCAG asks of graphics.
    #[test]
    fn every_colour_stands_out_on_its_background() {
        let linear = |value: u8| {
            let value = f64::from(value) / 255.0;
            if value <= 0.040_45 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        };
        let luminance = |Rgb(r, g, b): Rgb| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        let contrast = |a: f64, b: f64| (a.max(b) + 0.05) / (a.min(b) + 0.05);
        let dark = luminance(Rgb(0x15, 0x18, 0x1C));
        for scheme in Scheme::all() {
            let Colour::Shades(shades) = Ink::of(scheme, 0).colour else {
                panic!("{scheme} has one colour for every background")
            };
            assert!(contrast(luminance(shades.light), 1.0) >= 3.0, "{scheme} on white");
            assert!(contrast(luminance(shades.dark), dark) >= 3.0, "{scheme} on black");
            assert!(CHANGED_IN_THE_DARK.contains(&shades), "{scheme}");
        }
    }

    #[test]
    fn ramps_go_from_end_to_end() {
        assert_eq!(heat(0.0), Rgb(0x44, 0x01, 0x54));
        assert_eq!(heat(0.5), Rgb(0x21, 0x91, 0x8C));
        assert_eq!(heat(2.0), Rgb(0xFD, 0xE7, 0x25));
        assert_eq!(ramp(1.0), Rgb(0xE0, 0x8A, 0x10));
        assert_eq!(ramp(1.0).to_string(), "#E08A10");
    }
}
