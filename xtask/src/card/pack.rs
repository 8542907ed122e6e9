//! The directory that goes to a card's machine.
//!
//! It holds `gpas`, without symbols and compressed; this program, which runs the stages; the script of the PyTorch peer; a text as tokens
//! with the losses that a processor had on it; and, where given, what cards have tuned and compiled before.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::json;

use super::files::{copy_all, write_whole};
use super::stages::{PROCESSOR, TRAINING, TRAINING_OPTIONS};
use crate::peers::{build, root, target, versions};

/// Make one directory of what a card's machine needs
#[derive(Debug, Args)]
pub(super) struct PackArgs {
    /// Where it goes; what lies there is replaced [default: card in cargo's target directory]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Features of `gpas` besides the default ones
    #[arg(long, value_delimiter = ',', default_value = "cuda,vulkan")]
    features: Vec<String>,
    /// Pack this `gpas` rather than build one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The `cache` that a run on such a card has left in its results: tuned and compiled kernels
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// The file that makes a directory a pack: which commit was built, with which features.
pub(super) const FACTS: &str = "pack.json";
/// The script of the peer.
pub(super) const PEER: &str = "peer.py";
/// What was tuned before.
pub(super) const PACKED: &str = "cache";
const GPAS: &str = "gpas.gz";
const OWN: &str = "xtask";

/// Bytes that a pack may have.
const MOST: u64 = 40 << 20;

pub(super) fn run(args: &PackArgs) -> Result<()> {
    let features: Vec<&str> = args.features.iter().map(String::as_str).collect();
    let gpas = match &args.binary {
        Some(file) => file.clone(),
        None => build(&features)?,
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => target()?.join("card"),
    };
    make_room(&out)?;
    let root = root()?;
    let facts = json!({"build": versions(root)?, "features": args.features});
    let place = tempfile::tempdir()?;
    for (program, name) in [(gpas, "gpas"), (std::env::current_exe()?, OWN)] {
        strip(&program, &place.path().join(name))?;
    }
    compress(&place.path().join("gpas"), &out.join(GPAS))?;
    fs::copy(place.path().join(OWN), out.join(OWN))?;
    fs::copy(root.join("xtask").join(PEER), out.join(PEER))?;
    train(&place.path().join("gpas"), root, place.path(), &out.join(TRAINING))?;
    if let Some(cache) = &args.cache {
        copy_all(cache, &out.join(PACKED))?;
    }
    write_whole(&out.join(FACTS), &facts)?;
    println!("{}", describe(&out)?);
    Ok(())
}

/// An empty directory; one that is there must be an older pack.
fn make_room(out: &Path) -> Result<()> {
    if out.exists() {
        let is_empty = fs::read_dir(out)?.next().is_none();
        ensure!(
            is_empty || out.join(FACTS).exists(),
            "{} is there and no pack: nothing in it is replaced",
            out.display()
        );
        fs::remove_dir_all(out)?;
    }
    Ok(fs::create_dir_all(out)?)
}

/// Copies a program without its symbols.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let stripped = Command::new("strip").arg("-o").arg(to).arg(program).status();
    let stripped = stripped.context("cannot start `strip`, of the package binutils")?;
    ensure!(stripped.success(), "strip cannot read {}", program.display());
    Ok(())
}

fn compress(from: &Path, to: &Path) -> Result<()> {
    let mut encoder = GzEncoder::new(File::create(to)?, Compression::best());
    io::copy(&mut File::open(from)?, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}

/// The program `gpas` of a pack, unpacked into `out`.
pub(super) fn unpack(pack: &Path, out: &Path) -> Result<PathBuf> {
    let packed = pack.join(GPAS);
    let file = File::open(&packed).with_context(|| packed.display().to_string())?;
    let program = out.join("gpas");
    io::copy(&mut GzDecoder::new(file), &mut File::create(&program)?)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// The sources of this workspace as tokens, and the training on them on this machine's processor, in f32.
fn train(gpas: &Path, root: &Path, place: &Path, to: &Path) -> Result<()> {
    let [text, tokenizer] = ["text.jsonl", "tokenizer.json"].map(|name| place.join(name));
    let (data, run) = (to.join("data"), place.join("run"));
    fs::write(&text, sources(root)?)?;
    fs::create_dir(to)?;
    let mut tokenize = Command::new(gpas);
    tokenize.args(["tokenizer", "train", "--vocab", "2048"]).arg(&text);
    quietly(tokenize.arg("-o").arg(&tokenizer))?;
    let mut prepare = Command::new(gpas);
    prepare.args(["data", "prepare", "--validation", "0.05"]).arg(&text);
    quietly(prepare.arg("--tokenizer").arg(&tokenizer).arg("-o").arg(&data))?;
    let mut train = Command::new(gpas);
    train.args(TRAINING_OPTIONS.split(' ')).args(["--backend", "flex"]);
    quietly(train.arg("--data").arg(&data).arg("-o").arg(&run))?;
    fs::copy(run.join("metrics.jsonl"), to.join(PROCESSOR))?;
    Ok(())
}

/// Runs a command that has to end well.
fn quietly(command: &mut Command) -> Result<()> {
    let ended = command.stdout(Stdio::null()).status()?;
    ensure!(ended.success(), "{command:?} ended with {ended}");
    Ok(())
}

/// A record for each source file of the libraries, in the order of their names.
fn sources(root: &Path) -> Result<String> {
    let mut text = String::new();
    for folder in ["data/src", "model/src", "train/src"] {
        let mut files: Vec<PathBuf> = fs::read_dir(root.join(folder))?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            writeln!(text, "{}", json!({"text": fs::read_to_string(file)?}))?;
        }
    }
    Ok(text)
}

/// What the pack holds and how large it is, if that is not too large.
fn describe(pack: &Path) -> Result<String> {
    let mut entries = fs::read_dir(pack)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let (mut all, mut text) = (0, String::new());
    for entry in entries {
        let size = size(&entry.path())?;
        all += size;
        text += &format!("{:>9.2} MiB  {}\n", mebibytes(size), entry.file_name().display());
    }
    ensure!(
        all <= MOST,
        "the pack has {:.1} MiB and may have {:.0}:\n{text}",
        mebibytes(all),
        mebibytes(MOST)
    );
    let name = pack.display();
    Ok(format!(
        "{text}{:>9.2} MiB  {name}; there: {name}/{OWN} card run --seconds 840",
        mebibytes(all)
    ))
}

fn size(path: &Path) -> Result<u64> {
    if path.is_dir() {
        return fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum();
    }
    Ok(path.metadata()?.len())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::said;

    #[test]
    fn a_program_comes_out_as_it_went_in() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("program");
        fs::write(&program, "#!/bin/sh\necho hello\n").unwrap();
        compress(&program, &place.path().join(GPAS)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let gpas = unpack(place.path(), out.path()).unwrap();
        assert_eq!(said(&mut Command::new(gpas)).unwrap(), "hello");
    }

    #[test]
    fn a_pack_says_what_it_holds_and_may_not_be_too_large() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("training")).unwrap();
        fs::write(place.path().join("training/data"), vec![0; 1 << 20]).unwrap();
        fs::write(place.path().join(PEER), "").unwrap();
        let text = describe(place.path()).unwrap();
        assert!(
            text.starts_with("     0.00 MiB  peer.py\n     1.00 MiB  training\n     1.00 MiB  /"),
            "{text}"
        );
        assert!(text.ends_with("/xtask card run --seconds 840"), "{text}");
        File::create(place.path().join(GPAS)).unwrap().set_len(MOST).unwrap();
        let error = describe(place.path()).unwrap_err().to_string();
        assert!(error.starts_with("the pack has 41.0 MiB and may have 40:\n"), "{error}");
    }

    #[test]
    fn only_a_pack_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("thesis.tex");
        fs::write(&file, "x").unwrap();
        let error = make_room(place.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("is there and no pack: nothing in it is replaced"),
            "{error}"
        );
        assert!(file.exists());
        fs::write(place.path().join(FACTS), "{}").unwrap();
        make_room(place.path()).unwrap();
        assert!(!file.exists() && place.path().exists());
    }
}
