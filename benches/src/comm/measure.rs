//! What a rank measures. Also a program of its own, which builds without the rest:
//! `cargo run --release -p leyden-comm --example collectives`.

use std::time::Instant;

use leyden_comm::{Error, Rank, ReduceOp, Result};

/// Seconds of each collective on so many bytes, after some that are not counted; 0 is a barrier.
pub(crate) fn private(bytes: usize, rank: &mut Rank) -> Result<Vec<f64>> {
    let mut data = vec![1.0_f32; bytes / 4];
    let seconds = timed(bytes, || match bytes {
        0 => rank.barrier(""),
        _ => rank.all_reduce(&mut data, ReduceOp::Mean),
    })?;
    check(&data)?;
    Ok(seconds)
}

fn timed(bytes: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let (counted, before) = if bytes > 1 << 20 { (30, 3) } else { (5000, 500) };
    let mut seconds = Vec::with_capacity(counted);
    for round in 0..counted + before {
        let began = Instant::now();
        work()?;
        if round >= before {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}

fn check(data: &[f32]) -> Result<()> {
    if data.iter().any(|&number| number != 1.0) {
        return Err(Error::msg("a mean of ones is not one"));
    }
    Ok(())
}
