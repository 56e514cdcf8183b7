//! Real processes: this test program starts itself. What it looks at from outside, it looks at in `/proc`.
#![cfg(target_os = "linux")]

// The portable back end has no descriptors to hand over, no forks and no zygotes.
#[cfg(not(leyden_portable))]
mod descriptors;
mod endings;
#[cfg(not(leyden_portable))]
mod forking;
mod guarding;
#[cfg(leyden_portable)]
mod portable;
mod programs;
#[cfg(not(leyden_portable))]
mod ranks;
mod recursion;
mod starting;
mod support;
