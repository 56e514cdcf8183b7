//! The back end for systems other than Linux: standard processes, pipes, and the pipe's end as the sign that the other
//! side is gone. The same contract as on Linux, slower: what a worker makes is copied through a pipe, and where it is in
//! its task is a write to it. On Linux `RUSTFLAGS="--cfg leyden_portable"` chooses it, so that it can be tested there; on
//! other systems it was compiled, and never run.
//!
//! What differs from Linux:
//!
//! - Descriptors that are handed over, zygotes and forks are refused with `P0115`.
//! - A child's stdin and stdout are its pipes, moved away before any code of the program runs: what it prints to stdout
//!   comes out on stderr.
//! - [`Shared`](crate::shared::Shared) data travels by its contents: each process has a copy.
//! - A program whose file was replaced while it runs starts no more processes (`P0103`): its path is all that leads to it.
//! - A child notices its parent's end by reading, which a child that is stopped (SIGSTOP) cannot: it ends when the system
//!   sends it on, as POSIX has it for groups that the parent leaves behind.
//! - Nothing tells of a death before the process's memory is freed, and an end is looked for every 5 ms once the pipe has
//!   closed.
//! - On Apple's systems constructors that the linker puts after Leyden's are not run in children.

pub mod memory;
pub mod pool;
pub mod slots;

pub(crate) mod control;
pub(crate) mod spawn;
pub(crate) mod sys;
pub(crate) mod worker;
