//! A directory with a small corpus in which the binary runs: what the tests of the command line and of resuming share.
//!
//! It holds `text.jsonl`, `tokenizer.json`, the prepared `data` and `tiny.toml`, a recipe that trains on them in milliseconds.

#![allow(dead_code, reason = "neither test uses all of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use wait4::Wait4;

const TINY: &str = "\
[model]
hidden = 16
intermediate = 32
heads = 2
layers = 2
[data]
path = \"data\"
seq_len = 16
[train]
steps = 3
batch = 2
[eval]
tokens = 100
";

/// A directory with a small corpus.
pub struct Place(TempDir);

impl Place {
    /// With nothing but the text.
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory"));
        place.write("text.jsonl", corpus());
        place.write("tiny.toml", TINY);
        place
    }

    /// With its tokenizer and prepared data.
    pub fn prepared() -> Self {
        let place = Self::new();
        place.does("tokenizer train text.jsonl --vocab 300 -o tokenizer.json");
        place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 -o data");
        place
    }

    /// Where it is, as the program sees it.
    pub fn root(&self) -> PathBuf {
        self.0.path().canonicalize().expect("a directory")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("a writable directory");
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("the binary starts")
    }

    /// A command with these arguments, in the directory.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpas"));
        command.args(arguments.split_whitespace()).current_dir(self.root());
        command
    }

    /// Runs a command, whatever comes of it; its largest resident memory, in bytes.
    pub fn peak_memory(&self, arguments: &str) -> u64 {
        let mut command = self.command(arguments);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        child.wait4().expect("it ends").rusage.maxrss
    }

    /// Runs a command that succeeds; its standard output.
    pub fn does(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            output.status.success(),
            "gpas {arguments}: {}\n{said}{errors}",
            output.status
        );
        said
    }

    /// Runs a command that must be refused with exactly this cause and this hint, and leave every file as it was. In both, `…` stands for
    /// any text and `{place}` for the directory.
    pub fn refuses(&self, arguments: &str, error: &str, hint: &str) {
        let before = self.files();
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let case = format!("gpas {arguments}\n{said}");
        assert!(output.status.code().is_some_and(|code| code != 0), "{case}");
        assert!(!said.contains("panicked"), "{case}");
        let place = self.root().display().to_string();
        let expected = format!("error: {error}\nhint: {hint}\n").replace("{place}", &place);
        assert!(is_like(&said, &expected), "{case}expected:\n{expected}");
        assert_eq!(said.lines().count(), 2, "{case}");
        let after = self.files();
        let changed: Vec<_> = after
            .iter()
            .filter(|(path, bytes)| before.get(*path) != Some(bytes))
            .map(|(path, _)| path)
            .collect();
        assert!(changed.is_empty(), "{case}it left {changed:?}");
        assert_eq!(before.len(), after.len(), "{case}it deleted files");
    }

    /// Every file with its bytes, and every directory without any.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(directory).expect("a readable directory") {
                let path = entry.expect("a readable directory").path();
                if path.is_dir() {
                    walk(&path, files);
                    files.insert(path, Vec::new());
                } else {
                    let bytes = fs::read(&path).expect("a readable file");
                    files.insert(path, bytes);
                }
            }
        }
        let mut files = BTreeMap::new();
        walk(self.0.path(), &mut files);
        files
    }

    /// The lines of a run's `metrics.jsonl`.
    pub fn metrics(&self, run: &str) -> Vec<Value> {
        let text = self.read(&format!("{run}/metrics.jsonl"));
        text.lines()
            .map(|line| serde_json::from_str(line).expect("json"))
            .collect()
    }

    /// `metrics.jsonl` without what is measured with a clock.
    pub fn timeless_metrics(&self, run: &str) -> Vec<Value> {
        let mut lines = self.metrics(run);
        for object in lines.iter_mut().filter_map(Value::as_object_mut) {
            object.remove("tokens_per_s");
        }
        lines
    }

    /// A copy of the prepared data with another file in the place of one of its own; without it, if there is none.
    pub fn damaged(&self, file: &str, bytes: Option<&[u8]>) {
        let damaged = self.path("damaged");
        if damaged.exists() {
            fs::remove_dir_all(&damaged).expect("a directory");
        }
        fs::create_dir(&damaged).expect("a directory");
        for entry in fs::read_dir(self.path("data")).expect("prepared data") {
            let entry = entry.expect("a readable directory");
            fs::copy(entry.path(), damaged.join(entry.file_name())).expect("a copy");
        }
        match bytes {
            Some(bytes) => fs::write(damaged.join(file), bytes).expect("a writable file"),
            None => fs::remove_file(damaged.join(file)).expect("a file"),
        }
    }
}

/// 120 documents of 60 words each, drawn by a small generator.
pub fn corpus() -> String {
    let words: Vec<&str> =
        "the quick brown fox jumps over lazy dogs and runs away from every small animal near a river"
            .split(' ')
            .collect();
    let mut state = 1_u32;
    let mut word = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        words[(state >> 16) as usize % words.len()]
    };
    let mut document = || (0..60).map(|_| word()).collect::<Vec<_>>().join(" ");
    (0..120)
        .map(|_| format!("{{\"text\": \"{}\"}}\n", document()))
        .collect()
}

/// Whether a text is the pattern, in which `…` stands for any text.
pub fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        open = part.is_empty();
    }
    open || rest.is_empty()
}

pub fn keys(line: &Value) -> Vec<&str> {
    line.as_object()
        .map(|object| object.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

pub fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}
