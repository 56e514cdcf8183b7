//! Batches of samples of similar length.

use std::sync::Arc;

use leyden_process::{Error, Result};

use super::{BatchOrder, BatchSampler, ORDER, fingerprint};
use crate::codes::SAMPLER_ARGUMENT;
use crate::permutation::Permutation;
use crate::rng::mix;

/// Batches of samples of similar length, so that little is padded, and still random (Hugging Face:
/// `group_by_length`; torchtext: `BucketIterator`).
///
/// The order of an epoch is cut into windows of some batches; each window is sorted by length and cut into batches,
/// which are then shuffled. Every sample is in one batch of each epoch.
///
/// An epoch is made as a whole when it begins or is resumed: O(n) for windows of a given size, some 0.1 s per million
/// samples, and 8 B per sample while it lasts. The lengths are shared, not copied, if they are an `Arc<[usize]>`.
///
/// ```
/// use leyden_data::{BatchSampler, BucketBatchSampler};
///
/// let lengths = vec![7, 100, 8, 90, 6, 110];
/// let order = BucketBatchSampler::new(lengths, 3)?.order(42, 0)?;
/// assert_eq!(order.batch(0), [4, 0, 2]);
/// assert_eq!(order.batch(1), [3, 1, 5]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BucketBatchSampler {
    lengths: Arc<[usize]>,
    batch_size: usize,
    window: usize,
    shuffle: bool,
    drop_last: bool,
}

impl BucketBatchSampler {
    /// Batches of `batch_size` samples, the last of what is left. `lengths` are those of all samples of the data set, in
    /// any unit.
    ///
    /// # Errors
    /// `L0601` for a batch size of 0.
    pub fn new(lengths: impl Into<Arc<[usize]>>, batch_size: usize) -> Result<Self> {
        if batch_size == 0 {
            return Err(Error::new(SAMPLER_ARGUMENT, "a batch must have at least one sample")
                .at("batch_size", 0)
                .hint("make the sampler with a batch size of 1 or more"));
        }
        let (shuffle, drop_last) = (false, false);
        Ok(Self { lengths: lengths.into(), batch_size, window: WINDOW, shuffle, drop_last })
    }

    /// Whether each epoch has its own random batches in a random order, else the batches of windows of the data set's
    /// order, in that order (default false).
    #[must_use]
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Whether to leave out what does not fill a batch: samples from the end of the epoch's order, long or short
    /// (default false).
    #[must_use]
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Batches per window (default 100). More, and batches are more even in length and less random; `usize::MAX` sorts
    /// everything.
    ///
    /// # Errors
    /// `L0601` for 0.
    pub fn window(mut self, batches: usize) -> Result<Self> {
        if batches == 0 {
            return Err(Error::new(SAMPLER_ARGUMENT, "a window must have at least one batch")
                .at("window", 0)
                .hint("set `.window(n)` to 1 or more; 1 does not sort by length across batches"));
        }
        self.window = batches;
        Ok(self)
    }

    /// Samples of an epoch.
    fn samples(&self) -> usize {
        let dropped = if self.drop_last { self.lengths.len() % self.batch_size } else { 0 };
        self.lengths.len() - dropped
    }
}

impl BatchSampler for BucketBatchSampler {
    fn len(&self) -> usize {
        self.samples().div_ceil(self.batch_size)
    }

    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn BatchOrder>> {
        let order = Permutation::new(self.lengths.len() as u64, mix(seed, &[ORDER, epoch]));
        let sample = |position| if self.shuffle { order.at(position as u64) as usize } else { position };
        let mut samples: Vec<usize> = (0..self.samples()).map(sample).collect();
        for window in samples.chunks_mut(self.window.saturating_mul(self.batch_size)) {
            window.sort_by_key(|&index| self.lengths[index]);
        }
        let batches = Permutation::new(self.len() as u64, mix(seed, &[BATCHES, epoch]));
        Ok(Box::new(Buckets {
            samples,
            batch_size: self.batch_size,
            batches: self.shuffle.then_some(batches),
        }))
    }

    fn identity(&self) -> String {
        let Self { lengths, batch_size, window, shuffle, drop_last } = self;
        let hash = fingerprint(lengths.iter().map(|&length| length as u64));
        format!(
            "buckets of {} lengths, hash {hash:016x}, batch_size {batch_size}, window {window}, shuffle {shuffle}, \
             drop_last {drop_last}",
            lengths.len()
        )
    }

    fn bound(&self) -> Option<usize> {
        Some(self.lengths.len())
    }

    fn is_shuffled(&self) -> bool {
        self.shuffle
    }
}

struct Buckets {
    /// Window after window.
    samples: Vec<usize>,
    batch_size: usize,
    /// In which order the batches come, if not in that of the windows.
    batches: Option<Permutation>,
}

impl BatchOrder for Buckets {
    fn batch(&self, index: usize) -> Vec<usize> {
        let index = self.batches.as_ref().map_or(index, |batches| batches.at(index as u64) as usize);
        let start = index * self.batch_size;
        let end = start.saturating_add(self.batch_size).min(self.samples.len());
        self.samples[start..end].to_vec()
    }
}

/// Batches per window: batches of 1 % of it are even, and an epoch of a few windows is still random.
const WINDOW: usize = 100;
/// Keeps the order of batches apart from other uses of the same seed.
const BATCHES: u64 = 0x6275_636B_6574;

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(sampler: &BucketBatchSampler, epoch: u64) -> Vec<Vec<usize>> {
        let order = sampler.order(7, epoch).unwrap();
        (0..sampler.len()).map(|index| order.batch(index)).collect()
    }

    /// Lengths without an order, from 0 to 999.
    fn lengths(samples: usize) -> Vec<usize> {
        (0..samples as u64).map(|index| (mix(1, &[index]) % 1_000) as usize).collect()
    }

    #[test]
    fn every_sample_is_in_one_batch_for_all_small_cases() {
        for samples in 0..=40 {
            for (batch_size, window) in [(1, 1), (3, 1), (4, 2), (7, 100), (50, 1), (usize::MAX, usize::MAX)]
            {
                for (shuffle, drop_last) in [(false, false), (false, true), (true, false), (true, true)] {
                    let sampler = BucketBatchSampler::new(lengths(samples), batch_size).unwrap();
                    let sampler = sampler.shuffle(shuffle).drop_last(drop_last).window(window).unwrap();
                    let batches = batches(&sampler, 2);
                    let full = batches.iter().filter(|batch| batch.len() == batch_size).count();
                    assert_eq!(full, samples / batch_size);
                    assert_eq!(batches.len() - full, usize::from(!drop_last && samples % batch_size > 0));
                    let mut visited = batches.concat();
                    visited.sort_unstable();
                    visited.dedup();
                    let expected = if drop_last { samples - samples % batch_size } else { samples };
                    assert_eq!(visited.len(), expected, "{samples} samples: {sampler:?}");
                }
            }
        }
    }

    #[test]
    fn batches_are_even_in_length_and_random() {
        let lengths = lengths(20_000);
        let sampler = BucketBatchSampler::new(lengths.clone(), 32).unwrap().shuffle(true);
        let spread = |batch: &Vec<usize>| {
            let of_batch = || batch.iter().map(|&index| lengths[index]);
            of_batch().max().unwrap() - of_batch().min().unwrap()
        };
        let first = batches(&sampler, 0);
        // A window of 3200 samples has 3.2 of each length: batches of 32 span about ten lengths of a thousand.
        let mean = first.iter().map(spread).sum::<usize>() / first.len();
        assert!(mean < 15, "{mean}");
        let means: Vec<usize> = first
            .iter()
            .map(|batch| batch.iter().map(|&index| lengths[index]).sum::<usize>() / batch.len())
            .collect();
        let rising = means.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((262..362).contains(&rising), "{rising} of 624 steps up: not in order of length");

        let second = batches(&sampler, 1);
        assert!(!second.contains(&first[0]), "other batches in another epoch");
        assert_eq!(first, batches(&sampler, 0));
    }

    #[test]
    fn unshuffled_the_windows_are_those_of_the_data_set() {
        let sampler = BucketBatchSampler::new(vec![5, 1, 3, 1, 9, 8, 7, 0], 2).unwrap().window(2).unwrap();
        assert_eq!(batches(&sampler, 0), [[1, 3], [2, 0], [7, 6], [5, 4]]);
        assert_eq!(batches(&sampler, 1), batches(&sampler, 0));
        assert!(!sampler.is_shuffled());
        let all = sampler.window(usize::MAX).unwrap();
        assert_eq!(batches(&all, 0), [[7, 1], [3, 2], [0, 6], [5, 4]]);
    }

    #[test]
    fn what_is_dropped_is_not_the_longest() {
        let lengths: Vec<usize> = (0..11).collect();
        let sampler = BucketBatchSampler::new(lengths, 10).unwrap().shuffle(true).drop_last(true);
        let dropped = |epoch| (0..11).find(|index| !batches(&sampler, epoch)[0].contains(index)).unwrap();
        let mut dropped: Vec<usize> = (0..200).map(dropped).collect();
        dropped.sort_unstable();
        dropped.dedup();
        assert!(dropped.into_iter().eq(0..11));
    }

    #[test]
    fn refuses_empty_batches_and_windows() {
        let error = BucketBatchSampler::new(vec![1], 0).map(drop).unwrap_err();
        let expected = "error[L0601]: a batch must have at least one sample\n  batch_size  0\n  fix: make the sampler \
                        with a batch size of 1 or more";
        assert_eq!(format!("{error:?}"), expected);
        let error = BucketBatchSampler::new(vec![1], 1).unwrap().window(0).map(drop).unwrap_err();
        assert_eq!((error.code(), error.place("window")), (SAMPLER_ARGUMENT, Some("0")));
    }
}
