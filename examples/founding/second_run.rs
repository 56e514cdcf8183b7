//! Worker processes a hundred times in one program, every other time with a failure: nothing freezes, nothing piles up.
//!
//! A script that trains twice in one process is where Lightning's users met their first freeze. Here each round builds a
//! loader with two worker processes and goes through it; in turn a round ends well, with a sample's error, with a panic,
//! with a worker that aborts, or with a loader that is dropped in the middle.

use std::fs;
use std::time::Duration;

use leyden::data::{Array, DataLoader, Dataset, SampleCx, Workers, default_collate};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Fault {
    None,
    Error,
    Panic,
    Abort,
    Dropped,
}

/// Numbers; the one in the middle is at fault.
#[derive(Serialize, Deserialize)]
struct Numbers(Fault);

impl Dataset for Numbers {
    type Item = i64;
    type Batch = Array<i64>;

    fn len(&self) -> usize {
        64
    }

    #[expect(clippy::disallowed_methods, reason = "a worker that aborts is one of the faults")]
    fn get(&self, index: usize, _: &mut SampleCx) -> leyden::Result<i64> {
        match self.0 {
            Fault::Error if index == 32 => leyden::bail!("sample 32 is torn"),
            Fault::Panic if index == 32 => panic!("sample 32 is impossible"),
            Fault::Abort if index == 32 => std::process::abort(),
            _ => Ok(index as i64),
        }
    }

    fn collate(&self, items: Vec<i64>) -> leyden::Result<Array<i64>> {
        default_collate(items)
    }
}

/// One round; what it came to, in a word.
fn round(fault: Fault) -> leyden::Result<String> {
    let loader = DataLoader::builder(Numbers(fault)).batch_size(4).workers(Workers::spawn(2)).build()?;
    let take = if fault == Fault::Dropped { 3 } else { usize::MAX };
    let mut found = Vec::new();
    for batch in loader.epoch(0).take(take) {
        match batch {
            Ok(batch) => found.extend_from_slice(&batch.data),
            Err(error) => return Ok(error.code().to_string()),
        }
    }
    Ok(format!("{} samples", found.len()))
}

/// Descriptors, threads and children of this process.
fn resources() -> leyden::Result<[usize; 3]> {
    // A thread that has said that it is done is still on its way out for a moment.
    std::thread::sleep(Duration::from_millis(100));
    let children = fs::read_dir("/proc")?
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter(|stat| {
            let after_name = stat.rsplit(") ").next().unwrap_or_default();
            after_name.split(' ').nth(1) == Some(&std::process::id().to_string())
        });
    Ok([fs::read_dir("/proc/self/fd")?.count(), fs::read_dir("/proc/self/task")?.count(), children.count()])
}

fn main() -> leyden::Result<()> {
    let faults =
        [Fault::None, Fault::Error, Fault::None, Fault::Panic, Fault::None, Fault::Abort, Fault::Dropped];
    for fault in faults {
        println!("{fault:?}: {}", round(fault)?);
    }
    let before = resources()?;
    for number in 0..100 {
        round(faults[number % faults.len()])?;
    }
    let after = resources()?;
    println!("100 rounds; descriptors, threads, children: {before:?} before, {after:?} after");
    Ok(())
}
