//! [`LearningRateMonitor`]: logs the learning rates.

use leyden_process::Result;
use serde_json::{Value, json};

use crate::control::Control;
use crate::event::{Callback, Event};

/// Logs each parameter group's learning rate as `lr` (the base group) and `lr/<group>`, at the start of each epoch
/// or of each batch.
#[derive(Clone, Debug, Default)]
pub struct LearningRateMonitor {
    every_step: bool,
    last: Vec<f64>,
}

impl LearningRateMonitor {
    /// Logs at the start of each epoch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Logs at the start of each batch whose rates differ from the last ones.
    #[must_use]
    pub fn every_step(mut self) -> Self {
        self.every_step = true;
        self
    }

    fn log(&mut self, event: &Event<'_>, control: &mut Control) {
        let rates = event.learner.learning_rates();
        if !rates.iter().map(|(_, rate)| rate).eq(&self.last) {
            self.last = rates.iter().map(|(_, rate)| *rate).collect();
            for (index, (group, rate)) in rates.iter().enumerate() {
                control.log(if index == 0 { "lr".to_owned() } else { format!("lr/{group}") }, *rate);
            }
        }
    }
}

impl Callback for LearningRateMonitor {
    fn name(&self) -> String {
        "LearningRateMonitor".to_owned()
    }

    fn state(&self) -> Value {
        json!(self.last.iter().map(|rate| rate.to_bits()).collect::<Vec<_>>())
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        let last: Vec<u64> = serde_json::from_value(state.clone())?;
        self.last = last.into_iter().map(f64::from_bits).collect();
        Ok(())
    }

    fn on_train_epoch_start(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        self.last.clear();
        self.log(event, control);
        Ok(())
    }

    fn on_train_batch_start(&mut self, event: &Event<'_>, control: &mut Control) -> Result<()> {
        if self.every_step {
            self.log(event, control);
        }
        Ok(())
    }
}
