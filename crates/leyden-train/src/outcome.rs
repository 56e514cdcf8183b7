//! How a run ended.

use std::fmt;

use leyden_process::signal::Signal;

/// How a run ended, as `teardown` is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an interrupted run is not an error; look whether it finished"]
pub enum Outcome {
    /// It did all that was asked; for `fit`, this ended it.
    Finished(StopReason),
    /// A signal stopped it at a step boundary.
    Interrupted(Signal),
    /// An error or panic ended it.
    Failed,
}

impl Outcome {
    /// Whether it did all that was asked.
    pub fn is_finished(&self) -> bool {
        matches!(self, Self::Finished(_))
    }

    /// Whether a signal stopped it.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted(_))
    }

    /// `finished`, `interrupted` or `failed`: what loggers are told.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Finished(_) => "finished",
            Self::Interrupted(_) => "interrupted",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(reason) => write!(f, "finished: {reason}"),
            Self::Interrupted(signal) => write!(f, "interrupted by {}", signal.name()),
            Self::Failed => f.write_str("failed"),
        }
    }
}

/// What ended a `fit` that finished.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// All batches of an evaluation or prediction were done.
    AllBatches,
    /// A callback asked for it.
    Callback {
        /// The callback's name.
        name: String,
        /// Its reason.
        reason: String,
    },
    /// `max_epochs` was reached.
    MaxEpochs(u64),
    /// `max_steps` was reached.
    MaxSteps(u64),
    /// There was nothing to run on: the limit of the stage, or its loader, leaves no batch.
    NoBatches,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllBatches => f.write_str("all batches are done"),
            Self::Callback { name, reason } => write!(f, "{name}: {reason}"),
            Self::MaxEpochs(n) => write!(f, "max_epochs = {n} reached"),
            Self::MaxSteps(n) => write!(f, "max_steps = {n} reached"),
            Self::NoBatches => f.write_str("there are no batches"),
        }
    }
}
