//! What a process and one that it started talk through: two pipes, whole frames, and their end as the sign that the
//! other side is gone.
//!
//! Neither end blocks. A frame that was begun is written to its end, by whoever sends next if need be, so that a deadline
//! never leaves half of one behind.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::portable::memory::Buffer;
use crate::sys;

/// The largest message of a user, in bytes: larger things are a task's reply.
pub const LARGEST_MESSAGE: usize = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    /// Child: it runs, and is of this build.
    Hello = 1,
    /// Parent: what to run.
    Start,
    /// Parent: the argument of what is to be run.
    Argument,
    /// Either: a message of the user's.
    Message,
    /// Parent: end soon.
    Stop,
    /// Child: the function has returned; nothing follows.
    Goodbye,
    /// Parent: a task of a pool.
    Task,
    /// Child: where a task is.
    Progress,
    /// Child: a region of the reply that follows.
    Region,
    /// Child: a task's reply.
    Done,
    /// Child: why a task failed.
    Failed,
}

impl Tag {
    fn from_byte(byte: u8) -> Option<Self> {
        use Tag::{Argument, Done, Failed, Goodbye, Hello, Message, Progress, Region, Start, Stop, Task};
        [Hello, Start, Argument, Message, Stop, Goodbye, Task, Progress, Region, Done, Failed]
            .into_iter()
            .find(|tag| *tag as u8 == byte)
    }
}

/// What came, or did not.
pub(crate) enum Got {
    Packet { tag: Tag, body: Vec<u8> },
    Region(Buffer),
    TimedOut,
    Closed,
}

/// Both pipes of one side. Clones share them.
#[derive(Clone)]
pub(crate) struct Control(Arc<Ends>);

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    mail: Mutex<Mail>,
    arrived: Condvar,
    emptied: Condvar,
}

/// What a thread that reads for all others has read; see [`Control::wait_until_closed`].
#[derive(Default)]
struct Mail {
    /// Whether there is such a thread.
    delivered: bool,
    frames: VecDeque<Got>,
    bytes: usize,
    /// Nothing more will come.
    closed: bool,
}

impl AsFd for Control {
    /// The end that is read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.read.as_fd()
    }
}

impl Control {
    /// # Errors
    ///
    /// The system's, where a pipe cannot be kept from blocking.
    pub(crate) fn new(read: OwnedFd, write: OwnedFd) -> io::Result<Self> {
        sys::do_not_block(read.as_fd())?;
        sys::do_not_block(write.as_fd())?;
        Ok(Self(Arc::new(Ends {
            read,
            write,
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
            mail: Mutex::default(),
            arrived: Condvar::new(),
            emptied: Condvar::new(),
        })))
    }

    /// Sends one frame. Waits until the deadline for room, and as long again whenever the other side reads something; a
    /// frame that was begun counts as sent. A closed pipe is `BrokenPipe`.
    pub(crate) fn send(
        &self,
        tag: Tag,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> io::Result<()> {
        assert!(fds.is_empty(), "no descriptor goes through a pipe: callers have refused");
        self.send_all(&[(tag, body)], deadline)
    }

    /// Sends frames with none of another thread's between them.
    pub(crate) fn send_all(&self, frames: &[(Tag, &[u8])], deadline: Instant) -> io::Result<()> {
        /// From this length on, a body is not copied to go out together with its header.
        const LONG: usize = 4096;
        let mut outgoing = lock(&self.0.outgoing);
        outgoing.flush(self.0.write.as_fd(), deadline)?;
        if !outgoing.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        let mut sending = Sending { fd: self.0.write.as_fd(), begun: false, patience, deadline };
        for (tag, body) in frames {
            let header = header(*tag, body.len());
            if body.len() < LONG {
                outgoing.put(&[&header, *body].concat(), &mut sending)?;
            } else {
                outgoing.put(&header, &mut sending)?;
                outgoing.put(body, &mut sending)?;
            }
        }
        Ok(())
    }

    /// For a poll: what is there to be read and, if something is left to be written, room for it.
    pub(crate) fn interests(&self) -> impl Iterator<Item = libc::pollfd> {
        let unsent = !lock(&self.0.outgoing).is_empty();
        let room = unsent.then(|| sys::interest(self.0.write.as_fd(), libc::POLLOUT));
        [sys::interest(self.0.read.as_fd(), libc::POLLIN)].into_iter().chain(room)
    }

    /// The next frame. Writes what earlier ones of ours have left, as far as there is room.
    pub(crate) fn receive(&self, deadline: Instant) -> io::Result<Got> {
        if lock(&self.0.mail).delivered {
            return Ok(self.take_mail(deadline));
        }
        // What nobody reads is found out by whoever sends.
        let _ = lock(&self.0.outgoing).flush(self.0.write.as_fd(), Instant::now());
        self.read(Some(deadline))
    }

    /// Reads the next frame; `None` waits for ever. One thread at a time.
    fn read(&self, deadline: Option<Instant>) -> io::Result<Got> {
        let mut incoming = lock(&self.0.incoming);
        // More may have come since the last call, and a process that is dead is asked once.
        incoming.emptied = false;
        loop {
            match incoming.next(self.0.read.as_fd())? {
                Some(frame) => return Ok(frame),
                None if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                    return Ok(Got::TimedOut);
                }
                None => {
                    sys::poll(&mut [sys::interest(self.as_fd(), libc::POLLIN)], deadline)?;
                }
            }
        }
    }

    fn take_mail(&self, deadline: Instant) -> Got {
        let mut mail = lock(&self.0.mail);
        loop {
            if let Some(frame) = mail.frames.pop_front() {
                mail.bytes -= frame.bytes();
                self.0.emptied.notify_one();
                return frame;
            }
            if mail.closed {
                return Got::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Got::TimedOut;
            }
            let (woken, _) = self.0.arrived.wait_timeout(mail, left).unwrap_or_else(PoisonError::into_inner);
            mail = woken;
        }
    }

    /// Lets the thread that is to call [`wait_until_closed`](Self::wait_until_closed) read for all others.
    pub(crate) fn let_mail_be_delivered(&self) {
        lock(&self.0.mail).delivered = true;
    }

    /// Reads until the other side is gone: only so is its end noticed everywhere. What comes is kept for those that
    /// [`receive`](Self::receive).
    pub(crate) fn wait_until_closed(&self) {
        self.let_mail_be_delivered();
        loop {
            match self.read(None) {
                Ok(Got::Packet { tag: Tag::Stop, .. }) => self.close_mail(),
                Ok(frame @ (Got::Packet { .. } | Got::Region(_))) => {
                    if !self.deliver(frame) {
                        return self.close_mail();
                    }
                }
                Ok(Got::TimedOut) => {}
                Ok(Got::Closed) | Err(_) => return self.close_mail(),
            }
        }
    }

    /// Nothing more will come.
    fn close_mail(&self) {
        lock(&self.0.mail).closed = true;
        self.0.arrived.notify_all();
    }

    /// Keeps a frame, once there is room for it; false if the other side is gone meanwhile.
    fn deliver(&self, frame: Got) -> bool {
        let mut mail = lock(&self.0.mail);
        while mail.bytes >= MAIL_BYTES {
            let (woken, _) = self.0.emptied.wait_timeout(mail, FULL).unwrap_or_else(PoisonError::into_inner);
            mail = woken;
            if self.is_closed() {
                return false;
            }
        }
        mail.bytes += frame.bytes();
        mail.frames.push_back(frame);
        self.0.arrived.notify_one();
        true
    }

    /// Whether the other side is gone; what it has sent may still be there.
    fn is_closed(&self) -> bool {
        let mut interest = [sys::interest(self.as_fd(), 0)];
        sys::poll(&mut interest, Some(Instant::now())).is_ok() && interest[0].revents & libc::POLLHUP != 0
    }
}

/// How much mail is kept before no more is read, in bytes.
const MAIL_BYTES: usize = 64 << 20;
/// How often to look for the end of the other side while nothing is read.
const FULL: Duration = Duration::from_millis(100);

impl Got {
    fn bytes(&self) -> usize {
        match self {
            Self::Packet { body, .. } => body.len(),
            Self::Region(region) => region.len(),
            Self::TimedOut | Self::Closed => 0,
        }
    }
}

/// What was begun to be written.
#[derive(Default)]
struct Outgoing {
    rest: Vec<u8>,
    /// How much of it is written.
    at: usize,
}

/// How frames are being written.
struct Sending<'a> {
    fd: BorrowedFd<'a>,
    /// Whether the other side has some of it, so that it must get all.
    begun: bool,
    /// How long to wait for each bit of room.
    patience: Duration,
    deadline: Instant,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Writes what is left, as far as there is room before the deadline.
    fn flush(&mut self, fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
        while !self.is_empty() {
            match write_until(fd, &self.rest[self.at..], deadline)? {
                None => return Ok(()),
                Some(count) => self.at += count,
            }
            if self.at == self.rest.len() {
                *self = Self::default();
            }
        }
        Ok(())
    }

    /// Writes bytes, or keeps those that nobody reads in time after others of the same frame.
    fn put(&mut self, mut bytes: &[u8], sending: &mut Sending<'_>) -> io::Result<()> {
        while self.is_empty() && !bytes.is_empty() {
            match write_until(sending.fd, bytes, sending.deadline)? {
                Some(count) => {
                    bytes = &bytes[count..];
                    sending.begun = true;
                    sending.deadline = sys::deadline(sending.patience);
                }
                None if sending.begun => break,
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }
}

/// Writes some of the bytes; nothing if there is no room before the deadline.
fn write_until(fd: BorrowedFd<'_>, bytes: &[u8], deadline: Instant) -> io::Result<Option<usize>> {
    loop {
        match sys::write(fd, bytes) {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !sys::poll(&mut [sys::interest(fd, libc::POLLOUT)], Some(deadline))? {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

const HEADER: usize = 16;

/// A frame's tag and the length of its body.
fn header(tag: Tag, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = tag as u8;
    header[8..].copy_from_slice(&(length as u64).to_le_bytes());
    header
}

/// What was read of frames that are not whole yet.
struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    partial: Option<Partial>,
    /// This call's last read has found less than there was room for: nothing more is there, most likely.
    emptied: bool,
}

struct Partial {
    tag: Tag,
    body: Body,
    filled: usize,
}

enum Body {
    Bytes(Vec<u8>),
    Region(Buffer),
}

impl Default for Incoming {
    fn default() -> Self {
        Self { buffer: vec![0; 64 << 10], start: 0, end: 0, partial: None, emptied: false }
    }
}

impl Incoming {
    /// The next frame; nothing if it is not there yet.
    fn next(&mut self, fd: BorrowedFd<'_>) -> io::Result<Option<Got>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            // Whoever waits polls, and comes again.
            if std::mem::take(&mut self.emptied) {
                return Ok(None);
            }
            match self.fill(fd) {
                Ok(0) => return Ok(Some(Got::Closed)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// A frame that is whole.
    fn take(&mut self) -> io::Result<Option<Got>> {
        let ahead = &self.buffer[self.start..self.end];
        if self.partial.is_none() {
            let Some((header, _)) = ahead.split_at_checked(HEADER) else { return Ok(None) };
            let length = u64::from_le_bytes(header[8..].try_into().expect("it is eight bytes long"));
            let (Some(tag), Ok(length)) = (Tag::from_byte(header[0]), usize::try_from(length)) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of an unknown kind"));
            };
            let body = match tag {
                Tag::Region => Body::Region(Buffer::zeroed(length)),
                _ => Body::Bytes(vec![0; length]),
            };
            self.partial = Some(Partial { tag, body, filled: 0 });
            self.start += HEADER;
        }
        let ahead = &self.buffer[self.start..self.end];
        let partial = self.partial.as_mut().expect("it was put there");
        let missing = partial.missing();
        let count = missing.len().min(ahead.len());
        missing[..count].copy_from_slice(&ahead[..count]);
        self.start += count;
        partial.filled += count;
        Ok(self.partial.take_if(|partial| partial.missing().is_empty()).map(
            |Partial { tag, body, .. }| match body {
                Body::Bytes(body) => Got::Packet { tag, body },
                Body::Region(region) => Got::Region(region),
            },
        ))
    }

    /// Reads what is there: into the buffer, which is empty but for a header's beginning, or past it into a long body.
    fn fill(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if let Some(partial) = &mut self.partial
            && partial.missing().len() >= self.buffer.len()
        {
            let missing = partial.missing();
            let count = sys::read(fd, missing)?;
            self.emptied = count < missing.len();
            partial.filled += count;
            return Ok(count);
        }
        let free = &mut self.buffer[self.end..];
        let count = sys::read(fd, free)?;
        self.emptied = count < free.len();
        self.end += count;
        Ok(count)
    }
}

impl Partial {
    fn missing(&mut self) -> &mut [u8] {
        let body: &mut [u8] = match &mut self.body {
            Body::Bytes(bytes) => bytes,
            Body::Region(region) => region,
        };
        &mut body[self.filled..]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor that ties a process to this one. On Linux a fork lets go of it; here nothing forks.
pub(crate) struct Held<T>(T);

impl<T> Held<T> {
    pub(crate) fn new(descriptor: T) -> Self {
        Self(descriptor)
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Control, Control) {
        let (our_read, their_write) = io::pipe().unwrap();
        let (their_read, our_write) = io::pipe().unwrap();
        let new = |read: io::PipeReader, write: io::PipeWriter| Control::new(read.into(), write.into());
        (new(our_read, our_write).unwrap(), new(their_read, their_write).unwrap())
    }

    fn soon() -> Instant {
        sys::deadline(Duration::from_secs(10))
    }

    fn body(got: io::Result<Got>) -> Vec<u8> {
        match got.unwrap() {
            Got::Packet { body, .. } => body,
            Got::Region(region) => region.to_vec(),
            Got::TimedOut => panic!("nothing came"),
            Got::Closed => panic!("it is closed"),
        }
    }

    #[test]
    fn frames_of_all_sizes_keep_their_borders() {
        let (here, there) = pair();
        let bodies: Vec<Vec<u8>> = [0, 1, 4095, 4096, 65_520, 65_536, 1_000_000]
            .iter()
            .map(|&length| (0..length).map(|byte| byte as u8).collect())
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for body in &bodies {
                    let parts: [(Tag, &[u8]); 2] = [(Tag::Region, body), (Tag::Message, body)];
                    here.send_all(&parts, soon()).unwrap();
                }
            });
            for expected in &bodies {
                assert_eq!(&body(there.receive(soon())), expected);
                assert_eq!(&body(there.receive(soon())), expected);
            }
        });
        assert!(matches!(there.receive(Instant::now()).unwrap(), Got::TimedOut));
    }

    #[test]
    fn a_frame_that_was_begun_is_finished_later_and_one_without_room_is_not_begun() {
        let (here, there) = pair();
        let long = vec![7; 1 << 20];
        here.send(Tag::Message, &long, &[], Instant::now()).unwrap();
        let error = here.send(Tag::Message, b"no room", &[], Instant::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(here.interests().count(), 2, "it wants to write");
        let deadline = soon();
        let got = loop {
            match there.receive(Instant::now()).unwrap() {
                Got::TimedOut => assert!(Instant::now() < deadline),
                got => break got,
            }
            assert!(matches!(here.receive(Instant::now()).unwrap(), Got::TimedOut));
        };
        assert_eq!(body(Ok(got)), long);
        assert_eq!(here.interests().count(), 1);
        here.send(Tag::Message, b"room", &[], Instant::now()).unwrap();
        assert_eq!(body(there.receive(soon())), b"room");
    }

    #[test]
    fn the_end_is_noticed_after_what_came_before_it_and_no_signal_ends_the_sender() {
        let (here, there) = pair();
        here.send(Tag::Message, b"never read", &[], soon()).unwrap();
        there.send(Tag::Goodbye, b"last words", &[], soon()).unwrap();
        assert!(!here.is_closed());
        drop(there);
        assert!(here.is_closed());
        assert_eq!(body(here.receive(soon())), b"last words");
        assert!(matches!(here.receive(soon()).unwrap(), Got::Closed));
        // SAFETY: the disposition is one of the two constants; the pipe's own is what is tested.
        let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let error = here.send(Tag::Message, b"", &[], soon()).unwrap_err();
        // SAFETY: this is what was set before.
        unsafe { libc::signal(libc::SIGPIPE, before) };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_frame_that_is_none_is_an_error() {
        let (here, there) = pair();
        sys::write(there.0.write.as_fd(), &[99; HEADER]).unwrap();
        assert_eq!(here.receive(soon()).map(drop).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn one_thread_reads_for_several_until_the_end() {
        let (here, there) = pair();
        std::thread::scope(|scope| {
            there.let_mail_be_delivered();
            scope.spawn(|| there.wait_until_closed());
            let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| body(there.receive(soon())))).collect();
            here.send(Tag::Message, b"one", &[], soon()).unwrap();
            here.send(Tag::Message, b"two", &[], soon()).unwrap();
            let mut read: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            read.sort();
            assert_eq!(read, [b"one", b"two"]);
            here.send(Tag::Message, b"before", &[], soon()).unwrap();
            here.send(Tag::Stop, b"", &[], soon()).unwrap();
            assert_eq!(body(there.receive(soon())), b"before");
            assert!(matches!(there.receive(soon()).unwrap(), Got::Closed));
            drop(here);
        });
    }
}
