//! Data sets made of data sets: other items, fewer, or several together.
//!
//! All of them are serialised with the data sets that they are made of. Functions are `Copy`: they capture nothing, or only
//! what is copied with them. One that captures nothing crosses to worker processes, as a [`Function`] does; it goes into no
//! file. One that captures something is an error when a loader with worker processes is built (`P0105`): what it needs
//! belongs into a data set of your own, or threads do the work.

mod streams;

use std::fmt;

use leyden_process::function::Function;
use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::codes::COMBINATION;
use crate::collate::{Collate, Interleave, Pick, batch_rows};
use crate::dataset::{Dataset, SampleCx, Subset, WorkerInfo, out_of_range};

pub use streams::{
    ChainDataset, FilterStream, IterableDatasetExt, MapStream, MixStreams, ShuffleWindow, StreamFn,
    TakeStream, stream_fn,
};

/// What can be made of each [`Dataset`], named as on [`Iterator`].
pub trait DatasetExt: Dataset + Sized {
    /// The data set whose items are `f` of this one's: a transform (torchvision: `transform=`). `f` gets the sample's
    /// context, for randomness.
    ///
    /// The batch is what the new items [`Collate`] to; what this data set's own `collate` does is left out. Where items
    /// are mere handles, as those of [`TensorDataset`](crate::TensorDataset), use [`map_batch`](Self::map_batch).
    ///
    /// ```
    /// use leyden_data::{Dataset, DatasetExt, SampleCx, VecDataset};
    ///
    /// let points = VecDataset::new(vec![1.0_f64, 2.0]);
    /// let noisy = points.map(|x, cx: &mut SampleCx| Ok((x, x + 0.1 * cx.rng().normal())));
    /// let (x, y) = noisy.get(1, &mut SampleCx::new(42, 0, 1))?;
    /// assert!(x == 2.0 && y != 2.0);
    /// # Ok::<(), leyden_data::Error>(())
    /// ```
    fn map<U, F>(self, f: F) -> Map<Self, F>
    where
        U: Collate,
        F: Fn(Self::Item, &mut SampleCx) -> Result<U> + Send + Sync + Copy,
    {
        Map { dataset: self, f: Function::new(f) }
    }

    /// The data set whose batches are `f` of this one's.
    fn map_batch<B, F>(self, f: F) -> MapBatch<Self, F>
    where
        B: Send + 'static,
        F: Fn(Self::Batch) -> Result<B> + Send + Sync + Copy,
    {
        MapBatch { dataset: self, f: Function::new(f) }
    }

    /// The data set whose batches are made by `f` of this one's items (PyTorch: `DataLoader(collate_fn=…)`).
    fn collate_with<B, F>(self, f: F) -> CollateWith<Self, F>
    where
        B: Send + 'static,
        F: Fn(Vec<Self::Item>) -> Result<B> + Send + Sync + Copy,
    {
        CollateWith { dataset: self, f: Function::new(f) }
    }

    /// The samples for which `keep` holds, in their order.
    ///
    /// This reads **every sample once, now**, on this thread, as that of epoch 0 and seed 0, and keeps their indices;
    /// `keep` should not look at what is random about a sample. Filter what is cheap to read (labels, a table) and take
    /// a [`Subset`] of the rest by the same indices where that is possible.
    ///
    /// ```
    /// use leyden_data::{DatasetExt, VecDataset};
    ///
    /// let even = VecDataset::new(vec![1, 2, 3, 4]).filter(|x| x % 2 == 0)?;
    /// assert_eq!(even.indices(), [1, 3]);
    /// # Ok::<(), leyden_data::Error>(())
    /// ```
    ///
    /// # Errors
    /// That of the first sample that cannot be read, with its index as `sample`.
    fn filter(self, mut keep: impl FnMut(&Self::Item) -> bool) -> Result<Subset<Self>> {
        let mut indices = Vec::new();
        for index in 0..self.len() {
            let item = self.get(index, &mut SampleCx::new(0, 0, index));
            if keep(&item.map_err(|error| error.at_if_absent("sample", index))?) {
                indices.push(index);
            }
        }
        Subset::new(self, indices)
    }

    /// The first `n` samples, or all if there are fewer.
    fn take(self, n: usize) -> Take<Self> {
        Take { samples: n.min(self.len()), dataset: self }
    }

    /// This data set and others, drawn from in proportion to `weights`: see [`Mix`].
    ///
    /// # Errors
    /// As [`Mix::new`].
    fn mix<const N: usize>(self, others: [Self; N], weights: &[f64]) -> Result<Mix<Self>> {
        Mix::new(std::iter::once(self).chain(others).collect(), weights)
    }
}

impl<D: Dataset> DatasetExt for D {}

/// See [`DatasetExt::map`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(bound(
    serialize = "D: Serialize, F: Copy + Send + Sync + 'static",
    deserialize = "D: Deserialize<'de>, F: Copy + Send + Sync + 'static"
))]
pub struct Map<D, F> {
    dataset: D,
    f: Function<F>,
}

impl<D, U, F> Dataset for Map<D, F>
where
    D: Dataset,
    U: Collate,
    F: Fn(D::Item, &mut SampleCx) -> Result<U> + Send + Sync,
{
    type Item = U;
    type Batch = U::Batch;

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<U> {
        (self.f)(self.dataset.get(index, cx)?, cx)
    }

    fn collate(&self, items: Vec<U>) -> Result<U::Batch> {
        U::collate(items)
    }

    fn origin(&self) -> Option<String> {
        self.dataset.origin()
    }

    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.dataset.worker_init(worker)
    }
}

/// See [`DatasetExt::map_batch`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(bound(
    serialize = "D: Serialize, F: Copy + Send + Sync + 'static",
    deserialize = "D: Deserialize<'de>, F: Copy + Send + Sync + 'static"
))]
pub struct MapBatch<D, F> {
    dataset: D,
    f: Function<F>,
}

impl<D, B, F> Dataset for MapBatch<D, F>
where
    D: Dataset,
    B: Send + 'static,
    F: Fn(D::Batch) -> Result<B> + Send + Sync,
{
    type Item = D::Item;
    type Batch = B;

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<D::Item> {
        self.dataset.get(index, cx)
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<B> {
        (self.f)(self.dataset.collate(items)?)
    }

    fn origin(&self) -> Option<String> {
        self.dataset.origin()
    }

    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.dataset.worker_init(worker)
    }
}

/// See [`DatasetExt::collate_with`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(bound(
    serialize = "D: Serialize, F: Copy + Send + Sync + 'static",
    deserialize = "D: Deserialize<'de>, F: Copy + Send + Sync + 'static"
))]
pub struct CollateWith<D, F> {
    dataset: D,
    f: Function<F>,
}

impl<D, B, F> Dataset for CollateWith<D, F>
where
    D: Dataset,
    B: Send + 'static,
    F: Fn(Vec<D::Item>) -> Result<B> + Send + Sync,
{
    type Item = D::Item;
    type Batch = B;

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<D::Item> {
        self.dataset.get(index, cx)
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<B> {
        (self.f)(items)
    }

    fn origin(&self) -> Option<String> {
        self.dataset.origin()
    }

    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.dataset.worker_init(worker)
    }
}

/// See [`DatasetExt::take`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Take<D> {
    dataset: D,
    samples: usize,
}

impl<D: Dataset> Dataset for Take<D> {
    type Item = D::Item;
    type Batch = D::Batch;

    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<D::Item> {
        if index >= self.samples {
            return Err(out_of_range(index, self.samples));
        }
        self.dataset.get(index, cx)
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<D::Batch> {
        self.dataset.collate(items)
    }

    fn origin(&self) -> Option<String> {
        self.dataset.origin()
    }

    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.dataset.worker_init(worker)
    }
}

/// The elements of a `Vec`, which are cloned one by one: for small items, and for tests. Arrays make a
/// [`TensorDataset`](crate::TensorDataset) instead. Each worker process has its own copy; of an `Array` among the elements
/// that is large, all have the same.
///
/// (A `Vec` is no data set by itself: `vec.get(index)` would mean another thing wherever [`Dataset`] is imported.)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VecDataset<T> {
    items: Vec<T>,
}

impl<T> VecDataset<T> {
    /// The elements of `items`, in their order.
    pub fn new(items: Vec<T>) -> Self {
        Self { items }
    }
}

impl<T: Collate + Clone + Send + Sync> Dataset for VecDataset<T> {
    type Item = T;
    type Batch = T::Batch;

    fn len(&self) -> usize {
        self.items.len()
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<T> {
        self.items.get(index).cloned().ok_or_else(|| out_of_range(index, self.len()))
    }

    fn collate(&self, items: Vec<T>) -> Result<T::Batch> {
        T::collate(items)
    }
}

/// An item of one of several data sets of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn<T> {
    /// Which data set, from 0 in the order they were given in.
    pub source: usize,
    /// Its item.
    pub item: T,
}

/// Data sets one after the other (PyTorch: `ConcatDataset`). Finding a sample is a binary search.
///
/// A batch may hold samples of several data sets. Each data set collates its own, as items may be handles that only it
/// understands; then the rows are brought in order ([`Interleave`]), which is one more copy for such batches alone.
///
/// ```
/// use leyden_data::{ConcatDataset, Dataset, SampleCx, VecDataset};
///
/// let both = ConcatDataset::new(vec![VecDataset::new(vec![1.0, 2.0]), VecDataset::new(vec![3.0])])?;
/// assert_eq!(both.get(2, &mut SampleCx::new(0, 0, 2))?.item, 3.0);
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConcatDataset<D> {
    datasets: Vec<D>,
    /// Where each data set ends.
    ends: Vec<usize>,
}

impl<D: Dataset> ConcatDataset<D> {
    /// The samples of all `datasets`, in their order. Their lengths are asked for once, here.
    ///
    /// # Errors
    /// `L0512` if there are no data sets, or more samples than memory can address.
    pub fn new(datasets: Vec<D>) -> Result<Self> {
        some_datasets(datasets.len())?;
        let lengths: Vec<usize> = datasets.iter().map(D::len).collect();
        let sum = |end: &mut usize, length: &usize| {
            *end = end.checked_add(*length)?;
            Some(*end)
        };
        let ends: Vec<usize> = lengths.iter().scan(0, sum).collect();
        if ends.len() < lengths.len() {
            return Err(Error::new(
                COMBINATION,
                "data sets have more samples together than memory can address",
            )
            .at("lengths", format_args!("{lengths:?}")));
        }
        Ok(Self { datasets, ends })
    }

    /// The data sets.
    pub fn datasets(&self) -> &[D] {
        &self.datasets
    }
}

impl<D: Dataset> Dataset for ConcatDataset<D>
where
    D::Batch: Interleave,
{
    type Item = Drawn<D::Item>;
    type Batch = D::Batch;

    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        // Empty data sets end where the one before does, and are passed over.
        let source = self.ends.partition_point(|&end| end <= index);
        let dataset = self.datasets.get(source).ok_or_else(|| out_of_range(index, self.len()))?;
        let start = source.checked_sub(1).map_or(0, |before| self.ends[before]);
        draw(dataset, source, index - start, cx)
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<D::Batch> {
        collate_drawn(items, |source, items| self.datasets[source].collate(items))
    }
    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.datasets.iter().try_for_each(|dataset| dataset.worker_init(worker))
    }
}

/// Data sets drawn from in proportion to weights.
///
/// The proportions hold everywhere, not only on average: of any first *n* samples each data set has its share, give or
/// take one for each data set before it. Which sample stands where is computed, in time proportional to the number of
/// data sets and without memory; nothing is random about it. Let the loader shuffle.
///
/// **Length.** An epoch ends before the first data set would have to repeat a sample: with weights 1 : 3 and lengths 100
/// and 1000 it has 401 samples, as the 101st of the first would be next. Of the other data sets the next epoch takes up where this one ended, so that all of
/// their samples are seen in time. A data set of weight 0 is never drawn from.
///
/// ```
/// use leyden_data::{Dataset, DatasetExt, Result, SampleCx, VecDataset};
///
/// let letters = VecDataset::new(vec!["a".to_owned(), "b".to_owned()]);
/// let digits = VecDataset::new((0..9).map(|digit| digit.to_string()).collect());
/// let mixed = letters.mix([digits], &[1.0, 3.0])?;
/// let epoch = |epoch| -> Result<String> {
///     (0..mixed.len()).map(|index| Ok(mixed.get(index, &mut SampleCx::new(0, epoch, index))?.item)).collect()
/// };
/// assert_eq!(epoch(0)?, "0a123b456");
/// assert_eq!(epoch(1)?, "7a801b234");
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mix<D> {
    datasets: Vec<D>,
    proportions: Proportions,
    /// Samples of each data set in an epoch, and in all.
    quotas: Vec<(usize, usize)>,
}

impl<D: Dataset> Mix<D> {
    /// A mixture of `datasets`; `weights`, one for each, need not add up to 1. Lengths are asked for once, here.
    ///
    /// # Errors
    /// `L0512` if there are no data sets, or not a weight for each, or the weights are no proportions.
    pub fn new(datasets: Vec<D>, weights: &[f64]) -> Result<Self> {
        let proportions = Proportions::new(datasets.len(), weights)?;
        let lengths: Vec<usize> = datasets.iter().map(D::len).collect();
        let fits = |samples: u64| {
            let counts = proportions.counts(samples);
            counts.iter().zip(&lengths).all(|(&count, &length)| count <= length as u64)
        };
        // The largest number of samples that fits; counts only grow with it.
        let all = lengths.iter().fold(0_u64, |sum, &length| sum.saturating_add(length as u64));
        let (mut fitting, mut beyond) = (0, all.saturating_add(1).min(MOST));
        while beyond - fitting > 1 {
            let middle = fitting + (beyond - fitting) / 2;
            *(if fits(middle) { &mut fitting } else { &mut beyond }) = middle;
        }
        let quotas =
            proportions.counts(fitting).into_iter().map(|count| count as usize).zip(lengths).collect();
        Ok(Self { datasets, proportions, quotas })
    }

    /// The data sets.
    pub fn datasets(&self) -> &[D] {
        &self.datasets
    }
}

impl<D: Dataset> Dataset for Mix<D>
where
    D::Batch: Interleave,
{
    type Item = Drawn<D::Item>;
    type Batch = D::Batch;

    fn len(&self) -> usize {
        self.quotas.iter().map(|quota| quota.0).sum()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        if index >= self.len() {
            return Err(out_of_range(index, self.len()));
        }
        let (source, nth) = self.proportions.at(index as u64);
        let (quota, length) = self.quotas[source];
        let walked = u128::from(cx.epoch()) * quota as u128 + u128::from(nth);
        draw(&self.datasets[source], source, (walked % length as u128) as usize, cx)
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<D::Batch> {
        collate_drawn(items, |source, items| self.datasets[source].collate(items))
    }
    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.datasets.iter().try_for_each(|dataset| dataset.worker_init(worker))
    }
}

/// An endless sequence of numbers of data sets in which each has its share everywhere.
///
/// The first data set takes its share of all positions, evenly spread; the second its share of what is left, and so on.
/// "Evenly spread" is rounding: of the first *n* positions, *n* times the share, rounded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proportions {
    /// The share of each data set in what those before it leave, in units of 2⁻⁶³; that of the last is all.
    shares: Vec<u64>,
}

impl Proportions {
    fn new(datasets: usize, weights: &[f64]) -> Result<Self> {
        some_datasets(datasets)?;
        let usable = |weight: &f64| weight.is_finite() && *weight >= 0.0;
        let largest = weights.iter().copied().fold(0.0, f64::max);
        if weights.len() != datasets || !weights.iter().all(usable) || largest == 0.0 {
            return Err(Error::new(COMBINATION, "the weights of a mixture are impossible")
                .at("weights", format_args!("{weights:?}"))
                .at("data sets", datasets)
                .hint("give each data set a finite weight of 0 or more, and one of them more than 0"));
        }
        // The sum of weights near the largest number would be infinite.
        let weights: Vec<f64> = weights.iter().map(|weight| weight / largest).collect();
        let share = |index: usize| {
            let left: f64 = weights[index..].iter().sum();
            // What is asked for after the last weight above 0 is never asked for.
            if left == weights[index] { WHOLE } else { (weights[index] / left * WHOLE as f64) as u64 }
        };
        Ok(Self { shares: (0..datasets).map(share).collect() })
    }

    /// Which data set `position` draws from, and its how-manieth sample this is.
    fn at(&self, position: u64) -> (usize, u64) {
        let mut position = position;
        for (source, &share) in self.shares.iter().enumerate() {
            let taken = part(position, share);
            if part(position + 1, share) > taken {
                return (source, taken);
            }
            position -= taken;
        }
        unreachable!("a share of all is never passed over, and the last is one")
    }

    /// How often each data set occurs before `position`.
    fn counts(&self, position: u64) -> Vec<u64> {
        let mut left = position;
        let count = |&share: &u64| {
            let taken = part(left, share);
            left -= taken;
            taken
        };
        self.shares.iter().map(count).collect()
    }
}

/// `share` of `n`, rounded.
fn part(n: u64, share: u64) -> u64 {
    ((u128::from(n) * u128::from(share) + u128::from(WHOLE / 2)) / u128::from(WHOLE)) as u64
}

/// A share of everything.
const WHOLE: u64 = 1 << 63;
/// More samples than any mixture has; `usize` holds it.
const MOST: u64 = 1 << 62;

fn some_datasets(count: usize) -> Result<()> {
    if count > 0 {
        return Ok(());
    }
    Err(Error::new(COMBINATION, "no data sets were given to be put together").hint("give one or more"))
}

fn draw<D: Dataset>(dataset: &D, source: usize, index: usize, cx: &mut SampleCx) -> Result<Drawn<D::Item>> {
    let item = dataset
        .get(index, cx)
        .map_err(|error| error.at_if_absent("data set", source).at_if_absent("index in data set", index))?;
    Ok(Drawn { source, item })
}

/// Collates the items of each data set by itself, and brings the rows in the items' order.
fn collate_drawn<T, B: Interleave>(
    items: Vec<Drawn<T>>,
    collate: impl Fn(usize, Vec<T>) -> Result<B>,
) -> Result<B> {
    let first = items.first().ok_or_else(|| batch_rows(1, 0))?.source;
    if items.iter().all(|item| item.source == first) {
        return collate(first, items.into_iter().map(|item| item.item).collect());
    }
    // Parts in the order of their first items, and the places of their items in the batch.
    let mut parts: Vec<(usize, Vec<T>, Vec<usize>)> = Vec::new();
    let mut order = Vec::with_capacity(items.len());
    for (place, Drawn { source, item }) in items.into_iter().enumerate() {
        let part = parts.iter().position(|part| part.0 == source).unwrap_or_else(|| {
            parts.push((source, Vec::new(), Vec::new()));
            parts.len() - 1
        });
        let (_, items, places) = &mut parts[part];
        order.push(Pick { part, row: items.len() });
        items.push(item);
        places.push(place);
    }
    let batches: Result<Vec<B>> = parts
        .into_iter()
        .map(|(source, items, places)| {
            collate(source, items).map_err(|error| renumber(error, &places).at_if_absent("data set", source))
        })
        .collect();
    B::interleave(batches?, &order)
}

/// The error of a part of a batch, its items numbered as in the whole.
fn renumber(error: Error, places: &[usize]) -> Error {
    let place = |label: &str| places.get(label.strip_prefix("item ")?.parse::<usize>().ok()?).copied();
    let mut renumbered = Error::new(error.code(), error.what());
    for (label, value) in error.places() {
        let label = place(label).map_or_else(|| label.to_owned(), |place| format!("item {place}"));
        renumbered = renumbered.at(label, value);
    }
    renumbered = error.reasons().iter().fold(renumbered, |renumbered, why| renumbered.why(why));
    error.hints().iter().fold(renumbered, |renumbered, hint| renumbered.hint(hint))
}

/// The data set; a function has nothing to show.
macro_rules! debug {
    ($($name:ident)*) => {
        $(
            impl<D: fmt::Debug, F> fmt::Debug for $name<D, F> {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.debug_tuple(stringify!($name)).field(&self.dataset).finish()
                }
            }
        )*
    };
}

debug!(Map MapBatch CollateWith);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Array;
    use crate::codes::RAGGED;
    use crate::loader::{DataLoader, Loader};

    fn set<T>(items: impl IntoIterator<Item = T>) -> VecDataset<T> {
        VecDataset::new(items.into_iter().collect())
    }

    fn item<D: Dataset>(dataset: &D, epoch: u64, index: usize) -> D::Item {
        dataset.get(index, &mut SampleCx::new(0, epoch, index)).unwrap()
    }

    #[test]
    fn a_chain_of_adapters_is_a_data_set() {
        let numbers = set(0_i64..100);
        let chain = numbers
            .filter(|x| x % 3 == 0)
            .unwrap()
            .take(5)
            .map(|x, _: &mut SampleCx| Ok((x, x as f32 / 2.0)));
        let loader = DataLoader::builder(chain).batch_size(3).build().unwrap();
        let batches: Vec<_> = Loader::epoch(&loader, 0, 0).map(|batch| batch.unwrap().data).collect();
        assert_eq!((&batches[0].0[..], &batches[1].1[..]), (&[0, 3, 6][..], &[4.5, 6.0][..]));
    }

    #[test]
    fn batches_can_be_made_and_changed_by_functions() {
        let sums = set([1, 2, 3]).collate_with(|items: Vec<i32>| Ok(items.iter().sum::<i32>()));
        assert_eq!(sums.collate(vec![1, 2]).unwrap(), 3);
        let doubled = sums.map_batch(|sum| Ok(2 * sum));
        assert_eq!((doubled.len(), item(&doubled, 0, 2)), (3, 3));
        assert_eq!(doubled.collate(vec![1, 2]).unwrap(), 6);
    }

    #[test]
    fn taking_ends_where_it_says() {
        let five = set([0_u8; 9]).take(5);
        assert_eq!((five.len(), set([0_u8; 3]).take(5).len()), (5, 3));
        let error = five.get(5, &mut SampleCx::new(0, 0, 5)).unwrap_err();
        assert_eq!(error.what(), "index 5 is outside a data set of 5 samples");
    }

    #[test]
    fn filtering_names_the_sample_that_cannot_be_read() {
        let failing =
            set([1, 2]).map(|x, _: &mut SampleCx| if x == 2 { Err(Error::msg("no")) } else { Ok(x) });
        let error = failing.filter(|_| true).unwrap_err();
        assert_eq!(error.place("sample"), Some("1"));
    }

    #[test]
    fn concatenation_passes_over_empty_data_sets_and_keeps_the_order() {
        let all = ConcatDataset::new(vec![set([]), set([1_i32, 2]), set([]), set([3]), set([])]).unwrap();
        assert_eq!(all.len(), 3);
        let items: Vec<_> = (0..3).map(|index| item(&all, 0, index)).collect();
        assert_eq!(
            items.iter().map(|drawn| (drawn.source, drawn.item)).collect::<Vec<_>>(),
            [(1, 1), (1, 2), (3, 3)]
        );
        assert_eq!(all.collate([2, 0, 1].map(|at| items[at]).to_vec()).unwrap()[..], [3, 1, 2]);
        assert!(all.get(3, &mut SampleCx::new(0, 0, 3)).is_err());
        let error = ConcatDataset::<VecDataset<i32>>::new(vec![]).unwrap_err();
        assert_eq!((error.code(), error.what()), (COMBINATION, "no data sets were given to be put together"));
    }

    #[test]
    fn an_error_in_a_part_of_a_batch_numbers_items_as_the_batch_does() {
        let row = |len| Array::from(vec![0_u8; len]);
        let all = ConcatDataset::new(vec![set([row(1)]), set([row(1), row(2)])]).unwrap();
        let items = [1, 0, 2].map(|index| item(&all, 0, index)).to_vec();
        let error = all.collate(items).unwrap_err();
        let expected = "error[L0502]: the samples of a batch differ in shape\n  item 0    [1]\n  item 2    [2]\n  \
                        data set  1\n  fix: make them equal in `get` (crop, resize, pad), or collate with `pad_collate`";
        assert_eq!(format!("{error:?}"), expected);
        assert_eq!(error.code(), RAGGED);
    }

    #[test]
    fn an_error_names_data_set_and_index_below_a_concatenation() {
        let failing = || set([1, 2]).map(|_, _: &mut SampleCx| Err::<i32, _>(Error::msg("no")));
        fn concat<D: Dataset>(datasets: Vec<D>) -> ConcatDataset<D> {
            ConcatDataset::new(datasets).unwrap()
        }
        let map = failing();
        let all = concat(vec![map.clone(), map]);
        let error = all.get(3, &mut SampleCx::new(0, 0, 3)).unwrap_err();
        assert_eq!((error.place("data set"), error.place("index in data set")), (Some("1"), Some("1")));
    }

    #[test]
    fn a_mixture_has_its_proportions_everywhere_and_repeats_nothing() {
        let weights = [0.5, 0.2, 0.0, 0.3];
        let mixed =
            Mix::new([1000, 77, 5, 1000].map(|length| set(vec![0_u8; length])).into(), &weights).unwrap();
        let mut counts = [0_usize; 4];
        for index in 0..mixed.len() {
            let (source, nth) = mixed.proportions.at(index as u64);
            assert_eq!(nth, counts[source] as u64, "at {index}");
            counts[source] += 1;
            for (&count, weight) in counts.iter().zip(weights) {
                assert!((count as f64 - weight * (index + 1) as f64).abs() < 3.0, "{counts:?} at {index}");
            }
        }
        assert_eq!((counts[1], counts[2]), (77, 0), "the shortest is used up: {counts:?}");
        assert!(mixed.len().abs_diff(77 * 5) < 5, "{}", mixed.len());
    }

    #[test]
    fn the_epochs_of_a_mixture_walk_through_its_larger_data_sets() {
        let mixed = Mix::new(vec![set(0..10), set(100..135)], &[1.0, 1.0]).unwrap();
        let seen = |epoch| {
            let items = (0..mixed.len()).map(|index| item(&mixed, epoch, index));
            items.filter(|drawn| drawn.source == 1).map(|drawn| drawn.item).collect::<Vec<_>>()
        };
        assert_eq!(mixed.len(), 20);
        let all: Vec<i32> = (0..7).flat_map(seen).collect();
        assert_eq!(all, (100..135).chain(100..135).collect::<Vec<_>>());
    }

    #[test]
    fn impossible_mixtures_are_refused() {
        for weights in [&[1.0][..], &[1.0, -1.0], &[0.0, 0.0], &[1.0, f64::NAN], &[1.0, f64::INFINITY]] {
            let error = set([1]).mix([set([2])], weights).unwrap_err();
            assert_eq!((error.code(), error.place("data sets")), (COMBINATION, Some("2")), "{weights:?}");
        }
        let huge = set([1]).mix([set([2])], &[f64::MAX, f64::MAX]).unwrap();
        assert_eq!(huge.len(), 2);
        assert_eq!(set([1]).mix([set([])], &[0.5, 0.5]).unwrap().len(), 1, "the half sample is the first's");
        assert_eq!(Mix::new(vec![set([1, 2])], &[3.0]).unwrap().len(), 2);
        assert_eq!(set(0..100).mix([set(0..1000)], &[1.0, 3.0]).unwrap().len(), 401);
    }

    #[test]
    fn what_holds_no_function_can_also_be_written_to_files() {
        let mixed = ConcatDataset::new(vec![
            set([1, 2, 3]).take(2).mix([set([4, 5, 6]).take(3)], &[1.0, 2.0]).unwrap(),
        ])
        .unwrap();
        let bytes = postcard::to_allocvec(&mixed).unwrap();
        let back: ConcatDataset<Mix<Take<VecDataset<i32>>>> = postcard::from_bytes(&bytes).unwrap();
        let items =
            |dataset: &ConcatDataset<_>| (0..dataset.len()).map(|i| item(dataset, 0, i)).collect::<Vec<_>>();
        assert_eq!(items(&back), items(&mixed));
    }

    #[test]
    fn wrapped_data_sets_prepare_their_workers_too() {
        #[derive(Clone)]
        struct Counting(std::sync::Arc<std::sync::atomic::AtomicUsize>);
        impl Dataset for Counting {
            type Item = u8;
            type Batch = Vec<u8>;
            fn len(&self) -> usize {
                3
            }
            fn get(&self, _: usize, _: &mut SampleCx) -> Result<u8> {
                Ok(0)
            }
            fn collate(&self, items: Vec<u8>) -> Result<Vec<u8>> {
                Ok(items)
            }
            fn worker_init(&self, _: &WorkerInfo) -> Result<()> {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(())
            }
        }
        let counting = Counting(Default::default());
        let worker = WorkerInfo { worker: 0, workers: 1 };
        let wrapped = counting.clone().map(|item, _: &mut SampleCx| Ok(item)).take(2);
        wrapped.worker_init(&worker).unwrap();
        counting.clone().map_batch(Ok::<_, Error>).worker_init(&worker).unwrap();
        counting.clone().collate_with(Ok::<_, Error>).worker_init(&worker).unwrap();
        assert_eq!(counting.0.load(std::sync::atomic::Ordering::Relaxed), 3);
        let both = ConcatDataset::new(vec![VecDataset::new(vec![1]), VecDataset::new(vec![2])]).unwrap();
        both.worker_init(&worker).unwrap();
    }
}
