//! A process that has read a job's argument and waits to become workers.
//!
//! It is this program started again, with one thread, so what it forks holds no lock of anybody: a worker costs a copy
//! of page tables instead of an exec and of reading the argument again. The workers are made with `CLONE_PARENT`: they
//! are children of the program, not of the zygote, die with the program, and outlive a zygote that is killed. Python's
//! forkserver makes its workers its own children, which the program can neither wait for nor take with it.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::contain::contain;
use crate::control::{Control, Got, Tag};
use crate::error::Result;
use crate::worker::{self, Work};
use crate::{copies, exit, sys};

/// One more worker. Its descriptors come before it: its control socket, its stderr, those handed over.
#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) name: String,
    /// How many descriptors are handed over to the function.
    pub(crate) handed: u32,
}

/// A worker's process number, or the system's error number.
#[derive(Serialize, Deserialize)]
pub(crate) struct Answer(pub(crate) Result<i32, i32>);

/// What a process with the role of a zygote does instead of `main`.
pub(crate) fn run(control: Control) -> ! {
    copies::watch();
    let work =
        worker::hello(&control).and_then(|()| worker::take_assignment(&control)).and_then(|assignment| {
            contain(|| assignment.load()).unwrap_or_else(|panic| Err(worker::unreadable(panic)))
        });
    copies::end_if_copied(|| "the `Deserialize` of a job's argument");
    match work {
        Ok(work) if control.send(Tag::Loaded, &[], &[], worker::patience()).is_ok() => serve(control, work),
        Ok(_) => sys::exit_now(exit::WORKER_DIED),
        Err(error) => worker::leave(&control, Err(error)),
    }
}

fn serve(control: Control, work: Work) -> ! {
    /// Nothing happens then; the end of the socket is what ends this process.
    const IDLE: Duration = Duration::from_secs(3600);
    let mut fds = Vec::new();
    loop {
        let body = match control.receive(sys::deadline(IDLE)) {
            Ok(Got::Packet { tag: Tag::Descriptors, fds: more, .. }) => {
                fds.extend(more);
                continue;
            }
            Ok(Got::Packet { tag: Tag::Fork, body, .. }) => body,
            Ok(Got::TimedOut) => continue,
            Ok(Got::Packet { .. } | Got::Closed) | Err(_) => sys::exit_now(exit::WORKER_DIED),
        };
        let mut fds = std::mem::take(&mut fds);
        let answer = match postcard::from_bytes::<Request>(&body) {
            Ok(request) if fds.len() == 2 + request.handed as usize => match fork_for_the_parent() {
                Ok(0) => {
                    drop(control);
                    let handed = fds.split_off(2);
                    let stderr = fds.pop().expect("there are two");
                    let control = fds.pop().expect("there is one");
                    worker::after_fork(control, stderr, request.name, handed, work)
                }
                Ok(pid) => Ok(pid),
                Err(error) => Err(error.raw_os_error().unwrap_or(libc::EAGAIN)),
            },
            _ => Err(libc::EMFILE),
        };
        drop(fds);
        let answer = postcard::to_allocvec(&Answer(answer)).expect("two numbers always serialise");
        if control.send(Tag::Forked, &answer, &[], worker::patience()).is_err() {
            sys::exit_now(exit::WORKER_DIED);
        }
    }
}

/// Forks; the new process is the child of our parent. 0 in the new process.
fn fork_for_the_parent() -> io::Result<i32> {
    let own = std::process::id() as i32;
    // SAFETY: without CLONE_VM this is a fork. The C library is not told, so its locks must be free: there is one
    // thread, this one, unless the argument's `Deserialize` has started others, which is checked. The library's note
    // of the main thread's number is put right below; nothing else of it depends on which process it is.
    unsafe {
        if threads() != 1 {
            return Err(io::Error::from_raw_os_error(libc::EDEADLK));
        }
        let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
        let pid =
            sys::check(libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize))? as i32;
        if pid == 0 {
            const PR_GET_TID_ADDRESS: libc::c_int = 40;
            // glibc keeps the number where it also asked the kernel to clear it; musl asked for something else there.
            let mut place: *mut i32 = std::ptr::null_mut();
            if libc::prctl(PR_GET_TID_ADDRESS, &raw mut place) == 0 && !place.is_null() && *place == own {
                *place = std::process::id() as i32;
            }
        }
        Ok(pid)
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}
