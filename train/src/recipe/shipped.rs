//! The recipes that come with the program, embedded so that a name is enough: `gpas train 71m`.

use super::spelling::same_name;

/// A recipe that comes with the program.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// Its name. A recipe for a single run has the name of its model size.
    pub name: &'static str,
    /// Whether its training settings are the GPAS authors'; the others are this project's.
    pub published: bool,
    /// The file.
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal $published:literal),* $(,)?) => {
        [$(Shipped {
            name: $name,
            published: $published,
            text: include_str!(concat!("../../recipes/", $name, ".toml")),
        }),*]
    };
}

/// Every shipped recipe, smallest first.
pub const SHIPPED: [Shipped; 14] = shipped![
    "nano" false,
    "9m" false,
    "20m" false,
    "35m" false,
    "40m" false,
    "60m" false,
    "71m" true,
    "100m" false,
    "130m" true,
    "250m" true,
    "350m" true,
    "1b" true,
    "3b" false,
    "7b" true,
];

/// The recipes of comparisons: their `[compare]` table says which runs `gpas compare` makes of them.
pub const COMPARISONS: [Shipped; 2] = shipped![
    "compare-quick" false,
    "compare-small" false,
];

/// Every shipped recipe, the comparisons last.
pub(super) fn all() -> impl Iterator<Item = Shipped> + Clone {
    SHIPPED.into_iter().chain(COMPARISONS)
}

impl Shipped {
    /// The shipped recipe of that name, with or without `.toml`.
    pub fn named(name: &str) -> Option<Shipped> {
        all().find(|shipped| same_name(stem(name), shipped.name))
    }
}

/// The name of a recipe in what a user may call it: `71m`, `71m.toml`, `paper-71m`.
pub(super) fn stem(name: &str) -> &str {
    let name = name.strip_suffix(".toml").unwrap_or(name);
    name.strip_prefix("paper-").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::optimizer::OptimizerKind;
    use crate::recipe::{Recipe, RecipeFile, RecipeOptions, resolve};
    use crate::schedule::ScheduleKind;
    use gpas_data::WindowMode;
    use gpas_model::Scheme;

    fn recipe(name: &str) -> Recipe {
        resolve(Some(Path::new(name)), &RecipeOptions::default()).unwrap()
    }

    #[test]
    fn every_recipe_is_its_size_with_the_published_count() {
        let counts = [
            ("9m", 8_995_968),
            ("20m", 19_548_416),
            ("35m", 35_197_824),
            ("40m", 42_392_480),
            ("60m", 58_073_600),
            ("71m", 70_578_688),
            ("100m", 100_117_120),
            ("130m", 134_105_856),
            ("250m", 247_370_496),
            ("350m", 367_969_280),
            ("1b", 1_339_082_752),
            ("3b", 2_685_831_680),
            ("7b", 6_738_415_616),
        ];
        for (name, count) in counts {
            let recipe = recipe(name);
            assert_eq!(recipe.model.preset, name);
            assert_eq!(recipe.llama(1).unwrap().parameters(), count, "{name}");
        }
        assert_eq!(SHIPPED.len(), counts.len() + 1);
    }

    #[test]
    fn the_papers_recipes_have_its_numbers() {
        for (name, lr, steps, warmup, batch, clip, clip_gate) in [
            ("71m", 1e-3, 10_000, 1_000, 512, 0.0, 0.0),
            ("130m", 1e-3, 20_000, 2_000, 512, 0.0, 0.0),
            ("250m", 1e-3, 40_000, 4_000, 512, 0.0, 0.0),
            ("350m", 5e-4, 60_000, 6_000, 512, 0.0, 0.0),
            ("1b", 5e-4, 100_000, 10_000, 512, 0.0, 0.0),
            ("7b", 3e-4, 150_000, 10_000, 2048, 1.0, 0.01),
        ] {
            let recipe = recipe(name);
            let train = &recipe.train;
            assert_eq!((train.lr, train.steps, train.warmup), (lr, steps, warmup), "{name}");
            assert_eq!(
                (train.batch, train.clip, train.clip_gate),
                (batch, clip, clip_gate),
                "{name}"
            );
            assert_eq!((train.schedule, train.min_lr_ratio), (ScheduleKind::Cosine, 0.1));
            assert_eq!((train.optimizer, train.betas), (OptimizerKind::Adam, [0.9, 0.999]));
            assert_eq!((train.eps, train.weight_decay, train.seed), (1e-8, 0.0, 42));
            assert_eq!((recipe.data.mode, recipe.data.seq_len), (WindowMode::Padded, 256));
            assert_eq!((recipe.eval.every, recipe.eval.tokens), (1000, 10_000_000));
            assert_eq!(recipe.model.vocab, Some(32_000));
        }
        assert_eq!(SHIPPED.iter().filter(|shipped| shipped.published).count(), 6);
    }

    #[test]
    fn the_other_recipes_say_that_their_settings_are_ours() {
        for shipped in all() {
            let ours = shipped.text.contains("SETTINGS BELOW ARE OURS") || shipped.text.contains("SETTINGS ARE OURS");
            assert_eq!(ours, !shipped.published, "{}", shipped.name);
            assert!(shipped.text.starts_with(&format!("# {}: ", shipped.name)));
            let of_comparison = COMPARISONS.iter().any(|comparison| comparison.name == shipped.name);
            let command = if of_comparison { "compare" } else { "train" };
            let run = format!("#   gpas {command} {}", shipped.name);
            assert!(shipped.text.contains(&run), "{}", shipped.name);
        }
    }

    #[test]
    fn comparisons_have_a_baseline_gates_and_enough_seeds_for_an_interval() {
        for shipped in COMPARISONS {
            let compare = RecipeFile::read(Path::new(shipped.name)).unwrap().compare;
            assert!(
                compare.schemes.len() >= 3 && compare.seeds.len() >= 3,
                "{}",
                shipped.name
            );
            assert_eq!(compare.schemes[0], "pre", "{}", shipped.name);
            for scheme in &compare.schemes {
                assert!(scheme.parse::<Scheme>().is_ok(), "{scheme}");
            }
            assert!(recipe(shipped.name).llama(4096).is_ok());
        }
    }

    #[test]
    fn a_recipe_has_several_names() {
        for name in ["71m", "71m.toml", "paper-71m", "paper-71m.toml"] {
            assert_eq!(Shipped::named(name).map(|shipped| shipped.name), Some("71m"));
        }
        assert!(Shipped::named("72m").is_none());
    }
}
