//! A resumed run is the uninterrupted one: weights, optimizer, counters, callbacks, metrics and rows, to the bit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leyden_process::{Error, Result};
use leyden_train::learner::toy::ToyLearner;
use leyden_train::metric::Mean;
use leyden_train::schedule::{Interval, StepLr};
use leyden_train::state::Parts;
use leyden_train::testing::{Record, RecordedLearner, ToyData};
use leyden_train::{
    Callback, Checkpoint, Control, EarlyStopping, Event, FitReport, Hook, Learner, LearningRateMonitor,
    Metrics, ModelCheckpoint, Reduce, TrainerBuilder, ValCheck,
};

use crate::support::{Row, data, quick_dir, quiet, rows, toy};

/// 7 batches an epoch, the last one of 2 rows; shuffled.
fn uneven() -> ToyData {
    ToyData { train: 26, eval: 8, ..ToyData::default() }
}

/// Uses everything that a resume must restore: per-batch randomness, both log levels, sums, a metric, a
/// step-level schedule, values logged by hooks.
fn rich() -> RecordedLearner {
    let mut learner = RecordedLearner::new(&Record::new());
    learner.learner = ToyLearner::new(3, 0.05).schedule(Interval::Step, StepLr::new(3, 0.7));
    learner.in_training = Some(Box::new(|batch, cx| {
        batch.x[0] += (cx.seed() % 1000) as f32 / 1e4;
        let first = f64::from(batch.x[0]);
        cx.log("first", first).on_epoch(true);
        cx.log("largest", first).on_step(false).on_epoch(true).reduce(Reduce::Max);
        cx.metric("mean", Mean::new)?.update(first, batch.y.len() as f64);
        Ok(())
    }));
    learner.in_hook = Some(Box::new(|hook, cx| {
        if let Some(cx) = cx
            && matches!(hook, Hook::TrainBatchStart | Hook::TrainBatchEnd)
        {
            cx.log(hook.name(), 1.0).on_epoch(true).reduce(Reduce::Sum);
        }
        Ok(())
    }));
    learner
}

/// Three epochs, windows of 2 batches, validation within and at the end of each epoch.
fn settings(root: &Path) -> TrainerBuilder {
    quiet(root)
        .max_epochs(3)
        .accumulate_grad_batches(2)
        .val_check_interval(ValCheck::Batches(3))
        .log_every_n_steps(1)
        .callback(LearningRateMonitor::new().every_step())
        .callback(EarlyStopping::new("first_epoch").patience(99).check_on_train_epoch_end())
}

/// The same, for the many runs that go on: what they would save themselves is not looked at.
fn unsaving(root: &Path) -> TrainerBuilder {
    settings(root).enable_checkpointing(false)
}

/// What a run left, to compare.
#[derive(Debug, PartialEq)]
struct End {
    state: Checkpoint,
    metrics: Metrics,
    rows: Vec<Row>,
}

fn run(builder: TrainerBuilder, from: Option<&Path>) -> (End, FitReport) {
    let mut trainer = builder.build().unwrap();
    if let Some(path) = from {
        trainer.ckpt_path(path);
    }
    let mut learner = rich();
    let report = trainer.fit_learner(&mut learner, &mut uneven()).unwrap();
    let run_dir = report.run_dir.clone().unwrap();
    trainer.save_checkpoint_learner(&mut learner, Some(&report), run_dir.join("end")).unwrap();
    let mut state = Checkpoint::read(&run_dir.join("end")).unwrap();
    // Which files there are depends on the folder.
    state.run.as_mut().unwrap().callbacks.remove("ModelCheckpoint");
    (End { state, metrics: report.metrics.clone(), rows: rows(&run_dir) }, report)
}

#[track_caller]
fn assert_continues(whole: &End, resumed: &End, from: &Path) {
    let name = from.display();
    let step = Checkpoint::read(from).unwrap().run.unwrap().progress.global_step;
    assert_eq!(resumed.state.learner, whole.state.learner, "{name}");
    assert_eq!(resumed.state, whole.state, "{name}");
    assert_eq!(resumed.metrics, whole.metrics, "{name}");
    let tail = &whole.rows[whole.rows.len().saturating_sub(resumed.rows.len())..];
    assert_eq!(resumed.rows, tail, "the rows after {name}");
    let later = whole.rows.iter().filter(|row| row["step"].parse::<u64>().unwrap() > step).count();
    assert!(resumed.rows.len() >= later, "{name}: {} rows, expected {later}", resumed.rows.len());
}

#[test]
fn resumes_from_the_checkpoint_of_every_step() {
    let root = quick_dir();
    let saving = || settings(root.path()).callback(ModelCheckpoint::new().every_n_train_steps(1).save_all());
    let (whole, report) = run(saving(), None);
    let folder = report.run_dir.unwrap().join("checkpoints");
    let all = crate::support::files(&folder);
    assert_eq!(all.len(), 12 + 1, "3 epochs of 4 steps, and `last`: {all:?}");
    for name in all {
        let (resumed, _) = run(unsaving(root.path()), Some(&folder.join(&name)));
        assert_continues(&whole, &resumed, &folder.join(name));
    }
}

/// Saves at every event of one hook.
struct SaveAt {
    hook: Hook,
    folder: PathBuf,
    saves: bool,
    count: usize,
}

impl Callback for SaveAt {
    fn name(&self) -> String {
        "SaveAt".to_owned()
    }

    fn saves(&self) -> bool {
        self.saves
    }

    fn on_event(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        if event.hook == self.hook {
            control.save_checkpoint(self.folder.join(self.count.to_string()), false);
            self.count += 1;
        }
        Ok(())
    }
}

#[test]
fn resumes_from_a_checkpoint_of_every_hook() {
    for hook in [
        Hook::FitStart,
        Hook::SanityCheckEnd,
        Hook::TrainStart,
        Hook::TrainEpochStart,
        Hook::TrainBatchStart,
        Hook::BeforeOptimizerStep,
        Hook::TrainBatchEnd,
        Hook::ValidationStart,
        Hook::ValidationBatchEnd,
        Hook::ValidationEpochEnd,
        Hook::ValidationEnd,
        Hook::TrainEpochEnd,
        Hook::TrainEnd,
        Hook::FitEnd,
    ] {
        let root = quick_dir();
        let folder = root.path().join("saved");
        let saving = |folder: &Path| {
            settings(root.path()).callback(SaveAt { hook, folder: folder.to_owned(), saves: true, count: 0 })
        };
        let (whole, _) = run(saving(&folder), None);
        let count = fs::read_dir(&folder).unwrap().count();
        for index in 0..count {
            let from = folder.join(index.to_string());
            let (resumed, _) = run(unsaving(root.path()), Some(&from));
            assert_continues(&whole, &resumed, &from);
        }
        assert!(count > 0, "{hook:?} happens");
    }
}

#[test]
fn a_run_at_its_limit_still_ends_its_epoch_after_a_resume() {
    for limit in 1..=8 {
        for hook in [Hook::TrainBatchEnd, Hook::ValidationEnd, Hook::TrainEpochEnd, Hook::TrainEnd] {
            let root = quick_dir();
            let folder = root.path().join("saved");
            let saving = |folder: &Path| {
                let save = SaveAt { hook, folder: folder.to_owned(), saves: true, count: 0 };
                settings(root.path()).max_steps(limit).callback(save)
            };
            let (whole, _) = run(saving(&folder), None);
            for index in 0..fs::read_dir(&folder).map_or(0, Iterator::count) {
                let from = folder.join(index.to_string());
                let (resumed, _) = run(unsaving(root.path()).max_steps(limit), Some(&from));
                assert_continues(&whole, &resumed, &from);
            }
        }
    }
}

#[test]
fn resumes_from_what_validations_and_epochs_save() {
    let root = quick_dir();
    let by = |callback: ModelCheckpoint| settings(root.path()).callback(callback);
    let after_validations = || by(ModelCheckpoint::new().save_all());
    let after_epochs = || {
        let none = leyden_train::Limit::Batches(0);
        by(ModelCheckpoint::new().save_all()).limit_val_batches(none)
    };
    for (builder, count) in [
        (&after_validations as &dyn Fn() -> TrainerBuilder, 3 * 2),
        (&after_epochs as &dyn Fn() -> TrainerBuilder, 3),
    ] {
        let (whole, report) = run(builder(), None);
        let folder = report.run_dir.unwrap().join("checkpoints");
        let names = crate::support::files(&folder);
        assert_eq!(names.len(), count + 1, "{names:?}");
        for name in names {
            let (resumed, _) = run(builder(), Some(&folder.join(&name)));
            assert_continues(&whole, &resumed, &folder.join(name));
        }
    }
}

#[test]
fn a_run_cut_by_max_steps_goes_on_inside_the_epoch_with_a_higher_limit() {
    let root = quick_dir();
    let plain = || quiet(root.path()).accumulate_grad_batches(2).val_check_interval(ValCheck::Batches(3));
    let (whole, _) = run(plain().max_epochs(3), None);
    for cut in 1..12 {
        let (_, report) = run(plain().max_epochs(3).max_steps(cut), None);
        assert_eq!(report.steps, cut);
        let (resumed, report) = run(plain().max_epochs(3), report.last_checkpoint.as_deref());
        assert_eq!(without_order(resumed.state), without_order(whole.state.clone()), "cut at step {cut}");
        assert_eq!(report.epochs, 3);
    }
}

/// The end of a cut epoch is announced too, so that its metrics may be known before the first validation's.
fn without_order(mut checkpoint: Checkpoint) -> Checkpoint {
    checkpoint.run.as_mut().unwrap().metrics.sort();
    checkpoint
}

#[test]
fn a_skipped_epoch_is_still_skipped_after_a_resume() {
    struct Skip;
    impl Callback for Skip {
        fn name(&self) -> String {
            "Skip".to_owned()
        }
        fn on_train_batch_end(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
            if event.progress.epoch == 1 && event.progress.batch == 4 {
                control.skip_epoch();
            }
            Ok(())
        }
    }
    let root = quick_dir();
    let saving = || {
        let save = ModelCheckpoint::new().every_n_train_steps(1).save_all();
        settings(root.path()).callback(Skip).callback(save)
    };
    let (whole, report) = run(saving(), None);
    let folder = report.run_dir.unwrap().join("checkpoints");
    for name in crate::support::files(&folder) {
        let (resumed, _) = run(unsaving(root.path()).callback(Skip), Some(&folder.join(&name)));
        assert_continues(&whole, &resumed, &folder.join(name));
    }
}

/// A run of one epoch of 6 batches that saved after step 3; the path of that checkpoint.
fn saved_inside_an_epoch(root: &Path) -> PathBuf {
    let save = ModelCheckpoint::new().every_n_train_steps(3).save_all();
    let mut trainer = quiet(root).max_epochs(1).seed(1).callback(save).build().unwrap();
    let report = trainer.fit_learner(&mut toy(), &mut data(6, 2)).unwrap();
    report.run_dir.unwrap().join("checkpoints/epoch=0-step=3.safetensors")
}

fn resume_error(builder: TrainerBuilder, from: &Path, learner: &mut ToyLearner, data: &mut ToyData) -> Error {
    let mut trainer = builder.build().unwrap();
    trainer.ckpt_path(from).fit_learner(learner, data).expect_err("the resume is refused")
}

#[test]
fn another_order_inside_an_epoch_is_refused_with_both_sides() {
    let root = quick_dir();
    let from = saved_inside_an_epoch(root.path());
    let error = resume_error(quiet(root.path()).seed(2), &from, &mut toy(), &mut data(6, 2));
    assert_eq!((error.code().id, error.exit_code()), ("K0107", 96));
    assert_eq!(error.reasons()[0], "the seed was 1 and is 2");

    let other = &mut ToyData { batch_size: 3, ..data(6, 2) };
    let error = resume_error(quiet(root.path()).seed(1), &from, &mut toy(), other);
    assert_eq!(error.code().id, "K0107");
    assert!(error.reasons()[0].contains("batch_size 4"), "{error:?}");
    assert!(error.reasons()[0].contains("batch_size 3"), "{error:?}");
}

#[test]
fn at_an_epochs_end_seed_and_batch_size_may_change() {
    let root = quick_dir();
    for validation in [0, 2] {
        let mut trainer = quiet(root.path()).max_epochs(1).seed(1).build().unwrap();
        let report = trainer.fit_learner(&mut toy(), &mut data(6, validation)).unwrap();
        let from = report.run_dir.unwrap().join("checkpoints/epoch=0-step=6.safetensors");
        let mut trainer = quiet(root.path()).max_epochs(2).seed(2).build().unwrap();
        let other = &mut ToyData { batch_size: 3, ..data(6, validation) };
        let report = trainer.ckpt_path(&from).fit_learner(&mut toy(), other).unwrap();
        assert_eq!((report.epochs, report.steps), (2, 6 + 8), "one whole epoch of the new batches");
    }
}

#[test]
fn files_that_cannot_be_resumed_from_are_refused_by_code() {
    let root = quick_dir();
    let from = saved_inside_an_epoch(root.path());
    let refused = |path: &Path, learner: &mut ToyLearner| {
        resume_error(quiet(root.path()).seed(1), path, learner, &mut data(6, 2))
    };
    assert_eq!(refused(&root.path().join("nowhere"), &mut toy()).code().id, "K0102");

    let garbled = root.path().join("garbled");
    fs::write(&garbled, &fs::read(&from).unwrap()[..200]).unwrap();
    assert_eq!(refused(&garbled, &mut toy()).code().id, "K0103");

    let learner = toy().state(Parts::Weights).unwrap();
    let weights = root.path().join("weights");
    Checkpoint { learner, run: None }.write(&weights).unwrap();
    assert_eq!(refused(&weights, &mut toy()).code().id, "K0106");

    let error = refused(&from, &mut ToyLearner::new(5, 0.1));
    assert_eq!(error.code().id, "K0104");
    assert_eq!(error.reasons(), ["`weight` is F32 [5] here and F32 [3] in the checkpoint"]);

    let mut trainer = quiet(root.path()).build().unwrap();
    let metrics = trainer.ckpt_path(&weights).validate_learner(&mut toy(), &mut data(6, 2)).unwrap();
    assert!(metrics.get("val/loss").is_some(), "evaluation needs no more than weights");
}

#[test]
fn best_and_last_are_found_or_named_as_missing() {
    let root = quick_dir();
    let none = |asked: &str| {
        let mut trainer = quiet(root.path()).build().unwrap();
        trainer.ckpt_path(asked).fit_learner(&mut toy(), &mut data(3, 1)).unwrap_err().code().id
    };
    assert_eq!((none("best"), none("last")), ("K0108", "K0108"));

    // Of this trainer's own fit, though a newer run folder exists.
    let mut own =
        quiet(root.path()).max_epochs(2).callback(ModelCheckpoint::monitor("val/loss")).build().unwrap();
    let mut learner = toy();
    let report = own.fit_learner(&mut learner, &mut data(3, 1)).unwrap();
    let trained = learner.state(Parts::Weights).unwrap();
    let mut other = quiet(root.path()).max_epochs(1).build().unwrap();
    let newer = other.fit_learner(&mut toy(), &mut data(3, 1)).unwrap();
    assert_ne!(report.run_dir, newer.run_dir);
    for asked in ["last", "best"] {
        let mut fresh = toy();
        let _ = own.ckpt_path(asked).validate_learner(&mut fresh, &mut data(3, 1)).unwrap();
        assert_eq!(fresh.state(Parts::Weights).unwrap(), trained, "{asked}");
    }
    assert_eq!(report.best_checkpoint.unwrap().file_name().unwrap(), "epoch=1-step=6.safetensors");

    // Of the newest run folder that has one, for a new trainer.
    let mut empty = quiet(root.path()).max_epochs(1).enable_checkpointing(false).build().unwrap();
    let _ = empty.fit_learner(&mut toy(), &mut data(3, 1)).unwrap();
    let mut trainer = quiet(root.path()).max_epochs(3).build().unwrap();
    let report = trainer.ckpt_path("last").fit_learner(&mut toy(), &mut data(3, 1)).unwrap();
    assert_eq!((report.epochs, report.steps), (3, 9));
    assert_eq!(
        Checkpoint::read(&newer.last_checkpoint.unwrap()).unwrap().run.unwrap().progress.global_step,
        3
    );
}

#[test]
fn a_checkpoint_path_counts_for_one_run() {
    let root = quick_dir();
    let from = saved_inside_an_epoch(root.path());
    let mut trainer = quiet(root.path()).max_epochs(1).seed(1).build().unwrap();
    trainer.ckpt_path(&from);
    for batches in [3, 6] {
        let mut learner = RecordedLearner::new(&Record::new());
        let _ = trainer.fit_learner(&mut learner, &mut data(6, 2)).unwrap();
        assert_eq!(learner.seen_by("training_step").len(), batches);
    }
}

#[test]
fn a_stop_holds_after_a_resume_unless_its_limit_was_raised() {
    let root = quick_dir();
    let stopped = |report: &FitReport| report.outcome.to_string();
    let limited = |seconds| quiet(root.path()).max_epochs(4).max_time(Duration::from_secs_f64(seconds));
    let fit = |builder: TrainerBuilder, from: Option<&Path>| {
        let mut trainer = builder.build().unwrap();
        from.map(|path| trainer.ckpt_path(path));
        trainer.fit_learner(&mut toy(), &mut data(3, 1)).unwrap()
    };
    let first = fit(limited(1e-9), None);
    assert_eq!((stopped(&first).as_str(), first.steps), ("finished: Timer: 1ns of training are over", 1));
    let last = first.last_checkpoint.as_deref();
    assert_eq!(fit(limited(1e-9), last).steps, 1);
    let on = fit(limited(3600.0), last);
    assert_eq!((stopped(&on).as_str(), on.steps), ("finished: max_epochs = 4 reached", 12));

    let patient =
        || quiet(root.path()).max_epochs(4).callback(EarlyStopping::new("val/loss").stopping_threshold(1e9));
    let first = fit(patient(), None);
    let again = fit(patient(), first.last_checkpoint.as_deref());
    assert_eq!((first.epochs, again.epochs, stopped(&again)), (1, 1, stopped(&first)));
    let without = fit(quiet(root.path()).max_epochs(4), first.last_checkpoint.as_deref());
    assert_eq!(without.epochs, 4, "the callback is gone, and its stop with it");
}

#[test]
fn more_patience_goes_on_and_a_threshold_stays_reached() {
    let root = quick_dir();
    let patient = |patience| {
        EarlyStopping::new("val/loss").named("stop").mode(leyden_train::Mode::Max).patience(patience)
    };
    let run = |stop: EarlyStopping, from: Option<&str>| {
        let mut trainer = quiet(root.path()).max_epochs(6).callback(stop).build().unwrap();
        if let Some(from) = from {
            trainer.ckpt_path(from);
        }
        trainer.fit_learner(&mut toy(), &mut data(3, 1)).unwrap()
    };
    // The loss falls, so `Max` sees no improvement after the first check.
    assert_eq!(run(patient(2), None).epochs, 3);
    assert_eq!(run(patient(2), Some("last")).epochs, 3, "it had stopped");
    assert_eq!(run(patient(4), Some("last")).epochs, 5);
    assert_eq!(run(patient(9).stopping_threshold(-1.0), None).epochs, 1);
    assert_eq!(run(patient(9), Some("last")).epochs, 1, "the threshold was reached");
}

#[test]
fn auto_begins_anew_where_there_is_nothing_to_go_on_from() {
    let root = quick_dir();
    let run = |epochs| {
        let mut trainer = quiet(root.path()).max_epochs(epochs).build().unwrap();
        trainer.ckpt_path("auto").fit_learner(&mut toy(), &mut data(3, 1)).unwrap()
    };
    assert_eq!((run(1).steps, run(2).steps), (3, 6));
    let mut trainer = quiet(root.path()).name("other").build().unwrap();
    let error = trainer.ckpt_path("auto").test_learner(&mut toy(), &mut data(3, 1)).unwrap_err();
    assert_eq!(error.code().id, "K0108", "an evaluation has nothing to begin anew with");
}
