//! What goes wrong in a user's model: it is named, the model comes back, and the next `fit` works.

use burn::module::Param;
use leyden::prelude::*;
use leyden::train::codes;

use crate::cells::{HostRows, Net, Rows, Source, alone, bits, dry, quiet};

/// What [`Faulty`] does at its third training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    BurnPanic,
    DetachedLoss,
    Error,
    LogTwice,
    LogTensor,
    Nan,
    Panic,
    Skip,
    None,
}

/// A linear model that misbehaves. Burn modules hold constants too.
#[derive(Module, Debug)]
struct Faulty {
    weight: Param<Tensor<2>>,
    #[module(skip)]
    fault: Fault,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        let device = Device::default();
        device.seed(1);
        let weight = Tensor::random([6, 3], burn::tensor::Distribution::Default, &device);
        Self { weight: Param::from_tensor(weight), fault }
    }
}

impl LeydenModule for Faulty {
    type Batch = Rows;

    fn training_step(&self, batch: Rows, cx: &mut StepCx) -> Result<Loss> {
        let loss = cross_entropy(batch.features.clone().matmul(self.weight.val()), batch.classes);
        let fault = if cx.global_step() == 2 { self.fault } else { Fault::None };
        match fault {
            Fault::BurnPanic => _ = batch.features.clone().matmul(batch.features),
            Fault::DetachedLoss => return Ok(loss.detach().into()),
            Fault::Error => _ = "seven".parse::<i32>()?,
            Fault::LogTwice => {
                cx.log("twice", 1.0).on_epoch(true);
                cx.log("twice", 1.0);
            }
            Fault::LogTensor => _ = cx.log("vector", batch.features),
            Fault::Nan => return Ok((loss * f32::NAN).into()),
            Fault::Panic => panic!("no such class: {}", 7),
            Fault::Skip => return Ok(Loss::skip()),
            Fault::None => {}
        }
        Ok(loss.into())
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(burn::optim::SgdConfig::new().init(), 0.1))
    }
}

/// Data without validation, since [`Faulty`] has no `validation_step`.
struct TrainOnly(Source);

impl DataModule for TrainOnly {
    type Batch = HostRows;

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<HostRows>> {
        self.0.train_loader(cx)
    }
}

fn fail(fault: Fault) -> FitError<Faulty> {
    let mut trainer = dry().max_epochs(1).detect_anomaly(fault == Fault::Nan).build().unwrap();
    let data = &mut TrainOnly(Source::default());
    let failed = trainer.fit(Faulty::new(fault), data).expect_err("the model misbehaves");
    // The same trainer, the same process.
    assert_eq!(trainer.fit(Faulty::new(Fault::None), data).unwrap().steps, 8);
    failed
}

#[test]
fn a_panic_in_a_step_is_named_with_its_place_and_gives_the_model_back() {
    let _alone = alone();
    let FitError { error, model } = fail(Fault::Panic);
    assert_eq!(error.code(), codes::PANICKED);
    assert_eq!(error.reasons(), ["no such class: 7"]);
    assert_eq!(
        (error.place("in"), error.place("step"), error.place("batch")),
        (Some("`training_step`"), Some("2"), Some("2"))
    );
    assert!(error.place("panicked").unwrap().contains("failures.rs:"), "{error:?}");
    let model = model.expect("a step only borrows the model");
    assert_ne!(bits(&model), bits(&Faulty::new(Fault::None)), "it has made two steps");
}

#[test]
fn a_panic_of_burn_is_named_too() {
    let _alone = alone();
    let FitError { error, model } = fail(Fault::BurnPanic);
    assert_eq!(error.code(), codes::PANICKED);
    assert_eq!(error.place("step"), Some("2"));
    assert!(error.reasons()[0].to_lowercase().contains("matmul"), "{error:?}");
    assert!(model.is_some());
}

#[test]
fn a_returned_error_keeps_its_text_and_the_line_of_its_question_mark() {
    let _alone = alone();
    let error = fail(Fault::Error).error;
    assert_eq!(error.what(), "invalid digit found in string");
    assert!(error.place("raised").unwrap().contains("failures.rs:"), "{error:?}");
    assert_eq!(error.place("in"), Some("`training_step`"));
}

#[test]
fn a_loss_without_parameters_is_refused() {
    let _alone = alone();
    let error = fail(Fault::DetachedLoss).error;
    assert_eq!(error.code().id, "T0701");
}

#[test]
fn misused_logging_is_refused() {
    let _alone = alone();
    assert_eq!(fail(Fault::LogTwice).error.code().id, "T0201");
    let error = fail(Fault::LogTensor).error;
    assert_eq!((error.code().id, error.place("logged")), ("T0703", Some("`vector`")));
    assert!(error.reasons()[0].contains("[8, 6]"), "{error:?}");
}

#[test]
fn an_anomaly_is_named_before_it_reaches_the_weights() {
    let _alone = alone();
    let FitError { error, model } = fail(Fault::Nan);
    assert_eq!(error.code(), codes::NOT_FINITE);
    assert_eq!((error.place("parameter"), error.place("step")), (Some("`weight`"), Some("2")));
    let tensors = leyden::named_tensors(&model.unwrap()).unwrap();
    assert!(tensors[0].to_f32().unwrap().iter().all(|value| value.is_finite()));
}

#[test]
fn a_skipped_batch_makes_no_step() {
    let _alone = alone();
    let mut trainer = dry().max_epochs(1).limit_train_batches(Limit::Batches(2)).build().unwrap();
    let fitted = trainer.fit(Faulty::new(Fault::None), &mut TrainOnly(Source::default())).unwrap();
    assert_eq!(fitted.steps, 2);
    let mut trainer = dry().max_epochs(1).build().unwrap();
    let fitted = trainer.fit(Faulty::new(Fault::Skip), &mut TrainOnly(Source::default())).unwrap();
    // The third step is never made: the batches after the second are all skipped.
    assert_eq!(fitted.steps, 2);
}

#[test]
fn a_missing_step_is_named_with_the_loader_that_asked_for_it() {
    let _alone = alone();
    let mut trainer = dry().max_epochs(1).build().unwrap();
    let FitError { error, model } =
        trainer.fit(Faulty::new(Fault::None), &mut Source::default()).unwrap_err();
    assert_eq!(error.code().id, "T0702");
    assert_eq!(error.reasons(), ["the data module's `val_loader` gave batches for it"]);
    assert!(model.is_some());
}

#[test]
fn building_the_model_may_panic() {
    let _alone = alone();
    let mut trainer = dry().build().unwrap();
    let failed = trainer.fit_with(|_| -> Net { panic!("no weights") }, &mut Source::default()).unwrap_err();
    assert_eq!(
        (failed.error.code(), failed.error.reasons()),
        (codes::PANICKED, &["no weights".to_owned()][..])
    );
}

#[test]
fn a_checkpoint_of_another_model_lists_every_difference() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = quiet(folder.path()).max_epochs(1).build().unwrap();
    let data = &mut TrainOnly(Source::default());
    let fitted = trainer.fit(Faulty::new(Fault::None), data).unwrap();
    let path = fitted.last_checkpoint.clone().unwrap();
    let error = trainer.ckpt_path(&path).fit_with(Net::new, &mut Source::default()).unwrap_err().error;
    assert_eq!(error.code(), codes::OTHER_MODEL);
    let text = format!("{error:?}");
    assert!(
        text.contains("`first.weight`") && text.contains("`weight` F32 [6, 3] is only in the checkpoint"),
        "{text}"
    );
}

#[test]
fn validate_test_and_predict_leave_the_model_alone() {
    let _alone = alone();
    let model = Net::new(&Device::default());
    let before = bits(&model);
    let mut trainer = dry().build().unwrap();
    let data = &mut Source::default();
    let metrics = trainer.test(&model, data).unwrap();
    assert!(metrics.get("test/accuracy").unwrap() >= 0.0);
    assert_eq!(trainer.validate(&model, data).unwrap().len(), 5);
    let predictions = trainer.predict(&model, data).unwrap();
    assert_eq!(predictions[0].iter().map(Vec::len).collect::<Vec<_>>(), [16, 14]);
    assert_eq!(before, bits(&model));
}
