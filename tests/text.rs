//! Text through every family of tokenizers: what is streamed is what is decoded at once, and what is known of its bytes is right.

mod families;

use families::{TEXTS, families};
use gpas_data::{SpelledOut, Tokenizer};
use gpas_serve::text::TextStream;

/// The text of tokens as two streams give it: one for the first `border` of them, as an echo is written, and one for those that follow it.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], border: usize) -> Vec<String> {
    let (before, after) = ids.split_at(border);
    let mut echo = TextStream::after(tokenizer, &[]).expect("a text");
    let mut pieces: Vec<String> = before.iter().map(|id| echo.push(*id).expect("a text")).collect();
    let mut rest = TextStream::after(tokenizer, before).expect("a text");
    pieces.extend(after.iter().map(|id| rest.push(*id).expect("a text")));
    pieces.push(rest.finish().expect("a text"));
    assert_eq!(rest.finish().expect("a text"), "", "nothing is given twice");
    pieces
}

#[test]
fn a_text_comes_whole_in_every_family_and_over_every_border() {
    let long = "長い文 🦀 the ".repeat(20);
    for family in families() {
        let (tokenizer, name) = (family.tokenizer(), family.name);
        for text in TEXTS.into_iter().chain([long.trim()]) {
            let ids = tokenizer.encode(text).unwrap();
            let whole = tokenizer.decode_plain(&ids).unwrap();
            if family.is_lossless {
                assert_eq!(whole, text, "{name}");
            }
            for border in 0..=ids.len() {
                let pieces = streamed(&tokenizer, &ids, border);
                assert_eq!(pieces.concat(), whole, "{name}, {border}");
                let broken = pieces.iter().find(|piece| piece.contains(char::REPLACEMENT_CHARACTER));
                assert_eq!(broken, None, "{name}: {text}");
            }
        }
    }
}

/// Whatever a model says: incomplete characters, special tokens, ids that the vocabulary lacks.
#[test]
fn any_tokens_stream_to_what_they_decode_to() {
    let mut state = 7_u32;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for family in families() {
        let tokenizer = family.tokenizer();
        for _ in 0..150 {
            let ids: Vec<u32> = (0..70).map(|_| draw(tokenizer.vocab_size() + 4) as u32).collect();
            let whole = tokenizer.decode_plain(&ids).unwrap();
            let pieces = streamed(&tokenizer, &ids, draw(ids.len() + 1));
            assert_eq!(pieces.concat(), whole, "{}: {ids:?}", family.name);
        }
    }
}

#[test]
fn an_incomplete_character_takes_no_other_with_it() {
    for family in families().iter().filter(|family| family.knows_bytes) {
        let tokenizer = family.tokenizer();
        let letter = tokenizer.encode("xx").unwrap().pop().unwrap();
        let mut ids = tokenizer.encode("x漢🦀").unwrap();
        ids.pop();
        assert_eq!(tokenizer.decode_plain(&ids).unwrap(), "x漢\u{fffd}", "{}", family.name);
        assert_eq!(streamed(&tokenizer, &ids, 3).concat(), "x漢\u{fffd}", "{}", family.name);
        ids.push(letter);
        assert_eq!(tokenizer.decode_plain(&ids).unwrap(), "x漢\u{fffd}x", "{}", family.name);
        assert_eq!(streamed(&tokenizer, &ids, ids.len()).concat(), "x漢\u{fffd}x");
    }
}

/// A document stands between two ends of documents.
#[test]
fn the_bytes_of_a_documents_tokens_are_those_of_its_text() {
    for family in families() {
        let tokenizer = family.tokenizer();
        let lengths = tokenizer.byte_lengths();
        assert_eq!(lengths.is_some(), family.knows_bytes, "{}", family.name);
        let Some(lengths) = lengths else { continue };
        for text in TEXTS {
            let mut ids = vec![tokenizer.end_of_document().unwrap()];
            ids.extend(tokenizer.opening());
            ids.extend(tokenizer.encode(text).unwrap());
            ids.extend(tokenizer.closing());
            let bytes: u64 = ids.windows(2).map(|pair| lengths.after(pair[0], pair[1])).sum();
            assert_eq!(bytes, text.len() as u64, "{}: {text}", family.name);
        }
    }
}

#[test]
fn special_tokens_are_text_or_tokens_as_asked() {
    let text = "<|im_start|>the cat<|im_end|>";
    for family in families() {
        let (tokenizer, name) = (family.tokenizer(), family.name);
        let spelled = tokenizer.spelled_special_tokens(text);
        assert_eq!(
            (spelled.count, spelled.first.as_deref()),
            (2, Some("<|im_start|>")),
            "{name}"
        );
        assert_eq!(tokenizer.spelled_special_tokens("the cat").count, 0, "{name}");
        let as_text = tokenizer.encode_with(text, SpelledOut::AsText).unwrap();
        assert!(!as_text.contains(&3) && !as_text.contains(&4), "{name}: {as_text:?}");
        let as_tokens = tokenizer.encode_with(text, SpelledOut::AsTokens).unwrap();
        assert_eq!((as_tokens.first(), as_tokens.last()), (Some(&3), Some(&4)), "{name}");
        let plain = tokenizer.decode_plain(&as_tokens).unwrap();
        assert_eq!(plain, "the cat", "{name}");
    }
}
