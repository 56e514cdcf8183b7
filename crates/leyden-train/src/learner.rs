//! [`Learner`]: one model and its optimizer as the loop sees them, a few verbs and no tensor type.
//!
//! The loop decides *when* (a step, a validation, a save); a learner knows *how*. `leyden-burn` implements it for
//! every `LeydenModule`; [`toy`] is a closed-form one for tests. Whoever writes another runs
//! [`testing::learner_suite`](crate::testing::learner_suite) on it.

pub mod toy;

use std::any::Any;

use leyden_process::{Error, Result};

use crate::event::Hook;
use crate::outcome::Outcome;
use crate::scalar::Scalar;
use crate::schedule::Interval;
use crate::state::{DType, LearnerState, NamedTensor, Parts};
use crate::step::StepCx;

/// One model and its optimizer. `H` is the *host* batch: what a loader makes, before any upload.
///
/// Not here on purpose: reduction over ranks (the loop does it through [`visit_gradients`](HasGradients::visit_gradients))
/// and the choice of the moment. Manual optimisation will be one more verb, `manual_step`, beside `train`.
pub trait Learner<H>: LearnerView + HasGradients {
    /// Called once before anything else, when the device may be touched. `seed` is the run's. If it succeeds,
    /// [`teardown`](Self::teardown) will be called.
    fn setup(&mut self, stage: Stage, seed: u64) -> Result<()>;

    /// Builds optimizers and schedules; called for [`Stage::Fit`] after `setup`, and before a checkpoint is loaded.
    fn configure_optimizers(&mut self) -> Result<()>;

    /// Forward and backward; the gradients are *added* to those of the current window.
    fn train(&mut self, batch: H, cx: &mut StepCx<'_>) -> Result<Trained>;

    /// One step of validation or test ([`StepCx::stage`] tells), without gradients, in evaluation mode.
    fn evaluate(&mut self, batch: H, cx: &mut StepCx<'_>) -> Result<()>;

    /// One step of prediction; the value's type is the module's own.
    fn predict(&mut self, batch: H, cx: &mut StepCx<'_>) -> Result<Box<dyn Any + Send>>;

    /// Divides the gradient sums by `update.accumulated`, clips, steps the optimizer; no gradient is left.
    fn apply(&mut self, update: &Update) -> Result<()>;

    /// Advances the learning-rate schedules of the interval that ended: an optimizer step, or an epoch with its
    /// validations; `metric` looks up what a plateau schedule watches.
    fn advance(&mut self, due: Interval, metric: &dyn Fn(&str) -> Option<f64>) -> Result<()>;

    /// What training changes besides the optimizer, such as running means: the tensors that are not trained.
    fn buffers(&mut self) -> Result<Vec<NamedTensor>> {
        let parameters = self.parameters();
        if parameters.iter().all(|parameter| parameter.trainable) {
            return Ok(Vec::new());
        }
        let trained = |tensor: &NamedTensor| {
            parameters.iter().any(|parameter| parameter.trainable && parameter.path == tensor.name)
        };
        let mut tensors = self.state(Parts::Weights)?.weights;
        tensors.retain(|tensor| !trained(tensor));
        Ok(tensors)
    }

    /// Takes back its [`buffers`](Self::buffers), or those of another rank.
    fn load_buffers(&mut self, buffers: Vec<NamedTensor>) -> Result<()> {
        if buffers.is_empty() {
            return Ok(());
        }
        let mut state = self.state(Parts::Weights)?;
        for tensor in &mut state.weights {
            if let Some(buffer) = buffers.iter().find(|buffer| buffer.name == tensor.name) {
                tensor.clone_from(buffer);
            }
        }
        self.load(state, Parts::Weights)
    }

    /// The module's own hook; `cx` is there where logging is allowed.
    fn hook(&mut self, hook: Hook, cx: Option<&mut StepCx<'_>>) -> Result<()>;

    /// Everything to save.
    fn state(&mut self, parts: Parts) -> Result<LearnerState>;

    /// Takes back what [`state`](Self::state) gave; tensors that do not fit are an error naming all of them.
    fn load(&mut self, state: LearnerState, parts: Parts) -> Result<()>;

    /// The run failed or was interrupted; comes before [`teardown`](Self::teardown).
    fn on_exception(&mut self, error: &Error) -> Result<()>;

    /// The end, once for each `setup` that succeeded.
    fn teardown(&mut self, outcome: &Outcome) -> Result<()>;
}

/// What has the gradients of a model: a learner, or what stands for a model in a hand-written loop.
pub trait HasGradients {
    /// Shows each trainable parameter's gradient sum, in declaration order, for inspection or change.
    fn visit_gradients(&mut self, visit: &mut dyn FnMut(Gradient<'_>) -> Result<()>) -> Result<()>;

    /// Gives each trainable parameter that has no gradient, and for whose path `of` says so, one of zeros.
    fn zero_gradients(&mut self, of: &dyn Fn(&str) -> bool);

    /// Forgets the gradients of the present window (PyTorch: `zero_grad`).
    fn clear_gradients(&mut self);
}

/// What callbacks may see of a learner: names, shapes, bytes.
pub trait LearnerView {
    /// All parameters and buffers in declaration order.
    fn parameters(&self) -> Vec<Parameter>;

    /// The modules of the model, outermost first, in declaration order.
    fn layers(&self) -> Vec<Layer>;

    /// The present learning rate of each parameter group; the first is the base group.
    fn learning_rates(&self) -> Vec<(String, f64)>;

    /// A copy of one parameter.
    fn weight(&self, path: &str) -> Result<Option<NamedTensor>>;

    /// Where it computes, for the plan: `Flex`, `Cuda(0)`.
    fn device(&self) -> String;
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Training, with its validations.
    Fit,
    /// A validation by itself.
    Validate,
    /// The test.
    Test,
    /// Prediction.
    Predict,
}

impl Stage {
    /// `fit`, `validate`, `test`, `predict`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fit => "fit",
            Self::Validate => "validate",
            Self::Test => "test",
            Self::Predict => "predict",
        }
    }
}

/// What [`Learner::train`] did.
#[derive(Debug)]
pub enum Trained {
    /// Gradients were added; this was the loss.
    Loss(Scalar),
    /// The module had nothing to learn from this batch.
    Skipped,
}

/// How [`Learner::apply`] is to use the gradient sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Batches whose gradients are in the sum, at least 1: the optimizer sees their mean.
    pub accumulated: u32,
    /// Clipping, after the division.
    pub clip: Option<GradientClip>,
}

/// Gradient clipping, as `torch.nn.utils.clip_grad_norm_` and `clip_grad_value_`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientClip {
    /// Scales all gradients together so that the norm of the whole is at most this (> 0).
    Norm(f64),
    /// Clamps each element to ± this (> 0).
    Value(f64),
}

/// One parameter's gradient sum, borrowed from the learner.
#[derive(Debug)]
pub struct Gradient<'a> {
    /// The parameter's path.
    pub path: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// The values; `None` when no gradient reached the parameter.
    pub values: Option<GradientValues<'a>>,
}

/// Gradient values in the element type that the engine computes in.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
#[non_exhaustive]
pub enum GradientValues<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
}

impl GradientValues<'_> {
    /// The index of the first element that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<usize> {
        match self {
            Self::F32(values) => values.iter().position(|value| !value.is_finite()),
            Self::F64(values) => values.iter().position(|value| !value.is_finite()),
        }
    }
}

/// One parameter or buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Path in the model: `encoder.layers.0.weight`.
    pub path: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Whether the optimizer changes it.
    pub trainable: bool,
}

impl Parameter {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One module of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Path: `encoder.layers.0`; the model itself has the empty path.
    pub path: String,
    /// Type: `Linear`.
    pub kind: String,
}
