//! What people read when something is wrong: the rendered text of each error, in full.

use std::fs;
use std::path::Path;

use leyden_data::{Batch, Loader};
use leyden_process::{Error, Result};
use leyden_train::learner::toy::{ToyBatch, ToyLearner};
use leyden_train::metric::{Accuracy, Mean};
use leyden_train::state::Parts;
use leyden_train::testing::{Record, RecordedData, RecordedLearner, Sabotage, ToyData};
use leyden_train::{
    Checkpoint, Control, DataModule, EarlyStopping, Event, Hook, Learner, Limit, LoaderCx, Loaders,
    ModelCheckpoint, TrainerBuilder, ValCheck,
};
use tempfile::tempdir;

use crate::support::{On, bare, data, quiet, toy};

/// The rendered error; the root folder reads `ROOT`, line numbers of this project read `N`.
#[track_caller]
fn assert_reads(error: &Error, root: &Path, expected: &str) {
    let text = format!("{error:?}").replace(&root.display().to_string(), "ROOT");
    let lines = text.lines().map(|line| match line.split_once(".rs:") {
        Some((file, _)) => format!("{file}.rs:N"),
        None => line.to_owned(),
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(text, expected, "\n--- found\n{text}\n--- expected\n{expected}\n");
}

fn no_root() -> &'static Path {
    Path::new("/no/root")
}

fn fit_error(builder: TrainerBuilder, learner: &mut dyn Learner<ToyBatch>, data: &mut ToyData) -> Error {
    builder.max_epochs(1).build().unwrap().fit_learner(learner, data).expect_err("the run fails")
}

fn training(extra: leyden_train::testing::InTraining) -> RecordedLearner {
    let mut learner = RecordedLearner::new(&Record::new());
    learner.in_training = Some(extra);
    learner
}

#[test]
fn a_value_out_of_range() {
    let error = bare().log_every_n_steps(0).build().unwrap_err();
    assert_reads(
        &error,
        no_root(),
        "\
error[C0101]: `log_every_n_steps` is 0
  why: allowed is at least 1
  fix: change `.log_every_n_steps(..)` on the builder, or the field in the configuration",
    );
}

#[test]
fn a_fraction_that_leaves_nothing() {
    let error = fit_error(bare().limit_val_batches(Limit::Fraction(0.1)), &mut toy(), &mut data(4, 3));
    assert_reads(
        &error,
        no_root(),
        "\
error[C0102]: `limit_val_batches` leaves no batch
  in  resolving the configuration
  why: 0.1 of 3 batches is less than one
  fix: set it to at least 0.3333, or to `Limit::Batches(1)`",
    );
}

#[test]
fn a_validation_that_would_never_run() {
    let error = fit_error(bare().val_check_interval(ValCheck::Batches(11)), &mut toy(), &mut data(4, 3));
    assert_reads(
        &error,
        no_root(),
        "\
error[C0102]: validation would never run
  in  resolving the configuration
  why: `val_check_interval` is 11 batches, an epoch has 4
  fix: lower it, or set `check_val_every_n_epoch` to `None` to count across epochs",
    );
}

#[test]
fn two_callbacks_of_one_name() {
    let builder = bare().callback(EarlyStopping::new("val/loss")).callback(EarlyStopping::new("val/loss"));
    assert_reads(
        &builder.build().unwrap_err(),
        no_root(),
        "\
error[C0103]: two callbacks are named `EarlyStopping(val/loss)`
  why: a callback's name is the key of its state in checkpoints, a logger's that of its file
  fix: remove one, or give it another name: those made to be several have `.named(..)`",
    );
}

#[test]
fn a_fit_without_a_training_loader() {
    let error = fit_error(bare(), &mut toy(), &mut data(0, 3));
    assert_reads(
        &error,
        no_root(),
        "\
error[C0104]: `fit` needs exactly one training loader
  in  `DataModule::train_loader`
  why: `DataModule::train_loader` gave 0
  fix: return `Ok(loader.into())` from `train_loader`",
    );
}

#[test]
fn an_error_of_the_users_training_step() {
    let mut learner = training(Box::new(|batch, cx| {
        if cx.batch_index() == 2 {
            batch.y[0] = "seven".parse::<f32>()?;
        }
        Ok(())
    }));
    assert_reads(
        &fit_error(bare(), &mut learner, &mut data(4, 0)),
        no_root(),
        "\
error[T0001]: invalid float literal
  raised  crates/leyden-train/tests/it/errors.rs:N
  in      `training_step`
  batch   2
  epoch   0
  step    2",
    );
}

#[test]
fn a_panic_in_the_validation_step() {
    let mut learner = RecordedLearner::new(&Record::new());
    learner.sabotage = Some(("validation_step", Sabotage::Panic));
    assert_reads(
        &fit_error(bare(), &mut learner, &mut data(4, 2)),
        no_root(),
        "\
error[T0301]: `validation_step` panicked
  in        `validation_step`
  panicked  crates/leyden-train/src/testing.rs:N
  during    the sanity check
  batch     0
  epoch     0
  step      0
  why: sabotage in validation_step",
    );
}

#[test]
fn a_loader_that_ends_early() {
    struct Short;
    impl Loader<ToyBatch> for Short {
        fn len(&self) -> usize {
            5
        }
        fn epoch(&self, _: u64, _: usize) -> Box<dyn Iterator<Item = Result<Batch<ToyBatch>>> + '_> {
            let data = ToyBatch { x: vec![0.0; 3], y: vec![1.0] };
            Box::new((0..2).map(move |index| Ok(Batch { data: data.clone(), samples: 1, padding: 0, index })))
        }
        fn set_sequential(&mut self) {}
    }
    struct Data;
    impl DataModule for Data {
        type Batch = ToyBatch;
        fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
            Ok(Loaders::none().and(Short))
        }
    }
    let error = bare().max_epochs(1).build().unwrap().fit_learner(&mut toy(), &mut Data).unwrap_err();
    assert_reads(
        &error,
        no_root(),
        "\
error[T0304]: the training loader ended before its length
  in     the training loader
  batch  2
  epoch  0
  step   2
  why: it promised 5 batches, and gave 2
  fix: make the loader's `len` and its iterator agree",
    );
}

#[test]
fn a_gradient_that_is_not_finite() {
    let mut learner = training(Box::new(|batch, cx| {
        if cx.batch_index() == 1 {
            batch.x[1] = f32::INFINITY;
        }
        Ok(())
    }));
    assert_reads(
        &fit_error(bare().detect_anomaly(true), &mut learner, &mut data(4, 0)),
        no_root(),
        "\
error[T0305]: a number of the training step is not finite
  parameter  `weight`
  in         `training_step`
  batch      1
  epoch      0
  step       1
  why: the loss is inf
  why: element 0 of the gradient of `weight` is NaN or infinite; it is the first one
  fix: lower the learning rate, clip the gradients, or look at the batch named here",
    );
}

#[test]
fn one_name_logged_in_two_ways() {
    let mut learner = training(Box::new(|_, cx| {
        cx.log("x", 1.0);
        cx.log("x", 1.0).on_epoch(true);
        Ok(())
    }));
    assert_reads(
        &fit_error(bare(), &mut learner, &mut data(4, 0)),
        no_root(),
        "\
error[T0201]: `x` is logged twice with different arguments
  in     `training_step`
  batch  0
  epoch  0
  step   0
  why: `on_epoch` was false and is true
  fix: use the same arguments each time, or two names",
    );
}

#[test]
fn a_step_level_value_in_an_epoch_hook() {
    let mut learner = RecordedLearner::new(&Record::new());
    learner.in_hook = Some(Box::new(|hook, cx| {
        if let (Hook::TrainEpochEnd, Some(cx)) = (hook, cx) {
            cx.log("x", 1.0).on_step(true);
        }
        Ok(())
    }));
    assert_reads(
        &fit_error(bare(), &mut learner, &mut data(4, 0)),
        no_root(),
        "\
error[T0202]: `x` is logged at the step level outside a training step
  in     `on_train_epoch_end` of the module
  batch  4
  epoch  0
  step   4
  why: epoch hooks and evaluation steps have only the epoch level
  fix: remove `.on_step(true)`, or log it in `training_step`",
    );
}

#[test]
fn one_name_for_two_metrics() {
    let mut learner = training(Box::new(|_, cx| {
        cx.metric("m", Mean::new)?;
        cx.metric("m", Accuracy::new)?;
        Ok(())
    }));
    assert_reads(
        &fit_error(bare(), &mut learner, &mut data(4, 0)),
        no_root(),
        "\
error[T0203]: `m` is a metric of another type
  in     `training_step`
  batch  0
  epoch  0
  step   0
  why: a metric keeps the type with which the epoch's first step asked for it
  fix: give the two metrics two names",
    );
}

#[test]
fn a_monitored_metric_that_nobody_logs() {
    let builder = bare().callback(EarlyStopping::new("val/acc"));
    assert_reads(
        &fit_error(builder, &mut toy(), &mut data(4, 2)),
        no_root(),
        &r#"
error[T0204]: the monitored metric `val/acc` was not logged
  in     `on_validation_end` of callback `EarlyStopping(val/acc)`
  batch  4
  epoch  0
  step   4
  why: known at the epoch level are: `val/loss`
  fix: log it with `cx.log("val/acc", ..)`, or monitor one of those"#[1..],
    );
}

#[test]
fn a_file_name_with_an_unknown_field() {
    let root = tempdir().unwrap();
    let builder = quiet(root.path()).callback(ModelCheckpoint::new().filename("{epoch}-{acc}"));
    assert_reads(
        &fit_error(builder, &mut toy(), &mut data(4, 2)),
        root.path(),
        "\
error[C0106]: the file name template `{epoch}-{acc}` has an unknown field `acc`
  in     `on_validation_end` of callback `ModelCheckpoint`
  batch  4
  epoch  0
  step   4
  why: known are `{epoch}`, `{step}` and the names of logged metrics, as `{val/loss}` or `{val/loss:.3}`
  fix: change `ModelCheckpoint::filename(..)`, or log that metric",
    );
}

#[test]
fn a_folder_that_cannot_be_made() {
    let root = tempdir().unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    let error = fit_error(quiet(&root.path().join("file")), &mut toy(), &mut data(4, 2));
    assert_reads(
        &error,
        root.path(),
        "\
error[K0105]: the run folder cannot be made
  folder  ROOT/file/run
  in      making the run folder
  why: Not a directory (os error 20)
  fix: choose another `root_dir`, or give this user the right to write there",
    );
    let builder = quiet(root.path()).callback(ModelCheckpoint::new().dirpath(root.path().join("file")));
    assert_reads(
        &fit_error(builder, &mut toy(), &mut data(4, 2)),
        root.path(),
        "\
error[K0101]: a file of the run could not be written
  file   ROOT/file/epoch=0-step=4.safetensors
  in     saving a checkpoint
  batch  4
  epoch  0
  step   4
  why: File exists (os error 17)
  fix: see that the folder can be written to and has space; the previous file of that name is untouched",
    );
}

/// The error of resuming the toy from what `prepare` leaves in a folder of checkpoints.
fn resume_error(prepare: impl FnOnce(&Path, &Path), learner: &mut ToyLearner) -> (Error, tempfile::TempDir) {
    let root = tempdir().unwrap();
    let mut first = quiet(root.path())
        .max_steps(3)
        .callback(ModelCheckpoint::new().every_n_train_steps(1))
        .build()
        .unwrap();
    let report = first.fit_learner(&mut toy(), &mut data(4, 0)).unwrap();
    let from = root.path().join("from");
    prepare(&report.last_checkpoint.unwrap(), &from);
    let mut trainer = quiet(root.path()).max_steps(9).seed(5).build().unwrap();
    (trainer.ckpt_path(&from).fit_learner(learner, &mut data(4, 0)).unwrap_err(), root)
}

#[test]
fn a_checkpoint_that_is_not_there() {
    let (error, root) = resume_error(|_, _| {}, &mut toy());
    assert_reads(
        &error,
        root.path(),
        "\
error[K0102]: a checkpoint cannot be read
  file  ROOT/from
  in    loading a checkpoint
  why: No such file or directory (os error 2)
  fix: give the path of a `.safetensors` file, `last` or `best`",
    );
}

#[test]
fn a_checkpoint_that_is_cut() {
    let cut = |last: &Path, from: &Path| fs::write(from, &fs::read(last).unwrap()[..100]).unwrap();
    let (error, root) = resume_error(cut, &mut toy());
    assert_reads(
        &error,
        root.path(),
        "\
error[K0103]: the file is no whole checkpoint
  file  ROOT/from
  in    loading a checkpoint
  why: invalid header length
  fix: use another checkpoint; one that Leyden wrote is whole unless it was changed afterwards",
    );
}

#[test]
fn a_checkpoint_of_weights_alone() {
    let weights = |_: &Path, from: &Path| {
        let learner = toy().state(Parts::Weights).unwrap();
        Checkpoint { learner, run: None }.write(from).unwrap();
    };
    let (error, root) = resume_error(weights, &mut toy());
    assert_reads(
        &error,
        root.path(),
        "\
error[K0106]: the checkpoint holds only weights: `fit` cannot go on from it
  file  ROOT/from
  in    loading a checkpoint
  fix: load the weights into the model before `fit`, or resume from a full checkpoint",
    );
}

#[test]
fn a_checkpoint_of_another_order() {
    let (error, root) = resume_error(|last, from| fs::rename(last, from).unwrap(), &mut toy());
    assert_reads(
        &error,
        root.path(),
        "\
error[K0107]: the checkpoint is inside an epoch whose order would change
  file  ROOT/from
  in    loading a checkpoint
  why: the seed was 0 and is 5
  why: the training loader had seed 0; it has seed 5
  fix: resume with the seed and loader of the run, or from a checkpoint at an epoch's end",
    );
}

#[test]
fn a_checkpoint_of_another_model() {
    let root = tempdir().unwrap();
    let mut other = ToyLearner::new(5, 0.1);
    let path = root.path().join("from");
    let learner = toy().state(Parts::Weights).unwrap();
    Checkpoint { learner, run: None }.write(&path).unwrap();
    let mut trainer = quiet(root.path()).build().unwrap();
    let error = trainer.ckpt_path(&path).validate_learner(&mut other, &mut data(0, 2)).unwrap_err();
    assert_reads(
        &error,
        root.path(),
        "\
error[K0104]: the weights of the checkpoint are of another model
  file  ROOT/from
  in    loading a checkpoint
  why: `weight` is F32 [5] here and F32 [3] in the checkpoint
  fix: build the model with the sizes that it was trained with, or choose another checkpoint",
    );
}

#[test]
fn no_checkpoint_to_choose_from() {
    let root = tempdir().unwrap();
    let mut trainer = quiet(root.path()).build().unwrap();
    let error = trainer.ckpt_path("last").fit_learner(&mut toy(), &mut data(4, 0)).unwrap_err();
    assert_reads(
        &error,
        root.path(),
        "\
error[K0108]: there is no `last` checkpoint
  folder  ROOT/run
  why: no run folder there has `checkpoints/last.safetensors`
  fix: give a path, or the `root_dir` and `name` of the run to go on with",
    );
    let error = trainer.ckpt_path("best").fit_learner(&mut toy(), &mut data(4, 0)).unwrap_err();
    assert_reads(
        &error,
        root.path(),
        "\
error[K0108]: there is no `best` checkpoint
  why: `best` is the best of this trainer's last `fit`, by the metric that a `ModelCheckpoint` monitors
  fix: run `fit` with a `ModelCheckpoint::monitor(..)` first, or give a path",
    );
}

#[test]
fn clean_ups_that_break() {
    let record = Record::new();
    let mut learner = RecordedLearner::new(&record);
    let mut data = RecordedData { data: data(2, 0), record, sabotage: Some(("teardown", Sabotage::Error)) };
    learner.sabotage = Some(("teardown", Sabotage::Panic));
    let mut trainer = bare().max_epochs(1).build().unwrap();
    let error = trainer.fit_learner(&mut learner, &mut data).unwrap_err();
    assert_reads(
        &error,
        no_root(),
        "\
error[T0306]: the run finished (max_epochs = 1 reached), but cleaning up failed
  in  `DataModule::teardown`
  in  `teardown` of the module
  why: `DataModule::teardown` failed: sabotage in teardown
  why: `teardown` of the module panicked: sabotage in teardown, at crates/leyden-train/src/testing.rs:N",
    );

    learner.in_training = Some(Box::new(|_, _| Sabotage::Error.commit("the step")));
    data.sabotage = Some(("teardown", Sabotage::Error));
    learner.sabotage = Some(("on_exception", Sabotage::Panic));
    let error = trainer.fit_learner(&mut learner, &mut data).unwrap_err();
    assert_reads(&error, no_root(), "\
error[T0001]: sabotage in the step
  in     `training_step`
  batch  0
  epoch  0
  step   0
  why: besides, `on_exception` of the module panicked: sabotage in on_exception, at crates/leyden-train/src/testing.rs:N
  why: besides, `DataModule::teardown` failed: sabotage in teardown");
}

#[test]
fn a_link_to_nothing_and_a_folder_in_the_way() {
    let root = tempdir().unwrap();
    fs::create_dir(root.path().join("folder")).unwrap();
    let paths = (root.path().join("none"), root.path().join("to"), root.path().join("folder"));
    let link = On(Hook::TrainStart, {
        let (none, to, _) = paths.clone();
        move |_: &Event<'_>, control: &mut Control| control.link_checkpoint(&none, &to)
    });
    assert_reads(
        &fit_error(bare().callback(link), &mut toy(), &mut data(2, 0)),
        root.path(),
        "\
error[K0102]: a checkpoint cannot be read
  file   ROOT/none
  in     saving a checkpoint
  batch  0
  epoch  0
  step   0
  why: No such file or directory (os error 2)
  fix: give the path of a `.safetensors` file, `last` or `best`",
    );
    let remove =
        On(Hook::TrainStart, move |_: &Event<'_>, control: &mut Control| control.remove_checkpoint(&paths.2));
    assert_reads(
        &fit_error(bare().callback(remove), &mut toy(), &mut data(2, 0)),
        root.path(),
        "\
error[K0101]: an old checkpoint cannot be removed
  file   ROOT/folder
  in     saving a checkpoint
  batch  0
  epoch  0
  step   0
  why: Is a directory (os error 21)
  fix: give this user the right to write in that folder",
    );
}
