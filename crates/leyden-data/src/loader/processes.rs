//! Workers that are processes: they may crash, hang or be killed, and the epoch goes on.
//!
//! The data set is serialised once, and rebuilt in each worker. A batch is written into memory that the workers share
//! with this process, and its arrays are read there: see [`place`](crate::place).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use leyden_process::codes::{FILE_SIZE_LIMIT, NOT_MAPPED};
use leyden_process::pool::{Death, Outcome, POISON as FATAL_DEATHS, Pool, PoolOptions, Work};
use leyden_process::slots::{Loan, Task as Slot};
use leyden_process::spawn::Start;
use leyden_process::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Backend;
use super::task::{Loaded, Phase, Progress, Spent, Task, initialise, load};
use crate::codes::{BATCH_UNREADABLE, BATCH_UNWRITABLE, LOADER_ARGUMENT, POISON, WORKER_DIED, WORKER_STUCK};
use crate::dataset::{Dataset, WorkerInfo};
use crate::place;
use crate::say::say;
use crate::workers::CrewPlan;

/// The pool, with the tasks that were posted to it.
pub(crate) struct Processes {
    pool: Pool,
    tasks: Mutex<BTreeMap<u64, Task>>,
    workers: usize,
    restarts: usize,
    /// Batches that may lie in shared memory at once after they were handed out; more are copied out of it.
    loans: usize,
    copies: AtomicBool,
}

impl Processes {
    /// Starts processes, and waits until each has done the data set's `worker_init`.
    ///
    /// # Errors
    /// `L0902` with the cause if a `worker_init` fails; the `P` codes where processes cannot be started.
    pub(crate) fn start<D>(dataset: &Arc<D>, staff: Staff, plan: &CrewPlan) -> Result<Self>
    where
        D: Dataset + Serialize + DeserializeOwned + 'static,
        D::Batch: Serialize + DeserializeOwned,
    {
        let work = Loading::of(dataset);
        Self::with(staff, plan, |options| Pool::start(&work, options))
    }

    /// The same by forking.
    ///
    /// # Errors
    /// As [`start`](Self::start); `P0114` where a fork is not safe.
    pub(crate) fn fork<D>(dataset: &Arc<D>, staff: Staff, plan: &CrewPlan) -> Result<Self>
    where
        D: Dataset + 'static,
        D::Batch: Serialize + DeserializeOwned,
    {
        let work = Arc::new(Loading::of(dataset));
        Self::with(staff, plan, |options| Pool::fork(Arc::clone(&work), options))
    }

    /// Starts a pool with as many addresses for batches as the limits of this process allow.
    fn with(staff: Staff, plan: &CrewPlan, start: impl Fn(PoolOptions) -> Result<Pool>) -> Result<Self> {
        let loans = plan.ahead.saturating_add(HANDED_OUT);
        if plan.ahead.saturating_add(loans) > MOST_SLOTS {
            return Err(Error::new(LOADER_ARGUMENT, "worker processes cannot hold so many batches ahead")
                .at("ahead", format_args!("{} batches, `prefetch_factor` for each worker", plan.ahead))
                .at("limit", (MOST_SLOTS - HANDED_OUT) / 2)
                .hint("lower `prefetch_factor`: 2 to 4 are enough unless samples are very uneven"));
        }
        let mut options = PoolOptions {
            name: "leyden data".to_owned(),
            from: staff.from,
            workers: staff.workers,
            threads_each: staff.threads_each,
            slots: plan.ahead.saturating_mul(EPOCHS_AT_ONCE).saturating_add(loans).min(MOST_SLOTS),
            slot_bytes: 0,
            warn: plan.limits.warn,
            stuck: plan.limits.stuck,
            start: plan.limits.start,
            redo: plan.limits.restarts,
            pardons: plan.skip_bad,
            describe: Arc::new(describe),
        };
        let chosen = plan.batch_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let mut sizes = chosen.map_or(BATCH_BYTES.to_vec(), |bytes| vec![bytes]).into_iter().peekable();
        let pool = loop {
            options.slot_bytes = sizes.next().unwrap_or_default();
            match start(options.clone()) {
                Ok(pool) => break pool,
                // A limit on addresses or files, which a smaller reservation may fit into.
                Err(error) if [FILE_SIZE_LIMIT, NOT_MAPPED].contains(&error.code()) => {
                    if sizes.peek().is_none() {
                        return Err(error
                            .at("batches", format_args!("{} of {} bytes each", options.slots, options.slot_bytes))
                            .hint("reserve less: `.max_batch_bytes(..)`, a lower `prefetch_factor`, fewer workers"));
                    }
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self {
            pool,
            tasks: Mutex::default(),
            workers: staff.workers,
            restarts: plan.limits.restarts,
            loans,
            copies: AtomicBool::new(false),
        })
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a batch where it lies, or out of there where too many are kept.
    fn unpack<B: DeserializeOwned>(&self, loan: Loan, task: &Task) -> Result<Loaded<B>> {
        let copied = self.pool.loaned() > self.loans;
        if copied && !self.copies.swap(true, Ordering::Relaxed) {
            say(&format!(
                "leyden: {} batches of a loader are kept at once: further ones are copied out of shared memory",
                self.loans
            ));
        }
        let body = loan.clone();
        let reply: Reply<B> =
            place::reading(loan, copied, || postcard::from_bytes(body.body())).map_err(|error| {
                Error::new(BATCH_UNREADABLE, "a batch of a worker process cannot be read")
                    .at("batch", task.batch)
                    .at("epoch", task.epoch)
                    .because(&error)
                    .hint("does the batch's `Deserialize` read what its `Serialize` writes?")
            })?;
        let Reply { data, head: Head { samples, padding, skipped, get, collate, pack } } = reply;
        let spent = Spent { get, collate, pack };
        Ok(Loaded { data, samples, padding, skipped, spent })
    }

    /// The error of a batch whose workers died.
    fn error(&self, task: &Task, death: &Death) -> Error {
        let phase = Phase::from_number(death.phase);
        let sample = sample_of(task, death);
        let error = match &death.stuck {
            Some(seen) => {
                Error::new(WORKER_STUCK, "a worker process was at one batch for too long, and was killed")
                    .at("seen in", seen)
            }
            None if death.deaths >= FATAL_DEATHS => {
                Error::new(POISON, "a batch has killed each worker that tried it").at("deaths", death.deaths)
            }
            None => Error::new(WORKER_DIED, "a worker process died"),
        };
        let error =
            error.at("worker", format_args!("{} of {}, pid {}", death.worker, self.workers, death.pid));
        let error = if death.stuck.is_none() { error.at("cause", death.ended.cause) } else { error };
        let error = match (sample, phase) {
            (Some(sample), _) => error.at("sample", sample),
            (None, Some(phase)) => error.at("in", phase.name()),
            (None, None) => error,
        };
        let error = error
            .at("batch", task.batch)
            .at("epoch", task.epoch)
            .at("replaced", format_args!("{} of {} times in this epoch", death.redone, self.restarts));
        let error = match &death.ended.stderr[..] {
            [] => error,
            lines => error.at("stderr", lines.join("\n")),
        };
        match death.stuck {
            Some(_) => error
                .hint("look at what `get` waits for there (a network file system, a lock, a child process), or raise `.timeout(..)`"),
            None if death.deaths >= FATAL_DEATHS => error.hint(
                "load the sample by itself, repair or remove it; `.on_bad_sample(BadSample::Skip)` goes on without it",
            ),
            None => error
                .why("the data set's code ended the process (a crash in a foreign library, `exit`), or somebody killed it")
                .hint("load the named sample by itself with `Workers::inline()`; `.restarts(n)` makes more deaths good"),
        }
    }
}

impl<B: DeserializeOwned> Backend<B> for Processes {
    fn post(&self, ticket: u64, task: Task) -> Result<Option<Task>> {
        if !self.pool.post(ticket, encode(&task)?)? {
            return Ok(Some(task));
        }
        self.tasks().insert(ticket, task);
        Ok(None)
    }

    fn take(&self, ticket: u64) -> Result<Loaded<B>> {
        loop {
            let outcome = self.pool.take(ticket);
            let task = self.tasks().remove(&ticket);
            let (outcome, Some(mut task)) = (outcome?, task) else {
                return Err(Error::new(BATCH_UNREADABLE, "a batch was taken that nobody has asked for"));
            };
            match outcome {
                Outcome::Done(loan) => return self.unpack(loan, &task),
                Outcome::Failed(error) => return Err(error),
                Outcome::Died(death) => {
                    let poison =
                        sample_of(&task, &death).filter(|_| task.skip_bad && death.deaths >= FATAL_DEATHS);
                    let Some(sample) = poison else { return Err(self.error(&task, &death)) };
                    task.left_out.push(sample);
                    if Backend::<B>::post(self, ticket, task.clone())?.is_some() {
                        return Err(self.error(&task, &death));
                    }
                    // All but the last were counted, and the next sample like it needs as many.
                    self.pool.pardon(death.deaths - 1);
                }
            }
        }
    }

    fn withdraw(&self, ticket: u64) {
        self.tasks().remove(&ticket);
        self.pool.withdraw(ticket);
    }

    fn renew(&self) {
        self.pool.renew();
    }
}

/// Which processes, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Staff {
    pub(crate) from: Start,
    pub(crate) workers: usize,
    pub(crate) threads_each: usize,
}

impl Staff {
    /// One of them, at most.
    pub(crate) fn one(self) -> Self {
        Self { workers: self.workers.min(1), threads_each: 1, ..self }
    }
}

/// The sample that a dead worker was loading.
fn sample_of(task: &Task, death: &Death) -> Option<usize> {
    let loading = Phase::from_number(death.phase) == Some(Phase::Get);
    task.indices.indices.get(usize::try_from(death.progress).ok()?).copied().filter(|_| loading)
}

/// A task in words.
fn describe(request: &[u8], phase: u8, progress: u64) -> String {
    let Ok(task) = decode(request) else { return "an unknown task".to_owned() };
    let (batch, epoch) = (task.batch, task.epoch);
    let sample = usize::try_from(progress).ok().and_then(|item| task.indices.indices.get(item));
    match (Phase::from_number(phase), sample) {
        (Some(Phase::Get), Some(sample)) => {
            format!("`get` of sample {sample} (batch {batch}, epoch {epoch})")
        }
        (Some(phase), _) => format!("`{}` of batch {batch}, epoch {epoch}", phase.name()),
        (None, _) => format!("batch {batch}, epoch {epoch}"),
    }
}

fn encode(task: &Task) -> Result<Vec<u8>> {
    Ok(postcard::to_allocvec(task)?)
}

fn decode(request: &[u8]) -> Result<Task> {
    Ok(postcard::from_bytes(request)?)
}

/// The data set in a worker, and which worker that is.
struct Loading<D>(Arc<D>, OnceLock<WorkerInfo>);

impl<D> Loading<D> {
    fn of(dataset: &Arc<D>) -> Self {
        Self(Arc::clone(dataset), OnceLock::new())
    }
}

impl<D: Serialize> Serialize for Loading<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, D: Deserialize<'de>> Deserialize<'de> for Loading<D> {
    fn deserialize<T: Deserializer<'de>>(deserializer: T) -> Result<Self, T::Error> {
        Ok(Self(Arc::new(D::deserialize(deserializer)?), OnceLock::new()))
    }
}

impl<D> Work for Loading<D>
where
    D: Dataset + 'static,
    D::Batch: Serialize,
{
    fn start(&self, worker: usize, workers: usize) -> Result<()> {
        initialise(&*self.0, self.1.get_or_init(|| WorkerInfo { worker, workers }))
    }

    fn run(&self, slot: &Slot) -> Result<Vec<u8>> {
        let by = self.1.get().map_or_else(String::new, |worker| {
            format!("{} of {}, pid {}", worker.worker, worker.workers, std::process::id())
        });
        place::writing(slot.writer(), || self.make(slot)).map_err(|error| error.at_if_absent("worker", by))
    }
}

impl<D> Loading<D>
where
    D: Dataset,
    D::Batch: Serialize,
{
    /// Makes a batch, and writes it as it crosses.
    fn make(&self, slot: &Slot) -> Result<Vec<u8>> {
        let task = decode(slot.request())?;
        let Loaded { data, samples, padding, skipped, spent } = load(&*self.0, &task, &Noted(slot))?;
        Noted(slot).at(Phase::Pack, 0);
        let packing = Instant::now();
        let unwritable = |error: postcard::Error| {
            Error::new(BATCH_UNWRITABLE, "a batch cannot be handed over to the trainer")
                .at("batch", task.batch)
                .at("epoch", task.epoch)
                .because(&error)
                .hint("its `Serialize` fails, or shared memory is full: see `max_batch_bytes` and `prefetch_factor`")
        };
        // The time for the data is known only after it was written.
        let mut body = postcard::to_allocvec(&data).map_err(unwritable)?;
        let Spent { get, collate, .. } = spent;
        let head = Head { samples, padding, skipped, get, collate, pack: packing.elapsed() };
        body = postcard::to_extend(&head, body).map_err(unwritable)?;
        Ok(body)
    }
}

/// Notes in the slot how far a batch is.
struct Noted<'a>(&'a Slot);

impl Progress for Noted<'_> {
    fn at(&self, phase: Phase, item: usize) {
        self.0.set_progress(item as u64);
        self.0.set_phase(phase as u8);
    }
}

/// What crosses beside the arrays.
#[derive(Deserialize)]
struct Reply<B> {
    data: B,
    head: Head,
}

#[derive(Serialize, Deserialize)]
struct Head {
    samples: usize,
    padding: usize,
    skipped: Vec<usize>,
    get: Duration,
    collate: Duration,
    pack: Duration,
}

/// The largest batch, where nobody has said: the first of these that the system allows.
const BATCH_BYTES: [usize; 4] = [4 << 30, 1 << 30, 256 << 20, 64 << 20];
/// How many slots there can be.
const MOST_SLOTS: usize = 4096;
/// Epochs of one loader that can be iterated at the same time.
const EPOCHS_AT_ONCE: usize = 4;
/// Batches that the trainer may hold besides as many as it asks for ahead.
const HANDED_OUT: usize = 2;
