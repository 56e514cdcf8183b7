//! Runs a function of the program in another process of it.
//!
//! A [`Job`] is a function and its argument, ready to be sent; [`Job::spawn`] starts a [`Child`] that runs it. The child
//! is a fresh process: it shares neither threads, locks, descriptors nor open files with this one, whatever runs here.
//! `main` is not run again, and needs no guard (Python's `if __name__ == "__main__"` has no counterpart).

use std::any::type_name;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codes::{ARGUMENT, CONTROL, NO_HELLO, OTHER_BUILD, START};
use crate::control::{Control, Got, Tag};
use crate::copies::Home;
use crate::entry::{self, Kind};
use crate::error::{Error, Result};
#[cfg(leyden_portable)]
use crate::portable::spawn as back_end;
use crate::signal::Signal;
use crate::stderr::{Janitor, Tail};
use crate::supervise::{self, BLIND, Cause, Ended, Process, said};
use crate::sys::{self, Resource};
use crate::worker::{Entry, Hello, Work, send_message};
use crate::{attach, function, image, threads};

use back_end::{Source, There};
#[cfg(not(leyden_portable))]
#[path = "spawn/linux.rs"]
mod back_end;

#[cfg(not(leyden_portable))]
pub(crate) use back_end::ask;

pub use crate::control::LARGEST_MESSAGE;
pub use crate::worker::{Parent, Received};

/// A function and its argument, ready to be run in other processes of this program.
///
/// The argument is serialised once, into memory that all children map. `torch.multiprocessing.spawn` pickles it for
/// each child.
///
/// # Example
///
/// ```
/// use leyden_process::spawn::{Job, Parent, SpawnOptions};
/// use std::time::Duration;
///
/// fn sum(numbers: Vec<u32>, parent: Parent) -> leyden_process::Result<()> {
///     parent.send(&numbers.iter().sum::<u32>().to_le_bytes())
/// }
///
/// # fn main() -> leyden_process::Result<()> {
/// let job = Job::new(sum, &vec![1, 2, 3])?;
/// let mut child = job.spawn(&SpawnOptions::named("adder"))?;
/// let ended = child.ended(Duration::from_secs(10)).expect("it ends at once");
/// ended.into_result("adder")
/// # }
/// ```
#[derive(Clone)]
pub struct Job(Arc<Source>);

impl Job {
    /// Serialises `argument` for `function`, which must be a plain function or a closure that captures nothing.
    ///
    /// # Errors
    ///
    /// Those of [`preflight`](entry::preflight), and `P0105` if the argument cannot be serialised or does not fit into
    /// memory.
    pub fn new<F, A>(function: F, argument: &A) -> Result<Self>
    where
        F: Fn(A, Parent) -> Result<()> + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned + Send + 'static,
    {
        const {
            assert!(
                size_of::<F>() == 0,
                "the function of a job must be a plain `fn` item or a closure that captures nothing: pass what it \
                 needs as its argument"
            );
        }
        // Its type is all that is needed; that there is a value shows that it may be called.
        let _: F = function;
        entry::preflight()?;
        let entry: Entry = read::<F, A>;
        entry::is_in_the_program(entry as *const () as usize)?;
        Ok(Self(Arc::new(Source::serialise(entry, argument)?)))
    }

    /// A job whose argument stays where it is: [`Start::Fork`] is the only way to run it, and gives the child a copy of
    /// this process's memory. The function may capture.
    ///
    /// # Errors
    ///
    /// `P0101` in a worker or supervisor.
    pub fn in_memory<F, A>(function: F, argument: Arc<A>) -> Result<Self>
    where
        F: Fn(Arc<A>, Parent) -> Result<()> + Send + Sync + 'static,
        A: Send + Sync + 'static,
    {
        entry::may_start(Kind::Worker)?;
        let work = move |parent| function(Arc::clone(&argument), parent);
        Ok(Self(Arc::new(Source::in_memory(Arc::new(work))?)))
    }

    /// Starts a process and runs the job in it; returns when the process has reported, which takes about a
    /// millisecond. The function may still be reading its argument then, except in the children of a zygote.
    ///
    /// # Errors
    ///
    /// `P0101` to `P0103` where no process can be started: see [`preflight`](entry::preflight). `P0106` if the system
    /// refuses, with its limits; `P0107` if the process does not report in time; `P0108` if it is of another build;
    /// `P0114` if it may not be forked. With [`Start::Zygote`] also what reading the argument gives, and `P0301` if that
    /// takes too long.
    pub fn spawn(&self, options: &SpawnOptions<'_>) -> Result<Child> {
        self.begin(options)?.wait()
    }

    /// The same for several, each with its options, which all start at once. If one cannot be started, none is left.
    ///
    /// # Errors
    ///
    /// The first one's, as [`spawn`](Self::spawn).
    pub fn spawn_all(&self, options: &[SpawnOptions<'_>]) -> Result<Vec<Child>> {
        let starting = options.iter().map(|options| self.begin(options)).collect::<Result<Vec<_>>>()?;
        starting.into_iter().map(Starting::wait).collect()
    }

    /// The same without waiting for a process that starts again, so that several can start at once.
    pub(crate) fn begin(&self, options: &SpawnOptions<'_>) -> Result<Starting> {
        let child = self.0.begin(options)?;
        let hello_timeout = (options.start == Start::Exec).then_some(options.hello_timeout);
        Ok(Starting { child, hello_timeout })
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("argument_bytes", &self.0.argument_bytes()).finish_non_exhaustive()
    }
}

/// A process that was started.
pub(crate) struct Starting {
    child: Child,
    /// How long to wait for its first word, if that is not there yet.
    hello_timeout: Option<Duration>,
}

impl Starting {
    /// One that has not reported.
    #[cfg(not(leyden_portable))]
    pub(crate) fn of(child: Child, hello_timeout: Duration) -> Self {
        Self { child, hello_timeout: Some(hello_timeout) }
    }

    /// Waits for its first word.
    pub(crate) fn wait(mut self) -> Result<Child> {
        if let Some(timeout) = self.hello_timeout {
            self.child.expect_hello(timeout)?;
        }
        Ok(self.child)
    }
}

/// Where a process comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// This program, started again: nothing is shared. Python's `spawn`. About 1 ms, and the time to read the argument.
    #[default]
    Exec,
    /// A fork of a process that was started again and has read the argument: Python's `forkserver`. Cheaper where the
    /// argument is large; the zygote's memory comes on top. The first start waits until it has read
    /// the argument, at most for [`SpawnOptions::reading_timeout`].
    Zygote,
    /// A fork of this process: Python's `fork`. Refused while there are other threads, whose locks would stay locked for
    /// ever in the child. A lock that the calling thread holds stays locked there too (stdout's, for one). Descriptors
    /// of this process stay open in it, because the argument may own some; those of Leyden's own do not.
    Fork,
}

/// How to start a process.
#[derive(Clone, Debug)]
pub struct SpawnOptions<'a> {
    /// The name in `ps`, in errors, and in front of its lines on stderr.
    pub name: String,
    /// Descriptors to hand over: [`Parent::fds`] gives duplicates of them, in this order.
    pub fds: Vec<BorrowedFd<'a>>,
    /// Where it comes from; [`Start::Exec`] by default.
    pub start: Start,
    /// How long to wait for the process's first word. It comes after about a millisecond; 10 s by default, because a
    /// machine may be busy and constructors of the program slow.
    pub hello_timeout: Duration,
    /// How long a new zygote may take to read the argument; 10 minutes by default. That takes about a second for each GB.
    pub reading_timeout: Duration,
    /// Whether its lines on stderr appear on ours, with the name in front; on by default. Its last lines are kept in
    /// any case, except of one that [survives](Self::survives).
    pub forward_stderr: bool,
    /// Where what it prints to stdout goes; to our own stdout by default. With [`Start::Exec`] alone.
    pub stdout: Option<BorrowedFd<'a>>,
    /// For a process that is to outlive us: how long. When this process ends, however it does, or asks it to stop, its
    /// [`Parent::recv`] gives [`Received::Closed`], and after this time it is ended with its group by its own timer.
    /// Its function finishes before. It writes to our stderr itself, without its name, so that it is heard afterwards. It
    /// may start [ranks](crate::rank) and nothing else. `None` by default: the process dies with us. With
    /// [`Start::Exec`] alone.
    pub survives: Option<Duration>,
}

impl SpawnOptions<'_> {
    /// The defaults, with this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

impl Default for SpawnOptions<'_> {
    fn default() -> Self {
        Self {
            name: "worker".to_owned(),
            fds: Vec::new(),
            start: Start::default(),
            hello_timeout: Duration::from_secs(10),
            reading_timeout: Duration::from_secs(600),
            forward_stderr: true,
            stdout: None,
            survives: None,
        }
    }
}

/// A process that runs a [`Job`].
///
/// Dropping it kills the process and its group, and returns within 300 ms: one that the kernel takes longer to bury is
/// left to a thread of Leyden's. [`stop`](Self::stop) lets it end by itself. In a process that was forked from this one,
/// dropping it does nothing.
pub struct Child {
    name: String,
    home: Home,
    /// `None` only while it is dropped.
    process: Option<Process>,
    pub(crate) control: Control,
    tail: Arc<Tail>,
    /// Messages that were read while something else was waited for.
    inbox: VecDeque<Vec<u8>>,
    inbox_bytes: usize,
    /// What it said as its last: the error of its function, or nothing.
    goodbye: Option<Option<Error>>,
    closed: bool,
}

/// How much unread mail is taken in while its end is waited for; what is more stays with the child.
const INBOX_BYTES: usize = 64 << 20;

impl Child {
    fn new(name: &str, process: Process, control: Control, tail: Arc<Tail>) -> Self {
        Self {
            name: name.to_owned(),
            home: Home::here(),
            process: Some(process),
            control,
            tail,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            goodbye: None,
            closed: false,
        }
    }

    /// The name that it was started with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number, and that of its group. Another process may have it once this one has [`ended`](Self::ended).
    pub fn pid(&self) -> i32 {
        self.process().pid()
    }

    /// A descriptor that is readable when it has ended; `None` where the system has none (gVisor, Linux before 5.3).
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.process().pidfd()
    }

    /// The control socket, to be polled: readable when [`recv`](Self::recv) would not wait.
    pub fn control_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Its last lines on stderr, oldest first: at most 20 of at most 2 KiB.
    pub fn stderr(&self) -> Vec<String> {
        self.tail.drain();
        self.tail.lines()
    }

    /// Sends it a message of at most 64 KiB; waits up to 10 s for room.
    ///
    /// # Errors
    ///
    /// `P0109` if it is larger, `P0110` if it could not be sent.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        send_message(&self.control, message, &self.name).map_err(|error| error.at("process", &self.name))
    }

    /// Its next message.
    ///
    /// # Errors
    ///
    /// `P0110` if the message could not be read.
    pub fn recv(&mut self, timeout: Duration) -> Result<Received> {
        let deadline = sys::deadline(timeout);
        loop {
            if let Some(message) = self.inbox.pop_front() {
                self.inbox_bytes -= message.len();
                return Ok(Received::Message(message));
            }
            if self.closed {
                return Ok(Received::Closed);
            }
            if self.take_in(Instant::now())? {
                continue;
            }
            if Instant::now() >= deadline {
                return Ok(Received::TimedOut);
            }
            // Its end is waited for too: a process that it forked without an exec may hold the socket.
            let blind = self.pidfd().is_none();
            let look_again = if blind { deadline.min(Instant::now() + BLIND) } else { deadline };
            let _ = sys::poll(&mut self.interests(), Some(look_again));
            if self.process_mut().try_status().is_some() {
                self.look();
                self.closed = true;
            }
        }
    }

    /// How it ended, if it did so within the time. Messages that it had sent are still there for
    /// [`recv`](Self::recv).
    pub fn ended(&mut self, timeout: Duration) -> Option<Ended> {
        let deadline = sys::deadline(timeout);
        loop {
            self.look();
            if self.has_ended() {
                return Some(self.conclude());
            }
            if Instant::now() >= deadline {
                return None;
            }
            let blind = self.pidfd().is_none();
            let look_again = if blind { deadline.min(Instant::now() + BLIND) } else { deadline };
            let _ = sys::poll(&mut self.interests(), Some(look_again));
        }
    }

    /// How it ended, if it did.
    pub fn try_ended(&mut self) -> Option<Ended> {
        self.ended(Duration::ZERO)
    }

    /// Whether it has ended, without reading what it said.
    #[cfg(leyden_portable)]
    pub(crate) fn is_dead(&mut self) -> bool {
        self.process_mut().try_status().is_some()
    }

    /// Whether it has ended, without taking note of how.
    #[cfg(not(leyden_portable))]
    pub(crate) fn try_wait(&mut self) -> bool {
        self.look();
        self.has_ended()
    }

    /// Ends it: see [`stop_all`](supervise::stop_all).
    pub fn stop(self, grace: Duration) -> Ended {
        supervise::stop_all(vec![self], grace).remove(0)
    }

    /// Sends it a signal, with its group: as a terminal does.
    pub fn signal(&mut self, signal: Signal) {
        self.process_mut().signal_group(signal.number());
    }

    /// Asks it to stop: its [`Parent::recv`] gives [`Received::Closed`].
    pub fn ask_to_stop(&mut self) {
        // One that does not read has no room for it; then the signals will do.
        let _ = self.control.send(Tag::Stop, &[], &[], Instant::now());
    }

    pub(crate) fn terminate(&mut self) {
        self.process_mut().signal_group(libc::SIGTERM);
    }

    pub(crate) fn kill(&mut self) {
        self.process_mut().signal_group(libc::SIGKILL);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.process().has_ended()
    }

    #[cfg(not(leyden_portable))]
    pub(crate) fn memory_ran_out(&self) -> bool {
        self.process().memory_ran_out()
    }

    /// Takes note of what has happened, without waiting.
    pub(crate) fn look(&mut self) {
        let dead = self.process_mut().try_status().is_some();
        while !self.closed && (dead || self.inbox_bytes < INBOX_BYTES) {
            match self.take_in(Instant::now()) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => self.closed = true,
            }
        }
        if dead {
            self.tail.drain();
        }
    }

    /// What a poll waits for that is to notice its end or a message that keeps it from ending.
    pub(crate) fn interests(&self) -> Vec<libc::pollfd> {
        let mail = !self.closed && self.inbox_bytes < INBOX_BYTES;
        let mail = mail.then(|| self.control.interests());
        let end = if self.has_ended() { None } else { self.process().interest() };
        mail.into_iter().flatten().chain(end).collect()
    }

    /// How it ended.
    pub(crate) fn conclude(&mut self) -> Ended {
        let (cause, error) = match &self.goodbye {
            Some(error) => (Cause::Done, error.clone()),
            None => (self.process().cause(), None),
        };
        Ended { cause, stderr: self.stderr(), error }
    }

    /// Reads one message, and keeps it; says whether something came.
    fn take_in(&mut self, deadline: Instant) -> Result<bool> {
        let got = self.control.receive(deadline).map_err(|error| {
            let error = Error::new(CONTROL, "a message of a process was not read").because(&error);
            error.at("process", &self.name)
        })?;
        if matches!(got, Got::TimedOut) {
            return Ok(false);
        }
        self.note(got);
        Ok(true)
    }

    /// Takes note of what it said.
    pub(crate) fn note(&mut self, got: Got) {
        match got {
            Got::Closed => self.closed = true,
            Got::Packet { tag: Tag::Message, body, .. } => {
                self.inbox_bytes += body.len();
                self.inbox.push_back(body);
            }
            Got::Packet { tag: Tag::Goodbye, body, .. } => {
                self.goodbye = Some(Error::from_wire(&body));
                self.closed = true;
            }
            _ => {}
        }
    }

    pub(crate) fn expect_hello(&mut self, timeout: Duration) -> Result<()> {
        let got = self.control.receive(sys::deadline(timeout));
        let why = match got {
            Ok(Got::Packet { tag: Tag::Hello, body, .. }) => {
                return match postcard::from_bytes::<Hello>(&body) {
                    Ok(hello) if hello.build == image::build() => Ok(()),
                    _ => {
                        Err(Error::new(OTHER_BUILD, "a started process is of another build of this program")
                            .at("process", &self.name)
                            .hint("start the program again; something replaces its file while it runs"))
                    }
                };
            }
            Ok(Got::TimedOut) => {
                let evidence = supervise::evidence(self.pid());
                format!("it said nothing for {timeout:?}, and is {evidence}")
            }
            Ok(_) => match self.ended(Duration::from_secs(1)) {
                Some(ended) => format!("it {}", ended.cause),
                None => "it closed its control socket".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        self.kill();
        self.process_mut().status_until(sys::deadline(Duration::from_secs(1)));
        let error = Error::new(NO_HELLO, "a started process did not report")
            .at("process", &self.name)
            .why(why)
            .hint("a constructor of the program that is slow or fails would do this; so would a machine that is too busy");
        Err(said(error, &self.stderr()))
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("it is taken by drop alone")
    }

    fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("it is taken by drop alone")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A copy of this process is nobody's parent, and its janitor is missing.
        if !self.home.is_here() {
            return;
        }
        if let Some(process) = self.process.take() {
            end(process);
        }
        self.tail.drain();
        self.tail.close();
    }
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Child").field("name", &self.name).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

/// Kills a process with its group; one that is not dead in time is left to the janitor.
pub(crate) fn end(mut process: Process) {
    /// Twice this, for a program and its guard, stays below what the documentation promises.
    const MOST: Duration = Duration::from_millis(120);
    process.signal_group(libc::SIGKILL);
    if process.status_until(sys::deadline(MOST)).is_none()
        && let Ok(janitor) = Janitor::get()
    {
        janitor.bury(process);
    }
}

/// The error of an argument whose `Serialize` panicked.
pub(crate) fn panicked<A>() -> Error {
    Error::new(ARGUMENT, "the argument of a job cannot be serialised: its `Serialize` panicked")
        .at("type", type_name::<A>())
}

/// Says so where a type has refused in its own words: the format has no room for them.
pub(crate) fn own_words_lost(error: &postcard::Error, told: Error) -> Error {
    match error {
        postcard::Error::SerdeSerCustom | postcard::Error::SerdeDeCustom => told
            .why("the type's own `Serialize` or `Deserialize` refused; the words of its error do not cross")
            .hint("let the type be read, and find what is wrong where errors are told in full: of a data set in `worker_init` \
                   or `get`"),
        _ => told,
    }
}

/// What a child calls first: reads the argument.
fn read<F, A>(argument: &[u8], attached: Vec<OwnedFd>) -> Result<Work>
where
    F: Fn(A, Parent) -> Result<()> + Copy + Send + Sync + 'static,
    A: DeserializeOwned + Send + 'static,
{
    attach::refusal();
    let value = function::receiving(argument, |argument| {
        attach::provide(attached, || postcard::from_bytes::<A>(argument))
    })?
    .map_err(|error| match attach::refusal() {
        Some(refusal) => refusal.at("type", type_name::<A>()),
        None => own_words_lost(
            &error,
            Error::new(ARGUMENT, "the argument of a job cannot be deserialised")
                .at("type", type_name::<A>())
                .because(&error),
        ),
    })?;
    let function = value_of(PhantomData::<F>);
    Ok(Box::new(move |parent| function(value, parent)))
}

/// The value of a function's type.
fn value_of<F: Copy + 'static>(_: PhantomData<F>) -> F {
    const { assert!(size_of::<F>() == 0) };
    // SAFETY: the type has no bytes, and `Job::new` was given a value of it in this program, so it has values, and may
    // be copied.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

/// Starts the guard of another program.
pub(crate) fn start_guard(options: &SpawnOptions<'_>) -> Result<Child> {
    let mut guard = launch(Kind::Guard, options)?;
    guard.expect_hello(options.hello_timeout)?;
    Ok(guard)
}

/// What ties a process to this one: both ends of what they talk through, and its stderr.
struct Ends {
    here: Control,
    there: There,
    tail: Arc<Tail>,
    stderr: OwnedFd,
}

impl Ends {
    fn new(options: &SpawnOptions<'_>) -> Result<Self> {
        let fail = |error: io::Error| start_failed(&options.name, &error);
        let (here, there) = There::connect().map_err(fail)?;
        let (read, stderr) = sys::pipe().map_err(fail)?;
        let tail = Tail::start(&options.name, read, options.forward_stderr).map_err(fail)?;
        Ok(Self { here, there, tail, stderr })
    }
}

/// Starts this program again in a role.
pub(crate) fn launch(kind: Kind, options: &SpawnOptions<'_>) -> Result<Child> {
    let stdout = options.stdout.map(|stdout| stdout.try_clone_to_owned()).transpose();
    let stdout = stdout.map_err(|error| start_failed(&options.name, &error))?;
    let Ends { here, there, tail, stderr } = Ends::new(options)?;
    let name = options.name.clone();
    let process = on_the_spawner(options.hello_timeout, move || {
        let mut command = there.command(kind)?;
        back_end::set_arguments(&mut command, kind, &name)?;
        if let Some(stdout) = stdout {
            command.stdout(stdout);
        }
        if !kind.survives() {
            command.stderr(stderr);
        }
        // No `pre_exec`: it would copy this process's page tables, 40 ms for each resident GB.
        let spawned = command.process_group(0).spawn();
        spawned.map(|child| Fresh(Some(Process::new(child.id() as i32))))
    });
    match process {
        Ok(mut fresh) => {
            let process = fresh.0.take().expect("it was put there");
            Ok(Child::new(&options.name, process, here, tail))
        }
        Err(error) => {
            tail.close();
            Err(start_failed(&options.name, &error))
        }
    }
}

/// A process that nobody has taken over yet. Its caller may have stopped waiting.
struct Fresh(Option<Process>);

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            end(process);
        }
    }
}

/// Runs `work` on the one thread that starts processes. It never ends while the program runs: the kernel's
/// parent-death signal is sent when the *thread* that started a process ends.
fn on_the_spawner<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    type Work = Box<dyn FnOnce() + Send>;
    /// Callers wait for their answer, so this many threads may start processes at once before the next waits longer.
    const QUEUE: usize = 64;
    /// With the process that it is a thread of: a forked one has a copy of this, and no thread.
    static SPAWNER: Mutex<Option<(u32, SyncSender<Work>)>> = Mutex::new(None);

    let spawner = {
        let mut spawner = SPAWNER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*spawner {
            Some((process, running)) if *process == std::process::id() => running.clone(),
            _ => {
                let (sender, receiver) = mpsc::sync_channel::<Work>(QUEUE);
                threads::start("leyden-spawner", move || receiver.iter().for_each(|work| work()))?;
                spawner.insert((std::process::id(), sender)).1.clone()
            }
        }
    };
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (answer, answered) = mpsc::sync_channel(1);
    let work: Work = Box::new(move || drop(answer.send(work())));
    spawner.send(work).map_err(|_| gone())?;
    answered.recv_timeout(patience).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the system has not started it within {patience:?}"),
        ),
        mpsc::RecvTimeoutError::Disconnected => gone(),
    })?
}

/// The system's refusal, with the limits that may be behind it.
pub(crate) fn start_failed(name: &str, error: &io::Error) -> Error {
    with_limits(Error::new(START, "a process could not be started").at("process", name).because(error), error)
}

/// Adds the limits that may be behind a refusal.
pub(crate) fn with_limits(failed: Error, error: &io::Error) -> Error {
    let limit = |resource| sys::limit(resource).map_or("none".to_owned(), |limit| limit.to_string());
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM) => {
            let mut failed = failed
                .at("threads of this user", threads_of_this_user())
                .at("their limit (`ulimit -u`)", limit(Resource::Threads));
            if let (Ok(now), Ok(most)) = (
                fs::read_to_string("/sys/fs/cgroup/pids.current"),
                fs::read_to_string("/sys/fs/cgroup/pids.max"),
            ) {
                failed = failed.at("threads in the control group", now.trim()).at("their limit", most.trim());
            }
            failed.hint("start fewer processes (ranks, workers), or raise the limit")
        }
        Some(libc::EMFILE | libc::ENFILE) => failed
            .at("open descriptors", open_descriptors())
            .at("their limit (`ulimit -n`)", limit(Resource::Descriptors))
            .hint("start fewer processes (ranks, workers), close files, or raise the limit"),
        _ => failed,
    }
}

/// Counted one by one: no descriptor is left to read their list with.
fn open_descriptors() -> usize {
    const MOST: u64 = 1 << 16;
    let limit = sys::limit(Resource::Descriptors).unwrap_or(MOST).min(MOST);
    // SAFETY: fcntl with F_GETFD takes numbers, and changes nothing.
    (0..limit as i32).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1).count()
}

fn threads_of_this_user() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    // SAFETY: geteuid has no preconditions.
    let user = unsafe { libc::geteuid() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours =
        processes.filter(|entry| entry.metadata().is_ok_and(|data| data.is_dir() && data.uid() == user));
    ours.filter_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse::<u64>().ok())
    })
    .sum()
}
