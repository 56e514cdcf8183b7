//! The rows `trainer/…`: what the Trainer costs beside a loop written by hand.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use burn::module::Param;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::activation::relu;
use leyden::TrainerBuilder;
use leyden::data::{DataLoader, Dataset, Loader, SampleCx};
use leyden::prelude::*;
use leyden::train::learner::toy::{ToyBatch, ToyLearner};
use leyden::train::testing::ToyRows;
use serde_json::Value;

use crate::{Row, Spread, in_child};

/// All rows, in order.
pub(crate) fn rows(peer: bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (row, what, goal) in [
        ("trainer/overhead-toy", "toy", "<= 1 us over a raw loop"),
        ("trainer/overhead-burn-noop", "noop", "<= 5 us over a raw Burn loop"),
    ] {
        let (ours, reference) = in_child(what, false, &[])?;
        let lightning = if peer && what == "noop" { lightning("noop") } else { None };
        let (peer, compared) = match lightning {
            Some(overhead) => (overhead, "Lightning's overhead"),
            None => (reference, "the raw loop's step"),
        };
        let ratio = lightning.map(|overhead| overhead.median / ours.median);
        let compared = compared.to_owned();
        rows.push(Row { row, ours, peer: Some(peer), unit: "us", ratio, goal, compared, notes: Vec::new() });
    }
    for (row, mimalloc, environment) in [
        ("trainer/mlp-step-glibc", false, &[("LEYDEN_MALLOC", "system")][..]),
        ("trainer/mlp-step-glibc-tuned", false, &[]),
        ("trainer/mlp-step-mimalloc", true, &[]),
    ] {
        let (ours, raw) = in_child("mlp", mimalloc, environment)?;
        let ratio = Some(ours.median / raw.median);
        let (goal, compared) = ("<= 1.02x raw Burn", "raw Burn".to_owned());
        rows.push(Row { row, ours, peer: Some(raw), unit: "us", ratio, goal, compared, notes: Vec::new() });
    }
    if peer && let Some(theirs) = lightning_step("mlp") {
        let (ours, _) = in_child("mlp", true, &[])?;
        let ratio = Some(theirs.median / ours.median);
        let (row, goal, compared) = ("trainer/mlp-fit", ">= 2.5x Lightning", "Lightning".to_owned());
        rows.push(Row {
            row,
            ours,
            peer: Some(theirs),
            unit: "us",
            ratio,
            goal,
            compared,
            notes: Vec::new(),
        });
    }
    Ok(rows)
}

/// Steps of a `fit`, the same on both sides of a row: what a `fit` costs once is spread over them.
const NOOP_STEPS: usize = 5_000;
const MLP_STEPS: usize = 938;

/// Trains so many steps.
type Work = fn(usize) -> Result<()>;

/// Ours and the reference, in microseconds a step, by alternating rounds. For `toy` and `noop` ours is what the
/// Trainer adds to the reference.
pub(crate) fn measure(what: &str) -> Result<(Spread, Spread)> {
    let (rounds, steps, with, raw): (usize, usize, Work, Work) = match what {
        "toy" => (15, 200_000, toy_trainer, toy_raw),
        "noop" => (15, NOOP_STEPS, noop_trainer, noop_raw),
        // As many as an epoch of MNIST has: a checkpoint an epoch is part of the price.
        _ => (5, MLP_STEPS, mlp_trainer, mlp_raw),
    };
    // The first run raises the allocator's thresholds, for both sides.
    with(steps / 10)?;
    raw(steps / 10)?;
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let time = |work: Work| -> Result<f64> {
            let begun = Instant::now();
            work(steps)?;
            Ok(begun.elapsed().as_secs_f64() * 1e6 / steps as f64)
        };
        let theirs = time(raw)?;
        let mine = time(with)?;
        ours.push(if what == "mlp" { mine } else { mine - theirs });
        reference.push(theirs);
    }
    Ok((Spread::of(ours), Spread::of(reference)))
}

/// Bar, CSV and checkpoint on, as a user has them.
pub(crate) fn trainer(folder: &std::path::Path) -> TrainerBuilder {
    Trainer::builder()
        .root_dir(folder)
        .max_epochs(1)
        .enable_model_summary(false)
        .enable_progress_bar(false)
        .callback(ProgressBar::new().terminal(true))
        .logger(CsvLogger::new())
}

fn toy_rows(steps: usize) -> Result<DataLoader<ToyRows>> {
    DataLoader::builder(ToyRows { features: 2, rows: 0..steps }).batch_size(1).shuffle(true).build()
}

struct ToySource(usize);

impl DataModule for ToySource {
    type Batch = ToyBatch;

    fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        Ok(toy_rows(self.0)?.into())
    }
}

fn toy_trainer(steps: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let report =
        trainer(folder.path()).build()?.fit_learner(&mut ToyLearner::new(2, 0.01), &mut ToySource(steps))?;
    assert_eq!(report.steps, steps as u64);
    Ok(())
}

/// The arithmetic of the toy learner, written by hand.
fn toy_raw(steps: usize) -> Result<()> {
    let (mut weight, mut bias, mut momentum) = ([0.0_f32; 2], 0.0_f32, [0.0_f32; 3]);
    for batch in Loader::epoch(&toy_rows(steps)?, 0, 0) {
        let ToyBatch { x, y } = batch?.data;
        let residual = x[0] * weight[0] + x[1] * weight[1] + bias - y[0];
        black_box(residual * residual);
        let gradient = [2.0 * residual * x[0], 2.0 * residual * x[1], 2.0 * residual];
        for (momentum, gradient) in momentum.iter_mut().zip(gradient) {
            *momentum = 0.9 * *momentum + gradient;
        }
        weight = [weight[0] - 0.01 * momentum[0], weight[1] - 0.01 * momentum[1]];
        bias -= 0.01 * momentum[2];
    }
    black_box((weight, bias));
    Ok(())
}

/// One scalar parameter.
#[derive(Module, Debug)]
struct Noop {
    parameter: Param<Tensor<1>>,
}

impl Noop {
    fn new(device: &Device) -> Self {
        Self { parameter: Param::from_tensor(Tensor::zeros([1], device)) }
    }
}

struct NoBatch;

impl FromHost for NoBatch {
    type Host = ToyBatch;

    fn from_host(_: ToyBatch, _: &Device) -> Result<Self> {
        Ok(Self)
    }
}

impl LeydenModule for Noop {
    type Batch = NoBatch;

    fn training_step(&self, _: NoBatch, cx: &mut StepCx) -> Result<Loss> {
        let loss = self.parameter.val() * 1.0;
        cx.log("train/loss", &loss).prog_bar();
        Ok(loss.into())
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(SgdConfig::new().init(), 1e-3))
    }
}

fn noop_trainer(steps: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fitted = trainer(folder.path()).build()?.fit_with(Noop::new, &mut ToySource(steps))?;
    assert_eq!(fitted.steps, steps as u64);
    Ok(())
}

/// The same by hand; it reads the loss too, as a loop that shows it does.
fn noop_raw(steps: usize) -> Result<()> {
    let device = Device::default().autodiff();
    let mut model = Noop::new(&device);
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    for batch in Loader::epoch(&toy_rows(steps)?, 0, 0) {
        black_box(batch?);
        let loss = model.parameter.val() * 1.0;
        black_box(loss.clone().try_into_scalar::<f64>()?);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, gradients);
    }
    black_box(model);
    Ok(())
}

/// 784-512-512-10.
#[derive(Module, Debug)]
pub(crate) struct Mlp {
    layers: [Linear; 3],
}

/// A classifier of images.
pub(crate) trait Net: LeydenModule<Batch = LabeledImages> {
    fn new(device: &Device) -> Self;

    fn loss(&self, batch: LabeledImages) -> Tensor<1>;
}

impl Net for Mlp {
    fn new(device: &Device) -> Self {
        Self {
            layers: [[784, 512], [512, 512], [512, 10]].map(|[i, o]| LinearConfig::new(i, o).init(device)),
        }
    }

    fn loss(&self, batch: LabeledImages) -> Tensor<1> {
        let [one, two, three] = &self.layers;
        let x = batch.images.flatten::<2>(1, 2);
        cross_entropy(three.forward(relu(two.forward(relu(one.forward(x))))), batch.labels)
    }
}

impl LeydenModule for Mlp {
    type Batch = LabeledImages;

    fn training_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<Loss> {
        let loss = self.loss(batch);
        cx.log("train/loss", &loss).prog_bar();
        Ok(loss.into())
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(AdamConfig::new().init(), 1e-3))
    }
}

/// Images of noise, in memory: so many, over and over.
pub(crate) struct Noise {
    pixels: Vec<f32>,
    len: usize,
}

impl Noise {
    fn new(len: usize) -> Self {
        let pixel = |k: usize| (k.wrapping_mul(2_654_435_761) % 1024) as f32 / 512.0 - 1.0;
        Self { pixels: (0..NOISE_IMAGES * 784).map(pixel).collect(), len }
    }
}

impl Dataset for Noise {
    type Item = usize;
    type Batch = ImageBatch;

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<usize> {
        Ok(index)
    }

    fn collate(&self, items: Vec<usize>) -> Result<ImageBatch> {
        let rows = items.iter().map(|item| {
            let first = (item % NOISE_IMAGES) * 784;
            &self.pixels[first..first + 784]
        });
        let images = Array::stack(&[28, 28], rows)?;
        Ok(ImageBatch { images, labels: items.iter().map(|&item| (item % 10) as i64).collect() })
    }
}

const NOISE_IMAGES: usize = 4096;

pub(crate) fn images(steps: usize) -> Result<DataLoader<Noise>> {
    DataLoader::builder(Noise::new(64 * steps)).global_batch_size(64).shuffle(true).build()
}

pub(crate) struct NoiseSource(pub(crate) usize);

impl DataModule for NoiseSource {
    type Batch = ImageBatch;

    fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(images(self.0)?.into())
    }
}

fn mlp_trainer(steps: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fitted = trainer(folder.path()).build()?.fit_with(Mlp::new, &mut NoiseSource(steps))?;
    assert_eq!(fitted.steps, steps as u64);
    Ok(())
}

fn mlp_raw(steps: usize) -> Result<()> {
    let device = Device::default().autodiff();
    let mut model = Mlp::new(&device);
    let mut optimizer: ModuleOptimizer = AdamConfig::new().init();
    for batch in Loader::epoch(&images(steps)?, 0, 0) {
        let loss = model.loss(LabeledImages::from_host(batch?.data, &device)?);
        black_box(loss.clone().try_into_scalar::<f64>()?);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, gradients);
    }
    black_box(model);
    Ok(())
}

/// What Lightning adds to a raw PyTorch loop, a step.
fn lightning(work: &str) -> Option<Spread> {
    let value = lightning_json(work)?;
    let overheads = value["rounds"].as_array()?.iter();
    Some(Spread::of(
        overheads.map(|round| Some(round[0].as_f64()? - round[1].as_f64()?)).collect::<Option<_>>()?,
    ))
}

/// A whole `fit` of Lightning, a step.
fn lightning_step(work: &str) -> Option<Spread> {
    let value = lightning_json(work)?;
    let rounds = value["rounds"].as_array()?.iter();
    Some(Spread::of(rounds.map(|round| round[0].as_f64()).collect::<Option<_>>()?))
}

fn lightning_json(work: &str) -> Option<Value> {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/lightning_step.py");
    let steps = if work == "noop" { NOOP_STEPS } else { MLP_STEPS };
    let output = Command::new(python).args([script, work, &steps.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    if value.is_none() {
        let reason = String::from_utf8_lossy(&output.stderr);
        eprintln!("skipped: Lightning, {}", reason.lines().last().unwrap_or("it printed nothing"));
    }
    value
}
