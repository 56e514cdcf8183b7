//! Leyden trains deep-learning models in Rust: what PyTorch Lightning is to PyTorch, on [Burn](burn).
//!
//! A run ends in a result, or in an error that says what happened, where, why, and what to do. Start with
//! [`prelude`], [`LeydenModule`], [`DataModule`] and [`Trainer`]; the README and `examples/digits.rs` show a whole
//! program, `docs/from-lightning.md` has the names for those who come from there.
//!
//! This crate only puts the others together: the loop is in `leyden-train`, Burn's side in `leyden-burn`, data sets
//! and loaders in `leyden-data`, ranks in `leyden-comm`, signals and errors in `leyden-process`.
#![forbid(unsafe_code)]

pub mod program;

pub use leyden_burn::{
    Batched, BurnDataset, FabricOptimizer, FitError, Fitted, FromHost, Grads, LabeledImages, LeydenModule,
    Local, Loggable, Loss, ModelCallback, ModuleLearner, Optimizers, Predict, RankExt, Reduced, StepCx,
    TrainerExt, burn, class_ids, cross_entropy, load_tensors, named_tensors, predicted_classes,
};
#[cfg(target_os = "linux")]
pub use leyden_comm as comm;
pub use leyden_data as data;
pub use leyden_data::{Collate, DataLoader, Dataset, Loader};
pub use leyden_macros::main;
pub use leyden_process as process;
pub use leyden_process::{Code, Error, Result, bail, exit};
pub use leyden_train as train;
pub use leyden_train::{
    Callback, Checkpoint, CkptPath, Control, CsvLogger, DataModule, Ddp, Devices, EarlyStopping, Event,
    Fabric, FabricBuilder, FitReport, GradientClip, Hook, JsonlLogger, LearningRateMonitor, Limit, LoaderCx,
    Loaders, Logger, Metrics, Mode, ModelCheckpoint, ModelSummary, Outcome, Plan, Progress, ProgressBar,
    Rank, RankZero, Reduce, Stage, StopReason, Strategy, TensorBoardLogger, Timer, Trainer, TrainerBuilder,
    TrainerConfig, Uneven, ValCheck, metric, schedule,
};

/// What a program that trains needs: `use leyden::prelude::*;`.
pub mod prelude {
    pub use crate::data::{
        Array, Collate, DataLoader, Dataset, DatasetExt, IdxImages, ImageBatch, SampleCx, Subset,
        TensorDataset, Workers, default_collate, random_split,
    };
    pub use crate::metric::{Accuracy, ConfusionMatrix, F1, Mean};
    pub use crate::schedule::{
        CosineAnnealing, ExponentialLr, Interval, LinearWarmup, OneCycle, ReduceLROnPlateau, StepLr,
    };
    pub use crate::{
        Callback, Checkpoint, CkptPath, Code, Control, CsvLogger, DataModule, Ddp, Devices, EarlyStopping,
        Error, Event, Fabric, FitError, Fitted, FromHost, GradientClip, Hook, JsonlLogger, LabeledImages,
        LearningRateMonitor, LeydenModule, Limit, LoaderCx, Loaders, Logger, Loss, Metrics, Mode,
        ModelCallback, ModelCheckpoint, ModelSummary, Optimizers, Outcome, Plan, Predict, ProgressBar, Rank,
        RankExt, Reduce, Result, Stage, StepCx, StopReason, TensorBoardLogger, Timer, Trainer, TrainerConfig,
        TrainerExt, ValCheck, bail, burn, class_ids, cross_entropy, predicted_classes,
    };
    pub use burn::module::{Module, ParamGroup};
    pub use burn::tensor::{Device, Int, Tensor, TensorData};
}

/// Makes mimalloc this program's allocator; one line in `main.rs`, with the
/// feature `mimalloc`. A CPU engine allocates every intermediate, so the allocator is part of its speed.
#[cfg(feature = "mimalloc")]
#[macro_export]
macro_rules! mimalloc {
    () => {
        #[global_allocator]
        static LEYDEN_ALLOCATOR: $crate::__private::MiMalloc = $crate::__private::MiMalloc;
    };
}

/// Without the feature `mimalloc` this says so.
#[cfg(not(feature = "mimalloc"))]
#[macro_export]
macro_rules! mimalloc {
    () => {
        ::core::compile_error!(
            "enable the feature: leyden = { version = \"0.1\", features = [\"mimalloc\"] }"
        );
    };
}

#[doc(hidden)]
#[cfg(feature = "mimalloc")]
pub mod __private {
    pub use mimalloc::MiMalloc;
}

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So does that of the guide to loading, and it runs.
#[cfg(doctest)]
#[doc = include_str!("../docs/data-loading.md")]
struct DataLoading;

/// And that of the guide to ranks.
#[cfg(doctest)]
#[doc = include_str!("../docs/ranks.md")]
struct Ranks;

/// And that of training on them.
#[cfg(doctest)]
#[doc = include_str!("../docs/training-on-ranks.md")]
struct TrainingOnRanks;
