//! The classic: a barrier inside `if rank == 0`.

use leyden_comm::{ReduceOp, Result, launch};

fn main() -> Result<()> {
    let mut rank = launch::world(2)?.join()?;
    if rank.rank() == 0 {
        rank.barrier("data is there")?;
    }
    let mut gradients = [1.0_f32; 8];
    rank.all_reduce(&mut gradients, ReduceOp::Mean)
}
