//! [`Rank`]: the ranks of a run, as one of them sees them. What the trainer does together with others, it does here.
//!
//! Alone, each of these is a plain call: no process, no memory, no wait.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
mod gradients;
mod manifest;

use std::panic::Location;
use std::path::Path;
use std::time::Duration;

use leyden_data::{Loader, Share, mix};
use leyden_process::{Code, Error, Result, exit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use gradients::Gradients;
pub use gradients::UNUSED_PARAMETER;
pub(crate) use manifest::Manifest;
pub use manifest::OTHER_ON_RANKS;

#[cfg(not(target_os = "linux"))]
use elsewhere as comm;
#[cfg(target_os = "linux")]
use leyden_comm as comm;

use crate::checkpoint::Checkpoint;
use crate::config::{TrainerConfig, Uneven};
use crate::fabric::Logging;
use crate::learner::{HasGradients, Learner, Parameter};
use crate::state::{LearnerState, NamedTensor, Parts};

/// One of the ranks that train together, or the only one: what [`Fabric::launch`](crate::Fabric::launch) gives. There is one in
/// each process, and what it does with the others takes `&mut self`, so that two threads cannot mix theirs.
///
/// Each of its collectives ends in the same error on every rank that waits, if one does something else, has ended, or has died.
#[derive(Debug)]
pub struct Rank {
    /// Alone there is none.
    comm: Option<comm::Rank>,
    /// How many virtual ranks each rank stands for.
    parts: usize,
    gradients: Gradients,
    pub(crate) seed: u64,
    pub(crate) logging: Logging,
}

/// What [`Rank::on_rank_zero`] lends to its closure: that it runs on rank 0 alone. It has no collectives.
#[derive(Debug)]
pub struct RankZero(());

impl Rank {
    /// The only one.
    pub(crate) fn alone() -> Self {
        Self { comm: None, parts: 1, gradients: Gradients::default(), seed: 0, logging: Logging::default() }
    }

    /// Launches the ranks that `config` asks for, or joins those that there are.
    ///
    /// # Errors
    /// Those of `leyden_comm::launch::world` and of joining; `C0111` where virtual ranks do not divide among ranks; `D0401`
    /// where another rank runs something else than `verb`.
    #[track_caller]
    pub(crate) fn launch(config: &TrainerConfig, verb: &str) -> Result<Self> {
        let size = config.ranks()?;
        let virtual_ranks = config.virtual_ranks.unwrap_or(size);
        if !virtual_ranks.is_multiple_of(size) {
            return Err(Error::new(INDIVISIBLE_RANKS, "virtual ranks do not divide among the ranks")
                .at("virtual_ranks", virtual_ranks)
                .at("ranks", size)
                .hint("use a number of ranks that divides `virtual_ranks`, a power of two"));
        }
        if config.virtual_ranks.is_some() && size > MOST_OF_A_TREE {
            return Err(Error::new(INDIVISIBLE_RANKS, "virtual ranks are summed on few ranks")
                .at("ranks", size)
                .at("most", MOST_OF_A_TREE)
                .hint("use fewer ranks, or leave `virtual_ranks` out"));
        }
        let mut rank = Self::alone();
        rank.parts = virtual_ranks / size;
        rank.gradients = Gradients::new(config, rank.parts);
        if size > 1 {
            let mut joined = comm::launch::world(size)?.join()?;
            joined.set_limits(WARN_AFTER, config.rank_timeout);
            let place = Location::caller();
            if verb != LAUNCH {
                // Its collectives are the trainer's. Those of a fabric are the user's own lines.
                joined.called_from(place);
                joined.phase(verb);
            }
            rank.comm = Some(joined);
            rank.begin(verb, place)?;
        }
        Ok(rank)
    }

    /// Checks that all ranks have begun the same.
    fn begin(&mut self, verb: &str, place: &Location<'_>) -> Result<()> {
        let hash = Manifest::default().and("verb", verb).hash();
        let all = self.gather([hash], &format!("the start of `{verb}`"))?;
        if all.iter().all(|[other]| *other == hash) {
            return Ok(());
        }
        let places = self
            .gather_objects(&format!("`{verb}` at {}:{}", place.file(), place.line()), "what ranks begin")?;
        let error = Error::new(OTHER_ON_RANKS, "ranks do not run the same");
        let error = places
            .iter()
            .enumerate()
            .fold(error, |error, (rank, place)| error.at(format!("rank {rank}"), place));
        Err(error
            .why("each rank runs the whole program: something there depends on the rank, on time or on chance")
            .hint("let every rank call the same, in the same order; what rank 0 alone is to do goes into `prepare_data` or a callback"))
    }

    /// This rank's number, from 0 (Lightning: `global_rank`).
    pub fn rank(&self) -> usize {
        self.comm.as_ref().map_or(0, comm::Rank::rank)
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.comm.as_ref().map_or(1, comm::Rank::world_size)
    }

    /// Whether this is the rank that writes files and talks (Lightning: `is_global_zero`).
    pub fn is_global_zero(&self) -> bool {
        self.rank() == 0
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.comm.is_none()
    }

    /// How many batches make a step of this rank: as many as it stands for virtual ranks.
    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// The virtual rank of part `part` of a step; where there are none, the rank.
    pub(crate) fn part(&self, part: usize) -> usize {
        self.rank() * self.parts + part
    }

    /// What this rank takes of the data.
    pub(crate) fn share(&self, uneven: bool) -> Share {
        match uneven {
            // Evaluation has no steps: each rank takes one part.
            true => Share { rank: self.rank(), parts: 1, world_size: self.world_size(), uneven },
            false => Share {
                rank: self.rank() * self.parts,
                parts: self.parts,
                world_size: self.world_size() * self.parts,
                uneven,
            },
        }
    }

    /// Runs `f` on rank 0 while the others wait, and gives its value, or its error, to all (Lightning: `rank_zero_only` and a
    /// barrier). No collective can be called in it: it does not compile. It may take 30 minutes.
    ///
    /// # Errors
    /// What `f` gives, on every rank; `D0111` if it panics; those of any collective.
    ///
    /// ```compile_fail
    /// # fn f(rank: &mut leyden_train::Rank) -> leyden_process::Result<()> {
    /// rank.on_rank_zero(|_| rank.barrier("inside"))
    /// # }
    /// ```
    #[track_caller]
    pub fn on_rank_zero<T: Serialize + DeserializeOwned>(
        &mut self,
        f: impl FnOnce(&RankZero) -> Result<T>,
    ) -> Result<T> {
        match &mut self.comm {
            None => f(&RankZero(())),
            Some(comm) => comm.on_rank_zero(|_| f(&RankZero(()))),
        }
    }

    /// Waits until all ranks are here (PyTorch: `dist.barrier()`).
    ///
    /// # Errors
    /// As every collective: `D0103` if ranks disagree, `D0104` if one has left, `D0105` if one died, `D0106` if ranks wait
    /// for each other, `D0107` if one does not come; what a rank has failed of before.
    #[track_caller]
    pub fn barrier(&mut self, label: &str) -> Result<()> {
        self.comm.as_mut().map_or(Ok(()), |comm| comm.barrier(label))
    }

    /// Whether any rank says so: for a loop that all leave together.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier).
    #[track_caller]
    pub fn agree_any(&mut self, flag: bool, label: &str) -> Result<bool> {
        self.comm.as_mut().map_or(Ok(flag), |comm| comm.agree_any(flag, label))
    }

    /// Makes of each element what `op` makes of those of all ranks, on all ranks (PyTorch: `dist.all_reduce`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` for a mean of integers.
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn all_reduce<T: comm::Element>(&mut self, data: &mut [T], op: comm::ReduceOp) -> Result<()> {
        self.comm.as_mut().map_or(Ok(()), |comm| comm.all_reduce(data, op))
    }

    /// The elements of all ranks, those of rank 0 first (PyTorch: `dist.all_gather`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier).
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn all_gather<T: comm::Element>(&mut self, data: &[T]) -> Result<Vec<T>> {
        self.comm.as_mut().map_or_else(|| Ok(data.to_vec()), |comm| comm.all_gather(data))
    }

    /// Gives all ranks the elements of `root` (PyTorch: `dist.broadcast`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0108` if there is no such rank.
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn broadcast<T: comm::Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.comm.as_mut().map_or(Ok(()), |comm| comm.broadcast(data, root))
    }

    /// What each rank has, in their order, on all ranks (PyTorch: `dist.all_gather_object`).
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier); `D0109`, on all ranks, if one cannot be serialised or read back.
    #[track_caller]
    pub fn all_gather_object<T: Serialize + DeserializeOwned + Clone>(
        &mut self,
        value: &T,
        label: &str,
    ) -> Result<Vec<T>> {
        self.gather_objects(value, label)
    }

    /// Announces that what `f` does takes up to `budget`: the others wait that long, and say what for.
    #[track_caller]
    pub fn long_op<T>(&mut self, name: &str, budget: Duration, f: impl FnOnce() -> T) -> T {
        match &mut self.comm {
            None => f(),
            Some(comm) => comm.long_op(name, budget, f),
        }
    }

    /// The seed for what is random on this rank, another on each (Lightning: `seed_everything`): that of the fabric, mixed with
    /// the rank's number above 0.
    pub fn seed(&self) -> u64 {
        match self.rank() {
            0 => self.seed,
            rank => mix(self.seed, &[rank as u64]),
        }
    }

    /// The same loader, with this rank's part of each step (Lightning: `setup_dataloaders`).
    ///
    /// # Errors
    /// `L0101` if it has chosen another part, or does not know of ranks; those of a part that cannot be had.
    pub fn setup_loader<B, L: Loader<B>>(&mut self, mut loader: L) -> Result<L> {
        loader.set_share(&self.share(false))?;
        loader.set_default_seed(self.seed);
        Ok(loader)
    }

    /// The same loader for an evaluation: each sample is on one rank, however few there are, so that ranks may have different
    /// numbers of batches, and no collective belongs into its loop.
    ///
    /// # Errors
    /// As [`setup_loader`](Self::setup_loader).
    pub fn setup_eval_loader<B, L: Loader<B>>(&mut self, mut loader: L) -> Result<L> {
        loader.set_share(&self.share(true))?;
        loader.set_default_seed(self.seed);
        Ok(loader)
    }

    /// A line on stdout, from rank 0 alone.
    pub fn print(&self, text: &str) {
        if self.is_global_zero() {
            crate::say::print(&format!("{text}\n"));
        }
    }

    /// Gives the loggers values, on rank 0; elsewhere nothing happens: reduce first what is to be that of all.
    ///
    /// # Errors
    /// The loggers'; `K0105` if their folder cannot be made.
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        if self.is_global_zero() { self.logging.log(step, values) } else { Ok(()) }
    }

    /// Checks that all ranks have the same parameters: path, type, shape, order, and whether they are trained.
    ///
    /// # Errors
    /// `D0401`, on all ranks, with all that differs.
    #[track_caller]
    pub fn verify_parameters(&mut self, parameters: &[Parameter]) -> Result<()> {
        self.verify(&Manifest::new().parameters(parameters))
    }

    /// Replaces tensors by those of rank 0, which are as many and of the same sizes.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier).
    #[track_caller]
    pub fn broadcast_tensors(&mut self, tensors: &mut [NamedTensor]) -> Result<()> {
        self.comm.as_mut().map_or(Ok(()), |comm| broadcast(comm, tensors, "the tensors of rank 0"))
    }

    /// Saves a checkpoint, which `leyden_train::Checkpoint` and any safetensors reader reads: rank 0 asks `state` for it and
    /// writes it, while the others wait.
    ///
    /// # Errors
    /// `K0101`, on all ranks, if the file cannot be written; what `state` gives; as [`barrier`](Self::barrier).
    #[track_caller]
    pub fn save(
        &mut self,
        path: impl AsRef<Path>,
        state: impl FnOnce() -> Result<LearnerState>,
    ) -> Result<()> {
        self.on_rank_zero(|_| Checkpoint { learner: state()?, run: None }.write(path.as_ref()))
    }

    /// Reads a checkpoint, on each rank.
    ///
    /// # Errors
    /// `K0102` if there is no such file, `K0103` if it is damaged.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LearnerState> {
        Ok(Checkpoint::read(path.as_ref())?.learner)
    }

    /// [`on_rank_zero`](Self::on_rank_zero) for the trainer.
    pub(crate) fn zero<T: Serialize + DeserializeOwned>(
        &mut self,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.on_rank_zero(|_| f())
    }

    /// The words of all ranks, rank by rank.
    pub(crate) fn gather<const N: usize>(&mut self, words: [i64; N], label: &str) -> Result<Vec<[i64; N]>> {
        match &mut self.comm {
            None => Ok(vec![words]),
            Some(comm) => {
                let all = comm.all_gather_in(comm::Group::WORLD, &words, label)?;
                Ok(all.as_chunks::<N>().0.to_vec())
            }
        }
    }

    /// What each rank has, rank by rank.
    pub(crate) fn gather_objects<T: Serialize + DeserializeOwned + Clone>(
        &mut self,
        value: &T,
        label: &str,
    ) -> Result<Vec<T>> {
        match &mut self.comm {
            None => Ok(vec![value.clone()]),
            Some(comm) => comm.all_gather_object(value, label),
        }
    }

    /// What this rank does from here on, for the errors of those that wait for it.
    #[inline]
    pub(crate) fn phase(&mut self, name: &str) {
        if let Some(comm) = &mut self.comm {
            comm.phase(name);
        }
    }

    /// The run has failed on this rank: so it has on all, which are told why.
    pub(crate) fn fail(&self, error: Error) -> Error {
        match &self.comm {
            None => error,
            Some(comm) => comm.fail(error),
        }
    }

    /// Checks that all ranks are about to do the same.
    ///
    /// # Errors
    /// `D0401`, on all ranks, with all that differs.
    pub(crate) fn verify(&mut self, manifest: &Manifest) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let hash = manifest.hash();
        let all = self.gather([hash], "the check that all ranks train the same")?;
        if all.iter().all(|[other]| *other == hash) {
            return Ok(());
        }
        let all = self.gather_objects(manifest, "what differs between ranks")?;
        Err(manifest::difference(&all))
    }

    /// How many steps an epoch has, of which this rank's loader makes `own`.
    ///
    /// # Errors
    /// `D0405`, on all ranks, if others have another number and the strategy does not say what becomes of that.
    pub(crate) fn steps(&mut self, own: usize) -> Result<usize> {
        let all: Vec<usize> =
            self.gather([own as i64], "steps of an epoch")?.iter().map(|[own]| *own as usize).collect();
        match (all.iter().min(), all.iter().max()) {
            (Some(fewest), Some(most)) if fewest != most => match self.gradients.uneven() {
                Uneven::Drop => Ok(*fewest),
                Uneven::Join => Ok(*most),
                Uneven::Error => {
                    let error =
                        Error::new(UNEVEN_LOADERS, "ranks have different numbers of training batches");
                    let error = all
                        .iter()
                        .enumerate()
                        .fold(error, |error, (rank, batches)| error.at(format!("rank {rank}"), batches));
                    Err(error
                        .why("a rank without a batch would leave the others waiting for its gradients")
                        .hint("give each rank as many: a `DataLoader` does, when its data set is the same on all ranks")
                        .hint("or say what becomes of the others: `.strategy(Ddp::default().uneven(Uneven::Drop))`, or `Join`"))
                }
            },
            _ => Ok(own),
        }
    }

    /// Gives the learner of each rank the weights and buffers of rank 0's.
    pub(crate) fn sync<H>(&mut self, learner: &mut dyn Learner<H>) -> Result<()> {
        let Some(comm) = &mut self.comm else { return Ok(()) };
        let mut state = learner.state(Parts::Weights)?;
        broadcast(comm, &mut state.weights, "the weights of rank 0")?;
        if comm.rank() == 0 { Ok(()) } else { learner.load(state, Parts::Weights) }
    }

    /// The same for what is not trained, such as running means, of which each rank has its own.
    pub(crate) fn sync_buffers<H>(&mut self, learner: &mut dyn Learner<H>) -> Result<()> {
        let Some(comm) = &mut self.comm else { return Ok(()) };
        let mut buffers = learner.buffers()?;
        broadcast(comm, &mut buffers, "the buffers of rank 0")?;
        if comm.rank() == 0 { Ok(()) } else { learner.load_buffers(buffers) }
    }

    /// Makes of the learner's gradient sums those of all ranks, of `accumulated` batches here; gives how many batches they
    /// are of on all ranks together. Without any, nothing is done.
    pub fn reduce_gradients(&mut self, learner: &mut dyn HasGradients, accumulated: u32) -> Result<u32> {
        match &mut self.comm {
            None if self.gradients.are_kept() => self.gradients.finish(learner, accumulated),
            None => Ok(accumulated),
            Some(comm) => self.gradients.reduce(comm, learner, accumulated),
        }
    }

    /// Where each rank stands for several virtual ones: keeps the gradients of one of them apart.
    pub(crate) fn keep(&mut self, learner: &mut dyn HasGradients, part: usize) -> Result<()> {
        self.gradients.keep(learner, part)
    }
}

/// Replaces tensors by those of rank 0.
fn broadcast(comm: &mut comm::Rank, tensors: &mut [NamedTensor], label: &str) -> Result<()> {
    tensors.iter_mut().try_for_each(|NamedTensor { bytes, .. }| {
        comm.broadcast_in(comm::Group::WORLD, bytes.as_mut_slice(), 0, label)
    })
}

/// What a [`Fabric`](crate::Fabric) begins.
pub(crate) const LAUNCH: &str = "launch";

/// The most ranks over which virtual ones are summed: each pair of each round is a group, of which there are few.
const MOST_OF_A_TREE: usize = 8;

/// How long ranks wait for one that is silent before they say so.
const WARN_AFTER: Duration = Duration::from_secs(5);

/// Ranks have different numbers of training batches.
pub const UNEVEN_LOADERS: Code = Code::new("D0405", exit::CONFIGURATION);
/// Virtual ranks do not divide among the ranks.
pub const INDIVISIBLE_RANKS: Code = Code::new("C0111", exit::CONFIGURATION);
