//! `gpas generate`: what a run's model says after a prompt.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use burn::tensor::backend::AutodiffBackend;
use clap::Args;
use gpas_data::tokenizer::SpelledTokens;
use gpas_data::{SpelledOut, refuse_lfs_pointer};
use serde::Serialize;
use serde_json::Value;

use super::data::report_spelled;
use super::opened::OpenedRun;
use crate::failure::{Failure, Hint, Result};
use crate::number::number;
use gpas_serve::generate::{Finish, GenerationOptions, Sequence, TOGETHER, encode};
use gpas_serve::inference::{Context, check_ids};
use gpas_serve::sampler::Sampling;
use gpas_train::backend::{BackendChoice, BackendTask};

/// Let a run's model go on from a text
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas generate runs/pre_gpas-nano-001 --prompt \"The meaning of\" --max-tokens 40
  gpas generate runs/pre_gpas-nano-001 --prompts prompts.txt --temperature 0 --json

The settings mean what they mean in transformers, and are taken in its order: repetition penalty, temperature, top-k, top-p, min-p. A seed
gives the same text whatever other prompts there are.")]
pub struct GenerateArgs {
    /// The run directory, for its newest checkpoint; with @STEP or @best, for another
    #[arg(value_name = "RUN[@STEP|@best]")]
    run: PathBuf,
    /// The text to go on from
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "prompts",
        conflicts_with = "prompts"
    )]
    prompt: Option<String>,
    /// A file with a prompt on each line; in a .jsonl file each is a JSON string, or an object with a `prompt`
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Tokens to add, at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = number::<usize>)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Seed of what is drawn
    #[arg(long, value_name = "S", default_value_t = 42, value_parser = number::<u64>)]
    seed: u64,
    /// End before this string; may be given several times
    #[arg(long, value_name = "STRING")]
    stop: Vec<String>,
    /// Positions that may be used by prompt and text together [default: those of a sequence in training; of an imported model all]
    #[arg(long, value_name = "N", value_parser = number::<usize>)]
    context: Option<usize>,
    /// Take special tokens that the prompts spell out, such as <|im_start|>, as the tokens they are
    #[arg(long)]
    special_tokens: bool,
    /// Print one JSON object for each prompt
    #[arg(long)]
    json: bool,
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, Args)]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true, value_parser = number::<f64>)]
    temperature: f64,
    /// Draw from the K most probable tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = number::<usize>)]
    top_k: usize,
    /// Draw from the most probable tokens that make up this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true, value_parser = number::<f64>)]
    top_p: f64,
    /// Draw from tokens at least this probable, relative to the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, value_parser = number::<f64>)]
    min_p: f64,
    /// Divides the positive logits of tokens that were there before and multiplies the negative ones
    #[arg(long, value_name = "F", default_value_t = 1.0, allow_negative_numbers = true, value_parser = number::<f64>)]
    repetition_penalty: f64,
}

impl From<SamplingArgs> for Sampling {
    fn from(args: SamplingArgs) -> Self {
        Self {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// If the run or the prompts cannot be read, or a prompt does not fit the model.
pub fn run(args: GenerateArgs, backend: Option<BackendChoice>) -> Result<()> {
    let sampling = Sampling::from(args.sampling);
    sampling.validate()?;
    let prompts = match (&args.prompt, &args.prompts) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(file)) => read_prompts(file)?,
        (None, None) => Vec::new(),
    };
    let opened = OpenedRun::open(&args.run, backend)?;
    let context = opened.context(args.context)?;
    let options = GenerationOptions {
        max_tokens: args.max_tokens,
        sampling,
        seed: args.seed,
        stop: args.stop,
        alternatives: None,
    };
    let selected = opened.selected;
    selected.run(Generation {
        opened,
        prompts,
        options,
        context,
        special_tokens: SpelledOut::taken(args.special_tokens),
        json: args.json,
    })?
}

/// Why a file has no prompts to go on from.
#[derive(Debug, thiserror::Error)]
enum PromptsError {
    #[error("{0}: neither a string nor an object with a `prompt`")]
    NoPrompt(String),
    #[error("{0} has no prompt")]
    Empty(PathBuf),
}

impl Hint for PromptsError {
    fn hint(&self) -> Option<String> {
        None
    }
}

/// The prompts of a file.
fn read_prompts(path: &Path) -> Result<Vec<String>> {
    refuse_lfs_pointer(path)?;
    let text = fs::read_to_string(path).map_err(Failure::during(path.display()))?;
    let is_json = path.extension().is_some_and(|ending| ending == "jsonl");
    let prompt = |(index, line): (usize, &str)| -> Result<String> {
        let at = format!("{}:{}", path.display(), index + 1);
        if !is_json {
            return Ok(line.to_string());
        }
        let value: Value = serde_json::from_str(line).map_err(Failure::during(&at))?;
        match value.as_str().or(value["prompt"].as_str()) {
            Some(prompt) => Ok(prompt.to_string()),
            None => Err(PromptsError::NoPrompt(at).into()),
        }
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<String> = lines.map(prompt).collect::<Result<_>>()?;
    if prompts.is_empty() {
        return Err(PromptsError::Empty(path.to_path_buf()).into());
    }
    Ok(prompts)
}

struct Generation {
    opened: OpenedRun,
    prompts: Vec<String>,
    options: GenerationOptions,
    context: Context,
    special_tokens: SpelledOut,
    json: bool,
}

/// A prompt with what has come after it.
#[derive(Debug, Serialize)]
struct Text {
    prompt: String,
    text: String,
    /// `stop` or `length`.
    finish: &'static str,
    prompt_tokens: usize,
    tokens: usize,
    seed: u64,
}

impl BackendTask for Generation {
    type Output = Result<()>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let model = self.opened.model::<B>(&device)?;
        let generator = self.opened.generator(&model, self.context);
        // Every prompt is checked before the first text is printed.
        let mut waiting: VecDeque<(usize, Vec<u32>)> = VecDeque::new();
        let mut spelled = SpelledTokens::default();
        for (index, prompt) in self.prompts.iter().enumerate() {
            let ids = encode(generator.tokenizer, prompt, self.special_tokens)?;
            check_ids(&ids, generator.vocab, generator.context)?;
            waiting.push_back((index, ids));
            if self.special_tokens == SpelledOut::AsText {
                spelled.add(generator.tokenizer.spelled_special_tokens(prompt));
            }
        }
        report_spelled("the prompts", &spelled);
        let one = self.prompts.len() == 1 && !self.json;
        let mut out = io::stdout();
        let mut texts: Vec<Option<Text>> = Vec::new();
        let mut printed = 0;
        let mut running: Vec<(Text, usize, Sequence<B::InnerBackend>)> = Vec::new();
        let mut is_cut = false;
        texts.resize_with(self.prompts.len(), || None);
        while !(waiting.is_empty() && running.is_empty()) {
            while running.len() < TOGETHER
                && let Some((index, ids)) = waiting.pop_front()
            {
                let text = Text {
                    prompt: self.prompts[index].clone(),
                    text: String::new(),
                    finish: "",
                    prompt_tokens: ids.len(),
                    tokens: 0,
                    seed: self.options.seed,
                };
                let sequence = generator.sequence(generator.prompt(ids)?, self.options.clone())?;
                running.push((text, index, sequence));
            }
            let mut sequences: Vec<_> = running.iter_mut().map(|(_, _, sequence)| sequence).collect();
            let pieces = generator.step(&mut sequences)?;
            for ((text, _, _), piece) in running.iter_mut().zip(pieces) {
                text.text += &piece.text;
                if one && !piece.text.is_empty() {
                    write!(out, "{}", piece.text)?;
                    out.flush()?;
                }
            }
            let (ended, still) = running
                .into_iter()
                .partition(|(_, _, sequence)| sequence.finish().is_some());
            running = still;
            for (mut text, index, sequence) in Vec::from_iter(ended) {
                let Some(finish) = sequence.finish() else { continue };
                is_cut |= finish == Finish::Context;
                text.finish = finish.reason();
                text.tokens = sequence.made();
                texts[index] = Some(text);
            }
            // Texts are printed in the order of the prompts, each as soon as those before it are complete.
            while let Some(text) = texts.get_mut(printed).and_then(Option::take) {
                printed += 1;
                if one {
                    writeln!(out)?;
                } else if self.json {
                    writeln!(out, "{}", serde_json::to_string(&text)?)?;
                } else {
                    writeln!(out, "[{printed}] {}{}\n", text.prompt, text.text)?;
                }
            }
        }
        if is_cut {
            let Context { tokens, positions } = self.context;
            if self.context.can_grow() {
                complain!(
                    "note: the context of {tokens} tokens is full; the model has {positions} positions for `--context N`"
                );
            } else {
                complain!("note: the {positions} positions that the model has are full");
            }
        }
        Ok(())
    }
}
