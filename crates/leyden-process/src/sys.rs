//! System calls that the standard library does not have, as safe functions.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

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

/// Waits until one of `fds` has an event or the deadline has passed (`None`: for ever); says whether there is one.
pub(crate) fn poll(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| libc::timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i32::MAX.into()),
            tv_nsec: left.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the slice gives pointer and length; the time, where there is one, lives until the call returns.
        let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, ptr::null()) };
        match check(ready.into()) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Two connected sockets that keep the borders of messages; neither survives an exec.
pub(crate) fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors, which are nobody else's.
    unsafe {
        check(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()).into())?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// A pipe's reading end, which does not block, and its writing end, which does; neither survives an exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two descriptors, which are nobody else's.
    let (read, write) = unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC).into())?;
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    };
    // SAFETY: fcntl with F_SETFL takes an integer; the flag belongs to the reading end alone.
    check(unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }.into())?;
    Ok((read, write))
}

/// A counter to be polled: what wakes a thread that waits for other descriptors too.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: the new descriptor is nobody else's.
    unsafe {
        let fd = check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).into())?;
        Ok(File::from_raw_fd(fd as RawFd))
    }
}

/// Memory with a descriptor and no name, which can be sealed.
pub(crate) fn memfd(name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    // Kernels before 6.3 do not know the second flag; newer ones may refuse memory without it.
    for flags in [flags | libc::MFD_NOEXEC_SEAL, flags] {
        // SAFETY: the name ends with a zero; the new descriptor is nobody else's.
        match check(unsafe { libc::memfd_create(name.as_ptr(), flags) }.into()) {
            // SAFETY: as above.
            Ok(fd) => return Ok(unsafe { File::from_raw_fd(fd as RawFd) }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Makes the memory unchangeable, for every process, for ever.
pub(crate) fn seal(memory: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: fcntl with F_ADD_SEALS takes an integer.
    check(unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into()).map(drop)
}

/// Whether [`seal`] was called on it.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    let needed = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK;
    // SAFETY: fcntl with F_GET_SEALS takes no argument.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals != -1 && seals & needed == needed
}

/// A sealed memory's bytes, mapped to be read.
pub(crate) struct Sealed {
    start: *mut libc::c_void,
    length: usize,
}

impl Sealed {
    /// Maps the first `length` bytes; refuses memory that could still change or shrink.
    pub(crate) fn map(fd: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        if !is_sealed(fd) || file_length(fd)? < length as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not sealed, or too short"));
        }
        if length == 0 {
            return Ok(Self { start: ptr::null_mut(), length });
        }
        let fd = fd.as_raw_fd();
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, length }) }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the mapping is this long and lives as long as `self`; the seals, checked before, keep every process
        // from writing to it or cutting it off.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.length) }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the mapping is ours, and no slice of it outlives `self`.
            unsafe { libc::munmap(self.start, self.length) };
        }
    }
}

/// Which file a descriptor is: device and inode.
pub(crate) fn identity(fd: RawFd) -> Option<(u64, u64)> {
    stat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// A file's length in bytes.
fn file_length(fd: BorrowedFd<'_>) -> io::Result<u64> {
    stat(fd.as_raw_fd()).map(|stat| stat.st_size.try_into().unwrap_or(0))
}

fn stat(fd: RawFd) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: fstat fills `stat` whole if it succeeds, and only then it is read; a bad number is an error.
    unsafe {
        check(libc::fstat(fd, stat.as_mut_ptr()).into())?;
        Ok(stat.assume_init())
    }
}

/// A handle on a process that is our child and not reaped yet; kernels before 5.3 and some sandboxes have none.
pub(crate) fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: the call takes two integers; the new descriptor is nobody else's, and closed by an exec.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as RawFd))
    }
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
#[derive(Clone, Copy)]
pub(crate) enum Resource {
    /// Threads of this user.
    Threads,
    /// Open descriptors of this process.
    Descriptors,
    /// Bytes in a file.
    FileSize,
}

/// The soft limit; `None` where there is none.
pub(crate) fn limit(resource: Resource) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct.
    let result = unsafe {
        match resource {
            Resource::Threads => libc::getrlimit(libc::RLIMIT_NPROC, &mut limit),
            Resource::Descriptors => libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit),
            Resource::FileSize => libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit),
        }
    };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Ends the process at once: no destructor, no exit handler, no flush.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code.into()) }
}
