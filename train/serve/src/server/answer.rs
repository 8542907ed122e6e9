//! From what happens to the texts of a job to the answer that its client gets: all at once, or piece by piece as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::completions::{Choice, ChoiceBuilder, Completion};
use super::refusal::Refusal;
use super::served::{ServedModel, seconds_since_1970};
use super::worker::JobEvent;

/// Time between two comments in a stream that has nothing else to say.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// An answer on its way: its job has been handed to the model. The job ends when this is dropped, as it is when the client leaves.
pub struct Answer {
    completion: Completion,
    prompts: Vec<Vec<u32>>,
    events: UnboundedReceiver<JobEvent>,
    /// What every piece of the answer repeats.
    head: Value,
    /// What the first piece says of the request.
    warnings: Vec<String>,
    builders: Vec<ChoiceBuilder>,
    /// Texts that have not ended.
    open: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
}

impl Answer {
    /// Answer `number` of this server.
    pub fn new(
        mut completion: Completion,
        prompts: Vec<Vec<u32>>,
        events: UnboundedReceiver<JobEvent>,
        number: u64,
        model: &ServedModel,
    ) -> Self {
        let warnings = std::mem::take(&mut completion.warnings);
        let with_logprobs = completion.options.alternatives.is_some();
        let open = prompts.len() * completion.n;
        let builder = |index| ChoiceBuilder::new(index, with_logprobs, &model.tokenizer);
        let head = json!({
            "id": format!("cmpl-{}-{number}", model.created),
            "object": "text_completion",
            "created": seconds_since_1970(),
            "model": model.name,
        });
        Self {
            completion,
            prompts,
            events,
            head,
            warnings,
            builders: (0..open).map(builder).collect(),
            open,
            prompt_tokens: 0,
            completion_tokens: 0,
        }
    }

    /// The whole answer at once.
    pub async fn whole(mut self) -> Result<Value, Refusal> {
        while self.open > 0 {
            self.next_event().await?;
        }
        let choices: Vec<Choice> = self.builders.iter_mut().map(ChoiceBuilder::take).collect();
        Ok(self.with(&choices, true))
    }

    /// The answer as server-sent events, each a piece of one choice.
    pub fn in_pieces(self) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
        let pieces = stream::unfold(Some(self), |answer| async move {
            let mut answer = answer?;
            Some(match answer.next_piece().await {
                Ok(Some(piece)) => (vec![answer.with(&[piece], false).to_string()], Some(answer)),
                Ok(None) => (answer.ending(), None),
                Err(refusal) => (vec![refusal.body().to_string()], None),
            })
        });
        Sse::new(
            pieces
                .flat_map(stream::iter)
                .map(|data| Ok(Event::default().data(data))),
        )
        // Comments, which clients pass over, tell whether one has left before its first token.
        .keep_alive(KeepAlive::new().interval(SIGN_OF_LIFE))
    }

    /// The next piece of any choice; none after the last.
    async fn next_piece(&mut self) -> Result<Option<Choice>, Refusal> {
        while self.open > 0 {
            let choice = self.next_event().await?;
            let piece = self.builders[choice].take();
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// What comes after the last piece.
    fn ending(&mut self) -> Vec<String> {
        let includes_usage = self.completion.include_usage;
        let usage = includes_usage.then(|| self.with(&[], true).to_string());
        usage.into_iter().chain(["[DONE]".into()]).collect()
    }

    /// The answer, or a piece of it, with these choices, and with the number of tokens if asked for.
    fn with(&mut self, choices: &[Choice], usage: bool) -> Value {
        let mut answer = self.head.clone();
        answer["choices"] = json!(choices);
        let warnings = std::mem::take(&mut self.warnings);
        if !warnings.is_empty() {
            answer["warnings"] = json!(warnings);
        }
        if usage {
            answer["usage"] = json!({
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            });
        }
        answer
    }

    /// Waits for the next event, adds it to its choice and returns the number of that choice.
    async fn next_event(&mut self) -> Result<usize, Refusal> {
        match self.events.recv().await.ok_or_else(Refusal::shutting_down)? {
            JobEvent::Failed(message) => Err(Refusal::internal(message)),
            JobEvent::Prompt { choice, scores } => {
                let ids = &self.prompts[choice / self.completion.n];
                if choice % self.completion.n == 0 {
                    self.prompt_tokens += ids.len();
                }
                if self.completion.echo {
                    let echoed = self.builders[choice].echo(ids, &scores);
                    echoed.map_err(|error| Refusal::internal(error.to_string()))?;
                }
                Ok(choice)
            }
            JobEvent::Piece { choice, piece, made } => {
                self.builders[choice].push(&piece.text, piece.score.as_ref(), piece.finish);
                if piece.finish.is_some() {
                    self.completion_tokens += made;
                    self.open -= 1;
                }
                Ok(choice)
            }
        }
    }
}
