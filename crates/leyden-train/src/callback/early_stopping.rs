//! [`EarlyStopping`]: ends the training when a metric stops improving.

use leyden_process::{Code, Error, Result, exit};
use serde_json::{Value, json};

use super::Mode;
use crate::control::Control;
use crate::event::{Callback, Event};
use crate::metrics::Shown;

/// Ends the training when the monitored value has not improved for `patience` checks. A check follows each
/// validation; with [`check_on_train_epoch_end`](Self::check_on_train_epoch_end), each training epoch.
///
/// Defaults are Lightning's: `mode` min, `min_delta` 0, `patience` 3, a value that is not finite stops at once.
#[derive(Clone, Debug)]
pub struct EarlyStopping {
    name: Option<String>,
    monitor: String,
    mode: Mode,
    min_delta: f64,
    patience: u32,
    check_finite: bool,
    stopping_threshold: Option<f64>,
    divergence_threshold: Option<f64>,
    on_train_epoch_end: bool,
    best: f64,
    waited: u32,
    /// Something else than patience has stopped it: a threshold, a number that is not finite.
    stopped: bool,
}

impl EarlyStopping {
    /// Watches the value logged under this name.
    pub fn new(monitor: impl Into<String>) -> Self {
        Self {
            name: None,
            monitor: monitor.into(),
            mode: Mode::Min,
            min_delta: 0.0,
            patience: 3,
            check_finite: true,
            stopping_threshold: None,
            divergence_threshold: None,
            on_train_epoch_end: false,
            best: Mode::Min.worst(),
            waited: 0,
            stopped: false,
        }
    }

    /// Its name among several on one metric.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether larger or smaller is better; smaller by default.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self.best = mode.worst();
        self
    }

    /// A change of at most this much is no improvement. Default 0.
    #[must_use]
    pub fn min_delta(mut self, min_delta: f64) -> Self {
        self.min_delta = min_delta.abs();
        self
    }

    /// Checks without improvement after which it stops. Default 3.
    #[must_use]
    pub fn patience(mut self, patience: u32) -> Self {
        self.patience = patience;
        self
    }

    /// Whether NaN and infinity stop at once. Default true.
    #[must_use]
    pub fn check_finite(mut self, check: bool) -> Self {
        self.check_finite = check;
        self
    }

    /// Stops as soon as the value is this good.
    #[must_use]
    pub fn stopping_threshold(mut self, threshold: f64) -> Self {
        self.stopping_threshold = Some(threshold);
        self
    }

    /// Stops as soon as the value is worse than this.
    #[must_use]
    pub fn divergence_threshold(mut self, threshold: f64) -> Self {
        self.divergence_threshold = Some(threshold);
        self
    }

    /// Checks when a training epoch ends, instead of after each validation.
    #[must_use]
    pub fn check_on_train_epoch_end(mut self) -> Self {
        self.on_train_epoch_end = true;
        self
    }

    fn check(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        let value = event.metrics.get(&self.monitor).ok_or_else(|| missing(&self.monitor, event))?;
        if let Some(reason) = self.judge(value) {
            control.stop(reason);
        }
        Ok(())
    }

    /// The reason to stop, if this value gives one.
    fn judge(&mut self, value: f64) -> Option<String> {
        let reason = self.out_of_bounds(value);
        self.stopped = reason.is_some();
        reason.or_else(|| self.out_of_patience(value))
    }

    fn out_of_bounds(&self, value: f64) -> Option<String> {
        let name = &self.monitor;
        if self.check_finite && !value.is_finite() {
            return Some(format!("{name} = {value} is not finite"));
        }
        if let Some(threshold) = self.stopping_threshold.filter(|&t| self.mode.is_better(value, t, 0.0)) {
            return Some(format!("{name} = {value} is better than the threshold {threshold}"));
        }
        if let Some(threshold) = self.divergence_threshold.filter(|&t| self.mode.is_better(t, value, 0.0)) {
            return Some(format!("{name} = {value} is worse than the threshold {threshold}"));
        }
        None
    }

    fn out_of_patience(&mut self, value: f64) -> Option<String> {
        let name = &self.monitor;
        if self.mode.is_better(value, self.best, self.min_delta) {
            (self.best, self.waited) = (value, 0);
            return None;
        }
        self.waited += 1;
        (self.waited >= self.patience).then(|| {
            format!("{name} has not improved for {} checks; the best was {}", self.waited, Shown(self.best))
        })
    }
}

impl Callback for EarlyStopping {
    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("EarlyStopping({})", self.monitor))
    }

    fn monitors(&self) -> bool {
        true
    }

    fn state(&self) -> Value {
        json!({ "best": self.best.to_bits(), "waited": self.waited, "stopped": self.stopped })
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.best = f64::from_bits(serde_json::from_value(state["best"].clone())?);
        self.waited = serde_json::from_value(state["waited"].clone())?;
        self.stopped = serde_json::from_value(state["stopped"].clone())?;
        Ok(())
    }

    /// A run that is resumed with more patience goes on.
    fn still_stops(&self) -> bool {
        self.stopped || self.waited >= self.patience
    }

    fn setup(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        if event.stage == crate::Stage::Fit {
            (self.best, self.waited, self.stopped) = (self.mode.worst(), 0, false);
        }
        Ok(())
    }

    fn on_validation_end(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        let in_training = event.stage == crate::Stage::Fit && !event.sanity_checking;
        if in_training && !self.on_train_epoch_end { self.check(event, control) } else { Ok(()) }
    }

    fn on_train_epoch_end(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        if self.on_train_epoch_end || event.plan.validation.is_none() {
            self.check(event, control)
        } else {
            Ok(())
        }
    }
}

/// The error of a callback whose metric was never logged.
pub(crate) fn missing(monitor: &str, event: &Event<'_>) -> Error {
    let known: Vec<_> = event.metrics.epoch_values().map(|(name, _)| format!("`{name}`")).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Error::new(MISSING_METRIC, format!("the monitored metric `{monitor}` was not logged"))
        .why(format!("known at the epoch level are: {known}"))
        .hint(format!("log it with `cx.log(\"{monitor}\", ..)`, or monitor one of those"))
}

/// A monitored metric was never logged.
pub const MISSING_METRIC: Code = Code::new("T0204", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;

    /// The reasons to stop, by value.
    fn judged(mut stopping: EarlyStopping, values: &[f64]) -> Vec<bool> {
        values.iter().map(|&value| stopping.judge(value).is_some()).collect()
    }

    #[test]
    fn waits_for_patience_and_starts_again_at_an_improvement() {
        let stopping = EarlyStopping::new("x").patience(2);
        assert_eq!(judged(stopping, &[1.0, 1.0, 0.9, 0.9, 0.95]), [false, false, false, false, true]);
    }

    #[test]
    fn needs_more_than_min_delta() {
        let stopping = EarlyStopping::new("x").mode(Mode::Max).min_delta(0.1).patience(1);
        assert_eq!(judged(stopping, &[1.0, 1.1]), [false, true]);
    }

    #[test]
    fn stops_at_once_on_nan_and_thresholds() {
        assert_eq!(judged(EarlyStopping::new("x"), &[f64::NAN]), [true]);
        assert_eq!(judged(EarlyStopping::new("x").check_finite(false), &[f64::NAN]), [false]);
        assert_eq!(judged(EarlyStopping::new("x").stopping_threshold(0.5), &[0.6, 0.4]), [false, true]);
        assert_eq!(judged(EarlyStopping::new("x").divergence_threshold(2.0), &[1.0, 2.1]), [false, true]);
    }
}
