//! What the developer's commands share: the binary that they build, the Python environment that they make, and what either prints.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What the scripts of this directory import.
const PYTORCH: [&str; 4] = ["torch", "numpy", "safetensors", "transformers"];

/// The two sides of a comparison with PyTorch.
pub(crate) struct Peers {
    /// The binary.
    pub(crate) gpas: PathBuf,
    /// A Python with torch and transformers.
    pub(crate) python: PathBuf,
    /// The script that trains with torch.
    pub(crate) peer: PathBuf,
}

impl Peers {
    /// Builds `gpas`, and finds the Python or, where asked, makes it.
    pub(crate) fn new(python: Option<PathBuf>, setup: bool) -> Result<Self> {
        Ok(Self {
            python: find_python(python, setup, "peer", &PYTORCH)?,
            gpas: build(&[])?,
            peer: root()?.join("xtask/peer.py"),
        })
    }
}

/// The Python that the caller has, or that of an environment of this name in cargo's target directory, which is made first if asked.
pub(crate) fn find_python(given: Option<PathBuf>, setup: bool, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let environment = target()?.join(name);
    if setup {
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&environment)
            .status()?;
        ensure!(made.success(), "python3 cannot make {}", environment.display());
        let installed = Command::new(environment.join("bin/pip"))
            .args(["install", "--quiet"])
            .args(packages)
            .status()?;
        ensure!(installed.success(), "pip cannot install {}", packages.join(", "));
    }
    let python = given.unwrap_or_else(|| environment.join("bin/python"));
    ensure!(python.exists(), "{} is missing; `--setup` makes it", python.display());
    Ok(python)
}

/// Builds `gpas` with these features besides the default ones; where it lies.
pub(crate) fn build(features: &[&str]) -> Result<PathBuf> {
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--package", "gpas"])
        .args(["--features", &features.join(",")])
        .current_dir(root()?)
        .status()?;
    ensure!(built.success(), "gpas does not build");
    Ok(target()?.join("release/gpas"))
}

/// Where cargo builds.
pub(crate) fn target() -> Result<PathBuf> {
    let root = root()?;
    Ok(std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |given| root.join(given)))
}

/// The top of the workspace.
pub(crate) fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies at the top of the workspace")
}

/// The JSON object that a command prints last.
pub(crate) fn line(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{command:?} printed {last}"))
}

/// A number of a peer's object.
pub(crate) fn number(line: &Value, key: &str) -> Result<f64> {
    line[key].as_f64().with_context(|| format!("no number {key} in {line}"))
}

/// What a command prints.
pub(crate) fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

pub(crate) fn torch_version(python: &Path) -> Result<String> {
    said(Command::new(python).args(["-c", "import torch; print(torch.__version__)"]))
}

/// Compiler, commit and date.
pub(crate) fn versions(root: &Path) -> Result<String> {
    let commit = said(
        Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .current_dir(root),
    )?;
    let date = said(Command::new("date").arg("+%Y-%m-%d"))?;
    let rust = said(Command::new("rustc").arg("--version"))?;
    Ok(format!("{rust}, commit {commit}, {date}"))
}
