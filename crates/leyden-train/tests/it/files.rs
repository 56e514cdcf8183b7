//! What a run leaves on disk: folders, configuration, checkpoints; and what is there after a full disk or a kill.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use leyden_train::learner::toy::ToyLearner;
use leyden_train::testing::{Record, RecordedLearner, ToyData};
use leyden_train::{
    Checkpoint, Control, CsvLogger, Event, Hook, Mode, ModelCheckpoint, TensorBoardLogger, Trainer,
    TrainerBuilder, TrainerConfig,
};
use tempfile::tempdir;

use crate::support::{On, Shared, checkpoints, data, files, quick_dir, quiet, spec, toy};

fn folder_of(builder: TrainerBuilder) -> PathBuf {
    let mut trainer = builder.max_epochs(1).build().unwrap();
    trainer.fit_learner(&mut toy(), &mut data(2, 1)).unwrap().run_dir.unwrap()
}

#[test]
fn each_fit_gets_the_next_folder_and_evaluations_stay_in_it() {
    let root = tempdir().unwrap();
    let name = |path: &Path| path.strip_prefix(root.path()).unwrap().display().to_string();
    assert_eq!(name(&folder_of(quiet(root.path()))), "run/version_0");
    fs::create_dir(root.path().join("run/version_7")).unwrap();
    fs::create_dir(root.path().join("run/version_old")).unwrap();
    assert_eq!(name(&folder_of(quiet(root.path()))), "run/version_8");
    assert_eq!(name(&folder_of(quiet(root.path()).name("other"))), "other/version_0");

    let mut trainer = quiet(root.path()).max_epochs(1).build().unwrap();
    let _ = trainer.fit_learner(&mut toy(), &mut data(2, 1)).unwrap();
    let _ = trainer.test_learner(&mut toy(), &mut data(2, 1)).unwrap();
    assert_eq!(name(trainer.run_dir().unwrap()), "run/version_9");
    let _ = trainer.fit_learner(&mut toy(), &mut data(2, 1)).unwrap();
    assert_eq!(name(trainer.run_dir().unwrap()), "run/version_10", "10 comes after 9, not after 1");
}

#[test]
fn runs_at_the_same_time_get_different_folders() {
    let root = tempdir().unwrap();
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..4).map(|_| folder_of(quiet(root.path()))).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(folders.iter().collect::<BTreeSet<_>>().len(), 32);
    for folder in folders {
        assert_eq!(checkpoints(&folder), ["epoch=0-step=2.safetensors", "last.safetensors"]);
    }
}

#[test]
fn a_run_folder_holds_the_configuration_the_logs_and_the_checkpoints() {
    let root = tempdir().unwrap();
    let builder = quiet(root.path()).seed(7).logger(TensorBoardLogger::new());
    let folder = folder_of(builder);
    let names: Vec<_> = files(&folder).into_iter().filter(|name| !name.contains("tfevents")).collect();
    let expected = [
        "checkpoints/epoch=0-step=2.safetensors",
        "checkpoints/last.safetensors",
        "config.json",
        "metrics.csv",
    ];
    assert_eq!(names, expected);

    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(json["leyden"], env!("CARGO_PKG_VERSION"));
    let config: TrainerConfig = serde_json::from_value(json["config"].clone()).unwrap();
    assert_eq!((config.seed, config.max_epochs, config.root_dir.as_path()), (7, Some(1), root.path()));
    assert_eq!((&json["plan"]["train_batches"], &json["plan"]["eval_batches"]), (&2.into(), &vec![1].into()));
}

/// The checkpoints on disk after each epoch of a run whose `score` follows a script.
fn on_disk(callback: ModelCheckpoint, script: &'static [f64]) -> Vec<Vec<String>> {
    let root = tempdir().unwrap();
    let seen: Shared<Vec<String>> = Shared::default();
    let list = seen.clone();
    // When the next epoch starts, or training ends, the checkpoints of the last one are written.
    let look = move |event: &Event<'_>| list.lock().unwrap().push(checkpoints(event.run_dir.unwrap()));
    let mut learner = RecordedLearner::new(&Record::new());
    let mut epoch = 0;
    learner.in_hook = Some(Box::new(move |hook, cx| {
        if let (Hook::ValidationEpochEnd, Some(cx)) = (hook, cx) {
            cx.log("score", script[epoch]);
            epoch += 1;
        }
        Ok(())
    }));
    let (start, end) = (look.clone(), look);
    let mut trainer = quiet(root.path())
        .max_epochs(script.len() as u64)
        .num_sanity_val_steps(0)
        .callback(On(Hook::TrainEpochStart, move |event: &Event<'_>, _: &mut Control| start(event)))
        .callback(On(Hook::FitEnd, move |event: &Event<'_>, _: &mut Control| end(event)))
        .callback(callback)
        .build()
        .unwrap();
    let report = trainer.fit_learner(&mut learner, &mut data(1, 1)).unwrap();
    let last = Checkpoint::read(&report.last_checkpoint.unwrap()).unwrap();
    assert_eq!(last.run.unwrap().progress.global_step, script.len() as u64, "`last` is the newest");
    let seen = seen.lock().unwrap();
    let without_last = |names: &Vec<String>| -> Vec<String> {
        let names = names.iter().filter(|name| *name != "last.safetensors");
        names.map(|name| name.trim_end_matches(".safetensors").to_owned()).collect()
    };
    seen[1..].iter().map(without_last).collect()
}

#[test]
fn the_best_are_kept_through_nan_and_ties() {
    let by_epoch = || ModelCheckpoint::monitor("score").filename("{epoch}");
    let epochs = |kept: &[&[usize]]| -> Vec<Vec<String>> {
        kept.iter().map(|kept| kept.iter().map(|epoch| format!("epoch={epoch}")).collect()).collect()
    };
    assert_eq!(
        on_disk(by_epoch().save_top_k(2), &[f64::NAN, 2.0, 2.0, 1.0, f64::NAN, 3.0, 1.0]),
        epochs(&[&[0], &[0, 1], &[1, 2], &[1, 3], &[1, 3], &[1, 3], &[3, 6]])
    );
    assert_eq!(
        on_disk(by_epoch().mode(Mode::Max), &[f64::NAN, 1.0, 1.0, 3.0, 2.0]),
        epochs(&[&[0], &[1], &[1], &[3], &[3]])
    );
    assert_eq!(on_disk(by_epoch().save_top_k(0), &[1.0, 2.0]), epochs(&[&[], &[]]));
    assert_eq!(on_disk(by_epoch().save_all(), &[1.0, f64::NAN, 0.5]), epochs(&[&[0], &[0, 1], &[0, 1, 2]]));
}

#[test]
fn names_follow_the_template_and_do_not_alternate() {
    let named = |template: &str| ModelCheckpoint::monitor("score").filename(template);
    assert_eq!(on_disk(named("{epoch}-{step}-{score:.2}"), &[0.5, 0.25])[1], ["epoch=1-step=2-score=0.25"]);
    let model = vec!["model".to_owned()];
    assert_eq!(on_disk(named("model"), &[3.0, 2.0, 1.0]), [model.clone(), model.clone(), model.clone()]);
    assert_eq!(on_disk(ModelCheckpoint::new().filename("model"), &[3.0, 2.0]), [model.clone(), model]);
    assert_eq!(on_disk(named("model").save_top_k(2), &[3.0, 2.0, 1.0])[2], ["model-v1", "model"]);
}

#[test]
fn a_full_disk_fails_the_run_and_keeps_the_previous_checkpoint() {
    let root = tempdir().unwrap();
    let folder = root.path().join("checkpoints");
    let saving = || quiet(root.path()).callback(ModelCheckpoint::new().save_top_k(0).dirpath(&folder));
    let _ = folder_of(saving());
    let last = folder.join("last.safetensors");
    let before = fs::read(&last).unwrap();
    // The file that is written beside the real one is a device that is always full.
    let beside = folder.join(format!(".last.safetensors.{}.tmp", std::process::id()));
    std::os::unix::fs::symlink("/dev/full", &beside).unwrap();
    let mut trainer = saving().max_epochs(2).build().unwrap();
    let error = trainer.ckpt_path(&last).fit_learner(&mut toy(), &mut data(2, 1)).unwrap_err();
    assert_eq!(error.code().id, "K0101");
    assert!(error.reasons()[0].contains("No space left"), "{error:?}");
    assert_eq!(error.place("file"), Some(last.display().to_string().as_str()));
    assert_eq!(fs::read(&last).unwrap(), before);
    assert_eq!(files(&folder), ["last.safetensors"], "nothing half-written is left");
    assert!(Checkpoint::read(&last).unwrap().run.is_some());
}

/// Wide enough that writing a checkpoint takes a while: half a megabyte.
const FEATURES: usize = 60_000;

#[test]
fn a_process_killed_at_any_moment_leaves_a_checkpoint_to_go_on_from() {
    let root = tempdir().unwrap();
    let last = root.path().join("checkpoints/last.safetensors");
    let (mut steps, mut cut_writes) = (0, 0);
    for kill in 0..100u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["files::child_that_saves", "--exact", "--test-threads=1"])
            .envs(crate::support::child_environment("save", root.path()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // From before the first save of this process to after several; the steps are odd on purpose.
        std::thread::sleep(Duration::from_micros(6_000 + (kill * 7_919) % 24_000));
        child.kill().unwrap();
        child.wait().unwrap();
        if last.exists() {
            let now = Checkpoint::read(&last).unwrap().run.unwrap().progress.global_step;
            assert!(now >= steps, "kill {kill}: step {now} after {steps}");
            steps = now;
        }
        for left in files(&root.path().join("checkpoints")).iter().filter(|name| name.ends_with(".tmp")) {
            cut_writes += 1;
            fs::remove_file(root.path().join("checkpoints").join(left)).unwrap();
        }
    }
    println!("{steps} steps over 100 kills, {cut_writes} of them within a write");
    assert!(steps > 0 && cut_writes > 0, "the kills hit saving processes: {steps} steps, {cut_writes} cut");
}

#[test]
fn child_that_saves() {
    let Some((_, root)) = spec() else { return };
    let folder = root.join("checkpoints");
    let save = ModelCheckpoint::new().save_top_k(0).every_n_train_steps(1).dirpath(&folder);
    let mut trainer = quiet(&root.join(std::process::id().to_string())).callback(save).build().unwrap();
    let last = folder.join("last.safetensors");
    if last.is_file() {
        trainer.ckpt_path(&last);
    }
    let mut data = ToyData { features: FEATURES, batch_size: 1, train: 8, eval: 0 };
    let _ = trainer.fit_learner(&mut ToyLearner::new(FEATURES, 1e-9), &mut data);
}

#[test]
fn names_that_would_be_overwritten_are_refused() {
    let two = Trainer::builder().logger(CsvLogger::new()).logger(CsvLogger::new()).build().unwrap_err();
    assert_eq!((two.code().id, two.what()), ("C0103", "two loggers are named `csv`"));
    for (template, why) in [
        ("last", "`last` is the name of the newest checkpoint, and would be replaced by it"),
        ("../best", "it is no name inside the checkpoint folder"),
        ("{epoch", "a `{` has no `}`"),
    ] {
        let root = quick_dir();
        let saver = ModelCheckpoint::new().filename(template);
        let mut trainer = quiet(root.path()).max_epochs(1).callback(saver).build().unwrap();
        let error = trainer.fit_learner(&mut toy(), &mut data(2, 1)).unwrap_err();
        assert_eq!((error.code().id, error.reasons()), ("C0106", &[why.to_owned()][..]));
    }
}

#[test]
fn a_configuration_comes_from_a_file_and_names_a_wrong_field() {
    let folder = quick_dir();
    let path = folder.path().join("train.json");
    fs::write(&path, "{ \"max_epochs\": 3 }").unwrap();
    let config = TrainerConfig::from_file(&path).unwrap();
    assert_eq!(config, TrainerConfig { max_epochs: Some(3), ..TrainerConfig::default() });
    fs::write(&path, "{ \"max_epoch\": 3 }").unwrap();
    let error = TrainerConfig::from_file(&path).unwrap_err();
    assert_eq!((error.code().id, error.place("file")), ("C0107", path.to_str()));
    assert!(error.reasons()[0].contains("unknown field `max_epoch`"), "{error:?}");
}
