//! The settings of a loader, checked when it is built.

use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use leyden_process::entry::Role;
use leyden_process::{Error, Result};

use super::timings::Meter;
use super::waste::Waste;
use super::{Crew, DataLoader, Limits, Told};
use crate::batching::{Batching, Tail};
use crate::codes::{LOADER_ARGUMENT, NO_BATCHES};
use crate::dataset::Dataset;
use crate::sampler::{BatchSampler, Sampler};
use crate::say::say;
use crate::workers::{CrewPlan, Part, Started, Whole, Workers, WorkersFor, cores};

/// What becomes of a sample that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadSample {
    /// Its batch is an error that names it; the epoch can go on with the next batch. The default, as in PyTorch: data
    /// that cannot be read is a fact to know.
    #[default]
    Raise,
    /// It is left out of its batch, which is smaller then, and counted in [`Timings::skipped`](crate::Timings). A sample
    /// that kills worker processes is left out too, after it has killed three.
    Skip,
}

/// The settings of a [`DataLoader`]; names are those of PyTorch's, and so are defaults where nothing else is said.
#[must_use = "a builder does nothing until `.build()`"]
pub struct DataLoaderBuilder<D: Dataset> {
    dataset: D,
    batch_size: Option<usize>,
    global_batch_size: Option<usize>,
    shuffle: Option<bool>,
    sampler: Option<Rules>,
    batch_sampler: Option<Rules>,
    seed: Option<u64>,
    drop_last: bool,
    tail: Tail,
    rank: usize,
    world_size: usize,
    bad_sample: BadSample,
    workers: Box<dyn WorkersFor<D>>,
    prefetch_factor: Option<usize>,
    persistent: bool,
    limits: Limits,
    batch_bytes: Option<u64>,
    part: Part,
}

/// The batching that a sampler gives for a data set of that many samples.
type Rules = Box<dyn FnOnce(usize) -> Batching + Send>;

impl<D: Dataset + 'static> DataLoaderBuilder<D> {
    pub(super) fn new(dataset: D) -> Self {
        Self {
            dataset,
            batch_size: None,
            global_batch_size: None,
            shuffle: None,
            sampler: None,
            batch_sampler: None,
            seed: None,
            drop_last: false,
            tail: Tail::default(),
            rank: 0,
            world_size: 1,
            bad_sample: BadSample::default(),
            workers: Box::new(Workers::inline()),
            prefetch_factor: None,
            persistent: true,
            limits: Limits::default(),
            batch_bytes: None,
            part: Part::default(),
        }
    }

    /// Samples per batch, on each rank (default 1).
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.batch_size = Some(samples);
        self
    }

    /// Samples per step, on all ranks together, in place of `batch_size`: what is trained on does not depend on how many
    /// ranks there are.
    pub fn global_batch_size(mut self, samples: usize) -> Self {
        self.global_batch_size = Some(samples);
        self
    }

    /// Whether each epoch has its own random order, else that of the data set (default false).
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = Some(shuffle);
        self
    }

    /// Which samples an epoch visits, and in which order, in place of `shuffle`.
    pub fn sampler(mut self, sampler: impl Sampler + 'static) -> Self {
        self.sampler = Some(Box::new(|samples| Batching::new(samples, sampler)));
        self
    }

    /// Which samples form each batch, in place of `batch_size`, `shuffle`, `sampler` and `drop_last`.
    pub fn batch_sampler(mut self, sampler: impl BatchSampler + 'static) -> Self {
        self.batch_sampler = Some(Box::new(|samples| Batching::of_batches(samples, sampler)));
        self
    }

    /// What the order and the samples' randomness depend on, with the epoch (default: the trainer's, else 0, so that a
    /// run repeats unless it is told not to; PyTorch draws one from its global generator). It must be the same on every
    /// rank.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Whether to leave out the last step of an epoch if it is not full on every rank (default false): short for
    /// `tail(Tail::Drop)`.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// What becomes of an incomplete last step (default [`Tail::Exact`]).
    pub fn tail(mut self, tail: Tail) -> Self {
        self.tail = tail;
        self
    }

    /// Which slice of each step to take: that of `rank` of `world_size` (default 0 of 1: all).
    pub fn rank(mut self, rank: usize, world_size: usize) -> Self {
        (self.rank, self.world_size) = (rank, world_size);
        self
    }

    /// What becomes of a sample that fails (default [`BadSample::Raise`]).
    pub fn on_bad_sample(mut self, policy: BadSample) -> Self {
        self.bad_sample = policy;
        self
    }

    /// That many worker threads (default 0: whoever asks for a batch makes it). PyTorch's are processes; see
    /// [`Workers::spawn`] for those, [`workers`](Self::workers) for all kinds.
    pub fn num_workers(self, threads: usize) -> Self {
        self.workers(Workers::threads(threads))
    }

    /// Who makes the batches (default [`Workers::inline`](crate::Workers::inline)).
    pub fn workers(mut self, workers: impl WorkersFor<D> + 'static) -> Self {
        self.workers = Box::new(workers);
        self
    }

    /// One worker of several, each of which has a loader.
    pub(super) fn part(mut self, worker: Box<dyn WorkersFor<D>>, place: Whole) -> Self {
        (self.workers, self.part) = (worker, Part(Some(place)));
        self
    }

    /// Batches asked for ahead, for each worker (default 2, as PyTorch's). With more, uneven samples stall the training
    /// less; each batch ahead takes memory.
    pub fn prefetch_factor(mut self, batches: usize) -> Self {
        self.prefetch_factor = Some(batches);
        self
    }

    /// Whether workers live as long as the loader (default true; PyTorch's is false). Without, each epoch starts its own.
    pub fn persistent_workers(mut self, persistent: bool) -> Self {
        self.persistent = persistent;
        self
    }

    /// How long a worker may be at one batch before it is ended and replaced (default 300 s). PyTorch's default is to wait
    /// for ever, and its limit ends nobody. Time in which the program is stopped, or a debugger is at the worker, does
    /// not count.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limits.stuck = limit;
        self
    }

    /// After how long at one batch a worker is told of on stderr, with what it does (default 30 s).
    pub fn warn_after(mut self, limit: Duration) -> Self {
        self.limits.warn = limit;
        self
    }

    /// How long a worker may take to get ready, with the data set's `worker_init` (default 60 s).
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.limits.start = limit;
        self
    }

    /// How often in an epoch the batches of a worker process that died or was stuck are made again, bit for bit (default 3;
    /// PyTorch never does). After that they are errors; the worker is replaced all the same. With [`BadSample::Skip`], workers that were killed
    /// by a sample which is left out then do not count.
    pub fn restarts(mut self, workers: usize) -> Self {
        self.limits.restarts = workers;
        self
    }

    /// The largest batch that worker processes can hand over (default 4 GiB, less where the system limits the addresses of
    /// a process or the size of files). It reserves addresses, not memory.
    pub fn max_batch_bytes(mut self, bytes: u64) -> Self {
        self.batch_bytes = Some(bytes);
        self
    }

    /// The loader, with its workers started.
    ///
    /// # Errors
    /// `L0101` for impossible settings, `L0102` if an epoch would have no batches, `L0103` if its last step would leave a
    /// rank without a sample, `L0601`–`L0607` if sampler and data set do not fit together; `L0901` and `L0902` if workers
    /// cannot be started, and where they are processes the `P` codes that say why.
    pub fn build(mut self) -> Result<DataLoader<D>> {
        leyden_process::entry::fuse();
        self.check()?;
        let batching = self.batching();
        batching.validate().map_err(|error| match self.dataset.origin() {
            Some(origin) if error.code() == NO_BATCHES => error.at("read from", origin),
            _ => error,
        })?;
        let Self {
            dataset,
            seed,
            bad_sample,
            workers,
            prefetch_factor,
            persistent,
            limits,
            batch_bytes,
            world_size,
            part,
            ..
        } = self;
        let dataset = Arc::new(dataset);
        let workers = match within_worker() {
            true => Box::new(Workers::inline()),
            false => {
                // A batch sampler does not say how large its batches are.
                let first = || batching.epoch(seed.unwrap_or(0), 0)?.batch(0);
                let samples = || first().map_or(batching.step() / world_size, |batch| batch.indices.len());
                workers.settle(&dataset, &samples).unwrap_or(workers)
            }
        };
        let count = workers.count();
        warn_of_waste(count);
        let plan = CrewPlan {
            limits,
            ahead: count * prefetch_factor.unwrap_or(PREFETCH),
            batch_bytes,
            skip_bad: bad_sample == BadSample::Skip,
            part,
        };
        let start = {
            let dataset = Arc::clone(&dataset);
            move || match workers.start(&dataset, &plan)? {
                Some(Started(crew)) => Ok(crew),
                None => Err(Error::new(LOADER_ARGUMENT, "workers were announced, and none were started")
                    .at("announced", count)),
            }
        };
        let crew = match () {
            () if count == 0 => Crew::Caller,
            () if persistent => Crew::Persistent(start()?),
            () => Crew::PerEpoch(Arc::new(start)),
        };
        Ok(DataLoader {
            dataset,
            batching,
            seed,
            bad_sample,
            crew,
            ahead: plan.ahead,
            meter: Arc::new(Meter::new(count.max(1))),
            delivered: Arc::default(),
            told: Arc::new(Told {
                // One part speaks for all.
                waste: Waste::new(count > 0 && part.0.is_none_or(|whole| whole.worker == 0)),
                busy: Once::new(),
            }),
        })
    }

    /// What contradicts itself, or is absurd.
    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Error::new(LOADER_ARGUMENT, what);
        let whole_batches = [
            ("batch_size", self.batch_size.is_some()),
            ("global_batch_size", self.global_batch_size.is_some()),
            ("shuffle", self.shuffle == Some(true)),
            ("sampler", self.sampler.is_some()),
            ("drop_last", self.drop_last),
        ];
        if self.batch_sampler.is_some()
            && let Some((name, _)) = whole_batches.into_iter().find(|(_, given)| *given)
        {
            return Err(wrong(
                "`batch_sampler` makes whole batches, and excludes what would make them otherwise",
            )
            .at("also given", name)
            .hint(format!(
                "leave out `.{name}(..)`, or use `.sampler(..)` in place of `.batch_sampler(..)`"
            )));
        }
        if self.sampler.is_some() && self.shuffle == Some(true) {
            return Err(wrong("`sampler` and `shuffle` both decide the order")
                .hint("leave out `.shuffle(true)`, or the sampler"));
        }
        if self.batch_size.is_some() && self.global_batch_size.is_some() {
            return Err(wrong("`batch_size` and `global_batch_size` exclude each other").hint(
                "the first counts the samples on each rank, the second those on all together: give one",
            ));
        }
        if self.drop_last && self.tail == Tail::Pad {
            return Err(wrong("`drop_last` and `Tail::Pad` exclude each other").hint("give one of them"));
        }
        let workers = self.workers.count();
        if workers > MOST_WORKERS {
            return Err(wrong("so many workers cannot be meant")
                .at("workers", workers)
                .at("limit", MOST_WORKERS)
                .hint("as many workers as the machine has cores are enough, or a few more where `get` waits for a disk or network"));
        }
        for (name, limit) in [("timeout", self.limits.stuck), ("start_timeout", self.limits.start)] {
            if limit.is_zero() {
                return Err(wrong("a worker needs some time")
                    .at(name, format_args!("{limit:?}"))
                    .hint("`Duration::MAX` waits for ever, as 0 does in PyTorch"));
            }
        }
        if self.batch_bytes == Some(0) {
            return Err(wrong("a batch needs some room").at("max_batch_bytes", 0));
        }
        if self.prefetch_factor == Some(0) {
            return Err(wrong("workers need at least one batch ahead to work on")
                .at("prefetch_factor", 0)
                .hint("leave it out for 2, or use `Workers::inline()`"));
        }
        if self.prefetch_factor.is_some_and(|batches| batches > MOST_AHEAD) {
            return Err(wrong("so many batches ahead cannot be meant")
                .at("prefetch_factor", self.prefetch_factor.unwrap_or_default())
                .at("limit", MOST_AHEAD));
        }
        Ok(())
    }

    /// The rules that the settings add up to.
    fn batching(&mut self) -> Batching {
        let samples = self.dataset.len();
        let mut batching = match self.batch_sampler.take().or(self.sampler.take()) {
            Some(rules) => rules(samples),
            None => Batching::whole(samples, self.shuffle.unwrap_or(false)),
        };
        if let Some(samples) = self.batch_size {
            batching = batching.batch_size(samples);
        }
        if let Some(samples) = self.global_batch_size {
            batching = batching.global_batch_size(samples);
        }
        let tail = if self.drop_last { Tail::Drop } else { self.tail };
        batching.tail(tail).rank(self.rank, self.world_size)
    }
}

/// Whether this is a worker process: loaders in there have no workers of their own, or a machine could not hold them. Their
/// batches are the same.
fn within_worker() -> bool {
    leyden_process::entry::role() == Role::Worker
}

/// Tells once of workers that stand in each other's way.
fn warn_of_waste(workers: usize) {
    static TOLD: Once = Once::new();
    let cores = cores();
    if workers > cores {
        TOLD.call_once(|| {
            say(&format!(
                "leyden: {workers} workers on {cores} cores: more than one for each gains nothing unless samples wait for a \
                 disk or network"
            ));
        });
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            warn: Duration::from_secs(30),
            stuck: Duration::from_secs(300),
            start: Duration::from_secs(60),
            restarts: 3,
        }
    }
}

/// The settings; neither data set nor sampler need be printable.
impl<D: Dataset> fmt::Debug for DataLoaderBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataLoaderBuilder")
            .field("batch_size", &self.batch_size)
            .field("global_batch_size", &self.global_batch_size)
            .field("shuffle", &self.shuffle)
            .field("seed", &self.seed)
            .field("workers", &self.workers.count())
            .finish_non_exhaustive()
    }
}

/// Batches ahead for each worker, as in PyTorch.
const PREFETCH: usize = 2;
/// More of them than any machine has a use for: a mistake, which would cost the machine to find out.
const MOST_WORKERS: usize = 1024;
const MOST_AHEAD: usize = 4096;
