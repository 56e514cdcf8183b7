//! [`Trainer`]: configured once, used for any number of runs.

mod builder;
mod evaluate;
mod fit;
mod lifecycle;
mod run;

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leyden_data::Loader;
use leyden_process::signal::{self, Listener};
use leyden_process::{Code, Error, Result, allocator, exit};

pub use builder::{BAD_BUILD, SAME_NAME, TrainerBuilder};
pub use fit::{ENDED_EARLY, NOT_FINITE};
pub use lifecycle::{CLEAN_UP_FAILED, CLEAN_UP_STUCK, INTERRUPTED, PANICKED, TERMINATED};
pub use run::{OTHER_ORDER, SAVED_ELSEWHERE, WEIGHTS_ONLY};

use evaluate::Evaluation;
use lifecycle::{Ended, conduct, interruption};
use run::{Asked, Doing, Flow, Run};

use crate::checkpoint::{Checkpoint, RunState};
use crate::config::TrainerConfig;
use crate::data_module::{DataModule, LoaderCx, Loaders};
use crate::event::Callback;
use crate::learner::{Learner, Stage};
use crate::logger::Logger;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::outcome::{Outcome, StopReason};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::ranks::{Manifest, Rank};
use crate::run_dir;
use crate::say::say;
use crate::state::Parts;

/// Runs training, validation, test and prediction.
///
/// Making one does no I/O and starts nothing; any number of them, and any number of runs, may follow each other in
/// a process, after success and after failure. Each run holds the lifecycle contract of
/// [`DataModule`](crate::DataModule).
///
/// The engine's crate adds `fit`, `validate`, `test` and `predict` for its models (`leyden::prelude` has them);
/// the methods here take any [`Learner`].
pub struct Trainer {
    config: TrainerConfig,
    callbacks: Vec<Box<dyn Callback>>,
    loggers: Vec<Box<dyn Logger>>,
    ckpt_path: Option<CkptPath>,
    dir: Option<PathBuf>,
}

/// Which checkpoint a run begins from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CkptPath {
    /// As `Last`, but `fit` starts anew, and says so, if there is none: for a script that is queued again and again.
    Auto,
    /// The best by the monitored metric, of this trainer's last `fit`.
    Best,
    /// The newest: of this trainer's last `fit`, else of the newest run folder of that name that has one.
    Last,
    /// This file.
    Path(PathBuf),
}

impl<P: AsRef<Path>> From<P> for CkptPath {
    /// `auto`, `best` and `last` are what they say; anything else is a path.
    fn from(path: P) -> Self {
        match path.as_ref().to_str() {
            Some("auto") => Self::Auto,
            Some("best") => Self::Best,
            Some("last") => Self::Last,
            _ => Self::Path(path.as_ref().to_path_buf()),
        }
    }
}

/// What a `fit` that did not fail did.
#[derive(Clone, Debug)]
#[must_use = "an interrupted fit is not an error; look at `outcome`"]
pub struct FitReport {
    /// How it ended: finished, or interrupted by a signal.
    pub outcome: Outcome,
    /// The newest epoch-level values.
    pub metrics: Metrics,
    /// Epochs completed, counted over resumes.
    pub epochs: u64,
    /// Optimizer steps made, counted over resumes.
    pub steps: u64,
    /// How long this run took.
    pub elapsed: Duration,
    /// The run folder, if anything was written.
    pub run_dir: Option<PathBuf>,
    /// The best checkpoint by the monitored metric.
    pub best_checkpoint: Option<PathBuf>,
    /// The newest checkpoint; the one that it began from, if it had nothing left to do.
    pub last_checkpoint: Option<PathBuf>,
    /// What was resolved to run, and why.
    pub plan: Plan,
    /// Whether this is the rank that writes files.
    is_global_zero: bool,
    /// What a checkpoint of it needs besides the learner.
    state: Option<Box<RunState>>,
}

impl FitReport {
    /// Why the training ended; an error if a signal stopped it, for programs that can do nothing with half of one.
    ///
    /// # Errors
    /// `T0302` or `T0303`.
    pub fn finished(&self) -> Result<&StopReason> {
        match &self.outcome {
            Outcome::Finished(reason) => Ok(reason),
            Outcome::Interrupted(signal) => Err(interruption(*signal)),
            Outcome::Failed => unreachable!("a run that failed has an error in the place of a report"),
        }
    }
}

/// What prediction returned: by loader, by batch.
pub type Predictions<T = Box<dyn Any + Send>> = Vec<Vec<T>>;

impl Trainer {
    /// Starts to configure one.
    pub fn builder() -> TrainerBuilder {
        TrainerBuilder::default()
    }

    /// What it was told.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// The run folder of the last run.
    pub fn run_dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The next run begins from this checkpoint: `fit` goes on where it was saved, to the last bit; evaluations
    /// take its weights. `best`, `last`, `auto`, or a path.
    pub fn ckpt_path(&mut self, path: impl Into<CkptPath>) -> &mut Self {
        self.ckpt_path = Some(path.into());
        self
    }

    /// Trains `learner` on `data`.
    ///
    /// # Errors
    /// What made it fail, with hook, epoch, step and batch. A signal is no error: see [`FitReport::outcome`].
    #[track_caller]
    pub fn fit_learner<H>(
        &mut self,
        learner: &mut dyn Learner<H>,
        data: &mut dyn DataModule<Batch = H>,
    ) -> Result<FitReport> {
        let mut rank = Rank::launch(&self.config, "fit")?;
        let from = self.take_ckpt_path(Stage::Fit, &mut rank)?;
        self.dir = None;
        // A program that handled an interrupted run and trains again is judged by this one.
        signal::note_exit_code(exit::OK);
        let begun = Instant::now();
        let mut run = self.run(Stage::Fit, rank, learner, data);
        let Ended { outcome, error, .. } = conduct(&mut run, |run| {
            let cx = run.loader_cx();
            run.doing = Doing::Data("train_loader");
            let mut train = one_loader(run.data.train_loader(&cx)?)?;
            run.doing = Doing::Data("val_loader");
            let mut val = run.data.val_loader(&cx)?.0;
            if run.config.overfit_batches.is_some() {
                train.set_sequential();
                run.doing = Doing::Data("train_loader");
                val = run.data.train_loader(&cx)?.0;
                val.iter_mut().for_each(|loader| loader.set_sequential());
            }
            train.set_default_seed(cx.seed);
            val.iter_mut().for_each(|loader| loader.set_default_seed(cx.seed));
            run.doing = Doing::Sharing("train_loader");
            train.set_share(&run.rank.share(false))?;
            run.doing = Doing::Sharing("val_loader");
            val.iter_mut().try_for_each(|loader| loader.set_share(&run.rank.share(true)))?;
            run.doing = Doing::Planning;
            run.own_batches = train.len().div_ceil(run.rank.parts());
            let batches = run.rank.steps(run.own_batches)?;
            run.plan = plan(run, Some(batches), &val)?;
            run.progress.batches = run.plan.train_batches;
            run.loader = train.identity();
            run.doing = Doing::Configuring;
            run.learner.configure_optimizers()?;
            run.verify()?;
            run.rank.sync(run.learner)?;
            run.open_run_dir()?;
            if let Some(path) = &from {
                run.doing = Doing::Restoring;
                run.load(path)?;
            }
            run.started = true;
            let reason = fit::fit(run, &train, &val)?;
            run.rank.sync_buffers(run.learner)?;
            let logs = run.train_logs.state(&mut run.rank)?;
            run.end = Some(run.run_state(logs));
            run.share_checkpoints(&from)?;
            Ok(((), reason))
        });
        let report = FitReport {
            outcome,
            metrics: run.metrics.clone(),
            epochs: run.progress.epoch,
            steps: run.progress.global_step,
            elapsed: begun.elapsed(),
            run_dir: run.dir.clone(),
            best_checkpoint: run.best_checkpoint(),
            last_checkpoint: run.last_checkpoint().or(from),
            plan: run.plan.clone(),
            is_global_zero: run.rank.is_global_zero(),
            state: run.end.take().map(Box::new),
        };
        let dir = run.dir.clone();
        drop(run);
        self.dir = dir;
        error.map_or(Ok(report), Err)
    }

    /// Validates `learner`; gives the epoch-level values.
    ///
    /// # Errors
    /// What made it fail; a signal is an error here (`T0302`, `T0303`), because the values would be of a part.
    #[track_caller]
    pub fn validate_learner<H>(
        &mut self,
        learner: &mut dyn Learner<H>,
        data: &mut dyn DataModule<Batch = H>,
    ) -> Result<Metrics> {
        self.evaluate(learner, data, &Evaluation::VALIDATION).map(|(metrics, _)| metrics)
    }

    /// Tests `learner`; gives the epoch-level values.
    ///
    /// # Errors
    /// As [`validate_learner`](Self::validate_learner).
    #[track_caller]
    pub fn test_learner<H>(
        &mut self,
        learner: &mut dyn Learner<H>,
        data: &mut dyn DataModule<Batch = H>,
    ) -> Result<Metrics> {
        self.evaluate(learner, data, &Evaluation::TEST).map(|(metrics, _)| metrics)
    }

    /// Predicts; gives what the learner made of each batch, by loader: on several ranks each has its own part.
    ///
    /// # Errors
    /// As [`validate_learner`](Self::validate_learner).
    #[track_caller]
    pub fn predict_learner<H>(
        &mut self,
        learner: &mut dyn Learner<H>,
        data: &mut dyn DataModule<Batch = H>,
    ) -> Result<Predictions> {
        self.evaluate(learner, data, &Evaluation::PREDICTION).map(|(_, predictions)| predictions)
    }

    /// Saves `learner` as the `fit` of `report` left it: a checkpoint to resume from. Without a report it holds the
    /// weights alone. After a `fit` on several ranks rank 0 writes it, and the others do nothing.
    ///
    /// # Errors
    /// `K0101` if the file cannot be written.
    pub fn save_checkpoint_learner<H>(
        &self,
        learner: &mut dyn Learner<H>,
        report: Option<&FitReport>,
        path: impl AsRef<Path>,
    ) -> Result<()> {
        if report.is_some_and(|report| !report.is_global_zero) {
            // Rank 0 writes the files, for all.
            return Ok(());
        }
        let run = report.and_then(|report| report.state.as_deref().cloned());
        let learner = learner.state(if run.is_some() { Parts::All } else { Parts::Weights })?;
        Checkpoint { learner, run }.write(path.as_ref())
    }

    #[track_caller]
    fn evaluate<H>(
        &mut self,
        learner: &mut dyn Learner<H>,
        data: &mut dyn DataModule<Batch = H>,
        kind: &Evaluation,
    ) -> Result<(Metrics, Predictions)> {
        let mut rank = Rank::launch(&self.config, kind.stage.name())?;
        let from = self.take_ckpt_path(kind.stage, &mut rank)?;
        let mut run = self.run(kind.stage, rank, learner, data);
        let Ended { outcome, value, error } = conduct(&mut run, |run| {
            let mut loaders = eval_loaders(run)?;
            loaders.iter_mut().for_each(|loader| loader.set_default_seed(run.config.seed));
            let share = run.rank.share(true);
            run.doing = Doing::Sharing(kind.loader_method);
            loaders.iter_mut().try_for_each(|loader| loader.set_share(&share))?;
            run.doing = Doing::Planning;
            run.plan = plan(run, None, &loaders)?;
            run.verify()?;
            run.rank.sync(run.learner)?;
            if kind.stage != Stage::Predict {
                run.open_run_dir()?;
            }
            if let Some(path) = &from {
                run.doing = Doing::Restoring;
                run.load(path)?;
            }
            run.started = true;
            if run.rank.is_alone() && run.plan.eval_batches.iter().all(|&batches| batches == 0) {
                let nothing = loaders.iter().map(|_| Vec::new()).collect();
                return Ok((nothing, StopReason::NoBatches));
            }
            let predictions = evaluate::evaluate(run, &loaders, kind, None)?;
            run.emit(kind.end)?;
            Ok((predictions, StopReason::AllBatches))
        });
        let (metrics, dir) = (run.metrics.clone(), run.dir.clone());
        drop(run);
        self.dir = dir;
        match (error, value, outcome) {
            (Some(error), ..) => Err(error),
            (None, Some(predictions), _) => Ok((metrics, predictions)),
            (None, None, Outcome::Interrupted(signal)) => Err(interruption(signal)),
            (None, None, _) => unreachable!("a run that neither failed nor was interrupted has its value"),
        }
    }

    fn run<'r, H>(
        &'r mut self,
        stage: Stage,
        rank: Rank,
        learner: &'r mut dyn Learner<H>,
        data: &'r mut dyn DataModule<Batch = H>,
    ) -> Run<'r, H> {
        allocator::raise_thresholds();
        // What is written, rank 0 writes.
        let loggers: &mut [_] = if rank.is_global_zero() { &mut self.loggers } else { &mut [] };
        Run {
            config: &self.config,
            stage,
            callbacks: &mut self.callbacks,
            loggers,
            learner,
            data,
            rank,
            signals: Listener::start(),
            plan: Plan::default(),
            progress: Progress::default(),
            train_logs: Logs::new(),
            eval_logs: Logs::new(),
            metrics: Metrics::default(),
            dir: self.dir.clone(),
            stop: None,
            skip_epoch: false,
            step: None,
            asked: Asked::default(),
            acts: Vec::new(),
            new_samples: 0,
            in_window: false,
            agreed_signal: None,
            best_and_last: None,
            end: None,
            sanity_checking: false,
            evaluation: None,
            last_validation: Instant::now(),
            validation_is_agreed: false,
            own_batches: 0,
            loader: String::new(),
            doing: Doing::Data("setup"),
            started: false,
            loggers_started: false,
            logs_wanted: false,
        }
    }

    /// Settles which file the next run begins from.
    fn take_ckpt_path(&mut self, stage: Stage, rank: &mut Rank) -> Result<Option<PathBuf>> {
        let Some(asked) = self.ckpt_path.take() else { return Ok(None) };
        rank.zero(|| self.find_checkpoint(asked, stage))
    }

    fn find_checkpoint(&self, asked: CkptPath, stage: Stage) -> Result<Option<PathBuf>> {
        let found = match &asked {
            CkptPath::Path(path) => Some(path.clone()),
            CkptPath::Best => self.callbacks.iter().find_map(|callback| callback.best_checkpoint()),
            CkptPath::Auto | CkptPath::Last => {
                let own = newest(&self.callbacks, self.dir.as_deref());
                own.or_else(|| run_dir::newest_last(&self.config.root_dir, &self.config.name))
            }
        };
        if asked == CkptPath::Auto && stage == Stage::Fit && found.is_none() {
            say("leyden: there is no checkpoint to go on from; this is a new run");
            return Ok(None);
        }
        found.map(Some).ok_or_else(|| {
            let folder = self.config.root_dir.join(&self.config.name);
            let name = if asked == CkptPath::Best { "best" } else { "last" };
            let error = Error::new(NO_CHECKPOINT, format!("there is no `{name}` checkpoint"));
            match asked {
                CkptPath::Best => error
                    .why("`best` is the best of this trainer's last `fit`, by the metric that a `ModelCheckpoint` monitors")
                    .hint("run `fit` with a `ModelCheckpoint::monitor(..)` first, or give a path"),
                _ => error
                    .at("folder", folder.display())
                    .why("no run folder there has `checkpoints/last.safetensors`")
                    .hint("give a path, or the `root_dir` and `name` of the run to go on with"),
            }
        })
    }
}

impl<H> Run<'_, H> {
    /// What a loader is told.
    fn loader_cx(&self) -> LoaderCx {
        LoaderCx {
            stage: self.stage,
            seed: self.config.seed,
            rank: self.rank.rank(),
            world_size: self.rank.world_size(),
        }
    }

    /// Checks that all ranks are about to do the same.
    fn verify(&mut self) -> Result<()> {
        if self.rank.is_alone() {
            return Ok(());
        }
        self.doing = Doing::Verifying;
        let loaders = self.plan.eval_batches.len();
        let manifest = Manifest::new()
            .and("stage", self.stage.name())
            .configuration(self.config)
            .and("training steps an epoch", self.plan.train_batches)
            .and("evaluation loaders", loaders)
            .parameters(&self.learner.parameters());
        self.rank.verify(&manifest)
    }

    /// Makes the run folder and opens the loggers, where anything is going to be written: on rank 0.
    fn open_run_dir(&mut self) -> Result<()> {
        self.doing = Doing::Opening;
        (self.dir, self.logs_wanted) = self.on_rank_zero(|run| {
            run.open_on_rank_zero()?;
            Ok((run.dir.clone(), run.loggers_started))
        })?;
        Ok(())
    }

    fn open_on_rank_zero(&mut self) -> Result<()> {
        let saves = self.stage == Stage::Fit && self.config.enable_checkpointing;
        if self.config.fast_dev_run.is_some() || (self.loggers.is_empty() && !saves) {
            return Ok(());
        }
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => {
                let dir = run_dir::create(&self.config.root_dir, &self.config.name)?;
                self.dir = Some(dir.clone());
                run_dir::write_config(&dir, &self.resolved())?;
                dir
            }
        };
        let config = self.resolved();
        self.doing = Doing::Logging;
        self.loggers_started = true;
        self.loggers.iter_mut().try_for_each(|logger| logger.start(&dir, &config))
    }

    /// Tells all ranks of the checkpoints that rank 0 has written.
    fn share_checkpoints(&mut self, from: &Option<PathBuf>) -> Result<()> {
        if self.rank.is_alone() {
            return Ok(());
        }
        let mine = (self.best_checkpoint(), self.last_checkpoint().or_else(|| from.clone()));
        self.best_and_last = Some(self.rank.gather_objects(&mine, "the checkpoints")?.swap_remove(0));
        Ok(())
    }

    fn best_checkpoint(&self) -> Option<PathBuf> {
        match &self.best_and_last {
            Some((best, _)) => best.clone(),
            None => self.callbacks.iter().find_map(|callback| callback.best_checkpoint()),
        }
    }

    fn last_checkpoint(&self) -> Option<PathBuf> {
        match &self.best_and_last {
            Some((_, last)) => last.clone(),
            None => newest(self.callbacks, self.dir.as_deref()),
        }
    }
}

/// The newest checkpoint of a run: one that a signal made, or a callback's.
fn newest(callbacks: &[Box<dyn Callback>], dir: Option<&Path>) -> Option<PathBuf> {
    let of_signal = dir.map(run_dir::last_in);
    let of_callbacks = callbacks.iter().filter_map(|callback| callback.last_checkpoint());
    let there = of_signal.into_iter().chain(of_callbacks).filter(|path| path.is_file());
    there.max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
}

fn one_loader<H>(loaders: Loaders<H>) -> Result<Box<dyn Loader<H>>> {
    let found = loaders.len();
    let mut loaders = loaders.0.into_iter();
    match (loaders.next(), found) {
        (Some(loader), 1) => Ok(loader),
        _ => Err(Error::new(NO_LOADER, "`fit` needs exactly one training loader")
            .why(format!("`DataModule::train_loader` gave {found}"))
            .hint("return `Ok(loader.into())` from `train_loader`")),
    }
}

fn eval_loaders<H>(run: &mut Run<'_, H>) -> Flow<Vec<Box<dyn Loader<H>>>> {
    let cx = run.loader_cx();
    let (method, loaders) = match run.stage {
        Stage::Fit | Stage::Validate => {
            run.doing = Doing::Data("val_loader");
            ("val_loader", run.data.val_loader(&cx)?)
        }
        Stage::Test => {
            run.doing = Doing::Data("test_loader");
            ("test_loader", run.data.test_loader(&cx)?)
        }
        Stage::Predict => {
            run.doing = Doing::Data("predict_loader");
            ("predict_loader", run.data.predict_loader(&cx)?)
        }
    };
    if loaders.is_empty() {
        return Err(Error::new(NO_LOADER, format!("`{}` has nothing to run on", run.stage.name()))
            .why(format!("`DataModule::{method}` gave no loader"))
            .hint(format!("implement `{method}` of the data module"))
            .into());
    }
    Ok(loaders.0)
}

/// The same decisions on all ranks: an evaluation that any of them has batches for is made on all, with those that each has.
fn plan<H>(run: &mut Run<'_, H>, train: Option<usize>, eval: &[Box<dyn Loader<H>>]) -> Result<Plan> {
    let own: Vec<_> = eval.iter().map(|loader| loader.len()).collect();
    let all = run.rank.gather_objects(&own, "batches of evaluations")?;
    let most = |loader: usize| all.iter().filter_map(|lens| lens.get(loader)).max().copied().unwrap_or(0);
    let most: Vec<_> = (0..own.len()).map(most).collect();
    let mut plan = Plan::resolve(run.config, run.stage, &run.learner.device(), train, &most)?;
    plan.eval_batches.iter_mut().zip(own).for_each(|(batches, own)| *batches = own.min(*batches));
    Ok(plan)
}

impl fmt::Debug for Trainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let callbacks: Vec<_> = self.callbacks.iter().map(|callback| callback.name()).collect();
        let loggers: Vec<_> = self.loggers.iter().map(|logger| logger.name()).collect();
        f.debug_struct("Trainer")
            .field("config", &self.config)
            .field("callbacks", &callbacks)
            .field("loggers", &loggers)
            .finish_non_exhaustive()
    }
}

/// A stage has no loader, or `fit` has several.
pub const NO_LOADER: Code = Code::new("C0104", exit::CONFIGURATION);
/// `best` or `last` was asked for, and there is none.
pub const NO_CHECKPOINT: Code = Code::new("K0108", exit::CONFIGURATION);
