//! What steps logged: the values of this step, and the means of this epoch.
//!
//! One [`Logs`] for training, one for each evaluation. A step logs the same names in the same order as the step
//! before, so an entry is found at the expected place by one comparison; nothing is allocated after the first step.

use std::any::Any;
use std::fmt;

use leyden_process::{Code, Error, Result, exit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::learner::Stage;
use crate::metric::Metric;
use crate::ranks::Rank;
use crate::scalar::{DeviceScalar, Scalar};
use crate::step::StepFacts;

/// The logged values of one stage.
#[derive(Default)]
pub struct Logs {
    entries: Vec<Entry>,
    metrics: Vec<NamedMetric>,
    /// Counts of a checkpoint, waiting for the step that makes their metric again.
    restored: Vec<SavedMetric>,
    /// Where the next `log` is expected.
    cursor: usize,
    /// Counts steps, so that values of earlier steps are recognised.
    step: u64,
    /// More than one loader: names get a suffix.
    several_loaders: bool,
    misuse: Option<Error>,
    /// Whether this rank had a batch of the evaluation: then it logs what others log.
    had_batch: bool,
}

/// How one name is logged; set by the [`LogHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Spec {
    on_step: bool,
    on_epoch: bool,
    prog_bar: bool,
    logger: bool,
    reduce: Reduce,
}

impl Spec {
    /// Where `now` is another one, in words.
    fn differences(&self, now: &Self) -> Vec<String> {
        let flag = |name: &str, before: bool, now: bool| {
            (before != now).then(|| format!("`{name}` was {before} and is {now}"))
        };
        let reduce = || format!("`reduce` was {:?} and is {:?}", self.reduce, now.reduce);
        let all = [
            flag("on_step", self.on_step, now.on_step),
            flag("on_epoch", self.on_epoch, now.on_epoch),
            flag("prog_bar", self.prog_bar, now.prog_bar),
            flag("logger", self.logger, now.logger),
            (self.reduce != now.reduce).then(reduce),
        ];
        all.into_iter().flatten().collect()
    }
}

/// How an epoch's values become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reduce {
    /// The largest.
    Max,
    /// The mean, weighted by batch size.
    #[default]
    Mean,
    /// The smallest.
    Min,
    /// The sum.
    Sum,
}

struct Entry {
    name: String,
    loader: usize,
    spec: Spec,
    /// `name`, `name_step`: what the step level is called.
    step_name: String,
    epoch_name: String,
    last: Option<Scalar>,
    /// The step that logged `last`; none where a checkpoint gave it.
    last_step: Option<u64>,
    total: Total,
}

/// An epoch's values so far.
#[derive(Default)]
struct Total {
    value: f64,
    weight: f64,
    /// The part that is still on a device.
    device: Option<Box<dyn DeviceScalar>>,
}

struct NamedMetric {
    name: String,
    metric: Box<dyn Metric>,
    updated: bool,
}

/// A value being logged; what its methods say holds when it goes out of scope, at the end of the statement.
pub struct LogHandle<'a> {
    logs: &'a mut Logs,
    index: usize,
    value: Option<Scalar>,
    spec: Spec,
    weight: f64,
    epoch_only: bool,
}

impl LogHandle<'_> {
    /// Shows it in the progress bar.
    pub fn prog_bar(mut self) -> Self {
        self.spec.prog_bar = true;
        self
    }

    /// Whether each step's value goes to the loggers (every `log_every_n_steps`).
    pub fn on_step(mut self, on: bool) -> Self {
        self.spec.on_step = on;
        self
    }

    /// Whether the epoch's mean is kept and logged.
    pub fn on_epoch(mut self, on: bool) -> Self {
        self.spec.on_epoch = on;
        self
    }

    /// Whether loggers get it at all; callbacks and the bar still do.
    pub fn logger(mut self, on: bool) -> Self {
        self.spec.logger = on;
        self
    }

    /// The weight in the epoch's mean, instead of the batch's number of samples.
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.weight = samples as f64;
        self
    }

    /// How the epoch's values become one; the mean by default.
    pub fn reduce(mut self, reduce: Reduce) -> Self {
        self.spec.reduce = reduce;
        self
    }
}

impl Drop for LogHandle<'_> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.logs.commit(self.index, value, self.spec, self.weight, self.epoch_only);
        }
    }
}

impl Logs {
    /// Nothing logged yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with_loaders(loaders: usize) -> Self {
        Self { several_loaders: loaders > 1, ..Self::default() }
    }

    pub(crate) fn log(&mut self, name: &str, value: Scalar, at: &StepFacts) -> LogHandle<'_> {
        let in_training_step = at.stage == Stage::Fit && at.in_step;
        let spec = Spec {
            on_step: in_training_step,
            on_epoch: !in_training_step,
            prog_bar: false,
            logger: true,
            reduce: Reduce::Mean,
        };
        let index = self.find(name, at.loader, spec);
        LogHandle {
            logs: self,
            index,
            value: Some(value),
            spec,
            weight: if at.in_step { at.samples as f64 } else { 1.0 },
            epoch_only: !in_training_step,
        }
    }

    pub(crate) fn fail(&mut self, error: Error) {
        self.misuse.get_or_insert(error);
    }

    pub(crate) fn metric<M: Metric>(
        &mut self,
        name: &str,
        loader: usize,
        make: impl FnOnce() -> M,
    ) -> Result<&mut M> {
        let full = self.full_name(name, loader);
        let index = match self.metrics.iter().position(|known| known.name == full) {
            Some(index) => index,
            None => {
                let mut metric = Box::new(make());
                if let Some(saved) = self.restored.iter().position(|saved| saved.name == full) {
                    metric.load_state(&self.restored.swap_remove(saved).state)?;
                }
                self.metrics.push(NamedMetric { name: full, metric, updated: false });
                self.metrics.len() - 1
            }
        };
        let found = &mut self.metrics[index];
        found.updated = true;
        let metric: &mut dyn Any = &mut *found.metric;
        metric.downcast_mut::<M>().ok_or_else(|| {
            Error::new(OTHER_METRIC, format!("`{name}` is a metric of another type"))
                .why("a metric keeps the type with which the epoch's first step asked for it")
                .hint("give the two metrics two names")
        })
    }

    /// An evaluation has given this rank a batch.
    pub(crate) fn had_batch(&mut self) {
        self.had_batch = true;
    }

    /// Begins a step: forgets where the last one ended. Fails if the last one misused `log`.
    #[inline]
    pub fn end_step(&mut self) -> Result<()> {
        self.step += 1;
        self.cursor = 0;
        self.check()
    }

    /// Fails if `log` was misused: asked where the culprit is still known.
    #[inline]
    pub(crate) fn check(&mut self) -> Result<()> {
        self.misuse.take().map_or(Ok(()), Err)
    }

    /// The last value of each name that this step logged, as `(name, value)`, for the loggers.
    pub(crate) fn step_values(&self, mut each: impl FnMut(&str, f64)) -> Result<()> {
        for entry in &self.entries {
            if let (true, Some(value)) = (entry.spec.on_step && entry.spec.logger, entry.current(self.step)) {
                each(&entry.step_name, value.read()?);
            }
        }
        Ok(())
    }

    /// Looks up a step-level name: the newest step's value.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        let entry = self.entries.iter().find(|entry| entry.spec.on_step && entry.step_name == name)?;
        entry.last.as_ref()?.read().ok()
    }

    /// The names and newest values that the progress bar shows.
    pub(crate) fn prog_bar(&self, mut each: impl FnMut(&str, f64)) {
        for entry in self.entries.iter().filter(|entry| entry.spec.prog_bar) {
            if let Some(Ok(value)) = entry.last.as_ref().map(Scalar::read) {
                each(&entry.name, value);
            }
        }
    }

    /// Forgets the epoch before.
    pub(crate) fn start_epoch(&mut self) {
        for entry in &mut self.entries {
            entry.total = Total::default();
        }
        for named in &mut self.metrics {
            named.metric.reset();
            named.updated = false;
        }
        self.restored.clear();
    }

    /// The epoch's values so far on all ranks, as `(name, value, for loggers)`. They stay until the next epoch starts, so that
    /// a checkpoint of an epoch that was cut short can go on with them.
    pub(crate) fn end_epoch(&mut self, rank: &mut Rank) -> Result<Vec<(String, f64, bool)>> {
        self.end_step()?;
        if !rank.is_alone() {
            let merged = self.merge(rank)?;
            return Ok(self.values_of(&merged));
        }
        let mut values = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.spec.on_epoch) {
            if let Some(value) = entry.total.value(entry.spec.reduce)? {
                values.push((entry.epoch_name.clone(), value, entry.spec.logger));
            }
        }
        for named in self.metrics.iter().filter(|named| named.updated) {
            let mut computed = Vec::new();
            named.metric.compute(&named.name, &mut computed);
            values.extend(computed.into_iter().map(|(name, value)| (name, value, true)));
        }
        for (name, bits) in self.restored.iter().flat_map(|saved| &saved.values) {
            values.push((name.clone(), f64::from_bits(*bits), true));
        }
        Ok(values)
    }

    /// The unfinished epoch of all ranks, for a checkpoint.
    pub(crate) fn state(&mut self, rank: &mut Rank) -> Result<Value> {
        let saved = match rank.is_alone() {
            true => Saved { own: Vec::new(), ..self.saved()? },
            false => self.merge(rank)?,
        };
        Ok(serde_json::to_value(saved)?)
    }

    /// The unfinished epoch of this rank.
    fn saved(&self) -> Result<Saved> {
        let mut entries = Vec::new();
        for entry in &self.entries {
            // The device's part is read into the host's: a sum in the same order, so the same bits on the CPU.
            let device = entry.total.device.as_ref().map_or(Ok(0.0), |part| part.read())?;
            entries.push(SavedEntry {
                name: entry.name.clone(),
                loader: entry.loader,
                spec: entry.spec,
                value: (entry.total.value + device).to_bits(),
                weight: entry.total.weight.to_bits(),
                last: entry.last.as_ref().map(Scalar::read).transpose()?.map(f64::to_bits),
            });
        }
        let updated = self.metrics.iter().filter(|named| named.updated);
        let metrics = updated.map(NamedMetric::saved).chain(self.restored.iter().cloned()).collect();
        // What a checkpoint has given one rank alone is not its own.
        let logged = self.entries.iter().filter(|entry| entry.last_step.is_some()).map(|entry| &entry.name);
        let counted = self.metrics.iter().filter(|named| named.updated).map(|named| &named.name);
        let own = logged.chain(counted).cloned().collect();
        Ok(Saved { entries, metrics, own, had_batch: self.had_batch })
    }

    /// What all ranks have logged together, in the order of ranks: the same on each of them.
    fn merge(&mut self, rank: &mut Rank) -> Result<Saved> {
        let mine = serde_json::to_string(&self.saved()?)?;
        let all = rank.gather_objects(&mine, "the epoch's values")?;
        let all = all.iter().map(|json| Ok(serde_json::from_str(json)?)).collect::<Result<Vec<Saved>>>()?;
        check_same_names(&all)?;
        let entries = merge_entries(&all);
        // A rank that had no batch has none of the metrics: it is told what the others have computed.
        let metrics = serde_json::to_string(&self.merge_metrics(&all)?)?;
        let complete = all.iter().all(|saved| saved.metrics.len() == all[0].metrics.len());
        let metrics = match complete {
            true => metrics,
            false => {
                let most = all.iter().map(|saved| saved.metrics.len()).max();
                let from = all.iter().position(|saved| Some(saved.metrics.len()) == most).unwrap_or(0);
                rank.gather_objects(&metrics, "the epoch's metrics")?.swap_remove(from)
            }
        };
        Ok(Saved {
            entries,
            metrics: serde_json::from_str(&metrics)?,
            own: Vec::new(),
            had_batch: self.had_batch,
        })
    }

    /// Each metric that this rank has, with what all ranks have seen.
    fn merge_metrics(&mut self, all: &[Saved]) -> Result<Vec<SavedMetric>> {
        let mine = self.metrics.iter_mut().filter(|named| named.updated);
        let mut merged = Vec::new();
        for named in mine {
            let own = named.metric.state();
            let mut states =
                all.iter().flat_map(|saved| &saved.metrics).filter(|metric| metric.name == named.name);
            if let Some(first) = states.next() {
                named.metric.load_state(&first.state)?;
            }
            states.try_for_each(|other| named.metric.merge(&other.state))?;
            merged.push(named.saved());
            named.metric.load_state(&own)?;
        }
        merged.extend(self.restored.iter().cloned());
        Ok(merged)
    }

    fn values_of(&self, merged: &Saved) -> Vec<(String, f64, bool)> {
        let mut values = Vec::new();
        for entry in merged.entries.iter().filter(|entry| entry.spec.on_epoch) {
            let (value, weight) = (f64::from_bits(entry.value), f64::from_bits(entry.weight));
            if weight != 0.0 {
                let value = if entry.spec.reduce == Reduce::Mean { value / weight } else { value };
                let (_, name) = level_names(&self.full_name(&entry.name, entry.loader), entry.spec);
                values.push((name, value, entry.spec.logger));
            }
        }
        for (name, bits) in merged.metrics.iter().flat_map(|saved| &saved.values) {
            values.push((name.clone(), f64::from_bits(*bits), true));
        }
        values
    }

    /// Takes back [`state`](Self::state). Metrics are made anew by the module; their counts wait for them.
    pub(crate) fn load_state(&mut self, state: &Value) -> Result<()> {
        let Saved { entries, metrics, .. } = serde_json::from_value(state.clone())?;
        for entry in entries {
            let index = self.find(&entry.name, entry.loader, entry.spec);
            self.entries[index].last = entry.last.map(|bits| f64::from_bits(bits).into());
            self.entries[index].total = Total {
                value: f64::from_bits(entry.value),
                weight: f64::from_bits(entry.weight),
                device: None,
            };
        }
        self.cursor = 0;
        self.restored = metrics;
        Ok(())
    }

    fn full_name(&self, name: &str, loader: usize) -> String {
        if self.several_loaders { format!("{name}/dataloader_idx_{loader}") } else { name.to_owned() }
    }

    fn find(&mut self, name: &str, loader: usize, spec: Spec) -> usize {
        let matches = |entry: &Entry| entry.name == name && entry.loader == loader;
        let index = match self.entries.get(self.cursor) {
            Some(entry) if matches(entry) => self.cursor,
            _ => self.entries.iter().position(matches).unwrap_or_else(|| self.add(name, loader, spec)),
        };
        self.cursor = index + 1;
        index
    }

    fn add(&mut self, name: &str, loader: usize, spec: Spec) -> usize {
        self.entries.push(Entry {
            name: name.to_owned(),
            loader,
            spec,
            step_name: String::new(),
            epoch_name: String::new(),
            last: None,
            last_step: None,
            total: Total::default(),
        });
        let index = self.entries.len() - 1;
        self.name_levels(index);
        index
    }

    /// Settles what the two levels of an entry are called.
    fn name_levels(&mut self, index: usize) {
        let full = self.full_name(&self.entries[index].name, self.entries[index].loader);
        let entry = &mut self.entries[index];
        (entry.step_name, entry.epoch_name) = level_names(&full, entry.spec);
    }

    fn commit(&mut self, index: usize, value: Scalar, spec: Spec, weight: f64, epoch_only: bool) {
        if epoch_only && spec.on_step {
            let name = &self.entries[index].name;
            self.misuse.get_or_insert_with(|| {
                Error::new(
                    NO_STEP_LEVEL,
                    format!("`{name}` is logged at the step level outside a training step"),
                )
                .why("epoch hooks and evaluation steps have only the epoch level")
                .hint("remove `.on_step(true)`, or log it in `training_step`")
            });
            return;
        }
        if self.entries[index].spec != spec {
            if self.entries[index].last_step.is_some() {
                let name = &self.entries[index].name;
                self.misuse.get_or_insert_with(|| {
                    let error = Error::new(
                        OTHER_ARGUMENTS,
                        format!("`{name}` is logged twice with different arguments"),
                    )
                    .hint("use the same arguments each time, or two names");
                    self.entries[index]
                        .spec
                        .differences(&spec)
                        .into_iter()
                        .fold(error, |error, text| error.why(text))
                });
                return;
            }
            self.entries[index].spec = spec;
            self.name_levels(index);
        }
        let entry = &mut self.entries[index];
        if spec.on_epoch
            && let Err(error) = entry.total.add(&value, weight, spec.reduce)
        {
            self.misuse.get_or_insert(error);
        }
        entry.last = Some(value);
        entry.last_step = Some(self.step);
    }
}

impl Entry {
    /// The value, if the step that is ending logged it.
    fn current(&self, step: u64) -> Option<&Scalar> {
        self.last.as_ref().filter(|_| self.last_step == Some(step))
    }
}

impl NamedMetric {
    fn saved(&self) -> SavedMetric {
        let mut values = Vec::new();
        self.metric.compute(&self.name, &mut values);
        let values = values.into_iter().map(|(name, value)| (name, value.to_bits())).collect();
        SavedMetric { name: self.name.clone(), state: self.metric.state(), values }
    }
}

impl Total {
    fn add(&mut self, value: &Scalar, weight: f64, reduce: Reduce) -> Result<()> {
        let first = self.weight == 0.0;
        match (reduce, value) {
            (Reduce::Mean | Reduce::Sum, Scalar::Device(value)) => {
                let part = if reduce == Reduce::Mean { value.scaled(weight) } else { value.scaled(1.0) };
                match self.device.take() {
                    None => self.device = Some(part),
                    Some(sum) => match sum.plus(&*part) {
                        Some(total) => self.device = Some(total),
                        None => {
                            self.value += sum.read()?;
                            self.device = Some(part);
                        }
                    },
                }
            }
            (Reduce::Mean, value) => self.value += value.read()? * weight,
            (Reduce::Sum, value) => self.value += value.read()?,
            (Reduce::Max, value) => {
                let value = value.read()?;
                self.value = if first { value } else { self.value.max(value) };
            }
            (Reduce::Min, value) => {
                let value = value.read()?;
                self.value = if first { value } else { self.value.min(value) };
            }
        }
        self.weight += weight;
        Ok(())
    }

    fn value(&self, reduce: Reduce) -> Result<Option<f64>> {
        if self.weight == 0.0 {
            return Ok(None);
        }
        let total = self.value + self.device.as_ref().map_or(Ok(0.0), |part| part.read())?;
        Ok(Some(if reduce == Reduce::Mean { total / self.weight } else { total }))
    }
}

/// What the step level and the epoch level of a name are called.
fn level_names(full: &str, spec: Spec) -> (String, String) {
    match spec.on_step && spec.on_epoch {
        true => (format!("{full}_step"), format!("{full}_epoch")),
        false => (full.to_owned(), full.to_owned()),
    }
}

/// Ranks that have logged anything in an epoch, or had a batch of an evaluation, have logged the same names.
fn check_same_names(all: &[Saved]) -> Result<()> {
    let names: Vec<_> = all
        .iter()
        .enumerate()
        .filter(|(_, saved)| saved.had_batch || !saved.own.is_empty())
        .map(|(rank, saved)| (rank, saved.own.iter().map(String::as_str).collect()))
        .collect();
    same_names("ranks have logged different names", &names)
}

/// Fails with what only some of these ranks have logged.
pub(crate) fn same_names(what: &str, of_ranks: &[(usize, Vec<&str>)]) -> Result<()> {
    let Some((first, expected)) = of_ranks.first() else { return Ok(()) };
    let lacks = |those: &[&str], name: &&str| !those.contains(name);
    let other = of_ranks.iter().find(|(_, found)| {
        expected.iter().any(|name| lacks(found, name)) || found.iter().any(|name| lacks(expected, name))
    });
    let Some((other, found)) = other else { return Ok(()) };
    let only = |these: &[&str], those: &[&str]| {
        let only: Vec<_> =
            these.iter().filter(|name| lacks(those, name)).map(|name| format!("`{name}`")).collect();
        if only.is_empty() { "nothing".to_owned() } else { only.join(", ") }
    };
    Err(Error::new(OTHER_NAMES, what)
        .at(format!("only on rank {first}"), only(expected, found))
        .at(format!("only on rank {other}"), only(found, expected))
        .why("a value that is logged is that of all ranks together")
        .hint("log the same names on every rank: a `log` inside an `if` that depends on the rank or the batch goes outside")
        .hint("what one rank alone has to say, a callback gives the loggers by `Control::log`, on rank 0"))
}

/// The totals of all ranks, in their order.
fn merge_entries(all: &[Saved]) -> Vec<SavedEntry> {
    let mut merged: Vec<SavedEntry> = Vec::new();
    for entry in all.iter().flat_map(|saved| &saved.entries) {
        let same = |known: &&mut SavedEntry| known.name == entry.name && known.loader == entry.loader;
        let Some(known) = merged.iter_mut().find(same) else {
            merged.push(entry.clone());
            continue;
        };
        let (value, weight) = (f64::from_bits(known.value), f64::from_bits(known.weight));
        let (other, other_weight) = (f64::from_bits(entry.value), f64::from_bits(entry.weight));
        let value = match entry.spec.reduce {
            Reduce::Mean | Reduce::Sum => value + other,
            _ if other_weight == 0.0 => value,
            _ if weight == 0.0 => other,
            Reduce::Max => value.max(other),
            Reduce::Min => value.min(other),
        };
        (known.value, known.weight) = (value.to_bits(), (weight + other_weight).to_bits());
    }
    merged
}

/// A stage's epoch so far.
#[derive(Serialize, Deserialize)]
struct Saved {
    entries: Vec<SavedEntry>,
    metrics: Vec<SavedMetric>,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    had_batch: bool,
    /// The names that this rank itself has logged.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    own: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SavedEntry {
    name: String,
    loader: usize,
    spec: Spec,
    /// Bits, so that JSON cannot change the value.
    value: u64,
    weight: u64,
    last: Option<u64>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SavedMetric {
    name: String,
    state: Value,
    /// What it computes to, as bits: a run that resumes after the epoch's last batch never makes the metric again.
    values: Vec<(String, u64)>,
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.entries.iter().map(|entry| (&entry.step_name, &entry.last))).finish()
    }
}

/// The same name was logged with other levels or another reduction.
pub const OTHER_ARGUMENTS: Code = Code::new("T0201", exit::TRAINING_FAILED);
/// A step-level value was logged outside a training step.
pub const NO_STEP_LEVEL: Code = Code::new("T0202", exit::TRAINING_FAILED);
/// Ranks have logged different names.
pub const OTHER_NAMES: Code = Code::new("D0403", exit::TRAINING_FAILED);
/// One name was used for two types of metric.
pub const OTHER_METRIC: Code = Code::new("T0203", exit::TRAINING_FAILED);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A number on a device of which each read is counted.
    struct Remote(f64, Arc<AtomicUsize>);

    impl DeviceScalar for Remote {
        fn read(&self) -> Result<f64> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok(self.0)
        }

        fn scaled(&self, factor: f64) -> Box<dyn DeviceScalar> {
            Box::new(Self(self.0 * factor, self.1.clone()))
        }

        fn plus(&self, other: &dyn DeviceScalar) -> Option<Box<dyn DeviceScalar>> {
            let other = (other as &dyn Any).downcast_ref::<Self>()?;
            Some(Box::new(Self(self.0 + other.0, self.1.clone())))
        }
    }

    #[test]
    fn values_on_a_device_are_read_once_an_epoch() {
        let reads = Arc::new(AtomicUsize::new(0));
        let mut logs = Logs::new();
        for (batch, (value, samples)) in [(1.0, 4), (2.0, 4), (6.0, 2)].into_iter().enumerate() {
            let at = StepFacts {
                stage: Stage::Validate,
                epoch: 0,
                batch,
                samples,
                global_step: 0,
                batches_seen: 0,
                seed: 0,
                loader: 0,
                in_step: true,
            };
            logs.log("val/loss", Scalar::Device(Box::new(Remote(value, reads.clone()))), &at);
            logs.end_step().unwrap();
        }
        assert_eq!(reads.load(Ordering::Relaxed), 0, "steps do not wait for the device");
        assert_eq!(logs.end_epoch(&mut Rank::alone()).unwrap(), [("val/loss".to_owned(), 2.4, true)]);
        assert_eq!(reads.load(Ordering::Relaxed), 1);
    }
}
