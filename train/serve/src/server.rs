//! A run's model behind OpenAI's completions interface, for lm-evaluation-harness and ordinary clients.
//!
//! ```text
//! client ── hyper, one task a connection ──(bounded queue)── one thread with the model
//! ```
//!
//! Whatever a client sends is bounded in size (body, texts, tokens) and in time (headers, body, each write of the answer), and so is their
//! number (connections, jobs in the queue). The interface reads and writes no files. A client that leaves takes its job with it. On a signal
//! no new work is taken, what is in progress has some seconds to end, and then the process does.

pub mod completions;
pub mod worker;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gpas_data::tokenizer::Tokenizer;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_io_timeout::TimeoutStream;

use self::completions::{BadRequest, Choice, ChoiceBuilder, Completion, Envelope, PromptInput, Usage, error_body};
use self::worker::{Event, Job};
use crate::generate::encode;
use crate::inference::{InferenceError, check_ids};
use gpas_train::signals::StopRequest;

/// What a server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body: usize,
    /// Jobs that wait for the model.
    pub queue: usize,
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// For the headers of a request, from when the connection is ready for them.
    pub header_time: Duration,
    /// For the body of a request.
    pub body_time: Duration,
    /// For a client to take what it is sent.
    pub write_time: Duration,
    /// For work in progress after a signal.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 4 << 20,
            queue: 64,
            connections: 256,
            header_time: Duration::from_secs(10),
            body_time: Duration::from_secs(20),
            write_time: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

/// What is served.
#[derive(Debug)]
pub struct Service {
    /// The model's name.
    pub name: String,
    /// When the server began, in seconds since 1970.
    pub created: u64,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Number of the model's token ids.
    pub vocab: usize,
    /// Positions that may be used.
    pub context: usize,
    /// What is allowed.
    pub limits: Limits,
    /// To the model.
    pub jobs: SyncSender<Job>,
    /// Answers so far.
    pub answers: AtomicU64,
}

type Body = Either<Full<Bytes>, Channel<Bytes, Infallible>>;

/// Serves until a stop is asked for, and sets `cancel` if work in progress has not ended in time.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve(
    listener: std::net::TcpListener,
    service: Service,
    stop: &StopRequest,
    cancel: &AtomicBool,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Those that parse requests.
        .max_blocking_threads(2)
        .thread_name("http")
        .enable_all()
        .build()?;
    let grace = service.limits.grace;
    runtime.block_on(async {
        let connections = GracefulShutdown::new();
        accept(TcpListener::from_std(listener)?, Arc::new(service), stop, &connections).await;
        if tokio::time::timeout(grace, connections.shutdown()).await.is_err() {
            cancel.store(true, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Accepts connections until a stop is asked for.
async fn accept(listener: TcpListener, service: Arc<Service>, stop: &StopRequest, connections: &GracefulShutdown) {
    let limits = service.limits;
    let room = Arc::new(Semaphore::new(limits.connections));
    let stopped = async {
        while stop.requested().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::pin!(stopped);
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = room.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = &mut stopped => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of files, or a client that has gone already.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let service = service.clone();
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_time)
            .max_buf_size(64 << 10)
            .serve_connection(
                TokioIo::new(timed(stream, limits.write_time)),
                service_fn(move |request| {
                    let service = service.clone();
                    async move { Ok::<_, Infallible>(answer(&service, request).await) }
                }),
            );
        let watched = connections.watch(connection);
        tokio::spawn(async move {
            // Whatever a client does to its connection ends no more than that.
            let _ = watched.await;
            drop(permit);
        });
    }
}

/// A connection on which a write that makes no progress ends it.
fn timed(stream: TcpStream, write_time: Duration) -> Pin<Box<TimeoutStream<TcpStream>>> {
    // Tokens are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(write_time));
    Box::pin(stream)
}

/// An answer that is no success.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    body: Value,
}

impl Refusal {
    fn new(status: StatusCode, message: &str, param: Option<&str>, code: Option<&str>) -> Self {
        let kind = match status {
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        Self {
            status,
            body: error_body(kind, message, param, code),
        }
    }
}

impl From<BadRequest> for Refusal {
    fn from(error: BadRequest) -> Self {
        Self::new(StatusCode::BAD_REQUEST, &error.message, error.param, None)
    }
}

impl From<InferenceError> for Refusal {
    fn from(error: InferenceError) -> Self {
        let code = matches!(error, InferenceError::TooLong { .. }).then_some("context_length_exceeded");
        Self::new(StatusCode::BAD_REQUEST, &error.to_string(), Some("prompt"), code)
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        let mut response = as_json(refusal.status, &refusal.body);
        if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn as_json(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body.to_string()))));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

async fn answer(service: &Arc<Service>, request: Request<Incoming>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let allowed = match path.as_str() {
        "/v1/completions" => Method::POST,
        "/v1/models" | "/health" => Method::GET,
        _ => {
            let message = format!("there is no {path}; there are POST /v1/completions, GET /v1/models and GET /health");
            return Refusal::new(StatusCode::NOT_FOUND, &message, None, None).into();
        }
    };
    if method != allowed {
        let message = format!("{path} is for {allowed}");
        let mut response: Response<Body> = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, &message, None, None).into();
        if let Ok(allowed) = HeaderValue::from_str(allowed.as_str()) {
            response.headers_mut().insert(ALLOW, allowed);
        }
        return response;
    }
    match path.as_str() {
        "/health" => as_json(StatusCode::OK, &json!({"status": "ok"})),
        "/v1/models" => {
            let model = json!({
                "id": service.name,
                "object": "model",
                "created": service.created,
                "owned_by": "gpas",
                "max_model_len": service.context,
            });
            as_json(StatusCode::OK, &json!({"object": "list", "data": [model]}))
        }
        _ => completion(service, request).await.unwrap_or_else(Into::into),
    }
}

/// The body of a request, of bounded size and in bounded time.
async fn read_body(limits: Limits, request: Request<Incoming>) -> Result<Vec<u8>, Refusal> {
    let mut body = request.into_body();
    let read = async {
        let (mut bytes, mut length) = (Vec::new(), body.size_hint().lower() as usize);
        if length > 2 * limits.body {
            return Ok((bytes, length));
        }
        length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            length += data.len();
            if length <= limits.body {
                bytes.extend_from_slice(&data);
            } else if length > 2 * limits.body {
                break;
            }
            // What is a little too large is read to its end, so that the client is there for the answer.
        }
        Ok::<_, hyper::Error>((bytes, length))
    };
    match tokio::time::timeout(limits.body_time, read).await {
        Ok(Ok((bytes, length))) if length <= limits.body => Ok(bytes),
        Ok(Ok(_)) => {
            let message = format!("the body is larger than {} bytes", limits.body);
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, &message, None, None))
        }
        Ok(Err(error)) => {
            let message = format!("the body cannot be read: {error}");
            Err(Refusal::new(StatusCode::BAD_REQUEST, &message, None, None))
        }
        Err(_) => {
            let message = "the body takes too long";
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, message, None, None))
        }
    }
}

/// A request on its way: its job has been handed to the model.
struct Pending {
    completion: Completion,
    prompts: Vec<Vec<u32>>,
    events: UnboundedReceiver<Event>,
    envelope: Envelope,
}

async fn completion(service: &Arc<Service>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let body = read_body(service.limits, request).await?;
    // Parsing and tokenizing a large body takes a while, in which the other connections go on.
    let (parser, own) = (service.clone(), body);
    let parsed = tokio::task::spawn_blocking(move || parse(&parser, &own)).await;
    let (completion, prompts) = parsed.map_err(|_| internal("the request could not be read"))??;
    let (reply, events) = unbounded_channel();
    let job = Job {
        prompts: prompts.clone(),
        n: completion.n,
        request: completion.request.clone(),
        score_prompts: completion.echo && completion.request.alternatives.is_some(),
        reply,
    };
    service.jobs.try_send(job).map_err(|error| {
        let message = match error {
            TrySendError::Full(_) => "too many requests are waiting; try again later",
            TrySendError::Disconnected(_) => "the server is shutting down",
        };
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message, None, Some("overloaded"))
    })?;
    let number = service.answers.fetch_add(1, Ordering::Relaxed);
    let pending = Pending {
        completion,
        prompts,
        events,
        envelope: Envelope {
            id: format!("cmpl-{}-{number}", service.created),
            created: seconds_since_1970(),
            model: service.name.clone(),
        },
    };
    if pending.completion.stream {
        let (sender, body) = Channel::new(16);
        let tokenizer = service.tokenizer.clone();
        tokio::spawn(async move { stream(pending, &tokenizer, sender).await });
        let mut response = Response::new(Either::Right(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        return Ok(response);
    }
    whole(pending, &service.tokenizer).await
}

/// A body as a request whose prompts are tokens of the model.
fn parse(service: &Service, body: &[u8]) -> Result<(Completion, Vec<Vec<u32>>), Refusal> {
    let completion = Completion::parse(body, rand::random())?;
    let prompts = completion.prompts.iter().map(|prompt| {
        let ids = match prompt {
            PromptInput::Ids(ids) => ids.clone(),
            PromptInput::Text(text) => encode(&service.tokenizer, text).map_err(|error| BadRequest {
                message: error.to_string(),
                param: Some("prompt"),
            })?,
        };
        check_ids(&ids, service.vocab, service.context)?;
        Ok(ids)
    });
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_, Refusal>>()?;
    Ok((completion, prompts))
}

fn internal(message: &str) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message, None, None)
}

impl Pending {
    fn builders(&self, tokenizer: &Tokenizer) -> Vec<ChoiceBuilder> {
        let with_logprobs = self.completion.request.alternatives.is_some();
        (0..self.prompts.len() * self.completion.n)
            .map(|index| ChoiceBuilder::new(index, with_logprobs, tokenizer))
            .collect()
    }

    /// What an event adds to its choice; the number of the choice, and whether it has ended.
    fn add(&self, builders: &mut [ChoiceBuilder], usage: &mut Usage, event: Event) -> Result<(usize, bool), Refusal> {
        match event {
            Event::Failed(message) => Err(internal(&message)),
            Event::Prompt { choice, scores } => {
                let ids = &self.prompts[choice / self.completion.n];
                if choice % self.completion.n == 0 {
                    usage.prompt += ids.len();
                }
                if self.completion.echo {
                    let echoed = builders[choice].echo(ids, &scores);
                    echoed.map_err(|error| internal(&error.to_string()))?;
                }
                Ok((choice, false))
            }
            Event::Step { choice, step, made } => {
                builders[choice].step(&step.text, step.score.as_ref(), step.finish);
                if step.finish.is_some() {
                    usage.completion += made;
                }
                Ok((choice, step.finish.is_some()))
            }
        }
    }
}

/// The whole answer at once.
async fn whole(mut pending: Pending, tokenizer: &Tokenizer) -> Result<Response<Body>, Refusal> {
    let mut builders = pending.builders(tokenizer);
    let (mut usage, mut open) = (Usage::default(), builders.len());
    while open > 0 {
        let Some(event) = pending.events.recv().await else {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the server is shutting down",
                None,
                None,
            ));
        };
        let (_, ended) = pending.add(&mut builders, &mut usage, event)?;
        open -= usize::from(ended);
    }
    let choices: Vec<Choice> = builders.iter_mut().map(ChoiceBuilder::take).collect();
    Ok(as_json(StatusCode::OK, &pending.envelope.wrap(&choices, Some(usage))))
}

/// The answer as server-sent events, a piece of a choice each, until it is complete or the client has gone.
async fn stream(mut pending: Pending, tokenizer: &Tokenizer, mut sender: Sender<Bytes>) {
    let mut builders = pending.builders(tokenizer);
    let (mut usage, mut open) = (Usage::default(), builders.len());
    let line = |value: &Value| Bytes::from(format!("data: {value}\n\n"));
    while open > 0 {
        let Some(event) = pending.events.recv().await else {
            let body = error_body("server_error", "the server is shutting down", None, None);
            let _ = sender.send_data(line(&body)).await;
            return;
        };
        let (choice, ended) = match pending.add(&mut builders, &mut usage, event) {
            Ok(added) => added,
            Err(refusal) => {
                let _ = sender.send_data(line(&refusal.body)).await;
                return;
            }
        };
        open -= usize::from(ended);
        let piece = builders[choice].take();
        if piece.is_empty() {
            continue;
        }
        if sender
            .send_data(line(&pending.envelope.wrap(&[piece], None)))
            .await
            .is_err()
        {
            return;
        }
    }
    if pending.completion.include_usage {
        let _ = sender.send_data(line(&pending.envelope.wrap(&[], Some(usage)))).await;
    }
    let _ = sender.send_data(Bytes::from_static(b"data: [DONE]\n\n")).await;
}

/// Seconds since 1970.
pub fn seconds_since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The address as a browser takes it.
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
