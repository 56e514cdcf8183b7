//! What every other Leyden crate stands on: [errors](error), [exit codes](exit), [signals as values](signal),
//! [contained panics](mod@contain) and the [allocator's thresholds](allocator); on Linux also processes that run a
//! function of the program ([`spawn`]) or another program ([`guarded`]) and never outlive it, memory that processes
//! [share](memory), and [pools](pool) of workers that do tasks through it.
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
#[cfg(target_os = "linux")]
mod available;
pub mod clock;
pub mod codes;
pub mod contain;
#[cfg(target_os = "linux")]
mod control;
#[cfg(target_os = "linux")]
pub mod entry;
pub mod error;
pub mod exit;
#[cfg(target_os = "linux")]
pub mod futex;
#[cfg(target_os = "linux")]
pub mod guarded;
#[cfg(target_os = "linux")]
mod image;
#[cfg(target_os = "linux")]
pub mod memory;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub mod pool;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
pub mod shared;
pub mod signal;
// Its words lie in shared memory, where the model's own cannot.
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub mod slots;
#[cfg(target_os = "linux")]
pub mod spawn;
#[cfg(target_os = "linux")]
mod stderr;
#[cfg(target_os = "linux")]
pub mod supervise;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod threads;
#[cfg(target_os = "linux")]
pub mod tombstone;
#[cfg(target_os = "linux")]
mod worker;
#[cfg(target_os = "linux")]
mod zygote;

pub use contain::{Panic, contain};
pub use error::{Code, Error, Result};
