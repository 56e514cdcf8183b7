//! Samples that fail, and workers that die: what was lost is made again, bit for bit, or named.

use leyden_data::codes::{GET_PANICKED, POISON, WORKER_DIED};
use leyden_data::{BadSample, DataLoader};
use leyden_process::error::USER;
use leyden_process::{Error, exit};

use crate::support::leftovers::{is_alive, settle};
use crate::support::trouble::{now, signal};
use crate::support::{
    Act, Kind, LONG, Leftovers, Trouble, batch_of, calm_hash, measured, only_error, outcomes, troubled,
    whole_hash,
};

/// Every way in which a data set's code may end its process.
fn deadly() -> Vec<(Act, &'static str)> {
    vec![
        (Act::Abort, "killed by SIGABRT"),
        (Act::Segv, "killed by SIGSEGV"),
        (Act::Illegal, "killed by SIGILL"),
        (Act::Overflow, "killed by SIGSEGV"),
        (Act::Signal(libc::SIGKILL), "killed by SIGKILL"),
        (Act::Signal(libc::SIGBUS), "killed by SIGBUS"),
        (Act::Exit(0), "exited with code 0 without saying goodbye"),
        (Act::Exit(3), "exited with code 3 without saying goodbye"),
    ]
}

fn places(error: &Error, labels: [&str; 3]) -> [String; 3] {
    labels.map(|label| error.place(label).unwrap_or("-").to_owned())
}

// Row 1.
#[test]
fn a_sample_that_fails_is_named_and_the_other_batches_come() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(20, folder.path()).always(9, Act::Fail);
        let loader = troubled(kind, &dataset).build().unwrap();
        for _ in 0..2 {
            let outcomes = outcomes(&loader, 3);
            assert_eq!(outcomes.len(), 5, "{kind:?}");
            let (batch, error) = only_error(&outcomes);
            assert_eq!((error.code(), error.what()), (USER, "the sample is damaged"), "{kind:?}");
            assert_eq!(
                places(error, ["sample", "batch", "epoch"]),
                ["9", &batch.to_string(), "3"],
                "{kind:?}"
            );
            assert_eq!(batch, batch_of(&dataset, 3, 9), "{kind:?}");
            assert!(error.place("raised").unwrap().contains("trouble.rs:"), "{kind:?}: {error:?}");
            assert_eq!(error.place("worker").is_some(), kind != Kind::Inline, "{kind:?}: {error:?}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn a_bad_sample_is_left_out_and_counted_where_that_is_asked_for() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(20, folder.path()).always(9, Act::Fail).always(13, Act::Panic);
        let loader = troubled(kind, &dataset).on_bad_sample(BadSample::Skip).build().unwrap();
        let mut samples: Vec<u64> = outcomes(&loader, 3).into_iter().flat_map(Result::unwrap).collect();
        samples.sort_unstable();
        assert!(samples.into_iter().eq((0..20).filter(|sample| ![9, 13].contains(sample))), "{kind:?}");
        assert_eq!((loader.timings().skipped, loader.timings().samples), (2, 18), "{kind:?}");
    }
    leftovers.assert_none();
}

// Row 2.
#[test]
fn a_panic_is_an_error_with_its_place_and_the_worker_lives() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(20, folder.path()).always(9, Act::Panic);
        let loader = troubled(kind, &dataset).build().unwrap();
        for _ in 0..2 {
            let outcomes = outcomes(&loader, 0);
            let (batch, error) = only_error(&outcomes);
            assert_eq!(
                (error.code(), error.what()),
                (GET_PANICKED, "the data set panicked in `get`"),
                "{kind:?}"
            );
            assert_eq!(error.reasons(), ["torn page"], "{kind:?}");
            assert_eq!(
                places(error, ["sample", "batch", "epoch"]),
                ["9", &batch.to_string(), "0"],
                "{kind:?}"
            );
            assert!(error.place("panicked").unwrap().contains("trouble.rs:"), "{kind:?}: {error:?}");
        }
        let by: std::collections::BTreeSet<i32> = dataset.marks(9).iter().map(|mark| mark.pid).collect();
        assert!(by.iter().all(|&pid| is_alive(pid)), "{kind:?}: a worker died of a panic");
    }
    leftovers.assert_none();
}

// Rows 3, 4 and 5.
#[test]
fn a_worker_that_dies_is_replaced_and_its_batch_made_again_bit_for_bit() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        for (act, _) in deadly() {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(40, folder.path()).once(17, act.clone());
            let loader = troubled(kind, &dataset).build().unwrap();
            let batch = batch_of(&dataset, 2, 17);
            let mut epoch = loader.epoch(2);
            let mut batches: Vec<_> =
                epoch.by_ref().take(batch + 1).map(|batch| batch.unwrap().data).collect();
            let latency = now() - dataset.mark(17).at;
            batches.extend(epoch.map(|batch| batch.unwrap().data));
            assert_eq!(crate::support::trouble::hash(&batches), calm_hash(&dataset, 2), "{kind:?}, {act:?}");
            assert_eq!(whole_hash(&loader, 3), calm_hash(&dataset, 3), "{kind:?}, {act:?}: the epoch after");
            measured("3-5", format_args!("{kind:?}, {act:?}, death to the batch made again"), latency);
            assert!(latency < LONG / 3, "{kind:?}, {act:?}: {latency:?}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn without_replacements_a_death_is_an_error_with_cause_sample_and_last_words() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        for (act, cause) in deadly() {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(40, folder.path()).once(17, act.clone());
            let loader = troubled(kind, &dataset).restarts(0).build().unwrap();
            let first = outcomes(&loader, 2);
            let (batch, error) = only_error(&first);
            assert_eq!(error.code(), WORKER_DIED, "{kind:?}, {act:?}: {error:?}");
            assert_eq!(error.exit_code(), exit::WORKER_DIED);
            assert_eq!(batch, batch_of(&dataset, 2, 17));
            assert_eq!(
                places(error, ["sample", "batch", "epoch"]),
                ["17", &batch.to_string(), "2"],
                "{kind:?}, {act:?}"
            );
            let seen = error.place("cause").unwrap().replace(" (core dumped)", "");
            assert_eq!(seen, cause, "{kind:?}, {act:?}: {error:?}");
            let pid = dataset.mark(17).pid;
            assert!(error.place("worker").unwrap().ends_with(&format!(" of 2, pid {pid}")), "{error:?}");
            if matches!(act, Act::Abort | Act::Segv) {
                assert_eq!(error.place("stderr"), Some("decoder: bad marker"), "{kind:?}, {act:?}");
            }
            // The loader is as good as before: all other batches came, and the next epoch is whole.
            assert_eq!(whole_hash(&loader, 2), calm_hash(&dataset, 2), "{kind:?}, {act:?}");
        }
    }
    leftovers.assert_none();
}

// Row 4: killed from outside, while it is at a sample.
#[test]
fn a_worker_killed_from_outside_costs_milliseconds() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let mut latencies: Vec<_> = (0..10)
            .map(|epoch| {
                let folder = tempfile::tempdir().unwrap();
                let dataset = Trouble::new(8, folder.path()).once(3, Act::Block);
                let loader = troubled(kind, &dataset).build().unwrap();
                let mut batches = loader.epoch(epoch);
                let pid = dataset.mark(3).pid;
                let killed = now();
                signal(pid, libc::SIGKILL);
                let batches: Vec<_> = batches.by_ref().map(|batch| batch.unwrap().data).collect();
                let latency = now() - killed;
                assert_eq!(crate::support::trouble::hash(&batches), calm_hash(&dataset, epoch), "{kind:?}");
                latency
            })
            .collect();
        latencies.sort_unstable();
        measured("4", format_args!("{kind:?}, SIGKILL to the whole epoch, median of 10"), latencies[5]);
        measured("4", format_args!("{kind:?}, SIGKILL to the whole epoch, worst of 10"), latencies[9]);
        assert!(latencies[9] < LONG / 3, "{kind:?}: {latencies:?}");
    }
    leftovers.assert_none();
}

#[test]
fn an_idle_worker_that_is_killed_is_replaced_without_a_word_to_the_epoch() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset =
            Trouble::new(16, folder.path()).init(0, Act::Sleep(std::time::Duration::ZERO), usize::MAX);
        let loader = troubled(kind.alone(), &dataset).build().unwrap();
        for epoch in 0..3 {
            let pid = dataset.init_marks(0).last().unwrap().pid;
            signal(pid, libc::SIGKILL);
            assert!(settle(|| !is_alive(pid)), "{kind:?}");
            assert_eq!(whole_hash(&loader, epoch), calm_hash(&dataset, epoch), "{kind:?}");
        }
    }
    leftovers.assert_none();
}

// A worker that dies of something else than its tasks, each time anew, is not started for ever.
#[test]
fn idle_workers_are_replaced_as_often_as_busy_ones() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset =
            Trouble::new(16, folder.path()).init(0, Act::Sleep(std::time::Duration::ZERO), usize::MAX);
        let loader = DataLoader::builder(dataset.clone()).restarts(2);
        let loader = kind.alone().of(loader).build().unwrap();
        let mut epoch = loader.epoch(0);
        epoch.next().unwrap().unwrap();
        for death in 0..3 {
            assert!(settle(|| dataset.init_marks(0).len() > death), "{kind:?}: no replacement for {death}");
            // Until it has made what is made ahead, and has nothing more to do.
            std::thread::sleep(std::time::Duration::from_millis(100));
            let pid = dataset.init_marks(0).last().unwrap().pid;
            signal(pid, libc::SIGKILL);
            assert!(settle(|| !is_alive(pid)), "{kind:?}");
        }
        let last = epoch.last().unwrap().unwrap_err();
        assert_eq!(last.code().id, "P0302", "{kind:?}: {last:?}");
        assert!(format!("{last:?}").contains("SIGKILL"), "{kind:?}: {last:?}");
        assert_eq!(dataset.init_marks(0).len(), 3, "{kind:?}: {last:?}");
        assert!(loader.epoch(1).all(|batch| batch.is_ok()), "{kind:?}: the epoch after");
    }
    leftovers.assert_none();
}

#[test]
fn a_slow_sample_beside_one_that_kills_is_not_blamed() {
    let leftovers = Leftovers::before();
    let folder = tempfile::tempdir().unwrap();
    let slow = Act::Sleep(std::time::Duration::from_millis(150));
    let dataset = Trouble::new(8, folder.path()).always(2, slow).always(3, Act::Abort);
    let loader = DataLoader::builder(dataset.clone()).restarts(20);
    let loader = Kind::SpawnThreads(1, 2).of(loader).build().unwrap();
    let all = outcomes(&loader, 0);
    let (batch, error) = only_error(&all);
    assert_eq!((batch, error.code()), (3, POISON), "{error:?}");
    assert_eq!(places(error, ["sample", "cause", "stderr"])[..2], ["3", "killed by SIGABRT"]);
    drop(loader);
    leftovers.assert_none();
}

#[test]
fn a_sample_that_kills_each_worker_is_named_and_the_other_batches_come() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(40, folder.path()).always(17, Act::Segv);
        let loader = troubled(kind, &dataset).build().unwrap();
        for round in 1..=2 {
            let all = outcomes(&loader, 2);
            let (batch, error) = only_error(&all);
            assert_eq!(error.code(), POISON, "{kind:?}: {error:?}");
            assert_eq!(
                places(error, ["sample", "batch", "epoch"]),
                ["17", &batch.to_string(), "2"],
                "{kind:?}"
            );
            assert_eq!(
                places(error, ["deaths", "cause", "stderr"]),
                ["3", "killed by SIGSEGV", "decoder: bad marker"],
                "{kind:?}"
            );
            assert_eq!(dataset.marks(17).len(), 3 * round, "{kind:?}: three workers tried it");
        }
    }
    leftovers.assert_none();
}

#[test]
fn samples_that_kill_workers_are_left_out_and_counted_where_that_is_asked_for() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset =
            Trouble::new(40, folder.path()).always(17, Act::Segv).always(3, Act::Abort).always(30, Act::Fail);
        let loader = troubled(kind, &dataset).on_bad_sample(BadSample::Skip).build().unwrap();
        let mut samples: Vec<u64> = outcomes(&loader, 2).into_iter().flat_map(Result::unwrap).collect();
        samples.sort_unstable();
        assert!(samples.into_iter().eq((0..40).filter(|sample| ![3, 17, 30].contains(sample))), "{kind:?}");
        assert_eq!((loader.timings().skipped, loader.timings().samples), (3, 37), "{kind:?}");
    }
    leftovers.assert_none();
}

#[test]
fn an_innocent_sample_is_not_left_out_because_its_worker_was_killed() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(40, folder.path()).once(17, Act::Signal(libc::SIGKILL));
        let loader = troubled(kind, &dataset).on_bad_sample(BadSample::Skip).restarts(0).build().unwrap();
        let all = outcomes(&loader, 2);
        let (_, error) = only_error(&all);
        assert_eq!(error.code(), WORKER_DIED, "{kind:?}: {error:?}");
        assert_eq!(loader.timings().skipped, 0, "{kind:?}");
    }
    leftovers.assert_none();
}

// Both the worker and its copy come back from `get`.
#[test]
fn a_copy_of_a_worker_that_a_sample_forked_does_not_spoil_the_workers_batches() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = (0..40).fold(Trouble::new(40, folder.path()), |dataset, sample| {
            if sample % 3 == 0 { dataset.always(sample, Act::Fork) } else { dataset }
        });
        let loader = troubled(kind, &dataset).restarts(0).build().unwrap();
        for epoch in 0..4 {
            assert_eq!(whole_hash(&loader, epoch), calm_hash(&dataset, epoch), "{kind:?}, epoch {epoch}");
        }
        assert!(settle(|| dataset.copies().len() == 4 * 14), "{kind:?}: {}", dataset.copies().len());
        assert!(settle(|| dataset.copies().iter().all(|copy| !is_alive(copy.pid))), "{kind:?}");
    }
    leftovers.assert_none();
}

// Restarts used up.
#[test]
fn when_the_replacements_are_used_up_each_further_death_is_told_and_the_rest_of_the_epoch_comes() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let deadly = [2, 9, 17, 23, 31];
        let dataset = deadly
            .iter()
            .fold(Trouble::new(40, folder.path()), |dataset, &sample| dataset.once(sample, Act::Abort));
        let loader = DataLoader::builder(dataset.clone()).seed(11).restarts(2);
        let loader = kind.alone().of(loader).build().unwrap();
        let all = outcomes(&loader, 0);
        let failed: Vec<(usize, &Error)> = all
            .iter()
            .enumerate()
            .filter_map(|(batch, outcome)| Some((batch, outcome.as_ref().err()?)))
            .collect();
        assert_eq!(failed.iter().map(|(batch, _)| *batch).collect::<Vec<_>>(), deadly[2..], "{kind:?}");
        for (batch, error) in failed {
            assert_eq!(error.code(), WORKER_DIED, "{kind:?}: {error:?}");
            assert_eq!(
                places(error, ["sample", "replaced", "stderr"]),
                [&batch.to_string(), "2 of 2 times in this epoch", "decoder: bad marker"]
            );
        }
        assert!(outcomes(&loader, 0).iter().all(Result::is_ok), "{kind:?}: the epoch after");
    }
    leftovers.assert_none();
}
