//! What a pool is asked and what it answers, however it reaches its workers.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::codes::{DIED, POOL_CLOSED, POOL_START, POOL_UNSTAFFED};
use crate::copies::Home;
use crate::error::{Error, Result};
use crate::slots::{Loan, Task};
use crate::spawn::Start;
use crate::supervise::{Ended, Evidence, evidence};
use crate::worker::READING;

/// What the workers of a pool do.
pub trait Work: Send + Sync + 'static {
    /// Prepares worker `worker` of `workers`.
    ///
    /// # Errors
    /// Any; starting the pool fails with it.
    fn start(&self, worker: usize, workers: usize) -> Result<()>;

    /// Does a task; the result goes beside the regions that were written by [`Task::writer`]. Several threads of a worker
    /// may be in here.
    ///
    /// # Errors
    /// Any; it reaches whoever takes the task as [`Outcome::Failed`].
    fn run(&self, task: &Task) -> Result<Vec<u8>>;
}

/// How a pool is to be.
#[derive(Clone)]
pub struct PoolOptions {
    /// What the processes are called, in `ps` and in messages.
    pub name: String,
    /// Where the processes come from.
    pub from: Start,
    /// How many processes.
    pub workers: usize,
    /// How many tasks each of them does at once.
    pub threads_each: usize,
    /// How many tasks may be posted, or have their replies in use, at once.
    pub slots: usize,
    /// The most that a task and its reply may take, in bytes. It costs addresses, not memory.
    pub slot_bytes: usize,
    /// After how long at one task a worker is told of on stderr.
    pub warn: Duration,
    /// After how long at one task a worker is killed.
    pub stuck: Duration,
    /// How long workers may take to start.
    pub start: Duration,
    /// How many deaths are made good, until the pool is [renewed](crate::pool::Pool::renew).
    pub redo: usize,
    /// Whether deaths at one task do not count for others while it is open: a task that turns out to be what kills is
    /// changed, and its deaths are [pardoned](crate::pool::Pool::pardon).
    pub pardons: bool,
    /// A task in words, for messages: of its request, and the phase and progress that it has noted.
    pub describe: Describe,
}

/// See [`PoolOptions::describe`].
pub type Describe = Arc<dyn Fn(&[u8], u8, u64) -> String + Send + Sync>;

/// What became of a task.
#[derive(Debug)]
pub enum Outcome {
    /// It was done.
    Done(Loan),
    /// [`Work::run`] gave an error, or panicked.
    Failed(Error),
    /// Its worker died, and it is not done again.
    Died(Box<Death>),
}

/// How a worker died at a task.
#[derive(Clone, Debug)]
pub struct Death {
    /// The worker's number.
    pub worker: usize,
    /// Its process number.
    pub pid: i32,
    /// How it ended.
    pub ended: Ended,
    /// What it looked like when it was killed for being at one task for too long.
    pub stuck: Option<String>,
    /// What the task noted last.
    pub progress: u64,
    /// What the task noted last.
    pub phase: u8,
    /// How many workers in a row have died at this task, in this place of it.
    pub deaths: usize,
    /// Whether it is certain that this task kills: [`POISON`] of them had no other task beside it.
    pub poison: bool,
    /// How many deaths were made good since the pool was renewed.
    pub redone: usize,
}

/// A task that has killed this many workers in a row, in one and the same place of it and with no other task beside it, is
/// not tried again. Forked workers are not replaced: there it is fewer where fewer would be left, so that the other tasks
/// have somebody.
pub const POISON: usize = 3;

/// After so many attempts in a row to start a worker, no further one is made.
pub(crate) const FUTILE: usize = 3;
/// How much longer to wait after each of them.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// The error of tasks that nobody will do, with the reason why the last worker could not be started.
pub(crate) fn unstaffed(failure: Option<&Error>, deaths: &mut dyn Iterator<Item = &String>) -> Error {
    let error = Error::new(POOL_UNSTAFFED, "no worker process is left, and none can be started");
    let deaths = deaths.map(String::as_str).collect::<Vec<_>>().join("\n");
    let error = if deaths.is_empty() { error } else { error.at("died last", deaths) };
    let Some(cause) = failure else { return error };
    let error = error.why(format_args!("error[{}]: {cause}", cause.code()));
    let error = cause.reasons().iter().fold(error, Error::why);
    cause.places().fold(error, |error, (label, place)| error.at(label, place))
}

/// What a worker sends first: it has read what it works with.
pub(crate) const LOADED: &[u8] = b"loaded";

/// Which code a worker that is not ready runs.
pub(crate) fn starting(loaded: bool) -> &'static str {
    if loaded { "the start of its work (of a loader: `worker_init`)" } else { READING }
}

/// Adds what to do to the error of a worker that takes too long to start.
pub(crate) fn slow_start(error: Error) -> Error {
    error.hint(
        "do what takes long once, before the workers are started, or give them more time (of a loader: \
         `.start_timeout(..)`)",
    )
}

/// The error of a worker that ended before it was ready.
pub(crate) fn left_early(name: &str, loaded: bool, ended: Ended) -> Error {
    match ended.into_result(name) {
        Ok(()) => Error::new(POOL_START, "a worker process left before it was ready").at("process", name),
        // It has not said itself what went wrong.
        Err(error) if error.code() == DIED => error
            .at("in", starting(loaded))
            .hint("run that code in the program itself, with `Workers::inline()` for a loader, to see what ends the process"),
        Err(error) => error,
    }
}

/// Refuses what a copy of a pool is asked in a forked process.
pub(crate) fn elsewhere(home: Home) -> Result<()> {
    match home.is_here() {
        true => Ok(()),
        false => Err(home.explain(Error::new(
            POOL_CLOSED,
            "workers were asked for something in a process that did not start them",
        ))),
    }
}

/// What is said when a worker died at several tasks at once.
pub(crate) fn one_at_a_time(name: &str) -> String {
    format!(
        "leyden: warning: {name} died at several tasks at once: from now on a new worker does one at a time, so that it \
         is known which one kills"
    )
}

/// Where memory runs out, the kernel is to kill a worker, which can be replaced, and not the program.
pub(crate) fn offer_to_the_memory_killer() {
    /// Of 1000: worth as much as half of all memory.
    const SCORE: i32 = 500;
    const FILE: &str = "/proc/self/oom_score_adj";
    let present = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if present.is_some_and(|present| present < SCORE) {
        let _ = std::fs::write(FILE, SCORE.to_string());
    }
}

/// What the kernel knows of a worker: of its threads except for those that always wait.
pub(crate) fn look_at(pid: i32) -> String {
    const MOST: usize = 4;
    let mut threads: Vec<i32> = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&thread| thread != pid)
        .collect();
    threads.sort_unstable();
    let name =
        |thread: i32| std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm")).unwrap_or_default();
    threads.retain(|&thread| name(thread).trim() != WAITS);
    let seen = |&thread: &i32| Evidence { threads: Vec::new(), ..evidence(thread) }.to_string();
    let seen: Vec<String> = threads.iter().take(MOST).map(seen).collect();
    if seen.is_empty() { evidence(pid).to_string() } else { seen.join("\n") }
}

/// The thread of a worker that always waits, besides the main one.
#[cfg(not(leyden_portable))]
const WAITS: &str = crate::tombstone::THREAD;
#[cfg(leyden_portable)]
const WAITS: &str = crate::worker::WATCH;

/// A line on stderr, which nobody need read.
pub(crate) fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
