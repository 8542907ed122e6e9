//! What stands beside a model's weights: the special tokens, the positions and the constants that every runtime reads. They are the model's
//! wherever it goes, through preparing, training, importing and exporting, and they are what generation goes by.

mod place;

use std::fs;

use place::Place;
use serde_json::{Value, json};

fn read_json(place: &Place, file: &str) -> Value {
    serde_json::from_str(&place.read(file)).expect("json")
}

/// Changes keys of a JSON file.
fn edit(place: &Place, file: &str, keys: Value) {
    let mut value = read_json(place, file);
    for (key, new) in keys.as_object().expect("an object") {
        value[key] = new.clone();
    }
    place.write(file, value.to_string());
}

/// With `out`, the export of a run that has every constant other than by default.
fn exported() -> Place {
    let place = Place::prepared();
    place.does(
        "train tiny.toml --plain -o run --scheme pre --set model.tied_head=true --set model.norm_eps=3e-5 --set model.rope_base=500000.0 \
         --set model.kv_heads=1 --set model.max_positions=128",
    );
    place.does("export run out");
    place
}

/// Fails unless a `config.json` has every constant of the model of [`exported`].
fn assert_constants(config: &Value) {
    for (key, value) in [
        ("max_position_embeddings", json!(128)),
        ("rms_norm_eps", json!(3e-5)),
        ("rope_theta", json!(500_000.0)),
        ("tie_word_embeddings", json!(true)),
        ("head_dim", json!(8)),
        ("num_key_value_heads", json!(1)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
}

/// What a run's model adds to a prompt, and why it stops.
fn generated(place: &Place, run: &str) -> Value {
    let output = place.does(&format!("generate {run} --prompt fox --max-tokens 5 --json"));
    serde_json::from_str(&output).expect("json")
}

#[test]
fn every_field_that_a_runtime_reads_survives_import_and_export() {
    let place = exported();
    let id = |token: &str| read_json(&place, "tokenizer.json")["model"]["vocab"][token].clone();
    let ids = json!({"eos_token_id": [id("q"), id("z")], "bos_token_id": id("b"), "pad_token_id": id("p")});
    edit(&place, "out/config.json", ids.clone());
    let mut generation =
        json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "suppress_tokens": [1, 2]});
    for (key, id) in ids.as_object().expect("an object") {
        generation[key] = id.clone();
    }
    edit(&place, "out/generation_config.json", generation.clone());
    edit(
        &place,
        "out/tokenizer_config.json",
        json!({"eos_token": {"content": "z"}, "bos_token": "b", "pad_token": "p", "unk_token": "u", "padding_side": "left",
            "add_bos_token": true, "clean_up_tokenization_spaces": true, "additional_special_tokens": ["q"], "chat_template": "{{ x }}"}),
    );
    place.does("import out back");
    place.does("export back again");
    assert_eq!(
        read_json(&place, "again/config.json"),
        read_json(&place, "out/config.json")
    );
    assert_eq!(read_json(&place, "again/generation_config.json"), generation);
    edit(&place, "out/tokenizer_config.json", json!({"eos_token": "z"}));
    assert_eq!(
        read_json(&place, "again/tokenizer_config.json"),
        read_json(&place, "out/tokenizer_config.json")
    );
    assert_constants(&read_json(&place, "again/config.json"));

    // Trained further on documents that end otherwise, a text may end in that way too.
    place.does(
        "train back --resume --plain --data data --set train.steps=2 --set train.warmup=1 --set train.batch=2 --set data.seq_len=16",
    );
    place.does("export back further");
    let end = read_json(&place, "data/manifest.json")["tokenizer"]["end_of_document"].clone();
    assert_eq!(
        read_json(&place, "further/config.json")["eos_token_id"],
        json!([id("q"), id("z"), end])
    );
}

#[test]
fn every_field_that_a_runtime_reads_survives_preparing_training_and_export() {
    let place = Place::prepared();
    place.write(
        "tokenizer_config.json",
        json!({"pad_token": "z", "padding_side": "left", "bos_token": "b"}).to_string(),
    );
    place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 --eos q -o named");
    let id = |token: &str| read_json(&place, "tokenizer.json")["model"]["vocab"][token].clone();
    let (end, pad) = (id("q"), id("z"));
    let record = &read_json(&place, "named/manifest.json")["tokenizer"];
    assert_eq!((&record["end_of_document"], &record["pad"]), (&end, &pad));
    place.does(
        "train tiny.toml --plain -o run --scheme pre --data named --set model.tied_head=true --set model.norm_eps=3e-5 \
         --set model.rope_base=500000.0 --set model.kv_heads=1 --set model.max_positions=128",
    );
    place.does("export run out");
    let generation = read_json(&place, "out/generation_config.json");
    assert_eq!(
        generation,
        json!({"bos_token_id": null, "eos_token_id": end, "pad_token_id": pad})
    );
    let config = read_json(&place, "out/config.json");
    for (key, value) in [
        ("eos_token_id", end),
        ("pad_token_id", pad),
        ("bos_token_id", json!(null)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_constants(&config);
    let tokenizer = read_json(&place, "out/tokenizer_config.json");
    assert_eq!(
        (
            &tokenizer["eos_token"],
            &tokenizer["pad_token"],
            &tokenizer["model_max_length"],
            &tokenizer["padding_side"],
            &tokenizer["bos_token"],
        ),
        (&json!("q"), &json!("z"), &json!(128), &json!("left"), &json!("b"))
    );
    // An empty prompt follows the end of a document.
    place.write("empty.jsonl", "\"\"\n");
    let line: Value =
        serde_json::from_str(&place.does("generate run --prompts empty.jsonl --max-tokens 1 --json")).expect("json");
    assert_eq!(line["prompt_tokens"], 1);

    // A run directory of an earlier version has no record of them, and opens with what the tokenizer's file tells.
    fs::remove_file(place.path("run/special_tokens.json")).expect("a file");
    place.does("export run older");
    assert_eq!(read_json(&place, "older/generation_config.json")["eos_token_id"], 0);
}

/// With every token an end, the first one that is drawn ends the text.
#[test]
fn generation_stops_at_every_end_of_an_imported_model() {
    let place = exported();
    for file in ["out/config.json", "out/generation_config.json"] {
        edit(&place, file, json!({"eos_token_id": (0..300).collect::<Vec<u32>>()}));
    }
    place.does("import out ending");
    let text = generated(&place, "ending");
    assert_eq!(
        (&text["finish"], &text["tokens"], &text["text"]),
        (&json!("stop"), &json!(1), &json!(""))
    );
}

#[test]
fn the_context_of_an_imported_model_is_its_own() {
    let place = exported();
    place.does("import out short");
    let ids = |count: usize| vec!["5"; count].join(",");
    place.does(&format!("logits short --ids {} -o short.logits", ids(128)));
    place.refuses(
        &format!("logits short --ids {} -o none.logits", ids(129)),
        "129 tokens are more than the 128 positions that the model has",
        "shorten the text",
    );
    place.does("export short again");
    assert_eq!(read_json(&place, "again/config.json")["max_position_embeddings"], 128);
    assert!(place.read("short/recipe.toml").contains("seq_len = 128"));
    let output = place.run("generate short --prompt fox --max-tokens 400 --seed 1");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        said.is_empty() || said.contains("the 128 positions that the model has are full"),
        "{said}"
    );

    edit(&place, "out/config.json", json!({"max_position_embeddings": 2048}));
    place.does("import out long");
    place.does(&format!("logits long --ids {} -o long.logits", ids(400)));
    place.write("long.txt", "fox ".repeat(300));
    place.does("generate long --prompts long.txt --max-tokens 2 --json");
    place.refuses(
        "generate long --prompts long.txt --context 50",
        "… tokens are more than a context of 50",
        "shorten the text, or take up to 2048 positions of the model with `--context N`",
    );
}

#[test]
fn a_padding_token_outside_the_vocabulary_is_left_out_with_a_word() {
    let place = exported();
    edit(
        &place,
        "out/config.json",
        json!({"pad_token_id": 300, "bos_token_id": -1}),
    );
    let output = place.run("import out back");
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(
        said,
        "note: config.json: `bos_token_id` -1 is none of the model's 300 tokens; it is left out\n\
         note: config.json: `pad_token_id` 300 is none of the model's 300 tokens; it is left out\n"
    );
    place.does("export back again");
    assert_eq!(read_json(&place, "again/config.json")["pad_token_id"], json!(null));
    edit(&place, "out/config.json", json!({"pad_token_id": "x"}));
    place.refuses(
        "import out none",
        "out/config.json: `pad_token_id` is \"x\", which is no token id",
        "write the number of the token, a list of numbers where several end a text, or null",
    );

    // The tokenizer's own, where the model has a smaller vocabulary than the tokenizer.
    let mut tokenizer = read_json(&place, "tokenizer.json");
    let mut pad = tokenizer["added_tokens"][0].clone();
    (pad["id"], pad["content"]) = (json!(300), json!("<pad>"));
    tokenizer["added_tokens"].as_array_mut().expect("a list").push(pad);
    place.write("padded.json", tokenizer.to_string());
    place.does("data prepare text.jsonl --tokenizer padded.json --validation 0.2 -o padded");
    place.does("train tiny.toml --plain -o small --data padded --set model.vocab=300");
    let output = place.run("export small small-out");
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(
        said,
        "note: the padding token 300 is none of the model's 300 tokens; it is left out\n"
    );
    assert_eq!(read_json(&place, "small-out/config.json")["pad_token_id"], json!(null));
    assert_eq!(read_json(&place, "small-out/generation_config.json")["pad_token_id"], 0);
}
