//! The worker's side of slots: claiming tasks and writing replies.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::layout::Shared;
use super::{Futexes, read};
use crate::memory::{Memory, Region, foreign};
use crate::protocol::{self, State, Word};
use crate::{Error, Result, codes, copies, futex, tombstone};

/// The worker's side. Several threads may claim at once.
#[derive(Clone)]
pub struct SlotsWorker(Arc<Side>);

struct Side {
    shared: Shared,
    worker: u32,
}

impl SlotsWorker {
    /// Opens what the parent made, as the worker with this number.
    ///
    /// # Errors
    ///
    /// `P0207` if the descriptor is not that of slots with so many workers; `P0203` if it cannot be mapped.
    pub fn open(fd: OwnedFd, worker: usize) -> Result<Self> {
        let memory = Memory::from_fd(fd)?;
        memory.keep_from_copies();
        let shared = Shared::open(memory)?;
        if worker >= shared.layout().workers {
            return Err(foreign(&format!("worker {worker} is not one of its {}", shared.layout().workers)));
        }
        Ok(Self(Arc::new(Side { shared, worker: worker as u32 })))
    }

    /// Takes this worker's tombstone for as long as the process lives; see [`tombstone`].
    ///
    /// # Errors
    ///
    /// `P0210` if that fails, or if it was taken before.
    pub fn hold_tombstone(&self) -> Result<()> {
        tombstone::hold(self.0.clone(), |side: &Side| &side.shared.worker(side.worker as usize).tombstone)
    }

    /// The waiting task with the smallest ticket. Spins for some microseconds, then sleeps until a task is posted;
    /// nothing at the deadline, or once the parent has [closed](super::Slots::close) the slots.
    pub fn claim(&self, deadline: Instant) -> Option<Task> {
        let Side { shared, worker } = &*self.0;
        copies::end_if_copied(|| WORK);
        let posted = shared.posted();
        let claim = || protocol::claim(shared.layout().slots, |slot| &shared.slot(slot).word, *worker);
        let closed = || posted.closed.load(Ordering::Acquire) != 0;
        loop {
            let (slot, ticket) =
                protocol::claim_waiting(&posted.posted, closed, claim, &Futexes::until(deadline))?;
            if let Some(task) = self.begin(slot, ticket) {
                return Some(task);
            }
        }
    }

    /// Whether the parent has closed the slots: no further task comes.
    pub fn is_closed(&self) -> bool {
        self.0.shared.posted().closed.load(Ordering::Acquire) != 0
    }

    /// A claimed slot as a task. Fails it, without a word, if its request does not lie in the slot.
    fn begin(&self, slot: usize, ticket: u64) -> Option<Task> {
        let notes = self.0.shared.notes(slot);
        notes.claimed_at.store(u64::try_from(futex::now().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let request_bytes = notes.request_bytes.load(Ordering::Relaxed);
        let fits = self.0.shared.range(slot, 0, request_bytes).is_some();
        let task = Task {
            writer: Writer(Arc::new(Writing {
                side: self.0.clone(),
                slot,
                running: Word { ticket, worker: self.0.worker, state: State::Running },
                end: Mutex::new(End { at: if fits { request_bytes } else { 0 }, regions: Vec::new() }),
                kept: AtomicBool::new(false),
            })),
            request_bytes: if fits { request_bytes } else { 0 },
            open: true,
        };
        fits.then_some(task)
    }
}

/// A claimed task. Dropped without [`complete`](Task::complete) or [`fail`](Task::fail) it fails with an empty body.
pub struct Task {
    writer: Writer,
    request_bytes: u64,
    /// The parent was told nothing yet.
    open: bool,
}

impl Task {
    /// What the parent posted.
    pub fn request(&self) -> &[u8] {
        let Writing { side, slot, .. } = &*self.writer.0;
        // SAFETY: the request was published before the task was claimed, nobody writes to it while the task runs, and
        // regions begin behind it.
        unsafe { read(&side.shared, *slot, 0, self.request_bytes) }.unwrap_or_default()
    }

    /// The number under which it was posted.
    pub fn ticket(&self) -> u64 {
        self.writer.0.running.ticket
    }

    /// Notes how far it is, for the parent to read at any time, also after this process's death. One store.
    #[inline]
    pub fn set_progress(&self, progress: u64) {
        copies::end_if_copied(|| WORK);
        self.writer.0.side.shared.notes(self.writer.0.slot).progress.store(progress, Ordering::Relaxed);
    }

    /// Notes what is being done; as [`set_progress`](Task::set_progress).
    #[inline]
    pub fn set_phase(&self, phase: u8) {
        copies::end_if_copied(|| WORK);
        self.writer.0.side.shared.notes(self.writer.0.slot).phase.store(phase.into(), Ordering::Relaxed);
    }

    /// Whether the parent still wants the reply. If not, the task should fail soon.
    pub fn is_wanted(&self) -> bool {
        self.writer.0.side.shared.slot(self.writer.0.slot).unwanted.load(Ordering::Relaxed) == 0
    }

    /// Where to write the reply's regions.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Hands the reply over: all regions, in the order of their numbers, and `body` beside them.
    ///
    /// # Errors
    ///
    /// The task comes back with the error, so that it can fail with a body that says why. `P0209` if a [`Region`] or
    /// a clone of the [`Writer`] still exists; `P0204`, `P0205` if there is no room for the body.
    pub fn complete(mut self, body: &[u8]) -> std::result::Result<(), (Error, Self)> {
        copies::end_if_copied(|| WORK);
        if Arc::get_mut(&mut self.writer.0).is_none() {
            let error = Error::new(
                codes::REGION_KEPT,
                "a worker keeps a part of the reply that it hands over",
            )
            .at("task", self.ticket())
            .why("a region, or the writer, is still held: the consumer would read while it is written to")
            .hint("drop all regions and clones of the writer before the task is completed");
            return Err((error, self));
        }
        match self.writer.0.record(body) {
            Ok(()) => {
                self.open = false;
                self.writer.0.hand_over(State::Done);
                Ok(())
            }
            Err(error) => Err((error, self)),
        }
    }

    /// Hands over what went wrong. A body for which there is no room is left out. If a region is still held, the slot
    /// is not used again until it is dropped.
    pub fn fail(mut self, body: &[u8]) {
        self.end(body);
    }

    fn end(&mut self, body: &[u8]) {
        copies::end_if_copied(|| WORK);
        self.open = false;
        let alone = Arc::get_mut(&mut self.writer.0).is_some();
        let writing = &self.writer.0;
        writing.forget_regions();
        if writing.record(body).is_err() {
            writing.note_body(0, 0);
        }
        if alone {
            writing.hand_over(State::Failed);
        } else {
            // The last of the holders will say `Failed`; not before this task's own share is gone.
            writing.kept.store(true, Ordering::Release);
            writing.hand_over(State::Kept);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.open {
            self.end(&[]);
        }
    }
}

/// Gives out parts of a task's slot. Clones share the slot.
#[derive(Clone)]
pub struct Writer(Arc<Writing>);

/// A slot that this process writes to: there is one for each running task.
struct Writing {
    side: Arc<Side>,
    slot: usize,
    running: Word,
    end: Mutex<End>,
    kept: AtomicBool,
}

/// What of a slot is in use.
struct End {
    at: u64,
    regions: Vec<(u64, u64)>,
}

impl Writer {
    /// A new region of `bytes` bytes, and its number in the reply: 0, 1, 2, … Its contents are arbitrary.
    ///
    /// # Errors
    ///
    /// `P0205` if the slot is full; `P0204` if the memory is not there: by the budget of all slots, by the machine, or
    /// by a memory cgroup.
    pub fn alloc(&self, bytes: usize) -> Result<(u32, Region)> {
        copies::end_if_copied(|| WORK);
        let mut end = self.0.end.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.0.reserve(&mut end, bytes as u64)?;
        let number = u32::try_from(end.regions.len())
            .map_err(|_| Error::new(codes::SLOT_FULL, "a reply has more than 2^32 regions"))?;
        end.regions.push((at, bytes as u64));
        let (base, bytes) =
            self.0.side.shared.range(self.0.slot, at, bytes as u64).expect("it was reserved in the slot");
        // SAFETY: the range is mapped while `side` lives, which `self.0` keeps; it was reserved for this region
        // alone; and the slot is not handed over while `self.0` has another owner than its task.
        let region = unsafe { Region::new(base, bytes, self.0.clone()) };
        Ok((number, region))
    }
}

impl Writing {
    /// A range that nobody has been given yet.
    fn reserve(&self, end: &mut End, bytes: u64) -> Result<u64> {
        let at = end.at.next_multiple_of(ALIGN);
        let after = at.saturating_add(bytes);
        self.side.shared.commit(self.slot, self.side.worker, after)?;
        end.at = after;
        Ok(at)
    }

    /// Writes the table of regions and the body, and notes where they are.
    fn record(&self, body: &[u8]) -> Result<()> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let table: Vec<u8> =
            end.regions.iter().flat_map(|&(at, bytes)| [at, bytes]).flat_map(u64::to_ne_bytes).collect();
        let table_at = self.put(&mut end, &table)?;
        let body_at = self.put(&mut end, body)?;
        let notes = self.side.shared.notes(self.slot);
        notes.table_at.store(table_at, Ordering::Relaxed);
        notes.regions.store(end.regions.len() as u64, Ordering::Relaxed);
        self.note_body(body_at, body.len() as u64);
        Ok(())
    }

    fn note_body(&self, at: u64, bytes: u64) {
        let notes = self.side.shared.notes(self.slot);
        notes.body_at.store(at, Ordering::Relaxed);
        notes.body_bytes.store(bytes, Ordering::Relaxed);
    }

    /// A failure has no regions.
    fn forget_regions(&self) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).regions.clear();
        self.side.shared.notes(self.slot).regions.store(0, Ordering::Relaxed);
    }

    fn put(&self, end: &mut End, bytes: &[u8]) -> Result<u64> {
        let at = self.reserve(end, bytes.len() as u64)?;
        let (base, length) =
            self.side.shared.range(self.slot, at, bytes.len() as u64).expect("it was reserved in the slot");
        // SAFETY: the range is mapped, `length` bytes long, and was reserved for this copy alone.
        unsafe { base.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), length) };
        Ok(at)
    }

    fn hand_over(&self, to: State) {
        let slot = self.side.shared.slot(self.slot);
        // False if the parent holds this worker for dead: then the task is another's, and nothing is lost.
        protocol::finish(&slot.word, &slot.signal, self.running, to, &Futexes::WAKING);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Acquire) {
            let slot = self.side.shared.slot(self.slot);
            let kept = self.running.with(State::Kept);
            protocol::finish(&slot.word, &slot.signal, kept, State::Failed, &Futexes::WAKING);
        }
    }
}

/// What a copy of a worker comes back from, where nobody knows more.
const WORK: &str = "the code that a worker runs";

/// Of regions, in bytes: a cache line, and more than any vector instruction asks for.
pub(super) const ALIGN: u64 = 64;
