//! Damaged directories, and what is read from whole ones.

use std::fs;
use std::path::Path;

use super::*;
use crate::error::DataError;
use crate::fixture::prepared;

/// What opening and verifying say after `damage` was done to a fresh directory.
fn after(damage: impl Fn(&Path)) -> (Option<DataError>, Option<DataError>) {
    let place = tempfile::tempdir().unwrap();
    let directory = prepared(place.path(), &["abc", "defgh", "z"], &["xy"]);
    damage(&directory);
    (PreparedData::open(&directory).err(), verify(&directory).err())
}

fn rewrite(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn edit_manifest(directory: &Path, change: impl Fn(&mut serde_json::Value)) {
    let path = directory.join(MANIFEST);
    let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

#[test]
fn each_damage_is_its_own_error_and_names_the_file() {
    type Damage = (&'static str, &'static str, fn(&Path));
    let damages: [Damage; 14] = [
        ("train-00000.tokens", "truncated", |d| {
            rewrite(&d.join("train-00000.tokens"), |b| b.truncate(20))
        }),
        ("train-00000.tokens", "truncated", |d| {
            rewrite(&d.join("train-00000.tokens"), Vec::clear)
        }),
        ("train-00000.tokens", "too long", |d| {
            rewrite(&d.join("train-00000.tokens"), |b| b.push(0))
        }),
        ("train-00000.tokens", "not a shard", |d| {
            rewrite(&d.join("train-00000.tokens"), |b| b[0] ^= 1)
        }),
        ("train-00000.tokens", "format version 9", |d| {
            rewrite(&d.join("train-00000.tokens"), |b| b[8] = 9)
        }),
        ("train-00000.tokens", "entries of 4", |d| {
            rewrite(&d.join("train-00000.tokens"), |b| b[12] = 4)
        }),
        ("train-00000.documents", "last document ends", |d| {
            rewrite(&d.join("train-00000.documents"), |b| {
                *b.iter_mut().nth_back(7).unwrap() += 1
            });
        }),
        ("validation-00000.tokens", "missing", |d| {
            fs::remove_file(d.join("validation-00000.tokens")).unwrap()
        }),
        ("tokenizer.json", "missing", |d| {
            fs::remove_file(d.join(TOKENIZER)).unwrap()
        }),
        ("tokenizer.json", "not the tokenizer", |d| {
            rewrite(&d.join(TOKENIZER), |b| b.push(b' '))
        }),
        ("prepared", "holds no manifest.json", |d| {
            fs::remove_file(d.join(MANIFEST)).unwrap()
        }),
        ("manifest.json", "not prepared data: ", |d| {
            rewrite(&d.join(MANIFEST), |b| b.truncate(99))
        }),
        ("manifest.json", "its format is `other`", |d| {
            edit_manifest(d, |m| m["format"] = "other".into())
        }),
        ("manifest.json", "format version 7", |d| {
            edit_manifest(d, |m| m["version"] = 7.into())
        }),
    ];
    for (file, cause, damage) in damages {
        let (opened, verified) = after(damage);
        let opened = opened.unwrap_or_else(|| panic!("{file}: {cause}: opened")).to_string();
        assert!(
            opened.contains(file) && opened.contains(cause),
            "{file}: {cause}: {opened}"
        );
        assert_eq!(opened.lines().count(), 1);
        assert_eq!(verified.unwrap().to_string(), opened);
    }
}

#[test]
fn what_opening_cannot_see_verifying_or_reading_does() {
    let flip = |d: &Path| rewrite(&d.join("train-00000.tokens"), |bytes| bytes[16] ^= 1);
    let (opened, verified) = after(flip);
    assert!(opened.is_none() && verified.unwrap().to_string().contains("sha256"));
    let (opened, verified) = after(|d| {
        edit_manifest(d, |m| {
            m["largest_id"] = 20.into();
            m["train"]["largest_id"] = 20.into();
            m["validation"]["largest_id"] = 20.into();
        })
    });
    assert!(opened.is_none() && verified.unwrap().to_string().contains("28 and"));

    let place = tempfile::tempdir().unwrap();
    let directory = prepared(place.path(), &["abc", "d"], &["x"]);
    rewrite(&directory.join("train-00000.tokens"), |bytes| bytes[19] = 0x7f);
    let error = PreparedData::open(&directory)
        .unwrap()
        .train()
        .document(0)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("train-00000.tokens") && error.contains("at token 1 is above"),
        "{error}"
    );
    let ends = directory.join("train-00000.documents");
    rewrite(&ends, |bytes| bytes[16] = 200);
    let data = PreparedData::open(&directory).unwrap();
    assert!(
        data.train()
            .document_span(0)
            .unwrap_err()
            .to_string()
            .contains("train-00000.documents")
    );
    assert!(data.train().document_span(1).is_err());
}

#[test]
fn no_single_changed_byte_makes_reading_panic() {
    let place = tempfile::tempdir().unwrap();
    let directory = prepared(place.path(), &["abc", "d"], &["x"]);
    for name in ["train-00000.tokens", "train-00000.documents", MANIFEST] {
        let path = directory.join(name);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x11;
            fs::write(&path, bytes).unwrap();
            let Ok(data) = PreparedData::open(&directory) else {
                continue;
            };
            for index in 0..data.train().documents() {
                drop(data.train().document(index));
            }
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(verify(&directory).is_ok());
}

#[test]
fn ranges_outside_the_split_are_errors() {
    let place = tempfile::tempdir().unwrap();
    let data = PreparedData::open(&prepared(place.path(), &["abc", "d"], &["x"])).unwrap();
    let train = data.train();
    assert_eq!((train.tokens(), train.documents()), (6, 2));
    assert!(train.range(6, &mut []).is_ok());
    assert!(train.range(5, &mut [0; 2]).is_err());
    assert!(train.range(usize::MAX, &mut [0; 2]).is_err());
    assert!(train.document(2).is_err());
}

#[test]
fn a_summary_counts_lengths_and_decodes_samples() {
    let place = tempfile::tempdir().unwrap();
    let directory = prepared(place.path(), &["abc", "d", "efghijkl"], &["x"]);
    let summary = summarise(&directory, 2).unwrap();
    assert_eq!(summary.lengths, [(2, 1), (4, 1), (8, 1)]);
    assert_eq!(summary.samples, ["abc</s>", "d</s>"]);
    assert_eq!(summary.sample_ids, [None, None]);
    let shown = summary.to_string();
    assert!(!shown.contains("its ids"), "{shown}");
    assert!(
        shown.contains("train                    15            3        1        0.800"),
        "{shown}"
    );
    assert!(shown.contains("sample 1: \"abc</s>\""), "{shown}");
}

/// The letters of a special token that a text spells out look as the token does.
#[test]
fn a_summary_shows_the_ids_where_the_text_would_mislead() {
    let place = tempfile::tempdir().unwrap();
    let directory = prepared(place.path(), &["abc", "ab</s>c"], &["x"]);
    let summary = summarise(&directory, 2).unwrap();
    assert_eq!(summary.sample_ids[0], None);
    let ids = summary.sample_ids[1].clone().unwrap();
    assert_eq!((ids.len(), ids[ids.len() - 1]), (8, 1));
    let shown = summary.to_string();
    assert_eq!(shown.matches("its ids: [").count(), 1, "{shown}");
}
