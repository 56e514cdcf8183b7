//! torchrun, and the `env://` set that others give in its form.

use super::variables::{Known, Variables, address, half};
use super::{Claim, Launcher};
use crate::{Error, Result};

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>> {
    let (Some(rank), Some(world)) = (variables.number("RANK")?, variables.number("WORLD_SIZE")?) else {
        return Ok(None);
    };
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

/// `RANK` or `WORLD_SIZE` without the other.
pub(super) struct Half {
    pub(super) rank: Option<Known<usize>>,
    pub(super) world: Option<Known<usize>>,
}

pub(super) fn half_set(variables: &Variables) -> Result<Option<Half>> {
    let (rank, world) = (variables.number("RANK")?, variables.number("WORLD_SIZE")?);
    Ok((rank.is_some() != world.is_some()).then_some(Half { rank, world }))
}

impl Half {
    pub(super) fn into_error(self) -> Error {
        let missing = if self.rank.is_some() { "WORLD_SIZE" } else { "RANK" };
        let (name, value) =
            self.rank.or(self.world).map_or_else(Default::default, |set| (set.from, set.value));
        half(&name, &value.to_string(), missing)
    }
}
