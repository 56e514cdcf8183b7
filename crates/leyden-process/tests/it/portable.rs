//! What the portable back end does otherwise: its pipes are the child's stdin and stdout, and some things it has not.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use leyden_process::Result;
use leyden_process::codes::NOT_HERE;
use leyden_process::spawn::{Job, Parent, Received, SpawnOptions, Start};

use crate::support::LONG;

fn show_descriptors(_: (), parent: Parent) -> Result<()> {
    println!("printed, and no frame");
    let mut open: Vec<String> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let target = fs::read_link(&path).ok()?.to_string_lossy().into_owned();
            // The folder that is being read is gone by now.
            let kind = target.split(":[").next()?.to_owned();
            (!target.contains("/fd")).then(|| format!("{} {kind}", path.file_name().unwrap().display()))
        })
        .collect();
    open.sort();
    parent.send(open.join(", ").as_bytes())
}

#[test]
fn a_child_has_its_pipes_and_no_other_descriptor_and_prints_to_stderr() {
    let null = File::open("/dev/null").unwrap();
    // Open in every program that this one starts by itself: they survive an exec.
    // SAFETY: dup takes and gives numbers; these two are never closed.
    let leaked = unsafe { [libc::dup(null.as_raw_fd()), libc::dup2(null.as_raw_fd(), 200)] };
    assert!(leaked.iter().all(|&fd| fd > 2));
    let options = SpawnOptions { forward_stderr: false, ..SpawnOptions::named("prints") };
    let mut child = Job::new(show_descriptors, &()).unwrap().spawn(&options).unwrap();
    let Received::Message(open) = child.recv(LONG).unwrap() else { panic!() };
    assert_eq!(String::from_utf8(open).unwrap(), "0 /dev/null, 1 pipe, 2 pipe, 3 pipe, 4 pipe");
    let ended = child.ended(LONG).unwrap();
    assert_eq!(ended.stderr, ["printed, and no frame"]);
    ended.into_result("prints").unwrap();
}

#[test]
fn what_it_does_not_have_is_refused_with_the_cure() {
    let job = Job::new(show_descriptors, &()).unwrap();
    let null = File::open("/dev/null").unwrap();
    let handed = SpawnOptions { fds: vec![null.as_fd()], ..SpawnOptions::default() };
    let zygote = SpawnOptions { start: Start::Zygote, ..SpawnOptions::default() };
    let fork = SpawnOptions { start: Start::Fork, ..SpawnOptions::default() };
    let errors = [
        job.spawn(&handed).unwrap_err(),
        job.spawn(&zygote).unwrap_err(),
        job.spawn(&fork).unwrap_err(),
        Job::in_memory(|_: Arc<()>, _: Parent| Ok(()), Arc::new(())).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), NOT_HERE, "{error:?}");
        assert!(error.hints().iter().any(|hint| hint.contains("Start::Exec")), "{error:?}");
    }
}
