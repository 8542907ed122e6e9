//! What is asked of a trained run from the command line: logits, text, scores, a server.

mod place;

use place::Place;
use safetensors::SafeTensors;

/// With a run that has been trained for three steps.
fn trained() -> Place {
    let place = Place::prepared();
    place.does("train tiny.toml --plain -o run");
    place
}

#[test]
fn logits_are_written_for_every_token() {
    let place = trained();
    place.does("logits run --ids 5,17,9 --out logits.safetensors");
    place.does("logits run --ids 5,17 -o shorter.safetensors");
    let read = |name: &str| {
        let bytes = std::fs::read(place.path(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor("logits").unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let floats = view
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes));
        (view.shape().to_vec(), floats.collect::<Vec<_>>())
    };
    let (shape, values) = read("logits.safetensors");
    assert_eq!(shape, [3, 300]);
    assert!(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| *value != 0.0));
    // A position sees nothing of what comes later.
    let (shorter_shape, shorter) = read("shorter.safetensors");
    assert_eq!(shorter_shape, [2, 300]);
    for (a, b) in shorter.iter().zip(&values) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }

    place.refuses(
        "logits run --ids 5,300 -o none.safetensors",
        "token id 300 is outside the model's vocabulary of 300",
        "an id is 0 to 299",
    );
    let many = vec!["1"; 17].join(",");
    place.refuses(
        &format!("logits run --ids {many} -o none.safetensors"),
        "17 tokens are more than a context of 16",
        "shorten the text, or take up to 2048 positions of the model with `--context N`",
    );
    place.does(&format!("logits run --ids {many} --context 17 -o longer.safetensors"));
    place.refuses(
        "logits run --ids 1 --context 4000 -o none.safetensors",
        "the model has no positions beyond 2048, so a context of 4000 cannot be had",
        "`--context` is at most 2048",
    );
}

#[test]
fn text_goes_on_from_a_prompt() {
    let place = trained();
    let say = |options: &str| place.does(&format!("generate run {options}"));
    let text = say("--prompt fox --max-tokens 6");
    assert!(text.ends_with('\n') && text.len() > 1);
    assert_eq!(say("--prompt fox --max-tokens 6"), text);
    assert_eq!(say("--prompt fox --max-tokens 6 --seed 42"), text);
    let others: Vec<String> = (0..4)
        .map(|seed| say(&format!("--prompt fox --max-tokens 6 --seed {seed}")))
        .collect();
    assert!(others.iter().any(|other| *other != text));
    let greedy = say("--prompt fox --max-tokens 6 --temperature 0");
    assert_eq!(say("--prompt fox --max-tokens 6 --temperature 0 --seed 7"), greedy);
    assert_eq!(say("--prompt fox --max-tokens 6 --top-k 1 --seed 8"), greedy);
    assert_eq!(say("--prompt fox --max-tokens 6 --min-p 1 --seed 9"), greedy);
    assert_eq!(say("--prompt fox --max-tokens 6 --top-p 0.0001 --seed 10"), greedy);
    assert_eq!(say("--prompt fox --max-tokens 0"), "\n");
}

/// Prompts of different lengths, among them the one that was asked for alone.
#[test]
fn prompts_of_a_file_go_together_and_each_says_what_it_says_alone() {
    let place = trained();
    let object = |output: &str| -> serde_json::Value { serde_json::from_str(output).unwrap() };
    let alone = object(&place.does("generate run --prompt fox --max-tokens 6 --seed 3 --json"));
    let keys = place::keys(&alone);
    assert_eq!(keys, ["finish", "prompt", "prompt_tokens", "seed", "text", "tokens"]);
    place.write("prompts.txt", "the quick brown\nfox\n\nriver and every animal\n");
    place.write(
        "prompts.jsonl",
        "\"the quick brown\"\n{\"prompt\": \"fox\"}\n\"river and every animal\"\n",
    );
    for file in ["prompts.txt", "prompts.jsonl"] {
        let output = place.does(&format!("generate run --prompts {file} --max-tokens 6 --seed 3 --json"));
        let lines: Vec<_> = output.lines().map(object).collect();
        let prompts: Vec<_> = lines.iter().map(|line| line["prompt"].as_str().unwrap()).collect();
        assert_eq!(prompts, ["the quick brown", "fox", "river and every animal"]);
        assert_eq!(lines[1], alone);
    }
    let plain = place.does("generate run --prompts prompts.txt --max-tokens 6 --seed 3");
    assert!(
        plain.contains(&format!("[2] fox{}\n", alone["text"].as_str().unwrap())),
        "{plain}"
    );
}

/// One sentence of a pair is the more probable, so that with the two exchanged what was right is wrong.
#[test]
fn a_task_is_scored() {
    let place = trained();
    let sentences = [
        "the quick brown fox",
        "fox brown quick the",
        "a small animal",
        "near a river",
    ];
    let pairs = |swap: bool| -> String {
        let pair = |pair: &[&str]| {
            let (good, bad) = if swap { (pair[1], pair[0]) } else { (pair[0], pair[1]) };
            format!("{{\"sentence_good\": \"{good}\", \"sentence_bad\": \"{bad}\"}}\n")
        };
        sentences.windows(2).map(pair).collect()
    };
    place.write("pairs.jsonl", pairs(false));
    place.write("swapped.jsonl", pairs(true));
    place.write(
        "choices.jsonl",
        "{\"context\": \"the\", \"choices\": [\"fox\", \"dog\", \"river\"], \"label\": 2, \"id\": 7}\n",
    );
    let score = |file: &str| -> serde_json::Value {
        serde_json::from_str(&place.does(&format!("eval run --task {file} --json"))).unwrap()
    };
    let (found, swapped) = (score("pairs.jsonl"), score("swapped.jsonl"));
    let keys = [
        "acc",
        "acc_bytes",
        "acc_bytes_stderr",
        "acc_norm",
        "acc_norm_stderr",
        "acc_stderr",
        "items",
        "truncated",
    ];
    assert_eq!(place::keys(&found), keys);
    assert_eq!((&found["items"], &found["truncated"]), (&3.into(), &0.into()));
    for figure in ["acc", "acc_norm", "acc_bytes"] {
        let sum = found[figure].as_f64().unwrap() + swapped[figure].as_f64().unwrap();
        assert!((sum - 1.0).abs() < 1e-12, "{figure}: {found} {swapped}");
    }
    assert_eq!(score("choices.jsonl")["items"], 1);
    assert!(score("choices.jsonl")["acc_stderr"].is_null());
    let text = place.does("eval run --task pairs.jsonl");
    let acc = found["acc"].as_f64().unwrap();
    assert!(text.starts_with("3 items, 0 texts cut to 16 tokens\n"), "{text}");
    assert!(text.contains(&format!("acc       {acc:.4} ± ")), "{text}");
    place.write("wrong.jsonl", "{\"sentence_good\": \"a\"}\n");
    place.refuses(
        "eval run --task wrong.jsonl",
        "wrong.jsonl:1: neither a minimal pair nor multiple choice",
        "a line is {\"sentence_good\": …, \"sentence_bad\": …} or {\"context\": …, \"choices\": […], \"label\": 0}",
    );
}

#[test]
fn what_cannot_be_generated_is_refused() {
    let place = trained();
    let words =
        "the quick brown fox jumps over lazy dogs and runs away from every small animal near a river ".repeat(4);
    place.write("long.txt", &words);
    place.refuses(
        "generate run --prompts long.txt",
        "… tokens are more than a context of 16",
        "shorten the text, or take up to 2048 positions of the model with `--context N`",
    );
    place.write("empty.txt", "\n\n");
    let said = |arguments: &str| {
        let output = place.run(arguments);
        assert!(!output.status.success(), "{arguments}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said("generate run --prompts empty.txt").contains("empty.txt has no prompt"));
    assert!(said("generate run --prompt a --temperature -1").contains("temperature = -1 is not 0 or more"));
    assert!(said("generate run --prompt a --top-p 2").contains("top_p = 2 is not above 0 and at most 1"));
    assert!(said("generate run").contains("--prompt"));
    assert!(said("generate nowhere --prompt a").contains("is not a run directory"));
    // Said, where it is not refused.
    let output = place.run("generate run --prompt fox --max-tokens 99 --seed 1");
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.is_empty() || said.contains("the context of 16 tokens is full"),
        "{said}"
    );
}
