//! Exit codes, as documented constants: schedulers may react to them.
//!
//! Never 101: that is Rust's own, for a panic that nothing contained.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::ffi::c_int;
use std::panic::catch_unwind;
use std::sync::OnceLock;

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

/// Calls `act` when the program ends by returning from `main` or by [`std::process::exit`], with the exit code where the C
/// library tells it (glibc); the program then ends with the code that `act` gives, if it gives one. The first call counts;
/// false from the second on.
///
/// It runs when the values of the main thread's `thread_local!`s are gone. Handlers of the C library that were registered
/// earlier are skipped where it gives a code. It is not run when a signal ends the process, or `_exit` and `abort` do.
pub fn before_exit(act: fn(Option<i32>) -> Option<u8>) -> bool {
    let registered = ACT.set((std::process::id(), act)).is_ok();
    // SAFETY: the function has the type that is asked for, and lives as long as the program: a library that holds this
    // crate and is unloaded would be called at its end, before.
    unsafe {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        return registered && on_exit(exiting, std::ptr::null_mut()) == 0;
        #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
        return registered && libc::atexit(exiting) == 0;
    }
}

type Act = fn(Option<i32>) -> Option<u8>;

/// What to call, in the process of this number: a forked one has a copy.
static ACT: OnceLock<(u32, Act)> = OnceLock::new();

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    fn on_exit(
        function: extern "C" fn(c_int, *mut std::ffi::c_void),
        argument: *mut std::ffi::c_void,
    ) -> c_int;
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
extern "C" fn exiting(code: c_int, _: *mut std::ffi::c_void) {
    run(Some(code));
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
extern "C" fn exiting() {
    run(None);
}

fn run(code: Option<i32>) {
    if let Some((process, act)) = ACT.get()
        && *process == std::process::id()
        // Not `contain`, which keeps something in a `thread_local!`.
        && let Ok(Some(code)) = catch_unwind(|| act(code))
    {
        // SAFETY: a null stream stands for all.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        crate::sys::exit_now(code);
    }
}
