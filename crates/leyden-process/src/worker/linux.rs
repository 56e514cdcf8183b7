//! The child's side on Linux: the kernel ties its life to its parent's, and descriptors come with its order.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{
    Entry, Order, Parent, Work, begin, end_the_group, end_when_orphaned, entry_at, hello, leave, other_build,
    patience, set_name, settle_signals, start_thread,
};
use crate::codes::{ARGUMENT, CONTROL, START};
use crate::control::{Control, Got, Tag, release_all};
use crate::error::{Error, Result};
use crate::sys::Wake;
use crate::{copies, entry, exit, image, sys};

/// Ties this process's life to its parent's: from here on it dies with it, and so does its group.
pub(crate) fn arm(control: Control) -> Control {
    end_when_orphaned();
    // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal's number. It is armed for this thread, the main one, which
    // lives as long as the process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGHUP) };
    // The parent may have ended before.
    if control.is_closed() {
        sys::exit_now(exit::WORKER_DIED);
    }
    control
}

/// What a process with the role of a supervisor does instead of `main`. Its main thread is the timer that starts when the
/// parent is gone or asks to stop.
pub(crate) fn run_surviving(control: Control) -> ! {
    settle_signals();
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing; the set is filled before it is used. SIGHUP comes with the parent's end and a
    // terminal's. A supervisor is no part of the terminal's foreground, and must be able to write there: SIGTTOU, which
    // would stop it, is blocked here and so in the threads that this one starts.
    unsafe {
        libc::signal(libc::SIGHUP, nothing as *const () as usize);
        let mut writing = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(writing.as_mut_ptr());
        libc::sigaddset(writing.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, writing.as_ptr(), std::ptr::null_mut());
    }
    let control = Arc::new(control);
    let timer = Wake::new().map(Arc::new).map_err(Error::from);
    let begun = timer.and_then(|timer| {
        hello(&control)?;
        Ok((begin(&control, Some(Arc::clone(&timer)))?, timer))
    });
    let (survives, timer) = begun.unwrap_or_else(|error| leave(&control, Err(error)));
    // An error (no memory for the kernel) must not leave a process behind that nobody watches.
    while let Ok(false) = sys::poll(&mut [sys::interest((*control).as_fd(), 0), timer.interest()], None) {}
    std::thread::sleep(survives.unwrap_or_default());
    end_the_group()
}

/// What a process is to run, checked and not yet read.
pub(crate) struct Assignment {
    pub(super) name: String,
    pub(super) survives: Option<Duration>,
    entry: Entry,
    length: usize,
    memory: OwnedFd,
    attached: Vec<OwnedFd>,
    pub(super) handed: Vec<OwnedFd>,
}

/// Receives what to run.
pub(crate) fn take_assignment(control: &Control) -> Result<Assignment> {
    let (order, mut fds) = take_order::<Order>(control)?;
    if order.build != image::build() {
        return Err(other_build());
    }
    let entry = entry_at(order.entry).ok_or_else(other_build)?;
    all_came(&fds, 1 + order.attached as usize + order.handed as usize)?;
    let handed = fds.split_off(1 + order.attached as usize);
    let attached = fds.split_off(1);
    let memory = fds.remove(0);
    Ok(Assignment {
        name: order.name,
        survives: order.survives,
        entry,
        length: usize::try_from(order.length)?,
        memory,
        attached,
        handed,
    })
}

/// Whether as many descriptors came as were sent.
pub(crate) fn all_came(fds: &[OwnedFd], sent: usize) -> Result<()> {
    if fds.len() == sent {
        return Ok(());
    }
    Err(Error::new(START, "descriptors were lost on the way to a new process")
        .at("came", fds.len())
        .why("this process may open no more"))
}

impl Assignment {
    /// Reads the argument.
    pub(crate) fn load(self) -> Result<Work> {
        read_argument(self.entry, self.memory.as_fd(), self.length, self.attached)
    }
}

/// Reads an argument from its memory.
pub(crate) fn read_argument(
    entry: Entry,
    memory: BorrowedFd<'_>,
    length: usize,
    attached: Vec<OwnedFd>,
) -> Result<Work> {
    let argument = sys::Sealed::map(memory, length)
        .map_err(|error| Error::new(ARGUMENT, "the argument of a job cannot be mapped").because(&error))?;
    entry(argument.bytes(), attached)
}

/// Becomes a worker in a process that was just forked, on its only thread.
pub(crate) fn after_fork(
    control: OwnedFd,
    stderr: OwnedFd,
    name: String,
    handed: Vec<OwnedFd>,
    work: Work,
) -> ! {
    entry::note_worker();
    copies::watch();
    // SAFETY: setpgid takes numbers; dup2 replaces the standard descriptors, which everybody expects to be replaced.
    unsafe {
        libc::setpgid(0, 0);
        libc::dup2(stderr.as_raw_fd(), 2);
        if let Ok(null) = std::fs::File::open("/dev/null") {
            libc::dup2(null.as_raw_fd(), 0);
            release_all(null.as_fd());
        }
    }
    drop(stderr);
    let control = Arc::new(arm(Control::new(control)));
    settle_signals();
    set_name(&name);
    let parent = Parent::new(&control, &name, handed);
    let started =
        hello(&control).and_then(|()| start_thread(&name, Arc::clone(&control), move || work(parent)));
    if let Err(error) = started {
        leave(&control, Err(error));
    }
    control.wait_until_closed();
    end_the_group()
}

/// Reads messages up to the order, and gathers its descriptors.
pub(crate) fn take_order<O: DeserializeOwned>(control: &Control) -> Result<(O, Vec<OwnedFd>)> {
    let mut gathered = Vec::new();
    let deadline = patience();
    loop {
        match control.receive(deadline) {
            Ok(Got::Packet { tag: Tag::Descriptors, fds, .. }) => gathered.extend(fds),
            Ok(Got::Packet { tag: Tag::Start, body, .. }) => {
                return Ok((postcard::from_bytes(&body)?, gathered));
            }
            // The parent has changed its mind or is gone: nobody is there to be told.
            Ok(Got::Packet { tag: Tag::Stop, .. } | Got::Closed | Got::TimedOut) => {
                sys::exit_now(exit::WORKER_DIED)
            }
            Ok(Got::Packet { .. }) => {}
            Err(error) => {
                return Err(Error::new(CONTROL, "the order of a job was not read").because(&error));
            }
        }
    }
}
