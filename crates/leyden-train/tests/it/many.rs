//! Any number of Trainers and runs in one process: nothing is left behind. In child processes, where no other test
//! opens files or starts threads.

use std::fs;
use std::time::Instant;

use leyden_train::testing::{Record, RecordedLearner, Sabotage};
use leyden_train::{EarlyStopping, ModelCheckpoint, Trainer};
use tempfile::tempdir;

use crate::support::{assert_code, data, files, quiet, run_child, spec};

/// Descriptors, threads and children of this process.
fn resources() -> [usize; 3] {
    let count = |path: &str| fs::read_dir(path).unwrap().count();
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    let children = children.map(|ids| ids.split_whitespace().count()).sum();
    [count("/proc/self/fd"), count("/proc/self/task"), children]
}

#[test]
fn a_thousand_trainers_cost_nothing() {
    let root = tempdir().unwrap();
    let output = run_child("many::child_that_builds", "build", root.path());
    assert_code(&output, 0, "1,000 trainers");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{}", text.lines().find(|line| line.contains("per Trainer")).expect("the child did its work"));
    assert_eq!(files(root.path()), Vec::<String>::new());
}

#[test]
fn child_that_builds() {
    let Some((_, root)) = spec() else { return };
    let before = resources();
    let begun = Instant::now();
    let trainers: Vec<Trainer> = (0..1000)
        .map(|index| {
            let builder = Trainer::builder().root_dir(&root).name(format!("run{index}")).max_epochs(3);
            let builder = builder.callback(ModelCheckpoint::monitor("val/loss"));
            builder.callback(EarlyStopping::new("val/loss")).build().unwrap()
        })
        .collect();
    let mean = begun.elapsed() / 1000;
    println!("\n{mean:?} per Trainer");
    assert!(mean.as_millis() < 10, "{mean:?}");
    assert_eq!(resources(), before, "with {} trainers alive", trainers.len());
}

#[test]
fn a_hundred_fits_that_finish_fail_and_panic_leave_nothing_behind() {
    let root = tempdir().unwrap();
    let output = run_child("many::child_that_fits", "fit", root.path());
    assert_code(&output, 0, "100 fits");
    let all = files(root.path());
    assert_eq!(all.iter().filter(|file| file.ends_with("config.json")).count(), 102);
    assert!(!all.iter().any(|file| file.ends_with(".tmp")), "{all:?}");
}

#[test]
fn child_that_fits() {
    let Some((_, root)) = spec() else { return };
    let mut trainer = quiet(&root).max_epochs(1).build().unwrap();
    let mut fit = |index: usize| {
        let mut learner = RecordedLearner::new(&Record::new());
        learner.sabotage = match index % 3 {
            0 => None,
            1 => Some(("training_step", Sabotage::Error)),
            _ => Some(("validation_step", Sabotage::Panic)),
        };
        let result = trainer.fit_learner(&mut learner, &mut data(3, 2));
        assert_eq!(result.is_ok(), index.is_multiple_of(3), "fit {index}: {result:?}");
    };
    // Whatever the first runs start for good (a panic hook, an allocator's arena) is there from now on.
    (1..=2).for_each(&mut fit);
    let before = resources();
    (0..100).for_each(&mut fit);
    assert_eq!(resources(), before);
}
