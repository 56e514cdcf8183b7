//! Starting processes on Linux: again, from a zygote, or by a fork; they are sent descriptors.

use std::any::type_name;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    Child, Ends, Fresh, Parent, SpawnOptions, Start, end, launch, on_the_spawner, own_words_lost, panicked,
    start_failed,
};
use crate::codes::{ARGUMENT, FORK, NO_HELLO, POOL_START, START};
use crate::contain::contain;
use crate::control::{Control, FDS_PER_MESSAGE, Got, Tag};
use crate::entry::{self, Cookie, Kind, Role};
use crate::error::{Error, Result};
use crate::stderr::WORKING;
use crate::supervise::{self, Process, said};
use crate::sys::{self, Resource};
use crate::worker::{self, Entry, Order, READING, Work, read_argument};
use crate::zygote::{Answer, Request};
use crate::{attach, function, image, threads};

/// What a job is made of.
pub(super) enum Source {
    /// The zygote is started by the first [`Start::Zygote`].
    Serialised {
        entry: Entry,
        argument: Argument,
        zygote: Mutex<Option<Child>>,
    },
    InMemory(Arc<dyn Fn(Parent) -> Result<()> + Send + Sync>),
}

impl Source {
    pub(super) fn serialise<A: Serialize>(entry: Entry, argument: &A) -> Result<Self> {
        let argument = Argument::serialise(argument)?;
        Ok(Self::Serialised { entry, argument, zygote: Mutex::new(None) })
    }

    pub(super) fn in_memory(work: Arc<dyn Fn(Parent) -> Result<()> + Send + Sync>) -> Result<Self> {
        Ok(Self::InMemory(work))
    }

    /// The length of the serialised argument.
    pub(super) fn argument_bytes(&self) -> Option<u64> {
        match self {
            Self::Serialised { argument, .. } => Some(argument.length),
            Self::InMemory(_) => None,
        }
    }

    /// One that starts again has not reported yet.
    pub(super) fn begin(&self, options: &SpawnOptions<'_>) -> Result<Child> {
        if options.start != Start::Exec && (options.stdout.is_some() || options.survives.is_some()) {
            return Err(Error::new(START, "a process could not be started")
                .at("process", &options.name)
                .why("only one that starts again can have a stdout of its own, or outlive us")
                .hint("use `Start::Exec`"));
        }
        match (self, options.start) {
            (Self::Serialised { entry, argument, .. }, Start::Exec) => execute(*entry, argument, options),
            (Self::Serialised { entry, argument, zygote }, Start::Zygote) => {
                spawn_from_zygote(*entry, argument, zygote, options)
            }
            (Self::Serialised { entry, argument, .. }, Start::Fork) => {
                let (entry, length) = (*entry, argument.length as usize);
                let memory =
                    argument.memory.try_clone().map_err(|error| start_failed(&options.name, &error))?;
                let attached = argument.attached.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
                let attached: Vec<OwnedFd> = attached.map_err(|error| start_failed(&options.name, &error))?;
                let work = move |parent| read_argument(entry, memory.as_fd(), length, attached)?(parent);
                fork(Box::new(work), options)
            }
            (Self::InMemory(work), Start::Fork) => {
                let work = Arc::clone(work);
                fork(Box::new(move |parent| work(parent)), options)
            }
            (Self::InMemory(_), Start::Exec | Start::Zygote) => {
                Err(Error::new(ARGUMENT, "the argument of a job cannot be handed over")
                    .at("process", &options.name)
                    .why("the job was made by `Job::in_memory`, which only a forked process can read")
                    .hint("use `Start::Fork`, or `Job::new` with an argument that serialises"))
            }
        }
    }
}

/// The other end of a control socket.
pub(super) struct There(OwnedFd);

impl There {
    pub(super) fn connect() -> io::Result<(Control, Self)> {
        let (here, there) = sys::socketpair()?;
        Ok((Control::new(here), Self(there)))
    }

    /// This program, to be started again in a role, with this as its stdin.
    pub(super) fn command(self, kind: Kind) -> io::Result<Command> {
        let cookie = Cookie::new(kind, self.0.as_fd())
            .ok_or_else(|| io::Error::other("the control socket has no inode"))?;
        let mut command = Command::new("/proc/self/exe");
        command.env(entry::VARIABLE, cookie.to_string()).stdin(self.0).stdout(Stdio::inherit());
        Ok(command)
    }
}

/// What a process finds as its arguments. A worker's say its name. A rank is the program again, with the program's own;
/// a supervisor, whose name comes first, keeps those for its ranks.
pub(super) fn set_arguments(command: &mut Command, kind: Kind, name: &str) -> io::Result<()> {
    let name = OsString::from(name.replace('\0', " "));
    let mut arguments = match kind {
        Kind::Rank => arguments_of_the_program()?.into_iter(),
        Kind::Supervisor => {
            let mut arguments = arguments_of_the_program()?;
            arguments.insert(0, name.clone());
            arguments.into_iter()
        }
        Kind::Worker | Kind::Guard | Kind::Zygote => Vec::new().into_iter(),
    };
    command.arg0(arguments.next().unwrap_or(name)).args(arguments);
    Ok(())
}

/// What the program was started with, its name first. Here and not from the standard library, because a supervisor never
/// reaches the runtime's start, where some C libraries have it from.
fn arguments_of_the_program() -> io::Result<Vec<OsString>> {
    let line = std::fs::read("/proc/self/cmdline")?;
    let line = line.strip_suffix(&[0]).unwrap_or(&line);
    let arguments = line.split(|&byte| byte == 0).map(|argument| OsString::from_vec(argument.to_vec()));
    Ok(arguments.skip(usize::from(entry::role() == Role::Supervisor)).collect())
}

/// A value in memory that no process can change any more.
pub(super) struct Argument {
    memory: File,
    length: u64,
    attached: Vec<OwnedFd>,
}

impl Argument {
    fn serialise<A: Serialize>(value: &A) -> Result<Self> {
        let fail = |why: &dyn std::error::Error| {
            Error::new(ARGUMENT, "the argument of a job cannot be serialised")
                .at("type", type_name::<A>())
                .why(why)
        };
        let memory = sys::memfd("leyden-argument").map_err(|error| fail(&error))?;
        let mut writer = BufWriter::with_capacity(1 << 20, Bounded::new(&memory));
        attach::refusal();
        let (result, attached) = attach::collect(|| {
            function::sending(|| contain(|| postcard::to_io(value, &mut writer).map(drop)))
        });
        let (result, functions) = result?;
        let result = result.map_err(|panic| panic.explain(panicked::<A>()))?;
        let result = result.map_err(|error| match attach::refusal() {
            Some(refusal) => refusal.at("type", type_name::<A>()),
            None => own_words_lost(&error, fail(&error))
                .hint("the argument's `Serialize` must not fail or skip lengths"),
        });
        let appended = result.is_ok().then(|| writer.write_all(&functions));
        // The flavour's error says only that a write failed; the flush says why.
        let flushed = writer.flush();
        if let Some(error) = writer.get_mut().failed.take() {
            return Err(fail(&error));
        }
        result?;
        appended.unwrap_or(Ok(())).and(flushed).map_err(|error| fail(&error))?;
        let length = writer.get_ref().written;
        drop(writer);
        sys::seal(&memory).map_err(|error| fail(&error))?;
        Ok(Self { memory, length, attached })
    }
}

/// Writes to memory up to the limit on files: beyond it the kernel would kill the process (SIGXFSZ).
struct Bounded<'a> {
    memory: &'a File,
    written: u64,
    limit: u64,
    failed: Option<io::Error>,
}

impl<'a> Bounded<'a> {
    fn new(memory: &'a File) -> Self {
        let limit = sys::limit(Resource::FileSize).unwrap_or(u64::MAX);
        Self { memory, written: 0, limit, failed: None }
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = if self.written + bytes.len() as u64 > self.limit {
            let limit = self.limit;
            Err(io::Error::other(format!(
                "it is larger than the limit on files, {limit} bytes (`ulimit -f`)"
            )))
        } else {
            self.memory.write(bytes)
        };
        match result {
            Ok(count) => {
                self.written += count as u64;
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts this program again and sends it the job.
fn execute(entry: Entry, argument: &Argument, options: &SpawnOptions<'_>) -> Result<Child> {
    let kind = if options.survives.is_some() { Kind::Supervisor } else { Kind::Worker };
    entry::may_start(kind)?;
    entry::can_start_again()?;
    let child = launch(kind, options)?;
    // The order goes out before the child's first word, which it need not wait for. What became of an order that nobody
    // took is said by the hello that does not come.
    order(&child, entry, argument, options)?;
    Ok(child)
}

fn order(child: &Child, entry: Entry, argument: &Argument, options: &SpawnOptions<'_>) -> Result<()> {
    let order = Order {
        build: image::build(),
        name: options.name.clone(),
        entry: image::offset_of(entry as *const () as usize),
        length: argument.length,
        attached: argument.attached.len() as u32,
        handed: options.fds.len() as u32,
        survives: options.survives,
    };
    let fds: Vec<BorrowedFd<'_>> = [argument.memory.as_fd()]
        .into_iter()
        .chain(argument.attached.iter().map(OwnedFd::as_fd))
        .chain(options.fds.iter().copied())
        .collect();
    ask(child, Tag::Start, &postcard::to_allocvec(&order)?, &fds, options).map(drop)
}

/// Sends a request with its descriptors; says whether somebody was there to take it.
pub(crate) fn ask(
    child: &Child,
    tag: Tag,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
    options: &SpawnOptions<'_>,
) -> Result<bool> {
    let deadline = sys::deadline(options.hello_timeout);
    let sent = fds
        .chunks(FDS_PER_MESSAGE)
        .try_for_each(|fds| child.control.send(Tag::Descriptors, &[], fds, deadline))
        .and_then(|()| child.control.send(tag, body, &[], deadline));
    match sent {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::TimedOut) => {
            Ok(false)
        }
        Err(error) => Err(start_failed(&options.name, &error)),
    }
}

/// A zygote's answer.
fn forked(zygote: &Child, deadline: Instant) -> Option<Answer> {
    match zygote.control.receive(deadline) {
        Ok(Got::Packet { tag: Tag::Forked, body, .. }) => postcard::from_bytes(&body).ok(),
        _ => None,
    }
}

/// Lets the job's zygote fork a worker; starts a zygote if there is none, or if it is gone.
fn spawn_from_zygote(
    entry: Entry,
    argument: &Argument,
    zygote: &Mutex<Option<Child>>,
    options: &SpawnOptions<'_>,
) -> Result<Child> {
    entry::preflight()?;
    let mut zygote = zygote.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // One that was killed is noticed by asking it. A new one that is gone at once has a reason of its own.
    // That of a process which was copied is not ours.
    if let Some(running) = zygote.as_mut().filter(|zygote| zygote.home.is_here())
        && let Some(mut child) = fork_in(running, options)?
    {
        child.expect_hello(options.hello_timeout)?;
        return Ok(child);
    }
    // The old one is buried before the new one starts.
    *zygote = None;
    let new = zygote.insert(start_zygote(entry, argument, options)?);
    let Some(mut child) = fork_in(new, options)? else {
        let ended = new.ended(Duration::from_secs(1));
        let why = ended.map_or("it does not answer".to_owned(), |ended| ended.to_string());
        let error = Error::new(NO_HELLO, "a zygote is gone before it has started a process");
        *zygote = None;
        return Err(error.at("process", &options.name).why(why));
    };
    child.expect_hello(options.hello_timeout)?;
    Ok(child)
}

fn start_zygote(entry: Entry, argument: &Argument, options: &SpawnOptions<'_>) -> Result<Child> {
    let options = SpawnOptions {
        name: format!("{} (zygote)", options.name),
        hello_timeout: options.hello_timeout,
        reading_timeout: options.reading_timeout,
        forward_stderr: options.forward_stderr,
        ..SpawnOptions::default()
    };
    let mut zygote = launch(Kind::Zygote, &options)?;
    order(&zygote, entry, argument, &options)?;
    zygote.expect_hello(options.hello_timeout)?;
    let why = match zygote.control.receive(sys::deadline(options.reading_timeout)) {
        Ok(Got::Packet { tag: Tag::Loaded, .. }) => return Ok(zygote),
        Ok(Got::Packet { tag: Tag::Goodbye, body, .. }) => match Error::from_wire(&body) {
            Some(error) => return Err(error.at_if_absent("process", &options.name)),
            None => "it said goodbye".to_owned(),
        },
        Ok(Got::TimedOut) => {
            let limit = options.reading_timeout;
            let error = Error::new(POOL_START, "a zygote did not read the job's argument in time")
                .at("process", format_args!("{}, pid {}", options.name, zygote.pid()))
                .at("limit", format_args!("{limit:?}"))
                .at("in", READING)
                .at("it is", supervise::evidence(zygote.pid()))
                .hint("make the argument's `Deserialize` quicker, or give it more time (of a loader: `.start_timeout(..)`)");
            return Err(said(error, &zygote.stderr()));
        }
        _ => match zygote.ended(Duration::from_secs(1)) {
            Some(ended) => format!("it has ended: {ended}"),
            None => "it closed its control socket".to_owned(),
        },
    };
    let error = Error::new(NO_HELLO, "a zygote did not read the job's argument")
        .at("process", &options.name)
        .at("in", READING);
    Err(said(error.why(why), &zygote.stderr()))
}

/// Asks a zygote for a worker; nothing if the zygote is gone or does not answer, and then it is dead.
fn fork_in(zygote: &mut Child, options: &SpawnOptions<'_>) -> Result<Option<Child>> {
    let ends = Ends::new(options)?;
    let request = Request { name: options.name.clone(), handed: options.fds.len() as u32 };
    let fds: Vec<BorrowedFd<'_>> =
        [ends.there.0.as_fd(), ends.stderr.as_fd()].into_iter().chain(options.fds.iter().copied()).collect();
    let sent = ask(zygote, Tag::Fork, &postcard::to_allocvec(&request)?, &fds, options)?;
    let Ends { here, tail, .. } = ends;
    let answer = if sent { forked(zygote, sys::deadline(options.hello_timeout)) } else { None };
    match answer {
        Some(Answer(Ok(pid))) => Ok(Some(Child::new(&options.name, Process::new(pid), here, tail))),
        Some(Answer(Err(number))) => {
            tail.close();
            let error = start_failed(&options.name, &io::Error::from_raw_os_error(number));
            let threads = number == libc::EDEADLK;
            Err(if threads {
                error.why("the argument's `Deserialize` has started threads in the zygote")
            } else {
                error
            })
        }
        None => {
            tail.close();
            zygote.kill();
            zygote.process_mut().status_until(sys::deadline(Duration::from_secs(1)));
            // It may have forked, and been too slow to say so.
            if let Some(Answer(Ok(pid))) = forked(zygote, Instant::now()) {
                end(Process::new(pid));
            }
            Ok(None)
        }
    }
}

/// Forks this process.
fn fork(work: Work, options: &SpawnOptions<'_>) -> Result<Child> {
    entry::may_start(Kind::Worker)?;
    let foreign = threads::foreign();
    if !foreign.is_empty() {
        return Err(Error::new(FORK, "this process has other threads and cannot be forked")
            .at("process", &options.name)
            .at("threads", foreign.join(", "))
            .why("a lock that one of them holds would stay locked for ever in the new process")
            .hint("use `Start::Exec`; or start processes before anything starts threads"));
    }
    let fail = |error: &io::Error| start_failed(&options.name, error);
    let handed = options.fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>();
    let handed: Vec<OwnedFd> = handed.map_err(|error| fail(&error))?;
    let Ends { here, there, tail, stderr } = Ends::new(options)?;
    // What is buffered would be written twice.
    let _ = io::stdout().flush();
    let name = options.name.clone();
    let forked = on_the_spawner(options.hello_timeout, move || {
        let quiet = WORKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: of the threads that exist, the caller's waits for this one's answer, the janitor waits for the lock
        // taken above or in poll, and there are no others: no lock of the C library or of Leyden is held.
        match sys::check(unsafe { libc::fork() }.into())? {
            0 => worker::after_fork(there.0, stderr, name, handed, work),
            pid => {
                drop(quiet);
                Ok(Fresh(Some(Process::new(pid as i32))))
            }
        }
    });
    match forked {
        Ok(mut fresh) => {
            let process = fresh.0.take().expect("it was put there");
            let mut child = Child::new(&options.name, process, here, tail);
            child.expect_hello(options.hello_timeout)?;
            Ok(child)
        }
        Err(error) => {
            tail.close();
            Err(fail(&error))
        }
    }
}
