//! Tasks and replies through shared memory: one parent, several worker processes.
//!
//! The parent [posts](Slots::post) a task into a free slot; a worker [claims](SlotsWorker::claim) it from there,
//! writes the reply into the same slot, and the parent reads it in place as a [`Loan`]. No message is sent for a
//! task, and nobody who holds a lock can die: there is no lock between processes. Starting workers and noticing their
//! deaths is not done here.
//!
//! A slot has one owner at any time: its word says who (`protocol.rs`). It is used again when its writer is done, or
//! confirmed dead, and when the loan of its reply is over; recycled slots keep their pages, the last one freed is used
//! first, and pages are given back only when the budget asks for them.
//!
//! **Death.** A [tombstone](crate::tombstone) says early that a worker is dying; look then at what it was
//! [doing](Slots::orphans), [withdraw](Slots::withdraw) that and post it again: it gets another slot. When its pidfd
//! says that it is dead, [reclaim](Slots::reclaim). Not before: until then one of its threads may still write.
//! Give more worker numbers than workers, so that a replacement need not wait for its predecessor's number.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::copies::Home;
use crate::memory::{Region, available_bytes};
use crate::protocol::{self, Sleep, State, TICKETS, Word};
use crate::{Error, Result, codes, futex};

mod layout;
mod worker;

use layout::{Layout, Shared, Slot};
pub use worker::{SlotsWorker, Task, Writer};

/// How many slots, for how many workers, and how large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsConfig {
    /// Worker numbers, 1 to 4096: workers claim under a number below this.
    pub workers: usize,
    /// Slots, 1 to 4096: tasks that are posted, or whose replies are in use, at once.
    pub slots: usize,
    /// Addresses for one slot, in bytes: the most that a request and its reply can take together. They cost no memory
    /// until they are written to.
    pub slot_bytes: usize,
    /// The memory that all slots may take together, in bytes.
    pub budget_bytes: u64,
}

impl Default for SlotsConfig {
    /// Two workers, four slots of 4 GiB of addresses each, and half of what memory is
    /// [available](crate::memory::available_bytes).
    fn default() -> Self {
        Self { workers: 2, slots: 4, slot_bytes: 4 << 30, budget_bytes: available_bytes() / 2 }
    }
}

/// The parent's side. Dropping it closes the slots; loans live on. In a process that was forked from the parent,
/// dropping either does nothing.
pub struct Slots(Arc<Inner>);

/// A slot of its [`Slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u32);

/// What is going on in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotView {
    /// No task.
    Free,
    /// A task that no worker has claimed.
    Waiting {
        /// The task's number.
        ticket: u64,
    },
    /// A worker is at it.
    Running {
        /// The task's number.
        ticket: u64,
        /// The worker's number.
        worker: usize,
        /// What the task [noted](Task::set_progress) last; 0 at first.
        progress: u64,
        /// What the task [noted](Task::set_phase) last; 0 at first.
        phase: u8,
        /// For how long.
        since: Duration,
    },
    /// A reply is there.
    Done {
        /// The task's number.
        ticket: u64,
        /// Who made it.
        worker: usize,
    },
    /// A reply is there that says what went wrong.
    Failed {
        /// The task's number.
        ticket: u64,
        /// Who made it.
        worker: usize,
    },
    /// The slot's word is nonsense. [`take`](Slots::take) says so as an error.
    Garbled,
}

/// Why [`Slots::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// There is something to [take](Slots::take), or the task is no longer in that slot.
    Ready,
    /// Somebody [kicked](Slots::kick).
    Kicked,
    /// The deadline has passed.
    TimedOut,
}

/// What a worker made of a task.
#[derive(Debug)]
pub enum Reply {
    /// It was completed.
    Done(Loan),
    /// It failed: no regions, and what the worker said in the body. An empty one means that it said nothing.
    Failed(Loan),
}

/// A task that a worker had when it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Where the task is.
    pub slot: SlotId,
    /// The task's number.
    pub ticket: u64,
    /// What the task [noted](Task::set_progress) last.
    pub progress: u64,
    /// What the task [noted](Task::set_phase) last.
    pub phase: u8,
}

impl Slots {
    /// Makes the shared memory.
    ///
    /// # Errors
    ///
    /// `P0208` if a number is out of its range, or the budget more than the memory that is
    /// [available](crate::memory::available_bytes); `P0201`, `P0202`, `P0203` if the system or one of its limits
    /// refuses.
    pub fn new(config: SlotsConfig) -> Result<Self> {
        let layout = Layout::new(&config)?;
        let available = available_bytes();
        if config.budget_bytes > available {
            return Err(Error::new(codes::SLOTS_CONFIG, "the slots' budget is more than the memory there is")
                .at("budget", format!("{} bytes", config.budget_bytes))
                .at("available", format!("{available} bytes, by the machine and its memory cgroups"))
                .hint("lower the budget (fewer prefetched batches, smaller batches), or give the program more memory"));
        }
        let slots = 0..layout.slots as u32;
        Ok(Self(Arc::new(Inner {
            shared: Shared::create(layout)?,
            home: Home::here(),
            kicks: AtomicU32::new(0),
            loaned: AtomicUsize::new(0),
            book: Mutex::new(Book {
                owners: slots.clone().map(|_| Owner::Free).collect(),
                free: slots.rev().collect(),
            }),
        })))
    }

    /// The descriptor to hand to the workers.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.shared.memory().fd()
    }

    /// Puts a task into a free slot, and wakes a worker. Waiting tasks are claimed by their tickets, smallest first; a
    /// ticket is used once. Nothing if no slot is free.
    ///
    /// # Errors
    ///
    /// `P0205`, `P0204` if there is no room for the request; `P0208` for a ticket from 2⁴⁸ on.
    pub fn post(&self, ticket: u64, request: &[u8]) -> Result<Option<SlotId>> {
        if ticket >= TICKETS {
            return Err(Error::new(codes::SLOTS_CONFIG, format!("ticket {ticket} is larger than 2^48 - 1")));
        }
        let shared = &self.0.shared;
        let mut book = self.0.book();
        book.sweep(shared);
        let Some(slot) = book.prepare(shared) else { return Ok(None) };
        if let Err(error) = self.0.write_request(slot, request) {
            shared.slot(slot).word.store(Word::FREE, Ordering::Release);
            book.free.push(slot as u32);
            return Err(error);
        }
        book.owners[slot] = Owner::Posted(ticket);
        // While the book is held: nobody else may find the slot posted and its word still `Preparing`.
        protocol::publish(&shared.slot(slot).word, &shared.posted().posted, ticket, &Futexes::WAKING);
        Ok(Some(SlotId(slot as u32)))
    }

    /// What is going on in a slot; never waits.
    ///
    /// # Panics
    ///
    /// If the slot is one of other `Slots`, which have more.
    pub fn peek(&self, slot: SlotId) -> SlotView {
        let shared = &self.0.shared;
        let slot = slot.index();
        let Some(word) = shared.word(slot) else { return SlotView::Garbled };
        let (ticket, worker) = (word.ticket, word.worker as usize);
        match word.state {
            State::Free | State::Preparing | State::Trimming => SlotView::Free,
            State::Waiting => SlotView::Waiting { ticket },
            State::Done => SlotView::Done { ticket, worker },
            State::Failed | State::Kept => SlotView::Failed { ticket, worker },
            State::Running => {
                let notes = shared.notes(slot);
                let since = match notes.claimed_at.load(Ordering::Relaxed) {
                    0 => Duration::ZERO,
                    claimed => futex::now().saturating_sub(Duration::from_nanos(claimed)),
                };
                SlotView::Running {
                    ticket,
                    worker,
                    progress: notes.progress.load(Ordering::Relaxed),
                    phase: notes.phase.load(Ordering::Relaxed) as u8,
                    since,
                }
            }
        }
    }

    /// The number of kicks so far; see [`wait`](Slots::wait).
    pub fn kicks(&self) -> u32 {
        self.0.kicks.load(Ordering::Acquire)
    }

    /// Ends all waits that were begun with an earlier number of [`kicks`](Slots::kicks).
    pub fn kick(&self) {
        self.0.kicks.fetch_add(1, Ordering::AcqRel);
        for slot in 0..self.0.shared.layout().slots {
            protocol::ring(&self.0.shared.slot(slot).signal, &Futexes::WAKING);
        }
    }

    /// Waits until there is a reply in `slot`: some microseconds by looking, then asleep.
    ///
    /// `kicks` is the number of [`kicks`](Slots::kicks) read *before* the caller looked at whatever a kick tells of,
    /// so that none between looking and waiting is missed.
    pub fn wait(&self, slot: SlotId, ticket: u64, kicks: u32, deadline: Instant) -> Waited {
        let shared = &self.0.shared;
        let index = slot.index();
        let ready = || match shared.word(index) {
            Some(word) => word.ticket != ticket || !matches!(word.state, State::Waiting | State::Running),
            None => true,
        };
        let kicked = || self.0.kicks.load(Ordering::Acquire) != kicks;
        let signal = &shared.slot(index).signal;
        match protocol::wait(signal, ready, kicked, &Futexes::until(deadline)) {
            true => Waited::Ready,
            false if kicked() => Waited::Kicked,
            false => Waited::TimedOut,
        }
    }

    /// The reply to a task, once there is one. The slot is used again when the loan and all its regions are dropped.
    ///
    /// # Errors
    ///
    /// `P0206` if what the worker wrote contradicts itself. The slot is then never used again.
    pub fn take(&self, slot: SlotId, ticket: u64) -> Result<Option<Reply>> {
        let index = slot.index();
        let mut book = self.0.book();
        if book.owners.get(index) != Some(&Owner::Posted(ticket)) {
            return Ok(None);
        }
        let word = self.0.shared.word(index).filter(|word| word.ticket == ticket);
        let found = match word.map(|word| word.state) {
            Some(State::Waiting | State::Running) => return Ok(None),
            Some(State::Done | State::Failed | State::Kept) => self.0.read_reply(index),
            _ => Err("its word is none that a task can have".to_owned()),
        };
        let (body, regions) = found.map_err(|why| {
            book.owners[index] = Owner::Lost;
            Error::new(codes::GARBLED, "a worker's reply contradicts itself")
                .at("slot", index)
                .at("task", ticket)
                .why(why)
                .why("another process wrote to shared memory that was not its own")
                .hint("look for wild writes in native code that the workers call")
        })?;
        book.owners[index] = Owner::Loaned(ticket);
        self.0.loaned.fetch_add(1, Ordering::Relaxed);
        let lent = Lent { inner: self.0.clone(), slot: index, ticket, body, regions: Mutex::new(regions) };
        let loan = Loan(Arc::new(lent));
        let done = word.is_some_and(|word| word.state == State::Done);
        Ok(Some(if done { Reply::Done(loan) } else { Reply::Failed(loan) }))
    }

    /// The consumer no longer wants a task. Its slot is free at once if no worker is at it, else when the worker has
    /// finished or is [reclaimed](Slots::reclaim); until then it is [quarantined](Slots::quarantined).
    pub fn withdraw(&self, slot: SlotId, ticket: u64) {
        let index = slot.index();
        let mut book = self.0.book();
        if book.owners.get(index) != Some(&Owner::Posted(ticket)) {
            return;
        }
        let shared = &self.0.shared;
        let Slot { word, signal, unwanted, .. } = shared.slot(index);
        if protocol::unpublish(word, ticket) {
            book.release(index);
        } else {
            unwanted.store(1, Ordering::Relaxed);
            book.owners[index] = Owner::Abandoned(ticket);
            book.sweep(shared);
        }
        protocol::ring(signal, &Futexes::WAKING);
    }

    /// What a worker is at. Changes nothing, so it may be asked at any time.
    pub fn orphans(&self, worker: usize) -> Vec<Orphan> {
        let running = |slot: &usize| self.0.shared.held_by(*slot, worker) == Some(State::Running);
        (0..self.0.shared.layout().slots).filter(running).filter_map(|slot| self.0.orphan(slot)).collect()
    }

    /// Takes everything from a worker that is confirmed dead, and lets its number be used again: tasks wait again
    /// with the same ticket, and what was withdrawn is free. Gives what it was doing.
    ///
    /// *Confirmed* means that its pidfd is readable, or that it was waited for. A worker that lives on would write
    /// into what has become another's.
    pub fn reclaim(&self, worker: usize) -> Vec<Orphan> {
        let shared = &self.0.shared;
        if worker >= shared.layout().workers {
            return Vec::new();
        }
        let mut book = self.0.book();
        let mut orphans = Vec::new();
        for slot in 0..shared.layout().slots {
            let Some(word) = shared.word(slot).filter(|word| word.worker as usize == worker) else {
                continue;
            };
            let lines = shared.slot(slot);
            match (word.state, book.owners[slot]) {
                (State::Running, Owner::Posted(ticket)) if ticket == word.ticket => {
                    orphans.extend(self.0.orphan(slot));
                    self.0.reset_notes(slot);
                    protocol::reclaim(&lines.word, word);
                }
                (State::Running, Owner::Abandoned(ticket)) if ticket == word.ticket => {
                    orphans.extend(self.0.orphan(slot));
                    lines.word.store(Word::FREE, Ordering::Release);
                    book.release(slot);
                }
                (State::Kept, _) => lines.word.store(word.with(State::Failed).pack(), Ordering::Release),
                (State::Trimming, Owner::Free) => lines.word.store(Word::FREE, Ordering::Release),
                _ => {}
            }
        }
        book.sweep(shared);
        shared.worker(worker).tombstone.store(0, Ordering::Release);
        // All of them: a wake-up may have gone to the dead one.
        protocol::announce(&shared.posted().posted, u32::MAX, &Futexes::WAKING);
        orphans
    }

    /// No further task is claimed: workers' claims return at once, now and later.
    pub fn close(&self) {
        let posted = self.0.shared.posted();
        posted.closed.store(1, Ordering::Release);
        protocol::announce(&posted.posted, u32::MAX, &Futexes::WAKING);
    }

    /// How many replies are in use.
    pub fn loaned(&self) -> usize {
        self.0.loaned.load(Ordering::Relaxed)
    }

    /// How many slots are waited for: nobody wants their task any more, and a worker may still write to them.
    pub fn quarantined(&self) -> usize {
        let mut book = self.0.book();
        book.sweep(&self.0.shared);
        book.owners.iter().filter(|owner| matches!(owner, Owner::Abandoned(_) | Owner::Lost)).count()
    }

    /// The word that tells of a worker's death; see [`tombstone`](crate::tombstone).
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    pub fn tombstone(&self, worker: usize) -> &AtomicU32 {
        &self.0.shared.worker(worker).tombstone
    }

    /// The memory that the slots have taken, in bytes; free ones keep theirs.
    pub fn committed_bytes(&self) -> u64 {
        self.0.shared.committed_bytes()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if self.0.home.is_here() {
            self.close();
        }
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let views = (0..self.0.shared.layout().slots as u32).map(|slot| self.peek(SlotId(slot)));
        f.debug_list().entries(views).finish()
    }
}

impl SlotId {
    /// Its number, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A reply, read where the worker wrote it. Clones share it.
#[derive(Clone, Debug)]
pub struct Loan(Arc<Lent>);

impl Loan {
    /// What the worker gave to [`complete`](Task::complete) or [`fail`](Task::fail).
    pub fn body(&self) -> &[u8] {
        let (at, bytes) = self.0.body;
        // SAFETY: the worker has handed the slot over, regions lie elsewhere in it, and nobody else has it while
        // this loan lives.
        unsafe { read(&self.0.inner.shared, self.0.slot, at, bytes) }.unwrap_or_default()
    }

    /// How many regions the reply has.
    pub fn regions(&self) -> usize {
        self.0.regions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The region with this number; nothing if there is none, or if it was taken before. It keeps the slot.
    pub fn take_region(&self, number: usize) -> Option<Region> {
        let mut regions = self.0.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, bytes) = regions.get_mut(number)?.take()?;
        let (base, bytes) = self.0.inner.shared.range(self.0.slot, at, bytes)?;
        // SAFETY: the range is mapped while `self.0` lives. The worker has handed it over, no two regions overlap
        // each other or the body (looked at when the reply was taken), and each is given once.
        Some(unsafe { Region::new(base, bytes, self.0.clone()) })
    }
}

/// A slot in use, until its loan and all regions are dropped.
struct Lent {
    inner: Arc<Inner>,
    slot: usize,
    ticket: u64,
    body: (u64, u64),
    regions: Mutex<Vec<Option<(u64, u64)>>>,
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent")
            .field("slot", &self.slot)
            .field("ticket", &self.ticket)
            .field("body", &self.body)
            .field("regions", &self.regions)
            .finish_non_exhaustive()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // A copy of the parent has a copy of the book, and the slot itself.
        if !self.inner.home.is_here() {
            return;
        }
        let mut book = self.inner.book();
        book.owners[self.slot] = Owner::Abandoned(self.ticket);
        book.sweep(&self.inner.shared);
        self.inner.loaned.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Inner {
    shared: Shared,
    home: Home,
    kicks: AtomicU32,
    loaned: AtomicUsize,
    book: Mutex<Book>,
}

/// What the parent knows of its slots. Workers cannot spoil it.
struct Book {
    owners: Vec<Owner>,
    /// The last one freed is the next one used: its pages are the warmest.
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Free,
    /// A task that is wanted.
    Posted(u64),
    Loaned(u64),
    /// A task that nobody wants; free once no worker has it.
    Abandoned(u64),
    /// Garbled: who writes to it cannot be known.
    Lost,
}

impl Book {
    /// Takes a free slot to write a request into it.
    fn prepare(&mut self, shared: &Shared) -> Option<usize> {
        let deadline = Instant::now() + TRIMMING;
        loop {
            let found =
                self.free.iter().rposition(|&slot| protocol::prepare(&shared.slot(slot as usize).word));
            if let Some(position) = found {
                return Some(self.free.remove(position) as usize);
            }
            // A worker may be giving its pages back.
            if self.free.is_empty() || Instant::now() >= deadline {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Frees what was abandoned and has no writer any more.
    fn sweep(&mut self, shared: &Shared) {
        for slot in 0..self.owners.len() {
            let Owner::Abandoned(ticket) = self.owners[slot] else { continue };
            match shared.word(slot) {
                Some(Word { state: State::Done | State::Failed, ticket: found, .. }) if found == ticket => {
                    shared.slot(slot).word.store(Word::FREE, Ordering::Release);
                    self.release(slot);
                }
                Some(Word { state: State::Running | State::Kept, ticket: found, .. }) if found == ticket => {}
                _ => self.owners[slot] = Owner::Lost,
            }
        }
    }

    fn release(&mut self, slot: usize) {
        self.owners[slot] = Owner::Free;
        self.free.push(slot as u32);
    }
}

impl Inner {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_request(&self, slot: usize, request: &[u8]) -> Result<()> {
        let bytes = request.len() as u64;
        self.shared.commit(slot, 0, bytes)?;
        let (base, length) = self.shared.range(slot, 0, bytes).expect("it was committed");
        // SAFETY: the range is mapped, `length` bytes long, and the slot is being prepared: nobody else uses it.
        unsafe { base.as_ptr().copy_from_nonoverlapping(request.as_ptr(), length) };
        self.shared.notes(slot).request_bytes.store(bytes, Ordering::Relaxed);
        self.reset_notes(slot);
        let lines = self.shared.slot(slot);
        lines.unwanted.store(0, Ordering::Relaxed);
        protocol::unring(&lines.signal);
        Ok(())
    }

    fn reset_notes(&self, slot: usize) {
        let notes = self.shared.notes(slot);
        notes.claimed_at.store(0, Ordering::Relaxed);
        notes.progress.store(0, Ordering::Relaxed);
        notes.phase.store(0, Ordering::Relaxed);
    }

    fn orphan(&self, slot: usize) -> Option<Orphan> {
        let notes = self.shared.notes(slot);
        Some(Orphan {
            slot: SlotId(slot as u32),
            ticket: self.shared.word(slot)?.ticket,
            progress: notes.progress.load(Ordering::Relaxed),
            phase: notes.phase.load(Ordering::Relaxed) as u8,
        })
    }

    /// Where a reply's body and regions are, looked at once and checked: the worker's memory is not ours.
    fn read_reply(&self, slot: usize) -> std::result::Result<Parts, String> {
        let shared = &self.shared;
        let notes = shared.notes(slot);
        let count = notes.regions.load(Ordering::Relaxed);
        let (table_at, table_bytes) = (notes.table_at.load(Ordering::Relaxed), count.saturating_mul(16));
        let body = (notes.body_at.load(Ordering::Relaxed), notes.body_bytes.load(Ordering::Relaxed));
        let outside = |what: &str, at: u64, bytes: u64| {
            format!(
                "its {what} of {bytes} bytes at {at} does not lie in the slot's {} bytes",
                shared.layout().slot_bytes
            )
        };
        if shared.range(slot, body.0, body.1).is_none() {
            return Err(outside("body", body.0, body.1));
        }
        // SAFETY: the worker has handed the slot over, so nobody writes to the table; its size was checked.
        let table = unsafe { read(shared, slot, table_at, table_bytes) };
        let table = table.ok_or_else(|| outside("table of regions", table_at, table_bytes))?;
        let mut regions = Vec::with_capacity(table.len() / 16);
        let mut free_from = notes.request_bytes.load(Ordering::Relaxed);
        for entry in table.chunks_exact(16) {
            let (at, bytes) = entry.split_at(8);
            let at = u64::from_ne_bytes(at.try_into().expect("the half of 16"));
            let bytes = u64::from_ne_bytes(bytes.try_into().expect("the half of 16"));
            if shared.range(slot, at, bytes).is_none() {
                return Err(outside("region", at, bytes));
            }
            if at < free_from || !at.is_multiple_of(worker::ALIGN) {
                return Err(format!("its region at {at} overlaps another or is not aligned"));
            }
            free_from = at + bytes;
            regions.push(Some((at, bytes)));
        }
        match body.1 > 0 && body.0 < free_from {
            true => Err(format!("its body at {} overlaps a region or the request", body.0)),
            false => Ok((body, regions)),
        }
    }
}

/// Where a body is, and the regions: offset and length in bytes.
type Parts = ((u64, u64), Vec<Option<(u64, u64)>>);

impl Shared {
    /// A slot's word; nothing if it is garbled.
    fn word(&self, slot: usize) -> Option<Word> {
        Word::unpack(self.slot(slot).word.load(Ordering::Acquire))
    }

    /// The state of a slot that this worker has.
    fn held_by(&self, slot: usize, worker: usize) -> Option<State> {
        self.word(slot).filter(|word| word.worker as usize == worker).map(|word| word.state)
    }
}

/// # Safety
///
/// Nobody writes to the range while the result lives.
unsafe fn read(shared: &Shared, slot: usize, at: u64, bytes: u64) -> Option<&[u8]> {
    let (base, bytes) = shared.range(slot, at, bytes)?;
    // SAFETY: the range is mapped while `shared` is borrowed; that nobody writes is the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(base.as_ptr(), bytes) })
}

/// Waits by the kernel's futexes.
struct Futexes(Option<Instant>);

impl Futexes {
    /// For those who only wake.
    const WAKING: Self = Self(None);

    fn until(deadline: Instant) -> Self {
        Self(Some(deadline))
    }
}

impl Sleep for Futexes {
    fn spin(&self, ready: impl Fn() -> bool) {
        let start = Instant::now();
        while !ready() && start.elapsed() < SPIN {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
        }
    }

    fn sleep(&self, word: &AtomicU32, expected: u32) -> bool {
        let Some(left) = self.0.and_then(futex::left) else { return false };
        futex::wait(word, expected, left.min(LOOK_AGAIN));
        true
    }

    fn wake(&self, word: &AtomicU32, n: u32) {
        futex::wake(word, n);
    }
}

/// A sleeper costs 40 µs to wake, and a spinner takes a core from whoever it waits for: a short while is the best of
/// both, measured also with other busy threads.
const SPIN: Duration = Duration::from_micros(5);

/// A wake-up for one may go to a process that is stopped or dies in that moment. Others look by themselves after this.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How long a post waits for a worker that gives a free slot's pages back.
const TRIMMING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    fn config(workers: usize, slots: usize) -> SlotsConfig {
        SlotsConfig { workers, slots, slot_bytes: 1 << 20, budget_bytes: 64 << 20 }
    }

    fn pair(workers: usize, slots: usize) -> (Slots, Vec<SlotsWorker>) {
        let parent = Slots::new(config(workers, slots)).unwrap();
        let open = |worker| SlotsWorker::open(parent.fd().try_clone_to_owned().unwrap(), worker).unwrap();
        let workers = (0..workers).map(open).collect();
        (parent, workers)
    }

    fn soon() -> Instant {
        Instant::now() + LONG
    }

    fn done(parent: &Slots, slot: SlotId, ticket: u64) -> Loan {
        assert_eq!(parent.wait(slot, ticket, parent.kicks(), soon()), Waited::Ready);
        match parent.take(slot, ticket).unwrap().unwrap() {
            Reply::Done(loan) => loan,
            Reply::Failed(loan) => panic!("failed: {:?}", loan.body()),
        }
    }

    #[test]
    fn a_task_goes_to_a_worker_and_its_reply_is_read_in_place() {
        let (parent, workers) = pair(1, 2);
        let slot = parent.post(5, b"request").unwrap().unwrap();
        assert_eq!(parent.peek(slot), SlotView::Waiting { ticket: 5 });
        let task = workers[0].claim(soon()).unwrap();
        assert_eq!((task.request(), task.ticket()), (&b"request"[..], 5));
        task.set_progress(17);
        task.set_phase(3);
        let view = parent.peek(slot);
        assert!(
            matches!(view, SlotView::Running { ticket: 5, worker: 0, progress: 17, phase: 3, .. }),
            "{view:?}"
        );
        for (number, byte) in [(0, 1), (1, 2)] {
            let (found, mut region) = task.writer().alloc(100).unwrap();
            assert_eq!((found, region.as_ptr() as usize % 64, region.len()), (number, 0, 100));
            region.fill(byte);
        }
        assert!(parent.take(slot, 5).unwrap().is_none());
        task.complete(b"body").map_err(|(error, _)| error).unwrap();
        let loan = done(&parent, slot, 5);
        assert_eq!((loan.body(), loan.regions()), (&b"body"[..], 2));
        let mut first = loan.take_region(0).unwrap();
        let second = loan.take_region(1).unwrap();
        first[99] = 9;
        assert!(first[..99] == [1; 99] && second[..] == [2; 100]);
        assert!(loan.take_region(0).is_none() && loan.take_region(2).is_none());
    }

    #[test]
    fn each_ticket_gets_its_own_reply_from_many_threads_of_many_workers() {
        const TASKS: u64 = 20_000;
        let (parent, workers) = pair(3, 8);
        thread::scope(|scope| {
            for worker in &workers {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while let Some(task) = worker.claim(soon()) {
                            let reply = u64::from_ne_bytes(task.request().try_into().unwrap()) ^ 0x5555;
                            let (_, mut region) = task.writer().alloc(8).unwrap();
                            region.copy_from_slice(&reply.to_ne_bytes());
                            drop(region);
                            let body = task.ticket().to_ne_bytes();
                            task.complete(&body).map_err(|(error, _)| error).unwrap();
                        }
                    });
                }
            }
            let mut under_way = BTreeMap::new();
            let mut next = 0;
            for ticket in 0..TASKS {
                while next < TASKS
                    && let Some(slot) = parent.post(next, &(next * 3).to_ne_bytes()).unwrap()
                {
                    under_way.insert(next, slot);
                    next += 1;
                }
                let loan = done(&parent, under_way.remove(&ticket).unwrap(), ticket);
                assert_eq!(loan.body(), ticket.to_ne_bytes());
                assert_eq!(loan.take_region(0).unwrap()[..], ((ticket * 3) ^ 0x5555).to_ne_bytes());
            }
            parent.close();
        });
        assert_eq!((parent.loaned(), parent.quarantined()), (0, 0));
    }

    #[test]
    fn tasks_are_claimed_smallest_ticket_first() {
        let (parent, workers) = pair(1, 4);
        for ticket in [30, 10, 20] {
            parent.post(ticket, b"").unwrap().unwrap();
        }
        let claimed = [(); 3].map(|()| workers[0].claim(soon()).unwrap().ticket());
        assert_eq!(claimed, [10, 20, 30]);
    }

    #[test]
    fn a_claim_ends_at_its_deadline_and_when_the_slots_are_closed() {
        let (parent, workers) = pair(1, 1);
        assert!(workers[0].claim(Instant::now()).is_none());
        assert!(workers[0].claim(Instant::now() + Duration::from_millis(5)).is_none());
        thread::scope(|scope| {
            let claim = scope.spawn(|| workers[0].claim(soon()).is_none());
            drop(parent);
            assert!(claim.join().unwrap());
        });
        assert!(workers[0].is_closed());
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_by_a_kick_that_came_since_its_number_was_read() {
        let (parent, _workers) = pair(1, 1);
        let slot = parent.post(1, b"").unwrap().unwrap();
        let kicks = parent.kicks();
        let shortly = Instant::now() + Duration::from_millis(5);
        assert_eq!(parent.wait(slot, 1, kicks, shortly), Waited::TimedOut);
        parent.kick();
        assert_eq!(parent.wait(slot, 1, kicks, soon()), Waited::Kicked);
        thread::scope(|scope| {
            let kicks = parent.kicks();
            let wait = scope.spawn({
                let parent = &parent;
                move || parent.wait(slot, 1, kicks, soon())
            });
            parent.kick();
            assert_eq!(wait.join().unwrap(), Waited::Kicked);
        });
    }

    #[test]
    fn a_loan_and_each_of_its_regions_hold_the_slot_and_the_last_freed_is_used_first() {
        let (parent, workers) = pair(1, 2);
        let slot = parent.post(1, b"").unwrap().unwrap();
        let task = workers[0].claim(soon()).unwrap();
        task.writer().alloc(1).unwrap();
        task.complete(b"").map_err(|(error, _)| error).unwrap();
        let loan = done(&parent, slot, 1);
        let region = loan.take_region(0).unwrap();
        let other = parent.post(2, b"").unwrap().unwrap();
        assert_ne!(other, slot);
        drop(loan);
        assert_eq!((parent.post(3, b"").unwrap(), parent.loaned()), (None, 1));
        drop(region);
        assert_eq!(parent.loaned(), 0);
        assert_eq!(parent.post(3, b"").unwrap(), Some(slot));
        parent.withdraw(other, 2);
        parent.withdraw(slot, 3);
        assert_eq!(parent.post(4, b"").unwrap(), Some(slot));
    }

    #[test]
    fn loans_and_regions_outlive_the_slots() {
        let (parent, workers) = pair(1, 1);
        let slot = parent.post(1, b"").unwrap().unwrap();
        let task = workers[0].claim(soon()).unwrap();
        task.writer().alloc(3).unwrap().1.copy_from_slice(b"abc");
        task.complete(b"body").map_err(|(error, _)| error).unwrap();
        let loan = done(&parent, slot, 1);
        drop((parent, workers));
        let region = loan.take_region(0).unwrap();
        assert_eq!(loan.body(), b"body");
        drop(loan);
        assert_eq!(&region[..], b"abc");
    }

    #[test]
    fn a_task_that_fails_or_is_dropped_says_so() {
        let (parent, workers) = pair(1, 1);
        for (ticket, body) in [(1, &b"why"[..]), (2, b"")] {
            let slot = parent.post(ticket, b"").unwrap().unwrap();
            let task = workers[0].claim(soon()).unwrap();
            task.writer().alloc(10).unwrap();
            if body.is_empty() {
                drop(task)
            } else {
                task.fail(body)
            }
            assert_eq!(parent.peek(slot), SlotView::Failed { ticket, worker: 0 });
            let Some(Reply::Failed(loan)) = parent.take(slot, ticket).unwrap() else { panic!("not failed") };
            assert_eq!((loan.body(), loan.regions()), (body, 0));
        }
    }

    #[test]
    fn a_task_is_withdrawn_in_each_state() {
        let (parent, workers) = pair(1, 1);
        let slot = parent.post(1, b"").unwrap().unwrap();
        parent.withdraw(slot, 7);
        assert_eq!(parent.peek(slot), SlotView::Waiting { ticket: 1 });
        parent.withdraw(slot, 1);
        assert_eq!(parent.peek(slot), SlotView::Free);

        parent.post(2, b"").unwrap().unwrap();
        let task = workers[0].claim(soon()).unwrap();
        assert!(task.is_wanted());
        parent.withdraw(slot, 2);
        assert!(!task.is_wanted());
        assert_eq!((parent.quarantined(), parent.post(3, b"").unwrap()), (1, None));
        assert!(parent.take(slot, 2).unwrap().is_none());
        task.complete(b"").map_err(|(error, _)| error).unwrap();
        assert_eq!(parent.quarantined(), 0);

        parent.post(3, b"").unwrap().unwrap();
        assert!(workers[0].claim(soon()).unwrap().complete(b"").is_ok());
        parent.withdraw(slot, 3);
        assert_eq!(parent.peek(slot), SlotView::Free);

        parent.post(4, b"").unwrap().unwrap();
        assert!(workers[0].claim(soon()).unwrap().complete(b"").is_ok());
        let loan = done(&parent, slot, 4);
        parent.withdraw(slot, 4);
        assert_eq!((loan.body(), parent.loaned()), (&b""[..], 1));
    }

    #[test]
    fn a_withdrawal_ends_the_wait_for_it() {
        let (parent, workers) = pair(1, 1);
        let slot = parent.post(1, b"").unwrap().unwrap();
        thread::scope(|scope| {
            let kicks = parent.kicks();
            let wait = scope.spawn({
                let parent = &parent;
                move || parent.wait(slot, 1, kicks, soon())
            });
            parent.withdraw(slot, 1);
            parent.post(2, b"").unwrap().unwrap();
            assert_eq!(wait.join().unwrap(), Waited::Ready);
        });
        assert!(parent.take(slot, 1).unwrap().is_none());
        drop(workers);
    }

    #[test]
    fn a_region_that_a_worker_keeps_keeps_the_slot_from_being_used_again() {
        let (parent, workers) = pair(1, 1);
        let slot = parent.post(1, b"").unwrap().unwrap();
        let task = workers[0].claim(soon()).unwrap();
        let (_, mut region) = task.writer().alloc(100).unwrap();
        let (error, task) = task.complete(b"").unwrap_err();
        assert_eq!(error.code(), codes::REGION_KEPT);
        task.fail(b"kept");
        let Some(Reply::Failed(loan)) = parent.take(slot, 1).unwrap() else { panic!("not failed") };
        assert_eq!(loan.body(), b"kept");
        drop(loan);
        assert_eq!((parent.quarantined(), parent.post(2, b"").unwrap()), (1, None));
        region.fill(1);
        drop(region);
        assert_eq!((parent.quarantined(), parent.post(2, b"").unwrap()), (0, Some(slot)));

        let writer = workers[0].claim(soon()).unwrap().writer().clone();
        assert_eq!(parent.peek(slot), SlotView::Failed { ticket: 2, worker: 0 });
        parent.withdraw(slot, 2);
        assert_eq!(parent.quarantined(), 1);
        assert_eq!(parent.reclaim(0), []);
        assert_eq!(parent.quarantined(), 0);
        drop(writer);
        assert_eq!(parent.peek(slot), SlotView::Free);
    }

    #[test]
    fn what_a_dead_worker_had_waits_again_with_its_ticket() {
        let (parent, workers) = pair(2, 3);
        let slots = [1, 2, 3].map(|ticket| parent.post(ticket, b"again").unwrap().unwrap());
        let first = workers[0].claim(soon()).unwrap();
        let second = workers[1].claim(soon()).unwrap();
        first.set_progress(40);
        first.set_phase(2);
        let orphan = Orphan { slot: slots[0], ticket: 1, progress: 40, phase: 2 };
        assert_eq!(parent.orphans(0), [orphan]);
        assert_eq!(parent.reclaim(0), [orphan]);
        assert_eq!(parent.peek(slots[0]), SlotView::Waiting { ticket: 1 });
        assert_eq!(parent.reclaim(99), []);
        let again = workers[1].claim(soon()).unwrap();
        assert_eq!((again.ticket(), again.request()), (1, &b"again"[..]));
        let view = parent.peek(slots[0]);
        assert!(matches!(view, SlotView::Running { worker: 1, progress: 0, phase: 0, .. }), "{view:?}");
        // The one that was held for dead changes nothing any more.
        assert!(first.complete(b"late").is_ok());
        assert!(matches!(parent.peek(slots[0]), SlotView::Running { worker: 1, .. }));
        again.complete(b"").map_err(|(error, _)| error).unwrap();
        assert_eq!(done(&parent, slots[0], 1).body(), b"");

        parent.withdraw(slots[1], 2);
        assert_eq!(parent.quarantined(), 1);
        assert_eq!(parent.reclaim(1).len(), 1);
        assert_eq!((parent.quarantined(), parent.peek(slots[1])), (0, SlotView::Free));
        drop(second);
        assert_eq!(parent.peek(slots[1]), SlotView::Free);
    }

    #[test]
    fn a_reply_larger_than_the_slot_is_refused_with_both_sizes() {
        let (parent, workers) = pair(1, 1);
        assert_eq!(parent.post(1, &vec![0; 2 << 20]).unwrap_err().code(), codes::SLOT_FULL);
        parent.post(1, b"").unwrap().unwrap();
        let task = workers[0].claim(soon()).unwrap();
        let error = task.writer().alloc(2 << 20).unwrap_err();
        assert_eq!(error.code(), codes::SLOT_FULL);
        assert_eq!(error.place("needed"), Some("2097152 bytes"));
        assert_eq!(error.place("reserved"), Some("1048576 bytes"));
        assert!(error.hints()[0].contains(".max_batch_bytes("), "{error:?}");
        assert!(task.writer().alloc(usize::MAX).is_err());
        task.writer().alloc(1 << 20).unwrap();
        let (error, _) = task.complete(b"no room").unwrap_err();
        assert_eq!(error.code(), codes::SLOT_FULL);
    }

    #[test]
    fn replies_beyond_the_budget_are_refused_and_free_slots_give_their_pages_first() {
        let budgeted = SlotsConfig { budget_bytes: 6 << 20, slot_bytes: 16 << 20, ..config(1, 3) };
        let parent = Slots::new(budgeted).unwrap();
        let worker = SlotsWorker::open(parent.fd().try_clone_to_owned().unwrap(), 0).unwrap();
        let claim = |ticket| {
            let slot = parent.post(ticket, b"").unwrap().unwrap();
            (slot, worker.claim(soon()).unwrap())
        };
        let (_, first) = claim(1);
        first.writer().alloc(4 << 20).unwrap().1.fill(1);
        let (_, second) = claim(2);
        let error = second.writer().alloc(4 << 20).unwrap_err();
        assert_eq!(error.code(), codes::OVER_BUDGET);
        let expected = "error[P0204]: there is no memory for a reply\n  \
                        needed  4194304 bytes in this slot\n  \
                        others  4194304 bytes in 2 other slots\n  \
                        budget  6291456 bytes for all slots\n  \
                        fix: prefetch fewer batches, make batches smaller, or give the program more memory";
        assert_eq!(format!("{error:?}"), expected);
        first.fail(b"");
        drop(second);
        for (slot, ticket) in [(SlotId(0), 1), (SlotId(1), 2)] {
            parent.withdraw(slot, ticket);
        }
        let before = parent.committed_bytes();
        // The last one freed is the small one; it grows at the cost of the large one.
        let (_, third) = claim(3);
        third.writer().alloc(5 << 20).unwrap().1.fill(3);
        assert!(before >= 4 << 20 && parent.committed_bytes() <= 6 << 20, "{before} bytes before");
        let stat = std::fs::File::from(parent.fd().try_clone_to_owned().unwrap()).metadata().unwrap();
        let pages = std::os::unix::fs::MetadataExt::blocks(&stat) * 512;
        assert!(pages <= (6 << 20) + (64 << 10), "{pages} bytes of pages");
    }

    #[test]
    fn garbled_words_are_an_error_and_the_slot_is_not_used_again() {
        type Garble = fn(&layout::Slot);
        let garbles: [(&str, Garble); 7] = [
            ("its word", |slot| slot.word.store(0xf, Ordering::Relaxed)),
            ("its word", |slot| slot.word.store(1 << 17 | 4, Ordering::Relaxed)),
            ("its body", |slot| slot.notes.0.body_bytes.store(u64::MAX, Ordering::Relaxed)),
            ("its body", |slot| slot.notes.0.body_at.store(0, Ordering::Relaxed)),
            ("table", |slot| slot.notes.0.regions.store(u64::MAX / 3, Ordering::Relaxed)),
            ("its region", |slot| slot.notes.0.table_at.store(0, Ordering::Relaxed)),
            ("its region", |slot| slot.notes.0.request_bytes.store(1 << 19, Ordering::Relaxed)),
        ];
        for (index, (why, garble)) in garbles.into_iter().enumerate() {
            let (parent, workers) = pair(1, 1);
            let slot = parent.post(1, &[0xff; 64]).unwrap().unwrap();
            let task = workers[0].claim(soon()).unwrap();
            task.writer().alloc(10).unwrap();
            task.complete(b"body").map_err(|(error, _)| error).unwrap();
            garble(parent.0.shared.slot(slot.index()));
            assert_eq!(parent.wait(slot, 1, parent.kicks(), soon()), Waited::Ready);
            let error = parent.take(slot, 1).unwrap_err();
            assert_eq!(error.code(), codes::GARBLED, "{index}");
            assert!(error.reasons()[0].contains(why), "{index}: {error:?}");
            assert_eq!((parent.quarantined(), parent.post(2, b"").unwrap()), (1, None), "{index}");
        }
    }

    #[test]
    fn a_garbled_request_is_failed_and_never_read() {
        let (parent, workers) = pair(1, 1);
        let slot = parent.post(1, b"").unwrap().unwrap();
        parent.0.shared.notes(slot.index()).request_bytes.store(u64::MAX, Ordering::Relaxed);
        assert!(workers[0].claim(Instant::now()).is_none());
        assert_eq!(parent.peek(slot), SlotView::Failed { ticket: 1, worker: 0 });
    }

    #[test]
    fn what_cannot_be_is_refused_at_once() {
        let refused = |config| Slots::new(config).unwrap_err().code();
        assert_eq!(Slots::new(config(0, 1)).unwrap_err().hints().len(), 1);
        assert_eq!(refused(config(0, 1)), codes::SLOTS_CONFIG);
        assert_eq!(refused(config(1, 0)), codes::SLOTS_CONFIG);
        assert_eq!(refused(config(5000, 1)), codes::SLOTS_CONFIG);
        assert_eq!(refused(SlotsConfig { slot_bytes: usize::MAX, ..config(1, 2) }), codes::SLOTS_CONFIG);
        assert_eq!(refused(SlotsConfig { budget_bytes: u64::MAX, ..config(1, 2) }), codes::SLOTS_CONFIG);
        let (parent, _) = pair(1, 1);
        assert_eq!(parent.post(1 << 48, b"").unwrap_err().code(), codes::SLOTS_CONFIG);
        let open = |fd, worker| SlotsWorker::open(fd, worker).err().unwrap().code();
        assert_eq!(open(parent.fd().try_clone_to_owned().unwrap(), 1), codes::FOREIGN_DESCRIPTOR);
        let other = crate::memory::Memory::new(1 << 20).unwrap();
        assert_eq!(open(other.fd().try_clone_to_owned().unwrap(), 0), codes::FOREIGN_DESCRIPTOR);
        parent.0.shared.memory().view::<AtomicU32>(8).unwrap().store(77, Ordering::Relaxed);
        assert_eq!(open(parent.fd().try_clone_to_owned().unwrap(), 0), codes::FOREIGN_DESCRIPTOR);
    }
}
