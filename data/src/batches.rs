//! Batches: windows as tensors, through Burn's data loaders and for a training loop that asks for its steps.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::backend::Backend;
use burn_dataset::Dataset;
use gpas_batch::{BatchError, TokenBatch};

use crate::damage::Damage;
use crate::error::DataError;
use crate::order::BatchOrder;
use crate::windows::{Window, Windows};

/// Windows as one batch.
///
/// # Errors
/// When there is no window, or they do not have one length.
pub fn stack<B: Backend>(windows: &[Window], device: &B::Device) -> Result<TokenBatch<B>, BatchError> {
    let rows = windows.iter().map(|window| (&window.ids[..], &window.targets[..]));
    TokenBatch::from_rows(rows, device)
}

/// [`stack`] as Burn's [`Batcher`], for a data loader of Burn's own over [`Windows`].
#[derive(Debug, Clone, Copy, Default)]
pub struct WindowBatcher;

impl<B: Backend> Batcher<B, Window, TokenBatch<B>> for WindowBatcher {
    /// # Panics
    /// Where [`stack`] gives an error, which the windows of one [`Windows`] never do.
    fn batch(&self, windows: Vec<Window>, device: &B::Device) -> TokenBatch<B> {
        stack(&windows, device).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The training batches of a range of optimizer steps.
///
/// As a [`DataLoader`] it gives the steps of its range, and each further [`iter`](DataLoader::iter) as many steps after those: the second
/// epoch of a learner goes on with the order where the first one ends. (A learner that resumes after k epochs of n steps is given the range
/// k·n .. (k + 1)·n.) Where the data is damaged it ends early, and [`damage`](Self::damage) tells. [The windows](Self::windows_of_step) of
/// any step can be had besides.
///
/// [`slice`](DataLoader::slice) and [`to_device`](DataLoader::to_device) make data loaders that begin with the first epoch and count
/// their own. A slice is a part of every epoch, so that slices are as disjoint in the second as in the first.
#[derive(Debug)]
pub struct TrainBatches<B: Backend> {
    windows: Windows,
    order: BatchOrder,
    batch: usize,
    micro_batch: usize,
    /// Position of the run at which the first epoch of the whole data loader begins.
    start: u64,
    /// Positions of an epoch of the whole data loader, of which this one gives `items`.
    epoch: u64,
    items: Range<u64>,
    epochs_begun: AtomicU64,
    device: B::Device,
}

impl<B: Backend> Clone for TrainBatches<B> {
    /// The same data loader at its first epoch.
    fn clone(&self) -> Self {
        Self {
            windows: self.windows.clone(),
            items: self.items.clone(),
            epochs_begun: AtomicU64::new(0),
            device: self.device.clone(),
            ..*self
        }
    }
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
        check_batch(batch)?;
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
        let start = position(steps.start);
        let epoch = position(steps.end).saturating_sub(start);
        Ok(Self {
            windows,
            order,
            batch,
            micro_batch: batch,
            start,
            epoch,
            items: 0..epoch,
            epochs_begun: AtomicU64::new(0),
            device,
        })
    }

    /// Gives each step in micro-batches of `micro_batch` windows, the last of which may be smaller; without this, a step is one.
    ///
    /// # Errors
    /// When it is 0.
    pub fn with_micro_batch(self, micro_batch: usize) -> Result<Self, DataError> {
        check_batch(micro_batch)?;
        let micro_batch = micro_batch.min(self.batch);
        Ok(Self { micro_batch, ..self })
    }

    /// The windows of optimizer step `step` (from 0), whether or not it is in the data loader's range.
    ///
    /// # Errors
    /// When the data is damaged.
    pub fn windows_of_step(&self, step: usize) -> Result<Vec<Window>, DataError> {
        let indices = self.order.indices(step, self.batch);
        indices.into_iter().map(|index| self.windows.window(index)).collect()
    }

    /// Where to ask, after iterating, whether the data ended or is damaged.
    pub fn damage(&self) -> &Damage {
        self.windows.damage()
    }
}

fn check_batch(batch: usize) -> Result<(), DataError> {
    match batch {
        0 => Err(DataError::Range("a batch of no sequence".into())),
        _ => Ok(()),
    }
}

impl<B: Backend> DataLoader<B, TokenBatch<B>> for TrainBatches<B> {
    /// The micro-batches of the next steps of the order, as many steps as the range has.
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch<B>> + 'a> {
        let epoch = self.epochs_begun.fetch_add(1, Ordering::Relaxed);
        let first = self
            .epoch
            .saturating_mul(epoch)
            .saturating_add(self.start + self.items.start);
        Box::new(Batches::<B, _> {
            windows: &self.windows,
            index: move |item: usize| self.order.window_at(first.saturating_add(item as u64)),
            items: self.num_items(),
            batch: self.batch,
            micro_batch: self.micro_batch,
            done: 0,
            device: self.device.clone(),
        })
    }

    /// Windows of an epoch.
    fn num_items(&self) -> usize {
        (self.items.end - self.items.start) as usize
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    /// The windows `start..end` of every epoch.
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
///
/// As a [`DataLoader`] it gives the same batches in every epoch. Where the data is damaged it ends early, and
/// [`damage`](Self::damage) tells.
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
        check_batch(batch)?;
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

    /// Where to ask, after iterating, whether the data ended or is damaged.
    pub fn damage(&self) -> &Damage {
        self.windows.damage()
    }
}

impl<B: Backend> DataLoader<B, TokenBatch<B>> for EvaluationBatches<B> {
    /// The batches in order, the same ones each time.
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch<B>> + 'a> {
        Box::new(Batches::<B, _> {
            windows: &self.windows,
            index: move |item: usize| self.items.start + item,
            items: self.items.len(),
            batch: self.batch,
            micro_batch: self.batch,
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

/// Iterates over the batches of a range of items, whose windows `index` gives.
struct Batches<'a, B: Backend, F> {
    windows: &'a Windows,
    index: F,
    items: usize,
    batch: usize,
    micro_batch: usize,
    done: usize,
    device: B::Device,
}

impl<B: Backend, F: Fn(usize) -> usize> Batches<'_, B, F> {
    /// The items of the next micro-batch, which ends where its batch does.
    fn next_items(&self) -> Range<usize> {
        let batch_end = (self.done - self.done % self.batch).saturating_add(self.batch);
        let end = self.done.saturating_add(self.micro_batch).min(batch_end);
        self.done..end.min(self.items)
    }
}

impl<B: Backend, F: Fn(usize) -> usize> Iterator for Batches<'_, B, F> {
    type Item = TokenBatch<B>;

    fn next(&mut self) -> Option<TokenBatch<B>> {
        let items = self.next_items();
        if items.is_empty() || self.windows.damage().is_found() {
            return None;
        }
        let windows = items.clone().map(|item| self.windows.window((self.index)(item)));
        let windows = windows.collect::<Result<Vec<_>, _>>();
        let batch = windows.and_then(|windows| Ok(stack(&windows, &self.device)?));
        let batch = batch.map_err(|error| self.windows.damage().report(error)).ok()?;
        self.done = items.end;
        Some(batch)
    }
}

impl<B: Backend, F: Fn(usize) -> usize> DataLoaderIterator<TokenBatch<B>> for Batches<'_, B, F> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{prepared, windows};
    use crate::store::PreparedData;
    use crate::windows::WindowMode;
    use burn::data::dataloader::DataLoaderBuilder;
    use burn_flex::Flex;

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
    fn epochs_go_on_with_the_order_and_slices_of_them_stay_disjoint() {
        let loaded =
            |loader: &dyn DataLoader<Flex, TokenBatch<Flex>>| loader.iter().flat_map(|batch| rows(&batch)).collect();
        let batches = train(3, 2..6);
        let of_steps = |steps: Range<usize>| -> Vec<Vec<i64>> {
            let once = train(3, steps);
            loaded(&once)
        };
        let halves = [batches.slice(0, 5), batches.slice(5, 12).to_device(&Default::default())];
        for epoch in 0..3 {
            let whole: Vec<Vec<i64>> = loaded(&batches);
            assert_eq!(whole, of_steps(2 + 4 * epoch..6 + 4 * epoch), "epoch {epoch}");
            let [first, second]: [Vec<Vec<i64>>; 2] = [0, 1].map(|half| loaded(halves[half].as_ref()));
            assert_eq!([first, second].concat(), whole, "epoch {epoch}");
        }
        // An epoch that is given up early is over all the same.
        batches.iter().next();
        let whole: Vec<Vec<i64>> = loaded(&batches);
        assert_eq!(whole, of_steps(18..22));
        assert!(loaded(&train(3, 6..6)).is_empty());
    }

    #[test]
    fn micro_batches_end_with_their_step() {
        let batches = train(5, 2..5).with_micro_batch(2).unwrap();
        assert_eq!(batches.num_items(), 15);
        let loaded: Vec<TokenBatch<Flex>> = batches.iter().collect();
        let sizes: Vec<usize> = loaded.iter().map(|batch| batch.ids.dims()[0]).collect();
        assert_eq!(sizes, [2, 2, 1, 2, 2, 1, 2, 2, 1]);
        for (step, part) in (2..).zip(loaded.chunks(3)) {
            let windows = batches.windows_of_step(step).unwrap();
            let whole = stack::<Flex>(&windows, &Default::default()).unwrap();
            assert_eq!(part.iter().flat_map(rows).collect::<Vec<_>>(), rows(&whole));
            assert_eq!(part.iter().map(|batch| batch.scored).sum::<usize>(), 40);
        }
        let whole: Vec<Vec<i64>> = train(5, 2..5).iter().flat_map(|batch| rows(&batch)).collect();
        assert_eq!(loaded.iter().flat_map(rows).collect::<Vec<_>>(), whole);
        assert_eq!(train(5, 0..1).with_micro_batch(9).unwrap().iter().count(), 1);
        assert!(train(5, 0..1).with_micro_batch(0).is_err());
    }

    /// An id that the manifest says is not there, in the middle of the shard: every way of iterating ends before it and names it.
    #[test]
    fn damage_ends_iterating_and_is_told_with_its_place() {
        let place = tempfile::tempdir().unwrap();
        let text = "abcdefghijklmnopqrstuvwxy";
        let directory = prepared(place.path(), &[text; 4], &[text]);
        let shard = directory.join("train-00000.tokens");
        let mut bytes = std::fs::read(&shard).unwrap();
        bytes[16 + 2 * 50] = 29;
        std::fs::write(&shard, bytes).unwrap();
        let store = PreparedData::open(&directory).unwrap().train().clone();
        let open = || Windows::new(store.clone(), WindowMode::Packed, 8, 0).unwrap();
        let told = |damage: &Damage| {
            let said = damage.check().unwrap_err().to_string();
            assert!(
                said.contains("train-00000.tokens: id 29 at token 50 is above"),
                "{said}"
            );
            damage.check().unwrap();
        };

        // 12 windows in batches of 4: the damage is in window 6, its targets' last id in window 5 is whole.
        let evaluation = EvaluationBatches::<Flex>::new(open(), 4, None, Default::default()).unwrap();
        assert_eq!(evaluation.iter().count(), 1);
        assert!(evaluation.damage().is_found());
        assert_eq!(
            evaluation.iter().count(),
            0,
            "nothing is given until somebody has asked"
        );
        told(evaluation.damage());
        assert_eq!(evaluation.slice(8, 12).iter().count(), 1);
        evaluation.damage().check().unwrap();

        let train = TrainBatches::<Flex>::new(open(), 3, 4, 0..3, Default::default()).unwrap();
        let loader: Arc<dyn DataLoader<Flex, TokenBatch<Flex>>> = train.slice(0, 12).to_device(&Default::default());
        let mut batches = loader.iter();
        let whole = batches.by_ref().count();
        assert!(whole < 3);
        assert_eq!(batches.progress().items_processed, 4 * whole);
        told(train.damage());
        let failing = (0..3)
            .find_map(|step| train.windows_of_step(step).err())
            .unwrap()
            .to_string();
        assert!(failing.contains("token 50"), "{failing}");

        // Burn's own data loader over the windows.
        let windows = open();
        let loader = DataLoaderBuilder::<Flex, _, _>::new(WindowBatcher)
            .batch_size(4)
            .build(windows.clone());
        assert!(loader.iter().count() < 3);
        told(windows.damage());
        assert!(windows.get(12).is_none());
        windows.damage().check().unwrap();
    }

    #[test]
    fn no_windows_and_uneven_ones_are_refused() {
        let stack = |windows: &[Window]| stack::<Flex>(windows, &Default::default());
        assert_eq!(stack(&[]).unwrap_err(), BatchError::Empty);
        let uneven = [vec![1, 2, 3], vec![4]].map(|ids| Window {
            targets: vec![5; ids.len()],
            ids,
        });
        let error = stack(&uneven).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("row 1 has 1 positions, the rows before it 3"),
            "{error}"
        );
    }
}
