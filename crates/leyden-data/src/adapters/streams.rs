//! The same for data that comes as streams.

use std::fmt;

use leyden_process::Result;
use leyden_process::function::Function;
use serde::{Deserialize, Serialize};

use super::{Drawn, Proportions, collate_drawn, some_datasets};
use crate::collate::{Collate, Interleave};
use crate::dataset::out_of_range;
use crate::iterable::{IterableDataset, Stream, StreamCx};
use crate::rng::SampleRng;

/// What can be made of each [`IterableDataset`], named as on [`Iterator`].
///
/// An error in a stream passes each adapter in its place: it is neither filtered out nor shuffled, and the stream may go
/// on after it.
pub trait IterableDatasetExt: IterableDataset + Sized {
    /// The streams whose items are `f` of this one's; `f` gets the item's own generator, for randomness. The batch is
    /// what the new items [`Collate`] to.
    fn map<U, F>(self, f: F) -> MapStream<Self, F>
    where
        U: Collate,
        F: Fn(Self::Item, &mut SampleRng) -> Result<U> + Send + Sync + Copy,
    {
        MapStream { dataset: self, f: Function::new(f) }
    }

    /// The streams without the items for which `keep` does not hold.
    fn filter<F>(self, keep: F) -> FilterStream<Self, F>
    where
        F: Fn(&Self::Item) -> bool + Send + Sync + Copy,
    {
        FilterStream { dataset: self, keep: Function::new(keep) }
    }

    /// The first `n` items **of each shard**; of all shards together it would depend on who reads which.
    fn take(self, n: usize) -> TakeStream<Self> {
        TakeStream { dataset: self, items: n }
    }

    /// Shuffles within a window that moves along each stream (WebDataset: `shuffle(n)`): each item is drawn at random of
    /// the `n` that come next. It holds `n` items in memory per stream being read; 0 and 1 leave the order as it is.
    ///
    /// The order is a function of seed, epoch and shard, another in each epoch. An item can come at most `n - 1` places
    /// early, so shuffle the order of what is far apart (the files) when the shards are made.
    fn shuffle_window(self, n: usize) -> ShuffleWindow<Self> {
        ShuffleWindow { dataset: self, window: n }
    }

    /// This data set and others, drawn from in proportion to `weights`: see [`MixStreams`].
    ///
    /// # Errors
    /// As [`MixStreams::new`].
    fn mix<const N: usize>(self, others: [Self; N], weights: &[f64]) -> Result<MixStreams<Self>> {
        MixStreams::new(std::iter::once(self).chain(others).collect(), weights)
    }
}

impl<D: IterableDataset> IterableDatasetExt for D {}

/// See [`IterableDatasetExt::map`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(bound(
    serialize = "D: Serialize, F: Copy + Send + Sync + 'static",
    deserialize = "D: Deserialize<'de>, F: Copy + Send + Sync + 'static"
))]
pub struct MapStream<D, F> {
    dataset: D,
    f: Function<F>,
}

impl<D, U, F> IterableDataset for MapStream<D, F>
where
    D: IterableDataset,
    U: Collate,
    F: Fn(D::Item, &mut SampleRng) -> Result<U> + Send + Sync,
{
    type Item = U;
    type Batch = U::Batch;

    fn shards(&self) -> usize {
        self.dataset.shards()
    }

    fn shard_len(&self, shard: usize) -> Option<usize> {
        self.dataset.shard_len(shard)
    }

    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, U>> {
        let items = self.dataset.stream(shard, cx.below(0, shard))?;
        Ok(Box::new((0..).zip(items).map(move |(position, item)| (self.f)(item?, &mut cx.rng(position)))))
    }

    fn collate(&self, items: Vec<U>) -> Result<U::Batch> {
        U::collate(items)
    }
}

/// See [`IterableDatasetExt::filter`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(bound(
    serialize = "D: Serialize, F: Copy + Send + Sync + 'static",
    deserialize = "D: Deserialize<'de>, F: Copy + Send + Sync + 'static"
))]
pub struct FilterStream<D, F> {
    dataset: D,
    keep: Function<F>,
}

impl<D, F> IterableDataset for FilterStream<D, F>
where
    D: IterableDataset,
    F: Fn(&D::Item) -> bool + Send + Sync,
{
    type Item = D::Item;
    type Batch = D::Batch;

    fn shards(&self) -> usize {
        self.dataset.shards()
    }

    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, D::Item>> {
        let items = self.dataset.stream(shard, cx)?;
        Ok(Box::new(items.filter(|item| item.as_ref().map_or(true, &*self.keep))))
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<D::Batch> {
        self.dataset.collate(items)
    }
}

/// See [`IterableDatasetExt::take`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TakeStream<D> {
    dataset: D,
    items: usize,
}

impl<D: IterableDataset> IterableDataset for TakeStream<D> {
    type Item = D::Item;
    type Batch = D::Batch;

    fn shards(&self) -> usize {
        self.dataset.shards()
    }

    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, D::Item>> {
        Ok(Box::new(self.dataset.stream(shard, cx)?.take(self.items)))
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<D::Batch> {
        self.dataset.collate(items)
    }
}

/// See [`IterableDatasetExt::shuffle_window`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ShuffleWindow<D> {
    dataset: D,
    window: usize,
}

impl<D: IterableDataset> IterableDataset for ShuffleWindow<D>
where
    D::Item: Send,
{
    type Item = D::Item;
    type Batch = D::Batch;

    fn shards(&self) -> usize {
        self.dataset.shards()
    }

    fn shard_len(&self, shard: usize) -> Option<usize> {
        self.dataset.shard_len(shard)
    }

    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, D::Item>> {
        let mut items = self.dataset.stream(shard, cx.below(0, shard))?;
        let mut rng = cx.rng(0);
        let mut window = Vec::new();
        Ok(Box::new(std::iter::from_fn(move || {
            while window.len() < self.window.max(1) {
                match items.next() {
                    Some(Ok(item)) => window.push(item),
                    Some(Err(error)) => return Some(Err(error)),
                    None => break,
                }
            }
            let count = window.len() as u64;
            (count > 0).then(|| Ok(window.swap_remove(rng.below(count) as usize)))
        })))
    }

    fn collate(&self, items: Vec<D::Item>) -> Result<D::Batch> {
        self.dataset.collate(items)
    }
}

/// Data sets one after the other (PyTorch: `ChainDataset`): the shards of the first, then those of the second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChainDataset<D> {
    datasets: Vec<D>,
}

impl<D: IterableDataset> ChainDataset<D> {
    /// The streams of all `datasets`.
    ///
    /// # Errors
    /// `L0512` if there are no data sets.
    pub fn new(datasets: Vec<D>) -> Result<Self> {
        some_datasets(datasets.len())?;
        Ok(Self { datasets })
    }
}

impl<D: IterableDataset> IterableDataset for ChainDataset<D>
where
    D::Batch: Interleave,
{
    type Item = Drawn<D::Item>;
    type Batch = D::Batch;

    fn shards(&self) -> usize {
        self.datasets.iter().map(D::shards).sum()
    }

    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, Self::Item>> {
        let mut within = shard;
        for (source, dataset) in self.datasets.iter().enumerate() {
            let shards = dataset.shards();
            if within < shards {
                return drawn(dataset, source, within, cx);
            }
            within -= shards;
        }
        Err(out_of_range(shard, self.shards()))
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<D::Batch> {
        collate_drawn(items, |source, items| self.datasets[source].collate(items))
    }
}

/// Data sets drawn from in proportion to weights, which hold everywhere in each stream, not only on average.
///
/// There are as many shards as the data set with the fewest has. Shard *s* of the mixture draws from each data set's
/// shards *s*, *s* + shards, …, so that none is read twice. A stream ends when the data set whose turn it is has no more
/// items, even if others have; a data set of weight 0 is not read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MixStreams<D> {
    datasets: Vec<D>,
    proportions: Proportions,
}

impl<D: IterableDataset> MixStreams<D> {
    /// A mixture of `datasets`; `weights`, one for each, need not add up to 1.
    ///
    /// # Errors
    /// `L0512` if there are no data sets, or not a weight for each, or the weights are no proportions.
    pub fn new(datasets: Vec<D>, weights: &[f64]) -> Result<Self> {
        let proportions = Proportions::new(datasets.len(), weights)?;
        Ok(Self { datasets, proportions })
    }
}

impl<D: IterableDataset> IterableDataset for MixStreams<D>
where
    D::Batch: Interleave,
{
    type Item = Drawn<D::Item>;
    type Batch = D::Batch;

    fn shards(&self) -> usize {
        self.datasets.iter().map(D::shards).min().unwrap_or(0)
    }

    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, Self::Item>> {
        let shards = self.shards();
        if shard >= shards {
            return Err(out_of_range(shard, shards));
        }
        let mut streams: Vec<Stream<'_, Self::Item>> = self
            .datasets
            .iter()
            .enumerate()
            .map(|(source, dataset)| {
                let shards = (shard..dataset.shards()).step_by(shards);
                let open = move |shard| {
                    drawn(dataset, source, shard, cx)
                        .unwrap_or_else(|error| Box::new(std::iter::once(error).map(Err)))
                };
                Box::new(shards.flat_map(open)) as Stream<'_, Self::Item>
            })
            .collect();
        Ok(Box::new((0..).map_while(move |position| streams[self.proportions.at(position).0].next()).fuse()))
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<D::Batch> {
        collate_drawn(items, |source, items| self.datasets[source].collate(items))
    }
}

/// Plain iterators as a data set of `shards` streams: `f` makes that of a shard. The items [`Collate`] themselves.
///
/// ```
/// use leyden_data::{IterableDataset, Result, StreamCx, stream_fn};
///
/// let lines = stream_fn(2, |shard, _| Ok((0..3).map(move |i| Ok(10 * shard as i64 + i))));
/// let second: Vec<i64> = lines.stream(1, StreamCx::new(42, 0, 1))?.collect::<Result<_>>()?;
/// assert_eq!(second, [10, 11, 12]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
pub fn stream_fn<T, I, F>(shards: usize, f: F) -> StreamFn<F>
where
    T: Collate,
    I: Iterator<Item = Result<T>> + Send + 'static,
    F: Fn(usize, StreamCx) -> Result<I> + Send + Sync + Copy,
{
    StreamFn { shards, f: Function::new(f) }
}

/// See [`stream_fn`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(bound = "F: Copy + Send + Sync + 'static")]
pub struct StreamFn<F> {
    shards: usize,
    f: Function<F>,
}

impl<T, I, F> IterableDataset for StreamFn<F>
where
    T: Collate,
    I: Iterator<Item = Result<T>> + Send + 'static,
    F: Fn(usize, StreamCx) -> Result<I> + Send + Sync,
{
    type Item = T;
    type Batch = T::Batch;

    fn shards(&self) -> usize {
        self.shards
    }

    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, T>> {
        Ok(Box::new((self.f)(shard, cx)?))
    }

    fn collate(&self, items: Vec<T>) -> Result<T::Batch> {
        T::collate(items)
    }
}

/// The stream of one of several data sets. Each has its own randomness.
fn drawn<D: IterableDataset>(
    dataset: &D,
    source: usize,
    shard: usize,
    cx: StreamCx,
) -> Result<Stream<'_, Drawn<D::Item>>> {
    let stream = dataset.stream(shard, cx.below(source as u64, shard));
    let items = stream.map_err(|error| error.at_if_absent("data set", source))?;
    Ok(Box::new(items.map(move |item| match item {
        Ok(item) => Ok(Drawn { source, item }),
        Err(error) => Err(error.at_if_absent("data set", source)),
    })))
}

impl<D: fmt::Debug, F> fmt::Debug for MapStream<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MapStream").field(&self.dataset).finish()
    }
}

impl<D: fmt::Debug, F> fmt::Debug for FilterStream<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FilterStream").field(&self.dataset).finish()
    }
}

impl<F> fmt::Debug for StreamFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamFn").field("shards", &self.shards).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leyden_process::Error;

    /// Shard s counts from 100 s; each sixth item is an error.
    fn counting(
        shards: usize,
        length: i64,
    ) -> impl IterableDataset<Item = i64, Batch = crate::Array<i64>> + Copy {
        stream_fn(shards, |shard, _| {
            Ok((0..)
                .map(move |i| if i % 6 == 5 { Err(Error::msg("sixth")) } else { Ok(100 * shard as i64 + i) }))
        })
        .take(length as usize)
    }

    fn read<D: IterableDataset>(dataset: &D, shard: usize, epoch: u64) -> Vec<Option<D::Item>> {
        dataset.stream(shard, StreamCx::new(1, epoch, shard)).unwrap().map(Result::ok).collect()
    }

    #[test]
    fn errors_keep_their_places_in_a_chain_of_adapters() {
        let chain = counting(2, 9).filter(|x| x % 2 == 0).map(|x, _: &mut SampleRng| Ok(x * 10)).take(5);
        assert_eq!(read(&chain, 0, 0), [Some(0), Some(20), Some(40), None, Some(60)]);
        assert_eq!(read(&chain, 1, 0)[0], Some(1000));
        assert_eq!(chain.collate(vec![1, 2]).unwrap()[..], [1, 2]);
    }

    #[test]
    fn a_window_shuffles_by_epoch_and_shard_and_loses_nothing() {
        const WINDOW: usize = 16;
        let numbers = stream_fn(2, |_, _| Ok((0..200_i64).map(Ok)));
        let shuffled = numbers.shuffle_window(WINDOW);
        let read = |shard, epoch| read(&shuffled, shard, epoch).into_iter().flatten().collect::<Vec<_>>();
        let order = read(0, 0);
        assert_eq!(order, read(0, 0));
        assert!(order != read(0, 1) && order != read(1, 0));
        assert!(order.iter().enumerate().all(|(place, &item)| item < (place + WINDOW) as i64), "{order:?}");
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(order != sorted && sorted.into_iter().eq(0..200));
        for window in [0, 1] {
            assert!(
                super::tests::read(&numbers.shuffle_window(window), 0, 0).into_iter().flatten().eq(0..200)
            );
        }
    }

    #[test]
    fn stacked_maps_draw_different_numbers() {
        let draw = |x: Vec<u8>, rng: &mut SampleRng| Ok([x, rng.next_u64().to_le_bytes().to_vec()].concat());
        let twice = stream_fn(1, |_, _| Ok(std::iter::once(Ok(Vec::new())))).map(draw).map(draw);
        let drawn = read(&twice, 0, 0).remove(0).unwrap();
        assert_ne!(drawn[..8], drawn[8..]);
        assert_eq!(read(&twice, 0, 0).remove(0).unwrap(), drawn);
    }

    #[test]
    fn a_chain_has_all_shards_and_its_batches_keep_their_order() {
        let chain = ChainDataset::new(vec![counting(1, 2), counting(2, 1)]).unwrap();
        assert_eq!(chain.shards(), 3);
        let heads: Vec<_> = (0..3).map(|shard| read(&chain, shard, 0)[0].unwrap()).collect();
        assert_eq!(
            heads.iter().map(|head| (head.source, head.item)).collect::<Vec<_>>(),
            [(0, 0), (1, 0), (1, 100)]
        );
        assert_eq!(chain.collate(vec![heads[2], heads[0], heads[1]]).unwrap()[..], [100, 0, 0]);
        assert!(chain.stream(3, StreamCx::new(0, 0, 3)).is_err());
        assert!(ChainDataset::new([counting(1, 1)][1..].to_vec()).is_err());
    }

    #[test]
    fn a_mixture_reads_each_shard_once_and_ends_with_the_first_that_is_used_up() {
        let numbers =
            |shards| stream_fn(shards, |shard, _| Ok((0..4).map(move |i| Ok(10 * shard as i64 + i))));
        let mixed = numbers(2).mix([numbers(5)], &[1.0, 2.0]).unwrap();
        assert_eq!(mixed.shards(), 2);
        let items = |shard| {
            read(&mixed, shard, 0)
                .into_iter()
                .flatten()
                .map(|drawn| (drawn.source, drawn.item))
                .collect::<Vec<_>>()
        };
        let of = |source, shard| {
            items(shard).into_iter().filter(|item| item.0 == source).map(|item| item.1).collect::<Vec<_>>()
        };
        assert_eq!(of(0, 0), [0, 1, 2, 3]);
        assert_eq!(of(1, 0), [0, 1, 2, 3, 20, 21, 22, 23, 40]);
        assert_eq!(of(1, 1)[..5], [10, 11, 12, 13, 30]);
        assert_eq!(items(0)[..4], [(1, 0), (0, 0), (1, 1), (1, 2)]);
        assert!(mixed.stream(2, StreamCx::new(0, 0, 2)).is_err());
    }
}
