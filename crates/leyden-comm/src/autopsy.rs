//! How a rank died that nobody outside watches: one of torchrun, mpirun, or a script. Its parent takes its exit status and
//! tells nobody; but the kernel tells whoever holds a descriptor of the process (from Linux 6.15 on; before, only as long as
//! the parent has not taken it). So each rank holds those of some others, and tells all how one of them died.

use leyden_process::exit;
use leyden_process::supervise::Cause;
use leyden_process::tombstone::{self, State as Stone};
use leyden_process::watch::Watched;

use crate::world::World;

/// The other ranks' processes, as far as this one holds them.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    held: Vec<(usize, Watched)>,
    looked: bool,
}

impl Peers {
    /// Takes hold of the next ranks' processes, once all have come, if nobody else watches them.
    pub(crate) fn hold(&mut self, world: &World, own: usize) {
        if self.looked {
            return;
        }
        self.looked = true;
        if !world.is_unattended() {
            return;
        }
        let next = (1..world.size()).map(|step| (own + step) % world.size());
        for rank in next.take(MOST) {
            let Ok(process) = Watched::of(world.pid(rank)) else { continue };
            // It holds its word still, so its number was no other's when it was looked up.
            if matches!(tombstone::state(world.tombstone(rank)), Stone::Held(_)) {
                self.held.push((rank, process));
            }
        }
    }

    /// If this rank knows how that one ended, it tells all. False: not yet, or not at all.
    pub(crate) fn tell(&self, world: &World, rank: usize) -> bool {
        let held = self.held.iter().find(|(held, _)| *held == rank);
        let Some(cause) = held.and_then(|(_, process)| process.ended()) else { return false };
        let clean = cause == Cause::Exited(exit::OK.into());
        world.tell_end(rank, clean, &in_words(cause));
        true
    }
}

/// How a process ended that has no goodbye to say.
pub(crate) fn in_words(cause: Cause) -> String {
    match cause {
        Cause::Exited(code) => format!("exited with code {code}"),
        Cause::Unknown => "ended; how is not known".to_owned(),
        other => other.to_string(),
    }
}

/// How many processes a rank holds: each is a descriptor. Of a rank that dies, as many others know how.
const MOST: usize = 64;
