//! Workers that cost more than they gain: told once, with the gain.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::task::Spent;
use crate::say::say;

/// What the first batches cost, until they are judged.
#[derive(Debug)]
pub(crate) struct Waste(Mutex<Option<Vec<Cost>>>);

/// What a batch cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Making it, for whoever made it.
    making: Duration,
    /// Getting it from a worker, for the trainer: waiting, reading, and asking for further ones.
    getting: Duration,
}

impl Waste {
    /// Judges workers, unless there are none.
    pub(crate) fn new(workers: bool) -> Self {
        Self(Mutex::new(workers.then(Vec::new)))
    }

    /// A batch was handed out, and has cost the trainer `getting`.
    pub(crate) fn delivered(&self, spent: Spent, getting: Duration) {
        let mut costs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = costs.as_mut() else { return };
        known.push(Cost { making: spent.get + spent.collate, getting });
        if known.len() < JUDGED {
            return;
        }
        let verdict = verdict(known);
        *costs = None;
        drop(costs);
        if let Some(line) = verdict {
            say(&line);
        }
    }
}

/// A line about batches that take longer to get than to make. Of each the median counts: a batch that was slow once,
/// because its worker died or a disk had to wake, says nothing of the others.
fn verdict(costs: &[Cost]) -> Option<String> {
    let median = |of: fn(&Cost) -> Duration| {
        let mut times: Vec<Duration> = costs.iter().map(of).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    let (making, getting) = (median(|cost| cost.making), median(|cost| cost.getting));
    (getting > MARGIN * making && getting - making > WORTH_A_WORD).then(|| {
        format!(
            "leyden: the workers of a loader cost more than they gain: a batch takes {making:.1?} to make, and {getting:.1?} \
             to get from them; `Workers::inline()` would save {:.1?} a batch",
            getting - making
        )
    })
}

/// Batches to judge by.
const JUDGED: usize = 128;
/// How much longer getting must take than making: one worker at data that is the bottleneck takes a little longer too.
const MARGIN: u32 = 2;
/// A smaller gain is none that a training would show.
const WORTH_A_WORD: Duration = Duration::from_micros(3);

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(making: u64, getting: u64) -> Vec<Cost> {
        let micros = Duration::from_micros;
        vec![Cost { making: micros(making), getting: micros(getting) }; JUDGED]
    }

    #[test]
    fn workers_that_cost_more_than_they_gain_are_told_of_with_both_figures() {
        let line = verdict(&costs(10, 75)).unwrap();
        for words in ["10.0µs to make", "75.0µs to get", "save 65.0µs"] {
            assert!(line.contains(words), "{line}");
        }
    }

    #[test]
    fn workers_that_hide_work_or_are_all_at_work_are_not() {
        assert_eq!(verdict(&costs(500, 20)), None);
        assert_eq!(verdict(&costs(500, 560)), None);
        assert_eq!(verdict(&costs(0, 2)), None);
        let mut slow_once = costs(500, 20);
        slow_once[..JUDGED / 3].fill(Cost { making: Duration::ZERO, getting: Duration::from_secs(30) });
        assert_eq!(verdict(&slow_once), None);
    }

    #[test]
    fn it_judges_once_and_only_where_there_are_workers() {
        let waste = Waste::new(true);
        for _ in 0..2 * JUDGED {
            waste.delivered(Spent::default(), Duration::ZERO);
        }
        assert!(waste.0.lock().unwrap().is_none());
        assert!(Waste::new(false).0.lock().unwrap().is_none());
    }
}
