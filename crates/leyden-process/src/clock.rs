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

/// How long the calling thread has computed: what other threads and processes do does not count, nor does waiting.
pub fn of_this_thread() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a time to where one is.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
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
    fn a_thread_s_time_is_that_in_which_it_computes() {
        let (began, computed) = (Instant::now(), of_this_thread());
        std::thread::sleep(Duration::from_millis(50));
        let asleep = of_this_thread() - computed;
        assert!(asleep < began.elapsed() / 2, "{asleep:?}");
        while of_this_thread() - computed < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        assert!(began.elapsed() >= Duration::from_millis(52));
    }

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
