//! Programs for the tests of launched ranks; the first argument says which.

use std::io::Write as _;
use std::time::{Duration, Instant};

use leyden_comm::launch::{self, LaunchOptions};
use leyden_comm::{ReduceOp, Result};
use leyden_process::entry::{self, Role};
use leyden_process::signal::Listener;
use leyden_process::spawn::{Job, Parent, Received, SpawnOptions, Start};

const LONG: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["alone"] => alone(),
        ["again"] => again(),
        ["another-size"] => another_size(),
        ["other-ranks-ask-for-another-size"] => disagreeing(),
        ["elsewhere"] => elsewhere(),
        ["in-a-worker"] => in_a_worker(),
        ["forks"] => forks(),
        ["logs", folder] => logs(folder),
        ["wait"] => wait(None),
        ["wait-for-signal"] => wait(Some(Listener::start())),
        ["wait-for-signal-with-a-later-listener"] => wait_later(),
        ["wait-for-signal-with-a-foreign-handler"] => wait_with_a_foreign_handler(),
        ["ignore-signals"] => ignore_signals(),
        ["elsewhere-in-groups"] => elsewhere_in_groups(),
        ["leave-first"] => leave_first(),
        ["fail-unseen"] => fail_unseen(),
        ["compute-on"] => compute_on(),
        ["print", lines] => print(lines.parse()?),
        _ => leyden_process::bail!("no such scenario: {words:?}"),
    }
}

/// The whole of a launch, without a process.
fn alone() -> Result<()> {
    let world = launch::world(1)?;
    let mut rank = world.join()?;
    let mut numbers = [2.0_f32];
    rank.all_reduce(&mut numbers, ReduceOp::Mean)?;
    println!("{} of {}: {numbers:?}, {:?}", world.rank(), world.world_size(), world.logs());
    Ok(())
}

/// The world is joined three times, once with groups that had other ranks before.
fn again() -> Result<()> {
    let mut sums = Vec::new();
    for time in 0..3 {
        let mut rank = launch::world(3)?.join()?;
        // Ranks come at different times: who is not there yet has not left.
        std::thread::sleep(Duration::from_millis(30 * ((rank.rank() + time) % 3) as u64));
        let group = rank.new_group(if time % 2 == 0 { &[0, 1] } else { &[0, 2] })?;
        for _ in 0..=time {
            let mut one = [rank.rank() as f32 + 1.0];
            rank.all_reduce(&mut one, ReduceOp::Sum)?;
            sums.push(one[0]);
            if rank.rank() == 0 || rank.rank() == 1 + time % 2 {
                let mut one = [rank.rank() as f32];
                rank.all_reduce_in(group, &mut one, ReduceOp::Sum, "")?;
                sums.push(one[0]);
            }
        }
        let refused = launch::world(3)?.join().map(drop).unwrap_err();
        sums.push(if refused.code().id == "D0101" { -1.0 } else { f32::NAN });
    }
    println!("{sums:?}");
    Ok(())
}

fn another_size() -> Result<()> {
    let mut rank = launch::world(2)?.join()?;
    let error = launch::world(3).unwrap_err();
    rank.barrier("both have seen it")?;
    Err(error)
}

fn disagreeing() -> Result<()> {
    let size = if entry::role() == Role::Main { 2 } else { 3 };
    launch::world(size)?.join()?.barrier("start")
}

fn elsewhere() -> Result<()> {
    std::thread::spawn(|| launch::world(2).map(drop)).join().expect("no panic")
}

fn in_a_worker() -> Result<()> {
    let launch = |_: (), _: Parent| launch::world(2).map(drop);
    let mut worker = Job::new(launch, &())?.spawn(&SpawnOptions::named("worker"))?;
    worker.ended(LONG).expect("it returns").into_result("worker")
}

/// What a launch starts in a rank does not stand in the way of a fork.
fn forks() -> Result<()> {
    let mut rank = launch::world(2)?.join()?;
    let job = Job::in_memory(|_, parent: Parent| parent.send(b"forked"), std::sync::Arc::new(()))?;
    let options = SpawnOptions { start: Start::Fork, ..SpawnOptions::named("fork") };
    let answer = job.spawn(&options)?.recv(LONG)?;
    assert_eq!(answer, Received::Message(b"forked".to_vec()));
    rank.barrier("both have forked")?;
    println!("both have forked");
    Ok(())
}

fn logs(folder: &str) -> Result<()> {
    let options = LaunchOptions { folder: Some(folder.into()), ..LaunchOptions::default() };
    let world = launch::world_with(3, &options)?;
    println!("rank {}, {} threads", world.rank(), world.threads());
    world.join()?.barrier("all have printed")
}

/// Says that it waits, and waits for a signal, or for rank 0 to come.
fn wait(listener: Option<Listener>) -> Result<()> {
    let options = LaunchOptions { grace: Duration::from_secs(1), ..LaunchOptions::default() };
    let world = launch::world_with(3, &options)?;
    let mut rank = world.join()?;
    let own = rank.new_group(&[0])?;
    if world.rank() == 0 {
        println!("ready");
        std::io::stdout().flush()?;
    }
    if world.rank() == 0 || listener.is_some() {
        let end = Instant::now() + LONG;
        while Instant::now() < end {
            if let Some(signal) = listener.as_ref().and_then(Listener::received) {
                // At once, so that no other rank's line comes between.
                let line = format!("rank {} got {}\n", world.rank(), signal.name());
                std::io::stderr().write_all(line.as_bytes())?;
                std::process::exit(signal.exit_code().into());
            }
            std::thread::sleep(Duration::from_millis(1));
            // So that it notices that the world has failed.
            if world.rank() == 0 && listener.is_none() {
                rank.barrier_in(own, "alone")?;
            }
        }
    }
    rank.barrier("rank 0 comes")
}

/// The listener comes when the ranks are there, as that of a trainer does.
fn wait_later() -> Result<()> {
    launch::world_with(3, &LaunchOptions { grace: Duration::from_secs(1), ..LaunchOptions::default() })?;
    wait(Some(Listener::start()))
}

/// A handler that calls no other comes when the ranks are there.
fn wait_with_a_foreign_handler() -> Result<()> {
    let world =
        launch::world_with(3, &LaunchOptions { grace: Duration::from_secs(1), ..LaunchOptions::default() })?;
    let (send, received) = std::sync::mpsc::channel();
    ctrlc::set_handler(move || send.send(()).unwrap_or_default())?;
    world.join()?.barrier("all handlers are there")?;
    if world.rank() == 0 {
        // So long it may take until the launch has noticed.
        std::thread::sleep(Duration::from_secs(1));
        println!("ready");
    }
    received.recv_timeout(LONG)?;
    eprintln!("rank {} got it", world.rank());
    std::process::exit(130)
}

/// Each rank prints lines to stderr: a rank above 0 in pieces, as `eprintln!` does; rank 0, which nobody stands before, each by
/// one write. Then a long one, and one without an end.
fn print(lines: usize) -> Result<()> {
    let world = launch::world(4)?;
    let mut rank = world.join()?;
    rank.barrier("all at once")?;
    for line in 0..lines {
        match world.rank() {
            0 => std::io::stderr().write_all(format!("rank 0 line {line} of {lines}\n").as_bytes())?,
            number => eprintln!("rank {number} line {line} of {lines}"),
        }
    }
    rank.barrier("all have printed")?;
    if world.rank() == 3 {
        eprintln!("{}", "x".repeat(10_000));
        eprint!("no end");
    }
    Ok(())
}

/// Each rank notes signals and goes on; the grace is longer than any test.
fn ignore_signals() -> Result<()> {
    let world = launch::world_with(3, &LaunchOptions { grace: LONG, ..LaunchOptions::default() })?;
    let listener = Listener::start();
    world.join()?.barrier("all are there")?;
    if world.rank() == 0 {
        println!("ready");
    }
    let mut noted = false;
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        if listener.received().is_some() && !noted {
            noted = true;
            eprintln!("noted");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Ranks 0 and 1 have a group of their own, and never wait for rank 2, which dies.
fn elsewhere_in_groups() -> Result<()> {
    let mut rank = launch::world(3)?.join()?;
    let group = rank.new_group(&[0, 1])?;
    if rank.rank() == 2 {
        eprintln!("last words");
        std::process::exit(3);
    }
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        rank.barrier_in(group, "two are enough")?;
    }
    Ok(())
}

/// Rank 0 returns, and rank 2 goes on for ever.
fn leave_first() -> Result<()> {
    let options = LaunchOptions { grace: Duration::from_millis(300), ..LaunchOptions::default() };
    let world = launch::world_with(3, &options)?;
    world.join()?.barrier("all are there")?;
    if world.rank() == 2 {
        println!("goes on");
        std::thread::sleep(LONG);
    }
    Ok(())
}

/// Rank 1 fails when nobody waits for it.
fn fail_unseen() -> Result<()> {
    let world = launch::world(2)?;
    world.join()?.barrier("both are there")?;
    if world.rank() == 1 {
        eprintln!("last words");
        std::process::exit(3);
    }
    Ok(())
}

/// Rank 1 fails, and rank 0 computes for ever.
fn compute_on() -> Result<()> {
    let options = LaunchOptions { grace: Duration::from_millis(300), ..LaunchOptions::default() };
    let mut rank = launch::world_with(2, &options)?.join()?;
    rank.barrier("both are there")?;
    if rank.rank() == 1 {
        std::process::exit(3);
    }
    std::thread::sleep(LONG);
    rank.barrier("never")
}
