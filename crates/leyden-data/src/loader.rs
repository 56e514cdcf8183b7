//! Batches of a data set, in an order that is a function of seed, epoch and position, made by workers or without.
//!
//! A `DataLoader` holds no position: an epoch is an iterator made on demand, from any batch. Which samples form a batch
//! is decided here, by [`Batching`]; a worker is told the samples and makes the batch. So it does not matter how many
//! workers there are, of which kind, in which order they finish, or whether one died on the way: [`Workers::inline`] is
//! the specification, and all others give the same bits.
//!
//! Work is asked for ahead, `prefetch_factor` batches for each worker. The oldest unstarted batch goes to whoever is
//! free, and batches come back in their order. An epoch ends by count.
//!
//! [`Workers::inline`]: crate::Workers::inline

mod builder;
mod processes;
mod streams;
mod task;
mod threads;
mod timings;
mod waste;

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use leyden_process::{Error, Result};

pub use self::builder::{BadSample, DataLoaderBuilder};
pub(crate) use self::processes::{Processes, Staff};
pub use self::streams::{Lanes, StreamLoader, StreamLoaderBuilder};
pub(crate) use self::task::{Loaded, Task, load};
pub(crate) use self::threads::Threads;
pub use self::timings::Timings;

use self::timings::Meter;
use self::waste::Waste;
use crate::batching::{Batching, EpochOrder, Share};
use crate::codes::{LOADER_ARGUMENT, STATE_MISMATCH};
use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::say::say;

/// What a training step gets from a loader.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<B> {
    /// What the data set's `collate` made.
    pub data: B,
    /// How many samples in it count: the batch size, or fewer at the end of an epoch or where bad ones were left out.
    pub samples: usize,
    /// How many samples at its end are repeats, which fill up an incomplete step ([`Tail::Pad`](crate::Tail::Pad)) and
    /// do not count.
    pub padding: usize,
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

    /// Fixes the order to that of the data set, for overfitting a few batches.
    fn set_sequential(&mut self);

    /// The seed to use where none was chosen: a trainer gives its own, so that it need not be handed on by hand.
    fn set_default_seed(&mut self, seed: u64) {
        let _ = seed;
    }

    /// Which part of each step to take, where several ranks train together: a trainer tells each loader, once, before
    /// the first epoch.
    ///
    /// # Errors
    /// `L0101` if the loader has chosen another part, or does not know of ranks (this default); those of a part that
    /// cannot be had.
    fn set_share(&mut self, share: &Share) -> Result<()> {
        if *share == (Share { rank: 0, parts: 1, world_size: 1, uneven: share.uneven }) {
            return Ok(());
        }
        Err(Error::new(LOADER_ARGUMENT, "a loader does not know of ranks")
            .at("rank", format_args!("{} of {}", share.rank, share.world_size))
            .why("each rank would train on the same batches")
            .hint(
                "implement `Loader::set_share`; if it takes its part by what `LoaderCx` says, with `Ok(())`",
            ))
    }

    /// What the batches depend on, in words: a training resumes inside an epoch only with a loader of equal
    /// identity. Empty where nothing can be said.
    fn identity(&self) -> String {
        String::new()
    }
}

/// Batches of a data set (PyTorch: `DataLoader`).
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
/// let loader = DataLoader::builder(Squares).batch_size(4).shuffle(true).seed(42).num_workers(2).build()?;
/// let sizes: Vec<usize> = loader.epoch(0).map(|batch| Ok(batch?.samples)).collect::<Result<_>>()?;
/// assert_eq!(sizes, [4, 4, 2]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
///
/// A clone shares data set and workers, and has its own settings of order.
pub struct DataLoader<D: Dataset> {
    dataset: Arc<D>,
    batching: Batching,
    /// `None`: nobody has chosen one.
    seed: Option<u64>,
    bad_sample: BadSample,
    crew: Crew<D>,
    /// How many batches an epoch asks for ahead.
    ahead: usize,
    meter: Arc<Meter>,
    delivered: Arc<Mutex<Delivered>>,
    told: Arc<Told>,
}

/// What is told once.
struct Told {
    waste: Waste,
    /// More epochs at once than the workers have room for.
    busy: Once,
}

/// The newest batch that was handed out: the place of the next one.
#[derive(Clone, Copy, Debug, Default)]
struct Delivered {
    epoch: u64,
    next: usize,
}

/// Who makes batches.
enum Crew<D: Dataset> {
    /// Whoever asks for them.
    Caller,
    /// Workers that live as long as the loader.
    Persistent(Arc<dyn Backend<D::Batch>>),
    /// Workers that are started for each epoch.
    PerEpoch(Start<D::Batch>),
}

/// Starts workers.
type Start<B> = Arc<dyn Fn() -> Result<Arc<dyn Backend<B>>> + Send + Sync>;

impl<D: Dataset> Clone for Crew<D> {
    fn clone(&self) -> Self {
        match self {
            Self::Caller => Self::Caller,
            Self::Persistent(backend) => Self::Persistent(Arc::clone(backend)),
            Self::PerEpoch(start) => Self::PerEpoch(Arc::clone(start)),
        }
    }
}

/// Workers of some kind. A ticket names a batch that was asked for; no two have the same.
pub(crate) trait Backend<B>: Send + Sync {
    /// Asks for a batch. It gives the task back where nothing more can be taken on.
    fn post(&self, ticket: u64, task: Task) -> Result<Option<Task>>;

    /// Waits for the batch, within its own limits.
    fn take(&self, ticket: u64) -> Result<Loaded<B>>;

    /// Nobody will take this one.
    fn withdraw(&self, ticket: u64);

    /// An epoch begins: budgets are counted anew.
    fn renew(&self) {}
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A worker is told of.
    pub(crate) warn: Duration,
    /// A worker is ended.
    pub(crate) stuck: Duration,
    /// A worker is ready.
    pub(crate) start: Duration,
    /// How many workers may be replaced in an epoch.
    pub(crate) restarts: usize,
}

impl<D: Dataset> DataLoader<D> {
    /// A loader of `dataset`, to be configured.
    pub fn builder(dataset: D) -> DataLoaderBuilder<D>
    where
        D: 'static,
    {
        DataLoaderBuilder::new(dataset)
    }

    /// The batches of an epoch; workers begin at once. For a part of it, see [`resume`](Self::resume) and
    /// [`Loader::epoch`].
    pub fn epoch(&self, epoch: u64) -> Epoch<'_, D> {
        self.epoch_from(epoch, 0)
    }

    /// The data set.
    pub fn dataset(&self) -> &D {
        &self.dataset
    }

    /// How samples are put together to batches.
    pub fn batching(&self) -> &Batching {
        &self.batching
    }

    /// The place after the newest batch that was handed out, whichever epoch it was of: what to save, to go on from with
    /// [`resume`](Self::resume). Batches that workers have made ahead do not count.
    pub fn cursor(&self) -> Cursor {
        let Delivered { epoch, next } = *self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        self.cursor_at(epoch, next)
    }

    /// The place before batch `batch` of `epoch`.
    pub fn cursor_at(&self, epoch: u64, batch: usize) -> Cursor {
        Cursor {
            seed: self.seed(),
            epoch,
            position: self.batching.position_of(batch),
            identity: self.batching.identity(),
        }
    }

    /// The rest of an epoch, from a place that this loader or an equal one has given: with other workers, or with
    /// `global_batch_size` on another number of ranks, but the same data, order, batch size and seed.
    ///
    /// # Errors
    /// `L0104` with both sides of what differs, or if the place is not where one of this loader's batches begins.
    pub fn resume(&self, cursor: &Cursor) -> Result<Epoch<'_, D>> {
        cursor.check(&self.cursor_at(cursor.epoch, 0))?;
        let batch = self.batching.batch_at(cursor.position)?;
        self.check_start(cursor.epoch, batch)?;
        Ok(self.epoch_from(cursor.epoch, batch))
    }

    /// What batches have cost so far, and what the loader waited for.
    pub fn timings(&self) -> Timings {
        self.meter.read()
    }

    fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    fn check_start(&self, epoch: u64, batch: usize) -> Result<()> {
        after_the_end(self.batching.batches(), epoch, batch).map_or(Ok(()), Err)
    }

    fn epoch_from(&self, epoch: u64, from: usize) -> Epoch<'_, D> {
        let batches = from..self.batching.batches();
        let mut rest = Epoch {
            loader: self,
            epoch,
            order: None,
            crew: None,
            unposted: batches.clone(),
            ahead: VecDeque::new(),
            batches,
            handed: None,
        };
        if let Crew::Persistent(backend) = &self.crew {
            backend.renew();
        }
        rest.post_ahead();
        rest
    }
}

impl<D: Dataset> Loader<D::Batch> for DataLoader<D> {
    fn len(&self) -> usize {
        self.batching.batches()
    }

    /// A `from` after the end is one error, not an empty epoch.
    fn epoch(&self, epoch: u64, from: usize) -> Box<dyn Iterator<Item = Result<Batch<D::Batch>>> + '_> {
        match self.check_start(epoch, from) {
            Ok(()) => Box::new(self.epoch_from(epoch, from)),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn set_sequential(&mut self) {
        self.batching.set_sequential();
    }

    fn set_default_seed(&mut self, seed: u64) {
        self.seed.get_or_insert(seed);
    }

    fn set_share(&mut self, share: &Share) -> Result<()> {
        self.batching.set_share(share)
    }

    fn identity(&self) -> String {
        // A trainer counts batches, not positions: their size matters to it.
        let step = self.batching.step();
        format!("{}, global batch_size {step}, seed {}", self.batching.identity(), self.seed())
    }
}

impl<D: Dataset> Clone for DataLoader<D> {
    fn clone(&self) -> Self {
        Self {
            dataset: Arc::clone(&self.dataset),
            batching: self.batching.clone(),
            seed: self.seed,
            bad_sample: self.bad_sample,
            crew: self.crew.clone(),
            ahead: self.ahead,
            meter: Arc::clone(&self.meter),
            delivered: Arc::default(),
            told: Arc::clone(&self.told),
        }
    }
}

/// The error of going on at batch `from` of an epoch of `batches` batches, if it is after the end: never an empty epoch.
pub(crate) fn after_the_end(batches: usize, epoch: u64, from: usize) -> Option<Error> {
    (from > batches).then(|| {
        Error::new(STATE_MISMATCH, "an epoch cannot go on after its end")
            .at("epoch", epoch)
            .at("asked for", format_args!("batch {from}"))
            .at("available", format_args!("{batches} batches"))
            .hint("the state was saved with more data, a smaller batch size or without `drop_last`")
    })
}

/// The settings; the data set need not be printable.
impl<D: Dataset> fmt::Debug for DataLoader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataLoader")
            .field("batching", &self.batching.identity())
            .field("seed", &self.seed)
            .field("ahead", &self.ahead)
            .finish_non_exhaustive()
    }
}

/// The batches of one epoch; see [`DataLoader::epoch`]. After an error it goes on with the next batch. Several may live
/// at once, each asking for its own batches ahead. Worker processes have room for four or more; the batches of further ones
/// are made by whoever asks for them.
#[must_use = "an epoch gives nothing until it is iterated"]
pub struct Epoch<'a, D: Dataset> {
    loader: &'a DataLoader<D>,
    epoch: u64,
    /// Made when the first batch is asked for: a sampler may fail.
    order: Option<EpochOrder>,
    /// The workers, where they live for this epoch alone; or why there are none.
    crew: Option<Result<Arc<dyn Backend<D::Batch>>>>,
    /// What was asked for and not taken, oldest first.
    ahead: VecDeque<Ahead>,
    /// The batches not asked for yet.
    unposted: Range<usize>,
    /// The batches not handed out yet.
    batches: Range<usize>,
    /// When the newest batch was handed out.
    handed: Option<Instant>,
}

/// A batch that was asked for.
enum Ahead {
    Posted(u64),
    /// It could not even be asked for.
    Failed(Error),
}

impl<D: Dataset> Epoch<'_, D> {
    fn backend(&mut self) -> Result<Option<Arc<dyn Backend<D::Batch>>>> {
        match &self.loader.crew {
            Crew::Caller => Ok(None),
            Crew::Persistent(backend) => Ok(Some(Arc::clone(backend))),
            Crew::PerEpoch(start) => self.crew.get_or_insert_with(|| start()).clone().map(Some),
        }
    }

    /// What a worker needs to know to make batch `batch`.
    fn task(&mut self, batch: usize) -> Result<Task> {
        let seed = self.loader.seed();
        let order = match &self.order {
            Some(order) => order,
            None => self.order.insert(self.loader.batching.epoch(seed, self.epoch)?),
        };
        let indices = order.batch(batch)?;
        let skip_bad = self.loader.bad_sample == BadSample::Skip;
        Ok(Task { seed, epoch: self.epoch, batch, indices, skip_bad, left_out: Vec::new() })
    }

    /// Asks for as many batches ahead as there should be. What fails is told when the batch's turn comes.
    fn post_ahead(&mut self) {
        if matches!(self.loader.crew, Crew::Caller) {
            return;
        }
        while self.ahead.len() < self.loader.ahead
            && let Some(batch) = self.unposted.next()
        {
            match self.post(batch) {
                Ok(Some(ticket)) => self.ahead.push_back(Ahead::Posted(ticket)),
                Ok(None) => {
                    self.unposted.start = batch;
                    return;
                }
                Err(error) => self.ahead.push_back(Ahead::Failed(error)),
            }
        }
    }

    /// Asks the workers for a batch; nothing where they can take on no more.
    fn post(&mut self, batch: usize) -> Result<Option<u64>> {
        static TICKET: AtomicU64 = AtomicU64::new(1);
        let Some(backend) = self.backend()? else { return Ok(None) };
        let task = self.task(batch)?;
        let ticket = TICKET.fetch_add(1, Ordering::Relaxed);
        Ok(backend.post(ticket, task)?.is_none().then_some(ticket))
    }

    fn load(&mut self, batch: usize) -> Result<Loaded<D::Batch>> {
        let Some(backend) = self.backend()? else {
            let task = self.task(batch)?;
            return load(self.loader.dataset(), &task, &());
        };
        if self.ahead.is_empty() {
            self.post_ahead();
        }
        match self.ahead.pop_front() {
            Some(Ahead::Posted(ticket)) => backend.take(ticket),
            Some(Ahead::Failed(error)) => Err(error),
            None => {
                self.unposted.next();
                self.loader.told.busy.call_once(|| {
                    say("leyden: the workers of a loader have no room for more batches: further ones are made by whoever asks. Finish or \
                         drop epochs that are not needed, or build a loader for each; where a reply contradicted itself \
                         (P0206), its room is lost");
                });
                let task = self.task(batch)?;
                load(self.loader.dataset(), &task, &())
            }
        }
    }
}

impl<D: Dataset> Iterator for Epoch<'_, D> {
    type Item = Result<Batch<D::Batch>>;

    fn next(&mut self) -> Option<Self::Item> {
        let pause = self.handed.map(|handed| handed.elapsed()).unwrap_or_default();
        self.next_after(pause)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.batches.size_hint()
    }
}

impl<D: Dataset> Epoch<'_, D> {
    /// The next batch, where the trainer has worked for `pause` since the one before.
    fn next_after(&mut self, pause: Duration) -> Option<Result<Batch<D::Batch>>> {
        let batch = self.batches.next()?;
        let span = tracing::debug_span!("leyden.batch", epoch = self.epoch, batch);
        let _entered = span.enter();
        let asked = Instant::now();
        let loaded = self.load(batch);
        let waited = asked.elapsed();
        self.loader.meter.delivered(waited, pause, loaded.as_ref().ok());
        *self.loader.delivered.lock().unwrap_or_else(PoisonError::into_inner) =
            Delivered { epoch: self.epoch, next: batch + 1 };
        // Before the caller trains on this one: the workers have something to do meanwhile.
        let posting = Instant::now();
        self.post_ahead();
        let handed = Instant::now();
        self.handed = Some(handed);
        if let Ok(loaded) = &loaded {
            self.loader.told.waste.delivered(loaded.spent, waited + (handed - posting));
        }
        Some(loaded.map(|Loaded { data, samples, padding, .. }| Batch {
            data,
            samples,
            padding,
            index: batch,
        }))
    }
}

impl<D: Dataset> ExactSizeIterator for Epoch<'_, D> {}
impl<D: Dataset> FusedIterator for Epoch<'_, D> {}

/// Whatever was asked for ahead is not wanted any more.
impl<D: Dataset> Drop for Epoch<'_, D> {
    fn drop(&mut self) {
        for ahead in std::mem::take(&mut self.ahead) {
            if let Ahead::Posted(ticket) = ahead
                && let Ok(Some(backend)) = self.backend()
            {
                backend.withdraw(ticket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batching::Indices;
    use crate::codes::*;
    use crate::dataset::SampleCx;
    use crate::testing::assert_resumable;
    use leyden_process::error::USER;
    use std::sync::atomic::AtomicUsize;

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
        loader.set_sequential();
        let first = loader.epoch(1, 0).next().unwrap().unwrap();
        assert!(first.data.iter().map(|&(index, _)| index).eq(0..4));
        assert!(!loader.is_empty());
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
        struct Stateful(AtomicUsize);
        impl Dataset for Stateful {
            type Item = usize;
            type Batch = Vec<usize>;
            fn len(&self) -> usize {
                4
            }
            fn get(&self, _: usize, _: &mut SampleCx) -> Result<usize> {
                Ok(self.0.fetch_add(1, Ordering::Relaxed))
            }
            fn collate(&self, items: Vec<usize>) -> Result<Vec<usize>> {
                Ok(items)
            }
        }
        assert_resumable(&DataLoader::builder(Stateful(AtomicUsize::new(0))).build().unwrap(), 1);
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
    fn a_cursor_is_the_place_of_what_was_handed_out_and_fits_equal_loaders_only() {
        let builder = |samples| DataLoader::builder(Counting(samples)).batch_size(4).seed(3).shuffle(true);
        let loader = builder(10).num_workers(2).build().unwrap();
        assert_eq!((loader.cursor().epoch, loader.cursor().position), (0, 0));
        let taken: Vec<_> = loader.epoch(5).take(2).map(Result::unwrap).collect();
        let cursor = loader.cursor();
        assert_eq!((taken.len(), cursor.epoch, cursor.position), (2, 5, 8));

        let rest: Vec<_> =
            builder(10).build().unwrap().resume(&cursor).unwrap().map(Result::unwrap).collect();
        assert_eq!(rest, loader.epoch(5).skip(2).map(Result::unwrap).collect::<Vec<_>>());

        let error = builder(11).batch_size(2).seed(4).build().unwrap().resume(&cursor).map(drop).unwrap_err();
        assert_eq!(error.code(), STATE_MISMATCH);
        let [saved, now] = ["saved", "now"].map(|label| error.place(label).unwrap());
        assert!(saved.contains("10") && saved.contains("seed 3") && !saved.contains("shuffle"), "{saved}");
        assert!(now.contains("11") && now.contains("seed 4"), "{now}");
    }

    #[test]
    fn a_cursor_is_small_and_goes_on_with_other_ranks() {
        let loader = |rank, world_size| {
            let builder =
                DataLoader::builder(Counting(1_000_000)).global_batch_size(64).shuffle(true).seed(u64::MAX);
            builder.rank(rank, world_size).build().unwrap()
        };
        let on_four = loader(3, 4);
        let _ = on_four.epoch(7).nth(4);
        let cursor = on_four.cursor();
        assert_eq!(cursor.position, 5 * 64);
        let halves: Vec<Vec<usize>> = (0..2)
            .map(|rank| {
                let batch = loader(rank, 2).resume(&cursor).unwrap().next().unwrap().unwrap();
                batch.data.into_iter().map(|(index, _)| index).collect()
            })
            .collect();
        let whole = loader(0, 1).epoch(7).nth(5).unwrap().unwrap();
        assert_eq!(halves.concat(), whole.data.into_iter().map(|(index, _)| index).collect::<Vec<_>>());
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
    fn repeats_stay_repeats_where_a_sample_before_them_is_left_out() {
        let indices = Indices { indices: vec![4, 5, 6, 0], padding: 1, positions: 4..8 };
        let task = Task { seed: 0, epoch: 0, batch: 1, indices, skip_bad: true, left_out: Vec::new() };
        let loaded = load(&Faulty, &task, &()).unwrap();
        assert_eq!((loaded.data, loaded.samples, loaded.padding), (vec![4, 6, 0], 2, 1));
        assert_eq!(loaded.skipped, [5]);
        // Nothing but a repeat is left.
        let indices = Indices { indices: vec![5, 0], padding: 1, positions: 4..6 };
        let error = load(&Faulty, &Task { indices, ..task }, &()).unwrap_err();
        assert_eq!(error.code(), NOTHING_LEFT);
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
