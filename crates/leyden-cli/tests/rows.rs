//! Programs whose ranks get into trouble, launched by themselves and by `leyden run`: what they say, how soon, how they end, and
//! what is left of them. The programs are in `examples/failing_ranks.rs`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Far beyond anything that works; a hang is caught by it.
const LONG: Duration = Duration::from_secs(40);
/// What is certain is told at once: this is a busy machine's at once.
const SOON: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Itself,
    LeydenRun,
}

const BOTH: [How; 2] = [How::Itself, How::LeydenRun];

/// A program that runs, with a mark in its environment and in that of all that it starts.
struct Program {
    child: Child,
    mark: String,
    folder: tempfile::TempDir,
}

struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
    took: Duration,
}

impl Program {
    /// So many ranks of `rows`, after what the shell is to do first.
    fn start(how: How, words: &str, ranks: usize, first: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("rows-{}-{}.", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        let test = std::env::current_exe().unwrap();
        let rows = test.parent().unwrap().parent().unwrap().join("examples/failing_ranks");
        assert!(rows.exists(), "{} is built by `cargo test -p leyden-cli`", rows.display());
        let launcher = match how {
            How::Itself => String::new(),
            How::LeydenRun => format!("'{}' run -n {ranks} --grace 1 --", env!("CARGO_BIN_EXE_leyden")),
        };
        let script = format!("{first}\nulimit -c 0; exec {launcher} '{}' {words} {ranks}", rows.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env("LEYDEN_TEST", &mark).env("TMPDIR", folder.path());
        command.env("RUST_BACKTRACE", "0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), mark, folder }
    }

    /// All its processes that live.
    fn processes(&self) -> Vec<i32> {
        let alive =
            |pid: &i32| !matches!(leyden_process::supervise::evidence(*pid).state, None | Some('Z' | 'X'));
        let numbers = fs::read_dir("/proc").unwrap().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        numbers
            .filter(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.windows(self.mark.len()).any(|part| part == self.mark.as_bytes())
            })
            .filter(alive)
            .collect()
    }

    /// Reads stdout until so many lines have ended with this word.
    fn await_lines(&mut self, count: usize, word: &str) {
        let stdout = BufReader::with_capacity(1, self.child.stdout.as_mut().unwrap());
        let said = stdout.lines().map_while(|line| line.ok()).filter(|line| line.ends_with(word));
        assert_eq!(said.take(count).count(), count, "it has ended before");
    }

    fn signal(&self, signal: i32) {
        let pid = self.child.id();
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end, and until nothing is left of it.
    fn end(mut self) -> Ended {
        let began = Instant::now();
        let read = |pipe: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = { pipe }.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(Box::new(self.child.stdout.take().unwrap()));
        let stderr = read(Box::new(self.child.stderr.take().unwrap()));
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > LONG {
                for pid in self.processes() {
                    let _ = Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status();
                }
                panic!("it hangs: {} {}", stdout.join().unwrap(), stderr.join().unwrap());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = began.elapsed();
        while !self.processes().is_empty() {
            assert!(began.elapsed() < LONG, "left behind: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(1));
        }
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        for file in fs::read_dir(self.folder.path()).unwrap() {
            let file = file.unwrap().path();
            assert!(stderr.contains(file.to_str().unwrap()), "{} is left behind: {stderr}", file.display());
        }
        Ended { status, stdout, stderr, took }
    }
}

fn run(how: How, words: &str, ranks: usize) -> Ended {
    Program::start(how, words, ranks, "").end()
}

impl Ended {
    #[track_caller]
    fn expect(&self, code: i32, words: &[&str]) {
        let text = format!("{:?} after {:?}\n{}\n{}", self.status, self.took, self.stdout, self.stderr);
        assert_eq!(self.status.code(), Some(code), "{text}");
        assert!(self.took < SOON, "{text}");
        for word in words {
            assert!(one_space(&self.stderr).contains(&one_space(word)), "{word:?} is not in {text}");
        }
    }
}

#[test]
fn a_worker_that_launches_again_is_refused_on_each_rank() {
    for how in BOTH {
        let words =
            ["error[D0203]: a worker cannot launch ranks", "[rank 2] Error: error[D0203]", "worker 0"];
        run(how, "reenter", 3).expect(1, &words);
    }
}

#[test]
fn a_second_launch_is_the_first_and_nobody_has_two_places() {
    for how in BOTH {
        let ended = run(how, "twice", 3);
        ended.expect(0, &[]);
        assert_eq!(ended.stdout, "the same 3 ranks; D0101\n");
    }
}

#[test]
fn one_rank_goes_the_way_of_many() {
    for (how, ranks, sum) in
        [How::Itself, How::LeydenRun].into_iter().flat_map(|how| [(how, 1, 1), (how, 3, 6)])
    {
        let ended = run(how, "add", ranks);
        ended.expect(0, &[]);
        assert_eq!((ended.stdout, ended.stderr), (format!("sum {sum}\n"), String::new()));
    }
}

#[test]
fn a_rank_that_crashes_is_named_with_its_signal() {
    for (words, signal, last) in [
        ("segv", "SIGSEGV", ""),
        ("overflow", "SIGABRT", "has overflowed its stack"),
        ("abort", "SIGABRT", ""),
    ] {
        let ended = run(How::Itself, words, 3);
        let cause = format!("cause           killed by {signal}\n");
        ended.expect(1, &["Error: error[D0105]: rank 1 died", "[rank 2] Error: error[D0105]", &cause, last]);
        assert_eq!(one_space(&ended.stderr).matches(&one_space(&cause)).count(), 2, "{}", ended.stderr);
        // How it died the launcher alone knows.
        let ended = run(How::LeydenRun, words, 3);
        let line = format!("leyden: rank 1 was killed by {signal}\n");
        ended.expect(102, &[&line, "[rank 2] Error: error[D0105]: rank 1 died", last]);
        assert_eq!(ended.stderr.matches("error[D0105]: rank 1 died").count(), 2, "{}", ended.stderr);
    }
    // Of a world of one the system tells.
    assert_eq!(run(How::Itself, "segv", 1).status.signal(), Some(libc::SIGSEGV));
    run(How::LeydenRun, "segv", 1).expect(102, &["leyden: rank 0 was killed by SIGSEGV"]);
}

#[test]
fn a_rank_that_exits_is_named_with_its_code() {
    run(How::Itself, "exit", 3).expect(1, &["[rank 2] Error: error[D0105]", "exited with code 7"]);
    run(How::LeydenRun, "exit", 3)
        .expect(7, &["leyden: rank 1 exited with code 7", "[rank 2] Error: error["]);
    run(How::Itself, "exit", 1).expect(7, &[]);
    run(How::LeydenRun, "panic", 3).expect(101, &["leyden: rank 1 exited with code 101", "[rank 1] meant"]);
}

#[test]
fn a_rank_that_the_kernel_kills_for_memory_is_told_as_such() {
    let Some(group) = MemoryGroup::new() else {
        eprintln!("skipped: no control group with a limit on memory can be made here");
        return;
    };
    for (how, code) in [(How::Itself, 1), (How::LeydenRun, 102)] {
        // Before the first one has given its memory back the kernel may look for another, which is to be none of these.
        let spare = "echo -1000 2>/dev/null > /proc/self/oom_score_adj";
        let enter = format!("{spare}; echo $$ > '{}'", group.0.join("cgroup.procs").display());
        let ended = Program::start(how, "take", 3, &enter).end();
        let words = [
            "killed by SIGKILL (the kernel's out-of-memory killer, most likely)",
            "error[D0105]: rank 1 died",
        ];
        ended.expect(code, &words);
    }
}

#[test]
fn a_rank_that_has_locked_itself_out_is_shown_in_its_futex() {
    for how in BOTH {
        let words = [
            "warning: rank 0 waits for rank 1",
            "error[D0107]: rank 1 does not come",
            "it is           waiting in futex",
        ];
        run(how, "mutex", 3).expect(1, &words);
    }
}

#[test]
fn a_loaders_worker_that_dies_or_blocks_is_named_with_what_it_was_at() {
    for how in BOTH {
        let ended = run(how, "loader-dies", 3);
        let words = [
            "[rank 1] Error: error[L0904]: a worker process died",
            "killed by SIGABRT",
            "sample    5",
            "worker    0 of 1, pid ",
        ];
        ended.expect(1, &words);
        // The others know, and from what where somebody watches.
        let others = one_space(&ended.stderr).matches("ranks 0, 2 in barrier(\"epoch end\")").count();
        assert_eq!(others, 2, "{}", ended.stderr);
        let ended = run(how, "loader-blocks", 3);
        let words = [
            "[rank 1] leyden: warning: leyden data 0 (pid ",
            "is in `get` of sample 5 (batch 2, epoch 0)",
            "error[D0107]: rank 1 does not come",
        ];
        ended.expect(1, &words);
    }
}

#[test]
fn when_leyden_run_is_killed_so_are_all_ranks() {
    let mut program = Program::start(How::LeydenRun, "wait", 3, "");
    program.await_lines(3, "ready");
    // The launcher, a guard for each rank, and the ranks.
    assert_eq!(program.processes().len(), 7, "{:?}", program.processes());
    program.signal(libc::SIGKILL);
    let ended = program.end();
    assert_eq!(ended.status.signal(), Some(libc::SIGKILL));
}

#[test]
fn the_first_signal_is_the_ranks_own_and_the_second_is_the_end() {
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut program = Program::start(How::LeydenRun, "note-signals", 3, "");
        program.await_lines(3, "ready");
        program.signal(signal);
        program.await_lines(3, "noted");
        program.signal(signal);
        program.end().expect(code, &["second signal: stopped at once"]);
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_others_within_the_grace() {
    let mut program = Program::start(How::LeydenRun, "wait", 3, "");
    program.await_lines(3, "ready");
    let mut ranks = program.processes().into_iter().filter(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|&byte| byte == 0).next().is_some_and(|name| name.ends_with(b"/examples/failing_ranks"))
    });
    let rank = ranks.next_back().unwrap();
    assert!(Command::new("sh").args(["-c", &format!("kill -9 {rank}")]).status().unwrap().success());
    program.end().expect(102, &["was killed by SIGKILL", "has not ended within 1 s, and is killed"]);
}

#[test]
fn limits_that_are_too_low_are_named_with_what_is_needed_and_the_cure() {
    for (how, few) in [(How::Itself, 1), (How::LeydenRun, 96)] {
        let words = [
            "error[D0206]: too few files may be open",
            "ranks   3",
            "needed  2",
            "limit   16 (`ulimit -n`)",
            "fix: raise it",
        ];
        Program::start(how, "add", 3, "ulimit -n 16").end().expect(few, &words);
        let words = [
            "error[P0201]",
            "needed  ",
            "limit   512 bytes (RLIMIT_FSIZE)",
            "fix: lift it with `ulimit -f unlimited`",
        ];
        Program::start(how, "add", 3, "ulimit -f 1").end().expect(1, &words);
        let words = ["error[P0203]", "needed  ", "(RLIMIT_AS)", "fix: lift it with `ulimit -v unlimited`"];
        Program::start(how, "add", 3, "ulimit -v 20000").end().expect(1, &words);
    }
    // What is said to be enough is.
    for (how, few) in [(How::Itself, 24), (How::LeydenRun, 26)] {
        Program::start(how, "add", 3, &format!("ulimit -n {few}")).end().expect(0, &[]);
    }
}

/// A control group of 200 MB, of whichever version there is; its end removes it.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = |start: &str| {
            own.lines().find_map(|line| line.split_once(start)?.1.strip_prefix('/').map(str::to_owned))
        };
        let version_1 = path(":memory:")
            .map(|path| (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"));
        let version_2 = path("0::").map(|path| (Path::new("/sys/fs/cgroup").join(path), "memory.max"));
        version_1.into_iter().chain(version_2).find_map(|(own, limit)| {
            // In a container the path may be the host's.
            let own =
                if own.exists() { own } else { own.ancestors().find(|above| above.exists())?.to_owned() };
            let group = own.join(format!("leyden-rows-{}", std::process::id()));
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            let limited = fs::write(group.0.join(limit), "200000000");
            let swap = fs::write(group.0.join("memory.swap.max"), "0");
            drop(swap);
            limited.ok().map(|()| group)
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let began = Instant::now();
        while fs::remove_dir(&self.0).is_err() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The same with one space for several: how wide columns are depends on what else is told. Ends of lines stay.
fn one_space(text: &str) -> String {
    text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
