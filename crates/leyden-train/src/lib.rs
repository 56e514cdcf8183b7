//! The Trainer: a loop that one can read on a screen, made of parts that one can use alone.
//!
//! [`Trainer`] runs a [`Learner`] (a model and its optimizer, as a few verbs) over the loaders of a [`DataModule`],
//! tells [`Callback`]s what happens ([`Event`]), carries out what they ask for ([`Control`]), gives [`Logger`]s what
//! steps log ([`StepCx::log`]), and saves and resumes all of it ([`Checkpoint`]).
//!
//! No tensor is named here: an engine's crate implements [`Learner`] (`leyden-burn` does for Burn), and
//! [`learner::toy`] is a small one without an engine, for tests.
#![forbid(unsafe_code)]

mod callback;
pub mod checkpoint;
pub mod codes;
mod config;
mod control;
mod data_module;
mod event;
mod fabric;
pub mod learner;
pub mod logger;
mod logs;
pub mod metric;
mod metrics;
mod outcome;
mod plan;
mod progress;
mod ranks;
mod run_dir;
mod say;
mod scalar;
pub mod schedule;
pub mod state;
mod step;
pub mod testing;
mod trainer;

pub use callback::{
    EarlyStopping, LearningRateMonitor, Mode, ModelCheckpoint, ModelSummary, ProgressBar, Timer,
};
pub use checkpoint::Checkpoint;
pub use config::{Ddp, Devices, Limit, Strategy, TrainerConfig, Uneven, ValCheck};
pub use control::Control;
pub use data_module::{DataModule, LoaderCx, Loaders};
pub use event::{Callback, Event, Hook};
pub use fabric::{Fabric, FabricBuilder};
pub use learner::{GradientClip, Learner, LearnerView, Stage};
pub use logger::{CsvLogger, JsonlLogger, Logger, TensorBoardLogger};
pub use logs::{LogHandle, Logs, Reduce};
pub use metrics::{Metrics, MetricsView};
pub use outcome::{Outcome, StopReason};
pub use plan::{Plan, ValidationPlan};
pub use progress::Progress;
pub use ranks::{Rank, RankZero};
pub use scalar::{DeviceScalar, Scalar};
pub use step::{StepCx, StepFacts};
pub use trainer::{CkptPath, FitReport, Predictions, Trainer, TrainerBuilder};
