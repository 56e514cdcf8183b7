//! Where the time of a loader goes: in the data set, in waiting for it, or in waiting for the training.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::task::Loaded;

/// What the batches of a loader have cost so far. Times of `get`, `collate` and `pack` are sums over workers; printed, it says where the bottleneck
/// is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Batches handed out.
    pub batches: u64,
    /// Samples in them.
    pub samples: u64,
    /// Samples left out as bad.
    pub skipped: u64,
    /// How many make batches at once: workers, or one without.
    pub workers: usize,
    /// In the data set's `get`.
    pub get: Duration,
    /// In its `collate`.
    pub collate: Duration,
    /// Putting batches where the trainer reads them.
    pub pack: Duration,
    /// The trainer waited for batches.
    pub waited: Duration,
    /// Waiting for batches and working on them, within epochs: the time between epochs does not count.
    pub elapsed: Duration,
}

impl Timings {
    /// The time that workers spent on batches.
    pub fn work(&self) -> Duration {
        self.get + self.collate + self.pack
    }

    /// The share of the time, from 0 to 1, for which the trainer waited.
    pub fn starved(&self) -> f64 {
        ratio(self.waited, self.elapsed)
    }

    /// The share of the time, from 0 to 1, for which the workers worked.
    pub fn busy(&self) -> f64 {
        ratio(self.work(), self.elapsed) / self.workers.max(1) as f64
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |sum: Duration| {
            sum.checked_div(u32::try_from(self.batches).unwrap_or(u32::MAX)).unwrap_or_default()
        };
        write!(
            f,
            "{} batches: get {:.1?}, collate {:.1?}, pack {:.1?} a batch; trainer waited {:.1?} a batch ({:.0} % of \
             the time), workers busy {:.0} %",
            self.batches,
            each(self.get),
            each(self.collate),
            each(self.pack),
            each(self.waited),
            100.0 * self.starved(),
            100.0 * self.busy(),
        )?;
        let slowest = if self.get >= self.collate { "`get`" } else { "`collate`" };
        match () {
            () if self.batches == 0 => Ok(()),
            () if self.starved() < 0.1 => write!(f, "; the training is the bottleneck, not the data"),
            () if self.busy() > 0.7 => {
                write!(f, "; {slowest} is the bottleneck: more workers, or a faster one, would help")
            }
            () => {
                write!(f, "; the workers start late or wait for memory: a higher `prefetch_factor` may help")
            }
        }
    }
}

fn ratio(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { (part.as_secs_f64() / whole.as_secs_f64()).clamp(0.0, 1.0) }
}

/// Counts while batches are handed out.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Timings>);

impl Meter {
    pub(crate) fn new(workers: usize) -> Self {
        Self(Mutex::new(Timings { workers, ..Timings::default() }))
    }

    /// A batch was handed out after `waited`; `pause` is the time since the one before, in which the trainer worked.
    pub(crate) fn delivered<B>(&self, waited: Duration, pause: Duration, loaded: Option<&Loaded<B>>) {
        let mut timings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        timings.waited += waited;
        timings.elapsed += waited + pause;
        let Some(Loaded { samples, skipped, spent, .. }) = loaded else { return };
        timings.batches += 1;
        timings.samples += *samples as u64;
        timings.skipped += skipped.len() as u64;
        timings.get += spent.get;
        timings.collate += spent.collate;
        timings.pack += spent.pack;
    }

    pub(crate) fn read(&self) -> Timings {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
