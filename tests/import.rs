//! What decides the function of a model from elsewhere besides its tensors: how its rotary positions are scaled, which its configuration says,
//! and its scheme, which only the caller may know.

mod place;

use std::fs;

use gpas_model::compare::largest_difference;
use gpas_model::weights::{NamedTensors, read_safetensors, write_safetensors};
use place::Place;
use serde_json::{Value, json};

/// With `out`, the export of a plain run of four layers and 32 positions.
fn exported() -> Place {
    let place = Place::prepared();
    place.does("train tiny.toml --plain -o run --scheme pre --set model.layers=4 --set model.max_positions=32 --set train.lr=0.05");
    place.does("export run out");
    place
}

fn config(place: &Place, directory: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{directory}/config.json"))).expect("json")
}

fn tensors(place: &Place, file: &str) -> NamedTensors {
    let bytes = fs::read(place.path(file)).expect("a readable file");
    read_safetensors(&bytes, "").expect("tensors")
}

/// The logits of as many ids.
fn logits(place: &Place, run: &str, count: usize) -> Vec<f32> {
    let ids: Vec<String> = (0..count).map(|at| (at * at * 7 % 300).to_string()).collect();
    let file = format!("{run}.logits");
    let _ = fs::remove_file(place.path(&file));
    place.does(&format!("logits {run} --ids {} -o {file}", ids.join(",")));
    tensors(place, &file).remove("logits").expect("logits").values
}

fn assert_same(found: &[f32], expected: &[f32], bound: f64, what: &str) {
    let difference = largest_difference(found, expected);
    assert!(difference <= bound, "{what}: {difference}");
    assert!(found.iter().all(|logit| logit.is_finite()), "{what}");
}

/// A scaling as it leaves, and what else of the configuration belongs to it.
fn scalings() -> [(&'static str, Value, u64); 4] {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.25, "beta_fast": 8.0,
        "beta_slow": 0.5, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": false});
    [
        ("linear", json!({"rope_type": "linear", "factor": 4.0}), 32),
        ("dynamic", json!({"rope_type": "dynamic", "factor": 4.0}), 32),
        ("llama3", llama3, 128),
        ("yarn", yarn, 128),
    ]
}

#[test]
fn a_scaled_model_comes_in_in_both_spellings_is_used_trains_and_leaves_with_every_field() {
    let place = exported();
    let plain = config(&place, "out");
    let mut seen = vec![logits(&place, "run", 16)];
    for (name, table, positions) in scalings() {
        let mut old = plain.clone();
        (old["rope_theta"], old["max_position_embeddings"]) = (json!(5000.0), json!(positions));
        old["rope_scaling"] = table.clone();
        let mut new = old.clone();
        let keys = new.as_object_mut().expect("an object");
        (_, _) = (keys.remove("rope_theta"), keys.remove("rope_scaling"));
        new["rope_parameters"] = table.clone();
        new["rope_parameters"]["rope_theta"] = json!(5000.0);
        for (spelling, written) in [("old", &old), ("new", &new)] {
            place.write("out/config.json", written.to_string());
            place.does(&format!("import out {name}-{spelling}"));
            place.does(&format!("export {name}-{spelling} {name}-{spelling}-again"));
            assert_eq!(
                config(&place, &format!("{name}-{spelling}-again")),
                old,
                "{name} {spelling}"
            );
        }
        let run = format!("{name}-old");
        assert!(
            place
                .read(&format!("{run}/recipe.toml"))
                .contains(&format!("[model.rope_scaling]\nrope_type = \"{name}\""))
        );
        // Beyond the 32 positions before scaling.
        let found = logits(&place, &run, 100);
        assert_eq!(found, logits(&place, &format!("{name}-new"), 100), "{name}");
        assert!(found.iter().all(|logit| logit.is_finite()), "{name}");
        seen.push(found[..16 * 300].to_vec());

        // As an architecture of its own, with its frequencies as numbers.
        place.does(&format!("import {name}-old-again {name}-gated --scheme pre_gpas"));
        place.does(&format!("export {name}-gated {name}-gated-out"));
        let own = config(&place, &format!("{name}-gated-out"));
        assert_eq!(
            own["gpas"]["rope"]["frequencies"].as_array().map(Vec::len),
            Some(4),
            "{name}"
        );
        place.does(&format!("import {name}-gated-out {name}-gated-again"));
        assert_same(&logits(&place, &format!("{name}-gated-again"), 100), &found, 1e-6, name);

        let mut other = own.clone();
        other["gpas"]["rope"]["frequencies"][1] = json!(0.5);
        place.write(&format!("{name}-gated-out/config.json"), other.to_string());
        place.refuses(
            &format!("import {name}-gated-out none"),
            &format!("{name}-gated-out/config.json: its wiring is not that of scheme `pre_gpas`"),
            "get the file again from where it came from; nothing was written",
        );

        place.does(&format!("generate {run} --prompt fox --max-tokens 100 --seed 1 --json"));
        let more = "--data data --set train.steps=2 --set train.warmup=1 --set train.batch=2 --set data.seq_len=48";
        place.does(&format!("train {run} --resume --plain {more}"));
        place.does(&format!("eval {run} --json"));
        place.does(&format!("inspect {run} --json"));
    }
    // Up to the positions before scaling, `dynamic` differs from the run's own model by its base alone; the others differ by their scaling too.
    for (index, one) in seen.iter().enumerate() {
        assert!(
            seen[..index].iter().all(|other| largest_difference(one, other) > 1e-5),
            "{index}"
        );
    }
}

#[test]
fn a_scaling_that_is_not_computed_is_refused_with_its_cause() {
    let place = exported();
    let plain = config(&place, "out");
    let numbers = "the model's publisher says which numbers it was trained with";
    for (key, value, error, hint) in [
        (
            "rope_scaling",
            json!({"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
            "rope_type `longrope` is none that is computed here",
            "computed are default, linear, dynamic, llama3, yarn",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e4}),
            "rope_type `yarn` needs `factor`",
            "give `factor` beside `rope_type`",
        ),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 0}),
            "`factor` must be a number of at least 1, not 0",
            numbers,
        ),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}),
            "`low_freq_factor` = 4 must be less than `high_freq_factor` = 1",
            numbers,
        ),
    ] {
        let mut changed = plain.clone();
        changed[key] = value;
        place.write("out/config.json", changed.to_string());
        place.refuses(
            "import out none",
            &format!("out/config.json: rotary positions: {error}"),
            hint,
        );
    }
    let mut partial = plain.clone();
    partial["partial_rotary_factor"] = json!(0.5);
    place.write("out/config.json", partial.to_string());
    place.refuses(
        "import out none",
        "out/config.json: partial_rotary_factor 0.5 is not supported",
        "what is imported: … heads that rotary positions turn whole, …",
    );
    let mut headless = plain.clone();
    (headless["num_attention_heads"], headless["head_dim"]) = (json!(0), json!(null));
    place.write("out/config.json", headless.to_string());
    place.refuses(
        "import out none",
        "`model.heads` in --set must be a whole number from 1 to 262144, not 0",
        "…",
    );
    let text = plain.to_string().replace(
        "\"rope_scaling\":null",
        "\"rope_scaling\":{\"type\":\"linear\",\"factor\":Infinity}",
    );
    place.write("out/config.json", text);
    place.refuses("import out none", "out/config.json: it is no configuration: …", "…");

    place.write("out/config.json", plain.to_string());
    place.refuses(
        "import out none --set model.rope_scaling.rope_type=linear --set model.rope_scaling.factor=2.0",
        "`model.rope_scaling` = linear is not the model in out, whose value is default",
        "leave it out: the model decides",
    );
    for (set, error, hint) in [
        (
            "model.rope_scaling.rope_type=yarn",
            "model.rope_scaling: rope_type `yarn` needs `factor`",
            "give `factor` beside `rope_type`",
        ),
        (
            "model.rope_scaling.beta_fast=3",
            "model.rope_scaling: rope_type `default` has no `beta_fast`",
            "leave it out, or name the `rope_type` that has it",
        ),
        (
            "model.rope_scaling={rope_type=\"dynamic\",factor=2} --set model.heads=8",
            "model.rope_scaling: rope_type `dynamic` needs heads of more than 2 entries",
            "another `rope_type` scales heads of any size",
        ),
    ] {
        place.refuses(&format!("train tiny.toml --plain -o none --set {set}"), error, hint);
    }
}

#[test]
fn a_field_that_changes_nothing_is_left_out_with_a_word() {
    let place = exported();
    let mut changed = config(&place, "out");
    changed["rope_scaling"] = json!({"type": "linear", "factor": 2.0, "finetuned": true});
    place.write("out/config.json", changed.to_string());
    let output = place.run("import out back");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "note: config.json: `rope_scaling.finetuned` is no field of rope_type `linear`; it is left out\n"
    );
}

/// LayerNorm Scaling has LLaMA's names: its norms are multiplied by 1/√l, which no file says.
#[test]
fn a_scheme_that_the_caller_names_is_taken_if_its_tensors_fit() {
    let place = exported();
    let said = place.does("import out silent");
    assert!(
        said.lines().nth(1)
            == Some(
                "assumed to be `pre`, since the names of its tensors do not tell; `--scheme lns_fixed` takes it otherwise"
            ),
        "{said}"
    );
    for scheme in ["pre", "lns", "scale_pre", "lns_fixed", "pre_gpas", "lns_fixed_gpas"] {
        let said = place.does(&format!("import out {scheme} --scheme {scheme}"));
        assert!(!said.contains("assumed"), "{said}");
        let recipe = place.read(&format!("{scheme}/recipe.toml"));
        assert!(recipe.contains(&format!("scheme = \"{scheme}\"\n")), "{recipe}");
    }
    // What it computes, with the factors in the weights.
    let mut scaled = tensors(&place, "out/model.safetensors");
    for (name, tensor) in &mut scaled {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        if let Some((index, _)) = layer.filter(|(_, leaf)| leaf.contains("layernorm")) {
            let l: f32 = index.parse::<f32>().expect("a number") + 1.0;
            tensor.values.iter_mut().for_each(|weight| *weight /= l.sqrt());
        }
    }
    fs::create_dir(place.path("scaled")).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(place.path("out").join(file), place.path("scaled").join(file)).unwrap();
    }
    write_safetensors(&scaled, &place.path("scaled/model.safetensors")).unwrap();
    place.does("import scaled reference --scheme pre");
    let expected = logits(&place, "reference", 30);
    for run in ["lns_fixed", "lns_fixed_gpas"] {
        assert_same(&logits(&place, run, 30), &expected, 1e-5, run);
    }
    assert!(largest_difference(&logits(&place, "silent", 30), &expected) > 1e-3);

    // It leaves as a plain LLaMA that computes the same, and says so.
    let output = place.run("export lns_fixed again");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "note: the norm weights hold the factors of `lns_fixed` now: the export is a plain LLaMA, and comes in again as `pre`\n"
    );
    place.does("import again back --scheme pre");
    assert_same(&logits(&place, "back", 30), &expected, 1e-5, "exported");
}

#[test]
fn a_scheme_whose_tensors_are_others_is_refused_with_the_first_of_them() {
    let place = exported();
    let leave = "leave `--scheme` out to take it as `pre`, which its tensors fit";
    for (scheme, because) in [
        (
            "post",
            "has a tensor model.layers.0.post_feedforward_layernorm.weight, which is missing",
        ),
        ("peri", "has a tensor model.embed_layernorm.weight, which is missing"),
        (
            "rezero",
            "has a tensor model.layers.0.branch_scale_attn.weight, which is missing",
        ),
    ] {
        place.refuses(
            &format!("import out none --scheme {scheme}"),
            &format!("out does not hold scheme `{scheme}`, which {because}"),
            leave,
        );
    }
    place.refuses(
        "import out none --scheme prores",
        "out: the branches of scheme `prores` follow from steps that a new run has not made",
        "after its warm-up such a model is `pre`, or `pre_gpas` with its gates: name that",
    );

    // More norms than the scheme has.
    place.does("train tiny.toml --plain -o other --scheme sandwich");
    place.does("export other sandwich");
    let mut stripped = config(&place, "sandwich");
    let keys = stripped.as_object_mut().expect("an object");
    (_, _) = (keys.remove("gpas"), keys.remove("auto_map"));
    (stripped["architectures"], stripped["model_type"]) = (json!(["LLaMAForCausalLM"]), json!("llama"));
    place.write("sandwich/config.json", stripped.to_string());
    place.refuses(
        "import sandwich none --scheme lns_fixed",
        "sandwich does not hold scheme `lns_fixed`, which has no tensor model.layers.0.post_feedforward_layernorm.weight, which is there",
        "leave `--scheme` out to take it as `sandwich`, which its tensors fit",
    );
    let said = place.does("import sandwich back");
    assert!(said.starts_with("sandwich: "), "{said}");
    assert!(
        said.contains("do not tell; `--scheme keel` takes it otherwise"),
        "{said}"
    );
}
