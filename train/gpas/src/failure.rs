//! How a command fails: with one cause, and one hint what to do about it.
//!
//! The error types of the libraries say what to do by a method of their own, `hint`; which of them have one is said here, in one place. The
//! trait is the program's because only the program prints hints, and because `?` then turns nothing but a [`Hint`] into a [`Failure`]: an
//! error type that is not listed below does not compile.

use std::error::Error;
use std::fmt;
use std::iter::successors;

use gpas_data::DataError;
use gpas_exchange::ExchangeError;
use gpas_report::ReportError;
use gpas_report::compare::CompareError;
use gpas_serve::inference::InferenceError;
use gpas_serve::task::TaskError;
use gpas_train::backend::BackendError;
use gpas_train::checkpoint::CheckpointError;
use gpas_train::chosen::ChoiceError;
use gpas_train::recipe::RecipeError;
use gpas_train::run::RunError;
use gpas_train::training::TrainingError;

use crate::benchmark::BenchmarkError;
use crate::profile::ProfileError;

/// What a command's parts return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// An error that a command may end with.
pub trait Hint: Error + Send + Sync + 'static {
    /// What to do about it, where that is known.
    fn hint(&self) -> Option<String>;
}

/// Why a command failed.
///
/// It is displayed in one line, each cause after what it has caused.
#[derive(Debug)]
pub struct Failure {
    /// What failed, outermost last.
    during: Vec<String>,
    cause: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
}

impl<E: Hint> From<E> for Failure {
    fn from(cause: E) -> Self {
        Self {
            during: Vec::new(),
            hint: cause.hint(),
            cause: Box::new(cause),
        }
    }
}

impl Failure {
    /// Says in front of an error what failed, or where: `result.map_err(Failure::during("--vary"))`.
    pub fn during<E: Into<Failure>>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |error| {
            let mut failure = error.into();
            failure.during.push(what.to_string());
            failure
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The error at the bottom, if it is of that type.
    pub fn downcast<E: Error + 'static>(&self) -> Option<&E> {
        self.cause.downcast_ref()
    }

    /// The error and what has caused it.
    pub fn causes(&self) -> impl Iterator<Item = &(dyn Error + 'static)> {
        let first: &(dyn Error + 'static) = self.cause.as_ref();
        successors(Some(first), |error| (*error).source())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in self.during.iter().rev() {
            write!(f, "{what}: ")?;
        }
        let causes: Vec<String> = self.causes().map(ToString::to_string).collect();
        f.write_str(&causes.join(": "))
    }
}

macro_rules! hints {
    ($($error:ty),* $(,)?) => {
        $(impl Hint for $error {
            fn hint(&self) -> Option<String> {
                <$error>::hint(self)
            }
        })*
    };
}

macro_rules! no_hints {
    ($($error:ty),* $(,)?) => {
        $(impl Hint for $error {
            fn hint(&self) -> Option<String> {
                None
            }
        })*
    };
}

hints!(
    BenchmarkError,
    CheckpointError,
    ChoiceError,
    CompareError,
    DataError,
    ExchangeError,
    InferenceError,
    ProfileError,
    RecipeError,
    ReportError,
    RunError,
    TaskError,
    TrainingError,
);

impl Hint for BackendError {
    fn hint(&self) -> Option<String> {
        Some(BackendError::hint(self))
    }
}

no_hints!(
    gpas_model::ConfigError,
    gpas_model::weights::WeightsError,
    gpas_serve::sampler::SamplingError,
    serde_json::Error,
    std::io::Error,
);

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_hint_is_that_of_the_error_and_the_line_says_where() {
        let error = RunError::NotARun(PathBuf::from("runs/x"));
        let failure = Failure::during::<RunError>("pre/seed-1")(error);
        assert_eq!(
            failure.to_string(),
            "pre/seed-1: runs/x is not a run directory: it has no recipe.toml"
        );
        assert_eq!(
            failure.hint(),
            Some("a run directory is what `gpas train -o DIR` makes")
        );
        assert!(failure.downcast::<RunError>().is_some() && failure.downcast::<io::Error>().is_none());

        let failure = Failure::during::<Failure>("outer")(Failure::during("inner")(io::Error::other("cause")));
        assert_eq!(
            (failure.to_string().as_str(), failure.hint()),
            ("outer: inner: cause", None)
        );
    }

    #[test]
    fn an_error_in_an_error_keeps_its_hint() {
        let missing = || RecipeError::Missing("72m".into());
        let hint = RecipeError::hint(&missing());
        assert!(hint.is_some());
        let training = TrainingError::from(RunError::from(missing()));
        let exchange = ExchangeError::from(RunError::from(missing()));
        let report = ReportError::from(CompareError::from(missing()));
        let task = TaskError::from(InferenceError::from(TrainingError::from(RunError::from(missing()))));
        for failure in [training.into(), exchange.into(), report.into(), Failure::from(task)] {
            assert_eq!(failure.hint().map(str::to_string), hint);
        }
    }
}
