//! The program `leyden`.

#![forbid(unsafe_code)]

mod doctor;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Says what a launch from here would find: the launcher of this process, the way between ranks, limits
    Doctor,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Action::Run(run) => run.run(),
        Action::Doctor => doctor::doctor(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::from(error.exit_code())
        }
    }
}
