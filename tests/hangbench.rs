//! HangBench: programs that train on several ranks and in which something goes wrong. Each row is a contract: which
//! error, on which ranks, with which words, how soon, which exit code, and that nothing is left behind.
//!
//! Without arguments this program runs all rows and prints a table; `cargo test --release --test hangbench -- disk` runs
//! those whose names contain a word. A row is this program again, as `row NAME`: then its plain `main` builds a
//! `Trainer` and fits, as a user's does.

#[cfg(target_os = "linux")]
#[path = "hangbench/bench.rs"]
mod bench;
#[cfg(target_os = "linux")]
#[path = "hangbench/programs.rs"]
mod programs;
#[cfg(target_os = "linux")]
#[path = "hangbench/rows.rs"]
mod rows;
#[cfg(target_os = "linux")]
#[path = "hangbench/toys.rs"]
mod toys;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [row, name, ..] if row == "row" => programs::main(name, &words[2..]),
        _ => bench::main(&words),
    }
}

/// Several ranks need Linux.
#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}
