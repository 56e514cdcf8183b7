//! Buckets: reduced to the bits of any other reduction, freed, and harmless when a rank fails.
#![expect(clippy::disallowed_methods, reason = "ranks are to die here")]

use std::fs;

use half::bf16;
use leyden_comm::{Element, Error, Rank, ReduceOp, Result, launch};

/// What rank `rank` has at `index`: numbers that do not add up exactly.
fn number(rank: usize, index: usize) -> f64 {
    let mixed = (rank as u64 + 3).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (index as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed >> 40) as f64 / (1 << 24) as f64 - 0.5) * 3.7
}

/// A bucket against a slice that is reduced; how that one is to be reduced is tested elsewhere.
fn same<T: Element>(rank: &mut Rank, len: usize, make: impl Fn(f64) -> T) -> Result<()> {
    let mut bucket = rank.bucket::<T>(len, "same")?;
    assert_eq!(bucket.is_shared(), rank.world_size() > 1 && len > 0);
    assert!(bucket.len() == len && bucket.iter().all(|&number| number == T::zeroed()));
    // A second time too: what was reduced is reduced again.
    for op in [ReduceOp::Sum, ReduceOp::Min, ReduceOp::Prod, ReduceOp::Sum] {
        let mut slice: Vec<T> = (0..len).map(|index| make(number(rank.rank(), index))).collect();
        bucket.copy_from_slice(&slice);
        for _ in 0..2 {
            rank.all_reduce_bucket(&mut bucket, op)?;
            rank.all_reduce(&mut slice, op)?;
            assert_eq!(
                bytemuck::cast_slice::<T, u8>(&bucket),
                bytemuck::cast_slice::<T, u8>(&slice),
                "{op:?} of {len} {}",
                T::NAME
            );
        }
    }
    Ok(())
}

fn all_the_same(_: (), rank: &mut Rank) -> Result<()> {
    for len in [0, 1, 15, 17, 4096, 40_001, 600_000] {
        same(rank, len, |number| number as f32)?;
    }
    same(rank, 10_001, bf16::from_f64)?;
    same(rank, 10_001, |number| number)?;
    same(rank, 10_001, |number| (number * 30.0) as i8)?;
    let mut mean = rank.bucket::<f32>(3, "mean")?;
    mean.fill(rank.rank() as f32);
    rank.all_reduce_bucket(&mut mean, ReduceOp::Mean)?;
    assert_eq!(mean[..], [(rank.world_size() - 1) as f32 / 2.0; 3]);
    Ok(())
}

#[test]
fn a_bucket_is_reduced_to_the_bits_of_a_slice_for_one_to_eight_ranks() {
    for ranks in 1..=8 {
        launch::threads(ranks, |rank| all_the_same((), rank)).unwrap();
    }
    for ranks in [2, 3, 8] {
        launch::spawn(ranks, all_the_same, &()).unwrap();
    }
}

/// How much of this process's memory and descriptors is a memfd's.
fn memfds() -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let fds = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let ours = fds.filter(|target| target.to_string_lossy().contains("memfd:")).count();
    (maps.lines().filter(|line| line.contains("memfd:")).count(), ours)
}

#[test]
fn a_dropped_bucket_leaves_neither_memory_nor_descriptors() {
    fn made_and_dropped(_: (), rank: &mut Rank) -> Result<()> {
        rank.barrier("before")?;
        let (maps, fds) = memfds();
        for round in 0..100 {
            let bucket = rank.bucket::<f32>(10_000, &format!("round {round}"))?;
            assert_eq!(memfds(), (maps + 1, fds));
            drop(bucket);
            assert_eq!(memfds(), (maps, fds));
        }
        Ok(())
    }
    launch::spawn(3, made_and_dropped, &()).unwrap();
}

#[test]
fn a_bucket_outlives_the_death_of_a_peer() {
    fn one_dies(_: (), rank: &mut Rank) -> Result<()> {
        let mut bucket = rank.bucket::<f32>(100_000, "layer 1")?;
        bucket.fill(1.0);
        rank.all_reduce_bucket(&mut bucket, ReduceOp::Sum)?;
        if rank.rank() == 1 {
            std::process::abort();
        }
        let error = rank.all_reduce_bucket(&mut bucket, ReduceOp::Sum).unwrap_err();
        // Its numbers are still there, and nobody else's any more.
        assert!(bucket.iter().all(|&number| number == 3.0) && !bucket.is_shared());
        bucket[0] = 4.0;
        Err(error)
    }
    let error = launch::spawn(3, one_dies, &()).map(drop).unwrap_err();
    let text = format!("{error:?}");
    assert!(error.code().id == "D0105" && text.contains("all_reduce_bucket(\"layer 1\""), "{text}");
}

#[test]
fn ranks_with_other_buckets_disagree() {
    type Way = fn(&mut Rank) -> Result<()>;
    let ways: [(Way, &str); 3] = [
        (|rank| rank.bucket::<f32>(10 + rank.rank(), "long").map(drop), "bucket(\"long\", 11 f32"),
        (
            |rank| match rank.rank() {
                0 => rank.bucket::<f32>(1, "typed").map(drop),
                _ => rank.bucket::<f64>(1, "typed").map(drop),
            },
            "bucket(\"typed\", 1 f64",
        ),
        (
            |rank| {
                let mut buckets = [rank.bucket::<f32>(9, "first")?, rank.bucket::<f32>(9, "second")?];
                rank.all_reduce_bucket(&mut buckets[rank.rank()], ReduceOp::Sum)
            },
            "all_reduce_bucket(\"second\", 9 f32, sum)",
        ),
    ];
    for (way, words) in ways {
        let error = launch::threads(2, way).map(drop).unwrap_err();
        let text = format!("{error:?}");
        assert!(error.code().id == "D0103" && text.contains(words), "{text}");
    }
}

#[test]
fn what_cannot_be_is_refused_on_all_ranks() {
    let refused = |result: Result<()>, code: &str| {
        let error = result.unwrap_err();
        assert_eq!(error.code().id, code, "{error:?}");
    };
    launch::threads(2, |rank| {
        refused(rank.bucket::<f32>(usize::MAX / 2, "endless").map(drop), "D0130");
        refused(rank.bucket::<u8>(1 << 44, "too long").map(drop), "D0130");
        let mut whole = rank.bucket::<i32>(2, "integers")?;
        refused(rank.all_reduce_bucket(&mut whole, ReduceOp::Mean), "D0108");
        rank.barrier("still together")
    })
    .unwrap();
    let kept = launch::threads(2, |rank| rank.bucket::<f32>(2, "kept")).unwrap();
    let kept = std::sync::Mutex::new(kept);
    launch::threads(2, |rank| -> Result<()> {
        let mut bucket = kept.lock().unwrap().pop().unwrap();
        refused(rank.all_reduce_bucket(&mut bucket, ReduceOp::Sum), "D0131");
        Ok::<(), Error>(())
    })
    .unwrap();
}
