//! One collective: how it meets the other ranks, and how its numbers get there.
//!
//! Whatever carries them, a collective is a row of arrivals. With each a rank puts up to a [`WINDOW`] of bytes where those
//! that [`Reach`] names can read it; it reads theirs once all have arrived, and until it arrives again.

use leyden_process::{Error, Result};

use crate::codes::OBJECT;
use crate::element::{Element, ReduceOp, finish, fold, reduce_two};
use crate::rank::{Members, Rank};
use crate::transport::Arrival;
use crate::watch::Waiter;
use crate::world::WINDOW;

/// Who reads what a rank brings with an arrival. Shared memory shows everything to all; what crosses a network is what is
/// read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All members of the group, the whole window.
    All,
    /// One rank alone, the whole window.
    Only(usize),
    /// Each member a slice of this many bytes: the first member the first, and so on; what is left over is nobody's.
    Slices(usize),
}

/// A collective that has been announced.
pub(crate) struct Call<'a> {
    pub(crate) rank: &'a mut Rank,
    pub(crate) group: usize,
    pub(crate) agreed: [u64; 2],
    pub(crate) compared: bool,
}

impl Call<'_> {
    /// Arrives, with nothing, and waits for all.
    pub(crate) fn meet(&mut self) -> Result<()> {
        self.bring(&[], Reach::All)
    }

    /// Arrives, with these bytes for the others to see, and waits for all.
    fn bring(&mut self, bytes: &[u8], reach: Reach) -> Result<()> {
        let Rank { world, rank: own, times, limits, spins, groups, .. } = &mut *self.rank;
        let Members { ranks, seq, tick } = &mut groups[self.group];
        *tick = tick.wrapping_add(1);
        let (rank, group, seq, tick) = (*own, self.group, *seq, *tick);
        let arrival = Arrival { rank, group, members: ranks, seq, tick, bytes, reach };
        world.transport().arrive(world, &arrival);
        let waiter = Waiter {
            world,
            limits: *limits,
            rank: *own,
            times: *times,
            group: self.group,
            members: ranks,
            seq,
            tick,
            spins: *spins,
        };
        let mut met = Ok(());
        for &peer in ranks.iter().filter(|&&peer| peer != *own) {
            met = waiter.wait_for(peer);
            if met.is_ok() && !self.compared && world.agreed(peer, self.group, seq) != self.agreed {
                met = Err(waiter.disagreement());
            }
            if met.is_err() {
                break;
            }
        }
        self.compared = true;
        met.inspect_err(|error| world.poison(error))
    }

    fn members(&self) -> &[usize] {
        &self.rank.groups[self.group].ranks
    }

    fn read(&self, peer: usize, offset: usize, bytes: &mut [u8]) {
        let tick = self.rank.groups[self.group].tick;
        self.rank.world.read_window(peer, self.group, tick, offset, bytes);
    }

    /// Reduces `data` window by window; only on `root` if there is one.
    pub(crate) fn reduce<T: Element>(
        &mut self,
        data: &mut [T],
        op: ReduceOp,
        root: Option<usize>,
    ) -> Result<()> {
        /// How many elements are reduced at once: few enough to stay in the nearest cache.
        const BLOCK: usize = 2048;
        let each = WINDOW / size_of::<T>();
        let own = self.rank.rank;
        let ranks = self.members().len();
        let mut partials = vec![T::Partial::default(); BLOCK.min(data.len())];
        let mut block = vec![T::zeroed(); partials.len()];
        if data.is_empty() {
            return self.meet();
        }
        for window in data.chunks_mut(each) {
            self.bring(bytemuck::cast_slice(window), root.map_or(Reach::All, Reach::Only))?;
            if root.is_some_and(|root| root != own) {
                continue;
            }
            for (place, results) in window.chunks_mut(BLOCK).enumerate() {
                let (partials, block) = (&mut partials[..results.len()], &mut block[..results.len()]);
                if let [first, second] = self.rank.groups[self.group].ranks[..] {
                    let peer = if first == own { second } else { first };
                    self.read(peer, place * BLOCK * size_of::<T>(), bytemuck::cast_slice_mut(block));
                    reduce_two(op, results, block, first == own);
                    continue;
                }
                for (index, &peer) in self.rank.groups[self.group].ranks.iter().enumerate() {
                    let next: &[T] = if peer == own {
                        results
                    } else {
                        self.read(peer, place * BLOCK * size_of::<T>(), bytemuck::cast_slice_mut(block));
                        block
                    };
                    if index == 0 {
                        partials.iter_mut().zip(next).for_each(|(partial, next)| *partial = next.widen());
                    } else {
                        fold(op, partials, next);
                    }
                }
                finish(op, partials, results, ranks);
            }
        }
        Ok(())
    }

    pub(crate) fn broadcast(&mut self, bytes: &mut [u8], root: usize) -> Result<()> {
        let own = self.rank.rank;
        if bytes.is_empty() {
            return self.meet();
        }
        for window in bytes.chunks_mut(WINDOW) {
            self.bring(if own == root { window } else { &[] }, Reach::All)?;
            if own != root {
                self.read(root, 0, window);
            }
        }
        Ok(())
    }

    /// Bytes of which only the root knows how many, or why there are none.
    pub(crate) fn broadcast_bytes(
        &mut self,
        mine: Option<Result<Vec<u8>>>,
        root: usize,
    ) -> Result<Result<Vec<u8>>> {
        let (failed, mut bytes) = match mine {
            Some(Ok(bytes)) => (false, bytes),
            Some(Err(error)) => (true, error.to_wire()),
            None => (false, Vec::new()),
        };
        let mut head = [bytes.len() as u64, u64::from(failed)];
        self.broadcast(bytemuck::cast_slice_mut(&mut head), root)?;
        bytes.resize(head[0] as usize, 0);
        if !bytes.is_empty() {
            self.broadcast(&mut bytes, root)?;
        }
        if head[1] == 0 {
            return Ok(Ok(bytes));
        }
        let error = Error::from_wire(&bytes);
        Ok(Err(error.unwrap_or_else(|| Error::new(OBJECT, "an object cannot be sent to the other ranks"))))
    }

    /// The elements of all, on `root` if there is one; on the others nothing of worth.
    pub(crate) fn gather<T: Element>(&mut self, data: &[T], root: Option<usize>) -> Result<Vec<T>> {
        let members = self.members().to_vec();
        let mut all = vec![T::zeroed(); data.len() * members.len()];
        if data.is_empty() {
            self.meet()?;
            return Ok(all);
        }
        let each = WINDOW / size_of::<T>();
        for (place, window) in data.chunks(each).enumerate() {
            self.bring(bytemuck::cast_slice(window), root.map_or(Reach::All, Reach::Only))?;
            if root.is_some_and(|root| root != self.rank.rank) {
                continue;
            }
            for (index, &peer) in members.iter().enumerate() {
                let part = &mut all[index * data.len() + place * each..][..window.len()];
                if peer == self.rank.rank {
                    part.copy_from_slice(window);
                } else {
                    self.read(peer, 0, bytemuck::cast_slice_mut(part));
                }
            }
        }
        Ok(all)
    }
}
