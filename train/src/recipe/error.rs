//! What can be wrong with a recipe: one line for the cause, one for what to do about it.

use std::path::PathBuf;

use gpas_model::ConfigError;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum RecipeError {
    #[error("cannot read {path}: {cause}")]
    Read { path: String, cause: std::io::Error },
    #[error("no recipe `{0}`: neither a file nor the name of a shipped recipe")]
    Missing(String),
    #[error("{origin}, line {line}: {message}")]
    Syntax {
        origin: String,
        line: usize,
        message: String,
    },
    #[error("`--set {0}` is not of the form key=value")]
    Assignment(String),
    #[error("unknown key `{key}` in {origin}")]
    UnknownKey {
        key: String,
        origin: String,
        known: Vec<&'static str>,
    },
    #[error("`{key}` in {origin} must be {allowed}, not {found}")]
    Value {
        key: String,
        origin: String,
        allowed: String,
        found: String,
    },
    #[error("unknown {what} `{name}`")]
    UnknownName {
        what: &'static str,
        name: String,
        known: Vec<String>,
    },
    #[error("`{0}` and `{1}` in {2} exclude each other")]
    Both(&'static str, &'static str, String),
    #[error("`model.preset = \"custom\"` needs `{0}`")]
    CustomSize(&'static str),
    #[error(
        "`train.warmup` = {warmup} is more than {}`train.steps` = {steps}",
        if *schedule_from == 0 { String::new() } else { format!("the {} steps from `train.schedule_from` = {schedule_from} to ", steps - schedule_from) }
    )]
    Warmup {
        warmup: u64,
        schedule_from: u64,
        steps: u64,
    },
    #[error("`train.schedule_from` = {schedule_from} is not before `train.steps` = {steps}")]
    ScheduleAfterEnd { schedule_from: u64, steps: u64 },
    #[error("`train.schedule_from` = {schedule_from} lies after step {begin}, at which the run begins")]
    ScheduleAfterBegin { schedule_from: u64, begin: u64 },
    #[error("`train.steps` = {steps} is reached by the checkpoint, which is after step {step}")]
    NoStepsLeft { steps: u64, step: u64 },
    #[error("`train.tokens` = {tokens} are reached by the checkpoint, which has seen {seen}")]
    NoTokensLeft { tokens: u64, seen: u64 },
    #[error("[compare] in {origin}: {message}")]
    Compare { origin: String, message: String },
    #[error(transparent)]
    Model(#[from] ConfigError),
    #[error("a run cannot go on with `{key}` = {after}: it was begun with {before}")]
    Mathematics {
        key: String,
        before: String,
        after: String,
        /// What a new run would begin with, as it stands behind `--from`, with more steps where all are done.
        from: String,
    },
    #[error("{0} is not UTF-8, and a recipe that names it would have to be")]
    NotText(PathBuf),
    #[error("the recipe cannot be written as TOML: {0}")]
    Write(#[from] toml::ser::Error),
}

/// What a run that goes on may change.
const MAY_CHANGE: &str =
    "it may change when it evaluates, what it keeps, `train.micro_batch`, `train.recompute` and the backend";

impl RecipeError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            RecipeError::Read { path, .. } if std::path::Path::new(path).is_dir() => {
                format!("a recipe is a file; `gpas train {path} --resume` goes on with a run")
            }
            RecipeError::Read { .. } | RecipeError::Write(_) => return None,
            RecipeError::NotText(_) => "give the directory another name, or a link to it that has one".into(),
            RecipeError::Missing(name) => {
                let shipped = super::shipped::all().map(|shipped| shipped.name);
                suggestion(super::shipped::stem(name), shipped)
            }
            RecipeError::Syntax { .. } => {
                "a recipe is TOML: `[section]` lines, then `key = value` lines; text stands in quotes".into()
            }
            RecipeError::Assignment(_) => "for example `--set train.lr=5e-4`".into(),
            RecipeError::UnknownKey { key, known, .. } => {
                let section = format!("{key}.");
                let inside: Vec<&str> = known.iter().filter_map(|known| known.strip_prefix(&section)).collect();
                if inside.is_empty() {
                    format!("did you mean `{}`?", nearest_key(key, known))
                } else {
                    format!("`{key}` is a section; its keys are {}", inside.join(", "))
                }
            }
            RecipeError::Value { .. } => "`gpas config show` prints every key with a valid value".into(),
            RecipeError::UnknownName { name, known, .. } => suggestion(name, known.iter().map(String::as_str)),
            RecipeError::Both(first, second, _) => format!("keep `{first}` or `{second}`"),
            RecipeError::CustomSize(key) => {
                let name = key.strip_prefix("model.").unwrap_or(key);
                format!("give `{name}` in [model], or name a preset (`gpas config presets` lists them)")
            }
            RecipeError::Warmup { .. } => "a fraction follows the number of steps: `--set train.warmup=0.1`".into(),
            RecipeError::Compare { .. } => {
                "for example `schemes = [\"pre\", \"pre_gpas\"]`, `seeds = [1, 2, 3]`, `vary = { \"train.lr\" = [5e-4, 1e-3] }`".into()
            }
            RecipeError::Model(error) => model_hint(error)?,
            RecipeError::ScheduleAfterEnd { .. } => "a schedule begins before the run ends; most runs have `train.schedule_from = 0`".into(),
            RecipeError::ScheduleAfterBegin { begin, .. } => format!("`--set train.schedule_from={begin}`"),
            RecipeError::NoStepsLeft { step, .. } => {
                format!("`train.steps` is the total, those of the checkpoint included: `--set train.steps={}` trains as long again", 2 * step)
            }
            RecipeError::NoTokensLeft { seen, .. } => {
                format!("`train.tokens` is the total, those of the checkpoint included: `--set train.tokens={}` trains as long again", 2 * seen)
            }
            // The sizes and the scheme decide which parameters there are; those of another model are of no use to it.
            RecipeError::Mathematics { key, .. } if key.starts_with("model.") => {
                format!("{MAY_CHANGE}; begin a new run for the rest")
            }
            RecipeError::Mathematics { key, after, from, .. } => format!(
                "{MAY_CHANGE}; `gpas train --from {from} --set {key}={after} -o NEW` begins a new run with its weights and moments"
            ),
        };
        Some(hint)
    }
}

fn model_hint(error: &ConfigError) -> Option<String> {
    if let ConfigError::RopeScaling(error) = error {
        return Some(error.hint());
    }
    Some(match *error {
        ConfigError::Heads { hidden, .. } => {
            // A head has an even width, for rotary positions.
            let fitting: Vec<String> = (1..=hidden / 2)
                .filter(|heads| hidden.is_multiple_of(2 * heads))
                .map(|heads| heads.to_string())
                .collect();
            format!("heads that fit {hidden}: {}", fitting.join(", "))
        }
        ConfigError::OddHead(_) => "fewer `model.heads`, or another `model.hidden`".into(),
        ConfigError::KvHeads { heads, .. } => {
            format!("`model.kv_heads` is a divisor of {heads}; leave it out to take {heads}")
        }
        ConfigError::PostNum { layers, .. } => {
            format!("leave it out to take a quarter of the layers, {}", layers / 4)
        }
        ConfigError::AfterNorm(_) => "`--set model.gate.site=default` puts the gate where the scheme has it".into(),
        _ => return None,
    })
}

/// Names the known one that is most like it, and all of them.
pub fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let list = known.clone().collect::<Vec<_>>().join(", ");
    let likeness = |known: &str| strsim::jaro_winkler(name, known);
    match known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
        Some(nearest) if likeness(nearest) > 0.7 => {
            format!("did you mean `{nearest}`? One of: {list}")
        }
        _ => format!("one of: {list}"),
    }
}

/// The known key that was most likely meant: alike in whole or in its last part, rather one that abbreviates (`learning_rate`, `lr`),
/// rather one of the same section.
fn nearest_key(key: &str, known: &[&'static str]) -> &'static str {
    let (section, last) = parts(key);
    let likeness = |known: &str| {
        let (its_section, its_last) = parts(known);
        let abbreviates = is_subsequence(its_last, last) || is_subsequence(last, its_last);
        strsim::jaro_winkler(key, known).max(strsim::jaro_winkler(last, its_last))
            + if abbreviates { 0.1 } else { 0.0 }
            + if section == its_section { 0.05 } else { 0.0 }
    };
    known
        .iter()
        .copied()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .unwrap_or_default()
}

fn parts(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

fn is_subsequence(short: &str, long: &str) -> bool {
    let mut rest = long.chars();
    short.chars().all(|wanted| rest.any(|c| c == wanted))
}
