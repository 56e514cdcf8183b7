//! Worker processes that do a program's tasks, and whose death costs nothing but time.
//!
//! Each worker has a thread of this process, its keeper: it takes the next task from the [`Pool`], writes it to the
//! worker's pipe, reads where the worker is and what it replies, warns when it takes long and kills it when it takes too
//! long; when the worker dies it gives its tasks back and starts another one. A task is redone only so often: then whoever
//! waits for it is told what happened to it, as an [`Outcome`].
//!
//! What a task is, only the caller knows: bytes in, bytes and regions out.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::control::{Control, Got, Tag};
use super::memory::Buffer;
use super::slots::{Counts, Loan, News, Posted, Reply, Task, take_ticket};
use crate::clock::Lived;
use crate::codes::{POOL_CLOSED, POOL_START, SLOT_FULL, SLOTS_CONFIG, TASK_PANICKED, TASK_SILENT};
use crate::contain;
use crate::copies::{self, Home};
use crate::error::{Error, Result};
use crate::spawn::{Child, Job, Parent, Received, SpawnOptions, start_failed};
use crate::supervise::{Cause, Ended, evidence};
use crate::sys::{self, Wake};

pub use crate::tasks::{Death, Describe, Outcome, POISON, PoolOptions, Work};
use crate::tasks::{
    FUTILE, LOADED, PAUSE, elsewhere, left_early, look_at, offer_to_the_memory_killer, one_at_a_time, say,
    slow_start, starting, unstaffed,
};

/// Worker processes. Dropping it ends them, within 300 ms.
pub struct Pool {
    shared: Arc<Shared>,
    home: Home,
    /// Closed when the last keeper has ended its worker.
    ended: Mutex<Receiver<()>>,
}

impl Pool {
    /// Starts the workers, and waits until each has done [`Work::start`]. `work` is serialised once, and each worker has
    /// a copy.
    ///
    /// # Errors
    /// Those of [`Job::new`] and [`Job::spawn`]; that of [`Work::start`]; `P0301` if a worker does not get ready in time.
    /// Nothing is left behind.
    pub fn start<W: Work + Serialize + DeserializeOwned>(work: &W, options: PoolOptions) -> Result<Self> {
        Self::staffed(Job::new(|work: W, parent| serve(&work, &parent), work)?, options)
    }

    /// By forking there is none: see [`Start::Fork`](crate::spawn::Start::Fork).
    ///
    /// # Errors
    /// `P0115`.
    pub fn fork<W: Work>(work: Arc<W>, options: PoolOptions) -> Result<Self> {
        let job = Job::in_memory(|work: Arc<W>, parent| serve(&*work, &parent), work)?;
        Self::staffed(job, options)
    }

    fn staffed(job: Job, options: PoolOptions) -> Result<Self> {
        let shared = Arc::new(Shared {
            job,
            wakes: (0..options.workers)
                .map(|_| Wake::new())
                .collect::<std::io::Result<_>>()
                .map_err(|error| start_failed(&options.name, &error))?,
            tasks: Mutex::default(),
            news: Condvar::new(),
            ending: AtomicBool::new(false),
            counts: Arc::default(),
            options,
        });
        let (alive, ended) = mpsc::sync_channel(0);
        let (ready, readied) = mpsc::sync_channel(shared.options.workers);
        let pool = Self { shared, home: Home::here(), ended: Mutex::new(ended) };
        for worker in 0..pool.shared.options.workers {
            let (shared, ready, alive) = (pool.shared.clone(), Some(ready.clone()), alive.clone());
            let keeper = Keeper { worker, shared, ready, _alive: alive };
            thread::Builder::new()
                .name(format!("{} {worker}", pool.shared.options.name))
                .spawn(move || keeper.keep())
                .map_err(|error| {
                    Error::new(POOL_START, "the thread that keeps a worker cannot be started")
                        .because(&error)
                        .hint("use fewer workers, or raise the limit on threads (`ulimit -u`)")
                })?;
        }
        drop((ready, alive));
        // Each keeper reports: it gives its worker so much time and no more.
        for _ in 0..pool.shared.options.workers {
            readied.recv().map_err(|_| keepers_are_gone())??;
        }
        Ok(pool)
    }

    /// Posts a task; tasks are begun by their tickets, smallest first. False where there are as many as may be.
    ///
    /// # Errors
    /// `P0205` if there is no room for the request; `P0208` for a ticket from 2⁴⁸ on.
    pub fn post(&self, ticket: u64, request: Vec<u8>) -> Result<bool> {
        elsewhere(self.home)?;
        let Shared { options, counts, .. } = &*self.shared;
        if ticket >= TICKETS {
            return Err(Error::new(SLOTS_CONFIG, format!("ticket {ticket} is larger than 2^48 - 1")));
        }
        if request.len() > options.slot_bytes {
            return Err(Error::new(SLOT_FULL, "a request is larger than what is reserved for a batch")
                .at("needed", format!("{} bytes", request.len()))
                .at("reserved", format!("{} bytes", options.slot_bytes))
                .hint(
                    "reserve more for each: `.max_batch_bytes(..)` of the loader, `slot_bytes` of a pool",
                ));
        }
        let mut tasks = self.shared.tasks();
        if tasks.by_ticket.len() + counts.loaned.load(Ordering::Relaxed) >= options.slots {
            return Ok(false);
        }
        tasks.by_ticket.insert(ticket, Entry::new(request));
        let idle = tasks.idle.pop();
        drop(tasks);
        if let Some(worker) = idle {
            self.shared.wakes[worker].wake();
        }
        Ok(true)
    }

    /// Waits for what becomes of a task. The wait ends: a worker that takes too long is killed, and a task is redone only
    /// so often.
    ///
    /// # Errors
    /// `P0302` if no worker is left and none can be started, with the last reason.
    pub fn take(&self, ticket: u64) -> Result<Outcome> {
        elsewhere(self.home)?;
        let mut tasks = self.shared.tasks();
        loop {
            let Some(entry) = tasks.by_ticket.get_mut(&ticket) else {
                return Err(
                    Error::new(POOL_CLOSED, "a task was taken that nobody has posted").at("ticket", ticket)
                );
            };
            if let State::Ended(end) = &mut entry.state {
                let end = end.take();
                tasks.by_ticket.remove(&ticket);
                drop(tasks);
                return end.map(End::into_outcome).ok_or_else(keepers_are_gone);
            }
            if let Some(reason) = tasks.unstaffed.clone() {
                tasks.withdraw(ticket);
                return Err(reason);
            }
            if Arc::strong_count(&self.shared) == 1 {
                return Err(keepers_are_gone());
            }
            tasks = self.shared.news.wait_timeout(tasks, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nobody will take this task. A worker that is at it is still watched.
    pub fn withdraw(&self, ticket: u64) {
        if !self.home.is_here() {
            return;
        }
        self.shared.tasks().withdraw(ticket);
    }

    /// Begins a new count of deaths that are made good, and tries again to start workers that could not be started.
    pub fn renew(&self) {
        if !self.home.is_here() {
            return;
        }
        let mut tasks = self.shared.tasks();
        tasks.redone = 0;
        tasks.unstaffed = None;
        tasks.futile = 0;
        tasks.not_before = Instant::now();
        drop(tasks);
        self.shared.wakes.iter().for_each(Wake::wake);
    }

    /// Gives back so many deaths to be made good: their cause is known, and gone.
    pub fn pardon(&self, deaths: usize) {
        let mut tasks = self.shared.tasks();
        tasks.redone = tasks.redone.saturating_sub(deaths);
    }

    /// How many replies are in use.
    pub fn loaned(&self) -> usize {
        self.shared.counts.loaned.load(Ordering::Relaxed)
    }

    /// The memory that replies take, in bytes.
    pub fn committed_bytes(&self) -> u64 {
        self.shared.counts.bytes.load(Ordering::Relaxed) as u64
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.home.is_here() {
            return;
        }
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wakes.iter().for_each(Wake::wake);
        // Nothing is ever sent: the channel closes. Whoever the kernel does not bury in time is left to its keeper.
        let _ = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner).recv_timeout(DROP);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PoolOptions { name, workers, .. } = &self.shared.options;
        f.debug_struct("Pool").field("name", name).field("workers", workers).finish_non_exhaustive()
    }
}

struct Shared {
    job: Job,
    /// One for each worker's keeper.
    wakes: Vec<Wake>,
    tasks: Mutex<Tasks>,
    /// Something has become of a task.
    news: Condvar,
    ending: AtomicBool,
    counts: Arc<Counts>,
    options: PoolOptions,
}

struct Tasks {
    by_ticket: BTreeMap<u64, Entry>,
    /// Workers whose keepers sleep although they could take a task.
    idle: Vec<usize>,
    /// Deaths made good.
    redone: usize,
    /// Workers that live, or are being started.
    staffed: usize,
    /// How many attempts in a row to start a worker have failed.
    futile: usize,
    /// Why the last of them did.
    failure: Option<Error>,
    /// No further attempt before this.
    not_before: Instant,
    /// The last workers that died, and of what.
    deaths: VecDeque<String>,
    /// Why there are no workers any more.
    unstaffed: Option<Error>,
    /// A worker has died at several tasks at once, and nobody knows at which: workers get one at a time.
    cautious: bool,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            by_ticket: BTreeMap::new(),
            idle: Vec::new(),
            redone: 0,
            staffed: 0,
            futile: 0,
            failure: None,
            not_before: Instant::now(),
            deaths: VecDeque::new(),
            unstaffed: None,
            cautious: false,
        }
    }
}

/// A task between being posted and being taken.
struct Entry {
    request: Arc<Vec<u8>>,
    state: State,
    /// Workers in a row that have died at it, in the same place.
    deaths: usize,
    /// Those of them that had no other task beside it, so that it was this one.
    alone: usize,
    /// Where the last one did: phase and progress.
    place: Option<(u8, u64)>,
    /// Nobody will take it; it is here because a worker is at it.
    unwanted: bool,
}

enum State {
    Waiting,
    Running,
    Ended(Option<End>),
}

enum End {
    Done(Reply),
    Failed(Reply),
    Died(Box<Death>),
}

impl Entry {
    fn new(request: Vec<u8>) -> Self {
        let request = Arc::new(request);
        Self { request, state: State::Waiting, deaths: 0, alone: 0, place: None, unwanted: false }
    }
}

impl End {
    fn into_outcome(self) -> Outcome {
        match self {
            Self::Done(reply) => Outcome::Done(Loan::new(reply)),
            Self::Failed(reply) => Outcome::Failed(
                Error::from_wire(&reply.body)
                    .unwrap_or_else(|| Error::new(TASK_SILENT, "a worker gave a task up without a reason")),
            ),
            Self::Died(death) => Outcome::Died(death),
        }
    }
}

impl Tasks {
    fn withdraw(&mut self, ticket: u64) {
        if let Some(entry) = self.by_ticket.get_mut(&ticket) {
            entry.unwanted = true;
            if !matches!(entry.state, State::Running) {
                self.by_ticket.remove(&ticket);
            }
        }
    }

    /// The waiting task with the smallest ticket.
    fn begin(&mut self) -> Option<(u64, Arc<Vec<u8>>)> {
        let waits = |entry: &Entry| matches!(entry.state, State::Waiting);
        let (ticket, entry) = self.by_ticket.iter_mut().find(|(_, entry)| waits(entry))?;
        entry.state = State::Running;
        Some((*ticket, entry.request.clone()))
    }

    /// A running task is to be done by somebody else.
    fn put_back(&mut self, ticket: u64) {
        if let Some(entry) = self.by_ticket.get_mut(&ticket) {
            entry.state = State::Waiting;
            if entry.unwanted {
                self.by_ticket.remove(&ticket);
            }
        }
    }

    /// What has become of a running task.
    fn end(&mut self, ticket: u64, end: End) {
        if let Some(entry) = self.by_ticket.get_mut(&ticket) {
            entry.state = State::Ended(Some(end));
            if entry.unwanted {
                self.by_ticket.remove(&ticket);
            }
        }
    }
}

impl Shared {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // Nothing panics while it holds the lock.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Whether a keeper without a worker may start one now. If so, it counts as staff.
    fn may_hire(&self) -> bool {
        let mut tasks = self.tasks();
        if tasks.futile < FUTILE {
            let now = Instant::now() >= tasks.not_before;
            tasks.staffed += usize::from(now);
            return now;
        }
        if tasks.staffed == 0 && tasks.unstaffed.is_none() {
            let error = unstaffed(tasks.failure.as_ref(), &mut tasks.deaths.iter());
            tasks.unstaffed = Some(error);
            drop(tasks);
            self.news.notify_all();
        }
        false
    }

    /// Takes note of an attempt to start a worker that has failed. The next one comes a little later: what is missing
    /// may come back.
    fn fail(&self, failure: Error) {
        let mut tasks = self.tasks();
        tasks.futile += 1;
        tasks.not_before = Instant::now() + PAUSE * tasks.futile as u32;
        if tasks.futile == FUTILE {
            let PoolOptions { name, workers, .. } = &self.options;
            let left = tasks.staffed;
            say(&format!(
                "leyden: warning: {name}: {left} of {workers} workers are left; no other could be started, the last \
                 time because {failure}",
            ));
        }
        tasks.failure = Some(failure);
    }

    /// Lets somebody else do a task that this worker has not begun, if there is somebody without one.
    fn offer(&self, ticket: u64, worker: usize) -> bool {
        let mut tasks = self.tasks();
        let Some(place) = tasks.idle.iter().rposition(|&idle| idle != worker) else { return false };
        let idle = tasks.idle.remove(place);
        tasks.put_back(ticket);
        drop(tasks);
        self.wakes[idle].wake();
        true
    }

    /// Gives the tasks of a dead worker to others, as far as they may be redone.
    fn rescue(&self, member: &Member, ended: &Ended) {
        let mut tasks = self.tasks();
        // One death is one death, however many tasks the worker had.
        let mut counted = false;
        let begun = member.held.values().filter(|held| held.begun && !held.returned).count();
        let torn = begun > 1;
        let at =
            member.held.values().find(|held| held.begun && !held.returned).map(|held| {
                format!(" in {}", (self.options.describe)(&held.request, held.phase, held.progress))
            });
        let (worker, pid, cause, at) =
            (member.worker, member.child.pid(), ended.cause, at.unwrap_or_default());
        tasks.deaths.push_back(format!("worker {worker}, pid {pid}: {cause}{at}"));
        if tasks.deaths.len() > FUTILE {
            tasks.deaths.pop_front();
        }
        if torn && !tasks.cautious {
            tasks.cautious = true;
            say(&one_at_a_time(member.child.name()));
        }
        if begun == 0 && member.ready {
            tasks.redone += 1;
            if tasks.redone > self.options.redo {
                tasks.futile = FUTILE;
                tasks.failure = ended.clone().into_result(member.child.name()).err();
            }
        }
        for (&ticket, held) in member.held.iter().filter(|(_, held)| !held.returned) {
            let Tasks { by_ticket, redone, .. } = &mut *tasks;
            let open = by_ticket.iter().filter(|(other, _)| **other != ticket && self.options.pardons);
            let open: usize = open.map(|(_, entry)| entry.deaths).sum();
            let Some(entry) = by_ticket.get_mut(&ticket) else { continue };
            if entry.unwanted {
                by_ticket.remove(&ticket);
                continue;
            }
            // It has not killed whom it did not reach.
            if !held.begun {
                entry.state = State::Waiting;
                continue;
            }
            let place = Some((held.phase, held.progress));
            if entry.place != place {
                (entry.deaths, entry.alone, entry.place) = (0, 0, place);
            }
            entry.deaths += 1;
            entry.alone += usize::from(!torn);
            if entry.alone < POISON && (counted || redone.saturating_sub(open) < self.options.redo) {
                *redone += usize::from(!counted);
                counted = true;
                entry.state = State::Waiting;
                continue;
            }
            entry.state = State::Ended(Some(End::Died(Box::new(Death {
                worker: member.worker,
                pid: member.child.pid(),
                ended: ended.clone(),
                stuck: member.stuck.clone(),
                progress: held.progress,
                phase: held.phase,
                deaths: entry.deaths,
                poison: entry.alone >= POISON,
                redone: *redone,
            }))));
        }
        let idle = std::mem::take(&mut tasks.idle);
        drop(tasks);
        self.news.notify_all();
        idle.into_iter().for_each(|worker| self.wakes[worker].wake());
    }
}

/// Starts a worker, hands it tasks, and starts another one in its place.
struct Keeper {
    worker: usize,
    shared: Arc<Shared>,
    /// Waited for by whoever starts the pool: says whether the first worker got ready.
    ready: Option<SyncSender<Result<()>>>,
    _alive: SyncSender<()>,
}

/// A worker.
struct Member {
    worker: usize,
    child: Child,
    /// It has read what it works with.
    loaded: bool,
    ready: bool,
    /// For how long it has been starting.
    starting: Lived,
    /// What it is at, by ticket.
    held: BTreeMap<u64, Held>,
    /// Of the reply that is being read.
    regions: Vec<Buffer>,
    /// What it looked like when it was killed.
    stuck: Option<String>,
    /// For how long it should be dead.
    killed: Option<Lived>,
}

/// A task that a worker is at.
struct Held {
    request: Arc<Vec<u8>>,
    /// Whether the worker has said that it is at it.
    begun: bool,
    /// It was not, for so long that others were asked to do it.
    returned: bool,
    progress: u64,
    phase: u8,
    clock: Lived,
    warned: bool,
}

/// What a worker is told first.
#[derive(Serialize, Deserialize)]
struct Assignment {
    worker: usize,
    workers: usize,
    threads: usize,
    /// How many bytes a task and its reply may take.
    most: usize,
}

impl Keeper {
    fn keep(mut self) {
        while !self.shared.is_ending() {
            if !self.shared.may_hire() {
                self.sleep(Vec::new(), PAUSE);
                continue;
            }
            let failure = match self.hire() {
                Ok(member) => self.tend(member),
                Err(error) => Some(error),
            };
            self.shared.tasks().staffed -= 1;
            match (failure, self.ready.take()) {
                // Without the first workers there is no pool.
                (Some(failure), Some(ready)) => return drop(ready.send(Err(failure))),
                (Some(failure), None) => self.shared.fail(failure),
                (None, _) => {}
            }
        }
    }

    /// Starts a process.
    fn hire(&self) -> Result<Member> {
        let PoolOptions { name, from, workers, threads_each, slot_bytes, start, .. } = &self.shared.options;
        let mut spawn = SpawnOptions::named(format!("{name} {}", self.worker));
        spawn.start = *from;
        spawn.hello_timeout = (*start).min(spawn.hello_timeout);
        let mut child = self.shared.job.spawn(&spawn)?;
        let assignment = Assignment {
            worker: self.worker,
            workers: *workers,
            threads: (*threads_each).max(1),
            most: *slot_bytes,
        };
        if let Err(error) = child.send(&postcard::to_allocvec(&assignment)?) {
            // It may have said why it left.
            let ended = child.ended(DROP);
            return Err(ended.map_or(error, |ended| left_early(&spawn.name, false, ended)));
        }
        self.shared.tasks().unstaffed = None;
        Ok(Member {
            worker: self.worker,
            child,
            loaded: false,
            ready: false,
            starting: Lived::default(),
            held: BTreeMap::new(),
            regions: Vec::new(),
            stuck: None,
            killed: None,
        })
    }

    /// Keeps a worker at work until it is dead; says why if it was never ready.
    fn tend(&mut self, mut member: Member) -> Option<Error> {
        let PoolOptions { warn, stuck, start, .. } = self.shared.options;
        let tick = (warn.min(stuck).min(start) / 4).clamp(SHORTEST, Lived::LONGEST / 2);
        let mut silent = false;
        loop {
            if self.shared.is_ending() {
                member.child.stop(FAREWELL);
                return None;
            }
            if !self.read(&mut member) {
                return self.bury(member);
            }
            // Somebody else may hold its pipe open.
            if silent && member.child.is_dead() {
                self.read(&mut member);
                return self.bury(member);
            }
            if member.killed.as_mut().is_some_and(|clock| clock.tick() >= UNDEAD) {
                return self.bury(member);
            }
            self.give(&mut member);
            self.watch(&mut member);
            silent = !self.sleep(member.child.interests(), tick);
        }
    }

    /// Sleeps until there is something to read, a wake, or the time is over; says whether it is not.
    fn sleep(&self, mut interests: Vec<libc::pollfd>, time: Duration) -> bool {
        let wake = &self.shared.wakes[self.worker];
        interests.push(wake.interest());
        let something = sys::poll(&mut interests, Some(Instant::now() + time)).unwrap_or(false);
        if interests.last().is_some_and(|wake| wake.revents != 0) {
            wake.clear();
        }
        self.shared.tasks().idle.retain(|&worker| worker != self.worker);
        something
    }

    /// Hands out tasks, as many as the worker does at once.
    fn give(&self, member: &mut Member) {
        let most = if self.shared.tasks().cautious { 1 } else { self.shared.options.threads_each.max(1) };
        // One that does not begin what it has gets no more.
        let takes =
            member.ready && member.killed.is_none() && !member.held.values().any(|held| held.returned);
        while takes && member.held.len() < most {
            let mut tasks = self.shared.tasks();
            let Some((ticket, request)) = tasks.begin() else {
                tasks.idle.push(self.worker);
                return;
            };
            drop(tasks);
            let posted = Posted { ticket, request: request.clone() };
            let frame = postcard::to_allocvec(&posted).expect("bytes and numbers always serialise");
            if member.child.control.send_all(&[(Tag::Task, &frame)], Instant::now()).is_err() {
                // It is dead, which will be noticed, or has not read yet what it got before.
                return self.shared.tasks().put_back(ticket);
            }
            let clock = Lived::default();
            let held =
                Held { request, begun: false, returned: false, progress: 0, phase: 0, clock, warned: false };
            member.held.insert(ticket, held);
        }
    }

    /// Reads all that the worker has said; false if nothing more will come.
    fn read(&mut self, member: &mut Member) -> bool {
        loop {
            match member.child.control.receive(Instant::now()) {
                Ok(Got::TimedOut) => return true,
                Ok(last @ (Got::Closed | Got::Packet { tag: Tag::Goodbye, .. })) => {
                    member.child.note(last);
                    return false;
                }
                Ok(got) => self.note(member, got),
                Err(error) => {
                    member.kill(format!("what it says cannot be understood: {error}"));
                    return false;
                }
            }
        }
    }

    /// Takes note of what a worker has said.
    fn note(&mut self, member: &mut Member, got: Got) {
        match got {
            Got::Region(region) => member.regions.push(region),
            Got::Packet { tag: Tag::Progress, body } => {
                let news = News::from_bytes(&body);
                if let Some((news, held)) =
                    news.and_then(|news| Some((news, member.held.get_mut(&news.ticket)?)))
                {
                    held.clock = if held.begun { held.clock } else { Lived::default() };
                    (held.begun, held.progress, held.phase) = (true, news.progress, news.phase);
                }
            }
            Got::Packet { tag: tag @ (Tag::Done | Tag::Failed), mut body } => {
                let regions = std::mem::take(&mut member.regions);
                let held = take_ticket(&mut body).and_then(|ticket| member.held.remove_entry(&ticket));
                // Others are asked to do what it began too late.
                let Some((ticket, _)) = held.filter(|(_, held)| !held.returned) else { return };
                let reply = Reply::new(body, regions, &self.shared.counts);
                let end = if tag == Tag::Done { End::Done(reply) } else { End::Failed(reply) };
                self.shared.tasks().end(ticket, end);
                self.shared.news.notify_all();
            }
            Got::Packet { tag: Tag::Message, body } if body == LOADED => member.loaded = true,
            Got::Packet { tag: Tag::Message, .. } => {
                member.ready = true;
                let mut tasks = self.shared.tasks();
                (tasks.futile, tasks.not_before) = (0, Instant::now());
                drop(tasks);
                if let Some(ready) = self.ready.take() {
                    // Nobody listens if another worker has failed.
                    let _ = ready.send(Ok(()));
                }
            }
            _ => {}
        }
    }

    /// Warns of a worker that takes long, and kills one that takes too long: for a task, or to become ready.
    fn watch(&self, member: &mut Member) {
        let PoolOptions { warn, stuck, start, describe, .. } = &self.shared.options;
        if !member.ready && member.killed.is_none() && member.starting.tick() >= *start {
            member.kill(format!("starting for {start:?}; {}", look_at(member.child.pid())));
        }
        let mut slow = Vec::new();
        for (&ticket, held) in &mut member.held {
            let lived = held.clock.tick();
            if !held.begun && !held.returned && lived >= SLUGGISH {
                held.returned = self.shared.offer(ticket, self.worker);
            }
            let warns = lived >= *warn && !held.warned;
            if warns || lived >= *stuck {
                held.warned = true;
                let task = match held.begun {
                    true => describe(&held.request, held.phase, held.progress),
                    false => "no task, although one waits,".to_owned(),
                };
                slow.push((lived, warns, task));
            }
        }
        for (lived, warns, task) in slow {
            if evidence(member.child.pid()).is_traced() {
                // Somebody is at it with a debugger.
                for held in member.held.values_mut() {
                    (held.clock, held.warned) = (Lived::default(), false);
                }
                return;
            }
            let seen = look_at(member.child.pid());
            if warns {
                let (name, pid) = (member.child.name(), member.child.pid());
                say(&format!(
                    "leyden: warning: {name} (pid {pid}) is in {task} for {lived:.0?}; it is {seen}"
                ));
            }
            if lived >= *stuck && member.killed.is_none() {
                member.kill(format!("{task} for {lived:.0?}; {seen}"));
            }
        }
    }

    /// Learns how a worker has died, and sees to its tasks; says why if it was never ready.
    fn bury(&mut self, mut member: Member) -> Option<Error> {
        let mut ended = member.child.ended(DYING);
        if ended.is_none() && member.killed.is_none() {
            // It has closed its pipes, and is still there.
            member.child.kill();
            ended = member.child.ended(UNDEAD);
        }
        let ended = ended.unwrap_or_else(|| {
            let (name, pid) = (member.child.name(), member.child.pid());
            say(&format!(
                "leyden: warning: {name} (pid {pid}) was killed and does not die: it is {}",
                look_at(pid)
            ));
            Ended { cause: Cause::Unknown, stderr: member.child.stderr(), error: None }
        });
        self.shared.rescue(&member, &ended);
        if member.ready {
            return None;
        }
        let name = member.child.name().to_owned();
        if member.stuck.is_some() {
            return Some(unready(&member, self.shared.options.start));
        }
        Some(left_early(&name, member.loaded, ended))
    }
}

impl Member {
    /// Kills it, for the reason in these words.
    fn kill(&mut self, why: String) {
        self.stuck.get_or_insert(why);
        self.killed.get_or_insert_default();
        self.child.kill();
    }
}

/// A worker's life.
fn serve<W: Work>(work: &W, parent: &Parent) -> Result<()> {
    parent.send(LOADED)?;
    let Received::Message(message) = parent.recv(ASSIGNED)? else { return Ok(()) };
    let Assignment { worker, workers, threads, most } = postcard::from_bytes(&message)?;
    offer_to_the_memory_killer();
    work.start(worker, workers)?;
    copies::end_if_copied(|| "the start of a worker");
    parent.send(b"ready")?;
    thread::scope(|scope| {
        for thread in 1..threads {
            let extra = thread::Builder::new().name(format!("{} {thread}", parent.name()));
            // One thread less does the same work, later.
            let _ = extra.spawn_scoped(scope, || do_tasks(work, parent.control(), most));
        }
        do_tasks(work, parent.control(), most);
    });
    Ok(())
}

fn do_tasks<W: Work>(work: &W, control: &Control, most: usize) {
    loop {
        let posted = match control.receive(Instant::now() + IDLE) {
            Ok(Got::Packet { tag: Tag::Task, body }) => body,
            Ok(Got::TimedOut) => continue,
            _ => return,
        };
        let Ok(posted) = postcard::from_bytes(&posted) else { return };
        let task = Task::new(posted, most, control);
        let done = contain(|| work.run(&task)).unwrap_or_else(|panic| {
            Err(panic.explain(Error::new(TASK_PANICKED, "a worker's code panicked")))
        });
        match done {
            Ok(body) => {
                if let Err((error, task)) = task.complete(&body) {
                    task.fail(&error.to_wire());
                }
            }
            Err(error) => task.fail(&error.to_wire()),
        }
    }
}

/// The error of a worker that takes too long to start.
fn unready(member: &Member, limit: Duration) -> Error {
    let error = Error::new(POOL_START, "a worker process did not get ready in time")
        .at("worker", format_args!("{}, pid {}", member.worker, member.child.pid()))
        .at("limit", format_args!("{limit:?}"))
        .at("in", starting(member.loaded))
        .at("it is", member.stuck.as_deref().unwrap_or("gone"));
    slow_start(error)
}

fn keepers_are_gone() -> Error {
    Error::new(POOL_CLOSED, "the threads that keep workers are gone")
}

/// Tickets are below this.
const TICKETS: u64 = 1 << 48;
/// How often whoever waits for a task looks whether there is still somebody to wait for.
const LOOK: Duration = Duration::from_millis(250);
/// The shortest time between two looks at a worker.
const SHORTEST: Duration = Duration::from_millis(5);
/// How long busy workers have to finish when the pool is dropped.
const FAREWELL: Duration = Duration::from_millis(60);
/// How long dropping the pool waits for that.
const DROP: Duration = Duration::from_millis(300);
/// How long a new process waits to be told what it is.
const ASSIGNED: Duration = Duration::from_secs(10);
/// How long an idle worker sleeps before it looks around by itself.
const IDLE: Duration = Duration::from_secs(60);
/// How long a worker may take to say that it has begun a task before others are asked.
const SLUGGISH: Duration = Duration::from_millis(500);
/// How long the kernel may take to end a process after its pipes.
const DYING: Duration = Duration::from_millis(500);
/// How long a killed process may take to die before it is waited for no longer.
const UNDEAD: Duration = Duration::from_secs(1);
