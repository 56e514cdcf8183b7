//! Workers that are killed at random, and loaders that come and go: nothing changes, nothing grows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use leyden_data::{DataLoader, SampleRng};

use crate::support::leftovers::{processes, stat};
use crate::support::program::Program;
use crate::support::trouble::signal;
use crate::support::{Kind, Leftovers, Trouble, measured, whole_hash};

// Row 45.
#[test]
fn an_epoch_whose_workers_are_killed_at_random_is_the_undisturbed_one() {
    const BATCHES: usize = 2000;
    let seed = std::env::var("LEYDEN_SEED").map_or(1, |seed| seed.parse().expect("LEYDEN_SEED is a number"));
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let pause = Duration::from_micros(250);
        let dataset = Trouble { pause, width: 64, ..Trouble::new(4 * BATCHES, folder.path()) };
        let calm = Trouble { pause: Duration::ZERO, ..dataset.clone() };
        let builder =
            |dataset: &Trouble| DataLoader::builder(dataset.clone()).batch_size(4).shuffle(true).seed(5);
        let expected = whole_hash(&builder(&calm).build().unwrap(), 0);
        let loader = kind.of(builder(&dataset)).restarts(100_000).build().unwrap();
        let (over, killed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let began = std::time::Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = SampleRng::for_sample(seed, 2, 3);
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(100));
                    let workers = workers();
                    if let Some(&victim) = workers.get(rng.next_u64() as usize % workers.len().max(1)) {
                        signal(victim, libc::SIGKILL);
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            assert_eq!(whole_hash(&loader, 0), expected, "{kind:?}");
            over.store(true, Ordering::Relaxed);
        });
        let killed = killed.load(Ordering::Relaxed);
        measured("45", format_args!("{kind:?}, {BATCHES} batches, {killed} workers killed"), began.elapsed());
        assert!(killed >= 5, "{kind:?}: {killed}");
    }
    leftovers.assert_none();
}

/// The processes of the loader that can be killed: its workers.
fn workers() -> Vec<i32> {
    let own = std::process::id() as i32;
    let ours = |pid: &i32| {
        stat(*pid).is_some_and(|stat| {
            stat.parent == own
                && stat.state != 'Z'
                && stat.name.starts_with("leyden data")
                && !stat.name.contains("zygote")
        })
    };
    processes().filter(ours).collect()
}

// Row 46.
#[test]
fn a_thousand_loaders_leave_nothing() {
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let count = if matches!(kind, Kind::Zygote(_)) { "300" } else { "1000" };
        let program = Program::rows("cycles", kind, folder.path(), &[count]);
        let began = std::time::Instant::now();
        let lines = program.ended().lines();
        measured("46", format_args!("{kind:?}, {count} loaders"), began.elapsed());
        let [before, after, mappings] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(before.strip_prefix("before: "), after.strip_prefix("after: "), "{kind:?}");
        assert!(after.contains("0 children"), "{kind:?}: {after}");
        // The allocator's arenas and stacks that are kept for new threads come and go.
        assert!(mappings.parse::<usize>().unwrap() < 50, "{kind:?}: {mappings} more mappings");
    }
}
