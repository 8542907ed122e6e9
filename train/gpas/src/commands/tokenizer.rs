//! `gpas tokenizer`: train a byte-level BPE tokenizer.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};
use gpas_data::DataError;
use gpas_data::bpe::{END_OF_DOCUMENT, train_bpe};
use gpas_data::source::{Documents, ReadOptions};

use super::data::{ReadArgs, report_skipped, report_sources};

use crate::failure::Result;
use crate::number::number;
use crate::terminal::Stream;

/// Make a tokenizer of one's own.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpas tokenizer train text.jsonl --vocab 8192 -o tokenizer.json")]
pub struct TokenizerArgs {
    #[command(subcommand)]
    command: TokenizerCommand,
}

#[derive(Debug, Subcommand)]
enum TokenizerCommand {
    /// Train a byte-level BPE: the same text gives the same file.
    Train(TrainArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpas tokenizer train 'text/*.jsonl.gz' --vocab 8192 -o tokenizer.json")]
struct TrainArgs {
    /// Files, directories or globs of .jsonl, .json, .txt (each also as .gz or .zst) or .parquet
    #[arg(value_name = "SRC", required = true)]
    sources: Vec<PathBuf>,
    /// Ids in the vocabulary: 256 bytes, the end-of-document token, and merges
    #[arg(long, value_name = "N", value_parser = number::<usize>)]
    vocab: usize,
    /// The tokenizer.json to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
}

/// Runs `gpas tokenizer`.
///
/// # Errors
/// If the text cannot be read, or the file cannot be written.
pub fn run(args: TokenizerArgs) -> Result<()> {
    let TokenizerCommand::Train(args) = args.command;
    let start = Instant::now();
    // Checked before the work, which takes long.
    if args.out.symlink_metadata().is_ok() {
        return Err(DataError::OutputExists { path: args.out }.into());
    }
    let mut read = ReadOptions::try_from(args.read)?;
    let asked = read.separator.clone();
    // The tokenizer will end documents with this token, so that no text should hold it.
    read.separator = read.separator.or_token(Some(END_OF_DOCUMENT.into()));
    let separator = read.separator.clone();
    let documents = Documents::open(&args.sources, read)?;
    let trained = train_bpe(documents, args.vocab, Stream::Error.takes_pictures().is_err())?;
    trained.save(&args.out)?;
    report_skipped(&trained.skipped);
    let was_cut = trained.sources.iter().any(|source| source.separators > 0);
    let sources: Vec<_> = trained.sources.iter().collect();
    report_sources(&sources, if was_cut { &separator } else { &asked })?;
    if trained.vocab_size < trained.asked {
        complain!(
            "warning: the text gave {} of the {} ids asked for: no other pair occurs twice",
            trained.vocab_size,
            trained.asked
        );
    }
    writeln!(
        io::stdout(),
        "{}: {} ids from {} documents, {} bytes of text, in {:.1} s",
        args.out.display(),
        trained.vocab_size,
        trained.documents,
        trained.text_bytes,
        start.elapsed().as_secs_f64()
    )?;
    Ok(())
}
