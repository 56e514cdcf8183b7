//! Children that are forked: by a zygote, or by this process where that is allowed.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use leyden_process::Result;
use leyden_process::codes::{ARGUMENT, FORK};
use leyden_process::spawn::{Child, Job, Parent, Received, SpawnOptions, Start};
use leyden_process::supervise::Cause;

use crate::support::{LONG, eventually, is_alive};

fn from_zygote(name: &str) -> SpawnOptions<'static> {
    SpawnOptions { start: Start::Zygote, ..SpawnOptions::named(name) }
}

fn text(child: &mut Child) -> String {
    match child.recv(LONG).unwrap() {
        Received::Message(message) => String::from_utf8(message).unwrap(),
        other => panic!("{other:?}: {:?}", child.ended(LONG)),
    }
}

/// Says what it got and what it is, and then does what it is told.
fn report(words: Vec<String>, mut parent: Parent) -> Result<()> {
    let name = std::fs::read_to_string("/proc/self/comm")?;
    let fds = parent.fds().len();
    // SAFETY: these have no preconditions.
    let (ours, leads) = unsafe { (libc::getppid(), libc::getpgid(0) == libc::getpid()) };
    parent.send(format!("{} {} {fds} {ours} {leads}", words.join(" "), name.trim()).as_bytes())?;
    match parent.recv(LONG)? {
        Received::Message(order) if order == b"panic" => panic!("as told"),
        Received::Message(order) if order == b"abort" => {
            eprintln!("aborts");
            // SAFETY: raise has no preconditions.
            unsafe { libc::raise(libc::SIGABRT) };
            Ok(())
        }
        _ => Ok(()),
    }
}

#[test]
fn a_zygotes_workers_are_our_children_with_argument_name_and_descriptors() {
    let null = File::open("/dev/null").unwrap();
    let job = Job::new(report, &vec!["so".to_owned(), "far".to_owned()]).unwrap();
    let mut children: Vec<Child> = (0..3)
        .map(|number| {
            let options =
                SpawnOptions { fds: vec![null.as_fd(); number], ..from_zygote(&format!("w{number}")) };
            job.spawn(&options).unwrap()
        })
        .collect();
    for (number, child) in children.iter_mut().enumerate() {
        assert_eq!(text(child), format!("so far w{number} {number} {} true", std::process::id()));
    }
    children[0].send(b"panic").unwrap();
    let error = children[0].ended(LONG).unwrap().error.unwrap();
    assert_eq!(error.reasons(), ["as told"]);
    children[1].send(b"abort").unwrap();
    let ended = children[1].ended(LONG).unwrap();
    assert!(matches!(ended.cause, Cause::Signalled { number: libc::SIGABRT, .. }), "{ended}");
    assert_eq!(ended.stderr, ["aborts"]);
    children.pop().unwrap().stop(LONG).into_result("w2").unwrap();
}

#[test]
fn workers_outlive_their_zygote_and_the_next_one_gets_a_new_zygote() {
    let job = Job::new(report, &Vec::new()).unwrap();
    let mut first = job.spawn(&from_zygote("first")).unwrap();
    text(&mut first);
    let zygote = zygote_named("first (zygote)");
    // SAFETY: kill takes numbers.
    unsafe { libc::kill(zygote, libc::SIGKILL) };
    eventually("the zygote to die", || !is_alive(zygote));
    let mut second = job.spawn(&from_zygote("second")).unwrap();
    text(&mut second);
    assert!(is_alive(first.pid()));
    let zygote = zygote_named("second (zygote)");
    drop(job);
    eventually("the zygote to go with its job", || !is_alive(zygote));
    for child in [first, second] {
        child.stop(LONG).into_result("it").unwrap();
    }
}

/// The child of this process with this command line.
fn zygote_named(name: &str) -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> = children
        .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    let found = pids.iter().copied().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(name))
    });
    found.unwrap_or_else(|| panic!("no {name} among {pids:?}"))
}

#[test]
fn an_argument_that_a_zygote_cannot_read_is_named() {
    #[derive(serde::Serialize)]
    struct Wrong;
    impl<'de> serde::Deserialize<'de> for Wrong {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("not today")
        }
    }
    let error = Job::new(|_: Wrong, _: Parent| Ok(()), &Wrong).unwrap().spawn(&from_zygote("w")).unwrap_err();
    assert_eq!(error.reasons(), ["not today"]);
    assert_eq!(error.place("process"), Some("w (zygote)"));
}

#[test]
fn a_fork_is_refused_while_there_are_threads_and_names_them() {
    let job = Job::in_memory(|_, _| Ok(()), Arc::new(())).unwrap();
    let options = SpawnOptions { start: Start::Fork, ..SpawnOptions::default() };
    let error = job.spawn(&options).unwrap_err();
    assert_eq!(error.code(), FORK);
    // The test runner's main thread.
    let threads = error.place("threads").unwrap();
    assert!(threads.split(", ").any(|name| name.starts_with("it-")), "{threads}");
    let error = job.spawn(&SpawnOptions::default()).unwrap_err();
    assert_eq!(error.code(), ARGUMENT);
}
