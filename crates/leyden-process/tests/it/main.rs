//! Real processes: this test program starts itself.
#![cfg(target_os = "linux")]

mod endings;
mod forking;
mod guarding;
mod programs;
mod recursion;
mod starting;
mod support;
