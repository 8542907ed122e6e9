//! What every use of a trained model needs: the check of token ids before they reach it, and the error that says what is wrong with them.
//! The model itself would panic.

use gpas_data::DataError;
use gpas_train::training::TrainingError;

/// Why a model cannot answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum InferenceError {
    #[error("there are no token ids")]
    NoIds,
    #[error("token id {id} is outside the model's vocabulary of {vocab}")]
    Id { id: u64, vocab: usize },
    #[error("{tokens} tokens are more than the {limit} that the model was trained on")]
    TooLong { tokens: usize, limit: usize },
    #[error("the model has no positions beyond {limit}, so a context of {asked} cannot be had")]
    Context { asked: usize, limit: usize },
    #[error("the model's logits are not numbers: its training has diverged, so it can say nothing")]
    NotFinite,
    #[error(transparent)]
    Training(#[from] TrainingError),
    #[error(transparent)]
    Data(#[from] DataError),
}

impl InferenceError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            InferenceError::NotFinite => None,
            InferenceError::NoIds => Some("give at least one".into()),
            InferenceError::Id { vocab, .. } => Some(format!("an id is 0 to {}", vocab.saturating_sub(1))),
            InferenceError::TooLong { .. } => {
                Some("shorten the text, or let it run past what was trained with `--context N`".into())
            }
            InferenceError::Context { limit, .. } => Some(format!("`--context` is at most {limit}")),
            InferenceError::Training(error) => error.hint(),
            InferenceError::Data(error) => error.hint(),
        }
    }
}

/// Checks the token ids of a prompt: a model of `vocab` token ids must have each of them, and there must be between one and `limit`.
///
/// ```
/// use gpas_serve::inference::check_ids;
///
/// assert!(check_ids(&[0, 9], 10, 3).is_ok());
/// let error = check_ids(&[3, 10], 10, 3).unwrap_err();
/// assert_eq!(error.to_string(), "token id 10 is outside the model's vocabulary of 10");
/// ```
///
/// # Errors
/// If there are none or too many, or with the first id that the model lacks.
pub fn check_ids(ids: &[u32], vocab: usize, limit: usize) -> Result<(), InferenceError> {
    if ids.is_empty() {
        return Err(InferenceError::NoIds);
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(InferenceError::Id {
            id: (*id).into(),
            vocab,
        });
    }
    if ids.len() > limit {
        return Err(InferenceError::TooLong {
            tokens: ids.len(),
            limit,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_the_model_lacks_are_named() {
        let said = |ids: &[u32]| check_ids(ids, 10, 3).unwrap_err().to_string();
        assert!(check_ids(&[0, 9], 10, 3).is_ok());
        assert_eq!(said(&[]), "there are no token ids");
        assert_eq!(said(&[3, 10]), "token id 10 is outside the model's vocabulary of 10");
        assert_eq!(
            said(&[1; 4]),
            "4 tokens are more than the 3 that the model was trained on"
        );
    }
}
