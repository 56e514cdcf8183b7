//! A plain `main` that starts worker processes at its top level, with nothing guarded: `main` runs once.
//!
//! In Python the same script, without `if __name__ == "__main__"`, runs again in each worker until the first of them
//! fails: each worker is made by importing the script. A worker of Leyden is this program too, but it leaves before
//! `main`.

use std::collections::BTreeSet;
use std::io::Write as _;

use leyden::data::{Array, DataLoader, Dataset, SampleCx, Workers, default_collate};
use serde::{Deserialize, Serialize};

/// Squares, and which process made them.
#[derive(Serialize, Deserialize)]
struct Squares;

impl Dataset for Squares {
    type Item = (i64, u32);
    type Batch = (Array<i64>, Array<u32>);

    fn len(&self) -> usize {
        1_000
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> leyden::Result<Self::Item> {
        let index = index as i64;
        Ok((index * index, std::process::id()))
    }

    fn collate(&self, items: Vec<Self::Item>) -> leyden::Result<Self::Batch> {
        default_collate(items)
    }
}

fn main() -> leyden::Result<()> {
    // A side effect, to be counted: a line for each process that gets here.
    if let Some(path) = std::env::args().nth(1) {
        let mut file = std::fs::File::options().append(true).create(true).open(path)?;
        writeln!(file, "{}", std::process::id())?;
    }
    let loader =
        DataLoader::builder(Squares).batch_size(16).shuffle(true).workers(Workers::spawn(2)).build()?;
    let (mut samples, mut sum, mut workers) = (0, 0, BTreeSet::new());
    for batch in loader.epoch(0) {
        let batch = batch?;
        samples += batch.samples;
        sum += batch.data.0.iter().sum::<i64>();
        workers.extend(batch.data.1.iter().copied());
    }
    let here = workers.contains(&std::process::id());
    println!("{samples} samples, sum {sum}, made here: {here}, worker processes: {}", workers.len());
    Ok(())
}
