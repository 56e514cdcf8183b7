//! Where this process stands among the ranks of a run, as the launcher that started it says: rank, world size, hosts,
//! the master's address. Reads variables and does nothing else: no file, no name look-up, no socket.
//!
//! | launcher | says so by | file |
//! |---|---|---|
//! | torchrun, or the `env://` set by hand | `RANK` and `WORLD_SIZE` | `environment/torchrun.rs` |
//! | SLURM's `srun` | `SLURM_PROCID` and a step's `SLURM_STEP_ID` | `environment/slurm.rs` |
//! | Open MPI's `mpirun` | `OMPI_COMM_WORLD_RANK` and `_SIZE` | `environment/open_mpi.rs` |
//! | PMIx | `PMIX_RANK`, and `WORLD_SIZE` from the user | `environment/pmi.rs` |
//! | PMI: MPICH's `mpiexec`, and what grew out of it | `PMI_RANK` and `PMI_SIZE` | `environment/pmi.rs` |
//!
//! LSF, Kubeflow and Kubernetes get a file and a line here when they come; what they set in PyTorch's form is read as
//! torchrun's already.
//!
//! **When several launchers have left their variables.** If all agree on rank and world size, the first in the table's
//! order is named. If they do not, one of them may have started the other: `torchrun` or `mpirun` runs inside a SLURM
//! step as a task per node, and its ranks inherit the task's variables. Then the inner one counts, if the outer one has
//! started no more processes than the inner one may have agents. Anything else is an error that names both. `RANK` or
//! `WORLD_SIZE` alone is no launcher's; beside one it must agree with it. A SLURM
//! *allocation* (a batch script, `salloc`, a shell from `srun --pty`) is not a launch.
//!
//! ```
//! use leyden_comm::environment::{Environment, Launcher};
//!
//! let variables = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")];
//! let environment = Environment::from_variables(variables)?;
//! assert_eq!((environment.rank(), environment.world_size()), (5, 8));
//! assert_eq!(environment.launcher(), Launcher::Torchrun);
//! assert_eq!(environment.local_rank(), Some(1));
//! println!("{environment}");
//! # Ok::<(), leyden_comm::Error>(())
//! ```

mod node_list;
mod open_mpi;
mod pmi;
mod slurm;
mod torchrun;
mod variables;

use std::fmt;

use crate::codes::{LAUNCHER_CONTRADICTS, LAUNCHERS_DISAGREE, RANK_RANGE};
use crate::{Error, Result};
use variables::{Known, Variables};

/// Who started this process as a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// Nobody: one process by itself.
    None,
    /// PyTorch's torchrun, or whoever sets `RANK` and `WORLD_SIZE` as it does.
    Torchrun,
    /// SLURM's `srun`.
    Slurm,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// A launcher that speaks PMI: MPICH's `mpiexec` (Hydra).
    Pmi,
    /// A launcher that speaks PMIx: `prterun`.
    PmiX,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Torchrun => "torchrun",
            Self::Slurm => "SLURM (srun)",
            Self::OpenMpi => "Open MPI (mpirun)",
            Self::Pmi => "PMI (mpiexec)",
            Self::PmiX => "PMIx (prterun)",
        })
    }
}

/// One line of what was detected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is about: `rank`, `master`, `note`.
    pub what: &'static str,
    /// What was found.
    pub value: String,
    /// The variables that it came from; empty where it came from none.
    pub from: String,
}

/// What the launcher says about this process. Printing it shows which variable each value came from.
#[derive(Clone, Debug)]
pub struct Environment {
    launcher: Launcher,
    rank: usize,
    world_size: usize,
    local_rank: Option<usize>,
    local_world_size: Option<usize>,
    node_rank: Option<usize>,
    nodes: Vec<String>,
    master: Option<(String, u16)>,
    run_id: Option<String>,
    facts: Vec<Fact>,
}

impl Environment {
    /// Reads the variables of this process.
    ///
    /// # Errors
    ///
    /// `D0301` a number is none, `D0302` half of a set is missing, `D0303` a rank is not below its world size, `D0304` two
    /// launchers disagree, `D0305` and `D0306` a compressed list cannot be read or is too long, `D0307` a launcher
    /// contradicts itself, `D0308` the master's address is none.
    pub fn detect() -> Result<Self> {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self::from_variables(std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))))
    }

    /// Reads these variables instead. One whose value is empty counts as not set.
    ///
    /// # Errors
    ///
    /// As [`detect`](Self::detect).
    pub fn from_variables<N, V>(variables: impl IntoIterator<Item = (N, V)>) -> Result<Self>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let variables =
            Variables::new(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        // In the order in which they are named if they agree.
        let mut claims = Vec::new();
        claims.extend(torchrun::claim(&variables)?);
        claims.extend(slurm::claim(&variables)?);
        claims.extend(open_mpi::claim(&variables)?);
        claims.extend(pmi::claim_pmix(&variables)?);
        claims.extend(pmi::claim_pmi(&variables)?);
        let half = torchrun::half_set(&variables)?;
        match (settle(claims)?, half) {
            (Some(claim), half) => claim.into_environment(half),
            (None, Some(half)) => Err(half.into_error()),
            (None, None) => Ok(Self::alone(slurm::why_not(&variables))),
        }
    }

    fn alone(note: Option<Fact>) -> Self {
        let fact = |what, value: &str| Fact { what, value: value.to_owned(), from: String::new() };
        let mut facts = vec![fact("launcher", "none"), fact("rank", "0 of 1")];
        facts.extend(note);
        Self {
            launcher: Launcher::None,
            rank: 0,
            world_size: 1,
            local_rank: Some(0),
            local_world_size: Some(1),
            node_rank: Some(0),
            nodes: Vec::new(),
            master: None,
            run_id: None,
            facts,
        }
    }

    /// Who started this process.
    pub fn launcher(&self) -> Launcher {
        self.launcher
    }

    /// This process among all: `0..world_size`.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes take part; at least 1.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// This process among those of its host, below [`local_world_size`](Self::local_world_size); `None` if the launcher
    /// does not say (only `RANK` and `WORLD_SIZE` were set).
    pub fn local_rank(&self) -> Option<usize> {
        self.local_rank
    }

    /// How many processes take part on this host; `None` if the launcher does not say.
    pub fn local_world_size(&self) -> Option<usize> {
        self.local_world_size
    }

    /// This host among all; `None` if the launcher does not say (MPI's do not).
    pub fn node_rank(&self) -> Option<usize> {
        self.node_rank
    }

    /// The hosts in the order of [`node_rank`](Self::node_rank); empty unless the launcher lists them (SLURM does).
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Host and port where the ranks meet; `None` if it is not known.
    pub fn master(&self) -> Option<(&str, u16)> {
        self.master.as_ref().map(|(host, port)| (host.as_str(), *port))
    }

    /// What tells this run from others of the same launcher: the same on all its ranks.
    pub fn run_id(&self) -> Option<&str> {
        self.run_id.as_deref()
    }

    /// What was detected, and from which variables.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }
}

/// A table: what, value, the variables it came from.
impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Fact) -> &str| self.facts.iter().map(|fact| text(fact).len()).max();
        let what_width = width(|fact| fact.what).unwrap_or(0);
        // A long note must not push everybody's last column away.
        let value_width = width(|fact| &fact.value).unwrap_or(0).min(24);
        for (index, Fact { what, value, from }) in self.facts.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            let line = format!("{what:<what_width$}  {value:<value_width$}  {from}");
            write!(f, "{end}{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// What one launcher says.
struct Claim {
    launcher: Launcher,
    rank: Known<usize>,
    world: Option<Known<usize>>,
    local_rank: Option<Known<usize>>,
    local_world: Option<Known<usize>>,
    node: Option<Known<usize>>,
    nodes: Option<Known<Vec<String>>>,
    master: Option<Known<(String, u16)>>,
    run_id: Option<Known<String>>,
    /// How many agents of this launcher another may have started, if it has agents at all.
    agents: Option<usize>,
    notes: Vec<Fact>,
}

impl Claim {
    fn new(launcher: Launcher, rank: Known<usize>, world: Option<Known<usize>>) -> Self {
        Self {
            launcher,
            rank,
            world,
            local_rank: None,
            local_world: None,
            node: None,
            nodes: None,
            master: None,
            run_id: None,
            agents: None,
            notes: Vec::new(),
        }
    }

    fn agrees_with(&self, other: &Self) -> bool {
        let worlds = self.world.as_ref().zip(other.world.as_ref());
        self.rank.value == other.rank.value && worlds.is_none_or(|(ours, theirs)| ours.value == theirs.value)
    }

    /// Whether `outer` can have started this launcher's agents, which then started this process.
    fn may_be_inside(&self, outer: &Self) -> bool {
        let started = outer.world.as_ref().map(|world| world.value);
        self.agents.zip(started).is_some_and(|(agents, started)| started <= agents)
    }

    /// Takes what only `other` knows. Node and nodes go together: another launcher may count the hosts in another order.
    fn complete(&mut self, other: Self) {
        self.local_rank = self.local_rank.take().or(other.local_rank);
        self.local_world = self.local_world.take().or(other.local_world);
        if self.node.is_none() && self.nodes.is_none() {
            (self.node, self.nodes) = (other.node, other.nodes);
        }
        self.master = self.master.take().or(other.master);
        self.run_id = self.run_id.take().or(other.run_id);
        self.notes.extend(other.notes);
    }

    /// `rank 3 of 8 (RANK, WORLD_SIZE)`.
    fn says(&self) -> String {
        match &self.world {
            Some(world) => {
                format!("rank {} of {} ({}, {})", self.rank.value, world.value, self.rank.from, world.from)
            }
            None => format!("rank {} ({})", self.rank.value, self.rank.from),
        }
    }

    fn into_environment(self, half: Option<torchrun::Half>) -> Result<Environment> {
        // Scripts export WORLD_SIZE alone beside a launcher that gives the ranks. It must be true, and PMIx needs it.
        let (rank, world) = half.map_or((None, None), |half| (half.rank, half.world));
        self.must_say("rank", &Some(self.rank.clone()), rank)?;
        self.must_say("number of ranks", &self.world, world.clone())?;
        let Some(world) = self.world.clone().or(world) else {
            return Err(pmi::size_is_missing(&self.rank));
        };
        below("rank", &self.rank, "the number of ranks", &world)?;
        if let Some((local, locals)) = self.local_rank.as_ref().zip(self.local_world.as_ref()) {
            below("local rank", local, "the number of ranks on this host", locals)?;
        }
        if let Some(locals) = self.local_world.as_ref().filter(|locals| locals.value > world.value) {
            return Err(contradiction(
                self.launcher,
                format!("{} ranks on this host ({})", locals.value, locals.from),
                format!("{} ranks in all ({})", world.value, world.from),
            ));
        }
        if let Some((node, nodes)) = self.node.as_ref().zip(self.nodes.as_ref())
            && node.value >= nodes.value.len()
        {
            return Err(contradiction(
                self.launcher,
                format!("node {} ({}), counted from 0", node.value, node.from),
                format!("{} nodes ({})", nodes.value.len(), nodes.from),
            ));
        }
        let facts = self.facts(&world);
        Ok(Environment {
            launcher: self.launcher,
            rank: self.rank.value,
            world_size: world.value,
            local_rank: self.local_rank.map(|known| known.value),
            local_world_size: self.local_world.map(|known| known.value),
            node_rank: self.node.map(|known| known.value),
            nodes: self.nodes.map(|known| known.value).unwrap_or_default(),
            master: self.master.map(|known| known.value),
            run_id: self.run_id.map(|known| known.value),
            facts,
        })
    }

    /// Refuses `other` if it says something else.
    fn must_say(&self, what: &str, ours: &Option<Known<usize>>, other: Option<Known<usize>>) -> Result<()> {
        let Some((ours, other)) = ours.as_ref().zip(other) else { return Ok(()) };
        if ours.value == other.value {
            return Ok(());
        }
        Err(Error::new(
            LAUNCHERS_DISAGREE,
            format!("{} contradicts the {what} of {}", other.from, self.launcher),
        )
        .at(other.from.clone(), other.value)
        .at(ours.from.clone(), ours.value)
        .hint(format!("unset {}, or give it the launcher's value", other.from)))
    }

    fn facts(&self, world: &Known<usize>) -> Vec<Fact> {
        let nodes = self.nodes.as_ref();
        let count = nodes.map(|nodes| Known::new(nodes.value.len(), &nodes.from));
        let mut facts =
            vec![Fact { what: "launcher", value: self.launcher.to_string(), from: String::new() }];
        facts.extend(counted("rank", Some(&self.rank), Some(world)));
        facts.extend(counted("local rank", self.local_rank.as_ref(), self.local_world.as_ref()));
        facts.extend(counted("node", self.node.as_ref(), count.as_ref()));
        let one = |what, value: String, from: &str| Fact { what, value, from: from.to_owned() };
        facts.extend(nodes.map(|nodes| one("nodes", node_list::compress(&nodes.value), &nodes.from)));
        facts.extend(self.master.as_ref().map(|master| {
            let (host, port) = &master.value;
            one("master", format!("{host}:{port}"), &master.from)
        }));
        facts.extend(self.run_id.as_ref().map(|run| one("run", run.value.clone(), &run.from)));
        facts.extend(self.notes.iter().cloned());
        facts
    }
}

/// The claim that counts.
fn settle(mut claims: Vec<Claim>) -> Result<Option<Claim>> {
    // Who can be inside whom is known by what they are: nobody starts `srun` by `mpirun`.
    let depth = |claim: &Claim| match claim.launcher {
        Launcher::None | Launcher::Slurm => 0,
        Launcher::Pmi => 1,
        Launcher::PmiX => 2,
        Launcher::OpenMpi => 3,
        Launcher::Torchrun => 4,
    };
    let agree = claims.iter().enumerate().all(|(index, one)| {
        // PMIx alone knows no size, so agreement is not transitive: compare all pairs.
        claims[index + 1..].iter().all(|other| one.agrees_with(other))
    });
    if claims.is_empty() {
        return Ok(None);
    }
    let leader = if agree {
        claims.iter().position(|claim| claim.world.is_some()).unwrap_or(0)
    } else {
        (0..claims.len()).max_by_key(|&index| depth(&claims[index])).unwrap_or(0)
    };
    let mut leader = claims.remove(leader);
    for other in claims {
        // More agents than there can be are so many runs apart from each other, even where two ranks are the same by chance.
        let too_many = leader.agents.is_some() && other.world.is_some() && !leader.may_be_inside(&other);
        if leader.agrees_with(&other) && !too_many {
            leader.complete(other);
        } else if leader.may_be_inside(&other) {
            leader.notes.push(Fact {
                what: "note",
                value: format!("{} started the agents of {}", other.launcher, leader.launcher),
                from: other.says(),
            });
        } else {
            return Err(disagreement(&leader, &other));
        }
    }
    Ok(Some(leader))
}

fn disagreement(one: &Claim, other: &Claim) -> Error {
    let why = match (one.agents, &other.world) {
        (Some(agents), Some(world)) => format!(
            "{} started {} processes, more than {} can have as agents ({agents})",
            other.launcher, world.value, one.launcher
        ),
        _ => "their variables are both there, and neither can have started the other".to_owned(),
    };
    Error::new(LAUNCHERS_DISAGREE, "two launchers disagree about which rank this process is")
        .at(one.launcher.to_string(), one.says())
        .at(other.launcher.to_string(), other.says())
        .why(why)
        .hint("unset the variables that are left over from elsewhere")
        .hint("to run one launcher inside the other, let the outer one start one process per node")
}

fn contradiction(launcher: Launcher, one: String, other: String) -> Error {
    Error::new(LAUNCHER_CONTRADICTS, format!("the variables of {launcher} contradict each other"))
        .at("one", one)
        .at("other", other)
        .hint("unset what was set by hand, or is left over from another job")
}

fn below(what: &str, index: &Known<usize>, of: &str, count: &Known<usize>) -> Result<()> {
    if index.value < count.value {
        return Ok(());
    }
    Err(Error::new(RANK_RANGE, format!("the {what} {} is not below {of}, {}", index.value, count.value))
        .at(what, format!("{} ({})", index.value, index.from))
        .at("number", format!("{} ({})", count.value, count.from))
        .why("ranks are counted from 0")
        .hint("give every process the same number of ranks, and each a rank of its own below it"))
}

/// `3 of 8`.
fn counted(what: &'static str, index: Option<&Known<usize>>, count: Option<&Known<usize>>) -> Option<Fact> {
    let index = index?;
    let (value, from) = match count {
        Some(count) => {
            (format!("{} of {}", index.value, count.value), format!("{}, {}", index.from, count.from))
        }
        None => (index.value.to_string(), index.from.clone()),
    };
    Some(Fact { what, value, from })
}
