//! The model and data that the tests share: small, but with dropout and a BatchNorm, whose hidden state a resume
//! must bring back too.

use std::sync::{Mutex, MutexGuard};

use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig};
use burn::optim::AdamConfig;
use burn::tensor::activation::relu;
use leyden::prelude::*;

/// 6 features, 3 classes.
#[derive(Module, Debug)]
pub(crate) struct Net {
    pub(crate) first: Linear,
    pub(crate) norm: BatchNorm,
    pub(crate) dropout: Dropout,
    pub(crate) second: Linear,
}

impl Net {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            first: LinearConfig::new(6, 8).init(device),
            norm: BatchNormConfig::new(8).init(device),
            dropout: DropoutConfig::new(0.25).init(),
            second: LinearConfig::new(8, 3).init(device),
        }
    }

    pub(crate) fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let hidden = relu(self.norm.forward(self.first.forward(features)));
        self.second.forward(self.dropout.forward(hidden))
    }
}

/// Features and classes on the device.
pub(crate) struct Rows {
    pub(crate) features: Tensor<2>,
    pub(crate) classes: Tensor<1, Int>,
}

impl FromHost for Rows {
    type Host = HostRows;

    fn from_host(host: HostRows, device: &Device) -> Result<Self> {
        let rows = host.classes.len();
        let features = Tensor::from_data(TensorData::new(host.features, [rows, 6]), device);
        Ok(Self { features, classes: Tensor::from_data(TensorData::new(host.classes, [rows]), device) })
    }
}

impl LeydenModule for Net {
    type Batch = Rows;

    fn training_step(&self, batch: Rows, cx: &mut StepCx) -> Result<Loss> {
        let loss = cross_entropy(self.forward(batch.features), batch.classes);
        cx.log("train/loss", &loss).prog_bar().on_epoch(true);
        Ok(loss.into())
    }

    fn validation_step(&self, batch: Rows, cx: &mut StepCx) -> Result<()> {
        cx.log_classification("val", self.forward(batch.features), batch.classes)
    }

    fn test_step(&self, batch: Rows, cx: &mut StepCx) -> Result<()> {
        cx.log_classification("test", self.forward(batch.features), batch.classes)
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(AdamConfig::new().init(), 1e-2).schedule(Interval::Step, OneCycle::new(2e-2, 200)))
    }
}

impl Predict for Net {
    type Output = Vec<usize>;

    fn predict_step(&self, batch: Rows, _: &mut StepCx) -> Result<Vec<usize>> {
        predicted_classes(&self.forward(batch.features))
    }
}

/// What the loader yields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostRows {
    pub(crate) features: Vec<f32>,
    pub(crate) classes: Vec<i64>,
}

/// Rows made from their index, with noise of the sample's own generator.
#[derive(Clone)]
pub(crate) struct Points(pub(crate) usize);

impl Dataset for Points {
    type Item = ([f32; 6], i64);
    type Batch = HostRows;

    fn len(&self) -> usize {
        self.0
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        let class = index % 3;
        let noise = cx.rng();
        let feature = |k: usize| if k % 3 == class { 1.0 } else { 0.0 };
        Ok((std::array::from_fn(|k| feature(k) + 0.5 * noise.normal() as f32), class as i64))
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<HostRows> {
        Ok(HostRows {
            features: items.iter().flat_map(|(features, _)| *features).collect(),
            classes: items.iter().map(|(_, class)| *class).collect(),
        })
    }
}

/// A data module over [`Points`].
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) batch_size: usize,
    pub(crate) train: usize,
    pub(crate) eval: usize,
}

impl Default for Source {
    fn default() -> Self {
        Self { batch_size: 8, train: 60, eval: 30 }
    }
}

impl Source {
    pub(crate) fn training(&self, seed: u64) -> Result<DataLoader<Points>> {
        DataLoader::builder(Points(self.train)).batch_size(self.batch_size).shuffle(true).seed(seed).build()
    }

    fn evaluating(&self) -> Result<Loaders<HostRows>> {
        Ok(DataLoader::builder(Points(self.eval)).batch_size(16).seed(99).build()?.into())
    }
}

impl DataModule for Source {
    type Batch = HostRows;

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<HostRows>> {
        Ok(self.training(cx.seed)?.into())
    }

    fn val_loader(&mut self, _: &LoaderCx) -> Result<Loaders<HostRows>> {
        self.evaluating()
    }

    fn test_loader(&mut self, _: &LoaderCx) -> Result<Loaders<HostRows>> {
        self.evaluating()
    }

    fn predict_loader(&mut self, _: &LoaderCx) -> Result<Loaders<HostRows>> {
        self.evaluating()
    }
}

/// Burn's CPU engine has one random generator for the whole process, so tests that compare bits train one at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A quiet trainer that writes to `folder`.
pub(crate) fn quiet(folder: &std::path::Path) -> leyden::TrainerBuilder {
    Trainer::builder().root_dir(folder).enable_progress_bar(false).enable_model_summary(false)
}

/// The same, that writes nothing.
pub(crate) fn dry() -> leyden::TrainerBuilder {
    quiet(std::path::Path::new("unused")).enable_checkpointing(false).no_logger()
}

/// All the weights' bits.
pub(crate) fn bits<M: Module>(model: &M) -> Vec<(String, Vec<u8>)> {
    let tensors = leyden::named_tensors(model).expect("a model on the CPU can be read");
    tensors.into_iter().map(|tensor| (tensor.name, tensor.bytes)).collect()
}
