//! [`StepCx`]: what a step knows (epoch, batch, step, seed) and where it logs.

use leyden_process::Result;

use crate::learner::Stage;
use crate::logs::{LogHandle, Logs};
use crate::metric::Metric;
use crate::scalar::Scalar;

/// The context of one step, or of one hook in which logging is allowed.
#[derive(Debug)]
pub struct StepCx<'a> {
    pub(crate) at: StepFacts,
    pub(crate) logs: &'a mut Logs,
}

/// Where a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepFacts {
    /// What the run is for; validation inside `fit` says [`Stage::Validate`] here.
    pub stage: Stage,
    /// Training epochs begun before this one.
    pub epoch: u64,
    /// Index of the batch in its epoch.
    pub batch: usize,
    /// Samples in the batch; the weight of what the step logs.
    pub samples: usize,
    /// Optimizer steps made so far.
    pub global_step: u64,
    /// Training batches seen before this one, over all epochs.
    pub batches_seen: u64,
    /// A seed that belongs to this run, stage and batch alone.
    pub seed: u64,
    /// Which of several evaluation loaders the batch is from.
    pub loader: usize,
    /// Whether this is a step, or a hook of the epoch (where only epoch-level logging is allowed).
    pub in_step: bool,
}

impl<'a> StepCx<'a> {
    /// A context by itself: for a hand-written loop over a [`Learner`](crate::Learner).
    pub fn new(at: StepFacts, logs: &'a mut Logs) -> Self {
        Self { at, logs }
    }

    /// Logs a value, by Lightning's rules: in a training step at the step level; in evaluation steps and in
    /// epoch hooks at the epoch level, as the mean weighted by batch size. The handle changes that:
    /// `cx.log("train/loss", loss).prog_bar().on_epoch(true);`
    ///
    /// With both levels on, the names are `<name>_step` and `<name>_epoch`. Misuse (the same name with other
    /// arguments, a step-level value outside a training step) fails the run after the step, with code `T0201` or `T0202`.
    pub fn log(&mut self, name: &str, value: impl Into<Scalar>) -> LogHandle<'_> {
        self.logs.log(name, value.into(), &self.at)
    }

    /// Fails the run after this step: for adapters whose own `log` met an error.
    pub fn fail(&mut self, error: leyden_process::Error) {
        self.logs.fail(error);
    }

    /// The same context, for a shorter time.
    pub fn reborrow(&mut self) -> StepCx<'_> {
        StepCx { at: self.at, logs: self.logs }
    }

    /// The metric of that name, made by `make` when the epoch first asks for it; its values, exact over all the
    /// epoch's samples, are logged when the epoch ends.
    ///
    /// # Errors
    /// `T0203` if the name belongs to a metric of another type.
    pub fn metric<M: Metric>(&mut self, name: &str, make: impl FnOnce() -> M) -> Result<&mut M> {
        self.logs.metric(name, self.at.loader, make)
    }

    /// What the run is for; validation inside `fit` says [`Stage::Validate`].
    pub fn stage(&self) -> Stage {
        self.at.stage
    }

    /// Index of the training epoch.
    pub fn epoch(&self) -> u64 {
        self.at.epoch
    }

    /// Index of the batch in its epoch.
    pub fn batch_index(&self) -> usize {
        self.at.batch
    }

    /// Samples in the batch.
    pub fn batch_size(&self) -> usize {
        self.at.samples
    }

    /// Optimizer steps made so far.
    pub fn global_step(&self) -> u64 {
        self.at.global_step
    }

    /// A seed that belongs to this run, stage and batch alone: the same after a resume.
    pub fn seed(&self) -> u64 {
        self.at.seed
    }

    /// Which of several evaluation loaders the batch is from; 0 where there is one.
    pub fn dataloader_index(&self) -> usize {
        self.at.loader
    }

    /// All the facts at once.
    pub fn facts(&self) -> &StepFacts {
        &self.at
    }
}
