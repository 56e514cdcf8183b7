//! What a run must remember, as plain data: named tensors as bytes, and JSON values.
//!
//! Nothing here knows an engine or a file format; `checkpoint` writes it, learners make and take it.

use leyden_process::{Code, Error, Result, exit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The element type of a [`NamedTensor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
#[non_exhaustive]
pub enum DType {
    BF16,
    Bool,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::BF16 | Self::F16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }
}

/// A tensor as bytes: row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its path in the model, such as `encoder.layers.0.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// `shape.product() * dtype.size()` bytes.
    pub bytes: Vec<u8>,
}

impl NamedTensor {
    /// A tensor of `f32`.
    pub fn from_f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), dtype: DType::F32, shape: shape.to_vec(), bytes }
    }

    /// The values, where the element type is `f32`.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let (chunks, _) = self.bytes.as_chunks::<4>();
        (self.dtype == DType::F32).then(|| chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
    }
}

/// Everything of a [`Learner`](crate::Learner) that must survive.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnerState {
    /// The model's parameters and buffers, in declaration order.
    pub weights: Vec<NamedTensor>,
    /// The optimizer's tensors, named `<parameter path>.<field>`.
    pub optimizer: Vec<NamedTensor>,
    /// The gradient sums of an unfinished accumulation window, by parameter path.
    pub gradients: Vec<NamedTensor>,
    /// What is no tensor: the optimizer's counters, the schedules' positions.
    pub values: Value,
}

/// Which part of a [`LearnerState`] is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Weights, optimizer, gradients and values: what resuming needs.
    All,
    /// The weights alone: what evaluation needs.
    Weights,
}

/// Compares the tensors that a model has (`expected`: name, type, shape) with those of a saved state, and
/// reports every difference at once.
///
/// # Errors
/// `K0104`, listing what is missing, unknown, or of another shape or type.
pub fn check_same_tensors(
    what: &str,
    expected: &[(String, DType, Vec<usize>)],
    found: &[NamedTensor],
) -> Result<()> {
    let mut differences = Vec::new();
    for (name, dtype, shape) in expected {
        match found.iter().find(|tensor| tensor.name == *name) {
            None => differences.push(format!("`{name}` {dtype:?} {shape:?} is missing in the checkpoint")),
            Some(tensor) if (tensor.dtype, &tensor.shape) != (*dtype, shape) => differences.push(format!(
                "`{name}` is {dtype:?} {shape:?} here and {:?} {:?} in the checkpoint",
                tensor.dtype, tensor.shape
            )),
            Some(_) => {}
        }
    }
    for tensor in found {
        if !expected.iter().any(|(name, ..)| *name == tensor.name) {
            differences.push(format!(
                "`{}` {:?} {:?} is only in the checkpoint",
                tensor.name, tensor.dtype, tensor.shape
            ));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let shown = differences.len().min(DIFFERENCES_SHOWN);
    let mut error = Error::new(OTHER_MODEL, format!("the {what} of the checkpoint are of another model"));
    for difference in &differences[..shown] {
        error = error.why(difference);
    }
    if differences.len() > shown {
        error = error.why(format!("and {} more differences", differences.len() - shown));
    }
    Err(error.hint("build the model with the sizes that it was trained with, or choose another checkpoint"))
}

/// The checkpoint's tensors do not fit the model.
pub const OTHER_MODEL: Code = Code::new("K0104", exit::CONFIGURATION);

/// Enough to see the pattern, few enough to read.
const DIFFERENCES_SHOWN: usize = 12;
