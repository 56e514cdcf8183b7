//! What ranks do together, beyond what each transport must (`conforming.rs`).

use std::time::{Duration, Instant};

use leyden_comm::launch::{self, Carrier};
use leyden_comm::{Error, Rank, ReduceOp, Result};

#[test]
fn some_of_the_ranks_divide_the_work_of_a_long_sum() {
    let sums = launch::threads(4, |rank| {
        let some = rank.new_group(&[3, 0, 2])?;
        let mut data: Vec<f32> =
            (0..200_000).map(|index| (index % 1000 * (rank.rank() + 1)) as f32).collect();
        if rank.rank() != 1 {
            rank.all_reduce_in(some, &mut data, ReduceOp::Sum, "three")?;
        }
        Ok(data)
    })
    .unwrap();
    for (rank, sum) in sums.iter().enumerate() {
        let factor = if rank == 1 { 2 } else { 1 + 3 + 4 };
        assert!(sum.iter().enumerate().all(|(index, &sum)| sum == (index % 1000 * factor) as f32), "{rank}");
    }
}

#[test]
fn a_world_has_a_rank_and_not_too_many() {
    for carrier in [Carrier::Memory, Carrier::Tcp] {
        for ranks in [0, 5000] {
            let error = launch::threads_over(carrier, ranks, |_| Ok(())).unwrap_err();
            assert_eq!(error.code().id, "D0101", "{error:?}");
        }
    }
}

#[test]
fn more_ranks_than_cores_raise_no_false_alarm() {
    fn busy(seconds: f64, rank: &mut Rank) -> Result<()> {
        // More than what a rank waits for its turn on a core.
        rank.set_limits(Duration::from_secs(2), Duration::from_secs(10));
        let mut data = vec![rank.rank() as f32; 1000];
        let (began, mut round) = (Instant::now(), 0);
        loop {
            rank.all_reduce(&mut data, ReduceOp::Mean)?;
            if round % 100 == rank.rank() {
                std::thread::sleep(Duration::from_millis(20));
            }
            rank.barrier(&format!("round {round}"))?;
            round += 1;
            // All go on as long as any wants to.
            if !rank.agree_any(round < 300 || began.elapsed().as_secs_f64() < seconds, "more")? {
                return Ok(());
            }
        }
    }
    let seconds = std::env::var("LEYDEN_SOAK_SECONDS").map_or(0.0, |seconds| seconds.parse().unwrap());
    launch::spawn(8, busy, &seconds).unwrap();
}

#[test]
fn a_result_larger_than_a_message_comes_back() {
    fn large(length: usize, rank: &mut Rank) -> Result<Vec<u64>> {
        Ok(vec![rank.rank() as u64; length])
    }
    let results = launch::spawn(2, large, &300_000).unwrap();
    assert!(results.iter().enumerate().all(|(rank, result)| {
        result.len() == 300_000 && result.iter().all(|&number| number == rank as u64)
    }));
}

#[test]
fn what_all_have_is_gathered_whatever_its_size() {
    let all = launch::threads(3, |rank| {
        let own = "x".repeat(rank.rank() * 100_000);
        let gathered = rank.all_gather_object(&own, "names")?;
        Ok(gathered.iter().map(String::len).collect::<Vec<_>>())
    });
    assert_eq!(all.unwrap(), [[0, 100_000, 200_000]; 3]);
}

/// A world that has failed, on all ranks that live, is whole again when they have come back.
#[test]
fn after_a_failure_ranks_join_anew() {
    let sums = launch::program(
        3,
        |rounds: u32| {
            let mut sums = Vec::new();
            for round in 0..rounds {
                let mut rank = launch::world(3)?.join()?;
                let number = rank.rank();
                rank.barrier("begin")?;
                // Ranks stop at different collectives, and one after the other fails.
                let failed = if number == round as usize % 3 {
                    rank.fail(Error::new(leyden_comm::codes::ARGUMENT, format!("round {round}")))
                } else {
                    let mut seen = Ok(());
                    while seen.is_ok() {
                        seen = rank.barrier("again");
                    }
                    seen.unwrap_err()
                };
                assert_eq!(failed.what(), format!("round {round}"));
                drop(rank);
                let mut rank = launch::world(3)?.join()?;
                let mut sum = [number as f32];
                rank.all_reduce(&mut sum, ReduceOp::Sum)?;
                sums.push(sum[0]);
            }
            Ok(sums)
        },
        &100,
    );
    assert_eq!(sums.unwrap(), vec![vec![3.0; 100]; 3]);
}

#[test]
fn nobody_waits_for_a_rank_that_has_gone_on() {
    let errors = launch::program(
        2,
        |(): ()| {
            let rank = launch::world(2)?.join()?;
            if rank.rank() == 0 {
                rank.fail(Error::new(leyden_comm::codes::ARGUMENT, "the first"));
                drop(rank);
                // It does not come back; rank 1 does.
                return Ok(String::new());
            }
            let mut rank = rank;
            while rank.barrier("until it fails").is_ok() {}
            drop(rank);
            let again = launch::world(2)?.join();
            Ok(again.map_or_else(|error| error.what().to_owned(), |_| "joined".to_owned()))
        },
        &(),
    );
    assert_eq!(errors.unwrap()[1], "the first");
}
