//! System calls that every Unix has.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Instant;

use crate::entry::{self, Role};
use crate::sys::{check, interest};

/// Waits until one of `fds` has an event or the deadline has passed (`None`: for ever); says whether there is one.
pub(crate) fn poll(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a wait of less than a millisecond must not spin.
            left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(i32::MAX)
        });
        // SAFETY: the slice gives pointer and length.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        match check(ready.into()) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A pipe's reading end, which does not block, and its writing end, which does; neither survives an exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = blocking_pipe()?;
    do_not_block(read.as_fd())?;
    Ok((read, write))
}

/// A pipe; none of its ends survives an exec, and none is in the place of a standard stream that is closed, where the
/// program would print into it.
pub(crate) fn blocking_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let beyond = |fd: OwnedFd| {
        if fd.as_raw_fd() > 2 {
            return Ok(fd);
        }
        // SAFETY: fcntl with F_DUPFD_CLOEXEC takes numbers; the new descriptor is nobody else's.
        unsafe {
            let fd = check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3).into())?;
            Ok(OwnedFd::from_raw_fd(fd as RawFd))
        }
    };
    let (read, write) = io::pipe()?;
    let (read, write): (io::Result<_>, io::Result<_>) = (beyond(read.into()), beyond(write.into()));
    Ok((read?, write?))
}

/// Reading and writing give `WouldBlock` from now on, for all that share this end.
pub(crate) fn do_not_block(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl with F_GETFL and F_SETFL takes and gives integers.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL).into())? as libc::c_int;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK).into()).map(drop)
    }
}

/// What wakes a thread that polls other descriptors too.
pub(crate) struct Wake {
    read: OwnedFd,
    write: OwnedFd,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = pipe()?;
        do_not_block(write.as_fd())?;
        Ok(Self { read, write })
    }

    pub(crate) fn wake(&self) {
        // A full pipe wakes as well.
        let _ = write(self.write.as_fd(), &[1]);
    }

    /// Forgets earlier wakes.
    pub(crate) fn clear(&self) {
        let mut some = [0; 64];
        while read(self.read.as_fd(), &mut some).is_ok_and(|count| count == some.len()) {}
    }

    /// For a poll: readable after a wake.
    pub(crate) fn interest(&self) -> libc::pollfd {
        interest(self.read.as_fd(), libc::POLLIN)
    }
}

/// Not every system has a handle on a process; this back end does without.
pub(crate) fn pidfd(_: i32) -> Option<OwnedFd> {
    None
}

/// Reads what is there.
pub(crate) fn read(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the slice gives pointer and length, and is ours alone.
    let count = unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    check(count as i64).map(|count| count as usize)
}

/// Writes for which there is room. That nobody reads any more is an error and never a signal, whatever the program has
/// chosen for SIGPIPE.
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the slice gives pointer and length.
    let write = || check(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) } as i64);
    // A worker has it ignored; and when nobody reads what it says, it is to end.
    let written = if entry::role() == Role::Worker { write() } else { without_sigpipe(write) };
    written.map(|count| count as usize)
}

/// Keeps the signal that a write may send to this thread from it.
fn without_sigpipe(write: impl FnOnce() -> io::Result<i64>) -> io::Result<i64> {
    // SAFETY: the sets are filled before they are used; the mask is this thread's alone and put back. A SIGPIPE that the
    // write has made is for this thread, and pending, so that `sigwait` takes it without waiting.
    unsafe {
        let mut broken = std::mem::zeroed::<libc::sigset_t>();
        let (mut before, mut pending) = (broken, broken);
        libc::sigemptyset(&mut broken);
        libc::sigaddset(&mut broken, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &broken, &mut before);
        libc::sigpending(&mut pending);
        let earlier = libc::sigismember(&pending, libc::SIGPIPE) == 1;
        let written = write();
        if written.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPIPE)) && !earlier {
            libc::sigpending(&mut pending);
            if libc::sigismember(&pending, libc::SIGPIPE) == 1 {
                libc::sigwait(&broken, &mut 0);
            }
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        written
    }
}
