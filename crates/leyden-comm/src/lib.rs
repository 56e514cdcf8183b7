//! Ranks: processes that do one thing together. What they do together is [`Rank`]'s; [`launch`] starts them,
//! [`environment`] says where a process stands that something else has started, and through the [`store`] they find each
//! other. No tensors and no data.

#![forbid(unsafe_code)]

pub mod codes;
pub mod element;
pub mod environment;
pub mod launch;
mod rank;
mod record;
pub mod store;
mod watch;
mod world;

pub use element::{Element, ReduceOp};
pub use leyden_process::{Error, Result};
pub use rank::{Group, Rank, RankZero};
pub use world::{MOST_GROUPS, MOST_RANKS};
