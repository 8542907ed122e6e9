//! `gpas data`: prepare, inspect and verify directories of tokens.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Subcommand};
use gpas_data::SpelledOut;
use gpas_data::prepare::{PrepareOptions, ValidationSplit, prepare};
use gpas_data::source::{ReadOptions, Skipped};
use gpas_data::store::{summarise, verify};
use gpas_data::tokenizer::SpelledTokens;

use crate::failure::Result;

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
    /// Files, directories or globs of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt
    #[arg(value_name = "SRC", required = true)]
    sources: Vec<String>,
    /// The tokenizer.json of any Hugging Face tokenizer
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// A source of validation text, or the fraction of the documents to set aside
    #[arg(long, value_name = "SRC|FRACTION")]
    validation: String,
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
    /// The field or column that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// Stop at the first malformed record instead of skipping it
    #[arg(long)]
    strict: bool,
}

impl From<ReadArgs> for ReadOptions {
    fn from(args: ReadArgs) -> Self {
        Self {
            field: args.field,
            strict: args.strict,
        }
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
    #[arg(long, value_name = "N", default_value_t = 2)]
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
    let validation: ValidationSplit = args.validation.parse()?;
    let report = prepare(&PrepareOptions {
        sources: args.sources,
        tokenizer: args.tokenizer,
        validation,
        out: args.out.clone(),
        read: args.read.into(),
        end_of_document: args.eos,
        special_tokens: SpelledOut::taken(args.special_tokens),
        quiet: false,
    })?;
    report_skipped(&report.skipped);
    report_spelled("the texts", &report.spelled);
    let manifest = &report.manifest;
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

/// Says on standard error how many records were not used, and why the first few were not.
pub(crate) fn report_skipped(skipped: &Skipped) {
    if skipped.bad == 0 {
        return;
    }
    eprintln!("warning: {} bad records were skipped", skipped.bad);
    for record in &skipped.first {
        eprintln!("  {record}");
    }
    if skipped.bad > skipped.first.len() as u64 {
        eprintln!("  …");
    }
}

/// Says on standard error that texts spell out special tokens, which were taken as text.
pub(crate) fn report_spelled(what: &str, spelled: &SpelledTokens) {
    if let Some(first) = &spelled.first {
        eprintln!(
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
