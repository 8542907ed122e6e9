//! `cargo xtask ci`: everything that has to pass, the cheapest first; the first failure stops.
//!
//! Each step is a line for the shell, so what is printed is what runs, and what repeats it. All of them but one build in the release profile and
//! as much as possible of them the whole workspace, because each other choice of profile or packages compiles the dependencies again.
//!
//! A test that lacks what it needs (a processor's units, a driver, a backend) passes, and prints a line that starts with `skipped: `. Those
//! lines are listed at the end, so that nobody takes for tested what was not.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

/// The manifest in which every backend is a feature that brings a crate of Burn's.
const TRAIN_MANIFEST: &str = include_str!("../../train/Cargo.toml");

/// Check formatting, the order of the house, lints, documentation, every backend's feature; run the examples and all tests
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask ci
  cargo xtask ci --quick")]
pub struct CiArgs {
    /// Formatting, lints and tests only
    #[arg(long)]
    quick: bool,
}

/// Runs every step.
///
/// # Errors
/// If a step fails, with its name and the line that repeats it.
pub fn run(args: &CiArgs) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies at the top of the workspace")?;
    let readme = root.join("README.md");
    let readme = std::fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let tests =
        test_command(&readme).context("README.md has no code block with a line that starts with `cargo test`")?;
    for skipped in run_steps(root, &steps(args.quick, tests, &backends(TRAIN_MANIFEST)?))? {
        println!("{skipped}");
    }
    Ok(())
}

/// Runs steps and returns the tests that were skipped.
fn run_steps(root: &Path, steps: &[Step]) -> Result<Vec<Skipped>> {
    let mut times = Vec::new();
    let mut skipped = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        println!("\n==> {}/{} {}: {}", index + 1, steps.len(), step.name, step.line);
        let begin = Instant::now();
        let status = step.run(root, &mut std::io::stdout(), &mut skipped)?;
        let time = begin.elapsed();
        println!("<== {}: {}", step.name, Seconds(time));
        times.push((step.name.as_str(), time));
        if !status.success() {
            print_table(&times);
            bail!("step `{}` failed ({status}); to repeat it: {}", step.name, step.line);
        }
    }
    print_table(&times);
    Ok(skipped)
}

/// A check: what it is called, and the line for the shell that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    name: String,
    line: String,
}

impl Step {
    fn new(name: impl Into<String>, line: impl Into<String>) -> Self {
        let (name, line) = (name.into(), line.into());
        Self { name, line }
    }

    /// Runs the step and passes on to `out` what it prints, line by line, while looking for skipped tests in it.
    fn run(&self, root: &Path, out: &mut impl Write, skipped: &mut Vec<Skipped>) -> Result<ExitStatus> {
        let mut process = Command::new("sh")
            .args(["-c", &self.line])
            .current_dir(root)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start `sh`")?;
        let output = process.stdout.take().context("the output is piped")?;
        let mut test = String::new();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            out.write_all(&[&line[..], b"\n"].concat())?;
            out.flush()?;
            let line = String::from_utf8_lossy(&line);
            if let Some(name) = test_of_output(&line) {
                test = name.to_string();
            }
            if let Some(why) = line.strip_prefix(SKIPPED) {
                skipped.push(Skipped {
                    step: self.name.clone(),
                    test: test.clone(),
                    why: why.to_string(),
                });
            }
        }
        Ok(process.wait()?)
    }
}

/// How the line begins that a test prints instead of testing.
const SKIPPED: &str = "skipped: ";

/// A test that passed without testing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Skipped {
    step: String,
    test: String,
    why: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SKIPPED}{}, {}: {}", self.step, self.test, self.why)
    }
}

/// The name of a test if this is the line before its output.
fn test_of_output(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// A line that tests with the output of the tests that pass, which would else not be seen.
fn with_output(tests: &str) -> String {
    let line = tests.split(" #").next().unwrap_or(tests).trim_end();
    let separator = if line.contains(" -- ") { "" } else { " --" };
    format!("{line}{separator} --show-output")
}

fn steps(quick: bool, tests: &str, backends: &[String]) -> Vec<Step> {
    let format = Step::new("format", "cargo fmt --all --check");
    let (dependencies, circles) = (xtask("dependencies"), xtask("circles"));
    // Every crate but the developer's own; what the packages hold is compiled as the workspace.
    let package = Step::new(
        "package",
        "cargo package --locked --allow-dirty --no-verify --workspace --exclude xtask --exclude gpas-tests",
    );
    let lints = Step::new(
        "lints",
        "cargo clippy --release --locked --workspace --all-targets --features gpas/profile -- -D warnings",
    );
    let documentation = Step::new(
        "documentation",
        "RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --workspace --no-deps",
    );
    // Each only has to build, without the others; of Vulkan, more is asked.
    let backends = backends.iter().filter(|backend| *backend != "vulkan").map(|backend| {
        Step::new(
            format!("only {backend}"),
            format!("cargo clippy --release --locked --package gpas --no-default-features --features {backend} -- -D warnings"),
        )
    });
    let examples = xtask("examples");
    let tests = Step::new("tests", with_output(tests));
    // The calls to NVIDIA's library, on a card and a library that are pretended; without optimisation, which nothing there is worth.
    let cublas = Step::new(
        "cublas",
        "cargo test --locked --package gpas-cube --features cuda,cublas --lib --test pretended -- --show-output",
    );
    // On a software driver where there is no card, for which kernels are not chosen by timing them.
    let vulkan = Step::new(
        "vulkan",
        "cargo test --release --locked --package gpas-tests --package gpas-cube --features gpas/vulkan,gpas-cube/vulkan --lib \
         --test selfcheck --test launches --test kernels --test attention --test optimizer -- --show-output",
    );
    if quick {
        return vec![format, lints, tests];
    }
    let mut steps = vec![format, dependencies, circles, package, lints, documentation];
    steps.extend(backends);
    steps.extend([examples, tests, cublas, vulkan]);
    steps
}

/// The backends: the features of a manifest that bring a crate `burn-…`.
fn backends(manifest: &str) -> Result<Vec<String>> {
    let manifest: toml::Table = manifest.parse()?;
    let features = manifest["features"].as_table().context("a manifest without features")?;
    let brings_a_backend = |needs: &toml::Value| {
        let mut needs = needs.as_array().into_iter().flatten().filter_map(toml::Value::as_str);
        needs.any(|need| need.starts_with("dep:burn-"))
    };
    let backends = features.iter().filter(|(_, needs)| brings_a_backend(needs));
    Ok(backends.map(|(name, _)| name.clone()).collect())
}

/// A step that is a command of its own.
fn xtask(command: &str) -> Step {
    Step::new(
        command,
        format!("cargo run --quiet --release --locked --package xtask -- {command}"),
    )
}

/// The first line of a code block that starts with `cargo test`.
fn test_command(readme: &str) -> Option<&str> {
    let mut inside = false;
    readme.lines().map(str::trim).find(|line| {
        if line.starts_with("```") {
            inside = !inside;
        }
        inside && line.starts_with("cargo test")
    })
}

fn print_table(times: &[(&str, Duration)]) {
    println!();
    for (name, time) in times {
        println!("{name:<15}{:>10}", Seconds(*time).to_string());
    }
    let sum = times.iter().map(|(_, time)| *time).sum();
    println!("{:<15}{:>10}", "all", Seconds(sum).to_string());
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_command_is_the_readmes() {
        let readme =
            "Run `cargo test` often.\ncargo test --outside\n```sh\ncargo run\ncargo test --release  # 5 min\n```\n";
        assert_eq!(test_command(readme), Some("cargo test --release  # 5 min"));
        assert_eq!(test_command("cargo test\n```\ncargo run\n```\ncargo test\n"), None);
    }

    #[test]
    fn all_has_the_tests_and_every_backend_and_quick_is_a_part_of_it() {
        let backends = backends(TRAIN_MANIFEST).unwrap();
        let (all, quick) = (
            steps(false, "cargo test", &backends),
            steps(true, "cargo test", &backends),
        );
        assert!(all.contains(&Step::new("tests", "cargo test -- --show-output")));
        assert!(all.last().is_some_and(|step| step.line.contains("gpas/vulkan")));
        assert!(quick.iter().all(|step| all.contains(step)));
        for backend in backends.iter().filter(|backend| *backend != "vulkan") {
            assert!(
                all.iter()
                    .any(|step| step.line.contains(&format!("--features {backend} ")))
            );
        }
    }

    #[test]
    fn the_first_failure_stops_and_says_how_to_repeat_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let steps = [Step::new("good", "test -f Cargo.toml"), Step::new("bad", "exit 3")];
        assert!(run_steps(root, &steps[..1]).is_ok());
        let never = Step::new("never", "exit 4");
        let error = run_steps(root, &[&steps[..], &[never]].concat()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "step `bad` failed (exit status: 3); to repeat it: exit 3"
        );
    }

    #[test]
    fn skipped_tests_are_found_in_what_a_step_prints() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let printed = "test a::b ... ok\n---- a::b stdout ----\nskipped: no units\nnot skipped: x\n---- c stdout ----\nskipped: no driver\n";
        let step = Step::new("tests", format!("printf '%s' '{printed}'"));
        // The lines of this test must not be found in the output of this test.
        let (mut out, mut skipped) = (Vec::new(), Vec::new());
        assert!(step.run(root, &mut out, &mut skipped).unwrap().success());
        assert_eq!(String::from_utf8(out).unwrap(), printed);
        let skipped: Vec<String> = skipped.iter().map(Skipped::to_string).collect();
        assert_eq!(
            skipped,
            ["skipped: tests, a::b: no units", "skipped: tests, c: no driver"]
        );
    }

    #[test]
    fn tests_are_run_with_their_output() {
        assert_eq!(
            with_output("cargo test --release  # 5 min"),
            "cargo test --release -- --show-output"
        );
        assert_eq!(with_output("cargo test -- one"), "cargo test -- one --show-output");
    }

    #[test]
    fn every_backend_is_a_feature_of_the_program() {
        let manifest = include_str!("../../train/gpas/Cargo.toml");
        let backends = backends(TRAIN_MANIFEST).unwrap();
        assert!(
            ["flex", "ndarray", "vulkan"]
                .iter()
                .all(|name| backends.contains(&name.to_string()))
        );
        assert!(!backends.contains(&"autotune".to_string()));
        for backend in backends {
            assert!(manifest.contains(&format!("\n{backend} = [")), "{backend}");
        }
    }
}
