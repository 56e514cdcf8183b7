//! Workers that are processes: they may crash, hang or be killed, and the epoch goes on.
//!
//! The data set is serialised once, and rebuilt in each worker. A batch is written into memory that the workers share
//! with this process, and its arrays are read there: see [`place`](crate::place).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use leyden_process::codes::{FILE_SIZE_LIMIT, NOT_MAPPED};
use leyden_process::pool::{Death, Outcome, Pool, PoolOptions, Work};
use leyden_process::slots::{Loan, Task as Slot};
use leyden_process::spawn::Start;
use leyden_process::{Error, Result, contain};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Backend;
use super::task::{Loaded, Phase, Progress, Spent, Task, initialise, load};
use crate::codes::{
    BATCH_UNREADABLE, BATCH_UNWRITABLE, LOADER_ARGUMENT, POISON, TASK_UNREADABLE, WORKER_DIED, WORKER_STUCK,
};
use crate::dataset::{Dataset, WorkerInfo};
use crate::place;
use crate::say::say;
use crate::workers::{CrewPlan, Part};

/// The pool, with the tasks that were posted to it.
pub(crate) struct Processes {
    pool: Pool,
    tasks: Mutex<BTreeMap<u64, Task>>,
    workers: usize,
    part: Part,
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
        let work = Loading::of(dataset, plan.part);
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
        let work = Arc::new(Loading::of(dataset, plan.part));
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
            name: plan
                .part
                .0
                .map_or("leyden data".to_owned(), |whole| format!("leyden data {}", whole.worker)),
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
            part: plan.part,
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
        read(loan, copied, task)
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
            None if death.poison => {
                Error::new(POISON, "a batch has killed each worker that tried it").at("deaths", death.deaths)
            }
            None => Error::new(WORKER_DIED, "a worker process died"),
        };
        let error = error.at(
            "worker",
            format_args!("{}, pid {}", self.part.worker(death.worker, self.workers), death.pid),
        );
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
            None if death.poison && sample_of(task, death).is_none() => {
                error.hint("make this batch by itself with `Workers::inline()`: what its samples become in `collate` kills")
            }
            None if death.poison => error.hint(
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
                Outcome::Failed(error) => return Err(located(error, &task)),
                Outcome::Died(death) => {
                    let poison = sample_of(&task, &death).filter(|_| task.skip_bad && death.poison);
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
    let garbled = || Error::new(TASK_UNREADABLE, "a worker process cannot read what it is to load");
    let task: Task = postcard::from_bytes(request).map_err(|error| garbled().because(&error))?;
    if task.indices.padding > task.indices.indices.len() {
        return Err(garbled().why("it has more padding than samples"));
    }
    Ok(task)
}

/// Reads a batch from what a worker wrote, or copies it out of there.
fn read<B: DeserializeOwned>(loan: Loan, copied: bool, task: &Task) -> Result<Loaded<B>> {
    let unreadable = || {
        Error::new(BATCH_UNREADABLE, "a batch of a worker process cannot be read")
            .at("batch", task.batch)
            .at("epoch", task.epoch)
    };
    let body = loan.clone();
    let Reply { data, head } = contain(|| place::reading(loan, copied, || postcard::from_bytes(body.body())))
        .map_err(|panic| panic.explain(unreadable()))?
        .map_err(|error| {
            own_words_lost(&error, unreadable().because(&error))
                .hint("does the batch's `Deserialize` read what its `Serialize` writes?")
        })?;
    let Head { samples, padding, skipped, get, collate, pack } = head;
    Ok(Loaded { data, samples, padding, skipped, spent: Spent { get, collate, pack } })
}

/// Says so where a type has refused in its own words: the format has no room for them.
fn own_words_lost(error: &postcard::Error, told: Error) -> Error {
    match error {
        postcard::Error::SerdeSerCustom | postcard::Error::SerdeDeCustom => told
            .why("the batch's own `Serialize` or `Deserialize` refused; the words of its error do not cross")
            .hint("find what is wrong with a batch in `collate`, whose errors are told in full"),
        _ => told,
    }
}

/// What a worker says is wrong, with what it may not know of its batch.
fn located(error: Error, task: &Task) -> Error {
    error.at_if_absent("batch", task.batch).at_if_absent("epoch", task.epoch)
}

/// The data set in a worker, and which worker that is.
struct Loading<D>(Arc<D>, Part, OnceLock<WorkerInfo>);

impl<D> Loading<D> {
    fn of(dataset: &Arc<D>, part: Part) -> Self {
        Self(Arc::clone(dataset), part, OnceLock::new())
    }
}

impl<D: Serialize> Serialize for Loading<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.0, self.1).serialize(serializer)
    }
}

impl<'de, D: Deserialize<'de>> Deserialize<'de> for Loading<D> {
    fn deserialize<T: Deserializer<'de>>(deserializer: T) -> Result<Self, T::Error> {
        let (dataset, part) = Deserialize::deserialize(deserializer)?;
        Ok(Self(Arc::new(dataset), part, OnceLock::new()))
    }
}

impl<D> Work for Loading<D>
where
    D: Dataset + 'static,
    D::Batch: Serialize,
{
    fn start(&self, worker: usize, workers: usize) -> Result<()> {
        initialise(&*self.0, self.2.get_or_init(|| self.1.worker(worker, workers)))
    }

    fn run(&self, slot: &Slot) -> Result<Vec<u8>> {
        let by =
            self.2.get().map_or_else(String::new, |worker| format!("{worker}, pid {}", std::process::id()));
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
        let Spent { get, collate, .. } = spent;
        place::refusal();
        let written = contain(|| {
            // The time for the data is known only after it was written.
            let body = postcard::to_allocvec(&data)?;
            let head = Head { samples, padding, skipped, get, collate, pack: packing.elapsed() };
            postcard::to_extend(&head, body)
        });
        let unwritable = || {
            Error::new(BATCH_UNWRITABLE, "a batch cannot be handed over to the trainer")
                .hint("a batch that crosses between processes is data alone: its `Serialize` must not fail")
        };
        let body = match (written, place::refusal()) {
            (Ok(Ok(body)), _) => body,
            // What was refused is exact; what `Serialize` makes of it is not.
            (Ok(Err(_)), Some(refusal)) => return Err(refusal),
            (Ok(Err(error)), None) => return Err(own_words_lost(&error, unwritable().because(&error))),
            (Err(panic), _) => return Err(panic.explain(unwritable())),
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batching::Indices;
    use crate::rng::SampleRng;

    fn task() -> Task {
        let indices = Indices { positions: 8..12, indices: vec![3, 700, 3, 80_000], padding: 1 };
        Task { seed: 7, epoch: 2, batch: 2, indices, skip_bad: true, left_out: vec![700] }
    }

    /// The bytes cut short, with each byte changed in some ways, and others altogether.
    fn garbled(sound: &[u8]) -> Vec<Vec<u8>> {
        let cut = (0..sound.len()).map(|end| sound[..end].to_vec());
        let changed = (0..sound.len()).flat_map(|at| {
            [0x00, 0x01, 0x7f, 0x80, 0xff].map(|byte| {
                let mut bytes = sound.to_vec();
                bytes[at] = byte;
                bytes
            })
        });
        let mut rng = SampleRng::for_sample(0, 0, 0);
        let random: Vec<Vec<u8>> =
            (0..500_u64).map(|number| (0..number % 97).map(|_| rng.next_u64() as u8).collect()).collect();
        // Lengths of almost everything, which must not be reserved before they are there.
        let long = (0..sound.len()).map(|at| [&sound[..at], &[0xff; 9], &[0x01], &sound[at..]].concat());
        cut.chain(changed).chain(random).chain(long).collect()
    }

    #[test]
    fn a_request_reads_back_and_a_garbled_one_is_an_error() {
        let sound = encode(&task()).unwrap();
        assert_eq!(decode(&sound).unwrap(), task());
        let mut refused = 0;
        for bytes in garbled(&sound) {
            match decode(&bytes) {
                Ok(task) => assert!(task.indices.padding <= task.indices.indices.len()),
                Err(error) => {
                    assert_eq!(error.code(), TASK_UNREADABLE, "{error:?}");
                    refused += 1;
                }
            }
            // Told of in words, whatever it is.
            describe(&bytes, 1, 2);
        }
        assert!(refused > sound.len(), "{refused}");
    }

    // Elsewhere there are no slots: a worker of its own would be needed to write a reply.
    #[cfg(not(leyden_portable))]
    #[test]
    fn a_garbled_reply_is_an_error_and_its_slot_is_free_again() {
        use crate::array::Array;
        use leyden_process::slots::{Reply as Answer, Slots, SlotsConfig, SlotsWorker};
        use std::collections::BTreeMap as Map;

        type Batch = (Array<f32>, Vec<String>, Map<String, Array<u8>>);

        let config = SlotsConfig { workers: 1, slots: 2, slot_bytes: 1 << 16, budget_bytes: 1 << 20 };
        let slots = Slots::new(config).unwrap();
        let worker = SlotsWorker::open(slots.fd().try_clone_to_owned().unwrap(), 0).unwrap();
        let soon = || Instant::now() + Duration::from_secs(30);
        let mut tickets = 0..;
        // What a worker would write, with the bytes beside the arrays put into another order.
        let mut cross = |garble: &dyn Fn(Vec<u8>) -> Vec<u8>| {
            let ticket = tickets.next().unwrap();
            let slot = slots.post(ticket, b"").unwrap().expect("the slots before are free again");
            let claimed = worker.claim(soon()).unwrap();
            let body = place::writing(claimed.writer(), || {
                let rows =
                    Array::stack(&[2], [[1.0_f32, 2.0], [3.0, 4.0]].iter().map(|row| &row[..])).unwrap();
                let extra = Map::from([("x".to_owned(), Array::<u8>::from(vec![9, 8, 7]))]);
                let batch: Batch = (rows, vec!["one".to_owned(), "two".to_owned()], extra);
                let head = Head {
                    samples: 2,
                    padding: 0,
                    skipped: vec![5],
                    get: Duration::from_millis(1),
                    collate: Duration::ZERO,
                    pack: Duration::ZERO,
                };
                postcard::to_extend(&head, postcard::to_allocvec(&batch).unwrap()).unwrap()
            });
            let bytes = garble(body);
            claimed.complete(&bytes).map_err(|(error, _)| error).unwrap();
            slots.wait(slot, ticket, slots.kicks(), soon());
            let Answer::Done(loan) = slots.take(slot, ticket).unwrap().unwrap() else { panic!("it is done") };
            loan
        };
        let sound = cross(&|body| body).body().to_vec();
        for copied in [false, true] {
            let Loaded { data, samples, skipped, .. } =
                read::<Batch>(cross(&|body| body), copied, &task()).unwrap();
            assert_eq!((&data.0[..], samples, skipped), (&[1.0, 2.0, 3.0, 4.0][..], 2, vec![5]));
        }
        let mut refused = 0;
        for (number, bytes) in garbled(&sound).into_iter().enumerate() {
            if let Err(error) = read::<Batch>(cross(&|_| bytes.clone()), number % 2 == 0, &task()) {
                assert_eq!(error.code(), BATCH_UNREADABLE, "{error:?}");
                assert_eq!((error.place("batch"), error.place("panicked")), (Some("2"), None), "{error:?}");
                refused += 1;
            }
        }
        assert!(refused > sound.len(), "{refused}");
        assert_eq!((slots.loaned(), slots.quarantined()), (0, 0));
    }
}
