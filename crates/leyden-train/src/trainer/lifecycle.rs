//! The frame around every run: set up, run, and clean up on each path that the process survives.
//!
//! Who was set up is torn down, exactly once. Clean-ups are isolated: one that fails or panics is reported and the
//! next one runs; one that exceeds its limit is named, and the process ends with its exit code, because a thread
//! that is stuck in user code cannot be stopped in any other way.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use leyden_process::signal::{self, Signal};
use leyden_process::{Code, Error, Panic, Result, contain, exit};

use super::run::{Doing, Flow, Halt, Run};
use crate::control::Control;
use crate::event::Hook;
use crate::learner::Stage;
use crate::outcome::{Outcome, StopReason};
use crate::run_dir::last_in;
use crate::say::say;
use crate::state::Parts;

/// Who was set up, and so must be torn down.
#[derive(Default)]
struct Armed {
    data: bool,
    callbacks: usize,
    learner: bool,
}

/// How a run went: its value if it finished, its error if it failed, neither if a signal stopped it.
pub(crate) struct Ended<T> {
    pub(crate) outcome: Outcome,
    pub(crate) value: Option<T>,
    pub(crate) error: Option<Error>,
}

/// Sets the parts up, runs `body`, and cleans up whatever happened.
pub(crate) fn conduct<H, T>(
    run: &mut Run<'_, H>,
    body: impl FnOnce(&mut Run<'_, H>) -> Flow<(T, StopReason)>,
) -> Ended<T> {
    let mut armed = Armed::default();
    let result = contain(|| {
        set_up(run, &mut armed)?;
        body(run)
    });
    let (outcome, value, error) = match result {
        Ok(Ok((value, reason))) => (Outcome::Finished(reason), Some(value), None),
        Ok(Err(Halt::Signal(signal))) => (Outcome::Interrupted(signal), None, None),
        Ok(Err(Halt::Error(error))) => (Outcome::Failed, None, Some(run.locate(error))),
        Err(panic) => (Outcome::Failed, None, Some(run.locate(panicked(&run.doing(), panic)))),
    };
    // The others learn of it at once, not after this rank's clean-ups.
    let error = error.map(|error| run.rank.fail(error));
    let complaints = clean_up(run, &armed, &outcome, error.as_ref());
    let outcome = interrupted_late(run, outcome);
    conclude(outcome, value, error, complaints)
}

/// A signal that came when there was nothing left to stop, during clean-up, still asks the program to end.
fn interrupted_late<H>(run: &Run<'_, H>, outcome: Outcome) -> Outcome {
    match run.signals.received() {
        Some(signal) if outcome.is_finished() => {
            let resumable = run.dir.as_deref().is_some_and(|dir| last_in(dir).is_file());
            note_exit(signal, run.stage == Stage::Fit && resumable);
            Outcome::Interrupted(signal)
        }
        _ => outcome,
    }
}

/// A scheduler is told whether the run can go on.
fn note_exit(signal: Signal, resumable: bool) {
    signal::note_exit_code(match signal {
        Signal::Terminate if resumable => exit::PREEMPTED,
        signal => signal.exit_code(),
    });
}

/// Data module, callbacks, module; as Lightning.
fn set_up<H>(run: &mut Run<'_, H>, armed: &mut Armed) -> Flow<()> {
    run.doing = Doing::Data("prepare_data");
    run.on_rank_zero(|run| run.data.prepare_data())?;
    run.check_signals()?;
    run.doing = Doing::Data("setup");
    run.data.setup(run.stage)?;
    armed.data = true;
    run.check_signals()?;
    for index in 0..run.callbacks.len() {
        if !run.rank.is_global_zero() && run.callbacks[index].rank_zero_only() {
            armed.callbacks = index + 1;
            continue;
        }
        run.doing = Doing::Callback(index, Hook::Setup);
        let mut control = Control::default();
        run.call(index, Hook::Setup, &mut control, None, None, None)?;
        armed.callbacks = index + 1;
        run.carry_out(index, control)?;
    }
    run.doing = Doing::Module(Hook::Setup);
    run.learner.setup(run.stage, run.config.seed)?;
    armed.learner = true;
    run.check_signals()
}

/// Saves what a signal interrupted, tells everybody, closes the loggers, tears down who was set up.
fn clean_up<H>(run: &mut Run<'_, H>, armed: &Armed, outcome: &Outcome, error: Option<&Error>) -> Vec<Error> {
    let mut cleaner = Cleaner::new(run.config.teardown_timeout);
    let mut saved = false;
    if let Outcome::Interrupted(signal) = outcome {
        // First of all, before clean-ups change what is saved or spend the scheduler's grace; a large model on a slow
        // disk may take its time.
        cleaner.unlimited("saving a checkpoint", &mut || {
            saved = save_interrupted(run)?;
            Ok(())
        });
        note_exit(*signal, saved);
    }
    let interrupted = match outcome {
        Outcome::Interrupted(signal) => Some(interruption(*signal)),
        _ => None,
    };
    if let Some(error) = error.or(interrupted.as_ref()) {
        for index in 0..run.callbacks.len() {
            if !run.rank.is_global_zero() && run.callbacks[index].rank_zero_only() {
                continue;
            }
            let name = format!("`on_exception` of callback `{}`", run.callbacks[index].name());
            cleaner.clean(name, &mut || {
                run.call(index, Hook::Exception, &mut Control::default(), None, Some(error), None)
            });
        }
        cleaner.clean("`DataModule::on_exception`".to_owned(), &mut || run.data.on_exception(error));
        cleaner.clean("`on_exception` of the module".to_owned(), &mut || run.learner.on_exception(error));
    }
    if run.loggers_started {
        for index in 0..run.loggers.len() {
            let name = format!("`finalize` of logger `{}`", run.loggers[index].name());
            cleaner.clean(name, &mut || run.loggers[index].finalize(outcome.status()));
        }
    }
    if armed.data {
        cleaner.clean("`DataModule::teardown`".to_owned(), &mut || run.data.teardown(outcome));
    }
    for index in 0..armed.callbacks {
        if !run.rank.is_global_zero() && run.callbacks[index].rank_zero_only() {
            continue;
        }
        let name = format!("`teardown` of callback `{}`", run.callbacks[index].name());
        cleaner.clean(name, &mut || {
            run.call(index, Hook::Teardown, &mut Control::default(), None, None, Some(outcome))
        });
    }
    if armed.learner {
        cleaner.clean("`teardown` of the module".to_owned(), &mut || run.learner.teardown(outcome));
    }
    cleaner.finish()
}

/// Runs clean-ups one by one, each contained and under the watchdog, and collects what they complain of.
struct Cleaner {
    watchdog: Watchdog,
    complaints: Vec<Error>,
}

impl Cleaner {
    fn new(limit: Duration) -> Self {
        Self { watchdog: Watchdog::start(limit), complaints: Vec::new() }
    }

    fn clean(&mut self, name: String, work: &mut dyn FnMut() -> Result<()>) {
        self.watchdog.begin(&name);
        self.unlimited(&name, work);
        self.watchdog.done();
    }

    fn unlimited(&mut self, name: &str, work: &mut dyn FnMut() -> Result<()>) {
        match contain(work) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.complaints.push(error.at_if_absent("in", name)),
            Err(panic) => self.complaints.push(panicked(name, panic)),
        }
    }

    fn finish(self) -> Vec<Error> {
        self.watchdog.stop();
        self.complaints
    }
}

/// A training that a signal stopped can go on from `last.safetensors`.
fn save_interrupted<H>(run: &mut Run<'_, H>) -> Result<bool> {
    if run.started {
        let logs = run.train_logs.state(&mut run.rank)?;
        run.end = Some(run.run_state(logs));
    }
    match &run.dir {
        Some(dir) if run.stage == Stage::Fit && run.started && run.config.enable_checkpointing => {
            let path = last_in(dir);
            run.save(&path, Parts::All)?;
            if run.rank.is_global_zero() {
                say(&format!("leyden: saved {}", path.display()));
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The first error wins; what clean-ups complained of is added to it, or becomes the error of a run that had none.
fn conclude<T>(outcome: Outcome, value: Option<T>, error: Option<Error>, complaints: Vec<Error>) -> Ended<T> {
    let error = match (error, complaints.is_empty()) {
        (error, true) => error,
        (Some(error), false) => Some(
            complaints
                .into_iter()
                .fold(error, |error, complaint| error.why(format!("besides, {}", as_reason(&complaint)))),
        ),
        (None, false) => {
            let ended = match &outcome {
                Outcome::Finished(reason) => format!("finished ({reason})"),
                other => format!("was {other}"),
            };
            let error = Error::new(CLEAN_UP_FAILED, format!("the run {ended}, but cleaning up failed"));
            Some(complaints.into_iter().fold(error, |error, complaint| {
                error.at("in", clean_up_of(&complaint)).why(as_reason(&complaint))
            }))
        }
    };
    match error {
        None => Ended { outcome, value, error: None },
        Some(error) if outcome.is_interrupted() => Ended { outcome, value: None, error: Some(error) },
        Some(error) => Ended { outcome: Outcome::Failed, value: None, error: Some(error) },
    }
}

/// Which clean-up complained, what of, and why.
fn as_reason(complaint: &Error) -> String {
    let what = match complaint.code() {
        PANICKED => complaint.what().to_owned(),
        _ => format!("{} failed: {complaint}", clean_up_of(complaint)),
    };
    let text = complaint.reasons().iter().fold(what, |text, reason| format!("{text}: {reason}"));
    let location = complaint.place("panicked").or(complaint.place("raised"));
    location.map_or(text.clone(), |location| format!("{text}, at {location}"))
}

fn clean_up_of(complaint: &Error) -> &str {
    complaint.place("in").unwrap_or("a clean-up")
}

/// A panic of the user's code or the engine's, as an error.
pub(super) fn panicked(doing: &str, panic: Panic) -> Error {
    let foreign = panic.location.as_deref().is_some_and(|location| location.contains("/registry/"));
    let error = panic.explain(Error::new(PANICKED, format!("{doing} panicked")).at("in", doing));
    match foreign {
        true => error.hint("run with RUST_BACKTRACE=1 to see which of your lines led into that library"),
        false => error,
    }
}

/// What `on_exception` is told of a signal, and what an interrupted evaluation returns.
pub(crate) fn interruption(signal: Signal) -> Error {
    let code = match signal {
        Signal::Interrupt => INTERRUPTED,
        Signal::Terminate => TERMINATED,
    };
    Error::new(code, format!("the run was interrupted by {}", signal.name()))
        .hint("run it again; a training goes on from its last checkpoint with `ckpt_path(\"auto\")`")
}

/// Ends the process when one clean-up takes too long.
struct Watchdog {
    sender: Sender<Option<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(limit: Duration) -> Self {
        let (sender, receiver) = mpsc::channel::<Option<String>>();
        let watch = move || {
            let mut running = None;
            loop {
                // Between two clean-ups only our own code runs, so waiting for its next word needs no limit.
                let message = match &running {
                    None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(_) => receiver.recv_timeout(limit),
                };
                match (message, running.take()) {
                    (Ok(message), _) => running = message,
                    (Err(RecvTimeoutError::Timeout), Some(name)) => give_up(&name, limit),
                    (Err(_), _) => return,
                }
            }
        };
        // Where no thread can be had, clean-ups run unwatched: better than not at all.
        Self { sender, thread: thread::Builder::new().spawn(watch).ok() }
    }

    fn begin(&self, name: &str) {
        let _ = self.sender.send(Some(name.to_owned()));
    }

    fn done(&self) {
        let _ = self.sender.send(None);
    }

    fn stop(self) {
        drop(self.sender);
        let _ = self.thread.map(JoinHandle::join);
    }
}

fn give_up(name: &str, limit: Duration) -> ! {
    let error = Error::new(CLEAN_UP_STUCK, format!("{name} did not end within {limit:?}"))
        .why("a thread that is stuck in user code cannot be stopped; the process ends instead")
        .hint("make it return, or raise `teardown_timeout`");
    say(&format!("{error:?}"));
    std::process::exit(i32::from(error.exit_code()))
}

/// A hook, a step or the engine panicked.
pub const PANICKED: Code = Code::new("T0301", exit::TRAINING_FAILED);
/// SIGINT stopped the run.
pub const INTERRUPTED: Code = Code::new("T0302", exit::INTERRUPTED);
/// SIGTERM stopped the run.
pub const TERMINATED: Code = Code::new("T0303", exit::TERMINATED);
/// The run ended, but a clean-up failed.
pub const CLEAN_UP_FAILED: Code = Code::new("T0306", exit::TRAINING_FAILED);
/// A clean-up did not end in time.
pub const CLEAN_UP_STUCK: Code = Code::new("T0307", exit::TRAINING_FAILED);
