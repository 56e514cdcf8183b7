//! Parameter groups, schedules, clipping, accumulation and typed callbacks, each against a raw Burn loop.

use std::sync::{Arc, Mutex};

use burn::module::{ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::activation::tanh;
use leyden::data::Loader;
use leyden::prelude::*;
use leyden::schedule::ThresholdMode;
use leyden::train::state::NamedTensor;
use leyden::{load_tensors, named_tensors};

use crate::cells::{HostRows, Rows, Source, alone, bits, dry};

/// What is configured, made anew for each run.
type Configure = fn() -> Optimizers;

#[derive(Module, Debug)]
struct Two {
    first: Linear,
    second: Linear,
    #[module(skip)]
    configure: Configured,
}

#[derive(Clone, Debug)]
struct Configured(Configure);

impl Two {
    fn new(configure: Configure) -> Self {
        let device = Device::default();
        device.seed(11);
        let layer = |i, o| LinearConfig::new(i, o).init(&device);
        Self { first: layer(6, 5), second: layer(5, 3), configure: Configured(configure) }
    }

    fn loss(&self, batch: Rows) -> Tensor<1> {
        cross_entropy(self.second.forward(tanh(self.first.forward(batch.features))), batch.classes)
    }
}

impl LeydenModule for Two {
    type Batch = Rows;

    fn training_step(&self, batch: Rows, cx: &mut StepCx) -> Result<Loss> {
        let loss = self.loss(batch);
        cx.log("train/loss", &loss);
        Ok(loss.into())
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok((self.configure.0)())
    }
}

struct TrainOnly;

impl DataModule for TrainOnly {
    type Batch = HostRows;

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<HostRows>> {
        Source::default().train_loader(cx)
    }
}

fn sgd() -> ModuleOptimizer {
    SgdConfig::new().init()
}

fn constant() -> Optimizers {
    Optimizers::new(sgd(), 0.1)
}

fn trained(configure: Configure, builder: leyden::TrainerBuilder) -> Two {
    let mut trainer = builder.max_epochs(1).seed(5).build().unwrap();
    trainer.fit(Two::new(configure), &mut TrainOnly).unwrap().into_model()
}

/// One epoch by hand: `step` gets the model, the gradients of a batch and its index.
fn by_hand(mut step: impl FnMut(Two, GradientsParams, usize) -> Two) -> Two {
    let device = Device::default().autodiff();
    let mut model = Two::new(constant).train();
    for batch in Loader::epoch(&Source::default().training(5).unwrap(), 0, 0) {
        let batch = batch.unwrap();
        let loss = model.loss(Rows::from_host(batch.data, &device).unwrap());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = step(model, gradients, batch.index);
    }
    model
}

#[test]
fn groups_have_their_own_rates() {
    let _alone = alone();
    let grouped = || {
        let head = ParamGroup::from_predicate("second");
        Optimizers::new(sgd(), 0.1)
            .group("head", head, 0.5)
            .schedule(Interval::Step, CosineAnnealing::new(8, 0.0))
    };
    // A group keeps its ratio to the base rate: two optimizers at two rates do the same.
    let mut schedule = CosineAnnealing::new(8, 0.0);
    let mut rate = leyden::schedule::Schedule::initial(&mut schedule, 0.1);
    let mut optimizer = sgd();
    let expected = by_hand(|model, mut gradients, _| {
        let ids = ParamGroup::ids_from_module(model.second.clone());
        let mut scale = Scale { gradients: &mut gradients, group: ids, factor: 0.5 / 0.1 };
        burn::module::Module::visit(&model, &mut scale);
        let model = optimizer.step(rate, model, gradients);
        rate = leyden::schedule::Schedule::next(&mut schedule, &|_| None).unwrap();
        model
    });
    close(&expected, &trained(grouped, dry()), 1e-6);
}

/// Scales the gradients of one group.
struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    group: ParamGroup,
    factor: f64,
}

impl burn::module::ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.group.matches(&param.id, None)
            && let Some(gradient) = self.gradients.remove::<D>(param.id)
        {
            self.gradients.register(param.id, gradient * self.factor);
        }
    }
}

#[test]
fn burn_s_own_schedulers_work_by_step() {
    let _alone = alone();
    let scheduled = || {
        let cosine = CosineAnnealingLrSchedulerConfig::new(0.2, 8).init().unwrap();
        Optimizers::new(AdamConfig::new().init(), 0.2).burn_schedule(Interval::Step, cosine)
    };
    let mut cosine = CosineAnnealingLrSchedulerConfig::new(0.2, 8).init().unwrap();
    let mut optimizer: ModuleOptimizer = AdamConfig::new().init();
    let expected = by_hand(|model, gradients, _| optimizer.step(cosine.step(), model, gradients));
    assert_eq!(bits(&expected), bits(&trained(scheduled, dry())));
}

#[test]
fn accumulation_is_the_mean_of_what_was_accumulated() {
    let _alone = alone();
    // 8 batches in windows of 3, so the last has 2.
    let mut optimizer = sgd();
    let mut sum = GradientsAccumulator::new();
    let mut count = 0.0;
    let expected = by_hand(|model, gradients, index| {
        sum.accumulate(&model, gradients);
        count += 1.0;
        if count < 3.0 && index != 7 {
            return model;
        }
        let model = optimizer.step(0.1 / count, model, sum.grads());
        count = 0.0;
        model
    });
    close(&expected, &trained(constant, dry().accumulate_grad_batches(3)), 1e-6);
}

#[test]
fn clipping_by_norm_is_over_all_parameters_together() {
    let _alone = alone();
    struct Norm<'a>(&'a GradientsParams, f64);
    impl burn::module::ModuleVisitor for Norm<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values: Vec<f32> = self.0.get::<D>(param.id).unwrap().into_data().iter::<f32>().collect();
            self.1 += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        }
    }
    let mut optimizer = sgd();
    let mut clipped = 0;
    let expected = by_hand(|model, gradients, _| {
        let mut norm = Norm(&gradients, 0.0);
        burn::module::Module::visit(&model, &mut norm);
        let factor = 0.1 / (norm.1.sqrt() + 1e-6);
        clipped += usize::from(factor < 1.0);
        optimizer.step(0.1 * factor.min(1.0), model, gradients)
    });
    assert!(clipped > 0, "the limit bites");
    close(&expected, &trained(constant, dry().gradient_clip(GradientClip::Norm(0.1))), 1e-5);
}

#[test]
fn a_plateau_schedule_reads_what_the_epoch_logged() {
    let _alone = alone();
    let scheduled = || {
        let plateau = ReduceLROnPlateau::new("train/loss")
            .patience(0)
            .threshold_mode(ThresholdMode::Abs)
            .threshold(10.0);
        Optimizers::new(sgd(), 0.1).schedule(Interval::Epoch, plateau)
    };
    let rates = leyden::train::testing::Record::new();
    struct Rates(leyden::train::testing::Record);
    impl Callback for Rates {
        fn name(&self) -> String {
            "Rates".to_owned()
        }
        fn on_train_epoch_start(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
            self.0.note(format!("{:.4}", event.learner.learning_rates()[0].1));
            Ok(())
        }
    }
    let mut trainer = dry().max_epochs(3).seed(5).callback(Rates(rates.clone())).build().unwrap();
    let _ = trainer.fit(Two::new(scheduled), &mut TrainOnly).unwrap();
    assert_eq!(rates.lines(), ["0.1000", "0.1000", "0.0100"]);
}

#[test]
fn a_senseless_schedule_is_refused_before_training() {
    let _alone = alone();
    let scheduled = || Optimizers::new(sgd(), 0.1).schedule(Interval::Step, OneCycle::new(0.1, 0));
    let mut trainer = dry().max_epochs(1).build().unwrap();
    let error = trainer.fit(Two::new(scheduled), &mut TrainOnly).unwrap_err().error;
    assert_eq!(error.code().id, "T0601", "{error:?}");
}

#[test]
fn a_frozen_part_stays_as_it_is_and_keeps_no_optimizer_state() {
    let _alone = alone();
    let mut model = Two::new(|| Optimizers::new(AdamConfig::new().init(), 0.1));
    model.first = model.first.freeze();
    let before = bits(&model.first);
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = crate::cells::quiet(folder.path()).max_epochs(1).build().unwrap();
    let fitted = trainer.fit(model, &mut TrainOnly).unwrap();
    assert_eq!(before, bits(&fitted.model().first));
    let saved = leyden::Checkpoint::read(fitted.last_checkpoint.as_ref().unwrap()).unwrap();
    assert!(saved.learner.optimizer.iter().all(|tensor| tensor.name.starts_with("second.")));
}

#[test]
fn a_model_on_an_autodiff_device_trains_alike() {
    let _alone = alone();
    let fit = |device: Device| {
        Device::default().seed(4);
        let layer = |i, o| LinearConfig::new(i, o).init(&device);
        let model = Two { first: layer(6, 5), second: layer(5, 3), configure: Configured(constant) };
        let mut trainer = dry().max_epochs(1).seed(5).build().unwrap();
        bits(trainer.fit(model, &mut TrainOnly).unwrap().model())
    };
    assert_eq!(fit(Device::default()), fit(Device::default().autodiff()));
}

#[test]
fn a_base_rate_of_zero_trains_only_the_group() {
    let _alone = alone();
    let head = || {
        Optimizers::new(AdamConfig::new().init(), 0.0).group(
            "head",
            ParamGroup::from_predicate("second"),
            0.1,
        )
    };
    let before = Two::new(head);
    // Burn makes weights when they are first used: now, from the seed that `new` has set.
    let [first, second] = [bits(&before.first), bits(&before.second)];
    let after = trained(head, dry());
    assert_eq!(first, bits(&after.first));
    assert_ne!(second, bits(&after.second));
    let all = named_tensors(&after).unwrap();
    assert!(all.iter().flat_map(|tensor| tensor.to_f32().unwrap()).all(f32::is_finite));
}

#[test]
fn senseless_rates_and_groups_are_refused_by_name() {
    let _alone = alone();
    let refused = |configure: Configure| {
        let mut trainer = dry().max_epochs(1).build().unwrap();
        trainer.fit(Two::new(configure), &mut TrainOnly).unwrap_err().error
    };
    let error = refused(|| Optimizers::new(sgd(), -1.0));
    assert_eq!((error.code().id, error.what()), ("C0101", "the learning rate `lr` is -1"));
    let error = refused(|| constant().group("head", ParamGroup::from_predicate("secnd"), 0.1));
    assert_eq!((error.code().id, error.what()), ("C0101", "the parameter group `head` matches no parameter"));
    assert!(error.reasons()[0].contains("second.weight"), "{error:?}");
}

/// A moving average of the weights, as a typed callback.
#[derive(Module, Debug)]
struct Averaged {
    inner: Linear,
    #[module(skip)]
    average: Average,
}

#[derive(Clone, Debug)]
struct Average(Arc<Mutex<Option<Linear>>>);

struct Ema(Average);

impl ModelCallback<Averaged> for Ema {
    fn name(&self) -> String {
        "Ema".to_owned()
    }

    fn on_hook(&mut self, hook: Hook, model: &mut Averaged) -> Result<()> {
        if hook == Hook::TrainBatchEnd {
            let now = model.inner.valid();
            let mut average = self.0.0.lock().unwrap();
            *average = Some(match average.take() {
                None => now,
                Some(before) => before.map(&mut Mix { with: named_tensors(&now)?.into_iter() }),
            });
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<NamedTensor>> {
        self.0.0.lock().unwrap().as_ref().map_or(Ok(Vec::new()), named_tensors)
    }

    fn load_state(&mut self, state: Vec<NamedTensor>) -> Result<()> {
        let empty = LinearConfig::new(6, 3).init(&Device::default());
        *self.0.0.lock().unwrap() = Some(load_tensors(empty, &state)?);
        Ok(())
    }
}

struct Mix {
    with: std::vec::IntoIter<NamedTensor>,
}

impl ModuleMapper for Mix {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let other = self.with.next().unwrap();
        let data = TensorData::new(other.to_f32().unwrap(), other.shape);
        param.map(|before| before.clone() * 0.9 + Tensor::from_data(data, &before.device()) * 0.1)
    }
}

impl LeydenModule for Averaged {
    type Batch = Rows;

    fn training_step(&self, batch: Rows, _: &mut StepCx) -> Result<Loss> {
        Ok(cross_entropy(self.inner.forward(batch.features), batch.classes).into())
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(constant())
    }

    fn configure_callbacks(&self) -> Vec<Box<dyn ModelCallback<Self>>> {
        vec![Box::new(Ema(self.average.clone()))]
    }
}

#[test]
fn a_typed_callback_sees_the_model_and_survives_a_resume() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = |epochs: u64, from: Option<&str>| {
        let average = Average(Arc::default());
        let device = Device::default();
        device.seed(1);
        let model = Averaged { inner: LinearConfig::new(6, 3).init(&device), average: average.clone() };
        let mut trainer = crate::cells::quiet(folder.path()).max_epochs(epochs).build().unwrap();
        if let Some(from) = from {
            trainer.ckpt_path(from);
        }
        let fitted = trainer.fit(model, &mut TrainOnly).unwrap();
        let average = average.0.lock().unwrap().take().unwrap();
        assert_ne!(bits(&average), bits(&fitted.model().inner));
        bits(&average)
    };
    let whole = run(2, None);
    let _ = run(1, None);
    assert_eq!(run(2, Some("last")), whole);
}

fn close(one: &Two, other: &Two, tolerance: f32) {
    let [one, other] = [one, other].map(|model| named_tensors(model).unwrap());
    for (one, other) in one.iter().zip(&other) {
        for (a, b) in one.to_f32().unwrap().iter().zip(other.to_f32().unwrap()) {
            assert!((a - b).abs() <= tolerance, "{}: {a} {b}", one.name);
        }
    }
}
