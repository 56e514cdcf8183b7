//! Workers that are threads of this process: nothing is copied, nothing needs to be serialised.
//!
//! A thread cannot be killed. One that is stuck longer than the limit is named, given up and replaced; it ends when the
//! data set's code returns, or with the process. Code that aborts or segfaults takes the process with it: what is not
//! trusted belongs into worker processes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use leyden_process::clock::Lived;
use leyden_process::copies::Home;
use leyden_process::{Error, Result};

use super::task::{Loaded, Phase, Progress, Task, initialise, load};
use super::{Backend, Limits};
use crate::codes::{WORKER_INIT, WORKER_START, WORKER_STUCK};
use crate::dataset::{Dataset, WorkerInfo};
use crate::say::say;
use crate::workers::{CrewPlan, Part};

/// The pool. Dropping it ends its threads; one that is stuck is given up after [`FAREWELL`].
pub(crate) struct Threads<D: Dataset + 'static> {
    inner: Arc<Inner<D>>,
}

struct Inner<D: Dataset> {
    home: Home,
    dataset: Arc<D>,
    workers: usize,
    part: Part,
    limits: Limits,
    state: Mutex<State<D::Batch>>,
    /// Something is to be done, or the pool ends.
    work: Condvar,
    /// A batch is done, or a thread has ended.
    done: Condvar,
}

struct State<B> {
    /// What no thread has begun, by ticket: the oldest is begun first, whoever is free.
    waiting: BTreeMap<u64, Task>,
    running: BTreeMap<u64, Running>,
    done: BTreeMap<u64, Result<Loaded<B>>>,
    /// Threads that have not ended and are not given up, by worker; a new number for each.
    alive: BTreeMap<usize, u64>,
    /// Those of them that are not ready, and for how long.
    starting: BTreeMap<u64, Lived>,
    started: u64,
    /// Why the last thread that was started did not get ready.
    failure: Option<Error>,
    ending: bool,
}

/// A task in a thread's hands. One that is not in the list any more was given up together with its thread.
struct Running {
    task: Task,
    worker: usize,
    place: Arc<Place>,
    clock: Lived,
    warned: bool,
    /// Nobody wants the result.
    withdrawn: bool,
}

/// Where a thread is in its task: phase and item in one word.
#[derive(Default)]
struct Place(AtomicU64);

impl Progress for Place {
    fn at(&self, phase: Phase, item: usize) {
        self.0.store((phase as u64) << 56 | item as u64, Ordering::Relaxed);
    }
}

impl Place {
    fn read(&self) -> (Option<Phase>, usize) {
        let word = self.0.load(Ordering::Relaxed);
        (Phase::from_number((word >> 56) as u8), (word & ((1 << 56) - 1)) as usize)
    }
}

impl<D: Dataset + 'static> Threads<D> {
    /// Starts `workers` threads and waits until each has done the data set's `worker_init`.
    ///
    /// # Errors
    /// `L0901` if a thread cannot be started, `L0902` with the cause if a `worker_init` fails, panics or does not end.
    pub(crate) fn start(dataset: Arc<D>, workers: usize, plan: &CrewPlan) -> Result<Self> {
        let state = State {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            done: BTreeMap::new(),
            alive: BTreeMap::new(),
            starting: BTreeMap::new(),
            started: 0,
            failure: None,
            ending: false,
        };
        let inner = Inner {
            home: Home::here(),
            dataset,
            workers,
            part: plan.part,
            limits: plan.limits,
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
        };
        // From here on, a failure ends the threads that were started.
        let pool = Self { inner: Arc::new(inner) };
        for worker in 0..workers {
            pool.inner.start_thread(worker)?;
        }
        let inner = &pool.inner;
        let mut state = inner.lock();
        while !state.starting.is_empty() && state.failure.is_none() {
            inner.give_up_starting(&mut state);
            state = inner.done.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        match state.failure.take() {
            None => drop(state),
            Some(failure) => return Err(failure),
        }
        Ok(pool)
    }
}

impl<D: Dataset + 'static> Inner<D> {
    fn lock(&self) -> MutexGuard<'_, State<D::Batch>> {
        // Nothing in here panics while it holds the lock: user code runs outside.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what is asked in a forked process, which has none of the threads, and perhaps a lock that one of them holds.
    fn elsewhere(&self) -> Result<()> {
        match self.home.is_here() {
            true => Ok(()),
            false => Err(self.home.explain(Error::new(
                WORKER_START,
                "a loader's worker threads were asked for something in a process that does not have them",
            ))),
        }
    }

    fn start_thread(self: &Arc<Self>, worker: usize) -> Result<()> {
        let inner = Arc::clone(self);
        let mut state = self.lock();
        state.started += 1;
        let number = state.started;
        state.alive.insert(worker, number);
        state.starting.insert(number, Lived::default());
        drop(state);
        let info = self.info(worker);
        let started = thread::Builder::new().name(format!("leyden data {}", info.worker)).spawn(move || {
            let ready = initialise(&*inner.dataset, &info);
            let mut state = inner.lock();
            // Where it took too long, somebody else has its place.
            let in_time = state.starting.remove(&number).is_some();
            match ready {
                Ok(()) if in_time => {
                    drop(state);
                    inner.done.notify_all();
                    inner.work(worker, number);
                }
                Ok(()) => {}
                Err(error) => {
                    state.failure.get_or_insert(error);
                    inner.leave(state, worker, number);
                }
            }
        });
        started.map(drop).map_err(|error| {
            let mut state = self.lock();
            state.starting.remove(&number);
            self.leave(state, worker, number);
            Error::new(WORKER_START, "a worker thread cannot be started")
                .at("worker", info)
                .because(&error)
                .hint("use fewer workers, or raise the limit on threads (`ulimit -u`)")
        })
    }

    /// A worker among all of the loader's.
    fn info(&self, worker: usize) -> WorkerInfo {
        self.part.worker(worker, self.workers)
    }

    /// A thread ends.
    fn leave(&self, mut state: MutexGuard<'_, State<D::Batch>>, worker: usize, number: u64) {
        if state.alive.get(&worker) == Some(&number) {
            state.alive.remove(&worker);
        }
        drop(state);
        self.done.notify_all();
    }

    /// Waits no longer for threads that take too long to get ready.
    fn give_up_starting(&self, state: &mut State<D::Batch>) {
        let limit = self.limits.start;
        let late: Vec<u64> = state
            .starting
            .extract_if(.., |_, clock| clock.tick() >= limit)
            .map(|(number, _)| number)
            .collect();
        for number in late {
            let worker = state.alive.iter().find(|(_, alive)| **alive == number).map(|(&worker, _)| worker);
            if let Some(worker) = worker {
                state.alive.remove(&worker);
                state.failure.get_or_insert_with(|| {
                    Error::new(WORKER_INIT, "a worker's `worker_init` does not end")
                        .at("worker", self.info(worker))
                        .at("limit", format_args!("{limit:?}"))
                });
            }
        }
    }

    /// A worker's life.
    fn work(&self, worker: usize, number: u64) {
        let place = Arc::new(Place::default());
        let mut state = self.lock();
        while !state.ending {
            let Some((ticket, task)) = state.waiting.pop_first() else {
                state = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            let running = Running {
                task: task.clone(),
                worker,
                place: Arc::clone(&place),
                clock: Lived::default(),
                warned: false,
                withdrawn: false,
            };
            state.running.insert(ticket, running);
            drop(state);
            let loaded = load(&*self.dataset, &task, &*place)
                .map_err(|error| error.at_if_absent("worker", format_args!("{} threads", self.info(worker))));
            state = self.lock();
            match state.running.remove(&ticket) {
                // Withdrawn, but this thread is as good as ever.
                Some(running) if running.withdrawn => {}
                Some(_) => _ = state.done.insert(ticket, loaded),
                // Given up: somebody else works in this thread's place.
                None => return,
            }
            self.done.notify_all();
        }
        self.leave(state, worker, number);
    }

    /// Warns of tasks that take long, and gives up on the thread of one that takes too long. It is called at short
    /// intervals by whoever waits.
    fn look_after(self: &Arc<Self>, state: &mut State<D::Batch>) -> Option<(u64, Running)> {
        let Limits { warn, stuck, .. } = self.limits;
        self.give_up_starting(state);
        for running in state.running.values_mut() {
            let lived = running.clock.tick();
            if lived >= warn && !running.warned {
                running.warned = true;
                let worker = self.info(running.worker).worker;
                say(&format!(
                    "leyden: warning[{WORKER_STUCK}]: {} for {lived:.0?}",
                    running.describe(worker)
                ));
            }
        }
        let (&ticket, _) = state.running.iter().find(|(_, running)| running.clock.lived() >= stuck)?;
        state.running.remove(&ticket).map(|running| (ticket, running))
    }

    /// The error of a task whose thread was given up, and a new thread in its place.
    fn give_up(self: &Arc<Self>, running: &Running) -> Error {
        self.lock().alive.remove(&running.worker);
        let replaced = self.start_thread(running.worker);
        let (_, item) = running.place.read();
        let error = Error::new(WORKER_STUCK, "a worker thread is stuck in the data set's code")
            .at("in", running.describe(self.info(running.worker).worker))
            .at("limit", format_args!("{:?}", self.limits.stuck));
        let error = match running.task.indices.indices.get(item) {
            Some(sample) => error.at("sample", sample),
            None => error,
        };
        let error = error
            .at("batch", running.task.batch)
            .at("epoch", running.task.epoch)
            .at("worker", format_args!("{} threads", self.info(running.worker)))
            .why("a thread cannot be ended from outside: it was given up, and another works in its place")
            .hint("look at what `get` waits for there (a network file system, a lock, a child process), or raise `.timeout(..)`")
            .hint("`Workers::spawn(n)` runs the data set in processes, which can be ended");
        match replaced {
            Ok(()) => error,
            Err(cause) => error.why(format_args!("no thread could be started in its place: {cause}")),
        }
    }
}

impl Running {
    /// What the thread does, and for which sample.
    fn describe(&self, worker: usize) -> String {
        let (phase, item) = self.place.read();
        let name = phase.map_or("no phase yet", Phase::name);
        let Task { batch, epoch, indices, .. } = &self.task;
        match (phase, indices.indices.get(item)) {
            (Some(Phase::Get), Some(sample)) => {
                format!(
                    "worker thread {worker} in `{name}` of sample {sample} (batch {batch}, epoch {epoch})"
                )
            }
            _ => format!("worker thread {worker} in `{name}` of batch {batch}, epoch {epoch}"),
        }
    }
}

impl<D: Dataset + 'static> Backend<D::Batch> for Threads<D> {
    fn post(&self, ticket: u64, task: Task) -> Result<Option<Task>> {
        self.inner.elsewhere()?;
        self.inner.lock().waiting.insert(ticket, task);
        self.inner.work.notify_one();
        Ok(None)
    }

    fn take(&self, ticket: u64) -> Result<Loaded<D::Batch>> {
        let inner = &self.inner;
        inner.elsewhere()?;
        let mut state = inner.lock();
        loop {
            if let Some(loaded) = state.done.remove(&ticket) {
                return loaded;
            }
            if let Some((given_up, running)) = inner.look_after(&mut state) {
                drop(state);
                let error = inner.give_up(&running);
                state = inner.lock();
                if !running.withdrawn {
                    state.done.insert(given_up, Err(error));
                }
                continue;
            }
            if state.alive.is_empty() {
                state.waiting.remove(&ticket);
                let error = Error::new(WORKER_START, "no worker thread is left");
                return Err(match &state.failure {
                    Some(cause) => {
                        let error = error.why(format_args!("error[{}]: {cause}", cause.code()));
                        let error = cause.reasons().iter().fold(error, Error::why);
                        cause.places().fold(error, |error, (label, place)| error.at(label, place))
                    }
                    None => error.why("the last ones got stuck, and none could be started in their place"),
                });
            }
            state = inner.done.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn withdraw(&self, ticket: u64) {
        if !self.inner.home.is_here() {
            return;
        }
        let mut state = self.inner.lock();
        state.waiting.remove(&ticket);
        state.done.remove(&ticket);
        if let Some(running) = state.running.get_mut(&ticket) {
            running.withdrawn = true;
        }
    }

    /// Threads that could not be replaced are tried again.
    fn renew(&self) {
        if !self.inner.home.is_here() {
            return;
        }
        let mut state = self.inner.lock();
        let missing: Vec<usize> =
            (0..self.inner.workers).filter(|worker| !state.alive.contains_key(worker)).collect();
        state.failure = None;
        drop(state);
        for worker in missing {
            if let Err(error) = self.inner.start_thread(worker) {
                self.inner.lock().failure.get_or_insert(error);
            }
        }
    }
}

/// Ends the idle threads, and waits shortly for busy ones; their code runs to its end if it does not come soon.
impl<D: Dataset + 'static> Drop for Threads<D> {
    fn drop(&mut self) {
        if !self.inner.home.is_here() {
            return;
        }
        let mut state = self.inner.lock();
        state.ending = true;
        state.waiting.clear();
        self.inner.work.notify_all();
        let deadline = Instant::now() + FAREWELL;
        while !state.alive.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.inner.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How long an idle thread sleeps before it looks around by itself. It is woken for work.
const IDLE: Duration = Duration::from_secs(60);
/// How often somebody who waits for a batch looks after the threads.
const LOOK: Duration = Duration::from_millis(50);
/// How long dropping the pool waits for threads that are busy.
const FAREWELL: Duration = Duration::from_millis(100);
