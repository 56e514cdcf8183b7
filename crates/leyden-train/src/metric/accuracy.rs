//! The fraction of samples whose predicted class is the target.
//!
//! It does not average over classes: see [`ConfusionMatrix`](super::ConfusionMatrix) for that.

use leyden_process::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Metric, check_lengths, ratio_or_nan, read_state};

/// Correct predictions over all predictions: torchmetrics' `average="micro"`, scikit-learn's `accuracy_score`.
///
/// Two integer counts, one division at the end: exact up to that division. NaN before the first sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    correct: u64,
    samples: u64,
}

impl Accuracy {
    /// A count of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a batch: one predicted and one target class for each sample.
    ///
    /// # Errors
    /// [`UNEVEN_UPDATE`](super::UNEVEN_UPDATE) if the lengths differ; nothing is counted then.
    pub fn update(&mut self, predicted: &[usize], target: &[usize]) -> Result<()> {
        check_lengths(predicted, target)?;
        self.correct += predicted.iter().zip(target).filter(|(p, t)| p == t).count() as u64;
        self.samples += predicted.len() as u64;
        Ok(())
    }

    /// The accuracy so far, in 0..=1, or NaN.
    pub fn value(&self) -> f64 {
        ratio_or_nan(self.correct, self.samples)
    }
}

impl Metric for Accuracy {
    fn compute(&self, name: &str, out: &mut Vec<(String, f64)>) {
        out.push((name.to_owned(), self.value()));
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn state(&self) -> Value {
        json!({ "correct": self.correct, "samples": self.samples })
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        *self = read_state("accuracy", state)?;
        Ok(())
    }

    fn merge(&mut self, state: &Value) -> Result<()> {
        let other: Self = read_state("accuracy", state)?;
        self.correct = self.correct.saturating_add(other.correct);
        self.samples = self.samples.saturating_add(other.samples);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weighs_samples_and_not_batches() {
        let mut accuracy = Accuracy::new();
        accuracy.update(&[1, 2, 3, 4], &[1, 2, 3, 0]).unwrap();
        accuracy.update(&[7], &[8]).unwrap();
        accuracy.update(&[], &[]).unwrap();
        assert_eq!(accuracy.value(), 3.0 / 5.0);
    }
}
