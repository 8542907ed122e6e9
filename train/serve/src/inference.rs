//! What every use of a trained model needs: the check of token ids before they reach it, and the error that says what is wrong with them.
//! The model itself would panic.

use std::fmt;

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
    #[error("{tokens} tokens are more than {context}")]
    TooLong { tokens: usize, context: Context },
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
            InferenceError::TooLong { context, .. } => Some(context.hint()),
            InferenceError::Context { limit, .. } => Some(format!("`--context` is at most {limit}")),
            InferenceError::Training(error) => error.hint(),
            InferenceError::Data(error) => error.hint(),
        }
    }
}

/// How many positions a prompt and what follows it may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Positions that may be used.
    pub tokens: usize,
    /// Positions that the model has, at least as many.
    pub positions: usize,
}

impl Context {
    /// Whether the model has more positions than may be used.
    pub fn can_grow(self) -> bool {
        self.tokens < self.positions
    }

    /// What to do about a text that is too long.
    pub fn hint(self) -> String {
        if self.can_grow() {
            format!(
                "shorten the text, or take up to {} positions of the model with `--context N`",
                self.positions
            )
        } else {
            "shorten the text".into()
        }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.can_grow() {
            write!(f, "a context of {}", self.tokens)
        } else {
            write!(f, "the {} positions that the model has", self.positions)
        }
    }
}

/// Checks the token ids of a prompt: a model of `vocab` token ids must have each of them, and there must be between one and as many as the
/// context has.
///
/// ```
/// use gpas_serve::inference::{Context, check_ids};
///
/// let context = Context { tokens: 3, positions: 8 };
/// assert!(check_ids(&[0, 9], 10, context).is_ok());
/// let error = check_ids(&[3, 10], 10, context).unwrap_err();
/// assert_eq!(error.to_string(), "token id 10 is outside the model's vocabulary of 10");
/// ```
///
/// # Errors
/// If there are none or too many, or with the first id that the model lacks.
pub fn check_ids(ids: &[u32], vocab: usize, context: Context) -> Result<(), InferenceError> {
    if ids.is_empty() {
        return Err(InferenceError::NoIds);
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(InferenceError::Id {
            id: (*id).into(),
            vocab,
        });
    }
    if ids.len() > context.tokens {
        return Err(InferenceError::TooLong {
            tokens: ids.len(),
            context,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_the_model_lacks_are_named() {
        let context = Context {
            tokens: 3,
            positions: 8,
        };
        let said = |ids: &[u32]| check_ids(ids, 10, context).unwrap_err().to_string();
        assert!(check_ids(&[0, 9], 10, context).is_ok());
        assert_eq!(said(&[]), "there are no token ids");
        assert_eq!(said(&[3, 10]), "token id 10 is outside the model's vocabulary of 10");
        let too_long = |context| {
            let error = check_ids(&[1; 4], 10, context).unwrap_err();
            (error.to_string(), error.hint().unwrap())
        };
        let expected = |error: &str, hint: &str| (error.to_string(), hint.to_string());
        assert_eq!(
            too_long(context),
            expected(
                "4 tokens are more than a context of 3",
                "shorten the text, or take up to 8 positions of the model with `--context N`"
            )
        );
        let whole = Context {
            positions: 3,
            ..context
        };
        assert_eq!(
            too_long(whole),
            expected(
                "4 tokens are more than the 3 positions that the model has",
                "shorten the text"
            )
        );
    }
}
