//! Runs the rows: each a child with a mark in its environment, under a wall-clock limit, with all that it says and how it
//! ended, until nothing of it is left.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leyden_process::supervise::evidence;

use crate::rows::{self, Row};

/// A hang is what takes longer.
const LIMIT: Duration = Duration::from_secs(60);
/// What ends a little later than its program, such as a supervisor that puts logs away.
const LEAVING: Duration = Duration::from_secs(5);

pub(crate) fn main(words: &[String]) -> ExitCode {
    adopt_orphans();
    let wanted: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let rows: Vec<Row> = rows::all()
        .into_iter()
        .filter(|row| wanted.is_empty() || wanted.iter().any(|word| row.name.contains(word)))
        .collect();
    println!("{}", line(&HEAD.map(str::to_owned)));
    println!("{}", line(&HEAD.map(|head| "-".repeat(head.len()))));
    let mut failures = Vec::new();
    let began = Instant::now();
    for row in &rows {
        let seen = Program::start(row.program, row.ranks).run(row);
        let wrong = row.judge(&seen);
        println!("{}", line(&cells(row, &seen)));
        if !wrong.is_empty() {
            failures.push(format!("{}:\n  {}\n{}", row.name, wrong.join("\n  "), seen.text()));
        }
    }
    let ended = format!("{} rows in {:.0?}, {} failed", rows.len(), began.elapsed(), failures.len());
    println!("\n{ended}");
    if failures.is_empty() {
        return ExitCode::SUCCESS;
    }
    failures.iter().for_each(|failure| eprintln!("\n{failure}"));
    eprintln!("\n{ended}");
    ExitCode::FAILURE
}

const HEAD: [&str; 9] = [
    "row",
    "Lightning today",
    "detected",
    "seconds",
    "ranks named",
    "place named",
    "fix named",
    "exit",
    "left behind",
];

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn cells(row: &Row, seen: &Seen) -> [String; 9] {
    let told = seen.told();
    let mut codes: Vec<&str> = told.iter().map(|told| told.code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    let on: Vec<String> = told.iter().map(|told| told.rank.to_string()).collect();
    let detected = match told.is_empty() {
        true => row.instead.to_owned(),
        false => format!("{} on {}", codes.join(", "), on.join(", ")),
    };
    let yes = |all: bool| {
        if told.is_empty() {
            ""
        } else if all {
            "yes"
        } else {
            "no"
        }
        .to_owned()
    };
    let texts: Vec<String> = told.iter().map(|told| seen.error_on(told.rank)).collect();
    let seconds = seen.latency().map_or_else(String::new, |latency| format!("{latency:.3}"));
    [
        row.name.to_owned(),
        row.today.to_owned(),
        detected,
        seconds,
        yes(texts.iter().all(|text| text.contains("rank"))),
        yes(texts.iter().all(|text| names_a_place(text))),
        match codes[..] {
            // Of an error of the program's own the user knows more than we do.
            ["T0001"] | ["T0301"] => "the user's".to_owned(),
            _ => yes(texts.iter().all(|text| text.contains("fix: "))),
        },
        seen.status
            .code()
            .map_or_else(|| format!("signal {}", seen.status.signal().unwrap_or(0)), |code| code.to_string()),
        if seen.left.is_empty() { "nothing".to_owned() } else { seen.left.join(", ") },
    ]
}

/// A line of the source, or what a run was at.
pub(crate) fn names_a_place(error: &str) -> bool {
    error.contains(".rs:")
        || error.lines().any(|line| {
            ["in ", "parameter `", "file ", "configuration"]
                .iter()
                .any(|label| line.trim_start().starts_with(label))
        })
}

/// Processes whose parent has ended become this one's children, so that none is missed, dead ones neither.
fn adopt_orphans() {
    // SAFETY: it takes numbers.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    assert_eq!(done, 0, "orphans are adopted");
}

/// A row's program while it runs.
pub(crate) struct Program {
    child: Child,
    mark: String,
    folder: tempfile::TempDir,
    lines: Receiver<String>,
    heard: Arc<Mutex<Vec<String>>>,
    began: Instant,
}

impl Program {
    /// Starts `row NAME ..` with these words.
    pub(crate) fn start(words: &str, ranks: usize) -> Self {
        let folder =
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder can be made");
        Self::start_in(words, ranks, folder)
    }

    pub(crate) fn start_in(words: &str, ranks: usize, folder: tempfile::TempDir) -> Self {
        static COUNT: Mutex<u32> = Mutex::new(0);
        let number = {
            let mut count = COUNT.lock().expect("nobody panics");
            *count += 1;
            *count
        };
        let mark = format!("hangbench-{}-{number}.", std::process::id());
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(program)
            .arg("row")
            .args(words.split(' '))
            .env("HANGBENCH", &mark)
            .env("HANGBENCH_RANKS", ranks.to_string())
            .env("HANGBENCH_FOLDER", folder.path())
            .env("TMPDIR", folder.path())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        STARTED.lock().expect("nobody panics").push(child.id() as i32);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (sender, lines) = mpsc::channel();
        let pipes: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("it is piped")),
            Box::new(child.stderr.take().expect("it is piped")),
        ];
        for pipe in pipes {
            let (sender, heard) = (sender.clone(), Arc::clone(&heard));
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    heard.lock().expect("nobody panics").push(line.clone());
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, mark, folder, lines, heard, began: Instant::now() }
    }

    /// Does what the row does to it, and waits for its end.
    fn run(self, row: &Row) -> Seen {
        (row.act)(&self);
        self.end()
    }

    /// Waits until so many lines have these words; gives the last of them. Nothing if the program ends before.
    pub(crate) fn wait_for(&self, words: &str, times: usize) -> Option<String> {
        let mut found = 0;
        while found < times {
            let line = self.lines.recv_timeout(LIMIT).ok()?;
            found += usize::from(line.contains(words));
            if found == times {
                return Some(line);
            }
        }
        None
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The process of a rank, as it has said.
    pub(crate) fn pid_of(&self, rank: usize) -> Option<i32> {
        let heard = self.heard.lock().expect("nobody panics").clone();
        heard
            .iter()
            .filter_map(|line| Stamp::read(line))
            .find(|stamp| stamp.rank == rank)
            .map(|stamp| stamp.pid)
    }

    pub(crate) fn pid_named(&self, name: &str) -> Option<i32> {
        self.processes().into_iter().find(|(_, theirs)| theirs == name).map(|(pid, _)| pid)
    }

    pub(crate) fn signal(&self, pid: Option<i32>, signal: i32) {
        if let Some(pid) = pid {
            // When this was done counts, where the program does not say so itself.
            self.heard.lock().expect("nobody panics").push(stamp("fault"));
            // SAFETY: it takes numbers.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// All its processes that live, itself too, with their names.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let alive = |pid: &i32| !matches!(evidence(*pid).state, None | Some('Z' | 'X'));
        let pids = fs::read_dir("/proc").expect("/proc is there").flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.windows(self.mark.len()).any(|part| part == self.mark.as_bytes())
            })
            .filter(alive)
            .map(|pid| {
                (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned())
            })
            .collect()
    }

    /// Waits for its end, and until nothing is left of it, or it is clear that something is.
    pub(crate) fn end(mut self) -> Seen {
        let mut hangs = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            if self.began.elapsed() > LIMIT && !hangs {
                hangs = true;
                self.kill_all();
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = self.began.elapsed();
        STARTED.lock().expect("nobody panics").retain(|pid| *pid != self.pid());
        let mut left: Vec<String>;
        loop {
            let living = self.processes();
            let dead = reap();
            left = living.iter().map(|(pid, name)| format!("{name} ({pid})")).collect();
            if left.is_empty() && dead {
                break;
            }
            if self.began.elapsed() > took + LEAVING {
                if !dead {
                    left.push("a child that nobody waited for".to_owned());
                }
                self.kill_all();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if hangs {
            left.push("it hung".to_owned());
        }
        // Both readers end with the last process.
        while self.lines.recv_timeout(LEAVING).is_ok() {}
        let lines = self.heard.lock().expect("nobody panics").clone();
        let kept = self.folder.path().to_string_lossy().into_owned();
        let named = |path: &str| lines.iter().any(|line| line.contains(path));
        for entry in fs::read_dir(&kept).into_iter().flatten().flatten() {
            let path = entry.path().to_string_lossy().into_owned();
            let ours = entry.file_name().to_string_lossy().starts_with("leyden-");
            if ours && !named(&path) {
                left.push(path);
            }
        }
        Seen { status, took, lines, left, folder: self.folder }
    }

    fn kill_all(&self) {
        for (pid, _) in self.processes() {
            // SAFETY: it takes numbers; only processes with our mark are meant.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// Programs that run: whoever started them waits for them.
static STARTED: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// Takes the ends of orphans; whether none is left.
fn reap() -> bool {
    let started = STARTED.lock().expect("nobody panics").clone();
    let me = std::process::id().to_string();
    let mut none = true;
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().unwrap_or_default().split(' ').nth(1);
        if parent == Some(&*me) && !started.contains(&pid) {
            // SAFETY: a null pointer says that the status is not wanted; nobody else waits for an orphan.
            none &= unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == pid;
        }
    }
    none
}

/// A program that has ended.
pub(crate) struct Seen {
    pub(crate) status: ExitStatus,
    pub(crate) took: Duration,
    pub(crate) lines: Vec<String>,
    pub(crate) left: Vec<String>,
    pub(crate) folder: tempfile::TempDir,
}

/// What a program says of a moment: `bench: WHAT NANOSECONDS PID`.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    pub(crate) rank: usize,
    pub(crate) what: String,
    when: u128,
    pid: i32,
}

/// What one rank's `fit` ended with.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) rank: usize,
    pub(crate) code: String,
}

impl Stamp {
    fn read(line: &str) -> Option<Self> {
        let (rank, rest) = rank_of(line);
        let (what, rest) = rest.strip_prefix("bench: ")?.rsplit_once(' ')?;
        let (what, when) = what.rsplit_once(' ')?;
        Some(Self { rank, what: what.to_owned(), when: when.parse().ok()?, pid: rest.parse().ok()? })
    }
}

/// A line of this moment.
pub(crate) fn stamp(what: &str) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_nanos());
    format!("bench: {what} {now} {}", std::process::id())
}

/// Whose line it is: those of ranks above 0 have their name in front.
fn rank_of(line: &str) -> (usize, &str) {
    let other = line.strip_prefix("[rank ").and_then(|rest| rest.split_once("] "));
    other.and_then(|(rank, rest)| Some((rank.parse().ok()?, rest))).unwrap_or((0, line))
}

impl Seen {
    pub(crate) fn stamps(&self) -> Vec<Stamp> {
        self.lines.iter().filter_map(|line| Stamp::read(line)).collect()
    }

    /// What ranks have said with this word first: the rest, by rank.
    pub(crate) fn said(&self, word: &str) -> Vec<(usize, String)> {
        let with = |stamp: Stamp| Some((stamp.rank, stamp.what.strip_prefix(word)?.trim().to_owned()));
        let mut said: Vec<_> = self.stamps().into_iter().filter_map(with).collect();
        said.sort();
        said
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        let mut told: Vec<Told> =
            self.said("told ").into_iter().map(|(rank, code)| Told { rank, code }).collect();
        told.sort_by_key(|told| told.rank);
        told
    }

    /// The error that one rank's program has ended with, as it was printed.
    pub(crate) fn error_on(&self, rank: usize) -> String {
        let own =
            self.lines.iter().map(|line| rank_of(line)).filter(|(of, _)| *of == rank).map(|(_, line)| line);
        let error = own.skip_while(|line| !line.starts_with("error["));
        let lines = error.enumerate().take_while(|(number, line)| *number == 0 || line.starts_with("  "));
        lines.fold(String::new(), |text, (_, line)| text + line + "\n")
    }

    /// Seconds from the fault, or from the moment at which the last rank began, to the last rank that was told.
    pub(crate) fn latency(&self) -> Option<f64> {
        let stamps = self.stamps();
        let last = |what: &str| {
            stamps.iter().filter(|stamp| stamp.what.starts_with(what)).map(|stamp| stamp.when).max()
        };
        let from = last("fault").or_else(|| last("begins"))?;
        Some(last("told")?.saturating_sub(from) as f64 / 1e9)
    }

    pub(crate) fn text(&self) -> String {
        let lines = self.lines.iter().fold(String::new(), |text, line| text + "    " + line + "\n");
        format!("  {:?} after {:.1?}\n{lines}", self.status, self.took)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}
