//! What a rank measures. Also part of a program that builds without the rest:
//! `cargo run --release -p leyden-comm --example collectives`.

use std::time::Instant;

use leyden_comm::{Error, Rank, ReduceOp, Result};

/// Seconds of each collective on so many bytes, after some that are not counted; 0 is a barrier.
pub(crate) fn private(bytes: usize, rank: &mut Rank) -> Result<Vec<f64>> {
    let mut data = vec![1.0_f32; bytes / 4];
    let mut seconds = Seconds::new(bytes);
    while seconds.go_on() {
        seconds.time(|| match bytes {
            0 => rank.barrier(""),
            _ => rank.all_reduce(&mut data, ReduceOp::Mean),
        })?;
    }
    check(&data)?;
    Ok(seconds.counted)
}

/// The same in a bucket, which is written anew before each: else no number would ever leave its core.
pub(crate) fn segment(bytes: usize, rank: &mut Rank) -> Result<Vec<f64>> {
    let mut bucket = rank.bucket::<f32>(bytes / 4, "measured")?;
    let mut seconds = Seconds::new(bytes);
    while seconds.go_on() {
        bucket.fill(1.0);
        rank.barrier("all have written")?;
        seconds.time(|| rank.all_reduce_bucket(&mut bucket, ReduceOp::Mean))?;
    }
    check(&bucket)?;
    Ok(seconds.counted)
}

/// Bytes that all ranks together read and write in a second, each copying on its own: the best of several. As much as
/// `bytes` is copied, within memory of twice that size.
pub(crate) fn bandwidth(bytes: usize, rank: &mut Rank) -> Result<f64> {
    let from = vec![1_u8; bytes];
    let mut to = vec![0_u8; bytes];
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        rank.barrier("copy")?;
        let began = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        rank.barrier("copied")?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok((2 * rank.world_size() * bytes) as f64 / best)
}

struct Seconds {
    counted: Vec<f64>,
    /// How many there are to be, and how many are not counted before them.
    enough: usize,
    before: usize,
}

impl Seconds {
    fn new(bytes: usize) -> Self {
        let (enough, before) = if bytes > 1 << 20 { (30, 3) } else { (5000, 500) };
        Self { counted: Vec::with_capacity(enough), enough, before }
    }

    fn go_on(&self) -> bool {
        self.counted.len() < self.enough
    }

    fn time(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let began = Instant::now();
        work()?;
        let seconds = began.elapsed().as_secs_f64();
        match self.before {
            0 => self.counted.push(seconds),
            _ => self.before -= 1,
        }
        Ok(())
    }
}

fn check(data: &[f32]) -> Result<()> {
    if data.iter().any(|&number| number != 1.0) {
        return Err(Error::msg("a mean of ones is not one"));
    }
    Ok(())
}
