//! Files and folders of packs and results.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Writes a file that is complete or not there.
pub(super) fn write_whole(file: &Path, value: &Value) -> Result<()> {
    let folder = file.parent().context("a file lies in a folder")?;
    let mut whole = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(whole, "{value:#}")?;
    whole.persist(file)?;
    Ok(())
}

/// Copies a folder.
pub(super) fn copy_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?;
        if path.is_dir() {
            copy_all(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
