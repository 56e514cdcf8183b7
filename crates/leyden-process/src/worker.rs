//! The child's side: a process that runs one function of the program, and outlives its parent by milliseconds at most.
//!
//! The main thread never runs the user's code. It waits for the parent's end and ends the process at once, whatever the
//! function is stuck in, and with it the programs that the function has started. The kernel's parent-death signal does
//! the same, and both are there because each has holes: the signal is lost in a set-uid exec and on other systems, and
//! the socket stays open while a stranger holds a copy.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
#[cfg(not(leyden_portable))]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::codes::{CONTROL, MESSAGE_SIZE, OTHER_BUILD, PANICKED, START};
use crate::contain::{Panic, contain};
use crate::control::{Control, Got, LARGEST_MESSAGE, Tag};
use crate::error::{Error, Result};
use crate::sys::Wake;
use crate::{copies, exit, image, sys};

#[cfg(not(leyden_portable))]
mod linux;

#[cfg(not(leyden_portable))]
pub(crate) use linux::*;

#[cfg(leyden_portable)]
pub(crate) use crate::portable::worker::*;

/// What came from the other process, or did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Vec<u8>),
    /// Nothing, within the time.
    TimedOut,
    /// Nothing more will come. In the parent: the child has said goodbye or is gone; [`Child::ended`] says which. In the
    /// child: the parent asks it to stop; or it is gone, and the child outlives it.
    ///
    /// [`Child::ended`]: crate::spawn::Child::ended
    Closed,
}

/// The parent, seen from a process that it started. The function of a [`Job`](crate::spawn::Job) gets it.
///
/// When the parent ends, however it ends, this process ends too, within milliseconds and without unwinding; only one that
/// [survives](crate::spawn::SpawnOptions::survives) has its time.
pub struct Parent {
    control: Arc<Control>,
    fds: Vec<OwnedFd>,
    name: String,
    /// Whether the parent asked to stop; also keeps two threads from reading at once.
    stop: Mutex<bool>,
    /// In a supervisor: told when the parent asks to stop.
    timer: Option<Arc<Wake>>,
}

impl Parent {
    pub(crate) fn new(control: &Arc<Control>, name: &str, fds: Vec<OwnedFd>) -> Self {
        let (control, name) = (Arc::clone(control), name.to_owned());
        Self { control, fds, name, stop: Mutex::new(false), timer: None }
    }

    #[cfg(leyden_portable)]
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// The name that this process was started with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the descriptors that the parent handed over in `SpawnOptions::fds`, in their order; a second call gives
    /// none.
    pub fn fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// Sends the parent a message of at most 64 KiB; waits up to 10 s for room.
    ///
    /// # Errors
    ///
    /// `P0109` if it is larger, `P0110` if it could not be sent.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        send_message(&self.control, message, "the parent")
    }

    /// The parent's next message; [`Received::Closed`] when it asks this process to stop, or is gone, from then on always.
    ///
    /// # Errors
    ///
    /// `P0110` if the message could not be read.
    pub fn recv(&self, timeout: Duration) -> Result<Received> {
        let mut stop = self.stop.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *stop {
            return Ok(Received::Closed);
        }
        match self.control.receive(sys::deadline(timeout)) {
            Ok(Got::Packet { tag: Tag::Message, body, .. }) => Ok(Received::Message(body)),
            Ok(Got::TimedOut) => Ok(Received::TimedOut),
            // Whatever else comes asks to stop; an end of the socket does, or ends the process anyhow.
            Ok(_) => {
                *stop = true;
                if let Some(timer) = &self.timer {
                    timer.wake();
                }
                Ok(Received::Closed)
            }
            Err(error) => Err(Error::new(CONTROL, "a message of the parent was not read").because(&error)),
        }
    }
}

#[cfg(not(leyden_portable))]
impl AsFd for Parent {
    /// Readable when [`recv`](Self::recv) would not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        (*self.control).as_fd()
    }
}

impl std::fmt::Debug for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parent").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Sends a user's message, with the errors of both sides.
pub(crate) fn send_message(control: &Control, message: &[u8], whom: &str) -> Result<()> {
    const ROOM: Duration = Duration::from_secs(10);
    if message.len() > LARGEST_MESSAGE {
        return Err(Error::new(MESSAGE_SIZE, "a message between processes is too large")
            .at("bytes", message.len())
            .at("limit", LARGEST_MESSAGE)
            .hint("put large data into shared memory, and send where it is"));
    }
    control.send(Tag::Message, message, &[], sys::deadline(ROOM)).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::TimedOut => format!("{whom} has read nothing for {} s", ROOM.as_secs()),
            io::ErrorKind::BrokenPipe => format!("{whom} is gone"),
            _ => error.to_string(),
        };
        Error::new(CONTROL, format!("a message to {whom} was not sent")).why(why)
    })
}

/// The child's first message.
#[derive(Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) build: Vec<u8>,
}

/// What a child is to run. Its descriptors come before it: the argument's memory, those attached to the argument, those
/// handed over.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) build: Vec<u8>,
    pub(crate) name: String,
    /// Of an [`Entry`], as [`image::offset_of`] gives it.
    pub(crate) entry: i64,
    /// The argument's bytes.
    pub(crate) length: u64,
    /// How many descriptors are attached to the argument.
    pub(crate) attached: u32,
    /// How many descriptors are handed over to the function.
    pub(crate) handed: u32,
    /// For how long it outlives its parent.
    pub(crate) survives: Option<Duration>,
}

/// A function together with its argument's type: reads the argument.
pub(crate) type Entry = fn(argument: &[u8], attached: Vec<OwnedFd>) -> Result<Work>;

/// A function that has its argument.
pub(crate) type Work = Box<dyn FnOnce(Parent) -> Result<()> + Send>;

/// Ends the process with its group when it is told that its parent is gone: by SIGHUP, which the kernel sends to a group
/// that is stopped when nobody is left to wake it, and on Linux as the parent-death signal. SIGKILL for that would leave
/// the group. A library that takes SIGHUP for itself does no harm, because the control is still there.
pub(crate) fn end_when_orphaned() {
    extern "C" fn orphaned(_: libc::c_int) {
        end_the_group();
    }
    // SAFETY: the handler calls async-signal-safe functions only. The set is filled before it is used, and this thread,
    // the main one, lives as long as the process: it takes the signal whatever other threads block.
    unsafe {
        libc::signal(libc::SIGHUP, orphaned as *const () as usize);
        let mut hangup = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(hangup.as_mut_ptr());
        libc::sigaddset(hangup.as_mut_ptr(), libc::SIGHUP);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, hangup.as_ptr(), std::ptr::null_mut());
    }
}

/// Kills the process group that this process leads, itself too.
pub(crate) fn end_the_group() -> ! {
    // SAFETY: the calls take numbers, and are async-signal-safe. A process that does not lead its group, such as one
    // that the function has forked, ends alone.
    unsafe {
        if libc::getpgrp() == libc::getpid() {
            libc::kill(0, libc::SIGKILL);
        }
        libc::_exit(exit::WORKER_DIED.into())
    }
}

/// What a process with the role of a worker does instead of `main`.
pub(crate) fn run(control: Control) -> ! {
    settle_signals();
    copies::watch();
    let control = Arc::new(control);
    if let Err(error) = hello(&control).and_then(|()| begin(&control, None)) {
        leave(&control, Err(error));
    }
    control.wait_until_closed();
    end_the_group()
}

/// A broken pipe is an error and no signal, as in every Rust program; SIGTERM and SIGINT do nothing, because the parent
/// decides when a worker ends. They have a handler instead of being ignored, which an exec would hand on to other programs.
pub(crate) fn settle_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing. SA_RESTART, which `signal` sets in both C libraries, keeps most system calls of
    // the function from being interrupted.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, nothing as *const () as usize);
        libc::signal(libc::SIGINT, nothing as *const () as usize);
    }
}

/// A child's first words.
pub(crate) fn hello(control: &Control) -> Result<()> {
    let hello = Hello { build: image::build() };
    let body = postcard::to_allocvec(&hello)?;
    Ok(control.send(Tag::Hello, &body, &[], patience())?)
}

/// Reads the order and starts the function on a thread of its own; gives for how long it outlives the parent.
fn begin(control: &Arc<Control>, timer: Option<Arc<Wake>>) -> Result<Option<Duration>> {
    let mut assignment = take_assignment(control)?;
    set_name(&assignment.name);
    let survives = assignment.survives;
    let mut parent = Parent::new(control, &assignment.name, std::mem::take(&mut assignment.handed));
    parent.timer = timer;
    start_thread(&assignment.name.clone(), Arc::clone(control), move || {
        let work = contain(|| assignment.load()).unwrap_or_else(|panic| Err(unreadable(panic)))?;
        copies::end_if_copied(|| "the `Deserialize` of a job's argument");
        work(parent)
    })?;
    Ok(survives)
}

/// Runs `work` on a new thread, tells the parent how it ended, and ends the process.
fn start_thread(
    name: &str,
    control: Arc<Control>,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    /// What a main thread has by default.
    const STACK: usize = 8 << 20;
    let thread = std::thread::Builder::new().name(name.replace('\0', " ")).stack_size(STACK);
    let started = thread.spawn(move || {
        // Each thread has a parent-death signal of its own: with this one, a stopped process goes on to take the other.
        // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal's number.
        #[cfg(not(leyden_portable))]
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT)
        };
        let result = contain(work).unwrap_or_else(|panic| Err(panicked(panic)));
        leave(&control, result);
    });
    started.map(drop).map_err(|error| {
        Error::new(START, "a worker's thread could not be started")
            .because(&error)
            .hint("use fewer workers, or raise the limit on threads (`ulimit -u`)")
    })
}

/// Says goodbye, with the error if there is one, and ends the process.
pub(crate) fn leave(control: &Control, result: Result<()>) -> ! {
    copies::end_if_copied(|| "the function of a job");
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    let (body, code) = match result {
        Ok(()) => (Vec::new(), exit::OK),
        Err(error) => (goodbye(&error), error.exit_code()),
    };
    // Without room for it the exit code remains.
    let _ = control.send(Tag::Goodbye, &body, &[], patience());
    sys::exit_now(code)
}

/// What a process does before its function begins, in words.
pub(crate) const READING: &str = "reading what it works with: the `Deserialize` of the job's argument";

pub(crate) fn unreadable(panic: Panic) -> Error {
    panic.explain(Error::new(PANICKED, "the `Deserialize` of a job's argument panicked"))
}

fn panicked(panic: Panic) -> Error {
    panic.explain(Error::new(PANICKED, "the function of a job panicked"))
}

/// The error's bytes; only its first line, cut, if they are too many for a message.
fn goodbye(error: &Error) -> Vec<u8> {
    let whole = error.to_wire();
    if whole.len() <= LARGEST_MESSAGE {
        return whole;
    }
    let what: String = error.what().chars().take(1000).collect();
    Error::new(error.code(), what).why("the rest of the error is too long to be sent").to_wire()
}

/// How long to wait for a parent that lives: it sends at once.
pub(crate) fn patience() -> Instant {
    sys::deadline(Duration::from_secs(10))
}

pub(crate) fn entry_at(offset: i64) -> Option<Entry> {
    let address = image::function_at(offset)?;
    // SAFETY: the parent computed the offset from an `Entry` of this very build, as the equal build ids say, and the
    // address lies in the program's code.
    Some(unsafe { std::mem::transmute::<*const (), Entry>(std::ptr::with_exposed_provenance(address)) })
}

pub(crate) fn other_build() -> Error {
    Error::new(OTHER_BUILD, "a started process is of another build of this program")
        .hint("start the program again; something replaces its file while it runs")
}

/// The name in `ps` and `top`, where the system lets a process choose it: Linux keeps 15 bytes.
pub(crate) fn set_name(name: &str) {
    #[cfg(target_os = "linux")]
    if let Ok(name) = std::ffi::CString::new(name.replace('\0', " ")) {
        // SAFETY: prctl with PR_SET_NAME reads a text that ends with a zero.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = name;
}
