//! [`Timer`]: ends the training after a time.

use std::time::{Duration, Instant};

use leyden_process::Result;
use serde_json::{Value, json};

use crate::control::Control;
use crate::event::{Callback, Event};

/// Ends the training at the first batch's end after `limit`, counted over resumes. `max_time` adds one.
#[derive(Clone, Debug)]
pub struct Timer {
    limit: Duration,
    /// Of the runs before this one.
    before: Duration,
    started: Option<Instant>,
}

impl Timer {
    /// A timer for `limit` of training.
    pub fn new(limit: Duration) -> Self {
        Self { limit, before: Duration::ZERO, started: None }
    }

    /// How long the training has been going on, resumed runs included.
    fn elapsed(&self) -> Duration {
        self.before + self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }
}

impl Callback for Timer {
    fn name(&self) -> String {
        "Timer".to_owned()
    }

    fn still_stops(&self) -> bool {
        self.elapsed() >= self.limit
    }

    fn state(&self) -> Value {
        json!({ "elapsed": self.elapsed() })
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.before = serde_json::from_value(state["elapsed"].clone())?;
        Ok(())
    }

    fn setup(&mut self, _: &Event<'_>, _: &mut Control) -> Result<()> {
        (self.before, self.started) = (Duration::ZERO, None);
        Ok(())
    }

    fn on_train_start(&mut self, _: &Event<'_>, _: &mut Control) -> Result<()> {
        self.started = Some(Instant::now());
        Ok(())
    }

    fn on_train_batch_end(&mut self, _: &Event<'_>, control: &mut Control) -> Result<()> {
        if self.elapsed() >= self.limit {
            control.stop(format!("{:?} of training are over", self.limit));
        }
        Ok(())
    }
}
