//! What every other Leyden crate stands on: [errors](error), [exit codes](exit), [signals as values](signal),
//! [contained panics](mod@contain) and the [allocator's thresholds](allocator).
//!
//! All `unsafe` code of the project is in this crate; each block says who guarantees what. Processes and shared
//! memory get their rooms here too.

#[cfg(not(any(unix, docsrs)))]
compile_error!("leyden runs on Linux; other Unix systems build, anything else is not supported yet");

pub mod allocator;
pub mod attach;
pub mod clock;
pub mod contain;
pub mod error;
pub mod exit;
pub mod signal;

pub use contain::{Panic, contain};
pub use error::{Code, Error, Result};
