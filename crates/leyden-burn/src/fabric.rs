//! [`RankExt`]: what a hand-written loop does with Burn's models on several ranks.

use std::fmt;
use std::marker::PhantomData;

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use leyden_process::{Error, Result};
use leyden_train::learner::{Gradient, HasGradients};
use leyden_train::state::LearnerState;
use leyden_train::{GradientClip, Rank};

use crate::codes::{UNTRACKED_LOSS, UNUSABLE_TENSOR};
use crate::optimizers::Optimizers;
use crate::tensors::{self, GradientMap};

/// What a launched [`Rank`] does with Burn's models (Lightning: `Fabric`'s `setup`, `backward` and the like). In the prelude.
///
/// Gradients are [`Local`] until they are [reduced](Self::reduce), and an optimizer takes only those that are: to forget it
/// does not compile.
///
/// ```compile_fail
/// # use leyden_burn::{burn::{module::Module, tensor::Tensor}, FabricOptimizer, RankExt};
/// # use leyden_train::Rank;
/// # fn f<M: Module>(rank: &mut Rank, model: M, mut optimizer: FabricOptimizer, loss: Tensor<1>) -> leyden_process::Result<M> {
/// let gradients = rank.backward(&model, loss)?;
/// optimizer.step(1e-3, model, gradients) // they are `Local`
/// # }
/// ```
pub trait RankExt {
    /// Takes a model and its optimizer in: checks that all ranks have the same parameters, gives each the weights of rank 0,
    /// and makes the model ready to be trained.
    ///
    /// # Errors
    /// `D0401`, on all ranks, with all that differs; those of any collective; a failure of the device.
    #[track_caller]
    fn setup<M: Module>(
        &mut self,
        model: M,
        optimizer: impl Into<ModuleOptimizer>,
    ) -> Result<(M, FabricOptimizer)>;

    /// The gradients of a loss on this rank.
    ///
    /// # Errors
    /// `T0704` if the loss depends on no parameter, `T0703` if it is no single number.
    fn backward<M: Module>(&self, model: &M, loss: Tensor<1>) -> Result<Grads<Local>>;

    /// The mean of the gradients of all ranks, the same bits on each of them: over the batches that each has accumulated.
    ///
    /// # Errors
    /// `D0402`, on all ranks, if a parameter has a gradient on some ranks alone; those of any collective.
    #[track_caller]
    fn reduce<M: Module>(&mut self, model: &M, gradients: Grads<Local>) -> Result<Grads<Reduced>>;

    /// Clips gradients (PyTorch: `clip_grad_norm_`, `clip_grad_value_`): after the reduction, as those of one rank would be.
    ///
    /// # Errors
    /// A failure of the device.
    fn clip<M: Module>(
        &self,
        model: &M,
        gradients: Grads<Reduced>,
        clip: GradientClip,
    ) -> Result<Grads<Reduced>>;
}

/// Gradients of one rank's batches, before [`RankExt::reduce`].
#[derive(Debug)]
pub enum Local {}

/// Gradients of all ranks together.
#[derive(Debug)]
pub enum Reduced {}

/// The gradients of a model: [`Local`] or [`Reduced`].
#[must_use = "reduce them, and step the optimizer with them"]
pub struct Grads<S> {
    values: GradientsParams,
    batches: u32,
    state: PhantomData<S>,
}

impl Grads<Local> {
    /// Adds those of another batch: nothing crosses to other ranks until they are reduced (Lightning: `no_backward_sync`).
    pub fn add<M: Module>(mut self, model: &M, other: Self) -> Self {
        tensors::add_gradients(model, &mut self.values, other.values);
        self.batches += other.batches;
        self
    }
}

impl<S> Grads<S> {
    /// Burn's gradients.
    pub fn into_inner(self) -> GradientsParams {
        self.values
    }

    fn new(values: GradientsParams, batches: u32) -> Self {
        Self { values, batches, state: PhantomData }
    }
}

/// An optimizer that [`RankExt::setup`] has taken in.
pub struct FabricOptimizer {
    inner: Optimizers,
}

impl FabricOptimizer {
    /// One step with the gradients of all ranks, at the learning rate `lr`.
    pub fn step<M: Module>(&mut self, lr: f64, model: M, gradients: Grads<Reduced>) -> M {
        self.inner.set_rate(lr);
        let (optimizer, rates) = self.inner.step_rates();
        optimizer.step(rates, model, gradients.values)
    }

    /// The model's weights and all that the optimizer keeps: for [`Rank::save`].
    ///
    /// # Errors
    /// A failure of the device.
    pub fn state<M: Module>(&self, model: &M) -> Result<LearnerState> {
        let (optimizer, values) = self.inner.state(&tensors::parameters(model))?;
        Ok(LearnerState { weights: tensors::named_tensors(model)?, optimizer, gradients: Vec::new(), values })
    }

    /// Takes back its [`state`](Self::state): the model with its weights, and the optimizer as it was.
    ///
    /// # Errors
    /// `K0104`, with all differences, if it is of another model; `T0706` if it is of another optimizer.
    pub fn load<M: Module>(self, model: M, state: LearnerState) -> Result<(M, Self)> {
        let model = tensors::load_tensors(model, &state.weights)?;
        let inner = self.inner.load(&state.optimizer, &state.values, &tensors::parameters(&model))?;
        Ok((model, Self { inner }))
    }
}

impl RankExt for Rank {
    fn setup<M: Module>(
        &mut self,
        model: M,
        optimizer: impl Into<ModuleOptimizer>,
    ) -> Result<(M, FabricOptimizer)> {
        tensors::initialize(&model);
        let parameters: Vec<_> =
            tensors::parameters(&model).into_iter().map(|(_, parameter)| parameter).collect();
        self.verify_parameters(&parameters)?;
        let mut model = model.valid().train();
        if self.world_size() > 1 {
            let mut weights = tensors::named_tensors(&model)?;
            self.broadcast_tensors(&mut weights)?;
            model = tensors::load_tensors(model, &weights)?;
        }
        Ok((model, FabricOptimizer { inner: Optimizers::new(optimizer, 0.0) }))
    }

    fn backward<M: Module>(&self, model: &M, loss: Tensor<1>) -> Result<Grads<Local>> {
        check_loss(&loss)?;
        Ok(Grads::new(GradientsParams::from_grads(loss.backward(), model), 1))
    }

    fn reduce<M: Module>(&mut self, model: &M, gradients: Grads<Local>) -> Result<Grads<Reduced>> {
        let Grads { mut values, batches, .. } = gradients;
        let total = self.reduce_gradients(&mut Held { model, gradients: &mut values }, batches)?;
        if total > 1 {
            tensors::map_gradients(model, &mut values, GradientMap::Divide(f64::from(total)));
        }
        Ok(Grads::new(values, total))
    }

    fn clip<M: Module>(
        &self,
        model: &M,
        mut gradients: Grads<Reduced>,
        clip: GradientClip,
    ) -> Result<Grads<Reduced>> {
        tensors::clip_gradients(model, &mut gradients.values, clip)?;
        Ok(gradients)
    }
}

/// Burn's gradients and the model that says which they are.
struct Held<'a, M> {
    model: &'a M,
    gradients: &'a mut GradientsParams,
}

impl<M: Module> HasGradients for Held<'_, M> {
    fn visit_gradients(&mut self, visit: &mut dyn FnMut(Gradient<'_>) -> Result<()>) -> Result<()> {
        tensors::visit_gradients(self.model, self.gradients, visit)
    }

    fn zero_gradients(&mut self, of: &dyn Fn(&str) -> bool) {
        tensors::zero_gradients(self.model, self.gradients, of);
    }

    fn clear_gradients(&mut self) {
        *self.gradients = GradientsParams::new();
    }
}

/// Refuses a loss from which no gradients come.
pub(crate) fn check_loss(loss: &Tensor<1>) -> Result<()> {
    if !loss.is_tracked() {
        return Err(Error::new(UNTRACKED_LOSS, "the loss depends on no parameter")
            .why("no trainable parameter took part in the computation of the returned tensor")
            .hint("return the loss itself, not a detached copy or a constant; unfreeze a parameter"));
    }
    if loss.shape().num_elements() != 1 {
        return Err(Error::new(UNUSABLE_TENSOR, "the loss is no single number")
            .why(format!("its shape is {:?}", loss.dims()))
            .hint("return its `.mean()` or `.sum()`"));
    }
    Ok(())
}

impl<S> fmt::Debug for Grads<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grads").field("batches", &self.batches).finish_non_exhaustive()
    }
}

impl fmt::Debug for FabricOptimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FabricOptimizer").finish_non_exhaustive()
    }
}
