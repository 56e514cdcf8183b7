//! The evaluation loop: validation, test and prediction are the same pass with other names.

use std::any::Any;

use leyden_data::Loader;
use leyden_process::Error;

use super::fit::ENDED_EARLY;
use super::run::{Doing, Flow, Run};
use crate::event::Hook;
use crate::learner::Stage;
use crate::logs::Logs;
use crate::step::StepCx;

/// The names of one kind of evaluation.
pub(crate) struct Evaluation {
    pub(crate) stage: Stage,
    loader: &'static str,
    pub(crate) loader_method: &'static str,
    step: &'static str,
    start: Hook,
    epoch_start: Hook,
    batch_start: Hook,
    batch_end: Hook,
    epoch_end: Hook,
    pub(crate) end: Hook,
}

impl Evaluation {
    pub(crate) const VALIDATION: Self = Self {
        stage: Stage::Validate,
        loader: "validation",
        loader_method: "val_loader",
        step: "validation_step",
        start: Hook::ValidationStart,
        epoch_start: Hook::ValidationEpochStart,
        batch_start: Hook::ValidationBatchStart,
        batch_end: Hook::ValidationBatchEnd,
        epoch_end: Hook::ValidationEpochEnd,
        end: Hook::ValidationEnd,
    };
    pub(crate) const TEST: Self = Self {
        stage: Stage::Test,
        loader: "test",
        loader_method: "test_loader",
        step: "test_step",
        start: Hook::TestStart,
        epoch_start: Hook::TestEpochStart,
        batch_start: Hook::TestBatchStart,
        batch_end: Hook::TestBatchEnd,
        epoch_end: Hook::TestEpochEnd,
        end: Hook::TestEnd,
    };
    pub(crate) const PREDICTION: Self = Self {
        stage: Stage::Predict,
        loader: "prediction",
        loader_method: "predict_loader",
        step: "predict_step",
        start: Hook::PredictStart,
        epoch_start: Hook::PredictEpochStart,
        batch_start: Hook::PredictBatchStart,
        batch_end: Hook::PredictBatchEnd,
        epoch_end: Hook::PredictEpochEnd,
        end: Hook::PredictEnd,
    };
}

/// One pass over all loaders, up to the epoch's metrics; the caller emits the end. At most `limit` batches of each
/// loader. Predictions are returned, by loader and batch.
pub(crate) fn evaluate<H>(
    run: &mut Run<'_, H>,
    loaders: &[Box<dyn Loader<H>>],
    kind: &Evaluation,
    limit: Option<usize>,
) -> Flow<Vec<Vec<Box<dyn Any + Send>>>> {
    let counts: Vec<_> = run.plan.eval_batches.iter().map(|&n| n.min(limit.unwrap_or(n))).collect();
    let total = counts.iter().sum();
    run.rank.sync_buffers(run.learner)?;
    run.eval_logs = Logs::with_loaders(loaders.len());
    run.evaluation = Some((0, total));
    run.emit(kind.start)?;
    run.emit(kind.epoch_start)?;
    let mut predictions = Vec::new();
    'loaders: for (index, (loader, &count)) in loaders.iter().zip(&counts).enumerate() {
        let mut batches = loader.epoch(0, 0);
        let mut of_loader = Vec::new();
        for batch_index in 0..count {
            run.doing = Doing::Loading(kind.loader);
            let Some(batch) = batches.next() else {
                return Err(Error::new(
                    ENDED_EARLY,
                    format!("a {} loader ended before its length", kind.loader),
                )
                .why(format!("it promised {} batches, and gave {batch_index}", loader.len()))
                .hint("make the loader's `len` and its iterator agree")
                .into());
            };
            let batch = batch?;
            run.emit_apart(kind.batch_start)?;
            let at = run.step_facts(kind.stage, batch_index, batch.samples, index);
            run.doing = Doing::Step(kind.step);
            run.rank.phase(kind.step);
            let cx = &mut StepCx::new(at, &mut run.eval_logs);
            match kind.stage {
                Stage::Predict => of_loader.push(run.learner.predict(batch.data, cx)?),
                _ => run.learner.evaluate(batch.data, cx)?,
            }
            run.eval_logs.had_batch();
            run.eval_logs.end_step()?;
            run.evaluation = run.evaluation.map(|(done, total)| (done + 1, total));
            run.emit_apart(kind.batch_end)?;
            if run.is_asked_to_stop() {
                break 'loaders;
            }
        }
        predictions.push(of_loader);
    }
    // Where a rank was asked to stop, all end here: before values of a part are taken for those of all.
    run.agree()?;
    run.check_signals()?;
    run.rank.phase("the end of an evaluation");
    run.emit(kind.epoch_end)?;
    let values = run.eval_logs.end_epoch(&mut run.rank)?;
    run.evaluation = None;
    run.publish(values)?;
    Ok(predictions)
}
