//! [`StepCx`]: where a step logs tensors and numbers.

use std::any::Any;

use burn::tensor::{Device, Int, Tensor};
use leyden_process::{Error, Result};
use leyden_train::metric::{ConfusionMatrix, Metric};
use leyden_train::{DeviceScalar, LogHandle, Scalar, Stage, StepFacts};

use crate::codes::UNUSABLE_TENSOR;
use crate::module::{Loss, cross_entropy};

/// The context of one step: where it is, and where it logs.
#[derive(Debug)]
pub struct StepCx<'a> {
    inner: leyden_train::StepCx<'a>,
}

impl<'a> StepCx<'a> {
    pub(crate) fn new(inner: leyden_train::StepCx<'a>) -> Self {
        Self { inner }
    }

    /// Logs a number, or a tensor of one element (which is detached: logging keeps no graph alive).
    ///
    /// In a training step it is logged at the step level, in evaluation steps and epoch hooks at the epoch level, as
    /// the mean weighted by batch size. The handle changes that:
    /// `cx.log("train/loss", &loss).prog_bar().on_epoch(true);`
    ///
    /// On the CPU a tensor is read at once; on other devices it stays there until somebody needs the value.
    pub fn log(&mut self, name: &str, value: impl Loggable) -> LogHandle<'_> {
        let value = value.into_scalar().unwrap_or_else(|error| {
            self.inner.fail(error.at("logged", format!("`{name}`")));
            Scalar::Host(f64::NAN)
        });
        self.inner.log(name, value)
    }

    /// The metric of that name, made by `make` when the epoch first asks for it; its values, exact over all the
    /// epoch's samples, are logged when the epoch ends.
    ///
    /// # Errors
    /// `T0203` if the name belongs to a metric of another type.
    pub fn metric<M: Metric>(&mut self, name: &str, make: impl FnOnce() -> M) -> Result<&mut M> {
        self.inner.metric(name, make)
    }

    /// Logs all of a batch of classifications under one name: `<name>/loss`, the mean cross entropy, and what a
    /// [`ConfusionMatrix`] counts, `<name>/accuracy`, `/f1`, `/precision` and `/recall`, when the epoch ends: exact
    /// over all its samples. `logits` is `[batch, classes]`. For validation and test steps.
    ///
    /// # Errors
    /// `T0502` for a label that is no class; a failure of the device.
    pub fn log_classification(
        &mut self,
        name: &str,
        logits: Tensor<2>,
        labels: Tensor<1, Int>,
    ) -> Result<()> {
        let [_, classes] = logits.dims();
        let matrix = self.metric(name, || ConfusionMatrix::new(classes))?;
        matrix.update(&predicted_classes(&logits)?, &class_ids(&labels)?)?;
        self.log(&format!("{name}/loss"), cross_entropy(logits, labels));
        Ok(())
    }

    /// What the run is for; validation inside `fit` says [`Stage::Validate`].
    pub fn stage(&self) -> Stage {
        self.inner.stage()
    }

    /// Index of the training epoch.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    /// Index of the batch in its epoch.
    pub fn batch_index(&self) -> usize {
        self.inner.batch_index()
    }

    /// Samples in the batch.
    pub fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    /// Optimizer steps made so far.
    pub fn global_step(&self) -> u64 {
        self.inner.global_step()
    }

    /// A seed that belongs to this run, stage and batch alone: the same after a resume.
    pub fn seed(&self) -> u64 {
        self.inner.seed()
    }

    /// Which of several evaluation loaders the batch is from.
    pub fn dataloader_index(&self) -> usize {
        self.inner.dataloader_index()
    }

    /// All the facts at once.
    pub fn facts(&self) -> &StepFacts {
        self.inner.facts()
    }
}

/// What [`StepCx::log`] takes: numbers, one-element tensors, losses.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be logged",
    note = "log a number, a `&Tensor` of one element, or a `&Loss`"
)]
pub trait Loggable {
    /// The number, or a handle on it.
    fn into_scalar(self) -> Result<Scalar>;
}

macro_rules! loggable_numbers {
    ($($kind:ty),*) => {$(
        impl Loggable for $kind {
            fn into_scalar(self) -> Result<Scalar> {
                Ok(self.into())
            }
        }
    )*};
}
loggable_numbers!(f32, f64, i32, i64, u32, u64, usize);

impl<const D: usize> Loggable for &Tensor<D> {
    fn into_scalar(self) -> Result<Scalar> {
        if self.shape().num_elements() != 1 {
            return Err(Error::new(UNUSABLE_TENSOR, "a logged tensor is no single number")
                .why(format!("its shape is {:?}", self.dims()))
                .hint("log its `.mean()`, or each element under a name of its own"));
        }
        let value = self.clone().without_autodiff().reshape([1]);
        match is_cpu(&value.device()) {
            true => read(&value).map(Scalar::Host),
            false => Ok(Scalar::Device(Box::new(OnDevice(value)))),
        }
    }
}

impl<const D: usize> Loggable for Tensor<D> {
    fn into_scalar(self) -> Result<Scalar> {
        (&self).into_scalar()
    }
}

impl Loggable for &Loss {
    fn into_scalar(self) -> Result<Scalar> {
        match &self.0 {
            Some(loss) => loss.into_scalar(),
            None => Ok(Scalar::Host(f64::NAN)),
        }
    }
}

/// A number that is still on its device.
struct OnDevice(Tensor<1>);

impl DeviceScalar for OnDevice {
    fn read(&self) -> Result<f64> {
        read(&self.0)
    }

    fn scaled(&self, factor: f64) -> Box<dyn DeviceScalar> {
        Box::new(Self(self.0.clone().mul_scalar(factor)))
    }

    fn plus(&self, other: &dyn DeviceScalar) -> Option<Box<dyn DeviceScalar>> {
        let other = (other as &dyn Any).downcast_ref::<Self>()?;
        (self.0.device() == other.0.device() && self.0.dtype() == other.0.dtype())
            .then(|| Box::new(Self(self.0.clone() + other.0.clone())) as Box<dyn DeviceScalar>)
    }
}

fn read(value: &Tensor<1>) -> Result<f64> {
    Ok(value.clone().try_into_scalar::<f64>()?)
}

/// Whether reading a value costs nothing: the pure-Rust CPU engine computes at once.
pub(crate) fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

/// The class with the largest logit of each row; ties go to the first.
///
/// # Errors
/// A failure of the device.
pub fn predicted_classes(logits: &Tensor<2>) -> Result<Vec<usize>> {
    let [rows, _] = logits.dims();
    class_ids(&logits.clone().without_autodiff().argmax(1).reshape([rows]))
}

/// Class numbers on the host.
///
/// # Errors
/// A failure of the device, or a negative number.
pub fn class_ids(labels: &Tensor<1, Int>) -> Result<Vec<usize>> {
    let data = labels.clone().without_autodiff().try_into_data()?;
    data.iter::<i64>()
        .map(|label| {
            usize::try_from(label).map_err(|_| {
                Error::new(UNUSABLE_TENSOR, "a class number is negative")
                    .why(format!("it is {label}"))
                    .hint("number the classes from 0")
            })
        })
        .collect()
}
