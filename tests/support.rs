//! What the workspace-level tests share: where the goldens lie.

use std::path::{Path, PathBuf};

use gpas::selfcheck::golden::Golden;

/// Every golden of `$GPAS_GOLDEN_DIR`, or of our own copies.
///
/// # Panics
/// If the folder is missing or holds none, or a file is not a golden.
pub fn goldens() -> Vec<Golden> {
    std::env::var_os("GPAS_GOLDEN_DIR").map_or_else(committed_goldens, |folder| goldens_in(Path::new(&folder)))
}

/// Every golden of our own copies, whatever the environment: what they cover is known.
///
/// # Panics
/// If they are missing.
pub fn committed_goldens() -> Vec<Golden> {
    let mut goldens = goldens_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"));
    goldens.extend(Golden::embedded().expect("the program's own goldens"));
    goldens.sort_by(|a, b| a.name.cmp(&b.name));
    goldens
}

fn goldens_in(folder: &Path) -> Vec<Golden> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{}: no *.safetensors", folder.display());
    let read = |path: &PathBuf| {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let bytes = std::fs::read(path).expect("a readable golden");
        let golden = Golden::read(&name.unwrap_or_default(), &bytes);
        golden.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.iter().map(read).collect()
}
