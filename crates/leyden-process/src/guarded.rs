//! Other programs, as safe to start as Leyden's own processes: they die when this one does.
//!
//! A program that is started with [`std::process`] outlives a parent that is killed. The kernel's parent-death signal
//! would have to be armed between fork and exec, which costs a copy of this process's page tables (40 ms for each
//! resident GB), and it reaches neither the program's own children nor survives the thread that started it. So a
//! [`Guarded`] program gets a guard: a process of this executable that does nothing but hold a process group and wait
//! for the end of the socket to us, and then kills the group, itself included. The guard is there before the program,
//! which is *born* into its group, so there is no moment at which a death of ours leaves it behind.
//!
//! What it cannot hold: a program that leaves its process group (`setsid`, as daemons do), and one that is started
//! while somebody kills the guard alone.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::Duration;

use crate::codes::{DIED, GUARDED};
use crate::control::Control;
use crate::entry::{self, Kind};
use crate::error::{Error, Result};
use crate::signal::Signal;
use crate::spawn::{self, Child, SpawnOptions};
use crate::supervise::{Cause, Process, Status};
use crate::{exit, sys, worker};

/// A program that ends with this process, however this process ends.
///
/// It may be started by a worker too. Dropping it kills the program with its process group, and returns within 300 ms.
///
/// # Example
///
/// ```
/// use leyden_process::guarded::Guarded;
/// use std::process::Command;
/// use std::time::Duration;
///
/// let mut program = Guarded::spawn(Command::new("sleep").arg("1000"))?;
/// assert!(program.wait(Duration::from_millis(1))?.is_none());
/// drop(program);
/// # Ok::<(), leyden_process::Error>(())
/// ```
#[derive(Debug)]
pub struct Guarded {
    /// The program's stdin, if the command said `Stdio::piped()`; likewise the others.
    pub stdin: Option<ChildStdin>,
    /// Its stdout.
    pub stdout: Option<ChildStdout>,
    /// Its stderr.
    pub stderr: Option<ChildStderr>,
    // Before the guard, whose process number, kept until it is reaped, is that of the group.
    program: Ending,
    _guard: Child,
}

impl Guarded {
    /// Starts the program; takes about two milliseconds. The command's process group is set, everything else is as
    /// its owner made it.
    ///
    /// # Errors
    ///
    /// `P0113` if the program cannot be started; `P0101` in a supervisor; `P0102`, `P0103`, `P0106`, `P0107` if the guard cannot.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        entry::may_start(Kind::Guard)?;
        entry::can_start_again()?;
        let guard = spawn::start_guard(&SpawnOptions::named("leyden-guard"))?;
        let group = guard.pid();
        let spawned = command.process_group(group).spawn();
        // A second start must not look for a group that is gone.
        command.process_group(0);
        let mut child = spawned.map_err(|error| {
            let failed = Error::new(GUARDED, "a guarded program could not be started")
                .at("program", command.get_program().display())
                .because(&error);
            spawn::with_limits(failed, &error)
        })?;
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            program: Ending(Some(Process::in_group(child.id() as i32, group))),
            _guard: guard,
        })
    }

    /// The program's process number.
    pub fn pid(&self) -> i32 {
        self.program.0.as_ref().expect("it is taken by drop alone").pid()
    }

    /// Waits until the program has ended; `None` if it has not within the time. What is left of its group is killed
    /// then.
    ///
    /// # Errors
    ///
    /// `P0112` if another part of this process has taken its exit status.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let raw = match self.process().status_until(sys::deadline(timeout)) {
            None => return Ok(None),
            Some(Status::Exited(code)) => code << 8,
            Some(Status::Signalled { number, core_dumped }) => number | i32::from(core_dumped) << 7,
            Some(Status::Unknown) => {
                return Err(Error::new(DIED, "a guarded program ended, and how is not known")
                    .at("process", self.pid())
                    .why("another part of this process has taken its exit status"));
            }
        };
        Ok(Some(ExitStatus::from_raw(raw)))
    }

    /// Why it has ended: what [`wait`](Self::wait) gives, and whether the kernel has most likely killed it to free memory.
    /// [`Unknown`](Cause::Unknown) while it runs.
    pub fn cause(&mut self) -> Cause {
        self.process().try_status();
        self.process().cause()
    }

    /// Passes a signal on to the program and its group.
    pub fn signal(&mut self, signal: Signal) {
        self.process().signal_group(signal.number());
    }

    /// Kills the program and its group; [`wait`](Self::wait) for its end afterwards.
    pub fn kill(&mut self) {
        self.process().signal_group(libc::SIGKILL);
    }

    fn process(&mut self) -> &mut Process {
        self.program.0.as_mut().expect("it is taken by drop alone")
    }
}

/// The program's end, when it is dropped.
#[derive(Debug)]
struct Ending(Option<Process>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            spawn::end(process);
        }
    }
}

/// What a process with the role of a guard does instead of `main`.
pub(crate) fn guard(control: &Control) -> ! {
    // SAFETY: the set is filled before it is used. A signal to the group is meant for the program: only SIGKILL ends
    // the guard, and nothing that it starts could inherit the mask, because it starts nothing.
    unsafe {
        let mut all = std::mem::MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
    if worker::hello(control).is_ok() {
        control.wait_until_closed();
        sys::kill(-(std::process::id() as i32), libc::SIGKILL);
    }
    sys::exit_now(exit::WORKER_DIED)
}
