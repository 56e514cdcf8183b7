//! Ranks that do as they should, and ranks that do not: threads of this process, and processes.
#![cfg(target_os = "linux")]

mod conforming;
mod external;
mod hosts;
mod failing;
mod launching;
mod together;
