//! How long it takes until ranks have passed their first barrier, in ms: of a program that launches itself, from the start
//! of its process on; and of a function on fresh ranks, until all have ended. `cargo run --release -p leyden-comm --example
//! launch_times`, on a quiet machine.

use std::process::Command;
use std::time::Instant;

use leyden_comm::{Rank, Result, launch};
use leyden_process::futex;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["program", ranks] => program(ranks.parse()?),
        _ => measure(),
    }
}

/// Tells when rank 0 has passed the barrier, by the clock that all processes share.
fn program(ranks: usize) -> Result<()> {
    let mut rank = launch::world(ranks)?.join()?;
    rank.barrier("first")?;
    if rank.rank() == 0 {
        println!("{}", futex::now().as_nanos());
    }
    Ok(())
}

fn measure() -> Result<()> {
    for ranks in [1, 2, 4, 8] {
        let millis = (0..RUNS).map(|_| {
            let began = futex::now();
            let output =
                Command::new(std::env::current_exe()?).args(["program", &ranks.to_string()]).output()?;
            let passed: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
            Ok((passed as f64 - began.as_nanos() as f64) / 1e6)
        });
        print(&format!("launch::world({ranks})"), millis.collect::<Result<_>>()?);
    }
    for ranks in [1, 2, 4, 8] {
        let millis = (0..RUNS).map(|_| {
            let began = Instant::now();
            launch::spawn(ranks, |(), rank: &mut Rank| rank.barrier("first"), &())?;
            Ok(began.elapsed().as_secs_f64() * 1e3)
        });
        print(&format!("launch::spawn({ranks})"), millis.collect::<Result<_>>()?);
    }
    Ok(())
}

fn print(what: &str, mut millis: Vec<f64>) {
    millis.sort_by(f64::total_cmp);
    println!(
        "{what}: median {:.2} ms, least {:.2}, most {:.2}",
        millis[RUNS / 2],
        millis[0],
        millis[RUNS - 1]
    );
}

const RUNS: usize = 40;
