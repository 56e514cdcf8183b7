//! A place in the data, for checkpoints.

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::codes::STATE_MISMATCH;

/// The place before a batch, with what it depends on: a few numbers and a line, about 200 bytes as JSON with the built-in orders. Neither the
/// number nor the kind of workers is part of it, nor, with `global_batch_size`, the number of ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The loader's seed.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// How many positions of the epoch's order are done, on all ranks together.
    pub position: u64,
    /// What the order and the batches depend on, in words.
    pub identity: String,
}

impl Cursor {
    /// Whether this place means the same to a loader whose places are like `now`.
    pub(crate) fn check(&self, now: &Self) -> Result<()> {
        // Both sides say "name value, name value": what differs is what a reader wants to see.
        let parts = |cursor: &Self| -> Vec<String> {
            let identity = cursor.identity.split(", ").map(str::to_owned);
            identity.chain([format!("seed {}", cursor.seed)]).collect()
        };
        let (saved, now) = (parts(self), parts(now));
        if saved == now {
            return Ok(());
        }
        let only_in = |these: &[String], those: &[String]| {
            let lost: Vec<&str> =
                these.iter().filter(|part| !those.contains(part)).map(String::as_str).collect();
            lost.join(", ")
        };
        Err(Error::new(STATE_MISMATCH, "the loader is not the one whose state was saved")
            .at("saved", only_in(&saved, &now))
            .at("now", only_in(&now, &saved))
            .why("the saved place would be another one in another order: samples would repeat or be missed")
            .hint(
                "give the loader the saved values, or start at the beginning of an epoch without the state",
            ))
    }
}
