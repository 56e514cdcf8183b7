//! The failure classes of this crate; `docs/errors/` has a page for each.

use crate::error::Code;
use crate::exit;

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
/// Another program could not be started under guard.
pub const GUARDED: Code = Code::new("P0113", exit::CONFIGURATION);
/// A process cannot be forked here.
pub const FORK: Code = Code::new("P0114", exit::CONFIGURATION);
