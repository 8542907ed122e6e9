//! Models that leave and come in, as their user meets them: what is exported computes the same and comes back the same, and what comes from
//! elsewhere damaged or hostile is refused in one line.

mod place;
mod torch;

use std::fs;

use gpas_model::compare::largest_difference;
use gpas_model::weights::{NamedTensors, read_safetensors, write_safetensors};
use place::Place;
use serde_json::{Value, json};
use torch::{Entry, View};

const IDS: &str = "5,17,9,250,3,44,12,60";

/// With a run `run` of a scheme, trained for three steps.
fn trained(scheme: &str, options: &str) -> Place {
    let place = Place::prepared();
    place.does(&format!(
        "train tiny.toml --plain -o run --scheme {scheme} --set model.layers=4 {options}"
    ));
    place
}

fn tensors(place: &Place, file: &str) -> NamedTensors {
    let bytes = fs::read(place.path(file)).expect("a readable file");
    read_safetensors(&bytes, "").expect("tensors")
}

fn logits(place: &Place, run: &str) -> Vec<f32> {
    let file = format!("{run}.logits");
    place.does(&format!("logits {run} --ids {IDS} -o {file}"));
    let values = tensors(place, &file).remove("logits").expect("logits").values;
    // Nothing is overwritten, and the run may be asked again.
    fs::remove_file(place.path(&file)).expect("a file");
    values
}

fn export(place: &Place, arguments: &str) -> Value {
    serde_json::from_str(&place.does(&format!("export {arguments} --json"))).expect("json")
}

/// What the program may take to refuse a file, besides what it takes to start.
const REFUSAL_BYTES: u64 = 100 << 20;

/// An import that is refused with this cause and this hint, however much the files claim to hold without the memory for it.
fn refuses_import(place: &Place, directory: &str, error: &str, hint: &str) {
    let import = format!("import {directory} none");
    place.refuses(&import, error, hint);
    let [start, peak] = ["config presets", &import].map(|arguments| place.peak_memory(arguments));
    println!("{} MiB ({} MiB to start): {error}", peak >> 20, start >> 20);
    assert!(
        start > 0 && peak <= start + REFUSAL_BYTES,
        "{error}: {peak} bytes, {start} to start"
    );
}

fn config(place: &Place, directory: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{directory}/config.json"))).expect("json")
}

/// A gate of 2 turns the sign of the stream in every layer.
#[test]
fn what_folds_leaves_as_a_stock_llama_with_the_same_logits() {
    for (scheme, options) in [
        ("pre_gpas", "--set model.gate.init=0.6"),
        (
            "pre_gpas",
            "--set model.gate.init=2.0 --set model.gate.per_sublayer=true",
        ),
        ("lns_gpas", "--set model.gate.init=0.6"),
        ("lns_gpas", "--set model.gate.init=2.0 --set model.layers=3"),
        ("lns_fixed", ""),
        ("lns_fixed_gpas", "--set model.gate.init=2.0"),
        ("prores", "--set model.residual_warmup=2"),
        ("prores_gpas", "--set model.gate.init=0.6 --set model.residual_warmup=2"),
        ("layerscale", ""),
        ("layerscale_gpas", "--set model.gate.init=0.6"),
    ] {
        let case = format!("{scheme} {options}");
        // The stream of so small a model is small too, and ε must be smaller still: see the refusal below.
        let place = trained(scheme, &format!("{options} --set model.norm_eps=1e-9"));
        let found = export(&place, "run out --fold");
        assert_eq!(found["architecture"], "LlamaForCausalLM", "{case}");
        assert_eq!(
            (&found["folded"], &found["real_tokens"]),
            (&json!(true), &json!(true)),
            "{case}"
        );
        assert!(found["tokens"].as_u64().unwrap() > 100, "{case}: {found}");
        let differences = ["largest_difference", "difference_at_starts"].map(|key| found[key].as_f64().unwrap());
        assert!(
            differences.iter().all(|difference| *difference <= 1e-3),
            "{case}: {found}"
        );
        // Dividing rounds: none at all would be a check that looks at nothing.
        assert!(
            differences.iter().all(|difference| *difference > 0.0),
            "{case}: {found}"
        );

        let written = tensors(&place, "out/model.safetensors");
        let own = |name: &&String| name.contains("gpas") || name.contains("branch_scale");
        assert_eq!(written.keys().find(own), None, "{case}");
        assert_eq!(config(&place, "out")["model_type"], "llama");
        assert!(!place.path("out/modeling_gpas.py").exists(), "{case}");
        if options.contains("2.0") {
            let norm = &tensors(&place, "run/checkpoints/step-3/model.safetensors")["model.norm.weight"];
            let turned = written["model.layers.0.post_attention_layernorm.weight"].values[0] < 0.0
                || written["model.layers.1.input_layernorm.weight"].values[0] < 0.0;
            assert!(turned && norm.values[0] > 0.0, "{case}");
        }

        place.does("import out back");
        let (expected, mut found) = (logits(&place, "run"), logits(&place, "back"));
        let difference = largest_difference(&found, &expected);
        assert!(difference <= 1e-3, "{case}: {difference}");
        found[7] = f32::NAN;
        assert!(largest_difference(&found, &expected).is_nan(), "{case}");
        assert!(place.read("back/recipe.toml").contains("scheme = \"pre\""), "{case}");
    }
}

#[test]
fn a_stock_model_leaves_and_returns_bit_for_bit() {
    for (scheme, options) in [
        ("pre", "--set model.kv_heads=1"),
        ("lns", "--set model.tied_head=true"),
        ("scale_pre", ""),
    ] {
        let place = trained(scheme, options);
        let found = export(&place, "run out");
        assert_eq!(
            (
                &found["architecture"],
                &found["folded"],
                &found["largest_difference"],
                &found["smallest_scale"]
            ),
            (&json!("LlamaForCausalLM"), &json!(false), &json!(0.0), &json!(null)),
            "{scheme}"
        );
        assert_eq!(
            tensors(&place, "out/model.safetensors"),
            tensors(&place, "run/checkpoints/step-3/model.safetensors")
        );
        place.does("import out back");
        assert_eq!(logits(&place, "run"), logits(&place, "back"), "{scheme}");
        place.does("export back again");
        let read = |directory: &str| fs::read(place.path(directory).join("model.safetensors")).unwrap();
        assert_eq!(read("out"), read("again"), "{scheme}");
    }
}

#[test]
fn every_other_scheme_leaves_as_an_architecture_of_its_own_and_returns() {
    for scheme in [
        "pre_gpas",
        "sandwich_gpas",
        "post",
        "deeppost_gpas",
        "post_pre_gpas",
        "peri_gpas",
        "keel",
        "layerscale_gpas",
        "rezero_gpas",
    ] {
        let gate = if scheme.ends_with("_gpas") {
            "--set model.gate.init=0.3"
        } else {
            ""
        };
        let place = trained(scheme, gate);
        let found = export(&place, "run out");
        assert_eq!(
            (&found["architecture"], &found["folded"], &found["largest_difference"]),
            (&json!("GpasForCausalLM"), &json!(false), &json!(0.0)),
            "{scheme}"
        );
        assert_eq!(
            config(&place, "out")["auto_map"]["AutoModelForCausalLM"],
            "modeling_gpas.GpasForCausalLM"
        );
        assert!(place.read("out/modeling_gpas.py").contains("class GpasForCausalLM"));
        place.does("import out back");
        assert_eq!(logits(&place, "run"), logits(&place, "back"), "{scheme}");
        assert!(
            place
                .read("back/recipe.toml")
                .contains(&format!("scheme = \"{scheme}\""))
        );
        place.does("export back again");
        let read = |directory: &str| fs::read(place.path(directory).join("model.safetensors")).unwrap();
        assert_eq!(read("out"), read("again"), "{scheme}");
        // How its gates had started is the run's, not the model's.
        let model = |directory: &str| {
            let mut config = config(&place, directory);
            config["gpas"]["gate"]["init"] = json!(null);
            config
        };
        assert_eq!(model("out"), model("again"), "{scheme}");
    }
}

#[test]
fn what_is_no_stock_llama_is_not_folded_and_nothing_is_replaced() {
    let place = trained("sandwich_gpas", "");
    place.refuses(
        "export run out --fold",
        "a stock LLaMA cannot be `sandwich_gpas`: layer 0 normalises what its sub-layers return",
        "without `--fold` it is exported as an architecture of its own, for `trust_remote_code=True`",
    );
    place.refuses(
        "export run data",
        "data already exists",
        "name another directory; nothing is ever replaced",
    );
    let scaled = trained("pre_gpas", "--set model.gate.init=0.6");
    scaled.refuses(
        "export run out --fold",
        "the largest difference of a logit between the model and its export is …, more than 1e-3: the stream is scaled down to …, \
         where ε of the norms is no longer small",
        "without `--fold` it is exported as an architecture of its own, which is exact",
    );
    let prores = trained("prores_gpas", "");
    prores.does("export run out");
    prores.refuses(
        "import out back",
        "out: scheme `prores_gpas`, whose branches follow from steps that a new run has not made, is not supported",
        "…",
    );
}

#[test]
fn shards_and_bf16_come_back() {
    let place = trained("pre", "");
    let found = export(&place, "run out --shard-bytes 9000");
    assert!(found["files"].as_u64().unwrap() > 2, "{found}");
    assert!(!place.path("out/model.safetensors").exists());
    place.does("import out back");
    assert_eq!(logits(&place, "run"), logits(&place, "back"));

    let found = export(&place, "run half --dtype bf16");
    let rounding = found["rounding_difference"].as_f64().unwrap();
    assert!(rounding > 0.0 && rounding < 0.05, "{found}");
    assert_eq!(config(&place, "half")["torch_dtype"], "bfloat16");
    place.does("import half rounded");
    let difference = largest_difference(&logits(&place, "run"), &logits(&place, "rounded"));
    assert!(difference > 0.0 && difference < 0.05, "{difference}");

    let first = fs::read_dir(place.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("model-00001"))
        .unwrap();
    fs::remove_file(&first).unwrap();
    let name = first.file_name().unwrap().to_string_lossy().into_owned();
    refuses_import(
        &place,
        "out",
        &format!("out/model.safetensors.index.json: the shard `{name}` is missing"),
        "get the file again from where it came from; nothing was written",
    );
}

/// Whatever `torch.compile`, data parallelism, FSDP, PEFT and Lightning have put before the names or into them.
#[test]
fn what_other_trainers_add_to_names_is_taken_off_with_a_word() {
    let place = trained("pre", "");
    place.does("export run out");
    let released = tensors(&place, "out/model.safetensors");
    let expected = logits(&place, "run");
    let inside = |name: &str| name.replace(".mlp.", "._checkpoint_wrapped_module.mlp._orig_mod.");
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let renames: [(&str, Rename<'_>, &str); 7] = [
        ("compiled", &|name| format!("_orig_mod.{name}"), "`_orig_mod.`"),
        ("parallel", &|name| format!("module.{name}"), "`module.`"),
        (
            "both",
            &|name| format!("module._orig_mod.{name}"),
            "`_orig_mod.`, `module.`",
        ),
        (
            "peft",
            &|name| format!("base_model.model.{name}"),
            "`base_model.model.`",
        ),
        ("lightning", &|name| format!("model.{name}"), "`model.`"),
        (
            "sharded",
            &|name| format!("_fsdp_wrapped_module.{name}"),
            "`_fsdp_wrapped_module.`",
        ),
        ("inside", &inside, "`_checkpoint_wrapped_module.`, `_orig_mod.`"),
    ];
    for (directory, rename, added) in renames {
        fs::create_dir(place.path(directory)).unwrap();
        place.write(&format!("{directory}/config.json"), place.read("out/config.json"));
        let renamed = released
            .iter()
            .map(|(name, tensor)| (rename(name), tensor.clone()))
            .collect();
        write_safetensors(&renamed, &place.path(&format!("{directory}/model.safetensors"))).unwrap();
        let output = place.run(&format!(
            "import {directory} {directory}-run --tokenizer tokenizer.json"
        ));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{directory}: {said}");
        let word = format!("note: other trainers had added {added} to the names of the tensors, which was taken off\n");
        assert!(said.contains(&word), "{said}");
        assert_eq!(logits(&place, &format!("{directory}-run")), expected, "{directory}");
    }
    // What only some of the names have is named, and so are two names that would become one.
    let half = released.iter().map(|(name, tensor)| {
        let name = if name.contains("layers") {
            format!("module.{name}")
        } else {
            name.clone()
        };
        (name, tensor.clone())
    });
    fs::create_dir(place.path("half")).unwrap();
    place.write("half/config.json", place.read("out/config.json"));
    write_safetensors(&half.collect(), &place.path("half/model.safetensors")).unwrap();
    place.refuses(
        "import half none --tokenizer tokenizer.json",
        "weights do not fit the model: missing […not used […\"module.model.layers.0…",
        "…",
    );
    let mut twice = released.clone();
    twice.insert("_orig_mod.lm_head.weight".into(), released["lm_head.weight"].clone());
    write_safetensors(&twice, &place.path("half/model.safetensors")).unwrap();
    place.refuses(
        "import half none --tokenizer tokenizer.json",
        "half/model.safetensors: `lm_head.weight` and `_orig_mod.lm_head.weight` are both `lm_head.weight`",
        "…",
    );
}

/// What the GPAS authors release: LLaMA's configuration, and one more number per layer in `pytorch_model.bin`.
#[test]
fn checkpoints_of_the_authors_are_read() {
    for (scheme, asked) in [
        ("pre_gpas", ""),
        ("sandwich_gpas", ""),
        ("post_pre_gpas", ""),
        ("deeppost_gpas", "--scheme deeppost_gpas"),
    ] {
        let place = trained(scheme, "--set model.gate.init=0.3");
        place.does("export run out");
        let released = tensors(&place, "out/model.safetensors");
        let gate = &released["model.layers.0.gpas_block.gate"];
        assert!(gate.shape.is_empty() && gate.values[0] != 0.0, "{scheme}: {gate:?}");
        fs::create_dir(place.path("authors")).unwrap();
        place.write("authors/pytorch_model.bin", torch::saved(&released));
        let mut config = config(&place, "out");
        let object = config.as_object_mut().unwrap();
        for key in ["gpas", "auto_map", "head_dim", "num_key_value_heads"] {
            object.remove(key).unwrap();
        }
        let positions = object.remove("max_position_embeddings").unwrap();
        object.insert("max_sequence_length".into(), positions);
        config["architectures"] = json!(["LlamaForCausalLM"]);
        config["model_type"] = json!("llama");
        place.write("authors/config.json", config.to_string());
        if !asked.is_empty() {
            place.refuses(
                "import authors back --tokenizer tokenizer.json",
                "the tensors of authors are those of `post` and of `deeppost`, which differ in a factor that no file holds",
                "say which with `--scheme post` or `--scheme deeppost`, `_gpas` added if it has gates",
            );
        }
        place.does(&format!("import authors back --tokenizer tokenizer.json {asked}"));
        assert_eq!(logits(&place, "run"), logits(&place, "back"), "{scheme}");
    }
}

#[test]
fn gates_that_are_added_change_nothing_and_train() {
    let place = trained("pre", "");
    place.does("export run out");
    place.does(
        "import out gated --scheme pre_gpas --data data --set train.steps=2 --set train.warmup=1 --set train.batch=2 --set data.seq_len=16",
    );
    assert_eq!(logits(&place, "run"), logits(&place, "gated"));
    place.refuses(
        "import out none --scheme pre_gpas --set model.gate.init=0.5",
        "gates that are added start as the identity, and `model.gate.init` = 0.5 does not",
        "leave it out; `gpas train` moves the gates",
    );
    place.refuses(
        "import out none --scheme post",
        "out does not hold scheme `post`, which has a tensor model.layers.0.post_feedforward_layernorm.weight, which is missing",
        "leave `--scheme` out to take it as `pre`, which its tensors fit",
    );
    place.does("train gated --resume --plain");
    let gate = &tensors(&place, "gated/checkpoints/step-2/model.safetensors")["model.layers.0.gpas_block.gate"];
    assert_ne!(gate.values, [0.0]);

    // Without data the run can be asked, and trains as soon as it has some.
    place.does("import out later");
    place
        .does("train later --resume --plain --data data --set train.steps=2 --set train.warmup=1 --set train.batch=2 --set data.seq_len=16");
    assert!(place.path("later/checkpoints/step-2").exists());
}

#[test]
fn damaged_and_hostile_safetensors_are_refused_in_one_line() {
    let place = trained("pre", "");
    place.does("export run out");
    let whole = fs::read(place.path("out/model.safetensors")).unwrap();
    let good = tensors(&place, "out/model.safetensors");
    let again = "get the file again from where it came from; nothing was written";
    let weights = "the names decide the scheme unless `--scheme` does; `config.json` decides the sizes";
    let refuses = |bytes: &[u8], error: &str| {
        place.write("out/model.safetensors", bytes);
        refuses_import(&place, "out", &format!("out/model.safetensors: {error}"), again);
    };
    refuses(&whole[..whole.len() - 5], "its tensors claim … bytes, and it holds …");
    refuses(&whole[..100], "its header claims … bytes, and 92 follow its length");
    refuses(&[], "…");
    refuses(
        &[&(1_u64 << 60).to_le_bytes()[..], b"{}"].concat(),
        "its header claims 1152921504606846976 bytes, and 2 follow its length",
    );
    let header =
        |text: &str, data: usize| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; data]].concat();
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    refuses(&header(overlap, 12), "…nvalid offset for tensor `b`");
    let huge = r#"{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}"#;
    refuses(&header(huge, 8), "its header is damaged: overflow …");
    let large = r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    refuses(
        &header(large, 8),
        "its tensors claim 4398046511104 bytes, and it holds 8",
    );

    let changed = |change: &dyn Fn(&mut NamedTensors), error: &str| {
        let mut tensors = good.clone();
        change(&mut tensors);
        write_safetensors(&tensors, &place.path("out/model.safetensors")).unwrap();
        refuses_import(
            &place,
            "out",
            &format!("weights do not fit the model: {error}"),
            weights,
        );
    };
    changed(
        &|tensors| tensors.get_mut("model.norm.weight").unwrap().shape = vec![4, 4],
        "missing [], not used [], wrong [\"model.norm.weight ([4, 4], expected [16])\"]",
    );
    changed(
        &|tensors| {
            let norm = tensors.remove("model.norm.weight").unwrap();
            tensors.insert("model.extra".into(), norm);
        },
        "missing [\"model.norm.weight\"], not used [\"model.extra\"], wrong []",
    );
    let text = String::from_utf8_lossy(&whole).into_owned();
    let place_of = text.find("\"dtype\":\"F32\"").unwrap();
    let mut integers = whole.clone();
    integers[place_of..place_of + 13].copy_from_slice(b"\"dtype\":\"I32\"");
    place.write("out/model.safetensors", integers);
    refuses_import(
        &place,
        "out",
        "weights do not fit the model: missing [], not used [], wrong [\"… (I32)\"]",
        weights,
    );

    place.write("out/model.safetensors", &whole);
    let mut deep = config(&place, "out");
    deep["num_hidden_layers"] = json!(1_u64 << 50);
    place.write("out/config.json", deep.to_string());
    refuses_import(
        &place,
        "out",
        "out/config.json: num_hidden_layers 1125899906842624 is more than the … tensors that there are",
        again,
    );
}

#[test]
fn foreign_pickles_and_archives_are_refused_in_one_line() {
    let place = trained("pre", "");
    place.does("export run out");
    fs::remove_file(place.path("out/model.safetensors")).unwrap();
    refuses_import(
        &place,
        "out",
        "out holds no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards",
        "a model is a directory as `save_pretrained` of transformers writes it",
    );
    let refuses = |bytes: &[u8], error: &str| {
        place.write("out/pytorch_model.bin", bytes);
        refuses_import(
            &place,
            "out",
            &format!("out/pytorch_model.bin: {error}"),
            "get the file again from where it came from; nothing was written",
        );
    };
    let runs_a_command = b"\x80\x02cos\nsystem\n(X\x0b\x00\x00\x00touch ownedtR.";
    refuses(
        &torch::pickled(runs_a_command),
        "its pickle names `os.system`, which no tensor needs; it is not run",
    );
    refuses(
        &torch::pickled(b"\x80\x04."),
        "its pickle has protocol 4, and torch.save writes 2",
    );
    refuses(
        &torch::pickled(b"\x80\x02i"),
        "its pickle has the operation 0x69, which no tensor needs; it is not run",
    );
    refuses(&torch::pickled(b"\x80\x02}(X\xff\xff\xff\x7f"), "its pickle ends early");
    refuses(
        &torch::pickled(b"\x80\x02}K\x01K\x02s."),
        "its pickle does not hold tensors by their names: a key is no text",
    );
    refuses(b"PK", "it is no archive of torch.save (or one of before PyTorch 1.6)");
    refuses(
        runs_a_command,
        "it is no archive of torch.save (or one of before PyTorch 1.6)",
    );
    // 4 GB of zeros in a few bytes, if it were unpacked.
    let bomb = Entry {
        method: 8,
        claimed: Some(u32::MAX - 1),
        ..Entry::stored("archive/data.pkl", b"\xed\xc1\x01\x0d")
    };
    let beyond = Entry {
        method: 0,
        ..bomb.clone()
    };
    for bomb in [bomb, beyond] {
        refuses(
            &torch::archive(&[bomb]),
            "its entry archive/data.pkl is compressed or encrypted, which torch.save does not do",
        );
    }
    // Thousands of tensors of a megabyte in the same bytes.
    let views: Vec<View> = (0..4000)
        .map(|number| View::whole(&number.to_string(), number, &[1 << 18]))
        .collect();
    let mut entries = vec![Entry::storage(0, &vec![0.0; 1 << 18])];
    entries.extend((1..views.len()).map(|number| Entry {
        over: Some(0),
        ..Entry::storage(number, &[])
    }));
    entries.push(Entry::stored("archive/data.pkl", &torch::program(&views)));
    refuses(
        &torch::archive(&entries),
        "its entries claim more bytes than it has: they lie over each other",
    );
    let claims = |length: u64, shape: Vec<u64>| {
        let view = View {
            length,
            shape,
            ..View::whole("x", 0, &[4])
        };
        let program = torch::program(&[view]);
        torch::archive(&[
            Entry::stored("archive/data.pkl", &program),
            Entry::storage(0, &[0.0; 4]),
        ])
    };
    refuses(
        &claims(1 << 40, vec![1 << 40]),
        "its tensor `x` is a view of a storage of another length",
    );
    refuses(
        &claims(4, vec![1 << 40, 1 << 40]),
        "its tensor `x` has another number of strides than of dimensions",
    );
    refuses(
        &claims(4, vec![1 << 40]),
        "its tensor `x` has more numbers than its storage",
    );
    let saved = torch::saved(&tensors(&place, "run/checkpoints/step-3/model.safetensors"));
    refuses(
        &saved[..saved.len() - 40],
        "it is no archive of torch.save (or one of before PyTorch 1.6)",
    );
    let mut flipped = saved.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    refuses(
        &flipped,
        "its entry … is damaged: it has another checksum than the directory says",
    );
    place.write("out/pytorch_model.bin", saved);
    place.does("import out back");
    assert_eq!(logits(&place, "run"), logits(&place, "back"));
}

#[test]
fn a_chat_template_stays_with_the_model() {
    let place = Place::prepared();
    let template = "{% for message in messages %}{{ '<|im_start|>' + message['content'] }}{% endfor %}\n";
    let config = json!({"eos_token": "<|endoftext|>", "chat_template": template});
    place.write("tokenizer_config.json", config.to_string());
    place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 -o chat");
    place.does("data verify chat");
    place.does("train tiny.toml --plain --data chat -o run");
    let carried = |file: &str| {
        let value: Value = serde_json::from_str(&place.read(file)).expect("json");
        value["chat_template"].clone()
    };
    place.does("export run exported");
    place.does("import exported again");
    place.does("export again twice");
    for file in [
        "chat/tokenizer_config.json",
        "run/tokenizer_config.json",
        "exported/tokenizer_config.json",
        "again/tokenizer_config.json",
        "twice/tokenizer_config.json",
    ] {
        assert_eq!(carried(file), template, "{file}");
    }
    // None is invented.
    place.does("train tiny.toml --plain -o plain");
    place.does("export plain without");
    assert_eq!(carried("without/tokenizer_config.json"), Value::Null);

    place.write("tokenizer_config.json", "{");
    place.refuses(
        "data prepare text.jsonl --tokenizer tokenizer.json --validation 0.2 -o none",
        "tokenizer_config.json: EOF while parsing an object at line 1 column 1",
        "it is read for special tokens and the chat template because it lies beside the tokenizer: mend it, or take it away",
    );
}
