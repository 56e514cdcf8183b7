//! What a data set is: samples by index, and how some of them become a batch.
//!
//! A data set does not know its order, its batch size or its ranks: those are the loader's. It keeps no state from
//! sample to sample, which is what makes a resumed run see what the uninterrupted one would have seen.

use std::sync::Arc;

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::codes::{INDEX_OUT_OF_RANGE, SPLIT_LENGTHS};
use crate::permutation::Permutation;
use crate::rng::{SampleRng, mix};

/// Samples by index (PyTorch: a map-style `Dataset` together with its `collate_fn`).
///
/// ```
/// use leyden_data::{Dataset, Result, SampleCx};
///
/// /// Noisy points on y = 2x.
/// struct Line;
///
/// impl Dataset for Line {
///     type Item = (f32, f32);
///     type Batch = Vec<(f32, f32)>;
///
///     fn len(&self) -> usize {
///         1000
///     }
///
///     fn get(&self, index: usize, cx: &mut SampleCx) -> Result<(f32, f32)> {
///         let x = index as f32 / 1000.0;
///         Ok((x, 2.0 * x + 0.1 * cx.rng().normal() as f32))
///     }
///
///     fn collate(&self, items: Vec<(f32, f32)>) -> Result<Self::Batch> {
///         Ok(items)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Dataset`",
    label = "this is no data set",
    note = "implement `leyden::Dataset` for it: `len`, `get` (one sample) and `collate` (samples to a batch)",
    note = "an `Arc<D>` is a data set where `D` is one and `Sync`"
)]
pub trait Dataset: Send + Sync {
    /// One sample. It lives from `get` to `collate`; a handle that `collate` resolves is the fastest.
    type Item;
    /// What the training step receives.
    type Batch: Send + 'static;

    /// How many samples there are. The loader asks once, when it is built.
    fn len(&self) -> usize;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sample at `index`, below `len()`: a function of the data, `index` and `cx` alone. Take randomness from
    /// `cx`; whatever else varies (time, a shared generator, what was asked before) breaks exact resumption.
    ///
    /// # Errors
    /// Any; the loader adds which sample, position, batch and epoch it was.
    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item>;

    /// Makes a batch of one or more samples, in their order. (PyTorch's `default_collate` stacks tensors; here the
    /// data set knows best.)
    ///
    /// # Errors
    /// Any, such as samples of different shapes; the loader adds the batch and epoch.
    fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch>;

    /// Prepares a worker, once on each thread or process, before its first sample (PyTorch: `worker_init_fn`). It does
    /// not run where there are no workers. The default does nothing.
    ///
    /// # Errors
    /// Any; building the loader fails with it.
    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        let _ = worker;
        Ok(())
    }

    /// What the samples were read from, for errors that concern all of them: the path of a file. A data set that changes
    /// another one says what that says. The default is nothing.
    fn origin(&self) -> Option<String> {
        None
    }
}

/// Which worker this is (PyTorch: `get_worker_info`). It must not enter what samples look like: they belong to seed,
/// epoch and index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// The worker's number, from 0. One that replaces another has its number.
    pub worker: usize,
    /// How many there are.
    pub workers: usize,
}

impl std::fmt::Display for WorkerInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.worker, self.workers)
    }
}

impl<D: Dataset> Dataset for Arc<D> {
    type Item = D::Item;
    type Batch = D::Batch;

    fn len(&self) -> usize {
        D::len(self)
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<D::Item> {
        D::get(self, index, cx)
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<D::Batch> {
        D::collate(self, items)
    }

    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        D::worker_init(self, worker)
    }

    fn origin(&self) -> Option<String> {
        D::origin(self)
    }
}

/// For which sample of which epoch `get` is asked, and the randomness that belongs to it.
#[derive(Clone, Debug)]
pub struct SampleCx {
    seed: u64,
    epoch: u64,
    index: usize,
    rng: Option<SampleRng>,
}

impl SampleCx {
    /// The context of sample `index` in `epoch` of a loader with `seed`. The loader makes them; so do tests of a
    /// data set.
    pub fn new(seed: u64, epoch: u64, index: usize) -> Self {
        Self { seed, epoch, index, rng: None }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The epoch, from 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The index that the loader asked for. Under a [`Subset`] it is the index in the subset, so that a sample that
    /// occurs twice there is augmented in two ways.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The sample's own generator: the same draws whenever this sample is asked for in this epoch, whoever asks.
    /// Costs nothing until it is used.
    pub fn rng(&mut self) -> &mut SampleRng {
        self.rng.get_or_insert_with(|| SampleRng::for_sample(self.seed, self.epoch, self.index as u64))
    }
}

/// Some samples of a data set, in a chosen order (PyTorch: `Subset`). An index may occur more than once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Subset<D> {
    dataset: D,
    indices: Arc<[usize]>,
}

impl<D: Dataset> Subset<D> {
    /// The samples of `dataset` at `indices`.
    ///
    /// # Errors
    /// `L0301` if an index is not below `dataset.len()`.
    pub fn new(dataset: D, indices: impl Into<Arc<[usize]>>) -> Result<Self> {
        let (indices, len) = (indices.into(), dataset.len());
        match indices.iter().enumerate().find(|&(_, &index)| index >= len) {
            None => Ok(Self { dataset, indices }),
            Some((position, &index)) => Err(out_of_range(index, len).at("subset position", position)),
        }
    }

    /// The data set below.
    pub fn dataset(&self) -> &D {
        &self.dataset
    }

    /// Which of its samples these are.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }
}

impl<D: Dataset> Dataset for Subset<D> {
    type Item = D::Item;
    type Batch = D::Batch;

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<D::Item> {
        let below = *self.indices.get(index).ok_or_else(|| out_of_range(index, self.len()))?;
        self.dataset.get(below, cx).map_err(|error| error.at_if_absent("index below subset", below))
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<D::Batch> {
        self.dataset.collate(items)
    }

    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.dataset.worker_init(worker)
    }

    fn origin(&self) -> Option<String> {
        self.dataset.origin()
    }
}

/// Splits a data set at random into parts of these lengths, or these fractions: disjoint, and together everything
/// (PyTorch: `random_split`). The parts depend on the lengths and `seed` alone.
///
/// `D` is cloned once per part: use an `Arc` around what is large.
///
/// # Errors
/// `L0302` if the lengths do not add up to `dataset.len()`, or the fractions to 1.
pub fn random_split<D: Dataset + Clone, L: SplitLength, const N: usize>(
    dataset: D,
    lengths: [L; N],
    seed: u64,
) -> Result<[Subset<D>; N]> {
    let lengths = L::resolve(lengths, dataset.len())?;
    let order = Permutation::new(dataset.len() as u64, mix(seed, &[SPLIT]));
    let mut shuffled = (0..dataset.len() as u64).map(|position| order.at(position) as usize);
    Ok(lengths
        .map(|length| Subset { dataset: dataset.clone(), indices: shuffled.by_ref().take(length).collect() }))
}

/// How the parts of a [`random_split`] are given: `usize` counts samples, `f64` is a fraction of all.
pub trait SplitLength: Sized {
    /// The lengths in samples.
    ///
    /// # Errors
    /// `L0302` if they are not the whole of `len` samples.
    fn resolve<const N: usize>(lengths: [Self; N], len: usize) -> Result<[usize; N]>;
}

impl SplitLength for usize {
    fn resolve<const N: usize>(lengths: [Self; N], len: usize) -> Result<[usize; N]> {
        let sum = lengths.iter().try_fold(0_usize, |sum, &length| sum.checked_add(length));
        if sum == Some(len) {
            return Ok(lengths);
        }
        let sum = sum.map_or("more than memory can address".to_owned(), |sum| sum.to_string());
        Err(Error::new(SPLIT_LENGTHS, "the lengths of a split do not add up to the data set's")
            .at("lengths", format_args!("{lengths:?}, together {sum}"))
            .at("data set", format_args!("{len} samples"))
            .hint("give the last part what the others leave: `dataset.len() - others`, or use fractions"))
    }
}

/// Each part is rounded down, and what is left over goes to the first parts, one sample each, as in PyTorch.
impl SplitLength for f64 {
    fn resolve<const N: usize>(fractions: [Self; N], len: usize) -> Result<[usize; N]> {
        let sum: f64 = fractions.iter().sum();
        if !fractions.iter().all(|part| (0.0..=1.0).contains(part)) || (sum - 1.0).abs() > 1e-6 {
            return Err(Error::new(SPLIT_LENGTHS, "the fractions of a split do not add up to 1")
                .at("fractions", format_args!("{fractions:?}, together {sum}"))
                .hint("give fractions from 0 to 1 that add up to 1, such as `[0.7, 0.1, 0.2]`"));
        }
        let mut lengths = fractions.map(|part| (part * len as f64) as usize);
        let left = len.saturating_sub(lengths.iter().sum());
        for part in 0..left {
            lengths[part % N] += 1;
        }
        Ok(lengths)
    }
}

/// The error of an index outside a data set.
pub(crate) fn out_of_range(index: usize, len: usize) -> Error {
    Error::new(INDEX_OUT_OF_RANGE, format!("index {index} is outside a data set of {len} samples"))
        .hint("indices go from 0 to the length less one; `len()` must not change after construction")
}

/// Keeps the order of a split apart from the order of an epoch under the same seed.
const SPLIT: u64 = 0x0073_706C_6974;

#[cfg(test)]
mod tests {
    use super::*;

    /// Each sample is its index and one draw.
    #[derive(Clone)]
    struct Counting(usize);

    impl Dataset for Counting {
        type Item = (usize, u64);
        type Batch = Vec<(usize, u64)>;

        fn len(&self) -> usize {
            self.0
        }

        fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
            if index >= self.0 {
                return Err(out_of_range(index, self.0));
            }
            Ok((index, cx.rng().next_u64()))
        }

        fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
            Ok(items)
        }
    }

    #[test]
    fn an_arc_is_the_data_set_it_holds() {
        let (bare, shared) = (Counting(5), Arc::new(Counting(5)));
        let get = |dataset: &dyn Fn(&mut SampleCx) -> Result<(usize, u64)>| {
            dataset(&mut SampleCx::new(1, 2, 3)).unwrap()
        };
        assert_eq!(get(&|cx| bare.get(3, cx)), get(&|cx| shared.get(3, cx)));
        assert_eq!(Dataset::len(&shared), 5);
        assert!(!Dataset::is_empty(&shared));
    }

    #[test]
    fn the_context_gives_one_stream_to_one_sample() {
        let draw = |seed, epoch, index| SampleCx::new(seed, epoch, index).rng().next_u64();
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        assert_eq!(draw(1, 2, 3), SampleRng::for_sample(1, 2, 3).next_u64());
        assert!(![draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)].contains(&draw(1, 2, 3)));

        let mut cx = SampleCx::new(1, 2, 3);
        assert_ne!(cx.rng().next_u64(), cx.rng().next_u64());
        assert_eq!((cx.epoch(), cx.index()), (2, 3));
    }

    #[test]
    fn a_subset_maps_its_indices_and_augments_repeats_differently() {
        let subset = Subset::new(Counting(10), [7, 2, 7]).unwrap();
        let samples: Vec<_> =
            (0..3).map(|index| subset.get(index, &mut SampleCx::new(0, 0, index)).unwrap()).collect();
        assert_eq!(samples.iter().map(|&(index, _)| index).collect::<Vec<_>>(), [7, 2, 7]);
        assert_ne!(samples[0].1, samples[2].1);
        assert_eq!((subset.len(), subset.indices()), (3, &[7, 2, 7][..]));
    }

    #[test]
    fn a_subset_refuses_an_index_outside_its_data_set() {
        let error = Subset::new(Counting(10), [0, 9, 10, 11]).map(|_| ()).unwrap_err();
        let text = format!("{error:?}");
        assert!(text.starts_with("error[L0301]: index 10 is outside a data set of 10 samples\n"), "{text}");
        assert_eq!(error.place("subset position"), Some("2"));
    }

    #[test]
    fn a_subset_names_the_index_below_it_in_errors() {
        let subset = Subset { dataset: Counting(10), indices: [3, 12].into() };
        let error = subset.get(1, &mut SampleCx::new(0, 0, 1)).unwrap_err();
        assert_eq!(error.place("index below subset"), Some("12"));
        let error = subset.get(2, &mut SampleCx::new(0, 0, 2)).unwrap_err();
        assert_eq!(error.what(), "index 2 is outside a data set of 2 samples");
    }

    #[test]
    fn a_split_is_disjoint_covers_everything_and_follows_its_seed() {
        let split = |seed| -> Vec<Vec<usize>> {
            let parts = random_split(Counting(100), [70, 0, 30], seed).unwrap();
            parts.iter().map(|part| part.indices().to_vec()).collect()
        };
        let parts = split(1);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [70, 0, 30]);
        let mut all = parts.concat();
        assert!(!all.is_sorted(), "a split is shuffled");
        all.sort_unstable();
        assert!(all.into_iter().eq(0..100));
        assert_eq!(parts, split(1));
        assert_ne!(parts, split(2));
    }

    #[test]
    fn fractions_are_rounded_down_and_the_rest_goes_to_the_first() {
        let parts = random_split(Counting(11), [0.5, 0.25, 0.25], 0).unwrap();
        assert_eq!(parts.map(|part| part.len()), [6, 3, 2]);
        let error = random_split(Counting(11), [0.5, 0.4], 0).map(|_| ()).unwrap_err();
        assert_eq!(error.place("fractions"), Some("[0.5, 0.4], together 0.9"));
    }

    #[test]
    fn a_split_whose_lengths_do_not_add_up_says_both_sides() {
        let error = random_split(Counting(100), [70, 31], 0).map(|_| ()).unwrap_err();
        let expected = "error[L0302]: the lengths of a split do not add up to the data set's\n  \
                        lengths   [70, 31], together 101\n  data set  100 samples\n  \
                        fix: give the last part what the others leave: `dataset.len() - others`, or use fractions";
        assert_eq!(format!("{error:?}"), expected);
        let error = random_split(Counting(100), [usize::MAX, 101], 0).map(|_| ()).unwrap_err();
        assert!(error.place("lengths").unwrap().ends_with("together more than memory can address"));
    }
}
