//! [`Plan`]: what will run, and why: the configuration after every default and inference.

use std::fmt;
use std::time::Duration;

use leyden_process::{Code, Error, Result, exit};
use serde::Serialize;

use crate::config::{Limit, TrainerConfig, ValCheck};
use crate::learner::Stage;

/// What will run. Printable; each line says where its value comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Training batches an epoch.
    pub train_batches: usize,
    /// Batches of each validation loader (of the test or prediction, in those stages).
    pub eval_batches: Vec<usize>,
    /// Batches of each validation loader in the sanity check.
    pub sanity_batches: usize,
    /// Ends after so many epochs.
    pub max_epochs: Option<u64>,
    /// Ends after so many optimizer steps.
    pub max_steps: Option<u64>,
    /// Step-level values are logged every so many optimizer steps.
    pub log_every_n_steps: u64,
    /// When validation runs; `None`: never.
    pub validation: Option<ValidationPlan>,
    lines: Vec<Line>,
}

/// When validation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ValidationPlan {
    /// After each so many batches of an epoch, in every so many epochs.
    InEpoch {
        /// Batches.
        every_batches: usize,
        /// Epochs.
        every_epochs: u64,
    },
    /// After each so many training batches, counted across epochs.
    AcrossEpochs {
        /// Batches.
        every_batches: u64,
    },
    /// When so much time has passed.
    Timed(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Line {
    name: &'static str,
    value: String,
    why: String,
}

impl Plan {
    /// Resolves `config` for loaders of these lengths.
    ///
    /// # Errors
    /// `C0102` for combinations that cannot be meant: a fraction that leaves no batch, a validation interval
    /// longer than the epoch.
    pub(crate) fn resolve(
        config: &TrainerConfig,
        stage: Stage,
        device: &str,
        train: Option<usize>,
        eval: &[usize],
    ) -> Result<Self> {
        let mut plan = Self::default();
        plan.line("stage", stage.name(), "asked");
        plan.line("seed", config.seed, "`seed`");
        plan.line("device", device, "of the model");
        if let Some(all) = train {
            plan.resolve_fit(config, all)?;
        }
        plan.resolve_evaluation(config, stage, eval)?;
        if stage == Stage::Fit {
            plan.resolve_validation(config)?;
        }
        Ok(plan)
    }

    fn resolve_fit(&mut self, config: &TrainerConfig, all: usize) -> Result<()> {
        let (limit, field) = match (config.fast_dev_run, config.overfit_batches) {
            (Some(n), _) => (Limit::Batches(n), "fast_dev_run"),
            (None, Some(limit)) => (limit, "overfit_batches"),
            (None, None) => (config.limit_train_batches, "limit_train_batches"),
        };
        self.train_batches = limited(field, limit, all)?;
        self.line(
            "train batches",
            format!("{} of {all}", self.train_batches),
            &format!("`{field}` = {limit:?}"),
        );

        (self.max_steps, self.max_epochs) = match config.fast_dev_run {
            Some(n) => (Some(n as u64), Some(1)),
            None => (config.max_steps, config.max_epochs),
        };
        let mut why = if config.fast_dev_run.is_some() { "`fast_dev_run`" } else { "`max_epochs`" };
        if self.max_epochs.is_none() && self.max_steps.is_none() && config.max_time.is_none() {
            self.max_epochs = Some(DEFAULT_MAX_EPOCHS);
            why = "the default where neither `max_epochs`, `max_steps` nor `max_time` is set";
        }
        let count = |limit: Option<u64>| limit.map_or("no limit".to_owned(), |n| n.to_string());
        self.line("epochs", count(self.max_epochs), why);
        self.line("optimizer steps", count(self.max_steps), "`max_steps`");
        self.line("batches a step", config.accumulate_grad_batches, "`accumulate_grad_batches`");
        let batches = (self.train_batches as u64).max(1);
        self.log_every_n_steps = config.log_every_n_steps.unwrap_or(DEFAULT_LOG_EVERY.min(batches));
        let why = "`log_every_n_steps`; 50 by default, or once an epoch";
        self.line("logged every", format!("{} steps", self.log_every_n_steps), why);
        if let Some(clip) = config.gradient_clip {
            self.line("clipping", format!("{clip:?}"), "`gradient_clip`");
        }
        Ok(())
    }

    fn resolve_evaluation(&mut self, config: &TrainerConfig, stage: Stage, eval: &[usize]) -> Result<()> {
        let (limit, field) = match (config.fast_dev_run, config.overfit_batches, stage) {
            (Some(n), ..) => (Limit::Batches(n), "fast_dev_run"),
            (None, Some(limit), Stage::Fit) => (limit, "overfit_batches"),
            (None, _, Stage::Fit | Stage::Validate) => (config.limit_val_batches, "limit_val_batches"),
            (None, _, Stage::Test) => (config.limit_test_batches, "limit_test_batches"),
            (None, _, Stage::Predict) => (config.limit_predict_batches, "limit_predict_batches"),
        };
        for &all in eval {
            let used = limited(field, limit, all)?;
            self.eval_batches.push(used);
            self.line("evaluation batches", format!("{used} of {all}"), &format!("`{field}` = {limit:?}"));
        }
        if stage == Stage::Fit && config.fast_dev_run.is_none() && config.overfit_batches.is_none() {
            self.sanity_batches = config.num_sanity_val_steps;
        }
        Ok(())
    }

    fn resolve_validation(&mut self, config: &TrainerConfig) -> Result<()> {
        if self.eval_batches.iter().all(|&batches| batches == 0) {
            self.line("validation", "never", "there are no validation batches");
            return Ok(());
        }
        let train = self.train_batches;
        let plan = match (config.val_check_interval, config.check_val_every_n_epoch) {
            // One pass over everything: what is for long runs must not hide the validation.
            _ if config.fast_dev_run.is_some() => {
                ValidationPlan::InEpoch { every_batches: train.max(1), every_epochs: 1 }
            }
            (ValCheck::Time(interval), _) => ValidationPlan::Timed(interval),
            (ValCheck::Batches(n), None) => ValidationPlan::AcrossEpochs { every_batches: n as u64 },
            (ValCheck::Batches(n), Some(_)) if n > train => {
                return Err(Error::new(CONTRADICTION, "validation would never run")
                    .why(format!("`val_check_interval` is {n} batches, an epoch has {train}"))
                    .hint("lower it, or set `check_val_every_n_epoch` to `None` to count across epochs"));
            }
            (ValCheck::Batches(n), Some(every_epochs)) => {
                ValidationPlan::InEpoch { every_batches: n, every_epochs }
            }
            (ValCheck::Fraction(part), every) => {
                let every_batches = ((train as f64 * part) as usize).max(1);
                ValidationPlan::InEpoch { every_batches, every_epochs: every.unwrap_or(1) }
            }
        };
        if let (ValidationPlan::InEpoch { every_epochs, .. }, Some(max)) = (plan, self.max_epochs)
            && every_epochs > max
            && config.fast_dev_run.is_none()
        {
            return Err(Error::new(CONTRADICTION, "validation would never run")
                .why(format!(
                    "`check_val_every_n_epoch` is {every_epochs}, and the run ends after {max} epochs"
                ))
                .hint("lower it, or let `val_loader` give no loader"));
        }
        self.validation = Some(plan);
        let text = match plan {
            ValidationPlan::InEpoch { every_batches, every_epochs } => {
                format!("every {every_batches} batches, in one of {every_epochs} epochs")
            }
            ValidationPlan::AcrossEpochs { every_batches } => {
                format!("every {every_batches} batches, across epochs")
            }
            ValidationPlan::Timed(interval) => format!("every {interval:?}"),
        };
        self.line("validation", text, "`val_check_interval`, `check_val_every_n_epoch`");
        Ok(())
    }

    fn line(&mut self, name: &'static str, value: impl fmt::Display, why: &str) {
        self.lines.push(Line { name, value: value.to_string(), why: why.to_owned() });
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
        let value = self.lines.iter().map(|line| line.value.len()).max().unwrap_or(0);
        for line in &self.lines {
            writeln!(f, "{:<name$}  {:<value$}  ({})", line.name, line.value, line.why)?;
        }
        Ok(())
    }
}

/// A fraction that leaves nothing of something is a mistake, as in Lightning; a count of 0 turns a stage off.
fn limited(field: &str, limit: Limit, all: usize) -> Result<usize> {
    let used = limit.of(all);
    match limit {
        Limit::Fraction(part) if used == 0 && all > 0 && part > 0.0 => {
            Err(Error::new(CONTRADICTION, format!("`{field}` leaves no batch"))
                .why(format!("{part} of {all} batches is less than one"))
                .hint(format!("set it to at least {:.4}, or to `Limit::Batches(1)`", 1.0 / all as f64)))
        }
        _ => Ok(used),
    }
}

/// Configuration values that contradict each other or the data.
pub const CONTRADICTION: Code = Code::new("C0102", exit::CONFIGURATION);

/// Lightning's.
const DEFAULT_MAX_EPOCHS: u64 = 1000;

/// Lightning's.
const DEFAULT_LOG_EVERY: u64 = 50;
