//! `gpas selfcheck`: the first thing to run on new hardware.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use crate::failure::Result;
use crate::selfcheck::{Check, Status, check};
use crate::tuning;
use gpas_train::backend::BackendChoice;

/// Check that a backend computes right on this machine, and how fast
///
/// Compares outputs, gradients and short trainings with numbers that are part of the program, and watches memory and pace over 200 steps.
/// Ends with 1 if a check fails.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas selfcheck
  gpas selfcheck --backend cuda:1
  gpas selfcheck --backend vulkan --json")]
pub struct SelfcheckArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the backend is not there.
pub fn run(args: &SelfcheckArgs, backend: BackendChoice) -> Result<ExitCode> {
    let selected = tuning::select(backend)?;
    let mut out = io::stdout();
    if !args.json {
        let device = selected
            .device_name()
            .unwrap_or_else(|| "a device without a name".into());
        writeln!(out, "{selected} on {device}")?;
        writeln!(out, "{:<55} {:>10} {:>10}", "check", "measured", "allowed")?;
    }
    // Each check is printed as it ends, so that a driver that hangs shows at which one.
    let mut shown = Ok(());
    let mut show = |check: &Check| {
        if !args.json && shown.is_ok() {
            shown = writeln!(io::stdout(), "{}", line(check));
        }
    };
    let report = check(selected, &mut show)?;
    shown?;
    let code = if report.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(code);
    }
    if let Some(speed) = &report.speed {
        writeln!(
            out,
            "{} {}, {} × {} tokens a step: {:.0} tokens/s, {:.1} % of the fastest matrix product",
            speed.preset,
            speed.scheme,
            speed.batch,
            speed.seq,
            speed.tokens_per_s,
            speed.matmul_share * 1e2,
        )?;
    }
    if let Some(products) = &report.products {
        writeln!(out, "matrix products by {products}")?;
    }
    if !report.autotune {
        writeln!(out, "built without `autotune`: kernels are not chosen for speed")?;
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    writeln!(
        out,
        "{}: {} passed, {} failed, {} skipped",
        if report.passed { Status::Pass } else { Status::Fail },
        count(Status::Pass),
        count(Status::Fail),
        count(Status::Skipped),
    )?;
    Ok(code)
}

/// A row of the table.
fn line(check: &Check) -> String {
    let figure = |figure: Option<f64>| match figure {
        None => "–".into(),
        Some(0.0) => "0".into(),
        Some(value) if (0.01..1e4).contains(&value.abs()) => format!("{value:.3}"),
        Some(value) => format!("{value:.1e}"),
    };
    let unit = if check.unit == "MB" { " MB" } else { "" };
    let name = format!("{}{unit}", check.name);
    let reason = check
        .reason
        .as_ref()
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    format!(
        "{name:<55} {:>10} {:>10}  {}{reason}",
        figure(check.measured),
        figure(check.allowed),
        check.status,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_figures_and_what_became_of_it() {
        let mut check = Check {
            name: "x".into(),
            status: Status::Fail,
            measured: Some(0.00123),
            allowed: Some(0.5),
            unit: "MB",
            reason: None,
        };
        let row = line(&check);
        assert!(
            row.starts_with("x MB ") && row.ends_with("     1.2e-3      0.500  FAIL"),
            "{row}"
        );
        check.status = Status::Skipped;
        (check.measured, check.allowed, check.reason) = (None, None, Some("no way".into()));
        let row = line(&check);
        assert!(row.ends_with(" –          –  SKIPPED: no way"), "{row}");
    }
}
