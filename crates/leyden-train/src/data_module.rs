//! [`DataModule`]: where batches come from, and who cleans up after them.

use leyden_data::{DataLoader, Dataset, Loader};
use leyden_process::{Error, Result};
use serde_json::Value;

use crate::learner::Stage;
use crate::outcome::Outcome;

/// The data of a run: preparation, loaders, clean-up. It makes *host* batches; no tensor is needed here.
///
/// Order: `prepare_data`, `setup`, the loaders, (`load_state`), the run, `teardown`.
///
/// **The contract.** If `setup` returned `Ok`, `teardown` is called exactly once on every path that the process
/// survives: success, error, panic, first SIGINT or SIGTERM. When the run did not succeed, `on_exception` comes
/// before it, also for errors in `prepare_data` and `setup` themselves. (Lightning calls `teardown` on success
/// only.) A `teardown` or `on_exception` that fails or panics does not keep the others from running.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `DataModule`",
    note = "implement `leyden::DataModule` for it; `train_loader` is the one method that `fit` needs"
)]
pub trait DataModule {
    /// What a loader yields: plain host data.
    type Batch;

    /// Downloads, unpacks: what one process does for all. Called first, on rank 0 alone while the others wait.
    fn prepare_data(&mut self) -> Result<()> {
        Ok(())
    }

    /// Opens what this stage needs. `teardown` will be called if and only if this returns `Ok`.
    fn setup(&mut self, stage: Stage) -> Result<()> {
        let _ = stage;
        Ok(())
    }

    /// The loader of training batches: exactly one.
    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<Self::Batch>> {
        let _ = cx;
        Ok(Loaders::none())
    }

    /// The loaders of validation batches; none turns validation off.
    fn val_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<Self::Batch>> {
        let _ = cx;
        Ok(Loaders::none())
    }

    /// The loaders of test batches.
    fn test_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<Self::Batch>> {
        let _ = cx;
        Ok(Loaders::none())
    }

    /// The loaders of batches to predict.
    fn predict_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<Self::Batch>> {
        let _ = cx;
        Ok(Loaders::none())
    }

    /// What must survive a resume beyond the position, which the trainer keeps.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes back its [`state`](Self::state).
    fn load_state(&mut self, state: &Value) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// The run failed or was interrupted; comes before `teardown`.
    fn on_exception(&mut self, error: &Error) -> Result<()> {
        let _ = error;
        Ok(())
    }

    /// The end: close what `setup` opened.
    fn teardown(&mut self, outcome: &Outcome) -> Result<()> {
        let _ = outcome;
        Ok(())
    }
}

/// What a loader must know of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderCx {
    /// What the run is for.
    pub stage: Stage,
    /// The run's seed; a loader for which none was chosen takes it by itself.
    pub seed: u64,
    /// Which of the ranks that train together this is, from 0. A `DataLoader` is told by the trainer; a stream, or a loader of
    /// one's own, takes its part by this.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
}

/// The loaders of one kind: none, one, or several.
///
/// `Ok(loader.into())` for one [`DataLoader`]; `Loaders::none().and(first).and(second)` for several, or for a
/// [`Loader`] of one's own.
pub struct Loaders<B>(pub(crate) Vec<Box<dyn Loader<B>>>);

impl<B> Loaders<B> {
    /// No loader.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// One more loader.
    #[must_use]
    pub fn and(mut self, loader: impl Loader<B> + 'static) -> Self {
        self.0.push(Box::new(loader));
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<D: Dataset + 'static> From<DataLoader<D>> for Loaders<D::Batch> {
    fn from(loader: DataLoader<D>) -> Self {
        Self::none().and(loader)
    }
}
