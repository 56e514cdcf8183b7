//! [`ProgressBar`]: a bar in a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar as Bar, ProgressDrawTarget, ProgressStyle};
use leyden_process::Result;

use crate::control::Control;
use crate::event::{Callback, Event};
use crate::learner::Stage;
use crate::metrics::Shown;
use crate::say::print;

/// Shows where the run is, the values logged with `prog_bar`, and a line for each epoch.
///
/// In a terminal it draws a bar on stderr, at most ten times a second; where stdout or stderr is none it prints one
/// line an epoch to stdout, and one every ten seconds within a long epoch.
#[derive(Debug)]
pub struct ProgressBar {
    terminal: Option<bool>,
    bar: Option<Bar>,
    last_drawn: Instant,
    epoch_started: Instant,
}

impl Default for ProgressBar {
    fn default() -> Self {
        Self::new()
    }
}

impl ProgressBar {
    /// Chooses by what stdout is.
    pub fn new() -> Self {
        Self { terminal: None, bar: None, last_drawn: Instant::now(), epoch_started: Instant::now() }
    }

    /// Chooses by hand.
    #[must_use]
    pub fn terminal(mut self, terminal: bool) -> Self {
        self.terminal = Some(terminal);
        self
    }

    fn is_terminal(&self) -> bool {
        // The bar is drawn on stderr; lines go to stdout. A run whose stdout is kept wants the lines.
        self.terminal.unwrap_or_else(|| std::io::stdout().is_terminal() && std::io::stderr().is_terminal())
    }

    fn open(&mut self, what: &str, batches: usize) {
        self.last_drawn = Instant::now();
        if !self.is_terminal() {
            return;
        }
        let bar = Bar::with_draw_target(Some(batches as u64), ProgressDrawTarget::stderr());
        let style =
            ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} [{elapsed}<{eta}, {per_sec}] {msg}")
                .expect("the template is valid");
        bar.set_style(style);
        bar.set_prefix(what.to_owned());
        self.bar = Some(bar);
    }

    fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Draws, if it is time to.
    fn draw(&mut self, done: usize, event: &Event<'_>) {
        let interval = if self.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL };
        if self.last_drawn.elapsed() < interval {
            return;
        }
        self.last_drawn = Instant::now();
        let mut values = String::new();
        event.metrics.prog_bar(|name, value| {
            let _ = write!(values, "  {name} {}", Shown(value));
        });
        match &self.bar {
            Some(bar) => {
                bar.set_position(done as u64);
                bar.set_message(values);
            }
            None => print(&format!("{}  batch {done}/{}{values}\n", epoch_of(event), event.progress.batches)),
        }
    }

    /// A whole line, above the bar if there is one.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => print(&format!("{line}\n")),
        }
    }

    fn evaluation_start(&mut self, event: &Event<'_>) -> Result<()> {
        let alone = event.stage != Stage::Fit;
        if let (true, Some((_, batches))) = (alone, event.evaluation) {
            self.open(event.stage.name(), batches);
        }
        Ok(())
    }

    fn evaluation_batch(&mut self, event: &Event<'_>) -> Result<()> {
        if let (true, Some((done, _)), true) =
            (event.stage != Stage::Fit, event.evaluation, self.bar.is_some())
        {
            self.draw(done, event);
        }
        Ok(())
    }
}

impl Callback for ProgressBar {
    fn name(&self) -> String {
        "ProgressBar".to_owned()
    }

    fn rank_zero_only(&self) -> bool {
        true
    }

    fn monitors(&self) -> bool {
        true
    }

    fn on_fit_start(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        if let Some(dir) = event.run_dir {
            self.say(&format!("run folder {}", dir.display()));
        }
        Ok(())
    }

    fn on_train_epoch_start(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.epoch_started = Instant::now();
        self.open(&epoch_of(event), event.progress.batches);
        Ok(())
    }

    fn on_train_batch_end(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.draw(event.progress.batch, event);
        Ok(())
    }

    fn on_train_epoch_end(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        let mut line = epoch_of(event);
        event.metrics.prog_bar(|name, value| {
            let _ = write!(line, "  {name} {}", Shown(value));
        });
        for (name, value) in event.metrics.epoch_values() {
            let _ = write!(line, "  {name} {}", Shown(value));
        }
        let _ = write!(line, "  {:.1?}", self.epoch_started.elapsed());
        self.say(&line);
        self.close();
        Ok(())
    }

    fn on_validation_start(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.evaluation_start(event)
    }

    fn on_test_start(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.evaluation_start(event)
    }

    fn on_predict_start(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.evaluation_start(event)
    }

    fn on_validation_batch_end(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.evaluation_batch(event)
    }

    fn on_test_batch_end(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.evaluation_batch(event)
    }

    fn on_predict_batch_end(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        self.evaluation_batch(event)
    }

    fn on_exception(&mut self, _: &Event<'_>, _: &mut Control) -> Result<()> {
        self.close();
        Ok(())
    }

    fn teardown(&mut self, _: &Event<'_>, _: &mut Control) -> Result<()> {
        self.close();
        Ok(())
    }
}

/// `epoch 3/20`, or `epoch 3` where there is no limit; counted from 1, as people do.
fn epoch_of(event: &Event<'_>) -> String {
    let number = event.progress.epoch + 1;
    match event.plan.max_epochs {
        Some(max) => format!("epoch {number:>width$}/{max}", width = max.to_string().len()),
        None => format!("epoch {number}"),
    }
}

/// Faster than the eye needs, slower than a step may cost.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// A log file wants signs of life, not a line a step.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
