//! System calls of Linux's own.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::time::Instant;

use super::{check, interest};

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

/// What wakes a thread that polls other descriptors too.
pub(crate) struct Wake(File);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the new descriptor is nobody else's.
        unsafe {
            let fd = check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).into())?;
            Ok(Self(File::from_raw_fd(fd as RawFd)))
        }
    }

    pub(crate) fn wake(&self) {
        let _ = (&self.0).write_all(&1_u64.to_ne_bytes());
    }

    /// Forgets earlier wakes.
    pub(crate) fn clear(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }

    /// For a poll: readable after a wake.
    pub(crate) fn interest(&self) -> libc::pollfd {
        interest(self.0.as_fd(), libc::POLLIN)
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
        if !is_sealed(fd) || length_of(fd)? < length as u64 {
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

/// A file's length in bytes.
fn length_of(fd: BorrowedFd<'_>) -> io::Result<u64> {
    File::from(fd.try_clone_to_owned()?).metadata().map(|file| file.len())
}

/// A handle on a process that is our child and not reaped yet; kernels before 5.3 and some sandboxes have none.
pub(crate) fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: the call takes two integers; the new descriptor is nobody else's, and closed by an exec.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Blocks all signals on this thread; gives what was blocked before.
pub(crate) fn block_all_signals() -> libc::sigset_t {
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets are filled before they are read.
    unsafe {
        let mut all = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::sigemptyset(before.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

/// Blocks these signals on this thread, and no others.
pub(crate) fn restore_signals(blocked: &libc::sigset_t) {
    // SAFETY: the set is whole.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, blocked, ptr::null_mut()) };
}

/// Sends the process of this descriptor a signal, or with 0 nothing; false if it was reaped.
pub(crate) fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> bool {
    let no_info: *const libc::siginfo_t = ptr::null();
    // SAFETY: the call takes numbers; without information the kernel makes its own.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) == 0 }
}

/// The status of a process that ended and was reaped, as `wait` has it; from Linux 6.15 on.
pub(crate) fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    /// `struct pidfd_info` in its first version, of 64 bytes.
    #[repr(C)]
    struct Info {
        mask: u64,
        others: [u32; 13],
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`.
    const PIDFD_GET_INFO: u32 = 3 << 30 | 64 << 16 | 0xff << 8 | 11;
    let mut info = Info { mask: PIDFD_INFO_EXIT, others: [0; 13], exit_code: 0 };
    // SAFETY: the kernel reads and writes the 64 bytes that the request's number says.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}
