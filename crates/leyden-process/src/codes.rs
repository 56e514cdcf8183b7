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
// Processes.

/// A process that Leyden started tried to start another one.
pub const NESTED: Code = Code::new("P0101", exit::CONFIGURATION);
/// Leyden's entry hook is no part of this program: it did not run, or it sits in a library.
pub const NO_ENTRY: Code = Code::new("P0102", exit::CONFIGURATION);
/// The program cannot be started again: its file is not known or not allowed to be executed.
pub const NO_SELF: Code = Code::new("P0103", exit::CONFIGURATION);
/// A process that was meant to be a worker has reached the program's own code.
pub const UNCONSUMED_ROLE: Code = Code::new("P0104", exit::CONFIGURATION);
/// The argument of a job cannot be handed over.
pub const ARGUMENT: Code = Code::new("P0105", exit::CONFIGURATION);
/// A process could not be started.
pub const START: Code = Code::new("P0106", exit::TRAINING_FAILED);
/// A started process did not report in time.
pub const NO_HELLO: Code = Code::new("P0107", exit::WORKER_DIED);
/// A started process is of another build of the program.
pub const OTHER_BUILD: Code = Code::new("P0108", exit::CONFIGURATION);
/// A message between two processes is too large.
pub const MESSAGE_SIZE: Code = Code::new("P0109", exit::CONFIGURATION);
/// A message could not be sent to, or read from, another process.
pub const CONTROL: Code = Code::new("P0110", exit::WORKER_DIED);
/// The function of a job panicked.
pub const PANICKED: Code = Code::new("P0111", exit::TRAINING_FAILED);
/// A process ended that should not have.
pub const DIED: Code = Code::new("P0112", exit::WORKER_DIED);

// Pools of workers.

/// A worker process did not get ready.
pub const POOL_START: Code = Code::new("P0301", exit::WORKER_DIED);
/// No worker process is left.
pub const POOL_UNSTAFFED: Code = Code::new("P0302", exit::WORKER_DIED);
/// A pool was asked for what it does not have.
pub const POOL_CLOSED: Code = Code::new("P0303", exit::TRAINING_FAILED);
/// A worker's code panicked.
pub const TASK_PANICKED: Code = Code::new("P0304", exit::TRAINING_FAILED);
/// A worker gave a task up without a reason.
pub const TASK_SILENT: Code = Code::new("P0305", exit::TRAINING_FAILED);
/// Another program could not be started under guard.
pub const GUARDED: Code = Code::new("P0113", exit::CONFIGURATION);
/// A process cannot be forked here.
pub const FORK: Code = Code::new("P0114", exit::CONFIGURATION);
