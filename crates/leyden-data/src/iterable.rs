//! Data that comes as streams: no sample is reachable but the next.

use leyden_process::Result;

use crate::rng::{SampleRng, mix};

/// Samples as streams (PyTorch: `IterableDataset`, together with its `collate_fn`).
///
/// The data set says of how many independent streams it consists, its *shards*: files, ranges of a table, sockets.
/// The loader deals them out to ranks and workers; nothing in here asks who or how many they are, which is why no sample
/// is seen twice and batches do not depend on the number of workers. With one shard, one worker does all the work.
pub trait IterableDataset: Send + Sync {
    /// One sample. It lives until `collate`.
    type Item;
    /// What the training step receives.
    type Batch: Send + 'static;

    /// How many streams there are. The loader asks once, when it is built.
    fn shards(&self) -> usize;

    /// How many samples shard `shard` has, if that is known: then the number of batches is, too.
    fn shard_len(&self, shard: usize) -> Option<usize> {
        let _ = shard;
        None
    }

    /// The samples of shard `shard`, below `shards()`, in an order that is a function of the data, `shard` and `cx`
    /// alone: a worker that died is replaced by one that reads the stream again.
    ///
    /// # Errors
    /// Any; the loader adds shard and epoch. An error of one sample is an item; the stream may go on after it.
    fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, Self::Item>>;

    /// Makes a batch of one or more samples, in their order.
    ///
    /// # Errors
    /// Any; the loader adds batch and epoch.
    fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch>;
}

/// The samples of one shard.
pub type Stream<'a, Item> = Box<dyn Iterator<Item = Result<Item>> + Send + 'a>;

/// In which epoch of which loader a stream is read, and the randomness that belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct StreamCx {
    seed: u64,
    epoch: u64,
    shard: usize,
}

impl StreamCx {
    /// The context of shard `shard` in `epoch` of a loader with `seed`. The loader makes them; so do tests of a data
    /// set.
    pub fn new(seed: u64, epoch: u64, shard: usize) -> Self {
        Self { seed, epoch, shard }
    }

    /// The epoch, from 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The generator of the stream's sample number `position`: the same draws whenever it is read in this epoch.
    pub fn rng(&self, position: u64) -> SampleRng {
        SampleRng::new(mix(self.seed, &[self.epoch, STREAM, self.shard as u64, position]))
    }

    /// The context of a stream that this one is made of, whose randomness is its own; `source` tells several apart.
    pub(crate) fn below(self, source: u64, shard: usize) -> Self {
        Self { seed: mix(self.seed, &[BELOW, source]), epoch: self.epoch, shard }
    }
}

/// Keeps streams apart from samples under the same seed and epoch.
const STREAM: u64 = 0x7374_7265_616D;
/// Keeps a stream apart from those that it is made of.
const BELOW: u64 = 0x0062_656C_6F77;
