//! How long collectives take: `cargo run --release -p leyden-comm --example collectives [RANKS [REPEATS [ROW]]]`.
//!
//! Each line is the median of all, and the least: on a machine that others use too, that one tells more.

#[path = "../../../benches/src/comm/measure.rs"]
mod measure;

use leyden_comm::{Result, launch};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().and_then(|argument| argument.parse().ok()).unwrap_or(default);
    let (ranks, repeats) = (number(2), number(5));
    let row = arguments.next();
    for (name, bytes) in [("barrier", 0), ("1k", 1 << 10), ("64k", 64 << 10), ("25m", 25 << 20)] {
        if row.as_deref().is_some_and(|row| row != name) {
            continue;
        }
        let mut medians = Vec::new();
        let mut least = f64::INFINITY;
        for _ in 0..repeats {
            let mut seconds = launch::spawn(ranks, measure::private, &bytes)?.swap_remove(0);
            seconds.sort_unstable_by(f64::total_cmp);
            medians.push(seconds[seconds.len() / 2] * 1e6);
            least = least.min(seconds[0] * 1e6);
        }
        medians.sort_unstable_by(f64::total_cmp);
        println!(
            "{name:12} median {:9.3} us [{:.3}, {:.3}]  least {least:.3}",
            medians[repeats / 2],
            medians[0],
            medians[repeats - 1]
        );
    }
    Ok(())
}
