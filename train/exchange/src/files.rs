//! The weights of a directory from elsewhere, in whichever files they lie: `model.safetensors`, `pytorch_model.bin`, or shards of either
//! with an index. Every tensor's name, type and shape are known before any of its numbers are read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use gpas_data::refuse_lfs_pointer;
use gpas_model::weights::{HostTensor, SafetensorsFile};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use serde::Deserialize;

use crate::ExchangeError;
use crate::archive::Archive;
use crate::pickle::{self, PickledTensor};
use crate::wrappers::Unwrapped;

/// A configuration has some kilobytes, and an index of shards a hundred bytes per tensor. Parsed, either may take twenty times its size.
const LARGEST_JSON: u64 = 16 << 20;

/// The program of a checkpoint has some hundred bytes per tensor too. What it makes may take forty times its size.
const LARGEST_PICKLE: u64 = 8 << 20;

/// Reads a whole file of text, if it is not too large to be what it should be.
pub(super) fn read_text(path: &Path) -> Result<Vec<u8>, ExchangeError> {
    let failed = |cause| ExchangeError::Io {
        path: path.to_path_buf(),
        cause,
    };
    refuse_lfs_pointer(path)?;
    let facts = fs::metadata(path).map_err(failed)?;
    if !facts.is_file() || facts.len() > LARGEST_JSON {
        return Err(ExchangeError::damaged(
            path,
            format!("it is no file of at most {} MiB", LARGEST_JSON >> 20),
        ));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LARGEST_JSON).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// What is known of a tensor before it is read.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Number of the file that it lies in.
    file: usize,
    /// Its name there.
    stored: String,
}

#[cfg(test)]
impl Described {
    /// An f32 tensor of some file.
    pub(super) fn float(shape: Vec<usize>) -> Self {
        Self {
            dtype: Dtype::F32,
            shape,
            file: 0,
            stored: String::new(),
        }
    }
}

/// The weights of a directory.
#[derive(Debug)]
pub(super) struct WeightFiles {
    files: Vec<RefCell<WeightFile>>,
    tensors: BTreeMap<String, Described>,
    /// What other trainers had added to the names.
    taken_off: Vec<String>,
}

#[derive(Debug)]
enum WeightFile {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

/// `…index.json`: which tensor lies in which shard.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Finds and opens the files, and checks what they say of themselves.
    pub(super) fn open(directory: &Path) -> Result<Self, ExchangeError> {
        let there = |name: &str| Some(directory.join(name)).filter(|path| path.exists());
        for single in ["model.safetensors", "pytorch_model.bin"] {
            if let Some(path) = there(single) {
                return Self::of(&[path], None);
            }
            let index = format!("{single}.index.json");
            if let Some(path) = there(&index) {
                return Self::sharded(directory, &path);
            }
        }
        Err(ExchangeError::NoWeights(directory.to_path_buf()))
    }

    fn sharded(directory: &Path, path: &Path) -> Result<Self, ExchangeError> {
        let index: Index = serde_json::from_slice(&read_text(path)?)
            .map_err(|cause| ExchangeError::damaged(path, format!("it is no index of shards: {cause}")))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut shards = Vec::new();
        for name in names {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(ExchangeError::damaged(
                    path,
                    format!("the shard `{name}` is no file of this directory"),
                ));
            }
            let shard = directory.join(name);
            if !shard.exists() {
                return Err(ExchangeError::damaged(path, format!("the shard `{name}` is missing")));
            }
            shards.push(shard);
        }
        Self::of(&shards, Some((path, &index.weight_map)))
    }

    fn of(paths: &[PathBuf], index: Option<(&Path, &BTreeMap<String, String>)>) -> Result<Self, ExchangeError> {
        let mut this = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            taken_off: Vec::new(),
        };
        for (number, path) in paths.iter().enumerate() {
            let file = WeightFile::open(path)?;
            for (name, dtype, shape) in file.tensors() {
                let described = Described {
                    dtype,
                    shape,
                    file: number,
                    stored: name.clone(),
                };
                if this.tensors.insert(name.clone(), described).is_some() {
                    return Err(ExchangeError::damaged(
                        path,
                        format!("`{name}` lies in another shard too"),
                    ));
                }
            }
            this.files.push(RefCell::new(file));
        }
        if let Some((index, map)) = index {
            for (name, shard) in map {
                let found = this.tensors.get(name).map(|tensor| paths[tensor.file].ends_with(shard));
                if found != Some(true) {
                    return Err(ExchangeError::damaged(index, format!("`{name}` is not in `{shard}`")));
                }
            }
        }
        this.unwrap_names(&paths[0])?;
        Ok(this)
    }

    /// Gives the tensors the names that they have in the model itself.
    fn unwrap_names(&mut self, path: &Path) -> Result<(), ExchangeError> {
        let Unwrapped { names, taken_off } = Unwrapped::of(self.tensors.keys().map(String::as_str));
        for (name, tensor) in names.into_iter().zip(std::mem::take(&mut self.tensors).into_values()) {
            let stored = tensor.stored.clone();
            if let Some(other) = self.tensors.insert(name.clone(), tensor) {
                let what = format!("`{stored}` and `{}` are both `{name}`", other.stored);
                return Err(ExchangeError::damaged(path, what));
            }
        }
        self.taken_off = taken_off;
        Ok(())
    }

    /// What other trainers had added to the names of the tensors, which is left out of those that [`Self::tensors`] gives.
    pub(super) fn taken_off(&self) -> &[String] {
        &self.taken_off
    }

    /// Every tensor by its name.
    pub(super) fn tensors(&self) -> &BTreeMap<String, Described> {
        &self.tensors
    }

    /// One tensor, in f32.
    pub(super) fn read(&self, name: &str) -> Result<HostTensor, ExchangeError> {
        let known = self.tensors.get(name);
        let tensor = known.ok_or_else(|| ExchangeError::Missing {
            names: vec![name.into()],
        })?;
        match &mut *self.files[tensor.file].borrow_mut() {
            WeightFile::Safetensors(file) => Ok(file.read(&tensor.stored)?),
            WeightFile::Torch(file) => file.read(&tensor.stored),
        }
    }
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, ExchangeError> {
        refuse_lfs_pointer(path)?;
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            Ok(WeightFile::Safetensors(SafetensorsFile::open(path)?))
        } else {
            Ok(WeightFile::Torch(TorchFile::open(path)?))
        }
    }

    fn tensors(&self) -> Vec<(String, Dtype, Vec<usize>)> {
        match self {
            WeightFile::Safetensors(file) => {
                let tensors = file.tensors();
                tensors
                    .map(|(name, dtype, shape)| (name.into(), dtype, shape.to_vec()))
                    .collect()
            }
            WeightFile::Torch(file) => {
                let shape = |tensor: &PickledTensor| tensor.shape.iter().map(|size| *size as usize).collect();
                let tensors = file.tensors.iter();
                tensors
                    .map(|(name, tensor)| (name.clone(), tensor.dtype, shape(tensor)))
                    .collect()
            }
        }
    }
}

/// A `pytorch_model.bin`.
#[derive(Debug)]
struct TorchFile {
    path: PathBuf,
    archive: Archive,
    /// What every name in the archive begins with.
    folder: String,
    tensors: BTreeMap<String, PickledTensor>,
}

impl TorchFile {
    /// Reads the program and compares every tensor with the storage it is a view of.
    fn open(path: &Path) -> Result<Self, ExchangeError> {
        let damaged = |what: String| ExchangeError::damaged(path, what);
        let broken = |error: crate::archive::ArchiveError| damaged(error.to_string());
        let mut archive = Archive::open(path).map_err(broken)?;
        let folder = archive
            .names()
            .find_map(|name| name.strip_suffix("/data.pkl"))
            .map(String::from);
        let folder = folder.ok_or_else(|| damaged("it has no entry data.pkl".into()))?;
        let order = format!("{folder}/byteorder");
        if archive.size(&order).is_some() && archive.read(&order, 16).map_err(broken)? != b"little" {
            return Err(damaged("its numbers are not little-endian".into()));
        }
        let program = archive
            .read(&format!("{folder}/data.pkl"), LARGEST_PICKLE)
            .map_err(broken)?;
        let tensors = pickle::tensors(&program).map_err(|error| damaged(error.to_string()))?;
        let this = Self {
            path: path.to_path_buf(),
            archive,
            folder,
            tensors,
        };
        this.check()?;
        Ok(this)
    }

    /// Every tensor lies within its storage, the storage has the length that is claimed, and all tensors together hold no more than twice
    /// the numbers of all storages: two names may share one, as a tied head does, but a file cannot ask for memory that it does not bring.
    fn check(&self) -> Result<(), ExchangeError> {
        let mut storages = BTreeMap::new();
        let mut numbers = 0_u64;
        for (name, tensor) in &self.tensors {
            let bad = |what: &str| ExchangeError::damaged(&self.path, format!("its tensor `{name}` {what}"));
            let entry = self.archive.size(&self.entry(tensor));
            let claimed = tensor.length.checked_mul(tensor.dtype.bitsize() as u64 / 8);
            if entry.is_none() || entry != claimed {
                return Err(bad("is a view of a storage of another length"));
            }
            storages.insert(&tensor.storage, tensor.length);
            if tensor.strides.len() != tensor.shape.len() {
                return Err(bad("has another number of strides than of dimensions"));
            }
            let count = tensor
                .shape
                .iter()
                .try_fold(1_u64, |count, size| count.checked_mul(*size));
            let count = count.filter(|count| *count <= tensor.length);
            let count = count.ok_or_else(|| bad("has more numbers than its storage"))?;
            let reach = |last: u64, (size, stride): (&u64, &u64)| {
                last.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
            };
            let last = tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, reach);
            if count > 0 && last.is_none_or(|last| last >= tensor.length) {
                return Err(bad("reaches beyond its storage"));
            }
            numbers = numbers.saturating_add(count);
        }
        let stored = storages.values().fold(0_u64, |sum, length| sum.saturating_add(*length));
        if numbers > stored.saturating_mul(2) {
            let what = format!("its tensors claim {numbers} numbers, and it holds {stored}");
            return Err(ExchangeError::damaged(&self.path, what));
        }
        Ok(())
    }

    fn entry(&self, tensor: &PickledTensor) -> String {
        format!("{}/data/{}", self.folder, tensor.storage)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor, ExchangeError> {
        let tensor = self.tensors[name].clone();
        let entry = self.entry(&tensor);
        let bytes = self.archive.read(&entry, u64::MAX);
        let bytes = bytes.map_err(|error| ExchangeError::damaged(&self.path, error.to_string()))?;
        let width = tensor.dtype.bitsize() / 8;
        let number: fn(&[u8]) -> f32 = match tensor.dtype {
            Dtype::F64 => |b| f64::from_le_bytes(b.try_into().unwrap_or_default()) as f32,
            Dtype::F32 => |b| f32::from_le_bytes(b.try_into().unwrap_or_default()),
            Dtype::F16 => |b| f16::from_le_bytes(b.try_into().unwrap_or_default()).to_f32(),
            Dtype::BF16 => |b| bf16::from_le_bytes(b.try_into().unwrap_or_default()).to_f32(),
            other => {
                return Err(ExchangeError::damaged(
                    &self.path,
                    format!("its tensor `{name}` holds no floats ({other:?})"),
                ));
            }
        };
        let [shape, strides] =
            [&tensor.shape, &tensor.strides].map(|sizes| sizes.iter().map(|size| *size as usize).collect::<Vec<_>>());
        let count: usize = shape.iter().product();
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0; shape.len()];
        for _ in 0..count {
            let place = index
                .iter()
                .zip(&strides)
                .map(|(at, stride)| at * stride)
                .sum::<usize>()
                + tensor.offset as usize;
            values.push(number(&bytes[place * width..][..width]));
            // The last dimension runs fastest.
            for dimension in (0..shape.len()).rev() {
                index[dimension] += 1;
                if index[dimension] < shape[dimension] {
                    break;
                }
                index[dimension] = 0;
            }
        }
        Ok(HostTensor { shape, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::{Entry, View, archive, program, saved};

    fn open(bytes: &[u8]) -> Result<TorchFile, ExchangeError> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("pytorch_model.bin");
        fs::write(&path, bytes).unwrap();
        TorchFile::open(&path)
    }

    fn refused(bytes: &[u8]) -> String {
        let said = open(bytes).map(|_| "it was read").unwrap_err().to_string();
        assert_eq!(said.lines().count(), 1, "{said}");
        let (path, cause) = said.split_once(": ").unwrap();
        assert!(path.ends_with("pytorch_model.bin"), "{said}");
        cause.to_string()
    }

    fn with(views: &[View], storages: &[&[f32]]) -> Vec<u8> {
        let storage = |(number, values): (usize, &&[f32])| Entry::storage(number, values);
        let mut entries = vec![Entry::stored("archive/data.pkl", &program(views))];
        entries.extend(storages.iter().enumerate().map(storage));
        archive(&entries)
    }

    const SIX: &[f32] = &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

    #[test]
    fn tensors_are_views_of_storages() {
        let whole = View::whole("whole", 0, &[2, 3]);
        let turned = View {
            name: "turned".into(),
            offset: 1,
            shape: vec![2, 2],
            strides: vec![1, 3],
            ..whole.clone()
        };
        let mut file = open(&with(&[whole, turned], &[SIX])).unwrap();
        assert_eq!(file.read("whole").unwrap().values, SIX);
        assert_eq!(file.read("turned").unwrap().values, [2.0, 5.0, 3.0, 6.0]);
        let gate = HostTensor {
            shape: vec![],
            values: vec![0.5],
        };
        let mut scalar = open(&saved(&[("gate".to_string(), gate)].into())).unwrap();
        let gate = scalar.read("gate").unwrap();
        assert_eq!((gate.shape, gate.values), (vec![], vec![0.5]));
    }

    #[test]
    fn hostile_archives_are_refused() {
        let whole = View::whole("w", 0, &[2, 3]);
        let view = |change: fn(&mut View)| {
            let mut view = whole.clone();
            change(&mut view);
            with(&[view], &[SIX])
        };
        let entries = |change: fn(&mut Vec<Entry>)| {
            let mut entries = vec![
                Entry::stored("archive/data.pkl", &program(std::slice::from_ref(&whole))),
                Entry::storage(0, SIX),
            ];
            change(&mut entries);
            archive(&entries)
        };
        for (bytes, cause) in [
            (
                view(|view| view.length = 1 << 60),
                "its tensor `w` is a view of a storage of another length",
            ),
            (
                view(|view| view.length = u64::MAX / 2),
                "its tensor `w` is a view of a storage of another length",
            ),
            (
                view(|view| view.shape = vec![1 << 40, 3]),
                "its tensor `w` has more numbers than its storage",
            ),
            (
                view(|view| view.shape = vec![1 << 40, 1 << 40]),
                "its tensor `w` has more numbers than its storage",
            ),
            // A number that is repeated a million million times.
            (
                view(|view| (view.shape, view.strides) = (vec![1 << 40], vec![0])),
                "its tensor `w` has more numbers than its storage",
            ),
            (
                view(|view| view.offset = 1),
                "its tensor `w` reaches beyond its storage",
            ),
            (
                view(|view| view.strides = vec![1 << 62, 1 << 62]),
                "its tensor `w` reaches beyond its storage",
            ),
            (
                view(|view| view.strides = vec![1]),
                "its tensor `w` has another number of strides than of dimensions",
            ),
            (
                view(|view| view.storage = 7),
                "its tensor `w` is a view of a storage of another length",
            ),
            // A zip bomb: 24 bytes that claim to become four thousand million.
            (
                entries(|entries| (entries[1].method, entries[1].claimed) = (8, Some(u32::MAX - 1))),
                "its entry archive/data/0 is compressed or encrypted, which torch.save does not do",
            ),
            (
                entries(|entries| entries[0].method = 8),
                "its entry archive/data.pkl is compressed or encrypted, which torch.save does not do",
            ),
            (
                entries(|entries| drop(entries.remove(1))),
                "its tensor `w` is a view of a storage of another length",
            ),
            (entries(|entries| drop(entries.remove(0))), "it has no entry data.pkl"),
            // Another kind of zip bomb: every entry in the same bytes.
            (
                entries(|entries| {
                    let over = (1..200).map(|number| Entry {
                        over: Some(1),
                        ..Entry::storage(number, &[])
                    });
                    entries.extend(over.collect::<Vec<_>>());
                }),
                "its entries claim more bytes than it has: they lie over each other",
            ),
            (
                entries(|entries| entries.push(entries[1].clone())),
                "its directory is damaged",
            ),
            (
                entries(|entries| entries.push(Entry::stored("archive/byteorder", b"big"))),
                "its numbers are not little-endian",
            ),
            (
                entries(|entries| entries[0].bytes = b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.".to_vec()),
                "its pickle names `posix.system`, which no tensor needs; it is not run",
            ),
            (
                b"\x80\x02cposix\nsystem\n.".to_vec(),
                "it is no archive of torch.save (or one of before PyTorch 1.6)",
            ),
            (vec![], "it is no archive of torch.save (or one of before PyTorch 1.6)"),
        ] {
            assert_eq!(refused(&bytes), cause);
        }
        let shared: Vec<View> = (0..3)
            .map(|number| View {
                name: number.to_string(),
                ..whole.clone()
            })
            .collect();
        assert_eq!(
            refused(&with(&shared, &[SIX])),
            "its tensors claim 18 numbers, and it holds 6"
        );
    }

    #[test]
    fn a_damaged_storage_is_found_by_its_checksum() {
        let mut bytes = with(&[View::whole("w", 0, &[2, 3])], &[SIX]);
        let at = bytes.windows(4).position(|four| four == 4.0_f32.to_le_bytes()).unwrap();
        bytes[at] ^= 1;
        let error = open(&bytes).unwrap().read("w").unwrap_err().to_string();
        assert!(
            error.ends_with("its entry archive/data/0 is damaged: it has another checksum than the directory says"),
            "{error}"
        );
    }

    /// Every damage of one byte, and every truncation, is an error or changes the weights, and never a panic.
    #[test]
    fn damage_never_panics() {
        let whole = with(&[View::whole("w", 0, &[2, 3])], &[SIX]);
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("w.bin");
        let look = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            if let Ok(mut file) = TorchFile::open(&path) {
                let names: Vec<String> = file.tensors.keys().cloned().collect();
                names.iter().for_each(|name| drop(file.read(name)));
            }
        };
        for at in 0..whole.len() {
            for change in [1, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= change;
                look(&damaged);
            }
            look(&whole[..at]);
        }
    }

    fn directory(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(place.path().join(name), bytes).unwrap();
        }
        place
    }

    #[test]
    fn shards_lie_in_the_directory_and_hold_what_the_index_says() {
        let shard = |name: &str| {
            let (shape, values) = (vec![6], SIX.to_vec());
            saved(&[(name.to_string(), HostTensor { shape, values })].into())
        };
        let index = |map: &str| format!("{{\"weight_map\": {map}}}").into_bytes();
        let name = "pytorch_model.bin.index.json";
        let good = directory(&[
            (name, index(r#"{"a": "1.bin", "b": "2.bin"}"#)),
            ("1.bin", shard("a")),
            ("2.bin", shard("b")),
        ]);
        let files = WeightFiles::open(good.path()).unwrap();
        assert_eq!(files.tensors().keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(files.read("b").unwrap().values, SIX);
        for (map, cause) in [
            (
                r#"{"a": "../1.bin"}"#,
                "the shard `../1.bin` is no file of this directory",
            ),
            (
                r#"{"a": "/etc/passwd"}"#,
                "the shard `/etc/passwd` is no file of this directory",
            ),
            (r#"{"a": ".."}"#, "the shard `..` is no file of this directory"),
            (
                r#"{"a": "x/1.bin"}"#,
                "the shard `x/1.bin` is no file of this directory",
            ),
            (r#"{"a": ""}"#, "the shard `` is no file of this directory"),
            (r#"{"a": "3.bin"}"#, "the shard `3.bin` is missing"),
            (r#"{"a": "1.bin", "c": "1.bin"}"#, "`c` is not in `1.bin`"),
            (r#"{"b": "1.bin", "a": "2.bin"}"#, "`a` is not in `2.bin`"),
            (r#"{"a": "1.bin", "b": "1 copy.bin"}"#, "`a` lies in another shard too"),
            ("[]", "it is no index of shards: invalid type: sequence, expected a map"),
        ] {
            let place = directory(&[
                (name, index(map)),
                ("1.bin", shard("a")),
                ("2.bin", shard("b")),
                ("1 copy.bin", shard("a")),
            ]);
            let error = WeightFiles::open(place.path()).unwrap_err().to_string();
            assert!(
                error.contains(cause) && error.lines().count() == 1,
                "{error}\nexpected {cause}"
            );
        }
        let empty = WeightFiles::open(directory(&[]).path()).unwrap_err().to_string();
        assert!(
            empty.ends_with("holds no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards"),
            "{empty}"
        );
    }
}
