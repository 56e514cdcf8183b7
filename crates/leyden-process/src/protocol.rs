//! What parent and workers do to a slot's words, apart from where the words lie.
//!
//! A slot is one 64-bit word: its state, the worker that has it, and the task's ticket. Each transition is one
//! compare-and-swap of that word, so a death at any instant leaves a word that says who had what:
//!
//! ```text
//!         parent: prepare          parent: publish            worker: claim
//!   Free ────────────────▶ Preparing ───────────▶ Waiting ──────────────────▶ Running
//!    ▲ ▲                                             ▲                          │ │ │
//!    │ │                                             └── parent: reclaim ───────┘ │ │
//!    │ └──────────────── parent: release ◀── Done, Failed ◀── worker: finish ─────┘ │
//!    └ worker: trim, and back                    ▲───────── Kept ◀── worker: fail ──┘
//! ```
//!
//! Two words are slept on. Workers sleep on `posted`, which counts tasks; the parent sleeps on a slot's `signal`, a
//! count above a lowest bit that says that somebody sleeps. Who sleeps reads the word first, then looks for what it
//! wants, and then sleeps only if the word is still the same; who brings something stores it first and changes the
//! word afterwards. So either the sleeper sees what was brought, or the word has changed. The model at the end
//! of this file tries all the orders in which that can happen.

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A slot's word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) ticket: u64,
    pub(crate) worker: u32,
    pub(crate) state: State,
}

/// What may be done with a slot, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Nobody's; a worker may trim it.
    Free = 0,
    /// The parent writes a request.
    Preparing = 1,
    /// Any worker may claim it.
    Waiting = 2,
    /// Its worker's alone.
    Running = 3,
    /// A reply, the parent's alone.
    Done = 4,
    /// A reply that says what went wrong, the parent's alone.
    Failed = 5,
    /// As `Failed`, but the worker still holds a region of it.
    Kept = 6,
    /// A worker gives pages of it back.
    Trimming = 7,
}

impl Word {
    pub(crate) const FREE: u64 = 0;

    pub(crate) fn pack(self) -> u64 {
        self.ticket << TICKET_SHIFT | u64::from(self.worker) << WORKER_SHIFT | self.state as u64
    }

    /// Nothing if no word of ours looks so.
    pub(crate) fn unpack(word: u64) -> Option<Self> {
        let state = match word & 0xf {
            0 => State::Free,
            1 => State::Preparing,
            2 => State::Waiting,
            3 => State::Running,
            4 => State::Done,
            5 => State::Failed,
            6 => State::Kept,
            7 => State::Trimming,
            _ => return None,
        };
        let worker = (word >> WORKER_SHIFT) as u32 & (WORKERS as u32 - 1);
        Some(Self { ticket: word >> TICKET_SHIFT, worker, state })
    }

    pub(crate) fn with(self, state: State) -> Self {
        Self { state, ..self }
    }
}

/// Ticket numbers end before this one.
pub(crate) const TICKETS: u64 = 1 << (64 - TICKET_SHIFT);
/// Worker numbers end before this one.
pub(crate) const WORKERS: usize = 1 << (TICKET_SHIFT - WORKER_SHIFT);

const WORKER_SHIFT: u32 = 4;
const TICKET_SHIFT: u32 = 16;

/// How to wait: by the kernel's futexes, or by the model's.
pub(crate) trait Sleep {
    /// Waits shortly, without sleeping, for something that is about to happen.
    fn spin(&self, ready: impl Fn() -> bool);
    /// Sleeps while `word` holds `expected`. False: the deadline has passed.
    fn sleep(&self, word: &AtomicU32, expected: u32) -> bool;
    /// Wakes up to `n` sleepers.
    fn wake(&self, word: &AtomicU32, n: u32);
}

/// Parent: takes a free slot to write a request into it. False if a worker is trimming it.
pub(crate) fn prepare(word: &AtomicU64) -> bool {
    let preparing = Word { ticket: 0, worker: 0, state: State::Preparing }.pack();
    word.compare_exchange(Word::FREE, preparing, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Parent: the request is there; a worker may claim it, and one is woken.
pub(crate) fn publish(word: &AtomicU64, posted: &AtomicU32, ticket: u64, sleep: &impl Sleep) {
    word.store(Word { ticket, worker: 0, state: State::Waiting }.pack(), Ordering::Release);
    announce(posted, 1, sleep);
}

/// Tells `n` workers to look again.
pub(crate) fn announce(posted: &AtomicU32, n: u32, sleep: &impl Sleep) {
    posted.fetch_add(1, Ordering::AcqRel);
    sleep.wake(posted, n);
}

/// Worker: claims the waiting task with the smallest ticket among `slots`; gives its slot and ticket. Nothing if there
/// is none.
pub(crate) fn claim<'a>(
    slots: usize,
    word_of: impl Fn(usize) -> &'a AtomicU64,
    worker: u32,
) -> Option<(usize, u64)> {
    loop {
        let (ticket, slot) = (0..slots)
            .filter_map(|slot| {
                let word = Word::unpack(word_of(slot).load(Ordering::Acquire))?;
                (word.state == State::Waiting).then_some((word.ticket, slot))
            })
            .min()?;
        let waiting = Word { ticket, worker: 0, state: State::Waiting };
        let running = Word { ticket, worker, state: State::Running };
        let word = word_of(slot);
        if word.compare_exchange(waiting.pack(), running.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return Some((slot, ticket));
        }
        // Somebody else was faster, so there is progress; what is left may be another's or none.
    }
}

/// Worker: does `claim` until it gives something, the deadline passes, or it is `closed`.
pub(crate) fn claim_waiting<C>(
    posted: &AtomicU32,
    closed: impl Fn() -> bool,
    claim: impl Fn() -> Option<C>,
    sleep: &impl Sleep,
) -> Option<C> {
    loop {
        let seen = posted.load(Ordering::Acquire);
        if closed() {
            return None;
        }
        if let Some(claimed) = claim() {
            return Some(claimed);
        }
        sleep.spin(|| posted.load(Ordering::Relaxed) != seen);
        if !sleep.sleep(posted, seen) {
            return claim();
        }
    }
}

/// Worker: hands the slot over, in the state `to`. False if it is no longer the worker's.
pub(crate) fn finish(
    word: &AtomicU64,
    signal: &AtomicU32,
    from: Word,
    to: State,
    sleep: &impl Sleep,
) -> bool {
    let handed =
        word.compare_exchange(from.pack(), from.with(to).pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if handed {
        ring(signal, sleep);
    }
    handed
}

/// Wakes whoever sleeps on a slot.
pub(crate) fn ring(signal: &AtomicU32, sleep: &impl Sleep) {
    if signal.fetch_add(COUNT, Ordering::AcqRel) & SLEEPER != 0 {
        sleep.wake(signal, u32::MAX);
    }
}

/// Parent: forgets sleepers of the slot's earlier task, all of whom were woken.
pub(crate) fn unring(signal: &AtomicU32) {
    signal.fetch_and(!SLEEPER, Ordering::AcqRel);
}

/// Parent: waits until `ready`, or until `kicked`; gives whether it is ready.
///
/// Both are looked at after the sleeper's bit is set, and must be made true before the slot is [rung](ring).
pub(crate) fn wait(
    signal: &AtomicU32,
    ready: impl Fn() -> bool,
    kicked: impl Fn() -> bool,
    sleep: &impl Sleep,
) -> bool {
    sleep.spin(|| ready() || kicked());
    while !ready() {
        let seen = signal.fetch_or(SLEEPER, Ordering::AcqRel) | SLEEPER;
        if ready() {
            break;
        }
        if kicked() || !sleep.sleep(signal, seen) {
            return ready();
        }
    }
    true
}

/// Parent: a confirmed dead worker's task waits again, with the same ticket.
pub(crate) fn reclaim(word: &AtomicU64, running: Word) -> bool {
    let waiting = Word { ticket: running.ticket, worker: 0, state: State::Waiting };
    word.compare_exchange(running.pack(), waiting.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Parent: a task that nobody has claimed is taken back.
pub(crate) fn unpublish(word: &AtomicU64, ticket: u64) -> bool {
    let waiting = Word { ticket, worker: 0, state: State::Waiting };
    word.compare_exchange(waiting.pack(), Word::FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

const SLEEPER: u32 = 1;
const COUNT: u32 = 2;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_packed_and_unpacked_without_loss() {
        for state in [State::Free, State::Waiting, State::Running, State::Done, State::Kept, State::Trimming]
        {
            for (ticket, worker) in [(0, 0), (1, 4095), (TICKETS - 1, 0), (TICKETS - 1, WORKERS as u32 - 1)] {
                let word = Word { ticket, worker, state };
                assert_eq!(Word::unpack(word.pack()), Some(word));
            }
        }
        assert_eq!(Word::unpack(8), None);
        assert_eq!(Word::unpack(Word::FREE).unwrap().state, State::Free);
    }

    #[test]
    fn the_smallest_ticket_is_claimed_first() {
        let words =
            [7, 3, 5].map(|ticket| AtomicU64::new(Word { ticket, worker: 0, state: State::Waiting }.pack()));
        let claimed: Vec<_> = std::iter::from_fn(|| claim(3, |slot| &words[slot], 2)).collect();
        assert_eq!(claimed, [(1, 3), (2, 5), (0, 7)]);
        assert_eq!(Word::unpack(words[0].load(Ordering::Relaxed)).unwrap().worker, 2);
    }
}

/// All orders in which the parties' steps can happen, tried by loom; a lost wake-up is a deadlock here, for the
/// model's sleep has no deadline and the model's futex no second look.
///
/// `RUSTFLAGS="--cfg loom" cargo test --release -p leyden-process --lib loom`
#[cfg(all(test, loom))]
mod loom_model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// A futex of one word: looking at it and falling asleep are one act, and so is waking.
    struct Futex {
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl Futex {
        fn new() -> Self {
            Self { queue: Mutex::new(()), woken: Condvar::new() }
        }
    }

    impl Sleep for Futex {
        fn spin(&self, _ready: impl Fn() -> bool) {}

        fn sleep(&self, word: &AtomicU32, expected: u32) -> bool {
            let queue = self.queue.lock().unwrap();
            if word.load(Ordering::Acquire) == expected {
                drop(self.woken.wait(queue).unwrap());
            }
            true
        }

        fn wake(&self, _word: &AtomicU32, n: u32) {
            let _queue = self.queue.lock().unwrap();
            if n == 1 { self.woken.notify_one() } else { self.woken.notify_all() }
        }
    }

    /// Slots whose bytes are one number each, guarded by loom: two owners at once fail the test.
    struct Slots<const N: usize> {
        words: [AtomicU64; N],
        signals: [AtomicU32; N],
        bytes: [UnsafeCell<u64>; N],
        posted: AtomicU32,
        kicks: AtomicU32,
        workers: Futex,
        parent: Futex,
    }

    impl<const N: usize> Slots<N> {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                words: std::array::from_fn(|_| AtomicU64::new(Word::FREE)),
                signals: std::array::from_fn(|_| AtomicU32::new(0)),
                bytes: std::array::from_fn(|_| UnsafeCell::new(0)),
                posted: AtomicU32::new(0),
                kicks: AtomicU32::new(0),
                workers: Futex::new(),
                parent: Futex::new(),
            })
        }

        fn post(&self, slot: usize, ticket: u64) {
            assert!(prepare(&self.words[slot]));
            self.bytes[slot].with_mut(|bytes| unsafe { *bytes = ticket });
            unring(&self.signals[slot]);
            publish(&self.words[slot], &self.posted, ticket, &self.workers);
        }

        fn claim(&self, worker: u32) -> (usize, u64) {
            let claim = || claim(N, |slot| &self.words[slot], worker);
            claim_waiting(&self.posted, || false, claim, &self.workers).unwrap()
        }

        /// A worker's whole work: the reply is the request plus 100.
        fn work(&self, worker: u32) -> bool {
            let (slot, ticket) = self.claim(worker);
            self.reply(slot, ticket, worker)
        }

        fn reply(&self, slot: usize, ticket: u64, worker: u32) -> bool {
            self.bytes[slot].with_mut(|bytes| unsafe { *bytes = ticket + 100 });
            self.finish(slot, ticket, worker)
        }

        fn finish(&self, slot: usize, ticket: u64, worker: u32) -> bool {
            let running = Word { ticket, worker, state: State::Running };
            finish(&self.words[slot], &self.signals[slot], running, State::Done, &self.parent)
        }

        fn state(&self, slot: usize) -> State {
            Word::unpack(self.words[slot].load(Ordering::Acquire)).unwrap().state
        }

        fn wait(&self, slot: usize, kicks: u32) -> bool {
            let ready = || self.state(slot) == State::Done;
            let kicked = || self.kicks.load(Ordering::Acquire) != kicks;
            wait(&self.signals[slot], ready, kicked, &self.parent)
        }

        fn kick(&self) {
            self.kicks.fetch_add(1, Ordering::AcqRel);
            self.signals.iter().for_each(|signal| ring(signal, &self.parent));
        }

        fn take(&self, slot: usize) -> u64 {
            let reply = self.bytes[slot].with(|bytes| unsafe { *bytes });
            self.words[slot].store(Word::FREE, Ordering::Release);
            reply
        }
    }

    fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    #[test]
    fn a_task_is_claimed_answered_and_its_slot_used_again() {
        explore(4, || {
            let slots = Slots::<1>::new();
            let theirs = slots.clone();
            let worker = thread::spawn(move || (theirs.work(0), theirs.work(0)));
            for ticket in [1, 2] {
                slots.post(0, ticket);
                assert!(slots.wait(0, 0));
                assert_eq!(slots.take(0), ticket + 100);
            }
            assert_eq!(worker.join().unwrap(), (true, true));
        });
    }

    #[test]
    fn two_tasks_wake_two_workers_and_each_is_claimed_once() {
        explore(2, || {
            let slots = Slots::<2>::new();
            let workers = [0, 1].map(|worker| {
                let slots = slots.clone();
                thread::spawn(move || slots.claim(worker))
            });
            slots.post(0, 1);
            slots.post(1, 2);
            let mut claimed = workers.map(|worker| worker.join().unwrap());
            claimed.sort_unstable();
            assert_eq!(claimed, [(0, 1), (1, 2)]);
        });
    }

    #[test]
    fn a_kick_ends_a_wait_that_nobody_answers() {
        explore(4, || {
            let slots = Slots::<1>::new();
            let kicks = slots.kicks.load(Ordering::Acquire);
            slots.post(0, 1);
            let theirs = slots.clone();
            let supervisor = thread::spawn(move || theirs.kick());
            assert!(!slots.wait(0, kicks));
            supervisor.join().unwrap();
        });
    }

    #[test]
    fn a_reply_and_a_kick_at_once_lose_neither() {
        explore(3, || {
            let slots = Slots::<1>::new();
            slots.post(0, 1);
            let (theirs, others) = (slots.clone(), slots.clone());
            let worker = thread::spawn(move || theirs.work(0));
            let supervisor = thread::spawn(move || others.kick());
            let mut kicks = 0;
            while !slots.wait(0, kicks) {
                kicks = slots.kicks.load(Ordering::Acquire);
            }
            assert_eq!(slots.take(0), 101);
            assert!(worker.join().unwrap());
            supervisor.join().unwrap();
        });
    }

    #[test]
    fn what_a_dead_worker_had_goes_to_one_that_sleeps() {
        explore(3, || {
            let slots = Slots::<1>::new();
            slots.post(0, 1);
            let (dead, theirs) = (slots.clone(), slots.clone());
            let dead = thread::spawn(move || dead.claim(0));
            let (slot, ticket) = dead.join().unwrap();
            let worker = thread::spawn(move || theirs.work(1));
            assert!(reclaim(&slots.words[slot], Word { ticket, worker: 0, state: State::Running }));
            announce(&slots.posted, u32::MAX, &slots.workers);
            assert!(slots.wait(0, 0));
            assert_eq!(slots.take(0), 101);
            assert!(worker.join().unwrap());
        });
    }

    #[test]
    fn of_finishing_and_being_reclaimed_one_happens() {
        explore(4, || {
            let slots = Slots::<1>::new();
            slots.post(0, 1);
            let (slot, ticket) = slots.claim(0);
            let theirs = slots.clone();
            // It writes nothing: a reclaimed worker is dead, so that its bytes are nobody's.
            let worker = thread::spawn(move || theirs.finish(slot, ticket, 0));
            let reclaimed = reclaim(&slots.words[slot], Word { ticket, worker: 0, state: State::Running });
            assert_ne!(worker.join().unwrap(), reclaimed);
            assert_eq!(slots.state(0), if reclaimed { State::Waiting } else { State::Done });
        });
    }

    #[test]
    fn of_claiming_and_being_withdrawn_one_happens() {
        explore(4, || {
            let slots = Slots::<1>::new();
            slots.post(0, 1);
            let theirs = slots.clone();
            let worker = thread::spawn(move || claim(1, |slot| &theirs.words[slot], 0).is_some());
            let withdrawn = unpublish(&slots.words[0], 1);
            assert_ne!(worker.join().unwrap(), withdrawn);
            assert_eq!(slots.state(0), if withdrawn { State::Free } else { State::Running });
        });
    }
}
