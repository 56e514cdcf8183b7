//! What loggers, monitors and reports get of what steps and hooks log.

use leyden_process::Result;
use leyden_train::learner::toy::ToyBatch;
use leyden_train::testing::{InHook, Record, RecordedLearner, ToyData};
use leyden_train::{
    DataModule, EarlyStopping, FitReport, Hook, LoaderCx, Loaders, ModelCheckpoint, Reduce, Stage, StepCx,
    TrainerBuilder,
};
use tempfile::tempdir;

use crate::support::{Shared, bare, checkpoints, column, data, noting, quiet, toy};

/// Logs by a closure in each training step.
fn logging(log: impl FnMut(&mut ToyBatch, &mut StepCx<'_>) -> Result<()> + 'static) -> RecordedLearner {
    let mut learner = RecordedLearner::new(&Record::new());
    learner.in_training = Some(Box::new(log));
    learner
}

fn fit(builder: TrainerBuilder, learner: &mut RecordedLearner, data: &mut ToyData) -> FitReport {
    builder.max_epochs(1).build().unwrap().fit_learner(learner, data).unwrap()
}

#[test]
fn an_epoch_level_value_is_the_mean_weighted_by_batch_size() {
    // 4, 4 and 2 rows, logged as 0, 1 and 2.
    let mut rows = ToyData { train: 10, eval: 0, ..ToyData::default() };
    let mut learner = logging(|_, cx| {
        let value = cx.batch_index() as f64;
        cx.log("mean", value).on_step(false).on_epoch(true);
        cx.log("sum", value).on_step(false).on_epoch(true).reduce(Reduce::Sum);
        cx.log("both", value).on_epoch(true);
        cx.log("own", value).on_step(false).on_epoch(true).batch_size(1);
        Ok(())
    });
    let metrics = fit(bare(), &mut learner, &mut rows).metrics;
    assert_eq!(metrics.get("mean"), Some((0.0 * 4.0 + 1.0 * 4.0 + 2.0 * 2.0) / 10.0));
    assert_eq!((metrics.get("sum"), metrics.get("own")), (Some(3.0), Some(1.0)));
    assert_eq!((metrics.get("both_epoch"), metrics.get("both")), (Some(0.8), None));
}

#[test]
fn both_levels_are_logged_under_two_names() {
    let root = tempdir().unwrap();
    let mut learner = logging(|_, cx| {
        cx.log("x", cx.batch_index() as f64).on_epoch(true);
        Ok(())
    });
    let report = fit(quiet(root.path()).log_every_n_steps(1), &mut learner, &mut data(3, 0));
    let run_dir = report.run_dir.unwrap();
    assert_eq!(column(&run_dir, "x_step"), [(1, 0.0), (2, 1.0), (3, 2.0)]);
    assert_eq!(column(&run_dir, "x_epoch"), [(3, 1.0)]);
}

#[test]
fn hooks_of_the_batch_log_into_the_row_of_their_step() {
    let root = tempdir().unwrap();
    let mut learner = RecordedLearner::new(&Record::new());
    let hooks: InHook = Box::new(|hook, cx| {
        if let (Hook::TrainBatchStart | Hook::TrainBatchEnd, Some(cx)) = (hook, cx) {
            cx.log(hook.name(), 1.0);
        }
        Ok(())
    });
    learner.in_hook = Some(hooks);
    let report = fit(quiet(root.path()).log_every_n_steps(2), &mut learner, &mut data(4, 0));
    let run_dir = report.run_dir.unwrap();
    for name in ["train/loss", "on_train_batch_start", "on_train_batch_end"] {
        let steps: Vec<_> = column(&run_dir, name).into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [2, 4], "{name}");
    }
}

#[test]
fn a_monitored_epoch_level_value_is_the_epochs_and_not_the_last_batchs() {
    for name in ["x", "y", "y_epoch"] {
        let root = tempdir().unwrap();
        let mut learner = logging(|_, cx| {
            let value = cx.batch_index() as f64;
            cx.log("x", value).on_step(false).on_epoch(true);
            cx.log("y", value).on_epoch(true);
            Ok(())
        });
        let save = ModelCheckpoint::monitor(name).filename(format!("{{{name}:.1}}"));
        // Lower than the last batch's value, higher than the epoch's: only the epoch's crosses it.
        let stop = EarlyStopping::new(name).stopping_threshold(1.5);
        let mut trainer = quiet(root.path()).max_epochs(3).callback(save).callback(stop).build().unwrap();
        let report = trainer.fit_learner(&mut learner, &mut data(3, 0)).unwrap();
        let expected =
            format!("finished: EarlyStopping({name}): {name} = 1 is better than the threshold 1.5");
        assert_eq!(report.outcome.to_string(), expected);
        let names = checkpoints(report.run_dir.as_deref().unwrap());
        assert_eq!(names, ["last.safetensors".to_owned(), format!("{name}=1.0.safetensors")]);
    }
}

#[test]
fn several_evaluation_loaders_log_under_their_number() {
    struct Two;
    impl DataModule for Two {
        type Batch = ToyBatch;
        fn test_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
            let rows =
                |rows| leyden_data::DataLoader::builder(leyden_train::testing::ToyRows { features: 3, rows });
            let [one, two] = [rows(0..8), rows(100..104)];
            assert_eq!(cx.stage, Stage::Test);
            Ok(Loaders::none().and(one.batch_size(4).build()?).and(two.batch_size(4).build()?))
        }
    }
    let metrics = bare().build().unwrap().test_learner(&mut toy(), &mut Two).unwrap();
    let names: Vec<_> = metrics.iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, ["test/loss/dataloader_idx_0", "test/loss/dataloader_idx_1"]);
    assert_ne!(metrics.get(&names[0]), metrics.get(&names[1]));
}

#[test]
fn rows_up_to_a_failure_are_on_disk() {
    let root = tempdir().unwrap();
    let mut learner = logging(|_, cx| match cx.batch_index() {
        3 => Err(leyden_process::Error::new(leyden_process::error::USER, "enough")),
        _ => Ok(()),
    });
    let mut trainer = quiet(root.path()).max_epochs(1).log_every_n_steps(1).build().unwrap();
    trainer.fit_learner(&mut learner, &mut data(5, 0)).unwrap_err();
    let steps: Vec<_> =
        column(trainer.run_dir().unwrap(), "train/loss").into_iter().map(|(s, _)| s).collect();
    assert_eq!(steps, [1, 2, 3]);
}

#[test]
fn rows_up_to_a_checkpoint_are_on_disk_when_it_is() {
    let root = tempdir().unwrap();
    let rows: Shared<Vec<u64>> = Shared::default();
    let look = noting(Hook::TrainBatchStart, &rows, |event| {
        let values = column(event.run_dir.unwrap(), "train/loss");
        values.into_iter().map(|(step, _)| step).collect()
    });
    let save = ModelCheckpoint::new().every_n_train_steps(2);
    let builder = quiet(root.path()).log_every_n_steps(1).callback(look).callback(save);
    let _ = fit(builder, &mut RecordedLearner::new(&Record::new()), &mut data(4, 0));
    assert_eq!(*rows.lock().unwrap(), [vec![], vec![], vec![1, 2], vec![1, 2]], "before each of 4 batches");
}
