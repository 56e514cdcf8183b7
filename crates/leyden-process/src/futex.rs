//! Waiting on a word of memory that several processes share, and the word by which a process's death is noticed.
//!
//! Linux only, and process-shared always (no `FUTEX_PRIVATE_FLAG`). A wait may return without a reason (a signal, a
//! late wake-up): callers look at their condition again, in a loop, against their own deadline.

use std::ffi::c_long;
use std::io;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Somebody woke it, or a signal came.
    Woken,
    /// The time is over.
    TimedOut,
    /// The word was no longer what was expected.
    Changed,
}

/// Sleeps while `word` holds `expected`, for `timeout` at the longest, by `CLOCK_MONOTONIC`.
///
/// The comparison and falling asleep are one act: a [`wake`] that follows a change of the word is never missed.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> Woken {
    let timeout = timespec(timeout);
    // SAFETY: the word and the timeout are borrowed for the call; the kernel only reads them.
    let result = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout)
    };
    if result == 0 {
        return Woken::Woken;
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ETIMEDOUT) => Woken::TimedOut,
        Some(libc::EAGAIN) => Woken::Changed,
        _ => Woken::Woken,
    }
}

/// Wakes up to `n` sleepers of `word`, in this and other processes; gives how many there were.
pub fn wake(word: &AtomicU32, n: u32) -> usize {
    let n = i32::try_from(n).unwrap_or(i32::MAX);
    // SAFETY: the kernel takes the word's address as a key, and does not read it.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, n) };
    usize::try_from(woken).unwrap_or(0)
}

/// Why [`waitv`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WokenAny {
    /// A sleeper of the word with this index was woken.
    Woken(usize),
    /// A signal came.
    Interrupted,
    /// The time is over.
    TimedOut,
    /// One of the words was no longer what was expected.
    Changed,
    /// The kernel is older than 5.16, forbids the call, or is asked for more than [`WAITV_WORDS`]: poll.
    Unsupported,
}

/// The most words that [`waitv`] takes.
pub const WAITV_WORDS: usize = 128;

/// Sleeps while each word holds what is expected of it, for `timeout` at the longest.
pub fn waitv(words: &[(&AtomicU32, u32)], timeout: Duration) -> WokenAny {
    if words.is_empty() || words.len() > WAITV_WORDS {
        return WokenAny::Unsupported;
    }
    let waiters: Vec<Waiter> = words
        .iter()
        .map(|(word, expected)| Waiter {
            value: u64::from(*expected),
            address: word.as_ptr() as u64,
            flags: FUTEX2_SIZE_U32,
            reserved: 0,
        })
        .collect();
    let deadline = timespec(now().saturating_add(timeout));
    // SAFETY: `waiters` and the deadline are borrowed for the call, the words by the caller; the kernel reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiters.as_ptr(),
            waiters.len(),
            0,
            &raw const deadline,
            libc::CLOCK_MONOTONIC,
        )
    };
    if let Ok(index) = usize::try_from(result) {
        return WokenAny::Woken(index);
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ETIMEDOUT) => WokenAny::TimedOut,
        Some(libc::EAGAIN) => WokenAny::Changed,
        Some(libc::EINTR) => WokenAny::Interrupted,
        _ => WokenAny::Unsupported,
    }
}

/// The time of `CLOCK_MONOTONIC`, which all processes of a machine share.
pub fn now() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// The same as of the kernel's last tick, up to 10 ms ago: for a fifth of the cost, where a time is only told.
pub fn lately() -> Duration {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable for the call; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// What is left until `deadline`; nothing once it has passed.
pub(crate) fn left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: c_long::from(duration.subsec_nanos() as i32),
    }
}

/// `struct futex_waitv`.
#[repr(C)]
struct Waiter {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

const FUTEX2_SIZE_U32: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use std::thread;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_wait_ends_by_a_change_by_its_time_or_by_a_wake() {
        let word = AtomicU32::new(1);
        assert_eq!(wait(&word, 0, LONG), Woken::Changed);
        assert_eq!(wait(&word, 1, Duration::from_millis(1)), Woken::TimedOut);
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| wait(&word, 1, LONG));
            let deadline = Instant::now() + LONG;
            while wake(&word, 1) == 0 && Instant::now() < deadline {
                thread::yield_now();
            }
            assert_eq!(sleeper.join().unwrap(), Woken::Woken);
        });
    }

    #[test]
    fn the_cheap_clock_is_the_same_one_a_little_late() {
        let before = now();
        let lately = lately();
        assert!(lately <= now() && lately + Duration::from_millis(200) > before);
    }

    #[test]
    fn several_words_are_waited_for_at_once() {
        let words = [AtomicU32::new(0), AtomicU32::new(0)];
        let both = [(&words[0], 0), (&words[1], 0)];
        if waitv(&both, Duration::from_millis(1)) == WokenAny::Unsupported {
            eprintln!("skipped: the kernel has no futex_waitv");
            return;
        }
        assert_eq!(waitv(&both, Duration::from_millis(1)), WokenAny::TimedOut);
        assert_eq!(waitv(&[(&words[0], 7)], LONG), WokenAny::Changed);
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| waitv(&both, LONG));
            let deadline = Instant::now() + LONG;
            while wake(&words[1], 1) == 0 && Instant::now() < deadline {
                thread::yield_now();
            }
            assert_eq!(sleeper.join().unwrap(), WokenAny::Woken(1));
        });
        assert_eq!(waitv(&[], LONG), WokenAny::Unsupported);
        words[0].store(1, Ordering::Relaxed);
        assert_eq!(waitv(&both, LONG), WokenAny::Changed);
    }
}
