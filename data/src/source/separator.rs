//! Where a text file is cut into documents.

use std::str::FromStr;

use crate::error::DataError;

/// Where a text file is cut into documents. A line break before and one after a separator belong to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Separator {
    /// At the token that ends a document, where the file holds it as text; nowhere if no such token is known.
    #[default]
    EndOfDocument,
    /// At this text; a line feed in it also stands for a carriage return and a line feed.
    Text(String),
    /// Nowhere: a text file is one document.
    Nowhere,
}

impl FromStr for Separator {
    type Err = DataError;

    /// Reads the text of a separator, with the escapes `\n`, `\r`, `\t` and `\\`; the empty text is [`Self::Nowhere`].
    fn from_str(given: &str) -> Result<Self, DataError> {
        let mut text = String::new();
        let mut characters = given.chars();
        while let Some(character) = characters.next() {
            text.push(match character {
                '\\' => match characters.next() {
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some('\\') => '\\',
                    _ => return Err(DataError::Separator { given: given.into() }),
                },
                other => other,
            });
        }
        Ok(if text.is_empty() {
            Self::Nowhere
        } else {
            Self::Text(text)
        })
    }
}

impl Separator {
    /// The separator where documents end with the token `token`.
    pub fn or_token(self, token: Option<String>) -> Self {
        match (self, token) {
            (Self::EndOfDocument, Some(token)) if !token.is_empty() => Self::Text(token),
            (Self::EndOfDocument, _) => Self::Nowhere,
            (separator, _) => separator,
        }
    }

    /// The spellings that are looked for, in this order.
    pub(super) fn spellings(&self) -> Vec<String> {
        match self {
            Self::Text(text) if text.contains('\n') && !text.contains('\r') => {
                vec![text.clone(), text.replace('\n', "\r\n")]
            }
            Self::Text(text) => vec![text.clone()],
            Self::EndOfDocument | Self::Nowhere => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separator_is_text_with_escapes() {
        let separator = |given: &str| given.parse::<Separator>();
        assert_eq!(separator("").unwrap(), Separator::Nowhere);
        assert_eq!(separator("\\n\\n").unwrap(), Separator::Text("\n\n".into()));
        assert_eq!(separator("a\\t\\\\\\r|>").unwrap(), Separator::Text("a\t\\\r|>".into()));
        for wrong in ["\\x41", "a\\", "\\0"] {
            let error = separator(wrong).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("separator `{wrong}` has an escape that is not known")
            );
            assert!(error.hint().unwrap().contains("\\n"));
        }
    }
}
