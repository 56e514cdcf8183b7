//! What the modules share: quiet trainers, learners and data, rows of `metrics.csv`, child processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use leyden_process::Result;
use leyden_train::learner::toy::{ToyBatch, ToyLearner};
use leyden_train::state::{LearnerState, Parts};
use leyden_train::testing::ToyData;
use leyden_train::{Callback, Control, CsvLogger, Event, Hook, Learner, Trainer, TrainerBuilder};

/// Prints nothing; logs to `metrics.csv` alone.
pub(crate) fn quiet(root: &Path) -> TrainerBuilder {
    Trainer::builder()
        .root_dir(root)
        .enable_progress_bar(false)
        .enable_model_summary(false)
        .logger(CsvLogger::new())
}

/// Prints and writes nothing.
pub(crate) fn bare() -> TrainerBuilder {
    Trainer::builder()
        .enable_progress_bar(false)
        .enable_model_summary(false)
        .enable_checkpointing(false)
        .no_logger()
}

pub(crate) fn toy() -> ToyLearner {
    ToyLearner::new(3, 0.05)
}

/// So many batches of training and of each evaluation, 4 rows each.
pub(crate) fn data(train: usize, eval: usize) -> ToyData {
    ToyData { train: 4 * train, eval: 4 * eval, ..ToyData::default() }
}

/// Weights, optimizer and all: equal only if all bits are.
pub(crate) fn state(learner: &mut impl Learner<ToyBatch>) -> LearnerState {
    learner.state(Parts::All).expect("the learner gives its state")
}

pub(crate) type Row = BTreeMap<String, String>;

/// The rows of `metrics.csv`, without empty cells. Numbers are written so that equal text means equal bits.
pub(crate) fn rows(run_dir: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(run_dir.join("metrics.csv")).unwrap_or_default();
    let mut lines = text.lines().map(|line| line.split(','));
    let Some(header) = lines.next() else { return Vec::new() };
    let header: Vec<_> = header.collect();
    let row = |cells: std::str::Split<'_, char>| {
        let named = header.iter().zip(cells).filter(|(_, cell)| !cell.is_empty());
        named.map(|(name, cell)| ((*name).to_owned(), cell.to_owned())).collect()
    };
    lines.map(row).collect()
}

/// The rows that have a value of this name, as `(step, value)`.
pub(crate) fn column(run_dir: &Path, name: &str) -> Vec<(u64, f64)> {
    let number = |row: &Row, name: &str| row[name].parse::<f64>().expect("a number");
    let rows = rows(run_dir);
    rows.iter()
        .filter(|row| row.contains_key(name))
        .map(|r| (number(r, "step") as u64, number(r, name)))
        .collect()
}

/// All files below a folder, as sorted paths relative to it.
pub(crate) fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).expect("below root").to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// The checkpoints of a run, by name.
pub(crate) fn checkpoints(run_dir: &Path) -> Vec<String> {
    files(&run_dir.join("checkpoints"))
}

/// The command that runs one test of this binary as a child, with `spec` for it; killed after 20 s.
pub(crate) fn child(test: &str, spec: &str, root: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "20"]).arg(std::env::current_exe().expect("this binary has a path"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.envs(child_environment(spec, root));
    command
}

/// What tells a child that it is one.
pub(crate) fn child_environment(spec: &str, root: &Path) -> [(&'static str, OsString); 2] {
    [(SPEC, spec.into()), (ROOT, root.into())]
}

/// Runs a child to its end.
pub(crate) fn run_child(test: &str, spec: &str, root: &Path) -> Output {
    child(test, spec, root).output().expect("a child process starts")
}

/// In the child: what it is to do, and where. In an ordinary test run there is none, and the test does nothing.
pub(crate) fn spec() -> Option<(String, PathBuf)> {
    Some((std::env::var(SPEC).ok()?, std::env::var_os(ROOT)?.into()))
}

/// Fails with all that the child said unless it ended with this code.
#[track_caller]
pub(crate) fn assert_code(output: &Output, code: i32, what: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{what}\nstdout: {out}\nstderr: {err}");
}

/// A callback made of a closure, called in one hook.
pub(crate) struct On<F>(pub(crate) Hook, pub(crate) F);

impl<F: FnMut(&Event<'_>, &mut Control) + Send> Callback for On<F> {
    fn name(&self) -> String {
        format!("On({})", self.0.name())
    }

    fn on_event(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        if event.hook == self.0 {
            (self.1)(event, control);
        }
        Ok(())
    }
}

/// A list that a callback in a trainer fills and the test reads.
pub(crate) type Shared<T> = Arc<Mutex<Vec<T>>>;

/// A callback that adds to `list` what `take` makes of each event of this hook.
pub(crate) fn noting<T: Send + 'static>(
    hook: Hook,
    list: &Shared<T>,
    take: impl Fn(&Event<'_>) -> T + Send + 'static,
) -> impl Callback + 'static {
    let list = list.clone();
    On(hook, move |event: &Event<'_>, _: &mut Control| list.lock().unwrap().push(take(event)))
}

const SPEC: &str = "LEYDEN_TEST_SPEC";
const ROOT: &str = "LEYDEN_TEST_ROOT";
