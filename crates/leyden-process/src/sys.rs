//! System calls that the standard library does not have, as safe functions.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

#[cfg(not(leyden_portable))]
mod linux;

#[cfg(not(leyden_portable))]
pub(crate) use linux::*;

#[cfg(leyden_portable)]
pub(crate) use crate::portable::sys::*;

/// The value of a system call, or its error.
pub(crate) fn check(value: i64) -> io::Result<i64> {
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// `timeout` from now; what does not fit the clock is a year.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + timeout.min(YEAR)
}

/// One entry for [`poll`].
pub(crate) fn interest(fd: BorrowedFd<'_>, events: i16) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// Which file a descriptor is: device and inode.
pub(crate) fn identity(fd: RawFd) -> Option<(u64, u64)> {
    // SAFETY: the file is never closed here; a number that is not open is an error.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    file.metadata().ok().map(|file| (file.dev(), file.ino()))
}

/// Sends a signal to a process, or with a negative number to a group; it may be gone already.
pub(crate) fn kill(pid: i32, signal: i32) {
    // Never 0 (our own group) or -1 (everybody).
    if !(-1..=1).contains(&pid) {
        // SAFETY: kill takes two integers.
        unsafe { libc::kill(pid, signal) };
    }
}

/// What the system limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Threads of this user (`ulimit -u`).
    Threads,
    /// Open descriptors of this process (`ulimit -n`).
    Descriptors,
    /// Bytes in a file, shared memory among them (`ulimit -f`).
    FileSize,
    /// Bytes of addresses of this process (`ulimit -v`).
    Addresses,
}

/// The soft limit of this process; `None` where there is none.
pub fn limit(resource: Resource) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct.
    let result = unsafe {
        match resource {
            Resource::Threads => libc::getrlimit(libc::RLIMIT_NPROC, &mut limit),
            Resource::Descriptors => libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit),
            Resource::FileSize => libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit),
            Resource::Addresses => libc::getrlimit(libc::RLIMIT_AS, &mut limit),
        }
    };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as _)
}

/// Ends the process at once: no destructor, no exit handler, no flush.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code.into()) }
}
