//! Batches of streams: the loader of an [`IterableDataset`].
//!
//! Shards are dealt out to *lanes*, which are read side by side: batch *t* is the next one of lane *t* mod L, as long as
//! all lanes have one. How many lanes there are is part of the order, and says nothing of workers: each worker reads some
//! of the lanes, from the first sample to the last. So batches do not depend on how many workers there are, and a worker
//! that died is replaced by one that reads its lanes again up to where it was. For the same reason, going on inside an
//! epoch reads what was before: a stream cannot be entered in the middle.

#![expect(
    clippy::disallowed_methods,
    reason = "ouroboros takes its values apart by `forget`; nothing is leaked"
)]

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leyden_process::{Error, Result, contain};
use ouroboros::self_referencing;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::builder::DataLoaderBuilder;
use super::{Batch, DataLoader, Epoch, Loader, Timings, after_the_end};
use crate::batching::{Share, other_share};
use crate::codes::{LOADER_ARGUMENT, NO_BATCHES, STREAM_LENGTH, STREAM_PANICKED};
use crate::dataset::{Dataset, SampleCx};
use crate::iterable::{IterableDataset, Stream, StreamCx};
use crate::permutation::Permutation;
use crate::rng::mix;
use crate::workers::{Whole, Workers, WorkersFor};

/// Batches of a data set that is streams (PyTorch: `DataLoader` of an `IterableDataset`).
///
/// ```
/// use leyden_data::{StreamLoader, stream_fn};
///
/// // Four shards of ten numbers each.
/// let numbers = stream_fn(4, |shard, _| Ok((0..10).map(move |n| Ok((10 * shard + n) as i64))));
/// let loader = StreamLoader::builder(numbers).batch_size(5).batches_per_epoch(8).lanes(2).build()?;
/// let first = loader.epoch(0).next().expect("there are eight")?;
/// assert_eq!(first.data[..], [0, 1, 2, 3, 4]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
pub struct StreamLoader<D: IterableDataset + 'static> {
    /// One for each worker, or one without.
    parts: Vec<DataLoader<Lanes<D>>>,
    /// The batches of each lane.
    counts: Vec<usize>,
    description: String,
    /// Which shards it reads: this rank's, of so many.
    share: (usize, usize),
}

/// The settings of a [`StreamLoader`].
#[must_use = "a builder does nothing until `.build()`"]
pub struct StreamLoaderBuilder<D: IterableDataset + 'static> {
    dataset: D,
    batch_size: usize,
    drop_last: bool,
    batches: Option<usize>,
    lanes: usize,
    shuffle_shards: bool,
    rank: usize,
    world_size: usize,
    workers: Box<dyn WorkersFor<Lanes<D>>>,
    settings: Vec<Setting<D>>,
}

/// A setting that goes on to the loader of each worker.
type Setting<D> = Box<dyn Fn(DataLoaderBuilder<Lanes<D>>) -> DataLoaderBuilder<Lanes<D>>>;

impl<D: IterableDataset + 'static> StreamLoader<D> {
    /// A loader of `dataset`, to be configured.
    pub fn builder(dataset: D) -> StreamLoaderBuilder<D> {
        StreamLoaderBuilder {
            dataset,
            batch_size: 1,
            drop_last: false,
            batches: None,
            lanes: LANES,
            shuffle_shards: false,
            rank: 0,
            world_size: 1,
            workers: Box::new(Workers::inline()),
            settings: Vec::new(),
        }
    }

    /// The batches of an epoch; workers begin at once. For a part of it, see [`Loader::epoch`].
    pub fn epoch(&self, epoch: u64) -> Box<dyn Iterator<Item = Result<Batch<D::Batch>>> + '_> {
        Loader::epoch(self, epoch, 0)
    }

    /// What the batches of each worker have cost so far, and what the loader waited for.
    pub fn timings(&self) -> Vec<Timings> {
        self.parts.iter().map(DataLoader::timings).collect()
    }
}

impl<D: IterableDataset + 'static> StreamLoaderBuilder<D> {
    /// Samples per batch, on each rank (default 1).
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.batch_size = samples;
        self
    }

    /// Whether the last batch of a lane is left out if it is not full (default false).
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// How many batches an epoch has, on each rank. Needed where the data set does not know the lengths of its shards
    /// ([`IterableDataset::shard_len`]); each lane must have its share of them, or its epoch ends in an error.
    pub fn batches_per_epoch(mut self, batches: usize) -> Self {
        self.batches = Some(batches);
        self
    }

    /// How many shards are read side by side, on each rank (default 4, or as many as there are shards). It is part of the
    /// order; more workers than lanes have nothing to do.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes;
        self
    }

    /// Whether each epoch reads the shards of a lane in an order of its own (default false). What order samples have
    /// within a shard is the data set's:
    /// [`shuffle_window`](crate::IterableDatasetExt::shuffle_window) mixes them.
    pub fn shuffle_shards(mut self, shuffle: bool) -> Self {
        self.shuffle_shards = shuffle;
        self
    }

    /// Which shards to read: every `world_size`-th from `rank` on (default 0 of 1: all).
    pub fn rank(mut self, rank: usize, world_size: usize) -> Self {
        (self.rank, self.world_size) = (rank, world_size);
        self
    }

    /// That many worker threads (default 0).
    pub fn num_workers(self, threads: usize) -> Self {
        self.workers(Workers::threads(threads))
    }

    /// Who reads the streams (default [`Workers::inline`]). Each worker reads lanes of its own, so more workers than lanes
    /// are not started, `threads_each` counts as so many workers, and `auto` is a thread for each core. Errors name the
    /// lane.
    pub fn workers(mut self, workers: impl WorkersFor<Lanes<D>> + 'static) -> Self {
        self.workers = Box::new(workers);
        self
    }

    /// What the order and the samples' randomness depend on, with the epoch: as
    /// [`DataLoaderBuilder::seed`].
    pub fn seed(self, seed: u64) -> Self {
        self.each(move |part| part.seed(seed))
    }

    /// How long a worker may be at one batch before it is ended and replaced: as
    /// [`DataLoaderBuilder::timeout`].
    pub fn timeout(self, limit: Duration) -> Self {
        self.each(move |part| part.timeout(limit))
    }

    /// What else holds for each worker's part as for any loader: `prefetch_factor`, `warn_after`, `restarts`,
    /// `persistent_workers`, `max_batch_bytes`.
    ///
    /// ```
    /// # use leyden_data::{StreamLoader, stream_fn};
    /// # let numbers = stream_fn(4, |shard, _| Ok((0..10).map(move |n| Ok((10 * shard + n) as i64))));
    /// let loader = StreamLoader::builder(numbers).batches_per_epoch(8).each(|part| part.prefetch_factor(4));
    /// ```
    pub fn each(
        mut self,
        setting: impl Fn(DataLoaderBuilder<Lanes<D>>) -> DataLoaderBuilder<Lanes<D>> + 'static,
    ) -> Self {
        self.settings.push(Box::new(setting));
        self
    }

    /// The loader, with its workers started.
    ///
    /// # Errors
    /// `L0101` for impossible settings, also where the number of batches is not known; `L0102` if there are none; as
    /// [`DataLoaderBuilder::build`] for workers.
    pub fn build(self) -> Result<StreamLoader<D>> {
        let Self { dataset, batch_size, drop_last, batches, rank, world_size, shuffle_shards, .. } = self;
        let shards = dataset.shards();
        check(batch_size, self.lanes, rank, world_size, shards)?;
        let rule = Rule { batch_size, drop_last, shuffle_shards };
        let of_rank = |rank: usize| deal((rank..shards).step_by(world_size).collect(), self.lanes);
        let lanes = of_rank(rank);
        let counts = match batches {
            Some(batches) => share(batches, lanes.len()),
            // Each rank makes as many steps as the one with the fewest.
            None => {
                let ranks: Option<Vec<Vec<usize>>> = (0..world_size)
                    .map(|rank| of_rank(rank).iter().map(|lane| rule.count(&dataset, lane)).collect())
                    .collect();
                let Some(ranks) = ranks else {
                    return Err(Error::new(
                        LOADER_ARGUMENT,
                        "the number of batches in an epoch is not known",
                    )
                    .why(
                        "the data set does not know the lengths of its shards (`IterableDataset::shard_len`)",
                    )
                    .hint("say how many batches an epoch is to have: `.batches_per_epoch(n)`"));
                };
                let fewest = ranks.iter().map(|counts| counts.iter().sum()).min().unwrap_or(0);
                cut(&ranks[rank], fewest)
            }
        };
        if counts.iter().sum::<usize>() == 0 {
            return Err(Error::new(NO_BATCHES, "the streams have no batches")
                .at("shards", shards)
                .at("batch_size", batch_size)
                .hint("check the files that the data set was made of, or use a smaller `batch_size`"));
        }
        let workers = self.workers.count().min(lanes.len());
        let dataset = Arc::new(dataset);
        let parts = (0..workers.max(1))
            .map(|worker| {
                let mine = || (worker..lanes.len()).step_by(workers.max(1));
                let mut part = Lanes::new(Arc::clone(&dataset), rule);
                for lane in mine() {
                    part.add(lane, lanes[lane].clone(), counts[lane]);
                }
                let place = Whole { worker, workers: workers.max(1) };
                let builder = DataLoader::builder(part).part(self.workers.one(), place);
                self.settings.iter().fold(builder, |builder, setting| setting(builder)).build()
            })
            .collect::<Result<Vec<_>>>()?;
        let description = format!(
            "{shards} shards, {} lanes, batch_size {batch_size}, drop_last {drop_last}, shuffle_shards {shuffle_shards}, \
             world_size {world_size}, {} batches",
            lanes.len(),
            counts.iter().sum::<usize>(),
        );
        Ok(StreamLoader { parts, counts, description, share: (rank, world_size) })
    }
}

fn check(batch_size: usize, lanes: usize, rank: usize, world_size: usize, shards: usize) -> Result<()> {
    let wrong = |what: &str| Error::new(LOADER_ARGUMENT, what);
    if batch_size == 0 {
        return Err(wrong("a batch must have at least one sample").at("batch_size", 0));
    }
    if lanes == 0 {
        return Err(wrong("at least one shard must be read at a time").at("lanes", 0));
    }
    if rank >= world_size {
        return Err(wrong("the rank is not in the world").at("rank", rank).at("world_size", world_size));
    }
    if shards > MOST_SHARDS {
        return Err(wrong("so many shards cannot be meant")
            .at("shards", shards)
            .at("limit", MOST_SHARDS)
            .hint("a shard is a stream of many samples: does `shards` count samples, or underflow?"));
    }
    if shards < world_size {
        return Err(wrong("there are fewer shards than ranks")
            .at("shards", shards)
            .at("world_size", world_size)
            .why("a stream cannot be split: a rank without a shard would have nothing to train on")
            .hint("write the data as more shards"));
    }
    Ok(())
}

/// Shards dealt out to at most `lanes` lanes.
fn deal(shards: Vec<usize>, lanes: usize) -> Vec<Vec<usize>> {
    let lanes = lanes.min(shards.len());
    (0..lanes).map(|lane| shards.iter().copied().skip(lane).step_by(lanes).collect()).collect()
}

/// `batches` batches taken from `lanes` lanes in turn: how many of each.
fn share(batches: usize, lanes: usize) -> Vec<usize> {
    (0..lanes).map(|lane| batches.saturating_sub(lane).div_ceil(lanes)).collect()
}

/// How many of each lane's batches are among the first `batches`.
fn cut(counts: &[usize], batches: usize) -> Vec<usize> {
    let mut cut = vec![0; counts.len()];
    for batch in 0..batches.min(counts.iter().sum()) {
        cut[locate(counts, batch).0] += 1;
    }
    cut
}

/// The lane of batch `batch`, and which of the lane's batches it is: lanes take turns as long as they have batches.
fn locate(counts: &[usize], batch: usize) -> (usize, usize) {
    let (mut round, mut before) = (0, 0);
    loop {
        let live: Vec<usize> = (0..counts.len()).filter(|&lane| counts[lane] > round).collect();
        let Some(next) = live.iter().map(|&lane| counts[lane]).min() else { return (0, usize::MAX) };
        let here = (next - round) * live.len();
        if batch - before < here {
            let within = batch - before;
            return (live[within % live.len()], round + within / live.len());
        }
        before += here;
        round = next;
    }
}

impl<D: IterableDataset + 'static> Loader<D::Batch> for StreamLoader<D> {
    fn len(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Going on inside an epoch reads the streams from their beginning.
    fn epoch(&self, epoch: u64, from: usize) -> Box<dyn Iterator<Item = Result<Batch<D::Batch>>> + '_> {
        if let Some(error) = after_the_end(self.len(), epoch, from) {
            return Box::new(std::iter::once(Err(error)));
        }
        let mut done = vec![0; self.parts.len()];
        for batch in 0..from.min(self.len()) {
            done[locate(&self.counts, batch).0 % self.parts.len()] += 1;
        }
        let parts = self.parts.iter().zip(done).map(|(part, done)| part.epoch_from(epoch, done)).collect();
        let trained = vec![Duration::ZERO; self.parts.len()];
        Box::new(Streamed { counts: &self.counts, parts, trained, handed: None, batches: from..self.len() })
    }

    fn set_sequential(&mut self) {
        // The order is the streams': only that of shards could be fixed, and it belongs to the data set's description.
    }

    /// The shards of a stream were dealt out when it was built.
    fn set_share(&mut self, share: &Share) -> Result<()> {
        match self.share == (share.rank, share.world_size) && share.parts == 1 {
            true => Ok(()),
            false => Err(other_share(self.share, share)),
        }
    }

    fn set_default_seed(&mut self, seed: u64) {
        self.parts.iter_mut().for_each(|part| part.set_default_seed(seed));
    }

    fn identity(&self) -> String {
        let seed = self.parts.first().map_or(0, DataLoader::seed);
        format!("{}, seed {seed}", self.description)
    }
}

impl<D: IterableDataset + 'static> fmt::Debug for StreamLoader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StreamLoader").field(&self.description).finish()
    }
}

impl<D: IterableDataset + 'static> fmt::Debug for StreamLoaderBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch_size, lanes, batches, .. } = self;
        f.debug_struct("StreamLoaderBuilder")
            .field("batch_size", batch_size)
            .field("lanes", lanes)
            .field("batches_per_epoch", batches)
            .finish_non_exhaustive()
    }
}

/// An epoch: the workers' batches, in the order of all lanes.
struct Streamed<'a, D: IterableDataset + 'static> {
    counts: &'a [usize],
    parts: Vec<Epoch<'a, Lanes<D>>>,
    /// How long the trainer has worked since the newest batch of each part.
    trained: Vec<Duration>,
    /// When the newest batch of all was handed out.
    handed: Option<Instant>,
    batches: Range<usize>,
}

impl<D: IterableDataset + 'static> Iterator for Streamed<'_, D> {
    type Item = Result<Batch<D::Batch>>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.batches.next()?;
        let (lane, _) = locate(self.counts, index);
        let part = lane % self.parts.len();
        // What other parts are waited for is no work of the trainer's.
        let pause = self.handed.map(|handed| handed.elapsed()).unwrap_or_default();
        self.trained.iter_mut().for_each(|trained| *trained += pause);
        let trained = std::mem::take(&mut self.trained[part]);
        let batch = self.parts[part].next_after(trained).unwrap_or_else(|| {
            Err(Error::new(STREAM_LENGTH, "a part of the streams ended before its length").at("lane", lane))
        });
        self.handed = Some(Instant::now());
        Some(
            batch
                .map(|Batch { data: (data, samples), .. }| Batch { data, samples, padding: 0, index })
                .map_err(
                    // The parts count their own batches.
                    |error| {
                        error
                            .relabel(|label| {
                                matches!(label, "batch" | "sample" | "position" | "positions")
                                    .then(|| format!("{label} of the worker"))
                            })
                            .at("batch", index)
                            .at("lane", lane)
                    },
                ),
        )
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.batches.size_hint()
    }
}

impl<D: IterableDataset + 'static> FusedIterator for Streamed<'_, D> {}

/// How a lane's samples become batches.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Rule {
    batch_size: usize,
    drop_last: bool,
    shuffle_shards: bool,
}

impl Rule {
    /// The batches of a lane, where the lengths of its shards are known.
    fn count<D: IterableDataset>(&self, dataset: &D, shards: &[usize]) -> Option<usize> {
        let samples: usize = shards.iter().map(|&shard| dataset.shard_len(shard)).sum::<Option<usize>>()?;
        Some(if self.drop_last { samples / self.batch_size } else { samples.div_ceil(self.batch_size) })
    }
}

/// Some lanes, as a data set whose samples are whole batches: how a worker sees streams. It is an implementation detail
/// that shows in the bounds of [`StreamLoaderBuilder::workers`].
pub struct Lanes<D: IterableDataset + 'static> {
    dataset: Arc<D>,
    rule: Rule,
    lanes: Vec<Lane<D>>,
}

struct Lane<D: IterableDataset + 'static> {
    number: usize,
    shards: Vec<usize>,
    batches: usize,
    reading: Mutex<Option<Reading<D>>>,
}

/// A lane that is being read.
struct Reading<D: IterableDataset + 'static> {
    seed: u64,
    epoch: u64,
    /// The lane's batch that comes next.
    next: usize,
    /// The lane's shards that are not begun, the next one last.
    left: Vec<usize>,
    open: Option<Open<D>>,
}

/// A stream, with the data set that it borrows from.
#[self_referencing]
struct Open<D: IterableDataset + 'static> {
    dataset: Arc<D>,
    shard: usize,
    #[borrows(dataset)]
    #[not_covariant]
    stream: Stream<'this, D::Item>,
}

impl<D: IterableDataset + 'static> Lanes<D> {
    fn new(dataset: Arc<D>, rule: Rule) -> Self {
        Self { dataset, rule, lanes: Vec::new() }
    }

    fn add(&mut self, number: usize, shards: Vec<usize>, batches: usize) {
        self.lanes.push(Lane { number, shards, batches, reading: Mutex::new(None) });
    }

    fn counts(&self) -> Vec<usize> {
        self.lanes.iter().map(|lane| lane.batches).collect()
    }

    /// The next samples of a lane, at most a batch of them.
    fn gather(&self, reading: &mut Reading<D>) -> Result<Vec<D::Item>> {
        // A batch may be asked for that is larger than the streams are, and than memory.
        let mut items = Vec::with_capacity(self.rule.batch_size.min(RESERVED));
        while items.len() < self.rule.batch_size {
            let open = match &mut reading.open {
                Some(open) => open,
                None => {
                    let Some(shard) = reading.left.pop() else { break };
                    let cx = StreamCx::new(reading.seed, reading.epoch, shard);
                    let opened = Open::try_new(Arc::clone(&self.dataset), shard, |dataset| {
                        contained(shard, || dataset.stream(shard, cx))
                    });
                    reading.open.insert(opened?)
                }
            };
            let shard = *open.borrow_shard();
            let item = open.with_stream_mut(|stream| contained(shard, || stream.next().transpose()))?;
            match item {
                Some(item) => items.push(item),
                None => reading.open = None,
            }
        }
        Ok(items)
    }

    fn begin(&self, lane: &Lane<D>, seed: u64, epoch: u64) -> Reading<D> {
        let shards = lane.shards.len() as u64;
        let order = Permutation::new(shards, mix(seed, &[SHARDS, lane.number as u64, epoch]));
        let place = |position| if self.rule.shuffle_shards { order.at(position) } else { position };
        let left = (0..shards).rev().map(|position| lane.shards[place(position) as usize]).collect();
        Reading { seed, epoch, next: 0, left, open: None }
    }
}

fn contained<T>(shard: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    contain(work)
        .unwrap_or_else(|panic| {
            Err(panic.explain(Error::new(STREAM_PANICKED, "the data set panicked in a stream")))
        })
        .map_err(|error| error.at("shard", shard))
}

/// A sample of lanes is what a batch is made of; a batch of lanes is that batch, with the number of samples in it.
impl<D: IterableDataset + 'static> Dataset for Lanes<D> {
    type Item = Vec<D::Item>;
    type Batch = (D::Batch, usize);

    fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.batches).sum()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        let (lane, batch) = locate(&self.counts(), index);
        let lane = &self.lanes[lane];
        // Whatever a panic left behind is read again from the beginning.
        let mut slot = lane.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let going_on =
            slot.take().filter(|at| (at.seed, at.epoch) == (cx.seed(), cx.epoch()) && at.next <= batch);
        let mut reading = going_on.unwrap_or_else(|| self.begin(lane, cx.seed(), cx.epoch()));
        while reading.next < batch {
            // What is wrong with an earlier batch was, or will be, told in its own place.
            let _ = self.gather(&mut reading);
            reading.next += 1;
        }
        let items = self.gather(&mut reading);
        // An error of one sample loses its batch; the stream goes on after it.
        reading.next += 1;
        *slot = Some(reading);
        let items = items?;
        if items.is_empty() || (self.rule.drop_last && items.len() < self.rule.batch_size) {
            return Err(Error::new(STREAM_LENGTH, "a lane of streams is shorter than it was said to be")
                .at("lane's batches", format_args!("{batch} of {}", lane.batches))
                .at("shards", format_args!("{:?}", lane.shards))
                .hint(
                    "`.batches_per_epoch(n)` is too high, or `shard_len` does not count what `stream` gives",
                ));
        }
        Ok(items)
    }

    fn collate(&self, mut items: Vec<Self::Item>) -> Result<Self::Batch> {
        let items = items.pop().ok_or_else(|| Error::new(STREAM_LENGTH, "a batch of streams is empty"))?;
        let samples = items.len();
        Ok((self.dataset.collate(items)?, samples))
    }
}

impl<D: IterableDataset + 'static> fmt::Debug for Lanes<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes")
            .field("rule", &self.rule)
            .field("lanes", &self.lanes.len())
            .finish_non_exhaustive()
    }
}

/// Number, shards and batches of each lane.
type Table = Vec<(usize, Vec<usize>, usize)>;

impl<D: IterableDataset + Serialize + 'static> Serialize for Lanes<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let table: Table =
            self.lanes.iter().map(|lane| (lane.number, lane.shards.clone(), lane.batches)).collect();
        (&*self.dataset, self.rule, table).serialize(serializer)
    }
}

impl<'de, D: IterableDataset + Deserialize<'de> + 'static> Deserialize<'de> for Lanes<D> {
    fn deserialize<T: Deserializer<'de>>(deserializer: T) -> Result<Self, T::Error> {
        let (dataset, rule, table) = <(D, Rule, Table)>::deserialize(deserializer)?;
        let mut lanes = Self::new(Arc::new(dataset), rule);
        table.into_iter().for_each(|(number, shards, batches)| lanes.add(number, shards, batches));
        Ok(lanes)
    }
}

/// Enough to keep a few workers busy, and few enough to keep files open.
const LANES: usize = 4;
/// More of them than any data set is written as: a mistake, and their list would fill the memory.
const MOST_SHARDS: usize = 1 << 26;
/// At most so many samples are reserved room for in advance.
const RESERVED: usize = 1 << 10;
/// Keeps the order of shards apart from other uses of the same seed.
const SHARDS: u64 = 0x7368_6172_6473;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::stream_fn;
    use crate::array::Array;
    use crate::collate::default_collate;

    /// Shards of these lengths; a sample says which it is.
    #[derive(Serialize, Deserialize)]
    struct Shards {
        lengths: Vec<usize>,
        known: bool,
        torn: Option<usize>,
    }

    impl Shards {
        fn of(lengths: impl Into<Vec<usize>>) -> Self {
            Self { lengths: lengths.into(), known: true, torn: None }
        }
    }

    impl IterableDataset for Shards {
        type Item = (i64, u64);
        type Batch = (Array<i64>, Array<u64>);

        fn shards(&self) -> usize {
            self.lengths.len()
        }

        fn shard_len(&self, shard: usize) -> Option<usize> {
            self.known.then(|| self.lengths[shard])
        }

        fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, Self::Item>> {
            Ok(Box::new((0..self.lengths[shard]).map(move |n| {
                let number = 100 * shard + n;
                if self.torn == Some(number) {
                    panic!("torn at {number}");
                }
                Ok((number as i64, cx.rng(n as u64).next_u64()))
            })))
        }

        fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
            default_collate(items)
        }
    }

    fn numbers(loader: &StreamLoader<Shards>, epoch: u64) -> Vec<Vec<i64>> {
        loader.epoch(epoch).map(|batch| batch.unwrap().data.0.into_vec()).collect()
    }

    #[test]
    fn lanes_take_turns_as_long_as_they_have_batches() {
        let counts = [3, 1, 0, 2];
        let order: Vec<_> = (0..6).map(|batch| locate(&counts, batch)).collect();
        assert_eq!(order, [(0, 0), (1, 0), (3, 0), (0, 1), (3, 1), (0, 2)]);
        assert_eq!(cut(&counts, 4), [2, 1, 0, 1]);
        assert_eq!((share(7, 3), share(2, 3)), (vec![3, 2, 2], vec![1, 1, 0]));
        assert_eq!(deal(vec![0, 2, 4, 6, 8], 2), [vec![0, 4, 8], vec![2, 6]]);
    }

    #[test]
    fn each_sample_comes_once_in_an_order_that_workers_do_not_change() {
        let build = |workers: usize| {
            let builder = StreamLoader::builder(Shards::of([5, 0, 7, 3, 1])).batch_size(2).lanes(3);
            builder.shuffle_shards(true).num_workers(workers).each(|part| part.seed(3)).build().unwrap()
        };
        let alone = build(0);
        let whole: Vec<_> = alone.epoch(1).map(Result::unwrap).collect();
        assert_eq!(whole.len(), alone.len());
        let mut seen: Vec<i64> = whole.iter().flat_map(|batch| batch.data.0.to_vec()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 200, 201, 202, 203, 204, 205, 206, 300, 301, 302, 400]);
        for workers in 1..5 {
            let loader = build(workers);
            for from in 0..=whole.len() {
                let rest: Vec<_> = Loader::epoch(&loader, 1, from).map(Result::unwrap).collect();
                assert_eq!(rest, whole[from..], "{workers} workers, from {from}");
            }
        }
        assert_ne!(numbers(&alone, 1), numbers(&alone, 2));
    }

    #[test]
    fn ranks_share_the_shards_and_make_equally_many_steps() {
        let rank = |rank| {
            StreamLoader::builder(Shards::of([4, 4, 4, 2])).batch_size(2).rank(rank, 2).build().unwrap()
        };
        let (even, odd) = (rank(0), rank(1));
        assert_eq!((even.len(), odd.len()), (3, 3));
        assert_eq!(numbers(&even, 0), [[0, 1], [200, 201], [2, 3]]);
        assert_eq!(numbers(&odd, 0), [[100, 101], [300, 301], [102, 103]]);
    }

    #[test]
    fn an_epoch_of_unknown_length_needs_a_number_and_keeps_it() {
        let unknown = || StreamLoader::builder(Shards { known: false, ..Shards::of([6, 2]) }).batch_size(2);
        let error = unknown().build().map(drop).unwrap_err();
        assert_eq!(error.what(), "the number of batches in an epoch is not known");
        let loader = unknown().batches_per_epoch(2).build().unwrap();
        assert_eq!(numbers(&loader, 0), [[0, 1], [100, 101]]);

        let results: Vec<_> = unknown().batches_per_epoch(4).build().unwrap().epoch(0).collect();
        assert_eq!(results.len(), 4, "never a shorter epoch");
        let error = results[3].as_ref().unwrap_err();
        assert_eq!((error.code(), error.place("lane")), (STREAM_LENGTH, Some("1")));
        assert_eq!(error.place("batch"), Some("3"));
    }

    #[test]
    fn a_panic_in_a_stream_is_the_error_of_its_batch() {
        let torn = Shards { torn: Some(101), ..Shards::of([4, 4]) };
        let results: Vec<_> = StreamLoader::builder(torn).batch_size(2).build().unwrap().epoch(0).collect();
        let good: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(good[..2], [true, false]);
        let error = results[1].as_ref().unwrap_err();
        assert_eq!((error.code(), error.place("shard")), (STREAM_PANICKED, Some("1")));
        assert_eq!(error.reasons(), ["torn at 101"]);
    }

    #[test]
    fn a_torn_sample_loses_its_batch_alone_also_where_the_epoch_goes_on_behind_it() {
        let torn = || Shards { torn: Some(1), ..Shards::of([8]) };
        let loader = StreamLoader::builder(torn()).batch_size(2).build().unwrap();
        let firsts = |from| -> Vec<Option<i64>> {
            Loader::epoch(&loader, 0, from).map(|batch| batch.ok().map(|batch| batch.data.0[0])).collect()
        };
        let whole = firsts(0);
        assert_eq!(whole.iter().filter(|batch| batch.is_none()).count(), 1, "{whole:?}");
        assert_eq!(whole[0], None);
        for from in 1..=whole.len() {
            assert_eq!(firsts(from), whole[from..], "from {from}");
        }
    }

    #[test]
    fn a_batch_may_be_larger_than_the_streams_and_than_memory() {
        for batch_size in [1_000_000_000_000, usize::MAX] {
            let loader = StreamLoader::builder(Shards::of([3, 2])).batch_size(batch_size).build().unwrap();
            let sizes: Vec<_> = loader.epoch(0).map(|batch| batch.unwrap().samples).collect();
            assert_eq!(sizes, [3, 2]);
        }
    }

    #[test]
    fn more_shards_than_can_be_listed_are_refused() {
        let endless = stream_fn(usize::MAX, |_, _| Ok(std::iter::repeat_with(|| Ok(1_i64))));
        let error = StreamLoader::builder(endless).batches_per_epoch(1).build().unwrap_err();
        assert_eq!((error.code(), error.what()), (LOADER_ARGUMENT, "so many shards cannot be meant"));
    }

    #[test]
    fn a_seed_is_that_of_each_part() {
        let loader = StreamLoader::builder(Shards::of([3, 2])).seed(7).build().unwrap();
        assert!(loader.identity().ends_with("seed 7"), "{}", loader.identity());
    }

    #[test]
    fn going_on_after_the_end_is_an_error_not_an_empty_epoch() {
        let loader = StreamLoader::builder(Shards::of([4])).batch_size(2).build().unwrap();
        assert_eq!(Loader::epoch(&loader, 0, 2).count(), 0);
        assert!(Loader::epoch(&loader, 0, 3).next().unwrap().is_err());
    }

    #[test]
    fn impossible_settings_are_refused() {
        let builder = || StreamLoader::builder(Shards::of([4, 4]));
        for wrong in [builder().batch_size(0), builder().lanes(0), builder().rank(2, 2), builder().rank(0, 3)]
        {
            assert_eq!(wrong.build().map(drop).unwrap_err().code(), LOADER_ARGUMENT);
        }
        let error = StreamLoader::builder(Shards::of([0, 0])).build().map(drop).unwrap_err();
        assert_eq!(error.code(), NO_BATCHES);
    }
}
