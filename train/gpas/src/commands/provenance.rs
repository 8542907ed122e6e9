//! Where a run's data lies, and what is noted of a run that begins.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use gpas_data::PreparedData;
use gpas_data::corpus::default_corpus;
use gpas_model::LlamaConfig;
use gpas_train::backend::Selected;
use gpas_train::recipe::Recipe;
use gpas_train::run::RunInfo;
use sha2::{Digest, Sha256};

use crate::failure::Result;

/// The prepared data of a recipe; the built-in corpus, made on first use, where it names none.
///
/// # Errors
/// If the corpus cannot be made.
pub fn data_directory(recipe: &Recipe) -> Result<PathBuf> {
    match &recipe.data.path {
        Some(path) => Ok(path.clone()),
        None => Ok(default_corpus(Path::new(env!("CARGO_MANIFEST_DIR")), false)?),
    }
}

/// SHA-256 of the data's manifest, which holds the hashes of its shards.
///
/// # Errors
/// If the manifest cannot be written as JSON.
pub fn data_sha256(data: &PreparedData) -> Result<String> {
    let digest = Sha256::digest(serde_json::to_vec(data.manifest())?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The facts of a run that begins here and now, but for its data and its tokenizer.
pub fn facts(recipe: &Recipe, config: &LlamaConfig, selected: Selected) -> RunInfo {
    RunInfo {
        gpas: env!("CARGO_PKG_VERSION").into(),
        commit: env!("GPAS_COMMIT").into(),
        burn: "0.21.0".into(),
        backend: selected.to_string(),
        device: selected.device_name().unwrap_or_default(),
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        command: std::env::args().collect(),
        data: PathBuf::new(),
        data_sha256: String::new(),
        tokenizer_sha256: String::new(),
        parameters: config.parameters(),
        gates: config.gates(),
        seed: recipe.train.seed,
        started: now(),
        imported: None,
        resumes: Vec::new(),
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
