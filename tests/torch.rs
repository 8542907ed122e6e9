//! Files as `torch.save` writes them, made by hand: an archive of stored entries and a pickle of protocol 2.

#![allow(dead_code, reason = "a test may need the archive alone")]

use gpas_model::weights::NamedTensors;

/// A dictionary of f32 tensors as `pytorch_model.bin`.
pub fn saved(tensors: &NamedTensors) -> Vec<u8> {
    let mut program = b"\x80\x02}(".to_vec();
    let mut entries = Vec::new();
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut program, name);
        let storage = number.to_string();
        view(&mut program, &storage, tensor.values.len(), &tensor.shape);
        let bytes = tensor.values.iter().flat_map(|value| value.to_le_bytes());
        entries.push((format!("archive/data/{storage}"), bytes.collect()));
    }
    program.extend(b"u.");
    entries.insert(0, ("archive/data.pkl".to_string(), program));
    archive(&entries)
}

/// An archive with one tensor `x` whose claims about its storage are the caller's; the storage holds `held` numbers.
pub fn claiming(length: usize, shape: &[usize], held: usize) -> Vec<u8> {
    let mut program = b"\x80\x02}(".to_vec();
    text(&mut program, "x");
    view(&mut program, "0", length, shape);
    program.extend(b"u.");
    archive(&[
        ("archive/data.pkl".into(), program),
        ("archive/data/0".into(), vec![0; 4 * held]),
    ])
}

/// An archive with this pickle and nothing else.
pub fn pickled(program: &[u8]) -> Vec<u8> {
    archive(&[("archive/data.pkl".into(), program.to_vec())])
}

fn view(program: &mut Vec<u8>, storage: &str, length: usize, shape: &[usize]) {
    program.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(program, "storage");
    program.extend(b"ctorch\nFloatStorage\n");
    text(program, storage);
    text(program, "cpu");
    number(program, length);
    program.extend(b"tQK\x00(");
    shape.iter().for_each(|size| number(program, *size));
    program.extend(b"t(");
    for dimension in 0..shape.len() {
        number(program, shape[dimension + 1..].iter().product());
    }
    program.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
}

fn text(program: &mut Vec<u8>, text: &str) {
    program.push(b'X');
    program.extend((text.len() as u32).to_le_bytes());
    program.extend(text.as_bytes());
}

fn number(program: &mut Vec<u8>, number: usize) {
    program.extend([0x8a, 8]);
    program.extend((number as u64).to_le_bytes());
}

/// A zip archive of stored entries.
pub fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let entries = entries.iter();
    archive_of(entries.map(|(name, bytes)| (name.as_str(), bytes.as_slice(), 0, bytes.len() as u32)))
}

/// A zip archive of entries that say to be packed by some method (0: not at all) and how large they are unpacked.
pub fn archive_of<'a>(entries: impl Iterator<Item = (&'a str, &'a [u8], u16, u32)>) -> Vec<u8> {
    let (mut file, mut directory, mut count) = (Vec::new(), Vec::new(), 0_u16);
    for (name, bytes, method, unpacked) in entries {
        let start = file.len() as u32;
        let mut facts = Vec::new();
        facts.extend(20_u16.to_le_bytes());
        facts.extend(0_u16.to_le_bytes());
        facts.extend(method.to_le_bytes());
        facts.extend(0_u32.to_le_bytes());
        facts.extend(crc32fast::hash(bytes).to_le_bytes());
        facts.extend((bytes.len() as u32).to_le_bytes());
        facts.extend(unpacked.to_le_bytes());
        facts.extend((name.len() as u16).to_le_bytes());
        facts.extend(0_u16.to_le_bytes());
        file.extend([b"PK\x03\x04", facts.as_slice(), name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02", 20_u16.to_le_bytes().as_slice(), &facts, &[0; 10]].concat());
        directory.extend([&start.to_le_bytes(), name.as_bytes()].concat());
        count += 1;
    }
    let (start, size) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend([b"PK\x05\x06".as_slice(), &[0; 4]].concat());
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}
