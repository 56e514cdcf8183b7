//! The row `comm/launch-2`: from the start of a command until the two ranks that it becomes have met, beside torchrun. Both
//! sides are programs that do nothing else, and tell when rank 0 has passed its first barrier.

use std::process::Command;

use leyden_comm::{Error, Result, launch};
use leyden_process::futex;

use crate::{Row, Spread};

/// The row, beside PyTorch if `peer`.
pub(crate) fn row(peer: bool) -> Result<Row> {
    let mut program = Command::new(std::env::current_exe()?);
    let ours = spread(program.arg("launch"), 40)?;
    let peer = peer.then(torchrun).transpose()?;
    Ok(Row {
        row: "comm/launch-2",
        ours,
        peer,
        unit: "ms",
        ratio: peer.map(|peer| peer.median / ours.median),
        goal: "<= 50 ms",
        compared: "torchrun, Gloo".to_owned(),
        notes: vec![format!("p99 {:.2} ms, from the start of the process", ours.p99)],
    })
}

/// Our side: this program, launched.
pub(crate) fn program() -> Result<()> {
    let mut rank = launch::world(2)?.join()?;
    rank.barrier("first")?;
    if rank.rank() == 0 {
        println!("{}", futex::now().as_nanos());
    }
    Ok(())
}

fn torchrun() -> Result<Spread> {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/launch_torchrun.py");
    let mut command = Command::new(python);
    command.args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]);
    spread(&mut command, 5)
}

/// Milliseconds from the start of a command until what it prints last.
pub(crate) fn spread(command: &mut Command, runs: usize) -> Result<Spread> {
    let millis = (0..runs).map(|_| {
        let began = futex::now().as_nanos() as f64;
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let met: f64 = text.lines().last().unwrap_or_default().parse().map_err(|_| {
            Error::msg("a launch measured nothing")
                .at("program", format_args!("{command:?}"))
                .why(String::from_utf8_lossy(&output.stderr))
        })?;
        Ok((met - began) / 1e6)
    });
    Ok(Spread::of(millis.collect::<Result<_>>()?))
}
