//! `early_exit RANK CODE`: one rank ends before a barrier that the others reach.

use leyden_comm::{Result, launch};

fn main() -> Result<()> {
    let words: Vec<i32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let mut rank = launch::world(3)?.join()?;
    rank.barrier("start")?;
    if rank.rank() as i32 == words[0] {
        std::process::exit(words[1]);
    }
    rank.barrier("epoch end")
}
