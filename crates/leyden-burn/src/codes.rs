//! The failure classes of this crate; `docs/errors/` has a page for each.

use leyden_process::{Code, exit};

/// The loss depends on no parameter.
pub const UNTRACKED_LOSS: Code = Code::new("T0701", exit::TRAINING_FAILED);
/// A step that is asked for is not implemented.
pub const NOT_IMPLEMENTED: Code = Code::new("T0702", exit::CONFIGURATION);
/// A tensor has an element type that cannot be saved, or a logged tensor is no single number.
pub const UNUSABLE_TENSOR: Code = Code::new("T0703", exit::TRAINING_FAILED);
/// The optimizer's part of a checkpoint does not fit.
pub const OTHER_OPTIMIZER: Code = Code::new("K0109", exit::CONFIGURATION);
/// The model is gone: the engine panicked while it was being updated.
pub const MODEL_LOST: Code = Code::new("T0704", exit::TRAINING_FAILED);
/// An array of a batch has another number of dimensions than its tensor.
pub const ARRAY_DIMENSIONS: Code = Code::new("T0705", exit::TRAINING_FAILED);
/// A data set of Burn's could not give an item.
pub const BURN_DATASET: Code = Code::new("T0706", exit::TRAINING_FAILED);
