//! A safetensors file on the disk, from which tensors are read one at a time.
//!
//! The file is not trusted. Its header is no longer than the file and than safetensors allows, its tensors lie one behind the other and
//! fill the rest of the file exactly, each as long as its shape and type say. All of that is checked before a tensor's memory is asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::tensor::{HostTensor, NamedTensors, WeightsError, floats, is_float};

/// Longest header that safetensors allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file whose header has been checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    /// Where the tensors begin.
    begin: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl SafetensorsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// If it cannot be read, or is no whole safetensors file; the message names it.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |cause| WeightsError::File {
            path: path.display().to_string(),
            cause,
        };
        let bad = |cause: SafeTensorError| within(path, cause.into());
        let damaged = |what: String| within(path, WeightsError::Damaged(what));
        let mut file = File::open(path).map_err(io)?;
        let facts = file.metadata().map_err(io)?;
        if !facts.is_file() {
            return Err(damaged("it is not a file".into()));
        }
        let Some(rest) = facts.len().checked_sub(8) else {
            return Err(bad(SafeTensorError::HeaderTooSmall));
        };
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER.min(rest) {
            return Err(damaged(format!(
                "its header claims {length} bytes, and {rest} follow its length"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        // Reading the header compares offsets, shapes and types with one another.
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|cause| damaged(format!("its header is damaged: {cause}")))?;
        let (claimed, held) = (header.data_len() as u64, rest - length);
        if claimed != held {
            return Err(damaged(format!(
                "its tensors claim {claimed} bytes, and it holds {held}"
            )));
        }
        let tensors = header.tensors().into_iter().map(|(name, info)| (name, info.clone()));
        Ok(Self {
            path: path.to_path_buf(),
            file,
            begin: 8 + length,
            tensors: tensors.collect(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name, type and shape of every tensor, in alphabetical order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        let tensors = self.tensors.iter();
        tensors.map(|(name, info)| (name.as_str(), info.dtype, info.shape.as_slice()))
    }

    /// One tensor of f64, f32, f16 or bf16, in f32.
    ///
    /// # Errors
    /// If there is no such tensor, it holds no floats, or the file cannot be read.
    pub fn read(&mut self, name: &str) -> Result<HostTensor, WeightsError> {
        let Some(info) = self.tensors.get(name) else {
            return Err(within(&self.path, SafeTensorError::TensorNotFound(name.into()).into()));
        };
        let no_floats = || within(&self.path, wrong(vec![format!("{name} ({:?})", info.dtype)]));
        if !is_float(info.dtype) {
            return Err(no_floats());
        }
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let read =
            (self.file.seek(SeekFrom::Start(self.begin + start as u64))).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|cause| WeightsError::File {
            path: self.path.display().to_string(),
            cause,
        })?;
        Ok(HostTensor {
            shape: info.shape.clone(),
            values: floats(&bytes, info.dtype).ok_or_else(no_floats)?,
        })
    }

    /// Every tensor.
    ///
    /// # Errors
    /// If one holds no floats, or the file cannot be read.
    pub fn read_all(&mut self) -> Result<NamedTensors, WeightsError> {
        let not_floats = self.tensors.iter().filter(|(_, info)| !is_float(info.dtype));
        let not_floats: Vec<_> = not_floats
            .map(|(name, info)| format!("{name} ({:?})", info.dtype))
            .collect();
        if !not_floats.is_empty() {
            return Err(within(&self.path, wrong(not_floats)));
        }
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        names
            .into_iter()
            .map(|name| Ok((name.clone(), self.read(&name)?)))
            .collect()
    }
}

fn within(path: &Path, cause: WeightsError) -> WeightsError {
    WeightsError::Within {
        path: path.display().to_string(),
        cause: Box::new(cause),
    }
}

fn wrong(wrong: Vec<String>) -> WeightsError {
    WeightsError::Mismatch {
        missing: Vec::new(),
        unused: Vec::new(),
        wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn open(bytes: &[u8]) -> Result<SafetensorsFile, WeightsError> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("w.safetensors");
        std::fs::write(&path, bytes).unwrap();
        SafetensorsFile::open(&path)
    }

    const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}"#;

    #[test]
    fn tensors_are_read_one_by_one() {
        let bytes = [&1.5f32.to_le_bytes()[..], &(-2.0f32).to_le_bytes(), &[0x80, 0x3f]].concat();
        let mut file = open(&file(TWO, &bytes)).unwrap();
        let names: Vec<_> = file
            .tensors()
            .map(|(name, dtype, shape)| (name.to_string(), dtype, shape.len()))
            .collect();
        assert_eq!(names, [("a".into(), Dtype::F32, 1), ("b".into(), Dtype::BF16, 0)]);
        assert_eq!(file.read("a").unwrap().values, [1.5, -2.0]);
        assert_eq!(file.read_all().unwrap()["b"].values, [1.0]);
        assert!(file.read("c").unwrap_err().to_string().ends_with("`c` not found"));
    }

    #[test]
    fn hostile_files_are_refused_with_their_name_in_one_line() {
        let header_of = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
        let one = |dtype: &str, shape: &str, start: u64, end: u64| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
        };
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        let whole = file(TWO, &[0; 10]);
        for (bytes, cause) in [
            (vec![], "header too small"),
            (vec![1, 2, 3], "header too small"),
            (
                header_of(1 << 60),
                "its header claims 1152921504606846976 bytes, and 2 follow its length",
            ),
            (
                header_of(u64::MAX),
                "its header claims 18446744073709551615 bytes, and 2 follow its length",
            ),
            (
                whole[..whole.len() - 3].to_vec(),
                "its tensors claim 10 bytes, and it holds 7",
            ),
            (
                [&whole[..], &[0]].concat(),
                "its tensors claim 10 bytes, and it holds 11",
            ),
            (
                whole[..40].to_vec(),
                "its header claims 108 bytes, and 32 follow its length",
            ),
            (file(overlap, &[0; 12]), "invalid offset for tensor `b`"),
            (
                file(&one("F32", "[3]", 0, 8), &[0; 8]),
                "invalid shape, data type, or offset",
            ),
            (
                file(&one("F32", "[2]", 8, 16), &[0; 16]),
                "invalid offset for tensor `a`",
            ),
            (file(&one("F32", "[4611686018427387904,4]", 0, 8), &[0; 8]), "overflow"),
            (
                file(&one("F32", "[1099511627776]", 0, 4398046511104), &[0; 8]),
                "and it holds 8",
            ),
            (
                file(&one("Q7", "[2]", 0, 8), &[0; 8]),
                "its header is damaged: unknown variant `q7`",
            ),
            (file("[]", &[]), "its header is damaged"),
            (file("\u{0}", &[]), "its header is damaged"),
        ] {
            let said = open(&bytes).unwrap_err().to_string();
            assert!(
                said.contains("w.safetensors: ") && said.to_lowercase().contains(cause),
                "{said}\nexpected {cause}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let mut integers = open(&file(&one("I64", "[1]", 0, 8), &[0; 8])).unwrap();
        for said in [integers.read("a").unwrap_err(), integers.read_all().unwrap_err()] {
            assert!(said.to_string().contains("a (I64)"), "{said}");
        }
    }
}
