//! Every hint, warning and note that the program can print, and what provokes it.
//!
//! [`ROWS`] is that list. One test reads the sources and compares the list with every text that stands in a function `hint` (or `…_hint`, or
//! `suggestion`), and with every `complain!` that begins with `warning: ` or `note: `: a hint without a row fails it, and so does a row
//! without a hint. The other tests provoke them. `…` stands for whatever the program puts in.

mod place;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gpas_data::DataError;
use gpas_data::source::RecordFault;
use gpas_report::compare::CompareError;
use gpas_serve::inference::{Context, InferenceError};
use gpas_train::backend::BackendError;
use gpas_train::checkpoint::CheckpointError;
use gpas_train::recipe::RecipeError;
use gpas_train::run::RunError;
use gpas_train::training::TrainingError;
use place::Place;
use proc_macro2::{TokenStream, TokenTree};
use serde_json::{Value, json};
use syn::visit::{self, Visit};

/// What provokes a hint.
enum By {
    /// A command, which is refused with it. It finds what [`set_up`] makes, and OUT is a new path.
    Command(&'static str),
    /// A command that does its work, or most of it, and prints it on the way, as a warning or a note. OUT likewise.
    Word(&'static str),
    /// An error that a machine of its own would be needed for, a slow command, or a caller of the library: its value is asked.
    Error(fn() -> Option<String>),
    /// Another test: the file and the name of its function.
    Test(&'static str, &'static str),
}

use By::{Command as Refused, Error, Test, Word};

const PREPARE: &str = "--tokenizer tokenizer.json --validation 0.2 -o OUT";

/// Every hint, in the order of the crates, with what provokes it.
#[rustfmt::skip]
const ROWS: &[(&str, By)] = &[
    // gpas-data: sources
    ("a source is a file, a directory, or a quoted glob such as 'text/*.jsonl.gz'", Refused("data prepare missing.jsonl PREPARE")),
    ("--hidden takes files whose names begin with a dot", Refused("data prepare dotted PREPARE")),
    ("formats: …", Refused("data prepare tiny.toml PREPARE")),
    ("look whether the file was written or fetched whole, or leave it out", Refused("data prepare empty.jsonl PREPARE")),
    ("name other text to train on, or give --validation a fraction", Refused("data prepare text.jsonl --tokenizer tokenizer.json --validation text.jsonl -o OUT")),
    ("fetch the file again, or leave it out", Refused("data prepare cut.jsonl.gz PREPARE")),
    ("without --strict, bad records are counted, reported and skipped", Refused("data prepare some-bad.jsonl --strict PREPARE")),
    (r"escapes are \n, \r, \t and \\; an empty text leaves text files whole", Refused(r"data prepare text.jsonl --separator \q PREPARE")),
    ("`git lfs pull` fetches the file itself", Refused("data prepare pointer.jsonl PREPARE")),
    ("fetch the file again, or give it the name of what it is", Refused("data prepare noise.jsonl.gz PREPARE")),
    ("compress it again with a smaller window: zstd -dc --long=31 FILE | zstd -o NEW", Refused("data prepare wide.jsonl.zst PREPARE")),
    ("decompress it with its dictionary first: zstd -d -D DICTIONARY FILE", Refused("data prepare dictionary.jsonl.zst PREPARE")),
    ("name the text field with --field; seen: …", Refused("data prepare field.jsonl PREPARE")),
    ("name the field that holds the text with --field; a field in a field is written `outer.inner`", Refused("data prepare number.jsonl PREPARE")),
    ("a record is one JSON object with the text in a field, on a line of its own or in an array", Refused("data prepare bad.jsonl PREPARE")),
    ("text is UTF-8; convert it first: iconv -f ENCODING -t UTF-8 FILE > NEW", Refused("data prepare latin.txt PREPARE")),
    ("cut the text into documents: a record of .jsonl or .parquet is one", Error(|| Some(RecordFault::TooLong.hint()))),
    ("convert it first: iconv -f … -t UTF-8 FILE > NEW", Refused("data prepare wide.txt PREPARE")),
    ("name it .parquet", Refused("data prepare parquet.json PREPARE")),
    ("unpack it first; gzip and zstd are read as they are", Refused("data prepare zip.jsonl PREPARE")),
    // gpas-data: tokenizers and prepared data
    ("a tokenizer is a Hugging Face tokenizer.json; `gpas tokenizer train` makes one", Refused("data prepare text.jsonl --tokenizer missing.json --validation 0.2 -o OUT")),
    ("it is read for special tokens and the chat template because it lies beside the tokenizer: mend it, or take it away", Refused("data prepare text.jsonl --tokenizer beside --validation 0.2 -o OUT")),
    ("name it with --eos TOKEN", Refused("data prepare text.jsonl --tokenizer endless.json --validation 0.2 -o OUT")),
    ("--eos takes a token as the tokenizer spells it, for example '</s>'", Refused("data prepare text.jsonl --eos <none> PREPARE")),
    ("ask for --vocab 257 or more", Refused("tokenizer train text.jsonl --vocab 256 -o OUT")),
    ("nothing is overwritten: name another path, or remove it first", Refused("tokenizer train text.jsonl --vocab 300 -o tokenizer.json")),
    ("for example --validation 0.01, or name a source", Refused("data prepare text.jsonl --tokenizer tokenizer.json --validation 2 -o OUT")),
    ("every document is empty or white space", Refused("data prepare white.jsonl PREPARE")),
    ("each document goes to one split whole, and there are …: cut text files with --separator, or name validation text", Refused("data prepare few.jsonl --tokenizer tokenizer.json --validation 0.00001 -o OUT")),
    ("give more text or another validation fraction", Refused("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.00001 -o OUT")),
    ("`gpas data prepare` makes a directory of prepared data", Refused("data verify run")),
    ("prepare the data again with this version", Refused("data verify newer")),
    ("copy the directory again, or prepare the data again; `gpas data verify DIR` checks all of it", Refused("data verify holey")),
    ("use the tokenizer.json that was written beside the data", Refused("data verify retokenized")),
    ("give more validation text, or a smaller seq_len", Refused("train tiny.toml --set data.seq_len=4000 -o OUT")),
    ("give more text, a smaller batch, or a smaller seq_len", Refused("train tiny.toml --set train.batch=5000 -o OUT")),
    ("give data of your own with --data DIR", Error(|| DataError::Corpus("no cargo".into()).hint())),
    // gpas-train: recipes
    ("a recipe is a file; `gpas train … --resume` goes on with a run", Refused("train run -o OUT")),
    ("a recipe is TOML: `[section]` lines, then `key = value` lines; text stands in quotes", Refused("train text.jsonl -o OUT")),
    ("for example `--set train.lr=5e-4`", Refused("train --set train.lr -o OUT")),
    ("did you mean `…`?", Refused("train --set train.learning_rate=1 -o OUT")),
    ("`…` is a section; its keys are …", Refused("train --set checkpoint=5 -o OUT")),
    ("`gpas config show` prints every key with a valid value", Refused("train --set train.lr=fast -o OUT")),
    ("keep `…` or `…`", Refused("train --set train.steps=5 --set train.tokens=500 -o OUT")),
    ("give `…` in [model], or name a preset (`gpas config presets` lists them)", Refused("train --set model.preset=custom -o OUT")),
    ("a fraction follows the number of steps: `--set train.warmup=0.1`", Refused("train --set train.warmup=5000 -o OUT")),
    ("for example `schemes = [\"pre\", \"pre_gpas\"]`, `seeds = [1, 2, 3]`, `vary = …`", Refused("compare badly.toml -o OUT")),
    ("…; begin a new run for the rest", Refused("train run --resume --scheme pre_gpas")),
    ("…; `gpas train --from … --set …=… -o NEW` begins a new run with its weights and moments", Refused("train run --resume --set train.lr=0.5")),
    ("a schedule begins before the run ends; most runs have `train.schedule_from = 0`", Refused("train tiny.toml --set train.schedule_from=3 -o OUT")),
    ("`--set train.schedule_from=…`", Refused("train --from run --set train.steps=9 --set train.schedule_from=7 -o OUT")),
    ("`train.steps` is the total, those of the checkpoint included: `--set train.steps=…` trains as long again", Refused("train --from run -o OUT")),
    ("`train.tokens` is the total, those of the checkpoint included: `--set train.tokens=…` trains as long again", Refused("train --from run --set train.tokens=1 -o OUT")),
    ("give the directory another name, or a link to it that has one", Error(|| RecipeError::NotText(PathBuf::new()).hint())),
    ("heads that fit …: …", Refused("train --set model.heads=3 -o OUT")),
    ("fewer `model.heads`, or another `model.hidden`", Refused("train --set model.hidden=6 --set model.heads=2 -o OUT")),
    ("`model.kv_heads` is a divisor of …; leave it out to take …", Refused("train --set model.heads=4 --set model.kv_heads=3 -o OUT")),
    ("leave it out to take a quarter of the layers, …", Refused("train --set model.post_num=50 -o OUT")),
    ("`--set model.gate.site=default` puts the gate where the scheme has it", Refused("train --scheme post_gpas --set model.gate.site=after_norm -o OUT")),
    ("did you mean `…`? One of: …", Refused("train --scheme pre_gpass -o OUT")),
    ("one of: …", Refused("train --set train.optimizer=quux -o OUT")),
    // gpas-train: runs and checkpoints
    ("name another directory with `-o`", Refused("train tiny.toml -o run")),
    ("name a directory outside of it with `-o`", Refused("train --from run --set train.steps=9 -o run/OUT")),
    ("a run directory is what `gpas train -o DIR` makes", Refused("eval data")),
    ("a run directory is what `gpas train -o DIR` makes; `RUN@STEP` and `RUN@best` name a checkpoint of one to begin with or to ask", Refused("eval run@bset")),
    ("it has …", Refused("eval run@7")),
    ("wait for it, or stop it; the lock ends with the process that holds it", Error(|| RunError::Locked(PathBuf::new()).hint())),
    ("a run writes one every `checkpoint.every` steps and at its end", Refused("eval bare")),
    ("nothing was changed; put one back from a copy", Refused("eval hurt")),
    ("make room; the checkpoint before this one is whole, and `gpas train RUN --resume` goes on from it", Error(|| CheckpointError::Write { path: PathBuf::new(), cause: full() }.hint())),
    ("`--set model.vocab=…` is enough; without it, the tokenizer decides", Refused("train tiny.toml --set model.vocab=10 -o OUT")),
    ("`--data DIR` names data that was prepared with `--tokenizer …`", Refused("eval run --data other")),
    ("`--data` names the data where it is now; `gpas eval --data …` evaluates on this all the same", Refused("train run --resume --data cut")),
    ("it computes in …: `--set train.precision=…`", Refused("train tiny.toml --backend ndarray --set train.precision=bf16 -o OUT")),
    ("make room; `gpas train RUN --resume` goes on from the last checkpoint", Error(|| TrainingError::Metrics { path: PathBuf::new(), cause: full() }.hint())),
    ("`gpas train --from … --set train.lr=RATE -o NEW` goes back to before it, with a lower rate; a longer `train.warmup` or `train.clip = 1.0` may help too", Word("train tiny.toml --set train.steps=40 --set train.warmup=0 --set train.lr=1e38 --set train.max_bad_steps=5 -o OUT")),
    ("a lower `train.lr`, a longer `train.warmup` or `train.clip = 1.0`, in a new run", Error(|| TrainingError::NotFinite { step: 1, count: 1, first: String::new(), back: None }.hint())),
    ("what decides the parameters is the other run's: its sizes, its vocabulary, `model.tied_head` and the parameters of its scheme", Refused("train --from run --set train.steps=9 --scheme pre_gpas -o OUT")),
    ("one of auto, …", Refused("train tiny.toml --backend cudda -o OUT")),
    ("build with `--features …`", Error(|| Some(BackendError::NotCompiledIn(gpas_train::backend::BackendName::Cuda).hint()))),
    ("`--backend auto` takes what is present", Refused("train tiny.toml --backend flex:1 -o OUT")),
    ("build with `--features flex`", Error(|| Some(BackendError::None.hint()))),
    // gpas-serve
    ("give at least one", Error(|| InferenceError::NoIds.hint())),
    ("an id is 0 to …", Refused("logits run --ids 300 -o OUT")),
    ("`--context` is at most …", Refused("logits run --ids 1 --context 4000 -o OUT")),
    ("shorten the text, or take up to … positions of the model with `--context N`", Refused("generate run --prompts long.txt")),
    ("shorten the text", Error(|| Some(Context { tokens: 3, positions: 3 }.hint()))),
    ("a line is … or …", Refused("eval run --task text.jsonl")),
    // gpas-report
    ("`--schemes pre,pre_gpas`, or a recipe with a [compare] table such as compare-quick", Refused("compare tiny.toml -o OUT")),
    ("for example `--vary …=V1,V2`", Refused("compare varies-nothing.toml --schemes pre -o OUT")),
    ("each once", Refused("compare tiny.toml --schemes pre,pre -o OUT")),
    ("name them all with `…`", Refused("compare tiny.toml --schemes pre --set train.seed=3 -o OUT")),
    ("name a directory for the comparison with `-o`; its runs lie below it", Refused("compare tiny.toml --schemes pre -o run")),
    ("nothing of it is overwritten: name a new or empty directory with `-o`", Refused("compare tiny.toml --schemes pre -o data")),
    ("a comparison is what `gpas compare -o DIR` makes", Error(|| CompareError::NotAComparison(PathBuf::new()).hint())),
    ("runs that are compared are made alike: give what it was made with, or another directory with `-o`", Refused("compare tiny.toml --schemes pre --seeds 1 --set train.lr=0.5 -o both")),
    ("give the data it was made from, or another directory with `-o`", Refused("compare tiny.toml --schemes pre --seeds 1 --data cut -o both")),
    ("a run is what `gpas train -o RUN` makes, a comparison what `gpas compare -o DIR` makes", Refused("report data")),
    // gpas-exchange
    ("name another directory; nothing is ever replaced", Refused("export run exported")),
    ("a model is a directory as `save_pretrained` of transformers writes it", Refused("import weightless OUT")),
    ("what is imported: LlamaForCausalLM without biases, with silu and heads that rotary positions turn whole, and what `gpas export` writes", Refused("import biased OUT")),
    ("say which with `--scheme post` or `--scheme deeppost`, `_gpas` added if it has gates", Test("exchange.rs", "checkpoints_of_the_authors_are_read")),
    ("leave `--scheme` out, or take `--scheme …`, which adds gates that start as the identity", Refused("import gated OUT --scheme sandwich")),
    ("leave it out: the model decides", Refused("import exported OUT --set model.layers=9")),
    ("leave it out; `gpas train` moves the gates", Refused("import exported OUT --scheme pre_gpas --set model.gate.init=0.5")),
    ("write the number of the token, a list of numbers where several end a text, or null", Refused("import unnumbered OUT")),
    ("name the file with `--tokenizer`, or data prepared with it with `--data`", Refused("import wordless OUT")),
    ("without `--fold` it is exported as an architecture of its own, for `trust_remote_code=True`", Refused("export sandwich OUT --fold")),
    ("without `--fold` it is exported as an architecture of its own, which is exact", Error(|| gpas_exchange::ExchangeError::Differs { largest: 1.0, limit: 1e-3, because: String::new() }.hint())),
    ("get the file again from where it came from; nothing was written", Refused("import torn OUT")),
    ("computed are …", Refused("import longrope OUT")),
    ("give `…` beside `rope_type`", Refused("train --set model.rope_scaling.rope_type=yarn -o OUT")),
    ("leave it out, or name the `rope_type` that has it", Refused("train --set model.rope_scaling.beta_fast=3 -o OUT")),
    ("the model's publisher says which numbers it was trained with", Refused("import unscaled OUT")),
    ("another `rope_type` scales heads of any size", Test("import.rs", "a_scaling_that_is_not_computed_is_refused_with_its_cause")),
    ("leave `--scheme` out to take it as `…`, which its tensors fit", Refused("import exported OUT --scheme sandwich")),
    ("after its warm-up such a model is `pre`, or `pre_gpas` with its gates: name that", Error(|| gpas_exchange::ExchangeError::WarmsUp { path: PathBuf::new(), scheme: "prores".parse().expect("a scheme") }.hint())),
    ("the names decide the scheme unless `--scheme` does; `config.json` decides the sizes", Refused("import lacking OUT")),
    // The program
    ("build with `--features profile`, on Unix", Error(|| gpas::profile::ProfileError::NotCompiledIn.hint())),
    ("`--profile` tells where the time goes there", Refused("bench --preset nano --kernels --device flex")),
    ("note: lines rather than the dashboard: …", Test("terminals.rs", "a_job_in_the_background_trains_and_prints_lines")),
    ("warning: the text gave … of the … ids asked for: no other pair occurs twice", Word("tokenizer train few.jsonl --vocab 9000 -o OUT")),
    ("warning: no text file holds the separator …", Word("data prepare plain.txt --separator @@@ PREPARE")),
    ("warning: … … skipped", Word("data prepare some-bad.jsonl PREPARE")),
    ("warning: … spell out special tokens, … in all, the first `…`; they were taken as text, letter by letter; `--special-tokens` takes them as the tokens they are", Word("data prepare spelled.jsonl PREPARE")),
    // Where the report's file cannot be written.
    ("warning: no report: …", Word("train unreported --resume")),
    ("warning: …; passed over", Word("eval partly-hurt")),
    ("warning: anybody who reaches … may use the model; there is no password", Test("hints.rs", "a_server_for_everybody_is_warned_of")),
    ("warning: …: the layers cannot be looked at: …", Word("report orphan")),
    ("note: …", Word("import foreign-end OUT")),
    ("note: all … steps are done; `gpas train --from … --set train.steps=… -o NEW` trains as long again", Word("train run --resume")),
    ("note: …@… has made no update, so that the moments begin at zero", Test("from.rs", "every_command_that_asks_a_run_takes_a_checkpoint_of_it")),
    ("warning: the last … steps of …@… made no update…", Test("from.rs", "a_run_that_stops_at_steps_that_are_not_finite_names_the_way_back")),
    ("note: the data is other than that of …", Word("train --from run --data cut --set train.steps=9 -o OUT")),
    ("note: the context of … tokens is full; the model has … positions for `--context N`", Word("generate run --prompt fox --max-tokens 100")),
    ("note: the … positions that the model has are full", Word("generate narrow --prompt fox --max-tokens 100")),
    ("note: other trainers had added `…` to the names of the tensors, which was taken off", Test("exchange.rs", "what_other_trainers_add_to_names_is_taken_off_with_a_word")),
    ("note: the model has … positions; sequences of … tokens give the run …", Word("import exported OUT --set data.seq_len=5000")),
];

fn full() -> std::io::Error {
    std::io::Error::other("no space left")
}

/// The text with whatever is put in as `…`.
fn signature(text: &str) -> String {
    let mut signature = String::new();
    let mut depth = 0;
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    signature.push('…');
                }
            }
            _ if depth == 0 => signature.push(character),
            _ => {}
        }
    }
    // The format of a record has `…` of its own.
    signature.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Texts in the tokens of an expression or of a macro.
fn texts_in(tokens: TokenStream, found: &mut Vec<String>) {
    for tree in tokens {
        match tree {
            TokenTree::Group(group) => texts_in(group.stream(), found),
            TokenTree::Literal(literal) => {
                if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    found.push(text.value());
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

/// Finds the texts of hints in a file.
#[derive(Default)]
struct Finder {
    texts: Vec<String>,
}

/// Whether a function returns hints, by its name.
fn gives_hints(name: &syn::Ident) -> bool {
    let name = name.to_string();
    name == "hint" || name.ends_with("_hint") || name == "suggestion"
}

impl Finder {
    fn hints_of(&mut self, block: &syn::Block) {
        let mut texts = Vec::new();
        texts_in(quote::ToTokens::to_token_stream(block), &mut texts);
        // A hint has words; what is compared, cut off or put between has none.
        self.texts
            .extend(texts.into_iter().filter(|text| text.trim().contains(' ')));
    }
}

impl<'a> Visit<'a> for Finder {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        let is_test = module.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|of| of == "test")
        });
        if !is_test {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        if gives_hints(&function.sig.ident) {
            self.hints_of(&function.block);
        }
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        if gives_hints(&function.sig.ident) {
            self.hints_of(&function.block);
        }
        visit::visit_impl_item_fn(self, function);
    }

    /// A hint that is written once for several errors.
    fn visit_item_const(&mut self, constant: &'a syn::ItemConst) {
        if constant.ident == "GET_AGAIN" {
            texts_in(quote::ToTokens::to_token_stream(&constant.expr), &mut self.texts);
        }
    }

    fn visit_macro(&mut self, called: &'a syn::Macro) {
        if called.path.is_ident("complain") {
            let mut texts = Vec::new();
            texts_in(called.tokens.clone(), &mut texts);
            let said = texts
                .into_iter()
                .next()
                .filter(|text| text.starts_with("warning: ") || text.starts_with("note: "));
            self.texts.extend(said);
        }
        visit::visit_macro(self, called);
    }
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the sources") {
        let path = entry.expect("the sources").path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|ending| ending == "rs") => found.push(path),
            false => {}
        }
    }
}

/// Every hint, warning and note in the sources, by its signature.
fn in_the_sources() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for crate_sources in [
        "data/src",
        "model/src",
        "train/src",
        "train/exchange/src",
        "train/report/src",
        "train/serve/src",
        "train/gpas/src",
    ] {
        sources(&root.join(crate_sources), &mut files);
    }
    let mut finder = Finder::default();
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable source");
        finder.visit_file(&syn::parse_file(&text).expect("Rust"));
    }
    finder.texts.iter().map(|text| signature(text)).collect()
}

#[test]
fn the_list_has_every_hint_and_no_other() {
    let listed: BTreeSet<String> = ROWS.iter().map(|(hint, _)| hint.to_string()).collect();
    assert_eq!(listed.len(), ROWS.len(), "a hint has two rows");
    let found = in_the_sources();
    let lines = |of: Vec<&String>| of.into_iter().map(|hint| format!("\n    {hint:?}")).collect::<String>();
    let (missing, gone) = (
        lines(found.difference(&listed).collect()),
        lines(listed.difference(&found).collect()),
    );
    assert!(
        missing.is_empty() && gone.is_empty(),
        "`ROWS` in tests/hints.rs lists every hint with what provokes it. Add rows for these, with a command where one can provoke it \
         (`set_up` makes what it needs):{missing}\nand take out, or mend, those of which there is no hint any more:{gone}"
    );
    for (hint, by) in ROWS {
        if let Test(file, name) = by {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(file);
            let text = fs::read_to_string(path).expect("a test");
            assert!(
                text.contains(&format!("fn {name}()")),
                "{hint}: there is no test {name} in {file}"
            );
        }
    }
}

#[test]
fn errors_of_other_machines_have_their_hints() {
    for (hint, by) in ROWS {
        if let Error(of) = by {
            let said = of().unwrap_or_else(|| panic!("no hint, not {hint}"));
            assert!(place::is_like(&said, hint), "{said}\nexpected {hint}");
        }
    }
}

/// A copy of a directory, with one of its files changed.
fn copy(place: &Place, from: &str, to: &str, change: impl FnOnce(&Path)) {
    let copied = Command::new("cp")
        .arg("-r")
        .arg(place.path(from))
        .arg(place.path(to))
        .status();
    assert!(copied.expect("cp").success());
    change(&place.path(to));
}

/// A copy of the exported model with another configuration.
fn with_config(place: &Place, to: &str, change: impl FnOnce(&mut Value)) {
    copy(place, "exported", to, |directory| {
        let path = directory.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a configuration")).expect("json");
        change(&mut config);
        fs::write(path, config.to_string()).expect("a writable directory");
    });
}

/// Everything that the commands of the rows find.
fn set_up() -> Place {
    let place = Place::prepared();
    let text = place.read("text.jsonl");
    let first: Vec<&str> = text.lines().take(2).collect();
    fs::create_dir(place.path("dotted")).expect("a directory");
    for (name, bytes) in [
        ("empty.jsonl", &b""[..]),
        ("dotted/.a.jsonl", b"{\"text\": \"a\"}\n"),
        // A gzip header and nothing after it.
        ("cut.jsonl.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]),
        ("bad.jsonl", b"not json\n[]\n"),
        (
            "pointer.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        ),
        ("noise.jsonl.gz", &[1, 2, 3, 4, 5]),
        // Frames that ask for a window of 2 TiB, and for a dictionary.
        ("wide.jsonl.zst", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 0, 0]),
        ("dictionary.jsonl.zst", &[0x28, 0xb5, 0x2f, 0xfd, 1, 0, 0, 0]),
        ("field.jsonl", b"{\"body\": \"hi\"}\n"),
        ("number.jsonl", b"{\"text\": 5}\n"),
        ("wide.txt", b"\xff\xfea\0b\0c\0d\0"),
        ("parquet.json", b"PAR1\x15\0"),
        ("zip.jsonl", b"PK\x03\x04\x14\0"),
        ("white.jsonl", b"{\"text\": \" \"}\n"),
        ("latin.txt", b"caf\xe9 au lait"),
        (
            "plain.txt",
            b"the quick brown fox jumps over lazy dogs and runs away from every small animal near a river",
        ),
        ("badly.toml", b"[compare]\nscheme = ['pre']\n"),
        ("varies-nothing.toml", b"[compare]\nvary = { 'train.lr' = [] }\n"),
    ] {
        place.write(name, bytes);
    }
    place.write("some-bad.jsonl", format!("{text}not json\n"));
    place.write("few.jsonl", first.join("\n"));
    place.write("long.txt", "fox ".repeat(100));
    place.write("spelled.jsonl", format!("{{\"text\": \"<|endoftext|>fox\"}}\n{text}"));
    let tokenizer = place.read("tokenizer.json");
    place.write("endless.json", tokenizer.replace("<|endoftext|>", "<|nothing|>"));
    fs::create_dir(place.path("beside")).expect("a directory");
    place.write("beside/tokenizer.json", &tokenizer);
    place.write("beside/tokenizer_config.json", "{");

    copy(&place, "data", "newer", |directory| {
        let path = directory.join("manifest.json");
        let manifest = fs::read_to_string(&path).expect("a manifest");
        fs::write(path, manifest.replace("\"version\": 1", "\"version\": 9")).expect("a writable directory");
    });
    copy(&place, "data", "holey", |directory| {
        fs::remove_file(directory.join("train-00000.tokens")).expect("a shard");
    });
    place.does("tokenizer train text.jsonl --vocab 280 -o other.json");
    copy(&place, "data", "retokenized", |directory| {
        fs::copy(place.path("other.json"), directory.join("tokenizer.json")).expect("a writable directory");
    });
    place.does("data prepare text.jsonl --tokenizer other.json --validation 0.2 -o other");
    place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.3 -o cut");
    runs(&place);
    models(&place);
    place
}

/// Runs that something has happened to.
fn runs(place: &Place) {
    place.does("train tiny.toml --scheme pre -o run");
    place.does("train tiny.toml --scheme sandwich_gpas -o sandwich");
    place.does("train tiny.toml --set model.max_positions=16 -o narrow");
    place.does("compare tiny.toml --schemes pre --seeds 1 -o both");
    let checkpoints = |run: &Path| {
        fs::read_dir(run.join("checkpoints"))
            .expect("checkpoints")
            .map(|entry| entry.expect("one").path())
    };
    copy(place, "run", "bare", |run| {
        checkpoints(run).for_each(|checkpoint| fs::remove_dir_all(checkpoint).expect("a checkpoint"));
    });
    let hurt = |checkpoint: PathBuf| fs::write(checkpoint.join("manifest.json"), "").expect("a checkpoint");
    copy(place, "run", "hurt", |run| checkpoints(run).for_each(hurt));
    copy(place, "run", "partly-hurt", |run| hurt(run.join("checkpoints/step-3")));
    copy(place, "run", "unreported", |run| {
        fs::remove_file(run.join("report.html")).expect("a report");
        fs::create_dir(run.join("report.html")).expect("a directory");
    });
    copy(place, "data", "lost", |_| ());
    place.does("train tiny.toml --data lost -o orphan");
    fs::remove_dir_all(place.path("lost")).expect("data");
    fs::remove_file(place.path("orphan/inspection.json")).expect("a look at the layers");
}

/// Models for `import`.
fn models(place: &Place) {
    place.does("export run exported");
    place.does("export sandwich gated");
    with_config(place, "biased", |config| config["attention_bias"] = true.into());
    with_config(place, "unnumbered", |config| config["eos_token_id"] = "x".into());
    with_config(place, "longrope", |config| {
        config["rope_scaling"] = json!({"type": "longrope"})
    });
    with_config(place, "unscaled", |config| {
        config["rope_scaling"] = json!({"type": "linear", "factor": 0})
    });
    with_config(place, "foreign-end", |config| config["eos_token_id"] = json!(70_000));
    let remove = |directory: &Path, name: &str| fs::remove_file(directory.join(name)).expect("a file");
    copy(place, "exported", "weightless", |directory| {
        remove(directory, "model.safetensors")
    });
    copy(place, "exported", "wordless", |directory| {
        remove(directory, "tokenizer.json")
    });
    copy(place, "exported", "torn", |directory| {
        let path = directory.join("model.safetensors");
        let bytes = fs::read(&path).expect("weights");
        fs::write(path, &bytes[..bytes.len() - 3]).expect("a writable directory");
    });
    copy(place, "exported", "lacking", |directory| {
        let path = directory.join("model.safetensors");
        let mut tensors =
            gpas_model::weights::read_safetensors(&fs::read(&path).expect("weights"), "").expect("weights");
        tensors.remove("model.norm.weight").expect("a norm");
        gpas_model::weights::write_safetensors(&tensors, &path).expect("a writable directory");
    });
}

#[test]
fn every_other_hint_is_provoked_by_a_command() {
    let place = set_up();
    for (number, (hint, by)) in ROWS.iter().enumerate() {
        let (line, is_refused) = match by {
            Refused(line) => (line, true),
            Word(line) => (line, false),
            Error(_) | Test(..) => continue,
        };
        let line = line
            .replace("PREPARE", PREPARE)
            .replace("OUT", &format!("out-{number}"));
        let output = place.run(&line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let case = format!("gpas {line}\n{said}");
        assert!(!said.contains("panicked"), "{case}");
        let expected = match is_refused || !output.status.success() {
            true => format!("hint: {hint}"),
            false => hint.to_string(),
        };
        assert!(
            said.lines().any(|line| place::is_like(line, &expected)),
            "{case}expected: {expected}"
        );
        if is_refused {
            assert!(!output.status.success(), "{case}");
            assert!(
                !place.path(&format!("out-{number}")).exists(),
                "{case}it left its output"
            );
        }
    }
}

#[test]
fn a_server_for_everybody_is_warned_of() {
    let place = Place::prepared();
    place.does("train tiny.toml -o run");
    let mut server = Command::new(env!("CARGO_BIN_EXE_gpas"))
        .args(["serve", "run", "--host", "0.0.0.0", "--port", "0"])
        .current_dir(place.root())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut line = String::new();
    let read = BufReader::new(server.stderr.take().expect("it is piped")).read_line(&mut line);
    server.kill().expect("it serves");
    server.wait().expect("it ends");
    read.expect("a line");
    assert_eq!(
        line,
        "warning: anybody who reaches 0.0.0.0 may use the model; there is no password\n"
    );
}
