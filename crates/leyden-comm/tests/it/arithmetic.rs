//! Reductions give the bits of a sum in rank order, for each type, length, number of ranks and kind of rank.

use half::{bf16, f16};
use leyden_comm::{Element, Rank, ReduceOp, Result, launch};

/// What rank `rank` has at `index`: small numbers of both signs that do not add up exactly.
fn number(rank: usize, index: usize) -> f64 {
    let mixed = (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed >> 40) as f64 / (1 << 24) as f64 - 0.5) * 3.7
}

trait Made: Element {
    fn made(number: f64) -> Self;
    /// What it becomes, in the arithmetic that is promised: computed one element after the other.
    fn expected(op: ReduceOp, ranks: &[Self]) -> Self;
}

macro_rules! made {
    ($type:ty, $wide:ty, $make:expr, $widen:expr, $narrow:expr, $mean:expr) => {
        impl Made for $type {
            fn made(number: f64) -> Self {
                $make(number)
            }

            fn expected(op: ReduceOp, ranks: &[Self]) -> Self {
                let wide = ranks.iter().map(|&x| -> $wide { $widen(x) });
                let first = wide.clone().next().unwrap();
                let rest = wide.skip(1);
                $narrow(match op {
                    ReduceOp::Sum => rest.fold(first, |a, b| a + b),
                    ReduceOp::Mean => $mean(rest.fold(first, |a, b| a + b), ranks.len()),
                    ReduceOp::Prod => rest.fold(first, |a, b| a * b),
                    ReduceOp::Min => rest.fold(first, |a, b| if b < a { b } else { a }),
                    ReduceOp::Max => rest.fold(first, |a, b| if b > a { b } else { a }),
                })
            }
        }
    };
}

made!(f32, f32, |x| x as f32, |x| x, |x| x, |sum, n| sum / n as f32);
made!(f64, f64, |x| x, |x| x, |x| x, |sum, n| sum / n as f64);
made!(f16, f32, f16::from_f64, f16::to_f32, f16::from_f32, |sum, n| sum / n as f32);
made!(bf16, f32, bf16::from_f64, bf16::to_f32, bf16::from_f32, |sum, n| sum / n as f32);
made!(i64, i64, |x| (x * 1000.0) as i64, |x| x, |x| x, |_, _| unreachable!("integers have no mean"));
made!(i32, i32, |x| (x * 3.0) as i32, |x| x, |x| x, |_, _| unreachable!("integers have no mean"));

const OPS: [ReduceOp; 5] = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max, ReduceOp::Prod];

fn check<T: Made>(rank: &mut Rank, len: usize) -> Result<()> {
    let ranks = rank.world_size();
    let is_integer = T::NAME.starts_with(['i', 'u']);
    for op in OPS.into_iter().filter(|op| !(is_integer && *op == ReduceOp::Mean)) {
        let mut data: Vec<T> = (0..len).map(|index| T::made(number(rank.rank(), index))).collect();
        rank.all_reduce(&mut data, op)?;
        for (index, &found) in data.iter().enumerate() {
            let all: Vec<T> = (0..ranks).map(|rank| T::made(number(rank, index))).collect();
            let expected = T::expected(op, &all);
            assert_eq!(
                bytemuck::bytes_of(&found),
                bytemuck::bytes_of(&expected),
                "{op:?} of {} at {index} of {len}, {ranks} ranks",
                T::NAME
            );
        }
    }
    Ok(())
}

fn check_all(_: (), rank: &mut Rank) -> Result<()> {
    // Over the edges of windows too, of 256 KiB.
    for len in [0, 1, 5, 2047, 2049, 65_536, 70_001] {
        check::<f32>(rank, len)?;
    }
    for len in [3, 40_000] {
        check::<f64>(rank, len)?;
        check::<f16>(rank, len)?;
        check::<bf16>(rank, len)?;
        check::<i64>(rank, len)?;
        check::<i32>(rank, len)?;
    }
    Ok(())
}

#[test]
fn threads_reduce_in_rank_order_for_one_to_eight_ranks() {
    for ranks in 1..=8 {
        launch::threads(ranks, |rank| check_all((), rank)).unwrap();
    }
}

#[test]
fn processes_reduce_in_rank_order_for_one_to_eight_ranks() {
    for ranks in [1, 2, 3, 4, 8] {
        launch::spawn(ranks, check_all, &()).unwrap();
    }
}
