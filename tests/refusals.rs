//! What the command line refuses: one cause, one hint, a code that is not 0, nothing half-written.

mod place;

use std::fs;

use gpas_train::backend::BackendName;
use place::Place;

#[test]
fn a_bad_recipe_is_refused_by_key_and_value() {
    let place = Place::prepared();
    place.write("typo.toml", "[train]\nstepz = 3\n");
    place.write("syntax.toml", "[train]\nsteps = 3\nlr\n");
    place.write("type.toml", "[train]\nsteps = \"many\"\n");
    let every_key = "`gpas config show` prints every key with a valid value";
    for (arguments, error, hint) in [
        (
            "typo.toml",
            "unknown key `train.stepz` in typo.toml",
            "did you mean `train.steps`?",
        ),
        (
            "tiny.toml --set model.scheem=pre",
            "unknown key `model.scheem` in --set",
            "did you mean `model.scheme`?",
        ),
        ("syntax.toml", "syntax.toml, line 3: …", "a recipe is TOML: …"),
        (
            "type.toml",
            "`train.steps` in type.toml must be a whole number of at least 1, not \"many\"",
            every_key,
        ),
        (
            "tiny.toml --set train.lr=fast",
            "`train.lr` in --set must be a number above 0, not \"fast\"",
            every_key,
        ),
        (
            "tiny.toml --set train.steps=0",
            "`train.steps` in --set must be a whole number of at least 1, not 0",
            every_key,
        ),
        (
            "tiny.toml --set train.warmup=9",
            "`train.warmup` = 9 is more than `train.steps` = 3",
            "a fraction follows the number of steps: …",
        ),
        (
            "tiny.toml --set train.lr",
            "`--set train.lr` is not of the form key=value",
            "for example `--set train.lr=5e-4`",
        ),
        (
            "tiny.toml --set model.heads=3",
            "model.heads = 3 does not divide model.hidden = 16",
            "heads that fit 16: 1, 2, 4, 8",
        ),
        (
            "tiny.toml --set model.post_num=3",
            "model.post_num = 3 is more than model.layers = 2",
            "leave it out …",
        ),
        (
            "tiny.toml --scheme pre_gpass",
            "unknown scheme `pre_gpass`",
            "did you mean `pre_gpas`? One of: pre, …",
        ),
        (
            "--preset nan --data data",
            "unknown preset `nan`",
            "did you mean `nano`? One of: nano, 9m, …",
        ),
        (
            "tinny.toml",
            "no recipe `tinny.toml`: neither a file nor the name of a shipped recipe",
            "…one of: nano, 9m, …",
        ),
    ] {
        place.refuses(&format!("train {arguments} --plain -o run"), error, hint);
    }
}

#[test]
fn a_backend_that_is_not_there_is_refused_with_the_feature_that_brings_it() {
    let place = Place::prepared();
    for backend in BackendName::ALL.iter().filter(|backend| !backend.is_compiled_in()) {
        place.refuses(
            &format!("train tiny.toml --backend {backend} -o run"),
            &format!("backend `{backend}` is not part of this program"),
            &format!("build with `--features {backend}`"),
        );
    }
    if cfg!(feature = "flex") {
        place.refuses(
            "train tiny.toml --backend flex:1 -o run",
            "backend `flex` finds no device 1 (it has 1)",
            "`--backend auto` takes what is present",
        );
    }
}

#[test]
fn an_unknown_backend_is_refused_with_the_known_ones() {
    let place = Place::prepared();
    place.refuses(
        "train tiny.toml --backend cudda -o run",
        "unknown backend `cudda`",
        "one of auto, cuda, rocm, metal, vulkan, wgpu, flex, ndarray",
    );
}

#[test]
fn a_bad_source_is_refused_by_file_and_line() {
    let place = Place::prepared();
    let formats = "formats: .jsonl, .ndjson, .json and .txt, each also as .gz or .zst, and .parquet";
    let shape = "a record is one JSON object with the text in a field, on a line of its own or in an array";
    let encoding = "text is UTF-8; convert it first: iconv -f ENCODING -t UTF-8 FILE > NEW";
    let whole = "look whether the file was written or fetched whole, or leave it out";
    fs::create_dir(place.path("nothing")).unwrap();
    place.write("empty.jsonl", "");
    place.write("blank.jsonl", "\n\n");
    place.write("bad.jsonl", "not json\n[]\n");
    place.write("field.jsonl", "{\"body\": \"hi there\", \"url\": \"u\"}\n");
    place.write("latin.txt", b"caf\xe9 au lait");
    place.write("latin.jsonl", b"{\"text\": \"caf\xe9\"}\n");
    place.write("table.csv", "a,b\n");
    // A gzip header and nothing after it.
    place.write("cut.jsonl.gz", [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
    for (source, error, hint) in [
        (
            "missing.jsonl",
            "source `missing.jsonl` does not exist",
            "a source is a file, a directory, or a quoted glob such as …",
        ),
        ("empty.jsonl", "source `empty.jsonl` holds no document", whole),
        ("blank.jsonl", "source `blank.jsonl` holds no document", whole),
        (
            "nothing",
            "source `nothing` holds no file of a format that is read",
            formats,
        ),
        (
            "missing*.jsonl",
            "source `missing*.jsonl` matches no file of a format that is read",
            formats,
        ),
        ("table.csv", "table.csv: not a format that is read", formats),
        (
            "bad.jsonl",
            "source `bad.jsonl` holds no good record; of 2 bad the first is bad.jsonl:1: malformed json…",
            shape,
        ),
        (
            "field.jsonl",
            "source `field.jsonl` holds no good record; of 1 bad the first is field.jsonl:1: field `text` is missing",
            "name the text field with --field; seen: `body`, `url`",
        ),
        (
            "latin.txt",
            "source `latin.txt` holds no good record; of 1 bad the first is latin.txt:1: invalid UTF-8 at byte 3",
            encoding,
        ),
        (
            "latin.jsonl",
            "source `latin.jsonl` holds no good record; of 1 bad the first is latin.jsonl:1: invalid UTF-8 at byte 13",
            encoding,
        ),
        (
            // Found when half of the result is written.
            "text.jsonl cut.jsonl.gz",
            "cut.jsonl.gz: damaged after record 0: …",
            "fetch the file again, or leave it out",
        ),
    ] {
        let prepare = "--tokenizer tokenizer.json --validation 0.2 -o new";
        place.refuses(&format!("data prepare {source} {prepare}"), error, hint);
        place.refuses(
            &format!("tokenizer train {source} --vocab 300 -o new.json"),
            error,
            hint,
        );
    }
}

#[test]
fn a_bad_option_of_prepare_is_refused() {
    let place = Place::prepared();
    for (options, error, hint) in [
        (
            "--tokenizer missing.json --validation 0.2",
            "tokenizer missing.json: no such file",
            "a tokenizer is a Hugging Face tokenizer.json; …",
        ),
        (
            "--tokenizer text.jsonl --validation 0.2",
            "tokenizer text.jsonl: …",
            "a tokenizer is a Hugging Face tokenizer.json; …",
        ),
        (
            "--tokenizer tokenizer.json --validation 2",
            "validation fraction 2 is not between 0 and 1",
            "for example --validation 0.01, or name a source",
        ),
        (
            "--tokenizer tokenizer.json --validation 0.00001",
            "no document is left for the validation split",
            "give more text or another validation fraction",
        ),
        (
            "--tokenizer tokenizer.json --validation text.jsonl",
            "source `text.jsonl` holds only validation files",
            "name other text to train on, or give --validation a fraction",
        ),
        (
            "--tokenizer tokenizer.json --validation 0.2 --eos <none>",
            "end-of-document token `<none>` is not in the tokenizer's vocabulary",
            "--eos takes a token as the tokenizer spells it, …",
        ),
    ] {
        place.refuses(&format!("data prepare text.jsonl {options} -o new"), error, hint);
    }
    place.refuses(
        "tokenizer train text.jsonl --vocab 256 -o new.json",
        "a byte-level vocabulary of 256 is too small: 256 bytes and the end-of-document token need 257",
        "ask for --vocab 257 or more",
    );
}

#[test]
fn an_output_that_exists_is_left_as_it_is() {
    let place = Place::prepared();
    place.does("train tiny.toml -o run");
    place.refuses(
        "train tiny.toml -o run",
        "run already exists",
        "name another directory with `-o`",
    );
    let another = "nothing is overwritten: name another path, or remove it first";
    place.refuses(
        "data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 -o data",
        "data already exists",
        another,
    );
    place.refuses(
        "tokenizer train text.jsonl --vocab 300 -o tokenizer.json",
        "tokenizer.json already exists",
        another,
    );
}

#[test]
fn data_that_does_not_fit_the_model_or_the_batch_is_refused() {
    let place = Place::prepared();
    for (options, error, hint) in [
        (
            "--set model.vocab=10",
            "the data holds id 299, and model.vocab = 10",
            "`--set model.vocab=300` is enough; without it, the tokenizer decides",
        ),
        (
            "--set train.batch=5000",
            "the data is shorter than one batch: … windows of 16 tokens, a batch needs 5000",
            "give more text, a smaller batch, or a smaller seq_len",
        ),
        (
            "--set data.seq_len=4000",
            "the data gives no window of 4000 tokens to evaluate on",
            "give more validation text, or a smaller seq_len",
        ),
        (
            "--data missing",
            "{place}/missing: not prepared data: no such directory",
            "`gpas data prepare` makes a directory of prepared data",
        ),
        (
            "--data text.jsonl",
            "{place}/text.jsonl: not prepared data: it holds no manifest.json",
            "`gpas data prepare` makes a directory of prepared data",
        ),
    ] {
        place.refuses(&format!("train tiny.toml {options} -o run"), error, hint);
    }
}

#[test]
fn a_tokenizer_that_is_not_the_datas_is_refused() {
    let place = Place::prepared();
    place.does("train tiny.toml -o run");
    place.does("tokenizer train text.jsonl --vocab 280 -o other.json");
    place.does("data prepare text.jsonl --tokenizer other.json --validation 0.2 -o other");
    place.refuses(
        "eval run --data other",
        "the data in other was prepared with another tokenizer than the run's",
        "`--data DIR` names data that was prepared with `--tokenizer run/tokenizer.json`",
    );
    place.damaged("tokenizer.json", Some(place.read("other.json").as_bytes()));
    let error =
        "…damaged/tokenizer.json: not the tokenizer that the data was prepared with (sha256 …, the manifest says …)";
    let hint = "use the tokenizer.json that was written beside the data";
    for command in [
        "train tiny.toml --data damaged -o new",
        "eval run --data damaged",
        "data verify damaged",
        "data inspect damaged",
    ] {
        place.refuses(command, error, hint);
    }
}

#[test]
fn damaged_or_foreign_prepared_data_is_refused_by_file() {
    let place = Place::prepared();
    place.does("tokenizer train text.jsonl --vocab 280 -o other.json");
    place.does("data prepare text.jsonl --tokenizer other.json --validation 0.2 -o other");
    let prepare = "`gpas data prepare` makes a directory of prepared data";
    let again = "copy the directory again, or prepare the data again; `gpas data verify DIR` checks all of it";
    let bytes = |path: &str| fs::read(place.path(path)).unwrap();
    let cut = |file: &str| {
        let mut bytes = bytes(&format!("data/{file}"));
        bytes.truncate(bytes.len() - 5);
        Some(bytes)
    };
    let zeros = |file: &str| Some(vec![0; bytes(&format!("data/{file}")).len()]);
    let manifest = |from: &str, to: &str| {
        let text = place.read("data/manifest.json");
        assert!(text.contains(from));
        Some(text.replace(from, to).into_bytes())
    };
    let (tokens, documents) = ("train-00000.tokens", "validation-00000.documents");
    let cases = [
        (
            "manifest.json",
            cut("manifest.json"),
            "/manifest.json: not prepared data: EOF …",
            prepare,
        ),
        (
            "manifest.json",
            None,
            ": not prepared data: it holds no manifest.json",
            prepare,
        ),
        (
            "manifest.json",
            manifest("gpas-tokens", "other-tokens"),
            "/manifest.json: not prepared data: its format is `other-tokens`, not `gpas-tokens`",
            prepare,
        ),
        (
            "manifest.json",
            manifest("\"version\": 1", "\"version\": 9"),
            "/manifest.json: format version 9, this program reads 1",
            "prepare the data again with this version",
        ),
        (
            "tokenizer.json",
            None,
            "/tokenizer.json: listed in the manifest, but missing",
            again,
        ),
        (
            tokens,
            cut(tokens),
            "/train-00000.tokens: truncated: … bytes, the manifest says …",
            again,
        ),
        (
            tokens,
            None,
            "/train-00000.tokens: listed in the manifest, but missing",
            again,
        ),
        (
            tokens,
            zeros(tokens),
            "/train-00000.tokens: not a shard of prepared data",
            again,
        ),
        (
            tokens,
            Some(bytes("other/train-00000.tokens")),
            "/train-00000.tokens: too long: … bytes, the manifest says …",
            again,
        ),
        (
            documents,
            cut(documents),
            "/validation-00000.documents: truncated: … bytes, the manifest says …",
            again,
        ),
        (
            documents,
            Some(bytes("data/train-00000.documents")),
            "/validation-00000.documents: too long: …",
            again,
        ),
    ];
    for (file, bytes, error, hint) in cases {
        place.damaged(file, bytes.as_deref());
        place.refuses(
            "train tiny.toml --data damaged -o run",
            &format!("{{place}}/damaged{error}"),
            hint,
        );
        place.refuses("data verify damaged", &format!("damaged{error}"), hint);
    }

    // A byte that only reading everything finds.
    let mut changed = bytes("data/train-00000.tokens");
    changed[20] ^= 1;
    place.damaged(tokens, Some(&changed));
    place.refuses(
        "data verify damaged",
        "damaged/train-00000.tokens: its bytes are not those that were prepared (sha256)",
        again,
    );
}

#[test]
fn what_is_not_a_run_is_not_evaluated() {
    let place = Place::prepared();
    place.refuses(
        "eval data",
        "data is not a run directory: it has no recipe.toml",
        "a run directory is what `gpas train -o DIR` makes",
    );
    place.refuses(
        "inspect data",
        "data is not a run directory: it has no recipe.toml",
        "a run directory is what `gpas train -o DIR` makes",
    );
}
