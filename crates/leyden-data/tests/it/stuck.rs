//! Workers that neither work nor die: told of, ended, replaced, within the limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leyden_data::codes::{WORKER_INIT, WORKER_START, WORKER_STUCK};
use leyden_data::{BadSample, DataLoader, DataLoaderBuilder};

use crate::support::leftovers::{is_alive, settle, stat};
use crate::support::trouble::{hash, now, signal};
use crate::support::{
    Act, Kind, LONG, Leftovers, Trouble, batch_of, calm_hash, measured, only_error, outcomes, troubled,
    whole_hash,
};

/// Long for a sample that takes no time, also where many tests run at once.
const LIMIT: Duration = Duration::from_millis(300);

fn limited(kind: Kind, dataset: &Trouble) -> DataLoaderBuilder<Trouble> {
    troubled(kind, dataset).timeout(LIMIT).warn_after(LIMIT / 3)
}

// Rows 6 and 7.
#[test]
fn a_stuck_worker_process_is_killed_and_its_batch_made_again_bit_for_bit() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        for act in [Act::Block, Act::Busy, Act::Signal(libc::SIGSTOP)] {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(24, folder.path()).once(9, act.clone());
            let loader = limited(kind, &dataset).build().unwrap();
            let batch = batch_of(&dataset, 2, 9);
            let mut epoch = loader.epoch(2);
            let mut batches: Vec<_> =
                epoch.by_ref().take(batch + 1).map(|batch| batch.unwrap().data).collect();
            let latency = now() - dataset.mark(9).at;
            batches.extend(epoch.map(|batch| batch.unwrap().data));
            assert_eq!(hash(&batches), calm_hash(&dataset, 2), "{kind:?}, {act:?}");
            measured("6-7", format_args!("{kind:?}, {act:?}, {LIMIT:?} allowed, made again"), latency);
            assert!(latency >= LIMIT && latency < LONG / 3, "{kind:?}, {act:?}: {latency:?}");
            assert!(settle(|| !is_alive(dataset.mark(9).pid)), "{kind:?}, {act:?}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn a_sample_that_is_always_stuck_is_named_with_evidence_and_the_other_batches_come() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        for (act, state) in [
            (Act::Block, "waiting"),
            (Act::Busy, "running"),
            (Act::Signal(libc::SIGSTOP), "stopped by a signal"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(24, folder.path()).always(9, act.clone());
            let loader = limited(kind, &dataset).restarts(1).build().unwrap();
            let all = outcomes(&loader, 2);
            let (batch, error) = only_error(&all);
            assert_eq!(error.code(), WORKER_STUCK, "{kind:?}, {act:?}: {error:?}");
            let named = ["sample", "batch", "epoch"].map(|label| error.place(label).unwrap_or("-"));
            assert_eq!(named, ["9", batch.to_string().as_str(), "2"], "{kind:?}, {act:?}");
            let seen = error.place("seen in").unwrap();
            let task = format!("`get` of sample 9 (batch {batch}, epoch 2) for 3");
            assert!(
                seen.starts_with(&task) && seen.contains(&format!("; {state}")),
                "{kind:?}, {act:?}: {seen}"
            );
            let pid = dataset.mark(9).pid;
            assert!(error.place("worker").unwrap().contains(&format!("pid {pid}")), "{kind:?}: {error:?}");
            assert_eq!(dataset.marks(9).len(), 2, "{kind:?}, {act:?}: it was tried again once");
        }
    }
    leftovers.assert_none();
}

#[test]
fn a_sample_that_is_always_stuck_is_left_out_where_that_is_asked_for() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).always(9, Act::Block);
        let loader = limited(kind, &dataset).on_bad_sample(BadSample::Skip).build().unwrap();
        let mut samples: Vec<u64> = outcomes(&loader, 2).into_iter().flat_map(Result::unwrap).collect();
        samples.sort_unstable();
        assert!(samples.into_iter().eq((0..24).filter(|&sample| sample != 9)), "{kind:?}");
        assert_eq!(loader.timings().skipped, 1, "{kind:?}");
    }
    leftovers.assert_none();
}

#[test]
fn a_stuck_thread_is_named_and_given_up_and_another_goes_on() {
    let leftovers = Leftovers::before();
    for workers in [1, 2] {
        let kind = Kind::Threads(workers);
        let folder = tempfile::tempdir().unwrap();
        // It cannot be ended, so that it ends by itself, for the sake of the other tests.
        let dataset = Trouble::new(24, folder.path()).once(9, Act::Sleep(4 * LIMIT));
        let loader = limited(kind, &dataset).build().unwrap();
        let all = outcomes(&loader, 2);
        measured("6", format_args!("{kind:?}, {LIMIT:?} allowed, named"), now() - dataset.mark(9).at);
        let (batch, error) = only_error(&all);
        assert_eq!(error.code(), WORKER_STUCK, "{error:?}");
        let named = ["sample", "batch", "epoch", "limit"].map(|label| error.place(label).unwrap_or("-"));
        assert_eq!(named, ["9", batch.to_string().as_str(), "2", "300ms"]);
        assert!(error.place("in").unwrap().contains("in `get` of sample 9"), "{error:?}");
        assert!(error.place("worker").unwrap().ends_with(&format!(" of {workers} threads")), "{error:?}");
        assert_eq!(whole_hash(&loader, 2), calm_hash(&dataset, 2), "{kind:?}: the epoch after");
    }
    leftovers.assert_none();
}

/// Row 7: stopped where no limit on a batch can notice it.
#[test]
fn a_worker_that_is_stopped_while_idle_is_replaced_when_there_is_work_for_it() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).init(0, Act::Sleep(Duration::ZERO), usize::MAX);
        let loader = limited(kind.alone(), &dataset).build().unwrap();
        let pid = dataset.init_marks(0).last().unwrap().pid;
        signal(pid, libc::SIGSTOP);
        assert!(settle(|| stat(pid).is_some_and(|stat| stat.state == 'T')), "{kind:?}");
        let began = Instant::now();
        assert_eq!(whole_hash(&loader, 0), calm_hash(&dataset, 0), "{kind:?}");
        measured("7", format_args!("{kind:?}, stopped while idle, whole epoch"), began.elapsed());
        assert!(settle(|| !is_alive(pid)), "{kind:?}");
    }
    leftovers.assert_none();
}

#[test]
fn a_worker_that_is_stopped_while_idle_keeps_nobody_from_working() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).init(0, Act::Sleep(Duration::ZERO), usize::MAX);
        let loader = troubled(kind, &dataset).build().unwrap();
        let pid = dataset.init_marks(0).last().unwrap().pid;
        signal(pid, libc::SIGSTOP);
        assert!(settle(|| stat(pid).is_some_and(|stat| stat.state == 'T')), "{kind:?}");
        assert_eq!(whole_hash(&loader, 0), calm_hash(&dataset, 0), "{kind:?}");
        drop(loader);
        assert!(settle(|| !is_alive(pid)), "{kind:?}: it is ended with the others");
    }
    leftovers.assert_none();
}

/// Dropping an epoch withdraws its batches; whoever is stuck in one of them must not block the next.
#[test]
fn a_worker_stuck_in_a_batch_that_nobody_wants_any_more_is_replaced_too() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).once(9, Act::Block);
        let loader = limited(kind.alone(), &dataset).build().unwrap();
        let batch = batch_of(&dataset, 2, 9);
        let mut epoch = loader.epoch(2);
        assert_eq!(epoch.by_ref().take(batch).filter(Result::is_ok).count(), batch);
        let stuck = dataset.mark(9);
        drop(epoch);
        assert_eq!(whole_hash(&loader, 3), calm_hash(&dataset, 3), "{kind:?}");
        measured("13", format_args!("{kind:?}, stuck in a dropped epoch, next one whole"), now() - stuck.at);
        assert!(settle(|| !is_alive(stuck.pid)), "{kind:?}");
    }
    leftovers.assert_none();
}

/// Row 7: not even SIGKILL ends a process in a frozen control group, nor one in an uninterruptible wait.
#[test]
fn a_worker_that_cannot_even_be_killed_loses_its_batch_to_another() {
    let Some(freezer) = Freezer::new() else {
        println!("skipped: no control group can be frozen here");
        return;
    };
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).once(9, Act::Block);
        let loader = limited(kind.alone(), &dataset).build().unwrap();
        let mut epoch = loader.epoch(2);
        let stuck = dataset.mark(9);
        freezer.freeze(stuck.pid);
        let batches: Vec<_> = epoch.by_ref().map(|batch| batch.unwrap().data).collect();
        measured("7", format_args!("{kind:?}, frozen, whole epoch"), now() - stuck.at);
        assert_eq!(hash(&batches), calm_hash(&dataset, 2), "{kind:?}");
        assert!(is_alive(stuck.pid), "{kind:?}: it is frozen, not dead");
        drop((batches, epoch));
        let began = Instant::now();
        drop(loader);
        measured("13", format_args!("{kind:?}, dropped with a frozen worker"), began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(3), "{kind:?}: {:?}", began.elapsed());
        freezer.thaw();
        assert!(settle(|| !is_alive(stuck.pid)), "{kind:?}");
    }
    leftovers.assert_none();
}

/// A control group that can be frozen.
struct Freezer {
    folder: PathBuf,
    switch: &'static str,
    on: &'static str,
    off: &'static str,
}

impl Freezer {
    fn new() -> Option<Self> {
        let name = format!("leyden-rows-{}", std::process::id());
        let at = |root: &str, switch, on, off| {
            let folder = Path::new(root).join(&name);
            fs::create_dir(&folder).ok()?;
            let freezer = Self { folder, switch, on, off };
            fs::read_to_string(freezer.folder.join(switch)).ok()?;
            Some(freezer)
        };
        at("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED")
    }

    fn freeze(&self, pid: i32) {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(self.folder.join(self.switch), self.on).unwrap();
    }

    fn thaw(&self) {
        fs::write(self.folder.join(self.switch), self.off).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.folder.join(self.switch), self.off);
        settle(|| fs::remove_dir(&self.folder).is_ok());
    }
}

#[test]
fn a_replacement_whose_init_hangs_is_replaced_itself() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path())
            .once(9, Act::Abort)
            .init(0, Act::Sleep(Duration::ZERO), 1)
            .init(0, Act::Block, 2);
        let loader = troubled(kind.alone(), &dataset).start_timeout(LIMIT).build().unwrap();
        let began = Instant::now();
        assert_eq!(whole_hash(&loader, 0), calm_hash(&dataset, 0), "{kind:?}");
        measured(
            "41",
            format_args!("{kind:?}, a replacement hangs in its init, whole epoch"),
            began.elapsed(),
        );
        assert_eq!(dataset.init_marks(0).len(), 2, "{kind:?}");
    }
    leftovers.assert_none();
}

#[test]
fn where_no_replacement_gets_ready_each_batch_says_why_and_the_next_epoch_tries_again() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path())
            .once(9, Act::Abort)
            .init(0, Act::Sleep(Duration::ZERO), 1)
            .init(0, Act::Fail, 4);
        let loader = troubled(kind.alone(), &dataset).build().unwrap();
        let batch = batch_of(&dataset, 0, 9);
        let all = outcomes(&loader, 0);
        assert_eq!(all.len(), 6, "{kind:?}");
        for (number, outcome) in all.iter().enumerate() {
            let Err(error) = outcome else {
                assert!(number < batch, "{kind:?}: batch {number} comes from nowhere");
                continue;
            };
            assert_eq!(error.code(), leyden_process::codes::POOL_UNSTAFFED, "{kind:?}: {error:?}");
            assert!(error.reasons()[0].contains("error[L0902]"), "{kind:?}: {error:?}");
            assert_eq!(error.reasons()[1], "the sample is damaged", "{kind:?}: {error:?}");
        }
        assert!(all[batch..].iter().all(Result::is_err), "{kind:?}");
        assert_eq!(whole_hash(&loader, 0), calm_hash(&dataset, 0), "{kind:?}: the epoch after");
    }
    leftovers.assert_none();
}

#[test]
fn a_thread_whose_replacement_does_not_get_ready_says_so_and_the_next_epoch_tries_again() {
    let leftovers = Leftovers::before();
    let folder = tempfile::tempdir().unwrap();
    let dataset = Trouble::new(24, folder.path())
        .once(9, Act::Sleep(3 * LIMIT))
        .init(0, Act::Sleep(Duration::ZERO), 1)
        .init(0, Act::Fail, 2)
        .init(0, Act::Sleep(3 * LIMIT), 3);
    let loader = limited(Kind::Threads(1), &dataset).start_timeout(LIMIT).build().unwrap();
    for cause in ["the data set failed in `worker_init`", "a worker's `worker_init` does not end"] {
        let all = outcomes(&loader, 0);
        let last = all.last().unwrap().as_ref().unwrap_err();
        assert_eq!(last.code(), WORKER_START, "{last:?}");
        assert_eq!(last.reasons()[0], format!("error[{WORKER_INIT}]: {cause}"), "{last:?}");
    }
    assert_eq!(whole_hash(&loader, 0), calm_hash(&dataset, 0), "the epoch after");
    drop(loader);
    leftovers.assert_none();
}

// Row 38.
#[test]
fn while_one_worker_is_slow_the_others_go_on_and_the_order_stays() {
    const SLOW: Duration = Duration::from_millis(400);
    let leftovers = Leftovers::before();
    for kind in Kind::WORKERS {
        let folder = tempfile::tempdir().unwrap();
        let dataset = (1..8)
            .fold(Trouble::new(16, folder.path()).once(0, Act::Sleep(SLOW)), |dataset, sample| {
                dataset.once(sample, Act::Sleep(Duration::ZERO))
            });
        let builder = DataLoader::builder(dataset.clone()).prefetch_factor(4);
        let loader = kind.of(builder).build().unwrap();
        let order: Vec<u64> = outcomes(&loader, 0).into_iter().flat_map(Result::unwrap).collect();
        assert!(order.into_iter().eq(0..16), "{kind:?}");
        let slow = dataset.mark(0);
        let meanwhile = (1..8).filter(|&sample| dataset.mark(sample).at < slow.at + SLOW).count();
        assert_eq!(meanwhile, 7, "{kind:?}: all that were asked for ahead were made meanwhile");
    }
    leftovers.assert_none();
}

// Row 39.
#[test]
fn a_slow_consumer_bounds_the_work_and_raises_no_alarm() {
    let leftovers = Leftovers::before();
    for kind in Kind::WORKERS {
        let folder = tempfile::tempdir().unwrap();
        let dataset = (0..20).fold(Trouble::new(20, folder.path()), |dataset, sample| {
            dataset.once(sample, Act::Sleep(Duration::ZERO))
        });
        let loader = kind.of(DataLoader::builder(dataset.clone())).timeout(LIMIT / 2).build().unwrap();
        let mut epoch = loader.epoch(0);
        epoch.next().unwrap().unwrap();
        std::thread::sleep(LIMIT);
        let made = (0..20).filter(|&sample| !dataset.marks(sample).is_empty()).count();
        assert_eq!(made, 5, "{kind:?}: one was taken, and two for each worker are asked for ahead");
        assert_eq!(epoch.filter(Result::is_ok).count(), 19, "{kind:?}");
    }
    leftovers.assert_none();
}
