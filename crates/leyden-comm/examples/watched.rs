//! Programs for the tests of the watch; the first argument says which.
#![expect(clippy::disallowed_methods, reason = "ranks are to die here, in each way")]

use std::time::{Duration, Instant};

use leyden_comm::{Rank, ReduceOp, Result, launch};
use leyden_process::futex;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["steps", seconds] => steps(seconds.parse()?),
        ["killed"] => killed(),
        ["own-error", when] => own_error(when == "waited-for"),
        ["two-places"] => two_places(),
        ["long-operation"] => long_operation(),
        ["long-on-rank-zero"] => long_on_rank_zero(),
        ["slow-start"] => slow_start(),
        ["held"] => held(),
        ["dies-while-another-is-slow", how] => dies_while_another_is_slow(how),
        _ => leyden_process::bail!("no such scenario: {words:?}"),
    }
}

/// Limits that are a fifth of what they are by default, and less.
fn tight(rank: &mut Rank) {
    rank.set_limits(Duration::from_millis(300), Duration::from_millis(1500));
}

/// Short steps for some seconds of the clock.
fn steps(seconds: f64) -> Result<()> {
    let mut rank = launch::world(3)?.join()?;
    tight(&mut rank);
    rank.barrier("start")?;
    if rank.rank() == 0 {
        println!("ready");
    }
    let began = Instant::now();
    let mut numbers = [1.0_f32; 100];
    while !rank.agree_any(began.elapsed().as_secs_f64() > seconds, "over")? {
        std::thread::sleep(Duration::from_millis(1));
        rank.all_reduce(&mut numbers, ReduceOp::Mean)?;
    }
    Ok(())
}

/// Rank 1 is killed in its third step.
fn killed() -> Result<()> {
    let mut rank = launch::world(3)?.join()?;
    rank.barrier("start")?;
    rank.phase("training");
    for step in 0..5 {
        if rank.rank() == 1 && step == 2 {
            kill();
        }
        rank.all_reduce(&mut [1.0_f32; 10], ReduceOp::Sum)?;
    }
    Ok(())
}

/// Rank 1 has an error of its own, when rank 0 waits for it, or does not.
fn own_error(waited_for: bool) -> Result<()> {
    launch::threads(2, |rank| {
        rank.barrier("start")?;
        match (rank.rank(), waited_for) {
            (1, _) => {
                std::thread::sleep(Duration::from_millis(300));
                leyden_process::bail!("no such column")
            }
            (_, true) => rank.barrier("end"),
            (_, false) => Ok(()),
        }
    })
    .map(drop)
}

/// The same collective from either branch.
fn two_places() -> Result<()> {
    let mut rank = launch::world(2)?.join()?;
    rank.barrier("start")?;
    if rank.rank() == 0 {
        rank.all_reduce(&mut [1.0_f32], ReduceOp::Sum)
    } else {
        rank.all_reduce(&mut [2.0_f32], ReduceOp::Sum)
    }
}

fn long_operation() -> Result<()> {
    let mut rank = launch::world(3)?.join()?;
    rank.set_limits(Duration::from_millis(100), Duration::from_millis(400));
    rank.barrier("start")?;
    if rank.rank() == 1 {
        rank.long_op("checkpoint", Duration::from_secs(30), || std::thread::sleep(Duration::from_secs(2)));
    }
    rank.barrier("saved")
}

fn long_on_rank_zero() -> Result<()> {
    let mut rank = launch::world(3)?.join()?;
    rank.set_limits(Duration::from_millis(100), Duration::from_millis(400));
    rank.barrier("start")?;
    rank.on_rank_zero(|_| {
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })
}

/// A first step that takes long, as one that compiles does: a fiftieth of the times, and of the limits.
fn slow_start() -> Result<()> {
    let mut rank = launch::world(2)?.join()?;
    rank.set_limits(Duration::from_millis(100), Duration::from_millis(1200));
    std::thread::sleep(Duration::from_millis(200 * rank.rank() as u64));
    rank.barrier("first step")
}

/// Rank 1 takes longer than its limit, unless somebody is at it with a debugger.
fn held() -> Result<()> {
    let mut rank = launch::world(2)?.join()?;
    tight(&mut rank);
    rank.barrier("start")?;
    if rank.rank() == 0 {
        println!("ready");
    } else {
        std::thread::sleep(Duration::from_secs(4));
    }
    rank.barrier("end")
}

/// Rank 2 dies, rank 1 computes, rank 0 waits for both; says when, by the clock of all processes.
fn dies_while_another_is_slow(how: &str) -> Result<()> {
    let mut rank = launch::join()?;
    rank.barrier("start")?;
    match rank.rank() {
        0 => {
            let error = rank.barrier("end").err();
            println!("{}", futex::now().as_nanos());
            error.map_or(Ok(()), Err)
        }
        1 => {
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        }
        _ => {
            // Rank 0 sleeps by then, for rank 1.
            std::thread::sleep(Duration::from_millis(200));
            println!("{}", futex::now().as_nanos());
            match how {
                "killed" => kill(),
                "aborts" => std::process::abort(),
                _ => std::process::exit(3),
            }
        }
    }
}

fn kill() -> ! {
    let _ = std::process::Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
    unreachable!("it is dead")
}
