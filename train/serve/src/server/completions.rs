//! OpenAI's `/v1/completions` as data: what a request may ask, and what an answer says.

use gpas_data::DataError;
use gpas_data::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::generate::{Finish, Request, TokenScore};
use crate::sampler::{Sampling, SamplingError};
use crate::text::TextStream;

/// Texts that one request may ask for, prompts times `n`.
pub const MOST_CHOICES: usize = 256;
/// Alternatives of each token that it may ask for.
const MOST_LOGPROBS: usize = 20;
/// Stop strings that it may name, and bytes of each: every text has a copy.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// Any: there is one model.
    #[serde(default)]
    #[allow(dead_code, reason = "clients send it")]
    model: Value,
    prompt: Prompts,
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    n: Option<usize>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    stop: Option<Stop>,
    seed: Option<i64>,
    #[allow(dead_code, reason = "clients send it")]
    user: Option<String>,
    best_of: Option<usize>,
    suffix: Option<String>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<Map<String, Value>>,
    // Beyond OpenAI's, under the names that other servers give them.
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a string, a list of strings, token ids or a list of lists of token ids"
)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// A prompt as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    /// As text.
    Text(String),
    /// As tokens.
    Ids(Vec<u32>),
}

/// A request that has a meaning.
#[derive(Clone, Debug)]
pub struct Completion {
    /// What to go on from.
    pub prompts: Vec<PromptInput>,
    /// Texts for each.
    pub n: usize,
    /// What is asked of each text; text `i` of a prompt has the seed plus `i`.
    pub request: Request,
    /// Whether the prompt is part of the answer.
    pub echo: bool,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether the last piece says what was used.
    pub include_usage: bool,
}

/// A request that has none: what is wrong, and with which of its keys.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    /// What is wrong.
    pub message: String,
    /// The key.
    pub param: Option<&'static str>,
}

impl BadRequest {
    fn of(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            param: Some(param),
        }
    }
}

impl From<SamplingError> for BadRequest {
    fn from(error: SamplingError) -> Self {
        Self::of(error.name, error.to_string())
    }
}

impl Completion {
    /// Reads a body. `random_seed` is for requests that name none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &[u8], random_seed: u64) -> Result<Self, BadRequest> {
        let body: Body = serde_json::from_slice(body).map_err(|error| BadRequest {
            message: format!("the body is no request: {error}"),
            param: None,
        })?;
        let unsupported = [
            ("suffix", body.suffix.is_some_and(|suffix| !suffix.is_empty())),
            (
                "presence_penalty",
                body.presence_penalty.is_some_and(|value| value != 0.0),
            ),
            (
                "frequency_penalty",
                body.frequency_penalty.is_some_and(|value| value != 0.0),
            ),
            ("logit_bias", body.logit_bias.is_some_and(|bias| !bias.is_empty())),
            (
                "best_of",
                body.best_of.is_some_and(|best_of| best_of != body.n.unwrap_or(1)),
            ),
        ];
        if let Some((name, _)) = unsupported.into_iter().find(|(_, is_used)| *is_used) {
            return Err(BadRequest::of(name, format!("`{name}` is not supported")));
        }
        let prompts = match body.prompt {
            Prompts::Text(text) => vec![PromptInput::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(PromptInput::Text).collect(),
            Prompts::Ids(ids) => vec![PromptInput::Ids(ids)],
            Prompts::IdLists(lists) => lists.into_iter().map(PromptInput::Ids).collect(),
        };
        let n = body.n.unwrap_or(1);
        if prompts.is_empty() {
            return Err(BadRequest::of("prompt", "there is no prompt"));
        }
        if n == 0 || prompts.len().saturating_mul(n) > MOST_CHOICES {
            let message = format!(
                "{} prompts times n = {n} is not 1 to {MOST_CHOICES} texts",
                prompts.len()
            );
            return Err(BadRequest::of("n", message));
        }
        if body.logprobs.is_some_and(|count| count > MOST_LOGPROBS) {
            return Err(BadRequest::of(
                "logprobs",
                format!("logprobs is at most {MOST_LOGPROBS}"),
            ));
        }
        let stop = match body.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        };
        if stop.len() > MOST_STOPS {
            return Err(BadRequest::of(
                "stop",
                format!("there are more than {MOST_STOPS} stop strings"),
            ));
        }
        if stop.iter().any(|stop| stop.len() > LONGEST_STOP) {
            return Err(BadRequest::of(
                "stop",
                format!("a stop string is longer than {LONGEST_STOP} bytes"),
            ));
        }
        let default = Sampling::default();
        let sampling = Sampling {
            temperature: body.temperature.unwrap_or(default.temperature),
            // Other servers say −1 for all.
            top_k: body.top_k.map_or(0, |top_k| usize::try_from(top_k).unwrap_or(0)),
            top_p: body.top_p.unwrap_or(default.top_p),
            min_p: body.min_p.unwrap_or(default.min_p),
            repetition_penalty: body.repetition_penalty.unwrap_or(default.repetition_penalty),
        };
        sampling.validate()?;
        Ok(Self {
            prompts,
            n,
            request: Request {
                // OpenAI's default.
                max_tokens: body.max_tokens.unwrap_or(16),
                sampling,
                seed: body.seed.map_or(random_seed, i64::cast_unsigned),
                stop,
                alternatives: body.logprobs,
            },
            echo: body.echo.unwrap_or(false),
            stream: body.stream.unwrap_or(false),
            include_usage: body.stream_options.is_some_and(|options| options.include_usage),
        })
    }
}

/// OpenAI's shape of an error.
pub fn error_body(kind: &str, message: &str, param: Option<&str>, code: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

/// Log-probabilities in the form of the completions interface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogProbs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f64>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
}

/// One text of an answer, or a piece of it.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// Its number.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Log-probabilities, if asked for.
    pub logprobs: Option<LogProbs>,
    /// Why it ended, if it has.
    pub finish_reason: Option<&'static str>,
}

impl Choice {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let tokens = self.logprobs.as_ref().map_or(0, |logprobs| logprobs.tokens.len());
        self.text.is_empty() && tokens == 0 && self.finish_reason.is_none()
    }
}

/// Builds the choices of an answer, token by token.
#[derive(Debug)]
pub struct ChoiceBuilder {
    choice: Choice,
    /// Characters of the text so far.
    characters: usize,
    tokenizer: Tokenizer,
}

impl ChoiceBuilder {
    /// A text without tokens.
    pub fn new(index: usize, with_logprobs: bool, tokenizer: &Tokenizer) -> Self {
        Self {
            choice: Choice {
                index,
                text: String::new(),
                logprobs: with_logprobs.then(LogProbs::default),
                finish_reason: None,
            },
            characters: 0,
            tokenizer: tokenizer.clone(),
        }
    }

    /// Begins the text with its prompt. The first token of a prompt follows nothing and has no probability.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses a token.
    pub fn echo(&mut self, ids: &[u32], scores: &[TokenScore]) -> Result<(), DataError> {
        let mut stream = TextStream::after(&self.tokenizer, &[])?;
        let scores = std::iter::once(None).chain(scores.iter().map(Some));
        for (id, score) in ids.iter().zip(scores.chain(std::iter::repeat(None))) {
            self.token(*id, score);
            self.text(&stream.push(*id)?);
        }
        self.text(&stream.finish()?);
        Ok(())
    }

    /// A token that was generated, and the text that it completes.
    pub fn step(&mut self, text: &str, score: Option<&TokenScore>, finish: Option<Finish>) {
        if let Some(score) = score {
            self.token(score.id, Some(score));
        }
        self.text(text);
        self.choice.finish_reason = finish.map(Finish::reason);
    }

    fn text(&mut self, text: &str) {
        self.choice.text += text;
        self.characters += text.chars().count();
    }

    fn token(&mut self, id: u32, score: Option<&TokenScore>) {
        let Some(logprobs) = &mut self.choice.logprobs else {
            return;
        };
        logprobs.text_offset.push(self.characters);
        logprobs.tokens.push(spelled(&self.tokenizer, id));
        logprobs.token_logprobs.push(score.map(|score| score.log_probability));
        logprobs.top_logprobs.push(score.map(|score| {
            let mut top = Map::new();
            // The token itself is there whether or not it is one of the most probable; of two with the same text the more probable stays.
            let own = (score.id, score.log_probability);
            for (id, log) in score.top.iter().copied().chain([own]) {
                top.entry(spelled(&self.tokenizer, id)).or_insert_with(|| json!(log));
            }
            top
        }));
    }

    /// What has come since the last time.
    pub fn take(&mut self) -> Choice {
        let choice = self.choice.clone();
        self.choice.text.clear();
        if let Some(logprobs) = &mut self.choice.logprobs {
            *logprobs = LogProbs::default();
        }
        choice
    }
}

/// A token as text; one that holds a part of a character as its vocabulary spells it.
fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    match tokenizer.decode(&[id]) {
        Ok(text) if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) => text,
        _ => tokenizer.id_to_token(id).unwrap_or_default(),
    }
}

/// What an answer says of itself.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
}

/// Tokens of a request and its answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt: usize,
    /// Tokens that were generated.
    pub completion: usize,
}

impl Usage {
    fn value(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

impl Envelope {
    /// An answer, or a piece of one.
    pub fn wrap(&self, choices: &[Choice], usage: Option<Usage>) -> Value {
        let mut answer = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            answer["usage"] = usage.value();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::tests::tokenizer;

    fn parse(body: Value) -> Result<Completion, BadRequest> {
        Completion::parse(body.to_string().as_bytes(), 99)
    }

    #[test]
    fn prompts_come_in_four_shapes() {
        let prompts = |prompt: Value| parse(json!({"prompt": prompt})).unwrap().prompts;
        let text = |text: &str| PromptInput::Text(text.into());
        assert_eq!(prompts(json!("a")), [text("a")]);
        assert_eq!(prompts(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(prompts(json!([1, 2])), [PromptInput::Ids(vec![1, 2])]);
        assert_eq!(
            prompts(json!([[1], [2, 3]])),
            [PromptInput::Ids(vec![1]), PromptInput::Ids(vec![2, 3])]
        );
    }

    #[test]
    fn defaults_are_openais() {
        let parsed = parse(json!({"prompt": "a", "model": "any"})).unwrap();
        assert_eq!(
            (parsed.request.max_tokens, parsed.request.sampling, parsed.n),
            (16, Sampling::default(), 1)
        );
        assert_eq!((parsed.request.seed, parsed.request.alternatives), (99, None));
        assert!(!parsed.echo && !parsed.stream && !parsed.include_usage);
        let parsed = parse(json!({"prompt": "a", "seed": 5, "logprobs": 0, "top_k": -1, "stop": "x"})).unwrap();
        assert_eq!((parsed.request.seed, parsed.request.alternatives), (5, Some(0)));
        assert_eq!(
            (parsed.request.sampling.top_k, parsed.request.stop),
            (0, vec!["x".into()])
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value) in [
            ("suffix", json!("x")),
            ("presence_penalty", json!(0.5)),
            ("frequency_penalty", json!(-0.5)),
            ("logit_bias", json!({"5": 1})),
            ("best_of", json!(3)),
            ("stop", json!(vec!["x"; 17])),
            ("stop", json!("x".repeat(1025))),
            ("logprobs", json!(21)),
            ("n", json!(0)),
            ("n", json!(257)),
            ("temperature", json!(-1)),
            ("top_p", json!(0)),
        ] {
            let error = parse(json!({"prompt": "a", key: value})).unwrap_err();
            assert_eq!(error.param, Some(key));
        }
        assert_eq!(parse(json!({"prompt": []})).unwrap_err().param, Some("prompt"));
        for body in [
            json!({}),
            json!([]),
            json!({"prompt": 5}),
            json!({"prompt": [-1]}),
            json!({"prompt": [4_294_967_296_u64]}),
            json!({"prompt": [[1], "a"]}),
            json!({"prompt": "a", "max_tokens": -1}),
            json!({"prompt": "a", "max_tokens": 1.5}),
            json!({"prompt": "a", "max_tokens": 1e300}),
            json!({"prompt": "a", "max_new_tokens": 1}),
            json!({"prompt": "a", "stop": [1]}),
        ] {
            let error = parse(body.clone()).unwrap_err();
            assert!(error.message.starts_with("the body is no request"), "{body}: {error}");
        }
        assert!(Completion::parse(b"{\"prompt\": \"\xff\"}", 0).is_err());
        assert!(Completion::parse(b"", 0).is_err());
        // Deep nesting ends in an error, not in a full stack.
        let deep = format!("{{\"model\": {}", "[".repeat(100_000));
        assert!(Completion::parse(deep.as_bytes(), 0).is_err());
    }

    #[test]
    fn an_echo_has_one_entry_for_each_token() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("the café").unwrap();
        let score = |id: u32| TokenScore {
            id,
            log_probability: -2.0,
            top: vec![(ids[0], -0.5)],
        };
        let scores: Vec<TokenScore> = ids[1..].iter().map(|id| score(*id)).collect();
        let mut builder = ChoiceBuilder::new(0, true, &tokenizer);
        builder.echo(&ids, &scores).unwrap();
        builder.step(" and", Some(&score(ids[0])), Some(Finish::Length));
        let choice = builder.take();
        assert_eq!(
            (choice.text.as_str(), choice.finish_reason),
            ("the café and", Some("length"))
        );
        let logprobs = choice.logprobs.unwrap();
        assert_eq!(logprobs.tokens.len(), ids.len() + 1);
        assert_eq!(logprobs.token_logprobs[0], None);
        assert_eq!(logprobs.top_logprobs[0], None);
        assert!(logprobs.token_logprobs[1..].iter().all(|log| *log == Some(-2.0)));
        assert_eq!(*logprobs.text_offset.last().unwrap(), "the café".chars().count());
        let top = logprobs.top_logprobs[1].as_ref().unwrap();
        assert_eq!(top.len(), 2, "the most probable one and the token itself");
        assert!(builder.take().text.is_empty());
    }
}
