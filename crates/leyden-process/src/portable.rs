//! The back end for systems other than Linux: standard processes, pipes, and the pipe's end as the sign that the other
//! side is gone. The same contract as on Linux, slower: what a worker makes is copied through a pipe.
//!
//! On Linux `RUSTFLAGS="--cfg leyden_portable"` chooses it, so that it can be tested there. What it lacks is refused with
//! an error: descriptors that are handed over, zygotes and forks.

pub mod memory;
pub mod pool;
pub mod slots;

pub(crate) mod control;
pub(crate) mod spawn;
pub(crate) mod sys;
pub(crate) mod worker;
