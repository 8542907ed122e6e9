//! Event files for TensorBoard: the numbers of `metrics.jsonl` as scalars.
//!
//! A file is a row of records, each `length (u64) · crc(length) (u32) · bytes · crc(bytes) (u32)`, little-endian, with the masked CRC-32C
//! of TensorFlow's record format; the bytes are an `Event` in the encoding of protocol buffers:
//!
//! ```text
//! Event   { 1: wall_time f64, 2: step i64, 3: file_version text | 5: Summary }
//! Summary { 1: Value }*        Value { 1: tag text, 2: simple_value f32 }
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use gpas_train::metrics::{EvalRecord, LayersRecord, Quantity, Record, TrainRecord};
use gpas_train::recipe::Recipe;
use gpas_train::run::RunDirectory;
use gpas_train::training::Observer;

/// The event file of a run, in its folder `tensorboard`; opened when the run begins.
#[derive(Debug, Default)]
pub struct EventFile(Option<File>);

impl Observer for EventFile {
    fn begin(&mut self, run: &RunDirectory, _recipe: &Recipe, records: &[Record]) -> io::Result<()> {
        *self = Self::create(&run.tensorboard_path(), records)?;
        Ok(())
    }

    fn record(&mut self, record: &Record) -> io::Result<()> {
        self.write(record)
    }
}

impl EventFile {
    /// The one event file of a folder, which begins anew with the records that a run already has.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(folder: &Path, records: &[Record]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        // TensorBoard reads every file whose name has `tfevents` in it; one name, so that a run that goes on has one file.
        let mut file = Self(Some(File::create(folder.join("events.out.tfevents.0.gpas"))?));
        file.append(&event(0, &bytes_field(3, b"brain.Event:2")))?;
        for record in records {
            file.write(record)?;
        }
        Ok(file)
    }

    /// Writes the numbers of a record.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let scalars = scalars(record);
        if scalars.is_empty() {
            return Ok(());
        }
        let values: Vec<u8> = scalars
            .into_iter()
            .flat_map(|(tag, value)| {
                let mut inner = bytes_field(1, tag.as_bytes());
                inner.push(2 << 3 | 5);
                inner.extend((value as f32).to_le_bytes());
                bytes_field(1, &inner)
            })
            .collect();
        self.append(&event(record.step(), &bytes_field(5, &values)))
    }

    fn append(&mut self, event: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.0 else {
            return Ok(());
        };
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(event);
        record.extend(masked_crc(event).to_le_bytes());
        file.write_all(&record)
    }
}

fn event(step: u64, what: &[u8]) -> Vec<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(now.to_le_bytes());
    bytes.push(2 << 3);
    bytes.extend(varint(step));
    bytes.extend(what);
    bytes
}

/// A field of bytes, text or a message.
fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(varint(bytes.len() as u64));
    field.extend(bytes);
    field
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The numbers of a record by their tags; one that is not finite is left out.
fn scalars(record: &Record) -> Vec<(String, f64)> {
    let mut scalars = match record {
        Record::Train(record) => tagged(record, TrainRecord::QUANTITIES),
        Record::Eval(record) => tagged(record, EvalRecord::QUANTITIES),
        Record::Layers(record) => LayersRecord::QUANTITIES
            .iter()
            .flat_map(|quantity| {
                let numbers = (quantity.read)(record).iter().enumerate();
                numbers.filter_map(|(layer, number)| Some((format!("{}/{layer:03}", quantity.tag), (*number)?)))
            })
            .collect(),
        Record::Notice(_) => Vec::new(),
    };
    scalars.retain(|(_, value)| value.is_finite());
    scalars
}

fn tagged<R>(record: &R, quantities: &[Quantity<R>]) -> Vec<(String, f64)> {
    let scalar = |quantity: &Quantity<R>| Some((quantity.tag.to_string(), (quantity.read)(record)?));
    quantities.iter().filter_map(scalar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C and TensorFlow's mask of it.
    #[test]
    fn the_checksum_is_tensorflows() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(
            masked_crc(b"123456789"),
            0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }

    /// Byte by byte but for the time.
    #[test]
    fn a_record_has_the_layout_of_the_format() {
        let place = tempfile::tempdir().unwrap();
        let record = Record::Eval(EvalRecord {
            step: 300,
            loss: 0.5,
            perplexity: f64::INFINITY,
            tokens: 1,
            ..EvalRecord::default()
        });
        EventFile::create(place.path(), &[record]).unwrap();
        let bytes = fs::read(place.path().join("events.out.tfevents.0.gpas")).unwrap();
        let length = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        // wall_time, step 0, file_version.
        assert_eq!(length(0), 9 + 2 + 2 + 13);
        let second = 12 + length(0) + 4;
        let event = &bytes[second + 12..second + 12 + length(second)];
        assert_eq!(event[0], 0x09);
        let mut expected = vec![0x10, 0xac, 0x02, 0x2a, 24, 0x0a, 22, 0x0a, 15];
        expected.extend(b"validation/loss");
        expected.push(0x15);
        expected.extend(0.5f32.to_le_bytes());
        assert_eq!(&event[9..], expected);
        assert_eq!(bytes.len(), second + 12 + event.len() + 4);
    }
}
