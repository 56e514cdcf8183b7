//! Numbers that lie where all ranks of a host reach them, and are reduced there, without a copy.
//!
//! One piece of memory without a name holds a part for each rank. Rank 0 makes it; the others open it through rank 0's
//! descriptor and see by a random mark that it is the one. Where one of them cannot (it is on another host, or may not look
//! into `/proc`), all have plain memory instead, and the numbers go the way of every other collective.

use std::fmt;
use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Weak};

use leyden_process::memory::{Memory, available_bytes};
use leyden_process::segment::Segment;
use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::codes::{BUCKET_FOREIGN, BUCKET_MEMORY};
use crate::collective::{BLOCK, Call, Slices};
use crate::element::{Element, Pairs, ReduceOp, finish, fold, reduce_two, widen};
use crate::world::World;

/// Numbers of this rank, in memory that the other ranks reach while all are in
/// [`all_reduce_bucket`](crate::Rank::all_reduce_bucket) (PyTorch: a bucket of `DistributedDataParallel`). At any other time
/// it is a slice like any other, and this rank's alone. See [`Rank::bucket`](crate::Rank::bucket).
///
/// Dropped, it is gone from this process; its memory is free once all ranks have dropped theirs, or have ended, however that
/// was.
pub struct Bucket<T> {
    place: Place<T>,
    len: usize,
    /// Whose it is: the world, and how often this rank had come to it before; and its number there.
    world: Weak<World>,
    times: u32,
    number: u16,
    label: String,
}

enum Place<T> {
    Shared(Segment),
    Private(Vec<T>),
}

impl<T: Element> Bucket<T> {
    pub(crate) fn new(mut call: Call<'_>, len: usize, number: u16, label: &str) -> Result<Self> {
        let place = match call.share(len, size_of::<T>())? {
            Some(segment) => Place::Shared(segment),
            None => Place::Private(vec![T::zeroed(); len]),
        };
        let rank = &*call.rank;
        let world = Arc::downgrade(&rank.world);
        Ok(Self { place, len, world, times: rank.times, number, label: label.to_owned() })
    }

    /// Whether all ranks reach it. If not, as in a world of one or over several hosts, it is reduced as any other numbers
    /// are.
    pub fn is_shared(&self) -> bool {
        matches!(self.place, Place::Shared(_))
    }

    /// # Errors
    /// `D0131` if it was made by another rank's handle.
    pub(crate) fn check(&self, world: &Arc<World>, times: u32) -> Result<()> {
        if std::ptr::eq(self.world.as_ptr(), Arc::as_ptr(world)) && self.times == times {
            return Ok(());
        }
        Err(Error::new(BUCKET_FOREIGN, "a bucket is of another world")
            .at("bucket", format_args!("{:?}", self.label))
            .hint("make it with `rank.bucket(..)` of the same `Rank` that reduces it"))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn reduce(&mut self, mut call: Call<'_>, op: ReduceOp) -> Result<()> {
        let result = match &mut self.place {
            Place::Shared(segment) => call.reduce_segment::<T>(segment, self.len, op),
            Place::Private(numbers) => call.reduce(numbers, op, None),
        };
        // Others may not have noticed yet, and still write to what they share with this rank. The world has failed, so that
        // nothing is reduced in here any more.
        if result.is_err() && self.is_shared() {
            self.place = Place::Private(self.to_vec());
        }
        result
    }
}

impl<T: Element> Deref for Bucket<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.place {
            Place::Shared(segment) => bytemuck::cast_slice(segment.own()),
            Place::Private(numbers) => numbers,
        }
    }
}

impl<T: Element> DerefMut for Bucket<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.place {
            Place::Shared(segment) => bytemuck::cast_slice_mut(segment.own_mut()),
            Place::Private(numbers) => numbers,
        }
    }
}

impl<T> fmt::Debug for Bucket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("label", &self.label)
            .field("len", &self.len)
            .field("is_shared", &matches!(self.place, Place::Shared(_)))
            .finish_non_exhaustive()
    }
}

/// Where rank 0's memory is, and what lies at its beginning.
#[derive(Serialize, Deserialize)]
struct Offer {
    pid: u32,
    fd: i32,
    mark: [u8; MARK],
}

impl Call<'_> {
    /// Makes memory with room for so many numbers of each rank, and gives this rank's part of it; nothing if not all can
    /// have it.
    ///
    /// # Errors
    /// `D0130`, on all ranks, if there is not so much.
    fn share(&mut self, len: usize, size: usize) -> Result<Option<Segment>> {
        let (own, ranks) = (self.rank.rank(), self.rank.world_size());
        let bytes = len.checked_mul(size);
        let stride = bytes.and_then(|bytes| {
            bytes.checked_next_multiple_of(if bytes < LARGE_PAGE { PAGE } else { LARGE_PAGE })
        });
        let whole = stride.and_then(|stride| stride.checked_mul(ranks));
        let (Some(bytes), Some(stride), Some(whole)) = (bytes, stride, whole) else {
            return Err(too_large(format_args!("{len} numbers of {size} bytes on each of {ranks} ranks")));
        };
        if len == 0 || ranks == 1 {
            self.meet()?;
            return Ok(None);
        }
        let mut made = None;
        let mine = (own == 0).then(|| {
            let (memory, offer) = offer(whole)?;
            made = Some(memory);
            Ok(postcard::to_allocvec(&offer)?)
        });
        let told = self.broadcast_bytes(mine, 0)??;
        let memory = if own == 0 { made } else { accept(&told, whole) };
        let mut missing = [u8::from(memory.is_none())];
        self.reduce(&mut missing, ReduceOp::Max, None)?;
        let Some(memory) = memory.filter(|_| missing == [0]) else { return Ok(None) };
        let place = own * stride;
        let mut segment = Segment::new(memory, place..place + bytes);
        if own == 0 {
            segment.own_mut()[..MARK.min(bytes)].fill(0);
        }
        // Each finds its own pages, those near its core, before others touch them.
        segment.populate(place..place + stride);
        self.meet()?;
        segment.populate(0..whole);
        Ok(Some(segment))
    }

    /// Each rank reduces a slice of all parts, in all parts.
    fn reduce_segment<T: Element>(&mut self, segment: &mut Segment, len: usize, op: ReduceOp) -> Result<()> {
        self.meet()?;
        let (own, ranks) = (self.rank.rank(), self.rank.world_size());
        let stride = segment.bytes() / ranks;
        let mine = Slices::of::<T>(len, ranks).range(own);
        if ranks == 2 {
            let place = mine.start * size_of::<T>();
            let theirs = (1 - own) * stride + place;
            reduce_two::<T>(op, Both { segment, place, theirs, count: mine.len() }, own == 0);
            return self.meet();
        }
        let mut partials = Vec::new();
        for start in mine.clone().step_by(BLOCK) {
            let count = BLOCK.min(mine.end - start);
            let (place, bytes) = (start * size_of::<T>(), count * size_of::<T>());
            partials.resize(count, T::Partial::default());
            for peer in 0..ranks {
                let all = (&mut partials[..], Part { segment, offset: peer * stride + place });
                if peer == 0 { widen::<T>(all) } else { fold::<T>(op, all) }
            }
            let results = &mut segment.own_mut()[place..place + bytes];
            finish::<T>(op, &partials, bytemuck::cast_slice_mut(results), ranks);
            for peer in (0..ranks).filter(|&peer| peer != own) {
                segment.copy_own(place, peer * stride + place, bytes);
            }
        }
        self.meet()
    }
}

/// Makes the memory, and says where it is.
fn offer(whole: usize) -> Result<(Memory, Offer)> {
    let available = available_bytes();
    if whole as u64 > available {
        return Err(too_large(format_args!("{whole} bytes for all ranks"))
            .at("available", format_args!("{available} bytes")));
    }
    let memory = Memory::new(whole)?;
    let mut mark = [0; MARK];
    getrandom::fill(&mut mark).map_err(|error| {
        Error::new(BUCKET_MEMORY, "a bucket cannot be marked as this world's").why(error.to_string())
    })?;
    memory.write(0, &mark);
    let fd = memory.fd().as_raw_fd();
    Ok((memory, Offer { pid: std::process::id(), fd, mark }))
}

/// Opens what rank 0 has made; nothing if it is not to be had here.
fn accept(told: &[u8], whole: usize) -> Option<Memory> {
    let Offer { pid, fd, mark } = postcard::from_bytes(told).ok()?;
    let path = format!("/proc/{pid}/fd/{fd}");
    // What another host's numbers lead to here may be anything: a pipe would not even let itself be opened.
    let target = fs::read_link(&path).ok()?;
    if !target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:leyden") {
        return None;
    }
    let file = File::options().read(true).write(true).open(path).ok()?;
    let memory = Memory::from_fd(OwnedFd::from(file)).ok().filter(|memory| memory.bytes() == whole)?;
    let mut found = [0; MARK];
    memory.read(0, &mut found);
    (found == mark).then_some(memory)
}

fn too_large(needed: fmt::Arguments<'_>) -> Error {
    Error::new(BUCKET_MEMORY, "there is not enough memory for a bucket")
        .at("needed", needed)
        .hint("use smaller buckets, fewer ranks on this host, or raise its memory limit")
}

/// Own numbers, each with the one at its place in another part, and results for both.
struct Both<'a> {
    segment: &'a mut Segment,
    place: usize,
    theirs: usize,
    count: usize,
}

impl<T: Element> Pairs<T, T> for Both<'_> {
    fn each(self, f: impl Fn(&mut T, T)) {
        self.segment.fold_both(self.place, self.theirs, self.count, f);
    }
}

/// Numbers from `offset` on.
struct Part<'a> {
    segment: &'a Segment,
    offset: usize,
}

impl<A, T: Element> Pairs<A, T> for (&mut [A], Part<'_>) {
    fn each(self, f: impl Fn(&mut A, T)) {
        self.1.segment.fold(self.1.offset, self.0, f);
    }
}

/// What a mark takes.
const MARK: usize = 16;
const PAGE: usize = 4096;
/// The size of large pages, on which a part of at least that size begins.
const LARGE_PAGE: usize = 2 << 20;
