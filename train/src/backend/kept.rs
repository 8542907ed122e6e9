//! What CubeCL keeps between processes: which kernel was the fastest for a shape, and kernels that it has compiled.
//!
//! It files both without the card, so each card with its driver has a directory of its own here, and what was compiled is filed by the
//! program too: a kernel is known by its name and its arguments, and another build of this program may mean something else by them. For
//! cards that this program has met, what was tuned there comes with it.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use cubecl::config::CubeClRuntimeConfig;
use cubecl::config::cache::CacheConfig;
use flate2::read::GzDecoder;

/// A card and its driver, in words that the system has for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The backend's name.
    pub(super) backend: &'static str,
    /// The number of the card.
    pub(super) index: usize,
    /// What the system calls it.
    pub(super) name: String,
    /// What a kernel that was compiled for it depends on besides: its architecture and its driver.
    pub(super) driver: String,
}

/// What one card has tuned, for others like it.
struct Tuned {
    /// The name of the card.
    card: &'static str,
    backend: &'static str,
    /// A compressed archive of CubeCL's files, as they lie below its `autotune`.
    archive: &'static [u8],
}

const TUNED: [Tuned; 1] = [Tuned {
    card: "NVIDIA H100 80GB HBM3",
    backend: "cuda",
    archive: include_bytes!("../../assets/tuned/cuda-h100-80gb-hbm3.tar.gz"),
}];

/// Builds whose compiled kernels are kept for a card.
const BUILDS: usize = 3;

impl Identity {
    /// The name of its directory: its own, in letters that a file may have.
    fn directory_name(&self) -> String {
        let words = format!("{} {} {}", self.backend, self.name, self.driver).to_lowercase();
        let words = words.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.');
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
    }

    /// Tells CubeCL where to keep things, below `cache`, and how many tuned kernels were laid there now for it to find.
    pub(super) fn keep(&self, cache: &Path, settings: &mut CubeClRuntimeConfig) -> usize {
        let own = cache.join("cubecl").join(self.directory_name());
        settings.autotune.cache = CacheConfig::File(own.clone());
        // CubeCL panics where it cannot write what it compiled, so it is only asked to where that is possible.
        if let Ok(build) = build()
            && let Ok(compiled) = room_for(&own, &build)
        {
            settings.compilation.cache = Some(CacheConfig::File(compiled));
        }
        let tuned = TUNED
            .iter()
            .find(|tuned| tuned.card == self.name && tuned.backend == self.backend);
        // Without them they are tuned here, as on any other card.
        tuned.map_or(0, |tuned| unpack(tuned.archive, &own, self.index).unwrap_or(0))
    }
}

/// What distinguishes this build of the program from every other.
fn build() -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    let mut program = BufReader::with_capacity(1 << 20, fs::File::open(std::env::current_exe()?)?);
    let mut part = vec![0; 1 << 20];
    loop {
        match program.read(&mut part)? {
            0 => return Ok(format!("{:016x}", hasher.finish())),
            length => hasher.write(&part[..length]),
        }
    }
}

/// A directory for what this build compiles, in which a file can be written. What older builds have compiled goes, but for a few.
fn room_for(own: &Path, build: &str) -> io::Result<PathBuf> {
    let builds = own.join("compiled");
    let ours = builds.join(build);
    fs::create_dir_all(&ours)?;
    tempfile::tempfile_in(&ours)?;
    // Its time says when it was last used.
    fs::write(ours.join("used"), "")?;
    let used = |path: &Path| path.join("used").metadata()?.modified();
    let mut others: Vec<_> = fs::read_dir(&builds)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| *path != ours)
        .filter_map(|path| Some((used(&path).ok()?, path)))
        .collect();
    others.sort();
    let surplus = others.len().saturating_sub(BUILDS - 1);
    for (_, path) in others.into_iter().take(surplus) {
        fs::remove_dir_all(path)?;
    }
    Ok(ours)
}

/// Lays the files of an archive below `own` for the card of that number, unless something was tuned there before, and returns how many kernels they
/// tell of.
fn unpack(archive: &[u8], own: &Path, index: usize) -> io::Result<usize> {
    let tuned = own.join("autotune");
    if tuned.exists() {
        return Ok(0);
    }
    // All of them or none, should this be interrupted.
    fs::create_dir_all(own)?;
    let new = tempfile::tempdir_in(own)?;
    let mut kernels = 0;
    for entry in tar::Archive::new(GzDecoder::new(archive)).entries()? {
        let mut entry = entry?;
        // VERSION/device-0-INDEX-BACKEND/FILE
        let path = entry.path()?.into_owned();
        let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let [version, device, file] = &parts[..] else {
            continue;
        };
        let directory = new
            .path()
            .join(version)
            .join(device.replacen("-0-0-", &format!("-0-{index}-"), 1));
        fs::create_dir_all(&directory)?;
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        kernels += text.lines().count();
        fs::write(directory.join(file), text)?;
    }
    // Another process may have been faster; what it has put there is the same, and this directory goes.
    if let Err(error) = fs::rename(new.path(), &tuned)
        && !tuned.is_dir()
    {
        return Err(error);
    }
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100(index: usize) -> Identity {
        Identity {
            backend: "cuda",
            index,
            name: "NVIDIA H100 80GB HBM3".into(),
            driver: "sm90 driver 580.159.03, CUDA 13.0".into(),
        }
    }

    /// Another card, another driver: another directory. And compiled kernels of another build are in another one too.
    #[test]
    fn what_is_kept_is_filed_by_card_driver_and_build() {
        let cache = tempfile::tempdir().unwrap();
        let kept = |identity: &Identity| {
            let mut settings = CubeClRuntimeConfig::default();
            identity.keep(cache.path(), &mut settings);
            let compiled = settings.compilation.cache.expect("a place for kernels").root();
            (settings.autotune.cache.root(), compiled)
        };
        let (tuned, compiled) = kept(&h100(0));
        let name = "cuda-nvidia-h100-80gb-hbm3-sm90-driver-580.159.03-cuda-13.0";
        assert_eq!(tuned, cache.path().join("cubecl").join(name));
        assert_eq!(compiled, tuned.join("compiled").join(build().unwrap()));
        assert!(compiled.is_dir());
        let newer = Identity {
            driver: "sm90 driver 590.1, CUDA 13.1".into(),
            ..h100(0)
        };
        assert_ne!(kept(&newer).0, tuned);
    }

    /// The files are CubeCL's of the version that this is built with, and what was tuned here is never replaced.
    #[test]
    fn what_a_card_like_this_has_tuned_is_laid_out_once() {
        let cache = tempfile::tempdir().unwrap();
        let mut settings = CubeClRuntimeConfig::default();
        let kernels = h100(1).keep(cache.path(), &mut settings);
        assert!(kernels > 50, "{kernels}");
        let own = settings.autotune.cache.root();
        let lock = include_str!("../../../Cargo.lock");
        let version = lock.split("name = \"cubecl-common\"\nversion = \"").nth(1).unwrap();
        let version = version.split('"').next().unwrap();
        let products = own
            .join("autotune")
            .join(version)
            .join("device-0-1-cuda/burn_cubecl-kernel-matmul-tune-base.json.log");
        assert!(fs::read_to_string(&products).unwrap().starts_with("{\"key\":"));
        fs::write(&products, "mine").unwrap();
        assert_eq!(h100(1).keep(cache.path(), &mut settings), 0);
        assert_eq!(fs::read_to_string(products).unwrap(), "mine");
        let other = Identity {
            name: "NVIDIA L4".into(),
            ..h100(0)
        };
        assert_eq!(other.keep(cache.path(), &mut settings), 0);
    }

    #[test]
    fn compiled_kernels_of_a_few_builds_are_kept() {
        let own = tempfile::tempdir().unwrap();
        for build in ["a", "b", "c", "d"] {
            room_for(own.path(), build).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let left = |name| own.path().join("compiled").join(name).exists();
        assert_eq!(["a", "b", "c", "d"].map(left), [false, true, true, true]);
    }

    /// CubeCL would panic on the first kernel.
    #[test]
    fn where_nothing_can_be_written_nothing_is_kept() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let mut settings = CubeClRuntimeConfig::default();
        assert_eq!(h100(0).keep(place.path(), &mut settings), 0);
        assert!(settings.compilation.cache.is_none());
    }
}
