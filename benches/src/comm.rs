//! The rows `comm/…`: two ranks that are processes, beside PyTorch's over Gloo.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, hint};

use leyden::{Error, Result};
use leyden_comm::{Rank, launch, simulation};
use leyden_process::futex;
use serde_json::Value;

use crate::{Row, Spread};

mod measure;

/// What is reduced, in bytes (0 is a barrier), and whether in a bucket.
const SIZES: [(&str, usize, bool, &str); 5] = [
    ("comm/barrier", 0, false, ">= 200x"),
    ("comm/allreduce-1k", 1 << 10, false, ">= 500x"),
    ("comm/allreduce-64k-private", 64 << 10, false, ">= 100x"),
    ("comm/allreduce-25m-private", 25 << 20, false, ">= 5x"),
    ("comm/allreduce-25m-segment", 25 << 20, true, ">= 15x"),
];

/// How a rank fails while another one waits for it.
const FAULTS: [&str; 5] = ["mismatch", "exit 0", "panic", "SIGKILL", "SIGKILL with 2 GB resident"];

/// All rows, beside PyTorch if `peer`.
pub(crate) fn rows(peer: bool) -> Result<Vec<Row>> {
    let theirs = if peer { gloo()? } else { BTreeMap::new() };
    let mut rows = Vec::new();
    for (row, bytes, in_segment, goal) in SIZES {
        let seconds = match in_segment {
            true => launch::spawn(2, measure::segment, &bytes)?.swap_remove(0),
            false => launch::spawn(2, measure::private, &bytes)?.swap_remove(0),
        };
        let ours = Spread::of(seconds.iter().map(|seconds| seconds * 1e6).collect());
        let peer = theirs.get(&bytes).copied();
        let mut notes = vec![format!("p99 {:.3} us", ours.p99)];
        if bytes > 1 << 20 {
            let bandwidth = launch::spawn(2, measure::bandwidth, &bytes)?.swap_remove(0);
            // Each number of each rank is read once, and written once.
            let limit = (2 * 2 * bytes) as f64 / bandwidth * 1e6;
            notes.push(format!("{:.2} GB/s a rank", bytes as f64 / ours.median / 1e3));
            notes.push(format!(
                "{:.2} of what memory allows ({limit:.0} us at {:.1} GB/s)",
                limit / ours.median,
                bandwidth / 1e9
            ));
        }
        let ratio = peer.map(|peer| peer.median / ours.median);
        rows.push(Row { row, ours, peer, unit: "us", ratio, goal, compared: "Gloo".to_owned(), notes });
    }
    let starts: Result<Vec<f64>> = (0..20)
        .map(|_| {
            let began = Instant::now();
            launch::spawn(2, first_barrier, &())?;
            Ok(began.elapsed().as_secs_f64() * 1e3)
        })
        .collect();
    rows.push(alone(
        "comm/spawn-2",
        Spread::of(starts?),
        "ms",
        "<= 50 ms",
        vec!["until both have ended".to_owned()],
    ));
    for ranks in [2, 4] {
        let seconds = leyden_comm::measure::watch(ranks, 500)?;
        let ours = Spread::of(seconds.iter().map(|seconds| seconds * 1e9).collect());
        let notes = vec![format!("{ranks} ranks: a label, a record, its time, the comparison; timed alone")];
        rows.push(alone("comm/watch-cost", ours, "ns", "<= 100 ns", notes));
    }
    for (kind, name) in FAULTS.iter().enumerate() {
        let folder = tempfile::tempdir()?;
        let repeats = if kind == 4 { 10 } else { 50 };
        let latencies = (0..repeats).map(|_| fault(kind, folder.path())).collect::<Result<Vec<f64>>>()?;
        let spread = Spread::of(latencies);
        let notes = vec![format!("{name}: p99 {:.2} ms of {repeats}, on the rank that waits", spread.p99)];
        rows.push(alone("comm/fault-p99", spread, "ms", "<= 100 ms", notes));
    }
    rows.extend(simulated());
    Ok(rows)
}

/// What a session costs rank 0 for each rank, beside the same of a hundred ranks.
fn simulated() -> Vec<Row> {
    const REPEATS: usize = 20;
    let run =
        |ranks| -> Vec<simulation::Session> { (0..REPEATS).map(|_| simulation::session(ranks)).collect() };
    let per_rank = |sessions: &[simulation::Session]| {
        Spread::of(sessions.iter().map(|session| session.per_rank().as_secs_f64() * 1e6).collect())
    };
    let few = per_rank(&run(100));
    [("comm/simulated-1000", 1000), ("comm/simulated-10000", 10_000)]
        .map(|(row, ranks)| {
            let sessions = run(ranks);
            let ours = per_rank(&sessions);
            let median = |part: fn(&simulation::Session) -> Duration| {
                Spread::of(sessions.iter().map(|session| part(session).as_secs_f64() * 1e3).collect()).median
            };
            let notes = vec![
                format!("all have met: {:.2} ms", median(|session| session.meeting)),
                format!("a beat of each: {:.3} ms", median(|session| session.beats)),
                format!("a death, told to all: {:.3} ms", median(|session| session.death)),
            ];
            let ratio = Some(ours.median / few.median);
            let compared = "100 ranks".to_owned();
            let goal = "<= 2x of 100 ranks";
            Row { row, ours, peer: Some(few), unit: "us/rank", ratio, goal, compared, notes }
        })
        .into()
}

fn alone(row: &'static str, ours: Spread, unit: &'static str, goal: &'static str, notes: Vec<String>) -> Row {
    Row { row, ours, peer: None, unit, ratio: None, goal, compared: "-".to_owned(), notes }
}

fn first_barrier(_: (), rank: &mut Rank) -> Result<()> {
    rank.barrier("first")
}

/// Milliseconds from a fault of rank 1 until rank 0, which waits for it, has its error.
fn fault(kind: usize, folder: &Path) -> Result<f64> {
    let failed = launch::spawn(2, faulty, &(kind, folder.to_owned()));
    // Each failure leaves a file.
    if let Some(records) = failed.as_ref().err().and_then(|error| error.place("records of all ranks")) {
        let _ = fs::remove_file(records);
    }
    let read = |name: &str| -> Result<f64> { Ok(fs::read_to_string(folder.join(name))?.parse()?) };
    Ok((read("noticed")? - read("failed")?) / 1e6)
}

fn faulty((kind, folder): (usize, PathBuf), rank: &mut Rank) -> Result<()> {
    let note = |name: &str| fs::write(folder.join(name), futex::now().as_nanos().to_string());
    let ballast = vec![1_u8; if kind == 4 && rank.rank() == 1 { 2 << 30 } else { 0 }];
    rank.barrier("ready")?;
    if rank.rank() == 1 {
        // The other one waits by then.
        std::thread::sleep(Duration::from_millis(20));
        note("failed")?;
        match kind {
            0 => rank.broadcast(&mut [0_u8], 0)?,
            1 => std::process::exit(0),
            2 => panic!("meant"),
            _ => {
                Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status()?;
            }
        }
        hint::black_box(ballast);
        return Ok(());
    }
    let error = rank.barrier("never").err();
    note("noticed")?;
    error.map_or(Ok(()), Err)
}

/// PyTorch's median and spread in µs, by size; 0 is its barrier.
fn gloo() -> Result<BTreeMap<usize, Spread>> {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/allreduce_gloo.py");
    let sizes =
        SIZES.iter().filter(|(_, _, in_segment, _)| !in_segment).map(|(_, bytes, ..)| bytes.to_string());
    let output = Command::new(&python)
        .args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script])
        .args(sizes)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut spreads = BTreeMap::new();
    for value in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(bytes), Some(seconds)) = (value["bytes"].as_u64(), value["seconds"].as_array()) else {
            continue;
        };
        let micros = seconds.iter().filter_map(|seconds| Some(seconds.as_f64()? * 1e6)).collect();
        spreads.insert(bytes as usize, Spread::of(micros));
    }
    if spreads.is_empty() {
        return Err(Error::msg("Gloo measured nothing")
            .at("program", format_args!("{python} -m torch.distributed.run {script}"))
            .why(String::from_utf8_lossy(&output.stderr)));
    }
    Ok(spreads)
}
