//! Where the training is: the counters that a checkpoint keeps.

use serde::{Deserialize, Serialize};

/// Counters of a training run. Lightning's names where it has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Training epochs completed; inside an epoch, its index.
    pub epoch: u64,
    /// Batches of this epoch that are done; inside a batch, its index.
    pub batch: usize,
    /// Batches in this epoch. A resumed run has those of its own loader.
    pub batches: usize,
    /// Optimizer steps made.
    pub global_step: u64,
    /// Training batches seen, over all epochs.
    pub batches_seen: u64,
    /// Training samples seen, over all epochs.
    pub samples_seen: u64,
    /// Batches whose gradients wait for the optimizer.
    pub accumulated: u32,
    /// Validations completed.
    pub validations: u64,
    /// Which part of the loop comes next.
    pub(crate) phase: Phase,
}

/// Between which two parts of the loop the run is; a checkpoint resumes exactly there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Before an epoch's first batch, and before its start was announced.
    #[default]
    EpochStart,
    /// After a batch; a validation may be due.
    BatchDone,
    /// After the batch and its validation.
    Validated,
    /// After the end of an epoch that a limit or a stop cut short: a resumed run goes on inside it.
    EpochCut,
    /// After the epoch's end was announced; schedules have not advanced yet.
    EpochDone,
}

impl Progress {
    /// Whether the batch just done is the epoch's last.
    pub fn is_last_batch(&self) -> bool {
        self.batch >= self.batches
    }

    /// Whether batches of this epoch are done and others are not.
    pub(crate) fn is_inside_epoch(&self) -> bool {
        self.batch > 0 && !self.is_last_batch() && self.phase != Phase::EpochDone
    }
}
