//! The F1 score, averaged over classes or over samples, from three counts a class.
//!
//! Use [`ConfusionMatrix`](super::ConfusionMatrix) where it matters which class was taken for which.

use leyden_process::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ClassCounts, Metric, check_classes, classes_differ, macro_mean, read_state};

/// 2 TP / (2 TP + FP + FN) over class indices, with integer counts. NaN before the first sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct F1 {
    average: Average,
    classes: Vec<ClassCounts>,
}

impl F1 {
    /// The plain mean of the classes' scores, by torchmetrics' multi-class rules: a class that is neither predicted
    /// nor a target is left out, one whose score is 0/0 otherwise counts as 0.
    pub fn macro_average(classes: usize) -> Self {
        Self { average: Average::Macro, classes: vec![ClassCounts::default(); classes] }
    }

    /// One score over the counts of all classes together. With one label a sample this equals the accuracy.
    pub fn micro(classes: usize) -> Self {
        Self { average: Average::Micro, classes: vec![ClassCounts::default(); classes] }
    }

    /// Counts a batch: one predicted and one target class for each sample.
    ///
    /// # Errors
    /// [`UNEVEN_UPDATE`](super::UNEVEN_UPDATE) or [`CLASS_OUT_OF_RANGE`](super::CLASS_OUT_OF_RANGE); nothing is
    /// counted then.
    pub fn update(&mut self, predicted: &[usize], target: &[usize]) -> Result<()> {
        check_classes(predicted, target, self.classes.len())?;
        for (&predicted, &target) in predicted.iter().zip(target) {
            if predicted == target {
                self.classes[target].true_positives += 1;
            } else {
                self.classes[predicted].false_positives += 1;
                self.classes[target].false_negatives += 1;
            }
        }
        Ok(())
    }

    /// The score so far, in 0..=1, or NaN.
    pub fn value(&self) -> f64 {
        let classes = self.classes.iter().copied();
        match self.average {
            Average::Macro => macro_mean(classes, ClassCounts::f1),
            Average::Micro => macro_mean(classes.reduce(added).into_iter(), ClassCounts::f1),
        }
    }

    fn read(&self, state: &Value) -> Result<Vec<ClassCounts>> {
        let State { f1 } = read_state("f1", state)?;
        if f1.len() != self.classes.len() {
            return Err(classes_differ("f1", self.classes.len(), f1.len()));
        }
        let counts = |[true_positives, false_positives, false_negatives]: [u64; 3]| ClassCounts {
            true_positives,
            false_positives,
            false_negatives,
        };
        Ok(f1.into_iter().map(counts).collect())
    }
}

impl Metric for F1 {
    fn compute(&self, name: &str, out: &mut Vec<(String, f64)>) {
        out.push((name.to_owned(), self.value()));
    }

    fn reset(&mut self) {
        self.classes.fill(ClassCounts::default());
    }

    fn state(&self) -> Value {
        let row = |class: &ClassCounts| [class.true_positives, class.false_positives, class.false_negatives];
        json!(State { f1: self.classes.iter().map(row).collect() })
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.classes = self.read(state)?;
        Ok(())
    }

    fn merge(&mut self, state: &Value) -> Result<()> {
        let others = self.read(state)?;
        for (class, other) in self.classes.iter_mut().zip(others) {
            *class = added(*class, other);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Average {
    Macro,
    Micro,
}

/// One row a class: true positives, false positives, false negatives.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    f1: Vec<[u64; 3]>,
}

fn added(a: ClassCounts, b: ClassCounts) -> ClassCounts {
    ClassCounts {
        true_positives: a.true_positives.saturating_add(b.true_positives),
        false_positives: a.false_positives.saturating_add(b.false_positives),
        false_negatives: a.false_negatives.saturating_add(b.false_negatives),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_over_classes_or_over_samples() {
        let (predicted, target) = ([0, 0, 1, 1, 2], [0, 1, 1, 1, 0]);
        // Class 0: TP 1, FP 1, FN 1. Class 1: TP 2, FP 0, FN 1. Class 2: TP 0, FP 1, FN 0.
        let mut by_class = F1::macro_average(3);
        by_class.update(&predicted, &target).unwrap();
        assert_eq!(by_class.value(), (2.0 / 4.0 + 4.0 / 5.0 + 0.0) / 3.0);
        let mut by_sample = F1::micro(3);
        by_sample.update(&predicted, &target).unwrap();
        assert_eq!(by_sample.value(), 3.0 / 5.0);
    }
}
