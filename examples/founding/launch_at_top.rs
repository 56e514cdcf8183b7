//! Ranks launched at the top of a plain `main`, each with two worker processes of its own. No guard, no attribute.
//!
//! Under Lightning's spawn strategies such a script binds a port twice and leaves a process behind.

use std::time::Duration;

use leyden_comm::{ReduceOp, Result, launch};
use leyden_process::spawn::{Child, Job, Parent, Received, SpawnOptions};

fn main() -> Result<()> {
    eprintln!("main runs");
    let world = launch::world(2)?;
    let mut rank = world.join()?;

    let job = Job::new(load, &rank.rank())?;
    let workers = (0..2).map(|worker| job.spawn(&SpawnOptions::named(format!("worker {worker}"))));
    let mut sum = [0.0_f32];
    for mut worker in workers.collect::<Result<Vec<Child>>>()? {
        if let Received::Message(sample) = worker.recv(Duration::from_secs(30))? {
            sum[0] += f32::from(sample[0]);
        }
    }
    rank.all_reduce(&mut sum, ReduceOp::Sum)?;
    println!("rank {} of {}: {}", rank.rank(), rank.world_size(), sum[0]);
    rank.barrier("the end")
}

/// What a data loader's worker does, in short.
fn load(rank: usize, parent: Parent) -> Result<()> {
    parent.send(&[10 * rank as u8 + 1])
}
