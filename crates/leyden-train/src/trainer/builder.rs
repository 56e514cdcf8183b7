//! Configuring a [`Trainer`].

use std::path::PathBuf;
use std::time::Duration;

use leyden_process::{Code, Error, Result, exit};

use super::Trainer;
use crate::callback::{ModelCheckpoint, ModelSummary, ProgressBar, Timer};
use crate::config::{Devices, Limit, Strategy, TrainerConfig, ValCheck};
use crate::event::Callback;
use crate::learner::GradientClip;
use crate::logger::{CsvLogger, Logger, TensorBoardLogger};

/// Collects configuration, callbacks and loggers. Every setting and its default is described at
/// [`TrainerConfig`]; a method here sets the field of its name.
#[derive(Default)]
#[must_use = "call `build`"]
pub struct TrainerBuilder {
    config: TrainerConfig,
    callbacks: Vec<Box<dyn Callback>>,
    /// `None`: the default ones.
    loggers: Option<Vec<Box<dyn Logger>>>,
}

macro_rules! settings {
    ($($name:ident: $kind:ty => $wrap:expr),* $(,)?) => {$(
        #[doc = concat!("Sets [`TrainerConfig::", stringify!($name), "`].")]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.config.$name = $wrap($name);
            self
        }
    )*};
}

impl TrainerBuilder {
    settings! {
        accumulate_grad_batches: u32 => identity,
        check_val_every_n_epoch: Option<u64> => identity,
        detect_anomaly: bool => identity,
        enable_checkpointing: bool => identity,
        enable_progress_bar: bool => identity,
        enable_model_summary: bool => identity,
        fast_dev_run: usize => Some,
        gradient_clip: GradientClip => Some,
        limit_train_batches: Limit => identity,
        limit_val_batches: Limit => identity,
        limit_test_batches: Limit => identity,
        limit_predict_batches: Limit => identity,
        log_every_n_steps: u64 => Some,
        max_epochs: u64 => Some,
        max_steps: u64 => Some,
        max_time: Duration => Some,
        min_epochs: u64 => Some,
        min_steps: u64 => Some,
        num_sanity_val_steps: usize => identity,
        overfit_batches: Limit => Some,
        rank_timeout: Duration => identity,
        seed: u64 => identity,
        teardown_timeout: Duration => identity,
        val_check_interval: ValCheck => identity,
        virtual_ranks: usize => Some,
    }

    /// Sets [`TrainerConfig::devices`]: how many ranks train together.
    pub fn devices(mut self, devices: impl Into<Devices>) -> Self {
        self.config.devices = devices.into();
        self
    }

    /// Sets [`TrainerConfig::strategy`].
    pub fn strategy(mut self, strategy: impl Into<Strategy>) -> Self {
        self.config.strategy = strategy.into();
        self
    }

    /// Sets [`TrainerConfig::name`].
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Sets [`TrainerConfig::root_dir`].
    pub fn root_dir(mut self, root_dir: impl Into<PathBuf>) -> Self {
        self.config.root_dir = root_dir.into();
        self
    }

    /// Replaces the whole configuration, as read from a file.
    pub fn config(mut self, config: TrainerConfig) -> Self {
        self.config = config;
        self
    }

    /// Adds a callback. They are called in the order in which they were added, except that those which save
    /// checkpoints come last.
    pub fn callback(mut self, callback: impl Callback + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Adds a logger, in place of the default ones (CSV and TensorBoard).
    pub fn logger(mut self, logger: impl Logger + 'static) -> Self {
        self.loggers.get_or_insert_default().push(Box::new(logger));
        self
    }

    /// No logger at all.
    pub fn no_logger(mut self) -> Self {
        self.loggers = Some(Vec::new());
        self
    }

    /// Checks the configuration and puts the trainer together. Does no I/O.
    ///
    /// # Errors
    /// `C0101` for a value out of range; `C0103` for two callbacks of one name, which would share a
    /// state, or two loggers of one name, which would share a file;
    /// `C0105` for a checkpoint callback where checkpointing is off.
    pub fn build(self) -> Result<Trainer> {
        let Self { config, mut callbacks, loggers } = self;
        config.check()?;
        warn_of_abort();
        let quiet = config.fast_dev_run.is_some();
        let has =
            |callbacks: &[Box<dyn Callback>], name: &str| callbacks.iter().any(|known| known.name() == name);
        if config.enable_checkpointing && !quiet && !callbacks.iter().any(|callback| callback.saves()) {
            callbacks.push(Box::new(ModelCheckpoint::new()));
        } else if !config.enable_checkpointing && callbacks.iter().any(|callback| callback.saves()) {
            return Err(Error::new(
                BAD_BUILD,
                "a checkpoint callback was added and `enable_checkpointing` is false",
            )
            .hint("remove one of the two"));
        }
        if quiet {
            callbacks.retain(|callback| !callback.saves());
        }
        if let Some(limit) = config.max_time
            && !has(&callbacks, "Timer")
        {
            callbacks.push(Box::new(Timer::new(limit)));
        }
        if config.enable_model_summary && !has(&callbacks, "ModelSummary") {
            callbacks.push(Box::new(ModelSummary::new()));
        }
        if config.enable_progress_bar && !has(&callbacks, "ProgressBar") {
            callbacks.push(Box::new(ProgressBar::new()));
        }
        check_names("callbacks", callbacks.iter().map(|callback| callback.name()))?;
        // A stable sort: those that save see the state that the others have reached.
        callbacks.sort_by_key(|callback| callback.saves());
        let loggers =
            loggers.unwrap_or_else(|| vec![Box::new(CsvLogger::new()), Box::new(TensorBoardLogger::new())]);
        check_names("loggers", loggers.iter().map(|logger| logger.name().to_owned()))?;
        Ok(Trainer { config, callbacks, loggers, ckpt_path: None, dir: None })
    }
}

fn check_names(kind: &str, names: impl Iterator<Item = String>) -> Result<()> {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    match names.array_windows().find(|[one, other]| one == other) {
        None => Ok(()),
        Some([name, _]) => Err(Error::new(SAME_NAME, format!("two {kind} are named `{name}`"))
            .why("a callback's name is the key of its state in checkpoints, a logger's that of its file")
            .hint("remove one, or give it another name: those made to be several have `.named(..)`")),
    }
}

/// With `panic = "abort"` no panic can become an error: said once a process.
fn warn_of_abort() {
    #[cfg(panic = "abort")]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            crate::say::say(
                "leyden: this program is built with panic = \"abort\": a panic will end it without clean-up",
            );
        });
    }
}

fn identity<T>(value: T) -> T {
    value
}

/// Two callbacks, or two loggers, share a name.
pub const SAME_NAME: Code = Code::new("C0103", exit::CONFIGURATION);
/// Parts of a trainer that exclude each other.
pub const BAD_BUILD: Code = Code::new("C0105", exit::CONFIGURATION);
