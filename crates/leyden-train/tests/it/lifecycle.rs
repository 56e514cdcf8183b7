//! The lifecycle contract: whoever was set up is torn down once, whatever fails and wherever.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use leyden_process::{Error, Result};
use leyden_train::learner::toy::ToyBatch;
use leyden_train::logger::Row;
use leyden_train::testing::{Record, RecordedData, RecordedLearner, Sabotage};
use leyden_train::{
    Callback, Checkpoint, Control, DataModule, Event, Hook, LoaderCx, Loaders, Logger, ModelCheckpoint,
    Outcome, Stage, Trainer,
};

use crate::support::{On, assert_code, bare, data, files, quick_dir, quiet, run_child, spec, toy};

/// A callback that records, and breaks in one hook while it is armed.
struct Actor {
    tag: &'static str,
    record: Record,
    sabotage: Option<(Hook, Sabotage)>,
    armed: Arc<AtomicBool>,
}

impl Callback for Actor {
    fn name(&self) -> String {
        self.tag.to_owned()
    }

    fn on_event(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.record.note(format!("{}.{}", self.tag, event.hook.name()));
        match self.sabotage {
            Some((hook, how)) if hook == event.hook && self.armed.load(Ordering::SeqCst) => {
                how.commit(hook.name())
            }
            _ => Ok(()),
        }
    }
}

/// A logger that records when it is opened and how it is closed.
struct Notes {
    record: Record,
    sabotage: Option<Sabotage>,
}

impl Logger for Notes {
    fn name(&self) -> &str {
        "notes"
    }

    fn start(&mut self, _: &Path, _: &serde_json::Value) -> Result<()> {
        self.record.note("L.start");
        Ok(())
    }

    fn log(&mut self, _: &Row<'_>) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn finalize(&mut self, status: &str) -> Result<()> {
        self.record.note(format!("L.{status}"));
        self.sabotage.map_or(Ok(()), |how| how.commit("finalize"))
    }
}

/// Where something breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Nowhere,
    Callback(Hook),
    Data(&'static str),
    Module(&'static str),
}

impl Place {
    /// As the error says it.
    fn text(&self, stage: Stage) -> String {
        match self {
            Self::Nowhere => String::new(),
            Self::Callback(hook) => format!("`{}` of callback `B`", hook.name()),
            Self::Data(method) => format!("`DataModule::{method}`"),
            Self::Module("optimizer_step" | "schedules_step" | "schedules_epoch") => {
                "the optimizer step".into()
            }
            Self::Module("state") if stage == Stage::Fit => "saving a checkpoint".into(),
            Self::Module(step) if step.ends_with("_step") && !step.starts_with("on_") => format!("`{step}`"),
            Self::Module(hook) => format!("`{hook}` of the module"),
        }
    }

    /// The recorded line of the place.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Nowhere => String::new(),
            Self::Callback(hook) => format!("B.{}", hook.name()),
            Self::Data(method) => format!("D.{method}"),
            Self::Module(place) => format!("M.{place}"),
        }
    }
}

/// A run with three callbacks (B breaks), data and module that record, and a logger that does.
struct Scene {
    trainer: Trainer,
    record: Record,
    armed: Arc<AtomicBool>,
    root: tempfile::TempDir,
}

impl Scene {
    fn new(breaks: Option<(Hook, Sabotage)>) -> Self {
        let (root, record) = (quick_dir(), Record::new());
        let armed = Arc::new(AtomicBool::new(true));
        let actor = |tag, sabotage| Actor { tag, record: record.clone(), sabotage, armed: armed.clone() };
        let trainer = quiet(root.path())
            .max_epochs(1)
            .callback(actor("A", None))
            .callback(actor("B", breaks))
            .callback(actor("Z", None))
            .callback(ModelCheckpoint::new())
            .logger(Notes { record: record.clone(), sabotage: None })
            .build()
            .unwrap();
        Self { trainer, record, armed, root }
    }

    fn run(&mut self, stage: Stage, place: &Place, how: Sabotage) -> Result<()> {
        let record = self.record.clone();
        let mut learner = RecordedLearner::new(&record);
        let mut data = RecordedData { data: data(2, 2), record, sabotage: None };
        match place {
            Place::Module(place) => learner.sabotage = Some((place, how)),
            Place::Data(place) => data.sabotage = Some((place, how)),
            _ => {}
        }
        match stage {
            Stage::Fit => self.trainer.fit_learner(&mut learner, &mut data).map(drop),
            Stage::Validate => self.trainer.validate_learner(&mut learner, &mut data).map(drop),
            Stage::Test => self.trainer.test_learner(&mut learner, &mut data).map(drop),
            Stage::Predict => self.trainer.predict_learner(&mut learner, &mut data).map(drop),
        }
    }
}

const STAGES: [Stage; 4] = [Stage::Fit, Stage::Validate, Stage::Test, Stage::Predict];

/// Every place that a run of this stage comes by.
pub(crate) fn places(stage: Stage) -> Vec<Place> {
    let mut clean = Scene::new(None);
    clean.run(stage, &Place::Nowhere, Sabotage::Error).unwrap();
    let mut found = Vec::new();
    for line in clean.record.lines() {
        let (who, what) = line.split_once(['.', '=']).unwrap();
        let hook = || Hook::ALL.iter().copied().find(|hook| hook.name() == what).unwrap();
        let place = match who {
            "B" => Place::Callback(hook()),
            "D" => Place::Data(what.to_owned().leak()),
            "M" => Place::Module(what.to_owned().leak()),
            _ => continue,
        };
        if !found.contains(&place) {
            found.push(place);
        }
    }
    found
}

#[test]
fn every_place_of_every_stage_fails_by_the_contract() {
    let mut count = 0;
    for stage in STAGES {
        for place in places(stage) {
            for how in [Sabotage::Error, Sabotage::Panic] {
                check(stage, &place, how);
                count += 1;
            }
        }
    }
    assert!(count > 150, "{count} places");
}

fn check(stage: Stage, place: &Place, how: Sabotage) {
    let case = format!("{stage:?}, {place:?}, {how:?}");
    let hook = if let Place::Callback(hook) = place { Some((*hook, how)) } else { None };
    let mut scene = Scene::new(hook);
    let error = scene.run(stage, place, how).expect_err(&case);
    let lines = scene.record.lines();
    let count = |line: String| lines.iter().filter(|known| **known == line).count();
    let failing_teardown = place.line().ends_with(".teardown");

    for who in ["A", "B", "Z", "D", "M"] {
        let setup = format!("{who}.setup");
        let was_set_up = count(setup.clone()) == 1 && place.line() != setup;
        assert_eq!(count(format!("{who}.teardown")), usize::from(was_set_up), "{case}: {who}\n{lines:#?}");
        let told = usize::from(!failing_teardown);
        assert_eq!(count(format!("{who}.on_exception")), told, "{case}: {who}\n{lines:#?}");
    }
    let last_told = lines.iter().rposition(|line| line.ends_with(".on_exception"));
    let first_torn = lines.iter().position(|line| line.ends_with(".teardown"));
    if let (Some(told), Some(torn)) = (last_told, first_torn) {
        assert!(told < torn, "{case}: {lines:#?}");
    }
    let status = if failing_teardown { "finished" } else { "failed" };
    assert_eq!(count(format!("L.{status}")), count("L.start".to_owned()), "{case}: {lines:#?}");
    if count("D.teardown".to_owned()) == 1 && *place != Place::Data("teardown") {
        assert_eq!(count(format!("outcome={status}")), 1, "{case}: {lines:#?}");
    }
    let left: Vec<_> = files(scene.root.path()).into_iter().filter(|file| file.ends_with(".tmp")).collect();
    assert!(left.is_empty(), "{case}: {left:?}");

    check_error(&error, stage, place, how, &case);
    scene.armed.store(false, Ordering::SeqCst);
    scene.run(stage, &Place::Nowhere, how).unwrap_or_else(|error| panic!("{case}, again: {error:?}"));
}

fn check_error(error: &Error, stage: Stage, place: &Place, how: Sabotage, case: &str) {
    let text = format!("{error:?}");
    assert_eq!(error.place("in"), Some(place.text(stage).as_str()), "{case}: {text}");
    let what = place.line().split_once('.').unwrap().1.to_owned();
    assert!(text.contains(&format!("sabotage in {what}")), "{case}: {text}");
    let expected = match (place.line().ends_with(".teardown"), how) {
        (true, _) => "T0306",
        (_, Sabotage::Panic) => "T0301",
        _ => "T0001",
    };
    assert_eq!(error.code().id, expected, "{case}: {text}");
    if expected == "T0301" {
        assert!(error.place("panicked").unwrap().contains("testing.rs:"), "{case}: {text}");
    }
}

#[test]
fn a_clean_up_that_breaks_too_stops_no_other_and_is_told_besides() {
    for how in [Sabotage::Error, Sabotage::Panic] {
        for hook in [Hook::Exception, Hook::Teardown] {
            for who in ["B", "D", "M"] {
                let case = format!("{who}.{} {how:?}", hook.name());
                let mut scene = Scene::new((who == "B").then_some((hook, how)));
                let record = scene.record.clone();
                let mut learner = RecordedLearner::new(&record);
                learner.in_training = Some(Box::new(|_, _| Sabotage::Error.commit("the step")));
                let mut data = RecordedData { data: data(2, 2), record: record.clone(), sabotage: None };
                match who {
                    "D" => data.sabotage = Some((hook.name(), how)),
                    "M" => learner.sabotage = Some((hook.name(), how)),
                    _ => {}
                }
                let error = scene.trainer.fit_learner(&mut learner, &mut data).unwrap_err();
                for who in ["A", "B", "Z", "D", "M"] {
                    assert_eq!(record.count(&format!("{who}.on_exception")), 1, "{case}: {who}");
                    assert_eq!(record.count(&format!("{who}.teardown")), 1, "{case}: {who}");
                }
                assert_eq!(record.count("L.failed"), 1, "{case}");
                let text = format!("{error:?}");
                assert_eq!(error.what(), "sabotage in the step", "the first error is the one reported");
                let besides = format!("sabotage in {}", hook.name());
                assert!(text.contains("besides") && text.contains(&besides), "{case}: {text}");
            }
        }
    }
}

#[test]
fn a_logger_that_cannot_close_fails_a_run_that_had_finished() {
    for how in [Sabotage::Error, Sabotage::Panic] {
        let (root, record) = (quick_dir(), Record::new());
        let builder = quiet(root.path()).max_epochs(1);
        let logger = Notes { record: record.clone(), sabotage: Some(how) };
        let mut trainer = builder.logger(logger).build().unwrap();
        let mut learner = RecordedLearner::new(&record);
        let error = trainer.fit_learner(&mut learner, &mut data(2, 0)).unwrap_err();
        assert_eq!((error.code().id, record.count("M.teardown")), ("T0306", 1));
        assert_eq!(error.place("in"), Some("`finalize` of logger `notes`"));
        assert!(format!("{error:?}").contains("sabotage in finalize"), "{error:?}");
    }
}

#[test]
fn a_clean_up_that_hangs_is_named_and_ends_the_process() {
    let root = quick_dir();
    for (spec, name) in [
        ("teardown", "`teardown` of callback `On(teardown)` did not end within 200ms"),
        ("on_exception", "`on_exception` of callback `On(on_exception)` did not end within 200ms"),
    ] {
        let begun = Instant::now();
        let output = run_child("lifecycle::child_that_hangs", spec, root.path());
        assert_code(&output, 100, spec);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(&format!("error[T0307]: {name}")), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}

#[test]
fn child_that_hangs() {
    let Some((spec, _)) = spec() else { return };
    let hook = if spec == "teardown" { Hook::Teardown } else { Hook::Exception };
    let hang = On(hook, |_: &Event<'_>, _: &mut Control| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let fail = On(Hook::TrainStart, |_: &Event<'_>, _: &mut Control| panic!("so that there is an exception"));
    let builder = bare().max_epochs(1).teardown_timeout(Duration::from_millis(200)).callback(hang);
    let builder = if hook == Hook::Exception { builder.callback(fail) } else { builder };
    let _ = builder.build().unwrap().fit_learner(&mut toy(), &mut data(2, 0));
    unreachable!("the watchdog ends the process");
}

/// Gives its state as long as it is set up.
#[derive(Default)]
struct Guarded {
    torn: bool,
}

impl DataModule for Guarded {
    type Batch = ToyBatch;

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        data(3, 0).train_loader(cx)
    }

    fn state(&self) -> serde_json::Value {
        assert!(!self.torn, "asked for its state after its teardown");
        serde_json::json!("state")
    }

    fn teardown(&mut self, _: &Outcome) -> Result<()> {
        self.torn = true;
        Ok(())
    }
}

#[test]
fn nobody_is_asked_for_a_state_after_the_teardown() {
    let root = quick_dir();
    let (mut learner, mut guarded) = (toy(), Guarded::default());
    let mut trainer = bare().max_epochs(1).build().unwrap();
    let report = trainer.fit_learner(&mut learner, &mut guarded).unwrap();
    let path = root.path().join("saved");
    trainer.save_checkpoint_learner(&mut learner, Some(&report), &path).unwrap();
    let run = Checkpoint::read(&path).unwrap().run.unwrap();
    assert_eq!((run.data, run.progress.global_step), (serde_json::json!("state"), 3));
}

#[test]
fn a_stop_asked_for_in_setup_counts() {
    let stop = On(Hook::Setup, |_: &Event<'_>, control: &mut Control| control.stop("no need"));
    let mut trainer = bare().max_epochs(3).callback(stop).build().unwrap();
    let report = trainer.fit_learner(&mut toy(), &mut data(3, 0)).unwrap();
    assert_eq!((report.outcome.to_string().as_str(), report.steps), ("finished: On(setup): no need", 0));
}
