//! [`Optimizers`]: what `configure_optimizers` returns.

use std::collections::BTreeMap;

use burn::module::{ParamGroup, ParamId};
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::optim::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::tensor::Bytes;
use burn_pack::{Reader, Scalar, Writer};
use leyden_process::{Error, Result};
use leyden_train::codes::WRONG_VALUE;
use leyden_train::learner::Parameter;
use leyden_train::schedule::{Interval, Schedule};
use leyden_train::state::NamedTensor;
use serde_json::{Map, Value, json};

use crate::codes::OTHER_OPTIMIZER;
use crate::tensors::{data_of, named};

/// A Burn optimizer with its learning rates: one for the base, others for parameter groups, and a schedule.
///
/// ```
/// # use leyden_burn::{Optimizers, burn};
/// use burn::optim::AdamConfig;
/// use burn::module::ParamGroup;
/// use leyden_train::schedule::{Interval, OneCycle};
///
/// let optimizers = Optimizers::new(AdamConfig::new().init(), 1e-3)
///     .group("head", ParamGroup::from_predicate("head"), 1e-2)
///     .schedule(Interval::Step, OneCycle::new(1e-3, 1_000));
/// ```
pub struct Optimizers {
    optimizer: ModuleOptimizer,
    base: f64,
    groups: Vec<(String, ParamGroup, f64)>,
    schedule: Scheduled,
    /// The base group's rate now.
    rate: f64,
}

enum Scheduled {
    Constant,
    Leyden(Interval, Box<dyn Schedule>),
    Burn(Interval, BurnSchedule),
}

/// Burn's scheduler, what its last step gave, and its state before that step: its record does not hold the rates,
/// but stepping from there gives them again.
struct BurnSchedule {
    scheduler: ModuleLrScheduler,
    before: LrSchedulerRecord,
    rates: ModuleLearningRate,
}

impl BurnSchedule {
    fn new(mut scheduler: ModuleLrScheduler) -> Self {
        let before = scheduler.to_record();
        let rates = scheduler.step();
        Self { scheduler, before, rates }
    }
}

impl Optimizers {
    /// `optimizer` at the learning rate `lr`, the same for all parameters.
    ///
    /// Other *optimizers* for parameter groups are Burn's `ModuleOptimizer::with_group`.
    pub fn new(optimizer: impl Into<ModuleOptimizer>, lr: f64) -> Self {
        Self {
            optimizer: optimizer.into(),
            base: lr,
            groups: Vec::new(),
            schedule: Scheduled::Constant,
            rate: lr,
        }
    }

    /// Another learning rate for these parameters; a schedule keeps its ratio to the base rate. Later groups win.
    #[must_use]
    pub fn group(mut self, name: impl Into<String>, group: ParamGroup, lr: f64) -> Self {
        self.groups.push((name.into(), group, lr));
        self
    }

    /// Changes the rates by a schedule, after each optimizer step or each epoch.
    #[must_use]
    pub fn schedule(mut self, interval: Interval, schedule: impl Schedule + 'static) -> Self {
        self.schedule = Scheduled::Leyden(interval, Box::new(schedule));
        self
    }

    /// Changes the rates by one of Burn's schedulers, with its own parameter groups; the rates and groups given here
    /// do not count then.
    #[must_use]
    pub fn burn_schedule(mut self, interval: Interval, scheduler: ModuleLrScheduler) -> Self {
        self.schedule = Scheduled::Burn(interval, BurnSchedule::new(scheduler));
        self
    }

    /// Checks rates and schedule and takes the first rate.
    pub(crate) fn begin(&mut self, parameters: &[(ParamId, Parameter)]) -> Result<()> {
        let rates =
            std::iter::once(("lr", self.base)).chain(self.groups.iter().map(|(n, _, lr)| (n.as_str(), *lr)));
        for (name, rate) in rates {
            if !(rate.is_finite() && rate >= 0.0) {
                return Err(Error::new(WRONG_VALUE, format!("the learning rate `{name}` is {rate}"))
                    .why("allowed is a finite number from 0")
                    .hint("change it in `configure_optimizers`"));
            }
        }
        for (name, group, _) in &self.groups {
            if !parameters.iter().any(|(id, parameter)| group.matches(id, Some(&parameter.path))) {
                let paths: Vec<_> = parameters.iter().map(|(_, parameter)| parameter.path.as_str()).collect();
                return Err(Error::new(
                    WRONG_VALUE,
                    format!("the parameter group `{name}` matches no parameter"),
                )
                .why(format!("the parameters are {}", paths.join(", ")))
                .hint("change the group in `configure_optimizers`"));
            }
        }
        match &mut self.schedule {
            Scheduled::Constant => {}
            Scheduled::Leyden(_, schedule) => {
                schedule.check()?;
                self.rate = schedule.initial(self.base);
            }
            Scheduled::Burn(_, schedule) => self.rate = schedule.rates.base(),
        }
        Ok(())
    }

    pub(crate) fn advance(&mut self, due: Interval, metric: &dyn Fn(&str) -> Option<f64>) -> Result<()> {
        match &mut self.schedule {
            Scheduled::Leyden(interval, schedule) if *interval == due => self.rate = schedule.next(metric)?,
            Scheduled::Burn(interval, schedule) if *interval == due => {
                *schedule = BurnSchedule::new(schedule.scheduler.clone());
                self.rate = schedule.rates.base();
            }
            _ => {}
        }
        Ok(())
    }

    /// The rates as Burn's optimizer takes them.
    pub(crate) fn step_rates(&mut self) -> (&mut ModuleOptimizer, ModuleLearningRate) {
        let rates = match &self.schedule {
            Scheduled::Burn(_, schedule) => schedule.rates.clone(),
            _ if self.groups.is_empty() => self.rate.into(),
            _ => {
                let base = ModuleLrScheduler::new(Fixed(self.rate));
                let groups = self.groups.iter();
                let mut scheduler = groups.fold(base, |scheduler, (_, group, lr)| {
                    scheduler.with_group(group.clone(), Fixed(lr * self.ratio()))
                });
                scheduler.step()
            }
        };
        (&mut self.optimizer, rates)
    }

    /// Steps at this rate from here on.
    pub(crate) fn set_rate(&mut self, rate: f64) {
        (self.base, self.rate) = (rate, rate);
    }

    /// What a schedule has made of the base rate, and so of each group's.
    fn ratio(&self) -> f64 {
        if self.base == 0.0 { 1.0 } else { self.rate / self.base }
    }

    /// The rates by group name, the base first.
    pub(crate) fn rates(&self) -> Vec<(String, f64)> {
        let base = ("base".to_owned(), self.rate);
        let groups = self.groups.iter().map(|(name, _, lr)| (name.clone(), lr * self.ratio()));
        std::iter::once(base).chain(groups).collect()
    }

    /// The optimizer's tensors by parameter path, and what is no tensor.
    pub(crate) fn state(&self, parameters: &[(ParamId, Parameter)]) -> Result<(Vec<NamedTensor>, Value)> {
        let reader = Reader::from_bytes(self.optimizer.into_bytes()?)?;
        let path_of = |name: &str| -> Result<String> {
            let found = name.split_once('.').and_then(|(id, field)| {
                let id: u64 = id.parse().ok()?;
                let (_, parameter) = parameters.iter().find(|(known, _)| known.val() == id)?;
                Some(format!("{}.{field}", parameter.path))
            });
            found.ok_or_else(|| foreign(name))
        };
        let mut counters = Map::new();
        for (name, scalar) in reader.scalars() {
            counters.insert(path_of(name)?, scalar_to_json(*scalar));
        }
        let mut tensors = Vec::new();
        for tensor in reader.into_tensors()? {
            let (name, dtype, shape, _, bytes) = tensor.into_parts()?;
            let data = burn::tensor::TensorData::from_bytes(bytes, shape, dtype);
            tensors.push(named(path_of(&name)?, data)?);
        }
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        let schedule = match &self.schedule {
            Scheduled::Constant => Value::Null,
            Scheduled::Leyden(_, schedule) => schedule.state(),
            Scheduled::Burn(_, schedule) => json!(schedule.before.clone().into_bytes()?.to_vec()),
        };
        Ok((tensors, json!({ "counters": counters, "rate": self.rate.to_bits(), "schedule": schedule })))
    }

    /// Takes back [`state`](Self::state), for parameters whose ids may be others now.
    pub(crate) fn load(
        mut self,
        tensors: &[NamedTensor],
        values: &Value,
        parameters: &[(ParamId, Parameter)],
    ) -> Result<Self> {
        let mut stored = Vec::new();
        for tensor in tensors {
            let (id, _, field) = owner(&tensor.name, parameters)?;
            let (bytes, shape, dtype) = data_of(tensor)?.into_parts();
            let name = format!("{}.{field}", id.val());
            stored.push(burn_pack::Tensor::new(name, dtype, shape, Some(id.val()), bytes));
        }
        let mut writer = Writer::new(stored);
        let counters: BTreeMap<String, Value> = serde_json::from_value(values["counters"].clone())?;
        for (name, value) in &counters {
            let (id, path, field) = owner(name, parameters)?;
            let scalar = json_to_scalar(value).ok_or_else(|| foreign(name))?;
            writer = writer
                .with_scalar(&format!("{}.{field}", id.val()), scalar)
                .with_metadata(&id.val().to_string(), path);
        }
        let record = OptimizerRecord::from_bytes(writer.into_bytes()?)?;
        self.optimizer = self.optimizer.load_record(record);
        let taken = self.optimizer.to_record().len();
        if taken != tensors.len() {
            return Err(Error::new(OTHER_OPTIMIZER, "the checkpoint is of another optimizer")
                .why(format!(
                    "it has {} optimizer tensors, of which this one understands {taken}",
                    tensors.len()
                ))
                .hint("configure the optimizer of the run, or load the weights alone"));
        }
        self.rate = f64::from_bits(serde_json::from_value(values["rate"].clone())?);
        match &mut self.schedule {
            Scheduled::Constant => {}
            Scheduled::Leyden(_, schedule) => schedule.load_state(&values["schedule"])?,
            Scheduled::Burn(_, schedule) => {
                let bytes: Vec<u8> = serde_json::from_value(values["schedule"].clone())?;
                let record = LrSchedulerRecord::from_bytes(Bytes::from_bytes_vec(bytes))?;
                *schedule = BurnSchedule::new(schedule.scheduler.clone().load_record(record));
            }
        }
        Ok(self)
    }
}

/// Which parameter an optimizer value belongs to: the one with the longest path that begins its name.
fn owner<'p, 'n>(
    name: &'n str,
    parameters: &'p [(ParamId, Parameter)],
) -> Result<(ParamId, &'p str, &'n str)> {
    let candidates = parameters.iter().filter_map(|(id, parameter)| {
        let field = name.strip_prefix(&parameter.path)?.strip_prefix('.')?;
        Some((*id, parameter.path.as_str(), field))
    });
    candidates.max_by_key(|(_, path, _)| path.len()).ok_or_else(|| foreign(name))
}

fn foreign(name: &str) -> Error {
    Error::new(
        OTHER_OPTIMIZER,
        format!("the optimizer's value `{name}` belongs to no parameter of the model"),
    )
    .hint("build the model that was trained, and replace no layer in a hook; or load the weights alone")
}

fn scalar_to_json(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Int(value) => json!({ "int": value }),
        Scalar::UInt(value) => json!({ "uint": value }),
        Scalar::Float(value) => json!({ "float": value.to_bits() }),
        Scalar::Bool(value) => json!({ "bool": value }),
    }
}

fn json_to_scalar(value: &Value) -> Option<Scalar> {
    let (kind, value) = value.as_object()?.iter().next()?;
    match kind.as_str() {
        "int" => value.as_i64().map(Scalar::Int),
        "uint" => value.as_u64().map(Scalar::UInt),
        "float" => value.as_u64().map(f64::from_bits).map(Scalar::Float),
        "bool" => value.as_bool().map(Scalar::Bool),
        _ => None,
    }
}

/// A scheduler that always says the same: Burn makes rates for parameter groups only out of schedulers.
#[derive(Clone)]
struct Fixed(f64);

impl LrScheduler for Fixed {
    fn step(&mut self) -> f64 {
        self.0
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new()
    }

    fn load_record(&mut self, _: LrSchedulerRecord) {}
}
