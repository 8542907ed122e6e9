//! `gpas data`: prepare, inspect and verify directories of tokens.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Subcommand};
use gpas_data::prepare::{PrepareOptions, ValidationSplit, prepare};
use gpas_data::source::{LeftOut, LeftOutReason, ReadOptions, Separator, Skipped, SourceRecord};
use gpas_data::store::{summarise, verify};
use gpas_data::tokenizer::SpelledTokens;
use gpas_data::{DataError, SpelledOut};

use crate::failure::Result;
use crate::number::number;
use crate::terminal::Stream;

/// Prepare text for training, and look at prepared data.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpas data inspect prepared --samples 3")]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Tokenize text into a directory that training memory-maps.
    Prepare(PrepareArgs),
    /// Show what a prepared directory holds: counts, lengths of documents, decoded samples.
    Inspect(InspectArgs),
    /// Read every byte of a prepared directory and compare it with the manifest.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  gpas data prepare 'text/*.jsonl.gz' --tokenizer tokenizer.json --validation 0.01 -o prepared"
)]
struct PrepareArgs {
    /// Files, directories or globs of .jsonl, .json, .txt (each also as .gz or .zst) or .parquet
    #[arg(value_name = "SRC", required = true)]
    sources: Vec<PathBuf>,
    /// The tokenizer.json of any Hugging Face tokenizer, or a directory with one
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// A source of validation text, or the fraction of the documents (of an only document, of its tokens) to set aside
    #[arg(long, value_name = "SRC|FRACTION")]
    validation: OsString,
    /// The directory to make
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
    /// The token that ends a document, where the tokenizer's own is not found or not wanted
    #[arg(long, value_name = "TOKEN")]
    eos: Option<String>,
    /// Take special tokens that the texts spell out, such as <|im_start|>, as the tokens they are
    #[arg(long)]
    special_tokens: bool,
}

/// How records are read; shared with `gpas tokenizer train`.
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// The field or column that holds the text; OUTER.INNER for a field in a field
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// Stop at the first malformed record instead of skipping it
    #[arg(long)]
    strict: bool,
    /// Cut text files into documents at TEXT (\n, \r and \t are understood), '' nowhere [default: the token that ends a
    /// document, in files that hold it]
    #[arg(long, value_name = "TEXT")]
    separator: Option<String>,
    /// Read files and directories whose names begin with a dot, too
    #[arg(long)]
    hidden: bool,
}

impl TryFrom<ReadArgs> for ReadOptions {
    type Error = DataError;

    fn try_from(args: ReadArgs) -> Result<Self, DataError> {
        let separator = args.separator.map(|text| text.parse()).transpose()?;
        Ok(Self {
            field: args.field,
            strict: args.strict,
            separator: separator.unwrap_or_default(),
            hidden: args.hidden,
        })
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpas data inspect prepared --samples 3")]
struct InspectArgs {
    /// A directory made by `gpas data prepare`
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print json
    #[arg(long)]
    json: bool,
    /// Documents to show decoded
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = number::<usize>)]
    samples: usize,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpas data verify prepared")]
struct VerifyArgs {
    /// A directory made by `gpas data prepare`
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Runs `gpas data`.
///
/// # Errors
/// If a source or prepared data cannot be read or is damaged, or prepared data cannot be written.
pub fn run(args: DataArgs) -> Result<()> {
    match args.command {
        DataCommand::Prepare(args) => run_prepare(args),
        DataCommand::Inspect(args) => run_inspect(&args),
        DataCommand::Verify(args) => run_verify(&args.directory),
    }
}

fn run_prepare(args: PrepareArgs) -> Result<()> {
    let start = Instant::now();
    let validation = ValidationSplit::of(&args.validation)?;
    let read = ReadOptions::try_from(args.read)?;
    let separator = read.separator.clone();
    let report = prepare(&PrepareOptions {
        sources: args.sources,
        tokenizer: args.tokenizer,
        validation,
        out: args.out.clone(),
        read,
        end_of_document: args.eos,
        special_tokens: SpelledOut::taken(args.special_tokens),
        quiet: Stream::Error.takes_pictures().is_err(),
    })?;
    report_skipped(&report.skipped);
    report_spelled("the texts", &report.spelled);
    let manifest = &report.manifest;
    let sources: Vec<_> = manifest.sources.iter().chain(&manifest.validation_sources).collect();
    let separator = match &manifest.separator {
        Some(text) => Separator::Text(text.clone()),
        None => separator,
    };
    report_sources(&sources, &separator)?;
    if let Some(cut) = manifest.cut_at {
        writeln!(
            io::stdout(),
            "{:10}  the only document, after {cut} tokens: validation is its end (--separator cuts text files into documents)",
            "cut"
        )?;
    }
    for (name, split) in [("train", &manifest.train), ("validation", &manifest.validation)] {
        writeln!(
            io::stdout(),
            "{name:10}  {} documents, {} tokens, {:.3} bytes per token",
            split.documents,
            split.tokens,
            split.text_bytes as f64 / split.tokens as f64
        )?;
    }
    if manifest.empty_documents > 0 {
        writeln!(io::stdout(), "left out    {} empty documents", manifest.empty_documents)?;
    }
    writeln!(
        io::stdout(),
        "{} in {:.1} s",
        args.out.display(),
        start.elapsed().as_secs_f64()
    )?;
    Ok(())
}

/// Says what was read of the sources and what was left out.
pub(crate) fn report_sources(sources: &[&SourceRecord], separator: &Separator) -> Result<()> {
    let sum = |count: fn(&SourceRecord) -> u64| sources.iter().map(|source| count(source)).sum::<u64>();
    writeln!(
        io::stdout(),
        "{:10}  {}, {}, {}",
        "read",
        counted(sum(|source| source.files), "file"),
        counted(sum(|source| source.documents), "document"),
        counted(sum(|source| source.bytes), "byte")
    )?;
    for left in LeftOut::of_all(sources.iter().flat_map(|source| &source.left_out)) {
        let remark = match left.reason {
            LeftOutReason::Hidden => " (--hidden takes them)",
            _ => "",
        };
        writeln!(io::stdout(), "{:10}  {left}{remark}", "left out")?;
    }
    match (separator, sum(|source| source.separators)) {
        (Separator::Text(text), 0) => complain!("warning: no text file holds the separator {text:?}"),
        (Separator::Text(text), count) => {
            writeln!(
                io::stdout(),
                "{:10}  text files into documents, at {count} × {text:?}",
                "cut"
            )?;
        }
        (Separator::EndOfDocument | Separator::Nowhere, _) => {}
    }
    Ok(())
}

/// A number of things, in words.
fn counted(count: u64, thing: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{ending}")
}

/// Says on standard error how many records were not used, and why the first few were not.
pub(crate) fn report_skipped(skipped: &Skipped) {
    if skipped.bad == 0 {
        return;
    }
    let were = if skipped.bad == 1 { "was" } else { "were" };
    complain!("warning: {} {were} skipped", counted(skipped.bad, "bad record"));
    for record in &skipped.first {
        complain!("  {record}");
    }
    if skipped.bad > skipped.first.len() as u64 {
        complain!("  …");
    }
}

/// Says on standard error that texts spell out special tokens, which were taken as text.
pub(crate) fn report_spelled(what: &str, spelled: &SpelledTokens) {
    if let Some(first) = &spelled.first {
        complain!(
            "warning: {what} spell out special tokens, {} in all, the first `{first}`; they were taken as text, letter by letter; \
             `--special-tokens` takes them as the tokens they are",
            spelled.count
        );
    }
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let summary = summarise(&args.directory, args.samples)?;
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&summary)?)?;
    } else {
        write!(io::stdout(), "{summary}")?;
    }
    Ok(())
}

fn run_verify(directory: &Path) -> Result<()> {
    let verified = verify(directory)?;
    writeln!(
        io::stdout(),
        "{}: {} files, {} bytes and {} tokens are as they were prepared",
        directory.display(),
        verified.files,
        verified.bytes,
        verified.tokens
    )?;
    Ok(())
}
