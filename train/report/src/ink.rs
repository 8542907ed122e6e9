//! How an arm looks, the same in every figure: a colour and a marker for its normalisation scheme, a dash for its gate.
//!
//! The colours are those of Okabe and Ito, which readers with any kind of colour vision tell apart; related schemes share one and differ in
//! their marker, and dashes and markers tell apart in print what colour does on a screen. Drawings carry the colour for a light background,
//! with the number of the dash in the lowest bits of its blue; the style sheet of a page finds it by that number, and changes it in the dark.

use std::fmt::Write as _;

use gpas_model::{NormScheme, Scheme};
use plotters::style::RGBColor;

/// Bits of a colour's blue that hold the dash.
const DASH_BITS: u8 = 0b111;

/// A colour on a light and on a dark background.
type Shades = (RGBColor, RGBColor);

const BLUE: Shades = (RGBColor(0x00, 0x72, 0xB0), RGBColor(0x5A, 0xB0, 0xE8));
const VERMILION: Shades = (RGBColor(0xD5, 0x5E, 0x00), RGBColor(0xFF, 0x8A, 0x3D));
const GREEN: Shades = (RGBColor(0x00, 0x8A, 0x68), RGBColor(0x2E, 0xC9, 0xA0));
const ORANGE: Shades = (RGBColor(0xC7, 0x86, 0x00), RGBColor(0xF2, 0xB5, 0x33));
const PURPLE: Shades = (RGBColor(0xB8, 0x5F, 0x90), RGBColor(0xE0, 0x93, 0xBE));
const SKY: Shades = (RGBColor(0x3C, 0x9C, 0xD0), RGBColor(0x8F, 0xD0, 0xF5));
const OLIVE: Shades = (RGBColor(0x8A, 0x7D, 0x00), RGBColor(0xF0, 0xE4, 0x42));
const GREY: Shades = (RGBColor(0x66, 0x66, 0x60), RGBColor(0xB5, 0xB5, 0xB0));

/// Lengths of stroke and gap, by the number of the dash; even ones are of schemes without a gate.
const DASHES: [&str; 8] = ["none", "7 4", "12 3 2 3", "4 3", "2 2", "9 3 2 3 2 3", "14 4", "1 3"];

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

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ink {
    shades: Shades,
    dash: u8,
    /// What stands at its points.
    pub marker: Marker,
}

/// Colours and markers by the names of schemes.
const LOOKS: [(&str, Shades, Marker); 14] = [
    ("pre", BLUE, Marker::Circle),
    ("scale_pre", BLUE, Marker::Square),
    ("sandwich", VERMILION, Marker::Circle),
    ("peri", VERMILION, Marker::Square),
    ("lns", GREEN, Marker::Circle),
    ("lns_fixed", GREEN, Marker::Square),
    ("post", ORANGE, Marker::Circle),
    ("post_pre", SKY, Marker::Circle),
    ("scale_post_pre", SKY, Marker::Square),
    ("deeppost", PURPLE, Marker::Circle),
    ("keel", PURPLE, Marker::Square),
    ("prores", OLIVE, Marker::Circle),
    ("layerscale", GREY, Marker::Circle),
    ("rezero", GREY, Marker::Square),
];

/// Colour and marker of a scheme. One that has been given no look gets a triangle in a colour that follows from its place among the schemes.
fn look(norm: NormScheme) -> (Shades, Marker) {
    if let Some((_, shades, marker)) = LOOKS.into_iter().find(|(name, ..)| *name == norm.name()) {
        return (shades, marker);
    }
    let colours = [BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, OLIVE, GREY];
    let place = NormScheme::all().position(|known| known == norm).unwrap_or(0);
    (colours[place % colours.len()], Marker::Triangle)
}

impl Ink {
    /// Of a scheme; `variant` is 0, or the number of the arm among those of the scheme in which other keys are varied.
    pub fn of(scheme: Scheme, variant: usize) -> Self {
        let (shades, marker) = look(scheme.norm);
        let dash = (2 * variant + usize::from(scheme.gpas)) % DASHES.len();
        Self {
            shades,
            dash: dash as u8,
            marker,
        }
    }

    /// Of one of three moments of a run, the last one solid.
    pub fn of_moment(index: usize) -> Self {
        let (shades, dash, marker) = match index {
            0 => (SKY, 4, Marker::Triangle),
            1 => (ORANGE, 1, Marker::Square),
            _ => (BLUE, 0, Marker::Circle),
        };
        Self { shades, dash, marker }
    }

    /// Without markers, for lines of many points.
    pub fn plain(self) -> Self {
        Self {
            marker: Marker::None,
            ..self
        }
    }

    /// Whether its lines are dashed.
    pub fn is_dashed(self) -> bool {
        self.dash > 0
    }

    /// The colour in a drawing.
    pub fn colour(self) -> RGBColor {
        let RGBColor(red, green, blue) = self.shades.0;
        RGBColor(red, green, (blue & !DASH_BITS) | self.dash)
    }

    /// The rules by which a style sheet finds everything of this ink, on a light and on a dark background.
    pub fn rules(self) -> (String, String) {
        let name = hex(self.colour());
        let (mut light, mut dark) = (String::new(), String::new());
        // Writing to a String cannot fail.
        let _ = write!(
            light,
            ".plot :is(polyline,line,rect)[stroke=\"{name}\"]{{stroke-dasharray:{}}}",
            DASHES[usize::from(self.dash)]
        );
        for attribute in ["stroke", "fill"] {
            let _ = write!(
                dark,
                ".plot [{attribute}=\"{name}\"]{{{attribute}:{}}}",
                hex(self.shades.1)
            );
        }
        (light, dark)
    }
}

/// A colour as drawings and style sheets write it.
pub fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// A colour between the first and the last, in order, of things of which there are many: blue to orange, both legible on light and dark.
pub fn ramp(fraction: f64) -> RGBColor {
    between(
        &[
            RGBColor(0x2F, 0x7F, 0xC4),
            RGBColor(0xA0, 0x8A, 0x8A),
            RGBColor(0xE0, 0x8A, 0x10),
        ],
        fraction,
    )
}

/// The colour of a value in a heat map, from 0 to 1: viridis, whose lightness rises evenly.
pub fn heat(fraction: f64) -> RGBColor {
    let stops = [
        RGBColor(0x44, 0x01, 0x54),
        RGBColor(0x3B, 0x52, 0x8B),
        RGBColor(0x21, 0x91, 0x8C),
        RGBColor(0x5E, 0xC9, 0x62),
        RGBColor(0xFD, 0xE7, 0x25),
    ];
    between(&stops, fraction)
}

fn between(stops: &[RGBColor], fraction: f64) -> RGBColor {
    let last = stops.len() - 1;
    let place = fraction.clamp(0.0, 1.0) * last as f64;
    let index = (place as usize).min(last - 1);
    let part = place - index as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    let (a, b) = (stops[index], stops[index + 1]);
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
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
                looks.insert(format!("{}{:?}", hex(ink.colour()), ink.marker)),
                "{scheme}"
            );
            assert_eq!(DASHES[usize::from(ink.dash)] == "none", !scheme.gpas);
            let ungated = Ink::of(Scheme { gpas: false, ..scheme }, 0);
            assert_eq!((ink.shades, ink.marker), (ungated.shades, ungated.marker));
        }
        let varied: BTreeSet<_> = (0..4)
            .map(|variant| hex(Ink::of(Scheme::default(), variant).colour()))
            .collect();
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
        let light = |RGBColor(r, g, b): RGBColor| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        let contrast = |a: f64, b: f64| (a.max(b) + 0.05) / (a.min(b) + 0.05);
        let dark = light(RGBColor(0x15, 0x18, 0x1C));
        for scheme in Scheme::all() {
            let ink = Ink::of(scheme, 0);
            assert!(contrast(light(ink.colour()), 1.0) >= 3.0, "{scheme} on white");
            assert!(contrast(light(ink.shades.1), dark) >= 3.0, "{scheme} on black");
        }
    }

    #[test]
    fn ramps_go_from_end_to_end() {
        assert_eq!(heat(0.0), RGBColor(0x44, 0x01, 0x54));
        assert_eq!(heat(0.5), RGBColor(0x21, 0x91, 0x8C));
        assert_eq!(heat(2.0), RGBColor(0xFD, 0xE7, 0x25));
        assert_eq!(ramp(1.0), RGBColor(0xE0, 0x8A, 0x10));
    }
}
