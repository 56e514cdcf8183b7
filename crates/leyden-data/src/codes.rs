//! The failure classes of this crate; each has a page in `docs/errors/`.
//!
//! The texts of the errors are where the errors are made.

use leyden_process::{Code, exit};

/// An argument of the loader's builder is impossible.
pub const LOADER_ARGUMENT: Code = Code::new("L0101", exit::CONFIGURATION);
/// The loader would have no batches.
pub const NO_BATCHES: Code = Code::new("L0102", exit::CONFIGURATION);
/// The last step of an epoch has fewer samples than there are ranks.
pub const UNEVEN_TAIL: Code = Code::new("L0103", exit::CONFIGURATION);
/// A saved loader state is of another data set, batch size, seed or world.
pub const STATE_MISMATCH: Code = Code::new("L0104", exit::CONFIGURATION);
/// The data set panicked in `get`.
pub const GET_PANICKED: Code = Code::new("L0201", exit::TRAINING_FAILED);
/// The data set panicked in `collate`.
pub const COLLATE_PANICKED: Code = Code::new("L0202", exit::TRAINING_FAILED);
/// An index is outside the data set.
pub const INDEX_OUT_OF_RANGE: Code = Code::new("L0301", exit::TRAINING_FAILED);
/// The lengths of a split do not add up to the length of the data set.
pub const SPLIT_LENGTHS: Code = Code::new("L0302", exit::CONFIGURATION);
/// An IDX file is missing or cannot be read.
pub const IDX_UNREADABLE: Code = Code::new("L0401", exit::CONFIGURATION);
/// An IDX file ends before its header says.
pub const IDX_TRUNCATED: Code = Code::new("L0402", exit::CONFIGURATION);
/// A file is not an IDX file.
pub const IDX_MAGIC: Code = Code::new("L0403", exit::CONFIGURATION);
/// An IDX file holds elements that are not unsigned bytes.
pub const IDX_ELEMENT: Code = Code::new("L0404", exit::CONFIGURATION);
/// An IDX file goes on after its header says it ends.
pub const IDX_TRAILING: Code = Code::new("L0405", exit::CONFIGURATION);
/// The header of an IDX file promises more than memory can hold.
pub const IDX_SIZE: Code = Code::new("L0406", exit::CONFIGURATION);
/// The gzip stream of an IDX file is damaged.
pub const IDX_GZIP: Code = Code::new("L0407", exit::CONFIGURATION);
/// Images and labels do not fit together.
pub const IDX_PAIR: Code = Code::new("L0408", exit::CONFIGURATION);
/// Every sample of a batch was left out as bad.
pub const NOTHING_LEFT: Code = Code::new("L0203", exit::TRAINING_FAILED);
/// A worker cannot be started.
pub const WORKER_START: Code = Code::new("L0901", exit::TRAINING_FAILED);
/// The data set's `worker_init` failed.
pub const WORKER_INIT: Code = Code::new("L0902", exit::TRAINING_FAILED);
/// A worker was at one batch for too long.
pub const WORKER_STUCK: Code = Code::new("L0903", exit::WORKER_DIED);
/// A worker process died, and may not be replaced any more.
pub const WORKER_DIED: Code = Code::new("L0904", exit::WORKER_DIED);
/// A sample kills the workers that load it.
pub const POISON: Code = Code::new("L0905", exit::WORKER_DIED);
/// A batch of a worker process cannot be read.
pub const BATCH_UNREADABLE: Code = Code::new("L0907", exit::TRAINING_FAILED);
/// A batch cannot be handed over by a worker process.
pub const BATCH_UNWRITABLE: Code = Code::new("L0908", exit::TRAINING_FAILED);
/// A worker process cannot read what it is to load.
pub const TASK_UNREADABLE: Code = Code::new("L0909", exit::TRAINING_FAILED);
/// A loader ended before its length.
pub const LOADER_ENDED: Code = Code::new("L0931", exit::TRAINING_FAILED);
/// A stream is longer or shorter than it was said to be.
pub const STREAM_LENGTH: Code = Code::new("L0932", exit::TRAINING_FAILED);
/// A stream's code panicked.
pub const STREAM_PANICKED: Code = Code::new("L0933", exit::TRAINING_FAILED);
/// An array's shape and elements do not fit together.
pub const ARRAY_SHAPE: Code = Code::new("L0501", exit::TRAINING_FAILED);
/// The samples of a batch cannot be stacked: they differ in shape or keys.
pub const RAGGED: Code = Code::new("L0502", exit::TRAINING_FAILED);
/// An argument of a sampler is impossible.
pub const SAMPLER_ARGUMENT: Code = Code::new("L0601", exit::CONFIGURATION);
/// Samples cannot be drawn with these weights.
pub const SAMPLER_WEIGHTS: Code = Code::new("L0602", exit::CONFIGURATION);
/// A sampler is of a larger data set.
pub const SAMPLER_BOUND: Code = Code::new("L0603", exit::CONFIGURATION);
/// A sampler gave something else than it promised.
pub const SAMPLER_RESULT: Code = Code::new("L0604", exit::TRAINING_FAILED);
/// A sampler panicked.
pub const SAMPLER_PANICKED: Code = Code::new("L0605", exit::TRAINING_FAILED);
/// A global batch does not divide into equal parts for the ranks.
pub const GLOBAL_BATCH: Code = Code::new("L0606", exit::CONFIGURATION);
/// A place in an epoch is not where a batch begins.
pub const BATCH_POSITION: Code = Code::new("L0607", exit::CONFIGURATION);
/// An item of a batch to be padded has no first dimension.
pub const PAD_SCALAR: Code = Code::new("L0511", exit::TRAINING_FAILED);
/// Data sets cannot be concatenated or mixed as asked.
pub const COMBINATION: Code = Code::new("L0512", exit::CONFIGURATION);
/// A part of a batch has not the samples that it was made of.
pub const BATCH_ROWS: Code = Code::new("L0513", exit::TRAINING_FAILED);
/// The arrays of a `TensorDataset` differ in their first dimension.
pub const TENSOR_ROWS: Code = Code::new("L0514", exit::CONFIGURATION);
/// A file or folder of a data set cannot be read.
pub const FILE_UNREADABLE: Code = Code::new("L0701", exit::CONFIGURATION);
/// A file is not the one that was indexed.
pub const FILE_CHANGED: Code = Code::new("L0702", exit::TRAINING_FAILED);
/// A folder of images has no classes, or a class has no images.
pub const NO_IMAGES: Code = Code::new("L0703", exit::CONFIGURATION);
#[cfg(feature = "image")]
pub use leyden_image::codes::{IMAGE_CROP, IMAGE_DAMAGED, IMAGE_SIZE};
/// The arguments of an image transform are impossible.
pub const IMAGE_TRANSFORM: Code = Code::new("L0706", exit::CONFIGURATION);
/// A CSV file is malformed.
pub const CSV_MALFORMED: Code = Code::new("L0711", exit::CONFIGURATION);
/// A CSV record does not fit the type it is read as.
pub const CSV_RECORD: Code = Code::new("L0712", exit::TRAINING_FAILED);
/// A tar archive is truncated or damaged.
pub const TAR_DAMAGED: Code = Code::new("L0721", exit::CONFIGURATION);
/// A tar archive has a sparse member.
pub const TAR_SPARSE: Code = Code::new("L0722", exit::CONFIGURATION);
/// A sample occurs twice in a tar archive.
pub const TAR_DUPLICATE: Code = Code::new("L0723", exit::CONFIGURATION);
/// A sample in a tar archive lacks a file.
pub const TAR_MISSING: Code = Code::new("L0724", exit::CONFIGURATION);
/// A safetensors file is truncated or damaged.
pub const SAFETENSORS_DAMAGED: Code = Code::new("L0731", exit::CONFIGURATION);
/// A safetensors file has not the tensors asked for.
pub const SAFETENSORS_COLUMN: Code = Code::new("L0732", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_page_that_starts_with_it() {
        let all = [
            LOADER_ARGUMENT,
            NO_BATCHES,
            UNEVEN_TAIL,
            STATE_MISMATCH,
            GET_PANICKED,
            COLLATE_PANICKED,
            INDEX_OUT_OF_RANGE,
            SPLIT_LENGTHS,
            IDX_UNREADABLE,
            IDX_TRUNCATED,
            IDX_MAGIC,
            IDX_ELEMENT,
            IDX_TRAILING,
            IDX_SIZE,
            IDX_GZIP,
            IDX_PAIR,
            NOTHING_LEFT,
            WORKER_START,
            WORKER_INIT,
            WORKER_STUCK,
            WORKER_DIED,
            POISON,
            LOADER_ENDED,
            STREAM_LENGTH,
            STREAM_PANICKED,
            BATCH_UNREADABLE,
            BATCH_UNWRITABLE,
            TASK_UNREADABLE,
            ARRAY_SHAPE,
            RAGGED,
            SAMPLER_ARGUMENT,
            SAMPLER_WEIGHTS,
            SAMPLER_BOUND,
            SAMPLER_RESULT,
            SAMPLER_PANICKED,
            GLOBAL_BATCH,
            BATCH_POSITION,
            PAD_SCALAR,
            COMBINATION,
            BATCH_ROWS,
            TENSOR_ROWS,
            FILE_UNREADABLE,
            FILE_CHANGED,
            NO_IMAGES,
            #[cfg(feature = "image")]
            IMAGE_DAMAGED,
            #[cfg(feature = "image")]
            IMAGE_SIZE,
            IMAGE_TRANSFORM,
            #[cfg(feature = "image")]
            IMAGE_CROP,
            CSV_MALFORMED,
            CSV_RECORD,
            TAR_DAMAGED,
            TAR_SPARSE,
            TAR_DUPLICATE,
            TAR_MISSING,
            SAFETENSORS_DAMAGED,
            SAFETENSORS_COLUMN,
        ];
        for code in all {
            let path = format!("{}/../../docs/errors/{code}.md", env!("CARGO_MANIFEST_DIR"));
            let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(page.starts_with(&format!("# {code}: ")), "{path} starts with {:?}", page.lines().next());
        }
    }
}
