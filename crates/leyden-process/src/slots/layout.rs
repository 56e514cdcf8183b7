//! Where the slots' words and bytes lie in the shared memory, and how much of it may be used.
//!
//! ```text
//! head │ a line for each worker │ two lines for each slot │ …page │ slot 0's bytes │ slot 1's bytes │ …
//!                                          a slot's bytes: request │ regions … │ table of regions │ body
//! ```

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use super::SlotsConfig;
use crate::memory::{self, Memory, available_bytes, foreign};
use crate::protocol::{State, WORKERS, Word};
use crate::{Error, Result, codes};

/// The mapped memory of a set of slots, seen by parent or worker.
pub(super) struct Shared {
    memory: Memory,
    layout: Layout,
}

/// Who has what where; the same in all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) workers: usize,
    pub(super) slots: usize,
    /// Of one slot, a multiple of the page size.
    pub(super) slot_bytes: usize,
    budget_bytes: u64,
    slots_at: usize,
    areas_at: usize,
    total: usize,
    page: usize,
}

/// The first line: what the layout follows from. The second: what workers sleep on.
#[repr(C, align(128))]
pub(super) struct Head {
    magic: AtomicU64,
    workers: AtomicU64,
    slots: AtomicU64,
    slot_bytes: AtomicU64,
    budget_bytes: AtomicU64,
    shared: Line<Posted>,
}

/// What workers sleep on, and whether they should stop.
#[repr(C)]
pub(super) struct Posted {
    pub(super) posted: AtomicU32,
    pub(super) closed: AtomicU32,
}

/// A worker's line.
#[repr(C)]
pub(super) struct WorkerLine {
    pub(super) tombstone: AtomicU32,
}

/// A slot's lines: the words of the protocol, and what the present owner notes.
#[repr(C, align(128))]
pub(super) struct Slot {
    pub(super) word: AtomicU64,
    pub(super) signal: AtomicU32,
    /// The parent no longer wants what the worker is making.
    pub(super) unwanted: AtomicU32,
    pub(super) notes: Line<Notes>,
}

/// What the present owner of a slot notes for the other side, and for whoever looks at a corpse.
#[repr(C)]
pub(super) struct Notes {
    /// Bytes from the slot's beginning that have pages, or are about to.
    committed: AtomicU64,
    pub(super) request_bytes: AtomicU64,
    pub(super) table_at: AtomicU64,
    pub(super) regions: AtomicU64,
    pub(super) body_at: AtomicU64,
    pub(super) body_bytes: AtomicU64,
    /// By `CLOCK_MONOTONIC`, in nanoseconds; 0: not yet.
    pub(super) claimed_at: AtomicU64,
    pub(super) progress: AtomicU64,
    pub(super) phase: AtomicU32,
}

/// Alone in its cache lines: 128, because pairs of lines are fetched together.
#[repr(C, align(128))]
pub(super) struct Line<T>(pub(super) T);

// SAFETY: atomic integers in `repr(C)` structures.
unsafe impl memory::Words for Head {}
// SAFETY: as above.
unsafe impl memory::Words for Line<WorkerLine> {}
// SAFETY: as above.
unsafe impl memory::Words for Slot {}

impl Layout {
    /// # Errors
    ///
    /// `P0208` if a number is out of range.
    pub(super) fn new(config: &SlotsConfig) -> Result<Self> {
        let refused = |what: String| {
            Err(Error::new(codes::SLOTS_CONFIG, what).hint(
                "reserve less: fewer workers; of a loader also a lower `.max_batch_bytes(..)` or `.prefetch_factor(..)`",
            ))
        };
        if !(1..=WORKERS).contains(&config.workers) {
            return refused(format!("`workers` is {}: it must be 1 to {WORKERS}", config.workers));
        }
        if !(1..=MOST_SLOTS).contains(&config.slots) {
            return refused(format!("`slots` is {}: it must be 1 to {MOST_SLOTS}", config.slots));
        }
        let page = page_bytes();
        let slots_at = size_of::<Head>() + config.workers * size_of::<Line<WorkerLine>>();
        let areas_at = (slots_at + config.slots * size_of::<Slot>()).next_multiple_of(page);
        let slot_bytes = config.slot_bytes.max(1).checked_next_multiple_of(page);
        let total = slot_bytes
            .and_then(|bytes| bytes.checked_mul(config.slots)?.checked_add(areas_at))
            .filter(|&total| isize::try_from(total).is_ok());
        match (slot_bytes, total) {
            (Some(slot_bytes), Some(total)) => Ok(Self {
                workers: config.workers,
                slots: config.slots,
                slot_bytes,
                budget_bytes: config.budget_bytes,
                slots_at,
                areas_at,
                total,
                page,
            }),
            _ => refused(format!(
                "{} slots of {} bytes are more than there are addresses",
                config.slots, config.slot_bytes
            )),
        }
    }

    fn area_at(&self, slot: usize) -> usize {
        self.areas_at + slot * self.slot_bytes
    }
}

impl Shared {
    /// The parent's: new memory.
    pub(super) fn create(layout: Layout) -> Result<Self> {
        let shared = Self { memory: Memory::new(layout.total)?, layout };
        let head = shared.head();
        for (word, value) in [
            (&head.workers, layout.workers as u64),
            (&head.slots, layout.slots as u64),
            (&head.slot_bytes, layout.slot_bytes as u64),
            (&head.budget_bytes, layout.budget_bytes),
        ] {
            word.store(value, Ordering::Relaxed);
        }
        head.magic.store(MAGIC, Ordering::Release);
        Ok(shared)
    }

    /// A worker's: memory that the parent made.
    pub(super) fn open(memory: Memory) -> Result<Self> {
        let head = memory.view::<Head>(0).ok_or_else(|| foreign("it is too short for slots"))?;
        if head.magic.load(Ordering::Acquire) != MAGIC {
            return Err(foreign("it does not begin as slots do"));
        }
        let number = |word: &AtomicU64| usize::try_from(word.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let layout = Layout::new(&SlotsConfig {
            workers: number(&head.workers),
            slots: number(&head.slots),
            slot_bytes: number(&head.slot_bytes),
            budget_bytes: head.budget_bytes.load(Ordering::Relaxed),
        })
        .ok()
        .filter(|layout| layout.total == memory.bytes())
        .ok_or_else(|| foreign("its size is not what its head says"))?;
        Ok(Self { memory, layout })
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn head(&self) -> &Head {
        self.memory.view(0).expect("the memory is as long as its layout says")
    }

    pub(super) fn posted(&self) -> &Posted {
        &self.head().shared.0
    }

    /// # Panics
    ///
    /// If there is no such worker: callers have checked.
    pub(super) fn worker(&self, worker: usize) -> &WorkerLine {
        assert!(worker < self.layout.workers, "worker {worker} of {}", self.layout.workers);
        let offset = size_of::<Head>() + worker * size_of::<Line<WorkerLine>>();
        &self.memory.view::<Line<WorkerLine>>(offset).expect("the memory is as long as its layout says").0
    }

    /// # Panics
    ///
    /// If there is no such slot: callers have checked.
    pub(super) fn slot(&self, slot: usize) -> &Slot {
        assert!(slot < self.layout.slots, "slot {slot} of {}", self.layout.slots);
        let offset = self.layout.slots_at + slot * size_of::<Slot>();
        self.memory.view(offset).expect("the memory is as long as its layout says")
    }

    pub(super) fn notes(&self, slot: usize) -> &Notes {
        &self.slot(slot).notes.0
    }

    /// The address of a range of a slot; nothing if it does not lie in the slot.
    pub(super) fn range(&self, slot: usize, at: u64, bytes: u64) -> Option<(NonNull<u8>, usize)> {
        let (at, bytes) = (usize::try_from(at).ok()?, usize::try_from(bytes).ok()?);
        if at.checked_add(bytes)? > self.layout.slot_bytes {
            return None;
        }
        Some((self.memory.range(self.layout.area_at(slot) + at, bytes)?, bytes))
    }

    /// What all slots have committed together, in bytes.
    pub(super) fn committed_bytes(&self) -> u64 {
        (0..self.layout.slots)
            .map(|slot| self.notes(slot).committed.load(Ordering::SeqCst))
            .fold(0, u64::saturating_add)
    }

    /// Lets the owner of `slot` use its first `end` bytes: they get pages when they are written to, now or later.
    ///
    /// Free slots give pages back if the budget asks for it. There is no common counter that a death could leave
    /// wrong: each owner notes what its slot has, then looks at the sum, and takes its note back if that is too much.
    ///
    /// # Errors
    ///
    /// `P0205` if the slot is not so large; `P0204` if the memory is not there.
    pub(super) fn commit(&self, slot: usize, owner: u32, end: u64) -> Result<()> {
        let Layout { slot_bytes, budget_bytes, page, .. } = self.layout;
        if end > slot_bytes as u64 {
            return Err(Error::new(codes::SLOT_FULL, "a batch is larger than what is reserved for one")
                .at("needed", format!("{end} bytes"))
                .at("reserved", format!("{slot_bytes} bytes"))
                .hint("make batches smaller, or reserve more for each: `.max_batch_bytes(..)` of the loader, `slot_bytes` \
                       of a pool; that costs addresses, not memory"));
        }
        let committed = &self.notes(slot).committed;
        let (had, wanted) = (committed.load(Ordering::Relaxed), end.next_multiple_of(page as u64));
        if wanted <= had {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            committed.swap(wanted, Ordering::SeqCst);
            let excess = self.committed_bytes().saturating_sub(budget_bytes);
            if excess == 0 {
                return self.check_machine(slot, had, wanted);
            }
            committed.swap(had, Ordering::SeqCst);
            self.trim(owner, excess);
            // Another may have noted and taken back at the same time.
            thread::yield_now();
        }
        Err(self.over_budget(slot, wanted).at("budget", format!("{budget_bytes} bytes for all slots")))
    }

    /// The budget was fine when the slots were made; the machine's memory may have gone elsewhere since.
    fn check_machine(&self, slot: usize, had: u64, wanted: u64) -> Result<()> {
        let growth = wanted - had;
        if growth < WORTH_ASKING {
            return Ok(());
        }
        let available = available_bytes();
        if growth <= available {
            return Ok(());
        }
        self.notes(slot).committed.swap(had, Ordering::SeqCst);
        Err(self
            .over_budget(slot, wanted)
            .at("available", format!("{available} bytes, by the machine and its memory cgroups"))
            .why("writing to more than that would get a process killed for it"))
    }

    fn over_budget(&self, slot: usize, wanted: u64) -> Error {
        let others =
            self.committed_bytes().saturating_sub(self.notes(slot).committed.load(Ordering::Relaxed));
        Error::new(codes::OVER_BUDGET, "there is no memory for a reply")
            .at("needed", format!("{wanted} bytes in this slot"))
            .at("others", format!("{others} bytes in {} other slots", self.layout.slots - 1))
            .hint("prefetch fewer batches, make batches smaller, or give the program more memory")
    }

    /// Takes up to `excess` bytes of pages from free slots.
    fn trim(&self, owner: u32, excess: u64) {
        let mut left = excess;
        for slot in 0..self.layout.slots {
            if left == 0 {
                return;
            }
            let (word, committed) = (&self.slot(slot).word, &self.notes(slot).committed);
            let trimming = Word { ticket: 0, worker: owner, state: State::Trimming }.pack();
            if committed.load(Ordering::Relaxed) == 0
                || word.compare_exchange(Word::FREE, trimming, Ordering::AcqRel, Ordering::Relaxed).is_err()
            {
                continue;
            }
            let had = committed.load(Ordering::Relaxed).min(self.layout.slot_bytes as u64);
            let less = left.next_multiple_of(self.layout.page as u64).min(had);
            let at = self.layout.area_at(slot) + (had - less) as usize;
            if self.memory.punch(at, less as usize) {
                committed.swap(had - less, Ordering::SeqCst);
                left = left.saturating_sub(less);
            }
            let back = word.compare_exchange(trimming, Word::FREE, Ordering::AcqRel, Ordering::Relaxed);
            debug_assert!(back.is_ok(), "only its trimmer, or the parent after its death, ends a trimming");
        }
    }
}

/// The size of a page in bytes.
fn page_bytes() -> usize {
    // SAFETY: sysconf has no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
        .ok()
        .filter(|&page| page > 0)
        .unwrap_or(4096)
}

/// Claiming looks at each slot.
const MOST_SLOTS: usize = 4096;

/// How often a slot's growth is tried: others give back what they noted, and what free slots have.
const ATTEMPTS: usize = 8;

/// From this growth on, the machine is asked too: a page fault costs as much as a hundredth of asking.
const WORTH_ASKING: u64 = 1 << 20;

/// "LEYSLOT" and a version.
const MAGIC: u64 = u64::from_le_bytes(*b"LEYSLOT\x01");
