//! [`ModelCheckpoint`]: saves the best and the newest.

use std::path::{Path, PathBuf};

use leyden_process::{Code, Error, Result, exit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Mode;
use super::early_stopping::missing;
use crate::control::Control;
use crate::event::{Callback, Event};
use crate::progress::Progress;
use crate::run_dir::CHECKPOINTS;

/// Saves checkpoints to `<run folder>/checkpoints`: the best `save_top_k` by a monitored metric (the newest ones
/// without a monitor), and `last.safetensors`, always the newest.
///
/// It saves after each validation, or, where there is none, at the end of each training epoch;
/// [`every_n_train_steps`](Self::every_n_train_steps) and [`every_n_epochs`](Self::every_n_epochs) change that.
/// Lightning's defaults, except that `last` is kept by default: a run that was killed can go on.
#[derive(Clone, Debug)]
pub struct ModelCheckpoint {
    name: Option<String>,
    monitor: Option<String>,
    mode: Mode,
    save_top_k: Option<usize>,
    save_last: bool,
    weights_only: bool,
    filename: String,
    dirpath: Option<PathBuf>,
    every_n_epochs: u64,
    every_n_train_steps: Option<u64>,
    state: State,
    /// Where this run's `last` is, once it was asked for.
    last: Option<PathBuf>,
}

/// What it has saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Best first; values as bits.
    kept: Vec<(PathBuf, u64)>,
    saved_at_step: Option<u64>,
}

impl Default for ModelCheckpoint {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelCheckpoint {
    /// Keeps the newest checkpoint.
    pub fn new() -> Self {
        Self {
            name: None,
            monitor: None,
            mode: Mode::Min,
            save_top_k: Some(1),
            save_last: true,
            weights_only: false,
            filename: "{epoch}-{step}".to_owned(),
            dirpath: None,
            every_n_epochs: 1,
            every_n_train_steps: None,
            state: State::default(),
            last: None,
        }
    }

    /// Keeps the best by the value logged under this name.
    pub fn monitor(monitor: impl Into<String>) -> Self {
        Self { monitor: Some(monitor.into()), ..Self::new() }
    }

    /// Its name among several.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether larger or smaller is better; smaller by default.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How many of the best are kept; 0 keeps only `last`. Default 1.
    #[must_use]
    pub fn save_top_k(mut self, k: usize) -> Self {
        self.save_top_k = Some(k);
        self
    }

    /// Keeps every checkpoint.
    #[must_use]
    pub fn save_all(mut self) -> Self {
        self.save_top_k = None;
        self
    }

    /// Whether `last.safetensors` is kept. Default true.
    #[must_use]
    pub fn save_last(mut self, save: bool) -> Self {
        self.save_last = save;
        self
    }

    /// Saves weights alone: smaller, but no run can go on from them, so there is no `last` either.
    #[must_use]
    pub fn save_weights_only(mut self) -> Self {
        (self.weights_only, self.save_last) = (true, false);
        self
    }

    /// The file's name without its ending: `{epoch}`, `{step}` and `{<metric>}` (or `{<metric>:.3}`) are replaced, by
    /// `epoch=3`, `step=120`, `val-loss=0.125`. Default `{epoch}-{step}`.
    #[must_use]
    pub fn filename(mut self, template: impl Into<String>) -> Self {
        self.filename = template.into();
        self
    }

    /// Where to save, instead of the run folder's `checkpoints`.
    #[must_use]
    pub fn dirpath(mut self, folder: impl Into<PathBuf>) -> Self {
        self.dirpath = Some(folder.into());
        self
    }

    /// Saves only in every so many epochs. Default 1.
    #[must_use]
    pub fn every_n_epochs(mut self, n: u64) -> Self {
        self.every_n_epochs = n.max(1);
        self
    }

    /// Saves after every so many optimizer steps, instead of after validations and epochs.
    #[must_use]
    pub fn every_n_train_steps(mut self, n: u64) -> Self {
        self.every_n_train_steps = Some(n.max(1));
        self
    }

    fn save(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        let Some(folder) = self.folder(event) else { return Ok(()) };
        if self.state.saved_at_step == Some(event.progress.global_step) {
            return Ok(());
        }
        self.state.saved_at_step = Some(event.progress.global_step);
        let value = match &self.monitor {
            None => Some(event.progress.global_step as f64),
            Some(monitor) => match event.metrics.get(monitor) {
                // Before the first validation its metrics cannot be there: only `last` is saved.
                None if event.progress.validations == 0 && self.every_n_train_steps.is_some() => None,
                value => Some(value.ok_or_else(|| missing(monitor, event))?),
            },
        };
        let last = folder.join("last.safetensors");
        if let Some(value) = value.filter(|&value| self.ranks(value)) {
            let path = self.free_path(&folder, event)?;
            control.save_checkpoint(&path, self.weights_only);
            if self.save_last {
                control.link_checkpoint(&path, &last);
                self.last = Some(last);
            }
            self.keep(path, value, &folder, control);
        } else if self.save_last {
            control.save_checkpoint(&last, self.weights_only);
            self.last = Some(last);
        }
        Ok(())
    }

    fn folder(&self, event: &Event<'_>) -> Option<PathBuf> {
        self.dirpath.clone().or_else(|| event.run_dir.map(|dir| dir.join(CHECKPOINTS)))
    }

    /// Whether a checkpoint of this value is among the best.
    fn ranks(&self, value: f64) -> bool {
        match (self.save_top_k, self.state.kept.last()) {
            (Some(0), _) => false,
            (Some(k), Some((_, worst))) if self.state.kept.len() >= k => {
                self.order().is_better(self.ordered(value), self.ordered(f64::from_bits(*worst)), 0.0)
            }
            _ => true,
        }
    }

    /// Takes a new checkpoint in, and drops what is no longer among the best. Files of an earlier run's folder, from
    /// before a resume, are never removed.
    fn keep(&mut self, path: PathBuf, value: f64, folder: &Path, control: &mut Control) {
        let ordered = self.ordered(value);
        let better = |kept: &(PathBuf, u64)| {
            self.order().is_better(ordered, self.ordered(f64::from_bits(kept.1)), 0.0)
        };
        let place = self.state.kept.iter().position(better).unwrap_or(self.state.kept.len());
        self.state.kept.insert(place, (path.clone(), value.to_bits()));
        if let Some(k) = self.save_top_k {
            for (old, _) in self.state.kept.drain(k.min(self.state.kept.len())..) {
                if old.starts_with(folder) && old != path {
                    control.remove_checkpoint(old);
                }
            }
        }
    }

    /// Without a monitor the newest step is the best.
    fn order(&self) -> Mode {
        if self.monitor.is_some() { self.mode } else { Mode::Max }
    }

    /// NaN ranks as the worst there is, as in Lightning.
    fn ordered(&self, value: f64) -> f64 {
        if value.is_nan() { self.order().worst() } else { value }
    }

    /// The template filled in; `-v1`, `-v2` where the name is taken, though not by the file that makes room.
    fn free_path(&self, folder: &Path, event: &Event<'_>) -> Result<PathBuf> {
        let name = fill(&self.filename, event.progress, |metric| event.metrics.get(metric))?;
        let candidates = std::iter::once(name.clone()).chain((1..).map(|n| format!("{name}-v{n}")));
        let mut paths = candidates.map(|name| folder.join(format!("{name}.safetensors")));
        let full = self.save_top_k.is_some_and(|k| self.state.kept.len() >= k);
        let dropped = self.state.kept.last().filter(|_| full).map(|(path, _)| path);
        Ok(paths.find(|path| !path.exists() || Some(path) == dropped).expect("the numbers do not end"))
    }

    fn is_due(&self, epoch: u64) -> bool {
        self.every_n_train_steps.is_none() && (epoch + 1).is_multiple_of(self.every_n_epochs)
    }
}

impl Callback for ModelCheckpoint {
    fn name(&self) -> String {
        let default = || match &self.monitor {
            Some(monitor) => format!("ModelCheckpoint({monitor})"),
            None => "ModelCheckpoint".to_owned(),
        };
        self.name.clone().unwrap_or_else(default)
    }

    fn monitors(&self) -> bool {
        true
    }

    fn saves(&self) -> bool {
        true
    }

    fn best_checkpoint(&self) -> Option<PathBuf> {
        self.state.kept.first().map(|(path, _)| path.clone())
    }

    fn last_checkpoint(&self) -> Option<PathBuf> {
        self.last.clone()
    }

    fn state(&self) -> Value {
        serde_json::to_value(&self.state).expect("paths and numbers are JSON")
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.state = serde_json::from_value(state.clone())?;
        // What was saved is in the run folder of before; this run has one of its own.
        self.state.saved_at_step = None;
        Ok(())
    }

    fn setup(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        if event.stage == crate::Stage::Fit {
            (self.state, self.last) = (State::default(), None);
        }
        Ok(())
    }

    fn on_train_batch_end(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        let step = event.progress.global_step;
        match self.every_n_train_steps {
            Some(n) if step > 0 && step.is_multiple_of(n) => self.save(event, control),
            _ => Ok(()),
        }
    }

    fn on_validation_end(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        let in_training = event.stage == crate::Stage::Fit && !event.sanity_checking;
        if in_training && self.is_due(event.progress.epoch) { self.save(event, control) } else { Ok(()) }
    }

    fn on_train_epoch_end(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        let alone = event.plan.validation.is_none();
        if alone && self.is_due(event.progress.epoch) { self.save(event, control) } else { Ok(()) }
    }

    /// The end of the training is always there as `last`.
    fn on_train_end(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        if let Some(folder) = self.folder(event)
            && self.save_last
            && self.state.saved_at_step != Some(event.progress.global_step)
        {
            self.state.saved_at_step = Some(event.progress.global_step);
            let last = folder.join("last.safetensors");
            control.save_checkpoint(&last, self.weights_only);
            self.last = Some(last);
        }
        Ok(())
    }
}

/// Fills a name template in.
fn fill(template: &str, progress: &Progress, metric: impl Fn(&str) -> Option<f64>) -> Result<String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let (field, after) = after.split_once('}').ok_or_else(|| bad_name(template, "a `{` has no `}`"))?;
        let (name, digits) = field.split_once(":.").unwrap_or((field, "4"));
        match name {
            "epoch" => filled.push_str(&format!("epoch={}", progress.epoch)),
            "step" => filled.push_str(&format!("step={}", progress.global_step)),
            name => {
                let value = metric(name).ok_or_else(|| unknown(template, name))?;
                let digits: u8 =
                    digits.trim_end_matches('f').parse().map_err(|_| unknown(template, field))?;
                let digits = usize::from(digits);
                filled.push_str(&format!("{}={value:.digits$}", name.replace(['/', '\\'], "-")));
            }
        }
        rest = after;
    }
    filled.push_str(rest);
    if filled == "last" {
        return Err(bad_name(
            template,
            "`last` is the name of the newest checkpoint, and would be replaced by it",
        ));
    }
    if filled.is_empty() || filled.split('/').any(|part| part == "..") {
        return Err(bad_name(template, "it is no name inside the checkpoint folder"));
    }
    Ok(filled)
}

fn bad_name(template: &str, why: &str) -> Error {
    Error::new(UNKNOWN_METRIC, format!("the file name template `{template}` cannot be used"))
        .why(why)
        .hint("change `ModelCheckpoint::filename(..)`")
}

fn unknown(template: &str, field: &str) -> Error {
    Error::new(UNKNOWN_METRIC, format!("the file name template `{template}` has an unknown field `{field}`"))
        .why("known are `{epoch}`, `{step}` and the names of logged metrics, as `{val/loss}` or `{val/loss:.3}`")
        .hint("change `ModelCheckpoint::filename(..)`, or log that metric")
}

/// A file name template cannot be filled in.
pub const UNKNOWN_METRIC: Code = Code::new("C0106", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Act;

    /// The files kept after a sequence of values, best first.
    fn kept(mut callback: ModelCheckpoint, values: &[f64]) -> Vec<String> {
        let mut control = Control::default();
        let mut on_disk = Vec::new();
        for (index, &value) in values.iter().enumerate() {
            if callback.ranks(value) {
                on_disk.push(index.to_string());
                callback.keep(PathBuf::from(index.to_string()), value, Path::new(""), &mut control);
            }
            for act in control.acts.drain(..) {
                let Act::Remove(path) = act else { panic!("{act:?}") };
                on_disk.retain(|name| *name != path.to_string_lossy());
            }
        }
        let kept: Vec<_> =
            callback.state.kept.iter().map(|(path, _)| path.to_string_lossy().into_owned()).collect();
        on_disk.sort();
        let mut sorted = kept.clone();
        sorted.sort();
        assert_eq!(on_disk, sorted);
        kept
    }

    #[test]
    fn keeps_the_best_in_order() {
        let by_loss = ModelCheckpoint::monitor("x").save_top_k(2);
        assert_eq!(kept(by_loss.clone(), &[3.0, 1.0, 2.0, 1.5]), ["1", "3"]);
        assert_eq!(kept(by_loss.clone().mode(Mode::Max), &[3.0, 1.0, 2.0, 1.5]), ["0", "2"]);
        assert_eq!(kept(by_loss.clone().save_top_k(0), &[3.0]), Vec::<String>::new());
        assert_eq!(kept(by_loss.save_all(), &[3.0, 1.0, 2.0]), ["1", "2", "0"]);
    }

    #[test]
    fn ranks_nan_last_and_ties_by_age() {
        let by_loss = ModelCheckpoint::monitor("x");
        assert_eq!(kept(by_loss.clone(), &[f64::NAN, 2.0, f64::NAN]), ["1"]);
        assert_eq!(kept(by_loss, &[1.0, 1.0]), ["0"]);
    }

    #[test]
    fn keeps_the_newest_without_a_monitor() {
        assert_eq!(kept(ModelCheckpoint::new(), &[10.0, 20.0, 30.0]), ["2"]);
    }

    #[test]
    fn fills_templates_and_names_unknown_fields() {
        let progress = Progress { epoch: 3, global_step: 120, ..Progress::default() };
        let metric = |name: &str| (name == "val/loss").then_some(0.125);
        assert_eq!(fill("{epoch}-{step}", &progress, metric).unwrap(), "epoch=3-step=120");
        assert_eq!(fill("best-{val/loss:.2}", &progress, metric).unwrap(), "best-val-loss=0.12");
        let error = fill("{nope}", &progress, metric).unwrap_err();
        assert_eq!(error.what(), "the file name template `{nope}` has an unknown field `nope`");
    }
}
