//! Where a run's data lies.

use std::path::{Path, PathBuf};

use gpas_data::corpus::default_corpus;
use gpas_train::recipe::Recipe;

use crate::failure::Result;
use crate::terminal::Stream;

/// The prepared data of a recipe; the built-in corpus, made on first use, where it names none.
///
/// # Errors
/// If the corpus cannot be made.
pub fn data_directory(recipe: &Recipe) -> Result<PathBuf> {
    match &recipe.data.path {
        Some(path) => Ok(path.clone()),
        None => Ok(default_corpus(
            Path::new(env!("CARGO_MANIFEST_DIR")),
            Stream::Error.takes_pictures().is_err(),
        )?),
    }
}
