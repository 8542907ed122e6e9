//! Which runs a comparison has: every combination of schemes and varied keys is an *arm*, and every arm has a run for each seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gpas_model::Scheme;
use gpas_train::recipe::{CompareTable, Recipe, RecipeFile, RecipeOptions, resolve_with, same_name};
use toml::{Table, Value};

use super::error::CompareError;

/// Keys that a comparison decides by itself, and the option that does.
const OWN_KEYS: [(&str, &str); 2] = [("model.scheme", "--schemes"), ("train.seed", "--seeds")];

/// The seeds of a comparison that names none.
const DEFAULT_SEEDS: [u64; 3] = [1, 2, 3];

/// What is compared: a scheme with a value for every varied key.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    /// The scheme, with `+key=value` for every varied key.
    pub name: String,
    /// Normalisation scheme.
    pub scheme: Scheme,
    /// Values of the varied keys.
    pub varied: BTreeMap<String, Value>,
}

/// A run of a comparison.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Its arm, by its place among them.
    pub arm: usize,
    /// Its seed.
    pub seed: u64,
    /// Its directory below that of the comparison: `ARM/seed-N`.
    pub directory: String,
    /// Its recipe.
    pub recipe: Recipe,
}

/// A comparison that can be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The arms, in the order in which they were named.
    pub arms: Vec<Arm>,
    /// The arm that the others are compared with, by its place among them.
    pub baseline: usize,
    /// The runs, those of a seed together, so that a comparison that is under way has whole pairs.
    pub runs: Vec<PlannedRun>,
    /// Where it is.
    pub directory: PathBuf,
}

impl Plan {
    /// Plans the schemes, seeds and varied keys of `table`, over a recipe and the options.
    ///
    /// # Errors
    /// The first thing that is wrong with any of the recipes, or with the choice of runs.
    pub fn new(
        file: Option<&RecipeFile>,
        options: &RecipeOptions,
        table: CompareTable,
        directory: &Path,
    ) -> Result<Self, CompareError> {
        if options.scheme.is_some() {
            return Err(CompareError::OwnKey("--scheme".into(), "--schemes"));
        }
        let set = options
            .set
            .iter()
            .map(|text| text.split('=').next().unwrap_or(text).trim());
        for key in set.chain(table.vary.keys().map(String::as_str)) {
            if let Some((key, option)) = OWN_KEYS.into_iter().find(|(own, _)| *own == key) {
                return Err(CompareError::OwnKey(key.into(), option));
            }
        }
        let arms = arms(&table)?;
        let baseline = match &table.baseline {
            None => 0,
            Some(name) => {
                arms.iter()
                    .position(|arm| same_name(name, &arm.name))
                    .ok_or_else(|| CompareError::Baseline {
                        name: name.clone(),
                        arms: arms.iter().map(|arm| arm.name.clone()).collect(),
                    })?
            }
        };
        let seeds = if table.seeds.is_empty() {
            DEFAULT_SEEDS.to_vec()
        } else {
            table.seeds
        };
        if let Some(seed) = first_repeated(&seeds) {
            return Err(CompareError::Repeated(format!("seed {seed}")));
        }
        let mut runs = Vec::new();
        for seed in seeds {
            for (index, arm) in arms.iter().enumerate() {
                let mut own = Table::from_iter(arm.varied.clone());
                own.insert("model.scheme".into(), arm.scheme.to_string().into());
                own.insert("train.seed".into(), Value::Integer(seed as i64));
                runs.push(PlannedRun {
                    arm: index,
                    seed,
                    directory: format!("{}/seed-{seed}", file_name(&arm.name)),
                    recipe: resolve_with(file, options, own, "--vary")?,
                });
            }
        }
        let directories: Vec<&String> = runs.iter().map(|run| &run.directory).collect();
        if let Some(directory) = first_repeated(&directories) {
            return Err(CompareError::Repeated(format!("run directory {directory}")));
        }
        Ok(Self {
            arms,
            baseline,
            runs,
            directory: directory.to_path_buf(),
        })
    }

    /// Where a run is.
    pub fn path(&self, run: &PlannedRun) -> PathBuf {
        self.directory.join(&run.directory)
    }

    /// What a run is called in messages.
    pub fn name(&self, run: &PlannedRun) -> String {
        format!("{} seed {}", self.arms[run.arm].name, run.seed)
    }
}

/// Whether a run of a comparison may have another value of a key than the recipe it is now asked for with: what may change in a run that
/// goes on, but for how it is evaluated.
pub fn may_differ(key: &str) -> bool {
    Recipe::may_change(key) && !key.starts_with("eval.")
}

/// Every combination of schemes and values.
fn arms(table: &CompareTable) -> Result<Vec<Arm>, CompareError> {
    if table.schemes.is_empty() {
        return Err(CompareError::NoSchemes);
    }
    let mut arms = Vec::new();
    for name in &table.schemes {
        let mut known = Scheme::all();
        let scheme = known.find(|known| same_name(name, &known.to_string()));
        let scheme = scheme.ok_or_else(|| CompareError::UnknownScheme(name.clone()))?;
        arms.push(Arm {
            name: scheme.to_string(),
            scheme,
            varied: BTreeMap::new(),
        });
    }
    for (key, values) in &table.vary {
        if values.is_empty() {
            return Err(CompareError::NoValues(key.clone()));
        }
        // The last part of a key says enough, unless another has the same.
        let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_string();
        let is_clear = table.vary.keys().filter(|other| last(other) == last(key)).count() == 1;
        let short = if is_clear { last(key) } else { key.clone() };
        let with = |arm: &Arm, value: &Value| {
            let mut varied = arm.varied.clone();
            varied.insert(key.clone(), value.clone());
            Arm {
                name: format!("{}+{short}={}", arm.name, text(value)),
                scheme: arm.scheme,
                varied,
            }
        };
        arms = arms
            .iter()
            .flat_map(|arm| values.iter().map(move |value| with(arm, value)))
            .collect();
    }
    let names: Vec<&String> = arms.iter().map(|arm| &arm.name).collect();
    match first_repeated(&names) {
        Some(name) => Err(CompareError::Repeated(name.to_string())),
        None => Ok(arms),
    }
}

fn first_repeated<T: Ord + Clone>(values: &[T]) -> Option<T> {
    let mut seen = BTreeSet::new();
    values.iter().find(|value| !seen.insert(*value)).cloned()
}

/// A value as a person writes it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Rust writes very large and very small numbers with an exponent, TOML does not.
        Value::Float(number) => format!("{number:?}"),
        other => other.to_string(),
    }
}

/// A name that every file system and shell takes.
fn file_name(name: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || "_.=+-".contains(c);
    name.chars().map(|c| if keep(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(schemes: &[&str], seeds: &[u64], vary: &[(&str, &[Value])]) -> CompareTable {
        CompareTable {
            schemes: schemes.iter().map(ToString::to_string).collect(),
            seeds: seeds.to_vec(),
            vary: vary
                .iter()
                .map(|(key, values)| (key.to_string(), values.to_vec()))
                .collect(),
            baseline: None,
        }
    }

    fn plan(table: CompareTable) -> Result<Plan, CompareError> {
        Plan::new(None, &RecipeOptions::default(), table, Path::new("dir"))
    }

    fn refused(table: CompareTable) -> String {
        plan(table).unwrap_err().to_string()
    }

    #[test]
    fn the_runs_of_a_seed_stand_together() {
        let plan = plan(table(&["pre", "pre_gpas"], &[3, 1], &[])).unwrap();
        let directories: Vec<_> = plan.runs.iter().map(|run| run.directory.as_str()).collect();
        assert_eq!(
            directories,
            ["pre/seed-3", "pre_gpas/seed-3", "pre/seed-1", "pre_gpas/seed-1"]
        );
        assert_eq!(plan.path(&plan.runs[0]), Path::new("dir/pre/seed-3"));
        for run in &plan.runs {
            let recipe = &run.recipe;
            assert_eq!(
                (recipe.train.seed, recipe.model.scheme),
                (run.seed, plan.arms[run.arm].scheme)
            );
        }
    }

    #[test]
    fn varied_keys_multiply_the_arms_and_are_in_their_names() {
        let rates: &[Value] = &[Value::Float(1e-3), Value::Float(5e-4)];
        let acts: &[Value] = &["silu".into(), "tanh".into()];
        let varied = plan(table(
            &["pre", "lns"],
            &[1],
            &[("train.lr", rates), ("model.gate.act", acts)],
        ))
        .unwrap();
        let names: Vec<_> = varied.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(
            names[..3],
            [
                "pre+act=silu+lr=0.001",
                "pre+act=silu+lr=0.0005",
                "pre+act=tanh+lr=0.001"
            ]
        );
        assert_eq!(varied.runs[1].recipe.train.lr, 5e-4);
        assert_eq!(varied.runs[1].directory, "pre+act=silu+lr=0.0005/seed-1");
        let pairs: &[Value] = &[Value::Array(vec![0.5.into(), 0.9.into()])];
        let odd = plan(table(&["pre"], &[1], &[("train.betas", pairs)])).unwrap();
        assert_eq!(odd.arms[0].name, "pre+betas=[0.5, 0.9]");
        assert_eq!(odd.runs[0].directory, "pre+betas=_0.5__0.9_/seed-1");
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let same: &[Value] = &[Value::Float(1e-3), Value::Float(0.001)];
        assert_eq!(refused(table(&[], &[1], &[])), "a comparison needs schemes");
        assert_eq!(refused(table(&["pre", "pree"], &[1], &[])), "unknown scheme `pree`");
        assert_eq!(refused(table(&["pre", "pre"], &[1], &[])), "pre is named twice");
        assert_eq!(refused(table(&["pre"], &[1, 1], &[])), "seed 1 is named twice");
        assert_eq!(
            refused(table(&["pre"], &[1], &[("train.lr", same)])),
            "pre+lr=0.001 is named twice"
        );
        assert_eq!(
            refused(table(&["pre"], &[1], &[("train.seed", &[1.into()])])),
            "`train.seed` is decided by `--seeds`"
        );
        assert_eq!(
            refused(table(&["pre"], &[1], &[("train.lrr", &[1.into()])])),
            "unknown key `train.lrr` in --vary"
        );
        let baseline = CompareTable {
            baseline: Some("lns".into()),
            ..table(&["pre"], &[1], &[])
        };
        assert_eq!(refused(baseline), "the baseline `lns` is not one of the arms");
    }
}
