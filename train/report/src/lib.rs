#![doc = include_str!("../README.md")]
//!
//! # Where things are
//! | module | what it holds |
//! |---|---|
//! | [`compare`] | comparisons: which runs they have, the statistics over their seeds, `compare.json` and its table |
//! | [`tensorboard`] | the numbers of a run as an event file |
//! | `report` | writes the page of a run or of a comparison, from what is recorded (`records`) |
//! | `figures` | which figures a page has: curves over training, layers, inspections (`figure` is what each of them consists of) |
//! | `plot` | drawings as SVG, on axes (`axis`) and in the colours of the schemes (`ink`) |
//! | `page` | the HTML |
//!
//! Data flows from the records to the figures, from there to the drawings and to the page.

mod axis;
pub mod compare;
mod error;
mod figure;
mod figures;
mod ink;
mod page;
mod plot;
mod records;
mod report;
pub mod tensorboard;

pub use error::ReportError;
pub use records::{RunRecords, read_inspection, write_inspection};
pub use report::{write_comparison, write_run};
