//! [`Run`]: one `fit`, `validate`, `test` or `predict` while it runs: its parts, its counters, and how events
//! reach callbacks and module. The loops are in `fit.rs` and `evaluate.rs`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use leyden_data::mix;
use leyden_process::signal::{Listener, Signal};
use leyden_process::{Code, Error, Result, contain, exit};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::lifecycle::panicked;
use crate::checkpoint::{Checkpoint, RunState, UNWRITABLE, link_atomically, remove_leftovers};
use crate::config::TrainerConfig;
use crate::control::{Act, Control};
use crate::data_module::DataModule;
use crate::event::{Callback, Event, Hook};
use crate::learner::{Learner, LearnerView, Stage};
use crate::logger::{Logger, Row};
use crate::logs::{Logs, same_names};
use crate::metrics::{Metrics, MetricsView};
use crate::outcome::Outcome;
use crate::plan::{Plan, ValidationPlan};
use crate::progress::{Phase, Progress};
use crate::ranks::Rank;
use crate::say::say;
use crate::scalar::Scalar;
use crate::state::Parts;
use crate::step::StepFacts;

/// What ends a run before its end.
pub(crate) enum Halt {
    Error(Error),
    Signal(Signal),
}

pub(crate) type Flow<T> = std::result::Result<T, Halt>;

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// One run.
pub(crate) struct Run<'r, H> {
    pub(crate) config: &'r TrainerConfig,
    pub(crate) stage: Stage,
    pub(crate) callbacks: &'r mut [Box<dyn Callback>],
    pub(crate) loggers: &'r mut [Box<dyn Logger>],
    pub(crate) learner: &'r mut dyn Learner<H>,
    pub(crate) data: &'r mut dyn DataModule<Batch = H>,
    pub(crate) rank: Rank,
    pub(crate) signals: Listener,
    pub(crate) plan: Plan,
    pub(crate) progress: Progress,
    pub(crate) train_logs: Logs,
    pub(crate) eval_logs: Logs,
    pub(crate) metrics: Metrics,
    pub(crate) dir: Option<PathBuf>,
    /// A callback's request to end the training: its name and reason. Where several ranks train, the request of one.
    pub(crate) stop: Option<(String, String)>,
    pub(crate) skip_epoch: bool,
    /// The training step that is being done, for the hooks around it.
    pub(crate) step: Option<StepFacts>,
    /// What callbacks of this rank asked for, and not all ranks know yet.
    pub(crate) asked: Asked,
    /// What callbacks asked for and is not done yet.
    pub(crate) acts: Vec<Act>,
    /// Samples since the ranks counted theirs together.
    pub(crate) new_samples: usize,
    /// Whether gradients wait for more batches: then no rank saves or stops, since each has gradients of its own.
    pub(crate) in_window: bool,
    /// The signal that all ranks stop for.
    pub(crate) agreed_signal: Option<Signal>,
    /// The best and the newest checkpoint, as rank 0 knows them.
    pub(crate) best_and_last: Option<(Option<PathBuf>, Option<PathBuf>)>,
    /// The run as it ended, before anybody was torn down.
    pub(crate) end: Option<RunState>,
    pub(crate) sanity_checking: bool,
    /// The batch of an evaluation, and how many there are.
    pub(crate) evaluation: Option<(usize, usize)>,
    pub(crate) last_validation: Instant,
    /// Whether all ranks have agreed that it is time for a validation: each has a clock of its own.
    pub(crate) validation_is_agreed: bool,
    /// Training batches of an epoch on this rank: fewer than those of the plan where other ranks have more.
    pub(crate) own_batches: usize,
    /// What the training loader says of itself.
    pub(crate) loader: String,
    /// What is being done, for an error or panic to name.
    pub(crate) doing: Doing,
    /// Whether the learner is set up and its state worth saving.
    pub(crate) started: bool,
    pub(crate) loggers_started: bool,
    /// Whether any rank has loggers, which is rank 0.
    pub(crate) logs_wanted: bool,
}

/// What callbacks of one rank ask of all.
#[derive(Default)]
pub(crate) struct Asked {
    stop: Option<(String, String)>,
    skip_epoch: bool,
}

/// What is being done, for an error or panic to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Callback(usize, Hook),
    Configuring,
    Data(&'static str),
    Loading(&'static str),
    Logging,
    Module(Hook),
    Opening,
    Optimizer,
    Planning,
    Reducing,
    Restoring,
    Saving,
    Sharing(&'static str),
    Step(&'static str),
    Verifying,
}

impl<H> Run<'_, H> {
    /// Tells callbacks, the module, then the callbacks that save, and carries out what callbacks ask for. Savers are
    /// last so that a checkpoint holds all that the moment did: a resumed run does not come here again.
    #[inline]
    pub(crate) fn emit(&mut self, hook: Hook) -> Flow<()> {
        self.tell_callbacks(hook, None, |callback| !callback.saves())?;
        self.tell_module(hook)?;
        self.tell_savers(hook, None)?;
        self.check_signals()
    }

    /// [`emit`](Self::emit) where the run's state is between two: signals and saving wait for the end of the step.
    pub(crate) fn emit_inside_step(&mut self, hook: Hook) -> Flow<()> {
        self.tell_callbacks(hook, None, |_| true)?;
        self.tell_module(hook)
    }

    /// [`emit`](Self::emit) where ranks may not meet: in the batches of an evaluation, of which they may have different numbers.
    /// Saving waits for its end.
    pub(crate) fn emit_apart(&mut self, hook: Hook) -> Flow<()> {
        if self.rank.is_alone() {
            return self.emit(hook);
        }
        self.tell_callbacks(hook, None, |callback| !callback.saves())?;
        self.tell_module(hook)?;
        self.tell_callbacks(hook, None, |callback| callback.saves())
    }

    /// The end of a training batch. Its values are logged before a checkpoint holds that it is done; `log` says
    /// whether loggers get them.
    pub(crate) fn emit_train_batch_end(&mut self, loss: Option<&Scalar>, log: bool) -> Flow<()> {
        self.tell_callbacks(Hook::TrainBatchEnd, loss, |callback| !callback.saves())?;
        self.tell_module(Hook::TrainBatchEnd)?;
        if log {
            self.log_step_values(loss.is_some())?;
        }
        self.train_logs.end_step()?;
        self.tell_savers(Hook::TrainBatchEnd, loss)?;
        self.check_signals()
    }

    /// The end of a training epoch: callbacks, the module, the epoch's metrics, then the callbacks that read them.
    pub(crate) fn emit_train_epoch_end(&mut self) -> Flow<()> {
        let reads = |callback: &dyn Callback| callback.monitors() || callback.saves();
        self.tell_callbacks(Hook::TrainEpochEnd, None, |callback| !reads(callback))?;
        self.tell_module(Hook::TrainEpochEnd)?;
        let values = self.train_logs.end_epoch(&mut self.rank)?;
        self.publish(values)?;
        self.tell_callbacks(Hook::TrainEpochEnd, None, |callback| reads(callback) && !callback.saves())?;
        self.tell_savers(Hook::TrainEpochEnd, None)?;
        self.check_signals()
    }

    /// Tells the callbacks that save; each finds the files of those before it.
    fn tell_savers(&mut self, hook: Hook, loss: Option<&Scalar>) -> Flow<()> {
        if !self.rank.is_alone() {
            // Ranks meet once a step, not once a batch.
            let waits = hook == Hook::TrainBatchEnd && self.in_window;
            let savers: Vec<_> =
                (0..self.callbacks.len()).filter(|&index| self.callbacks[index].saves()).collect();
            for &index in &savers {
                self.tell_callback(index, hook, loss)?;
                if !waits {
                    self.agree()?;
                }
            }
            return if waits || !savers.is_empty() { Ok(()) } else { Ok(self.agree()?) };
        }
        self.act()?;
        for index in 0..self.callbacks.len() {
            if self.callbacks[index].saves() {
                self.tell_callback(index, hook, loss)?;
                self.act()?;
            }
        }
        Ok(())
    }

    fn tell_callbacks(
        &mut self,
        hook: Hook,
        loss: Option<&Scalar>,
        to: impl Fn(&dyn Callback) -> bool,
    ) -> Flow<()> {
        for index in 0..self.callbacks.len() {
            if to(&*self.callbacks[index]) {
                self.tell_callback(index, hook, loss)?;
            }
        }
        Ok(())
    }

    fn tell_callback(&mut self, index: usize, hook: Hook, loss: Option<&Scalar>) -> Flow<()> {
        if !self.rank.is_global_zero() && self.callbacks[index].rank_zero_only() {
            return Ok(());
        }
        self.doing = Doing::Callback(index, hook);
        let mut control = Control::default();
        self.call(index, hook, &mut control, loss, None, None)?;
        Ok(self.carry_out(index, control)?)
    }

    /// Calls one callback with the facts of now.
    pub(crate) fn call(
        &mut self,
        index: usize,
        hook: Hook,
        control: &mut Control,
        loss: Option<&Scalar>,
        error: Option<&Error>,
        outcome: Option<&Outcome>,
    ) -> Result<()> {
        let step = if self.evaluation.is_some() { &self.eval_logs } else { &self.train_logs };
        let event = Event {
            hook,
            stage: self.stage,
            progress: &self.progress,
            evaluation: self.evaluation,
            metrics: MetricsView { epoch: &self.metrics, step },
            loss,
            learner: as_view(&*self.learner),
            plan: &self.plan,
            run_dir: self.dir.as_deref(),
            sanity_checking: self.sanity_checking,
            error,
            outcome,
        };
        self.callbacks[index].on_event(&event, control)
    }

    fn tell_module(&mut self, hook: Hook) -> Flow<()> {
        self.doing = Doing::Module(hook);
        let epoch_hook = match hook {
            Hook::TrainEpochStart | Hook::TrainEpochEnd | Hook::TrainBatchStart | Hook::TrainBatchEnd => {
                Some((&mut self.train_logs, Stage::Fit))
            }
            Hook::ValidationEpochEnd => Some((&mut self.eval_logs, Stage::Validate)),
            Hook::TestEpochEnd => Some((&mut self.eval_logs, Stage::Test)),
            _ => None,
        };
        match epoch_hook {
            None => self.learner.hook(hook, None)?,
            Some((logs, stage)) => {
                let mut at = facts(self.config.seed, stage, &self.progress, self.progress.batch, 1, 0, false);
                if let (Hook::TrainBatchStart | Hook::TrainBatchEnd, Some(step)) = (hook, self.step) {
                    at = StepFacts { global_step: at.global_step, ..step };
                }
                self.learner.hook(hook, Some(&mut crate::StepCx::new(at, logs)))?;
                logs.check()?;
            }
        }
        Ok(())
    }

    /// Where a step is that uses `samples` samples.
    pub(crate) fn step_facts(&self, stage: Stage, batch: usize, samples: usize, loader: usize) -> StepFacts {
        self.facts_of_part(stage, batch, samples, loader, 0)
    }

    /// The same for part `part` of a step of this rank, which has randomness of its own.
    pub(crate) fn facts_of_part(
        &self,
        stage: Stage,
        batch: usize,
        samples: usize,
        loader: usize,
        part: usize,
    ) -> StepFacts {
        let mut facts = facts(self.config.seed, stage, &self.progress, batch, samples, loader, true);
        if let part @ 1.. = self.rank.part(part) {
            facts.seed = mix(facts.seed, &[part as u64]);
        }
        facts
    }

    /// A signal ends the run where its state is whole; where several ranks train, once all know of it.
    #[inline]
    pub(crate) fn check_signals(&self) -> Flow<()> {
        let signal = match self.rank.is_alone() {
            true => self.signals.received().filter(|_| !self.must_go_on()),
            false => self.agreed_signal,
        };
        signal.map_or(Ok(()), |signal| Err(Halt::Signal(signal)))
    }

    /// Whether gradients are where no checkpoint has them: on other ranks, or apart for each virtual one. Then the run goes on
    /// to the end of the window before it saves or stops.
    pub(crate) fn must_go_on(&self) -> bool {
        self.in_window && (!self.rank.is_alone() || self.config.virtual_ranks.is_some())
    }

    /// Whether a signal waits for the other ranks to know of it: work of this rank alone ends early.
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        !self.rank.is_alone() && !self.must_go_on() && self.signals.received().is_some()
    }

    /// Tells all ranks what this one was asked for, by callbacks or a signal, and does what any was asked for: then all
    /// stop, skip and save at the same place. Nothing where there is one rank.
    pub(crate) fn agree(&mut self) -> Result<()> {
        if self.rank.is_alone() {
            return Ok(());
        }
        let may_end = !self.must_go_on();
        let signal = self.signals.received().filter(|_| may_end);
        let flag = |set: bool, bit: u32| i64::from(set) << bit;
        let flags = flag(self.asked.stop.is_some() && may_end, STOP)
            | flag(self.asked.skip_epoch, SKIP)
            | flag(signal == Some(Signal::Interrupt), INTERRUPT)
            | flag(signal == Some(Signal::Terminate), TERMINATE)
            | flag(!self.acts.is_empty() && may_end, ACTS)
            | flag(self.validation_is_late(), VALIDATE);
        let words = [flags, std::mem::take(&mut self.new_samples) as i64];
        let all = self.rank.gather(words, "whether to go on")?;
        self.progress.samples_seen += all.iter().map(|[_, samples]| *samples as u64).sum::<u64>();
        let any = |bit: u32| all.iter().any(|[flags, _]| flags >> bit & 1 == 1);
        self.skip_epoch |= any(SKIP);
        self.validation_is_agreed |= any(VALIDATE);
        self.agreed_signal = match (any(INTERRUPT), any(TERMINATE)) {
            (true, _) => Some(Signal::Interrupt),
            (false, true) => Some(Signal::Terminate),
            (false, false) => self.agreed_signal,
        };
        self.asked.skip_epoch = false;
        if any(STOP) {
            let asked = self.asked.stop.take();
            let reasons = self.rank.gather_objects(&asked, "why to stop")?;
            let first = reasons.into_iter().enumerate().find_map(|(rank, stop)| Some((rank, stop?)));
            if let (Some((rank, (name, reason))), None) = (first, &self.stop) {
                let reason = if rank == 0 { reason } else { format!("{reason} (on rank {rank})") };
                self.stop = Some((name, reason));
            }
        }
        if any(ACTS) {
            // Callbacks that save are asked on rank 0 alone.
            if let Some(rank) =
                all.iter().position(|[flags, _]| flags >> ACTS & 1 == 1).filter(|&rank| rank > 0)
            {
                return Err(Error::new(SAVED_ELSEWHERE, "a checkpoint was asked for on one rank, and not on rank 0")
                    .at("asked on rank", rank)
                    .why("rank 0 writes the files, for all")
                    .hint("let the callback ask on every rank, or on rank 0: a choice by rank, time or chance differs between them"));
            }
            self.act_together()?;
        }
        Ok(())
    }

    /// Whether validations go by the clock, and it is time for one.
    pub(crate) fn validation_is_late(&self) -> bool {
        match self.plan.validation {
            Some(ValidationPlan::Timed(interval)) => self.last_validation.elapsed() >= interval,
            _ => false,
        }
    }

    /// Rank 0 saves, links and removes what its callbacks have asked for; the others take part in what it saves.
    fn act_together(&mut self) -> Result<()> {
        let acts = std::mem::take(&mut self.acts);
        let kinds =
            acts.iter().map(|act| matches!(act, Act::Save { weights_only: false, .. })).collect::<Vec<_>>();
        let kinds = self.rank.gather_objects(&kinds, "what to save")?.swap_remove(0);
        for (index, whole) in kinds.into_iter().enumerate() {
            self.doing = Doing::Saving;
            let logs = if whole { Some(self.train_logs.state(&mut self.rank)?) } else { None };
            let act = acts.get(index);
            self.on_rank_zero(|run| match act {
                Some(Act::Save { path, .. }) => run.write(path, logs),
                Some(Act::Link { from, to }) => link_atomically(from, to),
                Some(Act::Remove(path)) => remove(path),
                None => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Runs `f` on rank 0 while the others wait; its error reaches all.
    pub(crate) fn on_rank_zero<T: Serialize + DeserializeOwned>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut rank = std::mem::replace(&mut self.rank, Rank::alone());
        let alone = rank.is_alone();
        let result = rank.zero(|| match alone {
            true => f(self),
            // A panic is the same error as on a rank that is alone.
            false => contain(|| f(self)).unwrap_or_else(|panic| Err(panicked(&self.doing(), panic))),
        });
        self.rank = rank;
        result
    }

    /// Does what a callback asked for; its acts wait for [`act`](Self::act).
    pub(crate) fn carry_out(&mut self, index: usize, control: Control) -> Result<()> {
        let Control { stop, skip_epoch, acts, scalars } = control;
        let stop = stop.map(|reason| (self.callbacks[index].name(), reason));
        if self.rank.is_alone() {
            self.stop = self.stop.take().or(stop);
            self.skip_epoch |= skip_epoch;
        } else {
            self.asked.stop = self.asked.stop.take().or(stop);
            self.asked.skip_epoch |= skip_epoch;
        }
        // What is asked on every rank, one does.
        self.acts.extend(acts);
        if scalars.is_empty() {
            return Ok(());
        }
        self.log_row(&scalars.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>())
    }

    /// Saves, links and removes what callbacks asked for: where everybody has been told and no step is half done,
    /// so that a checkpoint is whole whenever it was asked for.
    pub(crate) fn act(&mut self) -> Result<()> {
        if self.must_go_on() {
            return Ok(());
        }
        for act in std::mem::take(&mut self.acts) {
            self.doing = Doing::Saving;
            match act {
                Act::Save { path, weights_only } => {
                    self.save(&path, if weights_only { Parts::Weights } else { Parts::All })?;
                }
                Act::Link { from, to } => link_atomically(&from, &to)?,
                Act::Remove(path) => remove(&path)?,
            }
        }
        Ok(())
    }

    /// Makes epoch-level values known to callbacks and loggers.
    pub(crate) fn publish(&mut self, values: Vec<(String, f64, bool)>) -> Result<()> {
        for (name, value, _) in &values {
            self.metrics.set(name, *value);
        }
        let row: Vec<_> = values
            .iter()
            .filter(|(.., logger)| *logger)
            .map(|(name, value, _)| (name.as_str(), *value))
            .collect();
        if !row.is_empty() {
            self.log_row(&row)?;
        }
        self.flush_loggers()
    }

    /// Whoever watches the files sees each epoch, and a killed run has lost none that was over.
    fn flush_loggers(&mut self) -> Result<()> {
        if !self.loggers_started {
            return Ok(());
        }
        self.doing = Doing::Logging;
        self.loggers.iter_mut().try_for_each(|logger| logger.flush())
    }

    /// Gives the loggers this step's values; `trained` says whether this rank had a batch for it, and used it.
    pub(crate) fn log_step_values(&mut self, trained: bool) -> Result<()> {
        if !self.logs_wanted {
            return Ok(());
        }
        let mut row = Vec::new();
        self.train_logs.step_values(|name, value| row.push((name.to_owned(), value)))?;
        if !self.rank.is_alone() {
            let own = (trained || !row.is_empty()).then_some(row);
            row = mean_of_ranks(&self.rank.gather_objects(&own, "this step's values")?)?;
        }
        self.log_row(&row.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>())
    }

    pub(crate) fn log_row(&mut self, scalars: &[(&str, f64)]) -> Result<()> {
        if !self.loggers_started || self.sanity_checking || scalars.is_empty() {
            return Ok(());
        }
        self.doing = Doing::Logging;
        let row = Row { epoch: self.progress.epoch, step: self.progress.global_step, scalars };
        self.loggers.iter_mut().try_for_each(|logger| logger.log(&row))
    }

    /// Saves the run as it is now. The rows logged so far are handed to the kernel first: a process that is killed
    /// leaves them, and the run that resumes from here does not log them again.
    pub(crate) fn save(&mut self, path: &Path, parts: Parts) -> Result<()> {
        let logs = match parts {
            Parts::All => Some(self.train_logs.state(&mut self.rank)?),
            Parts::Weights => None,
        };
        self.on_rank_zero(|run| run.write(path, logs))
    }

    /// Writes a checkpoint: with what all ranks have logged, or of the weights alone.
    fn write(&mut self, path: &Path, logs: Option<Value>) -> Result<()> {
        if logs.is_some() {
            self.flush_loggers()?;
        }
        self.doing = Doing::Saving;
        let learner = self.learner.state(if logs.is_some() { Parts::All } else { Parts::Weights })?;
        Checkpoint { learner, run: logs.map(|logs| self.run_state(logs)) }.write(path)
    }

    /// What is no tensor, with `logs` as what was logged.
    pub(crate) fn run_state(&self, logs: Value) -> RunState {
        let states = self.callbacks.iter().map(|callback| (callback.name(), callback.state()));
        RunState {
            progress: self.progress.clone(),
            seed: self.config.seed,
            callbacks: states.filter(|(_, state)| !state.is_null()).collect::<Map<_, _>>(),
            data: self.data.state(),
            loader: self.loader.clone(),
            logs,
            metrics: self.metrics.iter().map(|(name, value)| (name.to_owned(), value.to_bits())).collect(),
            stop: self.stop.clone(),
            skip_epoch: self.skip_epoch,
        }
    }

    /// Takes a checkpoint back. Evaluations take the weights alone.
    pub(crate) fn load(&mut self, path: &Path) -> Result<()> {
        let Checkpoint { learner, run } = Checkpoint::read(path)?;
        if self.rank.is_global_zero() {
            remove_leftovers(path);
        }
        if self.stage != Stage::Fit {
            return self
                .learner
                .load(learner, Parts::Weights)
                .map_err(|error| error.at("file", path.display()));
        }
        let Some(run) = run else {
            return Err(Error::new(
                WEIGHTS_ONLY,
                "the checkpoint holds only weights: `fit` cannot go on from it",
            )
            .at("file", path.display())
            .hint("load the weights into the model before `fit`, or resume from a full checkpoint"));
        };
        self.check_resumable(&run).map_err(|error| error.at("file", path.display()))?;
        self.in_window = run.progress.accumulated > 0;
        if self.must_go_on() {
            return Err(Error::new(
                OTHER_ORDER,
                "the checkpoint is inside an accumulation window of one rank",
            )
            .at("file", path.display())
            .why("its gradients would count once for each rank")
            .hint("resume on one rank without `virtual_ranks`, or from a checkpoint at the end of a step"));
        }
        self.learner.load(learner, Parts::All).map_err(|error| error.at("file", path.display()))?;
        self.data.load_state(&run.data)?;
        self.load_callbacks(&run)?;
        if self.rank.is_global_zero() {
            // They are those of all ranks.
            self.train_logs.load_state(&run.logs)?;
        }
        self.metrics = run.metrics.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))).collect();
        self.skip_epoch = run.skip_epoch;
        let batches = self.progress.batches;
        let ended = run.progress.phase != Phase::EpochStart && run.progress.is_last_batch();
        self.progress = run.progress;
        self.progress.batches = batches;
        if ended {
            // An epoch that was over stays so, though this loader may have more batches.
            self.progress.batch = batches;
        }
        Ok(())
    }

    /// A resumed run goes on with the same order of the same data, or says why it cannot.
    fn check_resumable(&self, run: &RunState) -> Result<()> {
        let mut differences = Vec::new();
        if run.seed != self.config.seed {
            differences.push(format!("the seed was {} and is {}", run.seed, self.config.seed));
        }
        differences.extend(loader_differences(&run.loader, &self.loader));
        if differences.is_empty() || !run.progress.is_inside_epoch() {
            return Ok(());
        }
        let mut error = Error::new(OTHER_ORDER, "the checkpoint is inside an epoch whose order would change");
        for difference in differences {
            error = error.why(difference);
        }
        Err(error.hint("resume with the seed and loader of the run, or from a checkpoint at an epoch's end"))
    }

    fn load_callbacks(&mut self, run: &RunState) -> Result<()> {
        for (name, state) in &run.callbacks {
            match self.callbacks.iter_mut().find(|callback| callback.name() == *name) {
                Some(callback) => callback.load_state(state).map_err(|error| error.at("callback", name))?,
                None => say(&format!(
                    "leyden: the checkpoint has a state for callback `{name}`, which this run does not have"
                )),
            }
        }
        // The uninterrupted run would have stopped here, so this one does; unless the callback is gone, or was given
        // a higher limit.
        let holds = |name: &str| {
            let callback = self.callbacks.iter().find(|callback| callback.name() == name);
            callback.is_some_and(|callback| callback.still_stops())
        };
        self.stop = run.stop.clone().filter(|(name, _)| holds(name));
        Ok(())
    }

    /// What is being done, in words.
    pub(crate) fn doing(&self) -> String {
        match self.doing {
            Doing::Callback(index, hook) => {
                format!("`{}` of callback `{}`", hook.name(), self.callbacks[index].name())
            }
            Doing::Configuring => "`configure_optimizers` of the module".to_owned(),
            Doing::Data(method) => format!("`DataModule::{method}`"),
            Doing::Loading(what) => format!("the {what} loader"),
            Doing::Logging => "a logger".to_owned(),
            Doing::Module(hook) => format!("`{}` of the module", hook.name()),
            Doing::Optimizer => "the optimizer step".to_owned(),
            Doing::Opening => "making the run folder".to_owned(),
            Doing::Planning => "resolving the configuration".to_owned(),
            Doing::Reducing => "summing the gradients of all ranks".to_owned(),
            Doing::Restoring => "loading a checkpoint".to_owned(),
            Doing::Saving => "saving a checkpoint".to_owned(),
            Doing::Sharing(method) => format!("dividing the loader of `DataModule::{method}` among ranks"),
            Doing::Step(step) => format!("`{step}`"),
            Doing::Verifying => "the check that all ranks train the same".to_owned(),
        }
    }

    /// Adds where the run is to an error.
    pub(crate) fn locate(&self, error: Error) -> Error {
        let error = error.at_if_absent("in", self.doing());
        let error = if self.rank.is_alone() { error } else { error.at_if_absent("rank", self.rank.rank()) };
        let error = if self.sanity_checking { error.at("during", "the sanity check") } else { error };
        let error = match self.evaluation {
            Some((batch, _)) => error.at_if_absent("batch", batch),
            None if self.started && self.progress.batches > 0 => {
                error.at_if_absent("batch", self.progress.batch)
            }
            None => error,
        };
        if self.stage == Stage::Fit && self.started {
            error.at_if_absent("epoch", self.progress.epoch).at_if_absent("step", self.progress.global_step)
        } else {
            error
        }
    }

    /// What `config.json` of the run folder holds.
    pub(crate) fn resolved(&self) -> Value {
        json!({ "leyden": env!("CARGO_PKG_VERSION"), "config": self.config, "plan": self.plan })
    }
}

/// The mean of what ranks have logged in a step; a rank without a batch, or that has skipped its own, need not have.
fn mean_of_ranks(all: &[Option<Vec<(String, f64)>>]) -> Result<Vec<(String, f64)>> {
    let rows: Vec<_> = all.iter().enumerate().filter_map(|(rank, row)| Some((rank, row.as_ref()?))).collect();
    let Some((_, first)) = rows.first() else { return Ok(Vec::new()) };
    let names: Vec<_> =
        rows.iter().map(|(rank, row)| (*rank, row.iter().map(|(name, _)| &**name).collect())).collect();
    same_names("ranks have logged different names in a step", &names)?;
    let mean = |(name, _): &(String, f64)| {
        let values = rows.iter().flat_map(|(_, row)| row.iter()).filter(|(other, _)| other == name);
        (name.clone(), values.map(|(_, value)| value).sum::<f64>() / rows.len() as f64)
    };
    Ok(first.iter().map(mean).collect())
}

/// The bits by which ranks tell each other what they were asked for.
const STOP: u32 = 0;
const SKIP: u32 = 1;
const INTERRUPT: u32 = 2;
const TERMINATE: u32 = 3;
const ACTS: u32 = 4;
const VALIDATE: u32 = 5;

/// Removes a checkpoint that may be gone already.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new(UNWRITABLE, "an old checkpoint cannot be removed")
                .at("file", path.display())
                .because(&error)
                .hint("give this user the right to write in that folder"))
        }
        _ => Ok(()),
    }
}

/// How two identities of a training loader differ, part by part where they have the same parts.
fn loader_differences(before: &str, now: &str) -> Vec<String> {
    let parts = |identity: &str| identity.split(", ").map(str::to_owned).collect::<Vec<_>>();
    let (before, now) = (parts(before), parts(now));
    if before.len() != now.len() {
        return vec![format!("the training loader had {}; it has {}", before.join(", "), now.join(", "))];
    }
    let pairs = before.iter().zip(&now).filter(|(before, now)| before != now);
    pairs.map(|(before, now)| format!("the training loader had {before}; it has {now}")).collect()
}

/// One batch's facts; its seed is a function of the run's seed, the stage and the position alone.
fn facts(
    seed: u64,
    stage: Stage,
    progress: &Progress,
    batch: usize,
    samples: usize,
    loader: usize,
    in_step: bool,
) -> StepFacts {
    let position = if stage == Stage::Fit { progress.batches_seen } else { batch as u64 };
    StepFacts {
        stage,
        epoch: progress.epoch,
        batch,
        samples,
        global_step: progress.global_step,
        batches_seen: progress.batches_seen,
        seed: mix(seed, &[stage as u64, loader as u64, position]),
        loader,
        in_step,
    }
}

fn as_view<H>(learner: &dyn Learner<H>) -> &dyn LearnerView {
    learner
}

impl fmt::Debug for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Signal(signal) => signal.fmt(f),
        }
    }
}

/// A checkpoint was asked for on a rank that does not write.
pub const SAVED_ELSEWHERE: Code = Code::new("D0404", exit::TRAINING_FAILED);
/// A weights-only checkpoint was given to `fit`.
pub const WEIGHTS_ONLY: Code = Code::new("K0106", exit::CONFIGURATION);
/// A checkpoint inside an epoch was given to a run with another order.
pub const OTHER_ORDER: Code = Code::new("K0107", exit::CONFIGURATION);
