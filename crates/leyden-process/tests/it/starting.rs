//! What a started process finds: its argument, its descriptors, its environment, and nothing else.

use std::fs;
use std::time::Duration;

use leyden_process::codes::{ARGUMENT, MESSAGE_SIZE, PANICKED};
use leyden_process::spawn::{Child, Job, LARGEST_MESSAGE, Parent, Received, SpawnOptions};
use leyden_process::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::support::{LONG, eventually, is_alive};

fn message(child: &mut Child) -> String {
    match child.recv(LONG).unwrap() {
        Received::Message(message) => String::from_utf8(message).unwrap(),
        other => panic!("{other:?}: {:?}", child.ended(LONG)),
    }
}

#[derive(Serialize, Deserialize)]
struct Question {
    words: Vec<String>,
    count: usize,
}

fn answer(question: Question, parent: Parent) -> Result<()> {
    for _ in 0..question.count {
        parent.send(question.words.join(" ").as_bytes())?;
    }
    while let Received::Message(message) = parent.recv(LONG)? {
        parent.send(&message)?;
    }
    Ok(())
}

#[test]
fn many_children_of_one_job_get_its_argument_and_exchange_messages() {
    let question = Question { words: vec!["so".into(), "far".into()], count: 2 };
    let job = Job::new(answer, &question).unwrap();
    let mut children: Vec<Child> = (0..3).map(|_| job.spawn(&SpawnOptions::default()).unwrap()).collect();
    for child in &mut children {
        assert_eq!((message(child), message(child)), ("so far".into(), "so far".into()));
        child.send(&[b'x'; LARGEST_MESSAGE]).unwrap();
        assert_eq!(message(child).len(), LARGEST_MESSAGE);
        let error = child.send(&[0; LARGEST_MESSAGE + 1]).unwrap_err();
        assert_eq!(error.code(), MESSAGE_SIZE);
        assert_eq!(child.recv(Duration::from_millis(1)).unwrap(), Received::TimedOut);
    }
    for child in children {
        child.stop(LONG).into_result("answers").unwrap();
    }
}

#[test]
fn a_closure_that_captures_nothing_is_a_function() {
    let job =
        Job::new(|text: String, parent: Parent| parent.send(text.as_bytes()), &"text".to_owned()).unwrap();
    assert_eq!(message(&mut job.spawn(&SpawnOptions::default()).unwrap()), "text");
}

fn sum(bytes: Vec<u64>, parent: Parent) -> Result<()> {
    parent.send(bytes.iter().sum::<u64>().to_string().as_bytes())
}

#[test]
fn an_argument_of_a_hundred_megabytes_arrives_whole() {
    // Seven bytes each on the wire.
    let numbers: Vec<u64> = (0..15_000_000).map(|number| number + (1 << 45)).collect();
    let job = Job::new(sum, &numbers).unwrap();
    let mut child = job.spawn(&SpawnOptions::default()).unwrap();
    assert_eq!(message(&mut child), numbers.iter().sum::<u64>().to_string());
}

/// What a program finds: the cookie, and which signals are ignored and blocked.
fn ordinary_program() -> Vec<u8> {
    let script = "echo role=$LEYDEN_ROLE; grep SigIgn /proc/self/status; grep SigBlk /proc/self/status";
    std::process::Command::new("sh").args(["-c", script]).output().unwrap().stdout
}

#[test]
fn a_program_that_a_child_starts_is_an_ordinary_one() {
    let job = Job::new(|_: (), parent: Parent| parent.send(&ordinary_program()), &()).unwrap();
    let mut child = job.spawn(&SpawnOptions::default()).unwrap();
    let here = String::from_utf8(ordinary_program()).unwrap();
    assert_eq!(message(&mut child), here);
    assert!(here.starts_with("role=\nSigIgn:"), "{here}");
}

fn show_itself(_: (), parent: Parent) -> Result<()> {
    let command = fs::read_to_string("/proc/self/cmdline")?;
    let name = fs::read_to_string("/proc/self/comm")?;
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    // SAFETY: these have no preconditions.
    let leads = unsafe { libc::getpgid(0) == libc::getpid() };
    parent.send(format!("{command:?} {name:?} {thread} {leads}").as_bytes())
}

#[test]
fn a_child_is_known_by_its_name_and_leads_its_group() {
    let job = Job::new(show_itself, &()).unwrap();
    let mut child = job.spawn(&SpawnOptions::named("digits: worker 3")).unwrap();
    assert_eq!(message(&mut child), r#""digits: worker 3\0" "digits: worker \n" digits: worker 3 true"#);
}

#[test]
fn a_child_outlives_the_thread_that_asked_for_it() {
    let question = Question { words: Vec::new(), count: 0 };
    let job = Job::new(answer, &question).unwrap();
    let mut child = std::thread::spawn(move || job.spawn(&SpawnOptions::default()).unwrap()).join().unwrap();
    child.send(b"after the thread").unwrap();
    assert_eq!(message(&mut child), "after the thread");
}

struct Spoiled;

impl Serialize for Spoiled {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for Spoiled {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("never read"))
    }
}

#[test]
fn an_argument_that_cannot_be_read_back_is_named() {
    let job = Job::new(|_: Spoiled, _: Parent| Ok(()), &Spoiled).unwrap();
    let error =
        job.spawn(&SpawnOptions::default()).unwrap().ended(LONG).unwrap().into_result("x").unwrap_err();
    assert_eq!(error.code(), ARGUMENT);
    assert!(error.place("type").unwrap().ends_with("Spoiled"), "{error:?}");
    assert!(
        error.reasons().iter().any(|why| why.ends_with("the words of its error do not cross")),
        "{error:?}"
    );
}

#[test]
fn an_error_and_a_panic_arrive_with_all_their_parts() {
    fn fail(how: String, _: Parent) -> Result<()> {
        eprintln!("about to {how}");
        match how.as_str() {
            "panic" => panic!("sample {} is empty", 7),
            _ => bail!("cannot {how}"),
        }
    }
    let options = SpawnOptions { forward_stderr: false, ..SpawnOptions::named("failing") };
    let ended = |how: &str| {
        let mut child = Job::new(fail, &how.to_owned()).unwrap().spawn(&options).unwrap();
        child.ended(LONG).unwrap()
    };
    let error = ended("fly").error.unwrap();
    assert_eq!((error.code().id, error.what()), ("T0001", "cannot fly"));
    assert!(error.place("raised").unwrap().contains("starting.rs:"));
    let ended = ended("panic");
    assert_eq!(ended.stderr, ["about to panic"]);
    let error = ended.into_result("failing").unwrap_err();
    assert_eq!((error.code(), error.reasons()), (PANICKED, &["sample 7 is empty".to_owned()][..]));
    assert!(error.place("panicked").unwrap().contains("starting.rs:"), "{error:?}");
    assert_eq!(error.place("process"), Some("failing"));
}

#[test]
fn a_dropped_child_is_gone() {
    let question = Question { words: Vec::new(), count: 0 };
    let child = Job::new(answer, &question).unwrap().spawn(&SpawnOptions::default()).unwrap();
    let pid = child.pid();
    assert!(is_alive(pid));
    drop(child);
    eventually("the child to be gone", || !is_alive(pid));
}
