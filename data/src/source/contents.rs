//! What a file's first bytes say of its content, whatever its name says.

use crate::format::{Compression, is_lfs_pointer};

/// What a file with the name of text or json is instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// A bzip2 file.
    Bzip2,
    /// An lz4 file.
    Lz4,
    /// A parquet file.
    Parquet,
    /// A tar archive.
    Tar,
    /// An xz file.
    Xz,
    /// A zip archive.
    Zip,
}

impl Foreign {
    pub(super) fn of(opening: &[u8]) -> Option<Self> {
        Some(match opening {
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => Self::Bzip2,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            [b'P', b'A', b'R', b'1', ..] => Self::Parquet,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'P', b'K', 3, 4, ..] => Self::Zip,
            _ if opening.get(257..262) == Some(b"ustar") => Self::Tar,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bzip2 => "compressed with bzip2",
            Self::Lz4 => "compressed with lz4",
            Self::Parquet => "a parquet file",
            Self::Tar => "a tar archive",
            Self::Xz => "compressed with xz",
            Self::Zip => "a zip archive",
        }
    }
}

/// An encoding of text that is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-16 with a byte-order mark.
    Utf16,
    /// UTF-16, little-endian, without a mark.
    Utf16Le,
    /// UTF-16, big-endian, without a mark.
    Utf16Be,
    /// UTF-32.
    Utf32,
}

impl Encoding {
    /// The encoding that a byte-order mark states, or that a zero in every other byte gives away.
    pub(super) fn of(opening: &[u8]) -> Option<Self> {
        match opening {
            [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some(Self::Utf32),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Some(Self::Utf16),
            _ => {}
        }
        let first = opening.get(..8)?;
        let zeros = |parity: usize| (0..8).all(|at| (first[at] == 0) == (at % 2 == parity));
        match (zeros(1), zeros(0)) {
            (true, _) => Some(Self::Utf16Le),
            (_, true) => Some(Self::Utf16Be),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Utf16 | Self::Utf16Le | Self::Utf16Be => "UTF-16",
            Self::Utf32 => "UTF-32",
        }
    }

    /// The name that `iconv` knows it by.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Utf16 => "UTF-16",
            Self::Utf16Le => "UTF-16LE",
            Self::Utf16Be => "UTF-16BE",
            Self::Utf32 => "UTF-32",
        }
    }
}

/// The byte-order mark of UTF-8.
pub(super) const MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a whole file cannot be read, although it is not damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The file stands for content that was not fetched.
    #[error("a Git LFS pointer, not the file itself")]
    LfsPointer,
    /// The name says that the file is compressed, and its bytes are neither that nor text.
    #[error("not compressed as its name says")]
    NotCompressed,
    /// Decompressing takes more memory than the standard tool's limit.
    #[error("compressed with a zstd window of {} MiB, above the limit of {} MiB", .0 >> 20, ZSTD_WINDOW >> 20)]
    ZstdWindow(u64),
    /// Decompressing takes a dictionary.
    #[error("compressed with a zstd dictionary")]
    ZstdDictionary,
}

/// The largest window that the zstd tool and library take without being told to.
const ZSTD_WINDOW: u64 = 1 << 27;

impl Unreadable {
    /// One line on what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::LfsPointer => "`git lfs pull` fetches the file itself",
            Self::NotCompressed => "fetch the file again, or give it the name of what it is",
            Self::ZstdWindow(_) => "compress it again with a smaller window: zstd -dc --long=31 FILE | zstd -o NEW",
            Self::ZstdDictionary => "decompress it with its dictionary first: zstd -d -D DICTIONARY FILE",
        }
    }
}

/// How a file of json or text is compressed: told by its bytes, since a download may have unpacked it already or never
/// been named for it. `named` is what its name says.
pub(super) fn compression(opening: &[u8], named: Option<Compression>) -> Result<Option<Compression>, Unreadable> {
    if is_lfs_pointer(opening) {
        return Err(Unreadable::LfsPointer);
    }
    match *opening {
        [0x1f, 0x8b, ..] => Ok(Some(Compression::Gzip)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd_frame(opening).map(|()| Some(Compression::Zstandard)),
        // A frame for the user's own use, which the decoder passes over.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Some(Compression::Zstandard)),
        // Too short to tell: the decoder says what is missing.
        _ if opening.len() < 4 => Ok(named),
        _ if named.is_some() && !begins_as_text(opening) && Foreign::of(opening).is_none() => {
            Err(Unreadable::NotCompressed)
        }
        _ => Ok(None),
    }
}

/// Whether the first bytes may be those of text, in any encoding that is read or named.
fn begins_as_text(opening: &[u8]) -> bool {
    let first = &opening[..opening.len().min(256)];
    let whole = match std::str::from_utf8(first) {
        Ok(_) => true,
        // The last character may go on after the bytes that were looked at.
        Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
    };
    let control = |byte: &u8| *byte < b' ' && !byte.is_ascii_whitespace();
    Encoding::of(opening).is_some() || (whole && !first.iter().any(control))
}

/// Checks what the header of a zstd frame asks for: RFC 8878, 3.1.1.1.
fn zstd_frame(opening: &[u8]) -> Result<(), Unreadable> {
    let (Some(&descriptor), Some(&window)) = (opening.get(4), opening.get(5)) else {
        return Ok(());
    };
    if descriptor & 0b11 != 0 {
        return Err(Unreadable::ZstdDictionary);
    }
    let single_segment = descriptor & 0b10_0000 != 0;
    if !single_segment {
        let base = 1_u64 << (10 + (window >> 3));
        let size = base + base / 8 * u64::from(window & 7);
        if size > ZSTD_WINDOW {
            return Err(Unreadable::ZstdWindow(size));
        }
    }
    Ok(())
}
