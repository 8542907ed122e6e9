//! OpenAI's `/v1/completions` as data: what a request may ask, and what an answer says.

use axum::http::StatusCode;
use gpas_data::DataError;
use gpas_data::{SpelledOut, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::foreign;
use super::refusal::Refusal;
use crate::generate::{Finish, GenerationOptions, TokenScore};
use crate::sampler::Sampling;
use crate::text::TextStream;

/// Texts that one request may ask for, prompts times `n`.
pub const MOST_CHOICES: usize = 256;
/// Alternatives to each token that one request may ask for.
const MOST_LOGPROBS: usize = 20;
/// Stop strings that it may name.
const MOST_STOPS: usize = 16;
/// Bytes of each of them, of which every text has a copy.
const LONGEST_STOP: usize = 1024;

/// The body of a request, as clients write it. Aliases are the names of other servers.
#[derive(Debug, Deserialize)]
struct RequestBody {
    // Any name will do, since there is one model.
    #[serde(default)]
    #[allow(dead_code, reason = "clients send it")]
    model: Value,
    prompt: PromptsInput,
    #[serde(alias = "max_completion_tokens", alias = "max_new_tokens", alias = "n_predict")]
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    n: Option<usize>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<LogprobsInput>,
    echo: Option<bool>,
    #[serde(alias = "stop_sequences")]
    stop: Option<StopsInput>,
    #[serde(alias = "random_seed")]
    seed: Option<i64>,
    // It tells the server's owner who asks, and this one keeps no record.
    #[serde(default)]
    #[allow(dead_code, reason = "clients send it")]
    user: Value,
    best_of: Option<usize>,
    // Beyond OpenAI's, under the names that other servers give them.
    top_k: Option<i64>,
    min_p: Option<f64>,
    #[serde(alias = "repeat_penalty")]
    repetition_penalty: Option<f64>,
    /// Whether special tokens that a prompt spells out are the tokens they are. No other server has the name; most take them so always.
    special_tokens: Option<bool>,
    /// What this server does not have.
    #[serde(flatten)]
    foreign: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a string, a list of strings, token ids or a list of lists of token ids"
)]
enum PromptsInput {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
enum StopsInput {
    One(String),
    Many(Vec<String>),
}

/// A number of alternatives; or, as the chat interface has it, whether log-probabilities are wanted at all.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "a number of alternatives, true or false")]
enum LogprobsInput {
    Count(usize),
    Wanted(bool),
}

impl LogprobsInput {
    fn alternatives(self) -> Option<usize> {
        match self {
            LogprobsInput::Count(count) => Some(count),
            LogprobsInput::Wanted(wanted) => wanted.then_some(0),
        }
    }
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

/// What a request asks for, after all of it has been checked but the tokens of its prompts.
#[derive(Clone, Debug)]
pub struct Completion {
    /// What to go on from.
    pub prompts: Vec<PromptInput>,
    /// What special tokens are that a prompt spells out.
    pub special_tokens: SpelledOut,
    /// Texts for each.
    pub n: usize,
    /// What is asked of each text; text `i` of a prompt has the seed plus `i`.
    pub options: GenerationOptions,
    /// Whether the prompt is part of the answer.
    pub echo: bool,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether the last piece says what was used.
    pub include_usage: bool,
    /// What of the request was ignored.
    pub warnings: Vec<String>,
}

impl RequestBody {
    /// How tokens are to be drawn.
    fn sampling(&self) -> Sampling {
        let default = Sampling::default();
        Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            // Other servers say −1 for all.
            top_k: self.top_k.map_or(0, |top_k| usize::try_from(top_k).unwrap_or(0)),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
        }
    }
}

impl PromptsInput {
    /// The prompts, of which there must be at least one, and not too many texts after them.
    fn checked(self, n: usize) -> Result<Vec<PromptInput>, Refusal> {
        let prompts: Vec<PromptInput> = match self {
            PromptsInput::Text(text) => vec![PromptInput::Text(text)],
            PromptsInput::Texts(texts) => texts.into_iter().map(PromptInput::Text).collect(),
            PromptsInput::Ids(ids) => vec![PromptInput::Ids(ids)],
            PromptsInput::IdLists(lists) => lists.into_iter().map(PromptInput::Ids).collect(),
        };
        if prompts.is_empty() {
            return Err(Refusal::about("prompt", "there is no prompt"));
        }
        if n == 0 || prompts.len().saturating_mul(n) > MOST_CHOICES {
            let prompts = prompts.len();
            let message = format!("{prompts} prompts times n = {n} is not 1 to {MOST_CHOICES} texts");
            return Err(Refusal::about("n", message));
        }
        Ok(prompts)
    }
}

impl StopsInput {
    /// The stop strings, which must be few and short.
    fn checked(self) -> Result<Vec<String>, Refusal> {
        let stops = match self {
            StopsInput::One(stop) => vec![stop],
            StopsInput::Many(stops) => stops,
        };
        let refuse = |message| Err(Refusal::about("stop", message));
        if stops.len() > MOST_STOPS {
            return refuse(format!("there are more than {MOST_STOPS} stop strings"));
        }
        if stops.iter().any(|stop| stop.len() > LONGEST_STOP) {
            return refuse(format!("a stop string is longer than {LONGEST_STOP} bytes"));
        }
        Ok(stops)
    }
}

impl Completion {
    /// Reads a body. `random_seed` is for requests that name none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &[u8], random_seed: u64) -> Result<Self, Refusal> {
        let body: RequestBody = serde_json::from_slice(body)
            .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body is no request: {error}")))?;
        let warnings = foreign::check(&body.foreign)?;
        let sampling = body.sampling();
        let n = body.n.unwrap_or(1);
        if body.best_of.is_some_and(|best_of| best_of != n) {
            return Err(Refusal::about("best_of", "`best_of` other than `n` is not supported"));
        }
        let alternatives = body.logprobs.and_then(LogprobsInput::alternatives);
        let prompts = body.prompt.checked(n)?;
        if alternatives.is_some_and(|count| count > MOST_LOGPROBS) {
            let message = format!("logprobs is at most {MOST_LOGPROBS}");
            return Err(Refusal::about("logprobs", message));
        }
        let stop = body.stop.map_or(Ok(Vec::new()), StopsInput::checked)?;
        sampling.validate()?;
        Ok(Self {
            prompts,
            special_tokens: SpelledOut::taken(body.special_tokens.unwrap_or(false)),
            n,
            options: GenerationOptions {
                // OpenAI's default.
                max_tokens: body.max_tokens.unwrap_or(16),
                sampling,
                seed: body.seed.map_or(random_seed, i64::cast_unsigned),
                stop,
                alternatives,
            },
            echo: body.echo.unwrap_or(false),
            stream: body.stream.unwrap_or(false),
            include_usage: body.stream_options.is_some_and(|options| options.include_usage),
            warnings,
        })
    }
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

    /// Begins the text with its prompt. The first token of a prompt follows nothing and has no probability. A character that the prompt
    /// leaves incomplete belongs to the text that is generated after it.
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
        Ok(())
    }

    /// A token that was generated, and the text that it completes.
    pub fn push(&mut self, text: &str, score: Option<&TokenScore>, finish: Option<Finish>) {
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
            // The token itself is listed even where it is not one of the most probable. Of two tokens with the same text the more probable
            // one stays.
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

/// A token as text, with the space that it begins with; one that holds a part of a character as its vocabulary spells it.
fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    // Alone, a token of SentencePiece's loses its space. After itself it does not.
    let text = |ids: &[u32]| tokenizer.decode(ids).unwrap_or_default();
    match text(&[id, id]).strip_prefix(&text(&[id])) {
        Some(text) if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) => text.into(),
        _ => tokenizer.id_to_token(id).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::tests::tokenizer;

    fn parse(body: Value) -> Result<Completion, Refusal> {
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
            (parsed.options.max_tokens, parsed.options.sampling, parsed.n),
            (16, Sampling::default(), 1)
        );
        assert_eq!((parsed.options.seed, parsed.options.alternatives), (99, None));
        assert!(!parsed.echo && !parsed.stream && !parsed.include_usage);
        let parsed = parse(json!({"prompt": "a", "seed": 5, "logprobs": 0, "top_k": -1, "stop": "x"})).unwrap();
        assert_eq!((parsed.options.seed, parsed.options.alternatives), (5, Some(0)));
        assert_eq!(
            (parsed.options.sampling.top_k, parsed.options.stop),
            (0, vec!["x".into()])
        );
    }

    #[test]
    fn names_of_other_servers_mean_the_same_here() {
        for key in ["max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict"] {
            assert_eq!(
                parse(json!({"prompt": "a", key: 3})).unwrap().options.max_tokens,
                3,
                "{key}"
            );
        }
        let body =
            json!({"prompt": "a", "repeat_penalty": 1.5, "stop_sequences": ["x"], "random_seed": 7, "logprobs": true});
        let parsed = parse(body).unwrap();
        assert_eq!(parsed.options.sampling.repetition_penalty, 1.5);
        assert_eq!((parsed.options.stop, parsed.options.seed), (vec!["x".to_string()], 7));
        assert_eq!(parsed.options.alternatives, Some(0));
        assert_eq!(
            parse(json!({"prompt": "a", "logprobs": false}))
                .unwrap()
                .options
                .alternatives,
            None
        );
        assert!(parsed.warnings.is_empty());
    }

    #[test]
    fn what_this_server_does_not_know_is_ignored_with_a_word() {
        let body = json!({"prompt": "a", "tools": [{"type": "function"}], "user": {"id": 5}, "metadata": null, "mood": "good"});
        let warnings = parse(body).unwrap().warnings;
        assert_eq!(
            warnings,
            [
                "`mood` is not known here and was ignored",
                "`tools` is not known here and was ignored"
            ]
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value) in [
            ("suffix", json!("x")),
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
            json!({"prompt": "a", "max_new_tokens": -1}),
            json!({"prompt": "a", "max_tokens": 1, "max_new_tokens": 1}),
            json!({"prompt": "a", "stop": [1]}),
        ] {
            let error = parse(body.clone()).unwrap_err();
            assert!(error.message.starts_with("the body is no request"), "{body}: {error:?}");
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
        builder.push(" and", Some(&score(ids[0])), Some(Finish::Length));
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
