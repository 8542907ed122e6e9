//! `cargo xtask examples`: every example of every crate runs, without arguments, and ends well in seconds.
//!
//! They are found through cargo, so that a new one is run without being named here. All are built together, because each other choice of
//! packages compiles Burn again, and each runs in a directory of its own, so that nothing it writes stays behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::peers::root;
use crate::workspace::targets;

/// Run every example of every crate
#[derive(Debug, Args)]
pub struct ExamplesArgs {
    /// Seconds that an example may take
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
}

/// How often a running example is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Builds and runs them.
///
/// # Errors
/// If one does not build, ends with an error, or takes too long.
pub fn run(args: &ExamplesArgs) -> Result<()> {
    let built = build()?;
    let named = targets()?.into_iter().filter(|target| target.kind == "example");
    let missing: BTreeSet<String> = named
        .map(|target| target.name)
        .filter(|name| built.iter().all(|(built, _)| built != name))
        .collect();
    ensure!(
        missing.is_empty(),
        "cargo does not build {missing:?}: they ask for features that are not default ones"
    );
    for (name, program) in &built {
        let begin = Instant::now();
        execute(program, Duration::from_secs(args.seconds)).with_context(|| format!("example `{name}`"))?;
        println!("example `{name}`: {:.1} s", begin.elapsed().as_secs_f64());
    }
    println!("{} examples", built.len());
    Ok(())
}

/// Names and programs of the examples.
fn build() -> Result<Vec<(String, PathBuf)>> {
    let output = Command::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "--workspace",
            "--examples",
            "--message-format",
            "json-render-diagnostics",
        ])
        .current_dir(root()?)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the examples do not build");
    let mut built = Vec::new();
    for line in output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let message: Value = serde_json::from_slice(line)?;
        if message["target"]["kind"][0] != "example" {
            continue;
        }
        if let (Some(name), Some(program)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            built.push((name.to_string(), PathBuf::from(program)));
        }
    }
    built.sort();
    Ok(built)
}

fn execute(program: &Path, limit: Duration) -> Result<()> {
    let place = tempfile::tempdir()?;
    let begin = Instant::now();
    let mut child = Command::new(program)
        .current_dir(place.path())
        .stdin(Stdio::null())
        .spawn()?;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "ended with {status}");
            return Ok(());
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("took more than {} s", limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_and_a_program_that_does_not_end_are_told() {
        let limit = Duration::from_millis(300);
        assert!(execute(Path::new("true"), limit).is_ok());
        let failed = execute(Path::new("false"), limit).unwrap_err().to_string();
        assert_eq!(failed, "ended with exit status: 1");
        let place = tempfile::tempdir().unwrap();
        let endless = place.path().join("endless");
        std::fs::write(&endless, "#!/bin/sh\nexec sleep 60\n").unwrap();
        let mut permissions = std::fs::metadata(&endless).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&endless, permissions).unwrap();
        let late = execute(&endless, limit).unwrap_err().to_string();
        assert_eq!(late, "took more than 0 s");
    }
}
