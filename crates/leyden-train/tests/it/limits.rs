//! Where a training ends, what it uses of its data, when it validates, logs and steps.

use std::time::Duration;

use leyden_process::Error;
use leyden_train::learner::toy::ToyBatch;
use leyden_train::testing::{Record, RecordedLearner, Recorder};
use leyden_train::{
    Control, Event, FitReport, Hook, Limit, ModelCheckpoint, Trainer, TrainerBuilder, ValCheck,
};
use tempfile::tempdir;

use crate::support::{On, Shared, bare, checkpoints, column, data, files, noting, quiet, state, toy};

/// Fits the toy on so many batches an epoch, and 2 of validation.
fn fit(builder: TrainerBuilder, batches: usize) -> FitReport {
    builder.build().unwrap().fit_learner(&mut toy(), &mut data(batches, 2)).unwrap()
}

fn refused(builder: TrainerBuilder, batches: usize) -> Error {
    let run = builder.build().and_then(|mut trainer| trainer.fit_learner(&mut toy(), &mut data(batches, 2)));
    run.expect_err("the run is refused")
}

/// Asks to stop after so many batches.
fn quitter(after: u64) -> On<impl FnMut(&Event<'_>, &mut Control) + Send> {
    On(Hook::TrainBatchEnd, move |event: &Event<'_>, control: &mut Control| {
        if event.progress.batches_seen == after {
            control.stop("enough");
        }
    })
}

#[test]
fn the_first_limit_ends_the_training_and_is_named() {
    let cases = [
        (bare().max_epochs(3), (3, 12), "finished: max_epochs = 3 reached"),
        (bare().max_steps(5), (1, 5), "finished: max_steps = 5 reached"),
        (bare().max_epochs(2).max_steps(100), (2, 8), "finished: max_epochs = 2 reached"),
        (bare().max_epochs(2).max_steps(8), (2, 8), "finished: max_steps = 8 reached"),
        (bare().max_epochs(9).max_steps(0), (0, 0), "finished: max_steps = 0 reached"),
        (bare().max_epochs(9).callback(quitter(6)), (1, 6), "finished: On(on_train_batch_end): enough"),
        (bare().limit_train_batches(Limit::Batches(0)), (0, 0), "finished: there are no batches"),
    ];
    for (builder, (epochs, steps), text) in cases {
        let report = fit(builder, 4);
        assert_eq!((report.epochs, report.steps, report.outcome.to_string().as_str()), (epochs, steps, text));
    }
}

#[test]
fn without_any_limit_there_are_a_thousand_epochs() {
    let report = fit(bare(), 1);
    assert_eq!((report.epochs, report.plan.max_epochs), (1000, Some(1000)));
}

#[test]
fn max_time_ends_at_a_step_boundary_and_replaces_the_default_epochs() {
    let report = fit(bare().max_time(Duration::from_millis(20)), 4);
    assert_eq!(report.outcome.to_string(), "finished: Timer: 20ms of training are over");
    assert_eq!(report.plan.max_epochs, None);
    assert!(report.steps > 0 && report.elapsed >= Duration::from_millis(20), "{report:?}");
}

#[test]
fn a_callback_cannot_stop_before_the_minima() {
    for (builder, epochs, steps) in [
        (bare(), 0, 1),
        (bare().min_epochs(2), 2, 8),
        (bare().min_steps(6), 1, 6),
        (bare().min_epochs(1).min_steps(2), 1, 4),
        (bare().min_epochs(3).min_steps(2), 3, 12),
    ] {
        let report = fit(builder.max_epochs(5).callback(quitter(1)), 4);
        assert_eq!((report.epochs, report.steps), (epochs, steps), "{:?}", report.plan);
        assert_eq!(report.outcome.to_string(), "finished: On(on_train_batch_end): enough");
    }
}

#[test]
fn limits_count_batches_of_each_stage() {
    for (limit, expected) in [
        (Limit::All, 8),
        (Limit::Batches(3), 3),
        (Limit::Batches(99), 8),
        (Limit::Batches(0), 0),
        (Limit::Fraction(0.5), 4),
        (Limit::Fraction(0.4), 3),
        (Limit::Fraction(0.0), 0),
    ] {
        let record = Record::new();
        let mut learner = RecordedLearner::new(&record);
        let builder = bare().max_epochs(1).num_sanity_val_steps(0).limit_train_batches(limit);
        let builder = builder.limit_val_batches(limit).limit_test_batches(limit).limit_predict_batches(limit);
        let mut trainer = builder.build().unwrap();
        let _ = trainer.fit_learner(&mut learner, &mut data(8, 8)).unwrap();
        let _ = trainer.test_learner(&mut learner, &mut data(8, 8)).unwrap();
        let _ = trainer.predict_learner(&mut learner, &mut data(8, 8)).unwrap();
        for step in ["training_step", "test_step", "predict_step"] {
            assert_eq!(learner.seen_by(step).len(), expected, "{step} with {limit:?}");
        }
        assert_eq!(learner.seen_by("validation_step").len(), expected, "{limit:?}");
    }
}

#[test]
fn a_part_that_leaves_no_batch_is_refused() {
    let error = refused(bare().limit_train_batches(Limit::Fraction(0.1)), 4);
    assert_eq!(error.code().id, "C0102");
    assert_eq!(error.what(), "`limit_train_batches` leaves no batch");
    assert_eq!(error.reasons(), ["0.1 of 4 batches is less than one"]);
    let error = refused(bare().limit_val_batches(Limit::Fraction(0.1)), 4);
    assert_eq!(error.what(), "`limit_val_batches` leaves no batch");
}

#[test]
fn overfitting_repeats_the_same_batches_in_order_for_training_and_validation() {
    let mut learner = RecordedLearner::new(&Record::new());
    let mut trainer = bare().max_epochs(2).overfit_batches(Limit::Batches(2)).build().unwrap();
    let _ = trainer.fit_learner(&mut learner, &mut data(6, 3)).unwrap();
    let trained = learner.seen_by("training_step");
    assert_eq!(trained.len(), 4);
    assert_eq!(trained[..2], trained[2..], "the same batches in every epoch");
    assert_ne!(trained[0], trained[1]);
    assert_eq!(learner.seen_by("validation_step"), trained, "and the same for validation");

    let mut sequential = RecordedLearner::new(&Record::new());
    let builder = bare().max_epochs(1).overfit_batches(Limit::Batches(2)).seed(99);
    let _ = builder.build().unwrap().fit_learner(&mut sequential, &mut data(6, 3)).unwrap();
    assert_eq!(sequential.seen_by("training_step"), trained[..2], "no shuffling: the seed does not matter");
}

#[test]
fn a_fast_dev_run_touches_everything_and_no_file() {
    let root = tempdir().unwrap();
    let record = Record::new();
    let builder = Trainer::builder().root_dir(root.path()).fast_dev_run(2).enable_progress_bar(false);
    let builder = builder
        .enable_model_summary(false)
        .callback(ModelCheckpoint::monitor("val/loss"))
        .callback(Recorder { record: record.clone() });
    // What would keep a long run from validating does not keep this one.
    let builder = builder.check_val_every_n_epoch(Some(5)).val_check_interval(ValCheck::Batches(100));
    let mut trainer = builder.build().unwrap();
    let report = trainer.fit_learner(&mut toy(), &mut data(6, 6)).unwrap();
    assert_eq!((report.epochs, report.steps, report.run_dir), (1, 2, None));
    assert_eq!(record.count("C.on_train_batch_end"), 2);
    assert_eq!(record.count("C.on_validation_batch_end"), 2);
    assert_eq!(record.count("C.on_sanity_check_start"), 0);
    let _ = trainer.test_learner(&mut toy(), &mut data(6, 6)).unwrap();
    assert_eq!(record.count("C.on_test_batch_end"), 2);
    assert_eq!(files(root.path()), Vec::<String>::new());
}

/// The training batches seen at each validation, of a run over so many epochs of 10 batches.
fn validations(builder: TrainerBuilder, epochs: u64) -> Vec<u64> {
    let seen: Shared<u64> = Shared::default();
    let probe = noting(Hook::ValidationEnd, &seen, |event| event.progress.batches_seen);
    let _ = fit(builder.num_sanity_val_steps(0).max_epochs(epochs).callback(probe), 10);
    seen.lock().unwrap().clone()
}

#[test]
fn validation_runs_when_it_is_asked_for() {
    let every = |interval| bare().val_check_interval(interval);
    assert_eq!(validations(bare(), 2), [10, 20]);
    assert_eq!(validations(every(ValCheck::Fraction(0.5)), 2), [5, 10, 15, 20]);
    assert_eq!(validations(every(ValCheck::Fraction(0.3)), 2), [3, 6, 9, 13, 16, 19]);
    assert_eq!(validations(every(ValCheck::Fraction(0.01)), 1), (1..=10).collect::<Vec<_>>());
    assert_eq!(validations(every(ValCheck::Batches(4)), 2), [4, 8, 14, 18]);
    assert_eq!(
        validations(every(ValCheck::Batches(4)).check_val_every_n_epoch(Some(2)), 4),
        [14, 18, 34, 38]
    );
    assert_eq!(validations(bare().check_val_every_n_epoch(Some(3)), 7), [30, 60]);
    let across = |n| every(ValCheck::Batches(n)).check_val_every_n_epoch(None);
    assert_eq!(validations(across(4), 2), [4, 8, 12, 16, 20]);
    assert_eq!(validations(across(15), 3), [15, 30]);
    assert_eq!(validations(every(ValCheck::Time(Duration::ZERO)), 1), (1..=10).collect::<Vec<_>>());
    assert!(validations(every(ValCheck::Time(Duration::from_secs(3600))), 2).is_empty());
}

#[test]
fn an_interval_longer_than_the_epoch_is_refused() {
    let error = refused(bare().val_check_interval(ValCheck::Batches(11)), 10);
    assert_eq!((error.code().id, error.what()), ("C0102", "validation would never run"));
    assert_eq!(error.reasons(), ["`val_check_interval` is 11 batches, an epoch has 10"]);
    let error = refused(bare().check_val_every_n_epoch(None), 10);
    assert_eq!((error.code().id, error.what()), ("C0101", "`check_val_every_n_epoch` is None"));
}

#[test]
fn validation_inside_a_window_leaves_its_gradients_alone() {
    let weights = |builder: TrainerBuilder| {
        let mut learner = toy();
        let mut trainer = builder.max_epochs(2).accumulate_grad_batches(4).build().unwrap();
        let _ = trainer.fit_learner(&mut learner, &mut data(10, 2)).unwrap();
        state(&mut learner)
    };
    let every_batch = bare().val_check_interval(ValCheck::Batches(1));
    assert_eq!(weights(every_batch), weights(bare().limit_val_batches(Limit::Batches(0))));
}

#[test]
fn the_sanity_check_is_forgotten_and_does_not_come_back_on_a_resume() {
    let root = tempdir().unwrap();
    let record = Record::new();
    let known: Shared<usize> = Shared::default();
    let probe = noting(Hook::TrainStart, &known, |event| event.metrics.epoch_values().len());
    let builder = quiet(root.path()).max_epochs(1).num_sanity_val_steps(3);
    let mut trainer = builder.callback(Recorder { record: record.clone() }).callback(probe).build().unwrap();
    let report = trainer.fit_learner(&mut toy(), &mut data(4, 5)).unwrap();
    let lines = record.lines();
    let check = lines.iter().take_while(|line| *line != "C.on_sanity_check_end");
    assert_eq!(check.filter(|line| *line == "C.on_validation_batch_end").count(), 3);
    assert_eq!(*known.lock().unwrap(), [0], "no metric of the check is known when training begins");
    let run_dir = report.run_dir.unwrap();
    assert_eq!(column(&run_dir, "val/loss").len(), 1);
    assert_eq!(checkpoints(&run_dir), ["epoch=0-step=4.safetensors", "last.safetensors"]);

    let again = Record::new();
    let builder = quiet(root.path()).max_epochs(2).callback(Recorder { record: again.clone() });
    let mut trainer = builder.build().unwrap();
    let _ = trainer.ckpt_path("last").fit_learner(&mut toy(), &mut data(4, 5)).unwrap();
    assert_eq!(again.count("C.on_sanity_check_start"), 0);
}

#[test]
fn step_level_values_are_logged_every_n_optimizer_steps() {
    let steps = |accumulate, batches| {
        let root = tempdir().unwrap();
        let builder = quiet(root.path()).max_epochs(2).log_every_n_steps(3);
        let report = fit(builder.accumulate_grad_batches(accumulate), batches);
        column(&report.run_dir.unwrap(), "train/loss").iter().map(|(step, _)| *step).collect::<Vec<_>>()
    };
    assert_eq!(steps(1, 4), [3, 6]);
    assert_eq!(steps(2, 5), [3, 6], "3 steps an epoch, the last of one batch");
}

/// Gradient descent with momentum on the windows' mean gradients, written out.
fn by_hand(windows: &[&[ToyBatch]]) -> ([f64; 3], f64) {
    let (mut w, mut b) = ([0.0f64; 3], 0.0f64);
    let (mut mw, mut mb) = ([0.0f64; 3], 0.0f64);
    for window in windows {
        let (mut gw, mut gb) = ([0.0f64; 3], 0.0f64);
        for batch in *window {
            let share = 1.0 / (batch.y.len() * window.len()) as f64;
            for (row, y) in batch.x.chunks(3).zip(&batch.y) {
                let predicted: f64 = row.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum::<f64>() + b;
                let slope = 2.0 * (predicted - f64::from(*y)) * share;
                for (g, x) in gw.iter_mut().zip(row) {
                    *g += slope * f64::from(*x);
                }
                gb += slope;
            }
        }
        for k in 0..3 {
            mw[k] = 0.9 * mw[k] + gw[k];
            w[k] -= 0.05 * mw[k];
        }
        mb = 0.9 * mb + gb;
        b -= 0.05 * mb;
    }
    (w, b)
}

#[test]
fn a_window_steps_with_the_mean_of_what_it_really_accumulated() {
    for (accumulate, expected_steps) in [(1, 5), (2, 3), (3, 2), (5, 1), (8, 1)] {
        let mut learner = RecordedLearner::new(&Record::new());
        let mut trainer = bare().max_epochs(1).accumulate_grad_batches(accumulate).build().unwrap();
        let report = trainer.fit_learner(&mut learner, &mut data(5, 0)).unwrap();
        assert_eq!(report.steps, expected_steps);
        let batches = learner.seen_by("training_step");
        let windows: Vec<_> = batches.chunks(accumulate as usize).collect();
        let (expected, expected_bias) = by_hand(&windows);
        let (weights, bias) = learner.learner.weights();
        for (found, expected) in weights.iter().chain([&bias]).zip(expected.iter().chain([&expected_bias])) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "N = {accumulate}: {found} {expected}");
        }
    }
}

#[test]
fn skipping_an_epoch_keeps_its_end_its_schedules_and_its_gradients() {
    let record = Record::new();
    let mut learner = RecordedLearner::new(&record);
    let skip = On(Hook::TrainBatchStart, |event: &Event<'_>, control: &mut Control| {
        if event.progress.epoch == 0 && event.progress.batch == 3 {
            control.skip_epoch();
        }
    });
    let builder = bare().max_epochs(2).accumulate_grad_batches(2).num_sanity_val_steps(0);
    let mut trainer = builder.callback(skip).build().unwrap();
    let report = trainer.fit_learner(&mut learner, &mut data(5, 1)).unwrap();
    assert_eq!(
        (report.epochs, report.steps),
        (2, 2 + 3),
        "batches 0-1 and 2 are stepped, then the next epoch"
    );
    assert_eq!(record.count("M.training_step"), 3 + 5);
    assert_eq!(record.count("M.on_train_epoch_end"), 2);
    assert_eq!(record.count("M.schedules_epoch"), 2);
    assert_eq!(record.count("M.on_validation_end"), 1, "the cut epoch is not validated, as in Lightning");
}

#[test]
fn a_run_that_is_stopped_is_validated_once_more() {
    assert_eq!(validations(bare().callback(quitter(3)), 5), [3]);
    assert_eq!(validations(bare().callback(quitter(10)), 5), [10], "and not twice at an epoch's end");
    assert_eq!(validations(bare().callback(quitter(3)).min_epochs(2), 5), [10, 20]);
}
