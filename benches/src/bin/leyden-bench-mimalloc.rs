//! The same measurements with mimalloc: an allocator is chosen at link time, so it takes a program of its own.

use std::process::ExitCode;

leyden::mimalloc!();

fn main() -> ExitCode {
    leyden_bench::main()
}
