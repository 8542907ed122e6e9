//! What CubeCL, which is under every GPU's backend, tells of its work: the kernels that it launches, and what it tunes.
//!
//! It tells through the `log` crate alone, and a process has one logger: a program that wants to know [listens](listen).

use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};

/// Something that CubeCL does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KernelEvent<'a> {
    /// It has launched the kernel of this name. Told only where the backend was
    /// [selected](crate::backend::BackendChoice::select_telling) for that, after the launch and from another thread.
    Launched(&'a str),
    /// The kernel of this name took so many seconds; told likewise.
    Took(&'a str, f64),
    /// It begins to time the kernels that can do the operation with this key, to use the fastest from then on.
    Tuning(&'a str),
    /// Something of our own crates' about kernels, for people.
    Told(&'a str),
}

impl<'a> KernelEvent<'a> {
    /// Reads a message with its origin.
    fn read(target: &str, message: &'a str) -> Option<Self> {
        if target.starts_with("cubecl_common::config") {
            if let Some((time, name)) = message.strip_prefix("| ").and_then(|rest| rest.split_once(" | ")) {
                return Some(KernelEvent::Took(name, seconds(time.trim())?));
            }
            return message.strip_prefix("Executing ").map(KernelEvent::Launched);
        }
        if target.starts_with("cubecl_runtime::tune") {
            return message.strip_prefix("Tuning ").map(KernelEvent::Tuning);
        }
        is_ours(target).then_some(KernelEvent::Told(message))
    }
}

/// Whether a message comes from this crate or from the kernels' own, which tells of products that a library refuses.
fn is_ours(target: &str) -> bool {
    ["gpas_train", "gpas_cube"]
        .iter()
        .any(|origin| target.starts_with(origin))
}

/// A duration as `Debug` prints it, in seconds.
fn seconds(text: &str) -> Option<f64> {
    let unit = text.find(|letter: char| letter.is_alphabetic())?;
    let in_a_second = match &text[unit..] {
        "ns" => 1e9,
        "µs" => 1e6,
        "ms" => 1e3,
        "s" => 1.0,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? / in_a_second)
}

/// Calls `hear` with everything that CubeCL tells from now on, on the thread that tells it.
///
/// # Errors
/// If this process has a logger already.
pub fn listen(hear: impl Fn(KernelEvent<'_>) + Send + Sync + 'static) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(Listener(hear)))?;
    log::set_max_level(LevelFilter::Info);
    Ok(())
}

struct Listener<F>(F);

impl<F: Fn(KernelEvent<'_>) + Send + Sync> Log for Listener<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("cubecl_") || is_ours(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata())
            && let Some(event) = KernelEvent::read(record.target(), &record.args().to_string())
        {
            (self.0)(event);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of CubeCL 0.10, and others from the same places.
    #[test]
    fn messages_are_told_apart() {
        let read = KernelEvent::read;
        let logger = "cubecl_common::config::logger";
        assert_eq!(
            read(logger, "Executing FlipKernel | f32 | u32"),
            Some(KernelEvent::Launched("FlipKernel | f32 | u32"))
        );
        assert_eq!(read(logger, "Fastest result x"), None);
        assert_eq!(
            read(logger, "| 35.5ms     | Matmul | f32"),
            Some(KernelEvent::Took("Matmul | f32", 0.0355))
        );
        assert_eq!(seconds("2µs"), Some(2e-6));
        assert_eq!(
            seconds(&format!("{:?}", std::time::Duration::from_millis(1500))),
            Some(1.5)
        );
        assert_eq!(read(logger, "| x | y"), None);
        assert_eq!(
            read("cubecl_runtime::tune::tuner", "Tuning key"),
            Some(KernelEvent::Tuning("key"))
        );
        assert_eq!(
            read("cubecl_runtime::tune::tune_cache", "Load autotune cache ..."),
            None
        );
        assert_eq!(read("wgpu_core", "Executing x"), None);
        assert_eq!(read("gpas_train::backend", "x"), Some(KernelEvent::Told("x")));
        assert_eq!(read("gpas_cube::cublas", "x"), Some(KernelEvent::Told("x")));
    }
}
