//! Each way to carry ranks does all that one must, and gives the same bits.

use std::sync::LazyLock;

use leyden_comm::launch::{self, Carrier};
use leyden_comm::{Rank, Result, testing};

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
