//! torchrun, and the `env://` set that others give in its form.

use super::variables::{Known, Variables, address, half};
use super::{Claim, Launcher};
use crate::Result;

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>> {
    // PMIx gives a rank and no size: then WORLD_SIZE is its, see pmi.rs.
    if !variables.has("RANK") && variables.has("PMIX_RANK") {
        return Ok(None);
    }
    let Some((rank, world)) = variables.pair("RANK", "WORLD_SIZE")? else { return Ok(None) };
    let mut claim = Claim::new(Launcher::Torchrun, rank, Some(world));
    claim.local_rank = variables.number("LOCAL_RANK")?;
    claim.local_world = variables.number("LOCAL_WORLD_SIZE")?;
    claim.node = variables.first_number(&["GROUP_RANK", "NODE_RANK"])?;
    claim.master = match (variables.master_host()?, variables.master_port()?) {
        (Some(host), Some(port)) => Some(address(host, port)),
        (Some(host), None) => return Err(half("MASTER_ADDR", &host.value, "MASTER_PORT")),
        (None, Some(port)) => return Err(half("MASTER_PORT", &port.value.to_string(), "MASTER_ADDR")),
        (None, None) => None,
    };
    claim.run_id = variables.text("TORCHELASTIC_RUN_ID").map(|id| {
        // A restart of the group is another run: what the old one left in a store is not for it.
        match variables.text("TORCHELASTIC_RESTART_COUNT").filter(|count| count.value != "0") {
            Some(count) => {
                Known::new(format!("{}.{}", id.value, count.value), format!("{}, {}", id.from, count.from))
            }
            None => id,
        }
    });
    // Only torchrun itself has agents; who sets RANK by hand does not.
    if claim.run_id.is_some() {
        claim.agents = Some(variables.number("GROUP_WORLD_SIZE")?.map_or(1, |groups| groups.value));
    }
    Ok(Some(claim))
}
