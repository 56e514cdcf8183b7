//! The test kit: for whoever implements [`Learner`], [`Callback`] or [`DataModule`].

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leyden_data::{DataLoader, Dataset, SampleCx};
use leyden_process::signal::Listener;
use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::data_module::{DataModule, LoaderCx, Loaders};
use crate::event::{Callback, Event, Hook};
use crate::learner::toy::{ToyBatch, ToyLearner};
use crate::learner::{
    Gradient, GradientClip, GradientValues, HasGradients, Layer, Learner, LearnerView, Parameter, Stage,
    Trained, Update,
};
use crate::logs::Logs;
use crate::outcome::Outcome;
use crate::schedule::Interval;
use crate::state::{LearnerState, NamedTensor, Parts};
use crate::step::{StepCx, StepFacts};

/// Checks that a [`Learner`] keeps its contract. `make` builds one, already trainable and always with the same
/// weights; `batch` gives the batch of an index, non-empty, with a loss that depends on every parameter.
///
/// # Panics
/// With the broken rule.
pub fn learner_suite<H, L: Learner<H>>(make: impl Fn() -> L, batch: impl Fn(usize) -> H) {
    let suite = Suite { make, batch, marker: std::marker::PhantomData };
    suite.the_optimizer_sees_the_mean_of_what_was_accumulated();
    suite.gradients_are_shown_in_declaration_order_and_can_be_changed();
    suite.applying_leaves_no_gradient();
    suite.evaluating_changes_nothing();
    suite.a_restored_learner_goes_on_with_the_same_bits();
    suite.a_restored_window_keeps_its_gradients();
    suite.clipping_bounds_norm_and_values();
    suite.foreign_weights_are_refused_by_name();
}

struct Suite<H, M, B> {
    make: M,
    batch: B,
    marker: std::marker::PhantomData<fn() -> H>,
}

impl<H, L: Learner<H>, M: Fn() -> L, B: Fn(usize) -> H> Suite<H, M, B> {
    fn fresh(&self) -> L {
        let mut learner = (self.make)();
        learner.setup(Stage::Fit, 1).expect("setup succeeds");
        learner.configure_optimizers().expect("optimizers can be built");
        learner
    }

    fn train(&self, learner: &mut L, index: usize) {
        let mut logs = Logs::new();
        let cx = &mut StepCx::new(facts(Stage::Fit, index), &mut logs);
        let trained = learner.train((self.batch)(index), cx).expect("a step succeeds");
        assert!(matches!(trained, Trained::Loss(_)), "the suite's batches must not be skipped");
    }

    fn steps(&self, learner: &mut L, batches: Range<usize>) {
        for index in batches {
            self.train(learner, index);
            learner.apply(&MEAN_OF_ONE).expect("apply succeeds");
        }
    }

    fn the_optimizer_sees_the_mean_of_what_was_accumulated(&self) {
        let [mut once, mut twice] = [self.fresh(), self.fresh()];
        self.train(&mut once, 0);
        once.apply(&MEAN_OF_ONE).expect("apply succeeds");
        self.train(&mut twice, 0);
        self.train(&mut twice, 0);
        twice.apply(&Update { accumulated: 2, clip: None }).expect("apply succeeds");
        for (one, other) in floats(&mut once).iter().zip(floats(&mut twice)) {
            assert!(
                (one - other).abs() <= 1e-5 * one.abs().max(1e-2),
                "the mean of two equal gradients is one: {one} {other}"
            );
        }
    }

    fn gradients_are_shown_in_declaration_order_and_can_be_changed(&self) {
        let mut learner = self.fresh();
        let expected: Vec<_> = learner
            .parameters()
            .into_iter()
            .filter(|parameter| parameter.trainable)
            .map(|p| p.path)
            .collect();
        self.train(&mut learner, 0);
        let mut shown = Vec::new();
        let mut visit = |gradient: Gradient<'_>| -> Result<()> {
            shown.push(gradient.path.to_owned());
            match gradient.values.expect("the loss depends on every parameter") {
                GradientValues::F32(values) => values.fill(0.0),
                GradientValues::F64(values) => values.fill(0.0),
            }
            Ok(())
        };
        learner.visit_gradients(&mut visit).expect("gradients can be visited");
        assert_eq!(shown, expected, "each trainable parameter once, in declaration order");
        let mut norm = 0.0;
        learner
            .visit_gradients(&mut |gradient| {
                norm += square_sum(&gradient);
                Ok(())
            })
            .expect("and visited again");
        assert_eq!(norm, 0.0, "what a visitor writes stays");
    }

    fn applying_leaves_no_gradient(&self) {
        let mut learner = self.fresh();
        self.steps(&mut learner, 0..1);
        let mut left = 0;
        learner
            .visit_gradients(&mut |gradient| {
                left += usize::from(gradient.values.is_some());
                Ok(())
            })
            .expect("visited");
        assert_eq!(left, 0, "apply leaves no gradient");
    }

    fn evaluating_changes_nothing(&self) {
        let mut learner = self.fresh();
        self.steps(&mut learner, 0..2);
        let before = learner.state(Parts::All).expect("state");
        for stage in [Stage::Validate, Stage::Test] {
            let mut logs = Logs::new();
            let cx = &mut StepCx::new(facts(stage, 0), &mut logs);
            learner.evaluate((self.batch)(0), cx).expect("evaluation succeeds");
        }
        assert_eq!(before, learner.state(Parts::All).expect("state"), "evaluation changes no state");
    }

    fn a_restored_learner_goes_on_with_the_same_bits(&self) {
        let [mut whole, mut restored] = [self.fresh(), self.fresh()];
        self.steps(&mut whole, 0..2);
        restored.load(whole.state(Parts::All).expect("state"), Parts::All).expect("load");
        self.steps(&mut whole, 2..5);
        self.steps(&mut restored, 2..5);
        assert_eq!(whole.state(Parts::All).expect("state"), restored.state(Parts::All).expect("state"));
    }

    fn a_restored_window_keeps_its_gradients(&self) {
        let [mut whole, mut restored] = [self.fresh(), self.fresh()];
        self.train(&mut whole, 0);
        restored.load(whole.state(Parts::All).expect("state"), Parts::All).expect("load");
        for learner in [&mut whole, &mut restored] {
            self.train(learner, 1);
            learner.apply(&Update { accumulated: 2, clip: None }).expect("apply succeeds");
        }
        assert_eq!(whole.state(Parts::All).expect("state"), restored.state(Parts::All).expect("state"));
    }

    /// A clipped step must be the step that clipped gradients make.
    fn clipping_bounds_norm_and_values(&self) {
        for clip in [GradientClip::Norm(1e-3), GradientClip::Value(1e-4)] {
            let [mut clipped, mut by_hand] = [self.fresh(), self.fresh()];
            self.train(&mut clipped, 0);
            clipped.apply(&Update { accumulated: 1, clip: Some(clip) }).expect("apply succeeds");

            self.train(&mut by_hand, 0);
            let mut squares = 0.0;
            let mut add = |gradient: Gradient<'_>| {
                squares += square_sum(&gradient);
                Ok(())
            };
            by_hand.visit_gradients(&mut add).expect("visited");
            let mut change = |gradient: Gradient<'_>| {
                if let Some(GradientValues::F32(values)) = gradient.values {
                    for value in values {
                        *value = match clip {
                            GradientClip::Norm(limit) => {
                                *value * (limit / (f64::sqrt(squares) + 1e-6)).min(1.0) as f32
                            }
                            GradientClip::Value(limit) => value.clamp(-limit as f32, limit as f32),
                        };
                    }
                }
                Ok(())
            };
            by_hand.visit_gradients(&mut change).expect("visited");
            by_hand.apply(&MEAN_OF_ONE).expect("apply succeeds");
            for (one, other) in floats(&mut clipped).iter().zip(floats(&mut by_hand)) {
                assert!((one - other).abs() <= 1e-4 * one.abs().max(1e-3), "{clip:?}: {one} {other}");
            }
        }
    }

    fn foreign_weights_are_refused_by_name(&self) {
        let mut learner = self.fresh();
        let before = learner.state(Parts::Weights).expect("state");
        let mut other = before.clone();
        let renamed = std::mem::replace(&mut other.weights[0].name, "no.such.parameter".to_owned());
        other.weights.push(NamedTensor::from_f32("surplus", &[1], &[0.0]));
        let error = learner.load(other, Parts::Weights).expect_err("foreign weights are refused");
        let text = format!("{error:?}");
        for name in [renamed.as_str(), "no.such.parameter", "surplus"] {
            assert!(text.contains(name), "the error names `{name}`: {text}");
        }
        assert_eq!(before, learner.state(Parts::Weights).expect("state"), "and nothing was changed");
    }
}

fn facts(stage: Stage, index: usize) -> StepFacts {
    let (global_step, batches_seen) = (index as u64, index as u64);
    StepFacts {
        stage,
        epoch: 0,
        batch: index,
        samples: 1,
        global_step,
        batches_seen,
        seed: index as u64,
        loader: 0,
        in_step: true,
    }
}

fn square_sum(gradient: &Gradient<'_>) -> f64 {
    match &gradient.values {
        Some(GradientValues::F32(values)) => values.iter().map(|&value| f64::from(value).powi(2)).sum(),
        Some(GradientValues::F64(values)) => values.iter().map(|value| value.powi(2)).sum(),
        _ => 0.0,
    }
}

fn floats<H>(learner: &mut impl Learner<H>) -> Vec<f32> {
    let weights = learner.state(Parts::Weights).expect("state").weights;
    weights.iter().filter_map(NamedTensor::to_f32).flatten().collect()
}

const MEAN_OF_ONE: Update = Update { accumulated: 1, clip: None };

/// Rows of `y = x₀ + 2x₁ + … + 0.5`, made from their index: data for [`ToyLearner`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToyRows {
    /// Features a row.
    pub features: usize,
    /// Which rows.
    pub rows: Range<usize>,
}

impl Dataset for ToyRows {
    type Item = (Vec<f32>, f32);
    type Batch = ToyBatch;

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<Self::Item> {
        let bits = leyden_data::mix(17, &[(self.rows.start + index) as u64]);
        let x: Vec<f32> =
            (0..self.features).map(|k| ((bits >> (8 * (k % 8))) & 0xff) as f32 / 128.0 - 1.0).collect();
        let y = x.iter().enumerate().map(|(k, x)| (k + 1) as f32 * x).sum::<f32>() + 0.5;
        Ok((x, y))
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<ToyBatch> {
        let mut batch = ToyBatch::default();
        for (x, y) in items {
            batch.x.extend(x);
            batch.y.push(y);
        }
        Ok(batch)
    }
}

/// A data module over [`ToyRows`]: so many training, validation, test and prediction rows.
#[derive(Clone, Debug)]
pub struct ToyData {
    /// Features a row.
    pub features: usize,
    /// Rows a batch.
    pub batch_size: usize,
    /// Training rows.
    pub train: usize,
    /// Rows for validation, for the test and for prediction.
    pub eval: usize,
}

impl Default for ToyData {
    fn default() -> Self {
        Self { features: 3, batch_size: 4, train: 24, eval: 8 }
    }
}

impl ToyData {
    fn loader(&self, rows: Range<usize>, shuffle: bool) -> Result<Loaders<ToyBatch>> {
        if rows.is_empty() {
            return Ok(Loaders::none());
        }
        let rows = ToyRows { features: self.features, rows };
        let loader = DataLoader::builder(rows).batch_size(self.batch_size).shuffle(shuffle).build()?;
        Ok(loader.into())
    }
}

impl DataModule for ToyData {
    type Batch = ToyBatch;

    fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(0..self.train, true)
    }

    fn val_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(1000..1000 + self.eval, false)
    }

    fn test_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(2000..2000 + self.eval, false)
    }

    fn predict_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(3000..3000 + self.eval, false)
    }
}

/// What happened, in order, from whoever holds a clone.
#[derive(Clone, Debug, Default)]
pub struct Record(Arc<Mutex<Vec<String>>>);

impl Record {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line.
    pub fn note(&self, line: impl Into<String>) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(line.into());
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// How many lines are this one.
    pub fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|known| *known == line).count()
    }
}

/// A callback that records every hook as `C.<hook>`.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    /// Where it records.
    pub record: Record,
}

impl Callback for Recorder {
    fn name(&self) -> String {
        "Recorder".to_owned()
    }

    fn on_event(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.record.note(format!("C.{}", event.hook.name()));
        Ok(())
    }
}

/// What a [`Saboteur`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Returns an error.
    Error,
    /// Panics.
    Panic,
    /// Sends this process SIGINT.
    Interrupt,
    /// Sends this process SIGTERM.
    Terminate,
}

impl Sabotage {
    /// Does it, saying `place`.
    pub fn commit(self, place: &str) -> Result<()> {
        match self {
            Self::Error => Err(Error::new(leyden_process::error::USER, format!("sabotage in {place}"))),
            Self::Panic => panic!("sabotage in {place}"),
            Self::Interrupt => raise("-INT"),
            Self::Terminate => raise("-TERM"),
        }
    }
}

/// `kill` is another process, so the signal is a real one. It may reach another thread of this process a moment after
/// the command has ended, so that is waited for.
fn raise(signal: &str) -> Result<()> {
    let listener = Listener::start();
    let kill = std::process::Command::new("kill").args([signal, &std::process::id().to_string()]).status()?;
    assert!(kill.success());
    let begun = Instant::now();
    while listener.received().is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "this process ignores the signal: run it in the foreground"
        );
        std::thread::yield_now();
    }
    Ok(())
}

/// A callback that breaks a run in one hook.
#[derive(Clone, Copy, Debug)]
pub struct Saboteur {
    /// In which hook.
    pub hook: Hook,
    /// How.
    pub how: Sabotage,
}

impl Callback for Saboteur {
    fn name(&self) -> String {
        "Saboteur".to_owned()
    }

    fn on_event(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        if event.hook == self.hook { self.how.commit(self.hook.name()) } else { Ok(()) }
    }
}

/// A [`ToyData`] that records its lifecycle as `D.<method>`.
#[derive(Clone, Debug, Default)]
pub struct RecordedData {
    /// The data.
    pub data: ToyData,
    /// Where it records.
    pub record: Record,
    /// A method in which it breaks, once, and how.
    pub sabotage: Option<(&'static str, Sabotage)>,
}

impl RecordedData {
    fn note(&mut self, method: &'static str) -> Result<()> {
        self.record.note(format!("D.{method}"));
        self.sabotage.take_if(|(place, _)| *place == method).map_or(Ok(()), |(_, how)| how.commit(method))
    }
}

impl DataModule for RecordedData {
    type Batch = ToyBatch;

    fn prepare_data(&mut self) -> Result<()> {
        self.note("prepare_data")
    }

    fn setup(&mut self, _: Stage) -> Result<()> {
        self.note("setup")
    }

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.note("train_loader")?;
        self.data.train_loader(cx)
    }

    fn val_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.note("val_loader")?;
        self.data.val_loader(cx)
    }

    fn test_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.note("test_loader")?;
        self.data.test_loader(cx)
    }

    fn predict_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.note("predict_loader")?;
        self.data.predict_loader(cx)
    }

    fn on_exception(&mut self, _: &Error) -> Result<()> {
        self.note("on_exception")
    }

    fn teardown(&mut self, outcome: &Outcome) -> Result<()> {
        self.note("teardown")?;
        self.record.note(format!("outcome={}", outcome.status()));
        Ok(())
    }
}

/// A [`ToyLearner`] that records what is asked of it as `M.<hook>`, `M.training_step`, `M.optimizer_step` and so on.
pub struct RecordedLearner {
    /// The learner.
    pub learner: ToyLearner,
    /// Where it records.
    pub record: Record,
    /// A hook or step in which it breaks, once, and how.
    pub sabotage: Option<(&'static str, Sabotage)>,
    /// The batches of each step: `training_step`, `validation_step` …
    pub seen: Vec<(&'static str, ToyBatch)>,
    /// What a training step does besides, before anything else.
    pub in_training: Option<InTraining>,
    /// What a hook does besides.
    pub in_hook: Option<InHook>,
}

/// What a [`RecordedLearner`]'s training step does besides.
pub type InTraining = Box<dyn FnMut(&mut ToyBatch, &mut StepCx<'_>) -> Result<()>>;
/// What a [`RecordedLearner`]'s hooks do besides.
pub type InHook = Box<dyn FnMut(Hook, Option<&mut StepCx<'_>>) -> Result<()>>;

impl RecordedLearner {
    /// Around a learner for [`ToyData`]'s three features.
    pub fn new(record: &Record) -> Self {
        Self {
            learner: ToyLearner::new(3, 0.05),
            record: record.clone(),
            sabotage: None,
            seen: Vec::new(),
            in_training: None,
            in_hook: None,
        }
    }

    /// The batches that this kind of step has seen.
    pub fn seen_by(&self, step: &str) -> Vec<ToyBatch> {
        let of_step = self.seen.iter().filter(|(known, _)| *known == step);
        of_step.map(|(_, batch)| batch.clone()).collect()
    }

    fn step(&mut self, step: &'static str, batch: &ToyBatch) -> Result<()> {
        self.seen.push((step, batch.clone()));
        self.note(step)
    }

    fn note(&mut self, place: &'static str) -> Result<()> {
        self.record.note(format!("M.{place}"));
        self.sabotage.take_if(|(here, _)| *here == place).map_or(Ok(()), |(_, how)| how.commit(place))
    }
}

impl Learner<ToyBatch> for RecordedLearner {
    fn setup(&mut self, stage: Stage, seed: u64) -> Result<()> {
        self.note("setup")?;
        self.learner.setup(stage, seed)
    }

    fn configure_optimizers(&mut self) -> Result<()> {
        self.note("configure_optimizers")?;
        self.learner.configure_optimizers()
    }

    fn train(&mut self, mut batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<Trained> {
        self.step("training_step", &batch)?;
        if let Some(extra) = &mut self.in_training {
            extra(&mut batch, cx)?;
        }
        self.learner.train(batch, cx)
    }

    fn evaluate(&mut self, batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<()> {
        self.step(if cx.stage() == Stage::Test { "test_step" } else { "validation_step" }, &batch)?;
        self.learner.evaluate(batch, cx)
    }

    fn predict(&mut self, batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<Box<dyn Any + Send>> {
        self.step("predict_step", &batch)?;
        self.learner.predict(batch, cx)
    }

    fn apply(&mut self, update: &Update) -> Result<()> {
        self.note("optimizer_step")?;
        self.learner.apply(update)
    }

    fn advance(&mut self, due: Interval, metric: &dyn Fn(&str) -> Option<f64>) -> Result<()> {
        self.note(if due == Interval::Step { "schedules_step" } else { "schedules_epoch" })?;
        self.learner.advance(due, metric)
    }

    fn hook(&mut self, hook: Hook, cx: Option<&mut StepCx<'_>>) -> Result<()> {
        self.note(hook.name())?;
        match &mut self.in_hook {
            Some(extra) => extra(hook, cx),
            None => self.learner.hook(hook, cx),
        }
    }

    fn state(&mut self, parts: Parts) -> Result<LearnerState> {
        self.note("state")?;
        self.learner.state(parts)
    }

    fn load(&mut self, state: LearnerState, parts: Parts) -> Result<()> {
        self.note("load")?;
        self.learner.load(state, parts)
    }

    fn on_exception(&mut self, _: &Error) -> Result<()> {
        self.note("on_exception")
    }

    fn teardown(&mut self, _: &Outcome) -> Result<()> {
        self.note("teardown")
    }
}

impl HasGradients for RecordedLearner {
    fn visit_gradients(&mut self, visit: &mut dyn FnMut(Gradient<'_>) -> Result<()>) -> Result<()> {
        self.learner.visit_gradients(visit)
    }

    fn zero_gradients(&mut self, of: &dyn Fn(&str) -> bool) {
        self.learner.zero_gradients(of);
    }

    fn clear_gradients(&mut self) {
        self.learner.clear_gradients();
    }
}

impl LearnerView for RecordedLearner {
    fn parameters(&self) -> Vec<Parameter> {
        self.learner.parameters()
    }

    fn layers(&self) -> Vec<Layer> {
        self.learner.layers()
    }

    fn learning_rates(&self) -> Vec<(String, f64)> {
        self.learner.learning_rates()
    }

    fn weight(&self, path: &str) -> Result<Option<NamedTensor>> {
        self.learner.weight(path)
    }

    fn device(&self) -> String {
        self.learner.device()
    }
}
