//! Exit codes, as documented constants: schedulers may react to them.
//!
//! Never 101: that is Rust's own, for a panic that nothing contained.

/// The run ended as asked.
pub const OK: u8 = 0;
/// SIGTERM arrived and the run saved a checkpoint from which it can go on (`EX_TEMPFAIL` of `sysexits.h`).
pub const PREEMPTED: u8 = 75;
/// The configuration, or a file it names, is wrong: trying again without a change is useless.
pub const CONFIGURATION: u8 = 96;
/// Training failed: an error of the user's code, of the data, or of the machine.
pub const TRAINING_FAILED: u8 = 100;
/// A worker or rank died.
pub const WORKER_DIED: u8 = 102;
/// SIGINT (Ctrl+C) ended the run.
pub const INTERRUPTED: u8 = 130;
/// SIGTERM ended the run and no checkpoint was saved.
pub const TERMINATED: u8 = 143;
