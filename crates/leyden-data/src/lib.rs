//! Data sets, their order, and the loader.
//!
//! **Sample-addressed.** Which sample stands where in an epoch, and what randomness it gets, are functions of (seed,
//! epoch, position) and of nothing else. There is no iterator state to save and no global generator to restore: a
//! position in the data is a few integers ([`Cursor`]), and going on from it costs the same at the first batch
//! and at the millionth. The two functions are a keyed bijection ([`Permutation`]) and a generator keyed by the
//! sample ([`SampleRng`]).
//!
//! **The parts.** A [`Dataset`] gives samples by index and makes batches of them. A [`Sampler`] says which samples an
//! epoch visits, [`Batching`] which of them form which batch, on which rank. A [`DataLoader`] makes the batches, by
//! itself or by [`Workers`]. A training loop sees [`Loader`], so that other sources of batches fit in.
//!
//! **Data sets.** In memory: [`TensorDataset`], [`VecDataset`]. In files: [`ImageFolder`], [`CsvDataset`],
//! [`TarShards`], [`SafetensorsDataset`], and [`IdxImages`] for MNIST and its kin. Of others: [`DatasetExt`] and
//! [`IterableDatasetExt`] have `map`, `filter`, `take` and `mix`, named as on `Iterator`; [`Subset`], [`ConcatDataset`],
//! [`ChainDataset`]. All of them can be sent to worker processes: what was opened from files as paths and an index, which is
//! cheap to open again, and functions if they capture nothing. Items become a batch by [`Collate`], which can be derived.
//!
//! **Failure.** An error of one sample is the error of its batch, with the sample's index and place; a panic in a
//! data set's code is such an error too. The loader stays usable after either, and an epoch has the number of
//! batches it said, whatever they are: it never just ends.
//!
//! Readers of files believe nothing: what a header promises is compared with the file before memory is reserved for it,
//! and a file that is damaged or cut short is an error that names it and the place. What is read by sample from an indexed file
//! is compared with the file's length and time of change when it was opened: one that was written since is an error, as far
//! as the file system's clock tells.
//!
//! There are no tensors here, and ranks are two numbers.

#![forbid(unsafe_code)]

mod adapters;
mod array;
mod batching;
pub mod codes;
mod collate;
mod combined;
mod cursor;
mod dataset;
mod files;
mod idx;
#[cfg(feature = "image")]
mod image;
mod iterable;
mod loader;
mod permutation;
mod place;
mod rng;
pub mod sampler;
mod say;
mod tensors;
pub mod testing;
mod workers;

pub use adapters::{
    ChainDataset, CollateWith, ConcatDataset, DatasetExt, Drawn, FilterStream, IterableDatasetExt, Map,
    MapBatch, MapStream, Mix, MixStreams, ShuffleWindow, StreamFn, Take, TakeStream, VecDataset, stream_fn,
};
pub use array::{Array, Element};
pub use batching::{Batching, EpochOrder, Indices, Share, Tail};
pub use collate::{Collate, Interleave, Pick, default_collate, pad_collate};
pub use combined::{CombinedLoader, CombinedMode};
pub use cursor::Cursor;
pub use dataset::{Dataset, SampleCx, SplitLength, Subset, WorkerInfo, random_split};
pub use files::csv::{CsvDataset, CsvOptions};
#[cfg(feature = "image")]
pub use files::image_folder::ImageFolder;
pub use files::safetensors::{Elements, SafetensorsDataset};
pub use files::tar::{TarSample, TarSampleBatch, TarShards, TarStream};
pub use idx::{IdxArray, IdxImages, IdxItem, ImageBatch};
#[cfg(feature = "image")]
pub use image::{Image, ImageTransform};
pub use iterable::{IterableDataset, Stream, StreamCx};
pub use leyden_macros::Collate;
pub use leyden_process::{Error, Result};
pub use loader::{
    BadSample, Batch, DataLoader, DataLoaderBuilder, Epoch, Lanes, Loader, StreamLoader, StreamLoaderBuilder,
    Timings,
};
pub use permutation::Permutation;
pub use rng::{SampleRng, mix};
pub use sampler::{
    BatchOrder, BatchSampler, BucketBatchSampler, Order, RandomSampler, Sampler, SequentialSampler,
    SubsetRandomSampler, WeightedRandomSampler, batch_sampler_fn, sampler_fn,
};
pub use tensors::{Row, TensorDataset, Tensors};
pub use workers::{
    CrewPlan, ForkWorkers, InlineWorkers, ProcessWorkers, Started, ThreadWorkers, Workers, WorkersFor,
};
