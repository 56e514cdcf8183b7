//! The socket between a process and one that it started: whole messages, descriptors beside them, and its end as the
//! sign that the other side is gone.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use crate::sys;

/// The largest message of a user, in bytes: larger things go through shared memory.
pub const LARGEST_MESSAGE: usize = 64 << 10;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    /// Child: it runs, and is of this build.
    Hello = 1,
    /// Parent: some of the descriptors that belong to the next [`Tag::Start`] or [`Tag::Fork`].
    Descriptors,
    /// Parent: what to run.
    Start,
    /// Parent to zygote: one more worker.
    Fork,
    /// Zygote: the argument is read.
    Loaded,
    /// Zygote: the worker's number, or an error.
    Forked,
    /// Either: a message of the user's.
    Message,
    /// Parent: end soon.
    Stop,
    /// Child: the function has returned; nothing follows.
    Goodbye,
}

impl Tag {
    fn from_byte(byte: u8) -> Option<Self> {
        use Tag::{Descriptors, Fork, Forked, Goodbye, Hello, Loaded, Message, Start, Stop};
        [Hello, Descriptors, Start, Fork, Loaded, Forked, Message, Stop, Goodbye]
            .into_iter()
            .find(|tag| *tag as u8 == byte)
    }
}

/// What came, or did not.
pub(crate) enum Got {
    Packet { tag: Tag, body: Vec<u8>, fds: Vec<OwnedFd> },
    TimedOut,
    Closed,
}

/// One end.
pub(crate) struct Control(Held<OwnedFd>);

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get().as_fd()
    }
}

impl Control {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Held::new(fd))
    }

    /// Sends one message; waits until the deadline for room. A closed socket is `BrokenPipe`.
    pub(crate) fn send(
        &self,
        tag: Tag,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> io::Result<()> {
        assert!(fds.len() <= FDS_PER_MESSAGE, "callers split what is more");
        let tag = [tag as u8];
        let mut parts = [&tag[..], body]
            .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        let mut room = Ancillary::new();
        // SAFETY: an all-zero msghdr is a valid empty one.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        if !fds.is_empty() {
            let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
            let bytes = size_of_val(&raw[..]);
            message.msg_control = room.0.as_mut_ptr().cast();
            // SAFETY: the room holds a header and `FDS_PER_MESSAGE` descriptors, aligned as a header is; the macros
            // compute places in it from the lengths set here.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(bytes as u32) as _;
                let header = libc::CMSG_FIRSTHDR(&message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
                ptr::copy_nonoverlapping(raw.as_ptr().cast(), libc::CMSG_DATA(header), bytes);
            }
        }
        loop {
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            // SAFETY: the message points at `parts` and `room`, which live until the call returns and are only read.
            let sent = unsafe { libc::sendmsg(self.as_fd().as_raw_fd(), &message, flags) };
            let error = match sys::check(sent as i64) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ECONNRESET) => return Err(io::ErrorKind::BrokenPipe.into()),
                Some(libc::EAGAIN) => {
                    if !sys::poll(&mut [sys::interest(self.as_fd(), libc::POLLOUT)], Some(deadline))? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                _ => return Err(error),
            }
        }
    }

    /// The next message. One thread at a time.
    pub(crate) fn receive(&self, deadline: Instant) -> io::Result<Got> {
        loop {
            let (fd, flags) =
                (self.as_fd().as_raw_fd(), libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT);
            // SAFETY: a length of 0 lets nothing be written; with MSG_TRUNC the message's real length comes back.
            let length = unsafe { libc::recv(fd, ptr::null_mut(), 0, flags) };
            match sys::check(length as i64) {
                Ok(0) => return Ok(Got::Closed),
                Ok(length) => return self.take(length as usize),
                Err(error) => match error.raw_os_error() {
                    // Said once if the other side went without having read everything; what it sent is still there.
                    Some(libc::EINTR | libc::ECONNRESET) => {}
                    Some(libc::EAGAIN) => {
                        if !sys::poll(&mut [sys::interest(self.as_fd(), libc::POLLIN)], Some(deadline))? {
                            return Ok(Got::TimedOut);
                        }
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Reads the message that is `length` bytes long.
    fn take(&self, length: usize) -> io::Result<Got> {
        let mut bytes = vec![0; length];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut room = Ancillary::new();
        // SAFETY: an all-zero msghdr is a valid empty one.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = room.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&room.0) as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the message points at `bytes` and `room`, each as long as said.
        sys::check(unsafe { libc::recvmsg(self.as_fd().as_raw_fd(), &mut message, flags) } as i64)?;
        let fds = descriptors(&message);
        if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "descriptors of a message were lost: this process may open no more",
            ));
        }
        let tag = Tag::from_byte(bytes[0])
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a message of an unknown kind"))?;
        bytes.remove(0);
        Ok(Got::Packet { tag, body: bytes, fds })
    }

    /// Whether the other end is closed. Messages may still be there.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(sys::poll(&mut [sys::interest(self.as_fd(), 0)], Some(Instant::now())), Ok(true))
    }

    /// Returns when the other end is closed, and reads nothing.
    pub(crate) fn wait_until_closed(&self) {
        loop {
            match sys::poll(&mut [sys::interest(self.as_fd(), 0)], None) {
                Ok(false) => {}
                // An error (no memory for the kernel) must not leave a process behind that nobody watches.
                Ok(true) | Err(_) => return,
            }
        }
    }
}

/// A descriptor that ties a process to this one. A forked process must not hold it: see [`release_all`].
pub(crate) struct Held<T: AsFd>(T);

static HELD: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

impl<T: AsFd> Held<T> {
    pub(crate) fn new(descriptor: T) -> Self {
        held().insert(descriptor.as_fd().as_raw_fd());
        Self(descriptor)
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> Drop for Held<T> {
    fn drop(&mut self) {
        held().remove(&self.0.as_fd().as_raw_fd());
    }
}

/// In a process that was just forked: puts `null` in the place of all that is held. The numbers stay in use, because
/// values that own them lie in the copied memory, and one that is dropped must not close a stranger's.
pub(crate) fn release_all(null: BorrowedFd<'_>) {
    for &fd in &*held() {
        // SAFETY: the number is open and `Held`, whose owners only read, write and close it: they find nothing, and
        // nobody to talk to.
        unsafe { libc::dup3(null.as_raw_fd(), fd, libc::O_CLOEXEC) };
    }
}

fn held() -> MutexGuard<'static, BTreeSet<RawFd>> {
    HELD.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// How many descriptors one message may carry; the kernel allows 253.
pub(crate) const FDS_PER_MESSAGE: usize = 250;

/// Room for the descriptors of a message, aligned as their header must be.
struct Ancillary([u64; 2 + FDS_PER_MESSAGE.div_ceil(2) + 1]);

impl Ancillary {
    fn new() -> Self {
        Self([0; _])
    }
}

/// Takes over the descriptors that came with a message.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the message's room with whole headers, which the macros walk; each descriptor in it
    // is new, open, and nobody else's.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn pair() -> (Control, Control) {
        let (a, b) = sys::socketpair().unwrap();
        (Control::new(a), Control::new(b))
    }

    fn soon() -> Instant {
        sys::deadline(Duration::from_secs(10))
    }

    #[test]
    fn messages_keep_their_borders_and_their_descriptors() {
        let (here, there) = pair();
        let null = std::fs::File::open("/dev/null").unwrap();
        here.send(Tag::Message, b"", &[], soon()).unwrap();
        here.send(Tag::Start, &vec![7; LARGEST_MESSAGE], &[null.as_fd(); FDS_PER_MESSAGE], soon()).unwrap();
        let Got::Packet { tag, body, fds } = there.receive(soon()).unwrap() else { panic!() };
        assert_eq!((tag, body.len(), fds.len()), (Tag::Message, 0, 0));
        let Got::Packet { tag, body, fds } = there.receive(soon()).unwrap() else { panic!() };
        assert_eq!((tag, body.len(), fds.len()), (Tag::Start, LARGEST_MESSAGE, FDS_PER_MESSAGE));
        assert_eq!(sys::identity(fds[249].as_raw_fd()), sys::identity(null.as_raw_fd()));
        assert!(matches!(there.receive(Instant::now()).unwrap(), Got::TimedOut));
    }

    #[test]
    fn what_was_sent_before_the_end_arrives_though_the_sender_left_mail_unread() {
        let (here, there) = pair();
        here.send(Tag::Message, b"never read", &[], soon()).unwrap();
        there.send(Tag::Goodbye, b"last words", &[], soon()).unwrap();
        assert!(!here.is_closed());
        drop(there);
        assert!(here.is_closed());
        let Got::Packet { body, .. } = here.receive(soon()).unwrap() else { panic!() };
        assert_eq!(body, b"last words");
        assert!(matches!(here.receive(soon()).unwrap(), Got::Closed));
        let error = here.send(Tag::Message, b"", &[], soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
