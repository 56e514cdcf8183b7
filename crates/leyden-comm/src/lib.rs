//! Ranks: where a process stands among the processes of a run ([`environment`]), and how these find each other
//! ([`store`]). No tensors and no data.

#![forbid(unsafe_code)]

pub mod codes;
pub mod environment;
pub mod store;

pub use leyden_process::{Error, Result};
