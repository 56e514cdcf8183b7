//! Speed as ratios: each row runs both sides alternately, and prints the median.
//!
//! Nothing here is asserted; the goals are printed beside the figures. Rows that need another allocator, or the
//! default one, run in a child process of their own; where a peer is another program, so does each side.

#![forbid(unsafe_code)]

mod comm;
mod ddp;
mod launch;
mod loader;
mod trainer;

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use leyden::{Error, Result};
use serde_json::{Value, json};

/// Measures Leyden beside its peers.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Runs all rows of a group
    Run {
        /// The group
        #[arg(value_parser = ["trainer", "loader", "comm", "ddp"])]
        group: String,
        /// Of `loader` and `ddp`, only the rows with this in their names
        #[arg(long, default_value = "")]
        only: String,
        /// Prints one JSON object a row
        #[arg(long)]
        json: bool,
        /// Runs the peers too: needs python3 (or LEYDEN_PYTHON) with torch, and lightning or pillow and torchvision
        #[arg(long)]
        peer: bool,
    },
    /// Measures one pair in this process and prints its figures: what `run` starts in child processes
    #[command(hide = true)]
    Measure { what: String },
    /// Is Leyden's side of `comm/launch-2`: becomes two ranks
    #[command(hide = true)]
    Launch,
    /// Is Leyden's side of `ddp/first-step`: becomes two ranks
    #[command(hide = true)]
    FirstStep { folder: std::path::PathBuf },
    /// Is Leyden's side of a row of `loader`: makes a pass for each line on stdin
    #[command(hide = true)]
    Serve { cell: String },
}

/// One row.
pub(crate) struct Row {
    pub(crate) row: &'static str,
    /// In the goal's unit.
    pub(crate) ours: Spread,
    /// What it is compared with.
    pub(crate) peer: Option<Spread>,
    pub(crate) unit: &'static str,
    pub(crate) ratio: Option<f64>,
    pub(crate) goal: &'static str,
    pub(crate) compared: String,
    /// What else was measured.
    pub(crate) notes: Vec<String>,
}

/// Median, smallest, largest and 99th percentile of the rounds.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) p99: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else {
            return Self { median: f64::NAN, min: f64::NAN, max: f64::NAN, p99: f64::NAN };
        };
        let p99 = values[(0.99 * last as f64).round() as usize];
        Self { median: values[values.len() / 2], min: values[0], max: values[last], p99 }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max, "p99": self.p99 })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let number = |name: &str| value[name].as_f64();
        Some(Self {
            median: number("median")?,
            min: number("min")?,
            max: number("max")?,
            p99: number("p99")?,
        })
    }
}

/// The program.
pub fn main() -> ExitCode {
    let result = match Args::parse().command {
        Action::Run { group, only, json, peer } if group == "loader" => loader::plans()
            .iter()
            .filter(|plan| plan.row().contains(&only))
            .try_for_each(|plan| plan.measure(peer).map(|row| print(&[row], json))),
        Action::Run { group, json, peer, .. } if group == "comm" => comm::rows(peer).and_then(|rows| {
            print(&rows, json);
            launch::row(peer).map(|row| print(&[row], json))
        }),
        Action::Run { group, only, json, peer } if group == "ddp" => {
            ddp::rows(peer, &only).map(|rows| print(&rows, json))
        }
        Action::Run { json, peer, .. } => trainer::rows(peer).map(|rows| print(&rows, json)),
        Action::Measure { what } => measure(&what),
        Action::Launch => launch::program(),
        Action::FirstStep { folder } => ddp::first_step_program(folder),
        Action::Serve { cell } => loader::serve(&cell),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn measure(what: &str) -> Result<()> {
    let (ours, reference) =
        if what.starts_with("ddp") { ddp::measure(what)? } else { trainer::measure(what)? };
    println!("{}", json!({ "ours": ours.json(), "reference": reference.json() }));
    Ok(())
}

/// Measures a pair in a child process: this program, or the one with mimalloc, with more environment.
pub(crate) fn in_child(what: &str, mimalloc: bool, environment: &[(&str, &str)]) -> Result<(Spread, Spread)> {
    let mut program = std::env::current_exe()?;
    if mimalloc {
        program.set_file_name(format!("leyden-bench-mimalloc{}", std::env::consts::EXE_SUFFIX));
    }
    let output = Command::new(&program).args(["measure", what]).envs(environment.iter().copied()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Option<Value> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let pair = figures.and_then(|value| {
        Some((Spread::from_json(&value["ours"])?, Spread::from_json(&value["reference"])?))
    });
    pair.ok_or_else(|| {
        Error::new(leyden::Code::new("T0001", 100), format!("`{}` measured nothing", program.display()))
            .why(String::from_utf8_lossy(&output.stderr))
            .hint("build the whole package: cargo build --release -p leyden-bench")
    })
}

fn print(rows: &[Row], json: bool) {
    for row in rows {
        if json {
            let peer = row.peer.map(|peer| peer.median);
            println!(
                "{}",
                json!({
                    "row": row.row, "ours": row.ours.median, "peer": peer, "unit": row.unit, "ratio": row.ratio,
                    "goal": row.goal, "compared": row.compared,
                    "spread": [row.ours.min, row.ours.max],
                    "peer_spread": row.peer.map(|peer| [peer.min, peer.max]),
                    "notes": row.notes,
                })
            );
        } else {
            let peer = row.peer.map_or("-".to_owned(), |peer| format!("{:.3}", peer.median));
            let ratio = row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
            println!(
                "{:<26} ours {:>9.3} [{:.3} to {:.3}]  {} {peer} {}  ratio {ratio}  goal {}",
                row.row, row.ours.median, row.ours.min, row.ours.max, row.compared, row.unit, row.goal
            );
            row.notes.iter().for_each(|note| println!("{:<26} {note}", ""));
        }
    }
}
