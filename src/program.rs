//! What `#[leyden::main]` does around `main`.

use std::any::Any;
use std::fmt::Debug;
use std::io::Write as _;
use std::process::ExitCode;

use leyden_process::signal::noted_exit_code;
use leyden_process::{Error, allocator};

/// Runs a program's `main`: raises glibc's allocator thresholds first, and ends with the exit code that
/// [`exit`](crate::exit) documents: that of a signal which stopped a run, else that of the error which `main` returns.
pub fn run<T: Finish>(main: fn() -> T) -> ExitCode {
    allocator::raise_thresholds();
    let code = main().finish();
    // What `main` met after an interrupted run is a consequence of it; a scheduler asks for the cause.
    noted_exit_code().map_or(code, ExitCode::from)
}

/// What `main` may return under `#[leyden::main]`.
pub trait Finish {
    /// Prints an error, if it is one, and gives the exit code.
    fn finish(self) -> ExitCode;
}

impl Finish for () {
    fn finish(self) -> ExitCode {
        ExitCode::SUCCESS
    }
}

impl Finish for ExitCode {
    fn finish(self) -> ExitCode {
        self
    }
}

impl<T: Finish, E: Debug + 'static> Finish for Result<T, E> {
    fn finish(self) -> ExitCode {
        match self {
            Ok(value) => value.finish(),
            Err(error) => {
                // Not `eprintln!`, which panics where nobody listens, and that would hide the exit code.
                // In one write: lines of other ranks come there too.
                let _ = std::io::stderr().write_all(format!("{error:?}\n").as_bytes());
                let ours = (&error as &dyn Any).downcast_ref::<Error>();
                ours.map_or(ExitCode::FAILURE, |error| ExitCode::from(error.exit_code()))
            }
        }
    }
}
