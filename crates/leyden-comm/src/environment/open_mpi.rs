//! Open MPI's `mpirun`, versions 1.3 to 5.
//!
//! `OMPI_COMM_WORLD_NODE_RANK` is not the node's number but the process's on its node: it is not read.

use super::variables::{Known, Variables, address};
use super::{Claim, Launcher};
use crate::Result;

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>> {
    let Some((rank, world)) = variables.pair("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")? else {
        return Ok(None);
    };
    // How many daemons it has is not said: one per node, and a node has a rank at least.
    let agents = Some(world.value);
    let mut claim = Claim::new(Launcher::OpenMpi, rank, Some(world));
    claim.agents = agents;
    claim.local_rank = variables.number("OMPI_COMM_WORLD_LOCAL_RANK")?;
    claim.local_world = variables.number("OMPI_COMM_WORLD_LOCAL_SIZE")?;
    claim.master = explicit_master(variables)?;
    claim.run_id =
        variables.first_text(&["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"]);
    Ok(Some(claim))
}

/// MPI's launchers give no address: it is known if the user exports one.
pub(super) fn explicit_master(variables: &Variables) -> Result<Option<Known<(String, u16)>>> {
    let host = variables.master_host()?;
    Ok(host.zip(variables.master_port()?).map(|(host, port)| address(host, port)))
}
