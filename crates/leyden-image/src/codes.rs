//! The failure classes of images. Their numbers are among those of `leyden-data`.

use leyden_process::{Code, exit};

/// An image cannot be decoded.
pub const IMAGE_DAMAGED: Code = Code::new("L0704", exit::TRAINING_FAILED);
/// The header of an image promises more than its file can hold, or than is decoded.
pub const IMAGE_SIZE: Code = Code::new("L0705", exit::TRAINING_FAILED);
/// An image is smaller than the crop asked of it.
pub const IMAGE_CROP: Code = Code::new("L0707", exit::TRAINING_FAILED);
