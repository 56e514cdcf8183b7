//! For tests of what carries ranks: what each transport, and each way to start ranks, must do.

use bytemuck::bytes_of;
use half::{bf16, f16};
use leyden_process::error::USER;
use leyden_process::{Error, Result};

use crate::element::{Element, ReduceOp};
use crate::rank::{Group, Rank};

/// One thing that ranks must do.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// A sentence.
    pub name: &'static str,
    /// On how many ranks; each of them.
    pub sizes: &'static [usize],
    /// What one rank does. Gives a number that stands for all bits that it has got.
    pub body: fn(&mut Rank) -> Result<u64>,
    /// How it ends.
    pub ends: Ends,
}

/// How a [`Case`] ends.
#[derive(Clone, Copy, Debug)]
pub enum Ends {
    /// Well, on all ranks.
    Well,
    /// By an error of this code, in which these words are, with a hint.
    Failing(&'static str, &'static [&'static str]),
}

/// Runs all [`CASES`] on ranks that `run` starts: it is given how many, and which case. Gives the numbers of all ranks of
/// all cases: they are the same for all ways to run them.
///
/// # Panics
/// If one does not go as it should.
///
/// ```
/// use leyden_comm::{launch, testing};
///
/// testing::conformance(&[2], |ranks, case| launch::threads(ranks, testing::CASES[case].body));
/// ```
pub fn conformance(sizes: &[usize], run: impl Fn(usize, usize) -> Result<Vec<u64>>) -> Vec<u64> {
    let mut numbers = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        for &ranks in case.sizes.iter().filter(|ranks| sizes.contains(ranks)) {
            let about = format!("on {ranks} ranks: {}", case.name);
            match (run(ranks, number), case.ends) {
                (Ok(results), Ends::Well) => numbers.extend(results),
                (Err(error), Ends::Failing(code, words)) => {
                    let text = format!("{error:?}");
                    assert_eq!(error.code().id, code, "{about}: {text}");
                    for word in words {
                        assert!(text.contains(word), "{about}: {word:?} is not in {text}");
                    }
                    assert!(!error.hints().is_empty() || code == "D0112", "{about}: {text}");
                }
                (result, _) => panic!("{about}: {result:?}"),
            }
        }
    }
    numbers
}

/// All that ranks must do, whatever carries them.
pub const CASES: &[Case] = &[
    Case { name: "each collective gives what it should", sizes: ALL, body: everything, ends: Ends::Well },
    Case { name: "reductions are in rank order, to the bit", sizes: ALL, body: arithmetic, ends: Ends::Well },
    Case { name: "buckets get the bits of slices", sizes: ALL, body: buckets, ends: Ends::Well },
    Case { name: "groups have numbers of their own", sizes: ALL, body: groups, ends: Ends::Well },
    Case { name: "objects arrive, of any size", sizes: ALL, body: objects, ends: Ends::Well },
    Case { name: "what rank 0 fails of reaches all", sizes: ALL, body: rank_zero, ends: Ends::Well },
    Case { name: "bad arguments are refused at once", sizes: &[2], body: arguments, ends: Ends::Well },
    Case { name: "many collectives keep their order", sizes: &[2, 4], body: many, ends: Ends::Well },
    Case {
        name: "a barrier that one rank skips is named",
        sizes: SOME,
        body: |rank| {
            rank.barrier("start")?;
            if rank.rank() == 1 {
                rank.barrier("make_dataset")?;
            }
            rank.all_reduce(&mut [1.0_f32; 10], ReduceOp::Sum)?;
            Ok(0)
        },
        ends: Ends::Failing(
            "D0103",
            &["all_reduce(10 f32, sum)", "barrier(\"make_dataset\")", "testing.rs:", "on_rank_zero"],
        ),
    },
    Case {
        name: "other lengths are an error before data moves",
        sizes: SOME,
        body: |rank| {
            let mut data = vec![1.0_f32; 100_000 - rank.rank().min(1) * 10];
            rank.all_reduce(&mut data, ReduceOp::Sum).map(|()| 0)
        },
        ends: Ends::Failing("D0103", &["all_reduce(100000 f32, sum)", "all_reduce(99990 f32, sum)"]),
    },
    Case {
        name: "other types, reductions and roots too",
        sizes: &[2],
        body: |rank| match rank.rank() {
            0 => rank.broadcast(&mut [0_u8], 0).map(|()| 0),
            _ => rank.broadcast(&mut [0_i8], 1).map(|()| 0),
        },
        ends: Ends::Failing("D0103", &["1 u8, root 0", "1 i8, root 1"]),
    },
    Case {
        name: "a rank that leaves early is named",
        sizes: SOME,
        body: |rank| {
            rank.barrier("start")?;
            if rank.rank() == 1 {
                return Ok(0);
            }
            rank.barrier("epoch end").map(|()| 0)
        },
        ends: Ends::Failing("D0104", &["rank 1 has left", "barrier(\"epoch end\")", "#1 barrier(\"start\")"]),
    },
    Case {
        name: "the error of a rank ends what all others do",
        sizes: SOME,
        body: |rank| {
            rank.barrier("start")?;
            if rank.rank() == 1 {
                return Err(Error::new(USER, "no such column").at("column", "age").hint("name another"));
            }
            loop {
                rank.barrier("on")?;
            }
        },
        ends: Ends::Failing("T0001", &["no such column", "age", "rank"]),
    },
    Case {
        name: "a panic is told with its words",
        sizes: SOME,
        body: |rank| {
            rank.barrier("start")?;
            assert!(rank.rank() != 1, "step seven");
            loop {
                rank.barrier("on")?;
            }
        },
        ends: Ends::Failing("D0112", &["step seven", "testing.rs"]),
    },
    Case {
        name: "groups in another order are a circle that is printed",
        sizes: &[2, 3],
        body: |rank| {
            let (a, b) = (rank.new_group(&[0, 1])?, rank.new_group(&[0, 1])?);
            let (first, second) = if rank.rank() == 0 { (a, b) } else { (b, a) };
            if rank.rank() < 2 {
                rank.barrier_in(first, "first")?;
                rank.barrier_in(second, "second")?;
            }
            rank.barrier("end").map(|()| 0)
        },
        ends: Ends::Failing(
            "D0106",
            &["rank 0", "rank 1", "group 1", "group 2", "waits for rank", "same order"],
        ),
    },
];

const ALL: &[usize] = &[1, 2, 3, 4, 5, 6, 7, 8];
const SOME: &[usize] = &[2, 3, 4];

fn everything(rank: &mut Rank) -> Result<u64> {
    let (own, size) = (rank.rank(), rank.world_size());
    let last = size - 1;

    let mut numbers = [if own == last { 7_i32 } else { 0 }; 3];
    rank.broadcast(&mut numbers, last)?;
    assert_eq!(numbers, [7; 3]);
    let mut long: Vec<u16> =
        if own == 0 { (0..200_001).map(|x| x as u16).collect() } else { vec![0; 200_001] };
    rank.broadcast(bytemuck::cast_slice_mut::<u16, i16>(&mut long), 0)?;
    assert!(long.iter().enumerate().all(|(index, &x)| x == index as u16));

    let all = rank.all_gather(&[own as u8, 10 + own as u8])?;
    assert_eq!(all, (0..size as u8).flat_map(|rank| [rank, 10 + rank]).collect::<Vec<_>>());
    let long = rank.all_gather(&vec![own as f64; 50_000])?;
    assert!((0..size).all(|peer| long[peer * 50_000..][..50_000].iter().all(|&x| x == peer as f64)));
    assert!(rank.all_gather::<f32>(&[])?.is_empty());

    let gathered = rank.gather(&[own as i64], last)?;
    assert_eq!(gathered, (own == last).then(|| (0..size as i64).collect()));
    let long = rank.gather(&vec![own as u8; 300_000], 0)?;
    if let Some(long) = long {
        assert!(long.chunks(300_000).enumerate().all(|(peer, part)| part.iter().all(|&x| x == peer as u8)));
    }

    let mut part = [0_i16; 2];
    let whole: Vec<i16> = if own == 0 { (0..2 * size as i16).collect() } else { Vec::new() };
    rank.scatter(&whole, &mut part, 0)?;
    assert_eq!(part, [2 * own as i16, 2 * own as i16 + 1]);

    let mut part = [0.0_f32; 1];
    let whole: Vec<f32> = (0..size).map(|place| (own * 10 + place) as f32).collect();
    rank.reduce_scatter(&whole, &mut part, ReduceOp::Sum)?;
    assert_eq!(part[0], (0..size).map(|peer| (peer * 10 + own) as f32).sum::<f32>());

    let mut sum = vec![own as i32; 70_003];
    rank.reduce(&mut sum, ReduceOp::Sum, last)?;
    let expected = if own == last { (0..size as i32).sum() } else { own as i32 };
    assert!(sum.iter().all(|&x| x == expected));

    assert!(rank.agree_any(own == last, "stop")?);
    assert!(!rank.agree_any(false, "stop")?);
    rank.barrier("end")?;
    Ok(gathered_digest(&all))
}

fn gathered_digest(bytes: &[u8]) -> u64 {
    let mut digest = Digest::default();
    digest.take(bytes);
    digest.0
}

fn buckets(rank: &mut Rank) -> Result<u64> {
    let mut digest = Digest::default();
    for length in [0, 1, 17, 100_001] {
        let mut bucket = rank.bucket::<f32>(length, "layer 1")?;
        let mut slice: Vec<f32> = (0..length).map(|index| number(rank.rank(), index) as f32).collect();
        bucket.copy_from_slice(&slice);
        for op in [ReduceOp::Mean, ReduceOp::Sum] {
            rank.all_reduce_bucket(&mut bucket, op)?;
            rank.all_reduce(&mut slice, op)?;
            assert!(bytemuck::cast_slice::<f32, u8>(&bucket) == bytemuck::cast_slice::<f32, u8>(&slice));
        }
        digest.take(bytemuck::cast_slice(&slice));
    }
    Ok(digest.0)
}

fn groups(rank: &mut Rank) -> Result<u64> {
    let (own, size) = (rank.rank(), rank.world_size());
    let odd: Vec<usize> = (0..size).filter(|rank| rank % 2 == 1).collect();
    let low: Vec<usize> = (0..size.div_ceil(2)).collect();
    // One that nobody else is in.
    let alone = rank.new_group(&[size - 1])?;
    let lower = rank.new_group(&low)?;
    let group = if odd.is_empty() { Group::WORLD } else { rank.new_group(&odd)? };
    for round in 0..20_u8 {
        if odd.contains(&own) {
            // Ranks outside go on meanwhile.
            let mut sum = vec![own as u8 + round; 3000];
            rank.all_reduce_in(group, &mut sum, ReduceOp::Sum, "odd ones")?;
            let expected = odd.iter().fold(0_u8, |sum, &rank| sum.wrapping_add(rank as u8 + round));
            assert!(sum.iter().all(|&x| x == expected));
        }
        if low.contains(&own) {
            let mut most = [own as i64];
            rank.all_reduce_in(lower, &mut most, ReduceOp::Max, "low ones")?;
            assert_eq!(most, [low.len() as i64 - 1]);
        }
        if own == size - 1 {
            rank.barrier_in(alone, "alone")?;
        }
        if round % 7 == 0 {
            rank.barrier("all")?;
        }
    }
    rank.barrier("end")?;
    Ok(0)
}

fn objects(rank: &mut Rank) -> Result<u64> {
    let last = rank.world_size() - 1;
    let words = rank.broadcast_object(vec![format!("of rank {}", rank.rank()), "ä".repeat(300_000)], last)?;
    assert_eq!((words[0].clone(), words[1].len()), (format!("of rank {last}"), 600_000));
    rank.broadcast_object((), 0)?;
    Ok(words[1].len() as u64)
}

fn rank_zero(rank: &mut Rank) -> Result<u64> {
    let failed = |_: &crate::RankZero| -> Result<u32> {
        Err(Error::new(USER, "no such file").at("file", "labels.csv"))
    };
    let error = rank.on_rank_zero(failed).unwrap_err();
    assert_eq!((error.code(), error.place("file")), (USER, Some("labels.csv")), "{error:?}");
    let panicked = rank.on_rank_zero(|_| -> Result<u32> { panic!("seventeen") }).unwrap_err();
    assert!(panicked.code().id == "D0111" && format!("{panicked:?}").contains("seventeen"), "{panicked:?}");
    rank.on_rank_zero(|_| Ok(4))
}

fn arguments(rank: &mut Rank) -> Result<u64> {
    let refused = |result: Result<()>| assert_eq!(result.unwrap_err().code().id, "D0108");
    refused(rank.all_reduce(&mut [1, 2_i32], ReduceOp::Mean));
    refused(rank.broadcast(&mut [1.0_f32], 2));
    refused(rank.reduce_scatter(&[1.0_f32; 3], &mut [0.0; 2], ReduceOp::Sum));
    refused(rank.new_group(&[]).map(drop));
    refused(rank.new_group(&[1, 1]).map(drop));
    refused(rank.new_group(&[2]).map(drop));
    let first = rank.new_group(&[0])?;
    if rank.rank() == 1 {
        refused(rank.barrier_in(first, "not mine"));
    }
    for _ in 0..14 {
        rank.new_group(&[0, 1])?;
    }
    refused(rank.new_group(&[0, 1]).map(drop));
    rank.barrier_in(Group::WORLD, "still together")?;
    Ok(0)
}

/// One after the other, of changing kind and length, each with words of its own.
fn many(rank: &mut Rank) -> Result<u64> {
    let (own, size) = (rank.rank(), rank.world_size());
    let mut digest = Digest::default();
    for round in 0..300_usize {
        let length = round * 37 % 1009;
        let mut data: Vec<f32> = (0..length).map(|index| number(own + round, index) as f32).collect();
        rank.all_reduce_in(Group::WORLD, &mut data, ReduceOp::Mean, &format!("round {round}"))?;
        digest.take(bytemuck::cast_slice(&data));
        let root = round % size;
        let mut word = [if own == root { round as i32 } else { -1 }];
        rank.broadcast(&mut word, root)?;
        assert_eq!(word, [round as i32]);
    }
    Ok(digest.0)
}

/// Each type, each reduction, lengths over the edges of windows too.
fn arithmetic(rank: &mut Rank) -> Result<u64> {
    let mut digest = Digest::default();
    for length in [0, 1, 5, 2047, 2049, 65_536, 70_001] {
        check::<f32>(rank, length, &mut digest)?;
    }
    for length in [3, 40_000] {
        check::<f64>(rank, length, &mut digest)?;
        check::<f16>(rank, length, &mut digest)?;
        check::<bf16>(rank, length, &mut digest)?;
        check::<i64>(rank, length, &mut digest)?;
        check::<i32>(rank, length, &mut digest)?;
        check::<i16>(rank, length, &mut digest)?;
        check::<i8>(rank, length, &mut digest)?;
        check::<u8>(rank, length, &mut digest)?;
    }
    Ok(digest.0)
}

fn check<T: Made>(rank: &mut Rank, length: usize, digest: &mut Digest) -> Result<()> {
    const OPS: [ReduceOp; 5] = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max, ReduceOp::Prod];
    let ranks = rank.world_size();
    let is_integer = T::NAME.starts_with(['i', 'u']);
    for op in OPS.into_iter().filter(|op| !(is_integer && *op == ReduceOp::Mean)) {
        let mut data: Vec<T> = (0..length).map(|index| T::made(number(rank.rank(), index))).collect();
        rank.all_reduce(&mut data, op)?;
        for (index, found) in data.iter().enumerate() {
            let all: Vec<T> = (0..ranks).map(|rank| T::made(number(rank, index))).collect();
            let expected = T::expected(op, &all);
            assert_eq!(
                bytes_of(found),
                bytes_of(&expected),
                "{op:?} of {} at {index} of {length}, {ranks} ranks",
                T::NAME
            );
        }
        digest.take(bytemuck::cast_slice(&data));
    }
    Ok(())
}

/// What rank `rank` has at `index`: small numbers of both signs that do not add up exactly.
fn number(rank: usize, index: usize) -> f64 {
    let mixed = (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed >> 40) as f64 / (1 << 24) as f64 - 0.5) * 3.7
}

/// All bits that went in, in their order (FNV-1a).
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn take(&mut self, bytes: &[u8]) {
        self.0 =
            bytes.iter().fold(self.0, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    }
}

trait Made: Element {
    fn made(number: f64) -> Self;
    /// What it becomes, in the arithmetic that is promised: computed one element after the other.
    fn expected(op: ReduceOp, ranks: &[Self]) -> Self;
}

macro_rules! made {
    ($type:ty, $make:expr, $widen:expr, $narrow:expr, $add:expr, $multiply:expr, $mean:expr) => {
        impl Made for $type {
            fn made(number: f64) -> Self {
                $make(number)
            }

            fn expected(op: ReduceOp, ranks: &[Self]) -> Self {
                let mut wide = ranks.iter().map(|&x| $widen(x));
                let first = wide.next().expect("there is a rank");
                $narrow(match op {
                    ReduceOp::Sum => wide.fold(first, $add),
                    ReduceOp::Mean => $mean(wide.fold(first, $add), ranks.len()),
                    ReduceOp::Prod => wide.fold(first, $multiply),
                    ReduceOp::Min => wide.fold(first, |a, b| if b < a { b } else { a }),
                    ReduceOp::Max => wide.fold(first, |a, b| if b > a { b } else { a }),
                })
            }
        }
    };
    (float $type:ty, $wide:ty, $make:expr, $widen:expr, $narrow:expr) => {
        made!($type, $make, $widen, $narrow, |a, b| a + b, |a, b| a * b, |sum: $wide, n| sum / n as $wide);
    };
    (integer $type:ty, $scale:expr) => {
        made!(
            $type,
            |x: f64| (x * $scale) as $type,
            |x: $type| x,
            |x: $type| x,
            <$type>::wrapping_add,
            <$type>::wrapping_mul,
            |_, _| unreachable!("integers have no mean")
        );
    };
}

made!(float f32, f32, |x| x as f32, |x: f32| x, |x| x);
made!(float f64, f64, |x| x, |x: f64| x, |x| x);
made!(float f16, f32, f16::from_f64, f16::to_f32, f16::from_f32);
made!(float bf16, f32, bf16::from_f64, bf16::to_f32, bf16::from_f32);
made!(integer i64, 1e6);
made!(integer i32, 1e6);
made!(integer i16, 1e4);
made!(integer i8, 60.0);
made!(integer u8, 120.0);
