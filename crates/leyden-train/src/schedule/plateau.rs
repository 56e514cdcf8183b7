//! [`ReduceLROnPlateau`]: lowers the rate when a metric stops improving.

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{NO_MONITOR, Schedule, require, restored, saved, started};
use crate::callback::Mode;
use crate::metric::exact;

/// Multiplies the rate by `factor` when a metric has stopped improving: `torch.optim.lr_scheduler.ReduceLROnPlateau`.
///
/// A value that is not better than the best so far, NaN included, is a bad one; after more than `patience` bad ones
/// in a row the rate falls, and the next `cooldown` values are never bad.
#[derive(Clone, Debug)]
pub struct ReduceLROnPlateau {
    monitor: String,
    mode: Mode,
    factor: f64,
    patience: u64,
    threshold: f64,
    threshold_mode: ThresholdMode,
    cooldown: u64,
    min_lr: f64,
    eps: f64,
    at: Option<PlateauProgress>,
}

/// What the threshold of [`ReduceLROnPlateau`] is measured against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThresholdMode {
    /// A fraction of the best value: better is below `best * (1 - threshold)` or above `best * (1 + threshold)`.
    #[default]
    Rel,
    /// A distance: better is below `best - threshold` or above `best + threshold`.
    Abs,
}

impl ReduceLROnPlateau {
    /// Watches the metric logged as `monitor`, with torch's defaults.
    pub fn new(monitor: impl Into<String>) -> Self {
        Self {
            monitor: monitor.into(),
            mode: Mode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
            at: None,
        }
    }

    /// Which way is better; default [`Mode::Min`].
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// What the rate is multiplied by, at least 0 and below 1; default 0.1.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// How many bad values in a row are borne; the rate falls at the one after. Default 10.
    #[must_use]
    pub fn patience(mut self, patience: u64) -> Self {
        self.patience = patience;
        self
    }

    /// How much better a value must be to count; default 1e-4.
    #[must_use]
    pub fn threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// What the threshold is measured against; default [`ThresholdMode::Rel`].
    #[must_use]
    pub fn threshold_mode(mut self, threshold_mode: ThresholdMode) -> Self {
        self.threshold_mode = threshold_mode;
        self
    }

    /// How many values after a reduction are not counted as bad; default 0.
    #[must_use]
    pub fn cooldown(mut self, cooldown: u64) -> Self {
        self.cooldown = cooldown;
        self
    }

    /// The rate never falls below this; default 0.
    #[must_use]
    pub fn min_lr(mut self, min_lr: f64) -> Self {
        self.min_lr = min_lr;
        self
    }

    /// A reduction by this much or less is not made; default 1e-8.
    #[must_use]
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    fn is_better(&self, value: f64, best: f64) -> bool {
        match (self.mode, self.threshold_mode) {
            (Mode::Min, ThresholdMode::Rel) => value < best * (1.0 - self.threshold),
            (Mode::Min, ThresholdMode::Abs) => value < best - self.threshold,
            (Mode::Max, ThresholdMode::Rel) => value > best * (self.threshold + 1.0),
            (Mode::Max, ThresholdMode::Abs) => value > best + self.threshold,
        }
    }

    fn reduced(&self, rate: f64) -> f64 {
        let reduced = (rate * self.factor).max(self.min_lr);
        if rate - reduced > self.eps { reduced } else { rate }
    }

    fn seen(&self, mut at: PlateauProgress, value: f64) -> PlateauProgress {
        if self.is_better(value, at.best) {
            at.best = value;
            at.bad = 0;
        } else {
            at.bad += 1;
        }
        if at.cooldown > 0 {
            at.cooldown -= 1;
            at.bad = 0;
        }
        if at.bad > self.patience {
            at.rate = self.reduced(at.rate);
            at.cooldown = self.cooldown;
            at.bad = 0;
        }
        at
    }

    fn unlogged(&self) -> Error {
        Error::new(NO_MONITOR, format!("`ReduceLROnPlateau` monitors `{}`, which is not logged", self.monitor))
            .at("monitor", &self.monitor)
            .hint(format!(
                "log `{}` before the schedule goes on (a validation metric needs a validation run first), or give \
                 the schedule the name that you do log",
                self.monitor
            ))
    }
}

impl Schedule for ReduceLROnPlateau {
    fn initial(&mut self, base: f64) -> f64 {
        let best = match self.mode {
            Mode::Min => f64::INFINITY,
            Mode::Max => f64::NEG_INFINITY,
        };
        self.at = Some(PlateauProgress { rate: base, best, bad: 0, cooldown: 0 });
        base
    }

    fn next(&mut self, metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64> {
        self.check()?;
        let at = started(self.at, "ReduceLROnPlateau")?;
        let value = metrics(&self.monitor).ok_or_else(|| self.unlogged())?;
        let at = self.seen(at, value);
        self.at = Some(at);
        Ok(at.rate)
    }

    fn check(&self) -> Result<()> {
        require(
            (0.0..1.0).contains(&self.factor),
            "ReduceLROnPlateau",
            "factor",
            "0 ≤ factor < 1",
            self.factor,
        )
    }

    fn monitor(&self) -> Option<&str> {
        Some(&self.monitor)
    }

    fn state(&self) -> Value {
        saved("ReduceLROnPlateau", self.at)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.at = restored("ReduceLROnPlateau", state)?;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlateauProgress {
    #[serde(with = "exact")]
    rate: f64,
    #[serde(with = "exact")]
    best: f64,
    bad: u64,
    cooldown: u64,
}
