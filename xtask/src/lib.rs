//! The developer's commands; a library so that tests can use them.

pub mod bench;
pub mod card;
pub mod ci;
pub mod circles;
pub mod dependencies;
pub mod examples;
pub mod generation_bench;
pub mod harness;
pub mod kill;
mod peers;
pub mod picture;
mod terminal;
pub mod verify_hf;
mod workspace;
