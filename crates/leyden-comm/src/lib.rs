//! Ranks: processes that do one thing together. What they do together is [`Rank`]'s; [`launch`] starts them,
//! [`environment`] says where a process stands that something else has started, and through the [`store`] they find each
//! other. No tensors and no data.
//!
//! Ranks need Linux: they share memory, and their deaths are noticed as only Linux tells. The environment and the store work
//! on every Unix.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod bucket;
pub mod codes;
#[cfg(target_os = "linux")]
mod collective;
#[cfg(target_os = "linux")]
pub mod element;
pub mod environment;
#[cfg(target_os = "linux")]
pub mod launch;
#[cfg(target_os = "linux")]
mod rank;
#[cfg(target_os = "linux")]
mod record;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
pub mod simulation;
pub mod store;
#[cfg(target_os = "linux")]
pub mod testing;
#[cfg(target_os = "linux")]
mod transport;
#[cfg(target_os = "linux")]
mod watch;
#[cfg(target_os = "linux")]
mod world;

#[cfg(target_os = "linux")]
pub use bucket::Bucket;
#[cfg(target_os = "linux")]
pub use element::{Element, ReduceOp};
pub use leyden_process::{Error, Result};
#[cfg(target_os = "linux")]
pub use rank::{Group, Rank, RankZero};
#[cfg(target_os = "linux")]
pub use world::{MOST_GROUPS, MOST_RANKS};
