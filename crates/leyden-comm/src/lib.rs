//! Ranks: where a process stands among the processes of a run ([`environment`]). No tensors and no data.

#![forbid(unsafe_code)]

pub mod codes;
pub mod environment;

pub use leyden_process::{Error, Result};
