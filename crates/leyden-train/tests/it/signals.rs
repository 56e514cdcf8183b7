//! SIGINT and SIGTERM in every hook and step, each in a process of its own: one clean-up, an honest exit code, and a
//! checkpoint from which the run goes on to the same bits.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use leyden_process::signal::noted_exit_code;
use leyden_train::state::LearnerState;
use leyden_train::testing::{Record, RecordedData, RecordedLearner, Sabotage};
use leyden_train::{Callback, Checkpoint, Control, Event, Hook, Stage, TrainerBuilder};
use tempfile::tempdir;

use crate::lifecycle::{Place, places};
use crate::support::{assert_code, bare, data, files, quiet, run_child, spec, state};

/// A callback that records every hook as `B.<hook>` and signals its own process in one, once.
struct Signaller {
    record: Record,
    breaks: Option<(Hook, Sabotage)>,
}

impl Callback for Signaller {
    fn name(&self) -> String {
        "B".to_owned()
    }

    fn on_event(&mut self, event: &Event<'_>, _: &mut Control) -> leyden_process::Result<()> {
        self.record.note(format!("B.{}", event.hook.name()));
        let now = self.breaks.take_if(|(hook, _)| *hook == event.hook);
        now.map_or(Ok(()), |(hook, how)| how.commit(hook.name()))
    }
}

fn settings(root: &Path) -> TrainerBuilder {
    quiet(root).max_epochs(2).accumulate_grad_batches(2)
}

/// The state at the end of a run in this process, from a checkpoint if one is given.
fn end(from: Option<&Path>) -> LearnerState {
    let root = tempdir().unwrap();
    let mut trainer = settings(root.path()).build().unwrap();
    if let Some(path) = from {
        trainer.ckpt_path(path);
    }
    let mut learner = RecordedLearner::new(&Record::new());
    let _ = trainer.fit_learner(&mut learner, &mut data(3, 2)).unwrap();
    state(&mut learner)
}

/// `B.on_fit_start` and the like, as a place.
fn place_of(line: &str) -> Place {
    let (who, what) = line.split_once('.').unwrap();
    match who {
        "B" => Place::Callback(Hook::ALL.iter().copied().find(|hook| hook.name() == what).unwrap()),
        "D" => Place::Data(what.to_owned().leak()),
        _ => Place::Module(what.to_owned().leak()),
    }
}

#[test]
fn child_that_is_signalled() {
    let Some((spec, root)) = spec() else { return };
    let [stage, signal, line] = spec.split(' ').collect::<Vec<_>>()[..] else { panic!("{spec}") };
    let (place, record) = (place_of(line), Record::new());
    let how = if signal == "INT" { Sabotage::Interrupt } else { Sabotage::Terminate };
    let mut learner = RecordedLearner::new(&record);
    let mut data = RecordedData { data: data(3, 2), record: record.clone(), sabotage: None };
    let mut breaks = None;
    match place {
        Place::Callback(hook) => breaks = Some((hook, how)),
        Place::Data(place) => data.sabotage = Some((place, how)),
        Place::Module(place) => learner.sabotage = Some((place, how)),
        Place::Nowhere => unreachable!("a signal comes somewhere"),
    }
    let mut trainer = settings(&root).callback(Signaller { record: record.clone(), breaks }).build().unwrap();
    let text = match stage {
        "Fit" => trainer.fit_learner(&mut learner, &mut data).unwrap().outcome.to_string(),
        _ => match trainer.test_learner(&mut learner, &mut data) {
            Ok(_) => "whole".to_owned(),
            Err(error) => format!("{} {}", error.code(), error.exit_code()),
        },
    };
    println!("\nreport {text}");
    record.lines().iter().for_each(|line| println!("line {line}"));
    std::process::exit(i32::from(noted_exit_code().unwrap_or(0)));
}

struct Told {
    report: String,
    lines: Vec<String>,
}

fn told(output: &Output) -> Told {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let with = |prefix: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    Told { report: with("report ").concat(), lines: with("line ") }
}

/// Sends the signal at a place of a run in a child; checks code, clean-up and files.
fn check(stage: Stage, place: &Place, signal: &str, whole: &LearnerState) {
    let root = tempdir().unwrap();
    let spec = format!("{stage:?} {signal} {}", place.line());
    let output = run_child("signals::child_that_is_signalled", &spec, root.path());
    let last = root.path().join("run/version_0/checkpoints/last.safetensors");
    let code = match (signal, last.is_file()) {
        ("INT", _) => 130,
        (_, true) => 75,
        _ => 143,
    };
    assert_code(&output, code, &spec);
    let Told { report, lines } = told(&output);
    let count = |line: &str| lines.iter().filter(|known| *known == line).count();
    // A clean-up finds the run over: it is told of the end that it had, and the program of the signal.
    let over = place.line().ends_with(".teardown");
    for who in ["D", "B", "M"] {
        let was_set_up = usize::from(count(&format!("{who}.setup")) == 1);
        assert_eq!(count(&format!("{who}.teardown")), was_set_up, "{spec}: {who}: {lines:#?}");
        assert_eq!(count(&format!("{who}.on_exception")), usize::from(!over), "{spec}: {who}: {lines:#?}");
    }
    let outcome = if over { "outcome=finished" } else { "outcome=interrupted" };
    assert_eq!(count(outcome), count("D.setup"), "{spec}: {lines:#?}");
    let left: Vec<_> = files(root.path()).into_iter().filter(|file| file.ends_with(".tmp")).collect();
    assert!(left.is_empty(), "{spec}: {left:?}");

    let name = if signal == "INT" { "SIGINT" } else { "SIGTERM" };
    match stage {
        Stage::Fit => assert_eq!(report, format!("interrupted by {name}"), "{spec}"),
        _ if over => assert_eq!(report, "whole", "{spec}"),
        _ if signal == "INT" => assert_eq!(report, "T0302 130", "{spec}"),
        _ => assert_eq!(report, "T0303 143", "{spec}"),
    }
    if last.is_file() {
        assert!(Checkpoint::read(&last).unwrap().run.is_some());
        assert_eq!(end(Some(&last)), *whole, "{spec}: resumed");
    } else {
        let too_early = ["prepare_data", "setup", "train_loader", "val_loader"];
        let early = too_early.iter().any(|place| spec.ends_with(&format!(".{place}")));
        assert!(early || stage != Stage::Fit, "{spec}: there is no checkpoint");
    }
}

#[test]
fn every_place_of_a_fit_can_be_interrupted_and_resumed() {
    let whole = end(None);
    for place in places(Stage::Fit) {
        check(Stage::Fit, &place, "INT", &whole);
    }
}

#[test]
fn every_place_of_a_fit_can_be_preempted_and_resumed() {
    let whole = end(None);
    for place in places(Stage::Fit) {
        check(Stage::Fit, &place, "TERM", &whole);
    }
}

#[test]
fn an_evaluation_that_is_interrupted_is_an_error_with_the_signals_code() {
    let whole = end(None);
    for (place, signal) in places(Stage::Test).iter().zip(["INT", "TERM"].into_iter().cycle()) {
        check(Stage::Test, place, signal, &whole);
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once_even_in_a_stuck_step() {
    let root = tempdir().unwrap();
    for (spec, code) in [("step INT", 130), ("step TERM", 143), ("teardown INT", 130)] {
        let begun = Instant::now();
        let output = run_child("signals::child_that_is_stuck", spec, root.path());
        assert_code(&output, code, spec);
        assert!(begun.elapsed() < Duration::from_secs(1), "{spec}: {:?}", begun.elapsed());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("second signal: stopped at once"), "{text}");
    }
}

#[test]
fn child_that_is_stuck() {
    let Some((spec, _)) = spec() else { return };
    let (place, signal) = spec.split_once(' ').unwrap();
    let script = format!("kill -{signal} $PPID; sleep 0.1; kill -{signal} $PPID");
    let stuck = move || {
        let mut sender = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(30));
        sender.wait().unwrap();
    };
    let mut learner = RecordedLearner::new(&Record::new());
    let mut builder = bare().max_epochs(1);
    if place == "step" {
        learner.in_training = Some(Box::new(move |_, _| {
            stuck();
            Ok(())
        }));
    } else {
        builder = builder
            .callback(crate::support::On(Hook::Teardown, move |_: &Event<'_>, _: &mut Control| stuck()));
    }
    let _ = builder.build().unwrap().fit_learner(&mut learner, &mut data(2, 0));
}
