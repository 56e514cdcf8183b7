//! [`OneCycle`]: up to a largest rate and down again.

use std::f64::consts::PI;

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SCHEDULE_ENDED, Schedule, require, restored, saved, started};

/// Up to `max_lr` and down again within `total_steps`, for [`Interval::Step`](super::Interval::Step): `torch.optim.lr_scheduler.OneCycleLR`
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
