//! What a callback may ask for.

use std::path::PathBuf;

/// Requests of callbacks; the loop carries them out after the event, and saving where no step is half done.
/// In `on_exception` and `teardown` it is too late: what is asked for there is not done.
#[derive(Debug, Default)]
pub struct Control {
    pub(crate) stop: Option<String>,
    pub(crate) skip_epoch: bool,
    pub(crate) acts: Vec<Act>,
    pub(crate) scalars: Vec<(String, f64)>,
}

/// What the loop does for a callback, in the order in which it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Save { path: PathBuf, weights_only: bool },
    Link { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
}

impl Control {
    /// Ends the training, for this reason, once `min_epochs` and `min_steps` are met.
    pub fn stop(&mut self, reason: impl Into<String>) {
        self.stop.get_or_insert_with(|| reason.into());
    }

    /// Skips the rest of this training epoch (Lightning's `-1` from `on_train_batch_start`); its end is still run.
    pub fn skip_epoch(&mut self) {
        self.skip_epoch = true;
    }

    /// Saves a checkpoint, atomically.
    pub fn save_checkpoint(&mut self, path: impl Into<PathBuf>, weights_only: bool) {
        self.acts.push(Act::Save { path: path.into(), weights_only });
    }

    /// Gives a checkpoint that is there a second name, atomically, replacing what had it.
    pub fn link_checkpoint(&mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) {
        self.acts.push(Act::Link { from: from.into(), to: to.into() });
    }

    /// Removes a checkpoint; one that is gone already is no error.
    pub fn remove_checkpoint(&mut self, path: impl Into<PathBuf>) {
        self.acts.push(Act::Remove(path.into()));
    }

    /// Gives the loggers a value at the present step.
    pub fn log(&mut self, name: impl Into<String>, value: f64) {
        self.scalars.push((name.into(), value));
    }
}
