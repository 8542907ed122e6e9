//! Why runs cannot be compared, and what to do about it.

use std::io;
use std::path::PathBuf;

use gpas_train::recipe::{RecipeError, suggestion};
use gpas_train::run::RunError;

/// Why runs cannot be compared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum CompareError {
    #[error("a comparison needs schemes")]
    NoSchemes,
    #[error("unknown scheme `{0}`")]
    UnknownScheme(String),
    #[error("`{0}` is varied over no values")]
    NoValues(String),
    #[error("{0} is named twice")]
    Repeated(String),
    #[error("`{0}` is decided by `{1}`")]
    OwnKey(String, &'static str),
    #[error("the baseline `{name}` is not one of the arms")]
    Baseline { name: String, arms: Vec<String> },
    #[error("{0} is a run, not a comparison")]
    ARun(PathBuf),
    #[error("{0} holds something else than a comparison")]
    Foreign(PathBuf),
    #[error("{0} is not a comparison: it has no compare.json")]
    NotAComparison(PathBuf),
    #[error("{run} was made with `{key}` = {before}, not {after}")]
    Changed {
        run: PathBuf,
        key: String,
        before: String,
        after: String,
    },
    #[error("{0} was made from other data")]
    DataChanged(PathBuf),
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}")]
    Json { path: PathBuf, cause: serde_json::Error },
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Run(#[from] RunError),
}

impl CompareError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let schemes = || {
            gpas_model::Scheme::all()
                .map(|scheme| scheme.to_string())
                .collect::<Vec<_>>()
        };
        Some(match self {
            CompareError::NoSchemes => {
                "`--schemes pre,pre_gpas`, or a recipe with a [compare] table such as compare-quick".into()
            }
            CompareError::UnknownScheme(name) => suggestion(name, schemes().iter().map(String::as_str)),
            CompareError::NoValues(key) => format!("for example `--vary {key}=V1,V2`"),
            CompareError::Repeated(_) => "each once".into(),
            CompareError::OwnKey(_, option) => format!("name them all with `{option}`"),
            CompareError::Baseline { name, arms } => suggestion(name, arms.iter().map(String::as_str)),
            CompareError::ARun(_) => "name a directory for the comparison with `-o`; its runs lie below it".into(),
            CompareError::Foreign(_) => "nothing of it is overwritten: name a new or empty directory with `-o`".into(),
            CompareError::NotAComparison(_) => "a comparison is what `gpas compare -o DIR` makes".into(),
            CompareError::Changed { .. } => {
                "runs that are compared are made alike: give what it was made with, or another directory with `-o`"
                    .into()
            }
            CompareError::DataChanged(_) => "give the data it was made from, or another directory with `-o`".into(),
            CompareError::Recipe(error) => return error.hint(),
            CompareError::Run(error) => return error.hint(),
            CompareError::File { .. } | CompareError::Json { .. } => return None,
        })
    }
}
