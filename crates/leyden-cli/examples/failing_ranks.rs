//! Programs of three ranks (or as many as the last argument says) of which one gets into trouble. They launch themselves, and
//! find their ranks under `leyden run`; the first argument says what happens.

#![expect(clippy::disallowed_methods, reason = "a rank, or a worker, is to end without a word")]

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use leyden_comm::launch::{self, LaunchOptions};
use leyden_comm::{Rank, ReduceOp, Result};
use leyden_data::{DataLoader, Dataset, SampleCx, Workers};
use leyden_process::signal::Listener;
use leyden_process::spawn::{Job, Parent, SpawnOptions};
use serde::{Deserialize, Serialize};

const LONG: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ranks = words.get(1).map_or(Ok(3), |ranks| ranks.parse())?;
    let options = LaunchOptions { grace: Duration::from_secs(1), ..LaunchOptions::default() };
    let world = launch::world_with(ranks, &options)?;
    let mut rank = world.join()?;
    rank.set_limits(Duration::from_millis(300), Duration::from_secs(1));
    rank.barrier("all are there")?;
    let scenario = words.first().map_or("", String::as_str);
    // Where nobody else is, it happens to rank 0.
    let unlucky = rank.rank() == 1.min(ranks - 1);
    match scenario {
        "add" => return add(&mut rank),
        "reenter" => return reenter(ranks),
        "twice" => return twice(&mut rank, ranks),
        "wait" => return wait(&mut rank, None),
        "note-signals" => return wait(&mut rank, Some(Listener::start())),
        _ if !unlucky => {}
        "segv" => segv(),
        "overflow" => drop(black_box(overflow(black_box(1)))),
        "abort" => std::process::abort(),
        "panic" => panic!("meant"),
        "exit" => std::process::exit(7),
        "take" => take()?,
        "mutex" => lock_twice(),
        "loader-dies" | "loader-blocks" => load(scenario)?,
        _ => leyden_process::bail!("no such scenario: {scenario:?}"),
    }
    rank.barrier("epoch end")
}

fn add(rank: &mut Rank) -> Result<()> {
    let mut sum = [rank.rank() as i64 + 1];
    rank.all_reduce(&mut sum, ReduceOp::Sum)?;
    let group = rank.new_group(&[0])?;
    if rank.rank() == 0 {
        rank.barrier_in(group, "alone")?;
        println!("sum {}", sum[0]);
    }
    rank.on_rank_zero(|_| Ok(()))?;
    rank.barrier("end")
}

/// A worker of a rank launches what its rank has launched.
fn reenter(ranks: usize) -> Result<()> {
    let again = |ranks: usize, _: Parent| launch::world(ranks).map(drop);
    let mut worker = Job::new(again, &ranks)?.spawn(&SpawnOptions::named("worker 0"))?;
    worker.ended(LONG).expect("it returns").into_result("worker 0")
}

fn twice(rank: &mut Rank, ranks: usize) -> Result<()> {
    let world = launch::world(ranks)?;
    let taken = world.join().map(drop).unwrap_err();
    if rank.rank() == 0 {
        println!("the same {} ranks; {}", world.world_size(), taken.code());
    }
    rank.barrier("both launches are one")
}

/// Waits for a signal, or for ever; says on each rank that it does.
fn wait(rank: &mut Rank, listener: Option<Listener>) -> Result<()> {
    println!("ready");
    std::io::stdout().flush()?;
    let end = Instant::now() + LONG;
    let mut noted = false;
    while Instant::now() < end {
        if listener.as_ref().is_some_and(|listener| listener.received().is_some()) && !noted {
            noted = true;
            println!("noted");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    rank.barrier("never")
}

fn segv() {
    // SAFETY: none. The process is to be ended by it.
    unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() };
}

#[expect(unconditional_recursion, reason = "the stack is to overflow")]
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow(frame[3] + 1) + frame[5]
}

/// Takes memory until there is none. It is the one that the kernel is to kill then.
fn take() -> Result<()> {
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    let mut all = Vec::new();
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        all.push(black_box(vec![1_u8; 8 << 20]));
    }
    Ok(())
}

fn lock_twice() {
    let mutex = Mutex::new(());
    let _first = mutex.lock();
    let _second = mutex.lock();
}

fn load(scenario: &str) -> Result<()> {
    let dataset = Broken { dies: scenario == "loader-dies" };
    let loader = DataLoader::builder(dataset).batch_size(2).workers(Workers::spawn(1)).restarts(0);
    let loader = loader.warn_after(Duration::from_millis(300)).timeout(Duration::from_secs(30)).build()?;
    loader.epoch(0).try_for_each(|batch| batch.map(drop))
}

/// A data set whose sixth sample ends its worker, or keeps it for ever.
#[derive(Clone, Serialize, Deserialize)]
struct Broken {
    dies: bool,
}

impl Dataset for Broken {
    type Item = f32;
    type Batch = Vec<f32>;

    fn len(&self) -> usize {
        12
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<f32> {
        match (index, self.dies) {
            (5, true) => std::process::abort(),
            (5, false) => std::thread::sleep(LONG),
            _ => {}
        }
        Ok(index as f32)
    }

    fn collate(&self, items: Vec<f32>) -> Result<Vec<f32>> {
        Ok(items)
    }
}
