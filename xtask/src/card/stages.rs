//! What is done on a card, the most valuable first, as command lines.

use std::path::Path;

/// Some commands that answer one question together, one after the other in the same minutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    /// What it asks.
    pub(super) asks: &'static str,
    pub(super) pieces: Vec<Piece>,
}

/// One command of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// What it is called within its stage.
    pub(super) name: &'static str,
    pub(super) program: Program,
    pub(super) arguments: Vec<String>,
    /// The longest that it may take, in seconds.
    pub(super) limit: u64,
}

/// Whose command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// `gpas`.
    Gpas,
    /// The Python that has torch, with `peer.py`.
    Peer,
    /// The shell, for tests.
    #[cfg(test)]
    Shell,
}

/// Number formats: ours, and what the peer calls its like.
const FORMATS: [(&str, &str); 2] = [("bf16", "mixed"), ("f32", "float32")];

/// A training step of some size.
#[derive(Clone, Copy)]
struct Work {
    preset: &'static str,
    batch: usize,
    seq: usize,
    /// By its place in [`FORMATS`].
    format: usize,
}

const fn work(preset: &'static str, batch: usize, seq: usize) -> Work {
    Work {
        preset,
        batch,
        seq,
        format: 0,
    }
}

/// The folder beside the program that holds the text, as tokens, and the losses of a processor on it.
pub(super) const TRAINING: &str = "training";
/// The file there with the metrics of the processor.
pub(super) const PROCESSOR: &str = "processor.jsonl";
/// Steps of that training.
pub(super) const TRAINING_STEPS: usize = 300;
/// What both trainings are given besides where they run.
pub(super) const TRAINING_OPTIONS: &str =
    "train nano --plain --set data.seq_len=128 --set eval.every=300 --set checkpoint.every=300 --set train.steps=300";

/// Every stage. `folder` is where the program lies, `results` where what it leaves may lie, `card` the number of the card.
pub(super) fn stages(folder: &Path, results: &Path, card: usize) -> Vec<Stage> {
    let long = work("130m", 16, 1024);
    let short = work("130m", 64, 256);
    let cuda = format!("cuda:{card}");
    let single = |name, asks, pieces: Vec<Piece>| Stage { name, asks, pieces };
    let beside = |name, asks, work: Work| Stage {
        name,
        asks,
        pieces: vec![
            ours("gpas", work, &cuda, &[], 20, 240),
            peer("eager", work, &cuda, &[], 75),
            peer("compile", work, &cuda, &["--compile"], 180),
        ],
    };
    let f32 = Work { format: 1, ..short };
    vec![
        single(
            "smoke",
            "does it train at all, and how soon is the first step done, on a new card and again",
            vec![
                ours("first", work("20m", 8, 256), &cuda, &[], 5, 240),
                ours("again", work("20m", 8, 256), &cuda, &[], 5, 120),
            ],
        ),
        beside("130m-256", "tokens/s beside PyTorch", short),
        single(
            "selfcheck",
            "does it compute right",
            vec![selfcheck("cuda", &cuda, 200)],
        ),
        beside("350m-256", "tokens/s beside PyTorch", work("350m", 32, 256)),
        beside("130m-1024", "tokens/s beside PyTorch", long),
        single(
            "vs-pre",
            "what GPAS costs, and the first step of a second process",
            vec![ours("vs pre", short, &cuda, &["--vs", "pre"], 40, 120)],
        ),
        single(
            "kernels",
            "where the time of a step goes",
            vec![ours("kernels", short, &cuda, &["--kernels"], 1, 120)],
        ),
        beside("350m-1024", "tokens/s beside PyTorch", work("350m", 8, 1024)),
        single(
            "training",
            "the losses of 300 steps beside those of a processor",
            vec![training(folder, results, &cuda)],
        ),
        beside("f32", "tokens/s in f32, beside PyTorch with products in TF32", f32),
        single(
            "memory",
            "the peak of memory, with smaller micro-batches and with recomputation",
            vec![
                ours(
                    "micro-batches",
                    short,
                    &cuda,
                    &["--set", "train.micro_batch=16"],
                    5,
                    120,
                ),
                ours("recompute", short, &cuda, &["--set", "train.recompute=true"], 5, 120),
            ],
        ),
        beside("1b", "tokens/s beside PyTorch", work("1b", 8, 256)),
        single(
            "vulkan",
            "the same card through Vulkan",
            vec![
                selfcheck("vulkan", &format!("vulkan:{card}"), 200),
                ours("vulkan f32", f32, &format!("vulkan:{card}"), &[], 5, 240),
            ],
        ),
    ]
}

/// `gpas bench`.
fn ours(name: &'static str, work: Work, device: &str, more: &[&str], steps: usize, limit: u64) -> Piece {
    let format = FORMATS[work.format].0;
    let options = ["bench", "--json", "--device", device, "--precision", format];
    bench(name, Program::Gpas, &options, work, more, steps, limit)
}

/// `peer.py`.
fn peer(name: &'static str, work: Work, device: &str, more: &[&str], limit: u64) -> Piece {
    let format = FORMATS[work.format].1;
    let options = ["--device", device, "--dtype", format];
    bench(name, Program::Peer, &options, work, more, 20, limit)
}

fn bench(
    name: &'static str,
    program: Program,
    options: &[&str],
    work: Work,
    more: &[&str],
    steps: usize,
    limit: u64,
) -> Piece {
    let sizes = [
        ("--batch", work.batch),
        ("--seq", work.seq),
        ("--vocab", 32_000),
        ("--steps", steps),
        ("--warmup", 3),
    ];
    let mut arguments: Vec<String> = options.iter().map(ToString::to_string).collect();
    arguments.extend(["--preset", work.preset, "--scheme", "pre_gpas"].map(String::from));
    arguments.extend(
        sizes
            .into_iter()
            .flat_map(|(option, value)| [option.into(), value.to_string()]),
    );
    arguments.extend(more.iter().map(ToString::to_string));
    Piece {
        name,
        program,
        arguments,
        limit,
    }
}

fn selfcheck(name: &'static str, backend: &str, limit: u64) -> Piece {
    Piece {
        name,
        program: Program::Gpas,
        arguments: ["selfcheck", "--json", "--backend", backend].map(String::from).into(),
        limit,
    }
}

fn training(folder: &Path, results: &Path, backend: &str) -> Piece {
    let mut arguments: Vec<String> = TRAINING_OPTIONS.split(' ').map(String::from).collect();
    let place = |path: &Path| path.display().to_string();
    arguments.extend(["--backend".into(), backend.into()]);
    arguments.extend(["--data".into(), place(&folder.join(TRAINING).join("data"))]);
    arguments.extend(["-o".into(), place(&results.join(TRAINING))]);
    Piece {
        name: "training",
        program: Program::Gpas,
        arguments,
        limit: 150,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_most_comes_first_and_like_is_set_against_like() {
        let stages = stages(Path::new("/pack"), Path::new("/out"), 1);
        let names: Vec<&str> = stages.iter().map(|stage| stage.name).collect();
        assert_eq!(names[..3], ["smoke", "130m-256", "selfcheck"]);
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        let row = &stages[1].pieces;
        let rest = "--preset 130m --scheme pre_gpas --batch 64 --seq 256 --vocab 32000 --steps 20 --warmup 3";
        assert_eq!(
            row[0].arguments.join(" "),
            format!("bench --json --device cuda:1 --precision bf16 {rest}")
        );
        assert_eq!(
            row[2].arguments.join(" "),
            format!("--device cuda:1 --dtype mixed {rest} --compile")
        );
        let f32 = stages.iter().find(|stage| stage.name == "f32").unwrap();
        assert!(f32.pieces[0].arguments.contains(&"f32".into()) && f32.pieces[1].arguments.contains(&"float32".into()));
    }

    /// Every command line of ours is one that the program takes; what it takes, the program's own help says.
    #[test]
    fn the_number_of_steps_is_the_one_that_is_said() {
        assert!(TRAINING_OPTIONS.ends_with(&format!("train.steps={TRAINING_STEPS}")));
    }
}
