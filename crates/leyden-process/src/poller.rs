//! Waiting for many descriptors at once, at a cost that does not grow with those that are quiet (epoll).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use crate::sys::{check, deadline};

/// What is waited for. Descriptors are not owned: closing one ends its being watched.
#[derive(Debug)]
pub struct Poller(OwnedFd);

/// What has come of a descriptor. What has failed, or whose other end is closed, is both readable and writable: the next
/// read or write says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The number that it is watched under.
    pub number: u64,
    /// A read does not block.
    pub readable: bool,
    /// A write does not block; told if it was asked for.
    pub writable: bool,
}

impl Poller {
    /// Watches nothing yet.
    ///
    /// # Errors
    ///
    /// The system's refusal: no descriptor is left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the new descriptor is nobody else's.
        unsafe {
            let fd = check(libc::epoll_create1(libc::EPOLL_CLOEXEC).into())?;
            Ok(Self(OwnedFd::from_raw_fd(fd as RawFd)))
        }
    }

    /// Watches a descriptor under a number: whether it is readable, and if `writes` whether it is writable.
    ///
    /// # Errors
    ///
    /// The system's refusal: it is watched already, is a file, or there is no memory.
    pub fn watch(&self, fd: BorrowedFd<'_>, number: u64, writes: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, number, writes)
    }

    /// The same for one that is watched already.
    ///
    /// # Errors
    ///
    /// The system's refusal: it is not watched.
    pub fn change(&self, fd: BorrowedFd<'_>, number: u64, writes: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, number, writes)
    }

    /// Watches it no longer.
    ///
    /// # Errors
    ///
    /// The system's refusal: it is not watched.
    pub fn forget(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, false)
    }

    /// Waits until something is ready or the time has passed, rounded up to milliseconds; gives what is ready: of very many
    /// some, the others the next time.
    ///
    /// # Errors
    ///
    /// The system's refusal, which is none that a caller could cause.
    pub fn wait(&self, timeout: Duration) -> io::Result<Vec<Ready>> {
        const MOST: usize = 256;
        let deadline = deadline(timeout);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST];
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let millis = left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(i32::MAX);
            // SAFETY: the array gives pointer and length.
            let count =
                unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), MOST as i32, millis) };
            match check(count.into()) {
                Ok(count) => return Ok(events[..count as usize].iter().map(ready).collect()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn control(&self, act: i32, fd: BorrowedFd<'_>, number: u64, writes: bool) -> io::Result<()> {
        let wished = if writes { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        let mut event = libc::epoll_event { events: wished as u32, u64: number };
        // SAFETY: the event lives until the call returns, which copies it; a descriptor that cannot be watched is an error.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), act, fd.as_raw_fd(), &raw mut event) }.into())
            .map(drop)
    }
}

fn ready(event: &libc::epoll_event) -> Ready {
    let events = event.events as i32;
    let broken = events & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
    Ready {
        number: event.u64,
        readable: broken || events & libc::EPOLLIN != 0,
        writable: broken || events & libc::EPOLLOUT != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_can_be_read_or_written_is_told_under_its_number() {
        const NONE: Duration = Duration::ZERO;
        const LONG: Duration = Duration::from_secs(30);
        let poller = Poller::new().unwrap();
        let (mut one, mut other) = UnixStream::pair().unwrap();
        poller.watch(one.as_fd(), 7, false).unwrap();
        assert_eq!(poller.wait(NONE).unwrap(), []);
        other.write_all(b"a").unwrap();
        let readable = Ready { number: 7, readable: true, writable: false };
        assert_eq!(poller.wait(LONG).unwrap(), [readable]);
        // It stays so until it is read.
        assert_eq!(poller.wait(LONG).unwrap(), [readable]);
        one.read_exact(&mut [0]).unwrap();
        poller.change(one.as_fd(), 8, true).unwrap();
        assert_eq!(poller.wait(LONG).unwrap(), [Ready { number: 8, readable: false, writable: true }]);
        drop(other);
        assert_eq!(poller.wait(LONG).unwrap(), [Ready { number: 8, readable: true, writable: true }]);
        poller.forget(one.as_fd()).unwrap();
        assert_eq!(poller.wait(Duration::from_millis(1)).unwrap(), []);
        assert!(poller.forget(one.as_fd()).is_err() && poller.change(one.as_fd(), 1, false).is_err());
    }
}
