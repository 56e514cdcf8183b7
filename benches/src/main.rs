//! Leyden beside its peers: `cargo run --release -p leyden-bench -- run trainer --json`.

use std::process::ExitCode;

fn main() -> ExitCode {
    leyden_bench::main()
}
