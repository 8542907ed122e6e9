//! An inspection as tables for people to read.

use std::fmt::{self, Display, Formatter};

use super::ModelInspection;
use crate::metrics::LayersRecord;

/// Width of the names of rows.
const NAME: usize = 6;
/// Width of a column of numbers.
const COLUMN: usize = 11;
/// Width of a column of angles, of which there are many.
const ANGLE: usize = 6;
/// Layers up to which a line has room for the angles of every n.
const ALL_ANGLES: usize = 16;

impl Display for ModelInspection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            scheme,
            step,
            loss,
            tokens,
            ..
        } = self;
        writeln!(
            f,
            "{scheme} after step {step}: validation loss {loss:.6} over {tokens} tokens"
        )?;
        self.write_layers(f)?;
        self.write_angles(f)?;
        self.write_weights(f)?;
        self.write_history(f)
    }
}

impl ModelInspection {
    fn write_layers(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let gated = self.layers.iter().any(|layer| !layer.gates.is_empty());
        let titles: &[&str] = match gated {
            false => &["variance", "influence", "loss change"],
            true => &["variance", "influence", "loss change", "gate", "scale", "running"],
        };
        writeln!(f)?;
        write_row(f, "layer", COLUMN, titles)?;
        let joined = |values: &[f64]| values.iter().map(|value| number(*value)).collect::<Vec<_>>().join("/");
        for (index, layer) in self.layers.iter().enumerate() {
            let mut cells = vec![
                number(layer.variance),
                number(layer.block_influence),
                format!("{:+.4}", layer.loss_change),
            ];
            if gated {
                cells.push(joined(&layer.gates));
                cells.push(joined(&layer.scales));
                cells.push(or_none(layer.running_scale));
            }
            write_row(f, index, COLUMN, cells)?;
        }
        write_row(f, "after", COLUMN, [number(self.last_variance)])
    }

    fn write_angles(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let layers = self.layers.len();
        let is_shown = |n: &usize| layers <= ALL_ANGLES || n.is_power_of_two() || *n == layers;
        let shown: Vec<usize> = (1..=layers).filter(is_shown).collect();
        let rest = match shown.len() < layers {
            true => " (`--json` has every n)",
            false => "",
        };
        writeln!(
            f,
            "\nangular distance between the streams before layer i and n layers on, in units of π{rest}"
        )?;
        write_row(f, "i", ANGLE, shown.iter().map(|n| format!("n = {n}")))?;
        for start in 0..layers {
            let distances = shown
                .iter()
                .filter_map(|n| self.angular_distance.get(n - 1)?.get(start));
            write_row(f, start, ANGLE, distances.map(|distance| format!("{distance:.4}")))?;
        }
        Ok(())
    }

    fn write_weights(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(first) = self.layers.first() else {
            return Ok(());
        };
        writeln!(f, "\nnorms of the weight matrices")?;
        let names = first.weight_norms.keys().map(|projection| projection.field());
        write_row(f, "layer", COLUMN, names.map(String::from))?;
        for (index, layer) in self.layers.iter().enumerate() {
            let norms = layer.weight_norms.values().map(|norm| number(*norm));
            write_row(f, index, COLUMN, norms)?;
        }
        Ok(())
    }

    /// The recorded quantities at the first, the middle and the last record.
    fn write_history(&self, f: &mut Formatter<'_>) -> fmt::Result {
        type Values<'a> = Vec<&'a [Option<f64>]>;
        let Some(last) = self.history.len().checked_sub(1) else {
            return Ok(());
        };
        let mut moments = vec![0, last / 2, last];
        moments.dedup();
        let records: Vec<&LayersRecord> = moments.into_iter().map(|moment| &self.history[moment]).collect();
        let layers = self.layers.len();
        let variance: Values = records.iter().map(|record| record.variance.as_slice()).collect();
        let gradient: Values = records.iter().map(|record| record.grad_norm.as_slice()).collect();
        let gates: Values = records.iter().map(|record| record.gate.as_slice()).collect();
        for (name, values) in [("gradient norm", gradient), ("variance", variance), ("gate", gates)] {
            let rows = values.iter().map(|values| values.len()).max().unwrap_or(0);
            if rows == 0 {
                continue;
            }
            writeln!(f, "\n{name} in training, as recorded")?;
            write_row(f, "step", COLUMN, records.iter().map(|record| record.step))?;
            for row in 0..rows {
                let label = match rows {
                    // Variances stand before each layer and after the last.
                    rows if rows == layers + 1 && row == layers => "after".into(),
                    rows if rows == 2 * layers && name == "gate" => {
                        format!("{} {}", row / 2, ["att", "mlp"][row % 2])
                    }
                    _ => row.to_string(),
                };
                let cells = values.iter().map(|values| or_none(values.get(row).copied().flatten()));
                write_row(f, label, COLUMN, cells)?;
            }
        }
        Ok(())
    }
}

fn write_row(
    f: &mut Formatter<'_>,
    name: impl Display,
    width: usize,
    cells: impl IntoIterator<Item = impl Display>,
) -> fmt::Result {
    write!(f, "{name:>NAME$}")?;
    for cell in cells {
        write!(f, " {cell:>width$}")?;
    }
    writeln!(f)
}

/// Four digits behind the point, or in front of a power of ten where that would show too few or too many.
fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || (1e-3..1e5).contains(&size) => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}

fn or_none(value: Option<f64>) -> String {
    value.map_or("–".into(), number)
}
