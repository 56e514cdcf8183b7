//! The founding programs: what froze, recursed or contended in Python, run as it stands.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A founding program, built by `cargo test --workspace`.
fn program(name: &str) -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let path = deps.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.is_file(), "{} is built by `cargo test --workspace`", path.display());
    path
}

/// Runs a program to its end, which must come within a minute.
fn run(name: &str, arguments: &[&str]) -> Output {
    let mut child = Command::new(program(name))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{name} does not end: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The processes that run `name`.
fn alive(name: &str) -> Vec<String> {
    let exe = program(name);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| std::fs::read_link(entry.path().join("exe")).is_ok_and(|found| found == exe))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Workers end with their program, not before it: within a moment.
fn assert_gone(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !alive(name).is_empty() {
        assert!(Instant::now() < deadline, "{name} left {:?}", alive(name));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_unguarded_main_runs_once_and_its_batches_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let mains = folder.path().join("mains");
    let output = run("unguarded_spawn", &[mains.to_str().unwrap()]);
    // The sum of the squares below 1000.
    let expected = "1000 samples, sum 332833500, made here: false, worker processes: ";
    assert!(stdout(&output).starts_with(expected), "{output:?}");
    let pids: Vec<String> = std::fs::read_to_string(&mains).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(pids.len(), 1, "`main` ran in {pids:?}");
    assert_gone("unguarded_spawn");
}

#[test]
fn a_hundred_rounds_of_workers_and_failures_leave_nothing() {
    let output = run("second_run", &[]);
    let text = stdout(&output);
    let rounds: Vec<&str> = text.lines().collect();
    assert_eq!(
        rounds[..7],
        [
            "None: 64 samples",
            "Error: T0001",
            "None: 64 samples",
            "Panic: L0201",
            "None: 64 samples",
            "Abort: L0905",
            "Dropped: 12 samples",
        ]
    );
    let (_, counts) = rounds[7].split_once("children: ").unwrap();
    let (before, after) = counts.split_once(" before, ").unwrap();
    assert_eq!(before, after.strip_suffix(" after").unwrap(), "{text}");
    assert_gone("second_run");
}

#[test]
fn a_port_bound_in_main_is_bound_once_and_no_worker_holds_it() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = stdout(&run("port_in_main", &[&free.to_string()]));
    assert!(text.contains(&format!("bound to 127.0.0.1:{free} while workers work")), "{text}");
    assert!(text.contains("sum 32640; the port is free again, with the workers alive"), "{text}");
    assert_gone("port_in_main");
}

#[test]
fn two_at_once_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let runs: Vec<_> = (0..2)
        .map(|number| {
            let path = folder.path().join(number.to_string());
            std::thread::spawn(move || {
                let output = run("unguarded_spawn", &[path.to_str().unwrap()]);
                (stdout(&output), std::fs::read_to_string(path).unwrap())
            })
        })
        .collect();
    let results: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
    let mains: BTreeSet<&str> = results.iter().flat_map(|(_, mains)| mains.lines()).collect();
    assert_eq!(mains.len(), 2);
    assert!(results.iter().all(|(text, _)| text.starts_with("1000 samples, sum 332833500")));
}
