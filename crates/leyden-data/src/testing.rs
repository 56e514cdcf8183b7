//! Checks for the tests of data sets.
//!
//! They panic with what differs, as assertions do; nothing here is meant for training.

use std::fmt::Debug;

use crate::dataset::Dataset;
use crate::loader::{Batch, DataLoader, Loader};

/// Asserts that epochs 0 to `epochs` (exclusive) can be resumed at every batch: the rest of the epoch equals that of
/// the uninterrupted one. It fails for a data set whose `get` depends on more than index and context.
///
/// It loads each epoch as many times as it has batches: use a small data set.
///
/// # Panics
/// With epoch, place and both batches where they differ, and on any error of the loader.
pub fn assert_resumable<D>(loader: &DataLoader<D>, epochs: u64)
where
    D: Dataset,
    D::Batch: PartialEq + Debug,
{
    for epoch in 0..epochs {
        let whole = batches(loader, epoch, 0);
        assert_eq!(whole.len(), loader.len(), "epoch {epoch} has another number of batches than it says");
        for from in 0..=whole.len() {
            if let Err(error) = loader.resume(&loader.cursor_at(epoch, from)) {
                panic!("a loader refuses its own cursor: {error:?}");
            }
            let rest = batches(loader, epoch, from);
            assert_eq!(
                rest.len(),
                whole.len() - from,
                "epoch {epoch} resumed at batch {from} has another length"
            );
            for (resumed, original) in rest.iter().zip(&whole[from..]) {
                assert_eq!(
                    resumed, original,
                    "epoch {epoch} resumed at batch {from} differs in batch {}",
                    original.index
                );
            }
        }
    }
}

fn batches<D: Dataset>(loader: &DataLoader<D>, epoch: u64, from: usize) -> Vec<Batch<D::Batch>> {
    let loaded: leyden_process::Result<_> = Loader::epoch(loader, epoch, from).collect();
    loaded.unwrap_or_else(|error| panic!("epoch {epoch} from batch {from}: {error:?}"))
}
