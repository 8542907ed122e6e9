//! A run from Rust: data, a recipe, a run directory, and an observer that sees every record while the run goes on.
//!
//! ```sh
//! cargo run --release -p gpas-train --example run_with_observer
//! ```

mod text;

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;

use gpas_train::backend::BackendChoice;
use gpas_train::learner::TrainingRun;
use gpas_train::metrics::Record;
use gpas_train::recipe::Recipe;
use gpas_train::run::RunDirectory;
use gpas_train::training::End;

const STEPS: u64 = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let place = tempfile::tempdir()?;
    let data = text::prepared(place.path())?;
    let recipe = Recipe::preset("nano")
        .with("model.scheme", "pre_gpas")
        .with("data.seq_len", 32)
        .with("train.batch", 4)
        .with("train.steps", STEPS)
        .with("train.lr", 1e-2)
        .with("eval.every", 20)
        .resolve()?;

    let losses = Rc::new(RefCell::new(Vec::new()));
    let seen = losses.clone();
    let outcome = TrainingRun::new(recipe, data, place.path().join("run"))?
        .observe(move |record: &Record| match record {
            Record::Train(step) => seen.borrow_mut().push(step.loss),
            Record::Eval(evaluation) => {
                println!(
                    "after {:>2} steps: perplexity {:.2}",
                    evaluation.step, evaluation.perplexity
                );
            }
            Record::Layers(_) | Record::Notice(_) => {}
        })
        .run(BackendChoice::Auto)?;

    let losses = losses.borrow();
    assert_eq!((outcome.end, losses.len()), (End::Complete, STEPS as usize));
    assert!(losses.iter().all(|loss| loss.is_finite()));
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < first - 2.0, "the loss went from {first} to {last}");

    // The run is a directory as `gpas train` makes it, with every fact of how it was made.
    let info = RunDirectory::open(outcome.run.path())?.info()?;
    println!(
        "{} parameters and {} gates, on {}",
        info.parameters, info.gates, info.backend
    );
    Ok(())
}
