//! What other trainers leave in the names of tensors: `torch.compile`, FSDP and checkpointing put a segment of their own into them, data
//! parallelism, PEFT and Lightning something before all of them.

use std::collections::BTreeSet;

/// Segments that wrap a module wherever they stand. No model has one of its own of these names.
const SEGMENTS: [&str; 4] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// What every name of a layer's tensor has, and what stands before it is not the model's.
const LAYERS: &str = "model.layers.";

/// Names without what wrappers have added, in the same order, and what that was.
pub(super) struct Unwrapped {
    pub(super) names: Vec<String>,
    pub(super) taken_off: Vec<String>,
}

impl Unwrapped {
    /// Takes wrappers' segments off, and what stands before all names. What stands before only some of them stays.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut found = BTreeSet::new();
        let without_segments = |name: &str| {
            let kept = name.split('.').filter(|segment| {
                let wrapper = SEGMENTS.into_iter().find(|wrapper| wrapper == segment);
                found.extend(wrapper);
                wrapper.is_none()
            });
            kept.collect::<Vec<_>>().join(".")
        };
        let mut names: Vec<String> = names.map(without_segments).collect();
        let mut taken_off: Vec<String> = found.into_iter().map(|segment| format!("{segment}.")).collect();
        let before = names.iter().find_map(|name| {
            let at = name.find(LAYERS)?;
            (at > 0 && name[..at].ends_with('.')).then(|| name[..at].to_string())
        });
        if let Some(before) = before
            && names.iter().all(|name| name.starts_with(&before))
        {
            for name in &mut names {
                name.drain(..before.len());
            }
            taken_off.push(before);
        }
        Self { names, taken_off }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_off_and_the_models_own_names_stay() {
        let own = [
            "lm_head.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.norm.weight",
        ];
        let unwrapped = |names: &[String]| {
            let Unwrapped { names, taken_off } = Unwrapped::of(names.iter().map(String::as_str));
            (names, taken_off)
        };
        let all = |before: &str| own.map(|name| format!("{before}{name}"));
        assert_eq!(unwrapped(&all("")), (all("").to_vec(), vec![]));
        for before in ["module.", "model.", "base_model.model.", "model.module.", "llm.net."] {
            assert_eq!(unwrapped(&all(before)), (all("").to_vec(), vec![before.to_string()]));
        }
        let compiled = ["_orig_mod.".to_string()];
        assert_eq!(unwrapped(&all("_orig_mod.")), (all("").to_vec(), compiled.to_vec()));
        let both = ["_orig_mod.".to_string(), "module.".to_string()];
        assert_eq!(unwrapped(&all("module._orig_mod.")), (all("").to_vec(), both.to_vec()));
        let inside = [
            "model.layers.0._checkpoint_wrapped_module.mlp._orig_mod.up_proj.weight",
            "model.norm.weight",
        ];
        let (names, _) = unwrapped(&inside.map(String::from));
        assert_eq!(names, own[1..]);
        // What only some names have is left for the comparison with the model to name.
        let some = ["module.model.layers.0.x".to_string(), "model.norm.weight".to_string()];
        assert_eq!(unwrapped(&some), (some.to_vec(), vec![]));
        assert_eq!(unwrapped(&[]), (vec![], vec![]));
    }
}
