//! Trained models that are asked: text from a prompt, tasks that are scored, and a server with OpenAI's completions interface.

pub mod generate;
pub mod inference;
pub mod sampler;
pub mod server;
pub mod task;
pub mod text;
