//! Processes that run `main` too, and the one that outlives its parent. The first test here was written before anything
//! else: a program that starts itself, and whose `main` runs there, takes the machine down without it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::programs::{killed, output, program};
use crate::support::{eventually, is_alive};

#[test]
fn a_rank_starts_no_ranks_a_supervisor_nothing_else_and_a_worker_neither() {
    let (output, text) = output(Command::new(program()).arg("nested-ranks"));
    let expected = "rank: P0101 P0101 started started\n\
                    supervisor: started P0101 P0101 P0101\n\
                    worker: P0101 P0101 P0101 started\n\
                    children: 0\n";
    assert_eq!((output.status.code(), text.as_str()), (Some(0), expected));
}

#[test]
fn main_runs_once_in_each_rank_with_the_same_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = Command::new(program());
    let (output, text) = output(command.arg("ranks").arg(&log).current_dir(folder.path()));
    assert_eq!(output.status.code(), Some(0), "{text}");
    let there = folder.path().canonicalize().unwrap();
    let main = |name: &str| {
        format!(
            "main of {name}: Rank, None, {}, None, handed over\na worker from {name}, 0 cookies, fork: done\n",
            there.display()
        )
    };
    let ended = |code: i32, name: &str| {
        format!("Ended {{ cause: Exited({code}), stderr: [\"last words of {name}\"], error: None }}\n")
    };
    let expected = format!(
        "main of the starter: Main\n{}{}{}descriptors: 0, children: 0\n",
        main("a"),
        ended(11, "a"),
        ended(12, "bb")
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(std::fs::read_to_string(log).unwrap(), main("bb"));
    let forwarded = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(forwarded, "[a] last words of a\n[bb] last words of bb\n");
}

#[test]
fn ranks_their_workers_and_their_programs_die_with_a_starter_that_is_killed() {
    killed(&["rank-tree"], 8);
}

/// The program, and the numbers of its supervisor and of the rank that this one has started.
fn supervised(how: &str, report: &Path) -> (Child, [i32; 2]) {
    let mut program = Command::new(program())
        .args(["supervised", how])
        .arg(report)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    let pids: Vec<i32> = lines.take_while(|line| line != "ready").map(|pid| pid.parse().unwrap()).collect();
    (program, pids.try_into().unwrap())
}

#[test]
fn a_supervisor_outlives_its_parent_and_knows_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let killed = "Some(Signalled { number: 9, core_dumped: false })";
    for (how, reap, expected) in [
        ("killed", false, killed),
        ("killed", true, killed),
        ("exits", false, "Some(Exited(7))"),
        ("exits", true, "Some(Exited(7))"),
    ] {
        let (mut program, pids) = supervised(how, &report);
        if how == "killed" {
            assert!(pids.iter().all(|&pid| is_alive(pid)), "{how}");
            program.kill().unwrap();
        }
        if reap {
            program.wait().unwrap();
        }
        eventually("the report", || report.exists());
        assert!(pids.iter().all(|&pid| is_alive(pid)), "{how}");
        // Kernels before 6.15 do not keep what a parent has taken.
        let words = std::fs::read_to_string(&report).unwrap();
        assert!(words == expected || reap && words == "Some(Unknown)", "{how}, reaped {reap}: {words}");
        std::fs::remove_file(&report).unwrap();
        eventually("the supervisor and its rank to be gone", || pids.iter().all(|&pid| !is_alive(pid)));
        let mut text = String::new();
        std::io::Read::read_to_string(&mut program.stderr.take().unwrap(), &mut text).unwrap();
        assert_eq!(text, "the supervisor is heard\n", "{how}");
        program.wait().unwrap();
    }
}

#[test]
fn a_supervisor_that_hangs_is_ended_by_its_own_timer_with_its_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let (mut program, pids) = supervised("hangs", &report);
    program.kill().unwrap();
    let taken = eventually("both to be gone", || pids.iter().all(|&pid| !is_alive(pid)));
    assert!(report.exists() && taken > Duration::from_millis(250), "{taken:?}");
    program.wait().unwrap();
}

#[test]
fn a_supervisor_that_is_asked_to_stop_has_its_time_and_its_parent_lives() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let (mut program, pids) = supervised("asks", &report);
    eventually("the report", || report.exists());
    assert_eq!(std::fs::read_to_string(&report).unwrap(), "None");
    std::fs::remove_file(&report).unwrap();
    assert!(program.wait().unwrap().success());
    assert!(pids.iter().all(|&pid| !is_alive(pid)));
}
