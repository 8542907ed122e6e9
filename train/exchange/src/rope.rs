//! Rotary positions in `config.json`, in both spellings: `rope_theta` beside a table `rope_scaling`, whose type stands under `rope_type` or
//! `type`, as `transformers` 4 has it, and the table `rope_parameters`, which has `rope_theta` too, as `transformers` 5 writes it and reads
//! besides the other.
//!
//! Written is the first spelling, which both releases read. A field that the type of the scaling does not have changes nothing in
//! `transformers`; it is left out with a word.

use gpas_model::rope_scaling::RopeScalingFields;
use gpas_model::{LlamaConfig, RopeScaling, RopeScalingError, RopeType};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The positions before scaling; older configurations have it beside the table rather than in it.
const ORIGINAL: &str = "original_max_position_embeddings";

/// The keys of `config.json` about rotary positions.
#[derive(Deserialize)]
pub(super) struct RopeKeys {
    rope_theta: Option<Value>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    original_max_position_embeddings: Option<Value>,
    partial_rotary_factor: Option<Value>,
}

/// What they say.
#[derive(Debug)]
pub(super) struct Rope {
    /// Base of the frequencies.
    pub(super) base: f64,
    /// What changes the frequencies.
    pub(super) scaling: RopeScaling,
    /// What is left out, for people.
    pub(super) notes: Vec<String>,
}

impl RopeKeys {
    /// The base and the scaling of a model with so many positions.
    ///
    /// # Errors
    /// If the scaling is none that is computed, lacks a field, or has a value that makes no sense.
    pub(super) fn read(&self, max_positions: usize) -> Result<Rope, RopeScalingError> {
        let mut notes = Vec::new();
        let is_given = |table: &&Map<String, Value>| !table.is_empty();
        let (old, new) = (
            self.rope_scaling.as_ref().filter(is_given),
            self.rope_parameters.as_ref().filter(is_given),
        );
        let (table_name, table) = match (old, new) {
            (Some(old), new) => {
                if new.is_some_and(|new| new != old) {
                    notes.push(
                        "config.json: `rope_parameters` is not used beside `rope_scaling`, as in transformers".into(),
                    );
                }
                ("rope_scaling", old.clone())
            }
            (None, new) => ("rope_parameters", new.cloned().unwrap_or_default()),
        };
        let get = |key: &str| table.get(key).filter(|value| !value.is_null());
        let base = get("rope_theta").or(self.rope_theta.as_ref().filter(|value| !value.is_null()));
        let base = base.map_or(Ok(10_000.0), |value| number("rope_theta", value))?;
        if !(base.is_finite() && base > 1.0) {
            return Err(wrong("rope_theta", "a number above 1", &base));
        }
        let rope_type = match get("rope_type").or(get("type")) {
            None => RopeType::Default,
            Some(name) => RopeType::named(name.as_str().unwrap_or(&name.to_string()))?,
        };
        let mut fields = RopeScalingFields {
            rope_type,
            ..RopeScalingFields::default()
        };
        for (key, value) in table.iter().filter(|(_, value)| !value.is_null()) {
            if !take(&mut fields, key, value)? {
                notes.push(format!(
                    "config.json: `{table_name}.{key}` is no field of rope_type `{rope_type}`; it is left out"
                ));
            }
        }
        for field in fields.superfluous() {
            notes.push(format!(
                "config.json: `{table_name}.{field}` is no field of rope_type `{rope_type}`; it is left out"
            ));
        }
        self.complete(fields, &table, max_positions)
            .map(|scaling| Rope { base, scaling, notes })
    }

    /// What no scaling of whole heads in all layers is; nothing if there is none of that kind.
    pub(super) fn not_supported(&self) -> Option<String> {
        let tables = [&self.rope_scaling, &self.rope_parameters].into_iter().flatten();
        let in_tables = tables.clone().filter_map(|table| table.get("partial_rotary_factor"));
        let parts = in_tables
            .chain(&self.partial_rotary_factor)
            .filter(|part| !part.is_null());
        if let Some(part) = parts.into_iter().find(|part| part.as_f64() != Some(1.0)) {
            return Some(format!("partial_rotary_factor {part}"));
        }
        // A table within the table is one for some of the layers.
        let inner = tables.flatten().find(|(_, value)| value.is_object());
        inner.map(|(name, _)| format!("a scaling of rotary positions for some layers (`{name}`)"))
    }

    /// The scaling, with what its table leaves to the rest of the configuration.
    fn complete(
        &self,
        mut fields: RopeScalingFields,
        table: &Map<String, Value>,
        max_positions: usize,
    ) -> Result<RopeScaling, RopeScalingError> {
        // Beside the table it weighs more than in it, and `dynamic` goes by the positions of the model whatever else there is, as in
        // transformers.
        if let Some(beside) = self
            .original_max_position_embeddings
            .as_ref()
            .filter(|value| !value.is_null())
        {
            fields.original_max_position_embeddings = Some(positions(beside)?);
        }
        let original = match fields.rope_type {
            RopeType::Dynamic => max_positions,
            _ => fields.original_max_position_embeddings.unwrap_or(max_positions),
        };
        fields.original_max_position_embeddings = Some(original);
        // A factor that is there and null follows from the positions.
        if fields.rope_type == RopeType::Yarn && table.get("factor").is_some_and(Value::is_null) {
            fields.factor = Some(max_positions as f64 / original.max(1) as f64);
        }
        fields.complete(max_positions)
    }
}

/// Takes a field of the table; none of that name if false.
fn take(fields: &mut RopeScalingFields, key: &str, value: &Value) -> Result<bool, RopeScalingError> {
    let place = match key {
        "factor" => &mut fields.factor,
        "low_freq_factor" => &mut fields.low_freq_factor,
        "high_freq_factor" => &mut fields.high_freq_factor,
        "attention_factor" => &mut fields.attention_factor,
        "beta_fast" => &mut fields.beta_fast,
        "beta_slow" => &mut fields.beta_slow,
        "mscale" => &mut fields.mscale,
        "mscale_all_dim" => &mut fields.mscale_all_dim,
        ORIGINAL => {
            fields.original_max_position_embeddings = Some(positions(value)?);
            return Ok(true);
        }
        "truncate" => {
            fields.truncate = Some(value.as_bool().ok_or_else(|| wrong(key, "true or false", value))?);
            return Ok(true);
        }
        "rope_type" | "type" | "rope_theta" | "partial_rotary_factor" => return Ok(true),
        _ => return Ok(false),
    };
    *place = Some(number(key, value)?);
    Ok(true)
}

fn wrong(field: &str, allowed: &'static str, found: &impl ToString) -> RopeScalingError {
    RopeScalingError::Value {
        field: field.into(),
        allowed,
        found: found.to_string(),
    }
}

fn number(field: &str, value: &Value) -> Result<f64, RopeScalingError> {
    value.as_f64().ok_or_else(|| wrong(field, "a number", value))
}

/// A number of positions, which some configurations write as a float.
fn positions(value: &Value) -> Result<usize, RopeScalingError> {
    let whole = value
        .as_f64()
        .filter(|number| number.fract() == 0.0 && (1.0..=u32::MAX.into()).contains(number));
    whole
        .map(|number| number as usize)
        .ok_or_else(|| wrong(ORIGINAL, "a whole number of at least 1", value))
}

/// The table `rope_scaling` of a model, and its positions before a scaling by length.
pub(super) fn write(config: &LlamaConfig) -> (Value, usize) {
    match config.rope_scaling {
        RopeScaling::Default => (Value::Null, config.max_positions),
        // `dynamic` takes the original positions from the model.
        RopeScaling::Dynamic {
            factor,
            original_max_position_embeddings,
        } => (
            json!({"rope_type": "dynamic", "factor": factor}),
            original_max_position_embeddings,
        ),
        scaling => (json!(scaling), config.max_positions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &Value) -> Result<Rope, RopeScalingError> {
        let keys: RopeKeys = serde_json::from_value(config.clone()).unwrap();
        keys.read(256)
    }

    fn scaling(config: Value) -> RopeScaling {
        read(&config).unwrap().scaling
    }

    /// Llama-3.2's, in the spellings that there are.
    #[test]
    fn both_spellings_of_every_type_are_read() {
        let llama3 = json!({"factor": 32.0, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        let with = |table: &Value, more: Value| {
            let mut table = table.clone();
            table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            table
        };
        let expected = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        };
        let named = with(&llama3, json!({"rope_type": "llama3"}));
        for config in [
            json!({"rope_theta": 5e5, "rope_scaling": named}),
            json!({"rope_theta": 500000, "rope_scaling": with(&llama3, json!({"type": "llama3"}))}),
            json!({"rope_parameters": with(&named, json!({"rope_theta": 5e5}))}),
            json!({"rope_theta": 1e4, "rope_scaling": null, "rope_parameters": with(&named, json!({"rope_theta": 5e5, "partial_rotary_factor": 1.0}))}),
            json!({"rope_theta": 5e5, "rope_scaling": with(&named, json!({"original_max_position_embeddings": 7})), "original_max_position_embeddings": 64}),
        ] {
            let rope = read(&config).unwrap();
            assert_eq!(
                (rope.base, rope.scaling, rope.notes.len()),
                (5e5, expected, 0),
                "{config}"
            );
        }
        let linear = json!({"type": "linear", "factor": 2});
        assert_eq!(
            scaling(json!({"rope_scaling": linear})),
            RopeScaling::Linear { factor: 2.0 }
        );
        assert_eq!(scaling(json!({"rope_scaling": {}})), RopeScaling::Default);
        assert_eq!(
            scaling(json!({"rope_parameters": {"rope_type": "default"}})),
            RopeScaling::Default
        );
    }

    #[test]
    fn what_a_table_leaves_out_follows_from_the_positions() {
        let dynamic = json!({"rope_type": "dynamic", "factor": 2.0});
        let expected = RopeScaling::Dynamic {
            factor: 2.0,
            original_max_position_embeddings: 256,
        };
        assert_eq!(
            scaling(json!({"rope_scaling": dynamic, "original_max_position_embeddings": 64})),
            expected
        );
        let yarn = |table: Value| match scaling(json!({ "rope_scaling": table })) {
            RopeScaling::Yarn(yarn) => (yarn.factor, yarn.original_max_position_embeddings),
            other => panic!("{other:?}"),
        };
        assert_eq!(yarn(json!({"type": "yarn", "factor": 3.0})), (3.0, 256));
        let from_positions = json!({"type": "yarn", "factor": null, "original_max_position_embeddings": 64.0});
        assert_eq!(yarn(from_positions), (4.0, 64));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (config, said) in [
            (
                json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
                "rope_type `longrope` is none that is computed here",
            ),
            (
                json!({"rope_scaling": {"type": 3}}),
                "rope_type `3` is none that is computed here",
            ),
            (
                json!({"rope_scaling": {"type": "linear"}}),
                "rope_type `linear` needs `factor`",
            ),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": "four"}}),
                "`factor` must be a number, not \"four\"",
            ),
            (
                json!({"rope_scaling": {"type": "dynamic", "factor": 0.5}}),
                "`factor` must be a number of at least 1, not 0.5",
            ),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64.5}}),
                "`original_max_position_embeddings` must be a whole number of at least 1, not 64.5",
            ),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}),
                "`truncate` must be true or false, not 1",
            ),
            (
                json!({"rope_theta": 0.5}),
                "`rope_theta` must be a number above 1, not 0.5",
            ),
        ] {
            assert_eq!(read(&config).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn heads_that_are_turned_in_part_and_layers_of_their_own_are_not_supported() {
        let what = |config: Value| serde_json::from_value::<RopeKeys>(config).unwrap().not_supported();
        assert_eq!(
            what(json!({"partial_rotary_factor": 0.5})).unwrap(),
            "partial_rotary_factor 0.5"
        );
        let inside = json!({"rope_type": "default", "partial_rotary_factor": 0.25});
        assert_eq!(
            what(json!({"rope_parameters": inside})).unwrap(),
            "partial_rotary_factor 0.25"
        );
        assert_eq!(
            what(json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}})).unwrap(),
            "a scaling of rotary positions for some layers (`full_attention`)"
        );
        assert_eq!(
            what(json!({"partial_rotary_factor": 1.0, "rope_scaling": {"type": "linear"}})),
            None
        );
    }

    #[test]
    fn fields_that_change_nothing_are_left_out_with_a_word() {
        let rope = read(&json!({
            "rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": true, "beta_fast": 32},
            "rope_parameters": {"rope_type": "default"},
        }));
        assert_eq!(
            rope.unwrap().notes,
            [
                "config.json: `rope_parameters` is not used beside `rope_scaling`, as in transformers",
                "config.json: `rope_scaling.finetuned` is no field of rope_type `linear`; it is left out",
                "config.json: `rope_scaling.beta_fast` is no field of rope_type `linear`; it is left out",
            ]
        );
    }

    #[test]
    fn what_is_written_is_read() {
        for table in [
            json!({"rope_type": "linear", "factor": 2.0}),
            json!({"rope_type": "dynamic", "factor": 2.0}),
            json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128, "attention_factor": 1.5, "mscale": 0.5}),
        ] {
            let scaling = scaling(json!({ "rope_scaling": table }));
            let config = LlamaConfig::new(8, 8, 8, 2, 1)
                .with_max_positions(256)
                .with_rope_scaling(scaling);
            assert_eq!(write(&config), (table, 256));
        }
    }
}
