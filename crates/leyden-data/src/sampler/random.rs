//! Uniform random orders, by a keyed bijection or by keyed draws.

use leyden_process::Result;

use super::{ORDER, Order, Sampler};
use crate::permutation::Permutation;
use crate::rng::{SampleRng, mix};

/// A random order, anew in each epoch (PyTorch: `RandomSampler`). No memory, any position at once: the first batch of
/// a billion samples costs what that of a hundred does.
///
/// ```
/// use leyden_data::{RandomSampler, Sampler};
///
/// let order = RandomSampler::new(1_000_000_000).order(42, 0)?;
/// assert!(order.at(900_000_000) < 1_000_000_000);
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomSampler {
    samples: usize,
    replacement: bool,
    draws: usize,
}

impl RandomSampler {
    /// Each of the samples 0 to `samples` (exclusive) once per epoch.
    pub fn new(samples: usize) -> Self {
        Self { samples, replacement: false, draws: samples }
    }

    /// Whether each position is drawn from all samples, whatever stands elsewhere (default false).
    #[must_use]
    pub fn replacement(mut self, replacement: bool) -> Self {
        self.replacement = replacement;
        self
    }

    /// Positions per epoch (default: as many as samples). Without replacement, fewer are the beginning of the order;
    /// more are one random order of all samples after another, so that the counts of two samples differ by one at most.
    /// A position after the first order costs some 50 ns in place of 20.
    #[must_use]
    pub fn num_samples(mut self, draws: usize) -> Self {
        self.draws = draws;
        self
    }
}

impl Sampler for RandomSampler {
    fn len(&self) -> usize {
        if self.samples == 0 { 0 } else { self.draws }
    }

    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn Order>> {
        let samples = self.samples as u64;
        if self.replacement {
            return Ok(Box::new(Draws { samples, key: mix(seed, &[REPLACEMENT, epoch]) }));
        }
        let key = mix(seed, &[ORDER, epoch]);
        let first = Permutation::new(samples, key);
        if self.draws <= self.samples {
            return Ok(Box::new(first));
        }
        Ok(Box::new(Rounds { first, key }))
    }

    fn identity(&self) -> String {
        let Self { samples, replacement, draws } = self;
        let replacement = if *replacement { "with" } else { "without" };
        format!("random {draws} of {samples} {replacement} replacement")
    }

    fn bound(&self) -> Option<usize> {
        Some(self.samples)
    }
}

impl Order for Permutation {
    fn at(&self, position: usize) -> usize {
        Permutation::at(self, position as u64) as usize
    }
}

/// One permutation after another.
struct Rounds {
    first: Permutation,
    key: u64,
}

impl Order for Rounds {
    fn at(&self, position: usize) -> usize {
        let (round, position) = (position as u64 / self.first.len(), position as u64 % self.first.len());
        let index = match round {
            0 => self.first.at(position),
            // Made for each position: keeping them would cost memory for each time the data are repeated.
            _ => Permutation::new(self.first.len(), mix(self.key, &[round])).at(position),
        };
        index as usize
    }
}

/// Each position a draw of its own.
struct Draws {
    samples: u64,
    key: u64,
}

impl Order for Draws {
    fn at(&self, position: usize) -> usize {
        SampleRng::new(mix(self.key, &[position as u64])).below(self.samples) as usize
    }
}

/// Keeps draws with replacement apart from other uses of the same seed.
const REPLACEMENT: u64 = 0x7265_706C_6163;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(sampler: &RandomSampler, seed: u64, epoch: u64) -> Vec<usize> {
        let order = sampler.order(seed, epoch).unwrap();
        (0..sampler.len()).map(|position| order.at(position)).collect()
    }

    #[test]
    fn keeps_its_order_between_releases() {
        let sampler = RandomSampler::new(10);
        let expected = Permutation::new(10, mix(7, &[0x006F_7264_6572, 3]));
        assert!((0..10).map(|position| expected.at(position) as usize).eq(order(&sampler, 7, 3)));
        assert_eq!(order(&sampler, 7, 3), GOLDEN);
        assert_eq!(order(&sampler.num_samples(23), 7, 3), GOLDEN_ROUNDS);
        assert_eq!(order(&sampler.replacement(true), 7, 3), GOLDEN_DRAWS);
    }

    #[test]
    fn repeats_whole_orders_when_more_are_asked_for_than_there_are() {
        let sampler = RandomSampler::new(10).num_samples(25);
        let rounds: Vec<Vec<usize>> = order(&sampler, 1, 0).chunks(10).map(<[usize]>::to_vec).collect();
        assert_eq!(rounds[0], order(&RandomSampler::new(10), 1, 0));
        assert_ne!(rounds[0], rounds[1]);
        for mut round in rounds {
            let len = round.len();
            round.sort_unstable();
            round.dedup();
            assert_eq!(round.len(), len, "no sample twice in a round");
        }
        let few = order(&RandomSampler::new(10).num_samples(4), 1, 0);
        assert_eq!(few, order(&RandomSampler::new(10), 1, 0)[..4]);
    }

    #[test]
    fn draws_with_replacement_evenly_and_anew_in_each_epoch() {
        let sampler = RandomSampler::new(7).replacement(true).num_samples(70_000);
        let draws = order(&sampler, 5, 0);
        let mut counts = [0_u32; 7];
        draws.iter().for_each(|&index| counts[index] += 1);
        // Five standard deviations.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 463), "{counts:?}");
        assert_ne!(draws, order(&sampler, 5, 1));
        assert_ne!(draws, order(&sampler, 6, 0));
    }

    #[test]
    fn nothing_can_be_drawn_from_nothing() {
        assert!(RandomSampler::new(0).replacement(true).num_samples(10).is_empty());
        assert!(RandomSampler::new(0).num_samples(10).is_empty());
    }

    #[test]
    fn the_order_of_a_billion_samples_is_there_at_once() {
        let order = RandomSampler::new(1_000_000_000).order(42, 0).unwrap();
        let last: Vec<usize> = (999_999_936..1_000_000_000).map(|position| order.at(position)).collect();
        assert!(order.at(0) < 1_000_000_000 && last.iter().all(|&index| index < 1_000_000_000));
    }

    proptest! {
        #[test]
        fn each_epoch_visits_each_sample_once(samples in 1_usize..3_000, seed: u64, epoch: u64) {
            let mut visited = order(&RandomSampler::new(samples), seed, epoch);
            visited.sort_unstable();
            prop_assert!(visited.into_iter().eq(0..samples));
        }
    }

    // Computed by a second implementation, in Python.
    const GOLDEN: [usize; 10] = [7, 2, 1, 4, 9, 3, 0, 5, 6, 8];
    const GOLDEN_ROUNDS: [usize; 23] = [7, 2, 1, 4, 9, 3, 0, 5, 6, 8, 1, 5, 8, 6, 0, 4, 2, 3, 7, 9, 0, 8, 9];
    const GOLDEN_DRAWS: [usize; 10] = [4, 4, 9, 6, 2, 7, 7, 3, 1, 2];
}
