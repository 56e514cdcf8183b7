//! What is too long for the tests: `cargo xtask soak [MINUTES]` repeats those that depend on chance, with another seed
//! each time, until the time is over or one fails.
#![forbid(unsafe_code)]

use std::env;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What is repeated: in words, and as arguments of `cargo test`.
const ROWS: &[(&str, &[&str])] = &[
    (
        "workers killed at random, loaders that come and go",
        &["-p", "leyden-data", "--test", "it", "--", "chaos"],
    ),
    ("workers that die, in each way", &["-p", "leyden-data", "--test", "it", "--", "deaths"]),
    ("damaged files and messages", &["-p", "leyden-data", "--lib", "--", "damage", "garbled"]),
    (
        "eight ranks for a minute, which raise no alarm",
        &["-p", "leyden-comm", "--test", "it", "--", "more_ranks_than_cores"],
    ),
    (
        "ranks that fail, in each way, and some that do not",
        &["-p", "leyden-comm", "--test", "it", "--", "watching", "failing"],
    ),
    ("processes that start and end", &["-p", "leyden-process", "--test", "it"]),
    ("trainings in which something goes wrong", &["--test", "hangbench"]),
    ("two hundred starts", &["-p", "leyden-process", "--test", "many"]),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let minutes = match arguments[..] {
        ["soak"] => Some(10),
        ["soak", minutes] => minutes.parse().ok(),
        _ => None,
    };
    let Some(minutes) = minutes else {
        eprintln!("usage: cargo xtask soak [MINUTES]");
        return ExitCode::from(2);
    };
    soak(Duration::from_secs(60 * minutes))
}

/// Whole rounds of all rows, at least one.
fn soak(time: Duration) -> ExitCode {
    let began = Instant::now();
    let mut spent = vec![Duration::ZERO; ROWS.len()];
    let mut rounds = 0;
    while rounds == 0 || began.elapsed() < time {
        for ((words, arguments), spent) in ROWS.iter().zip(&mut spent) {
            let start = Instant::now();
            let test = Command::new(env!("CARGO"))
                .args(["test", "--release", "--quiet"])
                .args(*arguments)
                .env("LEYDEN_SEED", rounds.to_string())
                .env("LEYDEN_SOAK_SECONDS", "60")
                .stdin(Stdio::null())
                .output();
            match test {
                Ok(output) if output.status.success() => *spent += start.elapsed(),
                Ok(output) => {
                    eprintln!(
                        "{}{}",
                        String::from_utf8_lossy(&output.stdout),
                        String::from_utf8_lossy(&output.stderr)
                    );
                    eprintln!(
                        "failed in round {rounds}: {words} (LEYDEN_SEED={rounds}, cargo test {arguments:?})"
                    );
                    return ExitCode::FAILURE;
                }
                Err(error) => {
                    eprintln!("cargo could not be started: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        rounds += 1;
        println!("round {rounds}: passed, {:.0} s", began.elapsed().as_secs_f64());
    }
    println!("\n{rounds} rounds in {:.0} s, none failed", began.elapsed().as_secs_f64());
    for ((words, _), spent) in ROWS.iter().zip(spent) {
        println!("  {words}: {:.1} s a round", spent.as_secs_f64() / f64::from(rounds));
    }
    ExitCode::SUCCESS
}
