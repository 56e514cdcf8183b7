//! What every other Leyden crate stands on: [errors](error), [exit codes](exit), [signals as values](signal),
//! [contained panics](mod@contain) and the [allocator's thresholds](allocator); on Linux also processes that run a
//! function of the program ([`spawn`]) or another program ([`guarded`]) and never outlive it, [functions](function) inside of
//! what is sent to them, memory that processes [share](memory), and [pools](pool) of workers that do tasks through it.
//!
//! All `unsafe` code of the project is in this crate; each block says who guarantees what.

#![cfg_attr(
    all(test, loom),
    expect(dead_code, reason = "the model runs without the slots, which use the rest")
)]

#[cfg(not(any(unix, docsrs)))]
compile_error!("leyden runs on Linux; other Unix systems build, anything else is not supported yet");

pub mod allocator;
pub mod attach;
mod available;
pub mod clock;
pub mod codes;
pub mod contain;
#[cfg(not(leyden_portable))]
mod control;
pub mod copies;
pub mod entry;
pub mod error;
pub mod exit;
pub mod function;
#[cfg(not(leyden_portable))]
pub mod futex;
pub mod guarded;
mod image;
pub mod limits;
pub mod lines;
#[cfg(not(leyden_portable))]
pub mod memory;
#[cfg(not(leyden_portable))]
pub mod poller;
#[cfg(not(any(leyden_portable, all(test, loom))))]
pub mod pool;
#[cfg(leyden_portable)]
mod portable;
#[cfg(not(leyden_portable))]
mod protocol;
pub mod rank;
mod region;
#[cfg(not(leyden_portable))]
pub mod segment;
pub mod shared;
pub mod signal;
// Its words lie in shared memory, where the model's own cannot.
#[cfg(not(any(leyden_portable, all(test, loom))))]
pub mod slots;
pub mod spawn;
mod stderr;
pub mod supervise;
mod sys;
#[cfg(not(all(test, loom)))]
mod tasks;
pub mod threads;
#[cfg(not(leyden_portable))]
pub mod tombstone;
#[cfg(not(leyden_portable))]
pub mod watch;
mod worker;
#[cfg(not(leyden_portable))]
mod zygote;

#[cfg(leyden_portable)]
use portable::control;
#[cfg(leyden_portable)]
pub use portable::{memory, pool, slots};

pub use contain::{Panic, contain};
pub use error::{Code, Error, Result};
