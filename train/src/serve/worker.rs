//! The one thread on which the model works. It takes jobs from a bounded queue, a prompt at a time, and adds a token to every text in
//! progress between two prompts, so that a long request does not keep the short ones waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use burn::tensor::backend::Backend;
use tokio::sync::mpsc::UnboundedSender;

use crate::generate::{Generator, Request, Sequence, Step, TokenScore};

/// Texts in progress, at most.
const TOGETHER: usize = 64;
/// Between two looks at whether to stop while there is nothing to do.
const IDLE: Duration = Duration::from_millis(100);

/// A request for the model.
#[derive(Debug)]
pub struct Job {
    /// The tokens of each prompt, which the model has.
    pub prompts: Vec<Vec<u32>>,
    /// Texts for each prompt.
    pub n: usize,
    /// What is asked of each text.
    pub request: Request,
    /// Whether the prompts' tokens are to be scored.
    pub score_prompts: bool,
    /// Where to report. As many events come as the request has texts and tokens, which are bounded, so a client that reads slowly holds up
    /// nobody. Once the other end is gone, the job ends.
    pub reply: UnboundedSender<Event>,
}

/// What happens to a text of a job.
#[derive(Debug)]
pub enum Event {
    /// Its prompt has gone through the model.
    Prompt {
        /// Number of the text.
        choice: usize,
        /// Scores of the prompt's tokens but the first, if asked for.
        scores: Arc<Vec<TokenScore>>,
    },
    /// It has gone on.
    Step {
        /// Number of the text.
        choice: usize,
        /// By what.
        step: Step,
        /// Tokens that it has now.
        made: usize,
    },
    /// The job has failed.
    Failed(String),
}

/// A prompt that waits.
struct Waiting {
    ids: Vec<u32>,
    first_choice: usize,
    job: Arc<Job>,
}

/// A text in progress.
struct Running<B: Backend> {
    sequence: Sequence<B>,
    choice: usize,
    job: Arc<Job>,
}

/// Works until there are no more jobs and nobody is left to send one, or until `cancel`.
pub fn work<B: Backend>(generator: &Generator<'_, B>, jobs: &Receiver<Job>, cancel: &AtomicBool) {
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
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
        if running.len() < TOGETHER
            && let Some(next) = waiting.pop_front()
            && !next.job.reply.is_closed()
        {
            let job = next.job.clone();
            match begin(generator, next) {
                Ok(begun) => running.extend(begun),
                Err(message) => fail(&job, message),
            }
        }
        running.retain(|text| !text.job.reply.is_closed());
        if running.is_empty() {
            continue;
        }
        let mut sequences: Vec<_> = running.iter_mut().map(|text| &mut text.sequence).collect();
        match generator.step(&mut sequences) {
            Ok(steps) => {
                for (text, step) in running.iter().zip(steps) {
                    let made = text.sequence.made();
                    send(
                        &text.job,
                        Event::Step {
                            choice: text.choice,
                            step,
                            made,
                        },
                    );
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
}

fn prompts_of(job: Job) -> Vec<Waiting> {
    let mut job = job;
    let prompts = std::mem::take(&mut job.prompts);
    let (n, job) = (job.n, Arc::new(job));
    let waiting = prompts.into_iter().enumerate();
    waiting
        .map(|(index, ids)| Waiting {
            ids,
            first_choice: index * n,
            job: job.clone(),
        })
        .collect()
}

fn begin<B: Backend>(generator: &Generator<'_, B>, waiting: Waiting) -> Result<Vec<Running<B>>, String> {
    let Waiting { ids, first_choice, job } = waiting;
    let failed = |error: &dyn std::error::Error| error.to_string();
    let (prompt, scores) = if job.score_prompts {
        let alternatives = job.request.alternatives.unwrap_or(0);
        generator
            .scored_prompt(ids, alternatives)
            .map_err(|error| failed(&error))?
    } else {
        (generator.prompt(ids).map_err(|error| failed(&error))?, Vec::new())
    };
    let scores = Arc::new(scores);
    (0..job.n)
        .map(|index| {
            let choice = first_choice + index;
            send(
                &job,
                Event::Prompt {
                    choice,
                    scores: scores.clone(),
                },
            );
            let request = Request {
                seed: job.request.seed.wrapping_add(index as u64),
                ..job.request.clone()
            };
            let sequence = generator
                .sequence(prompt.clone(), request)
                .map_err(|error| failed(&error))?;
            Ok(Running {
                sequence,
                choice,
                job: job.clone(),
            })
        })
        .collect()
}

/// To a client that may have gone.
fn send(job: &Job, event: Event) {
    let _ = job.reply.send(event);
}

fn fail(job: &Job, message: String) {
    send(job, Event::Failed(message));
}
