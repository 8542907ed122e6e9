//! An open directory of prepared data.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::manifest::{Manifest, SplitRecord, TOKENIZER, read_manifest};
use super::tokens::TokenStore;
use crate::error::DataError;
use crate::lfs::refuse_lfs_pointer;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_config::{TOKENIZER_CONFIG, TokenizerConfig};

/// An open directory of prepared data.
#[derive(Debug, Clone)]
pub struct PreparedData {
    directory: PathBuf,
    manifest: Arc<Manifest>,
    tokenizer: Tokenizer,
    train: TokenStore,
    validation: TokenStore,
}

impl PreparedData {
    /// Opens a directory, checking all that costs nothing: the manifest, the tokenizer's hash, each file's length,
    /// magic, version and width. [`verify`](super::verify) checks every byte.
    ///
    /// # Errors
    /// Each kind of damage has its own, naming the file.
    pub fn open(directory: &Path) -> Result<Self, DataError> {
        let manifest = read_manifest(directory)?;
        let path = directory.join(TOKENIZER);
        refuse_lfs_pointer(&path)?;
        let bytes = fs::read(&path).map_err(DataError::io_of_listed(&path))?;
        let found = format!("{:x}", Sha256::digest(&bytes));
        if found != manifest.tokenizer.sha256 {
            let expected = manifest.tokenizer.sha256.clone();
            return Err(DataError::TokenizerMismatch { path, expected, found });
        }
        let config = read_tokenizer_config(directory, &manifest)?;
        let tokenizer = manifest.tokenizer.restore(Tokenizer::from_bytes(bytes, &path)?);
        let tokenizer = tokenizer.with_config(config);
        let open = |split: &SplitRecord| TokenStore::open(directory, split, manifest.token_bytes);
        let (train, validation) = (open(&manifest.train)?, open(&manifest.validation)?);
        Ok(Self {
            directory: directory.into(),
            manifest: Arc::new(manifest),
            tokenizer,
            train,
            validation,
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokenizer that the data was prepared with, with the special tokens of then.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The largest id in the data: what a model's vocabulary must exceed, whatever the tokenizer's size.
    pub fn max_id(&self) -> u32 {
        self.manifest.largest_id
    }

    /// The token that fills windows up.
    pub fn pad(&self) -> u32 {
        self.manifest.tokenizer.pad
    }

    /// The training split.
    pub fn train(&self) -> &TokenStore {
        &self.train
    }

    /// The validation split.
    pub fn validation(&self) -> &TokenStore {
        &self.validation
    }
}

/// What lay beside the tokenizer, if the manifest lists it.
fn read_tokenizer_config(directory: &Path, manifest: &Manifest) -> Result<Option<TokenizerConfig>, DataError> {
    let Some(expected) = &manifest.tokenizer.config_sha256 else {
        return Ok(None);
    };
    let path = directory.join(TOKENIZER_CONFIG);
    refuse_lfs_pointer(&path)?;
    let bytes = fs::read(&path).map_err(DataError::io_of_listed(&path))?;
    if format!("{:x}", Sha256::digest(&bytes)) != *expected {
        let cause = "its bytes are not those that were prepared (sha256)".into();
        return Err(DataError::Shard { path, cause });
    }
    TokenizerConfig::beside(&path)
}
