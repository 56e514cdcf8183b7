//! The callbacks that come with Leyden, one file each. The trait is in [`event`](crate::event).

mod checkpoint;
mod early_stopping;
mod lr_monitor;
mod progress_bar;
mod summary;
mod timer;

pub use checkpoint::{ModelCheckpoint, UNKNOWN_METRIC};
pub use early_stopping::{EarlyStopping, MISSING_METRIC};
pub use lr_monitor::LearningRateMonitor;
pub use progress_bar::ProgressBar;
pub use summary::ModelSummary;
pub use timer::Timer;

/// Whether a smaller or a larger value is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Larger is better: accuracy.
    Max,
    /// Smaller is better: loss.
    #[default]
    Min,
}

impl Mode {
    /// Whether `value` is better than `best` by more than `min_delta`; NaN never is.
    pub(crate) fn is_better(self, value: f64, best: f64, min_delta: f64) -> bool {
        match self {
            Self::Max => value > best + min_delta,
            Self::Min => value < best - min_delta,
        }
    }

    /// What any number is better than.
    pub(crate) fn worst(self) -> f64 {
        match self {
            Self::Max => f64::NEG_INFINITY,
            Self::Min => f64::INFINITY,
        }
    }
}
