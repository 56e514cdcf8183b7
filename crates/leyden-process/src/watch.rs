//! Any process, seen to its end: also one that is no child of ours, whose exit status the kernel gives to another.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::codes::{DIED, NOT_HERE};
use crate::error::{Error, Result};
use crate::supervise::Cause;
use crate::sys;

/// A process that is watched. Its number may go to another process after its end; this never takes that one for it.
///
/// It is readable in a poll when the process has ended.
#[derive(Debug)]
pub struct Watched {
    /// Unknown if it was dead already when its descriptor was looked at.
    pid: Option<i32>,
    pidfd: OwnedFd,
}

impl Watched {
    /// Watches the process that has this number now. The caller knows that it is the one that is meant: a child that is
    /// not reaped, or its own process.
    ///
    /// # Errors
    ///
    /// `P0112` if there is none, `P0115` if the system cannot watch (gVisor, Linux before 5.3).
    pub fn of(pid: i32) -> Result<Self> {
        match sys::pidfd(pid) {
            Some(pidfd) => Ok(Self { pid: Some(pid), pidfd }),
            None => Err(refused(&io::Error::last_os_error()).at("process", pid)),
        }
    }

    /// This process, to be handed to another one by its [descriptor](AsFd).
    ///
    /// # Errors
    ///
    /// As for [`of`](Self::of).
    pub fn this() -> Result<Self> {
        Self::of(std::process::id() as i32)
    }

    /// What another process has handed over.
    ///
    /// # Errors
    ///
    /// `P0115` if the descriptor is not one of a process.
    pub fn from_fd(pidfd: OwnedFd) -> Result<Self> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
        match pid {
            Some(pid) => Ok(Self { pid: Some(pid).filter(|&pid| pid > 0), pidfd }),
            None => Err(refused(&io::Error::other("the descriptor is not one of a process"))),
        }
    }

    /// The process's number, where it is known.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// How it ended, if it did: exactly where the kernel says so, which it does from Linux 6.15 on, and before as long as
    /// its own parent has not reaped it. Otherwise [`Cause::Unknown`].
    pub fn ended(&self) -> Option<Cause> {
        self.wait(Duration::ZERO)
    }

    /// The same, waiting up to this long for its end.
    pub fn wait(&self, timeout: Duration) -> Option<Cause> {
        let deadline = sys::deadline(timeout);
        // A descriptor that cannot be polled is no process that could be waited for.
        if matches!(sys::poll(&mut [sys::interest(self.as_fd(), libc::POLLIN)], Some(deadline)), Ok(false)) {
            return None;
        }
        // It is not reaped, or it is: one of the two knows, unless it happens between the questions.
        let status = || self.status_if_not_reaped().or_else(|| sys::exit_status(self.as_fd()));
        Some(status().or_else(status).map_or(Cause::Unknown, decode))
    }

    /// Sends it SIGTERM, unless it has ended.
    pub fn terminate(&self) {
        sys::signal_process(self.as_fd(), libc::SIGTERM);
    }

    /// Sends it SIGKILL, unless it has ended.
    pub fn kill(&self) {
        sys::signal_process(self.as_fd(), libc::SIGKILL);
    }

    /// The status that waits for its parent.
    fn status_if_not_reaped(&self) -> Option<i32> {
        const STATE: usize = 0;
        const EXIT_CODE: usize = 49;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid?)).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Looked at afterwards: as long as it is not reaped, no other process can have had its number.
        let still_it = sys::signal_process(self.as_fd(), 0);
        (still_it && *fields.get(STATE)? == "Z").then(|| fields.get(EXIT_CODE)?.parse().ok()).flatten()
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Waits until one of these is readable, or its other end is closed, or until the time has passed; says which are.
pub fn readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> Vec<bool> {
    ready(fds, libc::POLLIN, timeout)
}

/// Waits until one of these takes what is written to it, or its other end is closed, or until the time has passed; says
/// which do.
pub fn writable(fds: &[BorrowedFd<'_>], timeout: Duration) -> Vec<bool> {
    ready(fds, libc::POLLOUT, timeout)
}

fn ready(fds: &[BorrowedFd<'_>], events: i16, timeout: Duration) -> Vec<bool> {
    let mut interests: Vec<_> = fds.iter().map(|&fd| sys::interest(fd, events)).collect();
    match sys::poll(&mut interests, Some(sys::deadline(timeout))) {
        Ok(_) => interests.iter().map(|interest| interest.revents != 0).collect(),
        // The kernel has no memory for it: whoever waits looks at all of them, and waits again.
        Err(_) => vec![true; fds.len()],
    }
}

/// A status as the kernel encodes it.
fn decode(status: i32) -> Cause {
    match status & 0x7f {
        0 => Cause::Exited(status >> 8 & 0xff),
        number => Cause::Signalled { number, core_dumped: status & 0x80 != 0 },
    }
}

fn refused(error: &io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ESRCH) {
        Error::new(DIED, "a process that should be watched is gone")
    } else {
        Error::new(NOT_HERE, "a process cannot be watched").because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn ended(script: &str, reap_first: bool) -> Cause {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let watched = Watched::of(child.id() as i32).unwrap();
        if reap_first {
            child.wait().unwrap();
        }
        let cause = watched.wait(Duration::from_secs(30)).unwrap();
        child.wait().unwrap();
        cause
    }

    #[test]
    fn an_end_is_known_before_and_after_it_is_reaped() {
        let killed = Cause::Signalled { number: libc::SIGKILL, core_dumped: false };
        assert_eq!(ended("exit 7", false), Cause::Exited(7));
        assert_eq!(ended("kill -9 $$", false), killed);
        let reaped = [ended("exit 7", true), ended("kill -9 $$", true)];
        // Kernels before 6.15 forget.
        assert!(reaped == [Cause::Exited(7), killed] || reaped == [Cause::Unknown; 2], "{reaped:?}");
    }

    #[test]
    fn a_socket_is_writable_until_nobody_reads_what_it_was_given() {
        let (mut writer, _reader) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(writable(&[writer.as_fd()], Duration::from_secs(30)), [true]);
        writer.set_nonblocking(true).unwrap();
        while io::Write::write(&mut writer, &[0; 4096]).is_ok() {}
        assert_eq!(writable(&[writer.as_fd()], Duration::from_millis(1)), [false]);
    }

    #[test]
    fn a_process_that_lives_has_not_ended_and_one_that_never_was_is_refused() {
        let own = Watched::this().unwrap();
        assert_eq!((own.ended(), own.pid()), (None, Some(std::process::id() as i32)));
        let handed = Watched::from_fd(own.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(handed.pid(), own.pid());
        assert_eq!(Watched::of(i32::MAX).unwrap_err().code(), DIED);
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(Watched::from_fd(file.into()).unwrap_err().code(), NOT_HERE);
    }
}
