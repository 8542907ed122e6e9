//! What is served, and within which limits.

use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gpas_data::Tokenizer;

use super::worker::Job;
use crate::inference::Context;

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

/// What the server knows of the model that it serves.
#[derive(Debug)]
pub struct ServedModel {
    /// The model's name.
    pub name: String,
    /// When the server began, in seconds since 1970.
    pub created: u64,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Number of the model's token ids.
    pub vocab: usize,
    /// Positions that may be used.
    pub context: Context,
    /// What is allowed.
    pub limits: Limits,
    /// Where jobs for the model go.
    pub jobs: SyncSender<Job>,
    /// Number of answers so far.
    pub answers: AtomicU64,
}

/// Seconds since 1970.
pub fn seconds_since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
