//! The built-in corpus: the sources and documentation of crates that this program is made of, which every machine that
//! built it has.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::bpe::train_bpe;
use crate::error::DataError;
use crate::prepare::{ValidationDocuments, prepare_sources};
use crate::source::{Documents, ReadOptions, Source};
use crate::store::{PreparedData, VERSION};
use crate::tokenizer::{SpelledOut, Tokenizer};

/// Crates whose text is trained on: much documented Rust, at one version each, needed on every platform and by every
/// backend.
const TRAIN: [&str; 17] = [
    "aho-corasick",
    "burn-autodiff",
    "burn-backend",
    "burn-core",
    "burn-nn",
    "burn-optim",
    "burn-tensor",
    "burn-train",
    "clap_builder",
    "memchr",
    "ratatui-core",
    "ratatui-widgets",
    "rayon",
    "regex",
    "regex-automata",
    "serde",
    "tokenizers",
];

/// Crates whose text is held out, whole.
const VALIDATION: [&str; 3] = ["burn-dataset", "indicatif", "rayon-core"];

/// The vocabulary of the corpus's tokenizer.
const VOCABULARY: usize = 4096;

/// Larger files are generated tables.
const FILE_BYTES: u64 = 256 << 10;

/// How the text becomes tokens: to be raised with every change of the tokenizer's training or of tokenising, so that no
/// cache made before serves after. A test notices one.
const TOKENISING: u32 = 1;

/// The hash of the corpus that this version's `Cargo.lock` gives.
const SHA256: &str = "4dbe4e61f3b941351eadd807b7790316b9e120923231a324ac4b4aa29cd62157";

/// The directory of the prepared built-in corpus, which the first call makes in the user's cache directory.
///
/// `manifest_dir` lies in the workspace that the program was built from: its locked dependencies are the corpus.
///
/// # Errors
/// When cargo or the crates' sources are missing, or the cache cannot be written.
pub fn default_corpus(manifest_dir: &Path, quiet: bool) -> Result<PathBuf, DataError> {
    let cache = cache_directory().ok_or_else(|| DataError::Corpus("no home directory to keep it in".into()))?;
    prepared_corpus(manifest_dir, &cache, quiet)
}

/// The directory for files that can be made again: `$XDG_CACHE_HOME` or the platform's own, and `gpas` in it.
pub fn cache_directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let platform = || {
        if cfg!(windows) {
            set("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            set("HOME").map(|home| home.join("Library").join("Caches"))
        } else {
            set("HOME").map(|home| home.join(".cache"))
        }
    };
    // A relative path is to be ignored, says the specification of XDG_CACHE_HOME.
    set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(platform)
        .map(|cache| cache.join("gpas"))
}

fn prepared_corpus(manifest_dir: &Path, cache: &Path, quiet: bool) -> Result<PathBuf, DataError> {
    let name = |sha256: &str| cache.join(format!("corpus-{:.16}", sha256));
    let usable = |directory: &Path| PreparedData::open(directory).is_ok();
    // Known by its hash, a prepared corpus needs neither cargo nor the sources.
    if usable(&name(SHA256)) {
        return Ok(name(SHA256));
    }
    let corpus = Corpus::gather(manifest_dir)?;
    let directory = name(&corpus.sha256);
    if usable(&directory) {
        return Ok(directory);
    }
    if directory.exists() {
        // A cached copy that no longer opens is made again.
        fs::remove_dir_all(&directory).map_err(DataError::io(&directory))?;
    }
    let read = ReadOptions::default();
    let trained = train_bpe(Documents::new(corpus.train.clone(), read.clone()), VOCABULARY, quiet)?;
    let tokenizer = Tokenizer::from_bytes(trained.json, &directory.join("tokenizer.json"))?;
    let validation = ValidationDocuments::Sources(corpus.validation);
    match prepare_sources(
        corpus.train,
        validation,
        &tokenizer,
        &directory,
        &read,
        SpelledOut::AsText,
        quiet,
    ) {
        // Another process was faster; its result is the same.
        Err(DataError::OutputExists { .. }) if usable(&directory) => Ok(directory),
        prepared => prepared.map(|_| directory),
    }
}

/// The files of the corpus, and a hash of all that its prepared form depends on.
struct Corpus {
    train: Vec<Source>,
    validation: Vec<Source>,
    sha256: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    manifest_path: PathBuf,
}

impl Corpus {
    fn gather(manifest_dir: &Path) -> Result<Self, DataError> {
        // Cargo describes all members with all that they need, or nothing: one crate not fetched is enough.
        let packages = locked_packages(manifest_dir)
            .or_else(|said| unpacked_packages(manifest_dir, &registry_sources()).ok_or(said))?;
        Self::of_packages(&packages)
    }

    fn of_packages(packages: &[Package]) -> Result<Self, DataError> {
        let mut hash = Sha256::new();
        hash.update(format!(
            "gpas corpus, vocabulary {VOCABULARY}, tokenising {TOKENISING}, format {VERSION}\n"
        ));
        let mut seen = HashSet::new();
        let mut gather = |names: &[&str]| {
            let packages = names.iter().map(|name| find(packages, name));
            packages
                .map(|package| crate_source(package?, &mut seen, &mut hash))
                .collect::<Result<Vec<_>, _>>()
        };
        // Training first: a text that stands in both splits is left out of validation.
        let (train, validation) = (gather(&TRAIN)?, gather(&VALIDATION)?);
        Ok(Self {
            train,
            validation,
            sha256: format!("{:x}", hash.finalize()),
        })
    }
}

fn find<'a>(packages: &'a [Package], name: &str) -> Result<&'a Package, DataError> {
    let mut found = packages.iter().filter(|package| package.name == name);
    match (found.next(), found.next()) {
        (Some(package), None) => Ok(package),
        (None, _) => Err(DataError::Corpus(format!(
            "crate `{name}` is not among the locked dependencies"
        ))),
        (Some(_), Some(_)) => Err(DataError::Corpus(format!(
            "crate `{name}` is locked at several versions"
        ))),
    }
}

/// The packages that the workspace's lock file gives for this platform.
fn locked_packages(manifest_dir: &Path) -> Result<Vec<Package>, DataError> {
    let version = cargo(&["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| DataError::Corpus("cargo does not name its platform".into()))?;
    let manifest = manifest_dir.join("Cargo.toml");
    let json = cargo(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--offline",
        &format!("--filter-platform={host}"),
        &format!("--manifest-path={}", manifest.display()),
    ])?;
    let metadata: Metadata = serde_json::from_str(&json)
        .map_err(|error| DataError::Corpus(format!("cargo metadata is not understood: {error}")))?;
    Ok(metadata.packages)
}

/// Where cargo unpacks what it fetches: a directory for each registry, in the order of their names.
fn registry_sources() -> Vec<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let entries = home.and_then(|home| home.join("registry").join("src").read_dir().ok());
    let mut registries: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    registries.sort();
    registries
}

/// The corpus's packages that the lock file above `manifest_dir` names, where each of them lies whole in a registry;
/// none where one is missing.
fn unpacked_packages(manifest_dir: &Path, registries: &[PathBuf]) -> Option<Vec<Package>> {
    let lock = manifest_dir
        .ancestors()
        .find_map(|directory| fs::read_to_string(directory.join("Cargo.lock")).ok())?;
    let mut packages = Vec::new();
    for entry in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let quoted = |line: &str| {
                Some(
                    line.strip_prefix(key)?
                        .strip_prefix(" = \"")?
                        .strip_suffix('"')?
                        .to_owned(),
                )
            };
            entry.lines().find_map(quoted)
        };
        let (name, version) = (value("name")?, value("version")?);
        // What has no checksum comes from no registry.
        if value("checksum").is_none() || !TRAIN.iter().chain(&VALIDATION).any(|&wanted| wanted == name) {
            continue;
        }
        let root = registries
            .iter()
            .map(|registry| registry.join(format!("{name}-{version}")))
            // Cargo writes it last.
            .find(|root| root.join(".cargo-ok").is_file())?;
        packages.push(Package {
            name,
            version,
            manifest_path: root.join("Cargo.toml"),
        });
    }
    Some(packages)
}

/// What cargo prints; its first line of complaint is the error.
fn cargo(arguments: &[&str]) -> Result<String, DataError> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&program)
        .args(arguments)
        .output()
        .map_err(|error| DataError::Corpus(format!("cannot run {}: {error}", program.to_string_lossy())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said
        .lines()
        .find_map(|line| line.strip_prefix("error: "))
        .unwrap_or("cargo failed without a word");
    Err(DataError::Corpus(said.into()))
}

/// The texts of a crate that no crate before it had, in the order of their paths.
fn crate_source(package: &Package, seen: &mut HashSet<[u8; 32]>, hash: &mut Sha256) -> Result<Source, DataError> {
    let name = format!("{}-{}", package.name, package.version);
    let root = package.manifest_path.parent().unwrap_or(Path::new("."));
    let mut paths = Vec::new();
    texts(root, &mut paths).map_err(|error| DataError::Corpus(format!("the sources of {name}: {error}")))?;
    let mut files = Vec::new();
    for path in paths {
        let inside = path.strip_prefix(root).unwrap_or(&path);
        let parts: Vec<_> = inside
            .components()
            .map(|part| part.as_os_str().to_string_lossy())
            .collect();
        // One spelling on every platform, since the order and the hash depend on it.
        files.push((format!("{name}/{}", parts.join("/")), path));
    }
    files.sort();
    let mut kept = Vec::new();
    for (name, path) in files {
        let bytes = fs::read(&path).map_err(DataError::io(&path))?;
        if std::str::from_utf8(&bytes).is_ok() && seen.insert(Sha256::digest(&bytes).into()) {
            hash.update(format!("{name} {}\n", bytes.len()));
            hash.update(&bytes);
            kept.push((name, path));
        }
    }
    Ok(Source::of_texts(name, kept))
}

fn texts(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            texts(&path, found)?;
        } else if kind.is_file()
            && path
                .extension()
                .is_some_and(|extension| extension == "rs" || extension == "md")
            && entry.metadata()?.len() <= FILE_BYTES
        {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE: &str = env!("CARGO_MANIFEST_DIR");

    #[test]
    fn the_corpus_is_the_same_bytes_everywhere() {
        let corpus = Corpus::gather(Path::new(WORKSPACE)).unwrap();
        let size = |sources: &[Source]| {
            let mut documents = Documents::new(sources.to_vec(), ReadOptions::default());
            let bytes: usize = documents.by_ref().map(|document| document.unwrap().text.len()).sum();
            assert_eq!(documents.skipped().bad, 0);
            bytes
        };
        let (train, validation) = (size(&corpus.train), size(&corpus.validation));
        assert!((10 << 20..16 << 20).contains(&train), "{train} bytes to train on");
        assert!(
            (500 << 10..1 << 20).contains(&validation),
            "{validation} bytes to validate on"
        );
        assert_eq!(
            corpus.sha256, SHA256,
            "the locked versions of the corpus's crates have changed"
        );
    }

    #[test]
    fn the_lock_file_alone_finds_the_same_crates() {
        let workspace = Path::new(WORKSPACE);
        let found = unpacked_packages(workspace, &registry_sources()).unwrap();
        assert_eq!(found.len(), TRAIN.len() + VALIDATION.len());
        assert_eq!(Corpus::of_packages(&found).unwrap().sha256, SHA256);
    }

    #[test]
    fn a_crate_that_is_missing_or_half_unpacked_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let lock = "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.2.3\"\nchecksum = \"c9\"\n\n\
                    [[package]]\nname = \"gpas-data\"\nversion = \"0.1.0\"\ndependencies = [\n \"serde\",\n]\n";
        fs::write(place.path().join("Cargo.lock"), lock).unwrap();
        let registries = ["first", "second"].map(|name| place.path().join(name));
        let member = place.path().join("data");
        assert!(unpacked_packages(&member, &registries).is_none());
        let root = registries[1].join("serde-1.2.3");
        fs::create_dir_all(&root).unwrap();
        assert!(unpacked_packages(&member, &registries).is_none());
        fs::write(root.join(".cargo-ok"), "").unwrap();
        let found = unpacked_packages(&member, &registries).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].version.as_str()), ("serde", "1.2.3"));
        assert_eq!(found[0].manifest_path, root.join("Cargo.toml"));
    }

    #[test]
    fn a_change_of_tokenising_needs_a_new_version() {
        let place = tempfile::tempdir().unwrap();
        let text =
            "fn main() {\r\n    let größe = [1, 12, 1234];\n}\n// It's the same text, the same tokens: 東京 🦀\n\t\n";
        let file = place.path().join("text.txt");
        fs::write(&file, text.repeat(3)).unwrap();
        let source = Source::of_texts("text".into(), vec![("text.txt".into(), file)]);
        let trained = train_bpe(Documents::new(vec![source], ReadOptions::default()), 300, true).unwrap();
        let tokenizer = Tokenizer::from_bytes(trained.json, Path::new("tokenizer.json")).unwrap();
        let ids = tokenizer.encode(text).unwrap();
        let said = format!(
            "{} {:?} {ids:?} {:?}",
            tokenizer.sha256(),
            tokenizer.opening(),
            tokenizer.closing()
        );
        let is = (TOKENISING, format!("{:x}", Sha256::digest(said)));
        assert_eq!(is, (1, TOKENS.into()), "raise TOKENISING, then change this and SHA256");
    }

    /// The hash of the tokenizer and the tokens that this version gives for a small text.
    const TOKENS: &str = "384128efe17c3fe6a302caab6e7c9cf7ca1bcd16f96a4c8b0e1d75c3db2ac2bf";

    #[test]
    fn without_a_workspace_the_error_is_one_line_and_names_the_way_out() {
        let empty = tempfile::tempdir().unwrap();
        let error = prepared_corpus(empty.path(), &empty.path().join("cache"), true).unwrap_err();
        assert!(matches!(error, DataError::Corpus(_)), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
        assert!(error.hint().unwrap().contains("--data"));
        assert!(!empty.path().join("cache").exists());
    }
}
