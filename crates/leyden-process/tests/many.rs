//! Many starts in one process: nothing piles up. A test program of its own, because it counts.
#![cfg(target_os = "linux")]

use std::fs;
use std::time::{Duration, Instant};

use leyden_process::Result;
use leyden_process::spawn::{Job, Parent, SpawnOptions, Start};

#[path = "it/support.rs"]
mod support;
use support::{LONG, eventually, is_alive};

fn wait(_: (), parent: Parent) -> Result<()> {
    parent.recv(LONG).map(drop)
}

/// One test, because it counts what belongs to the whole process.
#[test]
fn two_hundred_starts_leave_nothing_and_take_milliseconds() {
    let job = Job::new(wait, &()).unwrap();
    for start in [Start::Exec, Start::Zygote] {
        let options = SpawnOptions { start, ..SpawnOptions::default() };
        // The threads that serve all processes, and the zygote.
        drop(job.spawn(&options).unwrap());
        let before = census();
        let measured = two_hundred(&job, &options);
        eventually("nothing to be left", || census() == before);
        for (what, mut times) in measured {
            times.sort();
            let (median, max) = (times[times.len() / 2], times[times.len() - 1]);
            println!("{start:?}, {what}: median {median:?}, max {max:?}");
            assert!(median < Duration::from_secs(1));
        }
    }
    drop(job);
    eventually("no child to be left", || census().2 == 0);
}

/// Starts, and ends in three ways; gives how long each took.
fn two_hundred(job: &Job, options: &SpawnOptions<'_>) -> [(&'static str, Vec<Duration>); 3] {
    let (mut starts, mut deaths, mut drops) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..200 {
        let start = Instant::now();
        let mut child = job.spawn(options).unwrap();
        starts.push(start.elapsed());
        let start = Instant::now();
        match round % 3 {
            0 => {
                // SAFETY: kill takes numbers.
                unsafe { libc::kill(child.pid(), libc::SIGKILL) };
                child.ended(LONG).unwrap();
                deaths.push(start.elapsed());
            }
            1 => child.stop(LONG).into_result("waits").unwrap(),
            _ => {
                let pid = child.pid();
                drop(child);
                drops.push(start.elapsed());
                assert!(!is_alive(pid));
            }
        }
    }
    [("until the first word", starts), ("death until it is noticed", deaths), ("drop", drops)]
}

/// How many descriptors and threads this process has, and children, dead or alive.
fn census() -> (usize, usize, usize) {
    let count = |path: &str| fs::read_dir(path).unwrap().count();
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .map(|text| text.split_whitespace().count())
        .sum();
    (count("/proc/self/fd"), count("/proc/self/task"), children)
}
