//! What a pool is asked and what it answers, however it reaches its workers.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::slots::{Loan, Task};
use crate::supervise::Ended;

/// What the workers of a pool do. The value is serialised once, and each worker has a copy.
pub trait Work: Serialize + DeserializeOwned + Send + Sync + 'static {
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
    /// How many workers have died at this task.
    pub deaths: usize,
    /// How many deaths were made good since the pool was renewed.
    pub redone: usize,
}

/// A task that has killed this many workers is not tried again.
pub const POISON: usize = 3;
