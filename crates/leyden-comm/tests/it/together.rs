//! What ranks do together.

use std::time::{Duration, Instant};

use leyden_comm::{Error, Group, Rank, ReduceOp, Result, launch};
use leyden_process::error::USER;

fn everything(offset: u32, rank: &mut Rank) -> Result<Vec<u32>> {
    let (own, size) = (rank.rank(), rank.world_size());
    let mut log = Vec::new();

    let mut numbers = [if own == 1 { 7_i32 } else { 0 }; 3];
    rank.broadcast(&mut numbers, 1)?;
    assert_eq!(numbers, [7; 3]);

    let all = rank.all_gather(&[own as u8, 10 + own as u8])?;
    assert_eq!(all, (0..size as u8).flat_map(|rank| [rank, 10 + rank]).collect::<Vec<_>>());
    let long = rank.all_gather(&vec![own as f64; 50_000])?;
    assert!((0..size).all(|peer| long[peer * 50_000..][..50_000].iter().all(|&x| x == peer as f64)));

    let gathered = rank.gather(&[own as i64], 2)?;
    assert_eq!(gathered, (own == 2).then(|| (0..size as i64).collect()));

    let mut part = [0_i16; 2];
    let whole: Vec<i16> = if own == 0 { (0..2 * size as i16).collect() } else { Vec::new() };
    rank.scatter(&whole, &mut part, 0)?;
    assert_eq!(part, [2 * own as i16, 2 * own as i16 + 1]);

    let mut part = [0.0_f32; 1];
    let whole: Vec<f32> = (0..size).map(|place| (own * 10 + place) as f32).collect();
    rank.reduce_scatter(&whole, &mut part, ReduceOp::Sum)?;
    assert_eq!(part[0], (0..size).map(|peer| (peer * 10 + own) as f32).sum::<f32>());

    let mut sum = [own as i32];
    rank.reduce(&mut sum, ReduceOp::Sum, 1)?;
    assert_eq!(sum[0], if own == 1 { (0..size as i32).sum() } else { own as i32 });

    let words = rank.broadcast_object(vec![format!("of rank {own}"), "ä".repeat(300_000)], 2)?;
    assert_eq!((&words[0][..], words[1].len()), ("of rank 2", 600_000));

    assert!(rank.agree_any(own == 1, "stop")?);
    assert!(!rank.agree_any(false, "stop")?);

    let value = rank.on_rank_zero(|_| Ok(offset + 5))?;
    log.push(value);

    let odd: Vec<usize> = (0..size).filter(|rank| rank % 2 == 1).collect();
    let group = rank.new_group(&odd)?;
    if own % 2 == 1 {
        let mut sum = [own as u8];
        rank.all_reduce_in(group, &mut sum, ReduceOp::Sum, "odd ones")?;
        assert_eq!(usize::from(sum[0]), odd.iter().sum::<usize>());
    }
    rank.barrier("end")?;
    log.push(own as u32);
    Ok(log)
}

#[test]
fn every_collective_gives_each_rank_what_it_should() {
    let expected: Vec<Vec<u32>> = (0..4).map(|rank| vec![105, rank]).collect();
    assert_eq!(launch::threads(4, |rank| everything(100, rank)).unwrap(), expected);
    assert_eq!(launch::spawn(4, everything, &100).unwrap(), expected);
}

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
fn a_world_of_one_works_like_any_other() {
    fn alone(_: (), rank: &mut Rank) -> Result<f32> {
        let mut data = [3.0_f32];
        rank.all_reduce(&mut data, ReduceOp::Mean)?;
        rank.barrier("alone")?;
        Ok(data[0] + rank.on_rank_zero(|_| Ok(1.0_f32))?)
    }
    assert_eq!(launch::spawn(1, alone, &()).unwrap(), [4.0]);
    assert_eq!(launch::threads(1, |rank| alone((), rank)).unwrap(), [4.0]);
}

#[test]
fn what_rank_zero_fails_of_reaches_all_and_the_world_goes_on() {
    fn fails(_: (), rank: &mut Rank) -> Result<(String, u32)> {
        let error = rank.on_rank_zero(|_| -> Result<u32> {
            Err(Error::new(USER, "no such file").at("file", "labels.csv"))
        });
        let error = error.unwrap_err();
        assert_eq!((error.code(), error.place("file")), (USER, Some("labels.csv")), "{error:?}");
        let panicked = rank.on_rank_zero(|_| -> Result<u32> { panic!("seventeen") }).unwrap_err();
        assert!(
            panicked.code().id == "D0111" && format!("{panicked:?}").contains("seventeen"),
            "{panicked:?}"
        );
        Ok((error.what().to_owned(), rank.on_rank_zero(|_| Ok(4))?))
    }
    let expected = vec![("no such file".to_owned(), 4); 3];
    assert_eq!(launch::spawn(3, fails, &()).unwrap(), expected);
}

#[test]
fn bad_arguments_are_refused_before_anybody_waits() {
    launch::threads(2, |rank| {
        let refused = |result: Result<()>| assert_eq!(result.unwrap_err().code().id, "D0108");
        refused(rank.all_reduce(&mut [1, 2_i32], ReduceOp::Mean));
        refused(rank.broadcast(&mut [1.0_f32], 2));
        refused(rank.reduce_scatter(&[1.0_f32; 3], &mut [0.0; 2], ReduceOp::Sum));
        refused(rank.new_group(&[]).map(drop));
        refused(rank.new_group(&[1, 1]).map(drop));
        refused(rank.new_group(&[2]).map(drop));
        let first = rank.new_group(&[0])?;
        if rank.rank() == 1 {
            refused(rank.barrier_in(first, "not mine"));
        }
        for _ in 0..14 {
            rank.new_group(&[0, 1])?;
        }
        refused(rank.new_group(&[0, 1]).map(drop));
        rank.barrier_in(Group::WORLD, "still together")
    })
    .unwrap();
    for ranks in [0, 5000] {
        assert_eq!(launch::threads(ranks, |_| Ok(())).unwrap_err().code().id, "D0101");
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
            drop(rank);
            Ok(launch::world(2)?.join().map_or_else(|error| error.to_string(), |_| "joined".to_owned()))
        },
        &(),
    );
    match errors {
        Err(error) => assert_eq!(error.what(), "the first"),
        Ok(words) => panic!("{words:?}"),
    }
}
