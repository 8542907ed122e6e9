//! Git LFS pointers: a checkout without Git LFS holds, in place of every large file, three lines of text that say where its content is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::DataError;
use crate::format::is_lfs_pointer;
use crate::source::Unreadable;

/// Bytes that tell a pointer.
const OPENING: u64 = 64;

/// Refuses a file that is a pointer. One that cannot be opened is left to whoever reads it.
///
/// # Errors
/// If the file is a pointer.
pub fn refuse_lfs_pointer(path: &Path) -> Result<(), DataError> {
    if has_lfs_pointer(path) {
        return Err(DataError::UnreadableSource {
            file: path.display().to_string(),
            cause: Unreadable::LfsPointer,
        });
    }
    Ok(())
}

/// Whether there is a pointer at a path.
pub fn has_lfs_pointer(path: &Path) -> bool {
    let mut opening = Vec::new();
    // A pipe would not give what was taken from it again.
    let is_file = path.metadata().is_ok_and(|facts| facts.is_file());
    let read = is_file && File::open(path).is_ok_and(|file| file.take(OPENING).read_to_end(&mut opening).is_ok());
    read && is_lfs_pointer(&opening)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_told_from_everything_else() {
        let place = tempfile::tempdir().unwrap();
        let refused = |bytes: &[u8]| {
            let path = place.path().join("model.safetensors");
            std::fs::write(&path, bytes).unwrap();
            refuse_lfs_pointer(&path).err()
        };
        let error = refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n").unwrap();
        assert!(
            error
                .to_string()
                .ends_with("model.safetensors: a Git LFS pointer, not the file itself"),
            "{error}"
        );
        assert_eq!(error.hint().unwrap(), "`git lfs pull` fetches the file itself");
        assert!(refused(b"").is_none() && refused(b"version").is_none() && refused(&[0; 100]).is_none());
        assert!(refuse_lfs_pointer(place.path()).is_ok() && refuse_lfs_pointer(Path::new("nothing/here")).is_ok());
    }
}
