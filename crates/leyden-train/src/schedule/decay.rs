//! Rates that fall by a formula of the interval's number, and one that rises: [`StepLr`], [`ExponentialLr`],
//! [`CosineAnnealing`], [`LinearWarmup`].

use std::f64::consts::PI;

use leyden_process::Result;
use serde_json::Value;

use super::{Progress, Schedule, require, restored, saved, started};

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
/// for [`Interval::Step`](super::Interval::Step). The rates are those of `torch.optim.lr_scheduler.LinearLR` with `start_factor` 1/`steps`
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
