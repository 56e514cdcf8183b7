//! Whole programs (`examples/rows.rs`), watched from outside.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::kind::Kind;
use super::leftovers::{alone, is_alive, processes, settle};
use super::trouble::{LONG, signal};

/// A program that runs, with all processes that came from it.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
    mark: String,
    seen: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) lines: Vec<String>,
    pub(crate) stderr: String,
}

/// Its file, which cargo builds beside the tests.
pub(crate) fn rows() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    let path = folder.join("rows");
    assert!(path.exists(), "{} is built by `cargo test -p leyden-data`", path.display());
    path
}

/// The words after the program's name.
pub(crate) fn words(scenario: &str, kind: Kind, folder: &Path, more: &[&str]) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    [scenario, &kind.name(), folder].iter().chain(more).map(|&word| word.to_owned()).collect()
}

impl Program {
    pub(crate) fn rows(scenario: &str, kind: Kind, folder: &Path, more: &[&str]) -> Self {
        Self::start(Command::new(rows()).args(words(scenario, kind, folder, more)))
    }

    /// Starts it in a process group of its own. While it lives, no other test starts processes.
    pub(crate) fn start(command: &mut Command) -> Self {
        let alone = alone();
        // Ignored where the tests were started in the background, and then by every program that they start.
        // SAFETY: the default action has no code of ours.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        command.env(MARK, &mark).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.process_group(0).spawn().unwrap();
        let lines = read(BufReader::new(child.stdout.take().unwrap()));
        let errors = read(BufReader::new(child.stderr.take().unwrap()));
        Self { child, lines, errors, mark, seen: Vec::new(), _alone: alone }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for a line of its.
    pub(crate) fn wait_for(&mut self, line: &str) {
        loop {
            let found = self.lines.recv_timeout(LONG).unwrap_or_else(|_| {
                let errors: Vec<String> = self.errors.try_iter().collect();
                panic!("it does not say {line:?}, but {:?} and {errors:?}", self.seen)
            });
            self.seen.push(found.clone());
            if found == line {
                return;
            }
        }
    }

    /// All processes that came from it and live, without itself.
    pub(crate) fn descendants(&self) -> Vec<i32> {
        let mark = format!("{MARK}={}", self.mark);
        processes()
            .filter(|&pid| pid != self.pid() && is_alive(pid))
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|&byte| byte == 0).any(|entry| entry == mark.as_bytes())
            })
            .collect()
    }

    /// Kills it, and waits until everything that came from it is gone; says how long that took.
    pub(crate) fn kill(mut self, number: i32, expected: usize) -> Duration {
        let descendants = self.descendants();
        assert_eq!(descendants.len(), expected, "{descendants:?}");
        let began = Instant::now();
        signal(self.pid(), number);
        let gone = settle(|| descendants.iter().all(|&pid| !is_alive(pid)));
        let took = began.elapsed();
        assert!(gone, "left of {descendants:?}: {:?}", self.descendants());
        assert!(settle(|| self.descendants().is_empty()), "left: {:?}", self.descendants());
        self.child.wait().unwrap();
        took
    }

    /// Waits for its end, and that nothing of it is left.
    pub(crate) fn ended(mut self) -> Ending {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                began.elapsed() < LONG,
                "it does not end; it has said {:?} and {:?}",
                self.lines.try_iter().collect::<Vec<_>>(),
                self.errors.try_iter().collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(settle(|| self.descendants().is_empty()), "left: {:?}", self.descendants());
        let mut lines = std::mem::take(&mut self.seen);
        lines.extend(self.lines.iter());
        let stderr: Vec<String> = self.errors.iter().collect();
        Ending { code: status.code(), signal: status.signal(), lines, stderr: stderr.join("\n") }
    }
}

/// Nothing stays when a test fails.
impl Drop for Program {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.descendants().into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
    }
}

impl Ending {
    /// That it ended well, and what it said.
    pub(crate) fn lines(self) -> Vec<String> {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.lines
    }
}

/// Reads lines until the end; half a line at the end, too.
fn read(mut from: BufReader<impl std::io::Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        while from.by_ref().read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
            if sender.send(line).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}

/// In the environment of all processes that come from a program.
const MARK: &str = "LEYDEN_ROWS";
