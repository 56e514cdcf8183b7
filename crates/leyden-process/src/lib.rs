//! What every other Leyden crate stands on: [errors](error), [exit codes](exit), [signals as values](signal),
//! [contained panics](mod@contain), the [allocator's thresholds](allocator); and on Linux processes that run a
//! function of the program (`spawn`) or another program (`guarded`) and never outlive it.
//!
//! All `unsafe` code of the project is in this crate; each block says who guarantees what.

#[cfg(not(any(unix, docsrs)))]
compile_error!("leyden runs on Linux; other Unix systems build, anything else is not supported yet");

pub mod allocator;
pub mod attach;
pub mod codes;
pub mod contain;
#[cfg(target_os = "linux")]
pub mod entry;
pub mod error;
pub mod exit;
#[cfg(target_os = "linux")]
pub mod guarded;
pub mod signal;
#[cfg(target_os = "linux")]
pub mod spawn;
#[cfg(target_os = "linux")]
pub mod supervise;

#[cfg(target_os = "linux")]
mod control;
#[cfg(target_os = "linux")]
mod image;
#[cfg(target_os = "linux")]
mod stderr;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod threads;
#[cfg(target_os = "linux")]
mod worker;
#[cfg(target_os = "linux")]
mod zygote;

pub use contain::{Panic, contain};
pub use error::{Code, Error, Result};
