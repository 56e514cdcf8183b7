//! Data sets and settings that are odd or wrong, and loaders that are used in odd ways.

use std::time::{Duration, Instant};

use leyden_data::codes::{GET_PANICKED, LOADER_ARGUMENT, NO_BATCHES, RAGGED, WORKER_INIT};
use leyden_data::{Cursor, DataLoader, Error, Tail, Workers};
use leyden_process::error::USER;

use crate::support::trouble::{TroubleBatch, hash};
use crate::support::{
    Act, Kind, LONG, Leftovers, Trouble, batch_of, calm_hash, measured, only_error, outcomes, troubled,
    whole_hash,
};

// Row 32.
#[test]
fn an_empty_data_set_is_the_same_error_for_all_shuffled_or_not() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        for (shuffle, persistent) in [(false, true), (true, true), (true, false)] {
            let folder = tempfile::tempdir().unwrap();
            let builder = troubled(kind, &Trouble::new(0, folder.path()));
            let error = builder.shuffle(shuffle).persistent_workers(persistent).build().unwrap_err();
            assert_eq!((error.code(), error.what()), (NO_BATCHES, "the data set is empty"), "{kind:?}");
        }
    }
    leftovers.assert_none();
}

// Row 33.
#[test]
fn a_batch_size_beyond_the_data_is_one_short_batch_and_with_drop_last_an_error_with_the_numbers() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(3, folder.path());
        let loader = troubled(kind, &dataset).batch_size(10).build().unwrap();
        assert_eq!(
            outcomes(&loader, 0).into_iter().map(|batch| batch.unwrap().len()).collect::<Vec<_>>(),
            [3]
        );
        let error = troubled(kind, &dataset).batch_size(10).drop_last(true).build().unwrap_err();
        assert_eq!(error.code(), NO_BATCHES, "{kind:?}: {error:?}");
        let text = format!("{error:?}");
        assert!(text.contains('3') && text.contains("10"), "{text}");
    }
    leftovers.assert_none();
}

// Row 34: the data set says 24 samples, and has none at 17.
#[test]
fn a_length_that_lies_is_an_error_that_names_the_index() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        for (act, code) in [(Act::Fail, USER), (Act::Missing, GET_PANICKED)] {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(24, folder.path()).always(17, act);
            let loader = troubled(kind, &dataset).build().unwrap();
            let all = outcomes(&loader, 0);
            let (_, error) = only_error(&all);
            assert_eq!((error.code(), error.place("sample")), (code, Some("17")), "{kind:?}: {error:?}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn an_index_outside_of_the_data_set_is_an_error_that_names_it() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(10, folder.path());
        let wild = leyden_data::batch_sampler_fn(3, |_, _| Ok(vec![vec![0, 1], vec![2, 10], vec![3, 4]]));
        let loader = kind.of(DataLoader::builder(dataset).batch_sampler(wild)).build().unwrap();
        let all = outcomes(&loader, 0);
        let errors: Vec<&Error> = all.iter().filter_map(|batch| batch.as_ref().err()).collect();
        assert!(!errors.is_empty(), "{kind:?}");
        assert!(format!("{:?}", errors[0]).contains("10"), "{kind:?}: {:?}", errors[0]);
    }
    leftovers.assert_none();
}

// Row 35.
#[test]
fn samples_of_different_shapes_are_an_error_with_both_shapes_and_both_samples() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).always(17, Act::Ragged);
        let loader = troubled(kind, &dataset).build().unwrap();
        let all = outcomes(&loader, 1);
        let (batch, error) = only_error(&all);
        assert_eq!((error.code(), batch), (RAGGED, batch_of(&dataset, 1, 17)), "{kind:?}: {error:?}");
        assert_eq!(error.place("sample 17"), Some("[9]"), "{kind:?}: {error:?}");
        let others = error.places().filter(|(label, shape)| label.starts_with("sample ") && *shape == "[8]");
        assert_eq!(others.count(), 1, "{kind:?}: {error:?}");
    }
    leftovers.assert_none();
}

// Row 41.
#[test]
fn a_worker_init_that_fails_is_an_error_of_build_with_the_cause_and_nothing_is_left() {
    let leftovers = Leftovers::before();
    for kind in Kind::WORKERS {
        for (act, what, reason) in [
            (Act::Fail, "the data set failed in `worker_init`", "the sample is damaged"),
            (Act::Panic, "the data set panicked in `worker_init`", "torn page"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(24, folder.path()).init(1, act.clone(), 1);
            let error = troubled(kind, &dataset).build().unwrap_err();
            assert_eq!((error.code(), error.what()), (WORKER_INIT, what), "{kind:?}, {act:?}");
            assert_eq!(error.reasons(), [reason], "{kind:?}, {act:?}");
            assert_eq!(error.place("worker"), Some("1 of 2"), "{kind:?}, {act:?}: {error:?}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn a_worker_init_that_kills_its_process_is_an_error_of_build_with_the_cause_and_nothing_is_left() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        for (act, reason) in
            [(Act::Abort, "killed by SIGABRT"), (Act::Exit(0), "exited with code 0 without saying goodbye")]
        {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(24, folder.path()).init(1, act.clone(), 1);
            let error = troubled(kind, &dataset).build().unwrap_err();
            assert_eq!(error.code(), leyden_process::codes::DIED, "{kind:?}, {act:?}: {error:?}");
            assert_eq!(error.reasons()[0].replace(" (core dumped)", ""), reason, "{kind:?}, {act:?}");
            assert_eq!(error.place("process"), Some("leyden data 1"), "{kind:?}, {act:?}: {error:?}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn a_worker_init_that_hangs_is_an_error_of_build_within_its_limit_and_nothing_is_left() {
    const LIMIT: Duration = Duration::from_millis(300);
    let leftovers = Leftovers::before();
    for kind in Kind::WORKERS {
        let folder = tempfile::tempdir().unwrap();
        // A thread cannot be ended: it ends by itself.
        let act = if kind.is_process() { Act::Block } else { Act::Sleep(3 * LIMIT) };
        let dataset = Trouble::new(24, folder.path()).init(1, act, 1);
        let began = Instant::now();
        let error = troubled(kind, &dataset).start_timeout(LIMIT).build().unwrap_err();
        measured("41", format_args!("{kind:?}, init hangs, {LIMIT:?} allowed"), began.elapsed());
        let code = if kind.is_process() { leyden_process::codes::POOL_START } else { WORKER_INIT };
        assert_eq!(error.code(), code, "{kind:?}: {error:?}");
        assert!(error.place("worker").unwrap().starts_with('1'), "{kind:?}: {error:?}");
        assert_eq!(error.place("limit"), Some("300ms"), "{kind:?}: {error:?}");
        assert!(began.elapsed() < LONG / 3, "{kind:?}: {:?}", began.elapsed());
    }
    leftovers.assert_none();
}

/// The first to fail is named at once, though another one hangs.
#[test]
fn a_worker_init_that_fails_is_told_while_another_hangs() {
    let leftovers = Leftovers::before();
    for kind in Kind::WORKERS {
        let folder = tempfile::tempdir().unwrap();
        let act = if kind.is_process() { Act::Block } else { Act::Sleep(Duration::from_millis(500)) };
        let dataset = Trouble::new(24, folder.path()).init(0, act, 1).init(1, Act::Fail, 1);
        let error = troubled(kind, &dataset).build().unwrap_err();
        assert_eq!(error.code(), WORKER_INIT, "{kind:?}: {error:?}");
        assert_eq!(error.place("worker"), Some("1 of 2"), "{kind:?}: {error:?}");
    }
    leftovers.assert_none();
}

#[test]
fn workers_of_one_epoch_that_cannot_start_are_tried_once_and_each_batch_says_why() {
    let leftovers = Leftovers::before();
    for kind in Kind::WORKERS {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).init(0, Act::Fail, 1);
        let loader = troubled(kind, &dataset).persistent_workers(false).build().unwrap();
        let all = outcomes(&loader, 0);
        assert_eq!(all.len(), 6, "{kind:?}");
        assert!(
            all.iter().all(|batch| batch.as_ref().is_err_and(|error| error.code() == WORKER_INIT)),
            "{kind:?}"
        );
        assert_eq!(dataset.init_marks(0).len(), 1, "{kind:?}");
        assert_eq!(whole_hash(&loader, 1), calm_hash(&dataset, 1), "{kind:?}: the epoch after");
    }
    leftovers.assert_none();
}

#[test]
fn absurd_settings_are_refused_before_anything_is_started() {
    let leftovers = Leftovers::before();
    let folder = tempfile::tempdir().unwrap();
    let builder = || DataLoader::builder(Trouble::new(24, folder.path()));
    let refused = [
        ("10,000 threads", builder().num_workers(10_000).build()),
        ("10,000 processes", builder().workers(Workers::spawn(10_000)).build()),
        ("all processes", builder().workers(Workers::spawn(usize::MAX)).build()),
        ("processes with 10,000 threads", builder().workers(Workers::spawn(2).threads_each(10_000)).build()),
        ("too many together", builder().workers(Workers::spawn(usize::MAX).threads_each(usize::MAX)).build()),
        ("no prefetching", builder().num_workers(2).prefetch_factor(0).build()),
        ("all prefetching", builder().num_workers(2).prefetch_factor(usize::MAX).build()),
        (
            "more ahead than there are slots",
            builder().workers(Workers::spawn(8)).prefetch_factor(4096).build(),
        ),
        ("no samples", builder().batch_size(0).build()),
        ("no time", builder().workers(Workers::spawn(2)).timeout(Duration::ZERO).build()),
        ("no time to start", builder().workers(Workers::spawn(2)).start_timeout(Duration::ZERO).build()),
        ("no room", builder().workers(Workers::spawn(2)).max_batch_bytes(0).build()),
        ("a rank outside", builder().rank(2, 2).build()),
        ("both tails", builder().drop_last(true).tail(Tail::Pad).build()),
    ];
    for (name, result) in refused {
        let error = result.map(|_| ()).expect_err(name);
        assert_eq!(error.code(), LOADER_ARGUMENT, "{name}: {error:?}");
        println!("{name}: {error:?}");
    }
    leftovers.assert_none();
}

#[test]
fn large_but_possible_settings_work() {
    let leftovers = Leftovers::before();
    let folder = tempfile::tempdir().unwrap();
    let dataset = Trouble::new(24, folder.path());
    let expected = calm_hash(&dataset, 0);
    for builder in [
        troubled(Kind::Spawn(1), &dataset).prefetch_factor(1000),
        troubled(Kind::Spawn(1), &dataset).timeout(Duration::MAX).warn_after(Duration::MAX),
        troubled(Kind::Threads(1), &dataset).timeout(Duration::MAX).warn_after(Duration::MAX),
        troubled(Kind::Spawn(1), &dataset).start_timeout(Duration::MAX).restarts(usize::MAX),
        troubled(Kind::Spawn(1), &dataset).max_batch_bytes(1 << 20),
        troubled(Kind::Spawn(1), &dataset).max_batch_bytes(1 << 36),
    ] {
        assert_eq!(whole_hash(&builder.build().unwrap(), 0), expected);
    }
    leftovers.assert_none();
}

// Row 28.
#[test]
fn two_loaders_of_one_program_do_not_meet() {
    let leftovers = Leftovers::before();
    for first in Kind::EACH {
        for second in Kind::EACH {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(24, folder.path());
            let loaders = [first, second].map(|kind| troubled(kind, &dataset).build().unwrap());
            let mut epochs = [loaders[0].epoch(1), loaders[1].epoch(2)];
            let mut batches: [Vec<TroubleBatch>; 2] = Default::default();
            for _ in 0..6 {
                for (epoch, batches) in epochs.iter_mut().zip(&mut batches) {
                    batches.push(epoch.next().unwrap().unwrap().data);
                }
            }
            assert_eq!(hash(&batches[0]), calm_hash(&dataset, 1), "{first:?} with {second:?}");
            assert_eq!(hash(&batches[1]), calm_hash(&dataset, 2), "{second:?} with {first:?}");
        }
    }
    leftovers.assert_none();
}

// Row 29.
#[test]
fn epochs_of_one_loader_may_be_read_at_once_also_more_than_fit_and_never_hang() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path());
        let loader = troubled(kind, &dataset).build().unwrap();
        let mut two = [loader.epoch(1), loader.epoch(2)];
        let mut batches: [Vec<TroubleBatch>; 2] = Default::default();
        for _ in 0..6 {
            for (epoch, batches) in two.iter_mut().zip(&mut batches) {
                batches.push(epoch.next().unwrap().unwrap().data);
            }
        }
        assert_eq!(
            batches.each_ref().map(hash),
            [1, 2].map(|number| calm_hash(&dataset, number)),
            "{kind:?}"
        );
        drop((two, batches));

        let mut many: Vec<_> = (0..12).map(|number| loader.epoch(number)).collect();
        let began = Instant::now();
        let mut batches: [Vec<TroubleBatch>; 12] = Default::default();
        for _ in 0..6 {
            for (epoch, batches) in many.iter_mut().zip(&mut batches) {
                batches.push(epoch.next().unwrap().unwrap().data);
            }
        }
        assert!(began.elapsed() < LONG / 3, "{kind:?}: {:?}", began.elapsed());
        assert_eq!(
            batches.each_ref().map(hash),
            std::array::from_fn(|number| calm_hash(&dataset, number as u64)),
            "{kind:?}"
        );
        drop((batches, many));
        assert_eq!(whole_hash(&loader, 5), calm_hash(&dataset, 5), "{kind:?}: afterwards");
    }
    leftovers.assert_none();
}

// Row 31.
#[test]
fn a_loader_may_be_used_from_any_thread_and_from_several_at_once() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = Trouble::new(24, folder.path());
        if kind.is_process() {
            dataset = dataset.once(9, Act::Abort).once(3, Act::Signal(libc::SIGKILL));
        }
        let (built, expected) = std::thread::scope(|scope| {
            let built = scope.spawn(|| troubled(kind, &dataset).build().unwrap()).join().unwrap();
            (built, [0, 1, 2].map(|number| calm_hash(&dataset, number)))
        });
        std::thread::scope(|scope| {
            let loader = &built;
            for number in 0..3 {
                scope.spawn(move || {
                    assert_eq!(whole_hash(loader, number), expected[number as usize], "{kind:?}")
                });
            }
        });
        std::thread::scope(|scope| scope.spawn(|| drop(built)).join().unwrap());
    }
    leftovers.assert_none();
}

// Row 21.
#[test]
fn all_batches_may_be_kept_also_longer_than_their_loader() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble { width: 1000, ..Trouble::new(400, folder.path()) };
        let loader = troubled(kind, &dataset).build().unwrap();
        let mut kept: Vec<TroubleBatch> = Vec::new();
        for number in 0..3 {
            kept.extend(loader.epoch(number).map(|batch| batch.unwrap().data));
        }
        drop(loader);
        for (number, batches) in kept.chunks(100).enumerate() {
            assert_eq!(hash(batches), calm_hash(&dataset, number as u64), "{kind:?}");
        }
    }
    leftovers.assert_none();
}

// Row 44: the proptest of cursors is with them.
#[test]
fn a_saved_place_counts_what_was_handed_out_and_not_what_was_made_ahead() {
    let leftovers = Leftovers::before();
    for before in Kind::EACH {
        for after in Kind::EACH {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(24, folder.path());
            let loader = troubled(before, &dataset).build().unwrap();
            let mut batches: Vec<_> = loader.epoch(1).take(2).map(|batch| batch.unwrap().data).collect();
            let saved = loader.cursor();
            assert_eq!((saved.epoch, saved.position), (1, 8), "{before:?}");
            drop(loader);
            let read: Cursor = postcard::from_bytes(&postcard::to_allocvec(&saved).unwrap()).unwrap();
            let resumed = troubled(after, &dataset).build().unwrap();
            batches.extend(resumed.resume(&read).unwrap().map(|batch| batch.unwrap().data));
            assert_eq!(hash(&batches), calm_hash(&dataset, 1), "{before:?}, then {after:?}");
        }
    }
    leftovers.assert_none();
}
