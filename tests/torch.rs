//! Archives as `torch.save` writes them, made by hand, and such as it never would: entries that are stored, and a pickle of protocol 2.

#![allow(dead_code, reason = "no test uses all of it")]

use gpas_model::weights::NamedTensors;

/// A tensor of a state dictionary: a view of the storage of number `storage`.
#[derive(Clone)]
pub struct View {
    pub name: String,
    pub kind: &'static str,
    pub storage: usize,
    /// Numbers that the storage is said to hold.
    pub length: u64,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

impl View {
    /// A whole storage of f32.
    pub fn whole(name: &str, storage: usize, shape: &[usize]) -> Self {
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        let strides = (0..shape.len()).map(|at| shape[at + 1..].iter().product()).collect();
        Self {
            name: name.into(),
            kind: "FloatStorage",
            storage,
            length: shape.iter().product(),
            offset: 0,
            shape,
            strides,
        }
    }
}

/// A dictionary of f32 tensors as `pytorch_model.bin`, each with a storage of its own.
pub fn saved(tensors: &NamedTensors) -> Vec<u8> {
    let (mut views, mut entries) = (Vec::new(), Vec::new());
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        views.push(View::whole(name, number, &tensor.shape));
        entries.push(Entry::storage(number, &tensor.values));
    }
    entries.splice(
        0..0,
        [
            Entry::stored("archive/data.pkl", &program(&views)),
            Entry::stored("archive/byteorder", b"little"),
        ],
    );
    archive(&entries)
}

/// An archive with this pickle and nothing else.
pub fn pickled(program: &[u8]) -> Vec<u8> {
    archive(&[Entry::stored("archive/data.pkl", program)])
}

/// The pickle of a state dictionary with its `_metadata`.
pub fn program(views: &[View]) -> Vec<u8> {
    let items: Vec<u8> = views
        .iter()
        .flat_map(|view| [text(&view.name), tensor(view)].concat())
        .collect();
    let version = [b"}", &text("version")[..], b"K\x01s"].concat();
    let metadata = [
        b"}",
        &text("_metadata")[..],
        b"ccollections\nOrderedDict\n)R(",
        &text("")[..],
        &version,
        b"us",
    ]
    .concat();
    [
        b"\x80\x02ccollections\nOrderedDict\n)Rq\x00(",
        &items[..],
        b"u",
        &metadata[..],
        b"b.",
    ]
    .concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn number(number: u64) -> Vec<u8> {
    match u8::try_from(number) {
        Ok(small) => vec![b'K', small],
        // An integer of eight bytes.
        Err(_) => [&[0x8a, 8][..], &number.to_le_bytes()].concat(),
    }
}

fn tuple(items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    [b"(".to_vec(), items.into_iter().flatten().collect(), b"t".to_vec()].concat()
}

fn tensor(view: &View) -> Vec<u8> {
    let storage = tuple([
        text("storage"),
        format!("ctorch\n{}\n", view.kind).into_bytes(),
        text(&view.storage.to_string()),
        text("cpu"),
        number(view.length),
    ]);
    let numbers = |numbers: &[u64]| tuple(numbers.iter().copied().map(number));
    let arguments = tuple([
        [&storage[..], b"Q"].concat(),
        number(view.offset),
        numbers(&view.shape),
        numbers(&view.strides),
        b"\x89".to_vec(),
        b"ccollections\nOrderedDict\n)R".to_vec(),
    ]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments[..], b"R"].concat()
}

/// What an archive holds, as its directory claims.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub bytes: Vec<u8>,
    /// How it is said to be packed; 0 is not at all.
    pub method: u16,
    /// Size that it is said to have unpacked; that of the bytes if absent.
    pub claimed: Option<u32>,
    /// Number of the entry whose bytes it is said to have, in place of its own.
    pub over: Option<usize>,
}

impl Entry {
    pub fn stored(name: &str, bytes: &[u8]) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.to_vec(),
            method: 0,
            claimed: None,
            over: None,
        }
    }

    pub fn storage(number: usize, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::stored(&format!("archive/data/{number}"), &bytes)
    }
}

/// An archive with a directory at its end.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        let bytes = &entry.over.map_or(entry, |over| &entries[over]).bytes;
        let size = bytes.len() as u32;
        let facts = [
            &[0, 0][..],
            &entry.method.to_le_bytes(),
            &[0; 4],
            &crc32fast::hash(bytes).to_le_bytes(),
            &size.to_le_bytes(),
            &entry.claimed.unwrap_or(size).to_le_bytes(),
            &(entry.name.len() as u16).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        let start = match entry.over {
            Some(over) => starts[over],
            None => file.len() as u32,
        };
        starts.push(start);
        if entry.over.is_none() {
            file.extend([b"PK\x03\x04\x14\x00", &facts[..], entry.name.as_bytes(), bytes].concat());
        }
        directory.extend([b"PK\x01\x02\x14\x00\x14\x00", &facts[..], &[0; 10]].concat());
        directory.extend([&start.to_le_bytes(), entry.name.as_bytes()].concat());
    }
    let (count, start) = ((entries.len() as u16).to_le_bytes(), (file.len() as u32).to_le_bytes());
    let size = (directory.len() as u32).to_le_bytes();
    let end = [b"PK\x05\x06", &[0; 4][..], &count, &count, &size, &start, &[0, 0]].concat();
    [file, directory, end].concat()
}
