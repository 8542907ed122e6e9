//! Every command that is written anywhere works: the examples of the help texts and of the README run, in a directory in which the names that
//! they use exist, and what is mentioned in passing, in hints, help and documentation, is understood by the command line.
//!
//! A command runs as it is written, by the shell; [`SMALLER`] only makes its work smaller. What does not run here is [listed](NOT_RUN) with
//! the reason, and has to be understood all the same.

mod place;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use gpas_train::recipe::Recipe;
use place::Place;
use serde_json::{Value, json};

/// A small model on data that is there, for commands that make one.
const SMALL_MODEL: &str = "--set model.hidden=16 --set model.intermediate=32 --set model.heads=2 --set model.layers=2";
/// A short training, for commands that train or prepare to.
const SHORT_TRAINING: &str = "--set train.steps=2 --set train.warmup=1 --set train.batch=2 --set data.seq_len=16 --set eval.tokens=64 \
                              --set eval.every=2";
/// What is added to commands that begin like this, so that they take a moment.
const SMALLER: [(&str, &[&str]); 4] = [
    ("gpas train --from", &["--set train.steps=5 --set train.warmup=1"]),
    ("gpas train", &[SMALL_MODEL, SHORT_TRAINING]),
    ("gpas compare", &[SMALL_MODEL, SHORT_TRAINING]),
    ("gpas import", &[SHORT_TRAINING]),
];

/// Beginnings or parts of commands that are understood here and not run, and why.
const NOT_RUN: [(&str, &str); 8] = [
    ("gpas serve", "it listens until it is stopped; tests/serving.rs asks it"),
    (
        "gpas bench",
        "it measures for minutes; tests/command_line.rs runs it small",
    ),
    (
        "gpas selfcheck",
        "it takes as long as all these; tests/self_check.rs runs it",
    ),
    ("--backend vulkan", "it needs a card or its software driver"),
    ("curl ", "it needs a server that runs; tests/serving.rs sends the same"),
    (
        "lm_eval ",
        "another program, in Python; `cargo xtask verify-harness` runs it",
    ),
    ("cargo test", "it is what runs this"),
    (
        "gpas compare -o",
        "a mention of what makes a comparison, which needs schemes besides",
    ),
];

/// Options of other programs that texts name: of cargo and the developer's commands, of lm-evaluation-harness, of llama.cpp, of git.
const OPTIONS_OF_OTHERS: [&str; 23] = [
    "--dims",
    "--example",
    "--features",
    "--filter-platform",
    "--format-version",
    "--include_path",
    "--locked",
    "--long",
    "--manifest-path",
    "--model",
    "--model_args",
    "--no-default-features",
    "--nocapture",
    "--offline",
    "--path",
    "--python",
    "--release",
    "--rounds",
    "--samplers",
    "--setup",
    "--tasks",
    "--test",
    "--test-threads",
];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the workspace")
}

/// Where the names that examples use exist.
fn stand_ins() -> Place {
    let place = Place::prepared();
    let json = |file: &str, line: Value| place.write(file, format!("{line}\n"));
    json(
        "pairs.jsonl",
        json!({"sentence_good": "the quick brown fox", "sentence_bad": "fox brown quick the"}),
    );
    place.write("prompts.txt", "the quick\nnear a river\n");
    for data in ["prepared", "c4", "DIR"] {
        copy(&place.path("data"), &place.path(data));
    }
    fs::create_dir_all(place.path("text")).expect("a directory");
    // Enough of it that a hundredth is some windows.
    place.write("long.jsonl", place.read("text.jsonl").repeat(20));
    shell(&place, "gzip -c long.jsonl > text/a.jsonl.gz");
    for (run, scheme) in [
        ("runs/pre_gpas-nano-001", "pre_gpas"),
        ("runs/sandwich_gpas-nano-001", "sandwich_gpas"),
        ("RUN", "pre_gpas"),
        ("plain", "pre"),
    ] {
        place.does(&format!("train tiny.toml --scheme {scheme} -o {run}"));
    }
    for model in ["Llama-3.2-1B", "LNS_130m"] {
        place.does(&format!("export plain {model}"));
    }
    // The rotary positions of that model.
    let config = place.read("Llama-3.2-1B/config.json");
    let mut config: Value = serde_json::from_str(&config).expect("json");
    (config["rope_theta"], config["max_position_embeddings"]) = (json!(500_000.0), json!(131_072));
    config["rope_scaling"] = json!({"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"});
    json("Llama-3.2-1B/config.json", config);
    place
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// Runs a line as a reader would, with this build's program in the path.
fn shell(place: &Place, line: &str) {
    let programs = Path::new(env!("CARGO_BIN_EXE_gpas")).parent().expect("a directory");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    let output = command
        .args(["-c", line])
        .current_dir(place.root())
        .env("PATH", path)
        .output();
    let output = output.expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{said}");
}

/// A line as the words that the shell makes of it.
fn words(line: &str) -> Vec<String> {
    let script = format!("set -f; printf '%s\\n' {line}");
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    assert!(output.status.success(), "{line}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_string)
        .collect()
}

/// Fails if the command line does not understand a command; whether nothing is missing in it.
fn is_whole(line: &str) -> bool {
    let before_redirection = line.split(" > ").next().unwrap_or(line);
    match gpas::cli::command().try_get_matches_from(words(before_redirection)) {
        Ok(_) => true,
        Err(error) => match error.kind() {
            ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand => false,
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion => false,
            // An option without its value.
            ErrorKind::InvalidValue if matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(value)) if value.is_empty()) => {
                false
            }
            _ => panic!("`{line}`: {error}"),
        },
    }
}

/// The commands among the lines of an example: continued lines are one, comments are none, and cargo runs `gpas`.
fn commands(lines: &str) -> Vec<String> {
    let whole = lines.replace("\\\n", " ");
    let whole = whole.lines().map(|line| line.split(" #").next().unwrap_or(line).trim());
    let run = |line: &str| match line.strip_prefix("cargo run --release") {
        Some(rest) => format!("gpas {}", rest.split_once("-- ").map_or("", |(_, arguments)| arguments)),
        None => line.to_string(),
    };
    whole.filter(|line| !line.is_empty()).map(run).collect()
}

/// The commands below `Example:` or `Examples:` in every help text.
fn examples_of_help(command: &clap::Command, found: &mut Vec<String>) {
    let texts = [command.get_after_help(), command.get_after_long_help()];
    for text in texts.into_iter().flatten().map(ToString::to_string) {
        let lines = text
            .lines()
            .skip_while(|line| !["Example:", "Examples:"].contains(line))
            .skip(1);
        let lines: Vec<&str> = lines.take_while(|line| line.starts_with("  ")).collect();
        found.extend(commands(&lines.join("\n")));
    }
    for inner in command.get_subcommands() {
        examples_of_help(inner, found);
    }
}

/// The commands in the code blocks for the shell of a README.
fn examples_of_readme(text: &str) -> Vec<String> {
    let blocks = text.split("```").skip(1).step_by(2);
    blocks
        .filter_map(|block| block.strip_prefix("sh\n"))
        .flat_map(commands)
        .collect()
}

/// Runs commands in order; of those that do not run here, whether they are understood.
fn work(place: &Place, commands: &[String]) {
    let begin = Instant::now();
    for line in commands {
        let not_run = NOT_RUN
            .iter()
            .find(|(part, _)| line.starts_with(part) || line.contains(part) && part.starts_with("--"));
        if let Some((_, why)) = not_run {
            println!("not run: {line}: {why}");
            if line.starts_with("gpas ") {
                assert!(is_whole(line), "{line}: something is missing");
            }
            continue;
        }
        assert!(
            line.starts_with("gpas "),
            "`{line}` is no command of this program, and is not listed as another's"
        );
        make_way(place, line);
        let begin = Instant::now();
        shell(place, &smaller(line));
        println!("{:.1} s: {line}", begin.elapsed().as_secs_f64());
    }
    println!("{} commands, {:.1} s", commands.len(), begin.elapsed().as_secs_f64());
}

/// Removes what a command makes, as far as it is there.
fn make_way(place: &Place, line: &str) {
    let words = words(line.split(" > ").next().unwrap_or(line));
    let after = |option: &str| words.iter().position(|word| word == option).map(|at| at + 1);
    let second = ["import", "export"].contains(&words[1].as_str()).then_some(3);
    // A comparison goes on where it is.
    let out = if words[1] == "compare" {
        None
    } else {
        after("-o").or(after("--out")).or(second)
    };
    if let Some(out) = out.and_then(|at| words.get(at)) {
        let path = place.path(out);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
}

/// A command with less to do.
fn smaller(line: &str) -> String {
    let (command, redirection) = line.split_at(line.find(" > ").unwrap_or(line.len()));
    let added = SMALLER.iter().find(|(beginning, _)| command.starts_with(beginning));
    let Some((_, added)) = added.filter(|_| !command.contains("--resume")) else {
        return line.into();
    };
    // The text that is used where none is named takes long to prepare.
    let data = if command.contains("--data") || command.starts_with("gpas import") {
        ""
    } else {
        " --data data"
    };
    format!("{command} {}{data}{redirection}", added.join(" "))
}

#[test]
fn the_examples_of_every_help_text_run() {
    let mut found = Vec::new();
    examples_of_help(&gpas::cli::command(), &mut found);
    assert!(found.len() > 30, "{found:?}");
    work(&stand_ins(), &found);
}

#[test]
fn the_commands_of_the_readmes_run() {
    let mut found = Vec::new();
    for (path, text) in sources("md") {
        let examples = examples_of_readme(&text);
        println!("{}: {}", path.display(), examples.len());
        found.extend(examples);
    }
    assert!(found.len() > 15, "{found:?}");
    work(&stand_ins(), &found);
}

/// Files of the workspace with that ending, this one and the developer's commands left out.
fn sources(ending: &str) -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, ending: &str, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir()
                && !name.starts_with('.')
                && !["target", "xtask", "tests", "shared"].contains(&name.as_str())
            {
                walk(&path, ending, found);
            } else if path.extension().is_some_and(|found| found == ending) {
                let text = fs::read_to_string(&path).expect("UTF-8");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    found.sort();
    found
}

/// A file's text in one line, without the marks of comments, and without its tests.
fn in_one_line(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]").next().unwrap_or(text);
    let unmarked = |line: &str| {
        let line = line.trim();
        let marks = ["//!", "///", "//"].into_iter();
        marks
            .fold(line, |line, mark| line.strip_prefix(mark).unwrap_or(line))
            .trim()
            .to_string()
    };
    text.lines().map(unmarked).collect::<Vec<_>>().join(" ")
}

/// What stands between a pair of backticks and begins like this.
fn in_backticks<'a>(text: &'a str, beginning: &'a str) -> impl Iterator<Item = &'a str> {
    let inside = text.split('`').skip(1);
    inside.filter(move |part| part.starts_with(beginning))
}

/// A mention as a command: what is optional is there, and a stand-in for what the reader has to put in.
fn completed(mention: &str) -> String {
    let plain = mention
        .replace("RUN[@STEP|@best]", "RUN@best")
        .replace("RUN[@STEP]", "RUN@3")
        .replace("KEY=VALUE", "train.seed=7")
        .replace("{key}={after}", "train.seed=7")
        .replace("train.steps={}", "train.steps=5")
        .replace("RATE", "1e-4")
        .replace(['[', ']', '…'], " ")
        .replace("\\\"", "\"")
        .replace("\\n", " ");
    let stand_in = |word: &str| match word {
        "N" | "T" | "P" | "S" => "1".to_string(),
        "B" => "auto".into(),
        word if word.starts_with('{') => "RUN".into(),
        word => word.to_string(),
    };
    plain.split_whitespace().map(stand_in).collect::<Vec<_>>().join(" ")
}

/// Everything in backticks that begins with `gpas ` and a lower-case word, in files with that ending.
fn mentions(ending: &str) -> BTreeSet<String> {
    let files = sources(ending).into_iter();
    let is_command = |mention: &&str| mention[5..].starts_with(|first: char| first.is_ascii_lowercase());
    let mentions = files.flat_map(|(_, text)| {
        let line = in_one_line(&text);
        in_backticks(&line, "gpas ")
            .filter(is_command)
            .map(completed)
            .collect::<Vec<_>>()
    });
    mentions.collect()
}

#[test]
fn every_command_that_is_mentioned_is_understood_and_those_of_the_program_run() {
    // The READMEs show with brackets what a command takes, which is understood and not run.
    let of_readmes = mentions("md");
    let of_program = mentions("rs");
    assert!(
        of_readmes.len() > 25 && of_program.len() > 15,
        "{of_readmes:?} {of_program:?}"
    );
    of_readmes.iter().for_each(|mention| _ = is_whole(mention));
    let mut whole: Vec<String> = of_program.into_iter().filter(|mention| is_whole(mention)).collect();
    for (number, line) in whole.iter_mut().enumerate() {
        // Where it goes is the reader's to say.
        for out in ["-o RUN", "-o DIR"] {
            *line = line.replace(out, &format!("-o made/{number}"));
        }
    }
    println!("{whole:?}");
    assert!(whole.iter().any(|line| line == "gpas train RUN --resume"));
    work(&stand_ins(), &whole);
}

/// Every word of the sources and the READMEs that begins as an option does is one, and every key that is set exists.
#[test]
fn every_option_and_key_that_a_text_names_exists() {
    fn options(command: &clap::Command, found: &mut BTreeSet<String>) {
        let long = command.get_arguments().filter_map(|option| option.get_long());
        found.extend(long.map(|long| format!("--{long}")));
        command.get_subcommands().for_each(|inner| options(inner, found));
    }
    let mut known: BTreeSet<String> = OPTIONS_OF_OTHERS.map(String::from).into();
    known.extend(["--help", "--version", "--workspace", "--write"].map(String::from));
    options(&gpas::cli::command(), &mut known);
    let (mut looked_at, mut unknown) = (0, Vec::new());
    for (path, text) in sources("rs").into_iter().chain(sources("md")) {
        let line = in_one_line(&text);
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let is_option = |word: &&str| {
            word.strip_prefix("--")
                .is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        };
        for option in line.split(|c| !is_part(c)).filter(is_option) {
            looked_at += 1;
            if !known.contains(option) {
                unknown.push(format!("{}: {option}", path.display()));
            }
        }
        for (key, _) in line
            .split("--set ")
            .skip(1)
            .filter_map(|rest| rest.split(['`', ' ']).next()?.split_once('='))
        {
            if key.contains('.') && !Recipe::keys().any(|known| known.name == key) {
                unknown.push(format!("{}: --set {key}", path.display()));
            }
        }
    }
    assert!(looked_at > 150, "{looked_at}");
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}

/// The tests above would see it if an example named an option that is not there.
#[test]
#[should_panic(expected = "unexpected argument '--colour'")]
fn an_example_that_does_not_work_is_seen() {
    is_whole("gpas train --colour blue");
}
