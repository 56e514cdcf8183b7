//! Who wakes whom, who may read what when, and who says of what the world failed: apart from where the words lie.
//!
//! *Arrivals.* A rank writes what it brings, stores its arrival, and then looks whether somebody sleeps for it. Whoever waits
//! announces itself as a sleeper, then looks at the arrival, and sleeps only while it is still the same. All of these are
//! sequentially consistent, so that one of both sees the other.
//!
//! *The alarm* is a count that goes up with whatever ends a wait otherwise: a rank that leaves, the word of how one ended, a
//! failed world. Whoever waits reads it, then looks around, and then sleeps only while it is still the same.
//!
//! *Two of everything.* What belongs to an arrival lies in the place of its [`parity`], and is written over two arrivals
//! later: by then all have made the one between, and have read what they need of this one.
//!
//! *The pen.* Of those that find a failure one writes it down; the others wait for it. If it dies meanwhile, another one
//! writes it anew.
//!
//! The model at the end of this file tries all the orders in which that can happen.

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicU32, Ordering};

/// How to wake: by the kernel's futexes, or by the model's.
pub(crate) trait Wake {
    /// Wakes all sleepers of `word`.
    fn wake(&self, word: &AtomicU32);
}

/// Which of two places belongs to an arrival, or a collective.
pub(crate) fn parity(number: u64) -> usize {
    (number % 2) as usize
}

/// Whether an arrival has been made, over the wrap-around of its number.
pub(crate) fn has_reached(arrived: u32, tick: u32) -> bool {
    arrived.wrapping_sub(tick) < u32::MAX / 2
}

/// Makes the arrival `tick`: what was written before is seen by whoever sees it.
pub(crate) fn arrive(arrived: &AtomicU32, sleepers: &AtomicU32, tick: u32, wake: &impl Wake) {
    arrived.store(tick, Ordering::SeqCst);
    in_one_order();
    if sleepers.load(Ordering::SeqCst) > 0 {
        wake.wake(arrived);
    }
}

/// Looks until there is something to see, and sleeps in between as long as the alarm is what it was before it looked: what
/// `sleep` is given, for [`doze`].
pub(crate) fn watch<S, R>(
    alarm: &AtomicU32,
    state: &mut S,
    mut look: impl FnMut(&mut S) -> Option<R>,
    mut sleep: impl FnMut(&mut S, u32),
) -> R {
    loop {
        let seen = alarm.load(Ordering::SeqCst);
        if let Some(result) = look(state) {
            return result;
        }
        sleep(state, seen);
    }
}

/// Calls `sleep` with the value that the arrival has, unless it has been made or the alarm is no longer what was `seen`
/// before looking around. It sleeps while both are the same, or for a time.
pub(crate) fn doze(
    (arrived, sleepers): (&AtomicU32, &AtomicU32),
    tick: u32,
    (alarm, seen): (&AtomicU32, u32),
    sleep: impl FnOnce(u32),
) {
    sleepers.fetch_add(1, Ordering::SeqCst);
    in_one_order();
    let value = arrived.load(Ordering::SeqCst);
    if !has_reached(value, tick) && alarm.load(Ordering::SeqCst) == seen {
        sleep(value);
    }
    sleepers.fetch_sub(1, Ordering::SeqCst);
}

/// Between two accesses that are sequentially consistent. That loom does not know of accesses, but of fences.
fn in_one_order() {
    #[cfg(all(test, loom))]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// Lets all who wait look around. What there is to see was stored before.
pub(crate) fn raise(alarm: &AtomicU32, wake: &impl Wake) {
    alarm.fetch_add(1, Ordering::SeqCst);
    wake.wake(alarm);
}

/// Nobody writes.
pub(crate) const CALM: u32 = 0;
/// It is written of what the world failed.
pub(crate) const POISONED: u32 = 2;

/// Whoever writes, as it stands in the word.
fn writing(process: u32) -> u32 {
    1 | process << 2
}

/// Whether it is for this process to write of what the world failed. Otherwise another one has, or `wait` has lost its
/// patience with one that writes: it is given that one's number, and says whether it has died, or nothing to give up.
pub(crate) fn take_pen(word: &AtomicU32, process: u32, mut wait: impl FnMut(u32) -> Option<Writer>) -> bool {
    let take = |from| word.compare_exchange(from, writing(process), Ordering::SeqCst, Ordering::SeqCst);
    loop {
        match take(CALM) {
            Ok(_) => return true,
            Err(POISONED) => return false,
            Err(writer) => match wait(writer >> 2) {
                None => return false,
                Some(Writer::Lives) => {}
                Some(Writer::Died) => {
                    if take(writer).is_ok() {
                        return true;
                    }
                }
            },
        }
    }
}

/// What has become of somebody who has the pen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Lives,
    Died,
}

/// It is written.
pub(crate) fn put_pen_down(word: &AtomicU32, alarm: &AtomicU32, wake: &impl Wake) {
    word.store(POISONED, Ordering::SeqCst);
    raise(alarm, wake);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_has_been_made_also_where_its_number_begins_anew() {
        assert!(has_reached(5, 5) && has_reached(6, 5) && !has_reached(4, 5));
        assert!(has_reached(0, u32::MAX) && !has_reached(u32::MAX, 0));
    }

    #[test]
    fn a_writer_that_lives_is_given_up_at_last() {
        let word = AtomicU32::new(writing(7));
        let mut looks = 0;
        let taken = take_pen(&word, 8, |writer| {
            assert_eq!(writer, 7);
            looks += 1;
            (looks < 3).then_some(Writer::Lives)
        });
        assert!(!taken && looks == 3);
        assert!(take_pen(&word, 8, |_| Some(Writer::Died)));
    }
}

/// All orders in which the ranks' steps can happen, tried by loom; a lost wake-up is a deadlock here, for the model's sleep
/// has no deadline.
///
/// `RUSTFLAGS="--cfg loom" cargo test --release -p leyden-comm --lib loom`
#[cfg(all(test, loom))]
mod loom_model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::AtomicU64;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// Futexes of all words: looking at them and falling asleep are one act, and so is waking.
    struct Futexes {
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl Wake for Futexes {
        fn wake(&self, _: &AtomicU32) {
            let _queue = self.queue.lock().unwrap();
            self.woken.notify_all();
        }
    }

    /// Bytes that loom guards: two who use them at once fail the test.
    struct Bytes {
        guard: UnsafeCell<()>,
        value: AtomicU64,
    }

    impl Bytes {
        fn new() -> Self {
            Self { guard: UnsafeCell::new(()), value: AtomicU64::new(0) }
        }

        fn write(&self, value: u64) {
            self.guard.with_mut(|_| self.value.store(value, Ordering::Relaxed));
        }

        fn read(&self) -> u64 {
            self.guard.with(|_| self.value.load(Ordering::Relaxed))
        }
    }

    /// A world of two ranks.
    struct World {
        arrived: [AtomicU32; 2],
        sleepers: [AtomicU32; 2],
        windows: [[Bytes; 2]; 2],
        alarm: AtomicU32,
        pen: AtomicU32,
        words: Bytes,
        /// Whether rank 1 has left.
        left: AtomicU32,
        futexes: Futexes,
    }

    impl World {
        fn new() -> Arc<Self> {
            let word = |_| AtomicU32::new(0);
            Arc::new(Self {
                arrived: std::array::from_fn(word),
                sleepers: std::array::from_fn(word),
                windows: std::array::from_fn(|_| std::array::from_fn(|_| Bytes::new())),
                alarm: word(0),
                pen: word(0),
                words: Bytes::new(),
                left: word(0),
                futexes: Futexes { queue: Mutex::new(()), woken: Condvar::new() },
            })
        }

        /// As a collective does.
        fn meet(&self, own: usize, tick: u32) -> u64 {
            let place = parity(tick.into());
            self.windows[own][place].write(tick.into());
            arrive(&self.arrived[own], &self.sleepers[own], tick, &self.futexes);
            let peer = 1 - own;
            assert!(self.wait(peer, tick, || false));
            self.windows[peer][place].read()
        }

        /// Whether the peer arrives; else what `over` says has happened.
        fn wait(&self, peer: usize, tick: u32, over: impl Fn() -> bool) -> bool {
            let look = |(): &mut ()| {
                let arrived = has_reached(self.arrived[peer].load(Ordering::Acquire), tick);
                (arrived || over()).then_some(arrived)
            };
            let sleep = |(): &mut (), seen| {
                let arrival = (&self.arrived[peer], &self.sleepers[peer]);
                doze(arrival, tick, (&self.alarm, seen), |value| {
                    let queue = self.futexes.queue.lock().unwrap();
                    if self.arrived[peer].load(Ordering::SeqCst) == value
                        && self.alarm.load(Ordering::SeqCst) == seen
                    {
                        drop(self.futexes.woken.wait(queue).unwrap());
                    }
                });
            };
            watch(&self.alarm, &mut (), look, sleep)
        }

        /// Fails the world, unless another one does.
        fn poison(&self, process: u32, dies: bool, dead: impl Fn(u32) -> bool) -> bool {
            let taken = take_pen(&self.pen, process, |writer| {
                thread::yield_now();
                Some(if dead(writer) { Writer::Died } else { Writer::Lives })
            });
            if taken {
                self.words.write(process.into());
                if !dies {
                    put_pen_down(&self.pen, &self.alarm, &self.futexes);
                }
            }
            taken
        }

        fn poisoned(&self) -> Option<u64> {
            let written = self.pen.load(Ordering::Acquire) == POISONED;
            written.then(|| self.words.read())
        }
    }

    fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    #[test]
    fn loom_two_ranks_meet_and_read_what_the_other_has_brought() {
        explore(3, || {
            let world = World::new();
            let theirs = world.clone();
            let other = thread::spawn(move || [1, 2, 3].map(|tick| theirs.meet(1, tick)));
            assert_eq!([1, 2, 3].map(|tick| world.meet(0, tick)), [1, 2, 3]);
            assert_eq!(other.join().unwrap(), [1, 2, 3]);
        });
    }

    #[test]
    fn loom_who_waits_for_a_rank_that_leaves_is_woken() {
        explore(4, || {
            let world = World::new();
            let theirs = world.clone();
            let other = thread::spawn(move || {
                theirs.left.store(1, Ordering::Release);
                raise(&theirs.alarm, &theirs.futexes);
            });
            assert!(!world.wait(1, 1, || world.left.load(Ordering::Acquire) == 1));
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_an_arrival_and_an_end_at_once_wake_too() {
        explore(3, || {
            let world = World::new();
            let theirs = world.clone();
            let other = thread::spawn(move || {
                arrive(&theirs.arrived[1], &theirs.sleepers[1], 1, &theirs.futexes);
                theirs.left.store(1, Ordering::Release);
                raise(&theirs.alarm, &theirs.futexes);
            });
            // Its last arrival comes before its end, so an end that is seen is no reason to miss it.
            let left = || world.left.load(Ordering::Acquire) == 1;
            if !world.wait(1, 1, left) {
                assert!(has_reached(world.arrived[1].load(Ordering::Acquire), 1));
            }
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_of_two_failures_one_is_told_whole_to_a_sleeper() {
        explore(2, || {
            let world = World::new();
            let writers = [5, 6].map(|process| {
                let world = world.clone();
                thread::spawn(move || world.poison(process, false, |_| false))
            });
            assert!(!world.wait(1, 1, || world.poisoned().is_some()));
            let told = world.poisoned().unwrap();
            let wrote = writers.map(|writer| writer.join().unwrap());
            assert_eq!(wrote, [told == 5, told == 6]);
        });
    }

    #[test]
    fn loom_a_writer_that_dies_is_followed_by_another() {
        explore(3, || {
            let world = World::new();
            let (dies, lives) = (world.clone(), world.clone());
            let dead = thread::spawn(move || dies.poison(5, true, |_| false));
            let dead = dead.join().unwrap();
            let other = thread::spawn(move || lives.poison(6, false, |writer| dead && writer == 5));
            assert!(!world.wait(1, 1, || world.poisoned().is_some()));
            assert_eq!((world.poisoned(), other.join().unwrap()), (Some(6), true));
        });
    }
}
