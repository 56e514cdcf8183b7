//! Whole programs that become ranks, from outside: what they say, how they end, and what is left of them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Far beyond anything that works; a hang is caught by it.
const LONG: Duration = Duration::from_secs(40);

/// A program of `examples/` that runs, with a mark in its environment and in that of all that it starts, and a folder for
/// its temporary files.
pub(crate) struct Program {
    pub(crate) child: Child,
    mark: String,
    folder: tempfile::TempDir,
}

/// How a program ended and what it said.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
    /// The files with the records of all ranks, and what is in them.
    pub(crate) records: Vec<(PathBuf, serde_json::Value)>,
}

impl Program {
    pub(crate) fn start(words: &str) -> Self {
        Self::start_with(words, &[])
    }

    /// The same with more variables in its environment.
    pub(crate) fn start_with(words: &str, variables: &[(&str, &str)]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut words = words.split(' ');
        let examples = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
        let program = examples.join(words.next().unwrap());
        let mark = format!("launching-{}-{}.", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(&program)
            .args(words)
            .env("LEYDEN_TEST", &mark)
            .env("TMPDIR", folder.path())
            .envs(variables.iter().copied())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} is built by `cargo test`: {error}", program.display()));
        Self { child, mark, folder }
    }

    /// All its processes, itself too, with their names.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let alive =
            |pid: &i32| !matches!(leyden_process::supervise::evidence(*pid).state, None | Some('Z' | 'X'));
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.windows(self.mark.len()).any(|part| part == self.mark.as_bytes())
            })
            .filter(alive)
            .map(|pid| (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()))
            .map(|(pid, name)| (pid, name.trim().to_owned()))
            .collect()
    }

    pub(crate) fn pid_of(&self, name: &str) -> i32 {
        let processes = self.processes();
        let found = processes.iter().find(|(_, theirs)| theirs == name);
        found.unwrap_or_else(|| panic!("{name} in {processes:?}")).0
    }

    pub(crate) fn wait_until_ready(&mut self) {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    pub(crate) fn signal(&self, pid: i32, signal: i32) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end, and until nothing is left of it.
    pub(crate) fn end(mut self) -> Ended {
        let start = Instant::now();
        let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = String::new();
                pipe.unwrap().read_to_string(&mut text).unwrap();
                text
            })
        };
        let stdout = read(self.child.stdout.take().map(|pipe| Box::new(pipe) as _));
        let stderr = read(self.child.stderr.take().map(|pipe| Box::new(pipe) as _));
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > LONG {
                let processes = self.processes();
                processes.iter().for_each(|&(pid, _)| self.signal(pid, 9));
                panic!("it hangs: {processes:?}, {}, {}", stdout.join().unwrap(), stderr.join().unwrap());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = start.elapsed();
        while !self.processes().is_empty() {
            assert!(start.elapsed() < LONG, "left behind: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(1));
        }
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        let logs: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let records = records_in(self.folder.path());
        // What is kept is named.
        for log in logs {
            assert!(stderr.contains(log.to_str().unwrap()), "{} is left behind: {stderr}", log.display());
        }
        Ended { status, stdout, stderr, took, records }
    }
}

/// The files with the records of all ranks in a folder and in those in it.
fn records_in(folder: &Path) -> Vec<(PathBuf, serde_json::Value)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let records = entries.flat_map(|path| {
        if path.is_dir() {
            return records_in(&path);
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(!name.ends_with(".partial"), "{name}");
        let read = |path: &Path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        name.ends_with(".json").then(|| (path.clone(), read(&path))).into_iter().collect()
    });
    records.collect()
}

pub(crate) fn run(words: &str) -> Ended {
    Program::start(words).end()
}

impl Ended {
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, stdout: &str, words: &[&str]) {
        let text = format!("{:?}\n{}\n{}", self.status, self.stdout, self.stderr);
        assert_eq!(self.status.code(), Some(code), "{text}");
        assert_eq!(self.stdout, stdout, "{text}");
        for word in words {
            assert!(self.says(word), "{word:?} is not in {text}");
        }
    }

    /// Whether these words are on its stderr, however they are aligned.
    pub(crate) fn says(&self, words: &str) -> bool {
        squeezed(&self.stderr).contains(&squeezed(words))
    }
}

/// Each line with one space where it had several.
fn squeezed(text: &str) -> String {
    let lines: Vec<String> =
        text.trim_end().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.join("\n")
}

#[test]
fn a_plain_main_launches_at_its_top_and_runs_once_in_each_rank() {
    let ended = run("launch_at_top");
    ended.expect(0, "rank 0 of 2: 24\n", &[]);
    let mut lines: Vec<_> = ended.stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[rank 1] main runs", "main runs"]);
}

#[test]
fn it_launches_two_hundred_times_two_at_once() {
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..100).for_each(|_| run("launch_at_top").expect(0, "rank 0 of 2: 24\n", &[])));
        }
    });
}

#[test]
fn a_constructor_launches_and_a_second_one_has_the_same_ranks() {
    run("launch_in_constructor").expect(0, "digits: 3 ranks\nletters: 3 ranks\n", &[]);
}

#[test]
fn a_world_is_joined_again_with_other_groups() {
    let times = [vec![6.0, 1.0], [6.0, 2.0].repeat(2), [6.0, 1.0].repeat(3)];
    let sums: Vec<f32> = times.into_iter().flat_map(|sums| sums.into_iter().chain([-1.0])).collect();
    run("ranks again").expect(0, &format!("{sums:?}\n"), &[]);
}

#[test]
fn one_rank_needs_no_process() {
    run("ranks alone").expect(0, "0 of 1: [2.0], None\n", &[]);
}

#[test]
fn another_size_is_refused_on_each_rank() {
    let ended = run("ranks another-size");
    ended.expect(
        1,
        "",
        &["error[D0202]: the world has another number of ranks", "[rank 1] Error: error[D0202]"],
    );
    let ended = run("ranks other-ranks-ask-for-another-size");
    let words = ["[rank 1] Error: error[D0202]", "asked for  3", "launched   2", "error[D0105]: rank 1 died"];
    ended.expect(1, "", &words);
}

#[test]
fn a_launch_elsewhere_is_refused_with_what_works_there() {
    let words = ["error[D0201]", "another thread than the one of `main`", "launch::spawn"];
    run("ranks elsewhere").expect(1, "", &words);
    run("ranks in-a-worker").expect(
        1,
        "",
        &["error[D0203]: a worker cannot launch ranks", "process  worker"],
    );
    let error = leyden_comm::launch::world(2).unwrap_err();
    assert_eq!(error.code().id, "D0201");
    // With one thread for all tests the harness runs them in that of `main`.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--test-threads=1", "--exact", "launching::launches_in_a_test", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn launches_in_a_test() {
    let error = leyden_comm::launch::world(2).unwrap_err();
    assert_eq!((error.code().id, error.reasons()[0].starts_with("this is a")), ("D0201", true), "{error:?}");
}

#[test]
fn ranks_can_fork() {
    run("ranks forks").expect(0, "both have forked\n", &[]);
}

#[test]
fn what_ranks_print_is_in_the_folder_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("logs/of-the-run");
    let words = format!("ranks logs {}", logs.display());
    let ended = run(&words);
    let threads = std::thread::available_parallelism().unwrap().get().div_euclid(3).max(1);
    ended.expect(0, &format!("rank 0, {threads} threads\n"), &[]);
    for rank in 1..3 {
        let log = fs::read_to_string(logs.join(format!("rank-{rank}.log"))).unwrap();
        assert_eq!(log, format!("rank {rank}, {threads} threads\n"));
    }
}

#[test]
fn a_full_disk_for_what_ranks_print_is_said_and_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    for rank in 1..3 {
        std::os::unix::fs::symlink("/dev/full", folder.path().join(format!("rank-{rank}.log"))).unwrap();
    }
    let ended = run(&format!("ranks logs {}", folder.path().display()));
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    for rank in 1..3 {
        let line = format!("leyden: what rank {rank} prints is lost from here on: ");
        assert_eq!(ended.stderr.matches(&line).count(), 1, "{}", ended.stderr);
    }
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    run("ranks logs /dev/null/x").expect(1, "", &["error[D0205]", "/dev/null/x", "LaunchOptions::folder"]);
}

#[test]
fn a_rank_that_ends_early_is_named_by_all_that_wait() {
    for (words, code, error) in [
        ("early_exit 1 0", 1, "error[D0104]: rank 1 has left"),
        ("early_exit 1 3", 1, "error[D0105]: rank 1 died"),
        ("early_exit 0 3", 3, "error[D0105]: rank 0 died"),
        // Its own code is 0, and two ranks have failed.
        ("early_exit 0 0", 102, "error[D0104]: rank 0 has left"),
    ] {
        let ended = run(words);
        let last = words.split(' ').nth(2).unwrap();
        let cause = format!("exited with code {last}");
        ended.expect(code, "", &[error, &cause, "barrier(\"epoch end\") at", "[rank 2] Error"]);
        assert!(ended.took < Duration::from_secs(4), "{words}: {:?}", ended.took);
    }
}

#[test]
fn a_rank_that_dies_is_named_with_its_cause_and_its_last_words() {
    for (rank, how, cause, status) in [
        (1, "panic", "exited with code 101", Some(1)),
        (1, "abort", "killed by SIGABRT", Some(1)),
        (1, "sigkill", "killed by SIGKILL", Some(1)),
        (0, "panic", "exited with code 101", Some(101)),
        (0, "abort", "killed by SIGABRT", None),
        (0, "sigkill", "killed by SIGKILL", None),
    ] {
        let ended = run(&format!("died_rank {rank} {how}"));
        let text = &ended.stderr;
        assert_eq!(ended.status.code(), status, "{rank} {how}: {text}");
        assert_eq!(ended.status.signal().is_some(), status.is_none(), "{rank} {how}: {text}");
        let waiting = if rank == 0 { "[rank 1] " } else { "" };
        for line in [
            format!("{waiting}Error: error[D0105]: rank {rank} died"),
            format!("[rank 2]   cause           {cause}\n"),
        ] {
            assert!(ended.says(&line), "{rank} {how}: {line:?} is not in {text}");
        }
        // The last words of rank 0 are on the terminal, which is not ours to read.
        if rank == 1 {
            assert!(ended.says(&format!("[rank 2] its stderr about to {how}")), "{how}: {text}");
        }
        assert!(ended.took < Duration::from_secs(4), "{rank} {how}: {:?}", ended.took);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_and_ended() {
    let ended = run("stuck_rank");
    let words = [
        "error[D0107]: rank 1 does not come",
        "rank 1 since    `make_dataset` at",
        "the other ranks have 500.0ms to end by themselves",
        "leyden: ended after their grace: rank 1",
    ];
    ended.expect(1, "", &words);
}

#[test]
fn a_barrier_on_one_side_is_named_with_both_places() {
    let words =
        ["error[D0103]", "one_sided_barrier.rs:8", "one_sided_barrier.rs:11", "[rank 1] Error: error[D0103]"];
    run("one_sided_barrier").expect(1, "", &words);
}

#[test]
fn when_rank_0_is_killed_the_others_are_told_by_what_and_end() {
    let mut program = Program::start("ranks wait");
    program.wait_until_ready();
    assert_eq!(program.processes().len(), 4, "{:?}", program.processes());
    program.child.kill().unwrap();
    let ended = program.end();
    assert_eq!(ended.status.signal(), Some(9));
    for rank in [1, 2] {
        for words in ["Error: error[D0105]: rank 0 died", "  cause           killed by SIGKILL"] {
            assert!(ended.says(&format!("[rank {rank}] {words}")), "{}", ended.stderr);
        }
    }
}

#[test]
fn when_the_supervisor_is_killed_all_ranks_end_and_rank_0_says_why() {
    let mut program = Program::start("ranks wait");
    program.wait_until_ready();
    program.signal(program.pid_of("leyden-supervis"), 9);
    let ended = program.end();
    ended.expect(1, "", &["error[D0110]: the process that watches the ranks is gone"]);
    assert!(ended.took < Duration::from_secs(4), "{:?}", ended.took);
}

#[test]
fn a_signal_reaches_all_ranks_whether_or_not_they_listen() {
    for (words, signal, code) in [
        ("ranks wait-for-signal", libc::SIGINT, Some(130)),
        ("ranks wait-for-signal", libc::SIGTERM, Some(143)),
        ("ranks wait-for-signal-with-a-later-listener", libc::SIGINT, Some(130)),
        ("ranks wait", libc::SIGINT, None),
        ("ranks wait", libc::SIGTERM, None),
    ] {
        let mut program = Program::start(words);
        program.wait_until_ready();
        program.signal(program.child.id() as i32, signal);
        let ended = program.end();
        assert_eq!(ended.status.code(), code, "{words} {signal}: {}", ended.stderr);
        if code.is_some() {
            let name = if signal == libc::SIGINT { "SIGINT" } else { "SIGTERM" };
            for rank in ["rank 0", "[rank 1] rank 1", "[rank 2] rank 2"] {
                assert!(ended.stderr.contains(&format!("{rank} got {name}\n")), "{}", ended.stderr);
            }
        } else {
            assert_eq!(ended.status.signal(), Some(signal), "{words}");
        }
        assert!(ended.took < Duration::from_secs(4), "{words} {signal}: {:?}", ended.took);
    }
}

#[test]
fn a_signal_reaches_all_ranks_also_where_the_program_has_a_handler_of_its_own() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut program = Program::start("ranks wait-for-signal-with-a-foreign-handler");
        program.wait_until_ready();
        program.signal(program.child.id() as i32, signal);
        let ended = program.end();
        assert_eq!(ended.status.code(), Some(130), "{signal}: {}", ended.stderr);
        for rank in ["rank 0", "[rank 1] rank 1", "[rank 2] rank 2"] {
            assert!(ended.stderr.contains(&format!("{rank} got it\n")), "{signal}: {}", ended.stderr);
        }
        assert!(ended.took < Duration::from_secs(4), "{signal}: {:?}", ended.took);
    }
}

#[test]
fn lines_of_ranks_that_print_at_once_are_whole_and_in_order() {
    const LINES: usize = 10_000;
    let ended = run(&format!("ranks print {LINES}"));
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let mut next = [0; 4];
    let mut others = Vec::new();
    for line in ended.stderr.lines() {
        let rank = (0..4).find(|rank| {
            let name = if *rank == 0 { String::new() } else { format!("[rank {rank}] ") };
            line == format!("{name}rank {rank} line {} of {LINES}", next[*rank])
        });
        match rank {
            Some(rank) => next[rank] += 1,
            None => others.push(line.trim_start_matches("[rank 3] ")),
        }
    }
    assert_eq!(next, [LINES; 4], "{others:?}");
    let (last, long) = others.split_last().unwrap();
    assert_eq!(*last, "no end");
    let long: Vec<&str> = long.iter().map(|piece| piece.trim_end_matches('…')).collect();
    assert_eq!((long.len(), long.concat()), (5, "x".repeat(10_000)));
}

#[test]
fn a_second_signal_ends_all_ranks_at_once() {
    let mut program = Program::start("ranks ignore-signals");
    program.wait_until_ready();
    program.signal(program.child.id() as i32, libc::SIGINT);
    let mut stderr = BufReader::new(program.child.stderr.take().unwrap());
    let mut noted = 0;
    while noted < 3 {
        let mut line = String::new();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0);
        noted += usize::from(line.ends_with("noted\n"));
    }
    program.signal(program.child.id() as i32, libc::SIGINT);
    program.child.stderr = Some(stderr.into_inner());
    let ended = program.end();
    assert_eq!(ended.status.code(), Some(130), "{}", ended.stderr);
    assert!(ended.took < Duration::from_secs(4), "{:?}", ended.took);
}

#[test]
fn ranks_that_never_wait_for_the_dead_one_learn_of_it_too() {
    let ended = run("ranks elsewhere-in-groups");
    let words = [
        "Error: error[D0105]: rank 2 died",
        "cause       exited with code 3",
        "its stderr  last words",
        "[rank 1] Error: error[D0105]: rank 2 died",
    ];
    ended.expect(1, "", &words);
}

#[test]
fn when_rank_0_returns_first_the_others_have_their_grace() {
    let ended = run("ranks leave-first");
    ended.expect(102, "", &["leyden: ended after their grace: rank 2", "what the ranks printed is in"]);
    let folder = ended.stderr.split("what the ranks printed is in ").nth(1).unwrap().trim();
    assert!(!Path::new(folder).exists(), "the test's folder is gone with it");
}

#[test]
fn a_rank_that_fails_unseen_is_in_the_exit_code() {
    run("ranks fail-unseen").expect(102, "", &["[rank 1] last words"]);
}

#[test]
fn a_rank_that_does_not_notice_a_failure_is_ended_after_the_grace() {
    let ended = run("ranks compute-on");
    let words = ["rank 1 exited with code 3", "rank 0 has not ended either, and is sent SIGTERM"];
    assert_eq!(ended.status.signal(), Some(libc::SIGTERM), "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in {}", ended.stderr);
    }
}
