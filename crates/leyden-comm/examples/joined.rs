//! A rank of whatever launcher has started it: `torchrun --no-python --nproc-per-node 3 joined`, `mpirun -n 3 joined`,
//! `srun -n 3 joined`.

use leyden_comm::{ReduceOp, Result, launch};

fn main() -> Result<()> {
    let mut rank = launch::join()?;
    let mut sum = [rank.rank() as i64 + 1];
    rank.all_reduce(&mut sum, ReduceOp::Sum)?;
    let sums = rank.gather(&sum, 0)?;
    if let Some(sums) = sums {
        println!("{} ranks, sums {sums:?}", rank.world_size());
    }
    rank.barrier("end")
}
