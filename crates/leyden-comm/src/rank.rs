//! A rank: one of the processes (or threads) of a world, and what it does together with the others.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use leyden_process::{Error, Result, contain, futex, tombstone};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::autopsy::Peers;
use crate::bucket::Bucket;
use crate::codes::{ARGUMENT, LEFT, OBJECT, RANK_ZERO_PANICKED, WORLD_SIZE};
use crate::collective::Call;
use crate::dump;
use crate::element::{Element, ReduceOp};
use crate::record::{Agreed, Op, Site, with_place};
use crate::watch::{Limits, lately, now};
use crate::world::{End, MOST_GROUPS, SITES, State, World};

/// One of the ranks of a world. What it does with others takes `&mut self`, and there is one of it: two threads cannot
/// mix their collectives, and code inside [`on_rank_zero`](Self::on_rank_zero) cannot call any.
///
/// A collective compares what all ranks are about to do before data moves. One that another rank does not join ends in an
/// error on every rank that waits: at once where it is certain that it will not (another collective, an end, a death),
/// after its budget where the rank is only silent. After a failure every further collective of the world gives it again.
///
/// # Example
///
/// ```
/// use leyden_comm::{ReduceOp, launch};
///
/// let sums = launch::threads(3, |rank| {
///     let mut gradients = [rank.rank() as f32, 1.0];
///     rank.all_reduce(&mut gradients, ReduceOp::Mean)?;
///     rank.barrier("epoch end")?;
///     Ok(gradients)
/// })?;
/// assert_eq!(sums, [[1.0, 1.0]; 3]);
/// # Ok::<(), leyden_comm::Error>(())
/// ```
///
/// Two threads cannot have it:
///
/// ```compile_fail
/// # fn f(rank: &leyden_comm::Rank) {
/// std::thread::scope(|scope| {
///     scope.spawn(|| rank.world_size());
/// });
/// # }
/// ```
pub struct Rank {
    pub(crate) world: Arc<World>,
    pub(crate) rank: usize,
    /// How often its process had been here before.
    pub(crate) times: u32,
    pub(crate) limits: Limits,
    pub(crate) spins: u32,
    pub(crate) groups: Vec<Members>,
    pub(crate) peers: Peers,
    sites: Sites,
    /// How many have been made.
    buckets: u16,
    /// Whether call sites are compared too, and all records kept at the end.
    detailed: bool,
    /// Where errors and warnings say that this rank's collectives were called.
    called_from: Option<&'static Location<'static>>,
    /// Not `Sync`: one thread at a time.
    alone: PhantomData<Cell<()>>,
}

/// Some of the ranks; see [`Rank::new_group`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group(u8);

impl Group {
    /// All ranks (PyTorch: `dist.group.WORLD`).
    pub const WORLD: Self = Self(0);
}

/// What [`Rank::on_rank_zero`] lends to its closure: that it runs on rank 0 alone. It has no collectives.
#[derive(Debug)]
pub struct RankZero(());

/// A group as this rank sees it.
pub(crate) struct Members {
    pub(crate) ranks: Vec<usize>,
    /// Whether this rank is one of them.
    pub(crate) ours: bool,
    /// Collectives begun, and arrivals made.
    pub(crate) seq: u64,
    pub(crate) tick: u32,
}

impl Rank {
    /// Takes a rank's place in the world. In a process of its own, the process's death is noticed from here on.
    pub(crate) fn enter(world: Arc<World>, rank: usize) -> Result<Self> {
        let joined = Self::join(world, rank)?;
        if !joined.world.transport().shares_memory() {
            return Ok(joined);
        }
        tombstone::hold(Arc::clone(&joined.world), move |world| world.tombstone(rank))?;
        Ok(joined)
    }

    /// Takes the place that this process had and has left, as the `times + 1`st time.
    pub(crate) fn enter_again(world: Arc<World>, rank: usize, times: u32) -> Result<Self> {
        if world.state_in(rank, times - 1) == State::Present {
            return Err(taken(&world, rank).hint("let go of the `Rank` that there is before the next one"));
        }
        // What it has waited for, and where it was, is over; its collectives are counted on.
        world.set_phase(rank, 0, 0, 0);
        if !world.is_calm() {
            match world.poisoned() {
                // Over a network nobody knows whether all have come back.
                Some(error) if !world.transport().shares_memory() => return Err(error),
                _ => renew(&world, rank, times)?,
            }
        }
        let (mut tick, mut seq) = (world.arrived(rank, 0).load(Ordering::Acquire), 0);
        if let Some(last) = world.last_record(rank, 0) {
            seq = last.seq;
        }
        if world.renewed().load(Ordering::Acquire) == times {
            (tick, seq) = world.renewed_at();
            world.arrived(rank, 0).store(tick, Ordering::Release);
        }
        let mut again = Self::new(world, rank, times);
        (again.groups[0].tick, again.groups[0].seq) = (tick, seq);
        again.world.set_state(rank, times, State::Present);
        Ok(again)
    }

    /// The same as one of several ranks in this process.
    pub(crate) fn join(world: Arc<World>, rank: usize) -> Result<Self> {
        let size = world.size();
        if rank >= size {
            return Err(Error::new(WORLD_SIZE, "a rank is not below the number of ranks")
                .at("rank", rank)
                .at("ranks", size));
        }
        if !world.take_place(rank, std::process::id()) {
            return Err(taken(&world, rank).hint("give each process a rank of its own"));
        }
        Ok(Self::new(world, rank, 0))
    }

    fn new(world: Arc<World>, rank: usize, times: u32) -> Self {
        let size = world.size();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let groups = vec![Members { ranks: (0..size).collect(), ours: true, seq: 0, tick: 0 }];
        // A spin that is longer than a peer needs on a core of its own only keeps it from its core; and so it does the thread
        // that takes what comes over a network.
        let spins = if size <= cores && world.transport().shares_memory() { 20_000 } else { 50 };
        let sites = Sites::default();
        let limits = Limits::default();
        let detailed = world.is_detailed();
        let peers = Peers::default();
        Self {
            world,
            rank,
            times,
            limits,
            spins,
            groups,
            peers,
            sites,
            buckets: 0,
            detailed,
            called_from: None,
            alone: PhantomData,
        }
    }

    /// This rank's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.world.size()
    }

    /// How long collectives wait for a rank that lives and does not come: a line on stderr after `warn` (5 s), an error
    /// after `budget` (60 s, and what a rank has announced by [`long_op`](Self::long_op)). The line comes again every six
    /// times `warn` (30 s), with what is left of the budget; one of those who wait says it for all.
    pub fn set_limits(&mut self, warn: Duration, budget: Duration) {
        self.limits = Limits::new(warn, budget);
    }

    /// From here on, errors and warnings name this place instead of the lines that call collectives: for a library whose
    /// collectives are its own, and whose user knows the line that called it.
    pub fn called_from(&mut self, place: &'static Location<'static>) {
        self.called_from = Some(place);
    }

    /// Waits until all ranks are here (PyTorch: `dist.barrier()`).
    ///
    /// # Errors
    /// As every collective: `D0103` if ranks disagree, `D0104` if one has left, `D0105` if one died, `D0106` if ranks wait
    /// for each other, `D0107` if one does not come, `D0110` if nobody watches any more; what the world failed of before.
    #[track_caller]
    pub fn barrier(&mut self, label: &str) -> Result<()> {
        self.barrier_in(Group::WORLD, label)
    }

    /// The same for the ranks of a group.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` if this rank is not in the group. So for all that end in `_in`.
    #[track_caller]
    pub fn barrier_in(&mut self, group: Group, label: &str) -> Result<()> {
        let mut call = self.begin(group, Agreed::of(Op::Barrier), label)?;
        call.meet()
    }

    /// Makes of each element what `op` makes of those of all ranks, on all ranks (PyTorch: `dist.all_reduce`). Which
    /// arithmetic: see [`element`](crate::element).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` for a mean of integers. Ranks with other lengths disagree (`D0103`).
    #[track_caller]
    pub fn all_reduce<T: Element>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.all_reduce_in(Group::WORLD, data, op, "")
    }

    /// The same for the ranks of a group, with a label that errors name (a bucket, a metric).
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce) and [`barrier_in`](Self::barrier_in).
    #[track_caller]
    pub fn all_reduce_in<T: Element>(
        &mut self,
        group: Group,
        data: &mut [T],
        op: ReduceOp,
        label: &str,
    ) -> Result<()> {
        check_mean::<T>(op)?;
        let mut call = self.begin(group, agreed::<T>(Op::AllReduce, data.len(), Some(op), 0), label)?;
        call.reduce(data, op, None)
    }

    /// Makes room for `len` numbers, zeros at first, that [`all_reduce_bucket`](Self::all_reduce_bucket) reduces without copies
    /// (PyTorch: what `DistributedDataParallel` does with `gradient_as_bucket_view`). All ranks make their buckets in the same
    /// order, of the same length. Errors name its label.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0130` if there is not enough memory for those of all ranks of this host.
    ///
    /// ```
    /// use leyden_comm::{ReduceOp, launch};
    ///
    /// let means = launch::threads(2, |rank| {
    ///     let mut gradients = rank.bucket::<f32>(1000, "layer 1")?;
    ///     gradients.fill(rank.rank() as f32);
    ///     rank.all_reduce_bucket(&mut gradients, ReduceOp::Mean)?;
    ///     Ok(gradients[999])
    /// })?;
    /// assert_eq!(means, [0.5; 2]);
    /// # Ok::<(), leyden_comm::Error>(())
    /// ```
    #[track_caller]
    pub fn bucket<T: Element>(&mut self, len: usize, label: &str) -> Result<Bucket<T>> {
        let number = self.buckets;
        self.buckets = number.wrapping_add(1);
        let call =
            self.begin(Group::WORLD, agreed::<T>(Op::Bucket, len, None, usize::from(number)), label)?;
        Bucket::new(call, len, number, label)
    }

    /// Does with a bucket what [`all_reduce`](Self::all_reduce) does with a slice: the same bits, several times as fast where
    /// it is large. After an error the numbers in it are those of before, those of after, or some of both.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `D0131` if the bucket is of another world. Ranks with another bucket disagree
    /// (`D0103`).
    #[track_caller]
    pub fn all_reduce_bucket<T: Element>(&mut self, bucket: &mut Bucket<T>, op: ReduceOp) -> Result<()> {
        check_mean::<T>(op)?;
        bucket.check(&self.world, self.times)?;
        let agreed = agreed::<T>(Op::AllReduceBucket, bucket.len(), Some(op), usize::from(bucket.number()));
        let call = self.begin(Group::WORLD, agreed, bucket.label())?;
        bucket.reduce(call, op)
    }

    /// The same, but the result is on `root` alone; the others keep what they had (PyTorch: `dist.reduce`).
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `D0108` if there is no such rank.
    #[track_caller]
    pub fn reduce<T: Element>(&mut self, data: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        check_mean::<T>(op)?;
        self.check_root(root)?;
        let mut call = self.begin(Group::WORLD, agreed::<T>(Op::Reduce, data.len(), Some(op), root), "")?;
        call.reduce(data, op, Some(root))
    }

    /// Gives all ranks the elements of `root` (PyTorch: `dist.broadcast`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` if there is no such rank.
    #[track_caller]
    pub fn broadcast<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.broadcast_in(Group::WORLD, data, root, "")
    }

    /// The same for the ranks of a group, with a label that errors name. `root` is a rank of the world.
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast) and [`barrier_in`](Self::barrier_in).
    #[track_caller]
    pub fn broadcast_in<T: Element>(
        &mut self,
        group: Group,
        data: &mut [T],
        root: usize,
        label: &str,
    ) -> Result<()> {
        self.check_root(root)?;
        let mut call = self.begin(group, agreed::<T>(Op::Broadcast, data.len(), None, root), label)?;
        call.broadcast(bytemuck::cast_slice_mut(data), root)
    }

    /// The elements of all ranks, those of rank 0 first (PyTorch: `dist.all_gather`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier).
    #[track_caller]
    pub fn all_gather<T: Element>(&mut self, data: &[T]) -> Result<Vec<T>> {
        self.all_gather_in(Group::WORLD, data, "")
    }

    /// The same for the ranks of a group, in their order, with a label that errors name.
    ///
    /// # Errors
    /// As [`barrier_in`](Self::barrier_in).
    #[track_caller]
    pub fn all_gather_in<T: Element>(&mut self, group: Group, data: &[T], label: &str) -> Result<Vec<T>> {
        let mut call = self.begin(group, agreed::<T>(Op::AllGather, data.len(), None, 0), label)?;
        call.gather(data, None)
    }

    /// The same on `root` alone; the others get nothing (PyTorch: `dist.gather`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` if there is no such rank.
    #[track_caller]
    pub fn gather<T: Element>(&mut self, data: &[T], root: usize) -> Result<Option<Vec<T>>> {
        self.check_root(root)?;
        let mut call = self.begin(Group::WORLD, agreed::<T>(Op::Gather, data.len(), None, root), "")?;
        let all = call.gather(data, Some(root))?;
        Ok((self.rank == root).then_some(all))
    }

    /// Each rank's part of what `root` has: as many elements as `part` has room for, in the order of ranks (PyTorch:
    /// `dist.scatter`). `data` is looked at on `root` alone.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` if there is no such rank, or `root` has not as many elements as all take.
    #[track_caller]
    pub fn scatter<T: Element>(&mut self, data: &[T], part: &mut [T], root: usize) -> Result<()> {
        self.check_root(root)?;
        let whole = part.len() * self.world_size();
        if self.rank == root && data.len() != whole {
            return Err(lengths("scatter", data.len(), whole));
        }
        let mut all = vec![T::zeroed(); whole];
        if self.rank == root {
            all.copy_from_slice(data);
        }
        let mut call = self.begin(Group::WORLD, agreed::<T>(Op::Scatter, part.len(), None, root), "")?;
        call.broadcast(bytemuck::cast_slice_mut(&mut all), root)?;
        part.copy_from_slice(&all[self.rank * part.len()..][..part.len()]);
        Ok(())
    }

    /// Reduces, and keeps this rank's part of the result, in the order of ranks (PyTorch: `dist.reduce_scatter`).
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `D0108` if `data` has not as many elements as all parts together.
    #[track_caller]
    pub fn reduce_scatter<T: Element>(&mut self, data: &[T], part: &mut [T], op: ReduceOp) -> Result<()> {
        check_mean::<T>(op)?;
        let whole = part.len() * self.world_size();
        if data.len() != whole {
            return Err(lengths("reduce_scatter", data.len(), whole));
        }
        let mut all = data.to_vec();
        let mut call =
            self.begin(Group::WORLD, agreed::<T>(Op::ReduceScatter, part.len(), Some(op), 0), "")?;
        call.reduce(&mut all, op, None)?;
        part.copy_from_slice(&all[self.rank * part.len()..][..part.len()]);
        Ok(())
    }

    /// Gives all ranks what `root` has (PyTorch: `dist.broadcast_object_list`). The value of the others is not looked at.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0109`, on all ranks, if it cannot be serialised or read back; `D0108` if there is
    /// no such rank.
    #[track_caller]
    pub fn broadcast_object<T: Serialize + DeserializeOwned>(&mut self, value: T, root: usize) -> Result<T> {
        self.check_root(root)?;
        let mine = (self.rank == root).then(|| serialise(&value));
        let mut call =
            self.begin(Group::WORLD, Agreed { root: root as u16, ..Agreed::of(Op::BroadcastObject) }, "")?;
        let bytes = call.broadcast_bytes(mine, root)?;
        if self.rank == root {
            return Ok(value);
        }
        read(&bytes?)
    }

    /// What each rank has, in their order, on all ranks (PyTorch: `dist.all_gather_object`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0109`, on all ranks, if one cannot be serialised or read back.
    #[track_caller]
    pub fn all_gather_object<T: Serialize + DeserializeOwned>(
        &mut self,
        value: &T,
        label: &str,
    ) -> Result<Vec<T>> {
        let (failed, bytes) = match serialise(value) {
            Ok(bytes) => (false, bytes),
            Err(error) => (true, error.at_if_absent("rank", self.rank).to_wire()),
        };
        let mut call = self.begin(Group::WORLD, Agreed::of(Op::AllGatherObject), label)?;
        let sizes: Vec<i64> = call.gather(&[bytes.len() as i64, i64::from(failed)], None)?;
        let longest = sizes.chunks_exact(2).map(|size| size[0] as usize).max().unwrap_or(0);
        let mut padded = bytes;
        padded.resize(longest, 0);
        let all = call.gather(&padded, None)?;
        let each = |rank: usize| &all[rank * longest..][..sizes[2 * rank] as usize];
        if let Some(rank) = (0..self.world_size()).find(|rank| sizes[2 * rank + 1] != 0) {
            let error = Error::from_wire(each(rank));
            return Err(
                error.unwrap_or_else(|| Error::new(OBJECT, "an object cannot be sent to the other ranks"))
            );
        }
        (0..self.world_size()).map(|rank| read(each(rank))).collect()
    }

    /// Whether any rank says so (a stop, a skip, the end of its data): flags may differ, and are put together.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier).
    #[track_caller]
    pub fn agree_any(&mut self, flag: bool, label: &str) -> Result<bool> {
        let mut call = self.begin(Group::WORLD, Agreed::of(Op::Agree), label)?;
        let mut flag = [u8::from(flag)];
        call.reduce(&mut flag, ReduceOp::Max, None)?;
        Ok(flag[0] != 0)
    }

    /// Runs `f` on rank 0 while the others wait, and gives its value, or its error, to all (Lightning: `rank_zero_only`
    /// and a barrier). No collective can be called in it: it does not compile. It may take 30 minutes.
    ///
    /// # Errors
    /// What `f` gives, on every rank; `D0111` if it panics; as [`barrier`](Self::barrier).
    ///
    /// ```compile_fail
    /// # fn f(rank: &mut leyden_comm::Rank) -> leyden_comm::Result<()> {
    /// rank.on_rank_zero(|_| rank.barrier("inside"))
    /// # }
    /// ```
    #[track_caller]
    pub fn on_rank_zero<T: Serialize + DeserializeOwned>(
        &mut self,
        f: impl FnOnce(&RankZero) -> Result<T>,
    ) -> Result<T> {
        let site = Location::caller();
        if self.rank != 0 {
            let mut call = self.begin_at(Group::WORLD, Agreed::of(Op::OnRankZero), "", site)?;
            let bytes = call.broadcast_bytes(None, 0)??;
            return match read::<(Option<T>, Vec<u8>)>(&bytes)? {
                (Some(value), _) => Ok(value),
                (None, error) => Err(Error::from_wire(&error)
                    .unwrap_or_else(|| Error::new(OBJECT, "rank 0's error cannot be read"))
                    .at_if_absent("rank", 0)),
            };
        }
        let number = self.site(site, "on_rank_zero");
        let result = self.in_phase(number, RANK_ZERO, || {
            contain(|| f(&RankZero(()))).unwrap_or_else(|panic| {
                Err(panic.explain(Error::new(RANK_ZERO_PANICKED, "code that rank 0 alone runs panicked")))
            })
        });
        let message = match &result {
            Ok(value) => serialise(&(Some(value), Vec::<u8>::new())),
            Err(error) => serialise(&(None::<&T>, error.to_wire())),
        };
        let mut call = self.begin_at(Group::WORLD, Agreed::of(Op::OnRankZero), "", site)?;
        let sent = call.broadcast_bytes(Some(message), 0)?;
        result.and_then(|value| sent.map(|_| value))
    }

    /// Announces that what `f` does takes up to `budget`: the others wait that long, and say what for.
    #[track_caller]
    pub fn long_op<T>(&mut self, name: &str, budget: Duration, f: impl FnOnce() -> T) -> T {
        let number = self.site(Location::caller(), name);
        self.in_phase(number, budget, f)
    }

    /// Says what this rank does from now on, until the next phase or the end of a [`long_op`](Self::long_op): errors and
    /// warnings of those that wait for it name it, and since when. It changes no limit, and costs less than a microsecond: say
    /// it as often as it helps whoever reads (`"validation"`, `"checkpoint"`).
    ///
    /// ```
    /// # leyden_comm::launch::threads(2, |rank| {
    /// rank.phase("validation");
    /// rank.barrier("epoch end")
    /// # })?;
    /// # Ok::<(), leyden_comm::Error>(())
    /// ```
    #[track_caller]
    pub fn phase(&mut self, name: &str) {
        let number = self.site(Location::caller(), name);
        self.world.set_phase(self.rank, number, now(), 0);
    }

    /// A group of some ranks, in the order of their numbers (PyTorch: `dist.new_group`). All ranks of the world call it,
    /// with the same ranks.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` if `ranks` is empty, has a rank twice or one that is none, or if there are
    /// too many groups.
    #[track_caller]
    pub fn new_group(&mut self, ranks: &[usize]) -> Result<Group> {
        let mut members = ranks.to_vec();
        members.sort_unstable();
        members.dedup();
        let number = self.groups.len();
        let refuse = |why: String| {
            Error::new(ARGUMENT, "a group cannot be made").at("ranks", format_args!("{ranks:?}")).why(why)
        };
        if members.is_empty()
            || members.len() != ranks.len()
            || members.iter().any(|&rank| rank >= self.world_size())
        {
            return Err(refuse(format!(
                "it needs different ranks below {}, at least one",
                self.world_size()
            )));
        }
        if number >= MOST_GROUPS {
            return Err(refuse(format!("there are {MOST_GROUPS} groups already, the world among them")));
        }
        let hash = members.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &rank| {
            (hash ^ rank as u64).wrapping_mul(0x100_0000_01b3)
        });
        if self.times > 0 {
            self.world.forget_group(self.rank, number);
        }
        let mut call = self.begin(Group::WORLD, Agreed { count: hash, ..Agreed::of(Op::NewGroup) }, "")?;
        call.meet()?;
        // All write the same.
        self.world.set_members(number, &members);
        let ours = members.contains(&self.rank);
        self.groups.push(Members { ranks: members, ours, seq: 0, tick: 0 });
        Ok(Group(number as u8))
    }

    /// What this rank's code has failed of is the whole world's failure: all others end what they do together with this
    /// error, which names this rank. Gives it, with its place.
    ///
    /// The first failure counts. Once all ranks have let go of their [`Rank`], they may join anew.
    pub fn fail(&self, error: Error) -> Error {
        self.world.poison(&error.at_if_absent("rank", self.rank))
    }

    /// The last one to leave keeps all records; a world that has failed has kept them then.
    fn keep_records_if_last(&self) {
        let has_left = |rank| matches!(self.world.state_in(rank, self.times), State::Left | State::Panicked);
        // Each rank leaves before it looks at the others, so that the last one sees that all have.
        fence(Ordering::SeqCst);
        let all = (0..self.world_size()).all(has_left);
        if all && self.world.is_calm() && self.world.takes_the_last_records(self.times) {
            dump::keep_at_end(&self.world);
        }
    }

    fn in_phase<T>(&mut self, site: u32, budget: Duration, f: impl FnOnce() -> T) -> T {
        let budget = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
        self.world.set_phase(self.rank, site, now(), budget);
        let result = f();
        self.world.set_phase(self.rank, 0, 0, 0);
        result
    }

    fn site(&mut self, place: &'static Location<'static>, label: &str) -> u32 {
        self.sites.number(&self.world, self.rank, self.called_from.unwrap_or(place), label)
    }

    fn check_root(&self, root: usize) -> Result<()> {
        if root < self.world_size() {
            return Ok(());
        }
        Err(Error::new(ARGUMENT, "a root is not below the number of ranks")
            .at("root", root)
            .at("ranks", self.world_size()))
    }

    #[track_caller]
    pub(crate) fn begin(&mut self, group: Group, agreed: Agreed, label: &str) -> Result<Call<'_>> {
        self.begin_at(group, agreed, label, Location::caller())
    }

    fn begin_at(
        &mut self,
        group: Group,
        agreed: Agreed,
        label: &str,
        site: &'static Location<'static>,
    ) -> Result<Call<'_>> {
        if !self.world.is_calm()
            && let Some(error) = self.world.poisoned()
        {
            return Err(error);
        }
        let number = usize::from(group.0);
        if !self.groups.get(number).is_some_and(|group| group.ours) {
            return Err(Error::new(ARGUMENT, "a rank is not in the group of its collective")
                .at("rank", self.rank)
                .at("group", number)
                .hint("call it on the ranks of the group alone"));
        }
        let packed = agreed.pack();
        let packed = if self.detailed { with_place(packed, site) } else { packed };
        let site = self.site(site, label);
        let members = &mut self.groups[number];
        members.seq += 1;
        self.world.write_record(self.rank, number, members.seq, packed, site, lately());
        Ok(Call { rank: self, group: number, agreed: packed, compared: false })
    }
}

/// One that drops its rank has finished; one that does so in a panic has not.
impl Drop for Rank {
    fn drop(&mut self) {
        let state = if std::thread::panicking() { State::Panicked } else { State::Left };
        self.world.set_state(self.rank, self.times, state);
        if self.detailed {
            self.keep_records_if_last();
        }
    }
}

impl fmt::Debug for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rank")
            .field("rank", &self.rank)
            .field("of", &self.world.size())
            .finish_non_exhaustive()
    }
}

/// Where this rank's collectives are called, each written down once.
#[derive(Default)]
struct Sites {
    numbers: HashMap<(usize, String), u32>,
    /// Some of them, found by comparison alone: a step's collectives are those of the step before.
    recent: [Option<(usize, String, u32)>; RECENT],
    count: u32,
}

impl Sites {
    fn number(&mut self, world: &World, rank: usize, place: &'static Location<'static>, label: &str) -> u32 {
        let address = std::ptr::from_ref(place).addr();
        let bytes = label.as_bytes();
        let mix = bytes.len() + usize::from(bytes.last().copied().unwrap_or(0));
        let slot = (address / align_of::<Location>() + mix) % RECENT;
        if let Some((known, text, number)) = &self.recent[slot]
            && *known == address
            // Comparing nothing with nothing is slow where a masked load is given an address that is none.
            && text.len() == label.len()
            && (label.is_empty() || text == label)
        {
            return *number;
        }
        let number = match self.numbers.get(&(address, label.to_owned())) {
            Some(&number) => number,
            None => {
                // The oldest makes room: labels may be made up anew in each step.
                if self.count == SITES {
                    self.numbers.clear();
                    self.recent = Default::default();
                    self.count = 0;
                }
                self.count += 1;
                let site =
                    Site { label: label.to_owned(), place: format!("{}:{}", place.file(), place.line()) };
                world.write_site(rank, self.count, &site);
                self.numbers.insert((address, label.to_owned()), self.count);
                self.count
            }
        };
        self.recent[slot] = Some((address, label.to_owned(), number));
        number
    }
}

/// How many call sites are found by comparison.
const RECENT: usize = 32;
/// Waits until all ranks have come back to a world that has failed, and so into one that has not.
///
/// # Errors
/// What it failed of, if a rank does not come back: it has died or ended, or has failed again since.
fn renew(world: &World, rank: usize, times: u32) -> Result<()> {
    let failed = || world.poisoned().unwrap_or_else(|| Error::new(LEFT, "a rank does not come back"));
    world.set_state(rank, times, State::Renewing);
    let began = Instant::now();
    loop {
        let renewed = world.renewed().load(Ordering::Acquire);
        if renewed == times {
            return Ok(());
        }
        let back = |rank: usize| world.times(rank) == times && world.state(rank) == State::Renewing;
        if rank == 0 && (0..world.size()).all(back) {
            world.renew(times);
            return Ok(());
        }
        let lost = |rank: &usize| {
            world.end(*rank).0 != End::Unknown
                || tombstone::state(world.tombstone(*rank)) == tombstone::State::Dead
                || world.times(*rank) > times
                || world.times(*rank) == times && matches!(world.state(*rank), State::Left | State::Panicked)
        };
        if let Some(lost) = (0..world.size()).find(lost) {
            world.set_state(rank, times, State::Left);
            return Err(failed().at_if_absent("not back", format_args!("rank {lost}")));
        }
        if began.elapsed() > Limits::default().budget {
            world.set_state(rank, times, State::Left);
            let absent = (0..world.size()).filter(|&rank| !back(rank)).map(|rank| rank.to_string());
            return Err(failed()
                .at_if_absent("not back", format_args!("rank {}", absent.collect::<Vec<_>>().join(", "))));
        }
        futex::wait(world.renewed(), renewed, RENEWING);
    }
}

/// How often a rank that waits for others to come back looks for them.
const RENEWING: Duration = Duration::from_millis(1);

/// How long [`Rank::on_rank_zero`] may take.
const RANK_ZERO: Duration = Duration::from_secs(30 * 60);

fn agreed<T: Element>(op: Op, count: usize, reduce: Option<ReduceOp>, root: usize) -> Agreed {
    Agreed { op, element: T::NUMBER, reduce, root: root as u16, count: count as u64 }
}

fn taken(world: &World, rank: usize) -> Error {
    Error::new(WORLD_SIZE, "a rank's place in the world is taken")
        .at("rank", rank)
        .at("by", format_args!("pid {}", world.pid(rank)))
}

fn check_mean<T: Element>(op: ReduceOp) -> Result<()> {
    if op == ReduceOp::Mean && !T::IS_FLOAT {
        return Err(Error::new(ARGUMENT, "integers have no mean")
            .at("type", T::NAME)
            .hint("take the sum, or convert them to floats first"));
    }
    Ok(())
}

fn lengths(what: &str, found: usize, expected: usize) -> Error {
    Error::new(ARGUMENT, format!("{what} was given another number of elements than its parts take"))
        .at("elements", found)
        .at("expected", expected)
}

fn serialise<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|error| {
        Error::new(OBJECT, "an object cannot be sent to the other ranks")
            .at("type", std::any::type_name::<T>())
            .because(&error)
    })
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|error| {
        Error::new(OBJECT, "an object of another rank cannot be read")
            .at("type", std::any::type_name::<T>())
            .because(&error)
    })
}
