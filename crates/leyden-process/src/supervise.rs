//! How a process ended, why, and what it was doing: exact causes, evidence for one that is stuck, and the end of many
//! at once within one deadline.
//!
//! A good library's way: no SIGCHLD handler, no wait for children that are not ours.

use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::codes::DIED;
use crate::error::{Error, Result};
use crate::spawn::Child;
use crate::sys;

/// Why a process is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its function returned, with or without an error.
    Done,
    /// It exited with this code without saying goodbye: something in it called `exit`. Also with code 0.
    Exited(i32),
    /// A signal killed it.
    Signalled {
        /// The signal's number.
        number: i32,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
    /// The kernel killed it to free memory, most likely: a SIGKILL that was not ours, and the kernel's count of such
    /// kills has risen meanwhile.
    OutOfMemory,
    /// Another part of the program has taken its exit status (`waitpid(-1)`, or SIGCHLD ignored).
    Unknown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Done => f.write_str("returned"),
            Self::Exited(code) => write!(f, "exited with code {code} without saying goodbye"),
            Self::Signalled { number, core_dumped } => {
                let core = if core_dumped { " (core dumped)" } else { "" };
                write!(f, "killed by {}{core}", signal_name(number))
            }
            Self::OutOfMemory => {
                f.write_str("killed by SIGKILL (the kernel's out-of-memory killer, most likely)")
            }
            Self::Unknown => f.write_str("ended; its exit status was taken by another part of the program"),
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Why.
    pub cause: Cause,
    /// Its last lines on stderr, at most 20 of at most 2 KiB.
    pub stderr: Vec<String>,
    /// What its function returned, or the panic that ended it.
    pub error: Option<Error>,
}

impl Ended {
    /// `Ok` if the function returned `Ok`.
    ///
    /// # Errors
    ///
    /// The function's own error, or `P0112` with the cause and the last lines of stderr if it did not return; each with
    /// the process's name as the place `process`.
    pub fn into_result(self, name: &str) -> Result<()> {
        match (self.error, self.cause) {
            (Some(error), _) => Err(error.at_if_absent("process", name)),
            (None, Cause::Done) => Ok(()),
            (None, cause) => {
                let error = Error::new(DIED, "a process died").at("process", name).why(cause);
                Err(said(error, &self.stderr))
            }
        }
    }
}

/// Adds the last lines of stderr.
pub(crate) fn said(error: Error, stderr: &[String]) -> Error {
    if stderr.is_empty() { error } else { error.at("its stderr", stderr.join("\n")) }
}

/// One line: the cause, and the last line of stderr.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)?;
        match (&self.error, self.stderr.last()) {
            (Some(error), _) => write!(f, " error[{}]: {error}", error.code()),
            (None, Some(line)) => write!(f, "; its last words: {line}"),
            (None, None) => Ok(()),
        }
    }
}

/// Ends processes, all at once: they are asked to stop; after half of `grace` their groups get SIGTERM, which workers
/// ignore and the programs that they started do not; after `grace` their groups get SIGKILL. Returns when all are
/// dead, or at the latest 5 s after that: then the rest is in an uninterruptible wait, and its cause is `Unknown`.
///
/// The grandchildren in a group die too, also when their parent ended in time.
pub fn stop_all(mut children: Vec<Child>, grace: Duration) -> Vec<Ended> {
    const DYING: Duration = Duration::from_secs(5);
    type Act = fn(&mut Child);
    let start = Instant::now();
    let steps: [(Duration, Act); 3] =
        [(grace / 2, Child::ask_to_stop), (grace / 2, Child::terminate), (DYING, Child::kill)];
    let mut deadline = start;
    for (time, act) in steps {
        deadline += time;
        for child in children.iter_mut().filter(|child| !child.has_ended()) {
            act(child);
        }
        while children.iter().any(|child| !child.has_ended()) && Instant::now() < deadline {
            wait_for_any(&mut children, deadline);
        }
    }
    children.iter_mut().map(Child::conclude).collect()
}

/// Waits until one of them ends or says something.
fn wait_for_any(children: &mut [Child], deadline: Instant) {
    let mut interests: Vec<_> = children.iter().flat_map(Child::interests).collect();
    // Without pidfds the end is only seen by looking.
    let blind = children.iter().any(|child| !child.has_ended() && child.pidfd().is_none());
    let look_again = if blind { deadline.min(Instant::now() + BLIND) } else { deadline };
    let _ = sys::poll(&mut interests, Some(look_again));
    for child in children {
        child.look();
    }
}

/// How often to look where nothing wakes us.
pub(crate) const BLIND: Duration = Duration::from_millis(5);

/// A child of ours that is not reaped yet, or how it ended.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    group: i32,
    pidfd: Option<OwnedFd>,
    status: Option<Status>,
    /// Whether we sent it SIGKILL.
    killed: bool,
    out_of_memory_kills: Option<u64>,
}

/// What the kernel says of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Exited(i32),
    Signalled { number: i32, core_dumped: bool },
    Unknown,
}

impl Process {
    /// Takes over a child that leads its own process group, and that nobody else reaps.
    pub(crate) fn new(pid: i32) -> Self {
        Self::in_group(pid, pid)
    }

    /// Takes over a child in a group whose leader the caller does not reap before.
    pub(crate) fn in_group(pid: i32, group: i32) -> Self {
        Self {
            pid,
            group,
            pidfd: sys::pidfd(pid),
            status: None,
            killed: false,
            out_of_memory_kills: out_of_memory_kills(),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it was seen to have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(OwnedFd::as_fd)
    }

    /// For a poll that is to notice the end.
    pub(crate) fn interest(&self) -> Option<libc::pollfd> {
        self.pidfd().map(|fd| sys::interest(fd, libc::POLLIN))
    }

    /// How it ended, if it did. What is left of its group is killed then.
    pub(crate) fn try_status(&mut self) -> Option<Status> {
        if self.status.is_none()
            && let Some(status) = wait(self.pid, self.pidfd(), libc::WNOWAIT)
        {
            // Before it is reaped: as long as it is a zombie, no stranger's group can have its number.
            if status != Status::Unknown {
                sys::kill(-self.group, libc::SIGKILL);
                wait(self.pid, self.pidfd(), 0);
            }
            self.status = Some(status);
        }
        self.status
    }

    /// Waits until it has ended or the deadline has passed.
    pub(crate) fn status_until(&mut self, deadline: Instant) -> Option<Status> {
        loop {
            if let Some(status) = self.try_status() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            match self.interest() {
                Some(interest) => drop(sys::poll(&mut [interest], Some(deadline))),
                None => std::thread::sleep(BLIND.min(deadline.saturating_duration_since(Instant::now()))),
            }
        }
    }

    /// Sends the group a signal, unless the process has ended.
    pub(crate) fn signal_group(&mut self, signal: i32) {
        if self.try_status().is_none() {
            self.killed |= signal == libc::SIGKILL;
            sys::kill(-self.group, signal);
        }
    }

    /// Whether the kernel has killed some process for want of memory since this one was started, and not we.
    pub(crate) fn memory_ran_out(&self) -> bool {
        !self.killed && out_of_memory_kills() > self.out_of_memory_kills
    }

    /// The cause of an end without goodbye.
    pub(crate) fn cause(&self) -> Cause {
        match self.status {
            Some(Status::Exited(code)) => Cause::Exited(code),
            Some(Status::Signalled { number: libc::SIGKILL, .. }) if self.memory_ran_out() => {
                Cause::OutOfMemory
            }
            Some(Status::Signalled { number, core_dumped }) => Cause::Signalled { number, core_dumped },
            Some(Status::Unknown) | None => Cause::Unknown,
        }
    }
}

/// Asks the kernel whether a child has ended; reaps it unless `options` has WNOWAIT.
fn wait(pid: i32, pidfd: Option<BorrowedFd<'_>>, options: i32) -> Option<Status> {
    let (kind, id) = match pidfd {
        #[cfg(target_os = "linux")]
        Some(fd) => (libc::P_PIDFD, fd.as_raw_fd() as libc::id_t),
        _ => (libc::P_PID, pid as libc::id_t),
    };
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: waitid fills `info`, which is zeroed and so whole in any case.
        let (result, info) = unsafe {
            let options = libc::WEXITED | libc::WNOHANG | options;
            (libc::waitid(kind, id, info.as_mut_ptr(), options), info.assume_init())
        };
        if result != 0 {
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => continue,
                _ => return Some(Status::Unknown),
            }
        }
        // SAFETY: after waitid these two fields are set; they stay 0 if nothing has ended.
        let (ended, value) = unsafe { (info.si_pid(), info.si_status()) };
        return (ended != 0).then_some(match info.si_code {
            libc::CLD_EXITED => Status::Exited(value),
            code => Status::Signalled { number: value, core_dumped: code == libc::CLD_DUMPED },
        });
    }
}

/// How many processes the kernel has killed for want of memory: in our control group, or where that is not known in
/// the whole system.
fn out_of_memory_kills() -> Option<u64> {
    let count = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    };
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let in_groups = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_end_matches('/'));
        if controllers.is_empty() {
            count(&format!("/sys/fs/cgroup{path}/memory.events"))
        } else if controllers.split(',').any(|controller| controller == "memory") {
            // In a container the path may be the host's.
            count(&format!("/sys/fs/cgroup/memory{path}/memory.oom_control"))
                .or_else(|| count("/sys/fs/cgroup/memory/memory.oom_control"))
        } else {
            None
        }
    });
    in_groups.or_else(|| count("/proc/vmstat"))
}

/// A signal's name, or its number for one without.
fn signal_name(number: i32) -> String {
    const NAMES: [(i32, &str); 20] = [
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGQUIT, "SIGQUIT"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGUSR1, "SIGUSR1"),
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGUSR2, "SIGUSR2"),
        (libc::SIGPIPE, "SIGPIPE"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGXFSZ, "SIGXFSZ"),
        (libc::SIGVTALRM, "SIGVTALRM"),
        (libc::SIGPROF, "SIGPROF"),
        (libc::SIGSYS, "SIGSYS"),
    ];
    let name = NAMES.iter().find(|(known, _)| *known == number).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("signal {number}"))
}

/// What the kernel knows of a process that does not answer. Nothing is stopped or traced for it; what may not be read
/// is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The state's letter, as in `ps`; `None` if there is no such process.
    pub state: Option<char>,
    /// The kernel function it waits in.
    pub waits_in: Option<String>,
    /// The number of the system call it is in.
    pub system_call: Option<i64>,
    /// The process that traces it: a debugger.
    pub tracer: Option<i32>,
    /// The kernel's stack, innermost first; for root only.
    pub kernel_stack: Vec<String>,
    /// Names and states of its threads, at most 16.
    pub threads: Vec<(String, char)>,
}

/// Looks at a process. On systems other than Linux nothing but whether there is one.
pub fn evidence(pid: i32) -> Evidence {
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    let root = format!("/proc/{pid}");
    let (_, state) = name_and_state(&read(format!("{root}/stat"))).unzip();
    // Elsewhere all that is known is whether it is there.
    // SAFETY: kill with signal 0 sends nothing.
    #[cfg(not(target_os = "linux"))]
    let state = state.or_else(|| (unsafe { libc::kill(pid, 0) } == 0).then_some('?'));
    let waits_in = read(format!("{root}/wchan"));
    let mut tasks: Vec<i32> = fs::read_dir(format!("{root}/task"))
        .into_iter()
        .flatten()
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    tasks.sort_unstable();
    tasks.truncate(16);
    Evidence {
        state,
        waits_in: Some(waits_in.trim().to_owned()).filter(|name| !name.is_empty() && name != "0"),
        system_call: read(format!("{root}/syscall")).split(' ').next().and_then(|call| call.parse().ok()),
        tracer: read(format!("{root}/status"))
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok())
            .filter(|&tracer| tracer != 0),
        kernel_stack: read(format!("{root}/stack"))
            .lines()
            .take(8)
            // `[<0>] name+0x12/0x34`
            .filter_map(|line| Some(line.rsplit(' ').next()?.split('+').next()?.to_owned()))
            .collect(),
        threads: tasks
            .into_iter()
            .filter_map(|task| name_and_state(&read(format!("{root}/task/{task}/stat"))))
            .collect(),
    }
}

/// The name and the state's letter in a line of `/proc/*/stat`. The name is in brackets, and may hold any.
fn name_and_state(stat: &str) -> Option<(String, char)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    Some((name.to_owned(), after.trim_start().chars().next()?))
}

impl Evidence {
    /// Whether a debugger holds it: no verdict about its slowness is fair.
    pub fn is_traced(&self) -> bool {
        self.tracer.is_some() || self.state == Some('t')
    }

    /// Whether it was stopped by SIGSTOP or the terminal, and will go on with SIGCONT only.
    pub fn is_stopped(&self) -> bool {
        self.state == Some('T')
    }

    fn state_in_words(&self) -> &'static str {
        match self.state {
            Some('R') => "running",
            Some('S') => "waiting",
            Some('D') => "in an uninterruptible wait (a disk, a network file system, a driver)",
            Some('T') => "stopped by a signal",
            Some('t') => "held by a debugger",
            Some('Z') => "dead, not yet reaped",
            Some('X') => "dead",
            Some('I') => "idle",
            Some(_) => "in an unknown state",
            None => "gone",
        }
    }
}

/// One line for the process, one for its threads.
impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.state_in_words())?;
        if let Some(place) = &self.waits_in {
            write!(f, " in {place}")?;
        }
        if let Some(call) = self.system_call {
            write!(f, ", system call {call}")?;
        }
        if let Some(tracer) = self.tracer {
            write!(f, ", traced by process {tracer}")?;
        }
        if !self.kernel_stack.is_empty() {
            write!(f, ", kernel stack {}", self.kernel_stack.join(" < "))?;
        }
        if !self.threads.is_empty() {
            f.write_str("\nthreads:")?;
            for (name, state) in &self.threads {
                write!(f, " {name} ({state})")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_hides_no_state() {
        let (name, state) = name_and_state("12 (a) (b) R 1 2").unwrap();
        assert_eq!((name.as_str(), state), ("a) (b", 'R'));
    }

    #[test]
    fn evidence_of_this_process_names_its_threads() {
        let evidence = evidence(std::process::id() as i32);
        assert!(!evidence.threads.is_empty());
        assert!(!evidence.is_traced() && !evidence.is_stopped());
        assert!(evidence.to_string().contains("threads:"), "{evidence}");
        assert_eq!(super::evidence(i32::MAX).to_string(), "gone");
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "`Process` reaps it")]
    fn an_end_is_seen_without_a_descriptor_for_the_process() {
        let child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let mut process = Process { pidfd: None, ..Process::in_group(child.id() as i32, i32::MAX) };
        let status = process.status_until(sys::deadline(Duration::from_secs(30)));
        assert_eq!((status, process.cause()), (Some(Status::Exited(7)), Cause::Exited(7)));
        assert_eq!(process.try_status(), status, "it is asked once");
    }

    #[test]
    fn a_stolen_exit_status_is_said_to_be_unknown() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let mut process = Process::in_group(child.id() as i32, i32::MAX);
        child.wait().unwrap();
        assert_eq!(process.try_status(), Some(Status::Unknown));
        assert_eq!(process.cause(), Cause::Unknown);
    }

    #[test]
    fn causes_are_said_in_words() {
        let killed = |number, core_dumped| Cause::Signalled { number, core_dumped }.to_string();
        assert_eq!(killed(libc::SIGSEGV, true), "killed by SIGSEGV (core dumped)");
        assert_eq!(killed(99, false), "killed by signal 99");
        assert_eq!(Cause::Exited(0).to_string(), "exited with code 0 without saying goodbye");
    }
}
