//! Damage to the data that is met where no error can be returned.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::DataError;

/// The first damage that was met; clones share it.
///
/// Burn's [`Dataset`](burn_dataset::Dataset) and [`DataLoader`](burn::data::dataloader::DataLoader) give items and no errors, so
/// damage ends their iterators as the end of the data does. Whoever iterates asks here which of the two it was:
///
/// ```
/// # use burn::data::dataloader::DataLoader;
/// # use burn::tensor::backend::Backend;
/// # use gpas_data::{DataError, TrainBatches};
/// fn positions<B: Backend>(batches: &TrainBatches<B>) -> Result<usize, DataError> {
///     let scored = batches.iter().map(|batch| batch.scored).sum();
///     batches.damage().check()?;
///     Ok(scored)
/// }
/// ```
///
/// Damage is also written to the [`log`] as an error. Until somebody has asked for it, no data loader over the same windows gives
/// anything more.
#[derive(Debug, Clone, Default)]
pub struct Damage {
    first: Arc<Mutex<Option<DataError>>>,
}

impl Damage {
    /// Takes the damage out, so that it is told once.
    ///
    /// # Errors
    /// When damage was met since the last time: the first, with its file and place.
    pub fn check(&self) -> Result<(), DataError> {
        self.lock().take().map_or(Ok(()), Err)
    }

    /// Whether damage was met that nobody has asked for.
    pub fn is_found(&self) -> bool {
        self.lock().is_some()
    }

    /// Keeps an error if it is the first.
    pub(crate) fn report(&self, error: DataError) {
        log::error!("{error}");
        self.lock().get_or_insert(error);
    }

    fn lock(&self) -> MutexGuard<'_, Option<DataError>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
