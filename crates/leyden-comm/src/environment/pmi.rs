//! PMI (MPICH's Hydra and its kin) and PMIx.
//!
//! PMI gives rank and size as variables. PMIx gives the rank alone; its size is behind a library, so the user passes it:
//! `prterun -n 4 -x WORLD_SIZE=4 …`.

use super::open_mpi::explicit_master;
use super::variables::{Known, Variables, half};
use super::{Claim, Launcher};
use crate::{Error, Result};

pub(super) fn claim_pmix(variables: &Variables) -> Result<Option<Claim>> {
    let Some(rank) = variables.number("PMIX_RANK")? else { return Ok(None) };
    let mut claim = Claim::new(Launcher::PmiX, rank, None);
    claim.agents = variables.number("WORLD_SIZE")?.map(|world| world.value);
    claim.master = explicit_master(variables)?;
    claim.run_id = variables.text("PMIX_NAMESPACE");
    Ok(Some(claim))
}

pub(super) fn claim_pmi(variables: &Variables) -> Result<Option<Claim>> {
    let Some((rank, world)) = variables.pair("PMI_RANK", "PMI_SIZE")? else { return Ok(None) };
    let agents = Some(world.value);
    let mut claim = Claim::new(Launcher::Pmi, rank, Some(world));
    claim.agents = agents;
    claim.local_rank = variables.first_number(&["MPI_LOCALRANKID", "PMI_LOCAL_RANK"])?;
    claim.local_world = variables.first_number(&["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"])?;
    claim.master = explicit_master(variables)?;
    Ok(Some(claim))
}

/// PMIx has said a rank, and nobody the number of ranks.
pub(super) fn size_is_missing(rank: &Known<usize>) -> Error {
    half(&rank.from, &rank.value.to_string(), "WORLD_SIZE")
        .why("PMIx tells the number of ranks through its library alone, not by a variable")
        .hint("pass it: `prterun -n 4 -x WORLD_SIZE=4 program`")
}
