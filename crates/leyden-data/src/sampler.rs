//! Which samples an epoch visits, and in which order; not how they are shared among ranks, which is [`Batching`]'s.
//!
//! A sampler makes an [`Order`] from seed and epoch. The order is random access: what stands at a position does not
//! depend on what was asked before, so that any batch can be made first, by any worker. PyTorch's samplers are
//! iterators, and a run resumes by drawing again what was drawn; here it asks on.
//!
//! | PyTorch | here | to the first sample of an epoch, or to any other | memory of an epoch |
//! |---|---|---|---|
//! | `SequentialSampler` | [`SequentialSampler`] | O(1) | none |
//! | `RandomSampler` | [`RandomSampler`] | O(1) | none |
//! | `SubsetRandomSampler` | [`SubsetRandomSampler`] | O(1) | none beyond the list |
//! | `WeightedRandomSampler` | [`WeightedRandomSampler`] | O(1) with replacement, O(n log n) without | none beyond the table; without replacement 8 B a draw |
//! | a `Sampler` of your own | `Vec<usize>`, `Arc<[usize]>`, [`sampler_fn`], [`Sampler`] | yours | yours |
//! | (torchtext: `BucketIterator`) | [`BucketBatchSampler`] | O(n) | 8 B a sample |
//! | a `BatchSampler` of your own | [`batch_sampler_fn`], [`BatchSampler`] | yours | yours |
//! | `BatchSampler(sampler, n, drop_last)` | [`Batching`] | | |
//! | `DistributedSampler` | [`Batching`]: any sampler, with `rank` and `tail` | | |
//! | `set_epoch` | nothing to call: the epoch is an argument | | |
//!
//! [`Batching`]: crate::Batching

use std::sync::Arc;

use leyden_process::Result;

use crate::rng::mix;

mod bucket;
mod custom;
mod random;
mod sequential;
mod subset;
mod weighted;

pub use bucket::BucketBatchSampler;
pub use custom::{BatchSamplerFn, SamplerFn, batch_sampler_fn, sampler_fn};
pub use random::RandomSampler;
pub use sequential::SequentialSampler;
pub use subset::SubsetRandomSampler;
pub use weighted::WeightedRandomSampler;

/// Which samples an epoch visits, in which order (PyTorch: `Sampler`).
///
/// Implement it for an order that can be computed position by position; for one that is made as a list, use
/// [`sampler_fn`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Sampler`",
    note = "`Vec<usize>` and `Arc<[usize]>` are samplers; make one of a closure with `leyden::data::sampler_fn`"
)]
pub trait Sampler: Send + Sync {
    /// Positions per epoch: the same in every epoch.
    fn len(&self) -> usize;

    /// Whether an epoch visits nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The order of an epoch: a function of `self`, `seed` and `epoch` alone, or ranks and resumed runs see other
    /// samples.
    ///
    /// # Errors
    /// Any.
    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn Order>>;

    /// What the order depends on besides seed and epoch, in a few words without line breaks. A run resumes inside an
    /// epoch only with a sampler of equal identity, so long lists are named by a hash.
    fn identity(&self) -> String;

    /// A number that all indices are below, where it is known: checked against the data set when the loader is built.
    /// Each index is checked again when its turn comes.
    fn bound(&self) -> Option<usize> {
        None
    }

    /// Whether the order may change from epoch to epoch (default true).
    fn is_shuffled(&self) -> bool {
        true
    }
}

/// The order of one epoch.
pub trait Order: Send + Sync {
    /// The index of the sample at `position`, which is below the sampler's `len`. The same for the same position,
    /// whatever was asked before.
    fn at(&self, position: usize) -> usize;
}

/// Which samples form which batch of an epoch (PyTorch: `BatchSampler`). Batches may differ in size.
///
/// Implement it for batches that can be made one by one; for a list of them, use [`batch_sampler_fn`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `BatchSampler`",
    note = "make one of a closure with `leyden::data::batch_sampler_fn`"
)]
pub trait BatchSampler: Send + Sync {
    /// Batches per epoch, of all ranks together: the same in every epoch.
    fn len(&self) -> usize;

    /// Whether an epoch has no batches.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batches of an epoch: a function of `self`, `seed` and `epoch` alone.
    ///
    /// # Errors
    /// Any.
    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn BatchOrder>>;

    /// What the batches depend on besides seed and epoch; see [`Sampler::identity`].
    fn identity(&self) -> String;

    /// A number that all indices are below, where it is known; see [`Sampler::bound`].
    fn bound(&self) -> Option<usize> {
        None
    }

    /// Whether the batches may change from epoch to epoch (default true).
    fn is_shuffled(&self) -> bool {
        true
    }
}

/// The batches of one epoch.
pub trait BatchOrder: Send + Sync {
    /// The samples of batch `index`, which is below the sampler's `len`: one or more. The same for the same index,
    /// whatever was asked before.
    fn batch(&self, index: usize) -> Vec<usize>;
}

macro_rules! forward {
    ($pointer:ident, $sampler:ident, $order:ident) => {
        impl<S: $sampler + ?Sized> $sampler for $pointer<S> {
            fn len(&self) -> usize {
                S::len(self)
            }

            fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn $order>> {
                S::order(self, seed, epoch)
            }

            fn identity(&self) -> String {
                S::identity(self)
            }

            fn bound(&self) -> Option<usize> {
                S::bound(self)
            }

            fn is_shuffled(&self) -> bool {
                S::is_shuffled(self)
            }
        }
    };
}

forward!(Arc, Sampler, Order);
forward!(Box, Sampler, Order);
forward!(Arc, BatchSampler, BatchOrder);
forward!(Box, BatchSampler, BatchOrder);

/// A hash of a list, for its identity.
fn fingerprint(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, |hash, value| mix(hash, &[value]))
}

/// Keeps the order of an epoch apart from other uses of the same seed.
const ORDER: u64 = 0x006F_7264_6572;
