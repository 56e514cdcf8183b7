//! Ranks: processes that do one thing together. What they do together is [`Rank`]'s; [`launch`] starts them,
//! [`environment`] says where a process stands that something else has started, and through the [`store`] they find each
//! other. No tensors and no data.
//!
//! Ranks need Linux: they share memory, and their deaths are noticed as only Linux tells. The environment and the store work
//! on every Unix.

#![forbid(unsafe_code)]

#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod autopsy;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod bucket;
pub mod codes;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod collective;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod dump;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub mod element;
pub mod environment;
#[cfg(target_os = "linux")]
mod handshake;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub mod launch;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
#[doc(hidden)]
pub mod measure;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod rank;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod record;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
pub mod simulation;
pub mod store;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub mod testing;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod transport;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod watch;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
mod world;

#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub use bucket::Bucket;
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub use element::{Element, ReduceOp};
pub use leyden_process::{Error, Result};
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub use rank::{Group, Rank, RankZero};
#[cfg(all(target_os = "linux", not(all(test, loom))))]
pub use world::{MOST_GROUPS, MOST_RANKS};
