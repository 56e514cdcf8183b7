//! What brings to the other ranks what one rank writes.
//!
//! All that a rank waits for, compares and reads is in its [`World`]. Where that is memory that all ranks share, a write is
//! all there is to do. Where it is not, each rank has a world of its own, and a transport brings what a rank writes about
//! itself into the same places of the others' worlds, in the order in which it was written: an arrival after the bytes and
//! the record that belong to it. So waiting, comparing and failing are the same everywhere.

pub(crate) mod tcp;

use std::fmt;

use leyden_process::Error;
use leyden_process::supervise::evidence;

use crate::collective::Reach;
use crate::handshake;
use crate::record::Site;
use crate::world::{Futexes, State, World};

/// Brings what one rank writes to the others.
///
/// None of these waits for a rank that does not come: what cannot be brought now is brought later, and who waits for whom,
/// and how long, is known in one place (`watch.rs`). None of them fails: a transport that cannot go on says so in the
/// world, as a rank's end or as its failure.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// Puts the bytes of an arrival where those that [`Reach`] names read them, and then the arrival where all see it.
    fn arrive(&self, world: &World, arrival: &Arrival<'_>);

    /// A rank has written this about itself. It is for others if the rank is the one whom the transport serves: what it
    /// has itself brought from another is not.
    fn tell(&self, world: &World, rank: usize, word: Word<'_>);

    /// The world has failed: called once, before anybody sees it here.
    fn tell_failure(&self, error: &Error);

    /// What is known of how a rank does, without waiting; nothing if it is not there yet.
    fn look(&self, world: &World, rank: usize) -> Option<Look>;

    /// Whether all ranks read and write the same memory: a peer that arrives is seen at once, without any help of the
    /// processor that waits for it.
    fn shares_memory(&self) -> bool;
}

/// What a rank brings with an arrival.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) rank: usize,
    pub(crate) group: usize,
    /// The ranks of the group, in their order.
    pub(crate) members: &'a [usize],
    /// The collective, whose record is written.
    pub(crate) seq: u64,
    /// Which arrival.
    pub(crate) tick: u32,
    pub(crate) bytes: &'a [u8],
    pub(crate) reach: Reach,
}

/// What a rank says of itself outside of collectives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word<'a> {
    /// Where it calls something, under which number.
    Site(u32, &'a Site),
    /// How often it had come before, and what it is now.
    State(u32, State),
    /// In what it is (a site's number; 0 is nothing), since when, and how long that may take, both in ns.
    Phase(u32, u64, u64),
    /// What it waits for in a group, as the world keeps it. Said only by those who have waited for a while.
    Awaits(usize, u64),
    /// It begins anew in a group.
    Forget(usize),
}

/// What is known of a rank that does not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// "waiting in futex_wait", as it stands in a sentence that begins with "it is".
    pub(crate) words: String,
    /// It is stopped, or somebody is at it with a debugger.
    pub(crate) suspended: bool,
}

impl Look {
    /// At a process of this host.
    fn at(pid: i32) -> Self {
        let seen = evidence(pid);
        Self { words: seen.to_string(), suspended: seen.is_traced() || seen.is_stopped() }
    }
}

/// The ranks of one host, which share their world.
#[derive(Debug)]
pub(crate) struct SharedMemory;

impl Transport for SharedMemory {
    fn arrive(&self, world: &World, arrival: &Arrival<'_>) {
        let &Arrival { rank, group, tick, bytes, .. } = arrival;
        if !bytes.is_empty() {
            world.write_window(rank, group, tick, bytes);
        }
        show(world, rank, group, tick);
    }

    fn tell(&self, _: &World, _: usize, _: Word<'_>) {}

    fn tell_failure(&self, _: &Error) {}

    fn look(&self, world: &World, rank: usize) -> Option<Look> {
        let pid = world.pid(rank);
        (pid > 0).then(|| Look::at(pid))
    }

    fn shares_memory(&self) -> bool {
        true
    }
}

/// Writes an arrival, whose bytes and record are there, and wakes who waits for it.
fn show(world: &World, rank: usize, group: usize, tick: u32) {
    handshake::arrive(world.arrived(rank, group), world.sleepers(rank, group), tick, &Futexes);
}
