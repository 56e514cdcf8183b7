//! Worker processes that do a program's tasks, and whose death costs nothing but time.
//!
//! A [`Pool`] starts processes that share [slots](crate::slots) with it: a task is posted into a slot, whichever worker
//! is free claims it from there, and the reply is read in place. One thread supervises. It sleeps on the workers'
//! [tombstones](crate::tombstone), so that a death is noticed within milliseconds; gives the dead worker's tasks to
//! others and starts a replacement; and ends a worker that is at one task for too long. A task is redone only so often:
//! then whoever waits for it is told what happened to it, as an [`Outcome`].
//!
//! What a task is, only the caller knows: bytes in, bytes and regions out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Lived;
use crate::codes::{POOL_CLOSED, POOL_START, TASK_PANICKED, TASK_SILENT};
use crate::copies::{self, Home};
use crate::error::{Error, Result};
use crate::slots::{Reply, SlotId, SlotView, Slots, SlotsConfig, SlotsWorker};
use crate::spawn::{Child, Job, Parent, Received, SpawnOptions, Start, Starting};
use crate::supervise::{Cause, Ended, evidence, stop_all};
use crate::tombstone::{self, State};
use crate::{contain, futex, sys, threads};

pub use crate::tasks::{Death, Describe, Outcome, POISON, PoolOptions, Work};
use crate::tasks::{
    FUTILE, LOADED, PAUSE, elsewhere, left_early, look_at, offer_to_the_memory_killer, one_at_a_time, say,
    slow_start, starting, unstaffed,
};

/// Worker processes. Dropping it ends them, within 300 ms. In a process that was forked from the one that started them it
/// does nothing: tasks are refused there, and dropping it ends nobody.
pub struct Pool {
    shared: Arc<Shared>,
    home: Home,
    /// Says when the supervisor has ended the workers.
    ended: Mutex<Receiver<()>>,
}

impl Pool {
    /// Starts the workers, and waits until each has done [`Work::start`]. `work` is serialised once, and each worker has
    /// a copy.
    ///
    /// # Errors
    /// Those of [`Job::new`], [`Job::spawn`] and [`Slots::new`]; that of [`Work::start`]; `P0301` if a worker does not get
    /// ready in time. Nothing is left behind.
    pub fn start<W: Work + Serialize + DeserializeOwned>(work: &W, options: PoolOptions) -> Result<Self> {
        Self::staffed(Job::new(|work: W, parent| serve(&work, parent), work)?, options)
    }

    /// The same by forking, whatever [`PoolOptions::from`] says: workers share `work` until they write to it. A forked
    /// worker that dies is not replaced while there are other threads, which is nearly always: the others do its tasks.
    ///
    /// # Errors
    /// As [`start`](Self::start); `P0114` where a fork is not safe.
    pub fn fork<W: Work>(work: Arc<W>, options: PoolOptions) -> Result<Self> {
        let job = Job::in_memory(|work: Arc<W>, parent| serve(&*work, parent), work)?;
        Self::staffed(job, PoolOptions { from: Start::Fork, ..options })
    }

    fn staffed(job: Job, options: PoolOptions) -> Result<Self> {
        let config = SlotsConfig {
            // A dead worker keeps its number until it is buried; its replacement needs another one meanwhile.
            workers: 2 * options.workers,
            slots: options.slots,
            slot_bytes: options.slot_bytes,
            ..SlotsConfig::default()
        };
        let shared = Arc::new(Shared {
            slots: Slots::new(config)?,
            tasks: Mutex::default(),
            wake: AtomicU32::new(0),
            ending: AtomicBool::new(false),
            renewed: AtomicBool::new(false),
            options,
        });
        let mut crew = Crew {
            job,
            spare: (0..2 * shared.options.workers).rev().collect(),
            shared: Arc::clone(&shared),
            working: Vec::new(),
            dying: Vec::new(),
            futile: 0,
            failure: None,
            not_before: Instant::now(),
            cautious: false,
        };
        // All at once: each takes about a millisecond until its first word.
        let hirings = (0..shared.options.workers).map(|worker| crew.call(worker));
        let hirings: Vec<Hiring> = hirings.collect::<Result<_>>()?;
        hirings.into_iter().try_for_each(|hiring| crew.hire(hiring))?;
        crew.wait_until_ready()?;
        let (report, ended) = mpsc::sync_channel(1);
        let name = format!("{} watch", shared.options.name);
        threads::start(&name, move || {
            crew.supervise();
            // Nobody listens any more if it took too long.
            let _ = report.send(());
        })
        .map_err(|error| {
            Error::new(POOL_START, "the thread that supervises workers cannot be started")
                .because(&error)
                .hint("use fewer workers, or raise the limit on threads (`ulimit -u`)")
        })?;
        Ok(Self { shared, home: Home::here(), ended: Mutex::new(ended) })
    }

    /// Posts a task; tasks are begun by their tickets, smallest first. False where no slot is free.
    ///
    /// # Errors
    /// As [`Slots::post`]; `P0303` in a forked process.
    pub fn post(&self, ticket: u64, request: Vec<u8>) -> Result<bool> {
        elsewhere(self.home)?;
        let mut tasks = self.shared.tasks();
        let Some(slot) = self.shared.slots.post(ticket, &request)? else { return Ok(false) };
        let posted = Posted {
            slot,
            request,
            deaths: 0,
            alone: 0,
            place: None,
            watched: None,
            fatal: None,
            died: None,
            unwanted: false,
        };
        tasks.by_ticket.insert(ticket, posted);
        Ok(true)
    }

    /// Waits for what becomes of a task. The wait ends: a worker that takes too long is killed, and a task is redone only
    /// so often.
    ///
    /// # Errors
    /// `P0302` if no worker is left and none can be started, with the last reason; `P0206` if a reply is garbled;
    /// `P0303` in a forked process.
    pub fn take(&self, ticket: u64) -> Result<Outcome> {
        elsewhere(self.home)?;
        loop {
            let kicks = self.shared.slots.kicks();
            let mut tasks = self.shared.tasks();
            let Some(posted) = tasks.by_ticket.get_mut(&ticket) else {
                return Err(
                    Error::new(POOL_CLOSED, "a task was taken that nobody has posted").at("ticket", ticket)
                );
            };
            let slot = posted.slot;
            if let Some(death) = posted.died.take() {
                tasks.by_ticket.remove(&ticket);
                return Ok(Outcome::Died(death));
            }
            let unstaffed = tasks.unstaffed.clone();
            drop(tasks);
            // Nothing where it is not done, or has moved to another slot meanwhile.
            if let Some(reply) = self.shared.slots.take(slot, ticket).transpose() {
                self.shared.tasks().by_ticket.remove(&ticket);
                return Ok(match reply? {
                    Reply::Done(loan) => Outcome::Done(loan),
                    Reply::Failed(loan) => {
                        Outcome::Failed(Error::from_wire(loan.body()).unwrap_or_else(|| {
                            Error::new(TASK_SILENT, "a worker gave a task up without a reason")
                        }))
                    }
                });
            }
            if let Some(reason) = unstaffed {
                self.withdraw(ticket);
                return Err(reason);
            }
            if Arc::strong_count(&self.shared) == 1 {
                return Err(Error::new(POOL_CLOSED, "the thread that supervises workers is gone"));
            }
            // A kick says that something has happened to a task, perhaps to this one.
            self.shared.slots.wait(slot, ticket, kicks, Instant::now() + LOOK);
        }
    }

    /// Nobody will take this task. A worker that is at it is still watched.
    pub fn withdraw(&self, ticket: u64) {
        if !self.home.is_here() {
            return;
        }
        let mut tasks = self.shared.tasks();
        let Some(posted) = tasks.by_ticket.get_mut(&ticket) else { return };
        posted.unwanted = true;
        let slot = posted.slot;
        self.shared.slots.withdraw(slot, ticket);
        if !self.shared.is_running(slot, ticket) {
            tasks.by_ticket.remove(&ticket);
        }
    }

    /// Begins a new count of deaths that are made good, and tries again to start workers that could not be started.
    pub fn renew(&self) {
        if !self.home.is_here() {
            return;
        }
        let mut tasks = self.shared.tasks();
        tasks.redone = 0;
        tasks.unstaffed = None;
        self.shared.renewed.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Gives back so many deaths to be made good: their cause is known, and gone.
    pub fn pardon(&self, deaths: usize) {
        let mut tasks = self.shared.tasks();
        tasks.redone = tasks.redone.saturating_sub(deaths);
    }

    /// How many replies are in use.
    pub fn loaned(&self) -> usize {
        self.shared.slots.loaned()
    }

    /// The memory that tasks and replies have taken, in bytes.
    pub fn committed_bytes(&self) -> u64 {
        self.shared.slots.committed_bytes()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.home.is_here() {
            return;
        }
        self.shared.ending.store(true, Ordering::Release);
        // Idle workers leave at once, without being told one by one.
        self.shared.slots.close();
        self.shared.wake();
        // Whoever the kernel does not bury in time is left to the supervisor.
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
    slots: Slots,
    tasks: Mutex<Tasks>,
    /// The supervisor sleeps on it.
    wake: AtomicU32,
    ending: AtomicBool,
    renewed: AtomicBool,
    options: PoolOptions,
}

#[derive(Default)]
struct Tasks {
    by_ticket: BTreeMap<u64, Posted>,
    /// Deaths made good.
    redone: usize,
    /// The last workers that died, and of what.
    deaths: VecDeque<String>,
    /// Why there are no workers any more.
    unstaffed: Option<Error>,
}

/// A task between being posted and being taken.
struct Posted {
    slot: SlotId,
    request: Vec<u8>,
    /// Workers in a row that have died at it, in the same place.
    deaths: usize,
    /// Those of them that had no other task beside it, so that it was this one.
    alone: usize,
    /// Where the last one did: phase and progress.
    place: Option<(u8, u64)>,
    /// Who is at it, and for how long.
    watched: Option<Watched>,
    /// The number of the dead worker that it is not redone after, where what it noted last is known and the cause is not yet.
    fatal: Option<Fatal>,
    died: Option<Box<Death>>,
    /// Nobody will take it; it is here because a worker is at it.
    unwanted: bool,
}

/// A death after which a task is not redone.
struct Fatal {
    number: usize,
    progress: u64,
    phase: u8,
    poison: bool,
}

struct Watched {
    number: usize,
    clock: Lived,
    warned: bool,
}

impl Shared {
    /// Whether a worker is at this task.
    fn is_running(&self, slot: SlotId, ticket: u64) -> bool {
        matches!(self.slots.peek(slot), SlotView::Running { ticket: found, .. } if found == ticket)
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // Nothing panics while it holds the lock.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.wake.fetch_add(1, Ordering::Release);
        futex::wake(&self.wake, 1);
    }
}

/// What the supervisor has.
struct Crew {
    job: Job,
    shared: Arc<Shared>,
    working: Vec<Member>,
    /// Known to be dead, and not buried yet.
    dying: Vec<Member>,
    /// Numbers among the slots' workers that nobody has.
    spare: Vec<usize>,
    /// How many attempts in a row to start a worker have failed.
    futile: usize,
    /// Why the last of them did.
    failure: Option<Error>,
    /// No further attempt before this.
    not_before: Instant,
    /// A worker has died at several tasks at once, and nobody knows at which: new ones do one at a time.
    cautious: bool,
}

/// A worker that was started and has not reported yet.
struct Hiring {
    worker: usize,
    number: usize,
    starting: Starting,
}

struct Member {
    /// The worker's number, which its replacement inherits.
    worker: usize,
    /// Its number among the slots' workers.
    number: usize,
    child: Child,
    /// It has read what it works with.
    loaded: bool,
    ready: bool,
    /// For how long it has been starting.
    starting: Lived,
    /// For how long it has had nothing to do although this task waits.
    idle: Option<Idle>,
    /// What it looked like when it was killed.
    stuck: Option<String>,
    /// Since when it should be dead.
    killed: Option<Lived>,
    /// It was killed and does not die: it is waited for no longer.
    lost: bool,
    /// The kernel has killed it, or another process, to free memory.
    starved: bool,
    /// Its tasks that were seen to.
    rescued: BTreeSet<u64>,
    /// The first of them, in words.
    at: Option<String>,
    /// Whether its death was counted.
    counted: bool,
    /// Whether it died at several tasks at once.
    torn: bool,
    /// It is not replaced, because too many have died before.
    last: bool,
}

struct Idle {
    oldest: u64,
    clock: Lived,
    warned: bool,
}

impl Member {
    /// Reads whether it has become ready.
    fn look(&mut self) {
        while let Ok(Received::Message(message)) = self.child.recv(Duration::ZERO) {
            self.note(&message);
        }
    }

    /// Takes note of how far its start is.
    fn note(&mut self, message: &[u8]) {
        self.loaded = true;
        self.ready |= message != LOADED;
    }

    /// The error of its end before it was ready.
    fn left(&self, ended: Ended) -> Error {
        left_early(self.child.name(), self.loaded, ended)
    }

    /// Kills it, for the reason in these words.
    fn kill(&mut self, why: String) {
        self.stuck.get_or_insert(why);
        self.killed.get_or_insert_default();
        self.child.kill();
    }
}

/// What a worker is told first.
#[derive(Serialize, Deserialize)]
struct Assignment {
    worker: usize,
    workers: usize,
    number: usize,
    threads: usize,
}

impl Crew {
    fn supervise(mut self) {
        loop {
            let wake = self.shared.wake.load(Ordering::Acquire);
            if self.shared.ending.load(Ordering::Acquire) {
                break;
            }
            if self.shared.renewed.swap(false, Ordering::AcqRel) {
                (self.futile, self.not_before) = (0, Instant::now());
            }
            self.notice_deaths();
            self.bury();
            self.staff();
            self.watch();
            self.sleep(wake);
        }
        let members = self.working.into_iter().chain(self.dying);
        stop_all(members.map(|member| member.child).collect(), FAREWELL);
    }

    /// Starts a process as worker `worker`; there must be a spare number.
    fn call(&mut self, worker: usize) -> Result<Hiring> {
        let number = self.spare.pop().expect("twice as many numbers as workers, or the caller has looked");
        let options = &self.shared.options;
        let mut spawn = SpawnOptions::named(format!("{} {worker}", options.name));
        spawn.fds = vec![self.shared.slots.fd()];
        spawn.start = options.from;
        spawn.hello_timeout = options.start.min(spawn.hello_timeout);
        spawn.reading_timeout = options.start;
        match self.job.begin(&spawn) {
            Ok(starting) => Ok(Hiring { worker, number, starting }),
            Err(error) => {
                self.spare.push(number);
                Err(error)
            }
        }
    }

    /// Waits until it reports, and tells it what it is.
    fn hire(&mut self, Hiring { worker, number, starting }: Hiring) -> Result<()> {
        let PoolOptions { workers, threads_each, .. } = self.shared.options;
        let threads = if self.cautious { 1 } else { threads_each.max(1) };
        let assignment = Assignment { worker, workers, number, threads };
        let message = postcard::to_allocvec(&assignment).map_err(Error::from)?;
        let hired = starting.wait().and_then(|mut child| match child.send(&message) {
            Ok(()) => Ok(child),
            // It may have said why it left.
            Err(error) => {
                let ended = child.ended(DROP);
                Err(ended.map_or(error, |ended| left_early(child.name(), false, ended)))
            }
        });
        match hired {
            Ok(child) => {
                self.working.push(Member {
                    worker,
                    number,
                    child,
                    loaded: false,
                    ready: false,
                    starting: Lived::default(),
                    idle: None,
                    stuck: None,
                    killed: None,
                    lost: false,
                    starved: false,
                    rescued: BTreeSet::new(),
                    at: None,
                    counted: false,
                    torn: false,
                    last: false,
                });
                Ok(())
            }
            Err(error) => {
                self.spare.push(number);
                Err(error)
            }
        }
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let limit = self.shared.options.start;
        let mut clock = Lived::default();
        // All at once: the first to fail is the one to name, and not the first to be waited for.
        while self.working.iter().any(|member| !member.ready) {
            for member in self.working.iter_mut().filter(|member| !member.ready) {
                match member.child.recv(Duration::ZERO)? {
                    Received::Message(message) => member.note(&message),
                    Received::TimedOut if clock.tick() >= limit => return Err(unready(member, limit)),
                    Received::TimedOut => {}
                    Received::Closed => {
                        let name = member.child.name().to_owned();
                        return Err(match member.child.ended(DROP) {
                            Some(ended) => member.left(ended),
                            None => Error::new(POOL_START, "a worker process left before it was ready")
                                .at("process", name),
                        });
                    }
                }
            }
            let starting = self.working.iter().filter(|member| !member.ready);
            let mut interests: Vec<_> = starting.flat_map(|member| member.child.interests()).collect();
            if !interests.is_empty() {
                let left = limit.saturating_sub(clock.lived()).clamp(BURIAL, Lived::LONGEST / 2);
                let _ = sys::poll(&mut interests, Some(Instant::now() + left));
            }
        }
        Ok(())
    }

    /// Finds workers that have died, and sees to their tasks. Their memory may not be freed yet.
    fn notice_deaths(&mut self) {
        let shared = Arc::clone(&self.shared);
        let dead: Vec<Member> = self
            .working
            .extract_if(.., |member| {
                tombstone::state(shared.slots.tombstone(member.number)) == State::Dead
                    || member.child.try_wait()
            })
            .collect();
        for mut member in dead {
            // It may still be held by a wait in the kernel that nothing ends: then it counts as lost after a while.
            member.killed.get_or_insert_default();
            member.look();
            if !member.ready {
                self.count_failure();
            }
            // As long as its memory is not free, the kernel kills whoever takes some, and that may be the program itself.
            member.starved = member.child.memory_ran_out();
            if !member.starved {
                self.rescue(&mut member);
            }
            self.dying.push(member);
        }
        // Frozen, or in a wait in the kernel that nothing ends: its memory stays its own, its tasks do not.
        let undead = |limit: Duration| {
            move |member: &mut Member| {
                !member.lost && member.killed.as_mut().is_some_and(|clock| clock.tick() >= limit)
            }
        };
        let mut late: Vec<Member> = self.working.extract_if(.., undead(UNDEAD)).collect();
        // Freeing its memory takes the kernel a while: 80 ms a gigabyte.
        late.extend(self.dying.extract_if(.., undead(10 * UNDEAD)));
        for mut member in late {
            member.lost = true;
            let seen = look_at(member.child.pid());
            say(&format!(
                "leyden: warning: {} (pid {}) was killed and does not die: it is {seen}",
                member.child.name(),
                member.child.pid()
            ));
            let ended = Ended { cause: Cause::Unknown, stderr: member.child.stderr(), error: None };
            self.shared.rescue(&mut member, self.working.len());
            self.shared.tell(&member, &ended);
            self.dying.push(member);
        }
    }

    /// Learns how the dying died, and frees what they had.
    fn bury(&mut self) {
        for mut member in std::mem::take(&mut self.dying) {
            let Some(ended) = member.child.try_ended() else {
                self.dying.push(member);
                continue;
            };
            // Tasks that it claimed after the first look, too.
            self.rescue(&mut member);
            self.shared.slots.reclaim(member.number);
            self.spare.push(member.number);
            if member.last {
                self.note_failure(ended.clone().into_result(member.child.name()).err());
            }
            if !member.ready {
                let limit = self.shared.options.start;
                let failure = match member.stuck {
                    Some(_) => Some(unready(&member, limit)),
                    None => Some(member.left(ended.clone())),
                };
                self.note_failure(failure);
            }
            self.shared.tell(&member, &ended);
        }
    }

    /// Gives the tasks of a dead worker to others, and heeds what its death says about those to come.
    fn rescue(&mut self, member: &mut Member) {
        self.shared.rescue(member, self.working.len());
        if member.torn && !self.cautious {
            self.cautious = true;
            say(&one_at_a_time(member.child.name()));
        }
        // It had nothing to do. As with tasks, that is made good so often.
        if member.ready && member.rescued.is_empty() && !member.counted {
            member.counted = true;
            let mut tasks = self.shared.tasks();
            tasks.redone += 1;
            if tasks.redone > self.shared.options.redo && self.futile < FUTILE {
                self.futile = FUTILE;
                member.last = true;
            }
        }
    }

    /// Starts workers where some are missing, unless they keep failing.
    fn staff(&mut self) {
        let wanted = self.shared.options.workers;
        if self.dying.iter().any(|member| member.starved && !member.lost) {
            return;
        }
        let present: BTreeSet<usize> = self.working.iter().map(|member| member.worker).collect();
        for worker in (0..wanted).filter(|worker| !present.contains(worker)) {
            if self.futile >= FUTILE || self.spare.is_empty() || Instant::now() < self.not_before {
                break;
            }
            match self.call(worker).and_then(|hiring| self.hire(hiring)) {
                Ok(()) => self.shared.tasks().unstaffed = None,
                Err(error) => {
                    self.count_failure();
                    self.note_failure(Some(error));
                }
            }
        }
        let hopeless = self.futile >= FUTILE || self.spare.is_empty();
        if self.working.is_empty() && self.dying.iter().all(|member| member.lost) && hopeless {
            let mut tasks = self.shared.tasks();
            let error = unstaffed(self.failure.as_ref(), &mut tasks.deaths.iter());
            // Somebody wants to try again, and has taken back what is said here.
            let outdated = self.shared.renewed.load(Ordering::Acquire);
            if !outdated && tasks.unstaffed.replace(error).is_none() {
                drop(tasks);
                self.shared.slots.kick();
            }
        }
    }

    /// An attempt to start a worker has failed. The next one comes a little later: what is missing may come back.
    fn count_failure(&mut self) {
        self.futile += 1;
        self.not_before = Instant::now() + PAUSE * self.futile as u32;
    }

    /// Why it has failed.
    fn note_failure(&mut self, failure: Option<Error>) {
        if let (true, Some(failure)) = (self.futile == FUTILE, &failure) {
            let PoolOptions { name, workers, .. } = &self.shared.options;
            let left = self.working.len();
            say(&format!(
                "leyden: warning: {name}: {left} of {workers} workers are left; no other could be started, the last \
                 time because {failure}",
            ));
        }
        self.failure = failure;
    }

    /// Warns of workers that take long for a task, and kills those that take too long: for a task, to begin one, or to
    /// become ready.
    fn watch(&mut self) {
        let PoolOptions { warn, stuck, start, describe, .. } = &self.shared.options;
        let mut slow = Vec::new();
        let mut busy = BTreeSet::new();
        let mut oldest = None;
        let mut tasks = self.shared.tasks();
        tasks.by_ticket.retain(|&ticket, posted| {
            let (number, progress, phase) = match self.shared.slots.peek(posted.slot) {
                SlotView::Running { ticket: found, worker, progress, phase, .. } if found == ticket => {
                    (worker, progress, phase)
                }
                view => {
                    if view == (SlotView::Waiting { ticket }) {
                        oldest.get_or_insert(ticket);
                    }
                    posted.watched = None;
                    return !posted.unwanted;
                }
            };
            busy.insert(number);
            let watched = match &mut posted.watched {
                Some(watched) if watched.number == number => watched,
                other => other.insert(Watched { number, clock: Lived::default(), warned: false }),
            };
            let lived = watched.clock.tick();
            let warns = lived >= *warn && !watched.warned;
            if warns || lived >= *stuck {
                slow.push((number, lived, warns, describe(&posted.request, phase, progress)));
                watched.warned = true;
            }
            true
        });
        drop(tasks);

        for member in &mut self.working {
            if !member.ready {
                member.look();
                if member.ready {
                    (self.futile, self.not_before) = (0, Instant::now());
                } else if member.starting.tick() >= *start && member.stuck.is_none() {
                    member.kill(format!("starting for {start:?}; {}", look_at(member.child.pid())));
                }
                continue;
            }
            let Some(oldest) = oldest.filter(|_| !busy.contains(&member.number)) else {
                member.idle = None;
                continue;
            };
            // A worker that lives begins a waiting task at once; one that is stopped may lose them to others for ever.
            let idle = match &mut member.idle {
                Some(idle) if idle.oldest == oldest || evidence(member.child.pid()).is_stopped() => idle,
                other => other.insert(Idle { oldest, clock: Lived::default(), warned: false }),
            };
            let lived = idle.clock.tick();
            let warns = lived >= *warn && !idle.warned;
            if warns || lived >= *stuck {
                slow.push((member.number, lived, warns, "no task, although one waits,".to_owned()));
                idle.warned = true;
            }
        }

        for (number, lived, warns, task) in slow {
            let Some(member) = self.working.iter_mut().find(|member| member.number == number) else {
                continue;
            };
            if evidence(member.child.pid()).is_traced() {
                self.shared.pause(number);
                member.idle = None;
                continue;
            }
            let seen = look_at(member.child.pid());
            if warns {
                let (name, pid) = (member.child.name(), member.child.pid());
                say(&format!(
                    "leyden: warning: {name} (pid {pid}) is in {task} for {lived:.0?}; it is {seen}"
                ));
            }
            if lived >= *stuck {
                member.kill(format!("{task} for {lived:.0?}; {seen}"));
            }
        }
    }

    fn sleep(&self, wake: u32) {
        let PoolOptions { warn, stuck, start, .. } = self.shared.options;
        let mut tick = (warn.min(stuck).min(start) / 4).clamp(BURIAL, Lived::LONGEST / 2);
        if self.dying.iter().any(|member| !member.lost) {
            tick = BURIAL;
        }
        let missing = self.working.len() < self.shared.options.workers;
        if missing && self.futile < FUTILE && !self.spare.is_empty() {
            tick = tick.min(self.not_before.saturating_duration_since(Instant::now()).max(BURIAL));
        }
        let mut words = vec![(&self.shared.wake, wake)];
        for member in &self.working {
            let word = self.shared.slots.tombstone(member.number);
            let value = word.load(Ordering::Acquire);
            if tombstone::decode(value) == State::Dead {
                return;
            }
            words.push((word, value));
        }
        if futex::waitv(&words, tick) == futex::WokenAny::Unsupported {
            futex::wait(&self.shared.wake, wake, tick.min(POLL));
        }
    }
}

impl Shared {
    /// Gives the tasks of a dead worker to others, as far as they may be redone.
    fn rescue(&self, member: &mut Member, survivors: usize) {
        let most = self.poison(survivors);
        let mut tasks = self.tasks();
        let Tasks { by_ticket, redone, .. } = &mut *tasks;
        let orphans = self.slots.orphans(member.number);
        member.torn |= orphans.len() > 1;
        for orphan in orphans {
            let open =
                by_ticket.iter().filter(|(ticket, _)| **ticket != orphan.ticket && self.options.pardons);
            let open: usize = open.map(|(_, posted)| posted.deaths).sum();
            let Some(posted) = by_ticket
                .get_mut(&orphan.ticket)
                .filter(|posted| posted.slot == orphan.slot && !posted.unwanted)
            else {
                continue;
            };
            // Looked at twice: when it is dying, and when it is dead.
            if !member.rescued.insert(orphan.ticket) {
                continue;
            }
            let place = Some((orphan.phase, orphan.progress));
            if posted.place != place {
                (posted.deaths, posted.alone, posted.place) = (0, 0, place);
            }
            member.at.get_or_insert_with(|| {
                (self.options.describe)(&posted.request, orphan.phase, orphan.progress)
            });
            posted.deaths += 1;
            posted.alone += usize::from(!member.torn);
            posted.watched = None;
            // One death is one death, however many tasks the worker had.
            let redone_for_it = redone.saturating_sub(open);
            let poison = posted.alone >= most;
            let fatal =
                Some(Fatal { number: member.number, progress: orphan.progress, phase: orphan.phase, poison });
            if poison || (!member.counted && redone_for_it >= self.options.redo) {
                posted.fatal = fatal;
                self.slots.withdraw(orphan.slot, orphan.ticket);
                continue;
            }
            *redone += usize::from(!member.counted);
            member.counted = true;
            // Into another slot: the dying worker's other threads may still be writing to the old one. Where none is
            // free, the old one is used again once it is certain that they are gone.
            match self.slots.post(orphan.ticket, &posted.request) {
                Ok(Some(slot)) => {
                    self.slots.withdraw(orphan.slot, orphan.ticket);
                    posted.slot = slot;
                }
                // Nobody knows when that will be.
                _ if member.lost => {
                    posted.fatal = fatal;
                    self.slots.withdraw(orphan.slot, orphan.ticket);
                }
                _ => {}
            }
        }
        drop(tasks);
        self.slots.kick();
    }

    /// Deaths after which a task is not tried again. A forked worker is not replaced, so the last one is kept for the other
    /// tasks.
    fn poison(&self, survivors: usize) -> usize {
        if self.options.from == Start::Fork { survivors.clamp(1, POISON) } else { POISON }
    }

    /// Tells how a worker died to whoever waits for a task that is not redone.
    fn tell(&self, member: &Member, ended: &Ended) {
        let mut tasks = self.tasks();
        let at = member.at.as_ref().map_or(String::new(), |at| format!(" in {at}"));
        let pid = member.child.pid();
        tasks.deaths.push_back(format!("worker {}, pid {pid}: {}{at}", member.worker, ended.cause));
        if tasks.deaths.len() > FUTILE {
            tasks.deaths.pop_front();
        }
        let redone = tasks.redone;
        for posted in tasks.by_ticket.values_mut() {
            let fatal = posted.fatal.take_if(|fatal| fatal.number == member.number);
            let Some(Fatal { progress, phase, poison, .. }) = fatal else { continue };
            posted.died = Some(Box::new(Death {
                worker: member.worker,
                pid: member.child.pid(),
                ended: ended.clone(),
                stuck: member.stuck.clone(),
                progress,
                phase,
                deaths: posted.deaths,
                poison,
                redone,
            }));
        }
        drop(tasks);
        self.slots.kick();
    }

    /// Begins the clocks of a worker anew: somebody is at it with a debugger.
    fn pause(&self, number: usize) {
        for posted in self.tasks().by_ticket.values_mut() {
            if posted.watched.as_ref().is_some_and(|watched| watched.number == number) {
                posted.watched = None;
            }
        }
    }
}

/// A worker's life.
fn serve<W: Work>(work: &W, mut parent: Parent) -> Result<()> {
    parent.send(LOADED)?;
    let Received::Message(message) = parent.recv(ASSIGNED)? else { return Ok(()) };
    let Assignment { worker, workers, number, threads } = postcard::from_bytes(&message)?;
    let Some(fd) = parent.fds().pop() else { return Ok(()) };
    offer_to_the_memory_killer();
    let slots = SlotsWorker::open(fd, number)?;
    slots.hold_tombstone()?;
    work.start(worker, workers)?;
    copies::end_if_copied(|| "the start of a worker");
    parent.send(b"ready")?;
    thread::scope(|scope| {
        for thread in 1..threads {
            let extra = thread::Builder::new().name(format!("{} {thread}", parent.name()));
            // One thread less does the same work, later.
            let _ = extra.spawn_scoped(scope, || do_tasks(work, &slots));
        }
        do_tasks(work, &slots);
    });
    Ok(())
}

fn do_tasks<W: Work>(work: &W, slots: &SlotsWorker) {
    while !slots.is_closed() {
        let Some(task) = slots.claim(Instant::now() + IDLE) else { continue };
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
        .at("in", starting(member.loaded));
    slow_start(error.at("it is", member.stuck.clone().unwrap_or_else(|| look_at(member.child.pid()))))
}

/// How often whoever waits for a task looks whether there is still somebody to wait for.
const LOOK: Duration = Duration::from_millis(250);
/// How often the supervisor looks whether a dying worker is dead.
const BURIAL: Duration = Duration::from_millis(5);
/// How often it looks around where the kernel cannot wake it for several reasons at once.
const POLL: Duration = Duration::from_millis(10);
/// How long busy workers have to finish when the pool is dropped.
const FAREWELL: Duration = Duration::from_millis(60);
/// How long dropping the pool waits for that.
const DROP: Duration = Duration::from_millis(300);
/// How long a new process waits to be told what it is.
const ASSIGNED: Duration = Duration::from_secs(10);
/// How long an idle worker sleeps before it looks around by itself.
const IDLE: Duration = Duration::from_secs(60);
/// How long a killed process may take to die before it is waited for no longer.
const UNDEAD: Duration = Duration::from_secs(1);
