//! [`ModuleLearner`]: a [`LeydenModule`] and its optimizer as the loop's `Learner`.

use std::any::Any;

use burn::optim::GradientsParams;
use burn::tensor::Device;
use leyden_process::{Error, Result};
use leyden_train::learner::{
    Gradient, HasGradients, Layer, Learner, LearnerView, Parameter, Trained, Update,
};
use leyden_train::schedule::Interval;
use leyden_train::state::{LearnerState, NamedTensor, Parts};
use leyden_train::{Hook, Outcome, Stage};
use serde_json::Value;

use crate::codes::{MODEL_LOST, NOT_IMPLEMENTED};
use crate::fabric::check_loss;
use crate::module::{FromHost, LeydenModule, ModelCallback, Predict};
use crate::optimizers::Optimizers;
use crate::step::{Loggable, StepCx};
use crate::tensors::{self, GradientMap};

type HostOf<M> = <<M as LeydenModule>::Batch as FromHost>::Host;
type PredictStep<M> = fn(&M, <M as LeydenModule>::Batch, &mut StepCx<'_>) -> Result<Box<dyn Any + Send>>;

/// A model, its optimizer, and the gradients of the present window.
///
/// `Trainer::fit` makes one; a hand-written loop may too, and drive it by the verbs of `Learner`.
pub struct ModuleLearner<M: LeydenModule> {
    /// Gone only while the optimizer changes it: a panic there loses it.
    model: Option<M>,
    optimizers: Option<Optimizers>,
    gradients: Option<GradientsParams>,
    /// The model in evaluation mode, for one evaluation.
    evaluating: Option<M>,
    predict_step: Option<PredictStep<M>>,
    callbacks: Vec<Box<dyn ModelCallback<M>>>,
    /// The plain device; training computes on its autodiff counterpart.
    device: Device,
}

impl<M: LeydenModule> ModuleLearner<M> {
    /// Takes a model, on whatever device it is. Burn makes initial weights when they are first used; this uses them
    /// all, so that they come from the seed that was in force when the model was built, not from the run's.
    pub fn new(model: M) -> Self {
        tensors::initialize(&model);
        let device = model.devices().into_iter().next().unwrap_or_default().without_autodiff();
        Self {
            model: Some(model),
            optimizers: None,
            gradients: None,
            evaluating: None,
            predict_step: None,
            callbacks: Vec::new(),
            device,
        }
    }

    /// The same, able to predict.
    pub fn predicting(model: M) -> Self
    where
        M: Predict,
    {
        let step: PredictStep<M> = |model, batch, cx| Ok(Box::new(model.predict_step(batch, cx)?));
        Self { predict_step: Some(step), ..Self::new(model) }
    }

    /// The model, unless a panic of the engine lost it.
    pub fn model(&self) -> Option<&M> {
        self.model.as_ref()
    }

    /// Gives the model back.
    pub fn into_model(self) -> Option<M> {
        self.model
    }

    fn present(&self) -> Result<&M> {
        self.model.as_ref().ok_or_else(lost)
    }

    fn take(&mut self) -> Result<M> {
        self.evaluating = None;
        self.model.take().ok_or_else(lost)
    }

    fn present_mut(&mut self) -> Result<&mut M> {
        self.evaluating = None;
        self.model.as_mut().ok_or_else(lost)
    }

    /// The model in evaluation mode: made once for all the batches of an evaluation.
    fn evaluating(&mut self) -> Result<&M> {
        let snapshot = match self.evaluating.take() {
            Some(snapshot) => snapshot,
            None => self.present()?.valid(),
        };
        Ok(self.evaluating.insert(snapshot))
    }

    fn callback_state(&self) -> Result<Vec<NamedTensor>> {
        let mut all = Vec::new();
        for callback in &self.callbacks {
            let prefix = format!("{CALLBACK}{}/", callback.name());
            all.extend(
                callback
                    .state()?
                    .into_iter()
                    .map(|tensor| NamedTensor { name: format!("{prefix}{}", tensor.name), ..tensor }),
            );
        }
        Ok(all)
    }

    fn load_callbacks(&mut self, tensors: &[NamedTensor]) -> Result<()> {
        for callback in &mut self.callbacks {
            let prefix = format!("{CALLBACK}{}/", callback.name());
            let own = tensors.iter().filter_map(|tensor| {
                let name = tensor.name.strip_prefix(&prefix)?.to_owned();
                Some(NamedTensor { name, ..tensor.clone() })
            });
            callback.load_state(own.collect())?;
        }
        Ok(())
    }
}

impl<M: LeydenModule> Learner<HostOf<M>> for ModuleLearner<M> {
    fn setup(&mut self, stage: Stage, seed: u64) -> Result<()> {
        self.device.seed(seed);
        // In place, so that a panic in the user's code does not lose the model.
        let prepared = self.present_mut()?.setup(stage);
        let model = self.take()?;
        self.model = Some(match stage {
            // From validation mode, so that a model on an autodiff device and one on a plain device end up alike.
            Stage::Fit => model.valid().train(),
            _ => model,
        });
        prepared?;
        self.gradients = None;
        Ok(())
    }

    fn configure_optimizers(&mut self) -> Result<()> {
        let model = self.present()?;
        let mut optimizers = model.configure_optimizers()?;
        optimizers.begin(&tensors::parameters(model))?;
        self.callbacks = model.configure_callbacks();
        self.optimizers = Some(optimizers);
        Ok(())
    }

    fn train(&mut self, batch: HostOf<M>, cx: &mut leyden_train::StepCx<'_>) -> Result<Trained> {
        // Burn's random state cannot be saved, so each batch begins with one of its own: a resumed run has the same.
        self.device.seed(cx.seed());
        let batch = M::Batch::from_host(batch, &self.device.clone().autodiff())?;
        let model = self.present()?;
        let loss = model.training_step(batch, &mut StepCx::new(cx.reborrow()))?;
        let Some(loss) = loss.0 else { return Ok(Trained::Skipped) };
        check_loss(&loss)?;
        let value = (&loss).into_scalar()?;
        let new = GradientsParams::from_grads(loss.backward(), model);
        match &mut self.gradients {
            None => self.gradients = Some(new),
            Some(sum) => {
                let model = self.model.as_ref().ok_or_else(lost)?;
                tensors::add_gradients(model, sum, new);
            }
        }
        Ok(Trained::Loss(value))
    }

    fn evaluate(&mut self, batch: HostOf<M>, cx: &mut leyden_train::StepCx<'_>) -> Result<()> {
        self.device.seed(cx.seed());
        let batch = M::Batch::from_host(batch, &self.device)?;
        let stage = cx.stage();
        let cx = &mut StepCx::new(cx.reborrow());
        let model = self.evaluating()?;
        match stage {
            Stage::Test => model.test_step(batch, cx),
            _ => model.validation_step(batch, cx),
        }
    }

    fn predict(
        &mut self,
        batch: HostOf<M>,
        cx: &mut leyden_train::StepCx<'_>,
    ) -> Result<Box<dyn Any + Send>> {
        self.device.seed(cx.seed());
        let batch = M::Batch::from_host(batch, &self.device)?;
        let step = self.predict_step.ok_or_else(|| {
            Error::new(NOT_IMPLEMENTED, "the learner was not made to predict")
                .hint("make it with `ModuleLearner::predicting`, for a model that implements `Predict`")
        })?;
        step(self.evaluating()?, batch, &mut StepCx::new(cx.reborrow()))
    }

    fn apply(&mut self, update: &Update) -> Result<()> {
        let Some(mut gradients) = self.gradients.take() else { return Ok(()) };
        if update.accumulated > 1 {
            let divide = GradientMap::Divide(f64::from(update.accumulated));
            tensors::map_gradients(self.present()?, &mut gradients, divide);
        }
        if let Some(clip) = update.clip {
            tensors::clip_gradients(self.present()?, &mut gradients, clip)?;
        }
        let Some(optimizers) = &mut self.optimizers else {
            return Err(Error::new(NOT_IMPLEMENTED, "the learner has no optimizer yet")
                .hint("call `setup(Stage::Fit, ..)` and `configure_optimizers` before `apply`"));
        };
        let model = self.model.take().ok_or_else(lost)?;
        self.evaluating = None;
        let (optimizer, rates) = optimizers.step_rates();
        self.model = Some(optimizer.step(rates, model, gradients));
        Ok(())
    }

    fn advance(&mut self, due: Interval, metric: &dyn Fn(&str) -> Option<f64>) -> Result<()> {
        self.optimizers.as_mut().map_or(Ok(()), |optimizers| optimizers.advance(due, metric))
    }

    fn hook(&mut self, hook: Hook, cx: Option<&mut leyden_train::StepCx<'_>>) -> Result<()> {
        for index in 0..self.callbacks.len() {
            self.evaluating = None;
            let model = self.model.as_mut().ok_or_else(lost)?;
            self.callbacks[index].on_hook(hook, model)?;
        }
        // An evaluation uses one snapshot, made when it starts: what later hooks change is seen by the next one.
        if matches!(hook, Hook::ValidationStart | Hook::TestStart | Hook::PredictStart) {
            self.evaluating = None;
        }
        let model = self.model.as_mut().ok_or_else(lost)?;
        match cx {
            Some(cx) => model.on_hook(hook, Some(&mut StepCx::new(cx.reborrow()))),
            None => model.on_hook(hook, None),
        }
    }

    fn state(&mut self, parts: Parts) -> Result<LearnerState> {
        let model = self.present()?;
        let weights = tensors::named_tensors(model)?;
        if parts == Parts::Weights {
            return Ok(LearnerState { weights, ..LearnerState::default() });
        }
        let (mut optimizer, values) = match &self.optimizers {
            Some(optimizers) => optimizers.state(&tensors::parameters(model))?,
            None => (Vec::new(), Value::Null),
        };
        optimizer.extend(self.callback_state()?);
        let gradients = match &self.gradients {
            Some(gradients) => tensors::named_gradients(model, gradients)?,
            None => Vec::new(),
        };
        Ok(LearnerState { weights, optimizer, gradients, values })
    }

    fn load(&mut self, state: LearnerState, parts: Parts) -> Result<()> {
        // A clone shares the tensors; it is there in case the checkpoint does not fit.
        let model = tensors::load_tensors(self.present()?.clone(), &state.weights)?;
        if parts == Parts::All {
            let parameters = tensors::parameters(&model);
            let (of_callbacks, of_optimizer): (Vec<_>, Vec<_>) =
                state.optimizer.into_iter().partition(|tensor| tensor.name.starts_with(CALLBACK));
            if let Some(optimizers) = self.optimizers.take() {
                self.optimizers = Some(optimizers.load(&of_optimizer, &state.values, &parameters)?);
            }
            self.load_callbacks(&of_callbacks)?;
            self.gradients = match state.gradients.is_empty() {
                true => None,
                false => Some(tensors::gradients_from(&model, &state.gradients, &self.device)?),
            };
        }
        (self.model, self.evaluating) = (Some(model), None);
        Ok(())
    }

    fn on_exception(&mut self, error: &Error) -> Result<()> {
        // A model that the engine lost has nothing to be told.
        self.model.as_mut().map_or(Ok(()), |model| model.on_exception(error))
    }

    fn teardown(&mut self, outcome: &Outcome) -> Result<()> {
        self.model.as_mut().map_or(Ok(()), |model| model.teardown(outcome))
    }
}

impl<M: LeydenModule> HasGradients for ModuleLearner<M> {
    fn visit_gradients(&mut self, visit: &mut dyn FnMut(Gradient<'_>) -> Result<()>) -> Result<()> {
        let mut gradients = self.gradients.take();
        let mut none = GradientsParams::new();
        let result =
            tensors::visit_gradients(self.present()?, gradients.as_mut().unwrap_or(&mut none), visit);
        self.gradients = gradients;
        result
    }

    fn zero_gradients(&mut self, of: &dyn Fn(&str) -> bool) {
        let gradients = self.gradients.get_or_insert_with(GradientsParams::new);
        if let Some(model) = &self.model {
            tensors::zero_gradients(model, gradients, of);
        }
    }

    fn clear_gradients(&mut self) {
        self.gradients = None;
    }
}

impl<M: LeydenModule> LearnerView for ModuleLearner<M> {
    fn parameters(&self) -> Vec<Parameter> {
        match &self.model {
            Some(model) => tensors::parameters(model).into_iter().map(|(_, parameter)| parameter).collect(),
            None => Vec::new(),
        }
    }

    fn layers(&self) -> Vec<Layer> {
        self.model.as_ref().map(tensors::layers).unwrap_or_default()
    }

    fn learning_rates(&self) -> Vec<(String, f64)> {
        self.optimizers.as_ref().map(Optimizers::rates).unwrap_or_default()
    }

    fn weight(&self, path: &str) -> Result<Option<NamedTensor>> {
        let all = tensors::named_tensors(self.present()?)?;
        Ok(all.into_iter().find(|tensor| tensor.name == path))
    }

    fn device(&self) -> String {
        format!("{:?}", self.device)
    }
}

fn lost() -> Error {
    Error::new(MODEL_LOST, "the model is gone")
        .why("the engine panicked while the optimizer was changing it, and took it along")
        .hint("build it anew, and resume from the last checkpoint")
}

/// What the tensors of model callbacks are named with in a checkpoint's optimizer part.
const CALLBACK: &str = "callback:";
