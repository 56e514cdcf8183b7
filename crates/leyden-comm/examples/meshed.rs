//! A rank for the tests of ranks on several hosts, which a script starts; the first argument says what it does, the second
//! which rank is to fail.
#![expect(clippy::disallowed_methods, reason = "ranks are to die here, in each way")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use leyden_comm::{Rank, ReduceOp, Result, launch};

const LONG: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let victim = words.get(1).map_or(1, |word| word.parse().expect("a rank"));
    let mut rank = launch::join()?;
    rank.set_limits(Duration::from_secs(2), LONG);
    let begun = |rank: &mut Rank| -> Result<bool> {
        rank.barrier("start")?;
        // Who has waited for whom is known to the test: all are here.
        println!("ready {}", std::process::id());
        std::io::stdout().flush()?;
        Ok(rank.rank() == victim)
    };
    match words[0] {
        "bits" => bits(rank),
        "again" => again(rank),
        "wait" => {
            // Is killed, or stopped, or cut off, by the test.
            if begun(&mut rank)? {
                std::thread::sleep(LONG);
            }
            timed(rank, |rank| rank.barrier("epoch end"))
        }
        "busy" => {
            begun(&mut rank)?;
            timed(rank, |rank| {
                let mut data = vec![1.0_f32; 100_000];
                loop {
                    rank.all_reduce(&mut data, ReduceOp::Max)?;
                }
            })
        }
        "stuck" => {
            rank.set_limits(Duration::from_millis(500), Duration::from_secs(4));
            if begun(&mut rank)? {
                std::thread::sleep(LONG);
            }
            timed(rank, |rank| rank.all_reduce(&mut vec![0.0_f32; 200_000], ReduceOp::Sum))
        }
        "mismatch" => {
            let is_odd = begun(&mut rank)?;
            timed(rank, |rank| match is_odd {
                true => rank.barrier("make_dataset"),
                false => rank.all_reduce(&mut [1.0_f32; 10], ReduceOp::Sum),
            })
        }
        "leave" => {
            if begun(&mut rank)? {
                return Ok(());
            }
            timed(rank, |rank| rank.barrier("epoch end"))
        }
        how @ ("exit" | "exit3" | "panic" | "abort" | "fail") => {
            if begun(&mut rank)? {
                match how {
                    "exit" => std::process::exit(0),
                    "exit3" => std::process::exit(3),
                    "panic" => panic!("step seven"),
                    "abort" => std::process::abort(),
                    _ => return Err(leyden_comm::Error::msg("no such column").hint("name another")),
                }
            }
            timed(rank, |rank| rank.barrier("epoch end"))
        }
        other => leyden_process::bail!("no such scenario: {other}"),
    }
}

/// Says how long it took until this failed, and when that was on the clock of all processes of this machine.
fn timed(mut rank: Rank, f: impl FnOnce(&mut Rank) -> Result<()>) -> Result<()> {
    let began = Instant::now();
    let result = f(&mut rank);
    let now = leyden_process::futex::now();
    println!("ended after {} ms at {}", began.elapsed().as_millis(), now.as_millis());
    result
}

/// Numbers whose sum depends on the order.
fn bits(mut rank: Rank) -> Result<()> {
    let own = rank.rank();
    let mut sum = 0_u64;
    for (round, length) in [1, 3, 1000, 65_537, 300_001].into_iter().enumerate() {
        let number = |index: usize| {
            let mixed = ((own * 7 + round + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ (index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / 1e5 - 80.0
        };
        let mut data: Vec<f32> = (0..length).map(number).collect();
        rank.all_reduce(&mut data, ReduceOp::Mean)?;
        sum = data.iter().fold(sum, |sum, x| (sum ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3));
    }
    rank.barrier("end")?;
    println!("bits {sum:016x} of {}", rank.world_size());
    Ok(())
}

/// The world is joined three times.
fn again(first: Rank) -> Result<()> {
    let mut first = Some(first);
    for time in 0..3 {
        let mut rank = match first.take() {
            Some(rank) => rank,
            None => launch::join()?,
        };
        std::thread::sleep(Duration::from_millis(30 * ((rank.rank() + time) % 3) as u64));
        let group = rank.new_group(if time % 2 == 0 { &[0, 1] } else { &[0, 2] })?;
        for _ in 0..=time {
            let mut one = [rank.rank() as f32 + 1.0];
            rank.all_reduce(&mut one, ReduceOp::Sum)?;
            assert_eq!(one, [6.0]);
            if rank.rank() == 0 || rank.rank() == 1 + time % 2 {
                rank.all_reduce_in(group, &mut one, ReduceOp::Sum, "pair")?;
                assert_eq!(one, [12.0]);
            }
        }
    }
    println!("three times");
    Ok(())
}
