//! SLURM: processes that `srun` started as tasks of a step.
//!
//! An allocation is no launch. A batch script has `SLURM_PROCID=0` and the allocation's `SLURM_NTASKS`, but no step; a
//! shell in an allocation (`salloc`, `srun --pty bash`) is a step of one task, from which people start programs by hand.

use super::node_list::{expand, expand_counts};
use super::variables::{Known, Variables, address, half};
use super::{Claim, Fact, Launcher, contradiction};
use crate::Result;

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>> {
    let Some(step) = step(variables) else { return Ok(None) };
    // SLURM_NTASKS may be the allocation's, where somebody exported it; the step's own number counts.
    let world = variables.first_number(&["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"])?;
    let Some(rank) = variables.number("SLURM_PROCID")? else { return Ok(None) };
    let Some(world) = world else {
        return Err(half(&rank.from, &rank.value.to_string(), "SLURM_STEP_NUM_TASKS"));
    };
    if interactive(variables, world.value) {
        return Ok(None);
    }
    let node = variables.number("SLURM_NODEID")?;
    let nodes = variables.first_text(&["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]);
    let nodes = match nodes {
        Some(list) => Some(Known::new(expand(&list)?, list.from)),
        None => None,
    };
    let mut claim = Claim::new(Launcher::Slurm, rank, Some(world.clone()));
    claim.local_rank = variables.number("SLURM_LOCALID")?;
    claim.local_world = tasks_here(variables, &world, node.as_ref())?;
    claim.master = master(variables, nodes.as_ref(), &step)?;
    claim.run_id = run_id(variables, &step);
    claim.notes.extend(allocation_note(variables, &world)?);
    (claim.node, claim.nodes) = (node, nodes);
    Ok(Some(claim))
}

/// Why the variables of SLURM that are there make no launch, if there are any.
pub(super) fn why_not(variables: &Variables) -> Option<Fact> {
    let job = variables.first_text(&["SLURM_JOB_ID", "SLURM_JOBID"])?;
    let value = format!("inside SLURM job {}, but not started by srun", job.value);
    Some(Fact { what: "note", value, from: job.from })
}

/// The step's number, if this process is a task of one.
fn step(variables: &Variables) -> Option<Known<String>> {
    // SLURM numbers its own steps from the top: 0xfffffffd to 0xfffffffa are pending, extern, batch and interactive.
    const OWN: u32 = 0xffff_fff0;
    let step = variables.first_text(&["SLURM_STEP_ID", "SLURM_STEPID"])?;
    let own = step.value.parse().is_ok_and(|number: u32| number >= OWN);
    (!own && variables.has("SLURM_PROCID")).then_some(step)
}

/// A step of one task that is a shell: what is started from it was started by hand.
fn interactive(variables: &Variables, tasks: usize) -> bool {
    const SHELLS: [&str; 5] = ["interactive", "bash", "sh", "zsh", "fish"];
    let named = variables.text("SLURM_JOB_NAME").is_some_and(|name| SHELLS.contains(&name.value.as_str()));
    tasks == 1 && (named || variables.has("SLURM_PTY_PORT"))
}

/// How many tasks this node has: `2(x3),1` at the place of SLURM_NODEID.
fn tasks_here(
    variables: &Variables,
    world: &Known<usize>,
    node: Option<&Known<usize>>,
) -> Result<Option<Known<usize>>> {
    let Some(node) = node else { return Ok(None) };
    let step = variables.text("SLURM_STEP_TASKS_PER_NODE");
    let is_step_s = step.is_some();
    let Some(list) = step.or_else(|| variables.text("SLURM_TASKS_PER_NODE")) else { return Ok(None) };
    let counts = expand_counts(&list)?;
    let sum: usize = counts.iter().sum();
    if sum == world.value
        && let Some(&here) = counts.get(node.value)
    {
        return Ok(Some(Known::new(here, list.from)));
    }
    // That of the allocation says nothing about this step if it does not fit.
    if !is_step_s {
        return Ok(None);
    }
    let listed = format!("{sum} tasks on {} nodes, `{}` ({})", counts.len(), list.value, list.from);
    Err(contradiction(
        Launcher::Slurm,
        listed,
        format!("{} tasks ({}), this one on node {} ({})", world.value, world.from, node.value, node.from),
    ))
}

/// What the user says, else the first node; the port is one that SLURM reserved for the step, else made of the job's
/// number and the step's, which all ranks know.
fn master(
    variables: &Variables,
    nodes: Option<&Known<Vec<String>>>,
    step: &Known<String>,
) -> Result<Option<Known<(String, u16)>>> {
    let (host, port) = (variables.master_host()?, variables.master_port()?);
    let first = nodes.and_then(|nodes| {
        nodes.value.first().map(|node| Known::new(node.clone(), format!("first of {}", nodes.from)))
    });
    let port = port.or_else(|| reserved_port(variables)).or_else(|| derived_port(variables, step));
    Ok(host.or(first).zip(port).map(|(host, port)| address(host, port)))
}

/// `12000-12003`: the ports of `MpiParams=ports=…`, if the cluster reserves some.
fn reserved_port(variables: &Variables) -> Option<Known<u16>> {
    let ports = variables.text("SLURM_STEP_RESV_PORTS")?;
    let first = ports.value.split(['-', ',']).next()?.parse().ok()?;
    Some(Known::new(first, ports.from))
}

/// Below the range from which systems choose ports by themselves (32768 on Linux). Two jobs on one node can meet on it,
/// once in ten thousand: set MASTER_PORT then.
fn derived_port(variables: &Variables, step: &Known<String>) -> Option<Known<u16>> {
    const FIRST: u16 = 15_000;
    let job = variables.first_text(&["SLURM_JOB_ID", "SLURM_JOBID"])?;
    let number = job.value.parse::<u64>().ok()?.wrapping_add(step.value.parse().ok()?);
    Some(Known::new(
        FIRST + (number % 10_000) as u16,
        format!("{FIRST} + ({} + {}) % 10000", job.from, step.from),
    ))
}

/// `42.0`; of a job that was requeued `42.0.1`.
fn run_id(variables: &Variables, step: &Known<String>) -> Option<Known<String>> {
    let job = variables.first_text(&["SLURM_JOB_ID", "SLURM_JOBID"])?;
    let mut id = Known::new(format!("{}.{}", job.value, step.value), format!("{}, {}", job.from, step.from));
    if let Some(count) = variables.text("SLURM_RESTART_COUNT").filter(|count| count.value != "0") {
        id = Known::new(format!("{}.{}", id.value, count.value), format!("{}, {}", id.from, count.from));
    }
    Some(id)
}

fn allocation_note(variables: &Variables, world: &Known<usize>) -> Result<Option<Fact>> {
    let allocated = variables.number("SLURM_NTASKS")?;
    Ok(allocated.filter(|allocated| allocated.value != world.value).map(|allocated| Fact {
        what: "note",
        value: format!("the step has {} of {} tasks", world.value, allocated.value),
        from: format!("{}, {}", world.from, allocated.from),
    }))
}
