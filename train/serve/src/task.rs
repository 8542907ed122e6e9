//! Likelihood tasks: which of several texts a model finds most probable.
//!
//! A task is a JSONL file. An item is a minimal pair `{"sentence_good", "sentence_bad"}`, or multiple choice `{"context", "choices",
//! "label"}` with the number of the right choice, from 0.
//!
//! Every rule is that of lm-evaluation-harness, so that both report the same score:
//!
//! - a choice follows its context after one space (its `target_delimiter`); a sentence of a pair follows an empty context in the same way
//! - whitespace at the end of a context is moved to the choice; the two are tokenized together, and the choice has the tokens after as many
//!   as the context has by itself
//! - an empty context stands for the tokens that open a text; if there are none for the token that begins one, or else for the one that ends
//!   one
//! - a text that is longer than the model's context loses its first tokens
//! - an item is right if its label is the choice with the largest score, the first one where several are equal. The score is the logarithm
//!   of the choice's probability for `acc`, that per character for `acc_norm` and that per byte for `acc_bytes` (the space does not count)
//! - the standard error is that of a mean: the standard deviation (with n − 1) over √n
//!
//! ```no_run
//! use std::path::Path;
//! use burn::tensor::backend::Backend;
//! use gpas_serve::generate::Generator;
//! use gpas_serve::task::{TaskError, read_task};
//!
//! fn accuracy<B: Backend>(generator: &Generator<'_, B>) -> Result<f64, TaskError> {
//!     let items = read_task(Path::new("pairs.jsonl"))?;
//!     Ok(generator.task(&items)?.acc)
//! }
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use gpas_data::Tokenizer;
use gpas_data::{DataError, refuse_lfs_pointer};
use serde::{Deserialize, Serialize};

use crate::generate::{Generator, TokenScore};
use crate::inference::{Context, InferenceError};

/// The `target_delimiter` between a context and a choice.
const DELIMITER: &str = " ";

/// Why a task cannot be read or scored.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum TaskError {
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path}:{line}: {what}")]
    Item { path: PathBuf, line: usize, what: String },
    #[error("{0} has no items")]
    Empty(PathBuf),
    #[error("line {line}: choice {choice} adds no token to its context")]
    NoTokens { line: usize, choice: usize },
    #[error(
        "line {line}: choice {choice} has no token before it, since the tokenizer has none that opens or ends a text"
    )]
    NoContext { line: usize, choice: usize },
    #[error("line {line}: choice {choice} has {tokens} tokens, more than {context}")]
    TooLong {
        line: usize,
        choice: usize,
        tokens: usize,
        context: Context,
    },
    #[error(transparent)]
    Inference(#[from] InferenceError),
    #[error(transparent)]
    Data(#[from] DataError),
}

impl TaskError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            TaskError::Item { .. } | TaskError::Empty(_) => Some(
                "a line is {\"sentence_good\": …, \"sentence_bad\": …} or {\"context\": …, \"choices\": […], \"label\": 0}"
                    .into(),
            ),
            TaskError::TooLong { context, .. } => Some(context.hint()),
            TaskError::Inference(error) => error.hint(),
            TaskError::Data(error) => error.hint(),
            _ => None,
        }
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its line in the file, from 1.
    pub line: usize,
    /// What comes before each choice.
    pub context: String,
    /// What may follow.
    pub choices: Vec<String>,
    /// The number of the right one.
    pub label: usize,
}

/// A line of the file.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Pair {
        sentence_good: String,
        sentence_bad: String,
    },
    Choice {
        context: String,
        choices: Vec<String>,
        label: usize,
    },
}

/// Reads a task.
///
/// # Errors
/// If the file cannot be read, or the first line that is no item.
pub fn read_task(path: &Path) -> Result<Vec<Item>, TaskError> {
    refuse_lfs_pointer(path)?;
    let text = fs::read_to_string(path).map_err(|cause| TaskError::File {
        path: path.into(),
        cause,
    })?;
    let lines = (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty());
    let items: Vec<Item> = lines
        .map(|(line, text)| {
            item(line, text).map_err(|what| TaskError::Item {
                path: path.into(),
                line,
                what,
            })
        })
        .collect::<Result<_, _>>()?;
    if items.is_empty() {
        return Err(TaskError::Empty(path.into()));
    }
    Ok(items)
}

fn item(line: usize, text: &str) -> Result<Item, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    // Task files carry other keys too, such as an id or a category, which are ignored.
    let known = ["sentence_good", "sentence_bad", "context", "choices", "label"];
    let object = value.as_object().ok_or("not an object")?;
    let own = object.iter().filter(|(key, _)| known.contains(&key.as_str()));
    let own = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    let parsed = serde_json::from_value(serde_json::Value::Object(own));
    let (context, choices, label) = match parsed.map_err(|_| "neither a minimal pair nor multiple choice")? {
        Line::Pair {
            sentence_good,
            sentence_bad,
        } => (String::new(), vec![sentence_good, sentence_bad], 0),
        Line::Choice {
            context,
            choices,
            label,
        } => (context, choices, label),
    };
    if choices.len() < 2 {
        return Err("fewer than two choices".into());
    }
    if let Some(empty) = choices.iter().position(String::is_empty) {
        return Err(format!("choice {empty} is empty"));
    }
    if label >= choices.len() {
        return Err(format!("label {label} of {} choices", choices.len()));
    }
    Ok(Item {
        line,
        context,
        choices,
        label,
    })
}

/// How a model does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskReport {
    /// Number of items.
    pub items: usize,
    /// Share of items whose right choice is the most probable.
    pub acc: f64,
    /// Its standard error; none of a single item.
    pub acc_stderr: Option<f64>,
    /// The same by the logarithm per character.
    pub acc_norm: f64,
    /// Its standard error.
    pub acc_norm_stderr: Option<f64>,
    /// The same by the logarithm per byte.
    pub acc_bytes: f64,
    /// Its standard error.
    pub acc_bytes_stderr: Option<f64>,
    /// Texts that were longer than the model's context.
    pub truncated: usize,
}

impl<B: Backend> Generator<'_, B> {
    /// Scores every choice of every item.
    ///
    /// # Errors
    /// If a choice alone is longer than the model's context or has no tokens.
    pub fn task(&self, items: &[Item]) -> Result<TaskReport, TaskError> {
        let mut truncated = 0;
        // For each item 1 if the label has the largest score, else 0: by probability, per character, per byte.
        let mut right: [Vec<f64>; 3] = Default::default();
        for item in items {
            let logs: Vec<f64> = (0..item.choices.len())
                .map(|choice| self.log_probability(item, choice, &mut truncated))
                .collect::<Result<_, _>>()?;
            let per = |length: fn(&str) -> usize| {
                let lengths = item.choices.iter().map(|choice| length(choice) as f64);
                logs.iter().zip(lengths).map(|(log, length)| log / length).collect()
            };
            let by: [Vec<f64>; 3] = [logs.clone(), per(|choice| choice.chars().count()), per(str::len)];
            for (right, by) in right.iter_mut().zip(by) {
                right.push(f64::from(u8::from(first_largest(&by) == item.label)));
            }
        }
        let [
            (acc, acc_stderr),
            (acc_norm, acc_norm_stderr),
            (acc_bytes, acc_bytes_stderr),
        ] = right.map(|right| mean_and_error(&right));
        Ok(TaskReport {
            items: items.len(),
            acc,
            acc_stderr,
            acc_norm,
            acc_norm_stderr,
            acc_bytes,
            acc_bytes_stderr,
            truncated,
        })
    }

    /// Logarithm of the probability of a choice after its context.
    fn log_probability(&self, item: &Item, choice: usize, truncated: &mut usize) -> Result<f64, TaskError> {
        let line = item.line;
        let text = format!("{DELIMITER}{}", item.choices[choice]);
        let (mut ids, first) = encode_pair(self.tokenizer, &item.context, &text)?;
        let tokens = ids.len() - first.min(ids.len());
        if tokens == 0 {
            return Err(TaskError::NoTokens { line, choice });
        }
        if first == 0 {
            return Err(TaskError::NoContext { line, choice });
        }
        let context = self.context;
        let limit = context.tokens;
        // The first token of a choice needs one before it.
        if tokens >= limit && ids.len() > limit {
            return Err(TaskError::TooLong {
                line,
                choice,
                tokens,
                context,
            });
        }
        if ids.len() > limit {
            *truncated += 1;
            ids.drain(..ids.len() - limit);
        }
        let (_, scores) = self.scored_prompt(ids, 0)?;
        let own = &scores[scores.len() - tokens..];
        Ok(own
            .iter()
            .map(|TokenScore { log_probability, .. }| log_probability)
            .sum())
    }
}

/// The tokens of a context and its continuation together, and the place of the first token of the continuation.
fn encode_pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<(Vec<u32>, usize), DataError> {
    let kept = context.trim_end();
    let continuation = format!("{}{continuation}", &context[kept.len()..]);
    let mut ids = tokenizer.start_of_text(kept.is_empty());
    if kept.is_empty() {
        let first = ids.len();
        ids.extend(tokenizer.encode(&continuation)?);
        return Ok((ids, first));
    }
    let first = ids.len() + tokenizer.encode(kept)?.len();
    ids.extend(tokenizer.encode(&format!("{kept}{continuation}"))?);
    Ok((ids, first))
}

/// The place of the largest number, and the first such place where several are equally large.
fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// The mean, and its standard error unless there is a single value.
fn mean_and_error(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt() / count.sqrt());
    (mean, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::tests::tokenizer;
    use burn_flex::{Flex, FlexDevice};
    use gpas_model::LlamaConfig;

    const CONTEXT: Context = Context {
        tokens: 12,
        positions: 2048,
    };

    #[test]
    fn both_kinds_of_items_are_read() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("task.jsonl");
        let text = "{\"sentence_good\": \"a b\", \"sentence_bad\": \"b a\", \"field\": \"syntax\"}\n\n\
                    {\"context\": \"one\", \"choices\": [\"two\", \"three\", \"four\"], \"label\": 2, \"id\": 7}\n";
        fs::write(&path, text).unwrap();
        let items = read_task(&path).unwrap();
        assert_eq!((items[0].line, items[0].label, items[0].choices.len()), (1, 0, 2));
        assert_eq!(
            (items[1].line, items[1].label, items[1].context.as_str()),
            (3, 2, "one")
        );

        let refused = |text: &str| {
            fs::write(&path, text).unwrap();
            read_task(&path).unwrap_err().to_string()
        };
        let place = path.display();
        assert_eq!(refused("\n"), format!("{place} has no items"));
        assert!(refused("{").starts_with(&format!("{place}:1: not JSON")));
        assert_eq!(refused("[1]"), format!("{place}:1: not an object"));
        assert_eq!(
            refused("{\"sentence_good\": \"a\"}"),
            format!("{place}:1: neither a minimal pair nor multiple choice")
        );
        let choice = |choices: &str, label: i64| {
            refused(&format!(
                "{{\"context\": \"\", \"choices\": {choices}, \"label\": {label}}}"
            ))
        };
        assert_eq!(choice("[\"a\"]", 0), format!("{place}:1: fewer than two choices"));
        assert_eq!(choice("[\"a\", \"\"]", 0), format!("{place}:1: choice 1 is empty"));
        assert_eq!(choice("[\"a\", \"b\"]", 2), format!("{place}:1: label 2 of 2 choices"));
        assert!(choice("[\"a\", \"b\"]", -1).ends_with("neither a minimal pair nor multiple choice"));
    }

    /// The boundary is where the tokens of the context alone would end, whatever the tokens of both are.
    #[test]
    fn whitespace_at_the_end_of_a_context_goes_to_the_choice() {
        let tokenizer = tokenizer();
        let (plain, first) = encode_pair(&tokenizer, "the cat", " and").unwrap();
        assert_eq!(plain, tokenizer.encode("the cat and").unwrap());
        assert_eq!(first, tokenizer.encode("the cat").unwrap().len());
        let spaced = encode_pair(&tokenizer, "the cat ", "and").unwrap();
        assert_eq!(spaced, (plain, first));
        let end = tokenizer.end_of_document().unwrap();
        for context in ["", "  "] {
            let (ids, first) = encode_pair(&tokenizer, context, " and").unwrap();
            assert_eq!((ids[0], first), (end, 1));
            assert_eq!(ids[1..], tokenizer.encode(&format!("{context} and")).unwrap());
        }
    }

    /// Values 1, 1, 0, 1: mean 3/4, variance 1/4, standard error 1/4.
    #[test]
    fn the_error_is_that_of_a_mean() {
        assert_eq!(mean_and_error(&[1.0, 1.0, 0.0, 1.0]), (0.75, Some(0.25)));
        assert_eq!(mean_and_error(&[1.0]), (1.0, None));
        assert_eq!(first_largest(&[-2.0, -1.0, -1.0]), 1);
    }

    /// A sentence of a pair has no context, and this tokenizer has nothing to put there.
    #[test]
    fn a_choice_that_nothing_stands_before_is_refused() {
        let vocabulary = serde_json::json!({"the": 0, "cat": 1, "dog": 2});
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "the"},
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().into_bytes(), Path::new("words.json")).unwrap();
        assert_eq!(tokenizer.end_of_document(), None);
        let model = LlamaConfig::new(3, 16, 32, 2, 2).init::<Flex>(5, &FlexDevice);
        let generator = Generator {
            model: &model,
            tokenizer: &tokenizer,
            context: CONTEXT,
            vocab: 3,
        };
        let item = |context: &str| Item {
            line: 4,
            context: context.into(),
            choices: vec!["the cat".into(), "the dog".into()],
            label: 0,
        };
        assert!(generator.task(&[item("cat")]).is_ok());
        let error = generator.task(&[item("")]).unwrap_err().to_string();
        assert!(error.starts_with("line 4: choice 0 has no token before it"), "{error}");
    }

    /// The probabilities of all ways to go on by one token add up to 1, and the label decides what is right.
    #[test]
    fn a_choice_is_as_probable_as_its_tokens() {
        let tokenizer = tokenizer();
        let model = LlamaConfig::new(270, 16, 32, 2, 2).init::<Flex>(5, &FlexDevice);
        let generator = Generator {
            model: &model,
            tokenizer: &tokenizer,
            context: CONTEXT,
            vocab: 270,
        };
        let item = |label| Item {
            line: 1,
            context: "the cat".into(),
            choices: vec!["and the dog".into(), "and".into()],
            label,
        };
        let mut truncated = 0;
        let logs = [0, 1].map(|choice| generator.log_probability(&item(0), choice, &mut truncated).unwrap());
        let (ids, first) = encode_pair(&tokenizer, "the cat", " and the dog").unwrap();
        let (_, scores) = generator.scored_prompt(ids, 0).unwrap();
        let expected: f64 = scores[first - 1..].iter().map(|score| score.log_probability).sum();
        assert_eq!(logs[0], expected);
        assert!(logs[0] < logs[1] && truncated == 0, "a longer text is less probable");
        let report = generator.task(&[item(0), item(1), item(1)]).unwrap();
        assert_eq!(report.acc, 2.0 / 3.0);
        assert_eq!(report.items, 3);
        // Per byte the longer one wins.
        assert!(logs[0] / 11.0 > logs[1] / 3.0);
        assert_eq!((report.acc_norm, report.acc_bytes), (1.0 / 3.0, 1.0 / 3.0));

        let long = Item {
            context: "the cat and the dog ".repeat(9),
            ..item(0)
        };
        generator.log_probability(&long, 0, &mut truncated).unwrap();
        assert_eq!(truncated, 1);
        let longer = Item {
            choices: vec!["xyz ".repeat(9), "a".into()],
            ..long
        };
        let error = generator
            .log_probability(&longer, 0, &mut truncated)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("line 1: choice 0 has"), "{error}");
    }
}
