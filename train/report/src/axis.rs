//! Axes: which values a drawing shows, where each has its place, which are named, and how a number is written in few characters.

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it measures, with the unit.
    pub label: String,
    /// Whether it is logarithmic; values of 0 and less have no place on one.
    is_logarithmic: bool,
    /// Values that it shows whatever a drawing has, so that several drawings can share them.
    shown: Vec<f64>,
}

impl Axis {
    /// A linear one.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.into(),
            is_logarithmic: false,
            shown: Vec::new(),
        }
    }

    /// A logarithmic one.
    pub fn logarithmic(label: &str) -> Self {
        Self {
            is_logarithmic: true,
            ..Self::linear(label)
        }
    }

    /// Reaches at least from one value to another.
    pub fn from_to(self, low: f64, high: f64) -> Self {
        Self {
            shown: vec![low, high],
            ..self
        }
    }

    /// Where a value stands; none if it has no place on the axis.
    pub fn place(&self, value: f64) -> Option<f64> {
        let place = if self.is_logarithmic { value.log10() } else { value };
        place.is_finite().then_some(place)
    }

    /// The scale on which some values are shown.
    pub fn scale(&self, values: impl Iterator<Item = f64>) -> Scale {
        let places = self.shown.iter().copied().chain(values);
        let places = places.filter_map(|value| self.place(value));
        let (low, high) = places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| {
            (low.min(place), high.max(place))
        });
        let (low, high) = match high - low {
            width if width > 0.0 => (low, high),
            _ if low.is_finite() => (low - 0.5, high + 0.5),
            _ => (0.0, 1.0),
        };
        let margin = 0.04 * (high - low);
        let starts_at_zero = !self.is_logarithmic && low == 0.0;
        let ends = [if starts_at_zero { 0.0 } else { low - margin }, high + margin];
        let ticks = if self.is_logarithmic {
            let name = |place: f64| (place, number(10f64.powf(place)));
            log_ticks(ends).into_iter().map(name).collect()
        } else {
            linear_ticks(ends)
                .into_iter()
                .map(|place| (place, number(place)))
                .collect()
        };
        Scale { ends, ticks }
    }
}

/// From one end to the other, with the places that are named. The first end may be the larger one.
#[derive(Clone, Debug)]
pub struct Scale {
    /// The places at its ends.
    pub ends: [f64; 2],
    /// Places that are named, with their names.
    pub ticks: Vec<(f64, String)>,
}

impl Scale {
    /// Between two lengths, how far a place is from the first end.
    pub fn between(&self, place: f64, first: f64, last: f64) -> f64 {
        let [from, to] = self.ends;
        first + (place - from) / (to - from) * (last - first)
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
}
