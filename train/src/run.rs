//! The run directory: everything a run was and became.
//!
//! ```text
//! RUN/recipe.toml            the recipe, fully resolved
//! RUN/run.json               versions, device, hashes of data and tokenizer, parameters, seed
//! RUN/tokenizer.json         the data's tokenizer
//! RUN/special_tokens.json    the ids that begin and end a text and that pad
//! RUN/tokenizer_config.json  the tokenizer's chat template and other settings, if it has any
//! RUN/metrics.jsonl          one line per step and per evaluation
//! RUN/checkpoints/step-N/    weights and optimizer after step N
//! RUN/inspection.json        the look at its layers that the report shows
//! RUN/report.html            the report
//! RUN/tensorboard/           event files, if asked for
//! RUN/lock                   held by the process that trains
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use gpas_data::aside::{self, AsideDirectory};
use gpas_data::tokenizer_config::{TOKENIZER_CONFIG, TokenizerConfig};
use gpas_data::{DataError, PreparedData, SpecialTokens, Tokenizer};
use gpas_model::LlamaConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::backend::Selected;
use crate::recipe::{Recipe, RecipeError};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit that this program was built from; empty outside a checkout.
pub const COMMIT: &str = env!("GPAS_COMMIT");

/// What a run was made from and on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Version of this program.
    pub gpas: String,
    /// Commit that this program was built from; empty outside a checkout.
    pub commit: String,
    /// Version of Burn.
    pub burn: String,
    /// Backend, with the number of the device if it is not the first.
    pub backend: String,
    /// Name of the processor or card; empty if it is not known.
    #[serde(default)]
    pub device: String,
    /// Operating system and processor architecture.
    pub platform: String,
    /// The command line.
    pub command: Vec<String>,
    /// Directory of the prepared data; empty for an imported run that has seen none yet.
    #[serde(serialize_with = "as_text")]
    pub data: PathBuf,
    /// SHA-256 of the data's manifest, which holds the hashes of its shards; empty likewise.
    pub data_sha256: String,
    /// SHA-256 of the tokenizer.
    pub tokenizer_sha256: String,
    /// Number of parameters, gates not counted.
    pub parameters: u64,
    /// Number of gates.
    pub gates: u64,
    /// Seed of the initial weights and of the data's order.
    pub seed: u64,
    /// Seconds since 1970 when the run was started.
    pub started: u64,
    /// What the `generation_config.json` of its first weights says besides special tokens, such as a temperature.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub generation: Map<String, Value>,
    /// Where its first weights come from, if they were not drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
    /// The checkpoint of another run that it began with, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Every time it was gone on with.
    #[serde(default)]
    pub resumes: Vec<Resume>,
}

impl RunInfo {
    /// The facts of a run that begins here and now, but for its data and its tokenizer.
    pub fn new(recipe: &Recipe, config: &LlamaConfig, selected: Selected) -> Self {
        Self {
            gpas: VERSION.into(),
            commit: COMMIT.into(),
            burn: "0.21.0".into(),
            backend: selected.to_string(),
            device: selected.device_name().unwrap_or_default(),
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            command: command_line(),
            data: PathBuf::new(),
            data_sha256: String::new(),
            tokenizer_sha256: String::new(),
            parameters: config.parameters(),
            gates: config.gates(),
            seed: recipe.train.seed,
            started: now(),
            generation: Map::new(),
            imported: None,
            parent: None,
            resumes: Vec::new(),
        }
    }

    /// Steps done before its first: those of the checkpoint that it began with.
    pub fn begin(&self) -> u64 {
        self.parent.as_ref().map_or(0, |parent| parent.step)
    }

    /// The facts of a run on some data, with its tokenizer.
    ///
    /// # Errors
    /// If the data's manifest has no JSON form.
    pub fn with_data(self, data: &PreparedData) -> Result<Self, RunError> {
        Ok(Self {
            data: data.directory().to_path_buf(),
            data_sha256: data_sha256(data)?,
            tokenizer_sha256: data.tokenizer().sha256().to_string(),
            ..self
        })
    }
}

/// SHA-256 of the data's manifest, which holds the hashes of its shards.
///
/// # Errors
/// If the manifest has no JSON form.
pub fn data_sha256(data: &PreparedData) -> Result<String, RunError> {
    let manifest = serde_json::to_vec(data.manifest()).map_err(|cause| RunError::Json {
        path: data.directory().to_path_buf(),
        cause,
    })?;
    let digest = Sha256::digest(manifest);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The command line, as text: what of it is not UTF-8 becomes U+FFFD.
fn command_line() -> Vec<String> {
    std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

/// Writes a path for people: what of it is not UTF-8 becomes U+FFFD.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A model from elsewhere that a run begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The directory.
    #[serde(serialize_with = "as_text")]
    pub from: PathBuf,
    /// The architecture that its configuration names.
    pub architecture: String,
    /// Whether gates were added, which start as the identity.
    pub added_gates: bool,
}

/// The checkpoint of another run that a run begins with: its weights, its moments and its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parent {
    /// Directory of the other run, as it was given.
    #[serde(serialize_with = "as_text")]
    pub run: PathBuf,
    /// The same, absolute and without links.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// Steps done in it.
    pub step: u64,
    /// Commit of the program that the other run was begun by.
    pub commit: String,
    /// SHA-256 of the checkpoint's file of weights, as its manifest has it.
    pub weights_sha256: String,
    /// SHA-256 of the manifest of the other run's data; empty for an imported one that has seen none.
    pub data_sha256: String,
    /// Recipe keys that changed: what they were and what they became.
    pub changes: BTreeMap<String, [toml::Value; 2]>,
}

/// As a command line names it, `RUN@STEP`.
impl std::fmt::Display for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.run.display(), self.step)
    }
}

/// A run that was gone on with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// After this many steps.
    pub step: u64,
    /// Seconds since 1970.
    pub at: u64,
    /// Version of this program.
    pub gpas: String,
    /// Commit that this program was built from.
    pub commit: String,
    /// Backend.
    pub backend: String,
    /// The command line.
    pub command: Vec<String>,
    /// Recipe keys that changed, none of which can change the mathematics: what they were and what they became.
    pub changes: BTreeMap<String, [toml::Value; 2]>,
    /// What was wrong with the checkpoints that were passed over.
    pub passed_over: Vec<String>,
}

impl Resume {
    /// The facts of a run that is gone on with here and now.
    pub(crate) fn new(
        step: u64,
        selected: Selected,
        changes: BTreeMap<String, [toml::Value; 2]>,
        passed_over: Vec<String>,
    ) -> Self {
        Self {
            step,
            at: now(),
            gpas: VERSION.into(),
            commit: COMMIT.into(),
            backend: selected.to_string(),
            command: command_line(),
            changes,
            passed_over,
        }
    }
}

/// Why a run directory cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum RunError {
    #[error("{0} already exists")]
    Exists(PathBuf),
    #[error("{0} is not a run directory: it has no recipe.toml")]
    NotARun(PathBuf),
    #[error("{out} lies in {run}, which is only read")]
    Inside { out: PathBuf, run: PathBuf },
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}")]
    Json { path: PathBuf, cause: serde_json::Error },
    #[error("{path}: {message}")]
    Toml { path: PathBuf, message: String },
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Tokenizer(#[from] DataError),
}

impl RunError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            RunError::Exists(_) => Some("name another directory with `-o`".into()),
            RunError::Inside { .. } => Some("name a directory outside of it with `-o`".into()),
            RunError::NotARun(path) if path.to_string_lossy().contains('@') => Some(
                "a run directory is what `gpas train -o DIR` makes; `RUN@STEP` and `RUN@best` name a checkpoint of one to begin with or to ask"
                    .into(),
            ),
            RunError::NotARun(_) => Some("a run directory is what `gpas train -o DIR` makes".into()),
            RunError::Locked(_) => Some("wait for it, or stop it; the lock ends with the process that holds it".into()),
            RunError::Recipe(error) => error.hint(),
            RunError::Tokenizer(error) => error.hint(),
            _ => None,
        }
    }
}

/// The right to write into a run directory. It ends with the process, however that ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// A run directory on disk.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Makes the directory with its recipe, its facts and its tokenizer, with its special tokens and what lay beside it. They are written
    /// aside and moved into place together.
    ///
    /// # Errors
    /// If it exists, or cannot be written.
    pub fn create(
        path: &Path,
        recipe: &Recipe,
        info: &RunInfo,
        tokenizer: &Tokenizer,
    ) -> Result<(Self, RunLock), RunError> {
        Self::create_with(path, recipe, info, tokenizer, |_| Ok(()))
    }

    /// As [`create`](Self::create), with what `fill` writes into it before anybody sees it.
    ///
    /// # Errors
    /// If it exists, or cannot be written, or `fill` fails; nothing is then left of it.
    pub fn create_with<E: From<RunError>>(
        path: &Path,
        recipe: &Recipe,
        info: &RunInfo,
        tokenizer: &Tokenizer,
        fill: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<(Self, RunLock), E> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |cause: io::Error| match cause.kind() {
                io::ErrorKind::AlreadyExists => RunError::Exists(path),
                _ => RunError::File { path, cause },
            }
        };
        let aside = AsideDirectory::beside(path).map_err(failed(path))?;
        let run = Self {
            path: aside.path().to_path_buf(),
        };
        run.write(recipe, info)?;
        fs::write(run.tokenizer_path(), tokenizer.bytes()).map_err(failed(&run.tokenizer_path()))?;
        run.write_special_tokens(tokenizer.special_tokens())?;
        if let Some(config) = tokenizer.config() {
            let path = run.tokenizer_config_path();
            fs::write(&path, config.file()).map_err(failed(&path))?;
        }
        // Held before anybody else sees the directory.
        let lock = run.lock()?;
        fs::create_dir(run.checkpoints_path()).map_err(failed(&run.path))?;
        fill(&run)?;
        aside.publish().map_err(failed(path))?;
        let run = Self {
            path: path.to_path_buf(),
        };
        Ok((run, lock))
    }

    /// Writes the recipe and the facts, each in one piece.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn write(&self, recipe: &Recipe, info: &RunInfo) -> Result<(), RunError> {
        replace(&self.recipe_path(), recipe.to_toml()?.as_bytes())?;
        let info = serde_json::to_vec_pretty(info).map_err(|cause| RunError::Json {
            path: self.info_path(),
            cause,
        })?;
        replace(&self.info_path(), &info)
    }

    /// Writes the special tokens, in one piece.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn write_special_tokens(&self, special: &SpecialTokens) -> Result<(), RunError> {
        let path = self.special_tokens_path();
        let json = serde_json::to_vec_pretty(special).map_err(|cause| RunError::Json {
            path: path.clone(),
            cause,
        })?;
        replace(&path, &json)
    }

    /// Its tokenizer, with what lay beside it and the special tokens of its data or of the model that it begins with. Run directories of
    /// earlier versions have no record of these: there the special tokens are what the tokenizer's file tells.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what it should be.
    pub fn tokenizer(&self) -> Result<Tokenizer, RunError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |cause| RunError::File { path, cause }
        };
        let path = self.tokenizer_path();
        let bytes = fs::read(&path).map_err(failed(&path))?;
        let tokenizer = Tokenizer::from_bytes(bytes, &path)?.with_config(TokenizerConfig::beside(&path)?);
        let path = self.special_tokens_path();
        let special = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|cause| RunError::Json { path, cause })?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(tokenizer),
            Err(cause) => return Err(failed(&path)(cause)),
        };
        Ok(tokenizer.with_special_tokens(special))
    }

    /// Takes the right to write into the directory.
    ///
    /// # Errors
    /// If another process has it.
    pub fn lock(&self) -> Result<RunLock, RunError> {
        let path = self.path.join("lock");
        let failed = |cause| RunError::File {
            path: path.clone(),
            cause,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(RunError::Locked(self.path.clone())),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// An existing run directory.
    ///
    /// # Errors
    /// If it is none.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        let run = Self {
            path: path.to_path_buf(),
        };
        if !run.recipe_path().is_file() {
            return Err(RunError::NotARun(run.path));
        }
        Ok(run)
    }

    /// The first of `runs/SCHEME-PRESET-001`, `-002`, … that does not exist.
    pub fn default_path(recipe: &Recipe) -> PathBuf {
        let name = |number| {
            PathBuf::from(format!(
                "runs/{}-{}-{number:03}",
                recipe.model.scheme, recipe.model.preset
            ))
        };
        (1..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its recipe.
    ///
    /// # Errors
    /// If it cannot be read, or has been edited into something that is no recipe.
    pub fn recipe(&self) -> Result<Recipe, RunError> {
        let path = self.recipe_path();
        let text = fs::read_to_string(&path).map_err(|cause| RunError::File {
            path: path.clone(),
            cause,
        })?;
        toml::from_str(&text).map_err(|error| RunError::Toml {
            path,
            message: error.message().to_string(),
        })
    }

    /// Its facts.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn info(&self) -> Result<RunInfo, RunError> {
        let path = self.info_path();
        let text = fs::read(&path).map_err(|cause| RunError::File {
            path: path.clone(),
            cause,
        })?;
        serde_json::from_slice(&text).map_err(|cause| RunError::Json { path, cause })
    }

    /// Path of the recipe.
    pub fn recipe_path(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    fn info_path(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// Path of the tokenizer.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    fn tokenizer_config_path(&self) -> PathBuf {
        self.path.join(TOKENIZER_CONFIG)
    }

    fn special_tokens_path(&self) -> PathBuf {
        self.path.join("special_tokens.json")
    }

    /// Path of the metrics.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Path of the look at its layers.
    pub fn inspection_path(&self) -> PathBuf {
        self.path.join("inspection.json")
    }

    /// Path of the folder of TensorBoard's event files.
    pub fn tensorboard_path(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// Path of the folder of checkpoints.
    pub fn checkpoints_path(&self) -> PathBuf {
        self.path.join("checkpoints")
    }
}

/// Writes a file in one piece: aside, synced, and moved into place.
///
/// # Errors
/// If the disk does not take it.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    aside::replace(path, bytes).map_err(|cause| RunError::File {
        path: path.to_path_buf(),
        cause,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::recipe::{RecipeOptions, resolve};

    pub(crate) fn info() -> RunInfo {
        RunInfo {
            gpas: "0".into(),
            commit: "c".into(),
            burn: "0".into(),
            backend: "flex".into(),
            device: "2 cores".into(),
            platform: "linux".into(),
            command: vec!["gpas".into()],
            data: "d".into(),
            data_sha256: "a".into(),
            tokenizer_sha256: "b".into(),
            parameters: 1,
            gates: 4,
            seed: 42,
            started: 0,
            generation: Map::new(),
            imported: None,
            parent: None,
            resumes: Vec::new(),
        }
    }

    /// A tokenizer of three words.
    fn words() -> Tokenizer {
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"the": 0, "</s>": 1, "stop": 2}, "unk_token": "the"},
        });
        Tokenizer::from_bytes(json.to_string().into_bytes(), Path::new("words.json")).unwrap()
    }

    #[test]
    fn a_run_keeps_the_special_tokens_and_opens_without_them() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = resolve(None, &RecipeOptions::default()).unwrap();
        let tokenizer = words().with_end_of_document("stop").unwrap();
        let path = folder.path().join("run");
        let (run, _lock) = RunDirectory::create(&path, &recipe, &info(), &tokenizer).unwrap();
        let found = run.tokenizer().unwrap();
        assert_eq!(found.special_tokens(), tokenizer.special_tokens());
        assert_eq!(found.closing(), [2]);
        fs::remove_file(run.special_tokens_path()).unwrap();
        assert_eq!(run.tokenizer().unwrap().special_tokens().ends, [1]);
        fs::write(run.special_tokens_path(), "{").unwrap();
        let error = run.tokenizer().unwrap_err().to_string();
        assert!(error.contains("special_tokens.json"), "{error}");
    }

    #[test]
    fn a_run_reads_back_what_it_was_made_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/run");
        let recipe = resolve(None, &RecipeOptions::default()).unwrap().with_vocab(99);
        let (_, lock) = RunDirectory::create(&path, &recipe, &info(), &words()).unwrap();
        let run = RunDirectory::open(&path).unwrap();
        assert_eq!(
            run.lock().unwrap_err().to_string(),
            format!("{} is in use by another process", path.display())
        );
        drop(lock);
        run.lock().unwrap();
        assert_eq!(run.recipe().unwrap(), recipe);
        assert_eq!(run.info().unwrap(), info());
        assert_eq!(fs::read(run.tokenizer_path()).unwrap(), words().bytes());
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing is left aside");
    }

    #[test]
    fn an_existing_directory_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = resolve(None, &RecipeOptions::default()).unwrap();
        let error = RunDirectory::create(folder.path(), &recipe, &info(), &words()).unwrap_err();
        assert_eq!(error.to_string(), format!("{} already exists", folder.path().display()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = RunDirectory::open(folder.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("is not a run directory: it has no recipe.toml")
        );
    }
}
