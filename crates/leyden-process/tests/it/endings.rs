//! How started processes end, and what is known of it.

use std::time::{Duration, Instant};

use leyden_process::codes::DIED;
use leyden_process::spawn::{Child, Job, Parent, Received, SpawnOptions};
use leyden_process::supervise::{Cause, Ended, evidence, stop_all};
use leyden_process::{Result, bail};

use crate::support::{LONG, eventually, is_alive};

fn quietly(name: &str) -> SpawnOptions<'static> {
    SpawnOptions { forward_stderr: false, ..SpawnOptions::named(name) }
}

#[expect(clippy::disallowed_methods, reason = "one of the ends that are tested")]
fn end(how: String, parent: Parent) -> Result<()> {
    parent.send(b"a message before")?;
    eprintln!("first line\nit will {how}");
    match how.as_str() {
        "return" => {}
        "exit 0" => std::process::exit(0),
        "exit 3" => std::process::exit(3),
        "abort" => std::process::abort(),
        "segv" => {
            // SAFETY: none: the write is meant to kill this process.
            unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
        }
        "sigkill" => {
            // SAFETY: kill and getpid take and give numbers.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            std::thread::sleep(LONG);
        }
        // A thread of the user's that ends the process while the function is busy.
        "exit in a thread" => {
            std::thread::spawn(|| std::process::exit(4));
            std::thread::sleep(LONG);
        }
        _ => bail!("no such end: {how}"),
    }
    Ok(())
}

fn ended(how: &str) -> Ended {
    let mut child = Job::new(end, &how.to_owned()).unwrap().spawn(&quietly(how)).unwrap();
    let ended = child.ended(LONG).unwrap_or_else(|| panic!("{how}: {}", evidence(child.pid())));
    assert_eq!(child.recv(LONG).unwrap(), Received::Message(b"a message before".to_vec()), "{how}");
    assert_eq!(child.recv(LONG).unwrap(), Received::Closed, "{how}");
    assert!(!is_alive(child.pid()));
    ended
}

#[test]
fn each_end_has_its_exact_cause_and_the_last_lines() {
    let killed = |number| Cause::Signalled { number, core_dumped: false };
    let expected = [
        ("return", Cause::Done),
        ("exit 0", Cause::Exited(0)),
        ("exit 3", Cause::Exited(3)),
        ("exit in a thread", Cause::Exited(4)),
        ("abort", killed(libc::SIGABRT)),
        ("segv", killed(libc::SIGSEGV)),
        ("sigkill", killed(libc::SIGKILL)),
    ];
    for (how, cause) in expected {
        let ended = ended(how);
        let seen = match ended.cause {
            // Whether there is a core dump is the machine's business.
            Cause::Signalled { number, .. } => killed(number),
            seen => seen,
        };
        assert_eq!(seen, cause, "{how}: {ended}");
        assert_eq!(&ended.stderr[..2], ["first line".to_owned(), format!("it will {how}")], "{how}");
    }
}

#[test]
fn a_death_becomes_an_error_that_says_how() {
    let error = ended("sigkill").into_result("loader 3").unwrap_err();
    assert_eq!(error.code(), DIED);
    assert_eq!(
        format!("{error:?}"),
        "error[P0112]: a process died\n  process     loader 3\n  its stderr  first line\n       it will sigkill\n  \
         why: killed by SIGKILL"
    );
    let error = ended("exit 0").into_result("loader 3").unwrap_err();
    assert_eq!(error.reasons(), ["exited with code 0 without saying goodbye"]);
}

/// Starts a program, says its number, and is stuck: it neither reads messages nor minds SIGTERM.
fn stuck_with_a_program(_: (), parent: Parent) -> Result<()> {
    let program = std::process::Command::new("sleep").arg("1000").spawn()?;
    parent.send(program.id().to_string().as_bytes())?;
    loop {
        std::hint::spin_loop();
    }
}

fn stuck() -> (Child, i32) {
    let mut child = Job::new(stuck_with_a_program, &()).unwrap().spawn(&quietly("stuck")).unwrap();
    let Received::Message(program) = child.recv(LONG).unwrap() else { panic!() };
    (child, String::from_utf8(program).unwrap().parse().unwrap())
}

#[test]
fn stuck_children_are_ended_together_with_their_programs_within_one_deadline() {
    let (children, programs): (Vec<Child>, Vec<i32>) = (0..3).map(|_| stuck()).unzip();
    let pids: Vec<i32> = children.iter().map(Child::pid).collect();
    let start = Instant::now();
    let ended = stop_all(children, Duration::from_millis(300));
    // Three in turn would need as many graces; the rest is for a busy machine.
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(5));
    for ended in ended {
        assert_eq!(ended.cause, Cause::Signalled { number: libc::SIGKILL, core_dumped: false });
    }
    for pid in pids.into_iter().chain(programs) {
        eventually("all to be gone", || !is_alive(pid));
    }
}

#[test]
fn a_child_that_is_asked_to_stop_returns_at_once() {
    fn obey(_: (), parent: Parent) -> Result<()> {
        assert_eq!(parent.recv(LONG)?, Received::Closed);
        assert_eq!(parent.recv(LONG)?, Received::Closed);
        Ok(())
    }
    let children: Vec<Child> =
        (0..3).map(|_| Job::new(obey, &()).unwrap().spawn(&quietly("obeys")).unwrap()).collect();
    let start = Instant::now();
    for ended in stop_all(children, LONG) {
        ended.into_result("obeys").unwrap();
    }
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn programs_of_a_child_that_died_by_itself_die_too() {
    fn leave_a_program(_: (), parent: Parent) -> Result<()> {
        let program = std::process::Command::new("sleep").arg("1000").spawn()?;
        parent.send(program.id().to_string().as_bytes())?;
        std::process::exit(0)
    }
    let mut child = Job::new(leave_a_program, &()).unwrap().spawn(&quietly("careless")).unwrap();
    let Received::Message(program) = child.recv(LONG).unwrap() else { panic!() };
    let program: i32 = String::from_utf8(program).unwrap().parse().unwrap();
    // The program holds the stderr pipe open: its end must not be waited for.
    assert_eq!(child.ended(LONG).unwrap().cause, Cause::Exited(0));
    eventually("the program to be gone", || !is_alive(program));
}

#[test]
fn a_copy_of_the_socket_in_a_grandchild_hides_no_end() {
    fn leave_a_fork(_: (), parent: Parent) -> Result<()> {
        parent.send(b"before")?;
        // SAFETY: the new process only waits, in a session of its own, and ends without a destructor.
        unsafe {
            if libc::fork() == 0 {
                libc::setsid();
                libc::sleep(3);
                libc::_exit(0);
            }
        }
        std::process::exit(5)
    }
    let mut child = Job::new(leave_a_fork, &()).unwrap().spawn(&quietly("forks")).unwrap();
    let start = Instant::now();
    assert_eq!(child.recv(LONG).unwrap(), Received::Message(b"before".to_vec()));
    assert_eq!(child.recv(LONG).unwrap(), Received::Closed);
    assert_eq!(child.ended(LONG).unwrap().cause, Cause::Exited(5));
    assert!(start.elapsed() < Duration::from_secs(2), "it did not wait for the grandchild");
}

#[test]
fn a_stuck_child_can_be_dropped_quickly_and_looked_at_before() {
    let (child, program) = stuck();
    let evidence = evidence(child.pid());
    assert!(evidence.threads.iter().any(|(name, state)| name == "stuck" && *state == 'R'), "{evidence}");
    let start = Instant::now();
    let pid = child.pid();
    drop(child);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    for pid in [pid, program] {
        eventually("both to be gone", || !is_alive(pid));
    }
}

#[test]
fn a_child_that_is_stopped_is_seen_to_be_and_still_ends() {
    let (child, _) = stuck();
    // SAFETY: kill takes numbers.
    unsafe { libc::kill(child.pid(), libc::SIGSTOP) };
    eventually("the child to stop", || evidence(child.pid()).is_stopped());
    let ended = child.stop(Duration::ZERO);
    assert_eq!(ended.cause, Cause::Signalled { number: libc::SIGKILL, core_dumped: false });
}

#[test]
fn a_child_that_talks_without_being_read_still_ends() {
    fn talk(_: (), parent: Parent) -> Result<()> {
        for number in 0..200_u8 {
            parent.send(&vec![number; 60_000])?;
        }
        Ok(())
    }
    let mut child = Job::new(talk, &()).unwrap().spawn(&quietly("talks")).unwrap();
    assert_eq!(child.ended(LONG).unwrap().cause, Cause::Done);
    for number in 0..200_u8 {
        assert_eq!(child.recv(LONG).unwrap(), Received::Message(vec![number; 60_000]));
    }
    assert_eq!(child.recv(LONG).unwrap(), Received::Closed);
}
