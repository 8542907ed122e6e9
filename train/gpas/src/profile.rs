//! Where the time of a step goes, by kind of work, from samples of the call stacks of all threads.
//!
//! Part of the program with `--features profile`, on Unix. The kinds of work are ordered; a sample counts as the first kind that one of the
//! functions on its stack belongs to.

use serde::Serialize;

/// The kinds of work, each with what the names of its functions contain, the most telling first.
const KINDS: [(&str, &[&str]); 8] = [
    (
        "allocation",
        &[
            "malloc",
            "calloc",
            "_int_free",
            "memset",
            "page_fault",
            "mmap",
            "madvise",
        ],
    ),
    (
        "matmul",
        &["gemm", "multiply_section", "product::multiply", "matrixmultiply"],
    ),
    ("transpose", &["host::matrix::transpose"]),
    (
        "softmax and exp",
        &["head::exponentials", "head::scale", "softmax", "log_softmax"],
    ),
    ("norm", &["host::norm", "norm::RmsNorm"]),
    (
        "gather and scatter",
        &["host::embedding", "gather", "scatter", "select"],
    ),
    ("optimizer", &["host::adam", "optimizer::"]),
    (
        "elementwise",
        &[
            "host::swiglu",
            "host::gate",
            "attention::turn",
            "host::head",
            "burn_flex::ops",
            "burn_flex::simd",
        ],
    ),
];

/// The share of a kind of work in the samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The kind.
    pub kind: String,
    /// Between 0 and 1.
    pub share: f64,
}

/// The kind of work of a call stack, innermost function first.
fn kind(stack: &[String]) -> &'static str {
    let is = |parts: &[&str], name: &String| parts.iter().any(|part| name.contains(part));
    // Time spent on clearing memory or on page faults counts as allocation, whichever function asked for the memory.
    let (allocation, words) = KINDS[0];
    if stack.first().is_some_and(|name| is(words, name)) {
        return allocation;
    }
    let found = KINDS[1..]
        .iter()
        .find(|(_, parts)| stack.iter().any(|name| is(parts, name)));
    found.map_or("other", |(kind, _)| kind)
}

/// Shares of all kinds, largest first, from stacks and how often each was seen.
#[cfg_attr(not(all(unix, feature = "profile")), allow(dead_code))]
fn shares(stacks: impl Iterator<Item = (Vec<String>, usize)>) -> Vec<Share> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for (stack, count) in stacks {
        *counts.entry(kind(&stack)).or_default() += count;
    }
    let total = counts.values().sum::<usize>().max(1) as f64;
    let mut shares: Vec<Share> = counts
        .into_iter()
        .map(|(kind, count)| Share {
            kind: kind.into(),
            share: count as f64 / total,
        })
        .collect();
    shares.sort_by(|a, b| b.share.total_cmp(&a.share));
    shares
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ProfileError {
    #[error("this program was built without the profiler")]
    NotCompiledIn,
    #[error("the profiler failed: {0}")]
    Failed(String),
}

impl ProfileError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ProfileError::NotCompiledIn => Some("build with `--features profile`, on Unix".into()),
            ProfileError::Failed(_) => None,
        }
    }
}

/// A running profiler.
pub struct Profiler {
    #[cfg(all(unix, feature = "profile"))]
    guard: pprof::ProfilerGuard<'static>,
}

impl Profiler {
    /// Starts to sample.
    ///
    /// # Errors
    /// If the program has no profiler, or the system lets it have no timer.
    pub fn start() -> Result<Self, ProfileError> {
        #[cfg(all(unix, feature = "profile"))]
        {
            // A prime, so that samples do not fall in step with periodic work.
            let guard = pprof::ProfilerGuardBuilder::default().frequency(499).build();
            let guard = guard.map_err(|error| ProfileError::Failed(error.to_string()))?;
            Ok(Self { guard })
        }
        #[cfg(not(all(unix, feature = "profile")))]
        Err(ProfileError::NotCompiledIn)
    }

    /// What was seen so far.
    ///
    /// # Errors
    /// If the samples cannot be read.
    pub fn shares(&self) -> Result<Vec<Share>, ProfileError> {
        #[cfg(all(unix, feature = "profile"))]
        {
            let report = self.guard.report().build();
            let report = report.map_err(|error| ProfileError::Failed(error.to_string()))?;
            Ok(shares(report.data.iter().map(|(frames, count)| {
                let names = frames.frames.iter().flatten().map(|symbol| symbol.name());
                (names.collect(), usize::try_from(*count).unwrap_or(0))
            })))
        }
        #[cfg(not(all(unix, feature = "profile")))]
        Err(ProfileError::NotCompiledIn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_of_the_kind_that_tells_most() {
        let stack = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            kind(&stack(&["x4x6", "gemm_f32::gemm", "gpas_host::head::Head::chunk"])),
            "matmul"
        );
        assert_eq!(
            kind(&stack(&["__memset_avx512", "gpas_host::norm::Norm"])),
            "allocation"
        );
        assert_eq!(
            kind(&stack(&["exp", "gpas_host::attention::softmax", "rayon"])),
            "softmax and exp"
        );
        assert_eq!(kind(&stack(&["main"])), "other");
        let shares = shares([(stack(&["main"]), 1), (stack(&["gemm"]), 3)].into_iter());
        assert_eq!(shares[0].kind, "matmul");
        assert_eq!(shares[0].share, 0.75);
    }
}
