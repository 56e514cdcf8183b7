//! Each way to carry ranks does all that one must, and gives the same bits.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use leyden_comm::launch::{self, Carrier};
use leyden_comm::{Rank, ReduceOp, Result, testing};

const SIZES: [usize; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// What ranks that share memory get, in one process.
static BITS: LazyLock<Vec<u64>> = LazyLock::new(|| over(Carrier::Memory, &SIZES));

fn over(carrier: Carrier, sizes: &[usize]) -> Vec<u64> {
    testing::conformance(sizes, |ranks, case| launch::threads_over(carrier, ranks, testing::CASES[case].body))
}

#[test]
fn threads_over_memory_conform_and_do_so_again() {
    assert!(!BITS.is_empty());
    assert_eq!(over(Carrier::Memory, &SIZES), *BITS);
}

#[test]
fn threads_over_tcp_conform_and_do_so_again() {
    for _ in 0..2 {
        assert_eq!(over(Carrier::Tcp, &SIZES), *BITS);
    }
}

#[test]
fn processes_over_memory_conform() {
    fn run(case: usize, rank: &mut Rank) -> Result<u64> {
        (testing::CASES[case].body)(rank)
    }
    let bits = testing::conformance(&SIZES, |ranks, case| launch::spawn(ranks, run, &case));
    assert_eq!(bits, *BITS);
}

/// `cargo test --release -p leyden-comm --test it -- --ignored --nocapture figures`
#[test]
#[ignore = "prints how long an all-reduce takes, and asserts nothing"]
fn figures() {
    for carrier in [Carrier::Memory, Carrier::Tcp] {
        for (name, bytes, rounds) in
            [("1 KB", 1 << 10, 2000), ("64 KB", 64 << 10, 500), ("25 MB", 25 << 20, 20)]
        {
            let times = launch::threads_over(carrier, 2, |rank| {
                let mut data = vec![1.0_f32; bytes / 4];
                let mut times: Vec<Duration> = Vec::new();
                for _ in 0..rounds {
                    rank.barrier("")?;
                    let began = Instant::now();
                    rank.all_reduce(&mut data, ReduceOp::Max)?;
                    times.push(began.elapsed());
                }
                times.sort();
                Ok((times[rounds / 2], times[rounds * 9 / 10]))
            });
            let (median, tenth) = times.unwrap()[0];
            println!(
                "{carrier:?}, 2 ranks, all-reduce of {name}: median {median:?}, one in ten above {tenth:?}"
            );
        }
    }
}
