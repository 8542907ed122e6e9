//! Why a request gets no text: OpenAI's shape of an error.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::inference::InferenceError;
use crate::sampler::SamplingError;

/// An answer that is no success.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
    /// The key of the request that is at fault, if one is.
    pub param: Option<&'static str>,
    pub code: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
        }
    }

    /// A key of the request is at fault.
    pub fn about(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// The server itself is at fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The server is stopping and will not answer any more.
    pub fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
    }

    /// The body of the answer.
    pub fn body(&self) -> Value {
        let kind = if self.status.is_client_error() {
            "invalid_request_error"
        } else {
            "server_error"
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<SamplingError> for Refusal {
    fn from(error: SamplingError) -> Self {
        Self::about(error.name, error.to_string())
    }
}

impl From<InferenceError> for Refusal {
    fn from(error: InferenceError) -> Self {
        let is_long = matches!(error, InferenceError::TooLong { .. });
        Self {
            code: is_long.then_some("context_length_exceeded"),
            ..Self::about("prompt", error.to_string())
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let response = (self.status, Json(self.body()));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            return ([(RETRY_AFTER, "1")], response).into_response();
        }
        response.into_response()
    }
}
