//! Batches of a data set, in an order that is a function of seed, epoch and position.
//!
//! `DataLoader` works on the caller's thread, one batch when asked for one: no workers, no prefetch, nothing to
//! shut down. It holds no position; an epoch is an iterator made on demand, from any batch, in O(1), shuffled or
//! not.
//!
//! With W ranks and a batch size of B per rank, step *t* covers positions [tBW, (t+1)BW) of the epoch's order, and
//! rank *r* takes the *r*-th slice of B. Every sample of an epoch is seen once, on one rank: nothing is padded or
//! repeated (PyTorch's `DistributedSampler` repeats samples from the start instead). The tail of fewer than BW
//! positions is dropped with `drop_last`, and otherwise split as evenly as it goes, earlier ranks first, so that
//! last batches may differ by one sample between ranks: weigh by [`Batch::samples`]. All ranks have the same number
//! of batches; a tail that cannot give each rank a sample is refused when the loader is built.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;

use leyden_process::{Code, Error, Result, contain};
use serde::{Deserialize, Serialize};

use crate::codes::{
    COLLATE_PANICKED, GET_PANICKED, LOADER_ARGUMENT, NO_BATCHES, STATE_MISMATCH, UNEVEN_TAIL,
};
use crate::dataset::{Dataset, SampleCx};
use crate::permutation::Permutation;
use crate::rng::mix;

/// What a training step gets from a loader.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<B> {
    /// What the data set's `collate` made.
    pub data: B,
    /// How many samples are in it: the batch size, or fewer at the end of an epoch.
    pub samples: usize,
    /// Its number within the epoch, from 0.
    pub index: usize,
}

/// What a training loop needs of a loader. [`DataLoader`] is one; implement it for other sources of batches.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Loader` of `{B}` batches",
    note = "build a `DataLoader` whose data set has `type Batch = {B}`, or implement `leyden::Loader<{B}>`"
)]
pub trait Loader<B>: Send {
    /// Batches per epoch, on this rank; the same on every rank.
    fn len(&self) -> usize;

    /// Whether an epoch has no batches.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batches `from..len()` of an epoch. A batch depends on `epoch` and its index, not on where the iteration
    /// began. The iterator gives exactly one item for each of these batches, an error in the place of a batch that
    /// could not be made; it may be asked on after one.
    fn epoch(&self, epoch: u64, from: usize) -> Box<dyn Iterator<Item = Result<Batch<B>>> + '_>;

    /// Whether the order changes from epoch to epoch.
    fn is_shuffled(&self) -> bool;

    /// Fixes the order to that of the data set, for overfitting a few batches.
    fn set_sequential(&mut self);

    /// The seed to use where none was chosen: a trainer gives its own, so that it need not be handed on by hand.
    fn set_default_seed(&mut self, seed: u64) {
        let _ = seed;
    }

    /// What the batches depend on, in words: a training resumes inside an epoch only with a loader of equal
    /// identity. Empty where nothing can be said.
    fn identity(&self) -> String {
        String::new()
    }
}

/// Batches of a data set, made on the caller's thread (PyTorch: `DataLoader` with `num_workers=0`).
///
/// ```
/// # use leyden_data::{Dataset, Result, SampleCx};
/// # struct Squares;
/// # impl Dataset for Squares {
/// #     type Item = usize;
/// #     type Batch = Vec<usize>;
/// #     fn len(&self) -> usize { 10 }
/// #     fn get(&self, index: usize, _: &mut SampleCx) -> Result<usize> { Ok(index * index) }
/// #     fn collate(&self, items: Vec<usize>) -> Result<Vec<usize>> { Ok(items) }
/// # }
/// use leyden_data::DataLoader;
///
/// let loader = DataLoader::builder(Squares).batch_size(4).shuffle(true).seed(42).build()?;
/// let sizes: Vec<usize> = loader.epoch(0).map(|batch| Ok(batch?.samples)).collect::<Result<_>>()?;
/// assert_eq!(sizes, [4, 4, 2]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone)]
pub struct DataLoader<D> {
    dataset: D,
    /// The data set's length when the loader was built.
    samples: usize,
    batch_size: usize,
    shuffle: bool,
    /// `None`: nobody has chosen one.
    seed: Option<u64>,
    drop_last: bool,
    rank: usize,
    world_size: usize,
}

impl<D: Dataset> DataLoader<D> {
    fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// A loader of `dataset`, to be configured.
    pub fn builder(dataset: D) -> DataLoaderBuilder<D> {
        let loader = Self {
            dataset,
            samples: 0,
            batch_size: 1,
            shuffle: false,
            seed: None,
            drop_last: false,
            rank: 0,
            world_size: 1,
        };
        DataLoaderBuilder { loader }
    }

    /// The batches of an epoch. For a part of it, see [`Loader::epoch`].
    pub fn epoch(&self, epoch: u64) -> Epoch<'_, D> {
        self.epoch_from(epoch, 0)
    }

    /// The data set.
    pub fn dataset(&self) -> &D {
        &self.dataset
    }

    /// The place before batch `batch` of `epoch`, with what it depends on. It is the same on every rank.
    pub fn state(&self, epoch: u64, batch: usize) -> LoaderState {
        LoaderState {
            seed: self.seed(),
            epoch,
            batch,
            shuffle: self.shuffle,
            batch_size: self.batch_size,
            samples: self.samples,
            world_size: self.world_size,
        }
    }

    /// Whether going on from `state` with this loader continues the same epoch, sample for sample.
    ///
    /// # Errors
    /// `L0104` with both sides of everything that differs, or if the epoch has fewer batches than `state.batch`.
    pub fn check(&self, state: &LoaderState) -> Result<()> {
        let now = self.state(state.epoch, state.batch);
        let changed: Vec<(&str, String, String)> = [
            ("samples", state.samples.to_string(), now.samples.to_string()),
            ("batch_size", state.batch_size.to_string(), now.batch_size.to_string()),
            ("world_size", state.world_size.to_string(), now.world_size.to_string()),
            ("shuffle", state.shuffle.to_string(), now.shuffle.to_string()),
            ("seed", state.seed.to_string(), now.seed.to_string()),
        ]
        .into_iter()
        .filter(|(_, saved, now)| saved != now)
        .collect();
        if changed.is_empty() {
            return self.check_start(state.epoch, state.batch);
        }
        let error = Error::new(STATE_MISMATCH, "the loader is not the one whose state was saved")
            .why("the saved batch would be another place in another order: samples would repeat or be missed")
            .hint(
                "give the loader the saved values, or start at the beginning of an epoch without the state",
            );
        Err(changed.into_iter().fold(error, |error, (name, saved, now)| {
            error.at(name, format_args!("{saved} when saved, {now} now"))
        }))
    }

    fn check_start(&self, epoch: u64, batch: usize) -> Result<()> {
        if batch <= self.batches() {
            return Ok(());
        }
        Err(Error::new(STATE_MISMATCH, "an epoch cannot go on after its end")
            .at("epoch", epoch)
            .at("asked for", format_args!("batch {batch}"))
            .at("available", format_args!("{} batches", self.batches()))
            .hint("the state was saved with more data, a smaller batch size or without `drop_last`"))
    }

    fn epoch_from(&self, epoch: u64, from: usize) -> Epoch<'_, D> {
        let shuffled = || Permutation::new(self.samples as u64, mix(self.seed(), &[ORDER, epoch]));
        Epoch { loader: self, epoch, order: self.shuffle.then(shuffled), batches: from..self.batches() }
    }

    /// Positions that one step covers on all ranks. It saturates where a batch is larger than any data set.
    fn step(&self) -> usize {
        self.batch_size.saturating_mul(self.world_size)
    }

    /// Positions of the last, incomplete step.
    fn tail(&self) -> usize {
        self.samples % self.step()
    }

    fn batches(&self) -> usize {
        self.samples / self.step() + usize::from(!self.drop_last && self.tail() > 0)
    }

    /// The positions of this rank's batch.
    fn positions(&self, batch: usize) -> Range<usize> {
        let start = batch * self.step();
        let left = self.samples - start;
        if left >= self.step() {
            let start = start + self.rank * self.batch_size;
            return start..start + self.batch_size;
        }
        let (share, extra) = (left / self.world_size, left % self.world_size);
        let start = start + self.rank * share + self.rank.min(extra);
        start..start + share + usize::from(self.rank < extra)
    }

    /// Checks what the builder was given, once the data set's length is known.
    fn validate(&self) -> Result<()> {
        let Self { samples, batch_size, rank, world_size, .. } = *self;
        if batch_size == 0 {
            return Err(Error::new(LOADER_ARGUMENT, "a batch must have at least one sample")
                .at("batch_size", 0)
                .hint("set `.batch_size(n)` to 1 or more"));
        }
        if rank >= world_size {
            return Err(Error::new(LOADER_ARGUMENT, "the rank is not in the world")
                .at("rank", rank)
                .at("world_size", world_size)
                .hint("ranks go from 0 to the world size less one"));
        }
        if samples == 0 {
            return Err(Error::new(NO_BATCHES, "the data set is empty")
                .hint("check the path, the filter or the split that it was made with"));
        }
        if self.batches() == 0 {
            return Err(Error::new(NO_BATCHES, "`drop_last` drops the only step")
                .at("samples", samples)
                .at("one step", format_args!("{} ({batch_size} on each of {world_size} ranks)", self.step()))
                .hint("use a smaller `batch_size`, more data, or `.drop_last(false)`"));
        }
        if !self.drop_last && (1..world_size).contains(&self.tail()) {
            return Err(Error::new(
                UNEVEN_TAIL,
                "the last step of an epoch has fewer samples than there are ranks",
            )
            .at("last step", format_args!("{} samples for {world_size} ranks", self.tail()))
            .at("samples", samples)
            .at("batch_size", format_args!("{batch_size} on each rank"))
            .why("a rank without a batch would wait for ever, or train on a sample twice")
            .hint("use `.drop_last(true)`, another `batch_size`, or fewer samples"));
        }
        Ok(())
    }
}

impl<D: Dataset> Loader<D::Batch> for DataLoader<D> {
    fn len(&self) -> usize {
        self.batches()
    }

    /// A `from` after the end is one error, not an empty epoch.
    fn epoch(&self, epoch: u64, from: usize) -> Box<dyn Iterator<Item = Result<Batch<D::Batch>>> + '_> {
        match self.check_start(epoch, from) {
            Ok(()) => Box::new(self.epoch_from(epoch, from)),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn is_shuffled(&self) -> bool {
        self.shuffle
    }

    fn set_sequential(&mut self) {
        self.shuffle = false;
    }

    fn set_default_seed(&mut self, seed: u64) {
        self.seed.get_or_insert(seed);
    }

    fn identity(&self) -> String {
        let Self { samples, batch_size, shuffle, drop_last, world_size, .. } = self;
        let seed = self.seed();
        format!(
            "{samples} samples, batch_size {batch_size}, shuffle {shuffle}, seed {seed}, drop_last {drop_last}, \
             world_size {world_size}"
        )
    }
}

/// The settings; the data set need not be printable.
impl<D> fmt::Debug for DataLoader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataLoader")
            .field("samples", &self.samples)
            .field("batch_size", &self.batch_size)
            .field("shuffle", &self.shuffle)
            .field("seed", &self.seed)
            .field("drop_last", &self.drop_last)
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .finish_non_exhaustive()
    }
}

/// The settings of a [`DataLoader`]; names and defaults are those of PyTorch's.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `.build()`"]
pub struct DataLoaderBuilder<D> {
    loader: DataLoader<D>,
}

impl<D: Dataset> DataLoaderBuilder<D> {
    /// Samples per batch, on each rank (default 1).
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.loader.batch_size = samples;
        self
    }

    /// Whether each epoch has its own random order, else that of the data set (default false).
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.loader.shuffle = shuffle;
        self
    }

    /// What the order and the samples' randomness depend on, with the epoch (default: the trainer's, else 0, so that a
    /// run repeats unless it is told not to; PyTorch draws one from its global generator). It must be the same on every rank.
    pub fn seed(mut self, seed: u64) -> Self {
        self.loader.seed = Some(seed);
        self
    }

    /// Whether to leave out the last step of an epoch if it is not full on every rank (default false).
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.loader.drop_last = drop_last;
        self
    }

    /// Which slice of each step to take: that of `rank` of `world_size` (default 0 of 1: all).
    pub fn rank(mut self, rank: usize, world_size: usize) -> Self {
        self.loader.rank = rank;
        self.loader.world_size = world_size;
        self
    }

    /// The loader.
    ///
    /// # Errors
    /// `L0101` for a batch size of 0 or a rank outside the world, `L0102` if an epoch would have no batches, `L0103`
    /// if its last step would leave a rank without a sample.
    pub fn build(self) -> Result<DataLoader<D>> {
        let loader = DataLoader { samples: self.loader.dataset.len(), ..self.loader };
        loader.validate()?;
        Ok(loader)
    }
}

/// The batches of one epoch; see [`DataLoader::epoch`]. After an error it goes on with the next batch.
#[must_use = "an epoch loads nothing until it is iterated"]
pub struct Epoch<'a, D> {
    loader: &'a DataLoader<D>,
    epoch: u64,
    /// The shuffled order, if there is one.
    order: Option<Permutation>,
    batches: Range<usize>,
}

impl<D: Dataset> Epoch<'_, D> {
    fn load(&self, batch: usize) -> Result<Batch<D::Batch>> {
        let positions = self.loader.positions(batch);
        let samples = positions.len();
        let located = |error: Error| error.at("batch", batch).at("epoch", self.epoch);
        let items = self.gather(positions.clone()).map_err(located)?;
        let data = contain(|| self.loader.dataset.collate(items))
            .unwrap_or_else(|panic| Err(panicked(COLLATE_PANICKED, "collate", panic)))
            .map_err(|error| error.at("positions", format_args!("{positions:?} of the epoch")))
            .map_err(located)?;
        Ok(Batch { data, samples, index: batch })
    }

    fn gather(&self, positions: Range<usize>) -> Result<Vec<D::Item>> {
        // Outside the closure, to be known after a panic: one `contain` per batch is cheaper than one per sample.
        let mut at = positions.start;
        contain(|| {
            let mut items = Vec::with_capacity(positions.len());
            for position in positions {
                at = position;
                let index = self.index(position);
                let mut cx = SampleCx::new(self.loader.seed(), self.epoch, index);
                items.push(self.loader.dataset.get(index, &mut cx)?);
            }
            Ok(items)
        })
        .unwrap_or_else(|panic| Err(panicked(GET_PANICKED, "get", panic)))
        .map_err(|error| error.at("sample", self.index(at)).at("position", at))
    }

    /// Which sample stands at a position of this epoch.
    fn index(&self, position: usize) -> usize {
        self.order.as_ref().map_or(position, |order| order.at(position as u64) as usize)
    }
}

impl<D: Dataset> Iterator for Epoch<'_, D> {
    type Item = Result<Batch<D::Batch>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batches.next().map(|batch| self.load(batch))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.batches.size_hint()
    }
}

impl<D: Dataset> ExactSizeIterator for Epoch<'_, D> {}
impl<D: Dataset> FusedIterator for Epoch<'_, D> {}

/// A place in the data: before batch `batch` of `epoch`, of a loader with these settings. A few integers, for
/// checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// The loader's seed.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The next batch of the epoch.
    pub batch: usize,
    /// Whether the order was shuffled.
    pub shuffle: bool,
    /// Samples per batch on each rank.
    pub batch_size: usize,
    /// Length of the data set.
    pub samples: usize,
    /// Ranks that shared each step.
    pub world_size: usize,
}

fn panicked(code: Code, function: &str, panic: leyden_process::Panic) -> Error {
    panic.explain(Error::new(code, format!("the data set panicked in `{function}`")))
}

/// Keeps the order of an epoch apart from other uses of the same seed.
const ORDER: u64 = 0x006F_7264_6572;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_resumable;
    use leyden_process::error::USER;
    use std::cell::Cell;

    /// Each sample is its index and one draw.
    #[derive(Clone, Copy)]
    struct Counting(usize);

    impl Dataset for Counting {
        type Item = (usize, u64);
        type Batch = Vec<(usize, u64)>;

        fn len(&self) -> usize {
            self.0
        }

        fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
            assert_eq!(index, cx.index());
            Ok((index, cx.rng().next_u64()))
        }

        fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
            assert_eq!(items.len(), items.capacity(), "the items are reserved exactly");
            Ok(items)
        }
    }

    fn indices(loader: &DataLoader<Counting>, epoch: u64) -> Vec<Vec<usize>> {
        let batch = |batch: Result<Batch<Vec<(usize, u64)>>>| {
            batch.unwrap().data.into_iter().map(|(index, _)| index).collect()
        };
        loader.epoch(epoch).map(batch).collect()
    }

    #[test]
    fn goes_through_the_data_in_order_by_default() {
        let loader = DataLoader::builder(Counting(3)).build().unwrap();
        assert_eq!(indices(&loader, 0), [[0], [1], [2]]);
        let loader = DataLoader::builder(Counting(10)).batch_size(4).build().unwrap();
        assert_eq!(indices(&loader, 5), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        assert!(!loader.is_shuffled());
    }

    #[test]
    fn numbers_its_batches_and_counts_their_samples() {
        let loader = DataLoader::builder(Counting(10)).batch_size(4).build().unwrap();
        let batches: Vec<_> = loader.epoch(0).map(|batch| batch.unwrap()).collect();
        let counts: Vec<_> = batches.iter().map(|batch| (batch.index, batch.samples)).collect();
        assert_eq!(counts, [(0, 4), (1, 4), (2, 2)]);
        assert_eq!((loader.len(), loader.epoch(0).len()), (3, 3));
    }

    #[test]
    fn drops_an_incomplete_last_batch_when_asked_to() {
        let lens = |samples| {
            let builder = DataLoader::builder(Counting(samples)).batch_size(4).drop_last(true);
            let loader = builder.build().unwrap();
            (loader.len(), indices(&loader, 0).len())
        };
        assert_eq!([lens(7), lens(8), lens(9)], [(1, 1), (2, 2), (2, 2)]);
    }

    #[test]
    fn shuffles_anew_in_each_epoch_and_the_same_for_the_same_seed() {
        let shuffled =
            |seed| DataLoader::builder(Counting(100)).batch_size(7).shuffle(true).seed(seed).build().unwrap();
        let order = |seed, epoch| indices(&shuffled(seed), epoch).concat();
        let mut sorted = order(1, 0);
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
        assert_eq!(order(1, 3), order(1, 3));
        assert!(![order(1, 1), order(2, 0), (0..100).collect()].contains(&order(1, 0)));
    }

    #[test]
    fn a_batch_size_beyond_the_data_gives_one_batch() {
        let loader = DataLoader::builder(Counting(3)).batch_size(usize::MAX).build().unwrap();
        assert_eq!(indices(&loader, 0), [[0, 1, 2]]);
    }

    #[test]
    fn set_sequential_fixes_the_order() {
        let mut loader: Box<dyn Loader<_>> =
            Box::new(DataLoader::builder(Counting(4)).batch_size(4).shuffle(true).build().unwrap());
        assert!(loader.is_shuffled());
        loader.set_sequential();
        let first = loader.epoch(1, 0).next().unwrap().unwrap();
        assert!(first.data.iter().map(|&(index, _)| index).eq(0..4));
        assert!(!loader.is_shuffled() && !loader.is_empty());
    }

    #[test]
    fn resumes_at_any_batch_of_any_epoch() {
        for shuffle in [false, true] {
            let builder = DataLoader::builder(Counting(23)).batch_size(3).shuffle(shuffle).seed(7);
            assert_resumable(&builder.build().unwrap(), 4);
        }
    }

    #[test]
    #[should_panic(expected = "epoch 0 resumed at batch 0 differs in batch 0")]
    fn assert_resumable_finds_a_data_set_that_counts_its_calls() {
        struct Stateful(Cell<usize>);
        impl Dataset for Stateful {
            type Item = usize;
            type Batch = Vec<usize>;
            fn len(&self) -> usize {
                4
            }
            fn get(&self, _: usize, _: &mut SampleCx) -> Result<usize> {
                Ok(self.0.replace(self.0.get() + 1))
            }
            fn collate(&self, items: Vec<usize>) -> Result<Vec<usize>> {
                Ok(items)
            }
        }
        assert_resumable(&DataLoader::builder(Stateful(Cell::new(0))).build().unwrap(), 1);
    }

    #[test]
    fn ranks_share_each_step_and_see_every_sample_once() {
        for (world_size, samples, batch_size) in [(2, 20, 4), (3, 28, 4), (4, 4, 1), (5, 1000, 7), (3, 5, 4)]
        {
            let rank = |rank| {
                let builder = DataLoader::builder(Counting(samples)).batch_size(batch_size).shuffle(true);
                indices(&builder.rank(rank, world_size).build().unwrap(), 2)
            };
            let ranks: Vec<_> = (0..world_size).map(rank).collect();
            assert!(
                ranks.iter().all(|batches| batches.len() == ranks[0].len()),
                "as many steps on each rank"
            );
            let together: Vec<usize> = (0..ranks[0].len())
                .flat_map(|step| ranks.iter().flat_map(move |rank| rank[step].clone()))
                .collect();
            let whole =
                DataLoader::builder(Counting(samples)).batch_size(samples).shuffle(true).build().unwrap();
            assert_eq!(together, indices(&whole, 2).concat(), "{world_size} ranks, {samples} samples");
            let last: Vec<usize> = ranks.iter().map(|batches| batches.last().unwrap().len()).collect();
            assert!(last.iter().max().unwrap() - last.iter().min().unwrap() <= 1, "{last:?}");
        }
    }

    #[test]
    fn ranks_draw_the_randomness_of_the_samples_not_their_own() {
        let draws = |rank, world_size, batch_size| {
            let builder = DataLoader::builder(Counting(16)).batch_size(batch_size).shuffle(true);
            let loader = builder.rank(rank, world_size).build().unwrap();
            loader.epoch(1).flat_map(|batch| batch.unwrap().data).collect::<Vec<_>>()
        };
        let mut ranks = [draws(0, 2, 4), draws(1, 2, 4)].concat();
        let mut alone = draws(0, 1, 8);
        ranks.sort_unstable();
        alone.sort_unstable();
        assert_eq!(ranks, alone);
    }

    #[test]
    fn refuses_impossible_arguments() {
        let build = |configure: fn(DataLoaderBuilder<Counting>) -> DataLoaderBuilder<Counting>, samples| {
            configure(DataLoader::builder(Counting(samples))).build().unwrap_err()
        };
        let error = build(|builder| builder.batch_size(0), 5);
        assert_eq!((error.code(), error.place("batch_size")), (LOADER_ARGUMENT, Some("0")));
        let error = build(|builder| builder.rank(2, 2), 5);
        assert_eq!((error.place("rank"), error.place("world_size")), (Some("2"), Some("2")));
        let error = build(|builder| builder.rank(0, 0), 5);
        assert_eq!(error.code(), LOADER_ARGUMENT);
        let error = build(|builder| builder, 0);
        assert_eq!((error.code(), error.what()), (NO_BATCHES, "the data set is empty"));
        let error = build(|builder| builder.batch_size(4).rank(0, 2).drop_last(true), 7);
        assert_eq!((error.code(), error.what()), (NO_BATCHES, "`drop_last` drops the only step"));
        assert_eq!(error.place("one step"), Some("8 (4 on each of 2 ranks)"));
    }

    #[test]
    fn refuses_a_tail_that_leaves_a_rank_without_samples() {
        let builder = |samples| DataLoader::builder(Counting(samples)).batch_size(4).rank(1, 4);
        for samples in [16, 20, 26, 32] {
            builder(samples).build().unwrap();
        }
        builder(18).drop_last(true).build().unwrap();
        let error = builder(18).build().unwrap_err();
        assert_eq!(error.code(), UNEVEN_TAIL);
        assert_eq!(error.place("last step"), Some("2 samples for 4 ranks"));
    }

    #[test]
    fn checks_a_saved_state_against_itself() {
        let builder = |samples| DataLoader::builder(Counting(samples)).batch_size(4).seed(3).shuffle(true);
        let state = builder(10).build().unwrap().state(5, 2);
        assert_eq!((state.epoch, state.batch), (5, 2));
        builder(10).build().unwrap().check(&state).unwrap();
        builder(10).drop_last(true).build().unwrap().check(&state).unwrap();

        let error = builder(11).batch_size(2).seed(4).build().unwrap().check(&state).unwrap_err();
        let expected = "error[L0104]: the loader is not the one whose state was saved\n  \
                        samples     10 when saved, 11 now\n  batch_size  4 when saved, 2 now\n  \
                        seed        3 when saved, 4 now\n  \
                        why: the saved batch would be another place in another order: samples would repeat or be \
                        missed\n  fix: give the loader the saved values, or start at the beginning of an epoch \
                        without the state";
        assert_eq!(format!("{error:?}"), expected);
        let error = builder(10).shuffle(false).rank(0, 2).build().unwrap().check(&state).unwrap_err();
        assert_eq!(error.place("shuffle"), Some("true when saved, false now"));
        assert_eq!(error.place("world_size"), Some("1 when saved, 2 now"));
    }

    #[test]
    fn starting_after_the_end_is_an_error_not_an_empty_epoch() {
        let loader = DataLoader::builder(Counting(10)).batch_size(4).build().unwrap();
        assert_eq!(Loader::epoch(&loader, 0, 3).count(), 0);
        let results: Vec<_> = Loader::epoch(&loader, 0, 4).collect();
        let [Err(error)] = &results[..] else { panic!("one error") };
        assert_eq!(
            (error.place("asked for"), error.place("available")),
            (Some("batch 4"), Some("3 batches"))
        );
        assert_eq!(loader.check(&loader.state(0, 4)).unwrap_err().code(), STATE_MISMATCH);
    }

    /// Fails in one way at each of some samples.
    struct Faulty;

    impl Dataset for Faulty {
        type Item = usize;
        type Batch = Vec<usize>;

        fn len(&self) -> usize {
            10
        }

        fn get(&self, index: usize, _: &mut SampleCx) -> Result<usize> {
            match index {
                2 => panic!("torn page"),
                // A `len` that lies.
                9 => Ok([0; 9][index]),
                5 => Ok("five".parse()?),
                _ => Ok(index),
            }
        }

        fn collate(&self, items: Vec<usize>) -> Result<Vec<usize>> {
            assert!(items != [6, 7], "shapes differ");
            Ok(items)
        }
    }

    #[test]
    fn an_error_of_a_sample_is_located_and_the_epoch_goes_on() {
        let loader = DataLoader::builder(Faulty).batch_size(2).build().unwrap();
        for _ in 0..2 {
            let results: Vec<_> = loader.epoch(8).collect();
            let good: Vec<_> = results.iter().map(Result::is_ok).collect();
            assert_eq!(good, [true, false, false, false, false]);
        }
        let errors: Vec<Error> = loader.epoch(8).filter_map(Result::err).collect();
        let located = |error: &Error| {
            ["sample", "position", "batch", "epoch"].map(|label| error.place(label).unwrap_or("-").to_owned())
        };
        assert_eq!(located(&errors[0]), ["2", "2", "1", "8"]);
        assert_eq!((errors[0].code(), errors[0].what()), (GET_PANICKED, "the data set panicked in `get`"));
        assert_eq!(errors[0].reasons(), ["torn page"]);
        assert!(errors[0].place("panicked").unwrap().contains("loader.rs:"));

        assert_eq!(located(&errors[1]), ["5", "5", "2", "8"]);
        assert_eq!((errors[1].code(), errors[1].what()), (USER, "invalid digit found in string"));

        assert_eq!(errors[2].code(), COLLATE_PANICKED);
        assert_eq!(errors[2].reasons(), ["shapes differ"]);
        assert_eq!(located(&errors[2]), ["-", "-", "3", "8"]);
        assert_eq!(errors[2].place("positions"), Some("6..8 of the epoch"));

        assert_eq!(located(&errors[3]), ["9", "9", "4", "8"]);
        assert_eq!(errors[3].reasons(), ["index out of bounds: the len is 9 but the index is 9"]);
    }

    #[test]
    fn an_error_names_the_sample_not_only_its_place_in_a_shuffled_order() {
        let loader = DataLoader::builder(Faulty).shuffle(true).build().unwrap();
        let errors: Vec<Error> = loader.epoch(0).filter_map(Result::err).collect();
        let mut samples: Vec<_> = errors.iter().map(|error| error.place("sample").unwrap()).collect();
        assert!(errors.iter().any(|error| error.place("sample") != error.place("position")));
        samples.sort_unstable();
        assert_eq!(samples, ["2", "5", "9"]);
    }
}
