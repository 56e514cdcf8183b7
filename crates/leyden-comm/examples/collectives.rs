//! How long collectives take: `cargo run --release -p leyden-comm --example collectives [RANKS [REPEATS [ROW]]]`.
//!
//! Each line is the median of the repeats' medians, the least and the most of them, and the least of all: on a machine that
//! others use too, that one tells more. For the large ones also which part that is of what memory allows: 2·P·S/B seconds,
//! with the B of all ranks that copy at once.

#[path = "../../../benches/src/comm/measure.rs"]
mod measure;

use leyden_comm::{Result, launch};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().and_then(|argument| argument.parse().ok()).unwrap_or(default);
    let (ranks, repeats): (usize, usize) = (number(2), number(5));
    let only = arguments.next();
    let rows = [
        ("barrier", 0, false),
        ("1k", 1 << 10, false),
        ("64k", 64 << 10, false),
        ("25m", 25 << 20, false),
        ("64k-segment", 64 << 10, true),
        ("25m-segment", 25 << 20, true),
    ];
    for (name, bytes, in_segment) in rows {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let (mut medians, mut least, mut bandwidth) = (Vec::new(), f64::INFINITY, 0.0_f64);
        for _ in 0..repeats.max(1) {
            let measured = match in_segment {
                true => launch::spawn(ranks, measure::segment, &bytes)?,
                false => launch::spawn(ranks, measure::private, &bytes)?,
            };
            let mut seconds = measured.into_iter().next().unwrap_or_default();
            seconds.sort_unstable_by(f64::total_cmp);
            medians.push(seconds[seconds.len() / 2] * 1e6);
            least = least.min(seconds[0] * 1e6);
            if bytes > 1 << 20 {
                let found = launch::spawn(ranks, measure::bandwidth, &bytes)?;
                bandwidth = found.into_iter().fold(bandwidth, f64::max);
            }
        }
        medians.sort_unstable_by(f64::total_cmp);
        let median = medians[medians.len() / 2];
        let (from, to) = (medians[0], medians[medians.len() - 1]);
        print!("{name:12} median {median:9.3} us [{from:.3}, {to:.3}]  least {least:.3}");
        if bandwidth > 0.0 {
            let limit = (2 * ranks * bytes) as f64 / bandwidth * 1e6;
            print!("  limit {limit:.0} us ({:.1} GB/s): {:.2} of it", bandwidth / 1e9, limit / median);
        }
        println!();
    }
    Ok(())
}
