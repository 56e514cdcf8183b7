//! What started processes write to stderr: passed on line by line, and the last lines kept for the post-mortem. Also
//! reaps those who did not end in time, so that nobody waits for them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use crate::control::Held;
use crate::supervise::Process;
use crate::{sys, threads};

/// One process's stderr.
pub(crate) struct Tail {
    name: String,
    forward: bool,
    state: Mutex<State>,
}

struct State {
    pipe: Option<Held<File>>,
    unfinished: Vec<u8>,
    lines: VecDeque<String>,
}

impl Tail {
    /// Begins to read the pipe, whose reading end must not block. With `forward`, each line goes to our own stderr with
    /// the name in front.
    pub(crate) fn start(name: &str, pipe: OwnedFd, forward: bool) -> io::Result<Arc<Self>> {
        let state =
            State { pipe: Some(Held::new(pipe.into())), unfinished: Vec::new(), lines: VecDeque::new() };
        let tail = Arc::new(Self { name: name.to_owned(), forward, state: Mutex::new(state) });
        let janitor = Janitor::get()?;
        janitor.work().tails.push(Arc::downgrade(&tail));
        janitor.wake();
        Ok(tail)
    }

    /// Reads what is there.
    pub(crate) fn drain(&self) {
        let new = self.state().drain();
        if self.forward {
            let mut text = String::new();
            for line in new {
                text.extend(["[", &self.name, "] ", &line, "\n"]);
            }
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }

    /// The last lines, oldest first; of what has been read so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        let state = self.state();
        let unfinished = (!state.unfinished.is_empty()).then(|| text_of(&state.unfinished));
        let skipped = (state.lines.len() + usize::from(unfinished.is_some())).saturating_sub(LINES);
        state.lines.iter().skip(skipped).cloned().chain(unfinished).collect()
    }

    /// Stops to read, and closes the pipe.
    pub(crate) fn close(&self) {
        self.state().pipe = None;
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
/// How many bytes of a line are kept.
const LINE_BYTES: usize = 2048;

impl State {
    /// Reads until the pipe is empty or a bound is reached; gives the lines that were finished.
    fn drain(&mut self) -> Vec<String> {
        let mut new = Vec::new();
        let mut buffer = [0; 8192];
        // A process that writes without a pause must not keep us from the others.
        for _ in 0..64 {
            let Some(pipe) = &self.pipe else { break };
            match pipe.get().read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.take(&buffer[..count], &mut new),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.pipe = None,
            }
        }
        new
    }

    fn take(&mut self, bytes: &[u8], new: &mut Vec<String>) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, finished) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            let room = LINE_BYTES.saturating_sub(self.unfinished.len());
            self.unfinished.extend(&text[..text.len().min(room)]);
            if finished {
                let line = text_of(&std::mem::take(&mut self.unfinished));
                self.lines.push_back(line.clone());
                if self.lines.len() > LINES {
                    self.lines.pop_front();
                }
                new.push(line);
            }
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\r').to_owned()
}

/// Held by the janitor whenever it does more than wait: whoever forks takes it, so that the new process finds no lock of
/// the janitor's taken.
pub(crate) static WORKING: Mutex<()> = Mutex::new(());

/// The thread that reads for everybody. It starts with the first process and never ends.
pub(crate) struct Janitor {
    wake: File,
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
                    Box::leak(Box::new(Self { wake: sys::eventfd()?, work: Mutex::new(Work::default()) }));
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
        let _ = (&self.wake).write_all(&1_u64.to_ne_bytes());
    }

    fn run(&self) {
        loop {
            let working = WORKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let _ = (&self.wake).read(&mut [0; 8]);
            let mut interests = vec![sys::interest(self.wake.as_fd(), libc::POLLIN)];
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
    use std::time::Instant;

    #[test]
    fn keeps_the_last_lines_bounded_also_the_unfinished_one() {
        let (read, write) = sys::pipe().unwrap();
        let tail = Tail::start("test", read, false).unwrap();
        let mut write = File::from(write);
        for line in 0..50 {
            writeln!(write, "line {line}").unwrap();
        }
        write.write_all(&[b'x'; 3 * LINE_BYTES]).unwrap();
        let deadline = sys::deadline(Duration::from_secs(10));
        while tail.lines().last().is_none_or(|last| last.len() < LINE_BYTES) {
            assert!(Instant::now() < deadline, "{:?}", tail.lines());
            std::thread::yield_now();
        }
        let lines = tail.lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[18].as_str()), (LINES, "line 31", "line 49"));
        assert_eq!(lines[19].len(), LINE_BYTES);
        tail.close();
        while write.write(b"x").is_ok() {
            assert!(Instant::now() < deadline, "the reading end stays open");
        }
    }
}
