//! A process that Leyden started starts no others. Written before anything else in this folder, because a program that
//! starts itself without this check takes the machine down.

use std::process::Command;
use std::time::Duration;

use leyden_process::codes::NESTED;
use leyden_process::entry::{self, Role};
use leyden_process::spawn::{Job, Parent, Received, SpawnOptions};
use leyden_process::{Result, exit};

const LONG: Duration = Duration::from_secs(30);

fn try_to_nest(_: (), parent: Parent) -> Result<()> {
    assert_eq!(entry::role(), Role::Worker);
    let refused = match Job::new(try_to_nest, &()) {
        Ok(_) => "a job was made".to_owned(),
        Err(error) => error.code().to_string(),
    };
    parent.send(refused.as_bytes())?;
    // The error itself, to the parent.
    Job::new(try_to_nest, &())?.spawn(&SpawnOptions::named("nested")).map(drop)
}

#[test]
fn a_worker_refuses_to_start_workers_and_says_so() {
    let job = Job::new(try_to_nest, &()).unwrap();
    let mut child = job.spawn(&SpawnOptions::named("outer")).unwrap();
    assert_eq!(child.recv(LONG).unwrap(), Received::Message(b"P0101".to_vec()));
    let error = child.ended(LONG).unwrap().into_result("outer").unwrap_err();
    assert_eq!(error.code(), NESTED);
    assert_eq!(error.place("process"), Some("outer"));
}

#[test]
fn a_cookie_deeper_than_its_role_allows_ends_the_process_before_its_main() {
    let ranks: &[(&str, u8)] =
        if cfg!(leyden_portable) { &[] } else { &[("rank", 3), ("supervisor", 2), ("zygote", 4)] };
    for &(role, depth) in [("worker", 4), ("worker", 0), ("guard", 5)].iter().chain(ranks) {
        let (ours, theirs) = socket_pair();
        let output = Command::new("/proc/self/exe")
            .args(["--list"])
            .env("LEYDEN_ROLE", cookie_for(role, &theirs, depth))
            .stdin(theirs)
            .output()
            .unwrap();
        drop(ours);
        assert_eq!(output.status.code(), Some(exit::CONFIGURATION.into()), "{role} {depth}");
        assert!(output.stdout.is_empty(), "it has not reached `main`");
    }
}

#[test]
fn a_cookie_of_another_process_is_ignored_and_removed() {
    let (_ours, theirs) = socket_pair();
    for stale in [
        cookie_for("worker", &theirs, 1),
        cookie_for("rank", &theirs, 1),
        "worker:1:7:7".to_owned(),
        "nonsense".to_owned(),
    ] {
        let output = Command::new("/proc/self/exe")
            .args(["recursion::shows_its_environment", "--exact", "--ignored", "--nocapture"])
            .env("LEYDEN_ROLE", stale)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("role Main, cookie None"), "{text}");
    }
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn shows_its_environment() {
    println!("role {:?}, cookie {:?}", entry::role(), std::env::var_os("LEYDEN_ROLE"));
}

fn socket_pair() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    (ours.into(), theirs.into())
}

fn cookie_for(role: &str, stdin: &std::os::fd::OwnedFd, depth: u8) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let file = std::fs::File::from(stdin.try_clone().unwrap()).metadata().unwrap();
    format!("{role}:{depth}:{}:{}", file.dev(), file.ino())
}
