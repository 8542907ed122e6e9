//! The one thread on which the model works. It takes jobs from a bounded queue, a prompt at a time, and adds a token to every text in
//! progress between two prompts, so that a long request does not keep the short ones waiting. As many texts are in progress as there is room
//! for keys and values; the others wait.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use burn::tensor::backend::Backend;
use tokio::sync::mpsc::UnboundedSender;

use crate::generate::{GeneratedPiece, GenerationOptions, Generator, Prompt, Sequence, TokenScore};
use crate::inference::InferenceError;

/// How long to wait for a job before looking whether to stop.
const IDLE: Duration = Duration::from_millis(100);

/// What the model is to do for one request.
#[derive(Debug)]
pub struct Job {
    /// The tokens of each prompt, which the model has.
    pub prompts: Vec<Vec<u32>>,
    /// Texts for each prompt.
    pub n: usize,
    /// What is asked of each text; the seed is that of a prompt's first text.
    pub options: GenerationOptions,
    /// Whether the prompts' tokens are to be scored.
    pub score_prompts: bool,
    /// Where to report. As many events come as the request has texts and tokens, which are bounded, so a client that reads slowly holds up
    /// nobody. Once the other end is gone, the job ends.
    pub reply: UnboundedSender<JobEvent>,
}

/// What happens to a text of a job.
#[derive(Debug)]
pub enum JobEvent {
    /// Its prompt has gone through the model.
    Prompt {
        /// Number of the text.
        choice: usize,
        /// Scores of the prompt's tokens but the first, if asked for.
        scores: Arc<Vec<TokenScore>>,
    },
    /// It has grown.
    Piece {
        /// Number of the text.
        choice: usize,
        /// What was added.
        piece: GeneratedPiece,
        /// Tokens that were generated for it so far.
        made: usize,
    },
    /// The job has failed.
    Failed(String),
}

/// Texts that wait, all of one prompt.
struct Waiting<B: Backend> {
    prompt: Stage<B>,
    choices: Range<usize>,
    job: Arc<Job>,
}

/// How far a prompt has come.
enum Stage<B: Backend> {
    /// Its tokens are known, and the model has not seen them.
    Unread(Vec<u32>),
    /// It has gone through the model, and its tokens have these scores.
    Read(Prompt<B>, Arc<Vec<TokenScore>>),
}

/// A text in progress.
struct Running<B: Backend> {
    sequence: Sequence<B>,
    choice: usize,
    job: Arc<Job>,
}

/// Works, on at most `together` texts at a time, until there are no more jobs and nobody is left to send one, or until `cancel`.
pub fn work<B: Backend>(generator: &Generator<'_, B>, jobs: &Receiver<Job>, together: usize, cancel: &AtomicBool) {
    let mut waiting: VecDeque<Waiting<B>> = VecDeque::new();
    let mut running: Vec<Running<B>> = Vec::new();
    while !cancel.load(Ordering::Relaxed) {
        if waiting.is_empty() {
            let next = if running.is_empty() {
                match jobs.recv_timeout(IDLE) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                jobs.try_recv().ok()
            };
            waiting.extend(next.into_iter().flat_map(prompts_of));
        }
        let room = together.saturating_sub(running.len());
        if room > 0
            && let Some(next) = waiting.pop_front()
            && !next.job.reply.is_closed()
        {
            let job = next.job.clone();
            match begin(generator, next, room, &mut running) {
                Ok(Some(rest)) => waiting.push_front(rest),
                Ok(None) => {}
                Err(error) => fail(&job, error.to_string()),
            }
        }
        running.retain(|text| !text.job.reply.is_closed());
        if !running.is_empty() {
            step(generator, &mut running);
        }
    }
}

/// Adds a token to every text in progress, and lets go of those that end with it.
fn step<B: Backend>(generator: &Generator<'_, B>, running: &mut Vec<Running<B>>) {
    let mut sequences: Vec<_> = running.iter_mut().map(|text| &mut text.sequence).collect();
    match generator.step(&mut sequences) {
        Ok(pieces) => {
            for (text, piece) in running.iter().zip(pieces) {
                let (choice, made) = (text.choice, text.sequence.made());
                send(&text.job, JobEvent::Piece { choice, piece, made });
            }
            running.retain(|text| text.sequence.finish().is_none());
        }
        Err(error) => {
            for text in running.drain(..) {
                fail(&text.job, error.to_string());
            }
        }
    }
}

/// The prompts of a job, each with the texts that are to follow it.
fn prompts_of<B: Backend>(mut job: Job) -> Vec<Waiting<B>> {
    let prompts = std::mem::take(&mut job.prompts);
    let (n, job) = (job.n, Arc::new(job));
    let waiting = prompts.into_iter().enumerate();
    waiting
        .map(|(index, ids)| Waiting {
            prompt: Stage::Unread(ids),
            choices: index * n..(index + 1) * n,
            job: job.clone(),
        })
        .collect()
}

/// Begins as many texts of a prompt as there is room for, and returns those that go on waiting.
fn begin<B: Backend>(
    generator: &Generator<'_, B>,
    waiting: Waiting<B>,
    room: usize,
    running: &mut Vec<Running<B>>,
) -> Result<Option<Waiting<B>>, InferenceError> {
    let Waiting {
        prompt,
        mut choices,
        job,
    } = waiting;
    let (prompt, scores) = match prompt {
        Stage::Read(prompt, scores) => (prompt, scores),
        Stage::Unread(ids) if job.score_prompts => {
            let (prompt, scores) = generator.scored_prompt(ids, job.options.alternatives.unwrap_or(0))?;
            (prompt, Arc::new(scores))
        }
        Stage::Unread(ids) => (generator.prompt(ids)?, Arc::default()),
    };
    for choice in choices.by_ref().take(room) {
        let scores = scores.clone();
        send(&job, JobEvent::Prompt { choice, scores });
        let options = GenerationOptions {
            seed: job.options.seed.wrapping_add((choice % job.n) as u64),
            ..job.options.clone()
        };
        running.push(Running {
            sequence: generator.sequence(prompt.clone(), options)?,
            choice,
            job: job.clone(),
        });
    }
    Ok((!choices.is_empty()).then_some(Waiting {
        prompt: Stage::Read(prompt, scores),
        choices,
        job,
    }))
}

/// Reports to the client, which may have gone: then the job ends before the next step.
fn send(job: &Job, event: JobEvent) {
    let _ = job.reply.send(event);
}

fn fail(job: &Job, message: String) {
    send(job, JobEvent::Failed(message));
}
