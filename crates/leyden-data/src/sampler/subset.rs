//! Some samples in a random order.

use std::sync::Arc;

use leyden_process::Result;

use super::custom::{list_bound, list_identity};
use super::{ORDER, Order, Sampler};
use crate::permutation::Permutation;
use crate::rng::mix;

/// Some samples of a data set, each once per epoch, in an order of its own (PyTorch: `SubsetRandomSampler`). No memory
/// beyond the list, any position at once.
///
/// A [`Subset`](crate::Subset) with `shuffle` visits the same samples, and gives them indices of its own, which their
/// randomness depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsetRandomSampler {
    indices: Arc<[usize]>,
}

impl SubsetRandomSampler {
    /// The samples at `indices`. One that occurs twice there is visited twice.
    pub fn new(indices: impl Into<Arc<[usize]>>) -> Self {
        Self { indices: indices.into() }
    }
}

impl Sampler for SubsetRandomSampler {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn Order>> {
        let order = Permutation::new(self.indices.len() as u64, mix(seed, &[ORDER, epoch]));
        Ok(Box::new(Shuffled { order, indices: Arc::clone(&self.indices) }))
    }

    fn identity(&self) -> String {
        format!("random order of a {}", list_identity(&self.indices))
    }

    fn bound(&self) -> Option<usize> {
        Some(list_bound(&self.indices))
    }
}

struct Shuffled {
    order: Permutation,
    indices: Arc<[usize]>,
}

impl Order for Shuffled {
    fn at(&self, position: usize) -> usize {
        self.indices[Order::at(&self.order, position)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_each_of_its_samples_once_in_another_order_each_epoch() {
        let indices: Vec<usize> = (0..100).map(|index| index * 3).collect();
        let sampler = SubsetRandomSampler::new(indices.clone());
        let visited = |epoch| -> Vec<usize> {
            let order = sampler.order(1, epoch).unwrap();
            (0..sampler.len()).map(|position| order.at(position)).collect()
        };
        let mut sorted = visited(0);
        assert_ne!(sorted, indices);
        assert_ne!(sorted, visited(1));
        sorted.sort_unstable();
        assert_eq!(sorted, indices);
        assert_eq!((sampler.len(), sampler.bound()), (100, Some(298)));
        assert!(sampler.is_shuffled());
    }
}
