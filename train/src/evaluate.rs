//! Evaluation: the mean loss over validation tokens, and its exponential, the perplexity.
//!
//! The average is over tokens, not over batches. (The released trainer's batch count starts at 1, so what it reports is the loss times
//! n / (n + 1) for n batches.)

use std::f64::consts::LN_2;

use burn::data::dataloader::DataLoader;
use burn::tensor::backend::Backend;
use gpas_data::tokenizer::ByteLengths;
use gpas_data::{Damage, DataError};
use gpas_model::{Llama, TokenBatch};

use crate::metrics::EvalRecord;

/// Loss and perplexity of `model`, which has been trained for `step` optimizer steps, on all batches of a loader. `damage` is where the
/// loader tells that its data is damaged, and `bytes` how many bytes of text each token stands for, where the tokenizer tells.
///
/// It ends early, with nothing, once `stop` says so.
///
/// # Errors
/// If the data is damaged.
pub fn evaluate<B: Backend>(
    model: &Llama<B>,
    batches: &dyn DataLoader<B, TokenBatch<B>>,
    damage: &Damage,
    bytes: Option<&ByteLengths>,
    step: u64,
    stop: impl Fn() -> bool,
) -> Result<Option<EvalRecord>, DataError> {
    let (mut loss, mut tokens, mut length) = (0.0, 0, 0);
    for batch in batches.iter() {
        if stop() {
            return Ok(None);
        }
        tokens += batch.scored;
        length += bytes.map_or(0, |bytes| scored_bytes(&batch, bytes));
        // Added up on the host in f64: the same on every backend but for the losses themselves.
        let losses = model.token_losses(batch.ids, batch.targets).into_data();
        loss += losses.iter::<f64>().sum::<f64>();
    }
    damage.check()?;
    let bits_per_byte = (length > 0).then(|| loss / LN_2 / length as f64);
    let loss = loss / tokens.max(1) as f64;
    Ok(Some(EvalRecord {
        step,
        loss,
        perplexity: loss.exp(),
        bits_per_byte,
        tokens: tokens as u64,
    }))
}

/// The bytes of text that the scored tokens of a batch stand for.
fn scored_bytes<B: Backend>(batch: &TokenBatch<B>, bytes: &ByteLengths) -> u64 {
    let (ids, targets) = (batch.ids.to_data(), batch.targets.to_data());
    let positions = ids.iter::<i64>().zip(targets.iter::<i64>());
    // What is not scored is below zero.
    let scored = positions.filter_map(|(id, target)| Some((u32::try_from(id).ok()?, u32::try_from(target).ok()?)));
    scored.map(|(previous, id)| bytes.after(previous, id)).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    use burn::data::dataset::Dataset;
    use burn::tensor::activation::log_softmax;
    use burn_flex::{Flex, FlexDevice};
    use gpas_data::bpe::train_bpe;
    use gpas_data::prepare::{PrepareOptions, ValidationSplit, prepare};
    use gpas_data::source::{Documents, ReadOptions};
    use gpas_data::{EvaluationBatches, IGNORE_INDEX, Window, WindowMode, Windows, stack};
    use gpas_data::{PreparedData, SpelledOut};
    use gpas_model::{LlamaConfig, Progress};

    pub(crate) const VOCAB: usize = 270;
    pub(crate) const SEQ: usize = 12;

    /// Documents of unequal length.
    pub(crate) fn prepared(place: &Path) -> PreparedData {
        let document = |length: usize| {
            let words = (0..length).map(|word| ["a cat", "the dog", "42", "ran"][word * word % 7 % 4]);
            words.collect::<Vec<_>>().join(" ") + "\n"
        };
        let text = |file: &str, lengths: &[usize]| {
            let folder = place.join(file);
            fs::create_dir(&folder).unwrap();
            for length in lengths {
                fs::write(folder.join(format!("{length}.txt")), document(*length)).unwrap();
            }
            folder
        };
        let training = text("training", &[30, 40]);
        let validation = text("validation", &[2, 3, 5, 8, 13, 21, 34]);
        let documents = Documents::open(std::slice::from_ref(&training), ReadOptions::default()).unwrap();
        let tokenizer = place.join("tokenizer.json");
        train_bpe(documents, VOCAB, true).unwrap().save(&tokenizer).unwrap();
        let options = PrepareOptions {
            sources: vec![training],
            tokenizer,
            validation: ValidationSplit::Source(validation),
            out: place.join("data"),
            read: ReadOptions::default(),
            end_of_document: None,
            special_tokens: SpelledOut::default(),
            quiet: true,
        };
        prepare(&options).unwrap();
        PreparedData::open(&options.out).unwrap()
    }

    /// Steps done, in the middle of the model's residual warm-up.
    pub(crate) const STEP: u64 = 7;

    /// A model whose losses differ much from token to token, so that a mean over batches is not one over tokens.
    fn model() -> Llama<Flex> {
        let config = LlamaConfig::new(VOCAB, 16, 32, 2, 2)
            .with_scheme("prores".parse().unwrap())
            .with_residual_warmup(10);
        let mut model = config.init::<Flex>(5, &FlexDevice).with_progress(Progress::after(STEP));
        let mut head = model.head.take().unwrap();
        head.weight = head.weight.map(|weight| weight.mul_scalar(50.0));
        model.head = Some(head);
        model
    }

    /// Sum of the losses of a window's scored tokens and their number, from the logits.
    pub(crate) fn by_hand(model: &Llama<Flex>, window: Window) -> (f64, usize) {
        let targets = window.targets.clone();
        let logits = model.logits(stack(&[window], &FlexDevice).unwrap().ids);
        let logs = log_softmax(logits, 2).into_data().into_vec::<f32>().unwrap();
        let losses: Vec<f64> = logs
            .chunks(VOCAB)
            .zip(targets)
            .filter(|(_, target)| *target != IGNORE_INDEX)
            .map(|(logs, target)| -f64::from(logs[target as usize]))
            .collect();
        (losses.iter().sum(), losses.len())
    }

    #[test]
    fn the_loss_is_the_mean_over_all_scored_tokens() {
        let place = tempfile::tempdir().unwrap();
        let data = prepared(place.path());
        let model = model();
        for mode in [WindowMode::Packed, WindowMode::Padded] {
            let windows = Windows::new(data.validation().clone(), mode, SEQ, data.pad()).unwrap();
            let count = windows.len();
            let batch = (2..count).find(|batch| count % batch != 0).unwrap();
            assert!(
                count / batch >= 2,
                "{mode:?}: {count} windows are at least two whole batches and a short one"
            );
            let (loss, tokens) = (0..count)
                .map(|index| by_hand(&model, windows.window(index).unwrap()))
                .fold((0.0, 0), |(loss, tokens), (more, scored)| {
                    (loss + more, tokens + scored)
                });
            let expected = loss / tokens as f64;
            let targets: Vec<u32> = (0..count)
                .flat_map(|index| windows.window(index).unwrap().targets)
                .filter_map(|target| u32::try_from(target).ok())
                .collect();
            let text = data.tokenizer().decode_plain(&targets).unwrap();
            let batches = EvaluationBatches::new(windows, batch, None, FlexDevice).unwrap();
            let bytes = data.tokenizer().byte_lengths();

            let at = |step| {
                let model = model.clone().with_progress(Progress::after(step));
                let found = evaluate(&model, &batches, batches.damage(), bytes.as_ref(), step, || false);
                found.unwrap().unwrap()
            };
            let found = at(STEP);
            assert_ne!(found.loss, at(100 * STEP).loss, "the warm-up has no part in it");
            assert_eq!((found.step, found.tokens), (STEP, tokens as u64), "{mode:?}");
            // A count that is off by one, of the tokens let alone of the batches, is off by more than this.
            assert!(tokens < 10_000, "{mode:?}");
            let relative = (found.loss / expected - 1.0).abs();
            assert!(relative < 1e-5, "{mode:?}: {} against {expected}", found.loss);
            assert_eq!(found.perplexity, found.loss.exp(), "{mode:?}");
            let bits = loss / 2f64.ln() / text.len() as f64;
            let found = found.bits_per_byte.unwrap();
            assert!((found / bits - 1.0).abs() < 1e-5, "{mode:?}: {found} against {bits}");
        }
    }
}
