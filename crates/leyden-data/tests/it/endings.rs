//! How loaders and their programs end: nothing stays, whoever is killed, and nobody waits for long.

use std::process::Command;
use std::time::{Duration, Instant};

use leyden_data::DataLoader;
use leyden_process::supervise::evidence;

use crate::support::leftovers::{is_alive, settle, stat};
use crate::support::program::{Program, rows, words};
use crate::support::trouble::signal;
use crate::support::{Act, Kind, Leftovers, Noisy, Trouble, calm_hash, measured, troubled};

/// What an end may take on a machine that is busy with many tests. The measured times are printed.
const SOON: Duration = Duration::from_secs(5);

fn hash_of_the_programs() -> String {
    let folder = tempfile::tempdir().unwrap();
    format!("hash {:x}", calm_hash(&Trouble::new(48, folder.path()), 0))
}

// Rows 8, 9 and 10.
#[test]
fn when_the_program_is_killed_its_workers_are_gone_at_once() {
    for kind in Kind::PROCESSES {
        for what in ["idle", "busy", "blocked", "queued"] {
            let mut worst = Duration::ZERO;
            for _ in 0..3 {
                let folder = tempfile::tempdir().unwrap();
                let mut program = Program::rows("hold", kind, folder.path(), &[what]);
                program.wait_for("ready");
                worst = worst.max(program.kill(libc::SIGKILL, kind.processes()));
            }
            measured("8-10", format_args!("{kind:?}, program killed, workers {what}, worst of 3"), worst);
            assert!(worst < SOON, "{kind:?}, {what}: {worst:?}");
        }
    }
}

#[test]
fn when_the_program_is_killed_workers_that_are_stopped_are_gone_too() {
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::rows("hold", kind, folder.path(), &["idle"]);
        program.wait_for("ready");
        for worker in program.descendants() {
            signal(worker, libc::SIGSTOP);
            assert!(settle(|| evidence(worker).is_stopped()));
        }
        let took = program.kill(libc::SIGKILL, kind.processes());
        measured("8", format_args!("{kind:?}, program killed, workers stopped"), took);
    }
}

// Row 11.
#[test]
fn programs_that_a_worker_started_die_with_it() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(24, folder.path()).once(9, Act::ProgramThenAbort).once(13, Act::Program);
        let loader = troubled(kind, &dataset).build().unwrap();
        assert_eq!(loader.epoch(0).filter(Result::is_ok).count(), 6, "{kind:?}");
        let programs = dataset.programs();
        assert_eq!(programs.len(), 2, "{kind:?}");
        assert!(settle(|| programs.iter().filter(|&&pid| is_alive(pid)).count() <= 1), "{kind:?}");
        drop(loader);
        assert!(settle(|| programs.iter().all(|&pid| !is_alive(pid))), "{kind:?}: {programs:?}");
    }
    leftovers.assert_none();
}

#[test]
fn programs_that_a_worker_started_die_with_the_program_too() {
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::rows("hold", kind, folder.path(), &["programs"]);
        program.wait_for("ready");
        let took = program.kill(libc::SIGKILL, kind.processes() + 1);
        measured("11", format_args!("{kind:?}, program killed, a worker has a program"), took);
    }
}

// Row 12.
#[test]
fn a_loader_dropped_in_the_middle_of_an_epoch_is_gone_at_once() {
    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        for persistent in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let dataset = Trouble::new(400, folder.path());
            let loader = troubled(kind, &dataset).persistent_workers(persistent).build().unwrap();
            let mut epoch = loader.epoch(0);
            assert!(epoch.by_ref().take(3).all(|batch| batch.is_ok()), "{kind:?}");
            let began = Instant::now();
            drop(epoch);
            drop(loader);
            measured("12", format_args!("{kind:?}, dropped in the middle"), began.elapsed());
            assert!(began.elapsed() < SOON, "{kind:?}: {:?}", began.elapsed());
        }
    }
    leftovers.assert_none();
}

// Row 13.
#[test]
fn a_loader_with_stuck_workers_is_dropped_within_one_short_deadline() {
    let leftovers = Leftovers::before();
    let stuck = [Act::Block, Act::Busy, Act::Signal(libc::SIGSTOP)];
    let processes = Kind::PROCESSES.into_iter().flat_map(|kind| stuck.clone().map(|act| (kind, act)));
    // Threads cannot be ended: they end by themselves, for the sake of the other tests.
    for (kind, act) in processes.chain([(Kind::Threads(2), Act::Sleep(Duration::from_secs(1)))]) {
        let folder = tempfile::tempdir().unwrap();
        let dataset = (0..24)
            .fold(Trouble::new(24, folder.path()), |dataset, sample| dataset.once(sample, act.clone()));
        let loader = troubled(kind, &dataset).shuffle(false).build().unwrap();
        let epoch = loader.epoch(0);
        dataset.mark(0);
        dataset.mark(4);
        let began = Instant::now();
        drop(epoch);
        drop(loader);
        measured("13", format_args!("{kind:?}, {act:?}, dropped while stuck"), began.elapsed());
        assert!(began.elapsed() < SOON, "{kind:?}: {:?}", began.elapsed());
    }
    leftovers.assert_none();
}

// Row 14.
#[test]
fn a_program_that_ends_with_a_live_loader_ends_cleanly_and_with_its_own_code() {
    for kind in Kind::WORKERS {
        for (how, code, stderr) in [
            ("return", Some(0), ""),
            ("leak", Some(0), ""),
            ("exit", Some(7), ""),
            ("panic", Some(101), "the training has failed"),
            ("error", Some(1), "error[T0001]: the training has failed"),
            ("abort", None, ""),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let ending = Program::rows("end", kind, folder.path(), &[how]).ended();
            assert_eq!(ending.code, code, "{kind:?}, {how}: {ending:?}");
            assert_eq!(ending.signal, code.is_none().then_some(libc::SIGABRT), "{kind:?}, {how}: {ending:?}");
            let silent = stderr.is_empty() && ending.stderr.is_empty();
            assert!(
                silent || !stderr.is_empty() && ending.stderr.contains(stderr),
                "{kind:?}, {how}: {ending:?}"
            );
            assert!(
                !ending.stderr.contains("leyden: ") && !ending.stderr.contains("[leyden"),
                "{kind:?}, {how}: {ending:?}"
            );
        }
    }
}

// Rows 15 and 16.
#[test]
fn a_signal_to_the_group_or_to_all_processes_stops_the_program_alone_and_no_batch_is_lost() {
    for kind in Kind::WORKERS {
        for (number, name) in [(libc::SIGINT, "Interrupt"), (libc::SIGTERM, "Terminate")] {
            for everybody in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let mut program = Program::rows("signals", kind, folder.path(), &[]);
                program.wait_for("ready");
                if everybody {
                    program.descendants().into_iter().for_each(|worker| signal(worker, number));
                }
                signal(-program.pid(), number);
                let ending = program.ended();
                let said: Vec<&str> = ending.stderr.lines().filter(|line| !line.is_empty()).collect();
                let expected = "leyden: stopping at the end of this step; a second signal stops at once";
                assert_eq!(said, [expected], "{kind:?}, {name}, everybody: {everybody}: {ending:?}");
                assert_eq!(ending.lines(), ["ready".to_owned(), format!("stopped by {name}")], "{kind:?}");
            }
        }
    }
}

#[test]
fn a_program_that_does_not_listen_dies_of_the_signal_with_its_workers() {
    for kind in Kind::PROCESSES {
        for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            let folder = tempfile::tempdir().unwrap();
            let mut program = Program::rows("hold", kind, folder.path(), &["blocked"]);
            program.wait_for("ready");
            let took = program.kill(number, kind.processes());
            measured("15-16", format_args!("{kind:?}, signal {number} without a listener"), took);
        }
    }
}

// Rows 23, 24 and 26.
#[test]
fn main_runs_once_and_workers_and_their_programs_inherit_nothing() {
    for kind in Kind::EACH {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(rows());
        // Left over from somebody else.
        command.args(words("epoch", kind, folder.path(), &[])).env("LEYDEN_ROLE", "worker:1:7:7");
        let ending = Program::start(&mut command).ended();
        assert_eq!(ending.stderr, "", "{kind:?}");
        assert_eq!(ending.lines(), ["main".to_owned(), hash_of_the_programs()], "{kind:?}");
    }
}

#[cfg(not(leyden_portable))]
#[test]
fn forked_workers_make_the_same_bits_in_a_program_without_threads() {
    for workers in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let ending = Program::rows("epoch", Kind::Fork(workers), folder.path(), &[]).ended();
        assert_eq!(ending.stderr, "");
        assert_eq!(ending.lines(), ["main".to_owned(), hash_of_the_programs()]);
    }
}

// Row 27.
#[test]
fn a_fork_beside_other_threads_is_refused_with_their_names() {
    let leftovers = Leftovers::before();
    let builder = DataLoader::builder(Noisy { samples: 8, width: 2 });
    let error = Kind::Fork(2).of(builder).build().map(drop).unwrap_err();
    if cfg!(leyden_portable) {
        assert_eq!(error.code().id, "P0115");
        return leftovers.assert_none();
    }
    assert_eq!(error.code().id, "P0114");
    // The test harness has a main thread beside this one, which bears the program's name.
    let text = format!("{error:?}");
    assert!(text.contains("it-"), "{text}");
    leftovers.assert_none();
}

// Row 43.
#[test]
fn a_program_that_is_stopped_as_a_whole_goes_on_without_a_false_alarm() {
    for kind in Kind::WORKERS {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::rows("suspended", kind, folder.path(), &[]);
        program.wait_for("ready");
        let all: Vec<i32> = program.descendants().into_iter().chain([program.pid()]).collect();
        all.iter().for_each(|&pid| signal(pid, libc::SIGSTOP));
        assert!(settle(|| all.iter().all(|&pid| stat(pid).is_some_and(|stat| stat.state == 'T'))));
        std::thread::sleep(Duration::from_millis(1200));
        // The program first, so that it looks at workers that are still stopped.
        all.iter().rev().for_each(|&pid| signal(pid, libc::SIGCONT));
        let ending = program.ended();
        assert_eq!(ending.stderr, "", "{kind:?}");
        assert_eq!(ending.lines().last(), Some(&hash_of_the_programs()), "{kind:?}");
    }
}

// Row 48.
#[test]
fn as_the_first_process_of_a_container_it_works_and_ends_as_anywhere() {
    let works = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        println!("skipped: no new process namespaces here");
        return;
    }
    for kind in Kind::WORKERS {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["-pf", "--mount-proc"]).arg(rows()).args(words("epoch", kind, folder.path(), &[]));
        let ending = Program::start(&mut command).ended();
        assert_eq!(ending.stderr, "", "{kind:?}");
        assert_eq!(ending.lines(), ["main".to_owned(), hash_of_the_programs()], "{kind:?}");
    }
}

#[test]
fn workers_that_gain_nothing_are_told_of_once() {
    for (kind, times) in [(Kind::Spawn(1), 1), (Kind::Inline, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let ending = Program::rows("epochs", kind, folder.path(), &["12"]).ended();
        assert_eq!(ending.code, Some(0), "{kind:?}: {ending:?}");
        let told = ending.stderr.matches("`Workers::inline()` would save").count();
        assert_eq!(told, times, "{kind:?}: {}", ending.stderr);
        println!("{kind:?}: {}", ending.stderr);
    }
}

#[test]
fn a_copy_of_the_program_neither_uses_nor_ends_the_workers_of_its_parent() {
    let kinds = Kind::WORKERS.into_iter().chain([Kind::Inline]);
    for kind in kinds {
        for what in ["drop", "use"] {
            let folder = tempfile::tempdir().unwrap();
            let lines = Program::rows("copied", kind, folder.path(), &[what]).ended().lines();
            let code = if kind.is_process() { "P0303" } else { "L0901" };
            let refused = format!("{code} in another process: true");
            let refusals = if what == "use" && kind != Kind::Inline { vec![refused; 2] } else { Vec::new() };
            let expected: Vec<String> =
                refusals.into_iter().chain(["the parent is undisturbed: 44".to_owned()]).collect();
            assert_eq!(lines, expected, "{kind:?}, {what}");
        }
    }
}

#[cfg(not(leyden_portable))]
#[test]
fn a_fatal_sample_does_not_take_the_last_forked_worker() {
    let run = |kind, policy: &str| {
        let folder = tempfile::tempdir().unwrap();
        Program::rows("fatal", kind, folder.path(), &[policy]).ended().lines()
    };
    assert_eq!(run(Kind::Fork(2), "skip"), ["47 samples, 1 skipped"]);
    assert_eq!(run(Kind::Fork(2), "raise"), ["L0905: 17; -", "44 samples, 0 skipped"]);
    // Where there is no other one, what killed it is said with each batch that nobody makes.
    let alone = run(Kind::Fork(1), "raise");
    assert_eq!(alone.len(), 1 + 7 + 1, "{alone:?}");
    assert_eq!((alone[0].as_str(), alone[8].as_str()), ("L0905: 17; -", "16 samples, 0 skipped"));
    let told = "P0302: -; killed by SIGSEGV in `get` of sample 17 (batch 4, epoch 0)";
    assert!(alone[1..8].iter().all(|line| line.replace(" (core dumped)", "") == told), "{alone:?}");
}
