//! Reading each format, whole and damaged.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
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
    let mut documents = Documents::open(&[given.into()], options).unwrap();
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

fn find_error(given: &Path) -> DataError {
    Source::find(&[given.to_str().unwrap().into()], &ReadOptions::default()).unwrap_err()
}

/// What several sources give: their texts, and of each source what was left out.
fn read_all(given: &[PathBuf], options: ReadOptions) -> (Vec<String>, Vec<SourceRecord>) {
    let mut documents = Documents::open(given, options).unwrap();
    let texts = documents.by_ref().map(|document| document.unwrap().text).collect();
    (texts, documents.sources().to_vec())
}

/// What a source leaves out: reasons, and the names of the files without their directory.
fn left_out(record: &SourceRecord) -> Vec<(LeftOutReason, Vec<String>)> {
    let name = |path: &String| Path::new(path).file_name().unwrap().to_str().unwrap().to_owned();
    let names = |left: &LeftOut| {
        assert_eq!(left.count, left.first.len() as u64);
        left.first.iter().map(name).collect()
    };
    record.left_out.iter().map(|left| (left.reason, names(left))).collect()
}

fn line(text: &str) -> String {
    serde_json::json!({ "text": text }).to_string() + "\n"
}

fn separated_by(text: &str) -> ReadOptions {
    ReadOptions {
        separator: Separator::Text(text.into()),
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
    assert!(matches!(refused(&path("c.jsonl")), DataError::NoDocument { .. }));
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
        let error = find_error(&path(given));
        assert!(error.to_string().contains(kind), "{error}");
    }
    fs::write(path("e.csv"), "a,b").unwrap();
    assert!(matches!(find_error(&path("e.csv")), DataError::UnknownFormat { .. }));
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

#[test]
fn hidden_files_and_folders_are_left_out_unless_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    fs::create_dir(path(".ipynb_checkpoints")).unwrap();
    fs::write(path("a.jsonl"), line("seen")).unwrap();
    fs::write(path(".ipynb_checkpoints/a-checkpoint.jsonl"), line("checkpoint")).unwrap();
    fs::write(path(".old.jsonl"), line("old")).unwrap();
    fs::write(path("b.jsonl.gz"), gzip(&line("packed"))).unwrap();
    fs::write(path("._b.jsonl.gz"), b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ").unwrap();
    let (texts, records) = read_all(&[place.path().into()], ReadOptions::default());
    assert_eq!(texts, ["seen", "packed"]);
    let hidden = ["._b.jsonl.gz", ".ipynb_checkpoints", ".old.jsonl"]
        .map(String::from)
        .to_vec();
    assert_eq!(left_out(&records[0]), [(LeftOutReason::Hidden, hidden)]);

    let hidden = ReadOptions {
        hidden: true,
        ..ReadOptions::default()
    };
    let (texts, records) = read_all(&[place.path().into()], hidden.clone());
    assert_eq!(texts, ["checkpoint", "old", "seen", "packed"]);
    let resource = vec!["._b.jsonl.gz".to_owned()];
    assert_eq!(left_out(&records[0]), [(LeftOutReason::AppleDouble, resource)]);

    // A glob takes hidden names only where it has their dot, as a shell does; a path that is named is taken.
    let (texts, records) = read_all(&[path("*.jsonl")], ReadOptions::default());
    assert_eq!(
        (texts.as_slice(), left_out(&records[0]).len()),
        (&["seen".to_owned()][..], 1)
    );
    for given in [".o*.jsonl", ".old.jsonl"] {
        assert_eq!(read_all(&[path(given)], ReadOptions::default()).0, ["old"], "{given}");
    }
    assert_eq!(
        read_all(&[path(".ipynb_checkpoints")], ReadOptions::default()).0,
        ["checkpoint"]
    );
    assert_eq!(read_all(&[path("*.jsonl")], hidden).0, ["old", "seen"]);

    fs::remove_file(path("a.jsonl")).unwrap();
    fs::remove_file(path("b.jsonl.gz")).unwrap();
    let error = find_error(place.path());
    assert!(
        error
            .to_string()
            .contains("holds no file of a format that is read; left out: 3 hidden paths: "),
        "{error}"
    );
    assert!(error.hint().unwrap().starts_with("--hidden takes"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_once_and_those_that_lead_nowhere_are_said() {
    use std::os::unix::fs::symlink;
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    fs::create_dir_all(path("d/x")).unwrap();
    fs::create_dir(path("big")).unwrap();
    fs::write(path("d/x/1.jsonl"), line("one")).unwrap();
    fs::write(path("big/2.jsonl"), line("two")).unwrap();
    symlink("../big", path("d/a")).unwrap();
    symlink("../big", path("d/y")).unwrap();
    symlink("/nonexistent/3.jsonl", path("d/3.jsonl")).unwrap();
    // Circles: a directory that holds itself, and one that leads to itself.
    symlink("..", path("d/x/up")).unwrap();
    symlink("loop", path("d/loop")).unwrap();
    let (texts, records) = read_all(&[path("d")], ReadOptions::default());
    assert_eq!(texts, ["one", "two"]);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        left_out(&records[0]),
        [
            (LeftOutReason::BrokenLink, names(&["3.jsonl", "loop"])),
            (LeftOutReason::Repeat, names(&["up", "y"]))
        ]
    );
    let error = find_error(&path("d/3.jsonl"));
    assert!(
        error
            .to_string()
            .ends_with("3.jsonl` is a link to /nonexistent/3.jsonl, which does not exist"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_file_is_read_once_by_whatever_paths_it_is_named() {
    use std::os::unix::fs::symlink;
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    fs::create_dir(path("e")).unwrap();
    fs::write(path("e/b.jsonl"), line("b")).unwrap();
    fs::write(path("e/c.jsonl"), line("c")).unwrap();
    symlink("c.jsonl", path("e/a.jsonl")).unwrap();
    fs::hard_link(path("e/c.jsonl"), path("e/d.jsonl")).unwrap();
    let given = [path("e"), path("e/b.jsonl"), path("e/../e/*.jsonl")];
    let (texts, records) = read_all(&given, ReadOptions::default());
    // The file itself keeps its place, whatever a link to it is called.
    assert_eq!(texts, ["b", "c"]);
    let names = |names: &[&str]| {
        vec![(
            LeftOutReason::Repeat,
            names.iter().map(|name| (*name).to_owned()).collect(),
        )]
    };
    assert_eq!(left_out(&records[0]), names(&["a.jsonl", "d.jsonl"]));
    assert_eq!(left_out(&records[1]), names(&["b.jsonl"]));
    assert_eq!(
        left_out(&records[2]),
        names(&["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"])
    );
    assert_eq!((records[0].files, records[1].files, records[2].documents), (2, 0, 0));
}

/// Each looks like settings, and together they are documents whose text has another name.
#[test]
fn a_folder_of_documents_in_files_of_their_own_is_told_the_field() {
    let place = tempfile::tempdir().unwrap();
    for name in ["a.json", "b.json"] {
        fs::write(place.path().join(name), "{\"content\": \"words\"}").unwrap();
    }
    let error = read(place.path().to_str().unwrap(), ReadOptions::default())
        .0
        .unwrap_err();
    assert!(
        error.to_string().ends_with("a.json:1: field `text` is missing"),
        "{error}"
    );
    assert_eq!(
        error.hint().unwrap(),
        "name the text field with --field; seen: `content`"
    );
}

#[test]
fn what_is_not_text_is_left_out_by_reason() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    fs::write(path("a.jsonl"), line("text")).unwrap();
    fs::write(path("README.md"), "about").unwrap();
    fs::write(path("empty.jsonl"), "").unwrap();
    fs::write(path("bad.jsonl"), "{\n").unwrap();
    fs::write(path("one-line.json"), "{\"features\": {\"text\": \"string\"}}").unwrap();
    fs::write(
        path("pretty.json"),
        "{\n  \"model\": {\n    \"type\": \"BPE\"\n  }\n}\n",
    )
    .unwrap();
    let (texts, records) = read_all(&[place.path().into()], ReadOptions::default());
    assert_eq!(texts, ["text"]);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        left_out(&records[0]),
        [
            (LeftOutReason::UnknownFormat, names(&["README.md"])),
            (LeftOutReason::NoDocument, names(&["bad.jsonl", "empty.jsonl"])),
            (LeftOutReason::Settings, names(&["one-line.json", "pretty.json"])),
        ]
    );
    fs::remove_file(path("bad.jsonl")).unwrap();
    let (documents, after) = read(place.path().to_str().unwrap(), strict());
    assert_eq!((documents.unwrap().len(), after.skipped().bad), (1, 0));
    // A file that is named is text or an error.
    let (documents, _) = read(path("pretty.json").to_str().unwrap(), ReadOptions::default());
    assert!(documents.unwrap_err().hint().unwrap().ends_with("seen: `model.type`"));
}

#[test]
fn json_records_are_read_by_every_name_and_layout() {
    let place = tempfile::tempdir().unwrap();
    let documents = ["one, \"quoted\" [{]", "zwölf\n", "three"];
    let records: Vec<_> = documents
        .iter()
        .map(|text| serde_json::json!({ "id": [1, {"a": []}], "text": text }))
        .collect();
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    let array = serde_json::to_string(&records).unwrap();
    let pretty_array = serde_json::to_string_pretty(&records).unwrap();
    let objects: String = records
        .iter()
        .map(|record| serde_json::to_string_pretty(record).unwrap() + "\n\n")
        .collect();
    let layouts = [
        ("lines", lines.clone()),
        ("lines with carriage returns", lines.replace('\n', "\r\n")),
        ("empty lines", lines.replace('\n', "\n\n \t\n")),
        ("no last line break", lines.trim_end().to_owned()),
        ("a mark", format!("\u{feff}{lines}")),
        ("joined files with marks", lines.replace("{\"id", "\u{feff}{\"id")),
        ("an array", array.clone()),
        (
            "a spaced array",
            format!("\u{feff}\n [\n{} ]\n", &pretty_array[1..pretty_array.len() - 1]),
        ),
        ("objects over lines", objects.clone()),
        ("objects with carriage returns", objects.replace('\n', "\r\n")),
        (
            "an array and lines after it",
            format!("[{}]\n{}\n{}", records[0], records[1], records[2]),
        ),
    ];
    for (layout, text) in &layouts {
        for name in [
            "a.json",
            "a.jsonl",
            "a.ndjson",
            "A.JSON.gz",
            "a.json.zst",
            "a.jsonl.gz",
            "a.ndjson.zst",
        ] {
            let bytes = match name.rsplit_once('.').unwrap().1 {
                "gz" => gzip(text),
                "zst" => zstd::encode_all(text.as_bytes(), 1).unwrap(),
                _ => text.clone().into_bytes(),
            };
            let path = place.path().join(name);
            fs::write(&path, bytes).unwrap();
            assert_eq!(texts(&path), documents, "{layout} as {name}");
        }
    }
}

#[test]
fn bad_members_of_an_array_are_counted_by_their_place() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.json");
    let read_text = |text: &str| {
        fs::write(&path, text).unwrap();
        let (documents, after) = read(path.to_str().unwrap(), ReadOptions::default());
        let texts: Vec<_> = documents.unwrap().into_iter().map(|document| document.text).collect();
        let said: Vec<_> = after
            .skipped()
            .first
            .iter()
            .map(|said| said.rsplit_once(".json:").unwrap().1.to_owned())
            .collect();
        (texts, said)
    };
    let (texts, said) =
        read_text("[{\"text\": \"a\"}, 3, {\"text\": NaN},\n{\"text\": \"b\"}]\nmore\n{\"text\": \"c\"}");
    assert_eq!(texts, ["a", "b", "c"]);
    assert!(
        said[0].starts_with("2: malformed json") && said[0].contains("integer `3`"),
        "{said:?}"
    );
    assert_eq!(said[1], "3: field `text` is not a string");
    // Lines after the array are counted from the beginning of the file.
    assert!(said[2].starts_with("3: malformed json"), "{said:?}");
    let (texts, said) = read_text("[{\"text\": \"a\"},\n");
    assert_eq!(
        (texts, said),
        (
            vec!["a".to_owned()],
            vec!["2: the file ends inside its json array".to_owned()]
        )
    );
    let (texts, said) = read_text("[{\"text\": \"a\"}, {\"text\": \"b");
    assert_eq!((texts.len(), said.len()), (1, 2));
    // A damaged first line does not change how the others are read.
    let (texts, said) = read_text("{\n{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    assert_eq!((texts.len(), said.len()), (2, 1));
}

#[test]
fn a_number_that_is_not_finite_in_another_field_is_passed_over() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.jsonl");
    let text =
        "{\"text\": \"a\", \"score\": NaN}\n{\"score\": [-Infinity, Infinity], \"text\": \"NaN\"}\n{\"text\": NaN}\n";
    fs::write(&path, text).unwrap();
    let (documents, after) = read(path.to_str().unwrap(), ReadOptions::default());
    assert_eq!(documents.unwrap().len(), 2);
    assert_eq!(after.skipped().bad, 1);
    assert!(after.skipped().first[0].ends_with(":3: field `text` is not a string"));
}

#[test]
fn a_field_in_a_field_is_named_the_same_way_in_every_format() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let record = "{\"meta\": {\"body\": \"deep\"}, \"id\": 1}";
    fs::write(path("a.jsonl"), record).unwrap();
    fs::write(path("b.json"), format!("[{record}]")).unwrap();
    let schema = "message documents { REQUIRED group meta { REQUIRED BINARY body (UTF8); } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(File::create(path("c.parquet")).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values = [ByteArray::from("deep")];
    column
        .typed::<ByteArrayType>()
        .write_batch(&values, None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let options = ReadOptions {
        field: "meta.body".into(),
        ..ReadOptions::default()
    };
    for name in ["a.jsonl", "b.json", "c.parquet"] {
        assert_eq!(read_all(&[path(name)], options.clone()).0, ["deep"], "{name}");
        let (refused, _) = read(path(name).to_str().unwrap(), ReadOptions::default());
        let hint = refused.unwrap_err().hint().unwrap();
        assert!(
            hint.contains("seen: ") && hint.contains("`meta.body`"),
            "{name}: {hint}"
        );
    }
}

#[test]
fn compression_is_read_as_its_own_tool_reads_it() {
    let place = tempfile::tempdir().unwrap();
    let (one, two) = (line("one"), line("two"));
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
    let skippable = b"\x53\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let long = {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all((one.clone() + &two).as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let named = {
        let mut encoder = flate2::GzBuilder::new()
            .filename("a.jsonl")
            .comment("a comment")
            .extra(b"extra".to_vec())
            .mtime(1)
            .write(Vec::new(), flate2::Compression::best());
        encoder.write_all((one.clone() + &two).as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let both = one.clone() + &two;
    let variants = [
        ("members", "a.jsonl.gz", [gzip(&one), gzip(&two)].concat()),
        (
            "empty members",
            "a.jsonl.gz",
            [gzip(&one), gzip(""), gzip(&two), gzip("")].concat(),
        ),
        (
            "zeros after members",
            "a.jsonl.gz",
            [gzip(&one), vec![0; 700], gzip(&two), vec![0; 1000]].concat(),
        ),
        ("a named member", "a.jsonl.gz", named),
        (
            "a line over two members",
            "a.jsonl.gz",
            [gzip(&both[..5]), gzip(&both[5..])].concat(),
        ),
        ("frames", "a.jsonl.zst", [zstd(&one), zstd(&two)].concat()),
        (
            "skippable frames",
            "a.jsonl.zst",
            [skippable.clone(), zstd(&one), skippable, zstd(&two)].concat(),
        ),
        ("a long window", "a.jsonl.zst", long),
        ("gzip by another name", "a.jsonl", gzip(&both)),
        ("zstd by another name", "a.jsonl.gz", zstd(&both)),
        ("not compressed any more", "a.jsonl.gz", both.clone().into_bytes()),
        ("not compressed any more", "a.json.zst", both.clone().into_bytes()),
    ];
    for (variant, name, bytes) in variants {
        let path = place.path().join(name);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(texts(&path), ["one", "two"], "{variant} as {name}");
        let record = &read_all(&[path], ReadOptions::default()).1[0];
        assert_eq!(record.sha256, format!("{:x}", Sha256::digest(&bytes)), "{variant}");
    }
    for (name, bytes) in [
        ("a.txt.gz", gzip("one")),
        ("a.txt.zst", zstd("one")),
        ("b.txt", gzip("one")),
    ] {
        let path = place.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(texts(&path), ["one"], "{name}");
    }
}

#[test]
fn a_file_that_is_something_else_is_named_as_what_it_is() {
    let place = tempfile::tempdir().unwrap();
    let utf16 = |text: &str, mark: bool| -> Vec<u8> {
        let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    let mut tar = vec![b'a'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    // A frame header that asks for a window of 2 GiB, and one that asks for a dictionary.
    let long = b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0".to_vec();
    let dictionary = b"\x28\xb5\x2f\xfd\x01\x50\x07\0\0".to_vec();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n".to_vec();
    let cases = [
        (
            "a.jsonl",
            utf16(&line("a text"), true),
            "the file is UTF-16, not UTF-8",
            "iconv -f UTF-16 ",
        ),
        (
            "a.txt",
            utf16("text of some length", true),
            "the file is UTF-16, not UTF-8",
            "iconv -f UTF-16 ",
        ),
        (
            "b.txt",
            utf16("text of some length", false),
            "the file is UTF-16, not UTF-8",
            "iconv -f UTF-16LE ",
        ),
        (
            "a.txt.gz",
            gzip("\0t\0e\0x\0t\0s"),
            "the file is UTF-16, not UTF-8",
            "iconv -f UTF-16BE ",
        ),
        (
            "b.jsonl",
            b"\xff\xfe\0\0{\0\0\0".to_vec(),
            "the file is UTF-32, not UTF-8",
            "iconv -f UTF-32 ",
        ),
        (
            "c.jsonl",
            b"\xfd7zXZ\0\0\x04".to_vec(),
            "the file is compressed with xz",
            "unpack it first",
        ),
        (
            "d.jsonl",
            b"BZh91AY&SY".to_vec(),
            "the file is compressed with bzip2",
            "unpack it first",
        ),
        (
            "e.jsonl.gz",
            b"PK\x03\x04\x14\0".to_vec(),
            "the file is a zip archive",
            "unpack it first",
        ),
        (
            "f.txt",
            b"\x04\x22\x4d\x18\x60".to_vec(),
            "the file is compressed with lz4",
            "unpack it first",
        ),
        (
            "g.json",
            b"PAR1\x15\0".to_vec(),
            "the file is a parquet file",
            "name it .parquet",
        ),
        ("h.txt", tar, "the file is a tar archive", "unpack it first"),
        (
            "i.jsonl.zst",
            long,
            "a zstd window of 2048 MiB, above the limit of 128 MiB",
            "compress it again",
        ),
        (
            "j.jsonl.zst",
            dictionary,
            "compressed with a zstd dictionary",
            "decompress it with its dictionary",
        ),
        (
            "k.jsonl.gz",
            b"\x01\x02\x03\x04\x05".to_vec(),
            "not compressed as its name says",
            "fetch the file again",
        ),
        (
            "l.jsonl",
            pointer.clone(),
            "a Git LFS pointer, not the file itself",
            "`git lfs pull`",
        ),
        (
            "m.txt",
            pointer.clone(),
            "a Git LFS pointer, not the file itself",
            "`git lfs pull`",
        ),
        (
            "n.json.gz",
            pointer.clone(),
            "a Git LFS pointer, not the file itself",
            "`git lfs pull`",
        ),
        (
            "o.parquet",
            pointer,
            "a Git LFS pointer, not the file itself",
            "`git lfs pull`",
        ),
    ];
    for (name, bytes, cause, hint) in cases {
        let path = place.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = read(path.to_str().unwrap(), ReadOptions::default()).0.unwrap_err();
        assert!(
            error.to_string().contains(name) && error.to_string().ends_with(cause),
            "{error}"
        );
        assert!(error.hint().unwrap().contains(hint), "{name}: {:?}", error.hint());
    }
}

#[test]
fn hints_follow_the_fault_that_was_found() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.jsonl");
    for (text, hint) in [
        ("{\"text\": 3}", "name the field that holds the text with --field; "),
        ("{\"text\": null}", "name the field that holds the text with --field; "),
        ("{}", "name the field that holds the text with --field; "),
        ("{\"a\": {\"b\": 1}}", "name the text field with --field; seen: `a.b`"),
        ("[", "fetch the file again, or leave it out"),
        ("nothing", "a record is one JSON object with the text in a field"),
        (
            " \n",
            "look whether the file was written or fetched whole, or leave it out",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let error = read(path.to_str().unwrap(), ReadOptions::default()).0.unwrap_err();
        assert!(
            error.hint().unwrap().starts_with(hint),
            "{text}: {error}: {:?}",
            error.hint()
        );
    }
    fs::write(&path, format!("{{\"text\": \"{}\"}}", "a".repeat(64 << 20))).unwrap();
    let error = read(path.to_str().unwrap(), ReadOptions::default()).0.unwrap_err();
    assert!(error.to_string().ends_with("longer than 64 MiB"), "{error}");
    assert!(error.hint().unwrap().starts_with("cut the text into documents"));
}

#[test]
fn a_text_file_is_cut_into_documents_at_its_separator() {
    let place = tempfile::tempdir().unwrap();
    let cases: [(&str, &str, &[&str]); 12] = [
        ("<|e|>", "one\n<|e|>\ntwo\n<|e|>\nthree\n", &["one", "two", "three\n"]),
        ("<|e|>", "one<|e|>two", &["one", "two"]),
        ("<|e|>", "one\r\n<|e|>\r\ntwo\r\n<|e|>\r\n", &["one", "two"]),
        ("<|e|>", "<|e|>one<|e|><|e|>\n<|e|>two", &["one", "two"]),
        ("<|e|>", "\u{feff}one\n\n<|e|>\n\ntwo", &["one\n", "\ntwo"]),
        ("<|e|>", "one <|e two", &["one <|e two"]),
        (
            "\n\n",
            "one\nline\n\ntwo\n\n\n\n\nthree\n",
            &["one\nline", "two", "three\n"],
        ),
        ("\n\n", "one\r\nline\r\n\r\ntwo\r\n", &["one\r\nline", "two\r\n"]),
        ("\n", "one\ntwo\n\nthree", &["one", "two", "three"]),
        ("ß", "grüßen", &["grü", "en"]),
        ("aa", "aaaab", &["b"]),
        ("x", "x", &[]),
    ];
    for (separator, text, documents) in cases {
        let path = place.path().join("a.txt");
        fs::write(&path, text).unwrap();
        let mut stream = Documents::open(&[path.to_str().unwrap().into()], separated_by(separator)).unwrap();
        let found: Vec<_> = stream.by_ref().map_while(Result::ok).collect();
        let texts: Vec<_> = found.iter().map(|document| document.text.as_str()).collect();
        assert_eq!(texts, documents, "{text:?} at {separator:?}");
        assert!(found.iter().all(|document| document.opens && document.closes));
        if let Some(record) = stream.sources().first() {
            assert_eq!(record.documents, documents.len() as u64);
            assert_eq!(
                record.separators > 0,
                documents.len() > 1 || separator == "aa",
                "{text:?}"
            );
        }
    }
    let path = place.path().join("a.txt.gz");
    fs::write(&path, gzip("one\n<|e|>\ntwo")).unwrap();
    assert_eq!(
        read_all(std::slice::from_ref(&path), separated_by("<|e|>")).0,
        ["one", "two"]
    );
    assert_eq!(texts(&path), ["one\n<|e|>\ntwo"]);
}

#[test]
fn separators_are_found_wherever_a_long_file_is_cut_into_pieces() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.txt");
    for distance in [
        PIECE_BYTES - 9,
        PIECE_BYTES - 3,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        PIECE_BYTES + 6,
    ] {
        for character in ["a\n", "ß", " word"] {
            let count = distance / character.len();
            let first = character.repeat(count) + &"x".repeat(distance - count * character.len());
            let rest = character.repeat(2 * count + 1) + "end";
            let text = format!("{first}\n<|endoftext|>\r\nshort<|endoftext|>{rest}");
            fs::write(&path, &text).unwrap();
            let mut stream = Documents::open(&[path.to_str().unwrap().into()], separated_by("<|endoftext|>")).unwrap();
            let mut documents: Vec<String> = Vec::new();
            for piece in stream.by_ref().map(Result::unwrap) {
                assert!(piece.text.len() <= PIECE_BYTES + 32);
                if piece.opens {
                    documents.push(String::new());
                }
                documents.last_mut().unwrap().push_str(&piece.text);
            }
            assert!(documents == [first, "short".into(), rest], "{distance} {character:?}");
            assert_eq!((stream.sources()[0].documents, stream.sources()[0].separators), (3, 2));
        }
    }
    // Without a separator in it, a file comes in the same pieces whether one is looked for or not.
    fs::write(&path, (0..400_000).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
    assert_eq!(
        read_all(std::slice::from_ref(&path), separated_by("<|endoftext|>")).0,
        read_all(&[path], ReadOptions::default()).0
    );
}
