//! The options that every command shares which takes a recipe.

use std::path::PathBuf;

use clap::Args;
use gpas_train::recipe::RecipeOptions;

/// The options of every command that takes a recipe.
#[derive(Clone, Debug, Default, Args)]
pub struct RecipeArgs {
    /// Model size: nano, 9m, 20m, … (`gpas config presets` lists them)
    #[arg(long, value_name = "SIZE")]
    pub preset: Option<String>,
    /// Normalisation scheme: pre, pre_gpas, sandwich_gpas, …
    #[arg(long)]
    pub scheme: Option<String>,
    /// Prepared data, as `gpas data prepare` writes it; the built-in corpus if absent
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Any recipe key, such as train.lr=5e-4; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl From<RecipeArgs> for RecipeOptions {
    fn from(args: RecipeArgs) -> Self {
        let RecipeArgs {
            preset,
            scheme,
            data,
            set,
        } = args;
        Self {
            preset,
            scheme,
            data,
            set,
        }
    }
}
