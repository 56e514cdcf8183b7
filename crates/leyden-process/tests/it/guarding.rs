//! Other programs under guard.

use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leyden_process::Result;
use leyden_process::codes::GUARDED;
use leyden_process::guarded::Guarded;
use leyden_process::spawn::{Job, Parent, Received, SpawnOptions};

use crate::support::{LONG, eventually, is_alive};

#[test]
fn a_guarded_program_is_used_like_any_other() {
    let mut program =
        Guarded::spawn(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    assert!(program.wait(Duration::from_millis(1)).unwrap().is_none());
    program.stdin.take().unwrap().write_all(b"there and back").unwrap();
    let mut text = String::new();
    program.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "there and back");
    assert_eq!(program.wait(LONG).unwrap().unwrap().code(), Some(0));

    let mut program = Guarded::spawn(Command::new("sh").args(["-c", "kill -SEGV $$"])).unwrap();
    assert_eq!(program.wait(LONG).unwrap().unwrap().signal(), Some(libc::SIGSEGV));
}

#[test]
fn a_program_that_is_not_there_is_named_and_the_command_can_be_used_again() {
    let mut command = Command::new("no-such-program");
    let error = Guarded::spawn(&mut command).unwrap_err();
    assert_eq!((error.code(), error.place("program")), (GUARDED, Some("no-such-program")));
    let mut command = Command::new("true");
    for _ in 0..2 {
        assert!(Guarded::spawn(&mut command).unwrap().wait(LONG).unwrap().unwrap().success());
    }
}

/// A shell that has started another program and waits for it, and that other program.
fn two_programs() -> (Guarded, i32) {
    let script = "sleep 1000 & echo $!; trap '' TERM; wait; wait";
    let mut program = Guarded::spawn(Command::new("sh").args(["-c", script]).stdout(Stdio::piped())).unwrap();
    let mut text = String::new();
    let mut byte = [0];
    while program.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        text.push(byte[0] as char);
    }
    (program, text.parse().unwrap())
}

#[test]
fn a_dropped_one_is_gone_with_what_it_started() {
    let (program, other) = two_programs();
    let pid = program.pid();
    assert!(is_alive(pid) && is_alive(other));
    let start = Instant::now();
    drop(program);
    assert!(start.elapsed() < Duration::from_secs(3));
    for pid in [pid, other] {
        eventually("both to be gone", || !is_alive(pid));
    }
    let (mut program, other) = two_programs();
    program.kill();
    assert_eq!(program.wait(LONG).unwrap().unwrap().signal(), Some(libc::SIGKILL));
    eventually("the other to be gone", || !is_alive(other));
}

fn guards_in_a_worker(_: (), parent: Parent) -> Result<()> {
    let (program, other) = two_programs();
    parent.send(format!("{} {other}", program.pid()).as_bytes())?;
    std::thread::sleep(LONG);
    drop(program);
    Ok(())
}

#[test]
fn programs_of_a_worker_die_with_it_although_they_are_in_another_group() {
    let mut child = Job::new(guards_in_a_worker, &()).unwrap().spawn(&SpawnOptions::default()).unwrap();
    let Received::Message(pids) = child.recv(LONG).unwrap() else { panic!() };
    let pids = String::from_utf8(pids).unwrap();
    let pids: Vec<i32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    // SAFETY: kill takes numbers.
    unsafe { libc::kill(child.pid(), libc::SIGKILL) };
    eventually("the programs to be gone", || pids.iter().all(|&pid| !is_alive(pid)));
}
