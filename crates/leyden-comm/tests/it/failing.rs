//! Ranks that do not do as the others: an error on all that wait, which names ranks, places and a cure.
#![expect(clippy::disallowed_methods, reason = "ranks are to die here, in each way")]

use std::time::{Duration, Instant};

use leyden_comm::{Error, Rank, ReduceOp, Result, launch};

/// Longer than any failure may take to be noticed on a busy machine.
const SOON: Duration = Duration::from_secs(12);

/// Runs ranks that are processes, of which some are to fail.
fn failure<F>(ranks: usize, f: F) -> Error
where
    F: Fn((), &mut Rank) -> Result<()> + Copy + Send + Sync + 'static,
{
    let began = Instant::now();
    let error = launch::spawn(ranks, f, &()).map(drop).unwrap_err();
    let took = began.elapsed();
    println!("{took:?}: {error:?}");
    assert!(took < SOON, "{took:?}: {error:?}");
    if let Some(records) = error.place("records of all ranks") {
        let text = std::fs::read_to_string(records).unwrap_or_else(|why| panic!("{records}: {why}"));
        let records_of = serde_json::from_str::<serde_json::Value>(&text).unwrap();
        assert_eq!(records_of["ranks"].as_array().unwrap().len(), ranks, "{text}");
        std::fs::remove_file(records).unwrap();
    }
    error
}

/// Fails unless the error has this code, these words, and a cure.
fn expect(error: &Error, code: &str, words: &[&str]) {
    let text = format!("{error:?}");
    assert_eq!(error.code().id, code, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    assert!(!error.hints().is_empty(), "{text}");
}

#[test]
fn a_barrier_that_one_rank_skips_is_named_with_both_places() {
    let error = failure(2, |(), rank| {
        if rank.rank() == 1 {
            rank.barrier("make_dataset")?;
        }
        rank.all_reduce(&mut [1.0_f32; 10], ReduceOp::Sum)
    });
    let words = [
        "ranks disagree on collective #1",
        "rank 0",
        "all_reduce(10 f32, sum)",
        "rank 1",
        "barrier(\"make_dataset\")",
        "failing.rs:",
        "on_rank_zero",
    ];
    expect(&error, "D0103", &words);
}

#[test]
fn each_way_to_disagree_is_an_error_before_data_moves() {
    type Way = fn(&mut Rank) -> Result<()>;
    let ways: [(Way, [&str; 2]); 6] = [
        (
            |rank| rank.all_reduce(&mut vec![0.0_f32; 100 - 10 * rank.rank()], ReduceOp::Sum),
            ["all_reduce(100 f32, sum)", "all_reduce(90 f32, sum)"],
        ),
        (
            |rank| {
                let op = if rank.rank() == 0 { ReduceOp::Sum } else { ReduceOp::Max };
                rank.all_reduce(&mut [0.0_f32], op)
            },
            ["1 f32, sum", "1 f32, max"],
        ),
        (|rank| rank.broadcast(&mut [0.0_f32], rank.rank()), ["root 0", "root 1"]),
        (
            |rank| match rank.rank() {
                0 => rank.all_reduce(&mut [0.0_f32], ReduceOp::Sum),
                _ => rank.all_reduce(&mut [0.0_f64], ReduceOp::Sum),
            },
            ["1 f32", "1 f64"],
        ),
        (
            |rank| match rank.rank() {
                0 => rank.barrier("a").and_then(|()| rank.broadcast(&mut [0_u8], 0)),
                _ => rank.broadcast(&mut [0_u8], 0).and_then(|()| rank.barrier("a")),
            },
            ["barrier(\"a\")", "broadcast(1 u8, root 0)"],
        ),
        (|rank| rank.new_group(&[rank.rank()]).map(drop), ["new_group", "ranks disagree"]),
    ];
    for (way, words) in ways {
        let began = Instant::now();
        let error = launch::threads(2, |rank| {
            rank.barrier("before")?;
            way(rank)
        });
        let error = error.unwrap_err();
        expect(&error, "D0103", &words);
        std::fs::remove_file(error.place("records of all ranks").unwrap()).unwrap();
        assert!(began.elapsed() < SOON);
    }
}

#[test]
fn of_many_ranks_the_odd_one_stands_out() {
    let error = failure(5, |(), rank| match rank.rank() {
        3 => rank.barrier("early"),
        _ => rank.all_reduce(&mut [1_i32], ReduceOp::Sum),
    });
    expect(&error, "D0103", &["ranks", "rank 3"]);
}

#[test]
fn a_rank_that_finishes_early_is_named() {
    let error = failure(3, |(), rank| {
        rank.barrier("start")?;
        if rank.rank() == 2 {
            return Ok(());
        }
        rank.barrier("epoch end")
    });
    expect(&error, "D0104", &["rank 2 has left", "barrier(\"epoch end\")", "#1 barrier(\"start\")"]);
}

#[test]
fn the_error_of_a_rank_is_the_error_of_all() {
    let error = failure(3, |(), rank| {
        rank.barrier("start")?;
        if rank.rank() == 1 {
            return Err(Error::msg("no such column").hint("name another"));
        }
        rank.barrier("never")
    });
    expect(&error, "T0001", &["no such column", "rank", "1"]);
}

#[test]
fn a_panic_is_told_with_its_place_and_words() {
    for victim in 0..2 {
        let error = match victim {
            0 => failure(2, |(), rank| if rank.rank() == 0 { panic!("step 7") } else { rank.barrier("x") }),
            _ => failure(2, |(), rank| if rank.rank() == 1 { panic!("step 7") } else { rank.barrier("x") }),
        };
        let text = format!("{error:?}");
        assert_eq!(error.code().id, "D0112", "{text}");
        assert!(text.contains("step 7") && text.contains("failing.rs"), "{text}");
        assert_eq!(error.place("rank"), Some(&*victim.to_string()), "{text}");
    }
}

#[test]
fn a_rank_that_dies_is_named_with_the_cause_and_its_last_words() {
    fn dies(how: fn(), rank: &mut Rank) -> Result<()> {
        rank.barrier("start")?;
        if rank.rank() == 1 {
            eprintln!("bad pointer");
            how();
        }
        rank.barrier("epoch end")
    }
    let aborted = failure(3, |(), rank| dies(|| std::process::abort(), rank));
    expect(&aborted, "D0105", &["rank 1 died", "killed by SIGABRT", "bad pointer", "epoch end"]);
    let killed = failure(3, |(), rank| {
        dies(
            || {
                // SAFETY: kill takes numbers.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            },
            rank,
        )
    });
    expect(&killed, "D0105", &["killed by SIGKILL", "#1 barrier(\"start\")"]);
    let exited = failure(3, |(), rank| dies(|| std::process::exit(0), rank));
    expect(&exited, "D0105", &["rank 1 died", "exited with code 0"]);
}

#[test]
fn nobody_need_wait_for_a_rank_that_dies() {
    let error = failure(2, |(), rank| {
        if rank.rank() == 1 {
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(300));
        rank.barrier("late")
    });
    assert_eq!(error.code().id, "D0105", "{error:?}");
}

#[test]
fn groups_in_another_order_are_a_circle_that_is_printed() {
    let error = failure(2, |(), rank| {
        let (a, b) = (rank.new_group(&[0, 1])?, rank.new_group(&[0, 1])?);
        let (first, second) = if rank.rank() == 0 { (a, b) } else { (b, a) };
        rank.barrier_in(first, "first")?;
        rank.barrier_in(second, "second")
    });
    expect(&error, "D0106", &["rank 0", "rank 1", "group 1", "group 2", "waits for rank", "same order"]);
}

#[test]
fn a_rank_that_does_not_come_is_told_of_and_fails_after_its_budget() {
    let error = failure(2, |(), rank| {
        rank.set_limits(Duration::from_millis(200), Duration::from_millis(800));
        if rank.rank() == 1 {
            rank.phase("reading the table");
            std::thread::sleep(Duration::from_secs(60));
        }
        rank.barrier("epoch end")
    });
    let words = ["rank 1 does not come", "reading the table", "epoch end", "waited", "budget", "long_op"];
    expect(&error, "D0107", &words);
}

#[test]
fn what_was_announced_may_take_longer() {
    let results = launch::spawn(
        2,
        |(), rank: &mut Rank| {
            rank.set_limits(Duration::from_secs(5), Duration::from_millis(300));
            if rank.rank() == 1 {
                rank.long_op("checkpoint", Duration::from_secs(20), || {
                    std::thread::sleep(Duration::from_millis(900));
                });
            }
            rank.barrier("after")
        },
        &(),
    );
    results.unwrap();
}

#[test]
fn a_rank_that_is_stopped_suspends_the_budget() {
    let results = launch::spawn(
        2,
        |(), rank: &mut Rank| {
            rank.set_limits(Duration::from_secs(10), Duration::from_secs(3));
            if rank.rank() == 1 {
                let pid = std::process::id();
                // Somebody else must send it on again.
                let mut waker = std::process::Command::new("sh");
                waker.args(["-c", &format!("kill -STOP {pid}; sleep 4.5; kill -CONT {pid}")]);
                waker.spawn()?.wait()?;
            }
            rank.barrier("after")
        },
        &(),
    );
    results.unwrap();
}

#[test]
fn a_result_that_cannot_be_sent_is_told_as_such() {
    struct Unsendable;
    impl serde::Serialize for Unsendable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no way"))
        }
    }
    impl<'de> serde::Deserialize<'de> for Unsendable {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
            Ok(Self)
        }
    }
    let error = launch::spawn(2, |(), rank: &mut Rank| rank.barrier("end").map(|()| Unsendable), &());
    let error = error.map(drop).unwrap_err();
    assert_eq!(error.code().id, "D0109", "{error:?}");
    assert!(error.place("rank").is_some(), "{error:?}");
    // If the other one waited still.
    if let Some(records) = error.place("records of all ranks") {
        std::fs::remove_file(records).unwrap();
    }
}

#[test]
fn a_failed_world_gives_its_error_again() {
    let error = failure(2, |(), rank| {
        let first = match rank.rank() {
            0 => rank.barrier("one"),
            _ => rank.barrier("two").and_then(|()| rank.broadcast(&mut [0_u8], 0)),
        };
        let first = first.and_then(|()| rank.agree_any(true, "flag").map(drop)).unwrap_err();
        let second = rank.barrier("again").unwrap_err();
        assert_eq!((first.code(), first.what()), (second.code(), second.what()));
        Err(second)
    });
    assert_eq!(error.code().id, "D0103", "{error:?}");
}
