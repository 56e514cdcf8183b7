//! One batch to be made, and how it is made: the same code on the caller's thread, in a worker thread and in a worker
//! process, which is why all of them give the same bits.

use std::time::{Duration, Instant};

use leyden_process::{Code, Error, Panic, Result, contain, copies};
use serde::{Deserialize, Serialize};

use crate::batching::Indices;
use crate::codes::{COLLATE_PANICKED, GET_PANICKED, NOTHING_LEFT, WORKER_INIT};
use crate::dataset::{Dataset, SampleCx, WorkerInfo};
use crate::place;

/// A batch to be made: all that it depends on besides the data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) seed: u64,
    pub(crate) epoch: u64,
    /// The batch's number within the epoch.
    pub(crate) batch: usize,
    pub(crate) indices: Indices,
    /// Whether a sample that fails is left out instead of failing the batch.
    pub(crate) skip_bad: bool,
    /// Samples that are left out unseen: they kill whoever loads them.
    pub(crate) left_out: Vec<usize>,
}

/// A batch as made.
#[derive(Debug)]
pub(crate) struct Loaded<B> {
    pub(crate) data: B,
    /// Samples in it that count: without padding and without those that were left out.
    pub(crate) samples: usize,
    /// Repeats at its end.
    pub(crate) padding: usize,
    /// Samples that were left out, by index.
    pub(crate) skipped: Vec<usize>,
    pub(crate) spent: Spent,
}

/// What a batch cost whoever made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    pub(crate) get: Duration,
    pub(crate) collate: Duration,
    /// Putting it where the trainer can read it.
    pub(crate) pack: Duration,
}

/// What is being done for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Get = 1,
    Collate = 2,
    Pack = 3,
}

impl Phase {
    /// The phase with this number, as read from shared memory.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Get, Self::Collate, Self::Pack].into_iter().find(|&phase| phase as u8 == number)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Collate => "collate",
            Self::Pack => "pack",
        }
    }
}

/// Where the work on a batch is: told before each step, so that a corpse or a stuck worker can be asked.
pub(crate) trait Progress {
    /// `item` counts the batch's samples.
    fn at(&self, phase: Phase, item: usize);
}

/// Nobody asks.
impl Progress for () {
    fn at(&self, _: Phase, _: usize) {}
}

/// Makes the batch of `task`.
///
/// # Errors
/// The data set's, located: sample, position, batch, epoch. `L0201` and `L0202` for its panics, `L0203` if every sample
/// was left out.
pub(crate) fn load<D: Dataset>(
    dataset: &D,
    task: &Task,
    progress: &impl Progress,
) -> Result<Loaded<D::Batch>> {
    let located = |error: Error| error.at("batch", task.batch).at("epoch", task.epoch);
    let began = Instant::now();
    // What `get` makes is the data set's own, and may outlive the batch: only `collate` writes into a worker's slot.
    let gathered = place::aside(|| gather(dataset, task, progress)).map_err(located)?;
    let Gathered { items, taken, skipped, padding } = gathered;
    let samples = items.len() - padding;
    if samples == 0 {
        return Err(located(
            Error::new(NOTHING_LEFT, "every sample of a batch was left out as bad")
                .at("samples", format_args!("{skipped:?}"))
                .hint("one bad sample is an accident; a whole batch of them has one cause: load one by itself to see it"),
        ));
    }
    let gathered = Instant::now();
    progress.at(Phase::Collate, 0);
    let data = contain(|| {
        let data = dataset.collate(items);
        copies::end_if_copied(|| format!("`collate` of batch {}", task.batch));
        data
    })
    .unwrap_or_else(|panic| Err(panicked(COLLATE_PANICKED, "collate", panic)))
    .map_err(|error| name_items(error, &taken))
    .map_err(|error| error.at("positions", format_args!("{:?} of the epoch", task.indices.positions)))
    .map_err(located)?;
    let spent = Spent { get: gathered - began, collate: gathered.elapsed(), pack: Duration::ZERO };
    Ok(Loaded { data, samples, padding, skipped, spent })
}

/// Runs the data set's `worker_init` on the worker that asks.
///
/// # Errors
/// `L0902` with the cause if it fails or panics.
pub(crate) fn initialise<D: Dataset>(dataset: &D, worker: &WorkerInfo) -> Result<()> {
    let failed = |what: &str| Error::new(WORKER_INIT, what).at("worker", worker);
    contain(|| {
        let ready = dataset.worker_init(worker);
        copies::end_if_copied(|| "`worker_init`");
        ready
    })
    .unwrap_or_else(|panic| Err(panic.explain(failed("the data set panicked in `worker_init`"))))
    .map_err(|error| {
        if error.code() == WORKER_INIT {
            return error;
        }
        let cause = error.what().to_owned();
        error
            .places()
            .fold(failed("the data set failed in `worker_init`").why(cause), |outer, (label, place)| {
                outer.at(label, place)
            })
    })
}

/// What a batch is made of.
struct Gathered<I> {
    items: Vec<I>,
    /// Their samples.
    taken: Vec<usize>,
    /// The samples that were left out.
    skipped: Vec<usize>,
    /// How many items at the end are repeats.
    padding: usize,
}

fn gather<D: Dataset>(dataset: &D, task: &Task, progress: &impl Progress) -> Result<Gathered<D::Item>> {
    let indices = &task.indices.indices;
    let mut items = Vec::with_capacity(indices.len());
    let mut taken = Vec::with_capacity(indices.len());
    let mut skipped = Vec::new();
    let mut padding = 0;
    let repeats_from = indices.len() - task.indices.padding.min(indices.len());
    let mut next = 0;
    while next < indices.len() {
        // Outside the closure, to be known after a panic: one `contain` per batch is cheaper than one per sample.
        let mut at = next;
        let outcome = contain(|| {
            for (item, &index) in indices.iter().enumerate().skip(next) {
                at = item;
                if task.left_out.contains(&index) {
                    skipped.push(index);
                    continue;
                }
                progress.at(Phase::Get, item);
                let mut cx = SampleCx::new(task.seed, task.epoch, index);
                let sample = dataset.get(index, &mut cx);
                copies::end_if_copied(|| format!("`get` of sample {index}"));
                items.push(sample?);
                taken.push(index);
                padding += usize::from(item >= repeats_from);
            }
            Ok(())
        })
        .unwrap_or_else(|panic| Err(panicked(GET_PANICKED, "get", panic)));
        match outcome {
            Ok(()) => break,
            Err(_) if task.skip_bad => {
                skipped.push(indices[at]);
                next = at + 1;
            }
            Err(error) => {
                return Err(error
                    .at("sample", indices[at])
                    .at("position", task.indices.positions.start + at));
            }
        }
    }
    Ok(Gathered { items, taken, skipped, padding })
}

/// A collate function knows its items by number; whoever reads the error wants the samples.
fn name_items(error: Error, samples: &[usize]) -> Error {
    error.relabel(|label| {
        let item: usize = label.strip_prefix("item ")?.parse().ok()?;
        Some(format!("sample {}", samples.get(item)?))
    })
}

fn panicked(code: Code, function: &str, panic: Panic) -> Error {
    panic.explain(Error::new(code, format!("the data set panicked in `{function}`")))
}
