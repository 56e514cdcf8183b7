//! The order of the data set itself.

use leyden_process::Result;

use super::{Order, Sampler};

/// All samples in the order of the data set (PyTorch: `SequentialSampler`). No memory, any position at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequentialSampler {
    samples: usize,
}

impl SequentialSampler {
    /// The samples 0 to `samples`, exclusive.
    pub fn new(samples: usize) -> Self {
        Self { samples }
    }
}

impl Sampler for SequentialSampler {
    fn len(&self) -> usize {
        self.samples
    }

    fn order(&self, _seed: u64, _epoch: u64) -> Result<Box<dyn Order>> {
        Ok(Box::new(Sequential))
    }

    fn identity(&self) -> String {
        format!("sequential over {}", self.samples)
    }

    fn bound(&self) -> Option<usize> {
        Some(self.samples)
    }

    fn is_shuffled(&self) -> bool {
        false
    }
}

struct Sequential;

impl Order for Sequential {
    fn at(&self, position: usize) -> usize {
        position
    }
}
