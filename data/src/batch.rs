//! Batches: windows of tokens, in an order that is a pure function of (seed, step).

use std::ops::Range;
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_dataset::Dataset;
use serde::{Deserialize, Serialize};
use strum::VariantNames;

use crate::error::DataError;
use crate::store::TokenStore;

/// The target of a position that is not scored.
pub const IGNORE_INDEX: i32 = -100;

/// How documents become windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum WindowMode {
    /// Documents follow one another without a gap. A window takes seq + 1 tokens, seq inputs and seq targets, and the
    /// next one starts seq tokens later, so that each token but the first is a target exactly once. A rest shorter than
    /// that is dropped.
    #[default]
    Packed,
    /// One document per window, cut to seq tokens or filled up with the padding token: at most seq − 1 targets.
    /// A document that is cut keeps its last token, the end of the document, after its first seq − 1, as Hugging Face's
    /// tokenizers cut. Documents of fewer than two tokens, which have no target, give no window.
    Padded,
}

/// A sequence and what each of its positions is scored against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The input tokens.
    pub ids: Vec<u32>,
    /// For each position the token that follows it, or [`IGNORE_INDEX`].
    pub targets: Vec<i32>,
}

impl Window {
    /// Positions that are scored.
    pub fn scored(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE_INDEX).count()
    }
}

/// The windows of a split.
#[derive(Debug, Clone)]
pub struct Windows {
    store: TokenStore,
    mode: WindowMode,
    seq_len: usize,
    pad: u32,
    /// Documents that give no window, in order; there are hardly any.
    short: Arc<[usize]>,
}

impl Windows {
    /// The windows of `seq_len` positions; `pad` fills up those of short documents.
    ///
    /// # Errors
    /// When `seq_len` leaves no target, or the index of documents is damaged.
    pub fn new(store: TokenStore, mode: WindowMode, seq_len: usize, pad: u32) -> Result<Self, DataError> {
        let least = match mode {
            WindowMode::Packed => 1,
            WindowMode::Padded => 2,
        };
        if seq_len < least {
            return Err(DataError::Range(format!("seq_len {seq_len} leaves nothing to score")));
        }
        let largest = store.max_id().max(pad);
        if i32::try_from(largest).is_err() {
            return Err(DataError::Range(format!("id {largest} is too large for a target")));
        }
        let mut short = Vec::new();
        if mode == WindowMode::Padded {
            for document in 0..store.documents() {
                if store.document_span(document)?.1 < 2 {
                    short.push(document);
                }
            }
        }
        Ok(Self {
            store,
            mode,
            seq_len,
            pad,
            short: short.into(),
        })
    }

    /// Positions in a window.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Window `index`.
    ///
    /// # Errors
    /// When there is no such window, or the data is damaged.
    pub fn window(&self, index: usize) -> Result<Window, DataError> {
        if index >= self.len() {
            return Err(DataError::Range(format!("window {index} of {}", self.len())));
        }
        match self.mode {
            WindowMode::Packed => {
                let mut ids = vec![0; self.seq_len + 1];
                self.store.range(index * self.seq_len, &mut ids)?;
                let targets = ids[1..].iter().map(|&id| id as i32).collect();
                ids.pop();
                Ok(Window { ids, targets })
            }
            WindowMode::Padded => {
                let (start, length) = self.store.document_span(self.document(index))?;
                let mut ids = vec![self.pad; self.seq_len];
                let kept = length.min(self.seq_len);
                self.store.range(start, &mut ids[..kept])?;
                if length > kept {
                    self.store.range(start + length - 1, &mut ids[kept - 1..])?;
                }
                let mut targets = vec![IGNORE_INDEX; self.seq_len];
                for (target, &next) in targets.iter_mut().zip(&ids[1..kept]) {
                    *target = next as i32;
                }
                Ok(Window { ids, targets })
            }
        }
    }

    /// The document of a padded window: the index, moved past each short document before it.
    fn document(&self, index: usize) -> usize {
        // short[i] − i documents that do give a window stand before the i-th short one.
        let positions = |i: usize| self.short[i] - i;
        let (mut low, mut high) = (0, self.short.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if positions(middle) <= index {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        index + low
    }

    /// Positions of window `index` that are scored, without reading its tokens.
    fn scored(&self, index: usize) -> Result<usize, DataError> {
        Ok(match self.mode {
            WindowMode::Packed => self.seq_len,
            WindowMode::Padded => {
                let (_, length) = self.store.document_span(self.document(index))?;
                length.min(self.seq_len).saturating_sub(1)
            }
        })
    }
}

impl Dataset<Window> for Windows {
    /// Window `index`; none past the end, and none where the data is damaged ([`Windows::window`] tells the two apart).
    fn get(&self, index: usize) -> Option<Window> {
        self.window(index).ok()
    }

    fn len(&self) -> usize {
        match self.mode {
            WindowMode::Packed => self.store.tokens().saturating_sub(1) / self.seq_len,
            WindowMode::Padded => self.store.documents() - self.short.len(),
        }
    }
}

/// Windows as tensors.
#[derive(Debug, Clone)]
pub struct TokenBatch<B: Backend> {
    /// The input tokens, `[batch, seq]`.
    pub ids: Tensor<B, 2, Int>,
    /// What each position is scored against, or [`IGNORE_INDEX`], `[batch, seq]`.
    pub targets: Tensor<B, 2, Int>,
    /// Positions that are scored.
    pub scored: usize,
}

/// Stacks windows into tensors of the backend's own integer type.
///
/// All windows of a batch have the same length; no windows give tensors of no rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct WindowBatcher;

impl<B: Backend> Batcher<B, Window, TokenBatch<B>> for WindowBatcher {
    fn batch(&self, windows: Vec<Window>, device: &B::Device) -> TokenBatch<B> {
        let rows = windows.len();
        let seq_len = windows.first().map_or(0, |window| window.ids.len());
        let scored = windows.iter().map(Window::scored).sum();
        let mut ids = Vec::with_capacity(rows * seq_len);
        let mut targets = Vec::with_capacity(rows * seq_len);
        for window in &windows {
            // A window of another length, which this crate never makes, is cut or filled up with positions not scored.
            let cells = (0..seq_len).map(|at| {
                let id = window.ids.get(at).copied().unwrap_or(0);
                (
                    i64::from(id),
                    i64::from(window.targets.get(at).copied().unwrap_or(IGNORE_INDEX)),
                )
            });
            for (id, target) in cells {
                ids.push(id);
                targets.push(target);
            }
        }
        let tensor = |values: Vec<i64>| {
            Tensor::from_data(TensorData::new(values, [rows, seq_len]).convert::<B::IntElem>(), device)
        };
        TokenBatch {
            ids: tensor(ids),
            targets: tensor(targets),
            scored,
        }
    }
}

/// Which windows come when: a fresh permutation in each epoch, computed and never stored.
///
/// Position k of a run (k = step · batch + j) lies in epoch ⌊k / N⌋ of N windows. Within an epoch, k mod N goes through
/// a Feistel network keyed by (seed, epoch) on the smallest even number of bits that holds N, which permutes all numbers
/// of that many bits, and again until the result is below N: at most four times on average. Integers only, so that
/// every machine agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOrder {
    seed: u64,
    windows: u64,
}

const FEISTEL_ROUNDS: u64 = 8;

impl BatchOrder {
    /// The order of `windows` windows under `seed`.
    ///
    /// # Errors
    /// When there is no window.
    pub fn new(seed: u64, windows: usize) -> Result<Self, DataError> {
        if windows == 0 {
            return Err(DataError::Range("no window to put in order".into()));
        }
        Ok(Self {
            seed,
            windows: windows as u64,
        })
    }

    /// The window at position `k` of the run.
    pub fn window_at(&self, k: u64) -> usize {
        let (epoch, mut value) = (k / self.windows, k % self.windows);
        let half = ((64 - (self.windows - 1).leading_zeros()).div_ceil(2)).max(1);
        let mask = (1_u64 << half) - 1;
        let key = mix(self.seed ^ mix(epoch));
        loop {
            let (mut left, mut right) = (value >> half, value & mask);
            for round in 0..FEISTEL_ROUNDS {
                let scrambled = mix(key.wrapping_add(round) ^ mix(right)) & mask;
                (left, right) = (right, left ^ scrambled);
            }
            value = left << half | right;
            if value < self.windows {
                return value as usize;
            }
        }
    }

    /// The windows of optimizer step `step` (from 0) with `batch` sequences.
    pub fn indices(&self, step: usize, batch: usize) -> Vec<usize> {
        let first = (step as u64).saturating_mul(batch as u64);
        (0..batch as u64)
            .map(|j| self.window_at(first.saturating_add(j)))
            .collect()
    }
}

/// The output function of SplitMix64, after its increment: a bijection of 64-bit numbers in which each bit of the
/// argument changes about half of the result's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The training batches of a range of optimizer steps.
///
/// The training loop asks for [`windows_of_step`](Self::windows_of_step), which any step answers in any order; as a
/// [`DataLoader`] it gives the steps of its range, one batch each.
#[derive(Debug, Clone)]
pub struct TrainBatches<B: Backend> {
    windows: Windows,
    order: BatchOrder,
    batch: usize,
    /// Positions of the run that the data loader gives.
    items: Range<u64>,
    device: B::Device,
}

impl<B: Backend> TrainBatches<B> {
    /// Batches of `batch` windows for the steps `steps` (from 0), ordered by `seed`.
    ///
    /// # Errors
    /// When the data is shorter than one batch.
    pub fn new(
        windows: Windows,
        seed: u64,
        batch: usize,
        steps: Range<usize>,
        device: B::Device,
    ) -> Result<Self, DataError> {
        if batch == 0 {
            return Err(DataError::Range("a batch of no sequence".into()));
        }
        if windows.len() < batch {
            let (seq_len, windows) = (windows.seq_len(), windows.len());
            return Err(DataError::ShorterThanBatch {
                windows,
                batch,
                seq_len,
            });
        }
        let order = BatchOrder::new(seed, windows.len())?;
        let position = |step: usize| (step as u64).saturating_mul(batch as u64);
        let items = position(steps.start)..position(steps.end.max(steps.start));
        Ok(Self {
            windows,
            order,
            batch,
            items,
            device,
        })
    }

    /// The windows of optimizer step `step` (from 0), whether or not it is in the data loader's range.
    ///
    /// # Errors
    /// When the data is damaged.
    pub fn windows_of_step(&self, step: usize) -> Result<Vec<Window>, DataError> {
        let indices = self.order.indices(step, self.batch);
        indices.into_iter().map(|index| self.windows.window(index)).collect()
    }
}

impl<B: Backend> DataLoader<B, TokenBatch<B>> for TrainBatches<B> {
    /// The batches in order; they end early where the data is damaged ([`TrainBatches::windows_of_step`] says why).
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch<B>> + 'a> {
        let first = self.items.start;
        Box::new(Batches::<B, _> {
            window: move |item: usize| self.windows.get(self.order.window_at(first + item as u64)),
            items: self.num_items(),
            batch: self.batch,
            done: 0,
            device: self.device.clone(),
        })
    }

    fn num_items(&self) -> usize {
        (self.items.end - self.items.start) as usize
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        let items = part(&(0..self.num_items()), start, end);
        let items = self.items.start + items.start as u64..self.items.start + items.end as u64;
        Arc::new(Self { items, ..self.clone() })
    }
}

/// The items `start..end` of a range, without any that it does not have.
fn part(items: &Range<usize>, start: usize, end: usize) -> Range<usize> {
    let at = |offset: usize| items.start.saturating_add(offset).min(items.end);
    at(start)..at(end.max(start))
}

/// The validation windows from the first on, until enough tokens are scored; the last batch may be smaller.
#[derive(Debug, Clone)]
pub struct EvaluationBatches<B: Backend> {
    windows: Windows,
    items: Range<usize>,
    batch: usize,
    scored: usize,
    device: B::Device,
}

impl<B: Backend> EvaluationBatches<B> {
    /// Batches of `batch` windows until at least `tokens` tokens are scored, or all of them.
    ///
    /// # Errors
    /// When the data gives no window, or is damaged.
    pub fn new(windows: Windows, batch: usize, tokens: Option<usize>, device: B::Device) -> Result<Self, DataError> {
        if batch == 0 {
            return Err(DataError::Range("a batch of no sequence".into()));
        }
        if windows.is_empty() {
            return Err(DataError::NoWindow {
                seq_len: windows.seq_len(),
            });
        }
        let (mut count, mut scored) = (0, 0);
        while count < windows.len() && tokens.is_none_or(|tokens| scored < tokens) {
            scored += windows.scored(count)?;
            count += 1;
        }
        Ok(Self {
            windows,
            items: 0..count,
            batch,
            scored,
            device,
        })
    }

    /// Batches.
    pub fn batches(&self) -> usize {
        self.items.len().div_ceil(self.batch)
    }

    /// Tokens scored in all batches.
    pub fn scored(&self) -> usize {
        self.scored
    }

    /// The windows of batch `index`; none past the end.
    ///
    /// # Errors
    /// When the data is damaged.
    pub fn windows_of_batch(&self, index: usize) -> Result<Vec<Window>, DataError> {
        let start = index.saturating_mul(self.batch);
        part(&self.items, start, start.saturating_add(self.batch))
            .map(|index| self.windows.window(index))
            .collect()
    }
}

impl<B: Backend> DataLoader<B, TokenBatch<B>> for EvaluationBatches<B> {
    /// The batches in order; they end early where the data is damaged ([`EvaluationBatches::windows_of_batch`] says why).
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch<B>> + 'a> {
        Box::new(Batches::<B, _> {
            window: move |item: usize| self.windows.get(self.items.start + item),
            items: self.items.len(),
            batch: self.batch,
            done: 0,
            device: self.device.clone(),
        })
    }

    fn num_items(&self) -> usize {
        self.items.len()
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        let items = part(&self.items, start, end);
        // A damaged document scores nothing here; reading it is what reports it.
        let scored = items.clone().map(|index| self.windows.scored(index).unwrap_or(0)).sum();
        Arc::new(Self {
            items,
            scored,
            ..self.clone()
        })
    }
}

/// Iterates over batches of the items that `window` gives.
struct Batches<B: Backend, F> {
    window: F,
    items: usize,
    batch: usize,
    done: usize,
    device: B::Device,
}

impl<B: Backend, F: Fn(usize) -> Option<Window>> Iterator for Batches<B, F> {
    type Item = TokenBatch<B>;

    fn next(&mut self) -> Option<TokenBatch<B>> {
        let items = self.done..self.items.min(self.done.saturating_add(self.batch));
        if items.is_empty() {
            return None;
        }
        let windows = items.clone().map(&self.window).collect::<Option<Vec<_>>>()?;
        self.done = items.end;
        Some(WindowBatcher.batch(windows, &self.device))
    }
}

impl<B: Backend, F: Fn(usize) -> Option<Window>> DataLoaderIterator<TokenBatch<B>> for Batches<B, F> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PreparedData;
    use crate::store::tests::prepared;
    use burn_flex::Flex;
    use std::collections::HashSet;

    fn store(documents: &[&str]) -> TokenStore {
        let place = tempfile::tempdir().unwrap();
        PreparedData::open(&prepared(place.path(), documents, &["x"]))
            .unwrap()
            .train()
            .clone()
    }

    fn windows(documents: &[&str], mode: WindowMode, seq_len: usize) -> Windows {
        Windows::new(store(documents), mode, seq_len, 0).unwrap()
    }

    #[test]
    fn packed_windows_make_each_token_a_target_once() {
        // 3 4 5 1 6 7 1 8 1: nine tokens, of which the last is left over.
        let windows = windows(&["abc", "de", "f"], WindowMode::Packed, 2);
        let all: Vec<Window> = windows.iter().collect();
        assert_eq!(all.len(), 4);
        assert_eq!(
            all[0],
            Window {
                ids: vec![3, 4],
                targets: vec![4, 5]
            }
        );
        assert_eq!(
            all[1],
            Window {
                ids: vec![5, 1],
                targets: vec![1, 6]
            }
        );
        assert_eq!(
            all[3],
            Window {
                ids: vec![1, 8],
                targets: vec![8, 1]
            }
        );
        assert_eq!(all.iter().map(Window::scored).sum::<usize>(), 8);
        assert!(windows.get(4).is_none() && windows.window(4).is_err());
    }

    #[test]
    fn padded_windows_hold_one_document() {
        let windows = windows(&["abcdef", "a", "bc"], WindowMode::Padded, 4);
        let ignored = IGNORE_INDEX;
        let all: Vec<Window> = windows.iter().collect();
        assert_eq!(
            all[0],
            Window {
                ids: vec![3, 4, 5, 1],
                targets: vec![4, 5, 1, ignored]
            }
        );
        assert_eq!(
            all[1],
            Window {
                ids: vec![3, 1, 0, 0],
                targets: vec![1, ignored, ignored, ignored]
            }
        );
        assert_eq!(
            all[2],
            Window {
                ids: vec![4, 5, 1, 0],
                targets: vec![5, 1, ignored, ignored]
            }
        );
        for (index, window) in all.iter().enumerate() {
            assert_eq!(windows.scored(index).unwrap(), window.scored());
        }
    }

    #[test]
    fn a_cut_document_still_ends_with_its_end() {
        // a to f are 3 to 8, the end is 1: seven tokens.
        for (seq_len, ids) in [
            (2, vec![3, 1]),
            (3, vec![3, 4, 1]),
            (6, vec![3, 4, 5, 6, 7, 1]),
            (7, vec![3, 4, 5, 6, 7, 8, 1]),
            (8, vec![3, 4, 5, 6, 7, 8, 1, 0]),
        ] {
            let windows = windows(&["abcdef", "xyz"], WindowMode::Padded, seq_len);
            let window = windows.window(0).unwrap();
            let scored = seq_len.min(7) - 1;
            let mut targets: Vec<i32> = ids[1..=scored].iter().map(|&id| id as i32).collect();
            targets.resize(seq_len, IGNORE_INDEX);
            assert_eq!((window.ids, window.targets), (ids, targets), "seq_len {seq_len}");
            assert_eq!(windows.scored(0).unwrap(), scored);
        }
    }

    #[test]
    fn short_documents_are_passed_over() {
        let all = windows(&["a", "b", "c", "d", "e", "f"], WindowMode::Padded, 4);
        for short in [vec![], vec![0], vec![5], vec![0, 1, 3], vec![1, 2, 5], vec![2, 3, 4, 5]] {
            let some = Windows {
                short: short.clone().into(),
                ..all.clone()
            };
            let kept: Vec<usize> = (0..6).filter(|document| !short.contains(document)).collect();
            assert_eq!(
                (0..some.len()).map(|index| some.document(index)).collect::<Vec<_>>(),
                kept,
                "{short:?}"
            );
        }
    }

    #[test]
    fn a_window_without_targets_is_refused() {
        assert!(Windows::new(store(&["a"]), WindowMode::Packed, 0, 0).is_err());
        assert!(Windows::new(store(&["a"]), WindowMode::Padded, 1, 0).is_err());
    }

    #[test]
    fn each_epoch_is_a_permutation_of_its_own() {
        for count in (1..70).chain([127, 128, 129, 1000, 4096, 5000]) {
            let order = BatchOrder::new(7, count).unwrap();
            for epoch in 0..3 {
                let seen: HashSet<usize> = (0..count as u64)
                    .map(|k| order.window_at(epoch * count as u64 + k))
                    .collect();
                assert_eq!(seen.len(), count);
                assert!(seen.iter().all(|&window| window < count));
            }
        }
        let order = BatchOrder::new(7, 1000).unwrap();
        let epoch = |order: BatchOrder, epoch: usize| order.indices(epoch, 1000);
        let same = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(same(&epoch(order, 0), &epoch(order, 1)) < 10);
        assert!(same(&epoch(order, 0), &epoch(BatchOrder::new(8, 1000).unwrap(), 0)) < 10);
        // Far from the order on disk: neighbours are rare.
        let first = epoch(order, 0);
        assert!(first.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count() < 15);
        assert!(BatchOrder::new(7, 0).is_err());
    }

    #[test]
    fn the_order_is_the_same_on_every_machine() {
        let order = BatchOrder::new(42, 1_000_003).unwrap();
        assert_eq!(order.indices(0, 4), GOLDEN_ORDER[..4]);
        assert_eq!(order.indices(1_000_000, 4), GOLDEN_ORDER[4..]);
        let huge = BatchOrder::new(42, usize::MAX).unwrap();
        assert!(huge.window_at(u64::MAX) < usize::MAX);
    }

    /// Computed by another program from the definition above.
    const GOLDEN_ORDER: [usize; 8] = [293030, 206090, 384845, 76046, 75120, 953670, 554300, 494686];

    fn train(batch: usize, steps: Range<usize>) -> TrainBatches<Flex> {
        let windows = windows(&["abcdefghijklmnopqrstuvwxyz"; 3], WindowMode::Packed, 8);
        TrainBatches::new(windows, 3, batch, steps, Default::default()).unwrap()
    }

    fn rows(batch: &TokenBatch<Flex>) -> Vec<Vec<i64>> {
        let [_, width] = batch.ids.dims();
        let values: Vec<i64> = batch.ids.to_data().iter::<i64>().collect();
        values.chunks(width).map(<[i64]>::to_vec).collect()
    }

    #[test]
    fn the_data_loader_gives_the_windows_of_its_steps() {
        let batches = train(3, 2..6);
        let loaded: Vec<TokenBatch<Flex>> = batches.iter().collect();
        assert_eq!((loaded.len(), batches.num_items()), (4, 12));
        for (batch, step) in loaded.iter().zip(2..) {
            let windows = batches.windows_of_step(step).unwrap();
            assert_eq!(batch.ids.dims(), [3, 8]);
            assert_eq!(batch.scored, 24);
            let ids: Vec<Vec<i64>> = windows
                .iter()
                .map(|w| w.ids.iter().map(|&id| i64::from(id)).collect())
                .collect();
            assert_eq!(rows(batch), ids);
            let targets: Vec<i64> = windows
                .iter()
                .flat_map(|w| w.targets.iter().map(|&id| i64::from(id)))
                .collect();
            assert_eq!(batch.targets.to_data().iter::<i64>().collect::<Vec<_>>(), targets);
        }
        // Another loader, another range: the same step gives the same windows.
        assert_eq!(
            train(3, 0..1).windows_of_step(4).unwrap(),
            batches.windows_of_step(4).unwrap()
        );
    }

    #[test]
    fn slices_and_devices_keep_the_order() {
        let batches = train(3, 2..6);
        let whole: Vec<Vec<i64>> = batches.iter().flat_map(|batch| rows(&batch)).collect();
        let slice = batches.slice(2, 9);
        assert_eq!(slice.num_items(), 7);
        let loaded: Vec<TokenBatch<Flex>> = slice.iter().collect();
        assert_eq!(
            loaded.iter().map(|batch| batch.ids.dims()[0]).collect::<Vec<_>>(),
            [3, 3, 1]
        );
        assert_eq!(loaded.iter().flat_map(rows).collect::<Vec<_>>(), whole[2..9]);
        assert_eq!(
            slice
                .slice(1, 3)
                .iter()
                .flat_map(|batch| rows(&batch))
                .collect::<Vec<_>>(),
            whole[3..5]
        );
        assert_eq!(batches.slice(10, 99).num_items(), 2);
        assert_eq!(batches.slice(9, 3).num_items(), 0);
        let moved = batches.to_device(&Default::default());
        assert_eq!(moved.iter().flat_map(|batch| rows(&batch)).collect::<Vec<_>>(), whole);
        let mut iterator = batches.iter();
        iterator.next();
        assert_eq!(
            (iterator.progress().items_processed, iterator.progress().items_total),
            (3, 12)
        );
    }

    #[test]
    fn data_shorter_than_a_batch_is_refused() {
        let windows = windows(&["abcdefgh"], WindowMode::Packed, 4);
        let refused = TrainBatches::<Flex>::new(windows.clone(), 0, 3, 0..1, Default::default()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the data is shorter than one batch: 2 windows of 4 tokens, a batch needs 3"
        );
        assert!(TrainBatches::<Flex>::new(windows, 0, 0, 0..1, Default::default()).is_err());
    }

    #[test]
    fn evaluation_stops_when_enough_tokens_are_scored() {
        let documents = ["abcdefgh", "a", "bcd", "ef", "ghi"];
        let padded = windows(&documents, WindowMode::Padded, 6);
        let counts: Vec<usize> = (0..5).map(|index| padded.scored(index).unwrap()).collect();
        assert_eq!(counts, [5, 1, 3, 2, 3]);
        let evaluate = |tokens| EvaluationBatches::<Flex>::new(padded.clone(), 2, tokens, Default::default()).unwrap();
        for (tokens, windows, scored) in [
            (Some(1), 1, 5),
            (Some(5), 1, 5),
            (Some(7), 3, 9),
            (Some(99), 5, 14),
            (None, 5, 14),
        ] {
            let batches = evaluate(tokens);
            assert_eq!((batches.num_items(), batches.scored()), (windows, scored));
            let loaded: Vec<_> = batches.iter().collect();
            assert_eq!(loaded.len(), batches.batches());
            assert_eq!(loaded.iter().map(|batch| batch.scored).sum::<usize>(), scored);
            let direct: Vec<Window> = (0..9)
                .flat_map(|index| batches.windows_of_batch(index).unwrap())
                .collect();
            assert_eq!(direct, padded.iter().take(windows).collect::<Vec<_>>());
        }
        let slice = evaluate(None).slice(1, 4);
        assert_eq!(
            slice.iter().map(|batch| batch.ids.dims()[0]).collect::<Vec<_>>(),
            [2, 1]
        );
        let none = windows(&["a"], WindowMode::Packed, 9);
        assert!(matches!(
            EvaluationBatches::<Flex>::new(none, 1, None, Default::default()),
            Err(DataError::NoWindow { seq_len: 9 })
        ));
    }

    #[test]
    fn no_windows_and_uneven_ones_do_not_panic() {
        let batch: TokenBatch<Flex> = WindowBatcher.batch(Vec::new(), &Default::default());
        assert_eq!((batch.ids.dims(), batch.scored), ([0, 0], 0));
        let uneven = [vec![1, 2, 3], vec![4]].map(|ids| Window {
            targets: vec![5; ids.len()],
            ids,
        });
        let batch: TokenBatch<Flex> = WindowBatcher.batch(uneven.to_vec(), &Default::default());
        assert_eq!(rows(&batch), [[1, 2, 3], [4, 0, 0]]);
    }

    #[test]
    fn modes_are_spelled_in_lower_case() {
        assert_eq!(serde_json::to_string(&WindowMode::Padded).unwrap(), "\"padded\"");
        assert_eq!(
            serde_json::from_str::<WindowMode>("\"packed\"").unwrap(),
            WindowMode::Packed
        );
    }
}
