//! The pickles of `torch.save`, read without running anything: a machine that knows how to put tensors into a dictionary, and nothing else.
//!
//! A pickle is a program, and the usual reader runs it. This one has the operations of protocol 2 that a dictionary of tensors is made
//! with, and may name the things listed in [`Known`]; every other operation and every other name is refused. Readers in other crates
//! copy whole objects whenever the program names one again, which lets a small file ask for any amount of memory; here an object is a
//! number in a list, so memory is linear in the length of the program.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use safetensors::tensor::Dtype;

/// A tensor as the program describes it: a view of a storage. Nothing of it has been compared with the file yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickledTensor {
    /// Name of the storage within the archive.
    pub(super) storage: Rc<str>,
    /// Type of the storage's numbers.
    pub(super) dtype: Dtype,
    /// Numbers in the storage.
    pub(super) length: u64,
    /// Place of the first number.
    pub(super) offset: u64,
    /// Shape.
    pub(super) shape: Vec<u64>,
    /// Numbers between neighbours in each dimension.
    pub(super) strides: Vec<u64>,
}

/// Why a program is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PickleError {
    #[error("its pickle ends early")]
    End,
    #[error("its pickle has protocol {0}, and torch.save writes 2")]
    Protocol(u8),
    #[error("its pickle has the operation {0:#04x}, which no tensor needs; it is not run")]
    Operation(u8),
    #[error("its pickle names `{0}`, which no tensor needs; it is not run")]
    Name(String),
    #[error("its pickle is damaged at byte {0}")]
    Damaged(usize),
    #[error("its pickle does not hold tensors by their names: {0}")]
    NotTensors(String),
}

/// What a program may name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

impl Known {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Known::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Known::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Known::RebuildParameter,
            ("torch", "DoubleStorage") => Known::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Known::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Known::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Known::Storage(Dtype::BF16),
            // Known so that a message can name them; tensors of these types are never read.
            ("torch", "LongStorage") => Known::Storage(Dtype::I64),
            ("torch", "IntStorage") => Known::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Known::Storage(Dtype::I16),
            ("torch", "CharStorage") => Known::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Known::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Known::Storage(Dtype::BOOL),
            _ => return None,
        })
    }
}

#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Integer(i64),
    Text(Rc<str>),
    Known(Known),
    Mark,
    /// A number in the list of tuples.
    Tuple(usize),
    /// A number in the list of dictionaries.
    Dict(usize),
    Storage {
        key: Rc<str>,
        dtype: Dtype,
        length: u64,
    },
    /// A number in the list of tensors.
    Tensor(usize),
}

struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    tensors: Vec<PickledTensor>,
}

/// The tensors of a state dictionary by their names.
pub(super) fn tensors(program: &[u8]) -> Result<BTreeMap<String, PickledTensor>, PickleError> {
    let mut machine = Machine {
        program,
        at: 0,
        stack: Vec::new(),
        memo: HashMap::new(),
        tuples: Vec::new(),
        dicts: Vec::new(),
        tensors: Vec::new(),
    };
    let Value::Dict(dict) = machine.run()? else {
        return Err(PickleError::NotTensors("it is no dictionary".into()));
    };
    let mut named = BTreeMap::new();
    for (key, value) in &machine.dicts[dict] {
        let Value::Text(name) = key else {
            return Err(PickleError::NotTensors("a key is no text".into()));
        };
        let Value::Tensor(index) = value else {
            return Err(PickleError::NotTensors(format!("`{name}` is no tensor")));
        };
        named.insert(name.to_string(), machine.tensors[*index].clone());
    }
    Ok(named)
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value, PickleError> {
        loop {
            match self.byte()? {
                0x80 => match self.byte()? {
                    2 => {}
                    other => return Err(PickleError::Protocol(other)),
                },
                b'.' => return self.pop(),
                b'(' => self.stack.push(Value::Mark),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => {
                    let [number] = self.bytes()?;
                    self.stack.push(Value::Integer(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.bytes()?);
                    self.stack.push(Value::Integer(number.into()));
                }
                b'J' => {
                    let number = i32::from_le_bytes(self.bytes()?);
                    self.stack.push(Value::Integer(number.into()));
                }
                0x8a => {
                    let number = self.long()?;
                    self.stack.push(Value::Integer(number));
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.bytes()?) as usize;
                    let text = self.text(length)?;
                    self.stack.push(Value::Text(text.into()));
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let known = Known::named(&module, &name);
                    let known = known.ok_or_else(|| PickleError::Name(shortened(&format!("{module}.{name}"))))?;
                    self.stack.push(Value::Known(known));
                }
                b'q' => {
                    let [number] = self.bytes()?;
                    self.remember(number.into())?;
                }
                b'r' => {
                    let number = u32::from_le_bytes(self.bytes()?);
                    self.remember(number)?;
                }
                b'h' => {
                    let [number] = self.bytes()?;
                    self.recall(number.into())?;
                }
                b'j' => {
                    let number = u32::from_le_bytes(self.bytes()?);
                    self.recall(number)?;
                }
                b')' => self.push_tuple(Vec::new()),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items);
                }
                count @ 0x85..=0x87 => {
                    let at = self.stack.len().checked_sub(usize::from(count - 0x84));
                    let items = self.stack.split_off(at.ok_or(self.damaged())?);
                    self.push_tuple(items);
                }
                b'}' => self.push_dict(),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(items)?;
                }
                // The attributes of a dictionary, such as `_metadata`, are not needed.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                        return Err(self.damaged());
                    }
                }
                b'Q' => self.storage()?,
                b'R' => self.call()?,
                other => return Err(PickleError::Operation(other)),
            }
        }
    }

    fn damaged(&self) -> PickleError {
        PickleError::Damaged(self.at)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(length).ok_or(PickleError::End)?;
        let slice = self.program.get(self.at..end).ok_or(PickleError::End)?;
        self.at = end;
        Ok(slice)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let slice = self.slice(N)?;
        slice.try_into().map_err(|_| PickleError::End)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        let [byte] = self.bytes()?;
        Ok(byte)
    }

    fn text(&mut self, length: usize) -> Result<&'a str, PickleError> {
        let at = self.at;
        std::str::from_utf8(self.slice(length)?).map_err(|_| PickleError::Damaged(at))
    }

    /// Up to the end of a line, which is skipped.
    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.program[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::End)?;
        let line = self.text(length)?.to_string();
        self.at += 1;
        Ok(line)
    }

    /// A whole number of up to eight bytes.
    fn long(&mut self) -> Result<i64, PickleError> {
        let length = usize::from(self.byte()?);
        if length > 8 {
            return Err(self.damaged());
        }
        let slice = self.slice(length)?;
        let negative = slice.last().is_some_and(|last| last & 0x80 != 0);
        let mut bytes = [if negative { 0xff } else { 0 }; 8];
        bytes[..length].copy_from_slice(slice);
        Ok(i64::from_le_bytes(bytes))
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        self.stack.pop().ok_or(self.damaged())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark));
        let items = self.stack.split_off(mark.ok_or(self.damaged())? + 1);
        self.stack.pop();
        Ok(items)
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Tuple(self.tuples.len()));
        self.tuples.push(items);
    }

    fn pop_tuple(&mut self) -> Result<Vec<Value>, PickleError> {
        match self.pop()? {
            // The format allows naming it again, though PyTorch never does.
            Value::Tuple(index) if self.tuples[index].len() <= 8 => Ok(self.tuples[index].clone()),
            _ => Err(self.damaged()),
        }
    }

    fn push_dict(&mut self) {
        self.stack.push(Value::Dict(self.dicts.len()));
        self.dicts.push(Vec::new());
    }

    fn remember(&mut self, number: u32) -> Result<(), PickleError> {
        let value = self.stack.last().ok_or(self.damaged())?;
        self.memo.insert(number, value.clone());
        Ok(())
    }

    fn recall(&mut self, number: u32) -> Result<(), PickleError> {
        let value = self.memo.get(&number).ok_or(self.damaged())?;
        self.stack.push(value.clone());
        Ok(())
    }

    /// Keys and values in turn, into the dictionary below them.
    fn insert(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        let Some(Value::Dict(index)) = self.stack.last() else {
            return Err(self.damaged());
        };
        let index = *index;
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let value = items.next().ok_or(self.damaged())?;
            self.dicts[index].push((key, value));
        }
        Ok(())
    }

    /// `('storage', type, name, device, length)`.
    fn storage(&mut self) -> Result<(), PickleError> {
        let parts = self.pop_tuple()?;
        let [
            Value::Text(kind),
            Value::Known(Known::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            Value::Integer(length),
        ] = parts.as_slice()
        else {
            return Err(self.damaged());
        };
        let length = u64::try_from(*length).map_err(|_| self.damaged())?;
        if &**kind != "storage" {
            return Err(self.damaged());
        }
        self.stack.push(Value::Storage {
            key: Rc::clone(key),
            dtype: *dtype,
            length,
        });
        Ok(())
    }

    fn call(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop_tuple()?;
        match (self.pop()?, arguments.as_slice()) {
            (Value::Known(Known::OrderedDict), []) => self.push_dict(),
            (Value::Known(Known::RebuildParameter), [tensor @ Value::Tensor(_), _, _]) => {
                self.stack.push(tensor.clone())
            }
            (
                Value::Known(Known::RebuildTensor),
                [
                    Value::Storage { key, dtype, length },
                    Value::Integer(offset),
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    _,
                    _,
                    ..,
                ],
            ) => {
                let (storage, dtype, length) = (Rc::clone(key), *dtype, *length);
                let offset = u64::try_from(*offset).map_err(|_| self.damaged())?;
                let (shape, strides) = (self.numbers(*shape)?, self.numbers(*strides)?);
                self.stack.push(Value::Tensor(self.tensors.len()));
                self.tensors.push(PickledTensor {
                    storage,
                    dtype,
                    length,
                    offset,
                    shape,
                    strides,
                });
            }
            _ => return Err(self.damaged()),
        }
        Ok(())
    }

    /// A tuple of at most eight numbers, none of which is negative.
    fn numbers(&self, tuple: usize) -> Result<Vec<u64>, PickleError> {
        let items = &self.tuples[tuple];
        if items.len() > 8 {
            return Err(self.damaged());
        }
        let number = |item: &Value| match item {
            Value::Integer(number) => u64::try_from(*number).map_err(|_| self.damaged()),
            _ => Err(self.damaged()),
        };
        items.iter().map(number).collect()
    }
}

/// A name for a message of one line.
fn shortened(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::{View, program};

    fn refused(program: &[u8]) -> String {
        tensors(program).unwrap_err().to_string()
    }

    #[test]
    fn a_state_dictionary_is_read() {
        let views = [View::whole("a.weight", 0, &[2, 3]), View::whole("gate", 1, &[])];
        let found = tensors(&program(&views)).unwrap();
        assert_eq!(found.len(), 2);
        let weight = &found["a.weight"];
        assert_eq!(
            (&*weight.storage, weight.dtype, weight.length, weight.offset),
            ("0", Dtype::F32, 6, 0)
        );
        assert_eq!((&weight.shape[..], &weight.strides[..]), (&[2, 3][..], &[3, 1][..]));
        assert!(found["gate"].shape.is_empty());
    }

    #[test]
    fn what_is_no_tensor_is_refused_by_name_and_never_run() {
        for (program, said) in [
            (
                &b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R."[..],
                "its pickle names `posix.system`, which no tensor needs; it is not run",
            ),
            (
                b"\x80\x02c__builtin__\neval\n.",
                "its pickle names `__builtin__.eval`, which no tensor needs; it is not run",
            ),
            (
                b"\x80\x02ctorch\nload\n.",
                "its pickle names `torch.load`, which no tensor needs; it is not run",
            ),
            // INST, OBJ, NEWOBJ, STACK_GLOBAL, EXT1.
            (
                b"\x80\x02(iposix\nsystem\n.",
                "its pickle has the operation 0x69, which no tensor needs; it is not run",
            ),
            (
                b"\x80\x02(o.",
                "its pickle has the operation 0x6f, which no tensor needs; it is not run",
            ),
            (
                b"\x80\x02\x81.",
                "its pickle has the operation 0x81, which no tensor needs; it is not run",
            ),
            (
                b"\x80\x02\x93.",
                "its pickle has the operation 0x93, which no tensor needs; it is not run",
            ),
            (
                b"\x80\x02\x82\x01.",
                "its pickle has the operation 0x82, which no tensor needs; it is not run",
            ),
            (b"\x80\x04.", "its pickle has protocol 4, and torch.save writes 2"),
            (b"\x80\x02}", "its pickle ends early"),
            (b"\x80\x02X\xff\xff\xff\xffabc", "its pickle ends early"),
            (b"", "its pickle ends early"),
            (
                b"\x80\x02K\x01.",
                "its pickle does not hold tensors by their names: it is no dictionary",
            ),
            (
                b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
                "its pickle does not hold tensors by their names: `a` is no tensor",
            ),
            (
                b"\x80\x02}K\x01K\x01s.",
                "its pickle does not hold tensors by their names: a key is no text",
            ),
            (b"\x80\x02R.", "its pickle is damaged at byte 3"),
            (b"\x80\x02h\x07.", "its pickle is damaged at byte 4"),
            (b"\x80\x02t.", "its pickle is damaged at byte 3"),
        ] {
            assert_eq!(refused(program), said);
        }
    }

    /// Each line names the tuple before it ten times: copied whole, the last would hold 10^1000 numbers.
    #[test]
    fn a_program_that_names_things_again_and_again_stays_small() {
        let mut bomb = b"\x80\x02)q\x00".to_vec();
        for _ in 0..1000 {
            bomb.extend(b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00tq\x00");
        }
        bomb.push(b'.');
        assert!(refused(&bomb).ends_with("it is no dictionary"));
        // The nesting is as deep as the program is long; no part of the reader recurses.
        let deep = [b"\x80\x02)", &[0x85; 1 << 20][..], b"."].concat();
        assert!(refused(&deep).ends_with("it is no dictionary"));
    }

    /// Every damage of one byte is an error or another dictionary, never a panic.
    #[test]
    fn damage_never_panics() {
        let whole = program(&[View::whole("a", 0, &[2, 3]), View::whole("b", 300, &[])]);
        for at in 0..whole.len() {
            for value in [0, 1, b'.', b'R', b't', b'Q', b'(', 0x85, 0x87, 0x8a, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = tensors(&damaged);
            }
            let _ = tensors(&whole[..at]);
        }
    }
}
