//! Windows: a split cut into sequences of one length, each with its targets.

use std::sync::Arc;

use burn_dataset::Dataset;
use gpas_batch::IGNORE_INDEX;
use serde::{Deserialize, Serialize};
use strum::VariantNames;

use crate::damage::Damage;
use crate::error::DataError;
use crate::store::TokenStore;

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
    damage: Damage,
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
            damage: Damage::default(),
        })
    }

    /// Positions in a window.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Damage that was met where no error could be returned: by [`Dataset::get`], and by every data loader over these windows or
    /// a clone of them.
    pub fn damage(&self) -> &Damage {
        &self.damage
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
    pub(crate) fn scored(&self, index: usize) -> Result<usize, DataError> {
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
    /// Window `index`; none past the end, and none where the data is damaged, which [`Windows::damage`] then tells.
    fn get(&self, index: usize) -> Option<Window> {
        if index >= self.len() {
            return None;
        }
        self.window(index).map_err(|error| self.damage.report(error)).ok()
    }

    fn len(&self) -> usize {
        match self.mode {
            WindowMode::Packed => self.store.tokens().saturating_sub(1) / self.seq_len,
            WindowMode::Padded => self.store.documents() - self.short.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{store, windows};

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
    fn modes_are_spelled_in_lower_case() {
        assert_eq!(serde_json::to_string(&WindowMode::Padded).unwrap(), "\"padded\"");
        assert_eq!(
            serde_json::from_str::<WindowMode>("\"packed\"").unwrap(),
            WindowMode::Packed
        );
    }
}
