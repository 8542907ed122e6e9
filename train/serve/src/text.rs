//! Text as it comes out of a model: tokens that may hold parts of characters become whole characters, and stop strings are watched for.

use gpas_data::DataError;
use gpas_data::Tokenizer;

/// Number of tokens that are decoded again together with the next one, because the text of a token depends on those before it: whether a
/// space stands before it, and whether its bytes complete a character. One would be enough for the first, three for the second.
const CONTEXT: usize = 8;

/// Turns tokens into text one at a time, with any tokenizer. A character whose bytes have not all come is held back, so the pieces
/// together are what [`Tokenizer::decode_plain`] makes of all tokens.
///
/// The `tokenizers` library's own stream of this kind does not serve: it holds no rest to ask for at the end, and ends in an error where
/// a new token changes the text before it, as an incomplete character in a run of byte tokens does there.
///
/// ```no_run
/// use gpas_data::Tokenizer;
/// use gpas_serve::text::TextStream;
///
/// # fn example(tokenizer: Tokenizer) -> Result<(), Box<dyn std::error::Error>> {
/// let mut stream = TextStream::after(&tokenizer, &[])?;
/// let mut text = String::new();
/// for id in tokenizer.encode("a crab: 🦀")? {
///     text += &stream.push(id)?;
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "a crab: 🦀");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    window: Vec<u32>,
    /// Bytes at the start of the window's text that have been returned already.
    sent: usize,
}

impl TextStream {
    /// Begins a text after some tokens, which are not part of it. Of a character that they leave incomplete, all of it is.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the tokens.
    pub fn after(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<Self, DataError> {
        // Special tokens have no text, so they are no context for that of others.
        let mut window: Vec<u32> = tokens.iter().copied().filter(|id| tokenizer.is_text(*id)).collect();
        window.drain(..window.len().saturating_sub(CONTEXT));
        let sent = complete(&tokenizer.decode_plain(&window)?).len();
        Ok(Self {
            tokenizer: tokenizer.clone(),
            window,
            sent,
        })
    }

    /// Adds a token and returns the text that it completes.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses it.
    pub fn push(&mut self, token: u32) -> Result<String, DataError> {
        if !self.tokenizer.is_text(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        let text = self.tokenizer.decode_plain(&self.window)?;
        let complete = complete(&text);
        let new = complete.get(self.sent..).unwrap_or_default().to_string();
        self.sent = self.sent.max(complete.len());
        if self.window.len() > 4 * CONTEXT {
            self.shorten()?;
        }
        Ok(new)
    }

    /// Forgets the tokens that the text of the next one no longer depends on.
    fn shorten(&mut self) -> Result<(), DataError> {
        let last = &self.window[self.window.len() - CONTEXT..];
        let text = self.tokenizer.decode_plain(last)?;
        let sent = complete(&text).len();
        // A text's first space may be left out, so the tokens must have some text before what comes.
        if sent > 0 {
            (self.window, self.sent) = (last.to_vec(), sent);
        }
        Ok(())
    }

    /// Returns what is still held back at the end of the text: a replacement character for an incomplete one.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the tokens.
    pub fn finish(&mut self) -> Result<String, DataError> {
        let text = self.tokenizer.decode_plain(&self.window)?;
        let rest = text.get(self.sent..).unwrap_or_default().to_string();
        self.sent = text.len();
        Ok(rest)
    }
}

/// A decoded text without the character at its end that more tokens may complete, which every decoder writes as one U+FFFD.
fn complete(text: &str) -> &str {
    text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text)
}

/// Watches a text for the strings before which it ends, and holds back what may be the beginning of one.
///
/// ```
/// use gpas_serve::text::StopStrings;
///
/// let mut stops = StopStrings::new(vec!["END".into()]);
/// assert_eq!(stops.push("to the E"), ("to the ".into(), false));
/// assert_eq!(stops.push("ND of it"), (String::new(), true));
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for these strings; empty ones are ignored.
    pub fn new(strings: Vec<String>) -> Self {
        Self {
            strings: strings.into_iter().filter(|string| !string.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// Adds text. Returns the text that can no longer be part of a stop string, and whether a stop string follows it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        let first = self
            .strings
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |rest: &str| self.strings.iter().any(|stop| stop.starts_with(rest));
        let keep = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| begins(&self.held[*at..]));
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Returns what is still held back at the end of a text in which no stop string came.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use gpas_data::bpe::train_bpe;
    use gpas_data::source::{Documents, ReadOptions};

    /// A byte-level tokenizer that has hardly any merges, so that every character beyond ASCII takes several tokens.
    fn bytes() -> Tokenizer {
        let place = tempfile::tempdir().unwrap();
        let text = place.path().join("a.txt");
        std::fs::write(&text, "a b c d\n".repeat(50)).unwrap();
        let documents = Documents::open(std::slice::from_ref(&text), ReadOptions::default()).unwrap();
        let path = place.path().join("tokenizer.json");
        train_bpe(documents, 260, true).unwrap().save(&path).unwrap();
        Tokenizer::from_file(Path::new(&path)).unwrap()
    }

    #[test]
    fn characters_come_whole() {
        let tokenizer = bytes();
        for text in [
            "plain words",
            "é",
            "a ü 漢字 🦀🦀 z",
            "ends in 🦀",
            &"長い文 ".repeat(40),
        ] {
            let ids = tokenizer.encode(text).unwrap();
            let mut stream = TextStream::after(&tokenizer, &[]).unwrap();
            let mut found = String::new();
            for id in &ids {
                let piece = stream.push(*id).unwrap();
                assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{text}: {piece:?}");
                found += &piece;
            }
            assert_eq!(stream.finish().unwrap(), "");
            assert_eq!(found, text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_handed_out_as_such() {
        let tokenizer = bytes();
        let crab = tokenizer.encode("🦀").unwrap();
        let letter = tokenizer.encode("a").unwrap()[0];
        let mut stream = TextStream::after(&tokenizer, &[letter]).unwrap();
        assert_eq!(stream.push(crab[0]).unwrap(), "");
        assert_eq!(stream.push(letter).unwrap(), "\u{fffd}a");
        // A character that never ends.
        for id in &crab[..crab.len() - 1] {
            assert_eq!(stream.push(*id).unwrap(), "");
        }
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
        assert_eq!(stream.finish().unwrap(), "");
    }

    #[test]
    fn a_stop_string_may_come_in_pieces() {
        let mut stops = StopStrings::new(vec!["END".into(), "\n\n".into(), String::new()]);
        let mut say = |text: &str| stops.push(text);
        assert_eq!(say("one E"), ("one ".into(), false));
        assert_eq!(say("N"), ("".into(), false));
        assert_eq!(say("Ξ two\n"), ("ENΞ two".into(), false));
        assert_eq!(say("three EEN"), ("\nthree E".into(), false));
        assert_eq!(say("D four\n\n"), ("".into(), true));

        let mut stops = StopStrings::new(vec!["END".into()]);
        assert_eq!(stops.push("to the EN"), ("to the ".into(), false));
        assert_eq!(stops.finish(), "EN");
        assert_eq!(stops.finish(), "");
    }

    #[test]
    fn the_first_stop_string_counts() {
        let mut stops = StopStrings::new(vec!["later".into(), "soon".into()]);
        assert_eq!(stops.push("as soon as later"), ("as ".into(), true));
    }
}
