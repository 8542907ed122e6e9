//! The `[compare]` table of a recipe: which runs `gpas compare` makes of it. A single run has no use for it.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Table, Value};

use super::RecipeError;

/// Name of the table.
const COMPARE: &str = "compare";

/// `[compare]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompareTable {
    /// Normalisation schemes.
    pub schemes: Vec<String>,
    /// Seeds, each for one run of every arm.
    pub seeds: Vec<u64>,
    /// Values by recipe key: each combination with each scheme is an arm.
    pub vary: BTreeMap<String, Vec<Value>>,
    /// Name of the arm that the others are compared with; the first one if absent.
    pub baseline: Option<String>,
}

impl CompareTable {
    /// Takes the table out of a recipe's; an empty one if it has none.
    pub(super) fn take(recipe: &mut Table, origin: &str) -> Result<Self, RecipeError> {
        let table = recipe.remove(COMPARE).unwrap_or_else(|| Table::new().into());
        table.try_into().map_err(|error: toml::de::Error| RecipeError::Compare {
            origin: origin.into(),
            message: error.message().lines().collect::<Vec<_>>().join(", "),
        })
    }
}
