//! What the programs are made of: the toy learner with something wrong about it, its data, and a `fit` that says when it
//! begins and what it ends with.

use std::any::Any;
use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use leyden_data::{Batch, DataLoader, Loader, Share, Workers};
use leyden_process::{Error, Result};
use leyden_train::learner::toy::{ToyBatch, ToyLearner};
use leyden_train::learner::{Gradient, GradientValues, HasGradients, Layer, Parameter, Trained, Update};
use leyden_train::schedule::Interval;
use leyden_train::state::{LearnerState, NamedTensor, Parts};
use leyden_train::testing::ToyRows;
use leyden_train::{
    Callback, Control, DataModule, Event, FitReport, Hook, Learner, LearnerView, LoaderCx, Loaders, Outcome,
    Stage, StepCx, Trainer, TrainerBuilder,
};

/// How many ranks the row is about.
pub(crate) fn ranks() -> usize {
    std::env::var("HANGBENCH_RANKS").ok().and_then(|ranks| ranks.parse().ok()).expect("a row has ranks")
}

/// Where the row may write.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("HANGBENCH_FOLDER").expect("a row has a folder").into()
}

/// Says that something happens now: in one write, so that lines of several ranks do not mix.
pub(crate) fn say(what: &str) {
    let _ = std::io::stderr().write_all(format!("{}\n", crate::bench::stamp(what)).as_bytes());
}

/// Prints and writes nothing, on the ranks of the row.
pub(crate) fn bare() -> TrainerBuilder {
    saving().enable_checkpointing(false)
}

/// The same with checkpoints.
pub(crate) fn saving() -> TrainerBuilder {
    Trainer::builder()
        .devices(ranks())
        .max_epochs(3)
        .root_dir(folder().join("runs"))
        .enable_progress_bar(false)
        .enable_model_summary(false)
        .no_logger()
}

/// Trains, and says when it begins and what it ends with.
#[track_caller]
pub(crate) fn fit(builder: TrainerBuilder, model: &mut Model, data: &mut Data) -> Result<FitReport> {
    fit_with(&mut builder.build()?, model, data)
}

#[track_caller]
pub(crate) fn fit_with(trainer: &mut Trainer, model: &mut Model, data: &mut Data) -> Result<FitReport> {
    say("begins");
    match trainer.fit_learner(model, data) {
        Ok(report) => {
            let FitReport { steps, epochs, outcome, .. } = &report;
            say(&format!("done step {steps}, epoch {epochs}, {outcome}, {}", model.weights()));
            Ok(report)
        }
        Err(error) => {
            say(&format!("told {}", error.code()));
            Err(error)
        }
    }
}

/// What a training step does instead, or `None`.
type Step = Box<dyn FnMut(&ToyBatch, &mut StepCx<'_>) -> Result<Option<Trained>>>;

/// The toy learner, with something wrong about it.
pub(crate) struct Model {
    toy: ToyLearner,
    /// What it says that its parameters are, instead.
    pub(crate) listed: Option<Vec<Parameter>>,
    pub(crate) step: Option<Step>,
    /// Whether its loss does not depend on the bias.
    pub(crate) unused: bool,
    /// Whether the bias was given a gradient nevertheless.
    bias_has_one: bool,
    /// How long it takes to give its whole state.
    pub(crate) saving_takes: Duration,
    /// Whether its evaluation logs nothing.
    pub(crate) evaluates_in_silence: bool,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self::wide(3)
    }

    pub(crate) fn wide(features: usize) -> Self {
        Self {
            toy: ToyLearner::new(features, 0.05),
            listed: None,
            step: None,
            unused: false,
            bias_has_one: false,
            saving_takes: Duration::ZERO,
            evaluates_in_silence: false,
        }
    }

    pub(crate) fn with_step(
        mut self,
        step: impl FnMut(&ToyBatch, &mut StepCx<'_>) -> Result<Option<Trained>> + 'static,
    ) -> Self {
        self.step = Some(Box::new(step));
        self
    }

    /// With other weights than all zero.
    pub(crate) fn starting_at(mut self, value: f32) -> Result<Self> {
        let weights = vec![
            NamedTensor::from_f32("weight", &[3], &[value; 3]),
            NamedTensor::from_f32("bias", &[1], &[value]),
        ];
        self.toy.load(LearnerState { weights, ..LearnerState::default() }, Parts::Weights)?;
        Ok(self)
    }

    /// All bits of the weights.
    pub(crate) fn weights(&self) -> String {
        let (weights, bias) = self.toy.weights();
        let bits = weights.iter().chain([&bias]).map(|weight| format!("{:08x}", weight.to_bits()));
        bits.collect::<Vec<_>>().join("-")
    }

    fn hides_bias(&self) -> bool {
        self.unused && !self.bias_has_one
    }

    fn zero_bias(&mut self) -> Result<()> {
        self.toy.visit_gradients(&mut |gradient| {
            if let ("bias", Some(GradientValues::F32(values))) = (gradient.path, gradient.values) {
                values.fill(0.0);
            }
            Ok(())
        })
    }
}

impl HasGradients for Model {
    fn visit_gradients(&mut self, visit: &mut dyn FnMut(Gradient<'_>) -> Result<()>) -> Result<()> {
        let hides = self.hides_bias();
        self.toy.visit_gradients(&mut |gradient| match gradient.path {
            "bias" if hides => visit(Gradient { values: None, ..gradient }),
            _ => visit(gradient),
        })
    }

    fn zero_gradients(&mut self, of: &dyn Fn(&str) -> bool) {
        self.toy.zero_gradients(of);
        if self.hides_bias() && of("bias") {
            self.zero_bias().expect("it can be visited");
            self.bias_has_one = true;
        }
    }

    fn clear_gradients(&mut self) {
        self.toy.clear_gradients();
        self.bias_has_one = false;
    }
}

impl Learner<ToyBatch> for Model {
    fn setup(&mut self, stage: Stage, seed: u64) -> Result<()> {
        self.toy.setup(stage, seed)
    }

    fn configure_optimizers(&mut self) -> Result<()> {
        self.toy.configure_optimizers()
    }

    fn train(&mut self, batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<Trained> {
        if let Some(step) = &mut self.step
            && let Some(trained) = step(&batch, cx)?
        {
            return Ok(trained);
        }
        self.toy.train(batch, cx)
    }

    fn evaluate(&mut self, batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<()> {
        if self.evaluates_in_silence {
            return Ok(());
        }
        self.toy.evaluate(batch, cx)
    }

    fn predict(&mut self, batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<Box<dyn Any + Send>> {
        self.toy.predict(batch, cx)
    }

    fn apply(&mut self, update: &Update) -> Result<()> {
        if self.hides_bias() {
            self.zero_bias()?;
        }
        self.bias_has_one = false;
        self.toy.apply(update)
    }

    fn advance(&mut self, due: Interval, metric: &dyn Fn(&str) -> Option<f64>) -> Result<()> {
        self.toy.advance(due, metric)
    }

    fn hook(&mut self, hook: Hook, cx: Option<&mut StepCx<'_>>) -> Result<()> {
        self.toy.hook(hook, cx)
    }

    fn state(&mut self, parts: Parts) -> Result<LearnerState> {
        if parts == Parts::All {
            std::thread::sleep(self.saving_takes);
        }
        self.toy.state(parts)
    }

    fn load(&mut self, state: LearnerState, parts: Parts) -> Result<()> {
        self.toy.load(state, parts)
    }

    fn on_exception(&mut self, _: &Error) -> Result<()> {
        say("model on_exception");
        Ok(())
    }

    fn teardown(&mut self, outcome: &Outcome) -> Result<()> {
        say(&format!("model teardown {}", outcome.status()));
        Ok(())
    }
}

impl LearnerView for Model {
    fn parameters(&self) -> Vec<Parameter> {
        self.listed.clone().unwrap_or_else(|| self.toy.parameters())
    }

    fn layers(&self) -> Vec<Layer> {
        self.toy.layers()
    }

    fn learning_rates(&self) -> Vec<(String, f64)> {
        self.toy.learning_rates()
    }

    fn weight(&self, path: &str) -> Result<Option<NamedTensor>> {
        self.toy.weight(path)
    }

    fn device(&self) -> String {
        self.toy.device()
    }
}

/// Who makes the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Makers {
    Inline,
    Threads,
    Processes,
}

/// What a method of the data module does instead.
type Make = Box<dyn FnMut(&LoaderCx) -> Result<Loaders<ToyBatch>>>;

/// Rows for the toy learner, the same steps on any number of ranks.
pub(crate) struct Data {
    pub(crate) rows: usize,
    pub(crate) eval: usize,
    pub(crate) makers: Makers,
    pub(crate) train: Option<Make>,
    pub(crate) prepare: Option<Box<dyn FnMut() -> Result<()>>>,
    pub(crate) setup: Option<Box<dyn FnMut() -> Result<()>>>,
    pub(crate) at_teardown: Option<Box<dyn FnMut()>>,
}

impl Data {
    pub(crate) fn new() -> Self {
        Self {
            rows: 48,
            eval: 16,
            makers: Makers::Inline,
            train: None,
            prepare: None,
            setup: None,
            at_teardown: None,
        }
    }

    pub(crate) fn loader(&self, rows: Range<usize>, shuffle: bool) -> Result<Loaders<ToyBatch>> {
        let loader = DataLoader::builder(ToyRows { features: 3, rows }).global_batch_size(8).shuffle(shuffle);
        let loader = match self.makers {
            Makers::Inline => loader,
            Makers::Threads => loader.num_workers(2),
            Makers::Processes => loader.workers(Workers::spawn(2)),
        };
        Ok(loader.build()?.into())
    }
}

impl DataModule for Data {
    type Batch = ToyBatch;

    fn prepare_data(&mut self) -> Result<()> {
        self.prepare.as_mut().map_or(Ok(()), |prepare| prepare())
    }

    fn setup(&mut self, _: Stage) -> Result<()> {
        self.setup.as_mut().map_or(Ok(()), |setup| setup())
    }

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        match &mut self.train {
            Some(make) => make(cx),
            None => self.loader(0..self.rows, true),
        }
    }

    fn val_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        if self.eval == 0 {
            return Ok(Loaders::none());
        }
        self.loader(1000..1000 + self.eval, false)
    }

    fn test_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(2000..2000 + self.eval, false)
    }

    fn on_exception(&mut self, _: &Error) -> Result<()> {
        say("data on_exception");
        Ok(())
    }

    fn teardown(&mut self, outcome: &Outcome) -> Result<()> {
        if let Some(act) = &mut self.at_teardown {
            act();
        }
        say(&format!("data teardown {}", outcome.status()));
        Ok(())
    }
}

/// A loader of one's own: so many batches, of which it really gives so many.
pub(crate) struct Own {
    pub(crate) promised: usize,
    pub(crate) given: usize,
    /// Where its rows begin: each rank has others.
    pub(crate) from: usize,
}

impl Loader<ToyBatch> for Own {
    fn len(&self) -> usize {
        self.promised
    }

    fn epoch(&self, _: u64, from: usize) -> Box<dyn Iterator<Item = Result<Batch<ToyBatch>>> + '_> {
        Box::new((from..self.given).map(|index| {
            let x: Vec<f32> = (0..12).map(|k| ((self.from + 12 * index + k) % 7) as f32 / 7.0).collect();
            let y = x.chunks(3).map(|row| row[0] + 2.0 * row[1] + 0.5).collect();
            Ok(Batch { data: ToyBatch { x, y }, samples: 4, padding: 0, index })
        }))
    }

    fn set_sequential(&mut self) {}

    fn set_share(&mut self, _: &Share) -> Result<()> {
        Ok(())
    }
}

/// A callback made of a closure, called in one hook.
pub(crate) struct On<F>(pub(crate) Hook, pub(crate) F);

impl<F: FnMut(&Event<'_>, &mut Control) -> Result<()> + Send> Callback for On<F> {
    fn name(&self) -> String {
        format!("On({})", self.0.name())
    }

    fn on_event(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        if event.hook == self.0 { (self.1)(event, control) } else { Ok(()) }
    }
}
