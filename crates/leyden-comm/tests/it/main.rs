//! Ranks that do as they should, and ranks that do not: threads of this process, and processes.
#![cfg(target_os = "linux")]

mod bucket;
mod conforming;
mod external;
mod failing;
mod hosts;
mod launching;
mod together;
mod watching;
