//! The paths of the server: what each answers, and how a request is refused.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use gpas_data::SpelledOut;
use gpas_data::tokenizer::SpelledTokens;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;
use tower_http::limit::RequestBodyLimitLayer;

use super::answer::Answer;
use super::completions::{Completion, PromptInput};
use super::refusal::Refusal;
use super::served::{Limits, ServedModel};
use super::worker::Job;
use crate::generate::encode;
use crate::inference::check_ids;

/// Time after which an answer that is not there yet is begun.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time between two signs that an answer is on its way.
const PAUSE: Duration = Duration::from_secs(1);

/// Everything that the server answers.
pub(super) fn router(model: Arc<ServedModel>) -> Router {
    let limits = model.limits;
    let wrong_method = |allowed: &'static str| {
        move |uri: Uri| async move {
            let message = format!("{} is for {allowed}", uri.path());
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message)
        }
    };
    // tower-http refuses a body that says that it is far too large, but in plain text.
    let in_our_words = move |response: Response| async move {
        match response.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(limits).into_response(),
            _ => response,
        }
    };
    let completions = post(completion)
        .layer(RequestBodyLimitLayer::new(2 * limits.body))
        .layer(map_response(in_our_words))
        .fallback(wrong_method("POST"));
    Router::new()
        .route("/v1/completions", completions)
        .route("/v1/models", get(models).fallback(wrong_method("GET")))
        .route("/health", get(health).fallback(wrong_method("GET")))
        .fallback(unknown)
        .with_state(model)
}

async fn unknown(uri: Uri) -> Refusal {
    let path = uri.path();
    let message = format!("there is no {path}; there are POST /v1/completions, GET /v1/models and GET /health");
    Refusal::new(StatusCode::NOT_FOUND, message)
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn models(State(model): State<Arc<ServedModel>>) -> Json<Value> {
    let served = json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "gpas",
        "max_model_len": model.context.tokens,
    });
    Json(json!({"object": "list", "data": [served]}))
}

async fn completion(State(model): State<Arc<ServedModel>>, body: Body) -> Result<Response, Refusal> {
    let body = read_body(model.limits, body).await?;
    // Parsing and tokenizing a large body takes a while, in which the other connections go on.
    let parser = model.clone();
    let parsed = tokio::task::spawn_blocking(move || parse(&parser, &body)).await;
    let (completion, prompts) = parsed.map_err(|_| Refusal::internal("the request could not be read"))??;
    let (reply, events) = unbounded_channel();
    let job = Job {
        prompts: prompts.clone(),
        n: completion.n,
        options: completion.options.clone(),
        score_prompts: completion.echo && completion.options.alternatives.is_some(),
        reply,
    };
    model.jobs.try_send(job).map_err(|error| Refusal {
        code: Some("overloaded"),
        ..match error {
            TrySendError::Full(_) => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests are waiting; try again later",
            ),
            TrySendError::Disconnected(_) => Refusal::shutting_down(),
        }
    })?;
    let number = model.answers.fetch_add(1, Ordering::Relaxed);
    let stream = completion.stream;
    let answer = Answer::new(completion, prompts, events, number, &model);
    if stream {
        return Ok(answer.in_pieces().into_response());
    }
    let mut whole = Box::pin(answer.whole());
    match timeout(PATIENCE, &mut whole).await {
        Ok(answer) => Ok(Json(answer?).into_response()),
        Err(_) => Ok(late(whole)),
    }
}

/// An answer that takes long, with spaces before it that show whether the client is still there. Its status is said before it is known
/// whether the model fails, which then stands in the body alone.
fn late(answer: impl Future<Output = Result<Value, Refusal>> + Send + Unpin + 'static) -> Response {
    let pieces = stream::unfold(Some(answer), |answer| async move {
        let mut answer = answer?;
        let (piece, rest) = match timeout(PAUSE, &mut answer).await {
            Ok(whole) => (whole.unwrap_or_else(|refusal| refusal.body()).to_string(), None),
            Err(_) => (" ".into(), Some(answer)),
        };
        Some((Ok::<_, Infallible>(piece), rest))
    });
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

fn too_large(limits: Limits) -> Refusal {
    let message = format!("the body is larger than {} bytes", limits.body);
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// The body of a request, of bounded size and in bounded time.
async fn read_body(limits: Limits, mut body: Body) -> Result<Vec<u8>, Refusal> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            length += data.len();
            // What is a little too large is read to its end all the same, so that the client is there for the answer.
            if length <= limits.body {
                bytes.extend_from_slice(&data);
            }
        }
        Ok::<_, axum::Error>(())
    };
    match timeout(limits.body_time, read).await {
        _ if length > limits.body => Err(too_large(limits)),
        Ok(Ok(())) => Ok(bytes),
        Ok(Err(error)) => {
            let message = format!("the body cannot be read: {error}");
            Err(Refusal::new(StatusCode::BAD_REQUEST, message))
        }
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body takes too long")),
    }
}

/// A body as a completion and the tokens of its prompts, which the model has.
fn parse(model: &ServedModel, body: &[u8]) -> Result<(Completion, Vec<Vec<u32>>), Refusal> {
    let mut completion = Completion::parse(body, rand::random())?;
    let mut spelled = SpelledTokens::default();
    let prompts = completion.prompts.iter().map(|prompt| {
        let ids = match prompt {
            PromptInput::Ids(ids) => ids.clone(),
            PromptInput::Text(text) => {
                if completion.special_tokens == SpelledOut::AsText {
                    spelled.add(model.tokenizer.spelled_special_tokens(text));
                }
                let ids = encode(&model.tokenizer, text, completion.special_tokens);
                ids.map_err(|error| Refusal::about("prompt", error.to_string()))?
            }
        };
        check_ids(&ids, model.vocab, model.context)?;
        Ok(ids)
    });
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_, Refusal>>()?;
    if let Some(first) = spelled.first {
        let count = spelled.count;
        completion.warnings.push(format!(
            "the prompt spells out special tokens, {count} in all, the first `{first}`; they were taken as text; with \"special_tokens\": true \
             they are the tokens they are"
        ));
    }
    Ok((completion, prompts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_takes_long_begins_with_spaces() {
        for (answer, expected) in [
            (Ok(json!({"a": 1})), " {\"a\":1}".to_string()),
            (
                Err(Refusal::internal("x")),
                format!(" {}", Refusal::internal("x").body()),
            ),
        ] {
            let slow = Box::pin(async {
                tokio::time::sleep(PAUSE + PAUSE / 2).await;
                answer
            });
            let body = late(slow).into_body().collect().await.expect("a body").to_bytes();
            assert_eq!(String::from_utf8_lossy(&body), expected);
        }
    }
}
