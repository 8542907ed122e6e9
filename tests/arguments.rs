//! Arguments of every command, as clap lists them: paths that are not UTF-8, outputs that exist, numbers and names however they are spelled.

mod place;

use std::any::TypeId;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use place::Place;
use serde_json::Value;

/// An argument of a command: the command's words, and the argument's name.
type Argument = (String, String);

/// Every argument of every command that has its values from `accepts`.
fn arguments(accepts: impl Fn(&clap::Arg) -> bool) -> BTreeSet<Argument> {
    fn walk(
        command: &clap::Command,
        words: &str,
        accepts: &dyn Fn(&clap::Arg) -> bool,
        found: &mut BTreeSet<Argument>,
    ) {
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            walk(inner, format!("{words} {}", inner.get_name()).trim(), accepts, found);
        }
        if !command.has_subcommands() {
            let own = command.get_arguments().filter(|argument| accepts(argument));
            found.extend(own.map(|argument| (words.to_string(), argument.get_id().to_string())));
        }
    }
    let mut command = gpas::cli::command();
    command.build();
    let mut found = BTreeSet::new();
    walk(&command, "", &accepts, &mut found);
    found
}

/// Whether an argument is a path, or may be one.
fn is_path(argument: &clap::Arg) -> bool {
    let parser = argument.get_value_parser().type_id();
    [TypeId::of::<PathBuf>(), TypeId::of::<OsString>()]
        .iter()
        .any(|path| parser == *path)
}

fn owned(rows: &[(&str, &str)]) -> BTreeSet<Argument> {
    let owned = |(command, argument): &(&str, &str)| (command.to_string(), argument.to_string());
    rows.iter().map(owned).collect()
}

fn runs(place: &Place, arguments: impl IntoIterator<Item = OsString>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpas"));
    command.args(arguments).current_dir(place.root()).stdin(Stdio::null());
    command.output().expect("the binary starts")
}

/// A place with a trained run, a model for `import`, and a comparison.
fn place_with_everything() -> Place {
    let place = Place::prepared();
    place.does("train tiny.toml --scheme pre -o run");
    place.does("export run exported");
    place.does("compare tiny.toml --schemes pre --seeds 1 -o both");
    place.write("prompts.txt", "fox\n");
    place.write(
        "pairs.jsonl",
        "{\"sentence_good\": \"the fox\", \"sentence_bad\": \"fox the\"}\n",
    );
    place
}

/// What becomes of a command whose path is not UTF-8.
#[cfg(target_os = "linux")]
enum Outcome {
    Works,
    Refused(&'static str),
}

/// For every path of every command: the command, the argument, a line with `{}` in its place, what a copy of is put there, and the outcome.
#[cfg(target_os = "linux")]
fn path_rows() -> Vec<(&'static str, &'static str, &'static str, Option<&'static str>, Outcome)> {
    use Outcome::{Refused, Works};
    // A recipe names the data, and is text.
    let text = || Refused("is not UTF-8, and a recipe that names it would have to be");
    vec![
        ("train", "recipe", "train {} --plain -o new", Some("tiny.toml"), Works),
        ("train", "recipe", "train {} --resume --plain", Some("run"), Works),
        (
            "train",
            "data",
            "train tiny.toml --data {} -o new",
            Some("data"),
            text(),
        ),
        ("train", "out", "train tiny.toml --plain -o {}", None, Works),
        (
            "train",
            "from",
            "train --from {} --set train.steps=5 --plain -o new",
            Some("run"),
            Works,
        ),
        (
            "compare",
            "recipe",
            "compare {} --schemes pre --seeds 1 -o new",
            Some("tiny.toml"),
            Works,
        ),
        (
            "compare",
            "data",
            "compare tiny.toml --schemes pre --data {} -o new",
            Some("data"),
            text(),
        ),
        (
            "compare",
            "out",
            "compare tiny.toml --schemes pre --seeds 1 -o {}",
            None,
            Works,
        ),
        ("eval", "run", "eval {} --json", Some("run"), Works),
        ("eval", "data", "eval run --data {}", Some("data"), Works),
        ("eval", "task", "eval run --task {}", Some("pairs.jsonl"), Works),
        ("inspect", "run", "inspect {} --json", Some("run"), Works),
        ("inspect", "data", "inspect run --data {}", Some("data"), Works),
        ("export", "run", "export {} new --json", Some("run"), Works),
        ("export", "out", "export run {} --json", None, Works),
        (
            "generate",
            "run",
            "generate {} --prompt fox --max-tokens 2 --json",
            Some("run"),
            Works,
        ),
        (
            "generate",
            "prompts",
            "generate run --prompts {} --max-tokens 2",
            Some("prompts.txt"),
            Works,
        ),
        ("import", "directory", "import {} new", Some("exported"), Works),
        ("import", "run", "import exported {}", None, Works),
        ("import", "data", "import exported new --data {}", Some("data"), text()),
        (
            "import",
            "tokenizer",
            "import exported new --tokenizer {}",
            Some("tokenizer.json"),
            Works,
        ),
        (
            "import",
            "recipe",
            "import exported new --recipe {}",
            Some("tiny.toml"),
            Works,
        ),
        ("logits", "run", "logits {} --ids 1,2 -o new", Some("run"), Works),
        ("logits", "out", "logits run --ids 1,2 -o {}", None, Works),
        ("report", "directory", "report {}", Some("run"), Works),
        ("report", "directory", "report {}", Some("both"), Works),
        // The port belongs to somebody else, so that it ends.
        ("serve", "run", "serve {} --port PORT", Some("run"), Refused("in use")),
        ("bench", "data", "bench --data {}", Some("data"), text()),
        (
            "config show",
            "recipe",
            "config show {} --json",
            Some("tiny.toml"),
            Works,
        ),
        ("config show", "data", "config show --data {}", Some("data"), text()),
        (
            "data prepare",
            "sources",
            "data prepare {} --tokenizer tokenizer.json --validation 0.2 -o new",
            Some("text.jsonl"),
            Works,
        ),
        (
            "data prepare",
            "tokenizer",
            "data prepare text.jsonl --tokenizer {} --validation 0.2 -o new",
            Some("tokenizer.json"),
            Works,
        ),
        (
            "data prepare",
            "validation",
            "data prepare text.jsonl --tokenizer tokenizer.json --validation {} -o new",
            Some("text.jsonl"),
            Works,
        ),
        (
            "data prepare",
            "out",
            "data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 -o {}",
            None,
            Works,
        ),
        (
            "data inspect",
            "directory",
            "data inspect {} --json",
            Some("data"),
            Works,
        ),
        ("data verify", "directory", "data verify {}", Some("data"), Works),
        (
            "tokenizer train",
            "sources",
            "tokenizer train {} --vocab 300 -o new",
            Some("text.jsonl"),
            Works,
        ),
        (
            "tokenizer train",
            "out",
            "tokenizer train text.jsonl --vocab 300 -o {}",
            None,
            Works,
        ),
    ]
}

/// A name of which one byte is no UTF-8, with the ending of another, since endings tell formats.
#[cfg(target_os = "linux")]
fn not_text(like: Option<&str>) -> OsString {
    use std::os::unix::ffi::OsStringExt;
    let ending = like
        .and_then(|name| name.split_once('.'))
        .map_or(String::new(), |(_, ending)| format!(".{ending}"));
    OsString::from_vec([b"na\xefve", ending.as_bytes()].concat())
}

#[cfg(target_os = "linux")]
#[test]
fn every_path_may_be_no_utf_8() {
    let rows = path_rows();
    let covered: BTreeSet<Argument> = owned(&rows.iter().map(|row| (row.0, row.1)).collect::<Vec<_>>());
    let known = arguments(is_path);
    let missing: Vec<_> = known.difference(&covered).collect();
    let gone: Vec<_> = covered.difference(&known).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "`path_rows` lacks {missing:?} and has no use for {gone:?}"
    );

    let place = place_with_everything();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let number = port.local_addr().unwrap().port().to_string();
    for (_, _, line, copied, outcome) in rows {
        let name = not_text(copied);
        let path = place.root().join(&name);
        if let Some(copied) = copied {
            let copy = Command::new("cp").arg("-r").arg(place.path(copied)).arg(&path).status();
            assert!(copy.unwrap().success());
        }
        let words = line.split(' ').map(|word| match word {
            "{}" => name.clone(),
            "PORT" => number.clone().into(),
            word => word.into(),
        });
        let output = runs(&place, words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{line}: {said}");
        match outcome {
            Outcome::Works => {
                assert!(output.status.success(), "{line}: {said}");
                if line.contains("--json") {
                    assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok(), "{line}");
                }
            }
            Outcome::Refused(cause) => {
                assert_eq!(output.status.code(), Some(1), "{line}: {said}");
                assert!(said.contains(cause), "{line}: {said}");
            }
        }
        for made in [path, place.path("new")] {
            match made.is_dir() {
                true => fs::remove_dir_all(&made).unwrap(),
                false => drop(fs::remove_file(&made)),
            }
        }
    }
}

/// What was run with such a path reads back.
#[cfg(target_os = "linux")]
#[test]
fn a_run_under_such_a_name_is_whole() {
    let place = Place::prepared();
    let name = not_text(None);
    let words = |line: &str| -> Vec<OsString> {
        let word = |word: &str| if word == "{}" { name.clone() } else { word.into() };
        line.split(' ').map(word).collect()
    };
    for line in [
        "train tiny.toml --plain -o {}",
        "train {} --resume --set eval.tokens=50 --plain",
        "eval {}",
    ] {
        let output = runs(&place, words(line));
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let info = fs::read(place.root().join(&name).join("run.json")).unwrap();
    let info: Value = serde_json::from_slice(&info).unwrap();
    assert_eq!(info["command"][5], "na\u{fffd}ve", "{info}");
}

/// Where no path is wanted, bytes that are no UTF-8 end in an error.
#[cfg(target_os = "linux")]
#[test]
fn no_argument_panics() {
    let place = Place::new();
    for (command, argument) in arguments(|argument| argument.get_action().takes_values() && !is_path(argument)) {
        let all = gpas::cli::command();
        let leaf = command
            .split(' ')
            .fold(all, |above, word| above.find_subcommand(word).unwrap().clone());
        // A global option is not an argument of the command itself.
        let long = leaf
            .get_arguments()
            .find(|known| known.get_id() == argument.as_str())
            .and_then(|known| known.get_long());
        let long = long.map(|name| OsString::from(format!("--{name}")));
        let words = command.split(' ').map(OsString::from);
        let output = runs(&place, words.chain(long).chain([not_text(None)]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code().is_some_and(|code| code != 101 && code != 0),
            "{command} {argument}: {said}"
        );
        assert!(!said.contains("panicked"), "{command} {argument}: {said}");
    }
}

/// For every output of every command: the command, the argument, and a line with `{}` in its place.
const OUTPUTS: [(&str, &str, &str); 7] = [
    ("train", "out", "train tiny.toml --plain -o {}"),
    ("compare", "out", "compare tiny.toml --schemes pre --seeds 1 -o {}"),
    ("export", "out", "export run {}"),
    ("import", "run", "import exported {}"),
    ("logits", "out", "logits run --ids 1,2 -o {}"),
    (
        "data prepare",
        "out",
        "data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 -o {}",
    ),
    ("tokenizer train", "out", "tokenizer train text.jsonl --vocab 300 -o {}"),
];

#[test]
fn no_output_replaces_what_is_there() {
    // The one output that is not called so is the run of an import.
    let is_output = |argument: &clap::Arg| argument.get_id() == "out";
    let mut known = arguments(is_output);
    known.insert(("import".into(), "run".into()));
    let covered = owned(&OUTPUTS.map(|(command, argument, _)| (command, argument)));
    assert_eq!(covered, known, "every output has a line in `OUTPUTS`");

    let place = place_with_everything();
    place.write("file", "precious");
    fs::create_dir(place.path("directory")).unwrap();
    place.write("directory/report.html", "precious");
    #[cfg(unix)]
    std::os::unix::fs::symlink("file", place.path("link")).unwrap();
    for (_, _, line) in OUTPUTS {
        for there in ["file", "directory", "link"] {
            if cfg!(not(unix)) && there == "link" {
                continue;
            }
            place.refuses(&line.replace("{}", there), &format!("{there} …"), "…");
        }
    }
    // A comparison goes on where it is, whatever of it there is.
    place.does("compare tiny.toml --schemes pre --seeds 1,2 -o both");
    for file in ["compare.json", "compare.md", "compare.svg", "report.html"] {
        fs::remove_file(place.path("both").join(file)).unwrap();
    }
    place.does("compare tiny.toml --schemes pre --seeds 1,2 -o both");
    fs::create_dir(place.path("empty")).unwrap();
    place.does("compare tiny.toml --schemes pre --seeds 1 -o empty");
    place.refuses(
        "compare tiny.toml --schemes pre -o data",
        "data holds something else than a comparison",
        "nothing of it is overwritten: name a new or empty directory with `-o`",
    );
}

/// Not a file that could be overwritten: what is written there is read by somebody.
#[cfg(target_os = "linux")]
#[test]
fn logits_go_into_a_pipe() {
    let place = Place::prepared();
    place.does("train tiny.toml -o run");
    place.does("logits run --ids 1,2 -o file");
    let line = format!(
        "{} logits run --ids 1,2 -o /dev/stdout | cat",
        env!("CARGO_BIN_EXE_gpas")
    );
    let output = Command::new("sh")
        .args(["-c", &line])
        .current_dir(place.root())
        .output()
        .unwrap();
    assert_eq!(output.stdout, fs::read(place.path("file")).unwrap());
}

#[test]
fn numbers_and_names_are_taken_as_people_write_them() {
    let place = Place::prepared();
    place.does(
        "train Tiny.toml --scheme Pre-GPAS --set train.lr=.001 --set train.optimizer=AdamW --set train.betas=[.9,.95] \
         --set train.schedule=Cosine --set train.precision=F32 --set train.recompute=False --set eval.tokens=1_00. --plain -o spelled"
            .replace("Tiny", "tiny")
            .as_str(),
    );
    place.does(
        "train tiny.toml --scheme pre_gpas --set train.lr=0.001 --set train.optimizer=adamw --set train.betas=[0.9,0.95] \
         --set train.schedule=cosine --set train.precision=f32 --set train.recompute=false --set eval.tokens=100 --plain -o plain",
    );
    assert_eq!(place.read("spelled/recipe.toml"), place.read("plain/recipe.toml"));
    let recipe = place
        .read("tiny.toml")
        .replace("[train]", "[train]\noptimizer = \"AdamW\"\nprecision = \"F32\"");
    place.write(
        "cases.toml",
        recipe.replace("[model]", "[model]\nscheme = \"Sandwich-GPAS\""),
    );
    let shown = place.does("config show cases.toml");
    assert!(
        shown.contains("optimizer = \"adamw\"") && shown.contains("scheme = \"sandwich_gpas\""),
        "{shown}"
    );
    assert_eq!(place.does("config show 71M"), place.does("config show 71m"));
    assert_eq!(
        place.does("config show --preset NANO"),
        place.does("config show --preset nano")
    );
    assert_eq!(
        place.does("eval spelled --backend FLEX --tokens 1_0.0e1 --json"),
        place.does("eval plain --backend flex --tokens 100 --json")
    );
    let generated = |options: &str| place.does(&format!("generate plain --prompt fox --max-tokens {options} --json"));
    assert_eq!(
        generated("+4 --temperature .5 --top-p 1. --seed 1_0"),
        generated("4 --temperature 0.5 --top-p 1 --seed 10")
    );
    place.does(
        "compare tiny.toml --schemes Pre,pre-gpas --seeds +1 --vary train.lr=.001 --baseline PRE+lr=0.001 -o both",
    );
    assert!(place.path("both/pre_gpas+lr=0.001/seed-1/recipe.toml").is_file());
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

#[test]
fn git_lfs_pointers_are_named_as_such() {
    let place = place_with_everything();
    place.write("pointer.json", POINTER);
    place.write("pointer.jsonl", POINTER);
    place.write("pointer.parquet", POINTER);
    place.write("pointer.txt", POINTER);
    let refused = |line: &str, file: &str| {
        let error = format!("{file}: a Git LFS pointer, not the file itself");
        place.refuses(line, &error, "`git lfs pull` fetches the file itself");
    };
    let prepare = "--tokenizer tokenizer.json --validation 0.2 -o new";
    for ending in ["jsonl", "parquet", "txt"] {
        refused(
            &format!("data prepare pointer.{ending} {prepare}"),
            &format!("…pointer.{ending}"),
        );
    }
    refused(
        "data prepare text.jsonl --tokenizer pointer.json --validation 0.2 -o new",
        "tokenizer pointer.json",
    );
    refused("eval run --task pointer.jsonl", "pointer.jsonl");
    refused("generate run --prompts pointer.txt", "pointer.txt");
    for file in [
        "manifest.json",
        "tokenizer.json",
        "train-00000.tokens",
        "validation-00000.documents",
    ] {
        place.damaged(file, Some(POINTER.as_bytes()));
        refused("data verify damaged", &format!("damaged/{file}"));
    }
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        let whole = fs::read(place.path("exported").join(file)).unwrap();
        place.write(&format!("exported/{file}"), POINTER);
        refused("import exported new", &format!("…exported/{file}"));
        place.write(&format!("exported/{file}"), whole);
    }
    fs::rename(
        place.path("exported/model.safetensors"),
        place.path("exported/pytorch_model.bin"),
    )
    .unwrap();
    place.write("exported/pytorch_model.bin", POINTER);
    refused("import exported new", "exported/pytorch_model.bin");
    for entry in fs::read_dir(place.path("run/checkpoints")).unwrap() {
        fs::write(entry.unwrap().path().join("model.safetensors"), POINTER).unwrap();
    }
    place.refuses(
        "eval run",
        "no checkpoint in run/checkpoints is valid: …model.safetensors is a Git LFS pointer, for which `git lfs pull` fetches the file itself…",
        "nothing was changed; put one back from a copy",
    );
}

#[test]
fn a_directory_stands_for_the_file_in_it_and_the_other_way_round() {
    let place = place_with_everything();
    place.does("data prepare text.jsonl --tokenizer run --validation 0.2 -o new");
    place.does("import exported with-directory --tokenizer data");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        place.does(&format!("import exported/{file} with-{file}"));
    }
    place.refuses(
        "data prepare text.jsonl --tokenizer both --validation 0.2 -o another",
        "tokenizer both: a directory without a tokenizer.json",
        "…",
    );
    place.refuses(
        "import text.jsonl another",
        "text.jsonl is a file",
        "a model is a directory as `save_pretrained` of transformers writes it",
    );
}
