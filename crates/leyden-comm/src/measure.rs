//! For the benchmarks: what the watch alone costs a collective. Nobody calls it who trains.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use leyden_process::Result;

use crate::launch;
use crate::rank::{Group, Rank};
use crate::record::{Agreed, Op};
use crate::world::World;

/// Seconds that a collective in a world of so many ranks takes for what only the watch needs: to look whether the world has
/// failed, to find the call site's number, to write and announce the record with its time, and to compare it with those of
/// all others. As many times as asked for, each the mean of a thousand.
///
/// The rank's own memory is real; of the others', that of this thread: what it costs to fetch the line of an arrival that
/// another core has written, a collective pays in any case, and the announcement lies in the same line.
///
/// # Errors
/// Those of a world that cannot be made.
pub fn watch(ranks: usize, times: usize) -> Result<Vec<f64>> {
    const ROUNDS: u32 = 1000;
    let world = Arc::new(World::create(ranks)?);
    let mut rank = Rank::join(Arc::clone(&world), 0)?;
    let agreed = Agreed::of(Op::Barrier);
    for (peer, seq) in (1..ranks).flat_map(|peer| [(peer, 0), (peer, 1)]) {
        world.write_record(peer, 0, seq, agreed.pack(), 0, 0);
    }
    let seconds = (0..times).map(|_| {
        let began = Instant::now();
        for _ in 0..ROUNDS {
            let call = rank.begin(Group::WORLD, black_box(agreed), black_box("epoch"))?;
            let agree = call.agrees_with_all();
            assert!(black_box(agree), "they announce the same");
        }
        Ok(began.elapsed().as_secs_f64() / f64::from(ROUNDS))
    });
    seconds.collect()
}

/// Seconds of a barrier of threads, as many times as asked for, each the mean of a thousand.
///
/// # Errors
/// Those of [`launch::threads`].
pub fn barrier(ranks: usize, times: usize) -> Result<Vec<f64>> {
    const ROUNDS: u32 = 1000;
    let seconds = launch::threads(ranks, |rank| {
        let seconds = (0..times).map(|_| {
            let began = Instant::now();
            (0..ROUNDS).try_for_each(|_| rank.barrier("epoch"))?;
            Ok(began.elapsed().as_secs_f64() / f64::from(ROUNDS))
        });
        seconds.collect::<Result<Vec<f64>>>()
    })?;
    Ok(seconds.into_iter().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watch_takes_a_part_of_a_collective() {
        for ranks in [1, 2, 4] {
            let (watch, barrier) = (watch(ranks, 30).unwrap(), barrier(ranks, 3).unwrap());
            let least = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
            println!("{ranks}: {:.1} of {:.1} ns", least(&watch) * 1e9, least(&barrier) * 1e9);
            assert!(watch.len() == 30 && watch.iter().all(|&seconds| seconds > 0.0));
            // A microsecond would be ten times the goal.
            assert!(least(&watch) < 1e-6 && least(&barrier) > 0.0);
        }
    }
}
