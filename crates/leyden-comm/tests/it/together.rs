//! What ranks do together, beyond what each transport must (`conforming.rs`).

use std::time::Duration;

use leyden_comm::launch::{self, Carrier};
use leyden_comm::{Rank, ReduceOp, Result};

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
    fn busy(_: (), rank: &mut Rank) -> Result<()> {
        // Less than what a rank waits for its turn on a core.
        rank.set_limits(Duration::from_secs(2), Duration::from_secs(10));
        let mut data = vec![rank.rank() as f32; 1000];
        for round in 0..300 {
            rank.all_reduce(&mut data, ReduceOp::Mean)?;
            if round % 100 == rank.rank() {
                std::thread::sleep(Duration::from_millis(20));
            }
            rank.barrier(&format!("round {round}"))?;
        }
        Ok(())
    }
    launch::spawn(8, busy, &()).unwrap();
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
