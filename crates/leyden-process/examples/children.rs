//! Programs for the tests of started processes: a plain `main`, as anybody would write it, without a guard and without
//! an attribute. The first argument says what it does.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use leyden_process::guarded::Guarded;
use leyden_process::signal::Listener;
use leyden_process::spawn::{Child, Job, Parent, Received, SpawnOptions, Start};
use leyden_process::{Result, rank};

const LONG: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    if let Some(starter) = rank::joined() {
        return as_rank(&words, starter);
    }
    match words[..] {
        ["nested-ranks"] => nested_ranks(),
        ["ranks", log] => ranks(log),
        ["rank-tree"] => rank_tree(),
        #[cfg(not(leyden_portable))]
        ["supervised", how, report] => supervised::main(how, report),
        ["echo"] => echo(),
        ["replaced"] => replaced(),
        ["stuck", ref how @ ..] => stuck(how),
        ["forked"] => forked(),
        ["guarded"] => guarded(),
        ["interrupted"] => interrupted(),
        ["stalled"] => stalled(),
        ["hungry", group] => hungry(group),
        ["unconsumed"] => unconsumed(),
        ["sigchld-ignored"] => sigchld_ignored(),
        ["descriptors"] => descriptors(),
        _ => leyden_process::bail!("no such scenario: {words:?}"),
    }
}

/// What the ranks of a scenario do. The scenario's name shows that they have the arguments of their starter.
fn as_rank(words: &[&str], mut starter: Parent) -> Result<()> {
    match words {
        ["nested-ranks"] => starter.send(what_may_be_started(&starter).as_bytes()),
        ["ranks", _] => {
            let mut word = String::new();
            fs::File::from(starter.fds().remove(0)).read_to_string(&mut word)?;
            let (role, cookie) = (leyden_process::entry::role(), std::env::var_os("LEYDEN_ROLE"));
            let (folder, again) = (std::env::current_dir()?, rank::joined());
            let name = starter.name();
            println!("main of {name}: {role:?}, {cookie:?}, {}, {again:?}, {word}", folder.display());
            eprintln!("last words of {name}");
            // What it starts by itself is an ordinary program, and has no cookie either.
            let environment = std::process::Command::new("env").output()?;
            let cookies = String::from_utf8_lossy(&environment.stdout).matches("LEYDEN_ROLE").count();
            let mut worker = Job::new(answer, &"a worker".to_owned())?.spawn(&SpawnOptions::named(name))?;
            let answer = worker.recv(LONG)?.text();
            println!("{answer}, {cookies} cookies, fork: {}", fork_in_a_rank()?);
            std::process::exit(10 + name.len() as i32)
        }
        ["rank-tree"] => {
            let worker = Job::new(get_stuck, &"busy".to_owned())?.spawn(&SpawnOptions::named("busy"))?;
            let guarded = Guarded::spawn(std::process::Command::new("sleep").arg("1000"))?;
            let plain = std::process::Command::new("sleep").arg("1000").spawn()?;
            let pids = [std::process::id() as i32, worker.pid(), guarded.pid(), plain.id() as i32];
            starter.send(pids.map(|pid| pid.to_string()).join("\n").as_bytes())?;
            std::thread::sleep(LONG);
            Ok(())
        }
        _ => {
            std::thread::sleep(LONG);
            Ok(())
        }
    }
}

/// Rank's own threads are Leyden's: none stands in the way of a fork.
fn fork_in_a_rank() -> Result<String> {
    let job = Job::in_memory(|_, parent: Parent| parent.send(b"done"), std::sync::Arc::new(()))?;
    let options = SpawnOptions { start: Start::Fork, ..SpawnOptions::named("forked") };
    Ok(job.spawn(&options)?.recv(LONG)?.text())
}

/// The codes of what happens when a process starts a rank, a supervisor and a worker. Where one starts, it is ended again.
fn what_may_be_started(parent: &Parent) -> String {
    let word = |result: Result<Child>| result.map_or_else(|error| error.code().id, |_| "started").to_owned();
    let outlive = SpawnOptions {
        survives: Some(Duration::ZERO),
        ..SpawnOptions::named(format!("{} 1", parent.name()))
    };
    let job = || Job::new(answer, &String::new());
    let guarded = Guarded::spawn(&mut std::process::Command::new("true"));
    let guarded = guarded.map_or_else(|error| error.code().id, |_| "started");
    let starts = [
        word(rank::start(&SpawnOptions::named("too deep"))),
        word(job().and_then(|job| job.spawn(&outlive))),
        word(job().and_then(|job| job.spawn(&SpawnOptions::default()))),
    ];
    format!("{}: {} {guarded}", parent.name(), starts.join(" "))
}

/// Each role says what it may start; it never gets deeper than this.
fn nested_ranks() -> Result<()> {
    fn try_all(_: (), parent: Parent) -> Result<()> {
        parent.send(what_may_be_started(&parent).as_bytes())
    }
    let job = Job::new(try_all, &())?;
    let outlive = SpawnOptions { survives: Some(LONG), ..SpawnOptions::named("supervisor") };
    let started = [
        rank::start(&SpawnOptions::named("rank")),
        job.spawn(&outlive),
        job.spawn(&SpawnOptions::named("worker")),
    ];
    for child in started {
        println!("{}", child?.recv(LONG)?.text());
    }
    println!("children: {}", children());
    Ok(())
}

/// Two ranks run `main` once each; the second prints to a file.
fn ranks(log: &str) -> Result<()> {
    println!("main of the starter: {:?}", leyden_process::entry::role());
    let handed = tempfile::tempfile()?;
    (&handed).write_all(b"handed over")?;
    let open = || fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // The threads that serve all processes have started.
    drop(rank::start(&SpawnOptions { forward_stderr: false, ..SpawnOptions::named("first") })?);
    let before = open();
    let log = fs::File::create(log)?;
    for (name, stdout) in [("a", None), ("bb", Some(log.as_fd()))] {
        std::io::Seek::rewind(&mut &handed)?;
        let options = SpawnOptions { fds: vec![handed.as_fd()], stdout, ..SpawnOptions::named(name) };
        let mut rank = rank::start(&options)?;
        println!("{:?}", rank.ended(LONG).expect("it exits"));
    }
    drop(log);
    println!("descriptors: {}, children: {}", open() - before, children());
    Ok(())
}

/// Two ranks, each with a worker, a program under guard and one without; prints all their numbers and waits to be killed.
fn rank_tree() -> Result<()> {
    let mut ranks = [rank::start(&SpawnOptions::named("a"))?, rank::start(&SpawnOptions::named("b"))?];
    for rank in &mut ranks {
        println!("{}", rank.recv(LONG)?.text());
    }
    println!("ready");
    std::thread::sleep(LONG);
    Ok(())
}

/// A process that outlives this one, and says how this one ended.
#[cfg(not(leyden_portable))]
mod supervised {
    use super::*;
    use leyden_process::watch::Watched;

    pub(super) fn main(how: &str, report: &str) -> Result<()> {
        let survives = if how == "hangs" { Duration::from_millis(300) } else { LONG };
        let own = Watched::this()?;
        let options = SpawnOptions {
            fds: vec![own.as_fd()],
            survives: Some(survives),
            ..SpawnOptions::named("supervisor")
        };
        let mut child = Job::new(supervise, &[how.to_owned(), report.to_owned()])?.spawn(&options)?;
        println!("{}\n{}\nready", child.pid(), child.recv(LONG)?.text());
        match how {
            "exits" => std::process::exit(7),
            "asks" => {
                child.ask_to_stop();
                assert_eq!(child.ended(LONG).expect("it finishes").to_string(), "returned");
            }
            _ => std::thread::sleep(LONG),
        }
        Ok(())
    }

    fn supervise([how, report]: [String; 2], mut parent: Parent) -> Result<()> {
        let watched = Watched::from_fd(parent.fds().remove(0))?;
        let rank = rank::start(&SpawnOptions::named("rank"))?;
        parent.send(rank.pid().to_string().as_bytes())?;
        while parent.recv(LONG)? != Received::Closed {}
        let patience = if how == "asks" { Duration::ZERO } else { LONG };
        let ended = watched.wait(patience);
        fs::write(format!("{report}.new"), format!("{ended:?}"))?;
        fs::rename(format!("{report}.new"), &report)?;
        eprintln!("the supervisor is heard");
        // It goes on when the report is taken away; unless it hangs.
        while how == "hangs" || fs::exists(&report)? {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(rank);
        Ok(())
    }
}

/// Starts one worker and prints what it answers. `main` says that it ran.
fn echo() -> Result<()> {
    println!("main");
    let mut child = Job::new(answer, &"hello".to_owned())?.spawn(&SpawnOptions::named("echo"))?;
    if let Received::Message(message) = child.recv(LONG)? {
        println!("{}", String::from_utf8_lossy(&message));
    }
    child.ended(LONG).expect("it returns").into_result("echo")
}

fn answer(text: String, parent: Parent) -> Result<()> {
    parent.send(format!("{text} from {}", parent.name()).as_bytes())
}

/// Its file is replaced while it runs, as `cargo build` does.
fn replaced() -> Result<()> {
    let path = std::env::current_exe()?;
    fs::remove_file(&path)?;
    fs::write(&path, "#!/bin/sh\necho another program\n")?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    echo()
}

/// Starts a worker for each way to be stuck, prints their numbers, and waits to be killed.
fn stuck(how: &[&str]) -> Result<()> {
    let children = how
        .iter()
        .map(|&how| {
            let (start, how) = match how.split_once(' ') {
                Some(("zygote's", how)) => (Start::Zygote, how),
                Some(("forked", how)) => (Start::Fork, how),
                _ => (Start::Exec, how),
            };
            let options = SpawnOptions { start, ..SpawnOptions::named(how) };
            let mut child = Job::new(get_stuck, &how.to_owned())?.spawn(&options)?;
            assert_eq!(child.recv(LONG)?, Received::Message(b"stuck".to_vec()));
            println!("{}", child.pid());
            Ok(child)
        })
        .collect::<Result<Vec<Child>>>()?;
    println!("ready");
    std::thread::sleep(LONG);
    drop(children);
    Ok(())
}

fn get_stuck(how: String, parent: Parent) -> Result<()> {
    // Both ends stay open: nobody will ever write.
    let (mut read, _write) = std::io::pipe()?;
    parent.send(b"stuck")?;
    match how.as_str() {
        "busy" => loop {
            std::hint::spin_loop();
        },
        "reading" => drop(read.read(&mut [0])),
        "sleeping" => std::thread::sleep(LONG),
        _ => leyden_process::bail!("no such way to be stuck: {how}"),
    }
    Ok(())
}

/// Starts a program that starts another one, prints both numbers, and waits to be killed.
fn guarded() -> Result<()> {
    let script = "sleep 1000 & echo $!; echo $$; echo ready; wait";
    let program = Guarded::spawn(std::process::Command::new("sh").args(["-c", script]))?;
    std::thread::sleep(LONG);
    drop(program);
    Ok(())
}

/// Two forks of a process with one thread: they share its memory, and neither holds what ties the other to it.
fn forked() -> Result<()> {
    print!("buffered, and written once");
    let words = std::sync::Arc::new(vec!["in", "memory"]);
    let own = std::process::id();
    let job = Job::in_memory(
        move |words: std::sync::Arc<Vec<&str>>, parent: Parent| {
            println!();
            // A program under guard needs threads of Leyden's, which a fork does not copy.
            let mut program = Guarded::spawn(&mut std::process::Command::new("true"))?;
            let program = program.wait(LONG)?.is_some_and(|status| status.success());
            parent.send(format!("{} {} {program}", words.join(" "), own == std::process::id()).as_bytes())?;
            std::thread::sleep(LONG);
            Ok(())
        },
        words,
    )?;
    let options = SpawnOptions { start: Start::Fork, ..SpawnOptions::named("forked") };
    let mut children = [job.spawn(&options)?, job.spawn(&options)?];
    for child in &mut children {
        println!("{:?}", child.recv(LONG)?.text());
    }
    let [first, second] = children;
    println!("{}", first.stop(Duration::ZERO));
    println!("{}", second.stop(Duration::ZERO));
    let serialised = Job::new(answer, &"serialised".to_owned())?;
    println!("{:?}", serialised.spawn(&options)?.recv(LONG)?.text());
    Ok(())
}

trait Text {
    fn text(&self) -> String;
}

impl Text for Received {
    fn text(&self) -> String {
        match self {
            Self::Message(message) => String::from_utf8_lossy(message).into_owned(),
            other => format!("{other:?}"),
        }
    }
}

/// Counts SIGINT here; the worker must not notice it.
fn interrupted() -> Result<()> {
    let listener = Listener::start();
    let mut child = Job::new(answer_slowly, &())?.spawn(&SpawnOptions::named("shielded"))?;
    println!("ready");
    while listener.received().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.send(b"alive?")?;
    match child.recv(LONG)? {
        Received::Message(message) => println!("{}", String::from_utf8_lossy(&message)),
        other => println!("{other:?}: {:?}", child.ended(LONG)),
    }
    Ok(())
}

fn answer_slowly(_: (), parent: Parent) -> Result<()> {
    parent.recv(LONG)?;
    parent.send(b"alive")
}

/// A worker whose start takes for ever: a constructor hangs.
fn stalled() -> Result<()> {
    // SAFETY: there is no other thread yet.
    unsafe { libc::setenv(c"LEYDEN_TEST_STALL".as_ptr(), c"1".as_ptr(), 1) };
    let options =
        SpawnOptions { hello_timeout: Duration::from_millis(500), ..SpawnOptions::named("stalled") };
    let error = Job::new(answer, &String::new())?.spawn(&options).expect_err("it never says hello");
    println!("{error:?}");
    println!("children: {}", children());
    Ok(())
}

#[used]
#[unsafe(link_section = ".init_array")]
static STALL: extern "C" fn() = stall;

extern "C" fn stall() {
    if std::env::var_os("LEYDEN_TEST_STALL").is_some() {
        eprintln!("a constructor hangs");
        std::thread::sleep(LONG);
    }
}

/// A process whose cookie nobody took: the fuse must end it before it starts anything.
fn unconsumed() -> Result<()> {
    let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?;
    let stdin = fs::File::from(stdin).metadata()?;
    let cookie = format!("worker:1:{}:{}\0", stdin.dev(), stdin.ino());
    // SAFETY: there is no other thread yet; the text ends with a zero.
    unsafe { libc::setenv(c"LEYDEN_ROLE".as_ptr(), cookie.as_ptr().cast(), 1) };
    println!("main");
    let job = Job::new(answer, &String::new());
    println!("not reached: {job:?}");
    Ok(())
}

/// The program has told the kernel to reap its children: what a child said itself is all that is known.
fn sigchld_ignored() -> Result<()> {
    // SAFETY: the disposition is one of the two constants.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let mut good = Job::new(answer, &String::new())?.spawn(&SpawnOptions::named("good"))?;
    println!("{}", good.ended(LONG).expect("it returns"));
    let mut bad =
        Job::new(|_: (), _: Parent| std::process::exit(3), &())?.spawn(&SpawnOptions::named("bad"))?;
    println!("{}", bad.ended(LONG).expect("it exits"));
    Ok(())
}

/// Joins a control group with little memory, and starts a worker that wants more.
fn hungry(group: &str) -> Result<()> {
    fs::write(format!("{group}/cgroup.procs"), std::process::id().to_string())?;
    let eat = |_: (), _: Parent| {
        let mut eaten = Vec::new();
        loop {
            eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
        }
    };
    let mut child = Job::new(eat, &())?.spawn(&SpawnOptions::named("hungry"))?;
    println!("{}", child.ended(LONG).expect("it is killed"));
    Ok(())
}

/// No descriptor is left: a refusal, nothing left behind, and again a worker when there are some.
fn descriptors() -> Result<()> {
    let job = Job::new(answer, &"hello".to_owned())?;
    // The threads that serve all processes have started.
    drop(job.spawn(&SpawnOptions::default())?);
    let open = || fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let before = open();
    let mut codes = Vec::new();
    for room in 0..12 {
        let mut hoard = Vec::new();
        set_limit(256);
        while let Ok(file) = fs::File::open("/dev/null") {
            hoard.push(file);
        }
        hoard.truncate(hoard.len() - room);
        let result = job.spawn(&SpawnOptions::default());
        codes.push(result.as_ref().map_or_else(|error| error.code().id, |_| "started"));
        if let (0, Err(error)) = (room, &result) {
            println!("{error:?}");
        }
        drop(result);
        drop(hoard);
        assert_eq!((open(), children()), (before, 0), "with room for {room}");
    }
    println!("{}", codes.join(" "));
    echo()
}

fn set_limit(most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: setrlimit reads the struct.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

fn children() -> usize {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let _ = std::io::stdout().flush();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .map(|text| text.split_whitespace().count())
        .sum()
}
