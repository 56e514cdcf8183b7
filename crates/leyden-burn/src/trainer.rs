//! [`TrainerExt`]: `fit`, `validate`, `test` and `predict` for Burn models.

use std::fmt;
use std::io::Write as _;
use std::ops::Deref;
use std::path::Path;
use std::sync::Once;

use burn::tensor::Device;
use leyden_process::{Error, Result, contain};
use leyden_train::codes::PANICKED;
use leyden_train::{DataModule, FitReport, Metrics, Trainer};

use crate::learner::ModuleLearner;
use crate::module::{FromHost, LeydenModule, Predict};
use crate::threads;

type HostOf<M> = <<M as LeydenModule>::Batch as FromHost>::Host;

/// What [`Trainer`] can do with a [`LeydenModule`]. In the prelude.
pub trait TrainerExt {
    /// Trains `model` on `data`. The model is moved to an autodiff device of its own device; the result has it back.
    ///
    /// For the same numbers from the same seed, the model's initial weights must be seeded too: build it in
    /// [`fit_with`](Self::fit_with), or call `device.seed(..)` before building it.
    ///
    /// # Errors
    /// What made the run fail, with hook, epoch, step and batch, and the model where it survived. A signal is no
    /// error: look at [`FitReport::outcome`].
    #[track_caller]
    fn fit<M, D>(&mut self, model: M, data: &mut D) -> Result<Fitted<M>, FitError<M>>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>;

    /// Builds the model with `make`, on the default device seeded with the trainer's seed, and trains it: the same
    /// seed gives the same numbers, to the last bit.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    #[track_caller]
    fn fit_with<M, D>(
        &mut self,
        make: impl FnOnce(&Device) -> M,
        data: &mut D,
    ) -> Result<Fitted<M>, FitError<M>>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>;

    /// Validates `model`: `validation_step` over `val_loader`.
    ///
    /// # Errors
    /// What made it fail; a signal is an error here, because the values would be of a part.
    #[track_caller]
    fn validate<M, D>(&mut self, model: &M, data: &mut D) -> Result<Metrics>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>;

    /// Tests `model`: `test_step` over `test_loader`.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    #[track_caller]
    fn test<M, D>(&mut self, model: &M, data: &mut D) -> Result<Metrics>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>;

    /// Predicts with `model`: what `predict_step` gave, by loader and batch.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    #[track_caller]
    fn predict<M, D>(&mut self, model: &M, data: &mut D) -> Result<Vec<Vec<M::Output>>>
    where
        M: Predict,
        D: DataModule<Batch = HostOf<M>>;

    /// Saves what `fit` returned as a checkpoint that a run can go on from.
    ///
    /// # Errors
    /// `K0101` if the file cannot be written.
    fn save_checkpoint<M: LeydenModule>(&self, fitted: &mut Fitted<M>, path: impl AsRef<Path>) -> Result<()>;
}

impl TrainerExt for Trainer {
    fn fit<M, D>(&mut self, model: M, data: &mut D) -> Result<Fitted<M>, FitError<M>>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>,
    {
        warn_of_debug_build();
        threads::divide(self.config());
        let mut learner = ModuleLearner::new(model);
        match self.fit_learner(&mut learner, data) {
            Ok(report) if learner.model().is_some() => Ok(Fitted { report, learner }),
            Ok(_) => unreachable!("a run that did not fail has its model"),
            Err(error) => Err(FitError { error, model: learner.into_model() }),
        }
    }

    fn fit_with<M, D>(
        &mut self,
        make: impl FnOnce(&Device) -> M,
        data: &mut D,
    ) -> Result<Fitted<M>, FitError<M>>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>,
    {
        threads::divide(self.config());
        let device = Device::default();
        device.seed(self.config().seed);
        let model = contain(|| make(&device)).map_err(|panic| FitError {
            error: panic.explain(Error::new(PANICKED, "building the model panicked")),
            model: None,
        })?;
        self.fit(model, data)
    }

    fn validate<M, D>(&mut self, model: &M, data: &mut D) -> Result<Metrics>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>,
    {
        threads::divide(self.config());
        self.validate_learner(&mut ModuleLearner::new(model.clone()), data)
    }

    fn test<M, D>(&mut self, model: &M, data: &mut D) -> Result<Metrics>
    where
        M: LeydenModule,
        D: DataModule<Batch = HostOf<M>>,
    {
        threads::divide(self.config());
        self.test_learner(&mut ModuleLearner::new(model.clone()), data)
    }

    fn predict<M, D>(&mut self, model: &M, data: &mut D) -> Result<Vec<Vec<M::Output>>>
    where
        M: Predict,
        D: DataModule<Batch = HostOf<M>>,
    {
        threads::divide(self.config());
        let predictions = self.predict_learner(&mut ModuleLearner::predicting(model.clone()), data)?;
        let typed = |batch: Box<dyn std::any::Any + Send>| {
            *batch
                .downcast::<M::Output>()
                .expect("`predicting` boxes what `predict_step` of this model returns")
        };
        Ok(predictions.into_iter().map(|loader| loader.into_iter().map(typed).collect()).collect())
    }

    fn save_checkpoint<M: LeydenModule>(&self, fitted: &mut Fitted<M>, path: impl AsRef<Path>) -> Result<()> {
        self.save_checkpoint_learner(&mut fitted.learner, Some(&fitted.report), path)
    }
}

/// A `fit` that did not fail: its report, and the model.
#[must_use = "it has the trained model"]
pub struct Fitted<M: LeydenModule> {
    report: FitReport,
    learner: ModuleLearner<M>,
}

impl<M: LeydenModule> Fitted<M> {
    /// The trained model, on an autodiff device.
    pub fn model(&self) -> &M {
        self.learner.model().expect("`fit` makes this only with its model")
    }

    /// The trained model, on an autodiff device; `.valid()` is its evaluation mode.
    pub fn into_model(self) -> M {
        self.learner.into_model().expect("`fit` makes this only with its model")
    }
}

/// The report's fields: `fitted.outcome`, `fitted.metrics`, `fitted.best_checkpoint` …
impl<M: LeydenModule> Deref for Fitted<M> {
    type Target = FitReport;

    fn deref(&self) -> &FitReport {
        &self.report
    }
}

impl<M: LeydenModule> fmt::Debug for Fitted<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fitted").field(&self.report).finish()
    }
}

/// A `fit` that failed: why, and the model as it was then. `?` turns it into [`Error`].
pub struct FitError<M> {
    /// What happened.
    pub error: Error,
    /// The model, unless a panic of the engine lost it.
    pub model: Option<M>,
}

impl<M> From<FitError<M>> for Error {
    fn from(failed: FitError<M>) -> Self {
        failed.error
    }
}

impl<M> fmt::Debug for FitError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<M> fmt::Display for FitError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// Burn without optimisation is a hundred times slower: said once a process.
fn warn_of_debug_build() {
    static ONCE: Once = Once::new();
    if env!("LEYDEN_OPT_LEVEL") == "0" {
        ONCE.call_once(|| {
            let _ = writeln!(
                std::io::stderr(),
                "leyden: this is a debug build, in which Burn is unusably slow: use `--release`, or add\n  \
                 [profile.dev.package.\"*\"]\n  opt-level = 3\nto Cargo.toml"
            );
        });
    }
}
