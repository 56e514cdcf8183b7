//! How the positions of an epoch become the batches of each rank; which samples stand there is the sampler's.
//!
//! With a global batch of B, step *t* covers positions [tB, (t+1)B) of the epoch's order, and of W ranks each takes
//! the next B/W of them: the ranks' batches put together are the batch of a single rank, for each W. So a place in
//! an epoch is a number of positions, and what was stopped on four ranks goes on on two ([`Batching::batch_at`]).
//! With a batch sampler the positions are batches: step *t* covers W of them, and each rank takes one.
//!
//! All ranks have the same number of batches. What is left at the end, fewer positions than a step, goes by [`Tail`].
//! This is the place of PyTorch's `DistributedSampler`, which repeats samples from the start without a mark
//! ([`Tail::Pad`] with one), and gives ranks every W-th position.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use leyden_process::{Error, Panic, Result, contain};

use crate::codes::{
    BATCH_POSITION, GLOBAL_BATCH, LOADER_ARGUMENT, NO_BATCHES, SAMPLER_BOUND, SAMPLER_PANICKED,
    SAMPLER_RESULT, UNEVEN_TAIL,
};
use crate::sampler::{BatchOrder, BatchSampler, Order, RandomSampler, Sampler, SequentialSampler};

/// What becomes of the last positions of an epoch where they do not fill a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// They are split as evenly as it goes, earlier ranks first, so that last batches may differ by one sample
    /// between ranks. Fewer positions than ranks are refused. The default: each sample counts once, and nothing is
    /// left out unasked.
    #[default]
    Exact,
    /// They are left out (PyTorch: `drop_last=True`).
    Drop,
    /// They are split evenly, after as many positions from the start of the epoch were added as that takes, fewer
    /// than there are ranks (PyTorch: `DistributedSampler` with `drop_last=False`). [`Indices::padding`] counts
    /// them, so that a metric can leave them out.
    Pad,
}

/// How positions become the batches of each rank (PyTorch: `BatchSampler` and `DistributedSampler`).
///
/// ```
/// use leyden_data::Batching;
///
/// let rank = |rank| Batching::whole(8, false).global_batch_size(4).rank(rank, 2);
/// rank(1).validate()?;
/// assert_eq!(rank(0).epoch(42, 0)?.batch(1)?.indices, [4, 5]);
/// assert_eq!(rank(1).epoch(42, 0)?.batch(1)?.indices, [6, 7]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone)]
pub struct Batching {
    source: Source,
    /// Length of the data set.
    samples: usize,
    /// Length of the sampler, asked once: an epoch must not change under its batches.
    positions: usize,
    /// Whether every epoch has the order of the first.
    fixed: bool,
    batch_size: Option<usize>,
    global_batch_size: Option<usize>,
    tail: Tail,
    rank: usize,
    /// How many parts of a step it takes, one after another: `rank` and those after it.
    parts: usize,
    world_size: usize,
    /// Whether ranks may have no part in the last step.
    uneven: bool,
}

/// Which part of each step a rank takes; see [`Loader::set_share`](crate::Loader::set_share).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of the parts: the first of its own, where it takes several.
    pub rank: usize,
    /// How many parts it takes, one after another, each a batch; 1 unless a rank stands for several.
    pub parts: usize,
    /// How many parts a step has.
    pub world_size: usize,
    /// Whether ranks may have different numbers of batches, as evaluation allows: then each sample is there once, however
    /// few there are.
    pub uneven: bool,
}

#[derive(Clone)]
enum Source {
    Samples {
        sampler: Arc<dyn Sampler>,
        /// Whether it is one of [`Batching::whole`].
        whole: bool,
    },
    Batches(Arc<dyn BatchSampler>),
}

impl Batching {
    /// Batches of all of a data set of `samples` samples, in its order or shuffled anew in each epoch.
    pub fn whole(samples: usize, shuffle: bool) -> Self {
        let sampler: Arc<dyn Sampler> = match shuffle {
            true => Arc::new(RandomSampler::new(samples)),
            false => Arc::new(SequentialSampler::new(samples)),
        };
        Self::of(Source::Samples { sampler, whole: true }, samples)
    }

    /// Batches of a data set of `samples` samples, in the order of `sampler`.
    pub fn new(samples: usize, sampler: impl Sampler + 'static) -> Self {
        Self::of(Source::Samples { sampler: Arc::new(sampler), whole: false }, samples)
    }

    /// The batches that `sampler` makes of a data set of `samples` samples. In each step, each rank takes one.
    pub fn of_batches(samples: usize, sampler: impl BatchSampler + 'static) -> Self {
        Self::of(Source::Batches(Arc::new(sampler)), samples)
    }

    fn of(source: Source, samples: usize) -> Self {
        let positions = match &source {
            Source::Samples { sampler, .. } => sampler.len(),
            Source::Batches(sampler) => sampler.len(),
        };
        Self {
            source,
            samples,
            positions,
            fixed: false,
            batch_size: None,
            global_batch_size: None,
            tail: Tail::default(),
            rank: 0,
            parts: 1,
            world_size: 1,
            uneven: false,
        }
    }

    /// Samples per batch, on each rank (default 1).
    #[must_use]
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.batch_size = Some(samples);
        self
    }

    /// Samples per step, on all ranks together, in place of `batch_size`: what is trained on does not depend on how
    /// many ranks there are.
    #[must_use]
    pub fn global_batch_size(mut self, samples: usize) -> Self {
        self.global_batch_size = Some(samples);
        self
    }

    /// What becomes of an incomplete last step (default [`Tail::Exact`]).
    #[must_use]
    pub fn tail(mut self, tail: Tail) -> Self {
        self.tail = tail;
        self
    }

    /// Which part of each step to take: that of `rank` of `world_size` (default 0 of 1: all).
    #[must_use]
    pub fn rank(mut self, rank: usize, world_size: usize) -> Self {
        self.rank = rank;
        self.world_size = world_size;
        self
    }

    /// The same with all that a rank may ask for; one that was chosen before is not changed.
    ///
    /// # Errors
    /// `L0101` if another part was chosen before; those of [`validate`](Self::validate).
    pub fn set_share(&mut self, share: &Share) -> Result<()> {
        let chosen = (self.rank, self.world_size);
        if chosen != (0, 1) && chosen != (share.rank, share.world_size) {
            return Err(other_share(chosen, share));
        }
        let Share { rank, parts, world_size, uneven } = *share;
        let shared = Self { rank, parts, world_size, uneven, ..self.clone() };
        shared.validate()?;
        *self = shared;
        Ok(())
    }

    /// Fixes the order, for overfitting a few batches: to that of the data set, or to the sampler's for epoch 0 where
    /// there is one, which may leave samples out on purpose.
    pub fn set_sequential(&mut self) {
        match &mut self.source {
            Source::Samples { sampler, whole: true } => {
                *sampler = Arc::new(SequentialSampler::new(self.samples))
            }
            Source::Samples { .. } | Source::Batches(_) => self.fixed = true,
        }
    }

    /// Whether the order may change from epoch to epoch.
    pub fn is_shuffled(&self) -> bool {
        !self.fixed
            && match &self.source {
                Source::Samples { sampler, .. } => sampler.is_shuffled(),
                Source::Batches(sampler) => sampler.is_shuffled(),
            }
    }

    /// Batches per epoch, on this rank; the same on every rank, unless the last step may be [uneven](Share::uneven).
    pub fn batches(&self) -> usize {
        let whole = self.positions / self.step();
        if self.tail == Tail::Drop || self.left() == 0 {
            return whole * self.parts;
        }
        let here = (0..self.parts).filter(|part| !self.share(whole * self.parts + part).is_empty());
        whole * self.parts + here.count()
    }

    /// The order of an epoch, from which its batches are made in any order. It costs what the sampler's order does.
    ///
    /// # Errors
    /// The sampler's, or `L0605` if it panicked.
    pub fn epoch(&self, seed: u64, epoch: u64) -> Result<EpochOrder> {
        let asked = if self.fixed { 0 } else { epoch };
        let order = contain(|| match &self.source {
            Source::Samples { sampler, .. } => sampler.order(seed, asked).map(Orders::Samples),
            Source::Batches(sampler) => sampler.order(seed, asked).map(Orders::Batches),
        })
        .unwrap_or_else(|panic| Err(panicked(panic)))
        .map_err(|error| {
            error.at_if_absent("epoch", epoch).at_if_absent("sampler", self.sampler_identity())
        })?;
        Ok(EpochOrder { batching: self.clone(), order })
    }

    /// What the order of the data depends on besides seed and epoch, in words. Not the size of batches and the number
    /// of ranks: a place in the order outlives them ([`Batching::position_of`]).
    pub fn identity(&self) -> String {
        let fixed = if self.fixed { ", fixed to epoch 0" } else { "" };
        format!("{} samples, {}{fixed}", self.samples, self.sampler_identity())
    }

    /// Positions of the epoch before batch `batch`, of all ranks together: a place in the data that does not depend on
    /// the number of ranks. Positions are samples, with a batch sampler batches; padding is not counted.
    pub fn position_of(&self, batch: usize) -> u64 {
        (batch / self.parts).saturating_mul(self.step()).min(self.positions) as u64
    }

    /// The batch that begins at a position, or the number of batches where the epoch is over: the inverse of
    /// [`Batching::position_of`], also of one with other ranks or another batch size.
    ///
    /// # Errors
    /// `L0607` if no batch begins there, or the epoch ends before it.
    pub fn batch_at(&self, position: u64) -> Result<usize> {
        let batches = self.batches();
        let over = self.position_of(batches)..=self.positions as u64;
        if over.contains(&position) {
            return Ok(batches);
        }
        let batch = (position / self.step() as u64) as usize * self.parts;
        if batch < batches && self.position_of(batch) == position {
            return Ok(batch);
        }
        let unit = self.unit();
        Err(Error::new(BATCH_POSITION, "a place in an epoch is not where a batch begins")
            .at("position", position)
            .at("one step", format_args!("{} {unit} on {} ranks", self.step(), self.world_size))
            .at("epoch", format_args!("{} {unit}", self.positions))
            .why("going on from there would repeat or miss samples")
            .hint(
                "use the global batch size of the run that stopped there, or one that divides the position",
            ))
    }

    /// Positions that one step covers on all ranks. It saturates where a batch is larger than any data set.
    pub fn step(&self) -> usize {
        let step = match (&self.source, self.global_batch_size) {
            (Source::Batches(_), _) => self.world_size,
            (Source::Samples { .. }, Some(samples)) => samples,
            (Source::Samples { .. }, None) => self.batch_size.unwrap_or(1).saturating_mul(self.world_size),
        };
        // Where `validate` refuses it: no division by zero before.
        step.max(1)
    }

    /// Positions of an epoch, of all ranks together.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Positions of the last, incomplete step.
    fn left(&self) -> usize {
        self.positions % self.step()
    }

    /// What a position is.
    fn unit(&self) -> &'static str {
        match self.source {
            Source::Samples { .. } => "samples",
            Source::Batches(_) => "batches",
        }
    }

    fn sampler_identity(&self) -> String {
        match &self.source {
            Source::Samples { sampler, .. } => sampler.identity(),
            Source::Batches(sampler) => sampler.identity(),
        }
    }

    /// The positions of this rank's batch. Those from the epoch's length on are padding.
    fn share(&self, batch: usize) -> Range<usize> {
        let world_size = self.world_size;
        let (step, rank) = (batch / self.parts, self.rank + batch % self.parts);
        let start = step * self.step();
        let left = self.positions - start;
        let (share, extra) = match (left >= self.step(), self.tail) {
            (true, _) => (self.step() / world_size, 0),
            (false, Tail::Pad) => (left.div_ceil(world_size), 0),
            (false, Tail::Exact | Tail::Drop) => (left / world_size, left % world_size),
        };
        let start = start + rank * share + rank.min(extra);
        start..start + share + usize::from(rank < extra)
    }

    /// Checks what it was given.
    ///
    /// # Errors
    /// `L0101` for a batch size of 0, two batch sizes, or a rank outside the world; `L0606` if the global batch does
    /// not divide among the ranks; `L0603` if the sampler is of a larger data set; `L0102` if an epoch would have no
    /// batches; `L0103` if its last step would leave a rank without a sample.
    pub fn validate(&self) -> Result<()> {
        self.validate_sizes()?;
        self.validate_sampler()?;
        self.validate_steps()
    }

    fn validate_sizes(&self) -> Result<()> {
        let Self { batch_size, global_batch_size, rank, world_size, .. } = *self;
        for (name, size) in [("batch_size", batch_size), ("global_batch_size", global_batch_size)] {
            if size == Some(0) {
                return Err(Error::new(LOADER_ARGUMENT, "a batch must have at least one sample")
                    .at(name, 0)
                    .hint(format!("set `.{name}(n)` to 1 or more")));
            }
            if let (Source::Batches(sampler), Some(size)) = (&self.source, size) {
                return Err(Error::new(
                    LOADER_ARGUMENT,
                    "a batch sampler decides which samples form a batch",
                )
                .at(name, size)
                .at("batch sampler", sampler.identity())
                .hint(format!("leave out `.{name}(n)`, or use a sampler")));
            }
        }
        if let (Some(batch_size), Some(global)) = (batch_size, global_batch_size) {
            return Err(Error::new(LOADER_ARGUMENT, "a batch has two sizes")
                .at("batch_size", format_args!("{batch_size} on each rank"))
                .at("global_batch_size", format_args!("{global} on all ranks together"))
                .hint("set one of them"));
        }
        if rank >= world_size || self.parts == 0 || self.parts > world_size - rank {
            return Err(Error::new(LOADER_ARGUMENT, "the rank is not in the world")
                .at("rank", rank)
                .at("world_size", world_size)
                .hint("ranks go from 0 to the world size less one"));
        }
        match global_batch_size {
            Some(global) if global % world_size != 0 => Err(indivisible(global, world_size)),
            _ => Ok(()),
        }
    }

    fn validate_sampler(&self) -> Result<()> {
        if self.samples == 0 {
            return Err(Error::new(NO_BATCHES, "the data set is empty")
                .hint("check the path, the filter or the split that it was made with"));
        }
        let bound = match &self.source {
            Source::Samples { sampler, .. } => sampler.bound(),
            Source::Batches(sampler) => sampler.bound(),
        };
        match bound {
            Some(bound) if bound > self.samples => {
                Err(Error::new(SAMPLER_BOUND, "the sampler is of a larger data set")
                    .at("sampler", self.sampler_identity())
                    .at("largest index", bound - 1)
                    .at("data set", format_args!("{} samples", self.samples))
                    .hint("make the sampler with this data set's length: a subset or a split counts from 0"))
            }
            _ => Ok(()),
        }
    }

    fn validate_steps(&self) -> Result<()> {
        let (world_size, unit) = (self.world_size, self.unit());
        let per_rank = self.step() / world_size;
        let (fewer, others) = match self.source {
            Source::Samples { .. } => ("a smaller `batch_size`", "another `batch_size`, or fewer samples"),
            Source::Batches(_) => ("fewer ranks", "or another number of batches"),
        };
        if self.positions == 0 {
            return Err(Error::new(NO_BATCHES, "the sampler visits no samples")
                .at("sampler", self.sampler_identity())
                .at("data set", format_args!("{} samples", self.samples))
                .hint("check what the sampler was made with"));
        }
        if self.batches() == 0 && !self.uneven {
            return Err(Error::new(NO_BATCHES, "`drop_last` drops the only step")
                .at(unit, self.positions)
                .at("one step", format_args!("{} ({per_rank} on each of {world_size} ranks)", self.step()))
                .hint(format!("use {fewer}, more data, or `.drop_last(false)`")));
        }
        if self.tail == Tail::Exact && !self.uneven && (1..world_size).contains(&self.left()) {
            let what = format!("the last step of an epoch has fewer {unit} than there are ranks");
            let error = Error::new(UNEVEN_TAIL, what)
                .at("last step", format_args!("{} {unit} for {world_size} ranks", self.left()))
                .at(unit, self.positions);
            let error = match self.source {
                Source::Samples { .. } => error.at("batch_size", format_args!("{per_rank} on each rank")),
                Source::Batches(_) => error,
            };
            return Err(error
                .why("a rank without a batch would wait for ever, or train on a sample twice")
                .hint(format!("use `.drop_last(true)`, {others}")));
        }
        Ok(())
    }
}

/// The settings; a sampler is known by its identity.
impl fmt::Debug for Batching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batching")
            .field("samples", &self.samples)
            .field("sampler", &self.sampler_identity())
            .field("step", &self.step())
            .field("tail", &self.tail)
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .finish_non_exhaustive()
    }
}

/// The order of one epoch, cut into this rank's batches. It may be shared by threads: no batch depends on another.
pub struct EpochOrder {
    batching: Batching,
    order: Orders,
}

enum Orders {
    Samples(Box<dyn Order>),
    Batches(Box<dyn BatchOrder>),
}

/// The samples of one batch of one rank.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Indices {
    /// One or more indices, each below the data set's length.
    pub indices: Vec<usize>,
    /// How many of them, at the end, are repeats that fill a step ([`Tail::Pad`]).
    pub padding: usize,
    /// Where they stand in the epoch's order: `indices[i]` at `positions.start + i`. With a batch sampler, which batch
    /// of the epoch it is. Padding stands after the end.
    pub positions: Range<usize>,
}

impl EpochOrder {
    /// The samples of this rank's batch `index`. A microsecond or two for 64 samples of a shuffled order.
    ///
    /// # Errors
    /// `L0607` if the epoch has no such batch, `L0604` if the sampler gave an index outside the data set or an empty
    /// batch, `L0605` if it panicked.
    pub fn batch(&self, index: usize) -> Result<Indices> {
        let Self { batching, order } = self;
        if index >= batching.batches() {
            return Err(Error::new(BATCH_POSITION, "an epoch has no batch after its last")
                .at("asked for", format_args!("batch {index}"))
                .at("available", format_args!("{} batches", batching.batches())));
        }
        let positions = batching.share(index);
        let epoch = batching.positions;
        let padding = positions.end.saturating_sub(epoch).min(positions.len());
        let indices = contain(|| match order {
            Orders::Samples(order) => positions.clone().map(|position| order.at(position % epoch)).collect(),
            Orders::Batches(order) => order.batch(positions.start % epoch),
        })
        .map_err(|panic| self.blame(panicked(panic), &positions))?;
        let padding = match order {
            Orders::Samples(_) => padding,
            Orders::Batches(_) => padding * indices.len(),
        };
        self.check(&indices, &positions)?;
        Ok(Indices { indices, padding, positions })
    }

    fn check(&self, indices: &[usize], positions: &Range<usize>) -> Result<()> {
        let samples = self.batching.samples;
        if indices.is_empty() {
            let error = Error::new(SAMPLER_RESULT, "a batch sampler gave an empty batch")
                .hint("leave the batch out, and count it out of the sampler's `len`");
            return Err(self.blame(error, positions));
        }
        match indices.iter().position(|&index| index >= samples) {
            None => Ok(()),
            Some(place) => {
                let error = Error::new(SAMPLER_RESULT, "a sampler gave an index outside the data set")
                    .at("index", indices[place])
                    .at("data set", format_args!("{samples} samples"))
                    .hint("indices go from 0 to the data set's length less one");
                Err(self.blame(error, positions).at("place in the batch", place))
            }
        }
    }

    /// Adds whose error it is, and where in the epoch.
    fn blame(&self, error: Error, positions: &Range<usize>) -> Error {
        error
            .at("sampler", self.batching.sampler_identity())
            .at("positions", format_args!("{positions:?} of the epoch"))
    }
}

impl fmt::Debug for EpochOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochOrder").field("batching", &self.batching).finish_non_exhaustive()
    }
}

fn panicked(panic: Panic) -> Error {
    panic.explain(Error::new(SAMPLER_PANICKED, "a sampler panicked"))
}

/// A loader was told of another part of the data than its rank is to take.
pub(crate) fn other_share((rank, world_size): (usize, usize), share: &Share) -> Error {
    Error::new(LOADER_ARGUMENT, "a loader takes another part of the data than its rank")
        .at("the loader's", format_args!("rank {rank} of {world_size}"))
        .at("this rank's", format_args!("rank {} of {}", share.rank, share.world_size))
        .hint("leave `.rank(..)` out of the loader: the trainer sets it")
        .hint("or pass on what `LoaderCx` says: `.rank(cx.rank, cx.world_size)`, as a stream needs it")
}

fn indivisible(global: usize, world_size: usize) -> Error {
    let below = global / world_size * world_size;
    let error = Error::new(GLOBAL_BATCH, "the global batch does not divide into equal parts for the ranks")
        .at("global_batch_size", global)
        .at("world_size", world_size);
    let above = below.saturating_add(world_size);
    match below {
        0 => error.hint(format!("use a global batch size of {above}, or at most {global} ranks")),
        _ => error.hint(format!(
            "use a global batch size of {below} or {above}, or a number of ranks that divides {global}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{RandomSampler, batch_sampler_fn, sampler_fn};
    use proptest::prelude::*;

    /// A step: for each rank, its positions and whether each is padding.
    type Step = Vec<Vec<(usize, bool)>>;

    /// The steps of an epoch, written down without arithmetic on positions; `None` where a rank would have none.
    fn expected(positions: usize, step: usize, world_size: usize, tail: Tail) -> Option<Vec<Step>> {
        let all: Vec<(usize, bool)> = (0..positions).map(|position| (position, false)).collect();
        let mut steps = Vec::new();
        for chunk in all.chunks(step) {
            let mut chunk = chunk.to_vec();
            if chunk.len() < step {
                let mut start = (0..positions).cycle();
                match tail {
                    Tail::Drop => continue,
                    Tail::Exact => {}
                    Tail::Pad => {
                        while chunk.len() % world_size != 0 {
                            chunk.push((start.next().unwrap(), true));
                        }
                    }
                }
            }
            let mut ranks = vec![0; world_size];
            (0..chunk.len()).for_each(|sample| ranks[sample % world_size] += 1);
            let mut chunk = chunk.into_iter();
            let ranks: Step = ranks.into_iter().map(|share| chunk.by_ref().take(share).collect()).collect();
            if ranks.iter().any(Vec::is_empty) {
                return None;
            }
            steps.push(ranks);
        }
        (!steps.is_empty()).then_some(steps)
    }

    fn marked(batch: Indices) -> Vec<(usize, bool)> {
        let real = batch.indices.len() - batch.padding;
        batch.indices.into_iter().enumerate().map(|(place, index)| (index, place >= real)).collect()
    }

    #[test]
    fn agrees_with_the_written_down_steps_in_all_small_cases() {
        for positions in 0..=40 {
            for world_size in 1..=5 {
                for step in (1..=12).map(|batch_size| batch_size * world_size).chain([1_000 * world_size]) {
                    for tail in [Tail::Exact, Tail::Drop, Tail::Pad] {
                        compare(positions, step, world_size, tail);
                    }
                }
            }
        }
    }

    fn compare(positions: usize, step: usize, world_size: usize, tail: Tail) {
        let case = format!("{positions} positions, {step} a step on {world_size} ranks, {tail:?}");
        let whole = Batching::whole(positions, true).tail(tail);
        let by_rank = |rank| whole.clone().batch_size(step / world_size).rank(rank, world_size);
        let together = |rank| whole.clone().global_batch_size(step).rank(rank, world_size);
        let order = RandomSampler::new(positions).order(7, 3).unwrap();
        let expected = expected(positions, step, world_size, tail);
        for rank in 0..world_size {
            for batching in [by_rank(rank), together(rank)] {
                assert_eq!(batching.validate().is_ok(), expected.is_some(), "{case}");
                let Some(expected) = &expected else { continue };
                assert_eq!(batching.batches(), expected.len(), "{case}");
                let epoch = batching.epoch(7, 3).unwrap();
                for (index, step) in expected.iter().enumerate() {
                    let given = marked(epoch.batch(index).unwrap());
                    let expected: Vec<(usize, bool)> =
                        step[rank].iter().map(|&(position, padding)| (order.at(position), padding)).collect();
                    assert_eq!(given, expected, "{case}: batch {index} of rank {rank}");
                }
                assert_eq!(epoch.batch(expected.len()).unwrap_err().code(), BATCH_POSITION, "{case}");
            }
        }
    }

    /// The samples of an epoch's step of all ranks, without padding.
    fn step(batching: &Batching, world_size: usize, index: usize) -> Vec<usize> {
        let rank = |rank| batching.clone().rank(rank, world_size).epoch(1, 0).unwrap().batch(index).unwrap();
        let real = |batch| marked(batch).into_iter().filter(|(_, padding)| !padding).map(|(index, _)| index);
        (0..world_size).flat_map(|each| real(rank(each))).collect()
    }

    #[test]
    fn a_global_batch_has_the_same_samples_on_any_number_of_ranks() {
        for (samples, tail) in [(64, Tail::Exact), (61, Tail::Exact), (61, Tail::Drop), (61, Tail::Pad)] {
            let batching = Batching::whole(samples, true).global_batch_size(16).tail(tail);
            for index in 0..batching.batches() {
                let alone = step(&batching, 1, index);
                for world_size in [2, 4, 8] {
                    assert_eq!(
                        step(&batching, world_size, index),
                        alone,
                        "{samples}, {tail:?}, {world_size}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_stops_on_four_ranks_goes_on_on_two() {
        let four = Batching::whole(100, true).batch_size(4).rank(3, 4);
        let two = Batching::whole(100, true).global_batch_size(16).rank(0, 2);
        assert_eq!(four.identity(), two.identity());
        let position = four.position_of(3);
        let goes_on = two.batch_at(position).unwrap();
        assert_eq!((position, goes_on), (48, 3));
        let mut visited: Vec<usize> = (0..3).flat_map(|index| step(&four, 4, index)).collect();
        visited.extend((goes_on..two.batches()).flat_map(|index| step(&two, 2, index)));
        visited.sort_unstable();
        assert!(visited.into_iter().eq(0..100));

        // Another batch size goes on as well, where one of its batches begins.
        let smaller = Batching::whole(100, true).global_batch_size(12);
        assert_eq!(smaller.batch_at(48).unwrap(), 4);
        let error = Batching::whole(100, true).global_batch_size(32).rank(0, 2).batch_at(48).unwrap_err();
        let expected = "error[L0607]: a place in an epoch is not where a batch begins\n  position  48\n  one step  32 \
                        samples on 2 ranks\n  epoch     100 samples\n  why: going on from there would repeat or miss \
                        samples\n  fix: use the global batch size of the run that stopped there, or one that divides \
                        the position";
        assert_eq!(format!("{error:?}"), expected);
    }

    #[test]
    fn a_finished_epoch_is_finished_for_every_batch_size() {
        let batching = |size, tail| Batching::whole(100, false).global_batch_size(size).tail(tail);
        for tail in [Tail::Exact, Tail::Pad, Tail::Drop] {
            assert_eq!(batching(16, tail).batch_at(100).unwrap(), batching(16, tail).batches());
            assert_eq!(batching(16, tail).batch_at(101).unwrap_err().code(), BATCH_POSITION);
        }
        assert_eq!(batching(16, Tail::Drop).position_of(6), 96);
        assert_eq!(batching(16, Tail::Drop).batch_at(98).unwrap(), 6, "nothing but what is dropped is left");
        batching(16, Tail::Exact).batch_at(98).unwrap_err();
        assert_eq!(batching(16, Tail::Exact).position_of(7), 100);
    }

    #[test]
    fn a_billion_samples_begin_and_go_on_at_once() {
        let batching = Batching::whole(1_000_000_000, true).global_batch_size(1_024).rank(3, 8);
        let epoch = batching.epoch(42, 1).unwrap();
        for index in [0, batching.batches() / 10 * 9] {
            let batch = epoch.batch(index).unwrap();
            assert_eq!((batch.indices.len(), batch.positions.start), (128, index * 1_024 + 3 * 128));
        }
        assert_eq!(batching.batch_at(batching.position_of(900_000)).unwrap(), 900_000);
    }

    #[test]
    fn batches_of_a_batch_sampler_are_dealt_to_the_ranks() {
        let sampler =
            || batch_sampler_fn(5, |_, _| Ok(vec![vec![0], vec![1, 2], vec![3], vec![4], vec![5, 6]]));
        let batching = |world_size, tail| Batching::of_batches(7, sampler()).rank(1, world_size).tail(tail);
        assert_eq!(batching(2, Tail::Drop).batches(), 2);
        let batch = batching(2, Tail::Drop).epoch(0, 0).unwrap().batch(1).unwrap();
        assert_eq!(batch, Indices { indices: vec![4], padding: 0, positions: 3..4 });

        let padded = batching(3, Tail::Pad).rank(2, 3);
        assert_eq!((padded.batches(), padded.position_of(1), padded.position_of(2)), (2, 3, 5));
        let batch = padded.epoch(0, 0).unwrap().batch(1).unwrap();
        assert_eq!(batch, Indices { indices: vec![0], padding: 1, positions: 5..6 });

        batching(5, Tail::Exact).validate().unwrap();
        let error = batching(3, Tail::Exact).validate().unwrap_err();
        let expected = "error[L0103]: the last step of an epoch has fewer batches than there are ranks\n  last step  2 \
                        batches for 3 ranks\n  batches    5\n  why: a rank without a batch would wait for ever, or \
                        train on a sample twice\n  fix: use `.drop_last(true)`, or another number of batches";
        assert_eq!(format!("{error:?}"), expected);
        let error = batching(6, Tail::Drop).validate().unwrap_err();
        assert_eq!(error.place("one step"), Some("6 (1 on each of 6 ranks)"));
        assert_eq!(error.hints(), ["use fewer ranks, more data, or `.drop_last(false)`"]);

        let error = batching(1, Tail::Exact).rank(0, 1).batch_size(2).validate().unwrap_err();
        assert_eq!(error.what(), "a batch sampler decides which samples form a batch");
        assert_eq!(error.place("batch sampler"), Some("function of 5 batches"));
    }

    #[test]
    fn a_fixed_order_is_that_of_the_data_set_or_of_the_first_epoch() {
        let mut whole = Batching::whole(4, true).batch_size(4);
        assert!(whole.is_shuffled());
        whole.set_sequential();
        assert_eq!(whole.epoch(1, 5).unwrap().batch(0).unwrap().indices, [0, 1, 2, 3]);

        let sampler = sampler_fn(2, |_, epoch| Ok(vec![epoch as usize, 3]));
        let mut own = Batching::new(10, sampler).batch_size(2);
        own.set_sequential();
        assert_eq!(own.epoch(1, 5).unwrap().batch(0).unwrap().indices, [0, 3]);
        assert_eq!(own.identity(), "10 samples, function of 2 indices, fixed to epoch 0");

        let mut batches =
            Batching::of_batches(10, batch_sampler_fn(1, |_, epoch| Ok(vec![vec![epoch as usize]])));
        batches.set_sequential();
        assert_eq!(batches.epoch(1, 5).unwrap().batch(0).unwrap().indices, [0]);
        assert!(![whole, own, batches].iter().any(Batching::is_shuffled));
    }

    #[test]
    fn refuses_what_does_not_fit_together() {
        let refusal = |batching: Batching| batching.validate().unwrap_err();
        let whole = || Batching::whole(10, true);
        for (error, label) in [
            (refusal(whole().batch_size(0)), "batch_size"),
            (refusal(whole().global_batch_size(0)), "global_batch_size"),
        ] {
            assert_eq!((error.code(), error.place(label)), (LOADER_ARGUMENT, Some("0")));
        }
        let error = refusal(whole().batch_size(2).global_batch_size(4));
        assert_eq!((error.code(), error.what()), (LOADER_ARGUMENT, "a batch has two sizes"));
        for (rank, world_size) in [(2, 2), (0, 0)] {
            let error = refusal(whole().global_batch_size(4).rank(rank, world_size));
            assert_eq!((error.code(), error.what()), (LOADER_ARGUMENT, "the rank is not in the world"));
        }
        let error = refusal(Batching::new(10, sampler_fn(0, |_, _| Ok(vec![]))));
        assert_eq!((error.code(), error.what()), (NO_BATCHES, "the sampler visits no samples"));

        let error = refusal(whole().global_batch_size(10).rank(0, 4));
        let expected = "error[L0606]: the global batch does not divide into equal parts for the ranks\n  \
                        global_batch_size  10\n  world_size         4\n  fix: use a global batch size of 8 or 12, or a \
                        number of ranks that divides 10";
        assert_eq!(format!("{error:?}"), expected);
        let error = refusal(whole().global_batch_size(3).rank(0, 4));
        assert_eq!(error.hints(), ["use a global batch size of 4, or at most 3 ranks"]);

        let error = refusal(Batching::new(10, SequentialSampler::new(12)));
        let expected = "error[L0603]: the sampler is of a larger data set\n  sampler        sequential over 12\n  \
                        largest index  11\n  data set       10 samples\n  fix: make the sampler with this data set's \
                        length: a subset or a split counts from 0";
        assert_eq!(format!("{error:?}"), expected);
        Batching::new(10, vec![9, 9]).validate().unwrap();
        assert_eq!(refusal(Batching::new(10, vec![9, 10])).place("largest index"), Some("10"));
    }

    #[test]
    fn a_sampler_that_breaks_its_word_is_located() {
        let batching = Batching::new(10, sampler_fn(4, |_, _| Ok(vec![1, 2, 3, 10]))).batch_size(2);
        batching.validate().unwrap();
        let epoch = batching.epoch(0, 0).unwrap();
        assert_eq!(epoch.batch(0).unwrap().indices, [1, 2]);
        let expected = "error[L0604]: a sampler gave an index outside the data set\n  index               10\n  data \
                        set            10 samples\n  sampler             function of 4 indices\n  positions           \
                        2..4 of the epoch\n  place in the batch  1\n  fix: indices go from 0 to the data set's length \
                        less one";
        assert_eq!(format!("{:?}", epoch.batch(1).unwrap_err()), expected);

        let empty = Batching::of_batches(10, batch_sampler_fn(2, |_, _| Ok(vec![vec![1], vec![]])));
        let error = empty.epoch(0, 0).unwrap().batch(1).unwrap_err();
        assert_eq!(
            (error.what(), error.place("positions")),
            ("a batch sampler gave an empty batch", Some("1..2 of the epoch"))
        );

        let short = Batching::new(10, sampler_fn(4, |_, _| Ok(vec![1])).named("short"));
        let error = short.epoch(0, 6).unwrap_err();
        assert_eq!(
            (error.code(), error.place("epoch"), error.place("sampler")),
            (SAMPLER_RESULT, Some("6"), Some("short"))
        );
    }

    /// Panics for epoch 1 and at position 3.
    struct Faulty;

    impl Sampler for Faulty {
        fn len(&self) -> usize {
            4
        }

        fn order(&self, _: u64, epoch: u64) -> Result<Box<dyn Order>> {
            assert!(epoch != 1, "no such epoch");
            Ok(Box::new(Self))
        }

        fn identity(&self) -> String {
            "faulty".to_owned()
        }
    }

    impl Order for Faulty {
        fn at(&self, position: usize) -> usize {
            [7, 8, 9][position]
        }
    }

    #[test]
    fn a_panic_of_a_sampler_is_an_error() {
        let batching = Batching::new(10, Faulty);
        let error = batching.epoch(0, 1).unwrap_err();
        assert_eq!((error.code(), error.reasons()), (SAMPLER_PANICKED, &["no such epoch".to_owned()][..]));
        assert_eq!((error.place("sampler"), error.place("epoch")), (Some("faulty"), Some("1")));

        let epoch = batching.epoch(0, 0).unwrap();
        let error = epoch.batch(3).unwrap_err();
        assert_eq!(error.reasons(), ["index out of bounds: the len is 3 but the index is 3"]);
        assert_eq!(error.place("positions"), Some("3..4 of the epoch"));
        assert_eq!(epoch.batch(2).unwrap().indices, [9]);
    }

    proptest! {
        #[test]
        fn a_position_leads_back_to_its_batch_on_any_ranks(
            samples in 1_usize..1_000_000_000_000,
            share in 1_usize..10_000,
            ranks in prop::sample::select(vec![1_usize, 2, 3, 4, 6, 12]),
            tail in prop::sample::select(vec![Tail::Exact, Tail::Drop, Tail::Pad]),
            at in 0.0..=1.0,
        ) {
            let saved = Batching::whole(samples, true).global_batch_size(share * 12).tail(tail);
            let now = saved.clone().rank(ranks - 1, ranks);
            let batch = (saved.batches() as f64 * at) as usize;
            let position = saved.position_of(batch);
            prop_assert_eq!(now.batch_at(position).unwrap(), batch);
            prop_assert_eq!(now.position_of(batch), position);
            // Elsewhere no batch begins.
            if position + 1 < saved.position_of(saved.batches()) && share * 12 > 1 {
                prop_assert!(now.batch_at(position + 1).is_err());
            }
        }
    }

    fn shared(share: Share) -> Vec<Vec<usize>> {
        let mut batching = Batching::whole(13, false).global_batch_size(8);
        batching.set_share(&share).unwrap();
        let order = batching.epoch(0, 0).unwrap();
        (0..batching.batches()).map(|batch| order.batch(batch).unwrap().indices).collect()
    }

    #[test]
    fn several_parts_come_one_after_another() {
        let parts = |rank, parts| shared(Share { rank, parts, world_size: 4, uneven: false });
        assert_eq!(parts(0, 2), [vec![0, 1], vec![2, 3], vec![8, 9], vec![10]]);
        assert_eq!(parts(2, 2), [vec![4, 5], vec![6, 7], vec![11], vec![12]]);
        // Those of one rank, of two, and of four are the same batches.
        assert_eq!(parts(0, 4)[..2], parts(0, 2)[..2]);
        assert_eq!(parts(1, 1), [vec![2, 3], vec![10]]);
    }

    #[test]
    fn an_uneven_end_has_each_sample_once() {
        let mut all = Vec::new();
        for rank in 0..8 {
            let batches = shared(Share { rank, parts: 1, world_size: 8, uneven: true });
            assert_eq!(batches.len(), if rank < 5 { 2 } else { 1 });
            all.extend(batches.concat());
        }
        all.sort_unstable();
        assert_eq!(all, (0..13).collect::<Vec<_>>());
        let mut even = Batching::whole(13, false).global_batch_size(8);
        let error = even.set_share(&Share { rank: 0, parts: 1, world_size: 8, uneven: false }).unwrap_err();
        assert_eq!(error.code(), UNEVEN_TAIL);
    }

    #[test]
    fn a_part_that_was_chosen_stays() {
        let mut chosen = Batching::whole(16, false).batch_size(2).rank(1, 2);
        let share = Share { rank: 1, parts: 1, world_size: 2, uneven: false };
        chosen.set_share(&share).unwrap();
        let error = chosen.set_share(&Share { rank: 0, ..share }).unwrap_err();
        assert_eq!(error.place("the loader's"), Some("rank 1 of 2"));
    }
}
