//! [`Rank`]: the ranks of a run, as one of them sees them. What the trainer does together with others, it does here.
//!
//! Alone, each of these is a plain call: no process, no memory, no wait.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
mod gradients;
mod manifest;

use std::panic::Location;
use std::time::Duration;

use leyden_data::Share;
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

use crate::config::{Devices, TrainerConfig, Uneven};
use crate::learner::Learner;
use crate::state::{NamedTensor, Parts};

/// One of the ranks that train together, or the only one. There is one in each process, and what it does with the others
/// takes `&mut self`.
#[derive(Debug)]
pub struct Rank {
    /// Alone there is none.
    comm: Option<comm::Rank>,
    /// How many virtual ranks each rank stands for.
    parts: usize,
    gradients: Gradients,
}

impl Rank {
    /// The only one.
    pub(crate) fn alone() -> Self {
        Self { comm: None, parts: 1, gradients: Gradients::default() }
    }

    /// Launches the ranks that `config` asks for, or joins those that there are.
    ///
    /// # Errors
    /// Those of `leyden_comm::launch::world` and of joining; `C0111` where virtual ranks do not divide among ranks; `D0401`
    /// where another rank runs something else than `verb`.
    #[track_caller]
    pub(crate) fn launch(config: &TrainerConfig, verb: &str) -> Result<Self> {
        let size = match &config.devices {
            Devices::Auto => comm::environment::Environment::detect()?.world_size(),
            Devices::Count(count) => *count,
            Devices::List(ids) => ids.len(),
        };
        let virtual_ranks = config.virtual_ranks.unwrap_or(size);
        if !virtual_ranks.is_multiple_of(size) {
            return Err(Error::new(INDIVISIBLE_RANKS, "virtual ranks do not divide among the ranks")
                .at("virtual_ranks", virtual_ranks)
                .at("ranks", size)
                .hint("use a number of ranks that divides `virtual_ranks`, a power of two"));
        }
        let mut rank = Self::alone();
        rank.parts = virtual_ranks / size;
        rank.gradients = Gradients::new(config, rank.parts);
        if size > 1 {
            let mut joined = comm::launch::world(size)?.join()?;
            joined.set_limits(WARN_AFTER, config.rank_timeout);
            let place = Location::caller();
            joined.called_from(place);
            joined.phase(verb);
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

    /// Runs `f` on rank 0 while the others wait, and gives its value or its error to all.
    ///
    /// # Errors
    /// What `f` gives; those of any collective.
    #[track_caller]
    pub(crate) fn on_rank_zero<T: Serialize + DeserializeOwned>(
        &mut self,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match &mut self.comm {
            None => f(),
            Some(comm) => comm.on_rank_zero(|_| f()),
        }
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
    pub(crate) fn reduce<H>(&mut self, learner: &mut dyn Learner<H>, accumulated: u32) -> Result<u32> {
        match &mut self.comm {
            None if self.gradients.are_kept() => self.gradients.finish(learner, accumulated),
            None => Ok(accumulated),
            Some(comm) => self.gradients.reduce(comm, learner, accumulated),
        }
    }

    /// Where each rank stands for several virtual ones: keeps the gradients of one of them apart.
    pub(crate) fn keep<H>(&mut self, learner: &mut dyn Learner<H>, part: usize) -> Result<()> {
        self.gradients.keep(learner, part)
    }
}

/// Replaces tensors by those of rank 0.
fn broadcast(comm: &mut comm::Rank, tensors: &mut [NamedTensor], label: &str) -> Result<()> {
    tensors.iter_mut().try_for_each(|NamedTensor { bytes, .. }| {
        comm.broadcast_in(comm::Group::WORLD, bytes.as_mut_slice(), 0, label)
    })
}

/// How long ranks wait for one that is silent before they say so.
const WARN_AFTER: Duration = Duration::from_secs(5);

/// Ranks have different numbers of training batches.
pub const UNEVEN_LOADERS: Code = Code::new("D0405", exit::CONFIGURATION);
/// Virtual ranks do not divide among the ranks.
pub const INDIVISIBLE_RANKS: Code = Code::new("C0111", exit::CONFIGURATION);
