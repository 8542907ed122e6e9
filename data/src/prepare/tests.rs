//! What preparing makes of texts, and what it refuses.

use super::*;
use crate::fixture::letters;
use crate::store::{PreparedData, verify};
use std::collections::HashSet;

fn write(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).unwrap();
    path.into()
}

fn lines(texts: impl IntoIterator<Item = String>) -> String {
    texts
        .into_iter()
        .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
        .collect()
}

/// Words of letters, each different.
fn word(number: usize) -> String {
    let digit = |n: usize| char::from(b'a' + (n % 26) as u8);
    (0..number % 7)
        .map(digit)
        .chain([number, number / 26, number / 676].map(digit))
        .collect()
}

fn options(place: &Path, text: &str, validation: ValidationSplit) -> PrepareOptions {
    PrepareOptions {
        sources: vec![write(&place.join("train.jsonl"), text)],
        tokenizer: write(&place.join("letters.json"), &letters(true).to_string()),
        validation,
        out: place.join("out"),
        read: ReadOptions::default(),
        end_of_document: None,
        special_tokens: SpelledOut::default(),
        quiet: true,
    }
}

fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = directory
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

/// A directory of two texts, of which the second is to be validated on, and what is asked but for its sources.
fn two_texts(place: &Path) -> (PathBuf, PrepareOptions) {
    let text = place.join("text");
    fs::create_dir(&text).unwrap();
    write(&text.join("a.txt"), "abc");
    let held_out = write(&text.join("b.txt"), "xyz");
    (text, options(place, "", ValidationSplit::Source(held_out)))
}

#[test]
fn documents_become_tokens_with_their_ends() {
    let place = tempfile::tempdir().unwrap();
    let validation = write(&place.path().join("validation.jsonl"), &lines(["zz".into()]));
    let text = lines(["abc".into(), " \n".into(), "d".into()]) + "{\n" + &lines(["".into(), "ef".into()]);
    let options = options(place.path(), &text, ValidationSplit::Source(validation));
    let report = prepare(&options).unwrap();
    assert_eq!(
        (
            report.skipped.bad,
            report.manifest.bad_records,
            report.manifest.empty_documents
        ),
        (1, 1, 2)
    );
    let data = PreparedData::open(&options.out).unwrap();
    let mut ids = vec![0; data.train().tokens()];
    data.train().range(0, &mut ids).unwrap();
    assert_eq!(ids, [3, 4, 5, 1, 6, 1, 7, 8, 1]);
    assert_eq!(data.train().document(1).unwrap(), [6, 1]);
    assert_eq!(data.validation().document(0).unwrap(), [28, 28, 1]);
    let manifest = data.manifest();
    assert_eq!(
        (manifest.longest_document, manifest.largest_id, data.train().max_id()),
        (4, 28, 8)
    );
    assert_eq!(
        (
            manifest.train.documents,
            manifest.train.tokens,
            manifest.train.text_bytes
        ),
        (3, 9, 6)
    );
    assert_eq!((manifest.sources.len(), manifest.sources[0].documents), (1, 5));
    assert_eq!(verify(&options.out).unwrap().tokens, 12);
    let error = prepare(&options).unwrap_err();
    assert!(matches!(error, DataError::OutputExists { .. }), "{error}");
}

/// Also by data that was prepared before the manifest had all special tokens: it has the end of a document.
#[test]
fn a_named_end_is_the_datas_wherever_it_is_opened() {
    let place = tempfile::tempdir().unwrap();
    let text = lines((0..40).map(word));
    let mut options = options(place.path(), &text, ValidationSplit::Fraction(0.5));
    prepare(&options).unwrap();
    let manifest = |out: &Path| fs::read_to_string(out.join(MANIFEST)).unwrap();
    assert!(!manifest(&options.out).contains("special_tokens"));

    options.end_of_document = Some("z".into());
    options.out = place.path().join("named");
    prepare(&options).unwrap();
    let written = manifest(&options.out);
    let mut older: serde_json::Value = serde_json::from_str(&written).unwrap();
    older["tokenizer"]
        .as_object_mut()
        .unwrap()
        .remove("special_tokens")
        .unwrap();
    for manifest in [written, older.to_string()] {
        fs::write(options.out.join(MANIFEST), manifest).unwrap();
        let data = PreparedData::open(&options.out).unwrap();
        let special = data.tokenizer().special_tokens();
        assert_eq!(
            (special.end_of_document, special.ends.as_slice()),
            (Some(28), &[28][..])
        );
        assert_eq!((special.pad, data.tokenizer().closing()), (Some(0), &[28][..]));
        let document = data.train().document(0).unwrap();
        assert_eq!(document.last(), Some(&28));
        assert!(!document.contains(&1), "the tokenizer's own end is gone: {document:?}");
    }
    older["tokenizer"]["end_of_document"] = 29.into();
    fs::write(options.out.join(MANIFEST), older.to_string()).unwrap();
    let error = PreparedData::open(&options.out).unwrap_err().to_string();
    assert!(error.contains("an id is outside the tokenizer's vocabulary"), "{error}");
}

#[test]
fn special_tokens_in_a_text_are_counted_or_taken() {
    let place = tempfile::tempdir().unwrap();
    let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
    let text = lines(["ab</s>c".into(), "d</s>".into(), "<pad><pad>".into()]);
    let mut options = options(place.path(), &text, ValidationSplit::Source(validation));
    let report = prepare(&options).unwrap();
    assert_eq!(
        (report.spelled.count, report.spelled.first.as_deref()),
        (4, Some("</s>"))
    );
    assert!(!report.manifest.special_tokens);
    let manifest = fs::read_to_string(options.out.join(MANIFEST)).unwrap();
    assert!(!manifest.contains("special_tokens"), "{manifest}");

    options.out = place.path().join("taken");
    options.special_tokens = SpelledOut::AsTokens;
    let report = prepare(&options).unwrap();
    assert_eq!((report.spelled.count, report.manifest.special_tokens), (0, true));
    let data = PreparedData::open(&options.out).unwrap();
    let documents = [0, 1, 2].map(|index| data.train().document(index).unwrap());
    // The second brings its own end.
    assert_eq!(documents, [vec![3, 4, 1, 5, 1], vec![6, 1], vec![0, 0, 1]]);
}

#[test]
fn the_configuration_of_a_tokenizer_travels_with_the_data() {
    let place = tempfile::tempdir().unwrap();
    let text = lines(["abc".into(), "d".into()]);
    let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
    let options = options(place.path(), &text, ValidationSplit::Source(validation));
    write(&place.path().join("chat_template.jinja"), "{{ messages }}");
    prepare(&options).unwrap();
    let open = || PreparedData::open(&options.out);
    let config = open().unwrap().tokenizer().config().cloned().unwrap();
    assert_eq!(config.fields()["chat_template"], "{{ messages }}");
    assert_eq!(verify(&options.out).unwrap().files, 6);
    let path = options.out.join(TOKENIZER_CONFIG);
    fs::write(&path, "{}").unwrap();
    let damaged = open().unwrap_err();
    assert!(
        damaged.to_string().contains("tokenizer_config.json: its bytes are not"),
        "{damaged}"
    );
    fs::remove_file(&path).unwrap();
    assert!(matches!(open().unwrap_err(), DataError::FileMissing { .. }));
}

#[test]
fn validation_files_are_not_trained_on() {
    let place = tempfile::tempdir().unwrap();
    let (text, mut options) = two_texts(place.path());
    options.sources = vec![text.clone()];
    let manifest = prepare(&options).unwrap().manifest;
    assert_eq!((manifest.train.tokens, manifest.validation.tokens), (4, 4));
    assert_eq!((manifest.train.largest_id, manifest.sources[0].files), (5, 1));
    options.out = place.path().join("again");
    options.sources = vec![text.join("b.txt")];
    assert!(
        prepare(&options)
            .unwrap_err()
            .to_string()
            .ends_with("holds only validation files")
    );
}

#[test]
fn the_same_bytes_whatever_the_threads() {
    let place = tempfile::tempdir().unwrap();
    let text = lines((0..3000).map(|number| word(number).repeat(40)));
    let mut options = options(place.path(), &text, ValidationSplit::Fraction(0.1));
    let mut prepared = Vec::new();
    for threads in [1, 2, 5] {
        options.out = place.path().join(format!("out-{threads}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| prepare(&options)).unwrap();
        prepared.push(contents(&options.out));
    }
    assert!(prepared.iter().all(|files| *files == prepared[0]));
}

#[test]
fn a_fraction_follows_the_text_and_not_the_order() {
    let place = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..4000).map(word).collect::<HashSet<_>>().into_iter().collect();
    let validation = |texts: Vec<String>| {
        let place = tempfile::tempdir_in(place.path()).unwrap();
        let options = options(place.path(), &lines(texts), ValidationSplit::Fraction(0.25));
        prepare(&options).unwrap();
        let data = PreparedData::open(&options.out).unwrap();
        let documents = 0..data.validation().documents();
        documents
            .map(|index| data.validation().document(index).unwrap())
            .collect::<HashSet<_>>()
    };
    let mut reversed = texts.clone();
    reversed.reverse();
    let (first, second) = (validation(texts.clone()), validation(reversed));
    assert_eq!(first, second);
    let fraction = first.len() as f64 / texts.len() as f64;
    assert!((0.22..0.28).contains(&fraction), "{fraction}");
}

#[test]
fn a_long_document_is_one_document() {
    let place = tempfile::tempdir().unwrap();
    let long: String = (0..).map(|number| word(number) + "\n").take(200_000).collect();
    assert!(long.len() > crate::source::PIECE_BYTES);
    let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
    let text = lines([long.clone(), "abc".into()]);
    let options = options(place.path(), &text, ValidationSplit::Source(validation));
    let manifest = prepare(&options).unwrap().manifest;
    assert_eq!((manifest.train.documents, manifest.sources[0].documents), (2, 2));
    // The pattern of this tokenizer's words leaves line breaks out of no token: each is an unknown letter.
    assert_eq!(manifest.longest_document, long.len() as u64 + 1);
}

#[test]
fn an_error_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let good = lines((0..50).map(word));
    let prepare_with = |change: &dyn Fn(&mut PrepareOptions)| {
        let mut options = options(place.path(), &good, ValidationSplit::Fraction(0.2));
        change(&mut options);
        let error = prepare(&options).unwrap_err();
        let left: Vec<_> = contents_names(place.path());
        assert!(!left.iter().any(|name| name.contains("out")), "{error}: {left:?}");
        error
    };
    fn contents_names(directory: &Path) -> Vec<String> {
        directory
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
    let bad = write(&place.path().join("bad.jsonl"), &(good.clone() + "{\n"));
    let error = prepare_with(&|options| {
        options.sources = vec![bad.clone()];
        options.read.strict = true;
    });
    assert!(matches!(&error, DataError::BadRecord { line: 51, .. }), "{error}");
    let error = prepare_with(&|options| options.read.field = "body".into());
    assert!(matches!(error, DataError::EveryRecordBad { count: 50, .. }), "{error}");
    let error = prepare_with(&|options| options.validation = ValidationSplit::Fraction(1e-12));
    assert!(
        matches!(
            error,
            DataError::EmptySplit {
                split: "validation",
                documents: 50
            }
        ),
        "{error}"
    );
    let error = prepare_with(&|options| options.tokenizer = options.sources[0].clone());
    assert!(matches!(error, DataError::Tokenizer { .. }), "{error}");
    let error = prepare_with(&|options| options.end_of_document = Some("<eod>".into()));
    assert!(matches!(error, DataError::TokenUnknown { .. }), "{error}");
}

#[test]
fn one_document_is_cut_by_tokens_where_validation_is_a_fraction() {
    for opens_with_validation in [false, true] {
        let place = tempfile::tempdir().unwrap();
        // The hash of a text decides which split it is written to first.
        let text = (0..)
            .map(|number| word(number).repeat(30))
            .find(|text| belongs_to_validation(text, 0.2) == opens_with_validation)
            .unwrap();
        let options = options(place.path(), &lines([text.clone()]), ValidationSplit::Fraction(0.2));
        let manifest = prepare(&options).unwrap().manifest;
        let tokens = text.len() as u64 + 1;
        let held_out = (tokens as f64 * 0.2).round() as u64;
        assert_eq!(manifest.cut_at, Some(tokens - held_out));
        assert_eq!(
            (manifest.train.tokens, manifest.validation.tokens),
            (tokens - held_out, held_out)
        );
        assert_eq!((manifest.train.documents, manifest.validation.documents), (1, 1));
        assert_eq!(
            manifest.train.text_bytes + manifest.validation.text_bytes,
            text.len() as u64
        );
        assert_eq!(verify(&options.out).unwrap().tokens, tokens);
        let data = PreparedData::open(&options.out).unwrap();
        let joined = [
            data.train().document(0).unwrap(),
            data.validation().document(0).unwrap(),
        ]
        .concat();
        let expected: Vec<u32> = text.bytes().map(|byte| u32::from(byte - b'a') + 3).chain([1]).collect();
        assert_eq!(joined, expected);
        assert!(
            contents(&options.out)
                .iter()
                .all(|(name, _)| !name.starts_with("whole"))
        );
        let shown = crate::store::summarise(&options.out, 0).unwrap().to_string();
        assert!(shown.contains("the only document, after "), "{shown}");
    }
}

#[test]
fn a_split_without_a_document_is_refused_with_its_cause() {
    let place = tempfile::tempdir().unwrap();
    let refused = |text: &str, fraction: f64| {
        let options = options(place.path(), text, ValidationSplit::Fraction(fraction));
        let error = prepare(&options).unwrap_err();
        assert!(!options.out.exists());
        error.hint().unwrap()
    };
    assert_eq!(
        refused(&lines([" ".into()]), 0.5),
        "every document is empty or white space"
    );
    assert!(
        refused(&lines(["abc".into(), "def".into()]), 1e-9).contains("there are 2: cut text files with --separator")
    );
}

#[test]
fn text_files_are_cut_at_the_tokenizers_own_end_and_this_is_recorded() {
    let place = tempfile::tempdir().unwrap();
    let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
    let mut options = options(place.path(), "", ValidationSplit::Source(validation));
    let stories = write(&place.path().join("stories.txt"), "abc\n</s>\nde\n</s>\n");
    let record = write(&place.path().join("record.jsonl"), &lines(["a</s>b".into()]));
    options.sources = vec![stories, record];
    let manifest = prepare(&options).unwrap().manifest;
    assert_eq!(manifest.separator.as_deref(), Some("</s>"));
    assert_eq!((manifest.sources[0].separators, manifest.sources[0].documents), (2, 2));
    // A record is a document whatever it holds.
    assert_eq!((manifest.sources[1].separators, manifest.sources[1].documents), (0, 1));
    let data = PreparedData::open(&options.out).unwrap();
    assert_eq!(data.train().document(0).unwrap(), [3, 4, 5, 1]);
    assert_eq!(data.train().document(1).unwrap(), [6, 7, 1]);
    assert_eq!(data.manifest(), &manifest);

    options.out = place.path().join("whole");
    options.read.separator = Separator::Nowhere;
    let manifest = prepare(&options).unwrap().manifest;
    assert_eq!((manifest.separator, manifest.train.documents), (None, 2));
    // A token of ordinary text does not cut, even where it ends documents.
    options.out = place.path().join("letter");
    options.read.separator = Separator::EndOfDocument;
    options.end_of_document = Some("b".into());
    assert_eq!(prepare(&options).unwrap().manifest.train.documents, 2);
}

#[test]
fn what_is_left_out_stands_in_the_manifest_and_nothing_else_changes_it() {
    let place = tempfile::tempdir().unwrap();
    let (text, mut options) = two_texts(place.path());
    options.sources = vec![text.join("a.txt")];
    prepare(&options).unwrap();
    let plain = fs::read_to_string(options.out.join(MANIFEST)).unwrap();
    for key in ["left_out", "separator", "cut_at"] {
        assert!(!plain.contains(key), "{plain}");
    }
    write(&text.join(".hidden.txt"), "no");
    write(&text.join("notes.md"), "no");
    let source = text.clone();
    (options.out, options.sources) = (place.path().join("again"), vec![source.clone(), source]);
    let manifest = prepare(&options).unwrap().manifest;
    let reasons: Vec<_> = manifest.sources[0].left_out.iter().map(|left| left.reason).collect();
    use crate::source::LeftOutReason::{Hidden, Repeat, UnknownFormat, Validation};
    assert_eq!(reasons, [Hidden, UnknownFormat, Validation]);
    assert_eq!(manifest.sources[1].left_out.last().unwrap().reason, Repeat);
    assert_eq!((manifest.train.tokens, manifest.train.documents), (4, 1));
    let shards = |directory: &Path| fs::read(directory.join("train-00000.tokens")).unwrap();
    assert_eq!(shards(&options.out), shards(&place.path().join("out")));
    assert_eq!(PreparedData::open(&options.out).unwrap().manifest(), &manifest);
}

#[test]
fn validation_is_a_fraction_or_a_source() {
    assert_eq!(
        "0.05".parse::<ValidationSplit>().unwrap(),
        ValidationSplit::Fraction(0.05)
    );
    assert_eq!(
        "held/*.txt".parse::<ValidationSplit>().unwrap(),
        ValidationSplit::Source("held/*.txt".into())
    );
    for wrong in ["0", "1", "1.5", "-0.1", "NaN", "inf"] {
        assert!(
            matches!(
                wrong.parse::<ValidationSplit>(),
                Err(DataError::ValidationFraction { .. })
            ),
            "{wrong}"
        );
    }
}
