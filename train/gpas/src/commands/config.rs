//! `gpas config`: what a recipe resolves to and what its model costs, before anything is allocated.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use gpas_model::{LlamaConfig, Preset};
use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

use crate::failure::Result;
use crate::options::RecipeArgs;
use gpas_train::recipe::{Recipe, SHIPPED, resolve};

/// `gpas config`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpas config show 71m --set train.lr=5e-4")]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a resolved recipe, with its model and what that costs as comments: the output is a recipe
    #[command(after_help = "Examples:
  gpas config show
  gpas config show 71m --scheme sandwich_gpas --set train.lr=5e-4
  gpas config show 350m --json
  gpas config show 20m > mine.toml")]
    Show(ShowArgs),
    /// Print every recipe key with its default, what it may be and what it means: the output is a recipe
    #[command(after_help = "Examples:
  gpas config keys
  gpas config keys --json
  gpas config keys > mine.toml")]
    Keys(KeysArgs),
    /// Print the model sizes, their parameters, and whose training settings the recipe of that name has
    #[command(after_help = "Example:\n  gpas config presets")]
    Presets,
}

/// `gpas config show`
#[derive(Debug, Args)]
struct ShowArgs {
    /// A recipe file, or the name of a shipped one: nano, 9m, … 7b
    #[arg(value_name = "RECIPE.toml")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    options: RecipeArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `gpas config keys`
#[derive(Debug, Args)]
struct KeysArgs {
    /// Print a JSON array with an object for each key
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A recipe that cannot be used, or an output that cannot be written.
pub fn run(args: ConfigArgs) -> Result<()> {
    let text = match args.command {
        Command::Presets => presets(),
        Command::Keys(KeysArgs { json: true }) => serde_json::to_string_pretty(&Recipe::reference()?)? + "\n",
        Command::Keys(KeysArgs { json: false }) => keys()?,
        Command::Show(args) => {
            let recipe = resolve(args.recipe.as_deref(), &args.options.into())?;
            if args.json {
                as_json(&recipe)?
            } else {
                as_toml(&recipe)?
            }
        }
    };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn as_toml(recipe: &Recipe) -> Result<String> {
    let model = recipe.llama(recipe.expected_vocab())?;
    let mut text = recipe.to_toml()?;
    let mut comment = |line: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", format!("# {line}").trim_end());
    };
    comment("");
    for line in model.describe().lines() {
        comment(line);
    }
    if recipe.model.vocab.is_none() {
        let vocab = HumanCount(model.vocab as u64);
        comment(&format!(
            "vocabulary: {vocab} assumed here; the tokenizer of the data decides"
        ));
    }
    comment("");
    for (name, value) in costs(recipe, &model) {
        comment(&format!("{name:<26} {value}"));
    }
    Ok(text)
}

fn keys() -> Result<String> {
    let head = "# Every key of a recipe. What is left out has its default; where that follows from other keys, the key is a comment.\n";
    Ok(format!("{head}\n{}", Recipe::annotated()?))
}

fn costs(recipe: &Recipe, model: &LlamaConfig) -> Vec<(&'static str, String)> {
    let (micro_batch, seq_len) = (recipe.train.micro_batch, recipe.data.seq_len);
    let memory = model.training_memory(recipe.train.batch, micro_batch, seq_len);
    let positions = recipe.train.steps as f64 * recipe.train.batch as f64 * seq_len as f64;
    let flops = model.flops_per_token(seq_len);
    vec![
        ("parameters", HumanCount(model.parameters()).to_string()),
        (
            "  without the embedding",
            HumanCount(model.non_embedding_parameters()).to_string(),
        ),
        ("FLOPs per token", format!("{flops:.3e}")),
        ("training positions", format!("{positions:.3e}")),
        ("training FLOPs", format!("{:.3e}", flops * positions)),
        ("predicted memory", HumanBytes(memory.total()).to_string()),
        ("  parameters", HumanBytes(memory.parameters).to_string()),
        ("  gradients", HumanBytes(memory.gradients).to_string()),
        ("  optimizer", HumanBytes(memory.optimizer).to_string()),
        (
            "  activations",
            format!("{} (micro-batch {micro_batch})", HumanBytes(memory.activations)),
        ),
        ("  loss", HumanBytes(memory.loss).to_string()),
    ]
}

fn as_json(recipe: &Recipe) -> Result<String> {
    let model = recipe.llama(recipe.expected_vocab())?;
    let (micro_batch, seq_len) = (recipe.train.micro_batch, recipe.data.seq_len);
    let memory = model.training_memory(recipe.train.batch, micro_batch, seq_len);
    let value = json!({
        "recipe": recipe,
        "vocab": model.vocab,
        "parameters": model.parameters(),
        "non_embedding_parameters": model.non_embedding_parameters(),
        "flops_per_token": model.flops_per_token(seq_len),
        "training_memory": {
            "parameters": memory.parameters,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "loss": memory.loss,
            "total": memory.total(),
        },
        "description": model.describe(),
    });
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

fn presets() -> String {
    let mut text = format!(
        "{:<7}{:>7}{:>13}{:>6}{:>7}{:>11}{:>15}  {}\n",
        "preset", "hidden", "intermediate", "heads", "layers", "vocabulary", "parameters", "recipe"
    );
    for preset in Preset::ALL {
        let published = SHIPPED
            .iter()
            .any(|shipped| shipped.name == preset.name && shipped.published);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<7}{:>7}{:>13}{:>6}{:>7}{:>11}{:>15}  {}",
            preset.name,
            preset.hidden,
            preset.intermediate,
            preset.heads,
            preset.layers,
            HumanCount(preset.vocab as u64).to_string(),
            HumanCount(preset.config().parameters()).to_string(),
            if published { "the paper's" } else { "ours" },
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, Parser};

    use super::*;
    use gpas_train::recipe::RecipeOptions;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ConfigArgs,
    }

    #[test]
    fn the_command_line_is_sound_and_its_help_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        for (name, example) in [
            ("show", "gpas config show 71m"),
            ("keys", "gpas config keys"),
            ("presets", "gpas config presets"),
        ] {
            let help = command
                .find_subcommand_mut(name)
                .unwrap()
                .render_long_help()
                .to_string();
            assert!(help.contains(example), "{help}");
        }
        assert!(Cli::try_parse_from(["config", "show", "71m", "--set", "train.lr=1e-4", "--json"]).is_ok());
    }

    fn recipe(name: &str) -> Recipe {
        resolve(Some(Path::new(name)), &RecipeOptions::default()).unwrap()
    }

    #[test]
    fn the_text_is_a_recipe_that_resolves_to_the_same() {
        let recipe = recipe("71m");
        let text = as_toml(&recipe).unwrap();
        let read: Recipe = toml::from_str(&text).unwrap();
        assert_eq!(read, recipe);
        for line in [
            "hidden = 512",
            "#   layers 0–11: x ← G(x + F(N(x)))",
            "# parameters                 70,578,688",
            "#   without the embedding    54,194,688",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        assert!(!text.contains("assumed here"));
    }

    #[test]
    fn an_open_vocabulary_is_said_to_be_assumed() {
        let text = as_toml(&recipe("nano")).unwrap();
        let line = "# vocabulary: 4,096 assumed here; the tokenizer of the data decides";
        assert!(text.lines().any(|have| have == line), "{text}");
    }

    #[test]
    fn json_has_the_recipe_and_the_costs() {
        let value: serde_json::Value = serde_json::from_str(&as_json(&recipe("71m")).unwrap()).unwrap();
        assert_eq!(value["recipe"]["train"]["steps"], 10_000);
        assert_eq!(value["recipe"]["model"]["scheme"], "pre_gpas");
        assert_eq!(value["vocab"], 32_000);
        assert_eq!(value["parameters"], 70_578_688);
        // 6 · 54,194,688 + 6 · 12 · 256 · 512
        assert_eq!(value["flops_per_token"], 334_605_312.0);
        // Two moments of two bytes per weight; and two gradients, since 64 of 512 sequences go through at a time.
        let memory = &value["training_memory"];
        assert_eq!(memory["optimizer"], 4 * (70_578_688 + 12));
        assert_eq!(memory["gradients"], memory["optimizer"]);
    }

    #[test]
    fn the_list_of_keys_is_a_recipe_that_says_what_each_means() {
        let text = keys().unwrap();
        let read: Recipe = toml::from_str(&text).unwrap();
        assert_eq!(read, recipe("nano"));
        let entry = "# Highest learning rate.\n# It must be a number above 0.\nlr = 0.001\n";
        assert!(text.contains(entry), "{text}");
        for key in Recipe::keys() {
            let (_, name) = key.parts();
            let is_there =
                |line: &str| line.starts_with(&format!("{name} = ")) || line.starts_with(&format!("# {name}: "));
            assert!(text.lines().any(is_there), "{}", key.name);
        }
    }

    #[test]
    fn the_table_has_every_size() {
        let table = presets();
        assert_eq!(table.lines().count(), 15);
        let row = "71m        512         1368     8     12     32,000     70,578,688  the paper's";
        assert!(table.lines().any(|line| line == row), "{table}");
        assert_eq!(table.matches("the paper's").count(), 6);
    }
}
