//! Training a byte-level BPE tokenizer: the same text gives the same bytes, on any machine, whatever the threads.
//!
//! The trainer of the `tokenizers` library keeps its words and its queue in hash maps with a random seed and lets
//! their order break ties between merges that arise more than once, so this one is written out:
//!
//! 1. words are what GPT-2's pattern splits the text into, with their counts;
//! 2. a pair's count is its occurrences in words, each times the word's count;
//! 3. the pair with the highest count is merged, of equal ones that with the smaller ids, until the vocabulary is full.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::path::Path;

use indicatif::ProgressBar;
use rayon::prelude::*;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::aside;
use crate::error::DataError;
use crate::progress::progress_bar;
use crate::source::{Documents, Skipped, SourceRecord};

/// The token that ends a document; its id is 0.
pub const END_OF_DOCUMENT: &str = "<|endoftext|>";

/// Words longer than this many bytes are no words and would only slow training down; they are not counted.
const WORD_BYTES: usize = 256;

/// Distinct words that are held; above it the rarest are forgotten.
const WORDS: usize = 4_000_000;

/// Text that is split into words at once.
const BATCH_BYTES: usize = 8 << 20;

/// A pair seen less often than this is no pattern.
const PAIR_COUNT: i64 = 2;

/// A trained tokenizer and how it came about.
#[derive(Debug, Clone)]
pub struct TrainedTokenizer {
    /// The bytes of its `tokenizer.json`.
    pub json: Vec<u8>,
    /// The vocabulary that was asked for.
    pub asked: usize,
    /// The vocabulary that was found: smaller when the text holds too few pairs that repeat.
    pub vocab_size: usize,
    /// Documents read.
    pub documents: u64,
    /// Bytes of text read.
    pub text_bytes: u64,
    /// Records that were not used.
    pub skipped: Skipped,
    /// What was read and what was left out.
    pub sources: Vec<SourceRecord>,
}

impl TrainedTokenizer {
    /// Writes the `tokenizer.json`; an existing file is not replaced.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        aside::create(path, &self.json).map_err(DataError::output(path))
    }
}

/// Trains a byte-level BPE of `vocab_size` ids: the end-of-document token, the 256 bytes, then merges.
///
/// # Errors
/// When `vocab_size` is below 257, and those of reading the documents.
pub fn train_bpe(mut documents: Documents, vocab_size: usize, quiet: bool) -> Result<TrainedTokenizer, DataError> {
    if vocab_size < 257 {
        return Err(DataError::VocabularyTooSmall { asked: vocab_size });
    }
    let bar = progress_bar(documents.bytes_total(), "counting words", quiet);
    let mut words = HashMap::new();
    let (mut count, mut text_bytes) = (0, 0);
    loop {
        let batch = documents.next_batch(BATCH_BYTES)?;
        if batch.is_empty() {
            break;
        }
        let counted = batch
            .par_iter()
            .map(|document| count_words(&document.text))
            .collect::<Result<Vec<_>, _>>()?;
        for (word, count) in counted.into_iter().flatten() {
            *words.entry(word).or_insert(0) += count;
        }
        forget_rarest(&mut words, WORDS);
        count += batch.iter().filter(|document| document.opens).count() as u64;
        text_bytes += batch.iter().map(|document| document.text.len() as u64).sum::<u64>();
        bar.set_position(documents.bytes_read());
    }
    bar.finish_and_clear();

    let bar = progress_bar(vocab_size as u64, "merging pairs", quiet);
    let (tokens, merges) = merge(words, vocab_size, &bar);
    bar.finish_and_clear();
    let found = tokens.len();
    let json = tokenizer_json(tokens, merges)?;
    let skipped = documents.skipped().clone();
    Ok(TrainedTokenizer {
        json,
        asked: vocab_size,
        vocab_size: found,
        documents: count,
        text_bytes,
        skipped,
        sources: documents.sources().to_vec(),
    })
}

fn pattern() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

fn internal(error: impl std::fmt::Display) -> DataError {
    DataError::Tokenizer {
        path: "tokenizer.json".into(),
        cause: error.to_string(),
    }
}

/// The words of a text, in the byte-level alphabet: one character stands for one byte.
fn count_words(text: &str) -> Result<HashMap<String, i64>, DataError> {
    let mut split = PreTokenizedString::from(text);
    pattern().pre_tokenize(&mut split).map_err(internal)?;
    let mut counts = HashMap::new();
    for (word, _, _) in split.get_splits(OffsetReferential::Original, OffsetType::None) {
        if word.len() > WORD_BYTES {
            continue;
        }
        match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                counts.insert(word.to_owned(), 1);
            }
        }
    }
    Ok(counts)
}

/// Keeps the number of words below `limit`: words seen once go first, then those seen twice, and so on.
fn forget_rarest(words: &mut HashMap<String, i64>, limit: usize) {
    let mut rare = 1;
    while words.len() > limit {
        words.retain(|_, count| *count > rare);
        rare += 1;
    }
}

type Pair = (u32, u32);

/// The word table while pairs are merged.
struct Merging {
    /// Each word's tokens and count.
    words: Vec<(Vec<u32>, i64)>,
    counts: HashMap<Pair, i64>,
    /// Words in which a pair was ever seen.
    places: HashMap<Pair, Vec<u32>>,
}

impl Merging {
    /// Adds a word's pairs to the counts, or takes them away.
    fn count(&mut self, word: usize, sign: i64, changed: &mut impl FnMut(Pair)) {
        let (tokens, count) = &self.words[word];
        for pair in tokens.windows(2) {
            let pair = (pair[0], pair[1]);
            *self.counts.entry(pair).or_insert(0) += sign * count;
            changed(pair);
        }
    }

    fn note_places(&mut self, word: usize) {
        for pair in self.words[word].0.windows(2) {
            let places = self.places.entry((pair[0], pair[1])).or_default();
            if places.last() != Some(&(word as u32)) {
                places.push(word as u32);
            }
        }
    }
}

/// The tokens in the order of their ids, and the merges in the order in which they apply.
fn merge(words: HashMap<String, i64>, vocab_size: usize, bar: &ProgressBar) -> (Vec<String>, Vec<(String, String)>) {
    let alphabet: BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
    let mut tokens = vec![END_OF_DOCUMENT.to_owned()];
    tokens.extend(alphabet.iter().map(char::to_string));
    let mut ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let letters: HashMap<char, u32> = alphabet.into_iter().zip(1..).collect();

    // A hash map has no order of its own; sorted words give the table one.
    let mut words: Vec<(String, i64)> = words.into_iter().collect();
    words.sort_unstable();
    let spell = |word: &str| {
        word.chars()
            .filter_map(|letter| letters.get(&letter).copied())
            .collect()
    };
    let words = words.iter().map(|(word, count)| (spell(word), *count)).collect();
    let mut table = Merging {
        words,
        counts: HashMap::new(),
        places: HashMap::new(),
    };
    for word in 0..table.words.len() {
        table.count(word, 1, &mut |_| ());
        table.note_places(word);
    }
    let mut queue: BinaryHeap<(i64, Reverse<Pair>)> = table
        .counts
        .iter()
        .map(|(&pair, &count)| (count, Reverse(pair)))
        .collect();

    let mut merges = Vec::new();
    while tokens.len() < vocab_size {
        let Some((stated, Reverse(pair))) = queue.pop() else {
            break;
        };
        // Counts only matter when a pair comes up: an outdated entry goes back with the true one.
        let count = table.counts.get(&pair).copied().unwrap_or(0);
        if count < stated {
            if count >= PAIR_COUNT {
                queue.push((count, Reverse(pair)));
            }
            continue;
        }
        if count < PAIR_COUNT {
            break;
        }
        let (left, right) = (&tokens[pair.0 as usize], &tokens[pair.1 as usize]);
        let token = format!("{left}{right}");
        merges.push((left.clone(), right.clone()));
        // Two ways of merging may spell the same token; it keeps its id.
        let id = *ids.entry(token.clone()).or_insert_with(|| {
            tokens.push(token);
            tokens.len() as u32 - 1
        });
        let mut places = table.places.remove(&pair).unwrap_or_default();
        places.sort_unstable();
        places.dedup();
        let mut changed = HashSet::new();
        for word in places.into_iter().map(|word| word as usize) {
            if !table.words[word].0.windows(2).any(|seen| (seen[0], seen[1]) == pair) {
                continue;
            }
            table.count(word, -1, &mut |_| ());
            replace(&mut table.words[word].0, pair, id);
            table.count(word, 1, &mut |pair| {
                if pair.0 == id || pair.1 == id {
                    changed.insert(pair);
                }
            });
            for at in 0..table.words[word].0.len().saturating_sub(1) {
                let near = (table.words[word].0[at], table.words[word].0[at + 1]);
                if near.0 == id || near.1 == id {
                    table.places.entry(near).or_default().push(word as u32);
                }
            }
        }
        table.counts.remove(&pair);
        for pair in changed {
            let count = table.counts.get(&pair).copied().unwrap_or(0);
            queue.push((count, Reverse(pair)));
        }
        bar.set_position(tokens.len() as u64);
    }
    (tokens, merges)
}

/// Writes `id` wherever `pair` stands, from the left.
fn replace(tokens: &mut Vec<u32>, pair: Pair, id: u32) {
    let mut kept = 0;
    let mut at = 0;
    while at < tokens.len() {
        let merged = at + 1 < tokens.len() && (tokens[at], tokens[at + 1]) == pair;
        tokens[kept] = if merged { id } else { tokens[at] };
        kept += 1;
        at += if merged { 2 } else { 1 };
    }
    tokens.truncate(kept);
}

fn tokenizer_json(tokens: Vec<String>, merges: Vec<(String, String)>) -> Result<Vec<u8>, DataError> {
    let vocabulary: Vocab = tokens.into_iter().zip(0..).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .build()
        .map_err(internal)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pattern()));
    tokenizer.with_decoder(Some(pattern()));
    tokenizer.add_special_tokens(&[AddedToken::from(END_OF_DOCUMENT, true)]);
    let mut json = tokenizer.to_string(true).map_err(internal)?;
    json.push('\n');
    Ok(json.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{ReadOptions, Source};
    use crate::tokenizer::Tokenizer;
    use sha2::{Digest, Sha256};
    use tokenizers::Trainer;
    use tokenizers::models::bpe::BpeTrainer;

    /// Words with parts in common, and many pairs that are equally frequent.
    fn text() -> String {
        let tens = [
            "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
        ];
        let ones = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
        let numbers = tens
            .iter()
            .flat_map(|ten| ones.iter().map(move |one| format!("{ten}{one}, ")));
        numbers.collect()
    }

    fn documents(directory: &Path, texts: &[&str]) -> Documents {
        for (index, text) in texts.iter().enumerate() {
            std::fs::write(directory.join(format!("{index}.txt")), text).unwrap();
        }
        Documents::new(
            Source::find(&[directory.to_str().unwrap().into()], &ReadOptions::default()).unwrap(),
            ReadOptions::default(),
        )
    }

    fn train(texts: &[&str], vocab_size: usize) -> TrainedTokenizer {
        let place = tempfile::tempdir().unwrap();
        train_bpe(documents(place.path(), texts), vocab_size, true).unwrap()
    }

    #[test]
    fn the_same_text_gives_the_same_bytes() {
        let texts = [
            "the cat sat on the mat\n",
            "a cat and a hat, a mat and a bat",
            "über naïve Größe 12 1234",
        ];
        let first = train(&texts, 300);
        // Each run has hash maps of another seed, and the second other threads.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(pool.install(|| train(&texts, 300)).json, first.json);
        assert_eq!(train(&[&text()], 320).json, train(&[&text()], 320).json);
        // The same on another day and another machine.
        assert_eq!(format!("{:x}", Sha256::digest(&first.json)), GOLDEN);
    }

    const GOLDEN: &str = "d58f9199803263a8199ea32b808ea589a71ab36607a63aaf047a46aa237883ae";

    #[test]
    fn it_merges_what_the_reference_trainer_merges() {
        let vocab_size = 300;
        let ours = train(&[&text()], vocab_size);
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(PAIR_COUNT as u64)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END_OF_DOCUMENT, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let split = |text: &str| {
            let counts = count_words(text).unwrap();
            Ok(counts
                .into_iter()
                .flat_map(|(word, count)| std::iter::repeat_n(word, count as usize))
                .collect())
        };
        trainer.feed(std::iter::once(text()), split).unwrap();
        let mut reference = BPE::default();
        trainer.train(&mut reference).unwrap();
        let ours = Tokenizer::from_bytes(ours.json, Path::new("ours")).unwrap();
        assert_eq!(ours.vocab_size(), vocab_size);
        for (token, id) in reference.get_vocab() {
            assert_eq!(ours.token_to_id(&token), Some(id), "{token}");
        }
    }

    #[test]
    fn every_text_is_spelled_and_comes_back() {
        let trained = train(&["the the the other"], 262);
        let tokenizer = Tokenizer::from_bytes(trained.json, Path::new("t")).unwrap();
        assert_eq!(tokenizer.end_of_document(), Some(0));
        for text in ["the other", "\u{0}\u{7f} Größe 東京 🦀\r\n\t x", "<|endoftext|>"] {
            let ids = tokenizer.encode(text).unwrap();
            assert!(!ids.contains(&0));
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        assert_eq!(tokenizer.encode(" the").unwrap().len(), 1);
    }

    #[test]
    fn too_small_a_vocabulary_is_refused_and_too_large_a_one_is_reported() {
        let place = tempfile::tempdir().unwrap();
        let error = train_bpe(documents(place.path(), &["text"]), 256, true).unwrap_err();
        assert!(matches!(error, DataError::VocabularyTooSmall { asked: 256 }));
        let trained = train(&["abab cdcd"], 1000);
        assert_eq!((trained.asked, trained.vocab_size), (1000, 259));
        assert_eq!(train(&["x"], 257).vocab_size, 257);
    }

    #[test]
    fn the_rarest_words_are_forgotten_first() {
        let mut words: HashMap<String, i64> = (1..=10).map(|count| (count.to_string(), count)).collect();
        forget_rarest(&mut words, 4);
        let mut kept: Vec<i64> = words.into_values().collect();
        kept.sort_unstable();
        assert_eq!(kept, [7, 8, 9, 10]);
    }
}
