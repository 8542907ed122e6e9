//! Reading each format, whole and damaged.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};

use super::text::pieces;
use super::*;
use crate::error::DataError;

fn read(given: &str, options: ReadOptions) -> (Result<Vec<Document>, DataError>, Documents) {
    let mut documents = Documents::open(&[given.to_owned()], options).unwrap();
    (documents.by_ref().collect(), documents)
}

fn texts(given: &Path) -> Vec<String> {
    let (documents, _) = read(given.to_str().unwrap(), ReadOptions::default());
    documents.unwrap().into_iter().map(|document| document.text).collect()
}

fn strict() -> ReadOptions {
    ReadOptions {
        strict: true,
        ..ReadOptions::default()
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn write_parquet(path: &Path, column: &str, texts: &[Option<&[u8]>]) {
    let schema = format!("message documents {{ REQUIRED INT64 id; OPTIONAL BINARY {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    for part in texts.chunks(100) {
        let mut group = writer.next_row_group().unwrap();
        let mut ids = group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..part.len() as i64).collect();
        ids.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = part
            .iter()
            .flatten()
            .map(|text| ByteArray::from(text.to_vec()))
            .collect();
        let levels: Vec<i16> = part.iter().map(|text| i16::from(text.is_some())).collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn each_format_gives_its_documents() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let lines = "{\"text\": \"one\", \"url\": \"x\"}\n\n{\"id\": [1, {}], \"text\": \"zw\\u00f6lf\"}";
    fs::write(path("a.jsonl"), format!("\u{feff}{lines}")).unwrap();
    let mut members = gzip("{\"text\": \"one\"}\n");
    members.extend(gzip("{\"text\": \"zwölf\"}\n"));
    fs::write(path("b.jsonl.gz"), members).unwrap();
    fs::write(path("c.JSONL.ZST"), zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
    write_parquet(&path("d.parquet"), "text", &[Some(b"one"), Some("zwölf".as_bytes())]);
    for file in ["a.jsonl", "b.jsonl.gz", "c.JSONL.ZST", "d.parquet"] {
        assert_eq!(texts(&path(file)), ["one", "zwölf"], "{file}");
    }
    fs::write(path("e.txt"), "one\nzwölf").unwrap();
    fs::write(path("f.csv"), "not read").unwrap();
    assert_eq!(texts(&path("e.txt")), ["one\nzwölf"]);
    assert_eq!(texts(place.path()).len(), 9);
    assert_eq!(texts(&path("*.jsonl*")).len(), 4);
}

#[test]
fn bad_records_are_counted_named_and_skipped_or_stop_a_strict_reader() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.jsonl");
    let mut text = b"{\"text\": \"good\"}\n{\"text\": \n{\"text\": 3}\n{\"body\": \"x\"}\n[1]\n".to_vec();
    text.extend(b"{\"text\": \"\xff\"}\n{\"text\": \"good too\"} trailing\n{\"text\": \"last\"}");
    fs::write(&path, &text).unwrap();
    let given = path.to_str().unwrap();
    let (documents, after) = read(given, ReadOptions::default());
    let documents = documents.unwrap();
    assert_eq!(
        documents.iter().map(|document| document.line).collect::<Vec<_>>(),
        [1, 8]
    );
    assert_eq!(after.skipped().bad, 6);
    let causes = [
        "malformed json",
        "field `text` is not a string",
        "field `text` is missing",
        "malformed json",
        "invalid UTF-8 at byte 10",
    ];
    assert_eq!(after.skipped().first.len(), causes.len());
    for (at, (said, cause)) in after.skipped().first.iter().zip(causes).enumerate() {
        assert!(said.starts_with(&format!("{given}:{}: {cause}", at + 2)), "{said}");
    }
    let record = &after.sources()[0];
    assert_eq!((record.documents, record.bytes), (2, text.len() as u64));
    assert_eq!(record.sha256, format!("{:x}", Sha256::digest(&text)));

    let (documents, mut after) = read(given, strict());
    match documents.unwrap_err() {
        DataError::BadRecord { line, file, .. } => assert_eq!((line, file.as_str()), (2, given)),
        other => panic!("{other}"),
    }
    assert!(after.next().is_none(), "nothing follows an error");
}

#[test]
fn a_source_without_a_usable_record_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let refused = |path: &Path| read(path.to_str().unwrap(), ReadOptions::default()).0.unwrap_err();
    fs::write(
        path("a.jsonl"),
        "{\"content\": \"a\", \"url\": 1}\n{\"content\": \"b\"}\n",
    )
    .unwrap();
    let error = refused(&path("a.jsonl"));
    assert!(
        error
            .to_string()
            .contains("holds no good record; of 2 bad the first is"),
        "{error}"
    );
    assert!(
        error.to_string().ends_with("a.jsonl:1: field `text` is missing"),
        "{error}"
    );
    assert_eq!(
        error.hint().unwrap(),
        "name the text field with --field; seen: `content`, `url`"
    );
    write_parquet(&path("b.parquet"), "body", &[Some(b"x"), None]);
    let error = refused(&path("b.parquet"));
    assert!(error.hint().unwrap().ends_with("seen: `id`, `body`"), "{error}");
    fs::write(path("c.jsonl"), "\n\n").unwrap();
    assert!(matches!(refused(&path("c.jsonl")), DataError::SourceEmpty { .. }));
    fs::write(path("d.txt"), b"caf\xe9 au lait").unwrap();
    assert!(
        refused(&path("d.txt"))
            .to_string()
            .ends_with("d.txt:1: invalid UTF-8 at byte 3")
    );
    fs::create_dir(path("empty")).unwrap();
    for (given, kind) in [
        ("empty", "holds no file"),
        ("*.nothing", "matches no file"),
        ("none", "does not exist"),
    ] {
        let error = Source::find(path(given).to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains(kind), "{error}");
    }
    fs::write(path("e.csv"), "a,b").unwrap();
    assert!(matches!(
        Source::find(path("e.csv").to_str().unwrap()),
        Err(DataError::UnknownFormat { .. })
    ));
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let place = tempfile::tempdir().unwrap();
    let lines: String = (0..200)
        .map(|n| format!("{{\"text\": \"line {n} {}\"}}\n", n * 7919))
        .collect();
    let parquet = place.path().join("whole.parquet");
    let texts: Vec<String> = (0..300).map(|n| format!("row {n}")).collect();
    write_parquet(
        &parquet,
        "text",
        &texts.iter().map(|text| Some(text.as_bytes())).collect::<Vec<_>>(),
    );
    let whole = [
        ("a.jsonl.gz", gzip(&lines)),
        ("a.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap()),
        ("a.parquet", fs::read(&parquet).unwrap()),
    ];
    for (name, bytes) in whole {
        let path = place.path().join(name);
        for keep in [1, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..keep]).unwrap();
            let error = read(path.to_str().unwrap(), ReadOptions::default()).0.unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
        for at in (0..bytes.len()).step_by(bytes.len() / 300 + 1) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x55;
            fs::write(&path, flipped).unwrap();
            // Some changes are harmless or fall inside the text: what counts is that reading ends.
            drop(read(path.to_str().unwrap(), ReadOptions::default()));
        }
    }
}

#[test]
fn nulls_and_bad_text_in_a_column_are_bad_rows() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.parquet");
    let mut rows: Vec<Option<&[u8]>> = vec![Some(b"text"); 250];
    rows[3] = None;
    rows[220] = Some(b"\xff");
    write_parquet(&path, "text", &rows);
    let (documents, after) = read(path.to_str().unwrap(), ReadOptions::default());
    assert_eq!(documents.unwrap().len(), 248);
    assert_eq!(after.skipped().bad, 2);
    assert!(after.skipped().first[0].ends_with("a.parquet:4: the text is null"));
    assert!(after.skipped().first[1].ends_with("a.parquet:221: invalid UTF-8 at byte 0"));
}

#[test]
fn long_documents_come_in_pieces_that_join_to_the_document() {
    let place = tempfile::tempdir().unwrap();
    let text: String = (0..).map(|n| format!("Größe {n}\n")).take(300_000).collect();
    fs::write(place.path().join("a.txt"), &text).unwrap();
    fs::write(
        place.path().join("b.jsonl"),
        serde_json::json!({ "text": text }).to_string(),
    )
    .unwrap();
    for name in ["a.txt", "b.jsonl"] {
        let (documents, after) = read(place.path().join(name).to_str().unwrap(), ReadOptions::default());
        let documents = documents.unwrap();
        assert!(documents.len() > 3 && documents.iter().all(|piece| piece.text.len() <= PIECE_BYTES + 1));
        assert_eq!(
            documents.iter().map(|piece| piece.text.as_str()).collect::<String>(),
            text
        );
        assert_eq!(documents.iter().filter(|piece| piece.opens).count(), 1);
        assert!(documents[0].opens && documents.last().unwrap().closes);
        assert!(
            documents[..documents.len() - 1]
                .iter()
                .all(|piece| piece.text.ends_with('\n') && !piece.closes)
        );
        assert_eq!(after.sources()[0].documents, 1);
    }
    // Without a line break or a space there is no good place to cut, but still a character boundary.
    let text = "ß".repeat(PIECE_BYTES);
    assert_eq!(
        pieces(text.clone()).map(|(piece, _, _)| piece).collect::<String>(),
        text
    );
    fs::write(place.path().join("c.txt"), &text).unwrap();
    assert_eq!(texts(&place.path().join("c.txt")).concat(), text);
}
