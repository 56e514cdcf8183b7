//! One collective: how it meets the other ranks, and how its numbers get there.
//!
//! Whatever carries them, a collective is a row of arrivals. With each a rank puts up to a [`WINDOW`] of bytes where those
//! that [`Reach`] names can read it; it reads theirs once all have arrived, and until it arrives again.

use leyden_process::{Error, Result};

use crate::codes::OBJECT;
use crate::element::{Element, Pairs, ReduceOp, finish, fold, reduce_two, widen};
use crate::rank::{Members, Rank};
use crate::transport::Arrival;
use crate::watch::Waiter;
use crate::world::{WINDOW, World};

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
        let Rank { world, rank: own, times, limits, spins, groups, peers, .. } = &mut *self.rank;
        let Members { ranks, seq, tick, .. } = &mut groups[self.group];
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
            agreed: (!self.compared).then_some(self.agreed),
            spins: *spins,
            peers,
        };
        waiter.wait_for_all().map_err(|error| world.poison(&error))?;
        self.compared = true;
        peers.hold(world, *own);
        Ok(())
    }

    /// Whether all others announce the same now: a part of what [`bring`](Self::bring) does, for measuring it.
    pub(crate) fn agrees_with_all(&self) -> bool {
        let Rank { world, groups, rank: own, .. } = &*self.rank;
        let Members { ranks, seq, .. } = &groups[self.group];
        let others = ranks.iter().filter(|&peer| peer != own);
        others.fold(true, |agree, &peer| agree & (world.agreed(peer, self.group, *seq) == self.agreed))
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
        /// What all ranks reduce whole, in bytes, because that takes less than to meet a second time.
        const SMALL: usize = 16 << 10;
        // Of one rank's numbers each reduction makes themselves.
        if data.is_empty() || self.members().len() == 1 {
            return self.meet();
        }
        let mut partials = Vec::new();
        for window in data.chunks_mut(WINDOW / size_of::<T>()) {
            // With two ranks, as much crosses from one to the other either way.
            if root.is_none() && self.members().len() > 2 && size_of_val(window) > SMALL {
                self.reduce_by_slices(window, op, &mut partials)?;
                continue;
            }
            self.bring(bytemuck::cast_slice(window), root.map_or(Reach::All, Reach::Only))?;
            if root.is_none_or(|root| root == self.rank.rank) {
                self.fold_windows(window, 0, op, &mut partials);
            }
        }
        Ok(())
    }

    /// Each rank reduces a slice of the window, and all take it from there.
    fn reduce_by_slices<T: Element>(
        &mut self,
        window: &mut [T],
        op: ReduceOp,
        partials: &mut Vec<T::Partial>,
    ) -> Result<()> {
        let slices = Slices::of::<T>(window.len(), self.members().len());
        self.bring(bytemuck::cast_slice(window), Reach::Slices(slices.each * size_of::<T>()))?;
        let own = slices.range(self.place());
        self.fold_windows(&mut window[own.clone()], own.start * size_of::<T>(), op, partials);
        self.bring(bytemuck::cast_slice(&window[own]), Reach::All)?;
        for (place, &peer) in self.members().iter().enumerate().filter(|(_, peer)| **peer != self.rank.rank) {
            self.read(peer, 0, bytemuck::cast_slice_mut(&mut window[slices.range(place)]));
        }
        Ok(())
    }

    /// Makes of one's own elements, which all others have theirs of at `offset` of their windows, what `op` makes of all.
    fn fold_windows<T: Element>(
        &self,
        results: &mut [T],
        offset: usize,
        op: ReduceOp,
        partials: &mut Vec<T::Partial>,
    ) {
        let (world, own) = (&self.rank.world, self.rank.rank);
        let Members { ranks, tick, .. } = &self.rank.groups[self.group];
        let of = |peer, offset| Window { world, place: (peer, self.group, *tick), offset };
        if let [first, second] = ranks[..] {
            let other = of(if first == own { second } else { first }, offset);
            return reduce_two(op, (results, other), first == own);
        }
        for (block, results) in results.chunks_mut(BLOCK).enumerate() {
            let offset = offset + block * BLOCK * size_of::<T>();
            if partials.len() < results.len() {
                partials.resize(results.len(), T::Partial::default());
            }
            let partials = &mut partials[..results.len()];
            for (index, &peer) in ranks.iter().enumerate() {
                match (index, peer == own) {
                    (0, true) => widen::<T>((&mut *partials, &*results)),
                    (0, false) => widen::<T>((&mut *partials, of(peer, offset))),
                    (_, true) => fold::<T>(op, (&mut *partials, &*results)),
                    (_, false) => fold::<T>(op, (&mut *partials, of(peer, offset))),
                }
            }
            finish(op, partials, results, ranks.len());
        }
    }

    /// This rank's place among the members.
    fn place(&self) -> usize {
        let own = self.rank.rank;
        self.members().iter().position(|&member| member == own).expect("it is one of them")
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

/// How many elements are reduced at once: few enough to stay in the nearest cache.
pub(crate) const BLOCK: usize = 2048;

/// Elements, divided among the members of a group.
pub(crate) struct Slices {
    len: usize,
    pub(crate) each: usize,
}

impl Slices {
    /// Whole cache lines for each, so that no two write into one; the last ones may have less, or nothing.
    pub(crate) fn of<T: Element>(len: usize, members: usize) -> Self {
        Self { len, each: len.div_ceil(members).next_multiple_of(64 / size_of::<T>()) }
    }

    pub(crate) fn range(&self, place: usize) -> std::ops::Range<usize> {
        (place * self.each).min(self.len)..((place + 1) * self.each).min(self.len)
    }
}

/// Numbers in a rank's window, from `offset` on.
struct Window<'a> {
    world: &'a World,
    /// The rank, its group, its arrival.
    place: (usize, usize, u32),
    offset: usize,
}

impl<A, T: Element> Pairs<A, T> for (&mut [A], Window<'_>) {
    fn each(self, f: impl Fn(&mut A, T)) {
        self.1.world.fold_window(self.1.place, self.1.offset, self.0, f);
    }
}
