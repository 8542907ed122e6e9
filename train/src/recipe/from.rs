//! The recipe of a run that begins with a checkpoint of another run.
//!
//! It is the other run's with what the caller changes in it, and with a schedule of its own unless that of the other run is kept.

use toml::{Table, Value};

use super::given::Given;
use super::resolve::add_options;
use super::table::{DataRecipe, TrainRecipe};
use super::{Recipe, RecipeError, RecipeOptions};

/// Where the steps of a run end that another goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Steps done.
    pub step: u64,
    /// Tokens scored in them.
    pub tokens: u64,
}

/// The recipe of a run that begins with a checkpoint of a run of the recipe `parent`, changed by the options.
///
/// `train.steps` and `train.tokens` are totals, what was done before `beginning` included. The schedule begins at that step and ends with the
/// run; its warm-up is as large a part of it as the parent's was of the parent's, unless `train.warmup` is given. With `keep_schedule`, the rate
/// of a step is what the parent's recipe with the new total says of it, as though the run had never been cut.
///
/// # Errors
/// If no steps are left to do, or anything is wrong with the options.
pub fn resolve_from(
    parent: &Recipe,
    beginning: Beginning,
    options: &RecipeOptions,
    keep_schedule: bool,
) -> Result<Recipe, RecipeError> {
    let mut given = Given::new(Recipe::keys());
    given.add(Table::try_from(parent)?, "the recipe of the other run")?;
    let mut asked = Given::new(Recipe::keys());
    add_options(&mut asked, options)?;
    add_options(&mut given, options)?;
    let set = |given: &mut Given, key: &str, value: u64| {
        let value = Value::Integer(i64::try_from(value).unwrap_or(i64::MAX));
        given.add(Table::from_iter([(key.to_string(), value)]), "the checkpoint")
    };

    let Beginning { step, tokens: seen } = beginning;
    if let Some(tokens) = TrainRecipe::tokens(&given)? {
        // Those before may have come in batches of another size.
        let left = tokens.saturating_sub(seen);
        if left == 0 {
            return Err(RecipeError::NoTokensLeft { tokens, seen });
        }
        let of_a_step = TrainRecipe::batch(&given)? as u64 * DataRecipe::seq_len(&given)? as u64;
        set(&mut given, "train.steps", step + left.div_ceil(of_a_step))?;
    }
    let steps = TrainRecipe::steps(&given)?;
    if steps <= step {
        return Err(RecipeError::NoStepsLeft { steps, step });
    }
    if !keep_schedule {
        if !asked.has_all(&["train.schedule_from"]) {
            set(&mut given, "train.schedule_from", step)?;
        }
        if !asked.has_all(&["train.warmup"]) {
            let length = steps.saturating_sub(TrainRecipe::schedule_from(&given)?);
            set(&mut given, "train.warmup", share_of_warmup(parent, length))?;
        }
    }
    Recipe::from_given(&given)
}

/// The warm-up of a schedule of `length` steps that is as large a part of it as a recipe's is of its own, to the nearest step.
fn share_of_warmup(recipe: &Recipe, length: u64) -> u64 {
    let train = &recipe.train;
    let whole = u128::from(train.steps - train.schedule_from);
    let share = (u128::from(train.warmup) * u128::from(length) + whole / 2) / whole;
    // No more than the length, since the warm-up is no more than the whole.
    share as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(set: &[&str]) -> RecipeOptions {
        RecipeOptions {
            set: set.iter().map(ToString::to_string).collect(),
            ..RecipeOptions::default()
        }
    }

    /// 300 steps of 8 × 128 tokens, 30 of them warm-up.
    fn parent() -> Recipe {
        Recipe::preset("nano").with("train.steps", 300).resolve().unwrap()
    }

    fn from(step: u64, set: &[&str], keep_schedule: bool) -> Result<Recipe, RecipeError> {
        let tokens = step * 8 * 128;
        resolve_from(&parent(), Beginning { step, tokens }, &options(set), keep_schedule)
    }

    fn schedule(recipe: &Recipe) -> (u64, u64, u64) {
        (recipe.train.schedule_from, recipe.train.warmup, recipe.train.steps)
    }

    #[test]
    fn a_fresh_schedule_fills_the_steps_that_are_left() {
        let recipe = from(300, &["train.steps=600"], false).unwrap();
        assert_eq!(schedule(&recipe), (300, 30, 600));
        let rates = recipe.schedule();
        assert_eq!((rates.rate(300), rates.rate(330)), (0.0, 1e-3));
        assert!((rates.rate(600) - 1e-4).abs() < 1e-12);
        assert_eq!(schedule(&from(100, &[], false).unwrap()), (100, 20, 300));
        assert_eq!(
            schedule(&from(300, &["train.steps=400", "train.warmup=0.25"], false).unwrap()),
            (300, 25, 400)
        );
        let chosen = from(300, &["train.steps=400", "train.schedule_from=200"], false).unwrap();
        assert_eq!(schedule(&chosen), (200, 20, 400));
        // What is changed in it is all that differs.
        let changes = parent().changes(&from(300, &["train.steps=600", "train.lr=1e-4"], false).unwrap());
        let names: Vec<_> = changes.keys().map(String::as_str).collect();
        assert_eq!(names, ["train.lr", "train.schedule_from", "train.steps"]);
    }

    #[test]
    fn a_schedule_that_is_kept_is_that_of_an_undisturbed_run() {
        let kept = from(300, &["train.steps=600"], true).unwrap();
        assert_eq!(schedule(&kept), (0, 30, 600));
        let undisturbed = Recipe {
            train: TrainRecipe {
                steps: 600,
                ..parent().train
            },
            ..parent()
        };
        assert_eq!(kept, undisturbed);
        // A run that began with a checkpoint has a schedule to keep too.
        let child = from(100, &[], false).unwrap();
        let beginning = Beginning { step: 200, tokens: 0 };
        let grandchild = resolve_from(&child, beginning, &options(&[]), true).unwrap();
        assert_eq!(schedule(&grandchild), (100, 20, 300));
    }

    #[test]
    fn a_scaling_of_rotary_positions_takes_the_place_of_another_whole() {
        let scaled = Recipe::preset("nano")
            .with("train.steps", 300)
            .with("model.rope_scaling.rope_type", "linear")
            .with("model.rope_scaling.factor", 2.0)
            .resolve()
            .unwrap();
        let beginning = Beginning { step: 300, tokens: 0 };
        let plain = options(&["model.rope_scaling.rope_type=default", "train.steps=600"]);
        let plain = resolve_from(&scaled, beginning, &plain, true).unwrap();
        assert_eq!(plain.model.rope_scaling, parent().model.rope_scaling);
        let kept = resolve_from(&scaled, beginning, &options(&["train.steps=600"]), true).unwrap();
        assert_eq!(kept.model.rope_scaling, scaled.model.rope_scaling);
    }

    #[test]
    fn totals_include_what_was_done_before() {
        let refused = |step, set: &[&str]| {
            let error = from(step, set, false).unwrap_err();
            (error.to_string(), error.hint().unwrap())
        };
        assert_eq!(
            refused(300, &[]),
            (
                "`train.steps` = 300 is reached by the checkpoint, which is after step 300".into(),
                "`train.steps` is the total, those of the checkpoint included: `--set train.steps=600` trains as long again".into()
            )
        );
        assert_eq!(
            refused(300, &["train.tokens=307200"]),
            (
                "`train.tokens` = 307200 are reached by the checkpoint, which has seen 307200".into(),
                "`train.tokens` is the total, those of the checkpoint included: `--set train.tokens=614400` trains as long again".into()
            )
        );
        // 307200 tokens were seen in steps of 1024; those that are left come in steps of 2048.
        let larger = from(300, &["train.tokens=614400", "train.batch=16"], true).unwrap();
        assert_eq!(larger.train.steps, 450);
        assert_eq!(
            refused(100, &["train.schedule_from=300"]),
            (
                "`train.schedule_from` = 300 is not before `train.steps` = 300".into(),
                "a schedule begins before the run ends; most runs have `train.schedule_from = 0`".into()
            )
        );
        assert_eq!(
            refused(100, &["train.warmup=250"]).0,
            "`train.warmup` = 250 is more than the 200 steps from `train.schedule_from` = 100 to `train.steps` = 300"
        );
        assert_eq!(refused(100, &["train.stepz=9"]).0, "unknown key `train.stepz` in --set");
    }
}
