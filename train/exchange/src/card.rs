//! The model card: how the model was trained and exported, for those who have the directory and not the run.

use std::fmt::Write;

use gpas_model::LlamaConfig;

use gpas_train::checkpoint::RunState;
use gpas_train::run::RunInfo;

/// The facts that the card states.
pub(super) struct Card<'a> {
    pub(super) config: &'a LlamaConfig,
    pub(super) info: &'a RunInfo,
    pub(super) state: &'a RunState,
    /// Whether any LLaMA runtime loads the files.
    pub(super) stock: bool,
    /// Whether gates or factors were folded into other weights.
    pub(super) folded: bool,
    pub(super) dtype: &'a str,
    /// What the exporter's check of its own result found.
    pub(super) check: &'a str,
}

impl Card<'_> {
    /// The card in Markdown.
    pub(super) fn text(&self) -> String {
        let Card {
            config, info, state, ..
        } = self;
        let recipe = &state.recipe;
        let mut rows: Vec<(&str, String)> = vec![
            ("scheme", format!("`{}`", config.scheme)),
            ("parameters", info.parameters.to_string()),
            (
                "sizes",
                format!(
                    "{} layers of width {} (MLP {}), {} heads ({} for keys and values), {} token ids",
                    config.layers,
                    config.hidden,
                    config.intermediate,
                    config.heads,
                    config.kv_heads(),
                    config.vocab
                ),
            ),
            ("format of the weights", self.dtype.into()),
            ("steps", format!("{} of {}", state.step, recipe.train.steps)),
            ("tokens scored in training", state.tokens.to_string()),
            (
                "batch",
                format!("{} sequences of {} tokens", recipe.train.batch, recipe.data.seq_len),
            ),
        ];
        match state.evaluation.or(state.best) {
            Some(found) => rows.push((
                "validation perplexity",
                format!(
                    "{:.4} (loss {:.4}, {} tokens, after step {})",
                    found.perplexity, found.loss, found.tokens, found.step
                ),
            )),
            None => rows.push(("validation perplexity", "not evaluated".into())),
        }
        if !info.data_sha256.is_empty() {
            rows.push(("SHA-256 of the data's manifest", format!("`{}`", info.data_sha256)));
        }
        rows.push(("SHA-256 of the tokenizer", format!("`{}`", info.tokenizer_sha256)));
        rows.push(("seed", info.seed.to_string()));
        let commit = if info.commit.is_empty() {
            String::new()
        } else {
            format!(" ({})", info.commit)
        };
        rows.push((
            "made with",
            format!("gpas {}{commit}, Burn {}, {}", info.gpas, info.burn, info.backend),
        ));
        rows.push(("check of the export", self.check.into()));

        let mut text =
            String::from("---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gpas\n---\n\n");
        let _ = writeln!(text, "# A language model trained with `{}`\n", config.scheme);
        let _ = writeln!(text, "{}\n", self.how());
        text.push_str("| | |\n|---|---|\n");
        for (name, value) in rows {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        text.push_str(
            "\nGPAS is Gradient-Preserving Activation Scaling ([arXiv 2506.22049](https://arxiv.org/abs/2506.22049)).\n\n\
             ## Licence\n\nNone is stated: it is for whoever owns the data and the run to choose one and to write it here.\n",
        );
        text
    }

    fn how(&self) -> &'static str {
        match (self.stock, self.folded) {
            (true, true) => {
                "A stock LLaMA: what the scheme adds to one is folded into its weights, so any LLaMA runtime computes its logits.\n\n\
                 ```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model, tokenizer = (auto.from_pretrained(\".\") for auto in (AutoModelForCausalLM, AutoTokenizer))\n```"
            }
            (true, false) => {
                "A stock LLaMA; any LLaMA runtime loads it.\n\n\
                 ```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model, tokenizer = (auto.from_pretrained(\".\") for auto in (AutoModelForCausalLM, AutoTokenizer))\n```"
            }
            (false, _) => {
                "An architecture of its own, which `modeling_gpas.py` beside this file computes.\n\n\
                 ```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\".\", trust_remote_code=True)\n\
                 tokenizer = AutoTokenizer.from_pretrained(\".\", trust_remote_code=True)\n```"
            }
        }
    }
}
