//! Small tokenizers of every family in use, and texts that are hard for them. A vocabulary holds the letters and single bytes, so that most
//! other characters take several tokens.

#![allow(dead_code, reason = "neither test uses all of it")]

use std::path::Path;

use gpas_data::Tokenizer;
use serde_json::{Map, Value, json};

/// Emoji, with joiners, flags and skin tones, Chinese and Japanese, letters composed and with combining marks, white space.
pub const TEXTS: [&str; 9] = [
    "the cat and the dog",
    "dog 🦀 cat",
    "漢字 x",
    "naïve café",
    "e\u{301}a\u{308} n\u{303}\u{331}o",
    "👩\u{200d}👩\u{200d}👧 🇩🇪 👍🏽",
    "ends in 🦀",
    "two\nlines  and spaces",
    "🦀🦀漢",
];

/// Special tokens by id.
const SPECIAL: [&str; 5] = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"];

/// A family with a tokenizer of its shape.
pub struct Family {
    pub name: &'static str,
    /// The `tokenizer.json`.
    pub json: Value,
    /// Whether text goes through it unchanged.
    pub is_lossless: bool,
    /// Whether it is known how many bytes of text a token stands for.
    pub knows_bytes: bool,
}

impl Family {
    pub fn tokenizer(&self) -> Tokenizer {
        let bytes = self.json.to_string().into_bytes();
        Tokenizer::from_bytes(bytes, Path::new(self.name)).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

/// Every family.
pub fn families() -> Vec<Family> {
    let family = |name, json, is_lossless, knows_bytes| Family {
        name,
        json,
        is_lossless,
        knows_bytes,
    };
    vec![
        family("byte-level BPE", byte_level(), true, true),
        family("byte fallback, LLaMA", llama(), true, true),
        family("byte fallback, Mistral", mistral(), true, true),
        family("byte fallback, Gemma", gemma(), true, true),
        family("Unigram, byte fallback", unigram(true), true, true),
        family("Unigram", unigram(false), true, false),
        family("WordPiece", word_piece(), false, false),
    ]
}

fn file(model: Value, parts: Value) -> Value {
    let special = SPECIAL.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "added_tokens": special.collect::<Vec<_>>(), "model": model});
    for (key, value) in parts.as_object().into_iter().flatten() {
        file[key] = value.clone();
    }
    file
}

/// Ids for tokens, after the special ones.
fn vocabulary(tokens: impl IntoIterator<Item = String>) -> Map<String, Value> {
    let mut vocabulary = Map::new();
    for token in SPECIAL.iter().map(|token| (*token).to_string()).chain(tokens) {
        let id = vocabulary.len();
        vocabulary.entry(token).or_insert(id.into());
    }
    vocabulary
}

fn byte_tokens() -> impl Iterator<Item = String> {
    (0..=255).map(|byte: u8| format!("<0x{byte:02X}>"))
}

fn letters() -> impl Iterator<Item = String> {
    ('a'..='z').map(String::from)
}

/// The characters of the texts, each once.
fn characters() -> impl Iterator<Item = String> {
    let texts = TEXTS.iter().chain(["長い文"].iter());
    let mut all: Vec<char> = texts.flat_map(|text| text.chars()).filter(|c| *c != ' ').collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(String::from)
}

fn merges(pairs: &[[&str; 2]]) -> Vec<Value> {
    pairs.iter().map(|pair| json!(pair)).collect()
}

/// GPT-2's: a character for each byte. Two of its tokens end within a character.
fn byte_level() -> Value {
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..=255_u8).filter(|byte| !is_visible(byte)).count() as u32;
    let visible = (0..=255_u8).filter(is_visible).map(char::from);
    let others = (256..256 + hidden).filter_map(char::from_u32);
    let merged = ["th", "the", "Ġthe", "ðŁ", "Ġé"];
    let tokens = visible.chain(others).map(String::from).chain(merged.map(String::from));
    let pairs = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["ð", "Ł"], ["Ġ", "é"]];
    let model = json!({"type": "BPE", "vocab": vocabulary(tokens), "merges": merges(&pairs)});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    file(model, json!({"pre_tokenizer": bytes, "decoder": bytes}))
}

/// BPE whose unknown characters fall back to bytes.
fn fallback_model() -> Value {
    let merged = ["▁", "▁t", "he", "▁the", "é"].map(String::from);
    let vocab = vocabulary(byte_tokens().chain(letters()).chain(merged));
    let pairs = [["▁", "t"], ["h", "e"], ["▁t", "he"]];
    json!({"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges(&pairs)})
}

fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false})
}

/// The decoder of SentencePiece models with byte fallback, which leaves the first space of a text out.
fn strip_decoder() -> Value {
    json!({"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
}

/// Opens texts with `<s>`.
fn template() -> Value {
    let parts = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    json!({"type": "TemplateProcessing", "single": parts, "pair": [{"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}})
}

fn llama() -> Value {
    let normalizer =
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]});
    file(
        fallback_model(),
        json!({"normalizer": normalizer, "post_processor": template(), "decoder": strip_decoder()}),
    )
}

fn mistral() -> Value {
    file(
        fallback_model(),
        json!({"pre_tokenizer": metaspace("first"), "post_processor": template(), "decoder": strip_decoder()}),
    )
}

fn gemma() -> Value {
    let steps = json!([replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]);
    let decoder = json!({"type": "Sequence", "decoders": steps});
    file(
        fallback_model(),
        json!({"normalizer": replace(" ", "▁"), "decoder": decoder}),
    )
}

/// With byte fallback, or with every character of the texts in its vocabulary.
fn unigram(byte_fallback: bool) -> Value {
    let special = SPECIAL.iter().map(|token| json!([token, 0.0]));
    let words = ["▁", "▁the", "▁cat"].map(|word| json!([word, -2.0]));
    let scored = |score: f64| move |token: String| json!([token, score]);
    let rest: Vec<Value> = if byte_fallback {
        letters()
            .map(scored(-4.0))
            .chain(byte_tokens().map(scored(-20.0)))
            .collect()
    } else {
        let mut all: Vec<String> = letters().chain(characters()).chain(["漢字".into()]).collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(scored(-4.0)).collect()
    };
    let vocab: Vec<Value> = special.chain(words).chain(rest).collect();
    let model = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": byte_fallback});
    let decoder = if byte_fallback {
        strip_decoder()
    } else {
        metaspace("always")
    };
    file(model, json!({"pre_tokenizer": metaspace("always"), "decoder": decoder}))
}

/// BERT's: words are cut at white space, which is lost.
fn word_piece() -> Value {
    let starts = letters().chain(characters());
    let inner = letters().chain(characters()).map(|token| format!("##{token}"));
    let vocab = vocabulary(starts.chain(inner).chain(["the".into(), "##og".into()]));
    let model = json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab});
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    file(
        model,
        json!({"pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": decoder}),
    )
}
