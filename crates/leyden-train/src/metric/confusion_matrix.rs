//! Which class was taken for which: the counts from which the class-wise scores follow.
//!
//! It does not normalise and draws no picture; [`Display`](fmt::Display) is a plain table.

use std::fmt;

use leyden_process::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ClassCounts, Metric, check_classes, classes_differ, macro_mean, ratio_or_nan, read_state};

/// Counts of (target, predicted) pairs, `classes` × `classes`; memory is 8 bytes a cell.
///
/// [`compute`](Metric::compute) pushes `<name>/accuracy`, `<name>/f1`, `<name>/precision` and `<name>/recall`.
/// The last three are macro averages by torchmetrics' multi-class rules: the plain mean over the classes that occur
/// as prediction or target, where 0/0 counts as 0. The accuracy is the fraction of correct samples, as
/// [`Accuracy`](super::Accuracy) has it; a macro-averaged accuracy would be the recall a second time. All four are
/// NaN before the first sample (torchmetrics: 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: usize,
    /// Row by row, a row for each target class.
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// A matrix of zeros for classes `0..classes`.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts a batch: one predicted and one target class for each sample.
    ///
    /// # Errors
    /// [`UNEVEN_UPDATE`](super::UNEVEN_UPDATE) or [`CLASS_OUT_OF_RANGE`](super::CLASS_OUT_OF_RANGE); nothing is
    /// counted then.
    pub fn update(&mut self, predicted: &[usize], target: &[usize]) -> Result<()> {
        check_classes(predicted, target, self.classes)?;
        for (&predicted, &target) in predicted.iter().zip(target) {
            self.counts[target * self.classes + predicted] += 1;
        }
        Ok(())
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How many samples of class `target` were predicted as `predicted`; 0 for classes the matrix does not have.
    pub fn count(&self, target: usize, predicted: usize) -> u64 {
        if target < self.classes && predicted < self.classes {
            self.counts[target * self.classes + predicted]
        } else {
            0
        }
    }

    /// Of the samples predicted as `class`, the fraction that are; 0 if there are none, as in scikit-learn.
    pub fn precision(&self, class: usize) -> f64 {
        self.counts_of(class).precision()
    }

    /// Of the samples of `class`, the fraction predicted as such; 0 if there are none, as in scikit-learn.
    pub fn recall(&self, class: usize) -> f64 {
        self.counts_of(class).recall()
    }

    /// The harmonic mean of precision and recall of `class`; 0 if it is absent.
    pub fn f1(&self, class: usize) -> f64 {
        self.counts_of(class).f1()
    }

    /// The fraction of samples on the diagonal, or NaN.
    pub fn accuracy(&self) -> f64 {
        let correct = (0..self.classes).map(|class| self.count(class, class)).sum();
        ratio_or_nan(correct, self.counts.iter().sum())
    }

    fn counts_of(&self, class: usize) -> ClassCounts {
        let true_positives = self.count(class, class);
        let predicted: u64 = (0..self.classes).map(|target| self.count(target, class)).sum();
        let actual: u64 = (0..self.classes).map(|predicted| self.count(class, predicted)).sum();
        ClassCounts {
            true_positives,
            false_positives: predicted - true_positives,
            false_negatives: actual - true_positives,
        }
    }

    fn read(&self, state: &Value) -> Result<Vec<u64>> {
        let State { classes, confusion } = read_state("confusion_matrix", state)?;
        // A matrix that is not square is told by its cells; anything else by its classes.
        if classes != self.classes || confusion.len() != self.counts.len() {
            return Err(classes_differ("confusion_matrix", self.classes, classes)
                .at("cells", format!("{} expected, {} found", self.counts.len(), confusion.len())));
        }
        Ok(confusion)
    }
}

impl Metric for ConfusionMatrix {
    fn compute(&self, name: &str, out: &mut Vec<(String, f64)>) {
        let classes: Vec<_> = (0..self.classes).map(|class| self.counts_of(class)).collect();
        let mean = |score: fn(ClassCounts) -> f64| macro_mean(classes.iter().copied(), score);
        out.extend([
            (format!("{name}/accuracy"), self.accuracy()),
            (format!("{name}/f1"), mean(ClassCounts::f1)),
            (format!("{name}/precision"), mean(ClassCounts::precision)),
            (format!("{name}/recall"), mean(ClassCounts::recall)),
        ]);
    }

    fn reset(&mut self) {
        self.counts.fill(0);
    }

    fn state(&self) -> Value {
        json!(State { classes: self.classes, confusion: self.counts.clone() })
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.counts = self.read(state)?;
        Ok(())
    }

    fn merge(&mut self, state: &Value) -> Result<()> {
        let others = self.read(state)?;
        for (count, other) in self.counts.iter_mut().zip(others) {
            *count = count.saturating_add(other);
        }
        Ok(())
    }
}

/// An aligned table: a row for each target class, a column for each predicted one.
impl fmt::Display for ConfusionMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = |count: u64| count.to_string().len();
        let largest = self.counts.iter().copied().max().unwrap_or(0).max(self.classes as u64);
        let width = digits(largest);
        let label = TABLE_CORNER.len();
        write!(f, "{TABLE_CORNER}")?;
        for class in 0..self.classes {
            write!(f, "  {class:>width$}")?;
        }
        for target in 0..self.classes {
            write!(f, "\n{target:>label$}")?;
            for predicted in 0..self.classes {
                write!(f, "  {:>width$}", self.count(target, predicted))?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    classes: usize,
    confusion: Vec<u64>,
}

const TABLE_CORNER: &str = "target \\ predicted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_targets_and_columns_predictions() {
        let mut matrix = ConfusionMatrix::new(3);
        matrix.update(&[1, 1, 2, 0], &[0, 1, 2, 0]).unwrap();
        assert_eq!((matrix.count(0, 1), matrix.count(1, 0), matrix.count(9, 9)), (1, 0, 0));
        assert_eq!((matrix.precision(1), matrix.recall(1)), (0.5, 1.0));
        assert_eq!((matrix.precision(0), matrix.recall(0)), (1.0, 0.5));
        assert_eq!((matrix.f1(0), matrix.f1(2)), (2.0 / 3.0, 1.0));
    }

    #[test]
    fn prints_an_aligned_table() {
        let mut matrix = ConfusionMatrix::new(2);
        matrix.update(&[0; 120], &[0; 120]).unwrap();
        matrix.update(&[0, 1, 1], &[1, 1, 1]).unwrap();
        let expected =
            "target \\ predicted    0    1\n                 0  120    0\n                 1    1    2";
        assert_eq!(matrix.to_string(), expected);
    }
}
