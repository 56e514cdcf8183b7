//! Where batches are made: by the caller, by threads, or by processes.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leyden_process::spawn::Start;
use leyden_process::{Result, contain};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, SampleCx, WorkerInfo};
use crate::loader::{Backend, Limits, Processes, Staff, Threads};
use crate::say::say;

/// The kinds of workers, for [`DataLoaderBuilder::workers`](crate::DataLoaderBuilder::workers).
///
/// | | what it takes | what it stands |
/// |---|---|---|
/// | [`inline`](Self::inline) | nothing | the specification, and the mode to debug in |
/// | [`threads`](Self::threads) | a `'static` data set | errors and panics; a stuck thread is given up, not ended |
/// | [`spawn`](Self::spawn) | data set and batch with serde's traits | crashes, `exit`, kills and hangs too: the worker is replaced, and its batches made again, bit for bit |
/// | [`zygote`](Self::zygote) | the same | the same |
/// | [`auto`](Self::auto) | as threads | as threads |
/// | [`fork`](Self::fork) | a batch with serde's traits, and no other threads | the same, but dead workers are not replaced |
#[derive(Clone, Copy, Debug)]
pub struct Workers;

impl Workers {
    /// No workers: whoever asks for a batch makes it (PyTorch: `num_workers=0`).
    pub fn inline() -> InlineWorkers {
        InlineWorkers
    }

    /// `n` threads of this process; 0 is [`inline`](Self::inline). For data sets in plain Rust this is the best choice:
    /// nothing is copied, and there is no lock as Python has one.
    pub fn threads(n: usize) -> ThreadWorkers {
        ThreadWorkers { threads: n }
    }

    /// `n` processes, each started as this program anew (PyTorch: `multiprocessing_context="spawn"`), but `main` is not
    /// run again, and a start takes milliseconds. 0 is [`inline`](Self::inline). For data sets that call into foreign
    /// libraries, or into code that may hang.
    pub fn spawn(n: usize) -> ProcessWorkers {
        ProcessWorkers(Staff { from: Start::Exec, workers: n, threads_each: 1 })
    }

    /// `n` processes, forked from one that was started anew and has read the data set (PyTorch: `"forkserver"`). They
    /// share what it has read, and each starts in a fraction of a millisecond. On Linux only: `P0115` elsewhere.
    pub fn zygote(n: usize) -> ProcessWorkers {
        ProcessWorkers(Staff { from: Start::Zygote, workers: n, threads_each: 1 })
    }

    /// `n` processes, forked from this one (PyTorch: `"fork"`): the data set need not be serialised, and is shared until
    /// somebody writes to it. Refused while the program has threads other than Leyden's, because their locks would stay
    /// locked for ever in the workers: before the first tensor is made, as a rule. A forked worker that dies is not
    /// replaced; the others make its batches, and the last one is kept for them: a sample at which a worker dies is not tried
    /// again where one worker is left (of two, after one death; else after three). On Linux only: `P0115` elsewhere.
    pub fn fork(n: usize) -> ForkWorkers {
        ForkWorkers(Staff { from: Start::Fork, workers: n, threads_each: 1 })
    }
}

impl Workers {
    /// As many threads as there are cores for this program, or none where a batch is made faster than it is handed over.
    /// It loads a few samples to measure that, when the loader is built, and says on stderr what it chose and why.
    pub fn auto() -> AutoWorkers {
        AutoWorkers
    }
}

/// Workers that can make the batches of `D`. Its implementors are made by [`Workers`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot load `{D}`",
    note = "worker threads need a data set that is `'static`: give it its own data, or an `Arc`",
    note = "worker processes also need it to be `serde::Serialize + serde::Deserialize`, and its batch as well"
)]
pub trait WorkersFor<D: Dataset>: Send + Sync {
    /// How many; 0 where the caller makes batches itself.
    fn count(&self) -> usize;

    /// What they turn out to be for this data set and batches of that many samples, where that is not settled yet.
    #[doc(hidden)]
    fn settle(&self, dataset: &D, batch_size: &dyn Fn() -> usize) -> Option<Box<dyn WorkersFor<D>>> {
        let _ = (dataset, batch_size);
        None
    }

    /// One of them, alone.
    #[doc(hidden)]
    fn one(&self) -> Box<dyn WorkersFor<D>>;

    /// Starts them; nothing where the caller makes batches itself.
    ///
    /// # Errors
    /// Where they cannot be started, or the data set's `worker_init` fails.
    #[doc(hidden)]
    fn start(&self, dataset: &Arc<D>, plan: &CrewPlan) -> Result<Option<Started<D::Batch>>>;
}

/// What workers are to know of their loader.
#[derive(Clone, Copy, Debug)]
pub struct CrewPlan {
    pub(crate) limits: Limits,
    /// Batches that an epoch asks for ahead.
    pub(crate) ahead: usize,
    /// The largest batch, where somebody has said.
    pub(crate) batch_bytes: Option<u64>,
    /// Whether samples that fail are left out.
    pub(crate) skip_bad: bool,
    pub(crate) part: Part,
}

/// Which of a loader's workers are started: all, or that of one part of a stream loader.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Part(pub(crate) Option<Whole>);

/// A worker's number among those of all parts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Whole {
    pub(crate) worker: usize,
    pub(crate) workers: usize,
}

impl Part {
    /// Worker `worker` of the `workers` of this part, among all.
    pub(crate) fn worker(self, worker: usize, workers: usize) -> WorkerInfo {
        match self.0 {
            None => WorkerInfo { worker, workers },
            Some(whole) => WorkerInfo { worker: whole.worker + worker, workers: whole.workers },
        }
    }
}

/// Workers, started.
pub struct Started<B>(pub(crate) Arc<dyn Backend<B>>);

impl<B> fmt::Debug for Started<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Started").finish_non_exhaustive()
    }
}

/// [`Workers::inline`].
#[derive(Clone, Copy, Debug)]
pub struct InlineWorkers;

impl<D: Dataset> WorkersFor<D> for InlineWorkers {
    fn count(&self) -> usize {
        0
    }

    fn one(&self) -> Box<dyn WorkersFor<D>> {
        Box::new(*self)
    }

    fn start(&self, _: &Arc<D>, _: &CrewPlan) -> Result<Option<Started<D::Batch>>> {
        Ok(None)
    }
}

/// [`Workers::threads`].
#[derive(Clone, Copy, Debug)]
pub struct ThreadWorkers {
    threads: usize,
}

impl<D: Dataset + 'static> WorkersFor<D> for ThreadWorkers {
    fn count(&self) -> usize {
        self.threads
    }

    fn one(&self) -> Box<dyn WorkersFor<D>> {
        Box::new(ThreadWorkers { threads: self.threads.min(1) })
    }

    fn start(&self, dataset: &Arc<D>, plan: &CrewPlan) -> Result<Option<Started<D::Batch>>> {
        if self.threads == 0 {
            return Ok(None);
        }
        Ok(Some(Started(Arc::new(Threads::start(Arc::clone(dataset), self.threads, plan)?))))
    }
}

/// [`Workers::auto`].
#[derive(Clone, Copy, Debug)]
pub struct AutoWorkers;

impl<D: Dataset + 'static> WorkersFor<D> for AutoWorkers {
    fn count(&self) -> usize {
        cores()
    }

    fn one(&self) -> Box<dyn WorkersFor<D>> {
        Box::new(Workers::threads(1))
    }

    fn settle(&self, dataset: &D, batch_size: &dyn Fn() -> usize) -> Option<Box<dyn WorkersFor<D>>> {
        let Some(batch) = measure(dataset, batch_size()) else {
            // What failed says so when its batch is made.
            return Some(Box::new(Workers::inline()));
        };
        let cores = cores();
        if batch < HANDED_OVER || cores == 1 {
            let why = if cores == 1 { "there is one core" } else { "workers would not gain" };
            say(&format!("leyden: batches are made by whoever asks: one takes about {batch:.1?}, and {why}"));
            return Some(Box::new(Workers::inline()));
        }
        say(&format!(
            "leyden: batches are made by {cores} threads, one for each core: one takes about {batch:.1?}"
        ));
        Some(Box::new(Workers::threads(cores)))
    }

    fn start(&self, dataset: &Arc<D>, plan: &CrewPlan) -> Result<Option<Started<D::Batch>>> {
        Workers::threads(cores()).start(dataset, plan)
    }
}

/// About how long a batch of `samples` samples takes; nothing if a sample fails.
fn measure<D: Dataset>(dataset: &D, samples: usize) -> Option<Duration> {
    let tried = samples.min(dataset.len()).min(TRIED);
    let began = Instant::now();
    let mut loaded = 0;
    let items: Vec<D::Item> = (0..tried)
        .map_while(|index| {
            let soon = began.elapsed() < PATIENCE || index == 0;
            soon.then(|| contain(|| dataset.get(index, &mut SampleCx::new(0, 0, index))).ok()?.ok()).flatten()
        })
        .inspect(|_| loaded += 1)
        .collect();
    if items.is_empty() {
        return None;
    }
    contain(|| dataset.collate(items)).ok()?.ok()?;
    Some(began.elapsed() * u32::try_from(samples).unwrap_or(u32::MAX) / loaded)
}

/// The cores that this program may use, by affinity and container.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Samples to measure by, and how long that may take.
const TRIED: usize = 64;
const PATIENCE: Duration = Duration::from_millis(50);
/// Batches that are made faster than this gain nothing from another thread: waking it and giving the batch back cost
/// some tens of microseconds.
const HANDED_OVER: Duration = Duration::from_micros(200);

/// [`Workers::spawn`] and [`Workers::zygote`].
#[derive(Clone, Copy, Debug)]
pub struct ProcessWorkers(Staff);

impl ProcessWorkers {
    /// How many batches each process makes at once (default 1). Few processes with several threads share what the data
    /// set holds.
    #[must_use]
    pub fn threads_each(mut self, threads: usize) -> Self {
        self.0.threads_each = threads.max(1);
        self
    }
}

impl<D> WorkersFor<D> for ProcessWorkers
where
    D: Dataset + Serialize + DeserializeOwned + 'static,
    D::Batch: Serialize + DeserializeOwned,
{
    fn count(&self) -> usize {
        self.0.workers.saturating_mul(self.0.threads_each)
    }

    fn one(&self) -> Box<dyn WorkersFor<D>> {
        Box::new(ProcessWorkers(self.0.one()))
    }

    fn start(&self, dataset: &Arc<D>, plan: &CrewPlan) -> Result<Option<Started<D::Batch>>> {
        if self.0.workers == 0 {
            return Ok(None);
        }
        Ok(Some(Started(Arc::new(Processes::start(dataset, self.0, plan)?))))
    }
}

/// [`Workers::fork`].
#[derive(Clone, Copy, Debug)]
pub struct ForkWorkers(Staff);

impl<D> WorkersFor<D> for ForkWorkers
where
    D: Dataset + 'static,
    D::Batch: Serialize + DeserializeOwned,
{
    fn count(&self) -> usize {
        self.0.workers
    }

    fn one(&self) -> Box<dyn WorkersFor<D>> {
        Box::new(ForkWorkers(self.0.one()))
    }

    fn start(&self, dataset: &Arc<D>, plan: &CrewPlan) -> Result<Option<Started<D::Batch>>> {
        if self.0.workers == 0 {
            return Ok(None);
        }
        Ok(Some(Started(Arc::new(Processes::fork(dataset, self.0, plan)?))))
    }
}
