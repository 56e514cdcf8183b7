//! Learning-rate schedules: the rate of each step as a function of what came before.
//!
//! Nothing here touches an optimizer, a tensor or momentum; a schedule says a number and the engine applies it.
//! Names, defaults and arithmetic are PyTorch's (`torch.optim.lr_scheduler`), to the bit where a test says so. A
//! schedule's state is its progress alone: the options are the program's, also after a resume.

use std::f64::consts::PI;

use crate::callback::Mode;
use leyden_process::{Code, Error, Result, exit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::metric::{abridged, exact};

/// When a schedule goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    /// After each optimizer step: what [`OneCycle`] and [`LinearWarmup`] are made for.
    Step,
    /// After each epoch, as Lightning's default has it.
    #[default]
    Epoch,
}

/// A learning rate that changes: [`initial`](Schedule::initial) once, then [`next`](Schedule::next) after each
/// [`Interval`].
pub trait Schedule: Send {
    /// Starts from the beginning and gives the rate of the first step; `base` is the optimizer's configured rate.
    /// A resumed run calls [`load_state`](Schedule::load_state) after this.
    fn initial(&mut self, base: f64) -> f64;

    /// The rate after one more interval; `metrics` gives the latest value of a logged name.
    ///
    /// # Errors
    /// [`BAD_SCHEDULE`] if the options make no sense or `initial` was never called, [`NO_MONITOR`] if the monitored
    /// metric was not logged, [`SCHEDULE_ENDED`] past the last step of a schedule that has one.
    fn next(&mut self, metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64>;

    /// Refuses options that make no sense. To be called when a run is configured; [`next`](Schedule::next) refuses
    /// them too, but only after the first step.
    ///
    /// # Errors
    /// [`BAD_SCHEDULE`].
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The metric that [`next`](Schedule::next) asks for, if it asks for one.
    fn monitor(&self) -> Option<&str> {
        None
    }

    /// The progress, as JSON that restores it to the bit.
    fn state(&self) -> Value;

    /// Goes on from `state`: the next call of [`next`](Schedule::next) gives what it would have given there.
    ///
    /// # Errors
    /// [`BAD_SCHEDULE_STATE`] if `state` is of another kind of schedule; the progress is then as before.
    fn load_state(&mut self, state: &Value) -> Result<()>;
}

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

/// Up to `max_lr` and down again within `total_steps`, for [`Interval::Step`]: `torch.optim.lr_scheduler.OneCycleLR`
/// (Smith and Topin, arXiv 1708.07120), with `cycle_momentum=False`.
///
/// The optimizer's own rate plays no part. Two deviations, both where torch fails: a phase of no length is at its
/// end (torch divides by zero, for instance for `pct_start` 0.1 of 10 steps), and the rate after step `total_steps`
/// is the last one (torch extrapolates, below 0 if linear).
#[derive(Clone, Debug)]
pub struct OneCycle {
    max_lr: f64,
    total_steps: u64,
    pct_start: f64,
    anneal: Anneal,
    div_factor: f64,
    final_div_factor: f64,
    three_phase: bool,
    at: Option<u64>,
}

/// The shape of a phase of [`OneCycle`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cos,
    /// A straight line.
    Linear,
}

impl OneCycle {
    /// A cycle over `total_steps` optimizer steps with its top at `max_lr`, with torch's defaults.
    pub fn new(max_lr: f64, total_steps: u64) -> Self {
        Self {
            max_lr,
            total_steps,
            pct_start: 0.3,
            anneal: Anneal::Cos,
            div_factor: 25.0,
            final_div_factor: 1e4,
            three_phase: false,
            at: None,
        }
    }

    /// The fraction of the steps on which the rate rises, 0 to 1; default 0.3.
    #[must_use]
    pub fn pct_start(mut self, pct_start: f64) -> Self {
        self.pct_start = pct_start;
        self
    }

    /// The shape of the phases; default [`Anneal::Cos`].
    #[must_use]
    pub fn anneal(mut self, anneal: Anneal) -> Self {
        self.anneal = anneal;
        self
    }

    /// The first rate is `max_lr / div_factor`; default 25.
    #[must_use]
    pub fn div_factor(mut self, div_factor: f64) -> Self {
        self.div_factor = div_factor;
        self
    }

    /// The last rate is the first one divided by this; default 1e4.
    #[must_use]
    pub fn final_div_factor(mut self, final_div_factor: f64) -> Self {
        self.final_div_factor = final_div_factor;
        self
    }

    /// Whether the rate falls to the first one as fast as it rose, and only then to the last; default false, as in
    /// fastai: one descent. As in torch, a `pct_start` above 0.5 leaves no steps for the third phase.
    #[must_use]
    pub fn three_phase(mut self, three_phase: bool) -> Self {
        self.three_phase = three_phase;
        self
    }

    fn rate(&self, step: u64) -> f64 {
        let (step, total) = (step as f64, self.total_steps as f64);
        let first = self.max_lr / self.div_factor;
        let last = first / self.final_div_factor;
        let top = self.pct_start * total - 1.0;
        let end = total - 1.0;
        if step <= top {
            return self.between(first, self.max_lr, (step, 0.0, top));
        }
        if !self.three_phase {
            return self.between(self.max_lr, last, (step, top, end));
        }
        let foot = 2.0 * self.pct_start * total - 2.0;
        if step <= foot {
            self.between(self.max_lr, first, (step, top, foot))
        } else {
            self.between(first, last, (step, foot, end))
        }
    }

    /// The rate at `step` of a phase from `begin` to `end`.
    fn between(&self, from: f64, to: f64, (step, begin, end): (f64, f64, f64)) -> f64 {
        let pct = if begin < end { ((step - begin) / (end - begin)).min(1.0) } else { 1.0 };
        match self.anneal {
            Anneal::Cos => to + (from - to) / 2.0 * ((PI * pct).cos() + 1.0),
            Anneal::Linear => (to - from) * pct + from,
        }
    }

    fn ended(&self) -> Error {
        let total = self.total_steps;
        Error::new(
            SCHEDULE_ENDED,
            format!("`OneCycle` of {total} steps was asked for the rate after step {}", total + 1),
        )
        .at("total_steps", total)
        .why("the cycle is over: every later rate would be a guess")
        .hint(
            "build it with the number of optimizer steps of the whole run: batches per epoch, divided by \
                   the batches accumulated per step, times epochs",
        )
        .hint("if it should run over epochs, attach it with `Interval::Epoch`")
    }
}

impl Schedule for OneCycle {
    fn initial(&mut self, _base: f64) -> f64 {
        self.at = Some(0);
        self.rate(0)
    }

    fn next(&mut self, _metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64> {
        self.check()?;
        let step = started(self.at, "OneCycle")?;
        if step >= self.total_steps {
            return Err(self.ended());
        }
        self.at = Some(step + 1);
        Ok(self.rate(step + 1))
    }

    fn check(&self) -> Result<()> {
        require(self.total_steps > 0, "OneCycle", "total_steps", "total_steps > 0", self.total_steps)?;
        require(
            (0.0..=1.0).contains(&self.pct_start),
            "OneCycle",
            "pct_start",
            "0 ≤ pct_start ≤ 1",
            self.pct_start,
        )?;
        require(self.div_factor > 0.0, "OneCycle", "div_factor", "div_factor > 0", self.div_factor)?;
        require(
            self.final_div_factor > 0.0,
            "OneCycle",
            "final_div_factor",
            "final_div_factor > 0",
            self.final_div_factor,
        )
    }

    fn state(&self) -> Value {
        saved("OneCycle", self.at)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.at = restored("OneCycle", state)?;
        Ok(())
    }
}

/// Multiplies the rate by `gamma` every `step_size` intervals: `torch.optim.lr_scheduler.StepLR`.
#[derive(Clone, Debug)]
pub struct StepLr {
    step_size: u64,
    gamma: f64,
    at: Option<Progress>,
}

impl StepLr {
    /// A fall every `step_size` intervals; torch's default for `gamma` is 0.1.
    pub fn new(step_size: u64, gamma: f64) -> Self {
        Self { step_size, gamma, at: None }
    }
}

impl Schedule for StepLr {
    fn initial(&mut self, base: f64) -> f64 {
        self.at = Some(Progress { step: 0, rate: base });
        base
    }

    fn next(&mut self, _metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64> {
        self.check()?;
        let at = started(self.at, "StepLr")?;
        let step = at.step + 1;
        let rate = if step.is_multiple_of(self.step_size) { at.rate * self.gamma } else { at.rate };
        self.at = Some(Progress { step, rate });
        Ok(rate)
    }

    fn check(&self) -> Result<()> {
        require(self.step_size > 0, "StepLr", "step_size", "step_size > 0", self.step_size)
    }

    fn state(&self) -> Value {
        saved("StepLr", self.at)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.at = restored("StepLr", state)?;
        Ok(())
    }
}

/// Multiplies the rate by `gamma` after every interval: `torch.optim.lr_scheduler.ExponentialLR`.
#[derive(Clone, Debug)]
pub struct ExponentialLr {
    gamma: f64,
    at: Option<Progress>,
}

impl ExponentialLr {
    /// The rate of interval *t* is the base rate times `gamma` to the power *t*, by repeated multiplication.
    pub fn new(gamma: f64) -> Self {
        Self { gamma, at: None }
    }
}

impl Schedule for ExponentialLr {
    fn initial(&mut self, base: f64) -> f64 {
        self.at = Some(Progress { step: 0, rate: base });
        base
    }

    fn next(&mut self, _metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64> {
        let at = started(self.at, "ExponentialLr")?;
        let rate = at.rate * self.gamma;
        self.at = Some(Progress { step: at.step + 1, rate });
        Ok(rate)
    }

    fn state(&self) -> Value {
        saved("ExponentialLr", self.at)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.at = restored("ExponentialLr", state)?;
        Ok(())
    }
}

/// Half a cosine from the base rate to `eta_min` in `t_max` intervals, then up again, and so on:
/// `torch.optim.lr_scheduler.CosineAnnealingLR` in its closed form (Loshchilov and Hutter, arXiv 1608.03983, without
/// restarts).
#[derive(Clone, Debug)]
pub struct CosineAnnealing {
    t_max: u64,
    eta_min: f64,
    at: Option<Progress>,
}

impl CosineAnnealing {
    /// Down in `t_max` intervals to `eta_min` (torch's default: 0).
    pub fn new(t_max: u64, eta_min: f64) -> Self {
        Self { t_max, eta_min, at: None }
    }
}

impl Schedule for CosineAnnealing {
    fn initial(&mut self, base: f64) -> f64 {
        self.at = Some(Progress { step: 0, rate: base });
        base
    }

    fn next(&mut self, _metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64> {
        self.check()?;
        // In a closed form the progress keeps the base rate.
        let Progress { step, rate: base } = started(self.at, "CosineAnnealing")?;
        let step = step + 1;
        self.at = Some(Progress { step, rate: base });
        let wave = 1.0 + (PI * step as f64 / self.t_max as f64).cos();
        Ok(self.eta_min + (base - self.eta_min) * wave / 2.0)
    }

    fn check(&self) -> Result<()> {
        require(self.t_max > 0, "CosineAnnealing", "t_max", "t_max > 0", self.t_max)
    }

    fn state(&self) -> Value {
        saved("CosineAnnealing", self.at)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.at = restored("CosineAnnealing", state)?;
        Ok(())
    }
}

/// From `base / steps` on the first step in equal strides to the base rate on step number `steps`, then constant:
/// for [`Interval::Step`]. The rates are those of `torch.optim.lr_scheduler.LinearLR` with `start_factor` 1/`steps`
/// and `total_iters` `steps - 1`, up to rounding.
#[derive(Clone, Debug)]
pub struct LinearWarmup {
    steps: u64,
    at: Option<Progress>,
}

impl LinearWarmup {
    /// A warm-up over `steps` intervals; 0 and 1 mean none.
    pub fn new(steps: u64) -> Self {
        Self { steps, at: None }
    }

    fn rate(&self, Progress { step, rate: base }: Progress) -> f64 {
        if step + 1 >= self.steps { base } else { base * (step + 1) as f64 / self.steps as f64 }
    }
}

impl Schedule for LinearWarmup {
    fn initial(&mut self, base: f64) -> f64 {
        let at = Progress { step: 0, rate: base };
        self.at = Some(at);
        self.rate(at)
    }

    fn next(&mut self, _metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64> {
        let mut at = started(self.at, "LinearWarmup")?;
        at.step += 1;
        self.at = Some(at);
        Ok(self.rate(at))
    }

    fn state(&self) -> Value {
        saved("LinearWarmup", self.at)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.at = restored("LinearWarmup", state)?;
        Ok(())
    }
}

/// How far a schedule has come: intervals done, and the rate it goes on from.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Progress {
    step: u64,
    #[serde(with = "exact")]
    rate: f64,
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

fn started<P>(at: Option<P>, kind: &str) -> Result<P> {
    at.ok_or_else(|| {
        Error::new(BAD_SCHEDULE, format!("`{kind}` was asked for its next rate before its first"))
            .hint("call `initial` with the optimizer's rate, or `load_state`, before `next`")
    })
}

fn require(holds: bool, kind: &str, option: &str, rule: &str, found: impl std::fmt::Display) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::new(BAD_SCHEDULE, format!("`{kind}` cannot run with `{option}` {found}"))
        .at("expected", rule)
        .at("found", found)
        .hint(format!("give `{option}` a value with {rule}")))
}

/// The kind travels with the progress, because the progresses of two kinds may look alike.
fn saved<P: Serialize>(kind: &str, at: Option<P>) -> Value {
    json!({ "schedule": kind, "at": at })
}

fn restored<P: DeserializeOwned>(kind: &str, state: &Value) -> Result<Option<P>> {
    let refused = || {
        Error::new(BAD_SCHEDULE_STATE, format!("a saved state does not fit schedule `{kind}`"))
            .at("state", abridged(state))
            .hint("resume with the schedules, in their order, with which the checkpoint was saved")
    };
    match state["schedule"].as_str() {
        Some(found) if found == kind => {
            Option::deserialize(&state["at"]).map_err(|error| refused().because(&error))
        }
        found => Err(refused().at("expected", kind).at("found", found.unwrap_or("no `schedule`"))),
    }
}

/// `T0601`: a schedule's options make no sense, or it was not started.
pub const BAD_SCHEDULE: Code = Code::new("T0601", exit::CONFIGURATION);
/// `T0602`: a schedule's monitored metric is not logged.
pub const NO_MONITOR: Code = Code::new("T0602", exit::CONFIGURATION);
/// `T0603`: a schedule of a fixed length was asked for more steps.
pub const SCHEDULE_ENDED: Code = Code::new("T0603", exit::CONFIGURATION);
/// `T0604`: a saved schedule state is of another kind of schedule.
pub const BAD_SCHEDULE_STATE: Code = Code::new("T0604", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates of the first `values.len() + 1` intervals at base rate 0.1, where interval *i* has logged `values[i]`.
    fn rates(schedule: &mut dyn Schedule, values: &[f64]) -> Vec<f64> {
        let mut rates = vec![schedule.initial(0.1)];
        rates.extend(values.iter().map(|&value| schedule.next(&|_| Some(value)).unwrap()));
        rates
    }

    fn rates_of(mut schedule: impl Schedule, steps: usize) -> Vec<f64> {
        rates(&mut schedule, &vec![f64::NAN; steps])
    }

    // All golden numbers are printed by torch 2.15.0 (CPU): `param_groups[0]["lr"]` of an SGD with lr=0.1 after the
    // constructor and after each `scheduler.step()`, with the options of the test and `cycle_momentum=False`.

    #[test]
    fn one_cycle_is_torch_to_the_bit() {
        let torch = [
            0.016000000000000014,
            0.20800000000000002,
            0.4,
            0.38019385280538953,
            0.3246982615799052,
            0.24450480877451572,
            0.1554967912254843,
            0.0753033384200948,
            0.019807747194610516,
            1.6e-06,
        ];
        assert_eq!(rates_of(OneCycle::new(0.4, 10), 9), torch);
    }

    #[test]
    fn one_cycle_in_three_phases_is_torch_to_the_bit() {
        let linear = OneCycle::new(0.4, 12)
            .anneal(Anneal::Linear)
            .three_phase(true)
            .pct_start(0.25)
            .div_factor(10.0)
            .final_div_factor(100.0);
        let torch = [
            0.04,
            0.22000000000000003,
            0.4,
            0.22,
            0.03999999999999998,
            0.03434285714285715,
            0.028685714285714287,
            0.02302857142857143,
            0.017371428571428572,
            0.011714285714285712,
            0.006057142857142858,
            0.0003999999999999976,
        ];
        assert_eq!(rates_of(linear, 11), torch);
        let torch = [
            0.040000000000000036,
            0.2207248951078079,
            0.6268100482990309,
            0.9524650565931612,
            0.9524650565931612,
            0.6268100482990309,
            0.22072489510780793,
            0.04,
            0.038019575420312576,
            0.032470549057570956,
            0.024451973637258376,
            0.015552026362741628,
            0.0075334509424290486,
            0.0019844245796874246,
            4e-06,
        ];
        assert_eq!(rates_of(OneCycle::new(1.0, 15).three_phase(true), 14), torch);
    }

    #[test]
    fn one_cycle_holds_its_last_rate_once_and_then_is_over() {
        let mut cycle = OneCycle::new(0.4, 3).anneal(Anneal::Linear);
        let rates = rates(&mut cycle, &[0.0; 3]);
        assert_eq!(rates[2], rates[3]);
        assert!(rates[3] > 0.0);
        // torch: "Tried to step 4 times. The specified number of total steps is 3".
        let error = cycle.next(&|_| None).unwrap_err();
        assert_eq!(error.code(), SCHEDULE_ENDED);
        assert_eq!(error.what(), "`OneCycle` of 3 steps was asked for the rate after step 4");
    }

    #[test]
    fn one_cycle_bears_phases_without_steps() {
        assert_eq!(rates_of(OneCycle::new(0.4, 10).pct_start(0.1), 10)[0], 0.4);
        for pct_start in [0.0, 0.1, 0.5, 1.0] {
            for three_phase in [false, true] {
                let rates =
                    rates_of(OneCycle::new(0.4, 10).pct_start(pct_start).three_phase(three_phase), 10);
                assert!(rates.iter().all(|rate| (0.0..=0.4).contains(rate)), "{pct_start} {rates:?}");
            }
        }
    }

    #[test]
    fn plateau_is_torch_to_the_bit() {
        let values = [1.0, 0.9, 0.9, 0.89995, 0.95, 0.95, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6];
        let mut plateau = ReduceLROnPlateau::new("val/loss").patience(1).cooldown(2).factor(0.3);
        let last = 0.0026999999999999997;
        let torch =
            [0.1, 0.1, 0.1, 0.1, 0.03, 0.03, 0.03, 0.03, 0.03, 0.009, 0.009, 0.009, 0.009, last, last];
        assert_eq!(rates(&mut plateau, &values), torch);

        let values = [0.1, 0.2, 0.25, 0.3, 0.3, f64::NAN, 0.29, 0.9, 0.9, 0.9, 0.9, 0.9];
        let mut plateau = ReduceLROnPlateau::new("val/accuracy")
            .mode(Mode::Max)
            .threshold(0.06)
            .threshold_mode(ThresholdMode::Abs)
            .patience(0)
            .factor(0.5)
            .min_lr(0.01);
        let torch = [0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.0125, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01];
        assert_eq!(rates(&mut plateau, &values), torch);
    }

    #[test]
    fn plateau_has_torch_s_defaults() {
        let mut values = [5.0; 17];
        values[13..].fill(4.0);
        let mut torch = [0.1; 18];
        torch[12..].fill(0.010000000000000002);
        assert_eq!(rates(&mut ReduceLROnPlateau::new("val/loss"), &values), torch);
    }

    #[test]
    fn plateau_leaves_out_a_reduction_below_eps() {
        let mut plateau = ReduceLROnPlateau::new("val/loss").patience(0).factor(0.5);
        plateau.initial(3e-8);
        let rates: Vec<_> = (0..6).map(|_| plateau.next(&|_| Some(1.0)).unwrap()).collect();
        assert_eq!(rates, [3e-8, 1.5e-8, 1.5e-8, 1.5e-8, 1.5e-8, 1.5e-8]);
    }

    #[test]
    fn plateau_names_a_metric_that_is_not_logged() {
        let mut plateau = ReduceLROnPlateau::new("val/lost");
        plateau.initial(0.1);
        let error = plateau.next(&|name| (name == "val/loss").then_some(1.0)).unwrap_err();
        assert_eq!(
            format!("{error:?}"),
            "error[T0602]: `ReduceLROnPlateau` monitors `val/lost`, which is not logged\n  monitor  val/lost\n  \
             fix: log `val/lost` before the schedule goes on (a validation metric needs a validation run first), or \
             give the schedule the name that you do log"
        );
    }

    #[test]
    fn the_simple_schedules_are_torch_to_the_bit() {
        let (a, b, c) = (0.010000000000000002, 0.0010000000000000002, 0.00010000000000000003);
        assert_eq!(rates_of(StepLr::new(3, 0.1), 10), [0.1, 0.1, 0.1, a, a, a, b, b, b, c, c]);
        let torch = [0.1, 0.09000000000000001, 0.08100000000000002, 0.07290000000000002, 0.06561000000000002];
        assert_eq!(rates_of(ExponentialLr::new(0.9), 4), torch);
        // The closed form: `_get_closed_form_lr()` at each `last_epoch`.
        let torch = [
            0.1,
            0.0962320368593087,
            0.0855017856687341,
            0.06944282990207196,
            0.0505,
            0.03155717009792806,
            0.0154982143312659,
            0.004767963140691307,
            0.001,
            0.004767963140691301,
            0.01549821433126589,
        ];
        assert_eq!(rates_of(CosineAnnealing::new(8, 0.001), 10), torch);
    }

    #[test]
    fn warm_up_reaches_the_base_rate_on_its_last_step() {
        assert_eq!(rates_of(LinearWarmup::new(4), 5), [0.025, 0.05, 0.1 * 3.0 / 4.0, 0.1, 0.1, 0.1]);
        assert_eq!(rates_of(LinearWarmup::new(0), 2), [0.1; 3]);
    }

    fn every_kind() -> [Box<dyn Schedule>; 6] {
        [
            Box::new(ReduceLROnPlateau::new("val/loss").patience(1).cooldown(1).factor(0.7)),
            Box::new(OneCycle::new(0.3, 12)),
            Box::new(StepLr::new(3, 0.7)),
            Box::new(ExponentialLr::new(0.93)),
            Box::new(CosineAnnealing::new(7, 0.003)),
            Box::new(LinearWarmup::new(7)),
        ]
    }

    #[test]
    fn goes_on_bit_exactly_from_a_state_saved_at_any_step() {
        let values = [f64::NAN, 0.9, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.7, 0.71, 0.72, 0.73];
        for kind in 0..every_kind().len() {
            let whole = rates(&mut *every_kind()[kind], &values);
            for saved_at in 0..=values.len() {
                let mut first = every_kind().into_iter().nth(kind).unwrap();
                rates(&mut *first, &values[..saved_at]);
                let text = first.state().to_string();
                let mut second = every_kind().into_iter().nth(kind).unwrap();
                second.initial(0.7);
                second.load_state(&serde_json::from_str(&text).unwrap()).unwrap();
                for (step, &value) in values.iter().enumerate().skip(saved_at) {
                    let rate = second.next(&|_| Some(value)).unwrap();
                    assert_eq!(rate.to_bits(), whole[step + 1].to_bits(), "kind {kind}, step {step}, {text}");
                }
            }
        }
    }

    #[test]
    fn a_state_of_another_schedule_is_refused() {
        let mut step = StepLr::new(3, 0.1);
        let before = rates(&mut step, &[0.0; 2]);
        let mut exponential = ExponentialLr::new(0.9);
        exponential.initial(1.0);
        let error = step.load_state(&exponential.state()).unwrap_err();
        assert_eq!(error.code(), BAD_SCHEDULE_STATE);
        assert_eq!((error.place("expected"), error.place("found")), (Some("StepLr"), Some("ExponentialLr")));
        let error = step.load_state(&json!({ "schedule": "StepLr", "at": { "step": -1 } })).unwrap_err();
        assert!(error.reasons()[0].contains("-1"), "{error:?}");
        assert_eq!(step.next(&|_| None).unwrap(), before[0] * 0.1);
    }

    #[test]
    fn senseless_options_are_refused_by_name() {
        let cases: [(Box<dyn Schedule>, &str); 7] = [
            (
                Box::new(ReduceLROnPlateau::new("x").factor(1.0)),
                "`ReduceLROnPlateau` cannot run with `factor` 1",
            ),
            (Box::new(OneCycle::new(0.1, 0)), "`OneCycle` cannot run with `total_steps` 0"),
            (Box::new(OneCycle::new(0.1, 9).pct_start(1.5)), "`OneCycle` cannot run with `pct_start` 1.5"),
            (Box::new(OneCycle::new(0.1, 9).div_factor(0.0)), "`OneCycle` cannot run with `div_factor` 0"),
            (
                Box::new(OneCycle::new(0.1, 9).final_div_factor(f64::NAN)),
                "`OneCycle` cannot run with `final_div_factor` NaN",
            ),
            (Box::new(StepLr::new(0, 0.1)), "`StepLr` cannot run with `step_size` 0"),
            (Box::new(CosineAnnealing::new(0, 0.0)), "`CosineAnnealing` cannot run with `t_max` 0"),
        ];
        for (mut schedule, what) in cases {
            let error = schedule.check().unwrap_err();
            assert_eq!((error.code(), error.what()), (BAD_SCHEDULE, what));
            schedule.initial(0.1);
            assert_eq!(schedule.next(&|_| Some(1.0)).unwrap_err().what(), what);
        }
    }

    #[test]
    fn the_next_rate_needs_a_first() {
        for mut schedule in every_kind() {
            let error = schedule.next(&|_| Some(1.0)).unwrap_err();
            assert_eq!(error.code(), BAD_SCHEDULE);
            assert!(error.what().ends_with("was asked for its next rate before its first"), "{error:?}");
        }
    }
}
