//! The program `leyden`.

#![forbid(unsafe_code)]

mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use leyden_comm::environment::Environment;

/// Leyden's helper: starts the ranks of a program
#[derive(Parser)]
#[command(name = "leyden", version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Starts a program several times, each as one rank of a world (as torchrun does, on this host)
    Run(run::Run),
    /// Says what the launcher of this process has told about its rank, and by which variables
    Doctor,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Action::Run(run) => run.run(),
        Action::Doctor => Environment::detect().map(|environment| {
            println!("{environment}");
            0
        }),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::from(error.exit_code())
        }
    }
}
