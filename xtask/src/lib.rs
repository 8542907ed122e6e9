//! The developer's commands; a library so that tests can use them.

pub mod bench;
pub mod ci;
pub mod generation_bench;
pub mod gpu_bench;
pub mod harness;
pub mod kill;
mod peers;
pub mod verify_hf;
