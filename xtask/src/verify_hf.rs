//! `cargo xtask verify-hf`: models that leave and come in, beside `transformers` and PyTorch.
//!
//! - A model that leaves is trained for some steps, exported, and loaded by transformers: its logits on real tokens and its greedy
//!   continuation are those of the run. What was folded loads as a plain `LlamaForCausalLM`, without code of ours.
//! - A model that comes in is made by transformers, or by PyTorch in the GPAS authors' format, and imported: its logits are those of the
//!   run. What transformers made leaves again with the same bytes.
//! - A model with scaled rotary positions comes in, in the spellings of transformers 4 and 5, and leaves again, as a stock model and with gates
//!   as an architecture of its own: its logits are the same at positions beyond those before scaling, and so is a continuation with a cache.
//!
//! The other side is `xtask/verify_hf.py`. Continuations are compared without generating twice: if at every place of theirs our likeliest
//! token is the one that follows there, ours is the same, by induction. `gpas generate` has to say the same text besides.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::peers::{Peers, line, root, target, versions};

/// Check exports and imports beside transformers, and print the tables
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask verify-hf --setup
  cargo xtask verify-hf --cases sandwich_gpas,stock --data prepared --text book.txt")]
pub struct VerifyArgs {
    /// What to check: schemes, `stock`, `rope`, `authors` [default: all]
    #[arg(long, value_delimiter = ',', value_name = "CASE")]
    cases: Vec<String>,
    /// Prepared data to train on [default: the built-in corpus]
    #[arg(long, value_name = "DIR", requires = "text")]
    data: Option<PathBuf>,
    /// Text of the same kind, whose first 512 tokens the models see [default: a Rust source, as most of the corpus is]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Steps of each training
    #[arg(long, default_value_t = 50)]
    steps: u64,
    /// A Python with torch and transformers [default: the one that --setup makes]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Make that Python environment first: PyTorch and transformers, some 3 GB
    #[arg(long)]
    setup: bool,
}

/// A model that leaves.
struct Leaving {
    scheme: &'static str,
    /// Besides the steps.
    options: &'static str,
    export: Way,
}

/// How a model leaves.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// As what it is.
    AsItIs,
    /// Folded.
    Folded,
    /// Not folded, though that is asked: its gates shrink the stream until ε of the norms counts, and the exporter has to see that.
    Refused,
}

impl Leaving {
    /// As one would export it.
    fn name(&self) -> String {
        let sets: String = self.options.split_whitespace().map(|set| format!(" {set}")).collect();
        format!("`{}`{}{sets}", self.scheme, self.fold())
    }

    fn fold(&self) -> &'static str {
        if self.export == Way::AsItIs { "" } else { " --fold" }
    }

    /// What was not exported, or not loaded.
    fn stopped(&self, error: &anyhow::Error) -> Row {
        let error = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        let refusal = error.split_once("the largest difference of a logit between the model and its export is ");
        match refusal.and_then(|(_, rest)| rest.split_once(", more than 1e-3")) {
            Some((difference, _)) if self.export == Way::Refused => Row {
                text: format!(
                    "| {} | refused, as it has to be | | {difference} (1e-3) | |",
                    self.name()
                ),
                passed: true,
            },
            _ => Row {
                text: format!("| {} | FAILED: {error} | | | |", self.name()),
                passed: false,
            },
        }
    }
}

const fn leaving(scheme: &'static str, options: &'static str, export: Way) -> Leaving {
    Leaving {
        scheme,
        options,
        export,
    }
}

const LEAVING: [Leaving; 19] = [
    leaving("pre", "", Way::AsItIs),
    leaving("pre_gpas", "", Way::Folded),
    leaving("pre_gpas", "model.gate.init=0.6", Way::Folded),
    // Beyond 1.28 the scale of the stream is negative: −0.33 here, and −0.76 below.
    leaving("pre_gpas", "model.gate.init=1.6", Way::Refused),
    leaving("pre_gpas", "model.gate.init=2.0", Way::Folded),
    leaving(
        "pre_gpas",
        "model.gate.init=2.0 model.gate.per_sublayer=true",
        Way::Folded,
    ),
    leaving("lns_gpas", "", Way::Folded),
    leaving("lns_gpas", "model.gate.init=0.6", Way::Folded),
    leaving("lns_gpas", "model.gate.init=1.6", Way::Refused),
    leaving("lns_gpas", "model.gate.init=2.0", Way::Folded),
    leaving("sandwich_gpas", "", Way::AsItIs),
    leaving("deeppost", "", Way::AsItIs),
    leaving("post_pre_gpas", "", Way::AsItIs),
    leaving("post", "", Way::AsItIs),
    leaving("lns_fixed", "", Way::AsItIs),
    leaving("prores_gpas", "model.residual_warmup=40", Way::AsItIs),
    leaving("peri_gpas", "", Way::AsItIs),
    leaving("keel_gpas", "", Way::AsItIs),
    leaving("layerscale_gpas", "", Way::Folded),
];

/// The authors' checkpoints that come in, and what has to be said where their names do not tell the scheme.
const AUTHORS: [(&str, &str); 4] = [
    ("pre_gpas", ""),
    ("sandwich_gpas", ""),
    ("post_pre_gpas", ""),
    ("deeppost_gpas", " --scheme deeppost_gpas"),
];

/// Tokens whose logits are compared.
const TOKENS: usize = 512;
/// Tokens before a continuation, and of it.
const PROMPT: usize = 32;
const CONTINUED: usize = 64;

/// The scalings of rotary positions, whose models have 256 positions, 64 of them before scaling, and whether `config.json` is that of
/// transformers 4.
const SCALINGS: [(&str, bool); 9] = [
    ("linear", false),
    ("linear", true),
    ("dynamic", false),
    ("dynamic", true),
    ("llama3", false),
    ("llama3", true),
    ("yarn", false),
    ("yarn-mscale", true),
    ("yarn-attention", false),
];
const SCALED_POSITIONS: usize = 256;
/// Tokens whose logits are compared there, before a continuation, and of it.
const SCALED_TOKENS: usize = 200;
const SCALED_PROMPT: usize = 100;
const SCALED_CONTINUED: usize = 48;

/// Largest difference of a logit that passes: RMSNorm's ε does not scale with a folded stream.
const LIMIT: f64 = 1e-4;
const FOLDED_LIMIT: f64 = 1e-3;

/// Runs the cases.
///
/// # Errors
/// If something does not build, run or load, or a case does not pass.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let root = root()?;
    let Peers { gpas, python, .. } = Peers::new(args.python.clone(), args.setup)?;
    let work = target()?.join("verify-hf");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let text = args.text.clone().unwrap_or_else(|| root.join("model/src/llama.rs"));
    let sides = Sides {
        gpas,
        python,
        script: root.join("xtask/verify_hf.py"),
        work,
        text: std::path::absolute(text)?,
    };
    let is_asked = |name: &str| args.cases.is_empty() || args.cases.iter().any(|case| case == name);
    let mut rows = Vec::new();
    let mut header = format!(
        "| model | loads as | scale of the stream | largest difference of a logit (may be) | same {CONTINUED} tokens: one by one, cached, \
         padded, `gpas generate` |\n|---|---|---|---|---|"
    );
    for (index, case) in LEAVING.iter().enumerate().filter(|(_, case)| is_asked(case.scheme)) {
        // What is refused is a row as well, and the others follow.
        let row = sides.leaves(case, &format!("{index:02}"), args);
        say(&mut header, row.unwrap_or_else(|error| case.stopped(&error)), &mut rows);
    }
    let mut header =
        "\n| model from elsewhere | largest difference of a logit (may be) | exported again |\n|---|---|---|"
            .to_string();
    if is_asked("stock") {
        say(&mut header, sides.stock_comes_in().context("stock")?, &mut rows);
    }
    if is_asked("rope") {
        sides.frequencies_are_the_golden()?;
        for (scaling, is_old) in SCALINGS {
            let row = sides.scaled_comes_in(scaling, is_old);
            say(&mut header, row.with_context(|| scaling.to_string())?, &mut rows);
        }
    }
    for (scheme, option) in AUTHORS.iter().filter(|_| is_asked("authors")) {
        let row = sides.authors_come_in(scheme, option);
        say(
            &mut header,
            row.with_context(|| format!("authors' {scheme}"))?,
            &mut rows,
        );
    }
    ensure!(!rows.is_empty(), "there is no case {}", args.cases.join(", "));
    let theirs = line(Command::new(&sides.python).arg(&sides.script).arg("versions"))?;
    println!(
        "\n{TOKENS} tokens, f32, {} steps, {}, PyTorch {}, transformers {}",
        args.steps,
        versions(root)?,
        theirs["torch"].as_str().unwrap_or_default(),
        theirs["transformers"].as_str().unwrap_or_default()
    );
    let failed: Vec<String> = rows.into_iter().filter(|row| !row.passed).map(|row| row.text).collect();
    ensure!(failed.is_empty(), "failed:\n{}", failed.join("\n"));
    Ok(())
}

/// A line of a table.
struct Row {
    text: String,
    passed: bool,
}

/// Prints a row as soon as it is there, the header before the first.
fn say(header: &mut String, row: Row, rows: &mut Vec<Row>) {
    if !header.is_empty() {
        println!("{header}");
        header.clear();
    }
    println!("{}", row.text);
    rows.push(row);
}

/// What does the work, and where.
struct Sides {
    gpas: PathBuf,
    python: PathBuf,
    script: PathBuf,
    work: PathBuf,
    text: PathBuf,
}

impl Sides {
    fn gpas(&self, arguments: &str) -> Result<String> {
        self.gpas_with(arguments, &[])
    }

    /// With arguments that may hold spaces.
    fn gpas_with(&self, arguments: &str, more: &[&str]) -> Result<String> {
        let output = Command::new(&self.gpas)
            .args(arguments.split_whitespace())
            .args(more)
            .current_dir(&self.work)
            .output()?;
        ensure!(
            output.status.success(),
            "gpas {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn python(&self, arguments: &[&str]) -> Result<Value> {
        line(
            Command::new(&self.python)
                .arg(&self.script)
                .args(arguments)
                .current_dir(&self.work),
        )
    }

    /// Our logits of some ids, in so many positions.
    fn logits(&self, run: &str, ids: &[u64], context: usize, out: &str) -> Result<Logits> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let ids = ids.join(",");
        self.gpas(&format!("logits {run} --ids {ids} --context {context} --out {out}"))?;
        Logits::read(&self.work.join(out))
    }

    /// Trains, exports, loads, compares.
    fn leaves(&self, case: &Leaving, name: &str, args: &VerifyArgs) -> Result<Row> {
        let (run, out) = (format!("{name}-run"), format!("{name}-out"));
        let mut train = format!(
            "train --preset nano --scheme {} --set train.steps={} --set eval.tokens=4096 --plain -o {run}",
            case.scheme, args.steps
        );
        for set in case.options.split_whitespace() {
            write!(train, " --set {set}")?;
        }
        match &args.data {
            Some(data) => {
                let data = std::path::absolute(data)?.display().to_string();
                self.gpas_with(&train, &["--data", &data])?
            }
            None => self.gpas(&train)?,
        };
        let exported: Value = serde_json::from_str(&self.gpas(&format!("export {run} {out} --json{}", case.fold()))?)?;
        let is_stock = exported["architecture"] == "LlamaForCausalLM";
        let is_folded = exported["folded"] == true;

        let (file, text) = (format!("{name}.theirs"), self.text.display().to_string());
        let [tokens, prompt, continued] = [TOKENS, PROMPT, CONTINUED].map(|count| count.to_string());
        let mut load = vec!["load", &out, &text, &file, &tokens, &prompt, &continued];
        load.extend(is_stock.then_some("--stock"));
        let found = self.python(&load)?;
        let theirs = Logits::read(&self.work.join(file))?;
        let ours = self.logits(&run, &integers(&found["ids"])?, TOKENS, &format!("{name}.ours"))?;
        let difference = ours.largest_difference(&theirs)?;
        let limit = if is_folded { FOLDED_LIMIT } else { LIMIT };

        let (prompt, continued) = (integers(&found["prompt_ids"])?, integers(&found["continued"])?);
        ensure!(continued.len() == CONTINUED, "{found}");
        let whole = [&prompt[..], &continued].concat();
        let likeliest = self
            .logits(&run, &whole[..whole.len() - 1], TOKENS, &format!("{name}.greedy"))?
            .likeliest()
            .split_off(prompt.len() - 1);
        let said = self.says(&run, found["prompt"].as_str().context("prompt")?, CONTINUED, TOKENS)?;
        let same = [
            likeliest == continued,
            found["same_cached"] == true,
            found["same_padded"] == true,
            said["text"] == found["text"] && said["prompt_tokens"] == json!(prompt.len()),
        ];
        let yes = same.map(|same| if same { "yes" } else { "NO" });
        let scale = exported["smallest_scale"].as_f64().map(|scale| format!("{scale:.1e}"));
        Ok(Row {
            text: format!(
                "| {} | {} | {} | {difference:.1e} ({limit:.0e}) | {} |",
                case.name(),
                found["architecture"].as_str().unwrap_or_default(),
                scale.as_deref().unwrap_or("–"),
                yes.join(", ")
            ),
            passed: difference <= limit
                && same == [true; 4]
                && match case.export {
                    Way::AsItIs => true,
                    Way::Folded => is_stock,
                    Way::Refused => false,
                },
        })
    }

    /// What `gpas generate` makes of a prompt, in so many tokens and positions.
    fn says(&self, run: &str, prompt: &str, tokens: usize, context: usize) -> Result<Value> {
        fs::write(
            self.work.join("prompt.jsonl"),
            format!("{}\n", json!({"prompt": prompt})),
        )?;
        let said = self.gpas(&format!(
            "generate {run} --prompts prompt.jsonl --temperature 0 --max-tokens {tokens} --context {context} --json"
        ))?;
        Ok(serde_json::from_str(said.trim())?)
    }

    /// Makes a model in transformers, imports it, compares, and exports it again.
    fn stock_comes_in(&self) -> Result<Row> {
        let difference = self.comes_in("stock", &["stock"], "")?;
        self.gpas("export stock-run stock-again")?;
        let [made, again] = ["stock", "stock-again"].map(|out| fs::read(self.work.join(out).join("model.safetensors")));
        let (made, again) = (made?, again?);
        let (made, again) = (SafeTensors::deserialize(&made)?, SafeTensors::deserialize(&again)?);
        let mut names = made.names();
        names.sort();
        let mut others = again.names();
        others.sort();
        let same = names == others
            && names
                .iter()
                .all(|name| made.tensor(name).ok() == again.tensor(name).ok());
        let bytes = match same {
            true => format!("the same bytes in {} tensors", names.len()),
            false => "OTHER BYTES".into(),
        };
        Ok(Row {
            text: format!(
                "| transformers' `LlamaForCausalLM`, grouped-query, tied head | {difference:.1e} ({LIMIT:.0e}) | {bytes} |"
            ),
            passed: difference <= LIMIT && same,
        })
    }

    /// Compares the rotary frequencies of the release that is installed with those that the tests of gpas-model read.
    fn frequencies_are_the_golden(&self) -> Result<()> {
        self.python(&["rope", "rope.json"])?;
        let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
        let golden = read(root()?.join("model/golden/rope.json"))?;
        let found = read(self.work.join("rope.json"))?;
        ensure!(
            found["cases"] == golden["cases"],
            "transformers computes other frequencies than model/golden/rope.json has"
        );
        Ok(())
    }

    /// Makes a model with scaled rotary positions in transformers, imports it, compares, exports it again, and compares what transformers makes
    /// of that; likewise with gates that are the identity, as an architecture of its own.
    fn scaled_comes_in(&self, scaling: &str, is_old: bool) -> Result<Row> {
        let name = format!("{scaling}{}", if is_old { "-old" } else { "" });
        self.make_tokenizer()?;
        let text = self.text.display().to_string();
        let [tokens, prompt, continued] =
            [SCALED_TOKENS, SCALED_PROMPT, SCALED_CONTINUED].map(|count| count.to_string());
        let file = format!("{name}.theirs");
        let mut make = vec!["scaled", scaling, &name, "tokenizer.json", &text, &file, &tokens];
        make.extend(is_old.then_some("--old"));
        let ids = integers(&self.python(&make)?["ids"])?;
        let theirs = Logits::read(&self.work.join(file))?;

        let (mut differences, mut same) = (Vec::new(), true);
        for (kind, option) in [("stock", ""), ("gated", " --scheme pre_gpas")] {
            let [run, out] = ["run", "out"].map(|what| format!("{name}-{kind}-{what}"));
            self.gpas(&format!("import {name} {run} --tokenizer tokenizer.json{option}"))?;
            differences.push(
                self.logits(&run, &ids, SCALED_POSITIONS, &format!("{run}.ours"))?
                    .largest_difference(&theirs)?,
            );
            self.gpas(&format!("export {run} {out}"))?;
            let file = format!("{out}.theirs");
            let found = self.python(&["again", &out, &text, &file, &tokens, &prompt, &continued])?;
            differences.push(Logits::read(&self.work.join(file))?.largest_difference(&theirs)?);
            let said = self.says(
                &run,
                found["prompt"].as_str().context("prompt")?,
                SCALED_CONTINUED,
                SCALED_POSITIONS,
            )?;
            same &= said["text"] == found["text"] && said["prompt_tokens"] == found["prompt_tokens"];
            same &= found["architecture"]
                == if option.is_empty() {
                    "LlamaForCausalLM"
                } else {
                    "GpasForCausalLM"
                };
        }
        let limit = |difference: &f64| *difference <= LIMIT;
        let shown: Vec<String> = differences
            .iter()
            .map(|difference| format!("{difference:.1e}"))
            .collect();
        let spelling = if is_old { "`rope_scaling`" } else { "`rope_parameters`" };
        let continues = if same {
            "cached continuation the same"
        } else {
            "OTHER CONTINUATION"
        };
        Ok(Row {
            text: format!(
                "| rotary positions scaled as `{scaling}`, {spelling}, {SCALED_TOKENS} tokens | {} ({LIMIT:.0e}) | stock {}, gated in {} out {}; {continues} |",
                shown[0], shown[1], shown[2], shown[3]
            ),
            passed: differences.iter().all(limit) && same,
        })
    }

    /// Makes a checkpoint in the authors' format, imports it and compares.
    fn authors_come_in(&self, scheme: &str, option: &str) -> Result<Row> {
        let difference = self.comes_in(&format!("authors-{scheme}"), &["authors", scheme], option)?;
        Ok(Row {
            text: format!(
                "| the authors' format, `{scheme}`, `pytorch_model.bin` | {difference:.1e} ({LIMIT:.0e}) | – |"
            ),
            passed: difference <= LIMIT,
        })
    }

    fn make_tokenizer(&self) -> Result<()> {
        if self.work.join("tokenizer.json").exists() {
            return Ok(());
        }
        let text = fs::read_to_string(&self.text)?;
        fs::write(self.work.join("text.jsonl"), format!("{}\n", json!({"text": text})))?;
        self.gpas("tokenizer train text.jsonl --vocab 600 -o tokenizer.json")?;
        Ok(())
    }

    /// Has a model and its logits made, imports it, and returns the largest difference of a logit.
    fn comes_in(&self, name: &str, maker: &[&str], option: &str) -> Result<f64> {
        self.make_tokenizer()?;
        let (text, file) = (self.text.display().to_string(), format!("{name}.theirs"));
        let tokens = TOKENS.to_string();
        let found = self.python(&[maker, &[name, "tokenizer.json", &text, &file, &tokens]].concat())?;
        self.gpas(&format!("import {name} {name}-run --tokenizer tokenizer.json{option}"))?;
        let ours = self.logits(
            &format!("{name}-run"),
            &integers(&found["ids"])?,
            TOKENS,
            &format!("{name}.ours"),
        )?;
        ours.largest_difference(&Logits::read(&self.work.join(file))?)
    }
}

fn integers(list: &Value) -> Result<Vec<u64>> {
    let list = list.as_array().with_context(|| format!("{list} is no list"))?;
    list.iter()
        .map(|id| id.as_u64().with_context(|| format!("{id} is no id")))
        .collect()
}

/// Logits `[tokens, vocab]`.
struct Logits {
    vocab: usize,
    values: Vec<f32>,
}

impl Logits {
    /// The tensor `logits` of a file.
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let file = SafeTensors::deserialize(&bytes)?;
        let tensor = file.tensor("logits")?;
        let &[_, vocab] = tensor.shape() else {
            anyhow::bail!("{}: logits of shape {:?}", path.display(), tensor.shape());
        };
        let numbers = tensor.data().as_chunks::<4>().0.iter();
        let values = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(Self { vocab, values })
    }

    /// NaN, which is the largest in the total order of numbers, if any of the differences is.
    fn largest_difference(&self, other: &Self) -> Result<f64> {
        ensure!(
            self.vocab == other.vocab && self.values.len() == other.values.len(),
            "other shapes"
        );
        let pairs = self.values.iter().zip(&other.values);
        let differences = pairs.map(|(a, b)| f64::from((a - b).abs()));
        Ok(differences.max_by(f64::total_cmp).unwrap_or(0.0))
    }

    /// The likeliest id at each place.
    fn likeliest(&self) -> Vec<u64> {
        let likeliest = |row: &[f32]| {
            let largest = row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
            largest.map_or(0, |(id, _)| id as u64)
        };
        self.values.chunks_exact(self.vocab).map(likeliest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_compared_and_their_largest_found() {
        let logits = |values: &[f32]| Logits {
            vocab: 3,
            values: values.to_vec(),
        };
        let one = logits(&[0.0, 2.0, 1.0, -1.0, -3.0, -2.0]);
        assert_eq!(one.likeliest(), [1, 0]);
        let other = logits(&[0.0, 2.0, 1.5, -1.0, -3.0, -2.25]);
        assert_eq!(one.largest_difference(&other).unwrap(), 0.5);
        assert!(
            one.largest_difference(&logits(&[f32::NAN, 9.0, 1.0, 1.0, 1.0, 1.0]))
                .unwrap()
                .is_nan()
        );
        assert!(one.largest_difference(&logits(&[0.0; 3])).is_err());
    }
}
