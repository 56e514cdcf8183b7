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
