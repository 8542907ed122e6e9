//! A run's model behind OpenAI's completions interface, for lm-evaluation-harness and ordinary clients.
//!
//! ```text
//! client ── hyper, one task a connection ── axum's router ──(bounded queue)── one thread with the model
//! ```
//!
//! Whatever a client sends is bounded in size and in time, and so is the number of clients. Each limit stands in the outermost layer that
//! knows what it is about:
//!
//! | limit | where it stands |
//! |---|---|
//! | connections | a semaphore before `accept`, so that clients over the limit wait in the system's queue and take no file here |
//! | time for the headers, and their size | hyper's connection builder; axum's own `serve` has no such setting |
//! | time for each write of the answer | tokio-io-timeout around the connection; tower-http times requests, not writes |
//! | size of the body | tower-http's `RequestBodyLimitLayer` at twice the limit; between one and two limits the handler reads to the end and refuses |
//! | time for the whole body | the handler; tower-http's `RequestBodyTimeout` begins anew with each piece |
//! | prompts, choices, stop strings, tokens | `completions.rs` and the handler, before the model hears of them |
//! | jobs that wait | the queue; a request that finds it full is answered 503 with `Retry-After` |
//!
//! The interface reads and writes no files. A client that has closed its side of the connection, as `nc -N` does after its request, is
//! answered. It looks as one that has left until something is written to it: so a stream ends with the first piece that does not arrive, and
//! an answer that takes long is begun with spaces, which JSON allows, of which the first that does not arrive ends its job. After a signal no new work is taken, work in progress
//! has some seconds to end, and then the process ends.

mod answer;
mod completions;
mod foreign;
mod refusal;
mod routes;
mod served;
pub mod worker;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

pub use self::served::{Limits, ServedModel, seconds_since_1970};
use gpas_train::signals::StopRequest;

/// Serves until a stop is asked for, and sets `cancel` if work in progress has not ended in time.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve(
    listener: std::net::TcpListener,
    model: ServedModel,
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
    let limits = model.limits;
    let router = routes::router(Arc::new(model));
    runtime.block_on(async {
        let connections = GracefulShutdown::new();
        tokio::select! {
            () = accept(TcpListener::from_std(listener)?, router, limits, &connections) => {}
            () = asked_to(stop) => {}
        }
        if tokio::time::timeout(limits.grace, connections.shutdown())
            .await
            .is_err()
        {
            cancel.store(true, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Ends when a stop is asked for.
async fn asked_to(stop: &StopRequest) {
    while stop.requested().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Accepts connections, for ever.
async fn accept(listener: TcpListener, router: Router, limits: Limits, connections: &GracefulShutdown) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .half_close(true)
        .header_read_timeout(limits.header_time)
        .max_buf_size(64 << 10);
    loop {
        // The semaphore is never closed.
        let permit = room.clone().acquire_owned().await.ok();
        let Ok((stream, _)) = listener.accept().await else {
            // The process has no more files, or the client has gone already.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let stream = TokioIo::new(timed(stream, limits.write_time));
        let connection = http.serve_connection(stream, TowerToHyperService::new(router.clone()));
        let watched = connections.watch(connection);
        tokio::spawn(async move {
            // Whatever a client does to its connection ends that connection and nothing else.
            let _ = watched.await;
            drop(permit);
        });
    }
}

/// A connection on which a write that makes no progress ends it.
fn timed(stream: TcpStream, write_time: Duration) -> Pin<Box<TimeoutStream<TcpStream>>> {
    // Tokens are small and must not wait for each other. A connection without this option is slower, and still right.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(write_time));
    Box::pin(stream)
}
