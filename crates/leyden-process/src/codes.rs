//! The failure classes of processes and shared memory.

use crate::{Code, exit};

// Shared memory.

/// The limit on file sizes is below what shared memory needs.
pub const FILE_SIZE_LIMIT: Code = Code::new("P0201", exit::CONFIGURATION);
/// Shared memory could not be made.
pub const NO_SHARED_MEMORY: Code = Code::new("P0202", exit::TRAINING_FAILED);
/// Shared memory could not be mapped.
pub const NOT_MAPPED: Code = Code::new("P0203", exit::CONFIGURATION);
/// Memory for a reply is not there.
pub const OVER_BUDGET: Code = Code::new("P0204", exit::TRAINING_FAILED);
/// A request or reply is larger than a slot.
pub const SLOT_FULL: Code = Code::new("P0205", exit::TRAINING_FAILED);
/// What another process wrote into shared memory contradicts itself.
pub const GARBLED: Code = Code::new("P0206", exit::TRAINING_FAILED);
/// A descriptor is not what it was taken for.
pub const FOREIGN_DESCRIPTOR: Code = Code::new("P0207", exit::TRAINING_FAILED);
/// The slots' configuration cannot be met.
pub const SLOTS_CONFIG: Code = Code::new("P0208", exit::CONFIGURATION);
/// A worker keeps a part of a reply that it hands over.
pub const REGION_KEPT: Code = Code::new("P0209", exit::TRAINING_FAILED);
/// The thread that holds a worker's tombstone did not start.
pub const NO_TOMBSTONE: Code = Code::new("P0210", exit::TRAINING_FAILED);
