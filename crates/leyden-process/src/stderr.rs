//! What started processes write to stderr: passed on line by line, and the last lines kept for the post-mortem. Also
//! reaps those who did not end in time, so that nobody waits for them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use crate::control::Held;
use crate::lines::{self, Lines};
use crate::supervise::Process;
use crate::sys::{self, Wake};
use crate::threads;

/// One process's stderr.
pub(crate) struct Tail {
    name: String,
    forward: bool,
    /// Held while lines are read and passed on, so that they stay in their order. Taken after [`WORKING`], never before.
    passing: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    pipe: Option<Held<File>>,
    open: Lines,
    lines: VecDeque<String>,
}

impl Tail {
    /// Begins to read the pipe, whose reading end must not block. With `forward`, each line goes to our own stderr with
    /// the name in front.
    pub(crate) fn start(name: &str, pipe: OwnedFd, forward: bool) -> io::Result<Arc<Self>> {
        let state =
            State { pipe: Some(Held::new(pipe.into())), open: Lines::default(), lines: VecDeque::new() };
        let tail = Arc::new(Self {
            name: name.to_owned(),
            forward,
            passing: Mutex::new(()),
            state: Mutex::new(state),
        });
        let janitor = Janitor::get()?;
        janitor.work().tails.push(Arc::downgrade(&tail));
        janitor.wake();
        Ok(tail)
    }

    /// Reads what is there.
    pub(crate) fn drain(&self) {
        let _passing = self.passing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let new = self.state().drain();
        self.pass_on(&new);
    }

    fn pass_on(&self, lines: &[Vec<u8>]) {
        if self.forward {
            for line in lines {
                let _ = lines::pass_on(Some(&self.name), line, io::stderr());
            }
        }
    }

    /// The last lines, oldest first; of what has been read so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        let state = self.state();
        let unfinished = state.open.unfinished();
        let unfinished = (!unfinished.is_empty()).then(|| text_of(unfinished));
        let skipped = (state.lines.len() + usize::from(unfinished.is_some())).saturating_sub(LINES);
        state.lines.iter().skip(skipped).cloned().chain(unfinished).collect()
    }

    /// Stops to read, and closes the pipe.
    pub(crate) fn close(&self) {
        let _passing = self.passing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let last = self.state().end();
        self.pass_on(last.as_slice());
        drop(_passing);
        if let Ok(janitor) = Janitor::get() {
            janitor.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// How many lines are kept.
const LINES: usize = 20;

impl State {
    /// Reads until the pipe is empty or a bound is reached; gives the lines that were finished.
    fn drain(&mut self) -> Vec<Vec<u8>> {
        let mut new = Vec::new();
        let mut buffer = [0; 8192];
        // A process that writes without a pause must not keep us from the others.
        for _ in 0..64 {
            let Some(pipe) = &self.pipe else { break };
            match pipe.get().read(&mut buffer) {
                Ok(0) => new.extend(self.end()),
                Ok(count) => self.take(&buffer[..count], &mut new),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => new.extend(self.end()),
            }
        }
        new
    }

    fn take(&mut self, bytes: &[u8], new: &mut Vec<Vec<u8>>) {
        let Self { open, lines, .. } = self;
        open.push(bytes, |line| {
            keep(lines, line);
            new.push(line.to_vec());
        });
    }

    /// Nothing comes any more; gives what was left without an end.
    fn end(&mut self) -> Option<Vec<u8>> {
        self.pipe = None;
        let last = self.open.finish();
        last.iter().for_each(|line| keep(&mut self.lines, line));
        last
    }
}

fn keep(lines: &mut VecDeque<String>, line: &[u8]) {
    lines.push_back(text_of(line));
    if lines.len() > LINES {
        lines.pop_front();
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Held by the janitor whenever it does more than wait: whoever forks takes it, so that the new process finds no lock of
/// the janitor's taken.
pub(crate) static WORKING: Mutex<()> = Mutex::new(());

/// The thread that reads for everybody. It starts with the first process and never ends.
pub(crate) struct Janitor {
    wake: Wake,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    tails: Vec<Weak<Tail>>,
    dying: Vec<Process>,
}

impl Janitor {
    /// The one of this process.
    pub(crate) fn get() -> io::Result<&'static Self> {
        /// With the process that it is a thread of: a forked one has a copy of this, and no thread.
        static JANITOR: Mutex<Option<(u32, &Janitor)>> = Mutex::new(None);
        let mut janitor = JANITOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match *janitor {
            Some((process, running)) if process == std::process::id() => Ok(running),
            _ => {
                let new: &'static Self =
                    Box::leak(Box::new(Self { wake: Wake::new()?, work: Mutex::new(Work::default()) }));
                threads::start("leyden-janitor", || new.run())?;
                *janitor = Some((std::process::id(), new));
                Ok(new)
            }
        }
    }

    /// Takes over a killed process that is not dead yet, and reaps it when it is.
    pub(crate) fn bury(&self, process: Process) {
        self.work().dying.push(process);
        self.wake();
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self) {
        self.wake.wake();
    }

    fn run(&self) {
        loop {
            let working = WORKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            self.wake.clear();
            let mut interests = vec![self.wake.interest()];
            let tails: Vec<Arc<Tail>> = {
                let mut work = self.work();
                work.tails.retain(|tail| tail.upgrade().is_some_and(|tail| tail.state().pipe.is_some()));
                work.dying.retain_mut(|process| process.try_status().is_none());
                interests.extend(work.dying.iter().filter_map(Process::interest));
                work.tails.iter().filter_map(Weak::upgrade).collect()
            };
            for tail in &tails {
                tail.drain();
                if let Some(pipe) = &tail.state().pipe {
                    interests.push(sys::interest(pipe.get().as_fd(), libc::POLLIN));
                }
            }
            drop(tails);
            drop(working);
            // Without pidfds nothing tells that a dying process is dead. Otherwise there is nobody to wait for.
            let look_again = (!self.work().dying.is_empty()).then(|| sys::deadline(Duration::from_secs(1)));
            let _ = sys::poll(&mut interests, look_again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::LONGEST;
    use std::io::Write as _;
    use std::time::Instant;

    #[test]
    fn keeps_the_last_lines_bounded_also_the_unfinished_one() {
        let (read, write) = sys::pipe().unwrap();
        let tail = Tail::start("test", read, false).unwrap();
        let mut write = File::from(write);
        for line in 0..50 {
            writeln!(write, "line {line}").unwrap();
        }
        write.write_all(&[b'x'; LONGEST]).unwrap();
        let deadline = sys::deadline(Duration::from_secs(10));
        while tail.lines().last().is_none_or(|last| last.len() < LONGEST) {
            assert!(Instant::now() < deadline, "{:?}", tail.lines());
            std::thread::yield_now();
        }
        let lines = tail.lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[18].as_str()), (LINES, "line 31", "line 49"));
        assert_eq!(lines[19].len(), LONGEST);
        tail.close();
        while write.write(b"x").is_ok() {
            assert!(Instant::now() < deadline, "the reading end stays open");
        }
    }
}
