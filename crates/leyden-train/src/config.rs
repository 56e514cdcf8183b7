//! [`TrainerConfig`]: what was asked, as plain data.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leyden_comm::codes::LAUNCH_OTHER_SIZE;
use leyden_comm::environment::{Environment, Launcher};
use leyden_process::{Code, Error, Result, exit};
use serde::{Deserialize, Serialize};

use crate::learner::GradientClip;

/// All that a [`Trainer`](crate::Trainer) can be told, with Lightning's names and, unless said, its defaults.
/// Live objects (callbacks, loggers) come by the builder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Batches whose gradients one optimizer step takes, as their mean: over what was really accumulated, so an
    /// epoch's short last window counts fully (Lightning divides by the full number there). Default 1.
    pub accumulate_grad_batches: u32,
    /// Validates every so many epochs; `None` counts [`ValCheck::Batches`] across epochs. Default 1.
    pub check_val_every_n_epoch: Option<u64>,
    /// How many ranks train together, each a process that runs the whole program (Lightning: `devices`). Default
    /// [`Devices::Auto`].
    pub devices: Devices,
    /// Looks for NaN and infinity in the loss and every gradient, and names step and parameter. Costs a pass over
    /// the gradients a step. Default off.
    pub detect_anomaly: bool,
    /// Adds a [`ModelCheckpoint`](crate::ModelCheckpoint) if none was given, and saves on a signal. Default on.
    pub enable_checkpointing: bool,
    /// Shows progress: a bar in a terminal, plain lines elsewhere. Default on.
    pub enable_progress_bar: bool,
    /// Shows the layers before training. Default on.
    pub enable_model_summary: bool,
    /// Runs so many batches of each kind and ends: no checkpoint, no logger, no sanity check. Default `None`.
    pub fast_dev_run: Option<usize>,
    /// Clips gradients before each optimizer step. Default `None`.
    pub gradient_clip: Option<GradientClip>,
    /// How many training batches of an epoch are used.
    pub limit_train_batches: Limit,
    /// How many batches a validation uses.
    pub limit_val_batches: Limit,
    /// How many batches the test uses.
    pub limit_test_batches: Limit,
    /// How many batches prediction uses.
    pub limit_predict_batches: Limit,
    /// Step-level values go to the loggers every so many optimizer steps. Default `None`: 50, or once an epoch where an
    /// epoch has fewer batches.
    pub log_every_n_steps: Option<u64>,
    /// Ends after so many epochs. Default `None`: no limit if `max_steps` or `max_time` is set, else 1000.
    pub max_epochs: Option<u64>,
    /// Ends after so many optimizer steps. Default `None`.
    pub max_steps: Option<u64>,
    /// Ends at the first step boundary after so long, counted over resumes. Default `None`.
    pub max_time: Option<Duration>,
    /// Callbacks cannot stop the training before so many epochs are done. Default `None`.
    pub min_epochs: Option<u64>,
    /// Callbacks cannot stop the training before so many optimizer steps are made. Default `None`.
    pub min_steps: Option<u64>,
    /// The run folder is `<root_dir>/<name>/version_N`. Default `run`.
    pub name: String,
    /// Batches of each validation loader that are tried before training; not on a resume. Default 2.
    pub num_sanity_val_steps: usize,
    /// Trains and validates on the same few training batches, in fixed order. Default `None`.
    pub overfit_batches: Option<Limit>,
    /// How long ranks wait for one that lives and does not come, such as for a long step; they say so after 5 s. What is
    /// certain (a death, an exit, another call) is told at once. Default 10 minutes (Lightning: 30).
    pub rank_timeout: Duration,
    /// Where run folders are made. Default `runs`.
    pub root_dir: PathBuf,
    /// Seeds order, per-sample and device randomness. The same seed gives the same numbers. Default 0: a run is
    /// reproducible unless it is asked not to be (Lightning: unseeded).
    pub seed: u64,
    /// How ranks train together. Default [`Strategy::Auto`].
    pub strategy: Strategy,
    /// A clean-up (`on_exception`, `teardown`, a logger's `finalize`) that takes longer is named, and the process
    /// ends. Saving after a signal has no limit but a second signal. Default 60 s.
    pub teardown_timeout: Duration,
    /// When, within an epoch, validation runs. Default at its end.
    pub val_check_interval: ValCheck,
    /// Into how many parts each step is divided, each with randomness of its own, whose gradients are summed in one fixed order:
    /// with a `global_batch_size`, 1, 2, 4 … ranks up to this number then give the same weights, bit for bit, and a checkpoint of
    /// one continues on another. A power of two. Default `None`: a step has as many parts as there are ranks.
    pub virtual_ranks: Option<usize>,
}

/// How many ranks train together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Devices {
    /// As many as there are: those that this program has launched before, or a launcher has started (torchrun, srun, mpirun,
    /// `leyden run`); else a single one.
    #[default]
    Auto,
    /// So many.
    Count(usize),
}

impl From<usize> for Devices {
    fn from(count: usize) -> Self {
        Self::Count(count)
    }
}

/// How ranks train together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// On one rank plainly, on several by [`Ddp`].
    #[default]
    Auto,
    /// Each rank has the whole model and a part of each step's data; their gradients are summed.
    Ddp(Ddp),
}

impl Strategy {
    pub(crate) fn ddp(&self) -> Ddp {
        match self {
            Self::Auto => Ddp::default(),
            Self::Ddp(ddp) => ddp.clone(),
        }
    }
}

impl From<Ddp> for Strategy {
    fn from(ddp: Ddp) -> Self {
        Self::Ddp(ddp)
    }
}

/// Data-parallel training (PyTorch: `DistributedDataParallel`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ddp {
    /// How much of the gradients is summed in one call, in bytes; what is larger is divided, and named by part. Default 25 MiB,
    /// PyTorch's. Where all ranks are on one host, `f32` is summed where it lies, all at once.
    pub bucket_bytes: usize,
    /// Whether a parameter may have a gradient on some ranks alone: the others count as zeros. Default false: it is an error
    /// that names it. Costs nothing here (PyTorch's walks the graph).
    pub find_unused_parameters: bool,
    /// What becomes of loaders that have more batches on some ranks. Default [`Uneven::Error`].
    pub uneven: Uneven,
}

impl Default for Ddp {
    fn default() -> Self {
        Self { bucket_bytes: 25 << 20, find_unused_parameters: false, uneven: Uneven::Error }
    }
}

impl Ddp {
    /// Sets [`Ddp::bucket_bytes`].
    #[must_use]
    pub fn bucket_bytes(mut self, bytes: usize) -> Self {
        self.bucket_bytes = bytes;
        self
    }

    /// Sets [`Ddp::find_unused_parameters`].
    #[must_use]
    pub fn find_unused_parameters(mut self, find: bool) -> Self {
        self.find_unused_parameters = find;
        self
    }

    /// Sets [`Ddp::uneven`].
    #[must_use]
    pub fn uneven(mut self, uneven: Uneven) -> Self {
        self.uneven = uneven;
        self
    }
}

/// What becomes of training loaders that have more batches on some ranks than on others. A `DataLoader` never does: it divides
/// the last step, drops it, or pads it with marked repeats, see its `tail`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Uneven {
    /// It is an error before the first step.
    #[default]
    Error,
    /// All ranks make as many steps as the one with the fewest batches; the others' last batches are not used.
    Drop,
    /// All make as many steps as the one with the most: whoever has no more batches adds nothing to them (PyTorch: `join`).
    Join,
}

/// A number of batches, or a part of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// All batches.
    #[default]
    All,
    /// At most so many; 0 turns the stage off.
    Batches(usize),
    /// This part of them, 0 to 1, rounded down.
    Fraction(f64),
}

/// When validation runs within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValCheck {
    /// After each so many training batches.
    Batches(usize),
    /// After each such part of the epoch, above 0 and at most 1.
    Fraction(f64),
    /// When so much time has passed since the last one, at the next batch's end.
    Time(Duration),
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            accumulate_grad_batches: 1,
            check_val_every_n_epoch: Some(1),
            detect_anomaly: false,
            devices: Devices::Auto,
            enable_checkpointing: true,
            enable_progress_bar: true,
            enable_model_summary: true,
            fast_dev_run: None,
            gradient_clip: None,
            limit_train_batches: Limit::All,
            limit_val_batches: Limit::All,
            limit_test_batches: Limit::All,
            limit_predict_batches: Limit::All,
            log_every_n_steps: None,
            max_epochs: None,
            max_steps: None,
            max_time: None,
            min_epochs: None,
            min_steps: None,
            name: "run".to_owned(),
            num_sanity_val_steps: 2,
            overfit_batches: None,
            rank_timeout: Duration::from_secs(600),
            root_dir: PathBuf::from("runs"),
            seed: 0,
            strategy: Strategy::Auto,
            teardown_timeout: Duration::from_secs(60),
            val_check_interval: ValCheck::Fraction(1.0),
            virtual_ranks: None,
        }
    }
}

impl TrainerConfig {
    /// Reads it from a JSON file, as the `config` of a run folder's `config.json`; what is not there has its default.
    ///
    /// # Errors
    /// `C0107`, naming the file, the line, and what is wrong there.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let unreadable = |error: &(dyn std::error::Error + 'static)| {
            Error::new(UNREADABLE_CONFIG, "the configuration cannot be read")
                .at("file", path.display())
                .because(error)
        };
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
        serde_json::from_str(&text).map_err(|error| {
            unreadable(&error).hint("its fields are those of `TrainerConfig`; correct that line")
        })
    }

    /// How many ranks [`devices`](Self::devices) asks for.
    ///
    /// # Errors
    /// Those of `leyden_comm::environment::Environment::detect`; `D0202` if it is one, and there are more.
    pub fn ranks(&self) -> Result<usize> {
        let there = match launched() {
            Some(size) => size,
            None => Environment::detect()?.world_size(),
        };
        match &self.devices {
            Devices::Auto => Ok(there),
            // More are launched, or refused by the launcher. A single one would train beside others, each by itself.
            Devices::Count(1) if there > 1 => {
                Err(Error::new(LAUNCH_OTHER_SIZE, "there are more ranks than are to train")
                    .at("devices", 1)
                    .at("ranks", there)
                    .why("each would train by itself, on the same data, and write the same files")
                    .hint("leave `.devices(..)` out: as many ranks train as there are"))
            }
            Devices::Count(count) => Ok(*count),
        }
    }

    /// How many of them are on this host.
    ///
    /// # Errors
    /// As [`ranks`](Self::ranks).
    pub fn ranks_of_host(&self) -> Result<usize> {
        let environment = Environment::detect()?;
        match environment.local_world_size() {
            Some(local) if environment.launcher() != Launcher::None => Ok(local),
            _ => self.ranks(),
        }
    }

    /// Checks what can be checked without data.
    ///
    /// # Errors
    /// `C0101`, naming the field, its value and what is allowed.
    pub fn check(&self) -> Result<()> {
        at_least_one("accumulate_grad_batches", u64::from(self.accumulate_grad_batches))?;
        at_least_one("log_every_n_steps", self.log_every_n_steps.unwrap_or(1))?;
        at_least_one("check_val_every_n_epoch", self.check_val_every_n_epoch.unwrap_or(1))?;
        at_least_one("fast_dev_run", self.fast_dev_run.unwrap_or(1) as u64)?;
        if let Devices::Count(count) = &self.devices {
            at_least_one("devices", *count as u64)?;
        }
        if let Some(virtual_ranks) = self.virtual_ranks.filter(|ranks| !ranks.is_power_of_two()) {
            return Err(wrong("virtual_ranks", virtual_ranks, "a power of two: 1, 2, 4 …"));
        }
        for (field, limit) in [
            ("limit_train_batches", self.limit_train_batches),
            ("limit_val_batches", self.limit_val_batches),
            ("limit_test_batches", self.limit_test_batches),
            ("limit_predict_batches", self.limit_predict_batches),
            ("overfit_batches", self.overfit_batches.unwrap_or_default()),
        ] {
            if let Limit::Fraction(part) = limit
                && !(0.0..=1.0).contains(&part)
            {
                return Err(wrong(field, part, "a part from 0 to 1; a count is `Limit::Batches(n)`"));
            }
        }
        match self.val_check_interval {
            ValCheck::Batches(n) => at_least_one("val_check_interval", n as u64)?,
            ValCheck::Fraction(part) if !(part > 0.0 && part <= 1.0) => {
                return Err(wrong("val_check_interval", part, "a part above 0 and at most 1"));
            }
            ValCheck::Fraction(_) if self.check_val_every_n_epoch.is_none() => {
                return Err(wrong(
                    "check_val_every_n_epoch",
                    "None",
                    "`Some(n)`, unless `val_check_interval` is `ValCheck::Batches(n)` or `ValCheck::Time(d)`",
                ));
            }
            _ => {}
        }
        match self.gradient_clip {
            Some(GradientClip::Norm(limit) | GradientClip::Value(limit))
                if !(limit > 0.0 && limit.is_finite()) =>
            {
                Err(wrong("gradient_clip", limit, "a limit above 0"))
            }
            _ if self.name.is_empty()
                || self.name.contains(|c: char| c.is_control() || c == '/' || c == '\\')
                || self.name.starts_with('.') =>
            {
                Err(wrong("name", format!("`{}`", self.name), "the name of one folder"))
            }
            _ => Ok(()),
        }
    }
}

impl Limit {
    /// How many of `all` batches that is.
    pub(crate) fn of(self, all: usize) -> usize {
        match self {
            Self::All => all,
            Self::Batches(n) => n.min(all),
            Self::Fraction(part) => (all as f64 * part) as usize,
        }
    }
}

/// How many ranks this program has launched, if it has.
fn launched() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return leyden_comm::launch::current().map(|world| world.world_size());
    #[cfg(not(target_os = "linux"))]
    None
}

fn at_least_one(field: &str, value: u64) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(wrong(field, value, "at least 1")) }
}

fn wrong(field: &str, value: impl std::fmt::Display, allowed: &str) -> Error {
    Error::new(WRONG_VALUE, format!("`{field}` is {value}"))
        .why(format!("allowed is {allowed}"))
        .hint(format!("change `.{field}(..)` on the builder, or the field in the configuration"))
}

/// A configuration file cannot be read.
pub const UNREADABLE_CONFIG: Code = Code::new("C0107", exit::CONFIGURATION);
/// A configuration value is out of its range.
pub const WRONG_VALUE: Code = Code::new("C0101", exit::CONFIGURATION);
