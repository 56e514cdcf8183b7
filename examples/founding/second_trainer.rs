//! Trainers one after another in one program, on two ranks each, every other one with a failure: nothing freezes.
//!
//! A script whose second `Trainer` froze is where Lightning's users met their first hang (its issue 19768). Here a
//! `Trainer` starts nothing until it runs, and what a run has started or broken, the next one does not meet.

use leyden_process::{Result, bail};
use leyden_train::testing::{Record, RecordedLearner, ToyData};
use leyden_train::{Outcome, Trainer};

/// One round: a trainer, a training that may fail, and a second training by the same trainer.
fn round(number: usize) -> Result<u64> {
    let mut trainer = Trainer::builder()
        .devices(2)
        .max_epochs(2)
        .enable_checkpointing(false)
        .enable_progress_bar(false)
        .enable_model_summary(false)
        .no_logger()
        .build()?;
    let mut data = ToyData::default();
    let mut learner = RecordedLearner::new(&Record::new());
    if number % 2 == 1 {
        learner.in_training = Some(Box::new(|_, cx| match cx.batch_index() {
            2 => bail!("the third batch is torn"),
            _ => Ok(()),
        }));
        let error = trainer.fit_learner(&mut learner, &mut data).expect_err("its third batch is torn");
        assert!(error.what().contains("torn"), "{error:?}");
        learner.in_training = None;
    }
    let report = trainer.fit_learner(&mut learner, &mut data)?;
    assert!(matches!(report.outcome, Outcome::Finished(_)));
    Ok(report.steps)
}

fn main() -> Result<()> {
    let mut steps = 0;
    for number in 0..20 {
        steps += round(number)?;
    }
    println!("20 trainers, 30 trainings, {steps} steps");
    Ok(())
}
