//! The training loop.

use leyden_data::{Batch, Loader};
use leyden_process::{Code, Error, Result, exit};

use super::evaluate::{self, Evaluation};
use super::run::{Doing, Flow, Run};
use crate::event::Hook;
use crate::learner::{GradientValues, Stage, Trained, Update};
use crate::metrics::MetricsView;
use crate::outcome::StopReason;
use crate::plan::ValidationPlan;
use crate::progress::Phase;
use crate::scalar::Scalar;
use crate::schedule::Interval;
use crate::step::{StepCx, StepFacts};

type Train<H> = Box<dyn Loader<H>>;
type Val<H> = [Box<dyn Loader<H>>];
type Batches<'b, H> = dyn Iterator<Item = Result<Batch<H>>> + 'b;

/// Trains until a limit, a callback or a signal says so.
pub(crate) fn fit<H>(run: &mut Run<'_, H>, train: &Train<H>, val: &Val<H>) -> Flow<StopReason> {
    run.emit(Hook::FitStart)?;
    sanity_check(run, val)?;
    let reason = match done(run) {
        Some(reason) => reason,
        None => epochs(run, train, val)?,
    };
    run.emit(Hook::FitEnd)?;
    Ok(reason)
}

/// All epochs; there is at least one batch to train on.
fn epochs<H>(run: &mut Run<'_, H>, train: &Train<H>, val: &Val<H>) -> Flow<StopReason> {
    run.emit(Hook::TrainStart)?;
    let reason = loop {
        match done(run) {
            Some(reason) => break reason,
            None => epoch(run, train, val)?,
        }
    };
    run.emit(Hook::TrainEnd)?;
    Ok(reason)
}

/// One epoch, or what a checkpoint has left of it.
fn epoch<H>(run: &mut Run<'_, H>, train: &Train<H>, val: &Val<H>) -> Flow<()> {
    if run.progress.phase == Phase::EpochCut {
        run.progress.phase = Phase::Validated;
    }
    if run.progress.phase != Phase::EpochDone {
        if run.progress.phase == Phase::EpochStart {
            run.train_logs.start_epoch();
            run.emit(Hook::TrainEpochStart)?;
        }
        let mut batches =
            train.epoch(run.progress.epoch, (run.progress.batch * run.rank.parts()).min(train.len()));
        loop {
            if run.progress.phase == Phase::BatchDone {
                if validation_is_due(run) {
                    validate(run, val)?;
                }
                run.progress.phase = Phase::Validated;
            }
            if epoch_is_over(run) {
                break;
            }
            train_batch(run, &mut *batches)?;
        }
        if run.skip_epoch && run.in_window {
            optimizer_step(run)?;
        }
        let whole = run.progress.is_last_batch() || run.skip_epoch;
        run.progress.phase = if whole { Phase::EpochDone } else { Phase::EpochCut };
        run.emit_train_epoch_end()?;
    }
    if run.progress.phase == Phase::EpochDone {
        advance(run, Interval::Epoch)?;
        run.progress.epoch += 1;
        (run.progress.batch, run.progress.phase, run.skip_epoch) = (0, Phase::EpochStart, false);
    }
    Ok(())
}

/// One batch (of each virtual rank that this one stands for), and the optimizer's step if it completes a window.
fn train_batch<H>(run: &mut Run<'_, H>, batches: &mut Batches<'_, H>) -> Flow<()> {
    let first = next_batch(run, batches)?;
    run.check_signals()?;
    let samples = first.as_ref().map_or(0, |batch| batch.samples);
    let at = run.step_facts(Stage::Fit, run.progress.batch, samples, 0);
    run.step = Some(at);
    run.emit_inside_step(Hook::TrainBatchStart)?;
    if run.skip_epoch {
        return Ok(run.act()?);
    }
    let (mut loss, mut samples) = (None, 0);
    let mut next = first;
    // Buffers, such as running means, are those of the first virtual rank, on however many ranks they are.
    let mut buffers = Vec::new();
    for part in 0..run.rank.parts() {
        let Some(batch) = next.take() else { break };
        if part == 1 {
            buffers = run.learner.buffers()?;
        }
        samples += batch.samples;
        let at = run.facts_of_part(Stage::Fit, run.progress.batch, batch.samples, 0, part);
        let trained = train_part(run, batch, at)?;
        if trained.is_some() && run.config.virtual_ranks.is_some() {
            run.rank.keep(run.learner, part)?;
        }
        loss = loss.or(trained);
        if part + 1 < run.rank.parts() {
            next = next_batch(run, batches)?;
        }
    }

    run.learner.load_buffers(buffers)?;
    let done = run.progress.batch + 1;
    let last = done >= run.progress.batches;
    let stepping = last || done.is_multiple_of(run.config.accumulate_grad_batches as usize);
    run.in_window = !stepping;
    if stepping {
        optimizer_step(run)?;
    }
    run.progress.batch += 1;
    run.progress.batches_seen += 1;
    match run.rank.is_alone() {
        true => run.progress.samples_seen += samples as u64,
        false => run.new_samples += samples,
    }
    run.progress.phase = Phase::BatchDone;
    let log = stepping && run.progress.global_step.is_multiple_of(run.plan.log_every_n_steps);
    run.emit_train_batch_end(loss.as_ref(), log)
}

/// Forward and backward of one batch; gives its loss.
fn train_part<H>(run: &mut Run<'_, H>, batch: Batch<H>, at: StepFacts) -> Flow<Option<Scalar>> {
    run.doing = Doing::Step("training_step");
    run.rank.phase("training_step");
    let trained = run.learner.train(batch.data, &mut StepCx::new(at, &mut run.train_logs))?;
    run.train_logs.check()?;
    let loss = match trained {
        Trained::Skipped => None,
        Trained::Loss(loss) => {
            run.progress.accumulated += 1;
            Some(loss)
        }
    };
    if run.config.detect_anomaly {
        detect_anomaly(run, loss.as_ref())?;
    }
    Ok(loss)
}

/// The optimizer's step, with the gradients of all ranks; none where every batch of the window was skipped.
fn optimizer_step<H>(run: &mut Run<'_, H>) -> Flow<()> {
    run.in_window = false;
    run.doing = Doing::Reducing;
    let accumulated =
        run.rank.reduce_gradients(run.learner, std::mem::take(&mut run.progress.accumulated))?;
    if accumulated == 0 {
        return Ok(());
    }
    run.emit_inside_step(Hook::BeforeOptimizerStep)?;
    run.doing = Doing::Optimizer;
    run.learner.apply(&Update { accumulated, clip: run.config.gradient_clip })?;
    run.progress.global_step += 1;
    advance(run, Interval::Step)
}

fn advance<H>(run: &mut Run<'_, H>, due: Interval) -> Flow<()> {
    run.doing = Doing::Optimizer;
    if !run.rank.is_alone() {
        // What a step has logged differs between ranks; the learning rate must not.
        let known = &run.metrics;
        return Ok(run
            .learner
            .advance(due, &|name| known.get(name).or_else(|| known.get(&format!("{name}_epoch"))))?);
    }
    let known = MetricsView { epoch: &run.metrics, step: &run.train_logs };
    Ok(run.learner.advance(due, &|name| known.get(name))?)
}

/// An epoch ends by count: a loader that stops early is an error, not a shorter epoch. `None` where other ranks have more
/// batches than this one, and it goes on without.
fn next_batch<H>(run: &mut Run<'_, H>, batches: &mut Batches<'_, H>) -> Flow<Option<Batch<H>>> {
    run.doing = Doing::Loading("training");
    run.rank.phase("loading training batches");
    match batches.next() {
        Some(batch) => Ok(Some(batch?)),
        None if run.progress.batch >= run.own_batches => Ok(None),
        None => Err(Error::new(ENDED_EARLY, "the training loader ended before its length")
            .why(format!("it promised {} batches, and gave {}", run.progress.batches, run.progress.batch))
            .hint("make the loader's `len` and its iterator agree")
            .into()),
    }
}

/// Whether no more batch of this epoch is to be trained on.
fn epoch_is_over<H>(run: &Run<'_, H>) -> bool {
    run.progress.is_last_batch() || run.skip_epoch || step_limit(run).is_some() || may_stop(run)
}

/// What ends the training, looked at between epochs and after an epoch that was cut. A run that resumes before the
/// end of its last epoch brings that to its end first, as the uninterrupted one did.
fn done<H>(run: &Run<'_, H>) -> Option<StopReason> {
    if run.plan.train_batches == 0 {
        return Some(StopReason::NoBatches);
    }
    if !matches!(run.progress.phase, Phase::EpochStart | Phase::EpochCut) {
        return None;
    }
    if let Some(limit) = step_limit(run) {
        return Some(limit);
    }
    if let Some(max) = run.plan.max_epochs.filter(|&max| run.progress.epoch >= max) {
        return Some(StopReason::MaxEpochs(max));
    }
    match &run.stop {
        Some((name, reason)) if may_stop(run) => {
            Some(StopReason::Callback { name: name.clone(), reason: reason.clone() })
        }
        _ => None,
    }
}

fn step_limit<H>(run: &Run<'_, H>) -> Option<StopReason> {
    let max = run.plan.max_steps.filter(|&max| run.progress.global_step >= max)?;
    Some(StopReason::MaxSteps(max))
}

/// Whether a callback asked to stop, and `min_epochs` and `min_steps` allow it.
fn may_stop<H>(run: &Run<'_, H>) -> bool {
    let completed = run.progress.epoch + u64::from(run.progress.batch > 0 && run.progress.is_last_batch());
    run.stop.is_some()
        && !run.must_go_on()
        && completed >= run.config.min_epochs.unwrap_or(0)
        && run.progress.global_step >= run.config.min_steps.unwrap_or(0)
}

fn validation_is_due<H>(run: &Run<'_, H>) -> bool {
    let Some(plan) = run.plan.validation else { return false };
    // A run that is asked to stop is validated once more, so that its last metrics are of its last weights.
    may_stop(run)
        || match plan {
            ValidationPlan::InEpoch { every_batches, every_epochs } => {
                (run.progress.epoch + 1).is_multiple_of(every_epochs)
                    && run.progress.batch.is_multiple_of(every_batches)
            }
            ValidationPlan::AcrossEpochs { every_batches } => {
                run.progress.batches_seen.is_multiple_of(every_batches)
            }
            ValidationPlan::Timed(_) if !run.rank.is_alone() => run.validation_is_agreed,
            ValidationPlan::Timed(_) => run.validation_is_late(),
        }
}

fn validate<H>(run: &mut Run<'_, H>, val: &Val<H>) -> Flow<()> {
    evaluate::evaluate(run, val, &Evaluation::VALIDATION, None)?;
    run.progress.validations += 1;
    run.progress.phase = Phase::Validated;
    run.last_validation = std::time::Instant::now();
    run.validation_is_agreed = false;
    run.emit(Hook::ValidationEnd)
}

/// A few validation batches before training, so that a mistake there does not cost an epoch. Nothing is kept.
fn sanity_check<H>(run: &mut Run<'_, H>, val: &Val<H>) -> Flow<()> {
    let resumed = run.progress.batches_seen > 0;
    if run.plan.sanity_batches == 0 || run.plan.validation.is_none() || resumed {
        return Ok(());
    }
    run.sanity_checking = true;
    run.emit(Hook::SanityCheckStart)?;
    evaluate::evaluate(run, val, &Evaluation::VALIDATION, Some(run.plan.sanity_batches))?;
    run.emit(Hook::ValidationEnd)?;
    run.metrics = crate::Metrics::default();
    run.emit(Hook::SanityCheckEnd)?;
    run.sanity_checking = false;
    Ok(())
}

/// Looks for NaN and infinity before they reach the weights.
fn detect_anomaly<H>(run: &mut Run<'_, H>, loss: Option<&Scalar>) -> Result<()> {
    let Some(loss) = loss else { return Ok(()) };
    let loss = loss.read()?;
    let mut culprit = None;
    run.learner.visit_gradients(&mut |gradient| {
        let found = gradient.values.as_ref().and_then(GradientValues::first_non_finite);
        if let (Some(element), None) = (found, &culprit) {
            culprit = Some((gradient.path.to_owned(), element));
        }
        Ok(())
    })?;
    if loss.is_finite() && culprit.is_none() {
        return Ok(());
    }
    let mut error = Error::new(NOT_FINITE, "a number of the training step is not finite")
        .why(format!("the loss is {loss}"));
    if let Some((path, element)) = culprit {
        error = error.at("parameter", format!("`{path}`")).why(format!(
            "element {element} of the gradient of `{path}` is NaN or infinite; it is the first one"
        ));
    }
    Err(error.hint("lower the learning rate, clip the gradients, or look at the batch named here"))
}

/// The training loader gave fewer batches than it promised.
pub const ENDED_EARLY: Code = Code::new("T0304", exit::TRAINING_FAILED);
/// The loss or a gradient is NaN or infinite, and `detect_anomaly` is on.
pub const NOT_FINITE: Code = Code::new("T0305", exit::TRAINING_FAILED);
