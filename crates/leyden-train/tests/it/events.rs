//! The order of everything that a run calls, written out. Lightning's order (`trainer.py`, `test_hooks.py`), except:
//! loaders are made before `on_fit_start`; the batch-transfer, backward and zero-grad hooks do not exist; a step's
//! schedules advance before `on_train_batch_end`, an epoch's after `on_train_epoch_end`.

use leyden_process::Result;
use leyden_train::testing::{Record, RecordedData, RecordedLearner, Recorder};
use leyden_train::{Callback, Control, Event, Hook};

use crate::support::{bare, data};

/// Runs with recorders everywhere; gives what they recorded.
fn recorded(run: impl FnOnce(&mut RecordedLearner, &mut RecordedData, Recorder)) -> Vec<String> {
    recorded_on(2, 2, run)
}

fn recorded_on(
    train: usize,
    eval: usize,
    run: impl FnOnce(&mut RecordedLearner, &mut RecordedData, Recorder),
) -> Vec<String> {
    let record = Record::new();
    let mut data = RecordedData { data: data(train, eval), record: record.clone(), sabotage: None };
    run(&mut RecordedLearner::new(&record), &mut data, Recorder { record: record.clone() });
    record.lines()
}

/// One word a line; `CM.on_fit_start` is `C.on_fit_start`, then `M.on_fit_start`.
fn expanded(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for word in text.split_whitespace() {
        match word.strip_prefix("CM.") {
            Some(hook) => lines.extend([format!("C.{hook}"), format!("M.{hook}")]),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[track_caller]
fn assert_order(found: &[String], expected: &str) {
    assert_eq!(found.join("\n"), expanded(expected).join("\n"));
}

const SET_UP: &str = "D.prepare_data D.setup C.setup M.setup";
const TEAR_DOWN: &str = "D.teardown outcome=finished C.teardown M.teardown";
const TRAIN_BATCH: &str = "
    CM.on_train_batch_start
    M.training_step
    CM.on_before_optimizer_step M.optimizer_step M.schedules_step
    CM.on_train_batch_end";
const VALIDATION: &str = "
    CM.on_validation_start
        CM.on_validation_epoch_start
            CM.on_validation_batch_start M.validation_step CM.on_validation_batch_end
            CM.on_validation_batch_start M.validation_step CM.on_validation_batch_end
        CM.on_validation_epoch_end
    CM.on_validation_end";

#[test]
fn fit_follows_the_golden_order() {
    let found = recorded(|learner, data, recorder| {
        let mut trainer = bare().max_epochs(1).callback(recorder).build().unwrap();
        let _ = trainer.fit_learner(learner, data).unwrap();
    });
    assert_order(
        &found,
        &format!(
            "{SET_UP}
            D.train_loader D.val_loader M.configure_optimizers
            CM.on_fit_start
            CM.on_sanity_check_start {VALIDATION} CM.on_sanity_check_end
            CM.on_train_start
                CM.on_train_epoch_start
                    {TRAIN_BATCH}
                    {TRAIN_BATCH}
                    {VALIDATION}
                CM.on_train_epoch_end
                M.schedules_epoch
            CM.on_train_end
            CM.on_fit_end
            {TEAR_DOWN}"
        ),
    );
}

#[test]
fn fit_without_validation_data_never_mentions_validation() {
    let found = recorded_on(2, 0, |learner, data, recorder| {
        let mut trainer = bare().max_epochs(1).callback(recorder).build().unwrap();
        let _ = trainer.fit_learner(learner, data).unwrap();
    });
    assert_order(
        &found,
        &format!(
            "{SET_UP}
            D.train_loader D.val_loader M.configure_optimizers
            CM.on_fit_start
            CM.on_train_start
                CM.on_train_epoch_start {TRAIN_BATCH} {TRAIN_BATCH} CM.on_train_epoch_end
                M.schedules_epoch
            CM.on_train_end
            CM.on_fit_end
            {TEAR_DOWN}"
        ),
    );
}

#[test]
fn accumulation_steps_the_optimizer_once_a_window() {
    let found = recorded_on(3, 0, |learner, data, recorder| {
        let mut trainer = bare().max_epochs(1).accumulate_grad_batches(2).callback(recorder).build().unwrap();
        let _ = trainer.fit_learner(learner, data).unwrap();
    });
    assert_order(
        &found,
        &format!(
            "{SET_UP}
            D.train_loader D.val_loader M.configure_optimizers
            CM.on_fit_start
            CM.on_train_start
                CM.on_train_epoch_start
                    CM.on_train_batch_start M.training_step CM.on_train_batch_end
                    {TRAIN_BATCH}
                    {TRAIN_BATCH}
                CM.on_train_epoch_end
                M.schedules_epoch
            CM.on_train_end
            CM.on_fit_end
            {TEAR_DOWN}"
        ),
    );
}

#[test]
fn validate_follows_the_golden_order() {
    let found = recorded(|learner, data, recorder| {
        let _ = bare().callback(recorder).build().unwrap().validate_learner(learner, data).unwrap();
    });
    assert_order(&found, &format!("{SET_UP} D.val_loader {VALIDATION} {TEAR_DOWN}"));
}

#[test]
fn test_follows_the_golden_order() {
    let found = recorded(|learner, data, recorder| {
        let _ = bare().callback(recorder).build().unwrap().test_learner(learner, data).unwrap();
    });
    let test = VALIDATION.replace("validation", "test");
    assert_order(&found, &format!("{SET_UP} D.test_loader {test} {TEAR_DOWN}"));
}

#[test]
fn predict_follows_the_golden_order() {
    let found = recorded(|learner, data, recorder| {
        let predictions = bare().callback(recorder).build().unwrap().predict_learner(learner, data).unwrap();
        assert_eq!(predictions.iter().map(Vec::len).collect::<Vec<_>>(), [2], "by loader and batch");
    });
    let predict = VALIDATION.replace("validation", "predict");
    assert_order(&found, &format!("{SET_UP} D.predict_loader {predict} {TEAR_DOWN}"));
}

#[test]
fn an_evaluation_of_no_batches_only_sets_up_and_tears_down() {
    let found = recorded(|learner, data, recorder| {
        let none = leyden_train::Limit::Batches(0);
        let mut trainer = bare().limit_test_batches(none).callback(recorder).build().unwrap();
        assert!(trainer.test_learner(learner, data).unwrap().is_empty());
    });
    assert_order(&found, &format!("{SET_UP} D.test_loader {TEAR_DOWN}"));
}

#[test]
fn a_fit_with_nothing_to_train_starts_no_training() {
    let found = recorded_on(2, 0, |learner, data, recorder| {
        let mut trainer = bare().max_epochs(0).callback(recorder).build().unwrap();
        let report = trainer.fit_learner(learner, data).unwrap();
        assert_eq!(report.outcome.to_string(), "finished: max_epochs = 0 reached");
    });
    assert_order(
        &found,
        &format!(
            "{SET_UP} D.train_loader D.val_loader M.configure_optimizers CM.on_fit_start CM.on_fit_end {TEAR_DOWN}"
        ),
    );
}

#[test]
fn callbacks_that_save_come_after_the_module_and_those_that_monitor_after_the_metrics() {
    let record = Record::new();
    let mut data = RecordedData { data: data(1, 1), record: record.clone(), sabotage: None };
    let tagged = |tag, monitors, saves| Tagged { tag, monitors, saves, record: record.clone() };
    let mut trainer = bare()
        .enable_checkpointing(true)
        .max_epochs(1)
        .num_sanity_val_steps(0)
        .callback(tagged("S", true, true))
        .callback(tagged("E", true, false))
        .callback(tagged("C", false, false))
        .build()
        .unwrap();
    let _ = trainer.fit_learner(&mut RecordedLearner::new(&record), &mut data).unwrap();
    let of = |hook: Hook| -> Vec<String> {
        let lines = record.lines();
        let of_hook = lines.iter().filter(|line| line.ends_with(&format!(".{}", hook.name())));
        of_hook.map(|line| line[..1].to_owned()).collect()
    };
    assert_eq!(of(Hook::TrainBatchEnd), ["E", "C", "M", "S"]);
    assert_eq!(of(Hook::ValidationEnd), ["E", "C", "M", "S"]);
    assert_eq!(of(Hook::TrainEpochEnd), ["C", "M", "E", "S"]);
    assert_eq!(of(Hook::TrainEnd), ["E", "C", "M", "S"]);
}

struct Tagged {
    tag: &'static str,
    monitors: bool,
    saves: bool,
    record: Record,
}

impl Callback for Tagged {
    fn name(&self) -> String {
        self.tag.to_owned()
    }

    fn monitors(&self) -> bool {
        self.monitors
    }

    fn saves(&self) -> bool {
        self.saves
    }

    fn on_event(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.record.note(format!("{}.{}", self.tag, event.hook.name()));
        Ok(())
    }
}
