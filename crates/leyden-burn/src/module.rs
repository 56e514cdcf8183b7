//! What a user implements.

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{AllocationProperty, Bytes, Device, Int, Tensor, TensorData};
use leyden_data::{Array, ImageBatch};
use leyden_process::{Error, Result};
use leyden_train::state::NamedTensor;
use leyden_train::{Hook, Outcome, Stage};

use crate::codes::{ARRAY_DIMENSIONS, NOT_IMPLEMENTED};
use crate::optimizers::Optimizers;
use crate::step::StepCx;

/// A Burn module that can be trained: Lightning's `LightningModule`.
///
/// Steps take `&self`: the optimizer changes the parameters, between steps. The forward and backward pass, the
/// upload of batches, train and evaluation mode, and the device are Leyden's business.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `LeydenModule`",
    note = "derive `burn::module::Module` for it and implement `leyden::LeydenModule`: `training_step` and \
            `configure_optimizers` are required",
    note = "`use leyden::prelude::*;` brings the trait into scope"
)]
pub trait LeydenModule: Module + 'static {
    /// A batch on the device.
    type Batch: FromHost;

    /// One batch's loss; log what you want to see. [`Loss::skip`] leaves the batch out.
    fn training_step(&self, batch: Self::Batch, cx: &mut StepCx<'_>) -> Result<Loss>;

    /// One batch of a validation, without gradients, in evaluation mode.
    fn validation_step(&self, batch: Self::Batch, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = (batch, cx);
        Err(not_implemented("validation_step", "val_loader"))
    }

    /// One batch of the test, without gradients, in evaluation mode.
    fn test_step(&self, batch: Self::Batch, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = (batch, cx);
        Err(not_implemented("test_step", "test_loader"))
    }

    /// The optimizer, learning rates and schedule.
    fn configure_optimizers(&self) -> Result<Optimizers>;

    /// Callbacks that see the typed model (a moving average of the weights, unfreezing).
    fn configure_callbacks(&self) -> Vec<Box<dyn ModelCallback<Self>>> {
        Vec::new()
    }

    /// Called first of all, on every stage.
    fn setup(&mut self, stage: Stage) -> Result<()> {
        let _ = stage;
        Ok(())
    }

    /// Every hook comes here first, and goes on to the method of its name. Override it for hooks without one.
    /// `cx` is there where logging is allowed: in the hooks of a training batch or epoch, and at the end of an
    /// evaluation's epoch.
    fn on_hook(&mut self, hook: Hook, cx: Option<&mut StepCx<'_>>) -> Result<()> {
        match (hook, cx) {
            (Hook::FitStart, _) => self.on_fit_start(),
            (Hook::TrainStart, _) => self.on_train_start(),
            (Hook::TrainEpochStart, Some(cx)) => self.on_train_epoch_start(cx),
            (Hook::TrainBatchStart, Some(cx)) => self.on_train_batch_start(cx),
            (Hook::TrainBatchEnd, Some(cx)) => self.on_train_batch_end(cx),
            (Hook::TrainEpochEnd, Some(cx)) => self.on_train_epoch_end(cx),
            (Hook::ValidationEpochEnd, Some(cx)) => self.on_validation_epoch_end(cx),
            (Hook::TestEpochEnd, Some(cx)) => self.on_test_epoch_end(cx),
            (Hook::TrainEnd, _) => self.on_train_end(),
            (Hook::FitEnd, _) => self.on_fit_end(),
            _ => Ok(()),
        }
    }

    /// `fit` begins.
    fn on_fit_start(&mut self) -> Result<()> {
        Ok(())
    }

    /// Training begins, after the sanity check.
    fn on_train_start(&mut self) -> Result<()> {
        Ok(())
    }

    /// A training epoch begins.
    fn on_train_epoch_start(&mut self, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// A training batch is there.
    fn on_train_batch_start(&mut self, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// A training batch is done.
    fn on_train_batch_end(&mut self, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// A training epoch ended; its logged means are about to be computed.
    fn on_train_epoch_end(&mut self, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// A validation's pass ended; its logged means are about to be computed.
    fn on_validation_epoch_end(&mut self, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// The test's pass ended; its logged means are about to be computed.
    fn on_test_epoch_end(&mut self, cx: &mut StepCx<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// Training ended.
    fn on_train_end(&mut self) -> Result<()> {
        Ok(())
    }

    /// `fit` is over; only `teardown` follows.
    fn on_fit_end(&mut self) -> Result<()> {
        Ok(())
    }

    /// The run failed or was interrupted; comes before `teardown`. (Lightning's modules have no such hook.)
    fn on_exception(&mut self, error: &Error) -> Result<()> {
        let _ = error;
        Ok(())
    }

    /// The end, exactly once if `setup` succeeded, on every path that the process survives.
    fn teardown(&mut self, outcome: &Outcome) -> Result<()> {
        let _ = outcome;
        Ok(())
    }
}

/// A module that can predict.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot predict",
    note = "implement `leyden::Predict` for it: the output type and `predict_step`"
)]
pub trait Predict: LeydenModule {
    /// What a batch becomes, on the host.
    type Output: Send + 'static;

    /// One batch, without gradients, in evaluation mode.
    fn predict_step(&self, batch: Self::Batch, cx: &mut StepCx<'_>) -> Result<Self::Output>;
}

/// A batch of tensors, and how it is made of what a loader yields: its `Host` is the `Batch` of the data module.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be made of a host batch",
    note = "implement `leyden::FromHost` for it: `type Host` is what the data module's loaders yield, \
            `from_host` uploads it"
)]
pub trait FromHost: Sized {
    /// What the loader yields: plain host data.
    type Host;

    /// Uploads. `device` is an autodiff device in training and a plain one in evaluation: make every tensor on it.
    fn from_host(host: Self::Host, device: &Device) -> Result<Self>;
}

/// An array of floats; the number of its dimensions must be `D`.
impl<const D: usize> FromHost for Tensor<D> {
    type Host = Array<f32>;

    fn from_host(host: Array<f32>, device: &Device) -> Result<Self> {
        Ok(Tensor::from_data(tensor_data(host, D)?, device))
    }
}

/// An array of whole numbers; the number of its dimensions must be `D`.
impl<const D: usize> FromHost for Tensor<D, Int> {
    type Host = Array<i64>;

    fn from_host(host: Array<i64>, device: &Device) -> Result<Self> {
        Ok(Tensor::from_data(tensor_data(host, D)?, device))
    }
}

/// Two parts, such as inputs and classes.
impl<A: FromHost, B: FromHost> FromHost for (A, B) {
    type Host = (A::Host, B::Host);

    fn from_host((first, second): Self::Host, device: &Device) -> Result<Self> {
        Ok((A::from_host(first, device)?, B::from_host(second, device)?))
    }
}

/// An array as what a tensor of `dimensions` dimensions is made of. It is copied only if it lies in the memory that a worker
/// shares and is small: a large one stays there, and its memory in use, until the tensor and whatever autodiff keeps of it
/// are gone.
fn tensor_data<T: leyden_data::Element + burn::tensor::Element>(
    host: Array<T>,
    dimensions: usize,
) -> Result<TensorData> {
    let shape = host.shape().to_vec();
    if shape.len() == dimensions {
        return Ok(match host.try_into_vec() {
            Ok(elements) => TensorData::new(elements, shape),
            Err(shared) if shared.as_bytes().len() < LENT_FROM => TensorData::new(shared.to_vec(), shape),
            Err(shared) => {
                let bytes = bytes::Bytes::from_owner(Lent(shared));
                TensorData::from_bytes(
                    Bytes::from_shared(bytes, AllocationProperty::Other),
                    shape,
                    T::dtype(),
                )
            }
        });
    }
    Err(Error::new(ARRAY_DIMENSIONS, "an array of a batch has another number of dimensions than its tensor")
        .at("array", format_args!("{shape:?}, {} dimensions", shape.len()))
        .at("tensor", format_args!("{dimensions} dimensions"))
        .hint("change the type of the batch (`Tensor<D>`), or reshape the array in the data set's `collate`"))
}

/// From this size on, in bytes, an array in shared memory is not copied: below it a copy costs less than a slot that stays
/// in use.
const LENT_FROM: usize = 1 << 20;

/// What a tensor keeps of an array that it was made of.
struct Lent<T>(Array<T>);

impl<T: leyden_data::Element> AsRef<[u8]> for Lent<T> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Images with their labels, as [`ImageBatch`](leyden_data::ImageBatch) uploads them.
#[derive(Clone, Debug)]
pub struct LabeledImages {
    /// `[batch, height, width]`.
    pub images: Tensor<3>,
    /// `[batch]`, classes from 0.
    pub labels: Tensor<1, Int>,
}

impl FromHost for LabeledImages {
    type Host = ImageBatch;

    fn from_host(host: ImageBatch, device: &Device) -> Result<Self> {
        let (images, labels) = FromHost::from_host((host.images, host.labels), device)?;
        Ok(Self { images, labels })
    }
}

/// What a training step returns: a scalar tensor to differentiate, or nothing.
#[derive(Clone, Debug)]
#[must_use = "return it from `training_step`"]
pub struct Loss(pub(crate) Option<Tensor<1>>);

impl Loss {
    /// Leaves this batch out: no gradient, no optimizer step for it.
    pub fn skip() -> Self {
        Self(None)
    }
}

impl From<Tensor<1>> for Loss {
    fn from(loss: Tensor<1>) -> Self {
        Self(Some(loss))
    }
}

/// The mean cross entropy of `[batch, classes]` logits against class numbers: PyTorch's `F.cross_entropy`. Burn's
/// `CrossEntropyLossConfig` has the variants (weights, smoothing, padding).
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, labels)
}

/// A callback that sees the typed model; [`LeydenModule::configure_callbacks`] adds it.
pub trait ModelCallback<M> {
    /// Its name: the key of its state.
    fn name(&self) -> String;

    /// Called for each hook that the module gets, before the module. Parameters may be changed.
    fn on_hook(&mut self, hook: Hook, model: &mut M) -> Result<()>;

    /// Tensors to remember over a resume.
    fn state(&self) -> Result<Vec<NamedTensor>> {
        Ok(Vec::new())
    }

    /// Takes back its [`state`](Self::state).
    fn load_state(&mut self, state: Vec<NamedTensor>) -> Result<()> {
        let _ = state;
        Ok(())
    }
}

fn not_implemented(step: &str, loader: &str) -> Error {
    Error::new(NOT_IMPLEMENTED, format!("`{step}` is not implemented"))
        .why(format!("the data module's `{loader}` gave batches for it"))
        .hint(format!("implement `{step}`, or return no loader from `{loader}`"))
}

#[cfg(test)]
mod tests {
    use leyden_data::{DataLoader, Dataset, SampleCx, Workers};
    use serde::{Deserialize, Serialize};

    use super::*;

    /// Rows of this many numbers.
    #[derive(Serialize, Deserialize)]
    struct Wide(usize);

    impl Dataset for Wide {
        type Item = usize;
        type Batch = (Array<f32>, Array<i64>);

        fn len(&self) -> usize {
            256
        }

        fn get(&self, index: usize, _: &mut SampleCx) -> Result<usize> {
            Ok(index)
        }

        fn collate(&self, items: Vec<usize>) -> Result<Self::Batch> {
            let mut rows = Array::zeros(&[items.len(), self.0])?;
            for (row, item) in rows.rows_mut().zip(&items) {
                row.fill(*item as f32);
            }
            Ok((rows, items.iter().map(|&item| item as i64).collect()))
        }
    }

    #[test]
    fn a_large_batch_of_a_worker_becomes_a_tensor_where_it_lies() {
        let device = Device::default();
        for (width, lent) in [(8192, true), (16, false)] {
            let loader = DataLoader::builder(Wide(width)).batch_size(64).workers(Workers::spawn(2));
            let loader = loader.build().unwrap();
            // More than the loader lends: further ones are copied.
            let mut kept: Vec<(Tensor<2>, Tensor<1, Int>)> = Vec::new();
            let mut borrowed = 0;
            for epoch in 0..4 {
                for batch in loader.epoch(epoch) {
                    let host = batch.unwrap().data;
                    let place = host.0.as_ptr();
                    let (rows, items) = <(Tensor<2>, Tensor<1, Int>)>::from_host(host, &device).unwrap();
                    let data = rows.into_data();
                    borrowed += usize::from(data.as_slice::<f32>().unwrap().as_ptr() == place);
                    kept.push((Tensor::from_data(data, &device), items));
                }
            }
            assert_eq!(borrowed > 0, lent, "{borrowed} of 16");
            for (batch, (rows, items)) in kept.into_iter().enumerate() {
                let first = (batch % 4 * 64) as i64;
                // In place where the tensor owns its memory; memory that was lent is copied first.
                let sums = (rows * 2.0).mean_dim(1).into_data();
                let expected: Vec<f32> = (first..first + 64).map(|item| 2.0 * item as f32).collect();
                assert_eq!(sums.as_slice::<f32>().unwrap(), expected);
                assert_eq!(items.into_data().iter::<i64>().next(), Some(first));
            }
        }
    }
}
