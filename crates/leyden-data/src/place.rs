//! Where the arrays of a batch lie: the heap, or memory that a worker process shares with the trainer.
//!
//! Which of the two is known to the thread that works on a batch: a worker [writes](writing) a batch into its slot, the
//! trainer [reads](reading) it there. Collate functions need not know, as they need not know of the allocator.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use leyden_process::memory::Region;
use leyden_process::slots::{Loan, Writer};
use leyden_process::{Error, Result};

thread_local! {
    static WRITER: RefCell<Option<(Writer, Reply)>> = const { RefCell::new(None) };
    /// Why there was no room, where `Serialize` cannot say it.
    static REFUSAL: RefCell<Option<Error>> = const { RefCell::new(None) };
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

/// Which reply of this process a part belongs to: no two have the same.
pub(crate) type Reply = u64;

/// A part of a reply that is being written.
pub(crate) struct Part {
    pub(crate) reply: Reply,
    /// Its number in the reply.
    pub(crate) number: u32,
    /// Its bytes, which at first hold whatever was there before.
    pub(crate) region: Region,
}

struct Reader {
    loan: Loan,
    /// Whether arrays are copied to the heap, so that the slot is free again at once.
    copied: bool,
}

/// A part of a reply: from a slot, or to be copied out of one.
pub(crate) enum Found {
    Shared(Region),
    Copied(Region),
}

/// Runs `work` with new arrays in a slot.
pub(crate) fn writing<T>(writer: &Writer, work: impl FnOnce() -> T) -> T {
    static REPLY: AtomicU64 = AtomicU64::new(0);
    let reply = REPLY.fetch_add(1, Ordering::Relaxed);
    let _restore = Restore(&WRITER, WRITER.replace(Some((writer.clone(), reply))));
    work()
}

/// Runs `work` with new arrays on the heap, also while this thread is writing to a slot.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let _restore = Restore(&WRITER, WRITER.take());
    work()
}

/// Runs `work` with the parts of a reply to be found by number.
pub(crate) fn reading<T>(loan: Loan, copied: bool, work: impl FnOnce() -> T) -> T {
    let _restore = Restore(&READER, READER.replace(Some(Reader { loan, copied })));
    work()
}

/// Memory for an array in the slot that this thread is writing, if it is.
pub(crate) fn claim(bytes: usize) -> Result<Option<Part>> {
    WRITER.with_borrow(|writer| {
        let Some((writer, reply)) = writer else { return Ok(None) };
        let (number, region) = writer.alloc(bytes).inspect_err(|error| {
            REFUSAL.replace(Some(error.clone()));
        })?;
        Ok(Some(Part { reply: *reply, number, region }))
    })
}

/// Why this thread's last claim was refused; told once.
pub(crate) fn refusal() -> Option<Error> {
    REFUSAL.take()
}

/// The reply that this thread is writing.
pub(crate) fn reply() -> Option<Reply> {
    WRITER.with_borrow(|writer| writer.as_ref().map(|&(_, reply)| reply))
}

/// The part with this number of the reply that this thread is reading. Each can be had once.
pub(crate) fn find(number: u32) -> Option<Found> {
    READER.with_borrow(|reader| {
        let Reader { loan, copied } = reader.as_ref()?;
        let region = loan.take_region(usize::try_from(number).ok()?)?;
        Some(if *copied { Found::Copied(region) } else { Found::Shared(region) })
    })
}

/// Puts a thread's place back as it was, also when the work panics.
struct Restore<T: 'static>(&'static std::thread::LocalKey<RefCell<Option<T>>>, Option<T>);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.replace(self.1.take());
    }
}
