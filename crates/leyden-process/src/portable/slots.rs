//! A task and its reply, as a worker and whoever waits for it see them.
//!
//! What a worker writes lies on its heap, goes through a pipe, and lies on the parent's heap then.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::control::{Control, Tag};
use super::memory::{Buffer, Region, available_bytes};
use crate::codes::{OVER_BUDGET, REGION_KEPT, SLOT_FULL};
use crate::error::{Error, Result};
use crate::{copies, sys};

/// A task that a worker is at.
pub struct Task {
    writer: Writer,
    ticket: u64,
    request: Arc<Vec<u8>>,
    progress: AtomicU64,
    phase: AtomicU8,
}

impl Task {
    /// What came from the parent, and is begun now. Together with its reply it may take `most` bytes.
    pub(super) fn new(posted: Posted, most: usize, control: &Control) -> Self {
        let Posted { ticket, request } = posted;
        let left = most.saturating_sub(request.len());
        let room = Mutex::new(Room { left, given: 0, regions: Vec::new() });
        let writer = Writer(Arc::new(Writing { control: control.clone(), room }));
        let task = Self { writer, ticket, request, progress: AtomicU64::new(0), phase: AtomicU8::new(0) };
        task.tell();
        task
    }

    /// What the parent posted.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// The number under which it was posted.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Notes how far it is, for the parent to know at any time, also after this process's death. Tells it if that is news,
    /// which takes some microseconds.
    pub fn set_progress(&self, progress: u64) {
        if self.progress.swap(progress, Ordering::Relaxed) != progress {
            self.tell();
        }
    }

    /// Notes what is being done; as [`set_progress`](Task::set_progress).
    pub fn set_phase(&self, phase: u8) {
        if self.phase.swap(phase, Ordering::Relaxed) != phase {
            self.tell();
        }
    }

    /// Before it happens, each time: after a death nobody can be asked.
    fn tell(&self) {
        let Self { ticket, progress, phase, .. } = self;
        let news = News {
            ticket: *ticket,
            progress: progress.load(Ordering::Relaxed),
            phase: phase.load(Ordering::Relaxed),
        };
        send(&self.writer.0.control, &[(Tag::Progress, &news.to_bytes())]);
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
    /// a clone of the [`Writer`] still exists; `P0205` if there is no room for the body.
    pub fn complete(mut self, body: &[u8]) -> std::result::Result<(), (Error, Self)> {
        if Arc::get_mut(&mut self.writer.0).is_none() {
            let error = Error::new(REGION_KEPT, "a worker keeps a part of the reply that it hands over")
                .at("task", self.ticket())
                .why("a region, or the writer, is still held: the consumer would read while it is written to")
                .hint("drop all regions and clones of the writer before the task is completed");
            return Err((error, self));
        }
        let fits = self.writer.0.room().take(body.len());
        if let Err(error) = fits {
            return Err((error, self));
        }
        let room = self.writer.0.room();
        let reply = with_ticket(self.ticket, body);
        let regions = room.regions.iter().map(|region| (Tag::Region, &region[..]));
        let frames: Vec<(Tag, &[u8])> = regions.chain([(Tag::Done, &reply[..])]).collect();
        send(&self.writer.0.control, &frames);
        drop(room);
        Ok(())
    }

    /// Hands over what went wrong.
    pub fn fail(self, body: &[u8]) {
        send(&self.writer.0.control, &[(Tag::Failed, &with_ticket(self.ticket, body))]);
    }
}

/// Sends frames to a parent that may be stopped for as long as it likes: when it ends, this process does.
fn send(control: &Control, frames: &[(Tag, &[u8])]) {
    copies::end_if_copied(|| "the code that a worker runs");
    let _ = control.send_all(frames, sys::deadline(std::time::Duration::MAX));
}

/// Gives out parts of a task's reply. Clones share it.
#[derive(Clone)]
pub struct Writer(Arc<Writing>);

struct Writing {
    control: Control,
    room: Mutex<Room>,
}

/// What of a reply was given out.
struct Room {
    /// Bytes that it may still take.
    left: usize,
    /// Bytes that were given out.
    given: usize,
    regions: Vec<Buffer>,
}

impl Writer {
    /// A new region of `bytes` bytes, and its number in the reply: 0, 1, 2, …
    ///
    /// # Errors
    ///
    /// `P0205` if the reply gets too large; `P0204` if the memory is not there.
    pub fn alloc(&self, bytes: usize) -> Result<(u32, Region)> {
        let mut room = self.0.room();
        let number = u32::try_from(room.regions.len())
            .map_err(|_| Error::new(SLOT_FULL, "a reply has more than 2^32 regions"))?;
        room.take(bytes)?;
        let buffer = Buffer::zeroed(bytes);
        let base = buffer.base();
        room.regions.push(buffer);
        drop(room);
        // SAFETY: the buffer stays where it is while `self.0`, the keeper, lives: buffers are only added. It was made for
        // this region alone, and is read when the reply is complete: when nobody but the task holds `self.0`.
        let region = unsafe { Region::new(base, bytes, self.0.clone()) };
        Ok((number, region))
    }
}

impl Writing {
    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn take(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.left {
            return Err(Error::new(SLOT_FULL, "a batch is larger than what is reserved for one")
                .at("needed", format!("{bytes} bytes more"))
                .at("reserved", format!("{} bytes are left of it", self.left))
                .hint("make batches smaller, or reserve more for each: `.max_batch_bytes(..)` of the loader, `slot_bytes` \
                       of a pool; what is not used costs nothing"));
        }
        let available = if bytes < WORTH_ASKING { u64::MAX } else { available_bytes() };
        // The parent will have a copy of all of it.
        let needed = (self.given as u64).saturating_add(2 * bytes as u64);
        if needed > available {
            return Err(Error::new(OVER_BUDGET, "there is no memory for a reply")
                .at("needed", format!("{needed} bytes, here and in the parent"))
                .at("available", format!("{available} bytes, by the machine and its memory cgroups"))
                .why("writing to more than that would get a process killed for it")
                .hint("prefetch fewer batches, make batches smaller, or give the program more memory"));
        }
        self.left -= bytes;
        self.given += bytes;
        Ok(())
    }
}

/// From this size on, the machine is asked whether it has the memory.
const WORTH_ASKING: usize = 1 << 20;

/// A task on its way to a worker.
#[derive(Serialize, Deserialize)]
pub(super) struct Posted {
    pub(super) ticket: u64,
    pub(super) request: Arc<Vec<u8>>,
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) ticket: u64,
    pub(super) progress: u64,
    pub(super) phase: u8,
}

impl News {
    fn to_bytes(self) -> [u8; 17] {
        let mut bytes = [0; 17];
        bytes[..8].copy_from_slice(&self.ticket.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.progress.to_le_bytes());
        bytes[16] = self.phase;
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (ticket, rest) = bytes.split_first_chunk()?;
        let (progress, rest) = rest.split_first_chunk()?;
        let news = Self {
            ticket: u64::from_le_bytes(*ticket),
            progress: u64::from_le_bytes(*progress),
            phase: *rest.first()?,
        };
        (rest.len() == 1).then_some(news)
    }
}

/// A reply's body; its ticket stands behind it.
fn with_ticket(ticket: u64, body: &[u8]) -> Vec<u8> {
    [body, &ticket.to_le_bytes()].concat()
}

/// Undoes [`with_ticket`].
pub(super) fn take_ticket(body: &mut Vec<u8>) -> Option<u64> {
    let (_, ticket) = body.split_last_chunk()?;
    let ticket = u64::from_le_bytes(*ticket);
    body.truncate(body.len() - 8);
    Some(ticket)
}

/// A reply. Clones share it.
#[derive(Clone, Debug)]
pub struct Loan(Arc<Lent>);

#[derive(Debug)]
struct Lent {
    reply: Reply,
    taken: Mutex<Vec<bool>>,
}

/// What a worker has made of a task.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    regions: Vec<Buffer>,
    counts: Arc<Counts>,
}

/// What there is of replies.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// How many are in use.
    pub(super) loaned: AtomicUsize,
    /// What all of them take.
    pub(super) bytes: AtomicUsize,
}

impl Reply {
    pub(super) fn new(body: Vec<u8>, regions: Vec<Buffer>, counts: &Arc<Counts>) -> Self {
        let reply = Self { body, regions, counts: counts.clone() };
        counts.bytes.fetch_add(reply.bytes(), Ordering::Relaxed);
        reply
    }

    fn bytes(&self) -> usize {
        self.body.len() + self.regions.iter().map(Buffer::len).sum::<usize>()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.counts.bytes.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

impl Loan {
    pub(super) fn new(reply: Reply) -> Self {
        let taken = Mutex::new(vec![false; reply.regions.len()]);
        reply.counts.loaned.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Lent { reply, taken }))
    }

    /// What the worker gave to [`complete`](Task::complete) or [`fail`](Task::fail).
    pub fn body(&self) -> &[u8] {
        &self.0.reply.body
    }

    /// How many regions the reply has.
    pub fn regions(&self) -> usize {
        self.0.reply.regions.len()
    }

    /// The region with this number; nothing if there is none, or if it was taken before. It keeps the reply.
    pub fn take_region(&self, number: usize) -> Option<Region> {
        let region = self.0.reply.regions.get(number)?;
        let taken = &mut self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)[number];
        if std::mem::replace(taken, true) {
            return None;
        }
        // SAFETY: the buffer lives as long as `self.0`, the keeper. Nobody else looks into it, because each is given out
        // once.
        Some(unsafe { Region::new(region.base(), region.len(), self.0.clone()) })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.reply.counts.loaned.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portable::control::Got;
    use std::time::Duration;

    fn task(most: usize) -> (Task, Control) {
        let (our_read, their_write) = std::io::pipe().unwrap();
        let (their_read, our_write) = std::io::pipe().unwrap();
        let ours = Control::new(our_read.into(), our_write.into()).unwrap();
        let theirs = Control::new(their_read.into(), their_write.into()).unwrap();
        (Task::new(Posted { ticket: 7, request: Arc::new(b"what".to_vec()) }, most, &theirs), ours)
    }

    fn next(control: &Control) -> Got {
        control.receive(sys::deadline(Duration::from_secs(10))).unwrap()
    }

    #[test]
    fn a_reply_arrives_with_its_regions_and_each_is_given_once() {
        let (task, parent) = task(1 << 20);
        for byte in [1, 2] {
            let (number, mut region) = task.writer().alloc(1000 * usize::from(byte)).unwrap();
            assert_eq!(number, u32::from(byte) - 1);
            region.fill(byte);
        }
        task.complete(b"body").map_err(|(error, _)| error).unwrap();
        let Got::Packet { tag: Tag::Progress, .. } = next(&parent) else { panic!() };
        let (Got::Region(first), Got::Region(second)) = (next(&parent), next(&parent)) else { panic!() };
        let Got::Packet { tag: Tag::Done, mut body } = next(&parent) else { panic!() };
        assert_eq!((take_ticket(&mut body), &body[..]), (Some(7), &b"body"[..]));
        let counts = Arc::default();
        let loan = Loan::new(Reply::new(body, vec![first, second], &counts));
        assert_eq!((loan.body(), loan.regions(), loan.take_region(2).is_none()), (&b"body"[..], 2, true));
        let region = loan.take_region(1).unwrap();
        assert!(loan.take_region(1).is_none());
        drop(loan);
        assert_eq!(region[..], [2; 2000]);
        assert_eq!((counts.loaned.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed)), (1, 3004));
        drop(region);
        assert_eq!((counts.loaned.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn what_is_noted_is_told_before_the_next_step_and_once() {
        let (task, parent) = task(100);
        task.set_progress(0);
        task.set_phase(1);
        task.set_progress(5);
        task.set_progress(5);
        task.fail(b"why");
        for (progress, phase) in [(0, 0), (0, 1), (5, 1)] {
            let Got::Packet { tag: Tag::Progress, body } = next(&parent) else { panic!() };
            assert_eq!(News::from_bytes(&body), Some(News { ticket: 7, progress, phase }));
        }
        let Got::Packet { tag: Tag::Failed, mut body } = next(&parent) else { panic!() };
        assert_eq!((take_ticket(&mut body), &body[..]), (Some(7), &b"why"[..]));
    }

    #[test]
    fn a_reply_that_is_too_large_or_kept_is_refused_and_can_fail() {
        let (task, _parent) = task(100);
        assert_eq!(task.writer().alloc(97).unwrap_err().code(), SLOT_FULL);
        let (_, region) = task.writer().alloc(90).unwrap();
        let (error, task) = task.complete(b"").unwrap_err();
        assert_eq!(error.code(), REGION_KEPT);
        drop(region);
        let (error, task) = task.complete(b"too long").unwrap_err();
        assert_eq!(error.code(), SLOT_FULL);
        task.complete(b"short").map_err(|(error, _)| error).unwrap();
    }
}
