//! Burn behind Leyden's `Learner`: what a user of Burn needs to train an ordinary `#[derive(Module)]` struct.
//!
//! A model implements [`LeydenModule`]; its batch says how it is uploaded ([`FromHost`]); [`TrainerExt`] adds `fit`,
//! `validate`, `test` and `predict` to the [`Trainer`](leyden_train::Trainer). The loop itself is in `leyden-train`
//! and names no tensor; every Burn type of Leyden's public interface is in this crate.
#![forbid(unsafe_code)]

pub mod codes;
mod dataset;
mod fabric;
mod learner;
mod module;
mod optimizers;
mod step;
mod tensors;
mod threads;
mod trainer;

pub use burn;
pub use dataset::{Batched, BurnBatch, BurnDataset};
pub use fabric::{FabricOptimizer, Grads, Local, RankExt, Reduced};
pub use learner::ModuleLearner;
pub use module::{FromHost, LabeledImages, LeydenModule, Loss, ModelCallback, Predict, cross_entropy};
pub use optimizers::Optimizers;
pub use step::{Loggable, StepCx, class_ids, predicted_classes};
pub use tensors::{load_tensors, named_tensors};
pub use trainer::{FitError, Fitted, TrainerExt};
