//! Time as this process lived it.

use std::time::{Duration, Instant};

/// Time that passed while this process could do something: it stands still while the whole process is stopped
/// (SIGSTOP, a breakpoint), so that a limit measured with it is not used up by a pause.
///
/// It must be [ticked](Self::tick) at least every [`LONGEST`](Self::LONGEST); what is missing was a pause.
#[derive(Clone, Copy, Debug)]
pub struct Lived {
    lived: Duration,
    last: Instant,
}

impl Lived {
    /// The most that one tick counts.
    pub const LONGEST: Duration = Duration::from_millis(500);

    /// Adds the time since the last tick, and gives the sum.
    pub fn tick(&mut self) -> Duration {
        let now = Instant::now();
        self.lived += now.saturating_duration_since(self.last).min(Self::LONGEST);
        self.last = now;
        self.lived
    }

    /// The sum at the last tick.
    pub fn lived(&self) -> Duration {
        self.lived
    }
}

/// A clock that starts now.
impl Default for Lived {
    fn default() -> Self {
        Self { lived: Duration::ZERO, last: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_as_one_tick_at_most() {
        let mut clock = Lived { lived: Duration::ZERO, last: Instant::now() };
        let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(100)) else { return };
        clock.last = long_ago;
        assert_eq!(clock.tick(), Lived::LONGEST);
        assert!(clock.tick() < Lived::LONGEST + Duration::from_millis(400));
        assert!(clock.lived() >= Lived::LONGEST);
    }
}
