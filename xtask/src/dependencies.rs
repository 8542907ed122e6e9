//! `cargo xtask dependencies`: who takes one crate compiles what that crate needs, and nothing of the others' products.
//!
//! Each promise is checked on a program of its own, outside the workspace, whose dependencies nobody else's features reach.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::peers::root;

/// Check what somebody compiles who takes one of the crates
#[derive(Debug, Args)]
pub struct DependenciesArgs {}

/// A program, and what must not be among its dependencies.
struct Rule {
    /// What is promised.
    promise: &'static str,
    /// The dependencies in its manifest; `ROOT` stands for the top of the workspace.
    dependencies: &'static str,
    /// Names of packages.
    never: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        promise: "a program of gpas-model and wgpu compiles no CPU engine",
        dependencies: r#"
            gpas-model = { path = "ROOT/model", default-features = false }
            burn-wgpu = { version = "0.21.0", default-features = false, features = ["std"] }
        "#,
        never: &["gpas-host", "gemm", "burn-flex", "burn-ndarray", "pulp"],
    },
    Rule {
        promise: "a program of gpas-train compiles no command line, terminal or server",
        dependencies: r#"gpas-train = { path = "ROOT/train" }"#,
        never: &["clap", "ratatui", "crossterm", "hyper", "axum", "maud"],
    },
    Rule {
        promise: "a program of gpas-report compiles no command line, terminal or server",
        dependencies: r#"gpas-report = { path = "ROOT/train/report" }"#,
        never: &["clap", "ratatui", "crossterm", "hyper", "axum"],
    },
];

/// Checks every rule.
///
/// # Errors
/// If one is broken, with the path by which the package comes in.
pub fn run(_: &DependenciesArgs) -> Result<()> {
    let mut broken = Vec::new();
    for rule in RULES {
        let place = tempfile::tempdir()?;
        write_program(place.path(), rule.dependencies)?;
        let packages = tree(place.path(), &[])?;
        let found: Vec<&str> = rule
            .never
            .iter()
            .copied()
            .filter(|name| holds(&packages, name))
            .collect();
        println!(
            "{}: {}",
            rule.promise,
            if found.is_empty() {
                "yes".to_string()
            } else {
                format!("no, {}", found.join(", "))
            }
        );
        for name in found {
            let path = tree(place.path(), &["--invert", name])?;
            broken.push(format!("{name} comes in by\n{path}"));
        }
    }
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(())
}

/// A program with some dependencies, in the versions of the workspace.
fn write_program(place: &Path, dependencies: &str) -> Result<()> {
    let root = root()?;
    let dependencies = dependencies.replace("ROOT", &root.display().to_string());
    let manifest =
        format!("[package]\nname = \"program\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{dependencies}\n");
    fs::write(place.join("Cargo.toml"), manifest)?;
    fs::create_dir(place.join("src"))?;
    fs::write(place.join("src/main.rs"), "fn main() {}\n")?;
    fs::copy(root.join("Cargo.lock"), place.join("Cargo.lock"))?;
    Ok(())
}

/// What `cargo tree` prints of the dependencies that a program compiles for its target.
fn tree(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("cargo")
        // What is in the lock file is on this machine, because this program was built.
        .args([
            "tree",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args(arguments)
        .current_dir(program)
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo tree failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a package is among the lines `NAME vVERSION …`.
fn holds(tree: &str, name: &str) -> bool {
    tree.lines().any(|line| line.split(' ').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_found_by_its_whole_name() {
        let tree = "gpas-model v0.1.0 (/model)\ngemm-common v0.19.0\nhalf v2.6.0 (*)\n";
        assert!(holds(tree, "half") && holds(tree, "gemm-common"));
        assert!(!holds(tree, "gemm"));
    }
}
