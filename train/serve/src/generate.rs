//! Generation and scoring: what a model writes after a prompt, and how probable it finds a text.
//!
//! A text is generated in three steps: [`Generator::prompt`] lets the prompt through the model, [`Generator::sequence`] starts a text after
//! it, and [`Generator::step`] adds a token to each of several texts at once. A text may join the others or leave them between two steps.
//! Each has its own cache, random numbers and decoder, so on a CPU what is generated depends on the prompt, the options and the seed alone,
//! and never on the other texts.
//!
//! # Example
//!
//! ```no_run
//! use burn_flex::Flex;
//! use gpas_data::{SpelledOut, Tokenizer};
//! use gpas_model::Llama;
//! use gpas_serve::generate::{GenerationOptions, Generator, encode};
//! use gpas_serve::inference::Context;
//!
//! # fn example(model: Llama<Flex>, tokenizer: Tokenizer) -> Result<(), Box<dyn std::error::Error>> {
//! let generator = Generator {
//!     model: &model,
//!     tokenizer: &tokenizer,
//!     context: Context { tokens: 256, positions: 2048 },
//!     vocab: tokenizer.vocab_size(),
//! };
//! let prompt = generator.prompt(encode(&tokenizer, "The meaning of", SpelledOut::AsText)?)?;
//! let options = GenerationOptions {
//!     max_tokens: 40,
//!     seed: 1,
//!     ..GenerationOptions::default()
//! };
//! let mut sequence = generator.sequence(prompt, options)?;
//! while sequence.finish().is_none() {
//!     for piece in generator.step(&mut [&mut sequence])? {
//!         print!("{}", piece.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::HashSet;

use burn::tensor::{Tensor, backend::Backend};
use gpas_data::DataError;
use gpas_data::{SpelledOut, Tokenizer};
use gpas_model::{Cache, Llama};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::inference::{Context, InferenceError, check_ids};
use crate::sampler::{Sampling, distribution, draw, most_probable};
use crate::text::{StopStrings, TextStream};

/// Positions of a scored prompt whose logits are in memory at once.
const ROWS: usize = 64;

/// Sequences that should go through the model together unless somebody asks for another number. Each keeps its keys and values in memory.
pub const TOGETHER: usize = 64;

/// What is asked of a text.
#[derive(Clone, Debug, Default)]
pub struct GenerationOptions {
    /// Most tokens to add.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Seed of the draws.
    pub seed: u64,
    /// Strings before which the text ends.
    pub stop: Vec<String>,
    /// How many of the most probable tokens to report beside each token that was drawn, with the logarithms of their probabilities. With
    /// `None`, no probabilities are computed; with `Some(0)`, that of the drawn token alone.
    pub alternatives: Option<usize>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model drew a token that ends a text.
    EndOfText,
    /// A stop string came; the text ends before it.
    Stop,
    /// As many tokens as were asked for have been added.
    Length,
    /// All positions that may be used are used.
    Context,
}

impl Finish {
    /// The `finish_reason` of OpenAI's interface.
    pub fn reason(self) -> &'static str {
        match self {
            Finish::EndOfText | Finish::Stop => "stop",
            Finish::Length | Finish::Context => "length",
        }
    }
}

/// How probable a token was by the softmax of the model's logits, before temperature and the other settings of [`Sampling`].
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub log_probability: f64,
    /// The most probable tokens with the logarithms of their probabilities, the most probable first.
    pub top: Vec<(u32, f64)>,
}

impl TokenScore {
    /// The score of token `id`, and of `alternatives` others, by the logits of its position.
    fn from_logits(logits: &[f32], id: u32, alternatives: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - largest).exp())).sum();
        let shift = f64::from(largest) + sum.ln();
        let log = |id: u32| (id, f64::from(logits[id as usize]) - shift);
        let top = match alternatives.min(logits.len()) {
            0 => Vec::new(),
            1 => vec![log(most_probable(logits))],
            count => {
                let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
                let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
                if count < ids.len() {
                    ids.select_nth_unstable_by(count, order);
                    ids.truncate(count);
                }
                ids.sort_unstable_by(order);
                ids.into_iter().map(log).collect()
            }
        };
        Self {
            id,
            log_probability: log(id).1,
            top,
        }
    }
}

/// A prompt that has gone through the model. A clone costs a copy of its keys and values, which is less than letting it through again.
#[derive(Clone, Debug)]
pub struct Prompt<B: Backend> {
    ids: Vec<u32>,
    cache: Cache<B>,
    /// Logits of the token after the prompt, `[vocab]`.
    logits: Vec<f32>,
}

/// A text that is being generated.
#[derive(Debug)]
pub struct Sequence<B: Backend> {
    cache: Cache<B>,
    /// Logits of the next token, `[vocab]`.
    logits: Vec<f32>,
    options: GenerationOptions,
    random: ChaCha8Rng,
    /// Tokens of the prompt and the text, for the repetition penalty.
    seen: HashSet<u32>,
    text: TextStream,
    stops: StopStrings,
    made: usize,
    finish: Option<Finish>,
}

impl<B: Backend> Sequence<B> {
    /// Why it has ended, if it has.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Number of tokens that have been drawn for it, with the token that ends a text.
    pub fn made(&self) -> usize {
        self.made
    }

    /// The text that decoder and stop strings still hold back, at the end of the sequence.
    fn rest(&mut self) -> Result<String, DataError> {
        let rest = self.text.finish()?;
        let (mut text, stopped) = self.stops.push(&rest);
        if !stopped {
            text += &self.stops.finish();
        }
        Ok(text)
    }
}

/// What one step adds to a sequence.
#[derive(Clone, Debug, Default)]
pub struct GeneratedPiece {
    /// Text that is complete: whole characters that cannot be the beginning of a stop string.
    pub text: String,
    /// The score of the drawn token, if there is a token and scores were asked for.
    pub score: Option<TokenScore>,
    /// Why the sequence ends here, if it does.
    pub finish: Option<Finish>,
}

/// The tokens of a prompt, which begins as a document does: [`Tokenizer::start_of_text`] has the rule. A text that brings the opening tokens
/// itself, which it can where special tokens that it spells out are tokens, does not get them twice.
///
/// # Errors
/// If the tokenizer refuses the text.
pub fn encode(tokenizer: &Tokenizer, text: &str, spelled: SpelledOut) -> Result<Vec<u32>, DataError> {
    let tokens = tokenizer.encode_with(text, spelled)?;
    let mut ids = tokenizer.start_of_text(tokens.is_empty());
    if spelled == SpelledOut::AsTokens && tokens.starts_with(&ids) {
        ids.clear();
    }
    ids.extend(tokens);
    Ok(ids)
}

/// A model that generates and scores; the head of [this file](self) has an example.
#[derive(Debug)]
pub struct Generator<'a, B: Backend> {
    /// The model.
    pub model: &'a Llama<B>,
    /// Its tokenizer; a text ends at each of the ends among its special tokens.
    pub tokenizer: &'a Tokenizer,
    /// Positions that may be used.
    pub context: Context,
    /// Number of the model's token ids.
    pub vocab: usize,
}

impl<B: Backend> Generator<'_, B> {
    /// Lets a prompt through the model.
    ///
    /// # Errors
    /// If it is empty or too long, or the model lacks one of its tokens.
    pub fn prompt(&self, ids: Vec<u32>) -> Result<Prompt<B>, InferenceError> {
        check_ids(&ids, self.vocab, self.context)?;
        let mut cache = self.model.cache();
        let hidden = self.model.extend(&ids, &mut cache);
        let logits = self.next(hidden);
        Ok(Prompt { ids, cache, logits })
    }

    /// Lets a prompt through the model and scores each of its tokens but the first, which follows nothing and so has no probability.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt), or if the logits are not finite.
    pub fn scored_prompt(
        &self,
        ids: Vec<u32>,
        alternatives: usize,
    ) -> Result<(Prompt<B>, Vec<TokenScore>), InferenceError> {
        check_ids(&ids, self.vocab, self.context)?;
        let mut cache = self.model.cache();
        let hidden = self.model.extend(&ids, &mut cache);
        let mut scores = Vec::with_capacity(ids.len() - 1);
        for start in (0..ids.len() - 1).step_by(ROWS) {
            let rows = ROWS.min(ids.len() - 1 - start);
            let part = self
                .model
                .head_logits(hidden.clone().narrow(0, start, rows))
                .into_data();
            let part: Vec<f32> = part.iter::<f32>().collect();
            let targets = &ids[start + 1..][..rows];
            scores.par_extend(
                part.par_chunks(self.vocab)
                    .zip(targets)
                    .map(|(logits, id)| TokenScore::from_logits(logits, *id, alternatives)),
            );
        }
        if !scores.iter().all(|score| score.log_probability.is_finite()) {
            return Err(InferenceError::NotFinite);
        }
        let logits = self.next(hidden);
        Ok((Prompt { ids, cache, logits }, scores))
    }

    /// Logits `[vocab]` of the token that follows the last position of `hidden`, the stream after the final norm, `[positions, hidden]`.
    fn next(&self, hidden: Tensor<B, 2>) -> Vec<f32> {
        let last = hidden.dims()[0] - 1;
        let logits = self.model.next_logits(hidden.narrow(0, last, 1));
        logits.into_data().iter::<f32>().collect()
    }

    /// A sequence that goes on from a prompt.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the prompt.
    pub fn sequence(&self, prompt: Prompt<B>, options: GenerationOptions) -> Result<Sequence<B>, DataError> {
        let Prompt { ids, cache, logits } = prompt;
        Ok(Sequence {
            random: ChaCha8Rng::seed_from_u64(options.seed),
            text: TextStream::after(self.tokenizer, &ids)?,
            stops: StopStrings::new(options.stop.clone()),
            seen: ids.into_iter().collect(),
            cache,
            logits,
            made: 0,
            finish: None,
            options,
        })
    }

    /// Adds a token to each sequence that has not ended, and returns a piece for every sequence, in their order; the piece of one that had
    /// ended before is empty.
    ///
    /// # Errors
    /// If the logits are not finite, or the tokenizer's decoder refuses a token.
    pub fn step(&self, sequences: &mut [&mut Sequence<B>]) -> Result<Vec<GeneratedPiece>, InferenceError> {
        let mut pieces = Vec::with_capacity(sequences.len());
        let mut next = Vec::new();
        for sequence in sequences.iter_mut() {
            let (token, piece) = match sequence.finish {
                Some(_) => (None, GeneratedPiece::default()),
                None => self.choose(sequence)?,
            };
            sequence.finish = sequence.finish.or(piece.finish);
            if sequence.finish.is_none() {
                next.extend(token);
            }
            pieces.push(piece);
        }
        if !next.is_empty() {
            let mut running: Vec<_> = sequences
                .iter_mut()
                .filter(|sequence| sequence.finish.is_none())
                .collect();
            let mut caches: Vec<_> = running.iter_mut().map(|sequence| &mut sequence.cache).collect();
            let logits: Vec<f32> = self
                .model
                .decode(&next, &mut caches)
                .into_data()
                .iter::<f32>()
                .collect();
            for (sequence, logits) in running.into_iter().zip(logits.chunks_exact(self.vocab)) {
                sequence.logits.copy_from_slice(logits);
            }
        }
        Ok(pieces)
    }

    /// Draws the next token of a sequence, which becomes part of its text and may end it. There is no token where none was asked for or the
    /// one that was drawn ends the text.
    fn choose(&self, sequence: &mut Sequence<B>) -> Result<(Option<u32>, GeneratedPiece), InferenceError> {
        if sequence.options.max_tokens == 0 {
            let (text, finish) = (sequence.rest()?, Some(Finish::Length));
            return Ok((
                None,
                GeneratedPiece {
                    text,
                    score: None,
                    finish,
                },
            ));
        }
        if !sequence.logits.iter().all(|logit| logit.is_finite()) {
            return Err(InferenceError::NotFinite);
        }
        let candidates = distribution(&sequence.logits, &sequence.seen, &sequence.options.sampling);
        let id = draw(&candidates, sequence.random.random());
        let score = |alternatives| TokenScore::from_logits(&sequence.logits, id, alternatives);
        let score = sequence.options.alternatives.map(score);
        sequence.made += 1;
        if self.tokenizer.special_tokens().ends.contains(&id) {
            let (text, finish) = (sequence.rest()?, Some(Finish::EndOfText));
            return Ok((None, GeneratedPiece { text, score, finish }));
        }
        sequence.seen.insert(id);
        let piece = sequence.text.push(id)?;
        let (mut text, stopped) = sequence.stops.push(&piece);
        let finish = if stopped {
            Some(Finish::Stop)
        } else if sequence.made >= sequence.options.max_tokens {
            Some(Finish::Length)
        } else if sequence.cache.tokens() >= self.context.tokens {
            // The token stands after the last position, so the model cannot see it.
            Some(Finish::Context)
        } else {
            None
        };
        if let Some(Finish::Length | Finish::Context) = finish {
            text += &sequence.rest()?;
        }
        Ok((Some(id), GeneratedPiece { text, score, finish }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::PathBuf;

    use burn_flex::{Flex, FlexDevice};
    use gpas_data::SpecialTokens;
    use gpas_data::bpe::train_bpe;
    use gpas_data::source::{Documents, ReadOptions};
    use gpas_model::LlamaConfig;

    const VOCAB: usize = 270;

    pub(crate) fn tokenizer() -> Tokenizer {
        let place = tempfile::tempdir().unwrap();
        let text = place.path().join("a.txt");
        std::fs::write(&text, "the cat and the dog\n".repeat(50)).unwrap();
        let documents = Documents::open(std::slice::from_ref(&text), ReadOptions::default()).unwrap();
        let path: PathBuf = place.path().join("tokenizer.json");
        train_bpe(documents, VOCAB, true).unwrap().save(&path).unwrap();
        Tokenizer::from_file(&path).unwrap()
    }

    /// A model whose next token depends much on what came before.
    fn model(tied: bool) -> Llama<Flex> {
        let mut model = LlamaConfig::new(VOCAB, 16, 32, 2, 2)
            .with_tied_head(tied)
            .init::<Flex>(5, &FlexDevice);
        if let Some(mut head) = model.head.take() {
            head.weight = head.weight.map(|weight| weight.mul_scalar(40.0));
            model.head = Some(head);
        }
        model
    }

    fn generate(
        generator: &Generator<'_, Flex>,
        asked: Vec<(&str, GenerationOptions)>,
    ) -> Vec<(String, Finish, usize)> {
        let mut sequences: Vec<_> = asked
            .into_iter()
            .map(|(prompt, options)| {
                let prompt = generator
                    .prompt(encode(generator.tokenizer, prompt, SpelledOut::AsText).unwrap())
                    .unwrap();
                generator.sequence(prompt, options).unwrap()
            })
            .collect();
        let mut texts = vec![String::new(); sequences.len()];
        while sequences.iter().any(|sequence| sequence.finish().is_none()) {
            let mut all: Vec<_> = sequences.iter_mut().collect();
            for (text, piece) in texts.iter_mut().zip(generator.step(&mut all).unwrap()) {
                *text += &piece.text;
            }
        }
        let ends = sequences
            .iter()
            .map(|sequence| (sequence.finish().unwrap(), sequence.made()));
        texts
            .into_iter()
            .zip(ends)
            .map(|(text, (finish, made))| (text, finish, made))
            .collect()
    }

    fn generator<'a>(model: &'a Llama<Flex>, tokenizer: &'a Tokenizer, context: usize) -> Generator<'a, Flex> {
        Generator {
            model,
            tokenizer,
            context: Context {
                tokens: context,
                positions: 2048,
            },
            vocab: VOCAB,
        }
    }

    fn options(max_tokens: usize, seed: u64) -> GenerationOptions {
        GenerationOptions {
            max_tokens,
            seed,
            ..GenerationOptions::default()
        }
    }

    #[test]
    fn a_seed_gives_one_text_whatever_else_is_in_the_batch() {
        let (tokenizer, model) = (tokenizer(), model(false));
        let generator = generator(&model, &tokenizer, 64);
        let alone = generate(&generator, vec![("the cat", options(12, 7))]);
        let mut others: Vec<_> = (0..19).map(|seed| ("a dog and", options(20, seed))).collect();
        others.insert(11, ("the cat", options(12, 7)));
        let together = generate(&generator, others);
        assert_eq!(alone[0], together[11]);
        assert_ne!(together[0].0, together[1].0, "another seed gives another text");
        assert!(alone[0].2 <= 12);
    }

    #[test]
    fn greedy_takes_the_most_probable_and_its_score_is_the_largest() {
        let (tokenizer, model) = (tokenizer(), model(true));
        let generator = generator(&model, &tokenizer, 64);
        let greedy = GenerationOptions {
            sampling: Sampling {
                temperature: 0.0,
                ..Sampling::default()
            },
            alternatives: Some(3),
            ..options(8, 0)
        };
        let ids = encode(&tokenizer, "the cat", SpelledOut::AsText).unwrap();
        let mut sequence = generator
            .sequence(generator.prompt(ids.clone()).unwrap(), greedy)
            .unwrap();
        let mut all = ids;
        let mut scores = Vec::new();
        while sequence.finish().is_none() {
            let piece = generator.step(&mut [&mut sequence]).unwrap().remove(0);
            if let Some(score) = piece.score {
                assert_eq!(score.top.len(), 3);
                assert_eq!(score.top[0], (score.id, score.log_probability));
                assert!(score.top[0].1 >= score.top[1].1 && score.top[1].1 >= score.top[2].1);
                all.push(score.id);
                scores.push(score);
            }
        }
        // The same tokens, scored as a prompt.
        let (_, again) = generator.scored_prompt(all, 3).unwrap();
        for (score, again) in scores.iter().rev().zip(again.iter().rev()) {
            assert_eq!(score.id, again.id);
            assert!((score.log_probability - again.log_probability).abs() < 1e-4);
        }
    }

    #[test]
    fn a_model_that_has_diverged_says_so() {
        let (tokenizer, mut model) = (tokenizer(), model(false));
        model.norm.weight = model.norm.weight.map(|weight| weight.mul_scalar(f32::NAN));
        let generator = generator(&model, &tokenizer, 64);
        let prompt = generator.prompt(vec![5, 6, 7]).unwrap();
        let mut sequence = generator.sequence(prompt, options(3, 0)).unwrap();
        let generated = generator.step(&mut [&mut sequence]).unwrap_err();
        let scored = generator.scored_prompt(vec![5, 6, 7], 0).unwrap_err();
        for error in [generated, scored] {
            assert!(matches!(error, InferenceError::NotFinite), "{error}");
        }
    }

    /// Logits 0, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
    #[test]
    fn scores_are_logarithms_of_the_softmax() {
        let score = TokenScore::from_logits(&[0.0, std::f32::consts::LN_2, 1.609_438], 1, 2);
        assert!((score.log_probability - 0.25f64.ln()).abs() < 1e-6);
        assert_eq!(score.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1]);
        assert!((score.top[0].1 - 0.625f64.ln()).abs() < 1e-6);
    }

    /// Each of several ends, the first of them that comes; and no token that is none.
    #[test]
    fn a_text_ends_at_every_end_of_the_model() {
        let (tokenizer, model) = (tokenizer(), model(false));
        let ends_at = |ends: Vec<u32>| {
            let special = SpecialTokens {
                ends,
                ..tokenizer.special_tokens().clone()
            };
            let tokenizer = tokenizer.clone().with_special_tokens(special);
            let generator = generator(&model, &tokenizer, 64);
            let scored = GenerationOptions {
                alternatives: Some(0),
                ..options(12, 7)
            };
            let prompt = generator
                .prompt(encode(&tokenizer, "the cat", SpelledOut::AsText).unwrap())
                .unwrap();
            let mut sequence = generator.sequence(prompt, scored).unwrap();
            let mut ids = Vec::new();
            while sequence.finish().is_none() {
                let piece = generator.step(&mut [&mut sequence]).unwrap().remove(0);
                ids.extend(piece.score.map(|score| score.id));
            }
            (ids, sequence.finish().unwrap())
        };
        let (free, finish) = ends_at(Vec::new());
        assert_eq!((free.len(), finish), (12, Finish::Length));
        let first = |id: u32| free.iter().position(|other| *other == id).unwrap();
        let (third, ninth) = (free[2], free[8]);
        let earlier = first(third).min(first(ninth));
        for ends in [vec![third, ninth], vec![ninth, third]] {
            assert_eq!(ends_at(ends), (free[..=earlier].to_vec(), Finish::EndOfText));
        }
        assert_eq!(
            ends_at(vec![ninth]),
            (free[..=first(ninth)].to_vec(), Finish::EndOfText)
        );
    }

    #[test]
    fn a_text_ends_where_it_is_told_to() {
        let (tokenizer, model) = (tokenizer(), model(false));
        let generator = generator(&model, &tokenizer, 24);
        let prompt = encode(&tokenizer, "the cat", SpelledOut::AsText).unwrap().len();
        let seed =
            (0..).find(|seed| generate(&generator, vec![("the cat", options(99, *seed))])[0].1 == Finish::Context);
        let long = generate(&generator, vec![("the cat", options(99, seed.unwrap()))]).remove(0);
        // Nothing needs to follow the last one.
        assert_eq!(long.2, 24 - prompt + 1);
        let short = generate(&generator, vec![("the cat", options(3, seed.unwrap()))]).remove(0);
        assert_eq!((short.1, short.2), (Finish::Length, 3));
        let nothing = generate(&generator, vec![("the cat", options(0, 1))]).remove(0);
        assert_eq!(nothing, (String::new(), Finish::Length, 0));
        // At a string of its own, which is not part of it.
        let middle: String = long.0.chars().skip(2).take(2).collect();
        let stop = GenerationOptions {
            stop: vec![middle.clone()],
            ..options(99, seed.unwrap())
        };
        let stopped = generate(&generator, vec![("the cat", stop)]).remove(0);
        assert_eq!(stopped.1, Finish::Stop);
        assert_eq!(stopped.0, long.0[..long.0.find(&middle).unwrap()]);
        let error = generator.prompt(vec![1; 25]).unwrap_err();
        assert_eq!(error.to_string(), "25 tokens are more than a context of 24");
    }
}
