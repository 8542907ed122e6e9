//! What cargo knows of the workspace: its packages and their targets.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::peers::root;

/// Something that cargo builds: a library, a program, an example, a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its package.
    pub(crate) package: String,
    /// Its name.
    pub(crate) name: String,
    /// `lib`, `bin`, `example`, `test` or `custom-build`.
    pub(crate) kind: String,
    /// Its first file.
    pub(crate) source: PathBuf,
}

/// Every target of every package of the workspace.
///
/// # Errors
/// If cargo does not tell.
pub(crate) fn targets() -> Result<Vec<Target>> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--locked", "--format-version", "1"])
        .current_dir(root()?)
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    targets_of(&serde_json::from_slice(&output.stdout)?)
}

fn targets_of(metadata: &Value) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for package in metadata["packages"].as_array().context("metadata without packages")? {
        for target in package["targets"].as_array().context("a package without targets")? {
            let text = |value: &Value| value.as_str().map(String::from).context("metadata without a name");
            targets.push(Target {
                package: text(&package["name"])?,
                name: text(&target["name"])?,
                kind: text(&target["kind"][0])?,
                source: text(&target["src_path"])?.into(),
            });
        }
    }
    Ok(targets)
}
